"""(eps, n, p)-discoverable extraction: outputs that are almost the suffix (Hayes et al., NAACL 2025, arXiv 2410.19482, near-verbatim).

The target is every output y with dist(y, x) <= eps tokens from the suffix x. Its probability under the decoding scheme, the sum of
the probabilities of all such y, has no closed form; it is estimated by sampling, with an exact Clopper-Pearson interval, and enters
1 - (1 - p)^n as the verbatim probability does in `palimpsest.audit.probabilistic`. A lower bound without chance is in `ball_bound`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from palimpsest.audit.probabilistic import N_GRID, P_GRID, TOP_K_40, n_for, rates_at
from palimpsest.audit.progress import stages
from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel, Progress, Sampler
from palimpsest.stats import clopper_pearson

_TOKENS = 1 << 24  # generated ids held at once


def measure_near_verbatim(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    eps: int,
    distance: str = "hamming",
    *,
    trials: int = 1000,
    n: Sequence[int] = N_GRID,
    p: Sequence[float] = P_GRID,
    sampler: Sampler = TOP_K_40,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Estimates (eps, n, p)-extraction by sampling: how likely is an output within `eps` tokens of the suffix.

    Args:
        model: needs "text".
        samples: passages.
        eps: greatest distance in tokens; 0 is the verbatim case.
        distance: "hamming" (substitutions only) or "edit" (Levenshtein; outputs have the suffix's length).
        trials: outputs drawn per sample; rates below about 1 / trials cannot be seen.
        n, p: at which rates are reported.
        sampler, seed: of the outputs.
        progress: called with (samples done, samples in all).

    Returns:
        One row a sample: hits, trials, probability with its 95 % Clopper-Pearson interval (low, high); the summary holds the
        rates at every (n, p) with the estimated probabilities and, as `certain`, with their lower ends.

    Raises:
        InputError: eps < 0, an unknown distance, trials < 1, or no sample.
        CapabilityError: the door cannot write text.
    """
    require_samples(samples)
    if eps < 0 or distance not in ("hamming", "edit") or trials < 1:
        raise InputError(f"eps {eps}, distance {distance!r}, trials {trials}.", "Give eps >= 0, 'hamming' or 'edit', and at least 1 trial.")
    model.require("text", "measure_near_verbatim")
    hits = np.zeros(len(samples), dtype=np.int64)
    stage = stages(progress, len(samples))
    for length in sorted({sample.suffix_len for sample in samples}):
        members = [i for i, sample in enumerate(samples) if sample.suffix_len == length]
        size = max(1, _TOKENS // (trials * length))
        for begin in range(0, len(members), size):
            chosen = members[begin : begin + size]
            outputs = model.generate(
                [samples[i].prefix for i in chosen],
                length,
                temperature=sampler.temperature,
                top_k=sampler.top_k,
                top_p=sampler.top_p,
                n=trials,
                seed=seed + chosen[0],  # a seed of its own for every call: generate numbers its prefixes from 0
                stop_at_eos="weights" not in model.capabilities,  # a server ends at EOS: such an output is short, and the rest missed
                progress=stage(len(chosen)),
            )
            for i, drawn in zip(chosen, outputs, strict=True):
                hits[i] = int((_distances(drawn, samples[i].suffix, distance) <= eps).sum())
    intervals = [clopper_pearson(int(k), trials) for k in hits]
    table = pl.DataFrame(
        {
            "sample": np.arange(len(samples)),
            "id": [str(sample.meta.get("id", i)) for i, sample in enumerate(samples)],
            "copies": pl.Series([sample.meta.get("copies") for sample in samples], dtype=pl.Int64),
            "hits": hits,
            "trials": trials,
            "probability": [interval.estimate for interval in intervals],
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
        }
    )
    with np.errstate(divide="ignore"):
        estimated, lower = np.log(table["probability"].to_numpy()), np.log(table["low"].to_numpy())
    rows = [
        row | {"certain": float((n_for(row["p"], lower) <= row["n"]).mean())}
        for row in rates_at({value: n_for(value, estimated) for value in p}, np.arange(len(samples)), sorted(n))
    ]
    summary = {"sampler": str(sampler), "eps": eps, "distance": distance, "rates": rows}
    provenance = {
        "model": model.describe(),
        "sampler": {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p},
        "method": "monte carlo",
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("near-verbatim", table, summary, provenance)


def _distances(outputs: Sequence[np.ndarray], suffix: np.ndarray, distance: str) -> np.ndarray:
    if distance == "hamming":
        padded = np.full((len(outputs), len(suffix)), -1)
        for row, output in zip(padded, outputs, strict=True):
            row[: len(output)] = output[: len(suffix)]
        return (padded != suffix).sum(axis=1)
    rows = [row.tolist() for row in outputs]
    return process.cdist([suffix.tolist()], rows, scorer=Levenshtein.distance, dtype=np.int64)[0]
