"""The predictors: recovered coefficients, the label ratio put back, tests with known answers, and partitions that are there to be found."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from palimpsest.audit.memorization_classes import classify
from palimpsest.audit.memorization_comparison import (
    QuantilePartition,
    calibration_error,
    compare_predictors,
    likelihood_ratio,
    prediction_figures,
    search_partition,
)
from palimpsest.audit.memorization_predictor import TaxonomyPredictor, available, homogeneous
from palimpsest.errors import InputError

N = 900


def factors(n=N, seed=0):
    """Factors of `n` passages: a third duplicated, a third templated; the other factors are noise."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.arange(n) % 3)
    return pl.DataFrame(
        {
            "duplicates": np.where(kind == 0, rng.integers(6, 20, n), rng.integers(1, 4, n)),
            "templating": kind == 1,
            "frequency_mean": rng.lognormal(5, 1, n),
            "frequency_min": rng.lognormal(2, 1, n),
            "perplexity_prompt": rng.lognormal(2, 0.5, n),
            "perplexity_continuation": rng.lognormal(2, 0.5, n),
            "code_length": rng.normal(4, 0.3, n),
            "templates": rng.poisson(1.0, n),
        }
    )


def drawn(frame, logits, seed=1):
    return np.random.default_rng(seed).random(len(frame)) < special.expit(logits)


def standard(frame, name):
    values = frame[name].cast(pl.Float64).to_numpy()
    return (values - values.mean()) / values.std()


@pytest.fixture(scope="module")
def opposite():
    """In duplicated passages a likely prompt helps, in the others it hurts: one model for all can see neither."""
    frame = factors()
    z, many = standard(frame, "perplexity_prompt"), frame["duplicates"].to_numpy() >= 6
    return frame, drawn(frame, np.where(many, -2.5, 2.5) * z)


def test_one_class_equals_scikit_learn(opposite):
    frame, y = opposite
    predictor = TaxonomyPredictor(homogeneous).fit(frame, y)
    columns = [frame["templating"].cast(pl.Float64).to_numpy() if n == "templating" else standard(frame, n) for n in predictor.names]
    x = np.column_stack(columns)
    reference = LogisticRegression(C=1.0, class_weight="balanced", max_iter=10_000, tol=1e-8).fit(x, y)
    assert np.allclose(predictor.predict(frame, balanced=True), reference.predict_proba(x)[:, 1], atol=1e-4)
    found = predictor.coefficients()
    assert np.allclose(found["coefficient"], [reference.intercept_[0], *reference.coef_[0]], atol=1e-3)


def test_the_label_ratio_is_put_back():
    """One passage in ten is memorized whatever its factors: balanced answers say half, the others a tenth."""
    frame = factors(4000)
    y = np.random.default_rng(2).random(4000) < 0.1
    predictor = TaxonomyPredictor().fit(frame, y)
    assert predictor.predict(frame, balanced=True).mean() == pytest.approx(0.5, abs=0.05)
    assert predictor.predict(frame).mean() == pytest.approx(y.mean(), abs=0.02)
    by_class = predictor.partition(frame).to_numpy()
    for name in np.unique(by_class):
        chosen = by_class == name
        assert predictor.predict(frame)[chosen].mean() == pytest.approx(y[chosen].mean(), abs=0.02)


def test_a_passage_is_scored_by_the_model_of_its_class(opposite):
    frame, y = opposite
    predictor = TaxonomyPredictor().fit(frame, y)
    classes = predictor.partition(frame).to_numpy()
    whole = predictor.predict(frame)
    assert set(predictor.models) == {"recitation", "reconstruction", "recollection"}
    for name in predictor.models:
        assert np.array_equal(predictor.predict(frame.filter(classes == name)), whole[classes == name])
    slopes = predictor.coefficients().filter(pl.col("factor") == "perplexity_prompt")
    signs = {row["class"]: np.sign(row["coefficient"]) for row in slopes.to_dicts()}
    assert signs == {"recitation": -1, "reconstruction": 1, "recollection": 1}


def test_wald_tests_find_the_factor_that_acts_and_hold_their_level():
    rejected, found = 0, 0
    for seed in range(40):
        frame = factors(400, seed)
        y = drawn(frame, 0.8 * standard(frame, "code_length") - 1, seed)
        p = {r["factor"]: r["p"] for r in TaxonomyPredictor(homogeneous).fit(frame, y).coefficients().to_dicts()}
        found += p["code_length"] < 0.01
        rejected += sum(p[name] < 0.05 for name in ("frequency_mean", "frequency_min", "templates", "perplexity_prompt"))
    assert found >= 38
    assert rejected <= stats.binom.ppf(0.999, 160, 0.05)


def test_a_factor_that_does_not_vary_in_a_class_has_no_coefficient(opposite):
    frame, y = opposite
    frame = frame.with_columns(duplicates=pl.when(pl.col("duplicates") < 6).then(1).otherwise(pl.col("duplicates")))
    table = TaxonomyPredictor().fit(frame, y).coefficients()
    rows = {(r["class"], r["factor"]): r for r in table.to_dicts()}
    assert rows["recollection", "duplicates"]["coefficient"] is None
    assert rows["recollection", "duplicates"]["p"] is None
    assert rows["recitation", "duplicates"]["coefficient"] is not None
    assert rows["recitation", "templating"]["coefficient"] is None
    many = frame["duplicates"].to_numpy() >= 6
    deviation = standard(frame, "duplicates")[many].std()
    recited = rows["recitation", "duplicates"]
    assert recited["standardised"] == pytest.approx(recited["coefficient"] * deviation)
    assert rows["recitation", "intercept"]["standardised"] is rows["recollection", "duplicates"]["standardised"] is None


def test_logarithms_of_the_duplicates_are_another_model(opposite):
    frame, y = opposite
    raw, logs = (TaxonomyPredictor(log_duplicates=value).fit(frame, y).predict(frame) for value in (False, True))
    assert not np.allclose(raw, logs)
    by_hand = frame.with_columns(duplicates=(pl.col("duplicates") + 1).log())
    assert np.allclose(logs, TaxonomyPredictor(lambda _: classify(frame)).fit(by_hand, y).predict(by_hand))


def test_bad_input_is_refused(opposite):
    frame, y = opposite
    with pytest.raises(InputError, match="recitation") as caught:
        TaxonomyPredictor().fit(frame, y | (frame["duplicates"].to_numpy() >= 6))
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InputError, match="shape"):
        TaxonomyPredictor().fit(frame, y[:-1])
    with pytest.raises(InputError, match="labels"):
        TaxonomyPredictor().fit(frame, np.full(N, 0.5))
    with pytest.raises(InputError, match="snowclones"):
        TaxonomyPredictor(features=("snowclones",)).fit(frame, y)
    with pytest.raises(InputError, match="infinite"):
        TaxonomyPredictor().fit(frame.with_columns(code_length=pl.lit(np.inf)), y)
    with pytest.raises(InputError, match="fit"):
        TaxonomyPredictor().predict(frame)
    only = TaxonomyPredictor().fit(frame.filter(pl.col("duplicates") >= 6), y[frame["duplicates"].to_numpy() >= 6])
    with pytest.raises(InputError, match="reconstruction"):
        only.predict(frame)


def test_the_likelihood_ratio_has_the_degrees_of_the_extra_coefficients(opposite):
    frame, y = opposite
    names = ("duplicates", "perplexity_prompt", "code_length", "templating")
    test = likelihood_ratio(frame, y, features=names)
    # three classes: 4 factors and intercept, of which templating is constant in two classes and duplicates vary in all; one model: 5
    classes = TaxonomyPredictor().partition(frame).to_numpy()
    x = np.column_stack([np.ones(N), *(frame[n].cast(pl.Float64).to_numpy() for n in names)])
    ranks = [np.linalg.matrix_rank(x[classes == name]) for name in np.unique(classes)]
    assert test.degrees == sum(ranks) - np.linalg.matrix_rank(x)
    assert test.p < 1e-10


def test_the_likelihood_ratio_holds_its_level_where_the_classes_are_alike():
    frame = factors(600, 5)
    logits = 0.5 * standard(frame, "perplexity_prompt")
    p = [likelihood_ratio(frame, drawn(frame, logits, seed)).p for seed in range(40)]
    assert sum(value < 0.05 for value in p) <= 8
    assert likelihood_ratio(frame, drawn(frame, logits), homogeneous).p == 1.0


def test_a_class_of_one_label_does_not_stop_the_likelihood_ratio(opposite):
    frame, y = opposite
    assert likelihood_ratio(frame, y | (frame["duplicates"].to_numpy() >= 6)).p < 0.01
    with pytest.raises(InputError, match="both kinds"):
        likelihood_ratio(frame, np.ones(N))


def test_the_search_finds_the_partition_that_acts(opposite):
    frame, y = opposite
    best, tried = search_partition(frame, y, factors=("duplicates", "code_length", "frequency_mean"))
    assert "duplicates" in (best.first, best.second)
    assert tried["log_loss"].is_sorted()
    assert tried["log_loss"][0] < tried["log_loss"][-1] - 0.05
    assert len(tried.select("first", "at_first", "second", "at_second").unique()) == len(tried)
    again, _ = search_partition(frame, y, factors=("duplicates", "code_length", "frequency_mean"))
    assert again == best


def test_a_search_without_a_partition_says_so(opposite):
    frame, y = opposite
    with pytest.raises(InputError, match="no factor"):
        search_partition(frame, y, factors=("snowclones",))
    with pytest.raises(InputError, match="templating"):
        search_partition(frame, y, factors=("templating", "duplicates"), quantiles=(0.0,))  # everything is in class 1


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=10), st.floats(-3, 3), st.floats(-3, 3))
def test_quantile_partitions_are_exhaustive_and_in_order(rows, a, b):
    frame = pl.DataFrame({"u": [u for u, _ in rows], "v": [v for _, v in rows]})
    expected = ["class 1" if u >= a else "class 2" if v >= b else "class 3" for u, v in rows]
    assert QuantilePartition("u", a, "v", b)(frame).to_list() == expected


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=30))
def test_figures_equal_scikit_learn_and_a_naive_calibration(rows):
    labels, p = np.array([a for a, _ in rows]), np.array([b / 20 for _, b in rows])
    clipped = np.clip(p, 0.01, 0.99)
    figures = prediction_figures(labels, clipped, p)
    said = p > 0.5
    if said.any():
        assert figures["precision"] == pytest.approx(metrics.precision_score(labels, said))
    else:
        assert figures["precision"] is None
    if labels.any():
        assert figures["recall"] == pytest.approx(metrics.recall_score(labels, said))
        assert figures["pr_auc"] == pytest.approx(metrics.average_precision_score(labels, p))
    if labels.any() and not labels.all():
        assert figures["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, p))
    else:
        assert figures["roc_auc"] is None
    naive = 0.0
    for b in range(10):
        inside = [(max(q, 1 - q), (q > 0.5) == label) for label, q in zip(labels, p, strict=True) if b / 10 < max(q, 1 - q) <= (b + 1) / 10]
        if inside:
            naive += abs(np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside])) * len(inside) / len(rows)
    assert calibration_error(labels, p) == pytest.approx(naive)


def test_the_taxonomy_beats_one_model_where_classes_differ_and_not_where_labels_are_shuffled(opposite):
    frame, y = opposite
    result = compare_predictors(frame, y, search=False)
    losses = result.summary["log_loss"]
    assert losses["taxonomy"] < losses["baseline"] - 0.1
    assert result.summary["likelihood_ratio"]["p"] < 1e-6
    assert (result.summary["train"], result.summary["test"]) == (720, 180)
    table = result.table
    for name in ("baseline", "taxonomy"):
        part = table.filter(pl.col("predictor") == name)
        assert part.filter(pl.col("class") != "all")["n"].sum() == part.filter(pl.col("class") == "all")["n"][0] == 180
        assert (part["log_loss_sd"] > 0).all()
    gains = []
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(y)
        losses = compare_predictors(frame, shuffled, search=False, seed=seed).summary["log_loss"]
        gains.append(losses["taxonomy"] - losses["baseline"])
    assert np.mean(gains) >= 0


def test_the_jackknife_is_that_of_a_mean():
    """Of 100 rows the folds are the rows: the deviation of the recall is the standard error of a mean."""
    frame = factors(500, 7)
    y = drawn(frame, standard(frame, "code_length"), 7)
    result = compare_predictors(frame, y, taxonomy=homogeneous, search=False)
    assert result.summary["test"] == 100
    row = result.table.filter(pl.col("class") == "all").to_dicts()[0]
    assert 0 < row["recall_sd"] == pytest.approx(np.sqrt(row["recall"] * (1 - row["recall"]) / (row["memorized"] - 1)), rel=0.1)


def test_available_factors_keep_the_papers_order_and_can_be_left_out():
    frame = factors(10)
    assert available(frame, without=("perplexity_continuation",)) == (
        "duplicates", "frequency_mean", "frequency_min", "perplexity_prompt", "templates", "code_length", "templating",
    )  # fmt: skip
