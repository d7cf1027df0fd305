"""The contract of a door to a causal language model.

A door scores given tokens and writes new ones. What it can do is said in `capabilities`:

* ``weights``  - hidden states and gradients can be had;
* ``logprobs`` - the log-probability of a given text can be had;
* ``text``     - text can be generated.

What a door cannot do raises `CapabilityError`; no measurement works around it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palimpsest.errors import CapabilityError, InputError
from palimpsest.tokenizer import Tokenizer

Progress = Callable[[int, int], None]  # (samples done, samples in all)
COLDEST = 1e-6  # logits divided by much less are no float32 any more, and what is drawn from them means nothing


@dataclass(frozen=True)
class Sampler:
    """A decoding scheme: softmax(logits / temperature), cut to `top_k`, then to the nucleus `top_p`, renormalised.

    The order is transformers' (temperature, top-k, top-p). `temperature=0` is greedy decoding: probability one on the
    argmax, the lowest id among ties.

    Raises:
        InputError: a temperature that is neither 0 nor in [`COLDEST`, infinity), top_k < 1, or top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature is {self.temperature}.", "Give a number >= 0 (0 is greedy).")
        if 0 < self.temperature < COLDEST or self.temperature == math.inf:
            raise InputError(f"temperature is {self.temperature}.", f"Give 0 for greedy decoding, or a finite number from {COLDEST} on.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}.", "Give an integer >= 1, or None for no cut.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}.", "Give a number in (0, 1], or None for no cut.")

    @property
    def greedy(self) -> bool:
        """Whether this scheme always takes the most probable token."""
        return self.temperature == 0 or self.top_k == 1

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        parts = [f"T={self.temperature:g}"]
        if self.top_k:
            parts.append(f"top-k {self.top_k}")
        if self.top_p:
            parts.append(f"top-p {self.top_p:g}")
        return ", ".join(parts)


GREEDY = Sampler(temperature=0.0)


@dataclass
class Scores:
    """What a model thinks of given token sequences; every list has one array per row.

    For a row of T ids scored from position `s` (at least 1) each array has T - s entries; entry j belongs to the id at
    position s + j, given all ids before it (and BOS, if the door prepends it).

    Attributes:
        logprobs: natural log-probability of the id, float32.
        greedy_hits: whether the id is the argmax (the lowest id among ties), bool.
        mean, var: mean and variance of the log-probability under the model's own softmax, float32; None unless asked for.
        sampled: for each sampler asked for, the log-probability of the id under that decoding scheme, float64; -inf where
            the scheme cuts the id away.
    """

    logprobs: list[np.ndarray]
    greedy_hits: list[np.ndarray]
    mean: list[np.ndarray] | None = None
    var: list[np.ndarray] | None = None
    sampled: dict[Sampler, list[np.ndarray]] = field(default_factory=dict)


class LanguageModel(ABC):
    """A door to a causal language model; see the module's docstring.

    Attributes:
        name: what the user calls the model.
        door: "hf", "gguf", "endpoint", …
        tokenizer: the model's `Tokenizer`.
        capabilities: a subset of {"weights", "logprobs", "text"}.
        context_length: the greatest number of tokens, BOS included, that the model can see.
        parameters: number of parameters, None when it cannot be known.
        prepends_bos: whether BOS is put before every sequence that is scored or continued.
    """

    name: str
    door: str
    tokenizer: Tokenizer
    capabilities: frozenset[str]
    context_length: int
    parameters: int | None
    prepends_bos: bool

    @property
    def room(self) -> int:
        """The most tokens of text that can be scored at once."""
        return self.context_length - int(self.prepends_bos)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over the parameters (or of the endpoint's address and model name)."""

    @abstractmethod
    def score(
        self,
        batch_ids: Sequence[Sequence[int] | np.ndarray],
        *,
        start: int | Sequence[int] = 1,
        moments: bool = False,
        samplers: Sequence[Sampler] = (),
        progress: Progress | None = None,
    ) -> Scores:
        """Scores every row in one teacher-forced pass; rows may differ in length and are batched inside.

        Args:
            batch_ids: rows of token ids, each of at least 1 token, without BOS.
            start: the first position that is scored, one for all rows or one a row; at least 1.
            moments: also return `mean` and `var`.
            samplers: decoding schemes whose processed log-probs are wanted.
            progress: called with (rows done, rows in all).

        Raises:
            CapabilityError: this door has no log-probs.
            InputError: an empty batch or row, an id outside the vocabulary, a wrong dtype.
            ContextOverflowError: a row is longer than the context.
            NonFiniteError: the model returned NaN.
        """

    def logprobs(self, batch_ids: Sequence[Sequence[int] | np.ndarray]) -> list[np.ndarray]:
        """Natural log-probability of every id but the first, one float32 array of T - 1 entries a row."""
        return self.score(batch_ids).logprobs

    @abstractmethod
    def generate(
        self,
        prefixes: Sequence[Sequence[int] | np.ndarray],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        n: int = 1,
        num_beams: int = 1,
        seed: int = 0,
        stop_at_eos: bool = True,
        processors: Sequence[Any] = (),
        progress: Progress | None = None,
    ) -> list[list[np.ndarray]]:
        """Continues every prefix `n` times.

        Args:
            prefixes: rows of token ids, without BOS.
            max_new_tokens: the most tokens written per continuation.
            temperature, top_k, top_p: see `Sampler`; temperature 0 is greedy.
            n: continuations per prefix (greedy gives n equal ones).
            num_beams: beam search with so many beams, when greater than 1 (temperature must be 0).
            seed: equal seeds give equal text on one machine.
            stop_at_eos: whether a continuation ends at EOS (EOS itself is not returned).
            processors: transformers `LogitsProcessor` objects, applied before the sampler.

        Returns:
            For each prefix its `n` continuations: int64 arrays of new ids, without the prefix.

        Raises:
            CapabilityError, InputError, ContextOverflowError, NonFiniteError: as for `score`.
        """

    def hidden_states(self, batch_ids: Sequence[Sequence[int] | np.ndarray], layers: Sequence[int]) -> list[dict[int, np.ndarray]]:
        """Hidden states after the given layers (0 is the embedding), per row a dict layer -> (time, hidden) float32.

        Raises:
            CapabilityError: this door has no weights.
        """
        raise self.lacks("weights", "hidden states")

    def require(self, capability: str, need: str) -> None:
        """Raises `CapabilityError` unless this door has `capability`; `need` says what for."""
        if capability not in self.capabilities:
            raise self.lacks(capability, need)

    def lacks(self, capability: str, need: str) -> CapabilityError:
        """The `CapabilityError` that says that this door cannot give `need`."""
        has = ", ".join(sorted(self.capabilities)) or "nothing"
        return CapabilityError(
            f"{need} needs {capability!r}, but the door {self.door!r} to {self.name!r} offers only {has}.",
            "Load the model from its weights (a folder, a hub id or a GGUF file) to measure this.",
        )

    def describe(self) -> dict[str, Any]:
        """The model's part of a provenance record."""
        return {
            "name": self.name,
            "door": self.door,
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
            "parameters": self.parameters,
            "context_length": self.context_length,
            "prepends_bos": self.prepends_bos,
            "capabilities": sorted(self.capabilities),
        }
