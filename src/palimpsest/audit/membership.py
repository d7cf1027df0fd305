"""Membership inference: can one tell texts that a model was trained on from texts that it was not?

The scores are those of `membership_scores` and `membership_passes`, all higher for likelier members. Beside each of them stands the blind
baseline (see `blind`), which never asks the model, and the difference to it on the same texts (see `membership_figures`): where the
baseline succeeds, the split measures something else than memory.

AUC says how well a score ranks on average; an attacker who must not be wrong is measured by the true positive rate at a low false
positive rate (Carlini et al., S&P 2022, arXiv 2112.03570).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from palimpsest.audit.blind import blind_scores
from palimpsest.audit.membership_figures import membership_curves, membership_figures
from palimpsest.audit.membership_passes import METHODS, NEIGHBOURS, SHOTS, score_methods
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel, Progress

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

BIASED = 0.6  # a blind AUC above it: the two sides can be told apart without the model

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
        One row a text: member, one column a method, and the blind baseline's score; the summary holds, by method, the AUC with its
        95 % bootstrap interval, the TPR at 1 % and 0.1 % FPR (no false alarm at all where there are fewer than 1 / FPR non-members) with
        intervals, and what the AUC is above the blind baseline's, corrected for the number of methods; the same by level of copies; the
        baseline; and warnings. See `membership_figures`.

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
    chosen, left_out = _choose(methods, impossible_methods(model, reference, index, rows, len(sides[1])))
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
    blind = blind_scores([row for row, _ in sides[0]], [row for row, _ in sides[1]], seed=seed)
    found = membership_figures(scores, blind, is_member, copies, seed)
    cautions = []
    if found["blind"] is not None and found["blind"]["estimate"] > BIASED:
        cautions.append(
            f"The sides can be told apart without the model (blind AUC {found['blind']['estimate']:.2f} > {BIASED}): "
            "these figures do not measure memory. Draw members and non-members from the same source at random."
        )
        warnings.warn(cautions[-1], BiasedSplitWarning, stacklevel=2)
    if blind is not None:
        table = table.with_columns(blind=blind)
    summary = {"members": len(sides[0]), "nonmembers": len(sides[1]), "left_out": left_out, **found, "warnings": cautions}
    provenance = {
        "model": model.describe(),
        "reference": reference.describe() if reference is not None else None,
        "corpus": index.fingerprint if index is not None else None,
        "settings": {"k": k, "shots": SHOTS, "neighbours": NEIGHBOURS},
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("membership", table, summary, provenance, membership_curves(scores, found, is_member))


def _texts(texts: Sequence[Text], what: str) -> list[tuple[np.ndarray, dict[str, Any]]]:
    out = [(t.ids, t.meta) if isinstance(t, PrefixSuffix) else (np.asarray(t), {}) for t in texts]
    bad = [i for i, (row, _) in enumerate(out) if row.ndim != 1 or len(row) < 2 or not np.issubdtype(row.dtype, np.integer)]
    if not out or bad:
        wrong = f"text {bad[0]} has shape {out[bad[0]][0].shape} and type {out[bad[0]][0].dtype}" if bad else "there are none"
        raise InputError(f"Among the {what}, {wrong}.", "Give texts as rows of at least 2 token ids.")
    return [(row.astype(np.int64, copy=False), meta) for row, meta in out]


def impossible_methods(
    model: LanguageModel, reference: LanguageModel | None, index: CorpusIndex | None, rows: Sequence[np.ndarray], nonmembers: int
) -> dict[str, str]:
    """The methods that cannot be run, each with the reason.

    Args:
        model, reference, index: as for `measure_membership`.
        rows: the ids of all texts.
        nonmembers: how many of them are non-members.

    Raises:
        TokenizerMismatchError: the index belongs to another tokenizer.
    """
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
    return missing


def _choose(methods: Sequence[str] | None, missing: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The methods to run, and why the others are not; a method that was asked for must be possible."""
    if methods is None:
        missing = {"gradnorm": "it takes a backward pass for every text: name it to have it", **missing}
        return [name for name in METHODS if name not in missing], missing
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"There are no methods {unknown or list(methods)}.", f"Choose from {', '.join(METHODS)}.")
    for name in methods:
        if name in missing:
            raise InputError(f"The method {name!r} cannot be run: {missing[name]}.", "Give it, or leave the method out.")
    return list(dict.fromkeys(methods)), missing
