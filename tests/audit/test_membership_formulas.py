"""Our membership scores beside mimir's on the same log-probs: equal where mimir is right, and otherwise as the docstring says.

The formulas are stated here anew, a token at a time, from iamgroot42/mimir, folder mimir/attacks: loss.py, zlib.py, min_k.py, reference.py,
neighborhood.py and gradnorm.py at commit 576339bb, min_k_plus_plus.py at fbc45946, recall.py at bdb3c067, dc_pdd.py at cec898ef. mimir's
scores are lower for members.
"""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit.membership_gradients import gradient_norms
from palimpsest.audit.membership_passes import score_methods
from palimpsest.audit.membership_scores import dc_pdd, mean_logprob, min_k, recall_ratio, standardised, zlib_bytes
from palimpsest.errors import CapabilityError, NonFiniteError
from palimpsest.models import HFModel, ScoreCache

logprobs = st.lists(st.floats(-30, 0), min_size=1, max_size=60)
shares = st.floats(0.02, 1.0)


def theirs_loss(values):
    return -sum(values) / len(values)


def theirs_zlib(values, text):
    return theirs_loss(values) / len(zlib.compress(bytes(text, "utf-8")))


def theirs_min_k(values, share):
    kept = sorted(values)[: int(len(values) * share)]
    return -sum(kept) / len(kept) if kept else math.nan


def theirs_min_k_plus_plus(distributions, ids, share):
    """distributions: for every position the log-probs of the whole vocabulary."""
    scores = []
    for log_p, token in zip(distributions, ids, strict=True):
        mu = sum(math.exp(x) * x for x in log_p)
        sigma = math.sqrt(sum(math.exp(x) * x * x for x in log_p) - mu * mu)
        scores.append((log_p[token] - mu) / sigma)
    return theirs_min_k(scores, share)


def theirs_reference(values, reference_values):
    return theirs_loss(values) - theirs_loss(reference_values)


def theirs_neighbour(values, neighbours):
    return theirs_loss(values) - sum(map(theirs_loss, neighbours)) / len(neighbours)


def theirs_recall(conditional, values):
    """The conditional log-likelihood over the loss: of opposite signs."""
    return (sum(conditional) / len(conditional)) / theirs_loss(values)


def theirs_dc_pdd(ids, values, frequency, cap=0.01):
    seen, terms = [], []
    for token, value in zip(ids, values, strict=True):
        if token not in seen:
            seen.append(token)
            terms.append(min(math.exp(value) * math.log(1 / frequency[token]), cap))
    return -sum(terms) / len(terms)


def kept_like_ours(length, share):
    """The share at which int(share T) is ceil(k T): what mimir would have to be asked for."""
    return (max(1, math.ceil(share * length - 1e-9)) + 0.5) / length


@given(logprobs, st.text(max_size=80))
def test_loss_and_zlib(values, text):
    row = [np.array(values)]
    assert mean_logprob(row)[0] == pytest.approx(-theirs_loss(values), abs=1e-6)
    assert (mean_logprob(row) / zlib_bytes([text]))[0] == pytest.approx(-theirs_zlib(values, text), abs=1e-6)


@given(logprobs, shares)
def test_min_k_with_as_many_tokens(values, share):
    ours = min_k([np.array(values)], share)[0]
    assert ours == pytest.approx(-theirs_min_k(values, kept_like_ours(len(values), share)), abs=1e-6)
    whole = share * len(values)
    if abs(whole - round(whole)) < 1e-12:  # a whole number of tokens: the same share gives the same score
        assert ours == pytest.approx(-theirs_min_k(values, (round(whole) + 0.5) / len(values)), abs=1e-6)


@pytest.mark.parametrize(("tokens", "share"), [(10, 0.2), (40, 0.1), (8, 0.5), (3, 1.0)])
def test_min_k_at_the_same_share(tokens, share):
    values = np.random.default_rng(tokens).normal(-3, 2, tokens)
    assert min_k([values], share)[0] == pytest.approx(-theirs_min_k(values.tolist(), share), abs=1e-6)


def test_min_k_of_a_short_text_is_a_number():
    for tokens in (1, 2, 3, 4):
        values = [-float(i) for i in range(tokens)]
        assert math.isnan(theirs_min_k(values, 0.2))
        assert min_k([np.array(values)], 0.2)[0] == -(tokens - 1)  # the least likely token


@given(st.integers(1, 30), st.integers(2, 12), shares, st.integers(0, 2**32 - 1))
def test_min_k_plus_plus_from_whole_distributions(tokens, vocabulary, share, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (tokens, vocabulary))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = rng.integers(0, vocabulary, tokens)
    mean = (np.exp(log_p) * log_p).sum(axis=1)
    var = (np.exp(log_p) * log_p**2).sum(axis=1) - mean**2
    ours = min_k(standardised([log_p[np.arange(tokens), ids]], [mean], [var]), share)[0]
    expected = -theirs_min_k_plus_plus(log_p.tolist(), ids.tolist(), kept_like_ours(tokens, share))
    assert ours == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_min_k_plus_plus_of_a_sure_model_is_a_number():
    sure = [0.0, -np.inf]
    with np.errstate(invalid="ignore"), pytest.raises((ValueError, ZeroDivisionError)):
        theirs_min_k_plus_plus([[0.0, -800.0]], [0], 1.0)
    assert standardised([np.array(sure[:1])], [np.zeros(1)], [np.zeros(1)])[0].tolist() == [0.0]


@given(logprobs, logprobs)
def test_reference_and_recall(values, others):
    row, other = [np.array(values)], [np.array(others)]
    assert (mean_logprob(row) - mean_logprob(other))[0] == pytest.approx(-theirs_reference(values, others), abs=1e-6)
    if theirs_loss(values) > 1e-9 and theirs_loss(others) > 1e-9:
        assert recall_ratio(other, row)[0] == pytest.approx(-theirs_recall(others, values), rel=1e-6, abs=1e-6)


def test_a_reference_that_is_handed_the_targets_log_probs_says_nothing():
    """What mimir's reference attack does when log-probs are at hand: the reference model averages the target's."""
    values = [-1.0, -4.0]
    assert theirs_reference(values, values) == 0


@given(logprobs, st.lists(logprobs, min_size=1, max_size=5))
def test_neighbours(values, neighbours):
    ours = mean_logprob([np.array(values)])[0] - mean_logprob([np.array(row) for row in neighbours]).mean()
    assert ours == pytest.approx(-theirs_neighbour(values, neighbours), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-30, 0)), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_dc_pdd(tokens, seed):
    ids, values = [token for token, _ in tokens], [value for _, value in tokens]
    frequency = np.random.default_rng(seed).dirichlet(np.ones(6)) * 0.99 + 0.001
    ours = dc_pdd([np.array(ids)], [np.array(values)], np.log(frequency))[0]
    assert ours == pytest.approx(-theirs_dc_pdd(ids, values, frequency.tolist()), abs=1e-6)


def test_the_passes_hand_the_formulas_what_they_should(tiny_model, other_model, tmp_path):
    """From the model's own log-probs to the scores of `score_methods`, for everything that one pass, a reference or a prefix gives."""
    rng = np.random.default_rng(5)
    rows = [rng.integers(2, 320, length) for length in (20, 30, 10, 25)]
    methods = ["loss", "zlib", "min-k", "reference", "recall"]
    ours = score_methods(methods, tiny_model, rows, 2, other_model, None, 0.2, 0, None)
    for number, row in enumerate(rows):
        values = tiny_model.logprobs([row])[0].astype(float).tolist()
        others = other_model.logprobs([row])[0].astype(float).tolist()
        text = tiny_model.tokenizer.decode(row.tolist())
        assert ours["loss"][number] == pytest.approx(-theirs_loss(values), abs=1e-5)
        assert ours["zlib"][number] == pytest.approx(-theirs_zlib(values, text), abs=1e-6)
        assert ours["min-k"][number] == pytest.approx(-theirs_min_k(values, kept_like_ours(len(values), 0.2)), abs=1e-5)
        assert ours["reference"][number] == pytest.approx(-theirs_reference(values, others), abs=1e-5)


def test_gradnorm_is_minus_the_norm_of_the_whole_gradient(tiny_model):
    """Against transformers' own loss and one backward pass into `.grad`."""
    rng = np.random.default_rng(6)
    rows = [rng.integers(2, 320, length) for length in (2, 9, 30)]
    frozen = next(iter(tiny_model.model.parameters()))
    frozen.requires_grad_(False)
    norms = gradient_norms(ScoreCache(tiny_model), rows)
    assert not frozen.requires_grad  # as it was
    frozen.requires_grad_(True)
    assert all(parameter.grad is None for parameter in tiny_model.model.parameters())
    assert score_methods(["gradnorm"], tiny_model, rows, 1, None, None, 0.2, 0, None)["gradnorm"] == pytest.approx(-norms)
    for row, norm in zip(rows, norms, strict=True):
        ids = torch.tensor(row[None])
        tiny_model.model(input_ids=ids, labels=ids).loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in tiny_model.model.parameters()])
        tiny_model.model.zero_grad(set_to_none=True)
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_gradnorm_scores_what_the_loss_scores_behind_bos(tiny_model, tiny_tokenizer):
    row = np.array([5, 9, 17, 4])
    with_bos = HFModel(tiny_model.model, tiny_tokenizer, bos="always")
    ids = torch.tensor([[0, *row.tolist()]])
    labels = ids.clone()
    labels[0, :2] = -100  # neither BOS nor the text's first token is scored
    tiny_model.model(input_ids=ids, labels=labels).loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in tiny_model.model.parameters()]).norm()
    tiny_model.model.zero_grad(set_to_none=True)
    assert gradient_norms(with_bos, [row])[0] == pytest.approx(float(expected), rel=1e-4)


def test_a_step_down_the_loss_makes_it_flatter(make_trained):
    """A text that was trained on to the end has nearly no gradient: the sign of the score."""
    model, member, other = make_trained
    scores = score_methods(["gradnorm", "loss"], model, [member, other], 1, None, None, 0.2, 0, None)
    assert scores["gradnorm"][0] > scores["gradnorm"][1]
    assert scores["loss"][0] > scores["loss"][1]


@pytest.fixture
def make_trained(tiny_tokenizer):
    """A tiny model that was trained on one text, the text, and another."""
    from tests.conftest import make_tiny_model

    model = make_tiny_model(tiny_tokenizer, seed=4)
    rng = np.random.default_rng(8)
    member, other = rng.integers(2, 320, 16), rng.integers(2, 320, 16)
    ids = torch.tensor(member[None])
    optimizer = torch.optim.Adam(model.model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, member, other


def test_gradients_need_weights_and_must_be_finite(tiny_model, narrow_door, tiny_tokenizer):
    from tests.conftest import make_tiny_model

    with pytest.raises(CapabilityError, match="weights"):
        gradient_norms(narrow_door(tiny_model, {"logprobs"}), [np.array([4, 5])])
    with pytest.raises(CapabilityError, match="no gradients"):
        gradient_norms(narrow_door(tiny_model, {"logprobs", "weights"}), [np.array([4, 5])])
    broken = make_tiny_model(tiny_tokenizer, seed=4)
    with torch.no_grad():
        broken.model.lm_head.weight[7, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="text 0"):
        gradient_norms(broken, [np.array([4, 5])])
