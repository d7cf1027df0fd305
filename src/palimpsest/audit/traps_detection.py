"""Copyright traps, detected: does a model know the planted sequences better than their siblings? (arXiv 2402.09363.)

For a trap x of tokens x_1 … x_L, scored as it stands in a document, let loss(x) = -mean log p(x_t | x_<t) under the target and
loss_ref(x) the same under a reference model that never saw it:

* ratio        exp(loss - loss_ref) = PPL / PPL_ref           lower = member; the paper's Ratio attack
* perplexity   exp(loss)                                      lower = member
* min-k        mean of the lowest 20 % of log p (`membership_scores.min_k`)    higher = member

Without context t runs from 2; with the c tokens that stand before one copy in the document (other copies removed) from 1, and member
and siblings get the same context. Models of other tokenizers cannot be compared token by token: with `unit="character"` both losses
are totals over the characters of the trap.

The AUC of members against siblings says how well a score detects on average. The owner's p-value is exact instead: of the 1 + M traps of
a group one was planted by lot, so that the rank R of its score among them is uniform on 1 … M + 1 for a model that never saw it, whatever
the model, and p = R / (M + 1), ties counting against the owner [not in the paper]. Over all traps: the exact distribution of the sum
of ranks, and Fisher's product (conservative here, since these p are discrete).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from palimpsest.audit.membership_scores import min_k
from palimpsest.audit.progress import stages
from palimpsest.audit.traps import Trap, as_planted
from palimpsest.audit.traps_injection import Manifest, Planting, context_of
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import auc_interval

UNITS = ("token", "character")
MIN_K = 0.2


def detect(
    target: LanguageModel,
    manifest: Manifest,
    *,
    reference: LanguageModel | None = None,
    documents: Sequence[str] | None = None,
    context_tokens: int = 0,
    unit: str = "token",
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Measures whether a model was trained on documents with traps.

    Args:
        target: needs "logprobs".
        manifest: what `inject` returned.
        reference: a model that never saw the traps, best the one that made them. Without it there is no ratio; the owner's p-value
            then ranks perplexities, which is as exact.
        documents: as `inject` returned them; needed for a context.
        context_tokens: tokens of the document in front of a trap. A copy with less before it is taken only where there is no other.
        unit: "token", or "character" for a reference with another tokenizer.
        seed: which copy gives the context, and the bootstrap.
        progress: called with (rows scored, rows in all).

    Returns:
        One row a trap or sibling: group, id, member, length, low and high of the bucket, copies, context, ratio, perplexity, min-k, and
        for members p; the summary holds the AUC with its 95 % bootstrap interval of each method by length, bucket and copies ("cells")
        and by length and copies ("levels"), and the owner's p-values, in all and by level.

    Raises:
        InputError: an empty manifest, an unknown unit, a context without documents.
        TokenizerMismatchError: unit "token" with a reference of another tokenizer.
        ContextOverflowError: context and trap exceed what a model can see.
        CapabilityError: a door without log-probs.

    Example:
        >>> m = detect(model, manifest, reference=maker)        # doctest: +SKIP
        >>> m.summary["owner"]["p"]                            # doctest: +SKIP
    """
    doors = [target] if reference is None else [target, reference]
    for door in doors:
        door.require("logprobs", "Detecting traps")
    if not manifest.plantings or unit not in UNITS or context_tokens < 0:
        raise InputError(
            f"{len(manifest.plantings)} plantings, unit {unit!r}, context_tokens {context_tokens}.",
            f"Give at least one planting, a unit of {', '.join(UNITS)}, and no negative context.",
        )
    if context_tokens and documents is None:
        raise InputError(f"A context of {context_tokens} tokens was asked for without documents.", "Give the documents with their traps.")
    if reference is not None and unit == "token":
        target.tokenizer.require_same(
            reference.tokenizer.fingerprint, f"the reference {reference.name} (with unit='character' it may differ)"
        )
    rows = [(number, trap) for number, planting in enumerate(manifest.plantings) for trap in (planting.trap, *planting.siblings)]
    contexts = _contexts(manifest, documents, context_tokens, seed)
    stage = stages(progress, len(rows) * len(doors))
    logprobs, shown = _logprobs(target, rows, contexts, context_tokens, stage(len(rows)))
    loss = _loss(logprobs, rows, unit)
    scores: dict[str, np.ndarray] = {}
    if reference is not None:
        theirs, _ = _logprobs(reference, rows, contexts, context_tokens, stage(len(rows)))
        scores["ratio"] = np.exp(loss - _loss(theirs, rows, unit))
    scores |= {"perplexity": np.exp(loss), "min-k": min_k(logprobs, MIN_K)}
    ranked = next(iter(scores))
    ranks, sizes = owner_ranks(scores[ranked], np.array([number for number, _ in rows]))
    plantings = [manifest.plantings[number] for number, _ in rows]
    member = [trap is planting.trap for (_, trap), planting in zip(rows, plantings, strict=True)]
    p = iter((ranks / sizes).tolist())
    table = pl.DataFrame(
        {
            "group": [number for number, _ in rows],
            "id": [trap.id for _, trap in rows],
            "member": member,
            "length": [trap.length for _, trap in rows],
            "low": [trap.bucket[0] for _, trap in rows],
            "high": [trap.bucket[1] for _, trap in rows],
            "copies": [planting.copies for planting in plantings],
            "context": shown,
            **scores,
            "p": pl.Series([next(p) if is_member else None for is_member in member], dtype=pl.Float64),
        }
    )
    levels = _figures(table, ["length", "copies"], list(scores), seed)
    summary = {
        "plantings": len(manifest.plantings),
        "siblings": len(rows) - len(manifest.plantings),
        "cells": _figures(table, ["length", "low", "high", "copies"], list(scores), seed),
        "levels": levels,
        "owner": {"score": ranked, **combined(ranks, sizes), "levels": _owner_levels(manifest.plantings, ranks, sizes)},
    }
    provenance = {
        "model": target.describe(),
        "reference": reference.describe() if reference is not None else None,
        "settings": {"context_tokens": context_tokens, "unit": unit, "min-k": MIN_K},
        "traps": {"made": manifest.traps, "seed": manifest.seed},
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("traps", table, summary, provenance, {"traps-copies": _curve(levels, ranked)})


def owner_ranks(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the first score of every group among its group: 1 is the lowest, ties count against it.

    Args:
        scores: lower = likelier a member, (rows,).
        groups: number of the group of each row, ascending from 0, (rows,); the first row of a group is the planted trap.

    Returns:
        Ranks and sizes, int64 (groups,) each.

    Example:
        >>> owner_ranks(np.array([1.0, 2.0, 1.0, 5.0, 5.0]), np.array([0, 0, 0, 1, 1]))
        (array([2, 2]), array([3, 2]))
    """
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    ranks = np.bincount(groups, weights=scores <= scores[first][groups]).astype(np.int64)
    return ranks, np.bincount(groups)


def combined(ranks: np.ndarray, sizes: np.ndarray) -> dict[str, float | int]:
    """One p-value of all groups: of the sum of the ranks (exact) and by Fisher's method.

    Args:
        ranks: of the planted traps, each uniform on 1 … size for a model that never saw them, (groups,).
        sizes: traps a group, (groups,).

    Returns:
        p: probability of a sum of ranks as low; fisher: that of Fisher's product; groups.

    Example:
        >>> combined(np.array([1, 1]), np.array([2, 2]))["p"]
        0.25
    """
    mass = np.ones(1)  # mass[s] = P(sum of (rank - 1) = s)
    for size in sizes.tolist():
        mass = np.convolve(mass, np.full(size, 1 / size))
    below = int((ranks - 1).sum())
    statistic = -2 * float(np.log(ranks / sizes).sum())
    return {
        "p": float(min(1.0, mass[: below + 1].sum())),
        "fisher": float(stats.chi2.sf(statistic, 2 * len(ranks))),
        "groups": len(ranks),
    }


def _contexts(manifest: Manifest, documents: Sequence[str] | None, tokens: int, seed: int) -> list[str]:
    """For each planting a stretch of text that ends where one of its copies stands and has at least `tokens` words, if it can."""
    if not tokens or documents is None:
        return [""] * len(manifest.plantings)
    rng = np.random.default_rng((seed, 9))
    out = []
    for planting in manifest.plantings:
        best: list[str] = []
        for copy in rng.permutation(planting.copies).tolist():
            words = context_of(documents, planting, copy).split(" ")[-tokens - 8 :]  # a word has at least one token; some to spare
            best = max(best, words, key=len)
            if len(best) >= tokens:
                break
        out.append(" ".join(best))
    return out


def _logprobs(
    model: LanguageModel, rows: list[tuple[int, Trap]], contexts: list[str], tokens: int, progress: Progress | None
) -> tuple[list[np.ndarray], list[int]]:
    """Log-probs of the tokens of every trap, and how many tokens stood before it."""
    before = [np.array(ids[-tokens:] if tokens else [], dtype=np.int64) for ids in model.tokenizer.encode_batch(contexts)]
    fed = [np.concatenate([before[number], as_planted(model.tokenizer, trap.text)]) for number, trap in rows]
    shown = [len(before[number]) for number, _ in rows]
    short = [trap.id for (_, trap), ids in zip(rows, fed, strict=True) if len(ids) < 2]
    if short:
        raise InputError(f"{short[0]} is a single token for {model.name}.", "Ask with a context, or plant longer traps.")
    return model.score(fed, start=[max(1, n) for n in shown], progress=progress).logprobs, shown


def _loss(logprobs: list[np.ndarray], rows: list[tuple[int, Trap]], unit: str) -> np.ndarray:
    """Negative log-probability of each trap by token or by character, float64 (rows,)."""
    totals = np.array([-row.sum(dtype=np.float64) for row in logprobs])
    return totals / [len(row) if unit == "token" else len(trap.text) for row, (_, trap) in zip(logprobs, rows, strict=True)]


def _figures(table: pl.DataFrame, by: list[str], methods: list[str], seed: int) -> list[dict[str, Any]]:
    """AUC of every method, members against the siblings of the same groups, one row a cell and method."""
    out = []
    for part in table.sort(by, maintain_order=True).partition_by(by, maintain_order=True):
        for method in methods:
            likely = part[method].to_numpy() * (1 if method == "min-k" else -1)
            is_member = part["member"].to_numpy()
            area = auc_interval(likely[is_member], likely[~is_member], seed=seed)
            cell = {name: part[name][0] for name in by}
            out.append(cell | {"method": method, "auc": area.estimate, "low_ci": area.low, "high_ci": area.high, "n": int(is_member.sum())})
    return out


def _owner_levels(plantings: list[Planting], ranks: np.ndarray, sizes: np.ndarray) -> list[dict[str, Any]]:
    """The owner's p-values by length and copies."""
    kinds = [(planting.trap.length, planting.copies) for planting in plantings]
    out = []
    for kind in sorted(set(kinds)):
        of = np.array([other == kind for other in kinds])
        out.append({"length": kind[0], "copies": kind[1], **combined(ranks[of], sizes[of])})
    return out


def _curve(levels: list[dict[str, Any]], method: str) -> Curve:
    """AUC against copies, one line a length."""
    series = []
    for length in sorted({row["length"] for row in levels}):
        rows = [row for row in levels if row["length"] == length and row["method"] == method]
        points = [{"x": r["copies"], "y": r["auc"], "low": r["low_ci"], "high": r["high_ci"], "n": r["n"]} for r in rows]
        series.append(Series(f"{length} tokens", points))
    caption = f"Planted traps against their siblings by {method}; 95 % bootstrap intervals; 0.5 is chance."
    return Curve("traps-copies", "Repetition makes a trap detectable", "copies", "AUC", series, "log", y_domain=(0, 1), caption=caption)
