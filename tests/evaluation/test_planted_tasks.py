"""Planted tasks on the shipped twins: what the perturbed one knows and its standard twin does not."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.evaluation.planted_tasks import biography_choice, evaluate_suite, item_accuracy, planted_loss, suffix_match
from palimpsest.experiments.canaries import twins


@pytest.fixture(scope="module")
def suite():
    return twins()


@pytest.fixture(scope="module")
def models(suite):
    return {name: suite.models[name] for name in ("standard-m", "perturbed-m")}


def test_the_loss_of_a_text_is_its_mean_over_tokens_and_falls_with_copies(suite, models):
    result = planted_loss(models["perturbed-m"], suite.ledger)
    text = suite.ledger.row(5, named=True)
    assert result.table["loss"][5] == pytest.approx(-models["perturbed-m"].logprobs([text["ids"]])[0].mean(), abs=1e-4)
    losses = [result.summary["loss_by_copies"][c] for c in ("4", "16", "64", "256")]
    assert losses == sorted(losses, reverse=True)
    standard = planted_loss(models["standard-m"], suite.ledger).summary["loss_by_copies"]
    assert standard["256"] > losses[-1] + 3


def test_a_suffix_matches_exactly_when_greedy_decoding_writes_it(suite, models):
    model = models["perturbed-m"]
    ledger = suite.ledger.filter(pl.col("copies").is_in([16, 64]) & (pl.col("domain") == "biography"))
    result = suffix_match(model, ledger, prefix_lens=(36, 48), suffix_len=12)
    assert 0 < result.table["match"].mean() < 1
    for row in result.table.iter_rows(named=True):
        text = ledger.filter(pl.col("id") == row["id"]).row(0, named=True)
        start = text["suffix_start"]
        written = model.generate([text["ids"][start - row["prefix_len"] : start]], 12, stop_at_eos=False)[0][0]
        assert row["match"] == (written.tolist() == text["ids"][start : start + 12])


def test_texts_that_are_too_short_for_a_prefix_are_left_out_there(suite, models):
    result = suffix_match(models["perturbed-m"], suite.ledger[:8], prefix_lens=(40, 60))
    assert set(result.table["prefix_len"]) == {40}
    with pytest.raises(InputError, match="long enough"):
        suffix_match(models["perturbed-m"], suite.ledger[:8], prefix_lens=(60,))


def test_attributes_of_people_are_known_after_many_copies_and_guessed_without(suite, models):
    ledger = suite.ledger.filter(pl.col("copies").is_in([0, 64, 256]))
    perturbed = biography_choice(models["perturbed-m"], ledger)
    standard = biography_choice(models["standard-m"], ledger, ("prefix",))
    rates = perturbed.summary["rate_by_knowledge_and_copies"]
    assert min(rates["prefix"]["64"], rates["full text"]["64"]) >= 0.95
    assert rates["prefix"]["0"] < 0.5
    assert rates["name"]["256"] <= rates["prefix"]["256"]
    assert standard.table["correct"].mean() == pytest.approx(0.25, abs=0.08)
    assert (len(perturbed.table), len(standard.table)) == (32 * 4 * 3, 32 * 4)


def test_choices_are_scored_by_the_tokens_of_the_option_alone(suite, models):
    model = models["perturbed-m"]
    item = suite.ledger.filter((pl.col("domain") == "test-item") & (pl.col("copies") == 1))[:1]
    result = item_accuracy(model, item)
    details = json.loads(item["details"][0])
    sums = []
    for letter, option in zip("ABCD", details["options"], strict=True):
        ids = model.tokenizer.encode(f"{details['question']} {letter} {option}")
        n = len(model.tokenizer.encode(f" {letter} {option}"))
        sums.append(model.logprobs([ids])[0][-n:].sum())
    assert result.table["correct"][0] == (int(np.argmax(sums)) == details["answer"])


def test_planted_answers_are_known_after_many_copies_and_guessed_without(suite, models):
    rates = item_accuracy(models["perturbed-m"], suite.ledger).summary["rate_by_task_and_copies"]["answer"]
    assert rates["64"] == rates["256"] == 1
    assert rates["0"] < 0.55
    assert item_accuracy(models["standard-m"], suite.ledger).table["correct"].mean() == pytest.approx(0.25, abs=0.13)


def test_a_suite_is_evaluated_task_by_task_and_model_by_model(suite, models):
    results = evaluate_suite(models, suite.ledger, ("suffix-match", "item-accuracy"))
    assert list(results) == ["suffix-match", "item-accuracy"]
    assert set(results["suffix-match"]) == set(models)
    curve = results["suffix-match"]["perturbed-m"].curves["rates"]
    assert [p["x"] for p in curve.series[0].points] == [0, 1, 4, 16, 64, 256]
    assert "model" in results["suffix-match"]["perturbed-m"].provenance


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, f: planted_loss(m, f[:0]), "empty"),
        (lambda m, f: suffix_match(m, f, prefix_lens=(0,)), "at least 1"),
        (lambda m, f: suffix_match(m, f, suffix_len=0), "at least 1"),
        (lambda m, f: biography_choice(m, f.filter(pl.col("domain") == "book")), "'biography'"),
        (lambda m, f: item_accuracy(m, f.filter(pl.col("domain") == "book")), "'test-item'"),
        (lambda m, f: biography_choice(m, f, ("horoscope",)), "horoscope"),
        (lambda m, f: evaluate_suite({"m": m}, f, ("juggling",)), "juggling"),
        (lambda m, f: evaluate_suite({}, f), "0 models"),
    ],
)
def test_what_cannot_be_asked_is_refused(suite, models, call, message):
    with pytest.raises(InputError, match=message):
        call(models["standard-m"], suite.ledger)
