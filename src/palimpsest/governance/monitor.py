"""Monitoring: what sessions that see a change live through, tested so that one may look after every answer (104, DMM-Gov, stage 3).

Four rates are watched: *harm* (right before, wrong now), *outdated* (the value before the change), *refusal*, *slow*. For each, the
hypothesis that its rate is at most the policy's limit p₀ is tested by an e-process, the likelihood ratio mixed evenly over all greater
rates:

    E_n = ∫_{p₀}^1 p^k (1 − p)^{n−k} dp / ((1 − p₀) p₀^k (1 − p₀)^{n−k}),   k hits in n observations.

Each ratio is a supermartingale under every rate up to p₀, so their mixture is an e-process, exact in every sample; and since the weight
near p₀ survives a long time without hits, a harm that begins late is found about as soon as one that was there from the start (the
betting e-process of `palimpsest.stats` has lost its capital by then). Each stage of the rollout is tested by itself, since what goes
wrong at a quarter of the sessions may have been fine at one in a hundred. With S stages, when one of the e-values reaches 4 S/α the change
is taken back: by Ville's inequality and the union bound, a change whose rates are all within their limits is ever taken back with
probability at most α, however often one looks. The paired difference of right answers, after − before, has an mSPRT interval that holds
at all times.

A drift of the questions themselves is reported, not blamed on the change: the population stability index Σ (p − q) ln(p / q) over tenths
of the reference's first principal component.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from palimpsest.errors import InputError
from palimpsest.governance.items import is_text
from palimpsest.governance.policy import WATCHED, Policy
from palimpsest.measurement import Measurement, environment
from palimpsest.stats import mixture_interval


@dataclass(frozen=True)
class Observation:
    """One answer to a session that sees the change, beside what the version before it answers to the same question.

    Attributes:
        session: whose.
        right, right_before: whether the answer is right, and was before.
        outdated: whether it is the value from before the change.
        refused: whether there is no answer.
        latency, latency_before: in any one unit, > 0, finite.
    """

    session: str
    right: bool
    right_before: bool
    outdated: bool = False
    refused: bool = False
    latency: float = 1.0
    latency_before: float = 1.0

    def __post_init__(self) -> None:
        truths = (self.right, self.right_before, self.outdated, self.refused)
        if not is_text(self.session) or not all(isinstance(value, bool) for value in truths):
            raise InputError(
                f"The observation {self} is not whole.", "session is text; right, right_before, outdated, refused are true or false."
            )
        latencies = (self.latency, self.latency_before)
        if any(isinstance(value, bool) or not 0 < value <= sys.float_info.max for value in latencies):
            raise InputError(f"The latencies are {self.latency} and {self.latency_before}.", "Give positive numbers.")

    @classmethod
    def from_dict(cls, row: Any) -> Observation:
        """From plain JSON types.

        Raises:
            InputError: a field is missing, unknown, or of the wrong type.
        """
        try:
            return cls(**row)
        except TypeError as error:
            raise InputError(f"This is not an observation: {error}.", "See Observation for its fields.") from error


def watch(observations: Sequence[Observation], policy: Policy) -> Measurement:
    """Tests the watched rates after every observation.

    Args:
        observations: of one stage, in the order in which they came, at least one.

    Returns:
        One row an observation, with the four outcomes and e-values; the summary holds `breach` (the rate that broke its limit first, and at
        which observation, or None), the rates, and the difference of right answers with its always-valid interval.

    Raises:
        InputError: no observations.

    Example:
        >>> from palimpsest.governance.policy import Policy
        >>> fine = [Observation(str(k), True, True) for k in range(50)]
        >>> watch(fine, Policy()).summary["breach"] is None
        True
        >>> watch(fine + [Observation("x", False, True)] * 20, Policy()).summary["breach"]["rate"]
        'harm'
    """
    if not observations:
        raise InputError("There is nothing to monitor.", "Give at least one observation.")
    outcomes = {
        "harm": [o.right_before and not o.right for o in observations],
        "outdated": [o.outdated for o in observations],
        "refusal": [o.refused for o in observations],
        "slow": [o.latency > policy.latency * o.latency_before for o in observations],
    }
    level = policy.alpha / (len(WATCHED) * len(policy.stages))
    limits = {name: float(getattr(policy, name)) for name in WATCHED}
    e = {name: rate_e_process(np.array(outcomes[name]), limits[name]) for name in WATCHED}
    first = {name: int(np.argmax(values >= 1 / level)) for name, values in e.items() if (values >= 1 / level).any()}
    breach = None
    if first:
        name = min(first, key=lambda rate: (first[rate], rate))
        breach = {"rate": name, "observation": first[name], "session": observations[first[name]].session, "e": float(e[name][first[name]])}
    gain = np.array([float(o.right) - float(o.right_before) for o in observations])
    # values in [−1, 1] are sub-Gaussian with variance 1
    interval = mixture_interval(gain, variance=1.0, mixture=0.01, confidence=1 - policy.alpha)
    table = pl.DataFrame(
        {
            "session": [o.session for o in observations],
            "right": [o.right for o in observations],
            "right_before": [o.right_before for o in observations],
            **outcomes,
            **{f"e_{name}": values for name, values in e.items()},
        }
    )
    summary = {
        "n": len(observations),
        "breach": breach,
        "rates": {name: {"rate": float(np.mean(outcomes[name])), "limit": limits[name], "e": float(e[name].max())} for name in WATCHED},
        "gain": interval._asdict(),
    }
    return Measurement("monitoring", table, summary, {"policy": policy.hash, "environment": environment()})


def rate_e_process(hits: np.ndarray, limit: float) -> np.ndarray:
    """The e-process of the hypothesis that a rate is at most `limit`, after every observation.

    Args:
        hits: (n,) truth values.
        limit: p₀ in (0, 1).

    Returns:
        float64 (n,): reject when it is at or above 1/α.

    Raises:
        InputError: a limit that is not inside (0, 1).

    Example:
        >>> e = rate_e_process(np.array([False] * 40 + [True] * 10), 0.05)
        >>> bool(e[39] < 1), int((e >= 20).argmax())
        (True, 48)
    """
    if not 0 < limit < 1:
        raise InputError(f"The limit is {limit}.", "Give a rate between 0 and 1, both excluded.")
    k = np.cumsum(np.asarray(hits, dtype=np.float64))
    misses = np.arange(1, len(k) + 1) - k
    with np.errstate(divide="ignore"):
        upper = np.log(special.betaincc(k + 1, misses + 1, limit))
    log_e = special.betaln(k + 1, misses + 1) + upper - math.log1p(-limit) - k * math.log(limit) - misses * math.log1p(-limit)
    return np.exp(np.minimum(log_e, 700.0))


def stability_index(reference: np.ndarray, current: np.ndarray, bins: int = 10) -> float:
    """The population stability index of questions, from their embeddings.

    Args:
        reference: (n, d) embeddings of the questions before, n >= `bins`.
        current: (m, d) of those now.
        bins: of the reference's first principal component, equally full.

    Returns:
        0 when both are spread alike; above 0.25 is usually called a drift.

    Raises:
        InputError: wrong shapes or too few.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(500, 3))
        >>> stability_index(x, x) < 1e-9 < 0.25 < stability_index(x, x + 3)
        True
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or len(a) < bins or not len(b) or bins < 2:
        raise InputError(f"The embeddings have shapes {a.shape} and {b.shape}.", f"Give (n, d) and (m, d), n at least {bins}.")
    centre = a.mean(axis=0)
    axis = np.linalg.svd(a - centre, full_matrices=False)[2][0]
    x, y = (a - centre) @ axis, (b - centre) @ axis
    inner = np.quantile(x, np.arange(1, bins) / bins)
    p, q = (np.bincount(np.searchsorted(inner, values, side="right"), minlength=bins) for values in (x, y))
    # half a count in every bin keeps an empty one finite
    shares = [(counts + 0.5) / (counts.sum() + 0.5 * bins) for counts in (p, q)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
