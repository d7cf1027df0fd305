"""What an engine has done, in numbers that a monitoring system can read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Distribution:
    """How often a value fell between which bounds.

    Attributes:
        bounds: upper ends of all intervals but the last, which has none; ascending.
        counts: values in each, one more than bounds.
        total: sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Their mean; None where there are none."""
        return self.total / self.count if self.count else None


class Histogram:
    """A `Distribution` that grows.

    Example:
        >>> histogram = Histogram((1.0, 2.0))
        >>> histogram.add(1.5)
        >>> histogram.read()
        Distribution(bounds=(1.0, 2.0), counts=(0, 1, 0), total=1.5)
    """

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds, self._counts, self._total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts a value; one on a bound belongs below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        """What has been counted so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


@dataclass(frozen=True)
class EngineMetrics:
    """The state of an engine at one moment; counts are since it was made.

    Attributes:
        running, waiting: requests that have a slot, and that wait for one.
        slots, queue: how many there may be of each.
        batched: whether requests share a forward pass.
        finished: answers by finish reason; "cancelled" and "error" are among them.
        rejected: requests that found the queue full.
        prompt_tokens, cached_tokens: tokens of prompts that were begun, BOS included, and those of them that the prefix cache held.
        completion_tokens: tokens written.
        steps: forward passes.
        step_seconds: what each took, choosing and sending included.
        queue_seconds: from a request's arrival to its slot.
        first_token_seconds: from its arrival to its first token.
        prefix_bytes, prefix_blocks, prefix_limit: what the prefix cache holds and may hold.
        guard: `GuardCounts` as a dictionary, empty without a guard.
    """

    running: int
    waiting: int
    slots: int
    queue: int
    batched: bool
    finished: Mapping[str, int]
    rejected: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    steps: int
    step_seconds: Distribution
    queue_seconds: Distribution
    first_token_seconds: Distribution
    prefix_bytes: int
    prefix_blocks: int
    prefix_limit: int
    guard: Mapping[str, int]

    @property
    def cancelled(self) -> int:
        """Requests whose client went away."""
        return self.finished.get("cancelled", 0)

    @property
    def errors(self) -> int:
        """Requests that failed."""
        return self.finished.get("error", 0)
