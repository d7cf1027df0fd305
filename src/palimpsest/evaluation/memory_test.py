"""Is it a memory? The operational definition of system 104 as four tests.

A state is a memory of what was written when it persists, can be addressed, and stably influences outputs. With a write W, cues c, a
target y and score s = log p(y | c), the *gain* of an item is the score after W minus the score without it. Then the state is

* **influential** when the mean gain is positive;
* **addressable** when the gain for an item's own cues exceeds that for cues which have nothing to do with it;
* **persistent** when the gain is still positive beyond a boundary that is declared: a new forward pass, a new session, a restart, or
  so many other writes;
* **stable** when the gain exceeds that for unrelated cues for every paraphrase of the cue (at least 3) and for every seed (at least 3): a
  name that was heard is likelier after any cue, and that is no memory of what was said.

Each is a paired permutation test over items at level α: the first three are corrected together by Holm, so are the paraphrases and seeds.
That there was a write is no test but the design: the same scores without it are the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from palimpsest.errors import InputError
from palimpsest.stats import Comparison, Interval, bootstrap_interval, holm, paired_permutation

_LEAST = 3  # paraphrases and seeds that stability takes


class Boundary(StrEnum):
    """Beyond what a memory is to persist."""

    FORWARD_PASS = "new forward pass"
    SESSION = "new session"
    RESTART = "restart"
    OTHER_WRITES = "other writes"


@dataclass(frozen=True)
class Probe:
    """Scores log p(target | cue), with and without the write.

    Attributes:
        without, after, later: (items, paraphrases, seeds) for own cues: before the write, after it, and beyond the boundary.
        unrelated_without, unrelated_after: (items, cues, seeds) for cues that have nothing to do with the item.
        boundary: what lies between `after` and `later`.
        other_writes: how many, when that is the boundary.

    Raises:
        InputError: arrays that do not fit together, NaN, or fewer than 3 paraphrases or seeds.
    """

    without: np.ndarray
    after: np.ndarray
    later: np.ndarray
    unrelated_without: np.ndarray
    unrelated_after: np.ndarray
    boundary: Boundary
    other_writes: int = 0

    def __post_init__(self) -> None:
        for name in ("without", "after", "later", "unrelated_without", "unrelated_after"):
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if array.ndim != 3 or array.size == 0 or not np.isfinite(array).all():
                raise InputError(f"{name} has shape {array.shape} or holds NaN.", "Give finite numbers (items, cues, seeds).")
            object.__setattr__(self, name, array)
        own, other = self.without.shape, self.unrelated_without.shape
        if not own == self.after.shape == self.later.shape or other != self.unrelated_after.shape or own[::2] != other[::2]:
            raise InputError(
                f"The shapes {own}, {self.after.shape}, {self.later.shape} and {other}, {self.unrelated_after.shape} do not fit together.",
                "Give the same items, cues and seeds with and without the write.",
            )
        if min(own[1:]) < _LEAST:
            raise InputError(f"There are {own[1]} paraphrases and {own[2]} seeds.", f"Stability takes at least {_LEAST} of each.")
        if (self.boundary is Boundary.OTHER_WRITES) != (self.other_writes > 0):
            raise InputError(
                f"The boundary is {self.boundary.value} with {self.other_writes} other writes.", "Say how many writes lie between."
            )


@dataclass(frozen=True)
class Verdict:
    """Which of the four properties were shown, each with its test.

    Attributes:
        influential, addressable, persistent, stable: whether they were shown.
        gain: mean gain, with its test.
        specificity: gain for own cues beyond that for unrelated ones.
        retained: gain beyond the boundary, with its test.
        retention: share of the gain that is left beyond the boundary; None where there was no gain to lose.
        stability: the test of every paraphrase and of every seed, against unrelated cues.
        alpha: level of the tests.
    """

    influential: bool
    addressable: bool
    persistent: bool
    stable: bool
    gain: Comparison
    specificity: Comparison
    retained: Comparison
    retention: Interval | None
    stability: dict[str, Comparison]
    alpha: float

    @property
    def is_memory(self) -> bool:
        """Whether all four were shown."""
        return self.influential and self.addressable and self.persistent and self.stable

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON types."""
        tests = {name: getattr(self, name).to_dict() for name in ("gain", "specificity", "retained")}
        return {
            **{name: getattr(self, name) for name in ("influential", "addressable", "persistent", "stable", "is_memory", "alpha")},
            **tests,
            "retention": self.retention._asdict() if self.retention else None,
            "stability": {name: test.to_dict() for name, test in self.stability.items()},
        }


def is_memory(probe: Probe, *, alpha: float = 0.05, draws: int = 10_000, seed: int = 0) -> Verdict:
    """Tests whether what a probe wrote is a memory.

    Args:
        probe: scores of the items; see `run_probe`.
        alpha: level of the tests.
        draws, seed: of the permutation tests.

    Returns:
        The verdict. A property that is not shown is not thereby shown to be absent.

    Raises:
        InputError: so few items that the tests could not come out.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> noise = lambda: rng.normal(size=(20, 3, 3))
        >>> base, other = noise(), noise()
        >>> probe = Probe(base, base + 3 + 0.1 * noise(), base + 2 + 0.1 * noise(), other, other, Boundary.SESSION)
        >>> is_memory(probe).is_memory
        True
    """
    items, paraphrases, seeds = probe.without.shape
    family = max(3, paraphrases + seeds)
    if 2.0 ** (1 - items) * family > alpha:
        raise InputError(f"With {items} items none of {family} tests can reach {alpha}.", "Give more items; 20 or more are sensible.")
    gains, kept = probe.after - probe.without, probe.later - probe.without
    unrelated = (probe.unrelated_after - probe.unrelated_without).mean(axis=(1, 2))
    zero = np.zeros(items)
    gain, retained = gains.mean(axis=(1, 2)), kept.mean(axis=(1, 2))
    tests = [paired_permutation(one, two, draws=draws, seed=seed) for one, two in ((zero, gain), (unrelated, gain), (zero, retained))]
    influential, addressable, persistent = _shown(tests, alpha)
    by_seed = (probe.unrelated_after - probe.unrelated_without).mean(axis=1)  # (items, seeds)
    parts = {f"paraphrase {p}": (unrelated, gains[:, p].mean(axis=1)) for p in range(paraphrases)}
    parts |= {f"seed {s}": (by_seed[:, s], gains[:, :, s].mean(axis=1)) for s in range(seeds)}
    stability = {name: paired_permutation(one, two, draws=draws, seed=seed) for name, (one, two) in parts.items()}
    retention = None
    if tests[0].difference.low > 0:
        retention = bootstrap_interval(gain, retained, statistic=_ratio, paired=True, seed=seed)
    return Verdict(
        influential=influential,
        addressable=addressable,
        persistent=persistent,
        stable=all(_shown(list(stability.values()), alpha)),
        gain=tests[0],
        specificity=tests[1],
        retained=tests[2],
        retention=retention,
        stability=stability,
        alpha=alpha,
    )


def _shown(tests: list[Comparison], alpha: float) -> list[bool]:
    corrected = holm([test.p_value for test in tests])
    return [bool(p <= alpha and test.difference.estimate > 0) for p, test in zip(corrected, tests, strict=True)]


def _ratio(gain: np.ndarray, retained: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(retained, axis=axis) / np.mean(gain, axis=axis)


@dataclass(frozen=True)
class ProbeItem:
    """What is written and how it is asked for.

    Attributes:
        text: what is written.
        target: what should come to be likelier.
        cues: paraphrases, at least 3, equally many for all items.
        unrelated: cues that have nothing to do with it, equally many for all items.
    """

    text: str
    target: str
    cues: tuple[str, ...]
    unrelated: tuple[str, ...]


class Writable(Protocol):
    """A system whose memory can be probed."""

    def reset(self, seed: int) -> None:
        """Takes the system to its state before any write."""

    def write(self, texts: Sequence[str]) -> None:
        """Writes texts."""

    def cross(self, boundary: Boundary, other_writes: int) -> None:
        """Goes beyond a boundary."""

    def score(self, cues: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        """log p(target | cue) of each pair, float64 (n,)."""


def run_probe(
    system: Writable, items: Sequence[ProbeItem], boundary: Boundary, *, other_writes: int = 0, seeds: Sequence[int] = (0, 1, 2)
) -> Probe:
    """Writes the items into a system and scores them before, after, and beyond a boundary, once a seed.

    Args:
        system: what is probed.
        items: all are written together.
        boundary, other_writes: beyond what the memory is to persist.
        seeds: at least 3.

    Raises:
        InputError: no items, or items with different numbers of cues.

    Example:
        >>> probe = run_probe(system, items, Boundary.SESSION)   # doctest: +SKIP
        >>> is_memory(probe).persistent                          # doctest: +SKIP
        True
    """
    shapes = {(len(item.cues), len(item.unrelated)) for item in items}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise InputError(
            f"The items have these numbers of own and unrelated cues: {sorted(shapes)}.", "Give all items equally many, at least 1."
        )
    own = [(cue, item.target) for item in items for cue in item.cues]
    other = [(cue, item.target) for item in items for cue in item.unrelated]

    def scores(pairs: list[tuple[str, str]]) -> np.ndarray:
        values = np.asarray(system.score([cue for cue, _ in pairs], [target for _, target in pairs]), dtype=np.float64)
        return values.reshape(len(items), -1)

    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("without", "after", "later", "unrelated_without", "unrelated_after")}
    for seed in seeds:
        system.reset(seed)
        columns["without"].append(scores(own))
        columns["unrelated_without"].append(scores(other))
        system.write([item.text for item in items])
        columns["after"].append(scores(own))
        columns["unrelated_after"].append(scores(other))
        system.cross(boundary, other_writes)
        columns["later"].append(scores(own))
    stacked = {name: np.stack(column, axis=-1) for name, column in columns.items()}
    return Probe(**stacked, boundary=boundary, other_writes=other_writes)
