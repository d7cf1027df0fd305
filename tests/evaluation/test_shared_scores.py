"""The measurements of an audit share their forward passes: no row is scored twice, and the card says what it says without a cache."""

import json
from collections import Counter
from pathlib import Path

import pytest

from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.protocol import run_audit
from palimpsest.measurement import Measurement
from palimpsest.models import EndpointModel, HFModel

SCORED = ("extraction", "classes", "probabilistic", "membership", "leaks", "nearest", "open")


class CountingModel(HFModel):
    """Notes every row that it is asked to score, and every prefix that it continues without a guard."""

    def __init__(self, model, tokenizer, name):
        super().__init__(model, tokenizer, name=name)
        self.scored, self.spans, self.continued = Counter(), Counter(), Counter()

    def score(self, batch_ids, *, start=1, **options):
        starts = [start] * len(batch_ids) if isinstance(start, int) else start
        self.scored.update(tuple(map(int, row)) for row in batch_ids)
        self.spans.update((tuple(map(int, row)), first) for row, first in zip(batch_ids, starts, strict=True))
        return super().score(batch_ids, start=start, **options)

    def generate(self, prefixes, max_new_tokens, *, processors=(), **options):
        if not processors:
            drawn = options.get("temperature", 0) != 0
            self.continued.update((tuple(map(int, row)), drawn, max_new_tokens) for row in prefixes)
        return super().generate(prefixes, max_new_tokens, processors=processors, **options)


@pytest.fixture(scope="module")
def run(tiny_model, other_model, small_index, passages, settings, tmp_path_factory):
    """Runs one audit, with the shared cache or without; gives the doors, the card and the folder."""

    def make(shared: bool):
        model = CountingModel(tiny_model.model, tiny_model.tokenizer, "tiny")
        reference = CountingModel(other_model.model, other_model.tokenizer, "other")
        out = tmp_path_factory.mktemp("audit") / "out"
        with pytest.MonkeyPatch.context() as patch:
            if not shared:
                patch.setattr(AuditPlan, "cached", lambda self, model: model)
            card = run_audit(
                model, small_index, out, references={"tiny": reference}, samples=passages, unprotected=["Some text."], settings=settings
            )
        return model, reference, card, out

    return make


@pytest.fixture(scope="module")
def shared(run):
    return run(shared=True)


@pytest.fixture(scope="module")
def bare(run):
    return run(shared=False)


def table(folder: Path, kind: str):
    return Measurement.load(folder / "measurements" / f"{kind}.tiny.json").table


def test_no_row_is_scored_twice(shared, passages):
    for model in shared[:2]:
        assert max(model.scored.values()) == 1
        twice = [row for row, first in model.spans for other, begun in model.spans
                 if len(other) > len(row) and other[: len(row)] == row and begun <= first]  # fmt: skip
        assert twice == []  # nor as the beginning of another row
        assert all(model.scored[tuple(sample.ids.tolist())] == 1 for sample in passages)
    assert max(shared[0].continued.values()) == 1


def test_without_the_cache_the_same_rows_are_scored_several_times(shared, bare):
    """So that the test above can fail: four measurements of the model ask for every planted passage, two of the reference for all."""
    assert max(bare[0].scored.values()) >= 4
    assert max(bare[1].scored.values()) >= 2
    for ours, theirs in zip(shared[:2], bare[:2], strict=True):
        assert sum(theirs.scored.values()) > sum(ours.scored.values())
        assert set(ours.scored) <= set(theirs.scored)


def test_every_measurement_says_what_it_says_without_the_cache(shared, bare):
    for kind in SCORED:
        ours, theirs = table(shared[3], kind), table(bare[3], kind)
        assert ours.columns == theirs.columns
        for name in ours.columns:
            values, expected = ours[name].to_list(), theirs[name].to_list()
            if ours[name].dtype.is_float():
                assert [value is None for value in values] == [value is None for value in expected]
                pairs = zip(values, expected, strict=True)
                assert all(value == pytest.approx(other, rel=1e-3, abs=1e-4) for value, other in pairs if value is not None), (kind, name)
            else:
                assert values == expected, (kind, name)
    assert shared[2]["verdict"] == bare[2]["verdict"]


def test_a_killed_audit_says_the_same_to_the_last_bit(shared, run, small_index, passages, settings):
    """Whatever steps are left over, the passages are scored in the same batches."""
    model, reference, card, out = run(shared=True)
    for kind in ("classes", "membership", "nearest"):
        (out / "measurements" / f"{kind}.tiny.json").unlink()
    fresh = CountingModel(model.model, model.tokenizer, "tiny")
    again = run_audit(
        fresh, small_index, out, references={"tiny": reference}, samples=passages, unprotected=["Some text."], settings=settings
    )
    cards = [{k: v for k, v in json.loads(json.dumps(c)).items() if k not in ("created", "timing")} for c in (card, again)]
    assert cards[0] == cards[1]
    assert max(fresh.scored.values()) == 1


def test_the_card_says_what_was_shared(shared):
    timing = shared[2]["timing"]
    model, reference = shared[:2]
    assert timing["scored"].startswith(f"{sum(model.scored.values()) + sum(reference.scored.values()):,} rows, for ")
    assert timing["written"].startswith(f"{sum(model.continued.values()):,} continuations, for ")


def test_a_server_is_asked_once_for_every_passage(server, tiny_tokenizer, small_index, passages, settings, tmp_path):
    server.echo = True
    asked = Counter()

    class Asked(EndpointModel):
        def score(self, batch_ids, **options):
            asked.update(tuple(map(int, row)) for row in batch_ids)
            return super().score(batch_ids, **options)

    door = Asked(server.url, server.name, tiny_tokenizer, backoff=0.001)
    run_audit(door, small_index, tmp_path / "out", samples=passages, settings=settings)
    assert max(asked.values()) == 1
    assert all(asked[tuple(sample.ids.tolist())] == 1 for sample in passages)


def test_passages_beyond_the_memory_of_the_cache_are_measured_all_the_same(
    tiny_model, small_index, passages, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("palimpsest.models.score_cache.ScoreCache.__init__.__defaults__", (4000,))
    model = CountingModel(tiny_model.model, tiny_model.tokenizer, "tiny")
    card = run_audit(model, small_index, tmp_path / "out", samples=passages, settings=settings)
    assert card["sections"][0]["status"] == "measured"
    assert max(model.scored.values()) > 1
