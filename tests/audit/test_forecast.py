"""Forecasts of memorization: free-running scores, confusion counts against naive ones, and the advice."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from palimpsest.audit.extraction import measure_extraction
from palimpsest.audit.forecast import SCOPES, forecast, memorization_scores, recommend, training_compute
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import CapabilityError, InputError
from palimpsest.measurement import Measurement

PREFIX, SUFFIX = 24, 8


@pytest.fixture(scope="module")
def scores(tiny_model, known_samples):
    return memorization_scores(tiny_model, known_samples)


def test_the_score_is_the_share_of_right_tokens_of_a_free_run(tiny_model, known_samples, scores):
    written = tiny_model.generate([s.prefix for s in known_samples], SUFFIX, stop_at_eos=False)
    naive = [sum(a == b for a, b in zip(rows[0], s.suffix, strict=True)) / SUFFIX for rows, s in zip(written, known_samples, strict=True)]
    assert scores.table["score"].to_list() == naive
    assert scores.table["index"].to_list() == list(range(len(known_samples)))
    assert scores.table["copies"].to_list() == [s.meta["copies"] for s in known_samples]


def test_score_one_is_the_teacher_forced_check(tiny_model, known_samples, scores):
    table = measure_extraction(tiny_model, known_samples, PREFIX).table
    assert (scores.table["score"] == 1.0).to_list() == table["extracted"].to_list()
    assert 0 < (scores.table["score"] == 1.0).sum() < len(known_samples)
    assert np.allclose(scores.table["logprob"], table["logprob"])


def test_a_door_without_logprobs_gives_the_same_scores(tiny_model, narrow_door, known_samples, scores):
    written = memorization_scores(narrow_door(tiny_model, {"text", "weights"}), known_samples)
    assert written.table.drop("logprob").equals(scores.table.drop("logprob"))
    assert written.table["logprob"].is_null().all()
    with pytest.raises(CapabilityError):
        memorization_scores(narrow_door(tiny_model, {"logprobs"}), known_samples)


def test_a_server_that_cuts_its_text_otherwise_is_right_where_the_text_is(tiny_model, narrow_door, tiny_tokenizer):
    class Parrot(narrow_door):
        def generate(self, prefixes, max_new_tokens, **_):
            return [[np.array([tiny_tokenizer.encode(c)[0] for c in "the word"])] for _ in prefixes]  # a token a letter

    ids = np.array([5, 6, *tiny_tokenizer.encode("the word")])
    assert len(ids) - 2 < len("the word")
    other = np.append(ids[:-1], tiny_tokenizer.encode("s")[0])  # the text of its suffix ends otherwise
    samples = [PrefixSuffix(row, 2, len(row) - 2) for row in (ids, other)]
    scores = memorization_scores(Parrot(tiny_model, {"text"}), samples).table["score"]
    assert scores[0] == 1.0
    assert scores[1] < 1.0


def test_the_summary_counts_the_scores(scores):
    summary = scores.summary
    assert summary["memorized"]["count"] == (scores.table["score"] == 1).sum()
    histogram = {row["score"]: row["sequences"] for row in summary["histogram"]}
    assert len(histogram) == SUFFIX + 1
    assert sum(histogram.values()) == summary["n"] == len(scores.table)
    assert histogram[1.0] == summary["memorized"]["count"]
    assert sum(score * n for score, n in histogram.items()) == pytest.approx(summary["mean_score"] * summary["n"])


def test_what_was_read_is_a_number_or_a_list(tiny_model, known_samples):
    moved = [PrefixSuffix(s.ids, PREFIX, SUFFIX, {**s.meta, "index": 100 - i}) for i, s in enumerate(known_samples)]
    by_number = memorization_scores(tiny_model, moved, seen=90)
    assert by_number.table["seen"].to_list() == [100 - i < 90 for i in range(40)]
    by_list = memorization_scores(tiny_model, moved, seen=[100 - i < 90 for i in range(40)])
    assert by_list.table.equals(by_number.table)
    assert memorization_scores(tiny_model, moved).table["seen"].all()
    for wrong in ([True] * 39, [1.0] * 40):
        with pytest.raises(InputError, match="seen"):
            memorization_scores(tiny_model, moved, seen=wrong)


def test_bad_samples_are_refused(tiny_model, known_samples):
    with pytest.raises(InputError, match="no samples"):
        memorization_scores(tiny_model, [])
    short = PrefixSuffix(known_samples[0].ids[:-1], PREFIX, SUFFIX - 1)
    with pytest.raises(InputError, match=r"\[7, 8\]"):
        memorization_scores(tiny_model, [known_samples[0], short])
    twice = [PrefixSuffix(s.ids, PREFIX, SUFFIX, {"index": 3}) for s in known_samples[:2]]
    with pytest.raises(InputError, match="index|indices"):  # noqa: RUF043
        memorization_scores(tiny_model, twice)


def frame(scores, seen=None, index=None, logprob=None):
    data = {"index": index if index is not None else list(range(len(scores))), "score": scores}
    if seen is not None:
        data["seen"] = seen
    if logprob is not None:
        data["logprob"] = logprob
    return pl.DataFrame(data)


ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.booleans(), st.floats(-5, 0)),
    min_size=1,
    max_size=24,
)


@given(ROWS, st.sampled_from([0.5, 1.0]))
def test_figures_equal_naive_counts(rows, threshold):
    own, goal, seen, other, soft = (list(column) for column in zip(*rows, strict=True))
    result = forecast({"p": frame(own, seen, logprob=soft), "q": frame(goal, other)}, frame(goal), threshold=threshold)
    inside = {"seen": seen, "common": [a and b for a, b in zip(seen, other, strict=True)], "all": [True] * len(rows)}
    for scope in SCOPES:
        row = result.table.filter((pl.col("predictor") == "p") & (pl.col("scope") == scope)).to_dicts()[0]
        kept = [(p >= threshold, t >= threshold, s) for p, t, s, keep in zip(own, goal, soft, inside[scope], strict=True) if keep]
        tp = sum(p and t for p, t, _ in kept)
        called, real = sum(p for p, _, _ in kept), sum(t for _, t, _ in kept)
        assert (row["n"], row["true_positives"], row["positives"], row["target_positives"]) == (len(kept), tp, called, real)
        assert (row["false_positives"], row["false_negatives"]) == (called - tp, real - tp)
        assert row["precision"] == (tp / called if called else None)
        assert row["recall"] == (tp / real if real else None)
        assert row["f1"] == (2 * tp / (called + real) if called + real else None)
        if called and real and tp:
            assert row["f1"] == pytest.approx(2 / (1 / row["precision"] + 1 / row["recall"]))
        if 0 < real < len(kept):
            truth = [t for _, t, _ in kept]
            assert row["auc_logprob"] == pytest.approx(metrics.roc_auc_score(truth, [s for _, _, s in kept]))
        undefined = row["precision"] is None or row["recall"] is None or row["spearman"] is None or row["auc_score"] is None
        assert (row["reason"] is not None) == undefined
    perfect = result.table.filter((pl.col("predictor") == "q") & (pl.col("scope") == "all")).to_dicts()[0]
    assert {perfect["precision"], perfect["recall"]} <= {1.0, None}  # the target against itself


def test_permuted_sequences_are_found_at_the_base_rate():
    rng = np.random.default_rng(0)
    truth = (rng.random(20_000) < 0.3).astype(float)
    result = forecast({"permuted": frame(rng.permutation(truth))}, frame(truth))
    row = result.table.filter(pl.col("scope") == "all").to_dicts()[0]
    assert row["recall"] == pytest.approx(result.summary["base_rate"]["all"]["rate"], abs=0.02)
    assert row["auc_score"] == pytest.approx(0.5, abs=0.02)


def test_sequences_are_joined_by_their_index():
    a = frame([1.0, 0.0, 0.5], index=[5, 7, 6])
    b = frame([0.5, 1.0, 0.0], index=[6, 5, 7])
    row = forecast({"a": a}, b).table.to_dicts()[0]
    assert (row["precision"], row["recall"], row["spearman"]) == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="2 are the same"):
        forecast({"a": a}, frame([0.5, 1.0, 0.0], index=[6, 5, 8]))


def test_a_target_that_memorized_nothing_has_no_recall_and_says_why():
    result = forecast({"p": frame([1.0, 0.0])}, frame([0.0, 0.5]))
    row = result.table.to_dicts()[0]
    assert (row["recall"], row["precision"], row["auc_score"]) == (None, 0.0, None)
    assert "no recall" in row["reason"]
    assert recommend(result).predictor is None
    priced = forecast({"p": frame([1.0, 0.0])}, frame([0.0, 0.5]), {"p": 1.0})
    assert "no recall" in recommend(priced).reason


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: forecast({}, frame([1.0])), "0 predictors"),
        (lambda: forecast({"p": frame([1.0])}, frame([1.0]), threshold=0.0), "threshold 0"),
        (lambda: forecast({"p": frame([1.0])}, frame([1.0]), {"q": 1.0}), "q is no predictor"),
        (lambda: forecast({"p": frame([1.0])}, frame([1.0]), families={"r": "x"}), "r is no predictor"),
        (lambda: forecast({"target": frame([1.0])}, frame([1.0])), "as the target is"),
        (lambda: forecast({"p": frame([1.5])}, frame([1.0])), r"leave \[0, 1\]"),
        (lambda: forecast({"p": frame([1.0, 1.0], index=[1, 1])}, frame([1.0])), "repeat an index"),
        (lambda: forecast({"p": frame([])}, frame([1.0])), "0 rows"),
        (lambda: forecast({"p": pl.DataFrame({"score": [1.0]})}, frame([1.0])), "Give index and score"),
        (lambda: training_compute(0, 5), "0 parameters"),
    ],
)
def test_bad_input_is_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        wrong()


TRUTH = [1.0] * 10 + [0.0] * 10
KNOWS = {"tiny": 2, "small": 6, "middle": 6, "large": 9}


def priced():
    """Four predictors that know 2, 6, 6 and 9 of the ten; "small" and "middle" cost the same, and "small" is wrong four times."""
    predictors = {name: frame([1.0] * hits + [0.0] * (20 - hits)) for name, hits in KNOWS.items()}
    predictors["small"] = frame([1.0] * 6 + [0.0] * 4 + [1.0] * 4 + [0.0] * 6)
    compute = {"tiny": 1.0, "small": 5.0, "middle": 5.0, "large": 50.0, "target": 100.0}
    return forecast(predictors, frame(TRUTH), compute, families={"tiny": "smaller models", "large": "checkpoints"})


@pytest.mark.parametrize(
    ("budget", "min_recall", "chosen", "said"),
    [
        (None, 0.1, "tiny", "cheapest of 4"),
        (None, 0.5, "middle", "cheapest of 3"),  # the more precise of two that cost the same
        (None, 0.8, "large", "cheapest of 1"),
        (10.0, 0.8, None, "the best, small, has 60%"),
        (0.5, 0.1, None, "cheapest costs 1"),
    ],
)
def test_the_advice_is_the_cheapest_that_finds_enough(budget, min_recall, chosen, said):
    advice = recommend(priced(), budget, min_recall)
    assert advice.predictor == chosen
    assert (advice.row is None) == (chosen is None)
    assert said in advice.reason


def test_advice_needs_costs_and_a_possible_question():
    assert "unknown" not in recommend(priced()).reason
    assert recommend(forecast({"p": frame(TRUTH)}, frame(TRUTH))).reason == "The compute of no predictor is known."
    with pytest.raises(InputError, match="min_recall 2"):
        recommend(priced(), min_recall=2)
    with pytest.raises(InputError, match="'here'"):
        recommend(priced(), scope="here")


def test_curves_and_json_hold_the_figures():
    result = priced()
    recall, histogram = result.curves["forecast-recall"], result.curves["forecast-scores"]
    assert {series.name: [point["x"] for point in series.points] for series in recall.series} == {
        "smaller models": [0.01],
        "predictors": [0.05, 0.05],
        "checkpoints": [0.5],
    }
    assert [sum(point["y"] for point in series.points) for series in histogram.series] == pytest.approx([1.0] * 5)
    again = Measurement.from_json(result.to_json())
    assert again.table.to_dicts() == result.table.to_dicts()
    assert "forecast-recall" not in forecast({"p": frame(TRUTH)}, frame(TRUTH)).curves


def test_compute_is_six_per_parameter_and_token():
    assert training_compute(10, 7) == 420.0
