"""(n, p)-discoverable extraction (Hayes et al., "Measuring memorization in language models via probabilistic extraction", NAACL 2025,
arXiv 2410.19482).

Greedy decoding asks one question once. Under a sampling scheme g (temperature, top-k, top-p) a suffix x after its prefix has the
probability p_z = prod_t q_g(x_t | x_<t), where q_g is the distribution that is really sampled from: the logits divided by the
temperature, cut, renormalised. At least one of n independent samples is the suffix with probability 1 - (1 - p_z)^n, so a passage
is (n, p)-extractable if and only if

    1 - (1 - p_z)^n >= p    <=>    n >= log(1 - p) / log(1 - p_z).

One teacher-forced pass gives p_z and with it the answer for every n and p. A suffix with a token that the scheme cuts away has
p_z = 0 and is never sampled; that says something of the scheme, not that the model has forgotten the passage. Greedy discoverable
extraction is the scheme with temperature 0, n = 1.
The near-verbatim form, (eps, n, p), is in `palimpsest.audit.near_verbatim`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from palimpsest.audit.laws import copy_levels
from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models.base import LanguageModel, Progress, Sampler
from palimpsest.stats import wilson_interval

TOP_K_40 = Sampler(temperature=1.0, top_k=40)  # the paper's default
N_GRID = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
P_GRID = (0.1, 0.5, 0.9, 0.99)
_ROUNDING = 1e-12  # n is rounded up, but not because of the last bits of a logarithm
_SMALL = -37.0  # below this log(1 - p_z) is -p_z to all digits


def n_for(p: float, log_p: ArrayLike) -> np.ndarray:
    """The fewest samples that give the suffix at least once with probability p.

    Args:
        p: in (0, 1).
        log_p: log p_z of each passage, at most 0; -inf where the scheme cannot write it.

    Returns:
        float64, whole numbers >= 1; inf where p_z is 0 or more than 1e308 samples would be needed.

    Raises:
        InputError: p outside (0, 1), or a log-probability that is NaN or above 0.

    Example:
        >>> n_for(0.5, np.log([1.0, 0.5, 0.01])).tolist(), n_for(0.9, -np.inf).tolist()
        ([1.0, 1.0, 69.0], inf)
    """
    if not 0 < p < 1:
        raise InputError(f"p is {p}.", "Give a probability between 0 and 1, both excluded.")
    log_p = _log_probability(log_p)
    with np.errstate(divide="ignore", over="ignore"):
        plain = np.log1p(-p) / _log1m(np.maximum(log_p, _SMALL))
        tiny = np.exp(np.log(-np.log1p(-p)) - log_p)
        return np.maximum(np.ceil(np.where(log_p < _SMALL, tiny, plain) * (1 - _ROUNDING)), 1.0)


def p_for(n: ArrayLike, log_p: ArrayLike) -> np.ndarray:
    """The probability that at least one of n samples is the suffix, 1 - (1 - p_z)^n, without loss for tiny p_z.

    Raises:
        InputError: n < 1, or a log-probability that is NaN or above 0.

    Example:
        >>> p_for([1, 69, 1_000_000], np.log(0.01)).round(3).tolist()
        [0.01, 0.5, 1.0]
    """
    n = np.asarray(n, dtype=np.float64)
    if not (n >= 1).all():
        raise InputError(f"n holds {n.min() if n.size else 'nothing'}.", "Give at least one sample.")
    log_p = _log_probability(log_p)
    with np.errstate(divide="ignore", over="ignore"):
        exponent = np.where(log_p < _SMALL, -np.exp(np.log(n) + log_p), n * _log1m(np.maximum(log_p, _SMALL)))
    return -np.expm1(exponent)


def suffix_logprob(
    model: LanguageModel, samples: Sequence[PrefixSuffix], sampler: Sampler = TOP_K_40, progress: Progress | None = None
) -> np.ndarray:
    """log p_z of every sample under a decoding scheme, float64 (samples,); -inf where the scheme cannot write the suffix.

    Raises:
        CapabilityError: the door has no log-probs.
        InputError, ContextOverflowError: as for `LanguageModel.score`.

    Example:
        >>> suffix_logprob(model, samples, Sampler(temperature=0.8, top_p=0.95))   # doctest: +SKIP
    """
    return _scored(model, samples, sampler, progress)[0]


def measure_probabilistic(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    n: Sequence[int] = N_GRID,
    p: Sequence[float] = P_GRID,
    sampler: Sampler = TOP_K_40,
    *,
    progress: Progress | None = None,
) -> Measurement:
    """Measures with how many samples which suffixes come out.

    Args:
        model: needs "logprobs".
        samples: passages; the whole prefix is shown. Meta "copies" groups them; give held-out passages 0 copies, they are the
            floor that generalisation alone reaches.
        n: numbers of samples at which rates are reported.
        p: probabilities of success at which rates are reported.
        sampler: the decoding scheme.
        progress: called with (samples done, samples in all).

    Returns:
        One row a sample: log_p (null where the scheme cannot write the suffix), greedy, and n_for_<p> (null where no number of
        samples suffices); the summary holds, over all and per level of copies, the rates at every (n, p) with Wilson intervals,
        the greedy rate, and from which n on the rate at p = 0.5 (or the p nearest to it) is at least the greedy rate.

    Raises:
        InputError: no sample, n < 1, or p outside (0, 1).
        CapabilityError: the door has no log-probs.

    Example:
        >>> measure_probabilistic(model, samples).summary["overall"]["crossing_n"]   # doctest: +SKIP
    """
    require_samples(samples)
    if not n or not p or min(n) < 1 or not all(0 < value < 1 for value in p):
        raise InputError(f"n is {list(n)}, p is {list(p)}.", "Give numbers of samples >= 1 and probabilities between 0 and 1.")
    n, p = sorted({int(value) for value in n}), sorted({float(value) for value in p})
    log_p, greedy = _scored(model, samples, sampler, progress)
    needed = {value: n_for(value, log_p) for value in p}
    middle = min(p, key=lambda value: abs(value - 0.5))
    copies = [sample.meta.get("copies") for sample in samples]
    table = pl.DataFrame(
        {
            "sample": np.arange(len(samples)),
            "id": [str(sample.meta.get("id", i)) for i, sample in enumerate(samples)],
            "domain": pl.Series([sample.meta.get("domain") for sample in samples], dtype=pl.String),
            "copies": pl.Series(copies, dtype=pl.Int64),
            "suffix_len": [sample.suffix_len for sample in samples],
            "log_p": _finite_or_null(log_p),
            "greedy": greedy,
            **{f"n_for_{value:g}": _finite_or_null(needed[value]) for value in p},
        }
    )
    groups = _copy_groups(copies)
    everyone = np.arange(len(samples))
    planted = np.setdiff1d(everyone, [i for level, members in groups if level == 0 for i in members])
    summary = {
        "sampler": str(sampler),
        "overall": _group(everyone, needed, greedy, log_p, n, middle),
        "planted": _group(planted, needed, greedy, log_p, n, middle) if len(planted) else None,
        "by_copies": [{"copies": level, **_group(members, needed, greedy, log_p, n, middle)} for level, members in groups],
    }
    provenance = {
        "model": model.describe(),
        "sampler": {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p},
        "n": n,
        "p": p,
        "samples": len(samples),
        "seed": None,
        "environment": environment(),
    }
    return Measurement(
        "probabilistic", table, summary, provenance, _curves(summary, needed, groups, planted if len(planted) else everyone, n, middle)
    )


def _scored(
    model: LanguageModel, samples: Sequence[PrefixSuffix], sampler: Sampler, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """log p_z and whether greedy decoding writes the suffix."""
    require_samples(samples)
    model.require("logprobs", "Probabilistic extraction")
    scores = model.score([s.ids for s in samples], start=[s.prefix_len for s in samples], samplers=[sampler], progress=progress)
    log_p = np.array([row.sum(dtype=np.float64) for row in scores.sampled[sampler]])
    return np.minimum(log_p, 0.0), np.array([bool(hits.all()) for hits in scores.greedy_hits])


def _log1m(log_p: np.ndarray) -> np.ndarray:
    """log(1 - exp(log_p)), each half of its range by the form that keeps its digits."""
    return np.where(log_p > -0.6931, np.log(-np.expm1(log_p)), np.log1p(-np.exp(np.minimum(log_p, -0.6931))))


def _log_probability(log_p: ArrayLike) -> np.ndarray:
    array = np.asarray(log_p, dtype=np.float64)
    if not (array <= 0).all():
        raise InputError("A log-probability is NaN or above 0.", "Give natural logarithms of probabilities.")
    return array


def _finite_or_null(values: np.ndarray) -> pl.Series:
    return pl.Series([value if np.isfinite(value) else None for value in values.tolist()], dtype=pl.Float64)


def _copy_groups(copies: Sequence[int | None]) -> list[tuple[float, np.ndarray]]:
    """(mean copies, members) of every level of copies."""
    known = np.array([i for i, value in enumerate(copies) if value is not None], dtype=np.int64)
    values = np.array([copies[i] for i in known.tolist()], dtype=np.int64)
    levels = copy_levels(values)
    return [(float(values[levels == level].mean()), known[levels == level]) for level in np.unique(levels)]


def rates_at(needed: dict[float, np.ndarray], members: np.ndarray, n: Sequence[int]) -> list[dict[str, Any]]:
    """Share of `members` that need at most n samples, for every p of `needed` and every n, with 95 % Wilson intervals."""
    rows = []
    for p, counts in needed.items():
        for size in n:
            interval = wilson_interval(int((counts[members] <= size).sum()), len(members))
            rows.append({"n": size, "p": p, "rate": interval.estimate, "low": interval.low, "high": interval.high})
    return rows


def _group(
    members: np.ndarray, needed: dict[float, np.ndarray], greedy: np.ndarray, log_p: np.ndarray, n: Sequence[int], middle: float
) -> dict[str, Any]:
    hits = int(greedy[members].sum())
    interval = wilson_interval(hits, len(members))
    ordered = np.sort(needed[middle][members])
    crossing = float(ordered[hits - 1]) if hits else 1.0  # as many passages as greedy has need at most so many samples
    median = float(np.median(ordered))
    return {
        "n_samples": len(members),
        "greedy": {"rate": interval.estimate, "low": interval.low, "high": interval.high},
        "reachable": float(np.isfinite(log_p[members]).mean()),
        "median_n": median if np.isfinite(median) else None,
        "crossing_n": crossing if np.isfinite(crossing) else None,
        "crossing_p": middle,
        "rates": rates_at(needed, members, n),
    }


def _curves(
    summary: dict[str, Any],
    needed: dict[float, np.ndarray],
    groups: Sequence[tuple[float, np.ndarray]],
    shown: np.ndarray,
    n: Sequence[int],
    middle: float,
) -> dict[str, Curve]:
    largest = max(n)
    grid = np.unique(np.geomspace(1, largest, 8 * max(1, round(np.log10(largest))) + 1).round()).astype(np.int64).tolist()
    axes: dict[str, Any] = {"y_label": "share (n, p)-extractable", "y_domain": (0, 1), "y_format": "percent"}
    axes["caption"] = f"One pass gives the exact probability under {summary['sampler']}; nothing was sampled. 95 % Wilson intervals."

    def over_n(name: str, p: float, members: np.ndarray, style: str = "line") -> Series:
        return Series(name, [_point(row["n"], row, len(members)) for row in rates_at({p: needed[p]}, members, grid)], style)

    greedy = (summary["planted"] or summary["overall"])["greedy"]["rate"]
    by_p = [over_n(f"p = {p:g}", p, shown) for p in needed]
    by_p.append(Series("greedy, once", [_point(size, {"rate": greedy}, len(shown)) for size in (1, largest)], "dashed"))
    by_p += [over_n(f"0 copies, p = {middle:g}", middle, members, "dashed") for copies, members in groups if copies == 0]
    curves = [Curve("probabilistic-n", "How many samples it takes", "samples n", series=by_p, x_scale="log", **axes)]
    if groups:
        by_copies = [over_n(f"{copies:g} copies", middle, members) for copies, members in groups]
        title = f"How many samples it takes, by copies (p = {middle:g})"
        curves.append(Curve("probabilistic-n-copies", title, "samples n", series=by_copies, x_scale="log", **axes))
        rows = summary["by_copies"]
        series = [Series("greedy, once", [_point(row["copies"], row["greedy"], row["n_samples"]) for row in rows], "dashed")]
        for size in n:
            found = [(row, rate) for row in rows for rate in row["rates"] if (rate["n"], rate["p"]) == (size, middle)]
            series.append(Series(f"n = {size:,}", [_point(row["copies"], rate, row["n_samples"]) for row, rate in found]))
        title = f"Sampling finds what greedy decoding does not (p = {middle:g})"
        curves.append(Curve("probabilistic-copies", title, "copies in the training data", series=series, x_scale="symlog", **axes))
    return {curve.id: curve for curve in curves}


def _point(x: float, rate: dict[str, Any], n: int) -> dict[str, float | int | None]:
    return {"x": x, "y": rate["rate"], "low": rate.get("low"), "high": rate.get("high"), "n": n}
