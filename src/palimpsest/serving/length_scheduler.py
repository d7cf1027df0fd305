"""S³: reserve cache by the predicted length of an answer, fill the memory with what fits, and recover from wrong predictions (090).

Jin, Wu, Brooks and Wei, "S³: Increasing GPU Utilization during Generative Inference for Higher Throughput", NeurIPS 2023, arXiv
2306.06000. Whoever does not know how long an answer will be reserves key-value cache for the longest, and few requests fit.

* **Predictor.** Lengths up to L are cut into B = 10 equal buckets; bucket i holds the lengths in (i L/B, (i+1) L/B]. A classifier reads
  the prompt and names a bucket; reserved is its **upper edge**. The paper tunes a DistilBERT; here multinomial logistic regression reads a
  sentence embedding, or hashed words where there is no embedder, and a few counts (words, lines, digits, the numbers named).
* **Scheduler.** At every step the waiting requests are visited from the largest reservation (prompt + predicted answer) down, and
  each that fits into what is free enters (decreasing first-fit). Those that end leave at once: batches are made anew for every
  iteration, without padding (Yu et al., Orca, OSDI 2022).
* **Supervisor.** A sequence that has filled its reservation and has not ended is **preempted**: its cache is given up, and it goes
  back to the queue with twice the room for its answer, at most the longest. What it has written is kept and its cache is computed anew
  (or swapped) on re-entry. The true lengths are kept, and the predictor learns from them when there is nothing to do.

Reservations are counted in tokens, bytes / bytes_per_token. Decreasing first-fit is the paper's form for throughput: under a steady stream
of small requests a large one can wait long. `max_batch` is its online form, a batch small enough for the latency that is promised
(`palimpsest.serving.step_cost.largest_batch`).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palimpsest.errors import InputError

Embed = Callable[[Sequence[str]], np.ndarray]
_NUMBERS = re.compile(r"\d{1,4}")
_HASHED = 2**12


class RequestTooLarge(InputError):
    """A request that does not fit the memory even when it is alone."""


@dataclass(frozen=True)
class Request:
    """A prompt that is to be answered.

    Attributes:
        number: which request.
        prompt_tokens: tokens of the prompt.
        max_new_tokens: the most tokens of an answer.
        output_tokens: tokens that the answer will have; None where only the model can tell.
        prompt: the text, for the predictor.
        arrival: seconds.
    """

    number: int
    prompt_tokens: int
    max_new_tokens: int
    output_tokens: int | None = None
    prompt: str = ""
    arrival: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("max_new_tokens", 1), ("arrival", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} is {getattr(self, name)} in request {self.number}.", f"Give at least {least}, and a finite number."
                )
        if self.output_tokens is not None and not 1 <= self.output_tokens <= self.max_new_tokens:
            raise InputError(
                f"Request {self.number} has output_tokens {self.output_tokens}.", f"Give 1 to max_new_tokens = {self.max_new_tokens}."
            )


Predictor = Callable[[Sequence[Request]], Sequence[int]]  # the most tokens that each answer is thought to have


def worst_case(requests: Sequence[Request]) -> list[int]:
    """The reservation of whoever knows nothing: the longest answer."""
    return [request.max_new_tokens for request in requests]


def oracle(requests: Sequence[Request]) -> list[int]:
    """The true lengths, where they are known.

    Raises:
        InputError: a request whose length is not known.
    """
    unknown = [request.number for request in requests if request.output_tokens is None]
    if unknown:
        raise InputError(f"The length of request {unknown[0]} is not known.", "Use another predictor.")
    return [int(request.output_tokens or 0) for request in requests]


@dataclass(frozen=True)
class Buckets:
    """`count` equal parts of (0, max_length].

    Example:
        >>> buckets = Buckets(512, 10)
        >>> buckets.of([1, 51, 52, 512, 600]).tolist(), buckets.edges([0, 9]).tolist()
        ([0, 0, 1, 9, 9], [52, 512])
    """

    max_length: int
    count: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.max_length:
            raise InputError(f"{self.count} buckets of lengths up to {self.max_length}.", "Give 1 to max_length buckets.")

    def of(self, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
        """The bucket of every length; longer ones fall into the last."""
        scaled = np.ceil(np.asarray(lengths) * self.count / self.max_length).astype(np.int64) - 1
        return scaled.clip(0, self.count - 1)

    def edges(self, buckets: Any) -> np.ndarray:
        """The upper edge of every bucket, rounded up to whole tokens."""
        return np.ceil((np.asarray(buckets) + 1) * self.max_length / self.count - 1e-9).astype(np.int64)

    def random(self, seed: int) -> Predictor:
        """A predictor that names a bucket by lot, equal for a request however often it is asked."""

        def predict(requests: Sequence[Request]) -> list[int]:
            drawn = [np.random.default_rng((seed, request.number)).integers(self.count) for request in requests]
            return [min(request.max_new_tokens, int(edge)) for request, edge in zip(requests, self.edges(drawn), strict=True)]

        return predict


class LengthPredictor:
    """Names the bucket of an answer's length from the prompt; made by `fit`.

    Attributes:
        buckets: the buckets.
        seen: (prompts, lengths) that it was fitted on.
        logged: (prompts, lengths) observed since.

    Example:
        >>> prompts = ["Name a fruit.", "Write a long story about a king."] * 20
        >>> predictor = LengthPredictor.fit(prompts, [3, 180] * 20, max_length=200)
        >>> predictor.allowances(["Name a fruit.", "Write a long story about a king."]).tolist()
        [20, 180]
    """

    def __init__(self, buckets: Buckets, embed: Embed | None, seed: int) -> None:
        self.buckets, self.embed, self.seed = buckets, embed, seed
        self.seen: tuple[list[str], list[int]] = ([], [])
        self.logged: tuple[list[str], list[int]] = ([], [])
        self._scale: Any = None
        self._model: Any = None

    @classmethod
    def fit(
        cls,
        prompts: Sequence[str],
        lengths: Sequence[int] | np.ndarray,
        *,
        max_length: int,
        buckets: int = 10,
        embed: Embed | None = None,
        seed: int = 0,
    ) -> LengthPredictor:
        """Learns from prompts and the lengths of their answers.

        Args:
            prompts: texts.
            lengths: tokens of every answer, at least 1; those above `max_length` are in the last bucket.
            max_length: the longest answer that will be allowed.
            buckets: their number B.
            embed: texts to vectors (n, d), such as a `MiniLM` on the first chunk of every text; None hashes words instead.
            seed: of the solver.

        Raises:
            InputError: no prompts, not one length each, or a length below 1.
        """
        predictor = cls(Buckets(max_length, buckets), embed, seed)
        predictor._learn(list(prompts), [int(length) for length in lengths])
        return predictor

    def _learn(self, prompts: list[str], lengths: list[int]) -> None:
        from scipy import sparse
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        if not prompts or len(prompts) != len(lengths) or min(lengths) < 1:
            raise InputError(
                f"There are {len(prompts)} prompts and {len(lengths)} lengths, the least {min(lengths, default=0)}.",
                "Give a length of at least 1 for every prompt, and one prompt or more.",
            )
        self.seen = (prompts, lengths)
        dense, words = self._features(prompts)
        self._scale = StandardScaler().fit(dense)
        scaled = self._scale.transform(dense)
        rows = scaled if words is None else sparse.hstack([words, sparse.csr_matrix(scaled)]).tocsr()
        target = self.buckets.of(lengths)
        if len(np.unique(target)) == 1:
            self._model = int(target[0])
            return
        # an embedding has hundreds of columns of unit variance, hashed words a few per text of length 1: each wants its own shrinkage
        self._model = LogisticRegression(C=0.003 if words is None else 1.0, max_iter=1000, random_state=self.seed).fit(rows, target)

    def predict(self, prompts: Sequence[str]) -> np.ndarray:
        """The bucket of every prompt's answer, int64."""
        from scipy import sparse

        if isinstance(self._model, int) or not len(prompts):
            return np.full(len(prompts), self._model if isinstance(self._model, int) else 0, np.int64)
        dense, words = self._features(prompts)
        scaled = self._scale.transform(dense)
        rows = scaled if words is None else sparse.hstack([words, sparse.csr_matrix(scaled)]).tocsr()
        return np.asarray(self._model.predict(rows), np.int64)

    def allowances(self, prompts: Sequence[str]) -> np.ndarray:
        """Tokens to reserve for every answer: the upper edge of its bucket."""
        return self.buckets.edges(self.predict(prompts))

    def __call__(self, requests: Sequence[Request]) -> list[int]:
        """The allowance of every request, at most what it may write."""
        found = self.allowances([request.prompt for request in requests])
        return [min(int(allowance), request.max_new_tokens) for allowance, request in zip(found, requests, strict=True)]

    def observe(self, prompt: str, length: int) -> None:
        """Notes how long an answer was; `retrain` learns from it."""
        self.logged[0].append(prompt)
        self.logged[1].append(length)

    def retrain(self) -> int:
        """Learns anew from all that was seen and logged; returns how many answers were new."""
        new = len(self.logged[0])
        if new:
            self._learn(self.seen[0] + self.logged[0], self.seen[1] + self.logged[1])
            self.logged = ([], [])
        return new

    def _features(self, prompts: Sequence[str]) -> tuple[np.ndarray, Any]:
        """Dense columns (n, d), and hashed words (n, 4096) sparse where there is no embedder."""
        counts = np.array([_counts(prompt) for prompt in prompts], np.float64)
        if self.embed is not None:
            return np.concatenate([np.asarray(self.embed(prompts), np.float64), counts], 1), None
        from sklearn.feature_extraction.text import HashingVectorizer

        return counts, HashingVectorizer(n_features=_HASHED, ngram_range=(1, 2), alternate_sign=False).transform(prompts)


def _counts(prompt: str) -> list[float]:
    """Words, characters, lines, sentences, whether something is asked, numbers, and the least of them ("list 5 …")."""
    numbers = [int(found) for found in _NUMBERS.findall(prompt)]
    sentences = sum(prompt.count(mark) for mark in ".!?")
    sizes = [math.log1p(value) for value in (len(prompt.split()), len(prompt), min(numbers, default=0))]
    return [*sizes, float(prompt.count("\n")), float(sentences), float("?" in prompt), float(len(numbers))]


@dataclass
class Reservation:
    """A request with its room in the cache.

    Attributes:
        request: the request.
        allowance: tokens that the answer may have before it is preempted.
        written: tokens written so far.
        preemptions: how often it was preempted.
        order: the place at which it came.
    """

    request: Request
    allowance: int
    order: int
    written: int = 0
    preemptions: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of cache that are reserved."""
        return self.request.prompt_tokens + self.allowance

    @property
    def cached(self) -> int:
        """Tokens of cache in use while it runs."""
        return self.request.prompt_tokens + self.written


@dataclass
class S3Scheduler:
    """Who runs: decreasing first-fit into the memory.

    Args:
        memory: bytes for key-value cache.
        bytes_per_token: bytes that a token takes in all layers.
        predictor: the tokens to reserve for answers.
        max_batch: the most requests at once; None for no limit.

    Attributes:
        running: reservations that hold memory, in the order in which they entered.
        reserved: tokens that they hold together; never above `capacity`.

    Raises:
        InputError: memory, bytes_per_token or max_batch below 1.

    Example:
        >>> scheduler = S3Scheduler(memory=100, bytes_per_token=1, predictor=worst_case)
        >>> scheduler.submit([Request(number, 10, length) for number, length in enumerate((20, 70, 40))])
        >>> [entered.request.number for entered in scheduler.admit()]
        [1]
    """

    memory: int
    bytes_per_token: int
    predictor: Predictor
    max_batch: int | None = None
    running: list[Reservation] = field(default_factory=list, init=False)
    reserved: int = field(default=0, init=False)
    _waiting: list[tuple[int, int, Reservation]] = field(default_factory=list, init=False)
    _count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("memory", "bytes_per_token"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Give at least 1.")
        if self.max_batch is not None and self.max_batch < 1:
            raise InputError(f"max_batch is {self.max_batch}.", "Give at least 1, or None.")

    @property
    def capacity(self) -> int:
        """Tokens of cache that the memory holds."""
        return self.memory // self.bytes_per_token

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def submit(self, requests: Sequence[Request]) -> None:
        """Predicts and queues requests.

        Raises:
            RequestTooLarge: one whose prompt and longest answer do not fit the memory: it could not be finished for certain.
            InputError: the predictor does not give 1 to max_new_tokens for every request.
        """
        for request in requests:
            if request.prompt_tokens + request.max_new_tokens > self.capacity:
                raise RequestTooLarge(
                    f"Request {request.number} may need {request.prompt_tokens} + {request.max_new_tokens} tokens of cache, "
                    f"the memory holds {self.capacity}.",
                    "Lower its max_new_tokens, shorten its prompt, or give more memory.",
                )
        allowances = [int(allowance) for allowance in self.predictor(requests)] if requests else []
        if len(allowances) != len(requests) or any(not 1 <= a <= r.max_new_tokens for a, r in zip(allowances, requests, strict=False)):
            raise InputError(f"The predictor gave {allowances[:5]} for {len(requests)} requests.", "Give 1 to max_new_tokens for each.")
        for request, allowance in zip(requests, allowances, strict=True):
            self._queue(Reservation(request, allowance, self._count))
            self._count += 1

    def admit(self) -> list[Reservation]:
        """Those that enter now: always the largest that fits, the earlier first among equals, until none does."""
        entered = []
        while self._waiting and (self.max_batch is None or len(self.running) < self.max_batch):
            place = bisect_right(self._waiting, self.capacity - self.reserved, key=lambda entry: entry[0])
            if not place:
                break
            reservation = self._waiting.pop(place - 1)[2]
            self.reserved += reservation.tokens
            self.running.append(reservation)
            entered.append(reservation)
        return entered

    def leave(self, reservation: Reservation) -> None:
        """Gives back the memory of one that runs."""
        self.running.remove(reservation)
        self.reserved -= reservation.tokens

    def requeue(self, reservation: Reservation, allowance: int) -> None:
        """Preempts one that runs: it waits again, with another allowance."""
        self.leave(reservation)
        reservation.allowance = allowance
        self._queue(reservation)

    def _queue(self, reservation: Reservation) -> None:
        # ascending by size, and among equals the latest first: the last entry that fits is the one to take
        insort(self._waiting, (reservation.tokens, -reservation.order, reservation), key=lambda entry: entry[:2])


@dataclass
class Supervisor:
    """Watches what runs: finishes, preempts, and keeps the true lengths.

    Args:
        scheduler: whose requests.
        retrain: a predictor that learns from the true lengths in idle time; None for one that stays as it is.

    Attributes:
        finished: reservations that ended, in that order.
        preemptions: how often something was preempted.
    """

    scheduler: S3Scheduler
    retrain: LengthPredictor | None = None
    finished: list[Reservation] = field(default_factory=list, init=False)
    preemptions: int = field(default=0, init=False)

    def after_step(self, reservation: Reservation, written: int, ended: bool) -> str:
        """What becomes of one that runs, after it has written.

        Args:
            reservation: one that runs.
            written: tokens that it has written in all.
            ended: whether the model ended its text.

        Returns:
            "running", "finished" or "preempted".

        Raises:
            InputError: it wrote beyond its reservation, which no memory was kept for.
        """
        if written > reservation.allowance:
            raise InputError(
                f"Request {reservation.request.number} wrote {written} tokens, {reservation.allowance} were reserved.",
                "Call after_step after every step.",
            )
        reservation.written = written
        if ended or written >= reservation.request.max_new_tokens:
            self.scheduler.leave(reservation)
            self.finished.append(reservation)
            if self.retrain is not None:
                self.retrain.observe(reservation.request.prompt, max(1, written))
            return "finished"
        if written < reservation.allowance:
            return "running"
        self.preemptions += 1
        reservation.preemptions += 1
        self.scheduler.requeue(reservation, min(2 * reservation.allowance, reservation.request.max_new_tokens))
        return "preempted"

    def idle(self) -> int:
        """To be called when there is nothing to do: the predictor learns; returns how many answers were new to it."""
        return self.retrain.retrain() if self.retrain is not None else 0
