"""e-processes against their definitions, and against looking at every moment."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest import stats
from palimpsest.errors import InputError

ALPHA = 0.05


def test_the_mixture_integrates_the_likelihood_ratio():
    x = np.random.default_rng(0).normal(0.3, 1, 12)
    ours = stats.mixture_e_process(x, 0.1, variance=1.3, mixture=0.4)[-1]

    def ratio(mean: float) -> float:
        logs = scipy.stats.norm.logpdf(x, mean, math.sqrt(1.3)) - scipy.stats.norm.logpdf(x, 0.1, math.sqrt(1.3))
        return math.exp(logs.sum()) * scipy.stats.norm.pdf(mean, 0.1, math.sqrt(0.4))

    assert ours == pytest.approx(scipy.integrate.quad(ratio, -8, 8)[0], rel=1e-6)


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=25), st.floats(0.05, 0.95), st.sampled_from(["greater", "less", "two-sided"]))
def test_the_bettor_is_followed_step_by_step(x, mean, alternative):
    capital = {"greater": 1.0, "less": 1.0}
    seen, total, squares = [], 0.5, 0.25
    for i, value in enumerate(x, start=1):
        bet = math.sqrt(2 * math.log(2 / ALPHA) / (squares / i * i * math.log(1 + i)))
        capital["greater"] *= 1 + min(bet, 0.5 / mean) * (value - mean)
        capital["less"] *= 1 - min(bet, 0.5 / (1 - mean)) * (value - mean)
        total += value
        squares += (value - total / (i + 1)) ** 2
        seen.append(sum(capital.values()) / 2 if alternative == "two-sided" else capital[alternative])
    assert stats.betting_e_process(x, mean, alternative=alternative) == pytest.approx(seen, rel=1e-9)


def test_a_bet_that_is_fair_has_mean_one():
    """Over all 2^10 equally likely streams of a fair coin the mean capital is exactly 1."""
    streams = np.arange(1024)[:, None] >> np.arange(10) & 1
    for alternative in ("greater", "less", "two-sided"):
        assert stats.betting_e_process(streams, 0.5, alternative=alternative).mean(axis=0) == pytest.approx(np.ones(10))


def test_peeking_is_safe_where_the_naive_test_is_not():
    """400 A/A streams of 500 answers, looked at after every one (from the 10th on)."""
    rng = np.random.default_rng(1)
    difference = (rng.random((400, 500)) < 0.3).astype(float) - (rng.random((400, 500)) < 0.3)
    n = np.arange(1, 501)
    z = np.abs(np.cumsum(difference, axis=1)) / np.sqrt(n * 2 * 0.3 * 0.7)
    naive = (z[:, 9:] > 1.96).any(axis=1).mean()
    mixture = stats.mixture_e_process(difference, variance=1.0, mixture=0.01)
    betting = stats.betting_e_process(difference, 0.0, low=-1, high=1)
    slack = 2 * math.sqrt(ALPHA * (1 - ALPHA) / 400)
    assert naive > 3 * ALPHA
    for e in (mixture, betting):
        assert (stats.always_valid_p(e)[:, -1] <= ALPHA).mean() <= ALPHA + slack


def test_a_true_difference_is_found_by_both():
    rng = np.random.default_rng(2)
    difference = (rng.random((200, 600)) < 0.5).astype(float) - (rng.random((200, 600)) < 0.2)
    mixture = stats.mixture_e_process(difference, variance=1.0, mixture=0.05)
    betting = stats.betting_e_process(difference, 0.0, low=-1, high=1, alternative="greater")
    wrong_way = stats.betting_e_process(difference, 0.0, low=-1, high=1, alternative="less")
    assert (stats.always_valid_p(mixture)[:, -1] <= ALPHA).mean() > 0.9
    assert (stats.always_valid_p(betting)[:, -1] <= ALPHA).mean() > 0.95
    assert (stats.always_valid_p(wrong_way)[:, -1] <= ALPHA).mean() == 0


def test_the_interval_is_what_the_mixture_does_not_reject():
    x = np.random.default_rng(3).random(80)
    interval = stats.mixture_interval(x, variance=0.25, mixture=0.02)
    for mean, rejected in (
        (interval.low - 1e-6, True),
        (interval.low + 1e-6, False),
        (interval.high - 1e-6, False),
        (interval.high + 1e-6, True),
    ):
        assert (stats.mixture_e_process(x, mean, variance=0.25, mixture=0.02)[-1] >= 1 / ALPHA) == rejected


def test_p_values_never_rise_again_and_huge_evidence_stays_finite():
    e = stats.betting_e_process(np.ones(5000), 0.01)
    assert np.isfinite(e).all()
    p = stats.always_valid_p(e)
    assert (np.diff(p) <= 0).all()
    assert stats.always_valid_p([0.0]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: stats.mixture_e_process([], variance=1, mixture=1), "shape"),
        (lambda: stats.mixture_e_process([np.nan], variance=1, mixture=1), "NaN"),
        (lambda: stats.mixture_e_process([1.0], variance=0, mixture=1), "variance is 0"),
        (lambda: stats.mixture_interval([[1.0]], variance=1, mixture=1), r"\(1, 1\)"),
        (lambda: stats.betting_e_process([0.5], 1.0), "mean of 1"),
        (lambda: stats.betting_e_process([1.5], 0.5), r"1\.5"),
        (lambda: stats.betting_e_process([0.5], 0.5, alternative="more"), "more"),
        (lambda: stats.always_valid_p([-1.0]), "below 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(bad, match):
    with pytest.raises(InputError, match=match):
        bad()
