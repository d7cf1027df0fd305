"""Membership inference: can one tell texts that a model was trained on from texts that it was not?

The scores are those of `membership_scores` and `membership_passes`, all higher for likelier members. Beside them stands the blind
baseline (see `blind`), which never asks the model: where it succeeds, the split measures something else than memory.

AUC says how well a score ranks on average; an attacker who must not be wrong is measured by the true positive rate at a low false
positive rate (Carlini et al., S&P 2022, arXiv 2112.03570).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from palimpsest.audit.blind import blind_baseline
from palimpsest.audit.laws import copy_levels
from palimpsest.audit.membership_passes import METHODS, NEIGHBOURS, SHOTS, score_methods
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import auc_interval, roc_curve, tpr_at_fpr

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

BIASED = 0.6  # a blind AUC above it: the two sides can be told apart without the model
FPRS = (0.01, 0.001)

Text = PrefixSuffix | Sequence[int] | np.ndarray


class BiasedSplitWarning(UserWarning):
    """Members and non-members can be told apart without asking the model."""


def measure_membership(
    model: LanguageModel,
    members: Sequence[Text],
    nonmembers: Sequence[Text],
    methods: Sequence[str] | None = None,
    *,
    reference: LanguageModel | None = None,
    index: CorpusIndex | None = None,
    k: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Measures how well members of the training data can be told from texts that were never in it.

    Args:
        model: needs "logprobs" (and log-probabilities' moments, which weights give, for min-k++).
        members, nonmembers: rows of ids, or `PrefixSuffix` (taken whole, meta "id", "domain" and "copies" kept), of the same kind and
            source, at least 2 tokens each.
        methods: some of `METHODS`; by default all that the door, `reference` and `index` allow but "gradnorm", the others named in the
            summary.
        reference: a model that never saw the members, for "reference".
        index: a corpus for "neighbour_ngram" and "dc-pdd": best a general one that holds neither side.
        k: the share of tokens in min-k and min-k++.
        seed: of the bootstrap, the recall prefix, the neighbours and the folds of the blind baseline.
        progress: called with (rows scored, rows in all).

    Returns:
        One row a text: member, and one column a method; the summary holds, by method, the AUC with its 95 % bootstrap interval and
        the TPR at 1 % and 0.1 % FPR (no false alarm at all where there are fewer than 1 / FPR non-members), the same by level of
        copies, the blind baseline, and warnings.

    Raises:
        InputError: an empty side, a text of one token, a text that stands on both sides, or a method without what it needs.
        CapabilityError: the door has no log-probs.

    Warns:
        BiasedSplitWarning: the blind baseline's AUC exceeds 0.6.

    Example:
        >>> m = measure_membership(model, seen, unseen, reference=twin)     # doctest: +SKIP
        >>> m.summary["methods"]["min-k++"]["auc"]                         # doctest: +SKIP
    """
    model.require("logprobs", "Membership inference")
    sides = [_texts(members, "members"), _texts(nonmembers, "non-members")]
    common = {row.tobytes() for row, _ in sides[0]} & {row.tobytes() for row, _ in sides[1]}
    if common:
        raise InputError(f"{len(common)} texts stand on both sides.", "A text is a member or it is not: remove it from one.")
    rows, metas = [row for side in sides for row, _ in side], [meta for side in sides for _, meta in side]
    is_member = np.arange(len(rows)) < len(sides[0])
    chosen, left_out = _choose(methods, model, reference, index, rows, len(sides[1]))
    scores = score_methods(chosen, model, rows, len(sides[0]), reference, index, k, seed, progress)

    copies = [meta.get("copies") for meta in metas]
    table = pl.DataFrame(
        {
            "sample": np.arange(len(rows)),
            "id": [str(meta.get("id", i)) for i, meta in enumerate(metas)],
            "domain": pl.Series([meta.get("domain") for meta in metas], dtype=pl.String),
            "member": is_member,
            "copies": pl.Series(copies, dtype=pl.Int64),
            "tokens": [len(row) for row in rows],
            **scores,
        }
    )
    figures = {name: _figures(values[is_member], values[~is_member], seed) for name, values in scores.items()}
    blind = blind_baseline([row for row, _ in sides[0]], [row for row, _ in sides[1]], seed=seed)
    cautions = []
    if blind is not None and blind.estimate > BIASED:
        cautions.append(
            f"The sides can be told apart without the model (blind AUC {blind.estimate:.2f} > {BIASED}): "
            "these figures do not measure memory. Draw members and non-members from the same source at random."
        )
        warnings.warn(cautions[-1], BiasedSplitWarning, stacklevel=2)
    by_copies = _by_copies(scores, copies, is_member, seed)
    summary = {
        "members": len(sides[0]),
        "nonmembers": len(sides[1]),
        "methods": figures,
        "left_out": left_out,
        "blind": blind._asdict() if blind is not None else None,
        "by_copies": by_copies,
        "warnings": cautions,
    }
    provenance = {
        "model": model.describe(),
        "reference": reference.describe() if reference is not None else None,
        "corpus": index.fingerprint if index is not None else None,
        "settings": {"k": k, "shots": SHOTS, "neighbours": NEIGHBOURS},
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("membership", table, summary, provenance, _curves(scores, figures, is_member, by_copies))


def _texts(texts: Sequence[Text], what: str) -> list[tuple[np.ndarray, dict[str, Any]]]:
    out = [(t.ids, t.meta) if isinstance(t, PrefixSuffix) else (np.asarray(t), {}) for t in texts]
    bad = [i for i, (row, _) in enumerate(out) if row.ndim != 1 or len(row) < 2 or not np.issubdtype(row.dtype, np.integer)]
    if not out or bad:
        wrong = f"text {bad[0]} has shape {out[bad[0]][0].shape} and type {out[bad[0]][0].dtype}" if bad else "there are none"
        raise InputError(f"Among the {what}, {wrong}.", "Give texts as rows of at least 2 token ids.")
    return [(row.astype(np.int64, copy=False), meta) for row, meta in out]


def _choose(
    methods: Sequence[str] | None,
    model: LanguageModel,
    reference: LanguageModel | None,
    index: CorpusIndex | None,
    rows: Sequence[np.ndarray],
    nonmembers: int,
) -> tuple[list[str], dict[str, str]]:
    """The methods to run, and why the others are not; a method that was asked for must be possible."""
    missing: dict[str, str] = {}
    if reference is None:
        missing["reference"] = "it needs a reference model"
    if index is None:
        missing |= dict.fromkeys(("neighbour_ngram", "dc-pdd"), "it needs the index of a corpus")
    elif index.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(index.tokenizer_fingerprint, "the index")
    if "weights" not in model.capabilities:
        missing["min-k++"] = "it needs the whole distribution, which only weights give"
        missing["gradnorm"] = "it needs gradients, which only weights give"
    if nonmembers < 2:
        missing["recall"] = "it needs at least 2 non-members"
    elif model.room <= max(map(len, rows)):
        missing["recall"] = f"a text fills the context of {model.context_length} tokens"
    if methods is None:
        missing.setdefault("gradnorm", "it takes a backward pass for every text: name it to have it")
        return [name for name in METHODS if name not in missing], missing
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"There are no methods {unknown or list(methods)}.", f"Choose from {', '.join(METHODS)}.")
    for name in methods:
        if name in missing:
            raise InputError(f"The method {name!r} cannot be run: {missing[name]}.", "Give it, or leave the method out.")
    return list(dict.fromkeys(methods)), {}


def _figures(members: np.ndarray, nonmembers: np.ndarray, seed: int) -> dict[str, Any]:
    area = auc_interval(members, nonmembers, seed=seed)
    tprs = {f"tpr_at_{fpr:g}": tpr_at_fpr(members, nonmembers, fpr) for fpr in FPRS}
    return {"auc": area.estimate, "low": area.low, "high": area.high, **tprs, "n": len(members)}


def _by_copies(scores: dict[str, np.ndarray], copies: Sequence[int | None], is_member: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Members of each level of copies against all non-members, one row per level and method."""
    known = np.array([i for i in np.flatnonzero(is_member).tolist() if copies[i] is not None], dtype=np.int64)
    values = np.array([copies[i] for i in known.tolist()], dtype=np.int64)
    levels = copy_levels(values)
    return [
        {
            "copies": float(values[levels == level].mean()),
            "method": name,
            **_figures(score[known[levels == level]], score[~is_member], seed),
        }
        for level in np.unique(levels)
        for name, score in scores.items()
    ]


def _curves(
    scores: dict[str, np.ndarray], figures: dict[str, dict[str, Any]], is_member: np.ndarray, by_copies: list[dict[str, Any]]
) -> dict[str, Curve]:
    series = []
    for name, values in scores.items():
        curve = roc_curve(values[is_member], values[~is_member])
        last = np.flatnonzero(np.append(np.diff(curve.fpr) > 0, True))  # the best threshold of every false positive rate
        last = last[np.unique(np.linspace(0, len(last) - 1, 200).round().astype(int))]
        points = [{"x": float(curve.fpr[i]), "y": float(curve.tpr[i]), "low": None, "high": None, "n": None} for i in [0, *last]]
        series.append(Series(f"{name} (AUC {figures[name]['auc']:.2f})", points))
    series.append(Series("chance", [{"x": x, "y": x, "low": None, "high": None, "n": None} for x in (0.0, 1.0)], "dashed"))
    curves = [
        Curve(
            "membership-roc",
            "Telling members from non-members",
            "false positive rate",
            "true positive rate",
            series,
            y_domain=(0, 1),
            y_format="percent",
            x_format="percent",
            caption=f"{int(is_member.sum())} members, {int((~is_member).sum())} non-members.",
        )
    ]
    if by_copies:
        lines = []
        for name in scores:
            rows = [row for row in by_copies if row["method"] == name]
            points = [{"x": r["copies"], "y": r["auc"], "low": r["low"], "high": r["high"], "n": r["n"]} for r in rows]
            lines.append(Series(name, points))
        caption = "Members of each level against all non-members; 95 % bootstrap intervals; 0.5 is chance."
        title, x_label = "Repetition betrays members", "copies in the training data"
        curves.append(Curve("membership-copies", title, x_label, "AUC", lines, "symlog", y_domain=(0, 1), caption=caption))
    return {curve.id: curve for curve in curves}
