"""The protocol for long contexts: plain scoring where nothing is dropped, honest about bytes and about when a question is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.layers import PositionedLayer
from palimpsest.errors import InputError
from palimpsest.evaluation.context_bench import ask, kv_bytes, multi_needle, passkey, stream_nll, throughput
from palimpsest.evaluation.context_prompts import named_key_samples, passkey_samples
from palimpsest.evaluation.haystack import Haystack
from palimpsest.models import HFModel
from palimpsest.models.growing_cache import growing

FILLER = ["The sea was calm. Nobody spoke of it. A boat went out, and it came back.\n" * 3]
ENTRY = 2 * 2 * 2 * 16 * 4  # bytes of a token: two layers, keys and values, two heads of 16 channels, float32


@dataclass(frozen=True)
class Newest(ContextMethod):
    """Keeps the newest `budget` entries of every layer."""

    budget: int

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return PositionedLayer(self)

    def observe(self, info: LayerInfo, q: Any, k: Any, v: Any, position_ids: Any, layer: Any) -> None:
        if layer.length > self.budget:
            newest = torch.arange(layer.length - self.budget, layer.length)
            layer.keep(newest.expand(*layer.positions.shape[:2], self.budget))


@pytest.fixture(scope="module")
def haystack(tiny_tokenizer: Any) -> Haystack:
    return Haystack(tiny_tokenizer, FILLER, cycle=True)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(2, 320, (3, 50))


@pytest.mark.parametrize(("chunk", "batch"), [(1, 1), (7, 2), (50, 3), (99, 1)])
def test_losses_are_those_of_plain_scoring_whatever_the_chunk(tiny_model: HFModel, rows: np.ndarray, chunk: int, batch: int) -> None:
    edges = [0, 8, 20, 64]
    found = stream_nll(tiny_model, tiny_model.tokenizer, None, rows, chunk=chunk, batch=batch, edges=edges)
    expected = -np.stack(tiny_model.score(rows).logprobs)
    for start, end in ((0, 8), (8, 20), (20, 50)):
        part = expected[:, max(1, start) - 1 : end - 1]
        mine = found.table.filter(start=start)
        assert mine["end"].unique().to_list() == [end]
        assert np.allclose(mine["nll"], part.mean(axis=1), atol=1e-5)
        assert mine["tokens"].unique().to_list() == [part.shape[1]]
    (bucket,) = [b for b in found.summary["buckets"] if b["start"] == 8]
    assert bucket["perplexity"] == pytest.approx(np.exp(expected[:, 7:19].mean()), rel=1e-4)
    assert bucket["nll"]["low"] <= bucket["nll"]["estimate"] <= bucket["nll"]["high"]
    assert found.summary["bytes"] == 50 * ENTRY
    assert found.table["method"].unique().to_list() == ["Full"]


def test_a_method_that_holds_everything_changes_nothing_and_one_that_does_not_holds_what_it_says(
    tiny_model: HFModel, rows: np.ndarray
) -> None:
    full = stream_nll(tiny_model, tiny_model.tokenizer, None, rows, chunk=10)
    all_kept = stream_nll(tiny_model, tiny_model.tokenizer, Newest(64), rows, chunk=10)
    few = stream_nll(tiny_model, tiny_model.tokenizer, Newest(5), rows, chunk=10)
    assert np.allclose(full.table["nll"], all_kept.table["nll"], atol=1e-5)
    assert not np.allclose(full.table["nll"], few.table["nll"], atol=1e-2)
    assert few.summary["bytes"] < 0.2 * full.summary["bytes"]
    assert few.table["budget"].unique().to_list() == [5]
    assert few.table["settings"].unique().to_list() == ["Newest(budget=5)"]


@pytest.mark.parametrize("query_aware", [False, True])
def test_an_answer_is_scored_as_it_is_decoded(tiny_model: HFModel, haystack: Haystack, query_aware: bool) -> None:
    samples = passkey_samples(haystack, 95, [0.5, 0.9], 2, seed=1)
    found = ask(tiny_model, tiny_model.tokenizer, None, samples, chunk=13, query_aware=query_aware).table
    for sample, row in zip(samples, found.iter_rows(named=True), strict=True):
        asked = sample.questions[0]
        before = len(sample.context) + len(asked.ids)
        score = tiny_model.score([np.concatenate([sample.context, asked.ids, asked.answer])], start=before)
        assert row["logprob"] == pytest.approx(float(score.logprobs[0].sum()), abs=1e-4)
        assert row["exact"] == bool(score.greedy_hits[0].all())
        assert row["id"] == sample.id
        assert row["reached"] == asked.depth
        assert row["query_aware"] is query_aware
        assert row["bytes"] == ENTRY * (before if query_aware else len(sample.context))
        assert row["bytes_after"] == ENTRY * (before + len(asked.answer) - 1)
        assert row["peak_bytes"] == row["bytes_after"]  # the answer's tokens are held, too


def test_the_question_is_hidden_from_what_is_dropped(tiny_model: HFModel, haystack: Haystack) -> None:
    """With room for the question alone, a method that saw it last kept nothing else; one that did not still holds the context's end."""
    (sample,) = passkey_samples(haystack, 95, [0.5], 1)
    budget = len(sample.questions[0].ids)
    seen, hidden = (
        ask(tiny_model, tiny_model.tokenizer, Newest(budget), [sample], query_aware=aware, chunk=8).table.row(0, named=True)
        for aware in (True, False)
    )
    assert seen["bytes"] == hidden["bytes"]
    assert seen["logprob"] != pytest.approx(hidden["logprob"], abs=1e-3)
    assert hidden["peak_bytes"] > hidden["bytes"]


def test_every_question_meets_the_context_as_the_first_one_did(tiny_model: HFModel, haystack: Haystack) -> None:
    method = Newest(40)
    (sample,) = named_key_samples(haystack, 240, 3, 1, every=True)
    together = ask(tiny_model, tiny_model.tokenizer, method, [sample], chunk=16)
    for number, question in enumerate(sample.questions):
        alone = ask(tiny_model, tiny_model.tokenizer, method, [type(sample)(**{**vars(sample), "questions": (question,)})], chunk=16)
        assert together.table["logprob"][number] == pytest.approx(alone.table["logprob"][0], abs=1e-6)
    assert together.summary["samples"] == 1
    assert together.summary["n"] == 3


def test_tables_of_methods_can_be_put_together(tiny_model: HFModel, haystack: Haystack) -> None:
    import polars as pl

    tokenizer = tiny_model.tokenizer
    tables = [passkey(tiny_model, tokenizer, method, haystack, 90, [0.2, 0.8], 2, seed=5).table for method in (None, Newest(30))]
    tables.append(multi_needle(tiny_model, tokenizer, Newest(30), haystack, 200, 2, 2).table)
    whole = pl.concat(tables)
    assert whole.height == 10
    assert set(whole["method"]) == {"Full", "Newest"}
    first = passkey(tiny_model, tokenizer, None, haystack, 90, [0.2, 0.8], 2, seed=5)
    assert first.summary["by_depth"] == [
        {"depth": depth, "exact": first.table.filter(depth=depth)["exact"].mean(), "n": 2} for depth in (0.2, 0.8)
    ]
    assert first.summary["exact"]["low"] <= first.summary["exact"]["estimate"] <= first.summary["exact"]["high"]
    assert type(first).from_json(first.to_json()).summary["n"] == 4


def test_bos_stands_before_the_context_where_the_model_expects_it(tiny_model: HFModel, haystack: Haystack) -> None:
    with_bos = HFModel(tiny_model.model, tiny_model.tokenizer, bos="always")
    (sample,) = passkey_samples(haystack, 90, [0.5], 1)
    plain, marked = (ask(model, tiny_model.tokenizer, None, [sample]).table.row(0, named=True) for model in (tiny_model, with_bos))
    assert marked["bytes"] == plain["bytes"] + ENTRY
    assert marked["logprob"] != plain["logprob"]


def test_speed_and_bytes(tiny_model: HFModel, rows: np.ndarray) -> None:
    threads = torch.get_num_threads()
    found = throughput(tiny_model, tiny_model.tokenizer, Newest(8), rows[0], new_tokens=4, repeats=3, threads=1, chunk=16)
    assert torch.get_num_threads() == threads
    assert found.table.height == 3
    assert found.summary["prefill_tokens_per_second"] == sorted(found.table["prefill_tokens_per_second"])[1]
    assert found.summary["decode_tokens_per_second"] > 0
    full = throughput(tiny_model, tiny_model.tokenizer, None, rows[0], new_tokens=4, repeats=1, threads=1)
    assert full.summary["bytes"] == 50 * ENTRY
    assert full.summary["bytes_after"] == full.summary["peak_bytes"] == 54 * ENTRY
    assert found.summary["bytes"] < full.summary["bytes"]


def test_the_bytes_of_a_cache_are_those_of_its_tensors(tiny_model: HFModel) -> None:
    out = tiny_model.model(torch.ones(2, 7, dtype=torch.long), use_cache=True)
    assert kv_bytes(out.past_key_values) == 2 * 7 * ENTRY
    grown = growing(out.past_key_values, 40)
    assert grown is not None
    tiny_model.model(torch.ones(2, 1, dtype=torch.long), past_key_values=grown)
    assert kv_bytes(grown) == 2 * 40 * ENTRY  # the room that its keys and values are views of, once


def test_bad_input_is_refused(tiny_model: HFModel, haystack: Haystack, rows: np.ndarray) -> None:
    tokenizer = tiny_model.tokenizer
    with pytest.raises(InputError, match="lengths"):
        stream_nll(tiny_model, tokenizer, None, [rows[0], rows[1][:4]])
    with pytest.raises(InputError, match="lengths"):
        stream_nll(tiny_model, tokenizer, None, rows[:, :1])
    with pytest.raises(InputError, match="edges"):
        stream_nll(tiny_model, tokenizer, None, rows, edges=[8, 4])
    with pytest.raises(InputError, match="no sample"):
        ask(tiny_model, tokenizer, None, [])
    with pytest.raises(InputError, match="not both"):
        multi_needle(tiny_model, tokenizer, None, haystack, 300, 2, 1, every=True, query_aware=True)
    with pytest.raises(InputError, match="decode"):
        throughput(tiny_model, tokenizer, None, rows[0], new_tokens=0)
