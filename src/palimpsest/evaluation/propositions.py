"""Propositions of system 104 as runnable checks: identifiability (P1), the minimal card (P2), and retrieval against long reading (P4).

The topics are those of Zhang et al. (2025); the forms are ours. P2 is `palimpsest.evaluation.comparison.minimal_card_fields`; P3, on
editing with verifiable forgetting, belongs to governance.

**P1, minimum identifiability.** An answer may come from one of several sources: the weights, the context, a store, an episodic log, or
none. A *configuration* switches channels on and off: a system whose store is switched off cannot answer from it. In a set of
configurations, a source has a pattern of right and wrong answers; the sources can be told apart exactly when the patterns are distinct.
`minimal_configurations` finds the smallest such sets; one configuration never is one, for it has only two patterns: that an answer was
right with everything on says nothing about where it came from.

**P4, retrieval with a small window against very long reading.** With h_k the chance that retrieval shows the evidence among k documents,
A_short the accuracy of reading a short context that holds it, A_none that without it, and A_long(L) the accuracy of reading all L tokens,
mean over depths, retrieval is predicted to win if and only if h_k A_short + (1 − h_k) A_none > A_long(L).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from palimpsest.errors import InputError
from palimpsest.stats import Interval


class Source(StrEnum):
    """Where an answer may come from; `NONE` is guessing, which no channel gives."""

    WEIGHTS = "weights"
    CONTEXT = "context"
    STORE = "store"
    EPISODIC = "episodic log"
    NONE = "none"


CHANNELS = (Source.WEIGHTS, Source.CONTEXT, Source.STORE, Source.EPISODIC)
Configuration = frozenset[Source]  # the channels that are on


def every_configuration(switchable: Sequence[Source] = CHANNELS) -> list[Configuration]:
    """All sets of channels that can be on; those that cannot be switched off are always on.

    Args:
        switchable: channels that can be switched; the weights of a model cannot, unless a twin without the facts stands in.

    Example:
        >>> len(every_configuration()), len(every_configuration([Source.STORE]))
        (16, 2)
    """
    fixed = frozenset(CHANNELS) - set(switchable)
    return [fixed | frozenset(chosen) for size in range(len(switchable) + 1) for chosen in itertools.combinations(sorted(switchable), size)]


def patterns(configurations: Sequence[Configuration], sources: Sequence[Source] = tuple(Source)) -> dict[Source, tuple[bool, ...]]:
    """What each source gives in each configuration: right when its channel is on."""
    return {source: tuple(source in configuration for configuration in configurations) for source in sources}


def identifiable(configurations: Sequence[Configuration], sources: Sequence[Source] = tuple(Source)) -> bool:
    """Whether the answers in these configurations tell the sources apart.

    Example:
        >>> identifiable([frozenset(CHANNELS)], [Source.WEIGHTS, Source.STORE])
        False
    """
    return len(set(patterns(configurations, sources).values())) == len(sources)


def minimal_configurations(
    sources: Sequence[Source] = tuple(Source), available: Sequence[Configuration] | None = None
) -> list[tuple[Configuration, ...]]:
    """All smallest sets of configurations that tell the sources apart, by brute force.

    Args:
        sources: that an answer may come from, at least 2.
        available: configurations that can be run; by default all.

    Raises:
        InputError: fewer than 2 sources, or no set of the available configurations tells them apart; the message names the pairs.

    Example:
        >>> len(minimal_configurations()[0])                 # five sources need three runs
        3
        >>> len(minimal_configurations([Source.WEIGHTS, Source.STORE])[0])
        1
    """
    if len(set(sources)) < 2:
        raise InputError(f"There are {len(set(sources))} sources.", "Give at least 2.")
    given = list(every_configuration() if available is None else dict.fromkeys(available))
    if not identifiable(given, sources):
        every = patterns(given, sources)
        same = [f"{one} and {two}" for one, two in itertools.combinations(sources, 2) if every[one] == every[two]]
        raise InputError(f"These configurations never tell apart: {', '.join(same)}.", "Make another channel switchable.")
    for size in range(math.ceil(math.log2(len(sources))), len(given) + 1):
        found = [chosen for chosen in itertools.combinations(given, size) if identifiable(chosen, sources)]
        if found:
            return found
    raise AssertionError("all configurations together tell the sources apart")


def attribute(right: Mapping[Configuration, Sequence[bool]], sources: Sequence[Source] = tuple(Source)) -> list[tuple[Source, ...]]:
    """The sources that fit each item's answers, each item being in one source: one where it is identified, several where it is not, none
    where no single source gives these answers (a lucky guess, or a channel that failed).

    What stands in two sources answers like the one whose channel is on more often: that takes a configuration with each of them alone.

    Args:
        right: by configuration that was run, whether each item was answered right.
        sources: that are possible.

    Raises:
        InputError: no configurations, or different numbers of items.

    Example:
        >>> on, off = frozenset([Source.WEIGHTS, Source.STORE]), frozenset([Source.WEIGHTS])
        >>> attribute({on: [True, True], off: [True, False]}, [Source.WEIGHTS, Source.STORE])
        [(<Source.WEIGHTS: 'weights'>,), (<Source.STORE: 'store'>,)]
    """
    if not right or len({len(column) for column in right.values()}) != 1:
        raise InputError(f"{len(right)} configurations with {[len(c) for c in right.values()]} items.", "Give the same items in each.")
    configurations = list(right)
    every = patterns(configurations, sources)
    rows = zip(*(right[configuration] for configuration in configurations), strict=True)
    return [tuple(source for source in sources if every[source] == tuple(map(bool, row))) for row in rows]


# --- P4 -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BreakEven:
    """Where retrieval with a small window and reading everything are worth the same.

    Attributes:
        retrieval: predicted accuracy of retrieval.
        reading: accuracy of reading L tokens, by L.
        length: the least L (between measured ones, on a straight line in log L) from which on retrieval wins; the shortest measured one
            when it always does, None when it never does.
        cost_ratio: tokens read at that length for each token that retrieval reads; None without a length.
    """

    retrieval: float
    reading: dict[int, float]
    length: float | None
    cost_ratio: float | None

    def winner(self, length: int) -> str:
        """ "retrieval" or "reading" at a measured length; equal accuracies count for reading.

        Raises:
            InputError: a length that was not measured.
        """
        if length not in self.reading:
            raise InputError(f"{length} tokens were not measured.", f"Choose one of {sorted(self.reading)}.")
        return "retrieval" if self.retrieval > self.reading[length] else "reading"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return {"retrieval": self.retrieval, "reading": {str(k): v for k, v in self.reading.items()}, "length": self.length,
                "cost_ratio": self.cost_ratio}  # fmt: skip


def predicted_accuracy(hit: float, short: float, none: float) -> float:
    """h A_short + (1 − h) A_none: what retrieval should reach.

    Raises:
        InputError: a number outside [0, 1].
    """
    if not all(0 <= value <= 1 for value in (hit, short, none)):
        raise InputError(f"The shares are {hit}, {short} and {none}.", "Give numbers in [0, 1].")
    return hit * short + (1 - hit) * none


def break_even(hit: float, short: float, none: float, reading: Mapping[int, float], window: int) -> BreakEven:
    """From which length on retrieval wins over reading everything.

    Args:
        hit: share of questions for which retrieval shows the evidence.
        short, none: accuracy with and without the evidence in the small window.
        reading: by length in tokens, accuracy of reading everything, mean over depths.
        window: tokens of the small window.

    Raises:
        InputError: a share outside [0, 1], no lengths, or a window below 1.

    Example:
        >>> found = break_even(0.8, 0.9, 0.1, {1000: 0.9, 10_000: 0.58}, window=500)
        >>> round(found.retrieval, 2), found.winner(1000), found.winner(10_000), round(found.length)
        (0.74, 'reading', 'retrieval', 3162)
    """
    if not reading or window < 1 or not all(0 <= value <= 1 for value in reading.values()) or min(reading) < 1:
        raise InputError(
            f"Reading {dict(reading)}, window {window}.", "Give accuracies in [0, 1] by length, and a window of at least 1 token."
        )
    worth = predicted_accuracy(hit, short, none)
    lengths = sorted(reading)
    wins = [worth > reading[length] for length in lengths]
    length: float | None = None
    if wins[-1]:
        last_loss = max((number for number, win in enumerate(wins) if not win), default=-1)
        if last_loss < 0:
            length = float(lengths[0])
        else:
            low, high = lengths[last_loss], lengths[last_loss + 1]
            part = (reading[low] - worth) / (reading[low] - reading[high])
            length = math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return BreakEven(worth, {k: float(reading[k]) for k in lengths}, length, length / window if length is not None else None)


def prediction_agreement(predicted: BreakEven, retrieval: Interval, reading: Mapping[int, Interval]) -> dict[str, Any]:
    """How often the predicted winner is the measured one, over the lengths at which the measured intervals do not overlap.

    Args:
        predicted: by `break_even`.
        retrieval: measured accuracy of retrieval.
        reading: by length, measured accuracy of reading.

    Returns:
        decided (lengths whose intervals do not overlap), agreed, share (None when nothing is decided), and the winners by length.

    Raises:
        InputError: lengths that were not predicted.
    """
    rows = []
    for length in sorted(reading):
        apart = retrieval.low > reading[length].high or reading[length].low > retrieval.high
        measured = "retrieval" if retrieval.estimate > reading[length].estimate else "reading"
        rows.append({"length": length, "predicted": predicted.winner(length), "measured": measured, "decided": apart})
    decided = [row for row in rows if row["decided"]]
    agreed = sum(row["predicted"] == row["measured"] for row in decided)
    return {"decided": len(decided), "agreed": agreed, "share": agreed / len(decided) if decided else None, "by_length": rows}
