"""What is asked of the engine, and what comes back: values that the HTTP layer and the engine share.

A `GenerationRequest` is one continuation of one prompt; several continuations are several requests. Its answer arrives as `Piece`s,
the last of which has a `finish_reason`:

* ``stop`` - the model wrote an id that ends a text, or one of the request's stop strings came up (its text is cut before it);
* ``length`` - `max_new_tokens` are written;
* ``content_filter`` - everything that could follow is forbidden by the guard, so that the text ends here;
* ``cancelled`` - the one who asked went away;
* ``aborted`` - the engine shut down;
* ``error`` - the request failed, and `Piece.error` says why; others are not touched by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from palimpsest.errors import InputError, PalimpsestError
from palimpsest.models.base import Sampler

FinishReason = Literal["stop", "length", "content_filter", "cancelled", "aborted", "error"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to continue it.

    Attributes:
        prompt_ids: token ids without BOS, which the engine puts in front where the model wants it; at least one.
        max_new_tokens: the most tokens written; 0 only with `echo`.
        temperature, top_p, top_k: see `palimpsest.models.Sampler`; temperature 0 is greedy.
        seed: the same request with the same seed gives the same text, whatever else is under way: that of
            `HFModel.generate([prompt_ids], …, seed=seed)`.
        stop: strings that end the text, without becoming part of it.
        stop_at_eos: whether the model's own end-of-text ids end the text.
        logprobs: how many alternatives to report at every position, beside the token itself; None reports nothing.
        echo: whether the prompt comes back first as a piece of its own, with its log-probs if `logprobs` is given.
        logit_bias: what is added to the logits of single ids.
        presence_penalty: what the logit of an id loses once it has been written.
        frequency_penalty: what it loses for each time that it has been written.
        guard: whether the engine's guard watches this request; None is yes where the engine has one.
        prefix_key: requests share cached prefixes only with requests of the same key. How long a first token takes tells whether a
            prefix was cached: give each party a key of its own where that must not be told.

    Raises:
        InputError: a value of the wrong type or range.

    Example:
        >>> GenerationRequest([1, 2, 3], max_new_tokens=8).temperature
        0.0
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int = 16
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_at_eos: bool = True
    logprobs: int | None = None
    echo: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    guard: bool | None = None
    prefix_key: str | None = None

    def __post_init__(self) -> None:
        prompt = np.asarray(self.prompt_ids)
        if prompt.ndim != 1 or not prompt.size or not np.issubdtype(prompt.dtype, np.integer):
            raise InputError(f"The prompt has shape {prompt.shape} and type {prompt.dtype}.", "Give a flat list of at least one token id.")
        object.__setattr__(self, "prompt_ids", tuple(prompt.tolist()))
        least = 0 if self.echo else 1
        if not _whole(self.max_new_tokens) or self.max_new_tokens < least:
            raise InputError(f"max_new_tokens is {self.max_new_tokens!r}.", f"Give an integer of at least {least}.")
        if not _number(self.temperature):
            raise InputError(f"temperature is {self.temperature!r}.", "Give a number >= 0 (0 is greedy).")
        Sampler(self.temperature, self.top_k, self.top_p)
        if not _whole(self.seed) or self.seed < 0:
            raise InputError(f"seed is {self.seed!r}.", "Give an integer >= 0.")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop is {self.stop!r}.", "Give strings of at least one character.")
        object.__setattr__(self, "stop", stop)
        if self.logprobs is not None and (not _whole(self.logprobs) or self.logprobs < 0):
            raise InputError(f"logprobs is {self.logprobs!r}.", "Give the number of alternatives, an integer >= 0, or None.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not _number(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)!r}.", "Give a finite number.")
        for token, bias in self.logit_bias.items():
            if not _whole(token) or not _number(bias):
                raise InputError(f"logit_bias holds {token!r}: {bias!r}.", "Give a finite number for a token id.")
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))

    @property
    def sampler(self) -> Sampler:
        """The decoding scheme."""
        return Sampler(self.temperature, self.top_k, self.top_p)


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of one token under the model, without what the guard forbids, before bias, penalties and temperature.

    Attributes:
        token_id: the token that was written.
        logprob: its log-probability; NaN only for the first id of an echoed prompt, which nothing precedes.
        top: the likeliest ids and their log-probabilities, greatest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        token_ids: the tokens written since the last piece, without what ends the text. A token that is only a part of a character,
            or whose text may be the beginning of a stop string, comes with a later piece.
        text: what they add to the text.
        logprobs: one entry a token, None unless asked for.
        finish_reason: None but for the last piece.
        error: what went wrong, where `finish_reason` is "error".
        echo: whether this piece is the prompt.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    error: PalimpsestError | None = None
    echo: bool = False


@dataclass(frozen=True)
class Usage:
    """What a request has cost so far.

    Attributes:
        prompt_tokens: tokens of the prompt, BOS included.
        cached_tokens: how many of them came out of the prefix cache.
        completion_tokens: tokens written, as they stand in the pieces.
        guard_interventions: tokens that would have been another one without the guard.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    guard_interventions: int = 0
