"""Where an answer comes from: the training positions that have a vote, with what stands around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.errors import InputError
from palimpsest.models._voting import Voting


@dataclass(frozen=True)
class Neighbour:
    """A training position that an answer comes from.

    Attributes:
        token: what stands there: its vote.
        distance: weight of the features in which its context differs from the one asked about.
        matched: numbers of the features that agree, 1 being the token next to the vote.
        window: the n ids before it, oldest first; None before its document.
        position: how many tokens were learnt before it.
        document, offset: the number of its document, and its place there.
        source: the document's name.
    """

    token: int
    distance: float
    matched: tuple[int, ...]
    window: tuple[int | None, ...]
    position: int
    document: int
    offset: int
    source: str


def explain(voting: Voting, context: Sequence[int] | np.ndarray, top: int, token: int | None) -> list[Neighbour]:
    """The voters after `context`, nearest first, then earliest; at most `top`, and only those for `token` if one is given."""
    if top < 1:
        raise InputError(f"top is {top}.", "Give at least 1.")
    memory = voting.memory
    codes = memory.encode([context])
    nodes, sizes = memory.descend(codes)
    rings = int(voting.vote(codes, nodes, sizes).rings[0])
    members = voting.neighbours(codes, nodes, sizes, rings)
    if token is not None:
        code = int(memory.codes(np.array([token]))[0])
        chosen = [part.tokens[places] == code for part, (_, places, _) in zip(memory.parts, members, strict=True)]
        members = [(offsets, places[c], gaps[c]) for (offsets, places, gaps), c in zip(members, chosen, strict=True)]
    number = np.repeat(np.arange(len(members)), [places.size for _, places, _ in members])
    place, gap = (np.concatenate(column) for column in list(zip(*members, strict=True))[1:])
    asked: list[int | None] = [int(before) for before in reversed(context)]
    asked += [None] * (memory.n - len(asked))
    out = []
    for i in np.lexsort((place, number, np.round(gap, 9)))[:top].tolist():
        facts = memory.locate(int(number[i]), int(place[i]))
        own = facts["window"][::-1]
        matched = tuple(j + 1 for j in range(memory.n) if own[j] == asked[j])
        out.append(Neighbour(distance=float(gap[i]), matched=matched, **facts))
    return out
