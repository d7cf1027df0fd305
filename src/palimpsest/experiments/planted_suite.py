"""Claim check of the planted suite: what a model remembers is set by how often it read a text, relative to all it read, and when.

Wei et al. 2025 (Hubble), arXiv 2510.19811. Four checks on models of size m (0.5M parameters):

* twins: the loss gap between the standard and the perturbed twin on the same texts grows with copies, is nearly nil on texts that
  neither saw, and both know held-out text equally well;
* dilution: the same copies in twice as many tokens are remembered less;
* ordering: copies seen in the last quarter of the run are remembered at least as well as copies seen in the first;
* membership: loss and Min-K%++ separate members from controls the better, the more copies, and hardly at one copy.

The *gain* of a level is how much more log-probability per suffix token a model gives to texts of this level than the standard twin
does, less the same difference on the controls: texts of unequal difficulty and models of unequal quality cancel out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from palimpsest.experiments.canaries import CanaryConfig, Suite, train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.measurement import Curve, Series
from palimpsest.models import HFModel
from palimpsest.stats import auc, auc_interval, spearman

STATEMENT = (
    "Memorization is set by how often a text stands in the training data relative to its size: more copies are remembered better, "
    "dilution and early placement weaken it, and membership inference works only on texts that were repeated."
)
CONTEXT, SUFFIX = 40, 16  # all tokens of a passage before its suffix
MIN_K = 0.2
CPU = CanaryConfig(
    sizes=("m",),
    n_sequences=9900,
    levels=((0, 64), (1, 64), (2, 24), (4, 12), (8, 8), (16, 6), (32, 6), (48, 8), (64, 20)),
    lr=2e-3,
)
SMOKE = CanaryConfig(sizes=("s",), n_sequences=240, levels=((0, 6), (1, 4), (2, 4), (6, 4)), warmup=5)


def run(scale: str, seed: int) -> Claim:
    """Trains the five models (or takes them from the cache) and checks the claim.

    Args:
        scale: "smoke": 30 steps of the smallest model, only the invariants of planting are held against anything; "cpu".
        seed: of text, places and weights.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = replace(CPU if full else SMOKE, seed=seed)
    size = config.sizes[0]
    suites = {
        "plain": train_suite(config),
        "diluted": train_suite(replace(config, twins=("perturbed",), n_sequences=2 * config.n_sequences)),
        "early": train_suite(replace(config, twins=("perturbed",), window=(0.0, 0.25))),
        "late": train_suite(replace(config, twins=("perturbed",), window=(0.75, 1.0))),
    }
    plain = suites["plain"]
    for other in suites.values():
        if (
            other.ledger["ids"].to_list() != plain.ledger["ids"].to_list()
            or other.ledger["copies"].to_list() != plain.ledger["copies"].to_list()
        ):
            raise AssertionError("The runs must plant the same texts equally often.")
    standard = plain.models[f"standard-{size}"]
    perturbed = {name: suite.models[f"perturbed-{size}"] for name, suite in suites.items()}

    copies = plain.ledger["copies"].to_numpy()
    levels = [int(c) for c in np.unique(copies)]
    gains, rates = {}, {}
    reference, _ = _suffixes(standard, plain)
    for name, model in perturbed.items():
        logprob, hit = _suffixes(model, plain)
        better = logprob - reference
        gains[name] = {c: float(better[copies == c].mean() - better[copies == 0].mean()) for c in levels}
        rates[name] = {c: float(hit[copies == c].mean()) for c in levels}
    scores = {name: _membership(perturbed["plain"], plain)[name] for name in ("loss", "min-k++")}
    gap = _text_losses(standard, plain) - _text_losses(perturbed["plain"], plain)
    gaps = {c: float(gap[copies == c].mean()) for c in levels}
    validation = {n: plain.cards[f"{n}-{size}"]["validation_loss"] for n in ("standard", "perturbed")}

    checks = _invariants(suites)
    claimed = _claimed(levels, gaps, validation, gains, rates, {k: _aucs(v, copies, levels) for k, v in scores.items()})
    checks += claimed if full else [replace(c, threshold=None) for c in claimed]
    rows: list[dict[str, Any]] = []
    for c in levels:
        row: dict[str, Any] = {"copies": c, "texts": int((copies == c).sum()), "loss_gap": gaps[c]}
        for name in suites:
            row |= {f"gain_{name}": gains[name][c], f"extraction_{name}": rates[name][c]}
        for name, values in scores.items():
            if c:
                row[f"auc_{name}"] = auc(values[copies == c], values[copies == 0])
        rows.append(row)
    curves = [_gain_curve(gains), _auc_curve(scores, copies, levels)]
    return Claim("planted-suite", STATEMENT, checks, rows, seed, scale, _notes(plain, validation), curves)


def _suffixes(model: HFModel, suite: Suite) -> tuple[np.ndarray, np.ndarray]:
    """Mean suffix log-probability and verbatim extraction of every planted text after `CONTEXT` tokens."""
    samples = suite.samples(CONTEXT, SUFFIX)
    scores = model.score([s.ids for s in samples], start=CONTEXT)
    return np.array([lp.mean() for lp in scores.logprobs]), np.array([h.all() for h in scores.greedy_hits])


def _text_losses(model: HFModel, suite: Suite) -> np.ndarray:
    return np.array([-lp.mean() for lp in model.score(suite.ledger["ids"].to_list()).logprobs])


def _membership(model: HFModel, suite: Suite) -> dict[str, np.ndarray]:
    """Loss and Min-K%++ scores of every planted text, higher = more likely a member."""
    scores = model.score(suite.ledger["ids"].to_list(), moments=True)
    assert scores.mean is not None
    assert scores.var is not None
    plus = []
    for lp, mean, var in zip(scores.logprobs, scores.mean, scores.var, strict=True):
        z = np.where(var > 0, (lp - mean) / np.sqrt(np.maximum(var, 1e-12)), 0.0)
        plus.append(np.sort(z)[: int(np.ceil(MIN_K * len(z)))].mean())
    return {"loss": np.array([lp.mean() for lp in scores.logprobs]), "min-k++": np.array(plus)}


def _aucs(values: np.ndarray, copies: np.ndarray, levels: list[int]) -> dict[int, float]:
    return {c: auc(values[copies == c], values[copies == 0]) for c in levels if c}


def _invariants(suites: dict[str, Suite]) -> list[Check]:
    """What planting must leave as it was, counted on the data itself."""
    off, changed, outside, differs = 0, 0, 0, 0
    for suite in suites.values():
        data = suite.stream
        found = suite.index.count_batch([np.array(ids) for ids in suite.ledger["ids"].to_list()])
        off += int(np.abs(found - suite.ledger["copies"].to_numpy()).sum())
        moved = (data.rows["standard"] != data.rows["perturbed"]).any(axis=1)
        moved[data.planted.insertions["idx"].to_numpy()] = False
        changed += int(moved.sum()) + abs(len(data.rows["standard"]) - len(data.rows["perturbed"]))
        share = data.planted.insertions["idx"].to_numpy() / len(data.rows["standard"])
        outside += int(((share < suite.config.window[0]) | (share >= suite.config.window[1])).sum())
        differs += int((data.planted.replay(data.rows["standard"]) != data.rows["perturbed"]).sum())
    return [
        Check("copies of planted texts in the stream, off from the ledger", off, "==", 0, unit="copies"),
        Check("sequences without a planted text that differ between the twins", changed, "==", 0, unit="sequences"),
        Check("copies outside their window", outside, "==", 0, unit="copies"),
        Check("tokens in which the replayed ledger differs from the stream", differs, "==", 0, unit="tokens"),
    ]


def _claimed(
    levels: list[int],
    gaps: dict[int, float],
    validation: dict[str, float],
    gains: dict[str, dict[int, float]],
    rates: dict[str, dict[int, float]],
    aucs: dict[str, dict[int, float]],
) -> list[Check]:
    top = levels[-1]
    checks = [
        Check("twins: rank correlation of loss gap and copies", spearman(levels, [gaps[c] for c in levels]), ">=", 0.9),
        Check("twins: loss gap on texts never planted, absolute", abs(gaps[0]), "<=", 0.15, unit="nat"),
        Check(
            "twins: validation loss of the perturbed over the standard, off from 1",
            abs(validation["perturbed"] / validation["standard"] - 1),
            "<=",
            0.03,
            unit="share",
        ),
    ]
    checks += [
        Check(f"dilution: gain at {c} copies in twice the tokens", gains["diluted"][c], "<", gains["plain"][c], gains["plain"][c], "nat")
        for c in levels[-4:]
    ]
    # where nothing is extracted even undiluted the law is not tested, and a figure that is missing does not pass
    plain = rates["plain"][top]
    diluted = rates["diluted"][top] if plain > 0 else None
    checks.append(Check(f"dilution: extraction at {top} copies in twice the tokens", diluted, "<=", plain / 2, plain, "share"))
    checks += [
        Check(f"ordering: gain at {c} copies in the last quarter", gains["late"][c], ">=", gains["early"][c], gains["early"][c], "nat")
        for c in levels
        if c >= min(32, top)
    ]
    for name, by in aucs.items():
        checks += [
            Check(f"membership by {name}: rank correlation of AUC and copies", spearman(list(by), list(by.values())), ">=", 0.9),
            Check(f"membership by {name}: AUC at 1 copy, not below chance's range", by[1], ">=", 0.3),
            Check(f"membership by {name}: AUC at 1 copy, not above chance's range", by[1], "<=", 0.65),
            Check(f"membership by {name}: AUC at {top} copies", by[top], ">=", 0.98),
        ]
    return checks


def _notes(suite: Suite, validation: dict[str, float]) -> list[str]:
    config = suite.config
    planted = int((suite.ledger["copies"] * suite.ledger["ids"].list.len()).sum())
    share = planted / (config.n_sequences * config.seq_len)
    return [
        f"{config.n_sequences} sequences of {config.seq_len} tokens of seven novels, {share:.0%} of them planted text; "
        f"validation loss standard {validation['standard']:.3f}, perturbed {validation['perturbed']:.3f} nat.",
        "Departure from the pilot's setting (sequences of 64 tokens, 24 texts at each of 11 levels): there the planted texts are more than "
        "half of all tokens, so that the twins differ in how much of the novels they read (validation loss 3.95 and 4.40 nat with "
        "m at 1.2e-3, seed 0), and no loss gap could be laid to planting alone. Here sequences are longer than texts and fewer texts "
        "are planted often; thresholds are as they were.",
        "Tried before, and failed on seed 0: 8,400 sequences with 14% planted tokens, 24 texts at one copy, "
        "learning rate 3e-3 (seed 0: loss gap on controls 0.152 nat, asked 0.15; validation loss off by 4.9%, asked 3%; "
        "Min-K%++ AUC at one copy 0.676, asked 0.65); and 6, 8 and 14 texts at 32, 48 and 64 copies at 3e-3 (seed 0: gap 0.193,"
        " validation off by 6.2%, nothing extracted at 64 copies).",
        "The set-up was then chosen on the seeds 100, 101 and 102, for two demands that pull apart: a model that is planted "
        "much is worse on held-out text, one that is planted little extracts nothing. At the pilot's learning rate of 3e-3 the "
        "perturbed twin's validation loss was off by 1.8%, 5.5% and 4.2% with those 14 texts at 64 copies, and nothing was "
        "extracted on two of the three seeds; at 2e-3 by 1.5% and 2.0%, with 2 and 1 of 14 texts extracted (seeds 101, 102). "
        "With 20 texts at 64 copies, as here: 2.6% and 2.0%, 5 and 1 of 20. At 1.5e-3: 2 of 20. Rows of 64 tokens with texts of"
        " 48 extract nothing.",
        "The texts, their copies and the order of the novels are the same in all runs of a seed; where the copies stand is drawn anew.",
    ]


def _gain_curve(gains: dict[str, dict[int, float]]) -> Curve:
    series = [Series(name, [{"x": c, "y": g} for c, g in by.items()]) for name, by in gains.items()]
    return Curve(
        "planted-gain",
        "Gain in log-probability by copies: plain, diluted, early and late",
        "copies in the training data",
        "gain over the controls (nat a token)",
        series,
        x_scale="symlog",
        caption="Mean over texts of the suffix's log-probability under the perturbed model less the standard twin's, less the controls'.",
    )


def _auc_curve(scores: dict[str, np.ndarray], copies: np.ndarray, levels: list[int]) -> Curve:
    series = []
    for name, values in scores.items():
        points: list[dict[str, float | int | None]] = []
        for c in levels[1:]:
            interval = auc_interval(values[copies == c], values[copies == 0])
            points.append({"x": c, "y": interval.estimate, "low": interval.low, "high": interval.high, "n": int((copies == c).sum())})
        series.append(Series(name, points))
    return Curve(
        "planted-membership",
        "Membership inference by copies",
        "copies in the training data",
        "AUC against controls",
        series,
        x_scale="log",
        y_domain=(0.0, 1.0),
    )
