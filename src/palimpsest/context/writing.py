"""Writing on from a long text: read in chunks, then decoded token by token, with or without a context method, and what both cost.

`model.generate` under a method runs the prompt in one forward pass; here the prompt is read by `prefill`, so that memory is bounded by
budget and chunk, and every token is given out as soon as it is chosen. Greedy, or drawn by inversion with a generator seeded as
`HFModel.generate` seeds it: without a method and in one chunk the tokens are those of `model.generate([ids], …, seed=seed)`.

A method that selects for a question (its session has `read`, as CItruS) is given document and question apart; any other reads one after
the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.context.attach import unwrap
from palimpsest.context.prefill import prefill
from palimpsest.context.session import layer_bytes
from palimpsest.errors import InputError, NonFiniteError
from palimpsest.models.base import Sampler
from palimpsest.models.sampler_scores import warpers


@dataclass(frozen=True)
class Read:
    """A text that was read, with the logits of what comes next.

    Attributes:
        cache: what `prefill` goes on with.
        logits: (1, vocabulary).
        nbytes, peak_bytes: of the cache, now and at most.
    """

    cache: Any
    logits: Tensor
    nbytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Written:
    """A continuation and what it cost.

    Attributes:
        ids: int64, without the id that ended it.
        prompt_tokens: tokens read.
        prefill_seconds, decode_seconds: of reading; of all tokens after it.
        decoded: forward passes of single tokens.
        prefill_bytes, peak_bytes, bytes: of the cache after reading, at most, at the end.
        ended: whether an id that ends a text came.
    """

    ids: np.ndarray
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    decoded: int
    prefill_bytes: int
    peak_bytes: int
    bytes: int
    ended: bool

    def to_dict(self) -> dict[str, Any]:
        """The costs, with speeds in tokens a second (None where no time was taken), without the ids."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": len(self.ids),
            "ended": self.ended,
            "prefill_tokens_per_second": self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else None,
            "decode_tokens_per_second": self.decoded / self.decode_seconds if self.decoded and self.decode_seconds else None,
            "cache_bytes": {"prefill": self.prefill_bytes, "peak": self.peak_bytes, "end": self.bytes},
        }


def read_for(session: Any, document: Tensor, question: Tensor, chunk: int) -> Read:
    """Reads a document and a question behind it; a session that selects for questions (it has `read`) gets them apart.

    Args:
        session: a `Session`, or a model without a method.
        document, question: ids, (1, tokens); for any other session the document may be empty.
        chunk: tokens in one forward pass.
    """
    if not hasattr(session, "read"):
        found = prefill(session, torch.cat([document, question], dim=1), chunk)
        assert found.logits is not None
        return Read(found.cache, found.logits[:, -1], found.nbytes, found.peak_bytes)
    session.reset_peak()
    session.read(document, question)
    held, peak = session.nbytes(), session.peak_bytes
    found = prefill(session, question[:, -1:], 1, cache=session.cache)  # its last token is not in the cache yet
    assert found.logits is not None
    return Read(found.cache, found.logits[:, -1], held, max(peak, found.peak_bytes))


def write_on(
    session: Any,
    question: Sequence[int] | np.ndarray,
    max_new_tokens: int,
    *,
    document: Sequence[int] | np.ndarray = (),
    sampler: Sampler | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    chunk: int = 256,
    on_token: Callable[[int], None] | None = None,
) -> Written:
    """Reads a document and a question, or just a prompt, and writes on.

    Args:
        session: a `Session`, or a model without a method (a transformers model or a door).
        question: the ids that the continuation follows, at least one.
        max_new_tokens: the most tokens written.
        document: ids that stand before them.
        sampler: None takes the likeliest token.
        seed: of the drawing.
        stop_ids: ids that end a text.
        chunk: tokens in one forward pass of reading.
        on_token: called with each new id as soon as it is chosen.

    Raises:
        InputError: nothing to go on from, or max_new_tokens < 1.
        NonFiniteError: the model's logits are not finite.

    Example:
        >>> with InfLLM(n_local=1024)(model) as session:                                # doctest: +SKIP
        ...     text = write_on(session, model.tokenizer.encode("Who wrote it?"), 50, document=book)
    """
    if len(question) == 0 or max_new_tokens < 1:
        raise InputError(f"There are {len(question)} tokens to go on from, and {max_new_tokens} to write.", "Give at least one of each.")
    sampler = sampler or Sampler(0.0)
    device = unwrap(getattr(session, "model", session)).device
    before, asked = (torch.tensor([[int(i) for i in ids]], dtype=torch.long, device=device) for ids in (document, question))
    generator = np.random.Generator(np.random.PCG64((seed, 0, 0)))
    began = time.perf_counter()
    read = read_for(session, before, asked, chunk)
    ready = time.perf_counter()
    logits, cache, peak, decoded, ended = read.logits, read.cache, read.peak_bytes, 0, False
    ids: list[int] = []
    while True:
        token = _choose(logits, sampler, generator, len(ids))
        if token in stop_ids:
            ended = True
            break
        ids.append(token)
        if on_token:
            on_token(token)
        if len(ids) == max_new_tokens:
            break
        step = prefill(session, torch.tensor([[token]], device=device), 1, cache=cache)
        assert step.logits is not None
        logits, peak, decoded = step.logits[:, -1], max(peak, step.peak_bytes), decoded + 1
    took = time.perf_counter() - ready
    held = sum(layer_bytes(layer) for layer in cache.layers)
    total = len(document) + len(question)
    return Written(np.array(ids, np.int64), total, ready - began, took, decoded, read.nbytes, peak, held, ended)


def _choose(logits: Tensor, sampler: Sampler, generator: np.random.Generator, place: int) -> int:
    """The id of one step: the likeliest, or the one whose share of the cumulative distribution holds a uniform number."""
    scores = logits.float()
    if not bool(torch.isfinite(scores.amax())):
        raise NonFiniteError(
            f"The model's logits are not finite for new token {place}.", "Check the weights for NaN, or load the model in float32."
        )
    if sampler.temperature == 0:
        return int(scores.argmax())
    for warp in warpers(sampler):
        scores = warp(None, scores)  # type: ignore[arg-type, assignment]
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    uniform = torch.tensor([[generator.random()]], dtype=torch.float64, device=scores.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return min(int(drawn), scores.shape[-1] - 1)
