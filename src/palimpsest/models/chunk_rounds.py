"""The rounds of learning of a chunking model: chunk, parse again, abstract, parse again, until nothing changes.

Chunking joins the dependent pairs of units, the best first, until Σ −log2 p of what was joined exceeds a limit. Abstraction makes
every set of units that stand between the same two units `pre` and `post` a variable v, and pre · v · post a chunk; variables that
stand for others of a set are left out of it, and a set that an older variable covers becomes no new one. Which pairs and which sets:
see `chunk_learning`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palimpsest.errors import InputError
from palimpsest.models.chunk_dictionary import Dictionary
from palimpsest.models.chunk_evidence import Evidence, added, observe, renumbered
from palimpsest.models.chunk_learning import abstraction_candidates, chunk_candidates
from palimpsest.models.chunk_parse import Parse, parse

DELETION = 0.01  # a unit whose decayed count falls below it is forgotten


@dataclass(frozen=True)
class LearningSettings:
    """How a chunking model learns; see `HVM`.

    Raises:
        InputError: a setting out of range.
    """

    variables: bool
    min_count: float
    alpha: float
    max_iter: int
    ratio: float
    limit_bits: float
    dependent_only: bool
    min_members: int
    max_members: int
    forgetting: float

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("min_count", self.min_count >= 1, ">= 1"),
            ("alpha", 0 < self.alpha < 1, "between 0 and 1"),
            ("max_iter", self.max_iter >= 0, ">= 0"),
            ("ratio", self.ratio >= 0, ">= 0"),
            ("limit_bits", self.limit_bits >= 0, ">= 0"),
            ("min_members", self.min_members >= 2, ">= 2"),
            ("max_members", self.max_members >= self.min_members, f">= min_members, which is {self.min_members}"),
            ("forgetting", 0 <= self.forgetting < 1, "from 0 to below 1"),
        ):
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)}.", f"Give a number {expected}.")


@dataclass
class Learner:
    """A dictionary in the making.

    Args:
        atoms: int64 (length,): the sequence, every symbol an atom.
        n_atoms: size of the alphabet.
        settings: how it learns.

    Attributes:
        dictionary: the units so far.
        rank: int64 (units,): the order of preference in the last parse: by count in the parse before, then age.
        parsed: the last parse.
        last, evidence: its counts, and these with the decayed counts of the parses before it.
        history: one dict a step.
    """

    atoms: np.ndarray
    n_atoms: int
    settings: LearningSettings
    dictionary: Dictionary = field(init=False)
    rank: np.ndarray = field(init=False)
    parsed: Parse = field(init=False)
    last: Evidence = field(init=False)
    evidence: Evidence = field(init=False)
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dictionary = Dictionary(self.n_atoms)
        self.rank = np.arange(self.n_atoms)
        self.parsed = parse(self.dictionary, self.atoms, self.rank)
        self.evidence = self.last = observe(self.dictionary, self.parsed)

    def learn(self) -> Learner:
        """All rounds."""
        for _ in range(self.settings.max_iter):
            before = list(self.dictionary.contents), list(self.dictionary.members)
            self.chunk()
            if self.settings.variables:
                self.abstract()
            if not self.settings.forgetting and before == (self.dictionary.contents, self.dictionary.members):
                break
        return self

    def chunk(self) -> None:
        """The chunking step: joins the best pairs; takes the weaker half of the new chunks back while they make the parse longer."""
        spent = 0.0
        before = len(self.dictionary)
        for left, right, p, benefit in zip(*chunk_candidates(self.evidence, self.settings.min_count, self.settings.alpha), strict=True):
            if benefit < self.settings.ratio or spent > self.settings.limit_bits:
                break
            if self.dictionary.joined((left, right)) not in self.dictionary:
                self.dictionary.add_chunk((int(left), int(right)))
                spent -= math.log2(p)
        made = len(self.dictionary) - before
        if not made:
            return
        rank = self._ranked()
        parsed = parse(self.dictionary, self.atoms, rank)
        while len(parsed) > len(self.parsed):
            self.dictionary.drop_last(made - made // 2)
            made //= 2
            rank = self._ranked()
            parsed = parse(self.dictionary, self.atoms, rank)
        self._settle("chunking", made, parsed, rank)

    def abstract(self) -> None:
        """The abstraction step: every set of units between the same two becomes a variable between them."""
        settings = self.settings
        before = len(self.dictionary)
        bounds = settings.min_members, settings.max_members, settings.min_count, settings.alpha if settings.dependent_only else None
        found: dict[tuple[int, ...], int | None] = {}  # the same sets come up again and again
        for pre, post, units in abstraction_candidates(self.dictionary, self.evidence, *bounds):
            if units not in found:
                members = self.dictionary.without_abstractions(units)
                found[units] = self.dictionary.add_variable(members) if len(members) > 1 else None
            variable = found[units]
            if variable is not None:
                self.dictionary.add_chunk((pre, variable, post))
        made = len(self.dictionary) - before
        if made:
            rank = self._ranked()
            self._settle("abstraction", made, parse(self.dictionary, self.atoms, rank), rank)

    def _ranked(self) -> np.ndarray:
        counts = np.zeros(len(self.dictionary))
        counts[: self.evidence.counts.size] = self.evidence.counts
        rank = np.empty(counts.size, np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(counts.size)
        return rank

    def _settle(self, step: str, made: int, parsed: Parse, rank: np.ndarray) -> None:
        """Takes over a parse: counts it, and forgets the units that neither it nor what it uses needs."""
        grown = self.dictionary
        last = evidence = observe(grown, parsed)
        if self.settings.forgetting:
            evidence = added(padded(self.evidence, evidence), self.settings.forgetting, last)
        self.dictionary, numbers = grown.kept(evidence.counts >= DELETION)
        units, variables, members = (numbers[column] for column in (parsed.units, parsed.variables, parsed.members))
        self.parsed = Parse(units, parsed.starts, parsed.bindings_at, variables, members)
        self.rank = rank[numbers >= 0]  # the order is what matters
        self.last = renumbered(last, grown, self.dictionary, numbers)
        self.evidence = renumbered(evidence, grown, self.dictionary, numbers)
        self.history.append(
            {
                "step": step,
                "made": made,
                "parse_length": len(parsed),
                "units": len(self.dictionary),
                "variables": len(self.dictionary.variables),
            }
        )


def padded(evidence: Evidence, like: Evidence) -> Evidence:
    """Evidence over the first units of a dictionary that has grown, with nothing for the new ones."""
    columns = [
        np.concatenate([old, np.zeros(new.size - old.size)])
        for old, new in ((evidence.counts, like.counts), (evidence.covered, like.covered), (evidence.bound, like.bound))
    ]
    return Evidence(columns[0], columns[1], columns[2], evidence.left, evidence.right, evidence.together, evidence.first)
