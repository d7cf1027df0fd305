"""Log-probabilities of many continuations of one prefix, the prefix being read once.

Fifty candidates behind three hundred shared tokens are 51 short passes instead of 50 long ones: the keys and values of the prefix are
kept and shown to every batch of continuations. It is a door's affair how: a transformers model whose cache can be copied takes the short
way, every other door scores whole rows. Whether the short way says the same is tried out on the first continuations of a call; where it
does not (caches that forget, sliding windows), whole rows are scored.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.batching import batches_by_length, check_rows, pad
from palimpsest.models.hf import HFModel
from palimpsest.models.token_scores import NonFiniteLogitsError, token_scores

Rows = Sequence[Sequence[int] | np.ndarray]
_TOLERANCE = 2e-3  # nat a token: what two orders of summation in float32 may differ by
_CACHED = 1 << 14  # tokens of prefix that are kept at once, over all rows of a batch


def score_continuations(
    model: LanguageModel, prefixes: Rows, continuations: Sequence[Rows], *, progress: Progress | None = None
) -> list[np.ndarray]:
    """Natural log-probability of every continuation given its prefix.

    Args:
        model: needs "logprobs".
        prefixes: N rows of ids, each of at least one.
        continuations: for each prefix its rows of ids, each of at least one.
        progress: called with (prefixes done, prefixes in all).

    Returns:
        For each prefix one float64 array, an entry a continuation: the sum over its tokens.

    Raises:
        CapabilityError: the door has no log-probs.
        InputError: no prefix, a prefix without continuations, an empty row, ids outside the vocabulary.
        ContextOverflowError: a prefix and a continuation do not fit the context together.
        NonFiniteError: the model returned NaN.
    """
    model.require("logprobs", "The log-probability of a continuation")
    if len(prefixes) != len(continuations):
        raise InputError(f"There are {len(prefixes)} prefixes and {len(continuations)} sets of continuations.", "Give one set each.")
    vocabulary = model.vocab_size if isinstance(model, HFModel) else model.tokenizer.vocab_size
    heads = check_rows(prefixes, vocabulary, model.room, 1, "Prefix")
    tails = [
        check_rows(rows, vocabulary, model.room, len(head), f"Continuation of prefix {number},")
        for number, (head, rows) in enumerate(zip(heads, continuations, strict=True))
    ]
    out: list[np.ndarray] = []
    cached = isinstance(model, HFModel)
    for head, rows in zip(heads, tails, strict=True):
        scores = _behind_cache(model, head, rows) if cached and isinstance(model, HFModel) else None
        if scores is not None and not out:
            probe = rows[: min(2, len(rows))]
            cached = bool(np.all(np.abs(_whole(model, head, probe) - scores[: len(probe)]) <= _TOLERANCE * max(map(len, probe))))
        if scores is None or not cached:
            cached = False
            scores = _whole(model, head, rows)
        out.append(scores)
        if progress:
            progress(len(out), len(heads))
    return out


def _whole(model: LanguageModel, head: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The plain way: every prefix and continuation as one row."""
    scores = model.score([np.concatenate([head, row]) for row in rows], start=len(head))
    return np.array([float(values.sum(dtype=np.float64)) for values in scores.logprobs])


@torch.inference_mode()
def _behind_cache(model: HFModel, head: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray | None:
    """The short way; None where the model keeps nothing that can be copied for several rows."""
    fed = np.concatenate([[model.tokenizer.bos_id], head]) if model.prepends_bos else head
    ids = torch.from_numpy(fed[None].astype(np.int64)).to(model.device)
    first = model.model(input_ids=ids, use_cache=True, return_dict=True)
    cache: Any = getattr(first, "past_key_values", None)
    if not hasattr(cache, "batch_repeat_interleave"):
        return None
    before = first.logits[:, -1]  # (1, vocabulary): what comes first behind the prefix
    out = np.empty(len(rows))
    for batch in batches_by_length([len(row) for row in rows], model.batch_tokens, max(1, _CACHED // len(fed))):
        chosen = [rows[i] for i in batch]
        inputs = [row[:-1] for row in chosen]
        logits = [before.expand(len(chosen), -1)]
        places = [np.arange(len(chosen))]
        targets = [np.array([row[0] for row in chosen])]
        if max(map(len, inputs)):
            kept = copy.deepcopy(cache)
            kept.batch_repeat_interleave(len(chosen))
            tokens, mask, positions = pad([row if len(row) else np.zeros(1, np.int64) for row in inputs], "right", model.device)
            seen = torch.cat([torch.ones(len(chosen), len(fed), dtype=mask.dtype, device=mask.device), mask], dim=1)
            found = model.model(
                input_ids=tokens,
                attention_mask=seen,
                position_ids=positions + len(fed),
                past_key_values=kept,
                use_cache=True,
                return_dict=True,
            ).logits
            owners = np.repeat(np.arange(len(chosen)), [len(row) for row in inputs])
            within = np.concatenate([np.arange(len(row)) for row in inputs])
            logits.append(found[owners, within])
            places.append(owners)
            targets.append(np.concatenate([row[1:] for row in chosen]))
        try:
            scored = token_scores(torch.cat(logits), torch.from_numpy(np.concatenate(targets)).to(model.device))
        except NonFiniteLogitsError as error:
            raise NonFiniteError(f"{model.name} returned logits that are not finite.", "Check the weights for NaN.") from error
        out[batch] = np.bincount(np.concatenate(places), scored.logprobs.double().cpu().numpy(), len(chosen))
    return out
