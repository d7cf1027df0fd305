"""Log-probabilities of many continuations of one prefix, or of a few tokens behind prompts that begin alike: what is shared is read once.

Fifty candidates behind three hundred shared tokens are 51 short passes instead of 50 long ones: the keys and values of the prefix, and of
the tokens with which all candidates begin, are kept and shown to every batch of continuations, and the language-model head is applied only
where a token is scored. It is a door's affair how: a transformers model whose cache can be copied takes the short way, every other door
scores whole rows. Whether the short way says the same is tried out on the first continuations of a call; where it does not (caches that
forget, sliding windows), whole rows are scored.
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
from palimpsest.models.hf import HFModel, picking
from palimpsest.models.score_cache import ScoreCache

Rows = Sequence[Sequence[int] | np.ndarray]
_TOLERANCE = 2e-3  # nat a token: what two orders of summation in float32 may differ by
_CACHED = 1 << 14  # tokens of prefix that are kept at once, over all rows of a batch


def score_continuations(
    model: LanguageModel, prefixes: Rows, continuations: Sequence[Rows], *, progress: Progress | None = None
) -> list[np.ndarray]:
    """Natural log-probability of every continuation given its prefix: the sums of `continuation_logprobs`.

    Returns:
        For each prefix one float64 array, an entry a continuation: the sum over its tokens.
    """
    found = continuation_logprobs(model, prefixes, continuations, progress=progress)
    return [np.array([float(values.sum(dtype=np.float64)) for values in own]) for own in found]


def continuation_logprobs(
    model: LanguageModel, prefixes: Rows, continuations: Sequence[Rows], *, progress: Progress | None = None
) -> list[list[np.ndarray]]:
    """Natural log-probability of every token of every continuation given its prefix.

    Args:
        model: needs "logprobs"; of a `ScoreCache` the door behind it is asked where it has a short way.
        prefixes: N rows of ids, each of at least one.
        continuations: for each prefix its rows of ids, each of at least one.
        progress: called with (prefixes done, prefixes in all).

    Returns:
        For each prefix one array (tokens,) a continuation.

    Raises:
        CapabilityError: the door has no log-probs.
        InputError: no prefix, a prefix without continuations, an empty row, ids outside the vocabulary.
        ContextOverflowError: a prefix and a continuation do not fit the context together.
        NonFiniteError: the model returned NaN.
    """
    model.require("logprobs", "The log-probability of a continuation")
    if len(prefixes) != len(continuations):
        raise InputError(f"There are {len(prefixes)} prefixes and {len(continuations)} sets of continuations.", "Give one set each.")
    door = _with_cache(model)
    vocabulary = door.vocab_size if door is not None else model.tokenizer.vocab_size
    heads = check_rows(prefixes, vocabulary, model.room, 1, "Prefix")
    tails = [
        check_rows(rows, vocabulary, model.room, len(head), f"Continuation of prefix {number},")
        for number, (head, rows) in enumerate(zip(heads, continuations, strict=True))
    ]
    out: list[list[np.ndarray]] = []
    for head, rows in zip(heads, tails, strict=True):
        scores = _behind_cache(door, head, rows) if door is not None else None
        if scores is not None and not out:
            probe = rows[: min(2, len(rows))]
            pairs = zip(_whole(model, head, probe), scores, strict=False)
            if not all(abs(float(one.sum() - other.sum())) <= _TOLERANCE * max(map(len, probe)) for one, other in pairs):
                scores = None
        if scores is None:
            door = None
            scores = _whole(model, head, rows)
        out.append(scores)
        if progress:
            progress(len(out), len(heads))
    return out


def _with_cache(model: LanguageModel) -> HFModel | None:
    """The door whose keys and values can be kept here, if there is one."""
    door = model.behind if isinstance(model, ScoreCache) else model
    return door if isinstance(door, HFModel) and door.in_process else None


def score_choices(
    model: LanguageModel, groups: Sequence[Rows], choices: Sequence[Rows], *, progress: Progress | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Natural log-probability of each of a few tokens behind every prompt; the prompts of a group are read once up to where they part.

    Args:
        model: needs "logprobs".
        groups: of prompts, rows of ids; each group has at least one prompt, each prompt at least one id.
        choices: for each prompt of each group as many ids, one at least.
        progress: called with (rows done, rows in all).

    Returns:
        For each group log-probabilities, float64 (prompts, choices), and whether a choice is the likeliest token of all, bool.

    Raises:
        CapabilityError, InputError, ContextOverflowError, NonFiniteError: as `score_continuations`.
    """
    model.require("logprobs", "The log-probability of a choice")
    door = _with_cache(model)
    vocabulary = door.vocab_size if door is not None else model.tokenizer.vocab_size
    if not groups or [len(group) for group in groups] != [len(group) for group in choices]:
        raise InputError(f"{len(groups)} groups of prompts and {len(choices)} of choices.", "Give each prompt its choices.")
    prompts = [check_rows(group, vocabulary, model.room, 1, "Prompt") for group in groups]
    offered = [np.stack(check_rows(group, vocabulary, model.room, 0, "Choices of prompt")) for group in choices]
    total = sum(map(len, prompts))
    out: list[tuple[np.ndarray, np.ndarray]] = []
    if door is not None:
        for rows, tokens in zip(prompts, offered, strict=True):
            found = _choices_behind_cache(door, rows, tokens)
            if found is None or (not out and not _agrees(found[0][0], _whole_choices(model, rows[:1], tokens[:1])[0][0])):
                break
            out.append(found)
            if progress:
                progress(sum(map(len, prompts[: len(out)])), total)
    done = len(out)
    if done < len(groups):
        rest = [row for group in prompts[done:] for row in group], np.concatenate(offered[done:])
        logprobs, hits = _whole_choices(model, *rest, progress=progress)
        cuts = np.cumsum([len(group) for group in prompts[done:]])[:-1]
        out += zip(np.split(logprobs, cuts), np.split(hits, cuts), strict=True)
    return out


def _agrees(short: np.ndarray, whole: np.ndarray) -> bool:
    return bool(np.all(np.abs(short - whole) <= _TOLERANCE * np.maximum(1.0, np.abs(whole))))


def _whole_choices(
    model: LanguageModel, rows: Sequence[np.ndarray], tokens: np.ndarray, *, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The plain way: every prompt once with each choice behind it."""
    whole = [np.append(row, token) for row, offered in zip(rows, tokens, strict=True) for token in offered]
    scores = model.score(whole, start=[len(row) - 1 for row in whole], progress=progress)
    logprobs = np.array([float(one[0]) for one in scores.logprobs]).reshape(tokens.shape)
    return logprobs, np.array([bool(one[0]) for one in scores.greedy_hits]).reshape(tokens.shape)


@torch.inference_mode()
def _choices_behind_cache(model: HFModel, rows: Sequence[np.ndarray], tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The short way; None where nothing is shared, or the model keeps nothing that can be copied."""
    common = _common(rows)
    if not model._head_is_positionwise or not common or len(rows) < 2:
        return None
    fed = np.concatenate([[model.tokenizer.bos_id] if model.prepends_bos else [], rows[0][:common]]).astype(np.int64)
    with picking(model.model, torch.tensor([len(fed) - 1], device=model.device)):
        first = model.model(input_ids=torch.from_numpy(fed[None]).to(model.device), use_cache=True, return_dict=True)
    cache: Any = getattr(first, "past_key_values", None)
    if not hasattr(cache, "batch_repeat_interleave"):
        return None
    own = [row[common:] for row in rows]
    logprobs, hits = np.empty(tokens.shape), np.empty(tokens.shape, bool)
    for batch in batches_by_length([len(row) for row in own], model.batch_tokens, max(1, _CACHED // len(fed))):
        logits = _continued(model, cache, len(fed), [own[i] for i in batch], last=True)
        if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            raise NonFiniteError(f"{model.name} returned logits that are not finite.", "Check the weights for NaN, or load it in float32.")
        wanted = torch.from_numpy(tokens[batch]).to(logits.device)
        logprobs[batch] = (logits.gather(-1, wanted) - logits.logsumexp(dim=-1, keepdim=True)).double().cpu().numpy()
        hits[batch] = (wanted == logits.argmax(dim=-1, keepdim=True)).cpu().numpy()
    return logprobs, hits


def _continued(model: HFModel, cache: Any, seen: int, rows: Sequence[np.ndarray], *, last: bool) -> torch.Tensor:
    """Logits, float32, of rows behind what a cache holds of `seen` tokens: of every token, one row after the other, or of the `last`."""
    kept = copy.deepcopy(cache)
    kept.batch_repeat_interleave(len(rows))
    tokens, mask, positions = pad(rows, "right", model.device)
    whole = torch.cat([torch.ones(len(rows), seen, dtype=mask.dtype, device=mask.device), mask], dim=1)
    width = mask.shape[1]
    ends = torch.tensor([number * width + len(row) - 1 for number, row in enumerate(rows)], device=model.device)
    with picking(model.model, ends if last else mask.flatten().nonzero()[:, 0]):
        logits: torch.Tensor = model.model(
            input_ids=tokens, attention_mask=whole, position_ids=positions + seen, past_key_values=kept, use_cache=True, return_dict=True
        ).logits[0]
    return logits.float()


def _whole(model: LanguageModel, head: np.ndarray, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The plain way: every prefix and continuation as one row."""
    return model.score([np.concatenate([head, row]) for row in rows], start=len(head)).logprobs


@torch.inference_mode()
def _behind_cache(model: HFModel, head: np.ndarray, rows: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The short way; None where the model keeps nothing that can be copied, or its head looks at more than one position."""
    if not model._head_is_positionwise:
        return None
    common = _common(rows)
    fed = np.concatenate([[model.tokenizer.bos_id] if model.prepends_bos else [], head, rows[0][:common]]).astype(np.int64)
    ids = torch.from_numpy(fed[None]).to(model.device)
    scored = np.arange(len(fed) - common - 1, len(fed))  # from the last token of the prefix on: they tell what begins every continuation
    with picking(model.model, torch.from_numpy(scored).to(model.device)):
        first = model.model(input_ids=ids, use_cache=True, return_dict=True)
    cache: Any = getattr(first, "past_key_values", None)
    if not hasattr(cache, "batch_repeat_interleave"):
        return None
    begun = first.logits[0]  # (common + 1, vocabulary)
    shared = _logprobs(model, begun[:-1], rows[0][:common])
    own = [row[common:] for row in rows]
    after = _logprobs(model, begun[-1:].expand(len(rows), -1), np.array([row[0] for row in own]))
    out = [np.concatenate([shared, after[i : i + 1]]) for i in range(len(rows))]
    longer = [i for i, row in enumerate(own) if len(row) > 1]
    for batch in batches_by_length([len(own[i]) for i in longer], model.batch_tokens, max(1, _CACHED // len(fed))):
        chosen = [own[longer[i]] for i in batch]
        logits = _continued(model, cache, len(fed), [row[:-1] for row in chosen], last=False)
        values = _logprobs(model, logits, np.concatenate([row[1:] for row in chosen]))
        for i, piece in zip(batch, np.split(values, np.cumsum([len(row) - 1 for row in chosen])[:-1]), strict=True):
            out[longer[i]] = np.concatenate([out[longer[i]], piece])
    return out


def _common(rows: Sequence[np.ndarray]) -> int:
    """Tokens with which all rows begin, at least one being left of each."""
    shortest = min(map(len, rows)) - 1
    block = np.stack([row[:shortest] for row in rows])
    differs = np.flatnonzero((block != block[0]).any(axis=0))
    return int(differs[0]) if len(differs) else shortest


def _logprobs(model: HFModel, logits: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    """Log-probability of each target (n,) under its row of logits (n, vocabulary), float64."""
    x = logits.float()
    realised = x.gather(-1, torch.from_numpy(targets.astype(np.int64))[:, None].to(x.device))[:, 0]
    values = (realised - x.logsumexp(dim=-1)).double().cpu().numpy()
    if np.isnan(values).any():  # minus infinity is the honest log-probability of an id that a model rules out
        raise NonFiniteError(f"{model.name} returned logits that are not finite.", "Check the weights for NaN, or load it in float32.")
    return values
