"""Figures of membership beside the blind baseline: pairing, correction, simultaneous intervals."""

import numpy as np
import pytest

from palimpsest.audit.blind import blind_baseline, blind_scores
from palimpsest.audit.membership_figures import BLIND, membership_curves, membership_figures
from palimpsest.stats import adjusted, auc, auc_difference, auc_interval, delong_interval, tpr_at_fpr

N = 120
MEMBER = np.arange(N) < 70
COPIES = [[1, 4, 64][i % 3] if member else 0 for i, member in enumerate(MEMBER)]


@pytest.fixture(scope="module")
def scores():
    """One score that knows the members, more so at many copies; one that is the blind one with noise; and noise."""
    rng = np.random.default_rng(0)
    blind = rng.normal(size=N) + 0.4 * MEMBER
    strength = np.log(np.array(COPIES) + 1)
    knowing = {"knows": blind + MEMBER * strength, "copies it": blind + rng.normal(0, 0.1, N), "noise": rng.normal(size=N)}
    return knowing, blind


@pytest.fixture(scope="module")
def found(scores):
    return membership_figures(scores[0], scores[1], MEMBER, COPIES, 0)


def test_figures_are_those_of_the_scores(scores, found):
    for name, values in scores[0].items():
        row = found["methods"][name]
        assert row["auc"] == auc(values[MEMBER], values[~MEMBER])
        assert row["tpr_at_0.01"] == row["tpr_at_0.01_interval"][0] == tpr_at_fpr(values[MEMBER], values[~MEMBER], 0.01)
        assert row["low_all"] <= row["low"] <= row["auc"] <= row["high"] <= row["high_all"]
        assert row["high_all"] - row["low_all"] > row["high"] - row["low"]
        assert row["n"] == 70
    assert found["blind"]["estimate"] == auc(scores[1][MEMBER], scores[1][~MEMBER])


def test_the_difference_to_the_baseline_is_paired_and_corrected_within_its_family(scores, found):
    knowing, blind = scores
    tests = {name: auc_difference((blind[MEMBER], blind[~MEMBER]), (values[MEMBER], values[~MEMBER])) for name, values in knowing.items()}
    corrected, name = adjusted([test.p_value for test in tests.values()])
    assert found["correction"]["methods"] == name == "Holm"
    for (method, test), p in zip(tests.items(), corrected, strict=True):
        over = found["methods"][method]["over_blind"]
        assert (over["estimate"], over["p"], over["adjusted"]) == (test.difference.estimate, test.p_value, p)
        assert over["adjusted"] >= over["p"]
    assert found["methods"]["knows"]["over_blind"]["adjusted"] < 0.01
    assert found["methods"]["copies it"]["over_blind"]["adjusted"] > 0.05
    assert found["methods"]["noise"]["over_blind"]["estimate"] < 0


def test_a_score_that_says_what_the_baseline_says_is_not_above_it_however_good(scores):
    """The plain AUC would call it a success: the split is biased."""
    blind = np.where(MEMBER, 2.0, 0.0) + np.random.default_rng(1).normal(size=N)
    copy = membership_figures({"copy": blind}, blind, MEMBER, COPIES, 0)["methods"]["copy"]
    assert copy["low"] > 0.8
    assert copy["over_blind"]["estimate"] == 0
    assert copy["over_blind"]["adjusted"] == 1


def test_levels_are_compared_with_the_baseline_at_the_same_level(scores, found):
    knowing, blind = scores
    assert [(row["copies"], row["method"]) for row in found["by_copies"][:4]] == [
        (1, "knows"),
        (1, "copies it"),
        (1, "noise"),
        (4, "knows"),
    ]
    assert [row["copies"] for row in found["blind_by_copies"]] == [1, 4, 64]
    for row in found["by_copies"]:
        chosen = np.flatnonzero(MEMBER & (np.array(COPIES) == row["copies"]))
        baseline = (blind[chosen], blind[~MEMBER]) if auc(blind[chosen], blind[~MEMBER]) >= 0.5 else (np.zeros(len(chosen)), np.zeros(50))
        expected = auc_difference(baseline, (knowing[row["method"]][chosen], knowing[row["method"]][~MEMBER]))
        assert row["over_blind"]["estimate"] == expected.difference.estimate
        assert row["n"] == len(chosen)
        assert "low_all" not in row
    corrected, _ = adjusted([row["over_blind"]["p"] for row in found["by_copies"]])
    assert [row["over_blind"]["adjusted"] for row in found["by_copies"]] == corrected.tolist()


def test_a_baseline_worse_than_guessing_is_no_merit_of_the_score():
    rng = np.random.default_rng(6)
    wrong, noise = rng.normal(size=N) - 1.5 * MEMBER, rng.normal(size=N)
    found = membership_figures({"noise": noise}, wrong, MEMBER, COPIES, 0)
    assert found["blind"]["estimate"] < 0.3
    over = found["methods"]["noise"]["over_blind"]
    assert over["estimate"] == pytest.approx(auc(noise[MEMBER], noise[~MEMBER]) - 0.5)
    assert over["adjusted"] > 0.05


def test_many_rows_bound_the_share_of_false_findings():
    rng = np.random.default_rng(2)
    many = {f"m{k}": rng.normal(size=N) for k in range(8)}
    found = membership_figures(many, rng.normal(size=N), MEMBER, COPIES, 0)
    assert found["correction"] == {"methods": "Holm", "by_copies": "Benjamini-Hochberg"}


def test_the_interval_that_holds_for_all_scores_does():
    """Of useless scores the best is called better than chance in about 5 % of the cases, not in 5 % for every one that was tried."""
    rng = np.random.default_rng(3)
    alone = together = 0
    for _ in range(200):
        best = max((rng.normal(size=60) for _ in range(10)), key=lambda values: auc(values[:30], values[30:]))
        alone += delong_interval(best[:30], best[30:]).low > 0.5
        together += delong_interval(best[:30], best[30:], confidence=1 - 0.05 / 10).low > 0.5
    assert alone > 30
    assert together <= 18


def test_without_a_baseline_nothing_is_compared(scores):
    found = membership_figures(scores[0], None, MEMBER, COPIES, 0)
    assert found["blind"] is None
    assert found["blind_by_copies"] == []
    assert found["correction"] == {"methods": None, "by_copies": None}
    assert all(row["over_blind"] is None for row in [*found["methods"].values(), *found["by_copies"]])
    assert all(line.name != BLIND for line in membership_curves(scores[0], found, MEMBER)["membership-copies"].series)


def test_a_level_of_one_member_has_figures_and_no_test(scores):
    copies = [256 if i == 0 else c for i, c in enumerate(COPIES)]
    found = membership_figures(scores[0], scores[1], MEMBER, copies, 0)
    alone = [row for row in found["by_copies"] if row["copies"] == 256]
    assert [row["n"] for row in alone] == [1, 1, 1]
    assert all(row["over_blind"] is None and row["low"] <= row["auc"] <= row["high"] for row in alone)


def test_the_baseline_stands_in_the_figure(scores, found):
    curves = membership_curves(scores[0], found, MEMBER)
    dashed = [line for line in curves["membership-copies"].series if line.style == "dashed"]
    assert [line.name for line in dashed] == [BLIND]
    assert [point["y"] for point in dashed[0].points] == [row["auc"] for row in found["blind_by_copies"]]


def test_blind_scores_are_out_of_fold_and_give_the_baseline():
    rng = np.random.default_rng(0)
    members, others = ([rng.integers(low, low + 40, 30) for _ in range(40)] for low in (2, 12))
    values = blind_scores(members, others, seed=3)
    assert blind_baseline(members, others, seed=3) == auc_interval(values[:40], values[40:], seed=3)
    alike = [rng.integers(2, 40, 30) for _ in range(80)]
    memorised = blind_scores(alike[:40], alike[40:])
    assert abs(auc(memorised[:40], memorised[40:]) - 0.5) < 0.2  # a fit that saw what it judges would be near 1
    assert blind_scores(members[:1], others) is None
