"""The price of a guard, against a loop over whole distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from palimpsest.corpus import BloomFilter
from palimpsest.errors import CapabilityError, InputError, TokenizerMismatchError
from palimpsest.guard import NgramSet, measure_guard_cost
from palimpsest.guard import cost as module

TEXTS = ["In the beginning was the word, and the fox.", "The quick brown fox jumps over the lazy dog; sheep were counted by the hour."]


def by_hand(model, protected, row, n):
    """Every position with its whole context, banned ids one by one."""
    with torch.no_grad():
        logprobs = model.model(torch.tensor([row])).logits[0].double().log_softmax(-1).numpy()
    sums = {"tokens": 0, "blocked": 0, "banned_mass": 0.0, "nll": 0.0, "nll_open": 0.0, "nll_guarded": 0.0}
    for t in range(1, len(row)):
        banned = [v for v in range(model.vocab_size) if t >= n - 1 and (*row[t - n + 1 : t], v) in protected]
        mass = float(np.exp(logprobs[t - 1, banned]).sum())
        lp = float(logprobs[t - 1, row[t]])
        sums["tokens"] += 1
        sums["banned_mass"] += mass
        sums["nll"] -= lp
        if row[t] in banned:
            sums["blocked"] += 1
        else:
            sums["nll_open"] -= lp
            sums["nll_guarded"] -= lp - math.log1p(-mass)
    return sums


@pytest.mark.parametrize("n", [1, 2, 3])
def test_against_a_plain_loop(tiny_model, n):
    rows = [tiny_model.tokenizer.encode(text) for text in TEXTS]
    rng = np.random.default_rng(0)
    protected = {tuple(row[t : t + n]) for row in rows for t in range(0, len(row) - n + 1, 3)}
    protected |= {(*row[t : t + n - 1], int(rng.integers(320))) for row in rows for t in range(len(row) - n) for _ in range(5)}
    measured = measure_guard_cost(tiny_model, protected, TEXTS)
    for row, found in zip(rows, measured.table.iter_rows(named=True), strict=True):
        expected = by_hand(tiny_model, protected, row, n)
        assert found["blocked"] == expected["blocked"] > 0
        assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-4)
    summary, sums = (
        measured.summary,
        {k: sum(by_hand(tiny_model, protected, row, n)[k] for row in rows) for k in ("tokens", "blocked", "nll")},
    )
    assert summary["perplexity"] == pytest.approx(math.exp(sums["nll"] / sums["tokens"]), rel=1e-4)
    assert summary["blocked_share"]["estimate"] == sums["blocked"] / sums["tokens"]
    assert summary["perplexity_guarded"] < summary["perplexity_open"]


def test_nothing_protected_costs_nothing(tiny_model):
    summary = measure_guard_cost(tiny_model, set(), TEXTS).summary
    assert summary["blocked"] == summary["banned_mass"] == 0
    assert summary["perplexity"] == summary["perplexity_open"] == summary["perplexity_guarded"]


def test_a_text_that_is_all_protected_has_no_other_positions(tiny_model):
    summary = measure_guard_cost(tiny_model, {(i,) for i in range(320)}, [TEXTS[0]]).summary
    assert summary["blocked_share"]["estimate"] == 1.0
    assert summary["perplexity_guarded"] is None


def test_a_bloom_filter_only_blocks_more(tiny_model):
    row = tiny_model.tokenizer.encode(TEXTS[0])
    exact = measure_guard_cost(tiny_model, NgramSet.from_documents([row], 3), TEXTS).table
    loose = measure_guard_cost(tiny_model, BloomFilter.from_documents([row] * 20, 3, 0.3), TEXTS).table
    assert (loose["blocked"] >= exact["blocked"]).all()
    assert exact["blocked"].to_list()[0] == len(row) - 2


def test_the_guards_context_crosses_the_pieces(tiny_model, monkeypatch):
    """With pieces of four tokens the model forgets, the guard does not."""
    row = tiny_model.tokenizer.encode(TEXTS[0])
    monkeypatch.setattr(module, "PIECE", 4)
    table = measure_guard_cost(tiny_model, NgramSet.from_documents([row], 6), [row]).table
    assert table["tokens"].to_list() == [len(row) - 1]
    assert table["blocked"].to_list() == [len(row) - 5]


def test_bad_input(tiny_model):
    with pytest.raises(InputError, match="no list of texts"):
        measure_guard_cost(tiny_model, set(), [])
    with pytest.raises(InputError, match="no list of texts"):
        measure_guard_cost(tiny_model, set(), "one text")
    for bad in ([5], [[1, 2], [3, 4]], [1.0, 2.0]):
        with pytest.raises(InputError, match="Text 0"):
            measure_guard_cost(tiny_model, set(), [bad])
    with pytest.raises(InputError, match="ids outside"):
        measure_guard_cost(tiny_model, set(), [[1, 5000]])
    with pytest.raises(TokenizerMismatchError):
        measure_guard_cost(tiny_model, NgramSet([[1, 2]], tokenizer_fingerprint="other"), TEXTS)


def test_a_door_without_weights(tiny_model):
    class Door(type(tiny_model)):
        capabilities = frozenset({"text"})

        def __init__(self):
            self.name, self.door = "x", "endpoint"

    with pytest.raises(CapabilityError, match="needs 'weights'"):
        measure_guard_cost(Door(), set(), TEXTS)
