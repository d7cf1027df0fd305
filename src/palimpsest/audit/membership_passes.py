"""What each membership score asks of a model: one shared pass over the texts, and one more for every method that changes them.

Besides the scores of `membership_scores`:

* reference        mean lp - mean lp of a model that never saw the texts; with another tokenizer, both per byte instead
                   (Carlini et al., USENIX Security 2021; Watson et al., ICLR 2022)
* lowercase        mean lp(x) - mean lp(lower(x))                              (Carlini et al., USENIX Security 2021)
* neighbour_ngram  mean lp(x) - mean over 25 neighbours of mean lp             (see `neighbours`)
* recall           in front of every text the same 7 non-members, as much of their end as fits the context beside the longest text
* gradnorm         minus the norm of the gradient of the text's loss            (see `membership_gradients`; only when it is named)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.audit.membership_gradients import gradient_norms
from palimpsest.audit.membership_scores import dc_pdd, mean_logprob, min_k, recall_ratio, standardised, zlib_bytes
from palimpsest.audit.neighbours import ngram_neighbours
from palimpsest.audit.progress import stages
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.shared_prefix import continuation_logprobs

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

METHODS = ("loss", "zlib", "zlib-total", "lowercase", "min-k", "min-k++", "reference", "neighbour_ngram", "recall", "dc-pdd", "gradnorm")
SHOTS = 7  # non-members in front of a text, for recall
NEIGHBOURS = 25


def score_methods(
    methods: Sequence[str],
    model: LanguageModel,
    rows: list[np.ndarray],
    members: int,
    reference: LanguageModel | None,
    index: CorpusIndex | None,
    k: float,
    seed: int,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Scores every row by every method, log-probabilities being taken only once.

    Args:
        methods: some of `METHODS`.
        model: a door with "logprobs".
        rows: ids of all texts, the members first.
        members: how many of them are members.
        reference, index: where a method needs them.
        k: of min-k and min-k++.
        seed: of the recall prefix and the neighbours.
        progress: called with (rows scored, rows in all).

    Returns:
        method -> float64 (rows,).
    """
    extra = sum(name in methods for name in ("reference", "lowercase", "recall", "gradnorm")) + NEIGHBOURS * ("neighbour_ngram" in methods)
    stage = stages(progress, len(rows) * (1 + extra))
    scored = model.score(rows, moments="min-k++" in methods, progress=stage(len(rows)))
    lp = scored.logprobs
    mean = mean_logprob(lp)
    texts = (
        [model.tokenizer.decode(row.tolist()) for row in rows] if {"zlib", "zlib-total", "lowercase", "reference"} & set(methods) else []
    )
    out: dict[str, np.ndarray] = {}
    for name in methods:
        if name == "loss":
            out[name] = mean
        elif name == "zlib":
            out[name] = mean / zlib_bytes(texts)
        elif name == "zlib-total":
            out[name] = _totals(lp) / zlib_bytes(texts)
        elif name == "min-k":
            out[name] = min_k(lp, k)
        elif name == "min-k++":
            assert scored.mean is not None
            assert scored.var is not None
            out[name] = min_k(standardised(lp, scored.mean, scored.var), k)
        elif name == "lowercase":
            lower = [_lower(model, text, row) for text, row in zip(texts, rows, strict=True)]
            out[name] = mean - mean_logprob(model.score(lower, progress=stage(len(rows))).logprobs)
        elif name == "recall":
            out[name] = recall_ratio(_behind_nonmembers(model, rows, members, seed, stage(len(rows))), lp)
        elif name == "reference":
            assert reference is not None
            out[name] = _over_reference(model, reference, rows, lp, texts, stage(len(rows)))
        elif name == "neighbour_ngram":
            assert index is not None
            changed = ngram_neighbours(rows, index, NEIGHBOURS, seed=seed)
            means = mean_logprob(model.score(changed, progress=stage(len(changed))).logprobs)
            out[name] = mean - means.reshape(len(rows), NEIGHBOURS).mean(axis=1)
        elif name == "dc-pdd":
            assert index is not None
            out[name] = dc_pdd([row[1:] for row in rows], lp, _log_frequency(index, rows))
        elif name == "gradnorm":
            out[name] = -gradient_norms(model, rows, stage(len(rows)))
    return out


def _lower(model: LanguageModel, text: str, row: np.ndarray) -> np.ndarray:
    """Ids of the text in lower case, cut to the context; the row itself where nothing changes."""
    lower = text.lower()
    return row if lower == text else np.array(model.tokenizer.encode(lower)[: model.room], dtype=np.int64)


def _behind_nonmembers(
    model: LanguageModel, rows: list[np.ndarray], members: int, seed: int, progress: Progress | None
) -> list[np.ndarray]:
    """Log-probs of every text behind non-members, of the same tokens as without them. Each prefix is read once."""
    prefixes = _prefixes(model, rows, members, seed)
    owners: dict[bytes, list[int]] = {}
    for number, prefix in enumerate(prefixes):
        owners.setdefault(prefix.tobytes(), []).append(number)
    groups = list(owners.values())

    def tell(done: int, _: int) -> None:
        if progress:
            progress(sum(map(len, groups[:done])), len(rows))

    heads = [prefixes[group[0]] for group in groups]
    found = continuation_logprobs(model, heads, [[rows[i] for i in group] for group in groups], progress=tell)
    out: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for group, values in zip(groups, found, strict=True):
        for number, own in zip(group, values, strict=True):
            out[number] = own[1:]
    return out


def _prefixes(model: LanguageModel, rows: list[np.ndarray], members: int, seed: int) -> list[np.ndarray]:
    """What recall puts before each text: non-members, as much of their end as fits before the longest text, the same for all; only that
    none of them stands before itself: there a spare one takes its place."""
    order = members + np.random.default_rng(seed).permutation(len(rows) - members)
    shots, spare = order[: min(SHOTS, len(order) - 1)].tolist(), int(order[min(SHOTS, len(order) - 1)])
    room = model.room - max(map(len, rows))
    chosen = {number: [spare if shot == number else shot for shot in shots] for number in (None, *shots)}
    made = {number: np.concatenate([rows[shot] for shot in own])[-room:] for number, own in chosen.items()}
    return [made.get(number, made[None]) for number in range(len(rows))]


def _over_reference(
    model: LanguageModel,
    reference: LanguageModel,
    rows: list[np.ndarray],
    logprobs: list[np.ndarray],
    texts: list[str],
    progress: Progress | None,
) -> np.ndarray:
    if reference.tokenizer.fingerprint == model.tokenizer.fingerprint:
        return mean_logprob(logprobs) - mean_logprob(reference.score(rows, progress=progress).logprobs)
    theirs = reference.score([reference.tokenizer.encode(text) for text in texts], progress=progress).logprobs
    return (_totals(logprobs) - _totals(theirs)) / np.array([len(text.encode("utf-8")) for text in texts])


def _totals(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([row.sum(dtype=np.float64) for row in logprobs])


def _log_frequency(index: CorpusIndex, rows: Sequence[np.ndarray]) -> np.ndarray:
    """log f of every id, Laplace-smoothed over the ids of corpus and texts."""
    tokens, counts = index.next_tokens([])
    size = 1 + max(int(tokens.max(initial=0)), *(int(row.max()) for row in rows))
    frequency = np.ones(size)
    frequency[tokens] += counts
    return np.log(frequency / frequency.sum())
