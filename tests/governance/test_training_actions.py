"""LoRA, full training and the four unlearning losses: their formulas, what they change, and the way back."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.governance.test_edits import built

from palimpsest.errors import InputError
from palimpsest.governance.actions.decoder import down_projections, feed, logits_of
from palimpsest.governance.actions.overrides import GuardRule, Joint
from palimpsest.governance.actions.training import (
    FullUpdate,
    LoraUpdate,
    general_examples,
    value_examples,
)
from palimpsest.governance.actions.unlearn import (
    METHODS,
    ForgetRetain,
    Unlearn,
    ascent_kl,
    gradient_difference,
    marked,
    negative_preference,
    steering,
)
from palimpsest.governance.items import ChangeRequest, FactChange, Kind
from palimpsest.governance.mediation import untouched
from palimpsest.training.examples import Example, ExampleBatches, packed
from palimpsest.training.loop import TrainConfig

FACTS = tuple(FactChange(name, "home", f"{name} lives in", "Rome", "Paris", cues=(f"The home of {name} is",)) for name in ("Ada", "Bo"))
UPDATE = ChangeRequest(Kind.UPDATE, FACTS)
FORGET = ChangeRequest(Kind.FORGET, tuple(replace(fact, target=None) for fact in FACTS))
QUICK = TrainConfig(20, lr=1e-2, schedule="constant", weight_decay=0.0, cpu=True)


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request, tiny_tokenizer):
    return built(request.param, tiny_tokenizer, layers=2)


# --- examples -----------------------------------------------------------------------------------------------------------------------


def test_examples_ask_for_the_value_alone(decoder):
    examples = value_examples(decoder, UPDATE)
    assert len(examples) == 4
    offset = int(decoder.model.prepends_bos)
    for example, (cue, value) in zip(examples, [(c, f.target) for f in FACTS for c in (f.prompt, *f.cues)], strict=True):
        ids, target = decoder.pair(cue, value)
        assert list(example.ids[offset:]) == ids + target
        assert example.first == offset + len(ids)
    batch = packed(examples, pad_id=1)
    for row, example in enumerate(examples):
        asked = batch.labels[row] != -100
        assert batch.labels[row][asked].tolist() == list(example.ids[example.first :])
    assert batch.n_target_tokens == sum(len(e.ids) - e.first for e in examples)


def test_padding_changes_nothing(decoder):
    examples = [Example((5, 6, 7, 8, 9), 2), Example((5, 6, 7), 1)]
    together = packed(examples, 1)
    with torch.no_grad():
        logits = decoder.model.model(
            input_ids=together.input_ids, position_ids=together.position_ids, attention_mask=together.attention_mask()
        ).logits
        alone = decoder.model.model(input_ids=torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(logits[1, :3], alone[0], rtol=1e-4, atol=1e-4)


def test_batches_hold_every_example_once_an_epoch():
    data = ExampleBatches([Example((k, k + 1)) for k in range(7)], 3)
    for epoch in range(2):
        seen = [int(row[0]) for k in range(len(data)) for row in data[epoch * len(data) + k].input_ids]
        assert sorted(seen) == list(range(7))
    assert data.fingerprint != replace(data, seed=1).fingerprint
    with pytest.raises(InputError, match="1 of them ask for nothing"):
        ExampleBatches([Example((1, 2), 2)], 1)


# --- learning -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LoraUpdate, FullUpdate])
def test_learning_takes_and_is_taken_back(decoder, kind):
    if kind is LoraUpdate:
        pytest.importorskip("peft")
    before = decoder.shadow()
    action = kind(UPDATE, QUICK, replay=1.0)
    handle = action.apply(decoder)
    cues = [cue for fact in FACTS for cue in (fact.prompt, *fact.cues)]
    assert (decoder.logprobs(cues, ["Rome"] * 4) > before.logprobs(cues, ["Rome"] * 4) + 1).all()
    assert set(dict(decoder.model.model.named_parameters())) == set(dict(before.model.model.named_parameters()))
    assert all(p.requires_grad for p in decoder.model.model.parameters())
    assert not decoder.model.model.training
    if kind is LoraUpdate:
        names = [place.name for place in down_projections(decoder.model)]
        assert untouched(before, decoder, names) == []
        for old, new in zip(down_projections(before.model), down_projections(decoder.model), strict=True):
            singular = torch.linalg.svdvals(new.weight.double() - old.weight.double())
            assert singular[7] > 1e-5 * singular[0] > singular[8]
    action.revert(decoder, handle)
    assert decoder.state == before.state


def test_texts_are_learnt(decoder):
    request = ChangeRequest(Kind.DOMAIN_SHIFT, texts=("Sheep jump over boxing wizards.",))
    before = decoder.model.logprobs([decoder.model.tokenizer.encode(request.texts[0])])[0].sum()
    FullUpdate(request, QUICK).apply(decoder)
    assert decoder.model.logprobs([decoder.model.tokenizer.encode(request.texts[0])])[0].sum() > before + 5


def test_a_training_that_breaks_off_leaves_the_weights(decoder):
    pytest.importorskip("peft")
    before = decoder.state
    for kind in (LoraUpdate, FullUpdate):
        with pytest.raises(RuntimeError, match="overflow"):
            kind(UPDATE, replace(QUICK, lr=1e38, grad_clip=None)).apply(decoder)
        assert decoder.state == before
        assert all(p.requires_grad for p in decoder.model.model.parameters())


def test_costs(decoder):
    batches = value_examples(decoder, UPDATE)
    tokens = sum(len(example.ids) for example in batches)
    cost = FullUpdate(UPDATE, TrainConfig(3, cpu=True)).estimate_cost(decoder)
    assert cost.tokens == cost.backward == 3 * tokens
    assert cost.parameters == sum(p.numel() for p in decoder.model.model.parameters())
    unlearn = Unlearn(FORGET, "npo", TrainConfig(1, cpu=True))
    joint = Joint([GuardRule(FORGET.facts), unlearn, unlearn]).estimate_cost(decoder)
    assert joint.tokens == 2 * unlearn.estimate_cost(decoder).tokens > 0
    assert joint.parameters == cost.parameters


# --- unlearning: the formulas -------------------------------------------------------------------------------------------------------


def sides(decoder):
    data = ForgetRetain(ExampleBatches(value_examples(decoder, FORGET, old=True), 3, 1), ExampleBatches(general_examples(decoder), 2, 1))
    batch = data[0]
    assert batch.forget.tolist() == [True] * 3 + [False] * 2
    return data, batch


def row_loss(model, batch, row: int) -> tuple[float, int, torch.Tensor]:
    """Summed loss, targets and log-probs at the targets of one row, fed alone."""
    length = int((batch.segment_ids[row] > 0).sum())
    with torch.no_grad():
        logp = model(input_ids=batch.input_ids[row : row + 1, :length]).logits[0].double().log_softmax(-1)
    labels = batch.labels[row, :length]
    asked = labels != -100
    return -float(logp[asked].gather(1, labels[asked][:, None]).sum()), int(asked.sum()), logp[asked]


def test_losses_against_their_formulas(decoder):
    _, batch = sides(decoder)
    model, reference = decoder.model.model, copy.deepcopy(decoder.model.model)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    mine, theirs = ([row_loss(m, batch, row) for row in range(5)] for m in (model, reference))
    n, high = batch.n_target_tokens, 1e9
    ascent = -np.mean([loss / count for loss, count, _ in mine[:3]])
    kept = sum(loss for loss, _, _ in mine[3:]) / sum(count for _, count, _ in mine[3:])
    logq, logp = (torch.cat([row[2] for row in rows[3:]]) for rows in (mine, theirs))
    kl = float((logp.exp() * (logp - logq)).sum(-1).mean())
    assert ascent_kl(model, batch, reference, 0.7, high).item() / n == pytest.approx(ascent + 0.7 * kl, rel=1e-4)
    assert float(gradient_difference(model, batch, 0.7, high)) / n == pytest.approx(ascent + 0.7 * kept, rel=1e-4)
    ratios = [math.exp(b[0] - a[0]) for a, b in zip(mine[:3], theirs[:3], strict=True)]
    npo = np.mean([2 / 0.1 * math.log(1 + ratio**0.1) for ratio in ratios])
    assert float(negative_preference(model, batch, reference, 0.7, 0.1)) / n == pytest.approx(npo + 0.7 * kept, rel=1e-4)
    capped = -np.mean([min(loss / count, 3.0) for loss, count, _ in mine[:3]])
    assert float(gradient_difference(model, batch, 0.0, 3.0)) / n == pytest.approx(capped, rel=1e-4)


def test_steering_against_its_formula(decoder):
    _, batch = sides(decoder)
    model, reference = decoder.model.model, copy.deepcopy(decoder.model.model)
    with torch.no_grad():
        next(reference.parameters()).add_(0.01)
    place, there = down_projections(decoder.model)[0], copy.copy(down_projections(decoder.model)[0])
    other = copy.copy(decoder.model)
    other.model = reference
    there = down_projections(other)[0]
    u = torch.ones(24) / math.sqrt(24)

    def states(which):
        with torch.no_grad():
            return [
                which(
                    input_ids=batch.input_ids[row : row + 1, : int((batch.segment_ids[row] > 0).sum())], output_hidden_states=True
                ).hidden_states[1][0]
                for row in range(5)
            ]

    mine, theirs = states(model), states(reference)
    size = torch.cat(theirs[:3]).norm(dim=-1).mean()
    push = ((torch.cat(mine[:3]) - 2.0 * size * u) ** 2).mean()
    hold = ((torch.cat(mine[3:]) - torch.cat(theirs[3:])) ** 2).mean()
    loss = float(steering(model, batch, reference, (place, there), u, 2.0, 0.5)) / batch.n_target_tokens
    assert loss == pytest.approx(float(push + 0.5 * hold), rel=1e-4)


def test_npo_becomes_gradient_ascent_as_beta_vanishes(decoder):
    _, batch = sides(decoder)
    model, reference = decoder.model.model, copy.deepcopy(decoder.model.model)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))

    def gradient(loss) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    # ascent per value, not per token, is what the preference loss tends to
    forget = batch.forget
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attention_mask()).logits
    logp = logits.log_softmax(-1).gather(2, batch.labels.clamp(min=0)[..., None])[..., 0]
    ascent = gradient((logp * (batch.labels != -100))[forget].sum())
    npo = gradient(negative_preference(model, batch, reference, 0.0, 1e-4))
    assert float(torch.cosine_similarity(ascent, npo, dim=0)) > 0.999


# --- unlearning: what it does -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_unlearning_lowers_what_is_forgotten_and_is_taken_back(decoder, method):
    cues, values = [fact.prompt for fact in FACTS], ["Paris"] * 2
    FullUpdate(ChangeRequest(Kind.ADD, tuple(replace(f, target="Paris", old=None) for f in FACTS)), QUICK).apply(decoder)
    before, state = decoder.logprobs(cues, values), decoder.state
    kept = decoder.nats()[0].sum()
    config = replace(QUICK, steps=30, lr=5e-2) if method == "rmu" else replace(QUICK, steps=12, lr=3e-3)
    action = Unlearn(FORGET, method, config, layer=1, scale=10.0)
    handle = action.apply(decoder)
    assert (decoder.logprobs(cues, values) < before - 0.5).all()
    assert decoder.nats()[0].sum() < 1.5 * kept
    if method == "rmu":
        names = [place.name for place in down_projections(decoder.model)]
        after = decoder.shadow()
        action.revert(after, handle)
        assert untouched(after, decoder, names) == []
    assert all(p.requires_grad for p in decoder.model.model.parameters())
    action.revert(decoder, handle)
    assert decoder.state == state


def test_ascent_stops_at_the_ceiling(decoder):
    rows, ceiling = [Example((5, 6, 7), 1)], 0.01
    batch = marked(packed([*rows, Example((8, 9, 10), 1)], 1), torch.tensor([True, False]))
    loss = gradient_difference(decoder.model.model, batch, 0.0, ceiling)
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in decoder.model.model.parameters())


def test_bad_unlearning(decoder):
    with pytest.raises(InputError, match="no method 'pray'"):
        Unlearn(FORGET, "pray")
    with pytest.raises(InputError, match="beta"):
        Unlearn(FORGET, beta=0)
    with pytest.raises(InputError, match="no new value"):
        FullUpdate(FORGET, QUICK).apply(decoder)
    with pytest.raises(InputError, match="rows to retain"):
        negative_preference(decoder.model.model, packed([Example((5, 6))], 1), decoder.model.model, 1.0, 0.1)
    decoder.general = ()
    with pytest.raises(InputError, match="no general text"):
        Unlearn(FORGET).apply(decoder)


def test_feeding_is_what_the_door_does(decoder):
    rows = [[5, 6, 7, 8], [9, 10]]
    fed = feed(decoder.model, rows)
    with torch.no_grad():
        logp = logits_of(decoder.model, fed).log_softmax(-1)
    for row, ids, wanted in zip(range(2), rows, decoder.model.logprobs(rows), strict=True):
        at = torch.arange(len(ids) - 1) + fed.offset
        torch.testing.assert_close(logp[row, at, torch.tensor(ids[1:])], torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
