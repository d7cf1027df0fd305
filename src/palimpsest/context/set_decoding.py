"""Generating and scoring behind a prompt whose sets have no order: the model's side of `set_prompting` (system 049).

The mask and the positions are handed to a model's own forward pass, in which nothing is changed: for scoring directly, for generating by
a hook in front of it, so that sampling, beams and guards are those of `LanguageModel.generate`. Behind the prompt every token has the next
position and sees everything; the cache holds more tokens than there are positions, so that positions cannot be counted from it.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from palimpsest.context.set_masks import EncodedSets, additive, check_architecture, keep_everything
from palimpsest.context.set_prompting import SetPrompt
from palimpsest.errors import ContextOverflowError, InputError, NonFiniteError, UnsupportedModelError
from palimpsest.models import HFModel, LanguageModel
from palimpsest.models.base import Progress
from palimpsest.models.batching import batches_by_length
from palimpsest.models.hf import picking
from palimpsest.models.score_cache import ScoreCache

_KEEPS: weakref.WeakKeyDictionary[Any, dict[str, bool]] = weakref.WeakKeyDictionary()  # model -> its attention -> is order nothing?


def generate(model: LanguageModel, prompt: SetPrompt, max_new_tokens: int, *, canonical: bool = False, **options: Any) -> list[np.ndarray]:
    """Continues a prompt whose sets have no order.

    Args:
        model: a transformers model behind its door.
        prompt: what to continue.
        max_new_tokens: the most tokens written.
        canonical: sort the pieces first, so that the output is the same to the bit.
        options: temperature, top_k, top_p, n, num_beams, seed, stop_at_eos and processors of `LanguageModel.generate`.

    Returns:
        n continuations, int64.

    Raises:
        CapabilityError, UnsupportedModelError: as `require_sets`.
        InputError, ContextOverflowError, NonFiniteError: as `encode` and `LanguageModel.generate`.

    Example:
        >>> generate(model, SetPrompt(["Pick one:", [" tea", " milk"], "\\nI pick"]), 5)      # doctest: +SKIP
    """
    door = require_sets(model)
    encoded = prompt.encode(door.tokenizer, _bos(door), canonical=canonical)
    with _steered(door, encoded):
        return door.generate([encoded.ids[int(door.prepends_bos) :]], max_new_tokens, **options)[0]


def choice_logprobs(
    model: LanguageModel,
    prompts: Sequence[SetPrompt],
    choices: Sequence[Sequence[str]],
    *,
    canonical: bool = False,
    apart: bool = True,
    parallel: bool = True,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Natural log-probability of every choice behind its prompt, in one pass a prompt: the choices are one more set, behind the prompt.

    Args:
        model: a transformers model behind its door.
        prompts: at least one.
        choices: for each prompt its texts, with the blank before them where there is one.
        canonical: sort the pieces of the prompt first.
        apart, parallel: as in `SetPrompt.encode`; both False is the plain prompt, one of them False an ablation.
        progress: called with (prompts done, prompts in all).

    Returns:
        For each prompt one float64 array, the sum over the tokens of each choice.

    Raises:
        CapabilityError, UnsupportedModelError: as `require_sets`.
        InputError: no prompt, not as many sets of choices, or a choice without a token.
        ContextOverflowError: a prompt and its choices do not fit the context.
        NonFiniteError: the model returned NaN.
    """
    door = require_sets(model)
    if not prompts or len(prompts) != len(choices):
        raise InputError(f"There are {len(prompts)} prompts and {len(choices)} sets of choices.", "Give each prompt its choices.")
    rows, asked = [], []
    for number, (prompt, texts) in enumerate(zip(prompts, choices, strict=True)):
        tails = door.tokenizer.encode_batch(texts)
        if not tails or not all(tails):
            raise InputError(f"Prompt {number} has no choice, or one without a token: {list(texts)!r}.", "Give text that is not empty.")
        encoded = prompt.encode(door.tokenizer, _bos(door), canonical=canonical, apart=apart, parallel=parallel)
        row = encoded.with_set(tails)
        if len(row) > door.context_length:
            raise ContextOverflowError(
                f"Prompt {number} and its choices have {len(row)} tokens, but the model sees at most {door.context_length}.",
                "Give fewer or shorter pieces.",
            )
        rows.append(row)
        asked.append((len(encoded), tails))
    out: list[np.ndarray] = [np.empty(0)] * len(rows)
    done = 0
    for batch in batches_by_length([len(row) for row in rows], door.batch_tokens):
        own = [asked[number][1] for number in batch]  # for each prompt the ids of each choice
        logits = _logits(door, [rows[number] for number in batch], [_tellers(*asked[number]) for number in batch])
        targets = torch.tensor([token for tails in own for tail in tails for token in tail], device=logits.device)
        told = (logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)).double().cpu().numpy()
        if np.isnan(told).any():  # minus infinity is the honest log-probability of an id that a model rules out
            raise NonFiniteError(f"{door.name} returned logits that are not finite.", "Check the weights for NaN, or load it in float32.")
        sizes = [len(tail) for tails in own for tail in tails]
        sums = iter(np.add.reduceat(told, np.cumsum([0, *sizes[:-1]])))
        for number, tails in zip(batch, own, strict=True):
            out[number] = np.array([next(sums) for _ in tails])
        done += len(batch)
        if progress:
            progress(done, len(rows))
    return out


def require_sets(model: LanguageModel) -> HFModel:
    """The door to a model to which order can be made nothing: its architecture is looked at, and two orders of a few ids are tried out.

    Raises:
        CapabilityError: the weights are not at hand.
        UnsupportedModelError: the attention takes no mask, positions cannot be given, or the two orders differ.
    """
    door = model.behind if isinstance(model, ScoreCache) else model
    door.require("weights", "A prompt whose sets have no order")
    if not isinstance(door, HFModel):
        raise door.lacks("weights", "A prompt whose sets have no order")
    check_architecture(door.model)
    known = _KEEPS.setdefault(door.model, {})
    implementation = str(door.model.config.get_text_config()._attn_implementation)
    if implementation not in known:
        known[implementation] = _order_is_nothing(door)
    if not known[implementation]:
        raise UnsupportedModelError(
            f"{door.name} answers two orders of one set differently: it does not follow the mask or the positions that it is given.",
            "Use a decoder of attention with rotary or learned positions, such as Llama, Qwen, Gemma, Mistral or GPT-NeoX.",
        )
    return door


def _order_is_nothing(door: HFModel) -> bool:
    """Whether the logits behind two pieces are the same in both orders."""
    ids = np.arange(9) % door.vocab_size
    found = []
    for pieces in ((ids[2:4], ids[4:7]), (ids[4:7], ids[2:4])):
        encoded = EncodedSets.empty().with_text(ids[:2]).with_set(pieces).with_text(ids[7:])
        try:
            found.append(_logits(door, [encoded], [np.array([len(encoded) - 1])])[0])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False  # the model's own forward pass cannot do with such a mask or such positions
    tolerance = 1e-4 if door.model.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((found[0] - found[1]).abs().max() <= tolerance * found[0].abs().max())


def _tellers(length: int, tails: Sequence[Sequence[int]]) -> np.ndarray:
    """Where the logits of every token of every choice stand: the first is told by the last token of the prompt, the others by their own."""
    ends = np.cumsum([length, *map(len, tails)])
    return np.concatenate([np.r_[length - 1, np.arange(start, end - 1)] for start, end in itertools.pairwise(ends)])


@torch.inference_mode()
def _logits(door: HFModel, rows: Sequence[EncodedSets], places: Sequence[np.ndarray]) -> torch.Tensor:
    """Logits (all places, vocabulary), float32, behind the tokens at the places of each row."""
    width = max(map(len, rows))
    ids, positions = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(2))
    for index, row in enumerate(rows):
        ids[index, : len(row)], positions[index, : len(row)] = torch.from_numpy(row.ids), torch.from_numpy(row.positions)
    given = {"input_ids": ids.to(door.device), "position_ids": positions.to(door.device), "attention_mask": additive(door.model, rows)}
    flat = torch.from_numpy(np.concatenate([index * width + at for index, at in enumerate(places)])).to(door.device)
    if door._head_is_positionwise:
        with picking(door.model, flat):
            return door.model(**given, use_cache=False, return_dict=True).logits[0].float()
    logits = door.model(**given, use_cache=False, return_dict=True).logits
    return logits.reshape(-1, logits.shape[-1])[flat].float()


@contextmanager
def _steered(door: HFModel, encoded: EncodedSets) -> Iterator[None]:
    """Every forward pass of this thread reads its tokens as `encoded` and what was written behind it say."""
    caller = threading.get_ident()
    base = door.model.base_model  # which a shared beginning is read with directly
    names = list(inspect.signature(base.forward).parameters)

    def steer(_: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if threading.get_ident() != caller:  # another thread is using the same model
            return None
        given = {**dict(zip(names, args, strict=False)), **given}
        ids, cache = given["input_ids"], given.get("past_key_values")
        if cache is None and given.get("use_cache"):
            cache = given["past_key_values"] = DynamicCache(config=door.model.config)
        held = cache.get_seq_length() if cache is not None else 0
        if cache is not None and not held:
            keep_everything(cache)
        grown = encoded.resized(held + ids.shape[1])
        positions = torch.from_numpy(grown.positions[held:]).to(ids.device)
        return (), given | {
            "position_ids": positions.expand(len(ids), -1),
            "attention_mask": additive(door.model, [grown], held),  # one for all rows: they are copies of one prompt
        }

    hook = base.register_forward_pre_hook(steer, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _bos(door: HFModel) -> int | None:
    return door.tokenizer.bos_id if door.prepends_bos else None
