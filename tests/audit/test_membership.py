"""Membership scores against their formulas, their invariants, and the plumbing of the measurement."""

from __future__ import annotations

import math
import warnings
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from palimpsest.audit.blind import blind_baseline
from palimpsest.audit.membership import BiasedSplitWarning, measure_membership
from palimpsest.audit.membership_passes import METHODS, score_methods
from palimpsest.audit.membership_scores import dc_pdd, mean_logprob, min_k, recall_ratio, standardised
from palimpsest.audit.neighbours import ngram_neighbours
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import CapabilityError, InputError
from palimpsest.models import ScoreCache
from palimpsest.stats import auc, tpr_at_fpr

# the sides are made unlike on purpose: one is written by a model
pytestmark = pytest.mark.filterwarnings("ignore::palimpsest.audit.membership.BiasedSplitWarning")

RNG = np.random.default_rng(7)
ROWS = [RNG.normal(-3, 1, n) for n in (1, 2, 5, 35, 40)]


@pytest.fixture(scope="module")
def texts(tiny_model):
    """30 texts that the model finds likely (its own samples) as members, 30 of random ids as non-members."""
    rng = np.random.default_rng(3)
    starts = rng.integers(2, tiny_model.tokenizer.vocab_size, size=(30, 2))
    written = tiny_model.generate(list(starts), 30, temperature=0.9, seed=1, stop_at_eos=False)
    members = [
        PrefixSuffix(np.concatenate([start, rows[0]]), 16, 16, {"id": f"m{i}", "copies": [1, 4, 16][i % 3]})
        for i, (start, rows) in enumerate(zip(starts, written, strict=True))
    ]
    return members, [rng.integers(2, tiny_model.tokenizer.vocab_size, 32) for _ in range(30)]


@pytest.fixture(scope="module")
def corpus(tiny_tokenizer, tmp_path_factory):
    rng = np.random.default_rng(4)
    rows = [rng.integers(2, tiny_tokenizer.vocab_size, 400) for _ in range(5)]
    return CorpusIndex.build(rows, None, tmp_path_factory.mktemp("corpus") / "index")


def test_min_k_of_everything_is_the_loss():
    assert min_k(ROWS, 1.0) == pytest.approx(mean_logprob(ROWS))


@pytest.mark.parametrize("k", [0.01, 0.2, 0.5])
def test_min_k_averages_the_ceiling_of_k_smallest(k):
    expected = [np.sort(row)[: max(1, math.ceil(round(k * len(row), 6)))].mean() for row in ROWS]
    assert min_k(ROWS, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0.0, -1.0, 1.1])
def test_min_k_refuses_shares_that_are_none(k):
    with pytest.raises(InputError, match="k is"):
        min_k(ROWS, k)


def test_a_row_without_scored_tokens_is_refused():
    for function in (mean_logprob, min_k):
        with pytest.raises(InputError, match="1 of 2 rows"):
            function([np.array([-1.0]), np.array([])])
    with pytest.raises(InputError):
        mean_logprob([])


def test_z_of_a_uniform_distribution_is_zero_and_of_others_standard():
    """E z = 0 and E z² = 1 under the model's own distribution, whatever it is; uniform has no spread and gives 0."""
    logits = np.array([[2.0, 0.0, -1.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(logp)
    mean = (p * logp).sum(1)
    var = (p * logp**2).sum(1) - mean**2
    var[1] = 0.0
    z = np.array([standardised([logp[:, v]], [mean], [var])[0] for v in range(4)]).T
    assert (p[0] * z[0]).sum() == pytest.approx(0, abs=1e-12)
    assert (p[0] * z[0] ** 2).sum() == pytest.approx(1)
    assert z[1].tolist() == [0, 0, 0, 0]


def test_moments_come_from_the_model(tiny_model, texts):
    """min-k++ by the definition, from the whole distribution of the torch model."""
    import torch

    row = texts[1][0]
    with torch.inference_mode():
        logp = tiny_model.model(torch.tensor(row[None])).logits[0, :-1].double().log_softmax(-1)
    mu = (logp.exp() * logp).sum(-1)
    sigma = ((logp.exp() * logp**2).sum(-1) - mu**2).sqrt()
    z = ((logp[torch.arange(31), torch.tensor(row[1:])] - mu) / sigma).numpy()
    ours = score_methods(["min-k++"], tiny_model, [row], 1, None, None, 0.2, 0, None)["min-k++"]
    assert ours[0] == pytest.approx(np.sort(z)[:7].mean(), abs=1e-4)


def test_reference_with_itself_is_zero(tiny_model, texts):
    rows = texts[1][:5]
    assert score_methods(["reference"], tiny_model, rows, 1, tiny_model, None, 0.2, 0, None)["reference"].tolist() == [0.0] * 5


def test_a_reference_with_another_tokenizer_is_compared_per_byte(tiny_model, other_model, narrow_door, tiny_tokenizer):
    from dataclasses import replace

    import tokenizers

    same_ids = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    same_ids.normalizer = tokenizers.normalizers.NFC()  # another fingerprint, the same ids for these texts
    reference = narrow_door(other_model, {"logprobs"}, tokenizer=replace(tiny_tokenizer, backend=same_ids))
    text = "In the beginning was the word"
    row = np.array(tiny_tokenizer.encode(text))
    ours = score_methods(["reference"], tiny_model, [row], 1, reference, None, 0.2, 0, None)["reference"][0]
    expected = (tiny_model.logprobs([row])[0].sum() - other_model.logprobs([row])[0].sum()) / len(text)
    assert ours == pytest.approx(expected, abs=1e-5)


def test_zlib_divides_by_the_compressed_text(tiny_model, texts):
    rows = texts[1][:4]
    scores = score_methods(["loss", "zlib", "zlib-total"], tiny_model, rows, 1, None, None, 0.2, 0, None)
    sizes = np.array([len(zlib.compress(tiny_model.tokenizer.decode(row.tolist()).encode())) for row in rows])
    assert scores["zlib"] == pytest.approx(scores["loss"] / sizes)
    assert scores["zlib-total"] == pytest.approx(31 * scores["loss"] / sizes)


def test_lowercase_is_zero_where_nothing_changes_and_a_difference_elsewhere(tiny_model, tiny_tokenizer):
    rows = [np.array(tiny_tokenizer.encode(text)) for text in ("the quick brown fox", "The Quick brown Fox")]
    scores = score_methods(["lowercase"], tiny_model, rows, 1, None, None, 0.2, 0, None)["lowercase"]
    plain, lower = tiny_model.logprobs([rows[1], rows[0]])
    assert scores[0] == 0
    assert scores[1] == pytest.approx(plain.mean() - lower.mean(), abs=1e-6)


def test_recall_conditions_on_non_members_and_never_on_the_text_itself(tiny_model, narrow_door, texts):
    members, nonmembers = texts
    rows = [m.ids for m in members[:3]] + nonmembers[:4]
    seen = {}

    class Spy(narrow_door):
        def score(self, batch, *, start=1, **options):
            if start != 1:
                seen.update({row[start:].tobytes(): row[:start] for row in batch})
            return super().score(batch, start=start, **options)

    score = score_methods(["recall"], Spy(tiny_model, {"logprobs"}), rows, 3, None, None, 0.2, 0, None)["recall"]
    for text, value in zip(rows, score, strict=True):
        prefix = seen[text.tobytes()]
        assert len(prefix) + len(text) <= 128
        shots = [tuple(prefix[-32 * i - 32 : len(prefix) - 32 * i].tolist()) for i in range(3)]
        assert set(shots) <= {tuple(n.tolist()) for n in nonmembers[:4]} - {tuple(text.tolist())}
        conditional = tiny_model.score([np.concatenate([prefix, text])], start=len(prefix) + 1).logprobs[0].mean()
        assert value == pytest.approx(conditional / tiny_model.logprobs([text])[0].mean(), rel=1e-4)
    assert len({seen[text.tobytes()].tobytes() for text in rows[:3]}) == 1  # members stand behind the same


def test_recall_reads_a_shared_prefix_once_and_says_the_same(tiny_model, narrow_door, texts):
    members, nonmembers = texts
    rows = [m.ids[: 20 + i % 3] for i, m in enumerate(members)] + nonmembers
    fed = []
    hook = tiny_model.model.register_forward_pre_hook(lambda _, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True)
    try:
        short = score_methods(["recall"], ScoreCache(tiny_model), rows, 30, None, None, 0.2, 0, None)["recall"]
        tokens = sum(fed)
        fed.clear()
        whole = score_methods(["recall"], narrow_door(tiny_model, {"logprobs"}), rows, 30, None, None, 0.2, 0, None)["recall"]
    finally:
        hook.remove()
    np.testing.assert_allclose(short, whole, rtol=1e-4)
    assert tokens < sum(fed) / 2


def test_recall_of_a_text_the_model_is_sure_of_is_one():
    assert recall_ratio([np.zeros(3)], [np.zeros(3)]).tolist() == [1.0]


def test_dc_pdd_by_hand():
    ids = [np.array([0, 1, 0])]
    logprobs = [np.log([0.002, 0.5, 0.9])]
    frequency = np.log([0.5, 0.25])
    # first occurrences only; the second is cut off at 0.01
    assert dc_pdd(ids, logprobs, frequency)[0] == pytest.approx((0.002 * math.log(2) + 0.01) / 2)


def test_frequencies_of_dc_pdd_are_laplace_smoothed(tiny_model, texts, corpus):
    rows = texts[1][:3]
    ours = score_methods(["dc-pdd"], tiny_model, rows, 1, None, corpus, 0.2, 0, None)["dc-pdd"]
    counts = Counter(int(i) for d in range(5) for i in corpus.document_ids(d))
    size = 1 + max(max(counts), *(int(row.max()) for row in rows))
    log_f = np.log([(counts[i] + 1) / (2000 + size) for i in range(size)])
    assert ours == pytest.approx(dc_pdd([row[1:] for row in rows], tiny_model.logprobs(rows), log_f))


def test_neighbours_change_the_asked_share_by_the_bigrams_of_the_corpus(tmp_path):
    rng = np.random.default_rng(0)
    document = rng.integers(0, 6, 500)
    index = CorpusIndex.build([document], None, tmp_path / "six")
    rows = [document[10:50].copy(), document[100:103].copy(), document[7:9].copy()]
    neighbours = ngram_neighbours(rows, index, n=30, share=0.3, span=2, seed=5)
    pairs = {(int(a), int(b)) for a, b in pairwise(document)}
    for number, changed in enumerate(neighbours):
        row = rows[number // 30]
        different = np.flatnonzero(changed != row)
        assert len(changed) == len(row)
        assert 0 not in different
        assert len(different) in {40: (11, 12), 3: (2,), 2: (1,)}[len(row)]  # 6 spans of 2, the last may be one token; one; one token
        assert all((int(changed[i - 1]), int(changed[i])) in pairs for i in different)
    again = ngram_neighbours(rows, index, n=30, share=0.3, span=2, seed=5)
    assert [a.tolist() for a in again] == [n.tolist() for n in neighbours]


def test_neighbours_are_drawn_by_count(tmp_path):
    # after 0 come 1 (once), 2 (twice) and 3 (four times); the present token 2 is left out
    index = CorpusIndex.build([[0, 1], [0, 2], [0, 2], [0, 3], [0, 3], [0, 3], [0, 3]], None, tmp_path / "counted")
    drawn = Counter(int(row[1]) for row in ngram_neighbours([np.array([0, 2])], index, n=5000, seed=1))
    assert set(drawn) == {1, 3}
    assert drawn[1] / 5000 == pytest.approx(1 / 5, abs=0.025)


def test_neighbours_fall_back_to_all_tokens_where_nothing_else_follows(tmp_path):
    index = CorpusIndex.build([[0, 1], [2, 3]], None, tmp_path / "pairs")
    drawn = {int(row[1]) for row in ngram_neighbours([np.array([0, 1]), np.array([200, 1])], index, n=50, seed=1)}
    assert drawn == {0, 2, 3}  # after 0 comes only the present 1; 200 is not in the corpus at all


def test_neighbours_refuse_what_has_no_neighbour(tmp_path):
    index = CorpusIndex.build([[0, 0, 0]], None, tmp_path / "one")
    with pytest.raises(InputError, match="1 different tokens"):
        ngram_neighbours([np.array([0, 0])], index)
    with pytest.raises(InputError, match="at least 2 tokens"):
        ngram_neighbours([np.array([0])], index)


def test_every_method_ranks_likely_texts_above_random_ones(tiny_model, other_model, texts, corpus):
    """The model's own samples are likely under it, so every score of likelihood must put them first."""
    members, nonmembers = texts
    result = measure_membership(tiny_model, members, nonmembers, METHODS, reference=other_model, index=corpus)
    assert set(result.summary["methods"]) == set(METHODS)
    for name in ("loss", "min-k", "min-k++", "reference", "neighbour_ngram", "zlib-total", "dc-pdd"):
        assert result.summary["methods"][name]["auc"] > 0.9, name
    table = result.table
    for name, figures in result.summary["methods"].items():
        sides = [table.filter(table["member"] == side)[name].to_numpy() for side in (True, False)]
        assert figures["auc"] == auc(*sides)
        assert figures["tpr_at_0.01"] == tpr_at_fpr(*sides, 0.01)
        assert figures["low"] <= figures["auc"] <= figures["high"]
        assert not table[name].is_nan().any()
    assert result.summary["left_out"] == {}
    assert result.to_json()
    assert set(result.curves) == {"membership-roc", "membership-copies"}


def test_copies_are_broken_down_against_all_non_members(tiny_model, texts):
    members, nonmembers = texts
    result = measure_membership(tiny_model, members, nonmembers, ["loss", "min-k"])
    rows = result.summary["by_copies"]
    assert [(row["copies"], row["method"], row["n"]) for row in rows][:2] == [(1, "loss", 10), (1, "min-k", 10)]
    assert [row["copies"] for row in rows] == [1, 1, 4, 4, 16, 16]
    table = result.table
    scores = table.filter((table["copies"] == 4) & table["member"])["loss"].to_numpy()
    assert rows[2]["auc"] == auc(scores, table.filter(~table["member"])["loss"].to_numpy())


def test_order_of_the_texts_does_not_matter(tiny_model, texts):
    members, nonmembers = texts
    plain = measure_membership(tiny_model, members, nonmembers, ["loss", "min-k++", "zlib"]).summary["methods"]
    other = measure_membership(tiny_model, members[::-1], nonmembers[::-1], ["zlib", "min-k++", "loss"]).summary["methods"]
    for name in plain:
        assert plain[name]["auc"] == pytest.approx(other[name]["auc"], abs=1e-9)
        assert plain[name]["tpr_at_0.01"] == other[name]["tpr_at_0.01"]


def test_two_tokens_are_enough(tiny_model):
    result = measure_membership(tiny_model, [[5, 6], [7, 8]], [[9, 10], [11, 12]], progress=None)
    assert np.isfinite(result.table.select("loss", "min-k", "min-k++", "zlib", "lowercase", "recall").to_numpy()).all()


def test_what_is_missing_is_left_out_by_default_and_refused_by_name(tiny_model, narrow_door, texts):
    members, nonmembers = texts
    result = measure_membership(narrow_door(tiny_model, {"logprobs"}), members, nonmembers)
    assert set(result.summary["left_out"]) == {"reference", "neighbour_ngram", "dc-pdd", "min-k++", "gradnorm"}
    assert "name it" in measure_membership(tiny_model, members, nonmembers).summary["left_out"]["gradnorm"]
    with pytest.raises(InputError, match="'gradnorm' cannot be run"):
        measure_membership(narrow_door(tiny_model, {"logprobs"}), members, nonmembers, ["gradnorm"])
    with pytest.raises(InputError, match="'reference' cannot be run: it needs a reference model"):
        measure_membership(tiny_model, members, nonmembers, ["reference"])
    with pytest.raises(InputError, match="'recall' cannot be run: a text fills the context of 32"):
        measure_membership(narrow_door(tiny_model, {"logprobs"}, context_length=32), members, nonmembers, ["recall"])
    with pytest.raises(InputError, match="vibes"):
        measure_membership(tiny_model, members, nonmembers, ["vibes"])
    with pytest.raises(CapabilityError, match="logprobs"):
        measure_membership(narrow_door(tiny_model, {"text"}), members, nonmembers)


def test_bad_sides_are_refused(tiny_model, texts):
    members, nonmembers = texts
    with pytest.raises(InputError, match="1 texts stand on both sides"):
        measure_membership(tiny_model, members, [*nonmembers, members[3].ids])
    with pytest.raises(InputError, match="Among the members, there are none"):
        measure_membership(tiny_model, [], nonmembers)
    with pytest.raises(InputError, match=r"Among the non-members, text 1 has shape \(1,\)"):
        measure_membership(tiny_model, members, [nonmembers[0], np.array([4])])


def test_blind_baseline_sees_a_biased_split_and_no_other(tiny_model):
    rng = np.random.default_rng(0)
    alike = [rng.integers(2, 40, 30) for _ in range(120)]
    shifted = [rng.integers(20, 58, 30) for _ in range(60)]
    assert blind_baseline(alike[:60], shifted).low > 0.9
    fair = blind_baseline(alike[:60], alike[60:])
    assert fair.low < 0.5
    assert fair.estimate < 0.6
    with pytest.warns(BiasedSplitWarning, match="without the model"):
        biased = measure_membership(tiny_model, alike[:60], shifted, ["loss"])
    assert "blind AUC" in biased.summary["warnings"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_membership(tiny_model, alike[:60], alike[60:], ["loss"]).summary["warnings"] == []


def test_copies_of_a_text_do_not_help_the_blind_baseline():
    """Repeated members stay in one fold: otherwise the classifier would know them by heart."""
    rng = np.random.default_rng(1)
    members = [row for row in (rng.integers(0, 500, 30) for _ in range(20)) for _ in range(5)]
    nonmembers = [rng.integers(0, 500, 30) for _ in range(100)]
    assert blind_baseline(members, nonmembers).estimate < 0.75
    assert blind_baseline(members[:1], nonmembers) is None


def test_progress_counts_every_pass(tiny_model, texts):
    members, nonmembers = texts
    heard = []
    measure_membership(tiny_model, members, nonmembers, ["loss", "lowercase"], progress=lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[-1] == (120, 120)
