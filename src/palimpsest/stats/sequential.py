"""Tests that stay valid however often one looks: for monitors, which look after every answer.

An *e-process* is a non-negative process whose mean under the hypothesis is at most 1 at every stopping time; by Ville's inequality it
ever reaches 1/α with probability at most α, so the hypothesis may be rejected at the first moment that it does. 1/max e is a p-value
that is valid at all times. Two of them:

* `mixture_e_process` (mSPRT; Robbins, Annals of Mathematical Statistics 1970; Johari, Pekelis and Walsh, arXiv 1512.04922). For
  observations with mean μ₀ under the hypothesis and (sub-)Gaussian variance σ², and a normal mixture of variance τ² over the alternatives,
  Λ_n = √(σ² / (σ² + n τ²)) · exp(n² τ² (x̄ − μ₀)² / (2 σ² (σ² + n τ²))). Observations in [a, b] are sub-Gaussian with σ² = (b − a)²/4, which
  makes it exact for rates and their differences; with an estimated variance it is valid only in the long run.
* `betting_e_process` (Waudby-Smith and Ramdas, JRSS B 2024, arXiv 2010.09686). For observations in [a, b], scaled to [0, 1]:
  K_n = Π_i (1 + λ_i (x_i − m)) with bets λ_i = √(2 log(2/α) / (v_{i−1} i log(1 + i))) that only the past sets, v being the running
  variance, cut to c/m above and c/(1 − m) below. Two-sided, K = ½ K⁺ + ½ K⁻. It adapts to the variance, and is exact in every sample.

Both work along the last axis of an array, so that many streams are followed at once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from palimpsest.errors import InputError
from palimpsest.stats.intervals import Interval

ALTERNATIVES = ("two-sided", "greater", "less")
_CUT = 0.5  # c: bets may lose at most half of the capital at once


def mixture_e_process(x: ArrayLike, mean: float = 0.0, *, variance: float, mixture: float) -> np.ndarray:
    """The normal-mixture e-process (mSPRT) of the hypothesis that the mean is `mean`, after every observation.

    Args:
        x: (…, time) observations, along the last axis.
        mean: under the hypothesis.
        variance: σ² > 0 of one observation, or its sub-Gaussian bound.
        mixture: τ² > 0, about the squared difference that one wants to find.

    Returns:
        float64 like x: reject when it is at or above 1/α.

    Raises:
        InputError: NaN, no observations, or variances that are not positive.

    Example:
        >>> e = mixture_e_process([1.0] * 30, variance=1.0, mixture=1.0)
        >>> int((e >= 20).argmax())
        9
    """
    streams = _streams(x)
    if not variance > 0 or not mixture > 0:
        raise InputError(f"The variance is {variance}, that of the mixture {mixture}.", "Give positive numbers.")
    n = np.arange(1, streams.shape[-1] + 1)
    total = np.cumsum(streams - mean, axis=-1)  # n (x̄ − μ₀)
    spread = variance + n * mixture
    log_e = 0.5 * np.log(variance / spread) + mixture * total**2 / (2 * variance * spread)
    return np.exp(np.minimum(log_e, 700.0))


def mixture_interval(x: ArrayLike, *, variance: float, mixture: float, confidence: float = 0.95) -> Interval:
    """The means that the mSPRT does not reject after the last observation: an interval that holds at all times together.

    Args:
        x: (time,) observations.
        variance, mixture: as in `mixture_e_process`.
        confidence: that the mean lies in *all* the intervals of a stream.

    Raises:
        InputError: as for `mixture_e_process`, or a confidence outside (0, 1).

    Example:
        >>> [round(v, 2) for v in mixture_interval([1.0] * 30, variance=1.0, mixture=1.0)]
        [1.0, 0.43, 1.57]
    """
    stream = _streams(x)
    if stream.ndim != 1 or not variance > 0 or not mixture > 0 or not 0 < confidence < 1:
        raise InputError(
            f"Observations of shape {stream.shape}, variances {variance} and {mixture}, confidence {confidence}.",
            "Give one row, positive variances and a confidence in (0, 1).",
        )
    n, mean = len(stream), float(stream.mean())
    spread = variance + n * mixture
    half = math.sqrt(2 * variance * spread / (n * n * mixture) * (math.log(1 / (1 - confidence)) + 0.5 * math.log(spread / variance)))
    return Interval(mean, mean - half, mean + half)


def betting_e_process(
    x: ArrayLike, mean: float, *, low: float = 0.0, high: float = 1.0, alternative: str = "two-sided", alpha: float = 0.05
) -> np.ndarray:
    """The capital of a bettor against the hypothesis that the mean is `mean`, after every observation.

    Args:
        x: (…, time) observations in [low, high], along the last axis.
        mean: under the hypothesis, strictly between low and high; with "greater" the hypothesis is that the mean is *at most* this.
        low, high: bounds of an observation, for differences of rates −1 and 1.
        alternative: "two-sided", "greater" or "less".
        alpha: the level that the bets are tuned to; the result is valid for every level.

    Returns:
        float64 like x: reject when it is at or above 1/α.

    Raises:
        InputError: observations outside the bounds, NaN, none at all, a mean that is not inside, or an unknown alternative.

    Example:
        >>> e = betting_e_process([1.0] * 30, 0.5)
        >>> int((e >= 20).argmax())
        9
    """
    streams = _streams(x)
    if not low < mean < high or streams.min() < low or streams.max() > high:
        raise InputError(
            f"Observations in [{streams.min():g}, {streams.max():g}] and a mean of {mean} for bounds {low} and {high}.",
            "Give observations within the bounds and a mean strictly between them.",
        )
    if alternative not in ALTERNATIVES or not 0 < alpha < 1:
        raise InputError(f"The alternative is {alternative!r}, alpha {alpha}.", f"Give one of {', '.join(ALTERNATIVES)}, alpha in (0, 1).")
    scaled, m = (streams - low) / (high - low), (mean - low) / (high - low)
    i = np.arange(1, streams.shape[-1] + 1)
    running = (0.5 + np.cumsum(scaled, axis=-1)) / (i + 1)
    variance = (0.25 + np.cumsum((scaled - running) ** 2, axis=-1)) / (i + 1)
    before = np.concatenate([np.full((*variance.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)  # what was known before each bet
    bet = np.sqrt(2 * math.log(2 / alpha) / (before * i * np.log1p(i)))
    up = np.cumsum(np.log1p(np.minimum(bet, _CUT / m) * (scaled - m)), axis=-1)
    down = np.cumsum(np.log1p(-np.minimum(bet, _CUT / (1 - m)) * (scaled - m)), axis=-1)
    log_e = up if alternative == "greater" else down if alternative == "less" else np.logaddexp(up, down) - math.log(2)
    return np.exp(np.minimum(log_e, 700.0))


def always_valid_p(e: ArrayLike) -> np.ndarray:
    """p-values that are valid at all times together: min(1, 1 / max e so far), along the last axis.

    Raises:
        InputError: negative values, NaN or none at all.

    Example:
        >>> always_valid_p([0.5, 40.0, 2.0]).tolist()
        [1.0, 0.025, 0.025]
    """
    values = np.asarray(e, dtype=np.float64)
    if values.size == 0 or not (values >= 0).all():
        raise InputError(f"The e-values have shape {values.shape} or hold something below 0.", "Give what an e-process returned.")
    with np.errstate(divide="ignore"):
        return np.minimum(1.0, 1.0 / np.maximum.accumulate(values, axis=-1))


def _streams(x: ArrayLike) -> np.ndarray:
    streams = np.asarray(x, dtype=np.float64)
    if streams.ndim == 0 or streams.size == 0 or not np.isfinite(streams).all():
        raise InputError(f"The observations have shape {streams.shape} or hold NaN.", "Give finite numbers, time along the last axis.")
    return streams
