"""The claim check of sequence order recall: its smallest scale, and that it can fail."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from palimpsest.errors import InputError
from palimpsest.evaluation.order_recall import measure_order
from palimpsest.evaluation.order_trials import build_trials
from palimpsest.experiments import book_sort as experiment
from palimpsest.experiments.planted_texts import train_tokenizer


@pytest.fixture(scope="module", autouse=True)
def shipped_novels():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PALIMPSEST_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(1024)


@pytest.fixture(scope="module")
def trials():
    return build_trials(experiment.books()[1], 120, 10, 16, seed=100)


def test_smoke_runs_and_passes():
    claim = experiment.run("smoke", 100)
    assert claim.passed
    assert [check.ours for check in claim.checks if check.threshold is not None] == [1.0, 0.5]
    assert "shipped novels" in claim.notes[0]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)


def test_the_benchmarks_books_are_taken_where_they_are(tmp_path, monkeypatch):
    (tmp_path / "booksort-gutenberg").mkdir()
    (tmp_path / "booksort-gutenberg" / "7-0.txt").write_text("It was.", encoding="utf-8")
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    assert experiment.books() == ("the benchmark's own", {"7": "It was."})


def test_one_who_reads_gains_by_the_context_and_one_at_chance_is_only_reported(tokenizer, trials):
    held = experiment.model_checks(measure_order(experiment.OrderReader(tokenizer, prior=3.0), trials))
    assert (held[0].ours, held[0].threshold) == (0.5, 0)
    assert held[0].passed
    blind = experiment.model_checks(measure_order(experiment.OrderReader(tokenizer, reads=False, prior=3.0), trials))
    assert (blind[0].ours, blind[0].threshold) == (0, None)


@pytest.mark.parametrize(("low", "held"), [(0.45, False), (0.55, True)])
def test_one_who_is_above_chance_must_gain_by_the_context(low, held):
    rows = [
        {"debiased": {"estimate": estimate, "low": low, "high": 0.9}, "raw": {"estimate": 0.5}, "said_a": {"estimate": 1.0}}
        for estimate in (0.7, 0.75)
    ]
    found = experiment.model_checks(SimpleNamespace(summary={"conditions": rows, "comparisons": [{"p_value": 1.0}]}))
    assert found[0].ours == pytest.approx(-0.05)
    assert found[0].passed is not held


def test_a_harness_whose_shuffled_excerpts_keep_the_order_fails(tokenizer, trials, monkeypatch):
    monkeypatch.setattr(type(trials[0]), "shuffled", lambda trial, seed: trial.excerpt)
    checks = experiment.harness_checks(tokenizer, trials, held=True)
    assert [check.passed for check in checks] == [True, True, False, True]
