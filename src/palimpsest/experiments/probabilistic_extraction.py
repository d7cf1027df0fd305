"""Claim check of (n, p)-discoverable extraction: samples draw out more than greedy decoding shows, and one pass foresees them.

Hayes et al., NAACL 2025, arXiv 2410.19482, on planted passages: after 32 tokens, is the suffix of 16 among n samples (T = 1, top-k
40) with probability 0.5? Four checks: with 1,000 samples more passages than greedy decoding extracts, with 10 fewer; none that were
never or once planted; the probabilities, which one pass computes, are the frequencies of real samples; monotone in n and in p.

The suite is that of `extraction_laws`. The excess over greedy is claimed for the largest model at 16 and 24 copies, and only reported
for the middle one. Both were chosen once, on seed 100, in the place of another architecture's pilot (middle model, 24 and 32 copies):
the levels are those whose greedy rate is neither floor nor ceiling. With seed 100 the middle model's excess is -0.09 and +0.29 at 32
and 48 copies (at the pilot's learning rate, 3e-3, -0.04 and +0.08 at 24 and 32): its probabilities per token are flatter, so that at
the same greedy rate it takes more samples, as the paper finds for smaller models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from palimpsest.audit.probabilistic import TOP_K_40, measure_probabilistic, suffix_logprob
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.experiments.canaries import train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.extraction_laws import CPU as LAWS
from palimpsest.measurement import Measurement
from palimpsest.models import HFModel

STATEMENT = (
    "Greedy decoding understates extraction: with a modest number of samples and an even chance of success more passages come out, "
    "and one forward pass says which."
)
CONTEXT, SUFFIX = 32, 16
FEW, MANY, P = 10, 1000, 0.5
BETWEEN = (16, 24)  # copies whose greedy rate lies between floor and ceiling in the largest model
TARGETS, DRAWS = 20, 2000
RANGE = (0.01, 0.5)  # of the probabilities that sampling is to confirm
TRIED = (
    "On seeds 0, 1 and 2 the check of 15 points at n = 1,000 fails, and stays as it was. What the paper says holds in its "
    "direction: over the levels where greedy decoding extracts 5 to 95 % the largest model's 1,000 samples extract 8, 8 and"
    " 23 points more, 10,000 samples 25, 17 and 33, and 10 samples less; but near the floor (12 and 16 copies) greedy "
    "decoding now and then writes a passage that would take one to two thousand samples. The pilot's figures would need "
    "more peaked probabilities a token than these models have.",
    "Tried on seed 100: the specification's setting (m at 3e-3, rows of 64 with texts of 64, batches of 8): greedy decoding"
    " extracts 8 % at 64 copies, too little to compare. m at 3e-3 on this suite: excess -0.04, +0.08 and +0.08 at 24, 32 "
    "and 48 copies. l with levels in between: 0.00, +0.25, +0.25, +0.12 and +0.12 at 16, 20, 24, 28 and 32 copies.",
)
CPU = replace(LAWS, sizes=("m", "l"))
SMOKE = replace(LAWS, sizes=("s",), n_sequences=128, levels=((0, 6), (1, 4), (2, 4), (6, 4)), warmup=5)


def run(scale: str, seed: int) -> Claim:
    """Trains the models (or takes them from the cache) and checks the claim.

    Args:
        scale: "smoke": 32 steps of the smallest model, only what holds for any model is held against anything; "cpu".
        seed: of text, places, weights and samples.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = replace(CPU if full else SMOKE, seed=seed)
    suite = train_suite(config)
    samples = suite.samples(CONTEXT, SUFFIX)
    models = {size: suite.models[f"perturbed-{size}"] for size in config.sizes}
    measured = {size: measure_probabilistic(model, samples) for size, model in models.items()}
    largest = measured[config.sizes[-1]]
    targets = _targets(models[config.sizes[-1]], samples)
    outside = sum(_is_outside(models[config.sizes[-1]], sample, p_z, seed) for sample, p_z in targets)
    checks = [
        Check("(n, p)-rates that fall as n grows or rise as p grows", sum(map(_disorder, measured.values())), "==", 0, unit="rates"),
        Check(
            f"passages of {len(targets)} whose frequency in {DRAWS} samples is within 4 standard errors of p_z",
            len(targets) - outside,
            ">=",
            0.95 * TARGETS if full else 0.95 * len(targets),
            unit="passages",
        ),
    ]
    claimed = _claimed(largest)
    checks += claimed if full else [replace(check, threshold=None) for check in claimed]
    checks += [check for size in config.sizes[:-1] for check in _reported(size, measured[size])]
    notes = [
        f"{config.steps} steps of {config.batch_size} sequences of {config.seq_len} tokens at learning rate {config.lr:g}; "
        f"largest model {config.sizes[-1]}.",
        "From so many samples on, sampling extracts as many passages as greedy decoding does (p = 0.5): "
        + "; ".join(f"{size}: {_crossings(one)}" for size, one in measured.items())
        + ".",
        f"Sampling was compared on suffixes of {sorted({s.suffix_len for s, _ in targets})} tokens.",
        *(TRIED if full else ()),
    ]
    curves = list(largest.curves.values())
    return Claim("probabilistic-extraction", STATEMENT, checks, _rows(measured), seed, scale, notes, curves)


def _claimed(measured: Measurement) -> list[Check]:
    groups = _by_copies(measured)
    between = [copies for copies in BETWEEN if copies in groups]
    checks = [
        Check(f"share extracted by {MANY:,} samples less by greedy decoding, {copies} copies", _excess(groups[copies], MANY), ">=", 0.15)
        for copies in between
    ]
    worst = min(groups, key=lambda copies: _excess(groups[copies], MANY))
    checks.append(Check(f"the same at the worst level ({worst} copies)", _excess(groups[worst], MANY), ">=", 0))
    checks += [
        Check(f"share extracted by {FEW} samples less by greedy decoding, {copies} copies", _excess(groups[copies], FEW), "<", 0)
        for copies in between
    ]
    checks += [
        Check(f"share extracted by {MANY:,} samples, {copies} copies", _rate(groups[copies], MANY), "<=", 0.02, unit="share")
        for copies in (0, 1)
    ]
    return checks


def _reported(size: str, measured: Measurement) -> list[Check]:
    groups = _by_copies(measured)
    between = [copies for copies, group in groups.items() if 0.05 <= group["greedy"]["rate"] <= 0.95]
    return [
        Check(f"model {size}: share extracted by {MANY:,} samples less by greedy decoding, {copies} copies", _excess(groups[copies], MANY))
        for copies in between
    ]


def _by_copies(measured: Measurement) -> dict[int, dict[str, Any]]:
    return {int(group["copies"]): group for group in measured.summary["by_copies"]}


def _rate(group: dict[str, Any], n: int, p: float = P) -> float:
    return next(row["rate"] for row in group["rates"] if (row["n"], row["p"]) == (n, p))


def _excess(group: dict[str, Any], n: int) -> float:
    return _rate(group, n) - group["greedy"]["rate"]


def _crossings(measured: Measurement) -> str:
    hit = {copies: group for copies, group in _by_copies(measured).items() if group["greedy"]["rate"] > 0}
    return ", ".join(f"n = {group['crossing_n']:,.0f} at {copies} copies" for copies, group in hit.items()) or "greedy extracts none"


def _disorder(measured: Measurement) -> int:
    """Steps between neighbouring rates of the summary that go the wrong way."""
    off = 0
    for group in (measured.summary["overall"], *measured.summary["by_copies"]):
        sizes, chances = (sorted({row[name] for row in group["rates"]}) for name in ("n", "p"))
        table = np.array([[_rate(group, n, p) for p in chances] for n in sizes])
        off += int((np.diff(table, axis=0) < 0).sum() + (np.diff(table, axis=1) > 0).sum())
    return off


def _targets(model: HFModel, samples: list[PrefixSuffix]) -> list[tuple[PrefixSuffix, float]]:
    """At most `TARGETS` passages with their p_z in `RANGE`: whole suffixes first, then shorter ones of other passages."""
    targets: dict[str, tuple[PrefixSuffix, float]] = {}
    for length in range(SUFFIX, 0, -1):
        cut = [PrefixSuffix(s.ids[: CONTEXT + length], CONTEXT, length, s.meta) for s in samples if s.meta["id"] not in targets]
        if len(targets) >= TARGETS or not cut:
            break
        p_z = np.exp(suffix_logprob(model, cut, TOP_K_40))
        found = [(sample, float(p)) for sample, p in zip(cut, p_z, strict=True) if RANGE[0] <= p <= RANGE[1]]
        targets |= {sample.meta["id"]: (sample, p) for sample, p in found[: TARGETS - len(targets)]}
    return list(targets.values())


def _is_outside(model: HFModel, sample: PrefixSuffix, p_z: float, seed: int) -> bool:
    """Whether the share of real samples that are the suffix lies further than 4 standard errors from p_z."""
    drawn = model.generate([sample.prefix], sample.suffix_len, temperature=1.0, top_k=40, n=DRAWS, seed=seed, stop_at_eos=False)[0]
    frequency = float(np.mean([np.array_equal(row, sample.suffix) for row in drawn]))
    return bool(abs(frequency - p_z) > 4 * np.sqrt(p_z * (1 - p_z) / DRAWS))


def _rows(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    rows = []
    for size, one in measured.items():
        for copies, group in _by_copies(one).items():
            row = {"model": size, "copies": copies, "passages": group["n_samples"], "greedy": group["greedy"]["rate"]}
            row |= {f"n={entry['n']:,}": entry["rate"] for entry in group["rates"] if entry["p"] == P}
            rows.append(row | {"median_n": group["median_n"], "crossing_n": group["crossing_n"]})
    return rows
