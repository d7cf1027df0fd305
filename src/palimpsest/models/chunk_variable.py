"""Chunks and variables from sequences: the hierarchical variable model (HVM) and, without variables, the chunking model (HCM) (004).

Wu, Thalmann, Dayan, Akata & Schulz, *Building, Reusing, and Generalizing Abstract Representations from Concrete Sequences*, ICLR 2025;
HCM is Wu, Éltető, Dasgupta & Schulz, *Learning Structure from the Ground up: Hierarchical Representation Learning by Chunking*,
NeurIPS 2022. A model of how people come to see structure, with no parameters but its dictionary: parse the sequence into the units
that are known, join units whose neighbourhood is no accident into chunks, make units that stand between the same neighbours into
variables, and parse again (`chunk_rounds`, `chunk_learning`, `chunk_parse`). Then

    −log p(sequence) = −Σ_k log p(u_k) − Σ_b log p(m_b | v_b)

over the units of its parse and what their variables are bound to.

Where this departs from paper and upstream code [ours]:

* A chunk begins and ends with an atom, as in the paper's generative model: bare variables are not joined with their neighbours. If they
  were, everything would soon be parsed into chunks of variables, at no complexity and with all bits in the bindings.
* Taking the longest match, a parse can get longer by one chunk more. Then the weaker half of a round's new chunks is taken back until
  it does not: chunking never lengthens the parse.
* Units that neither occur in the parse nor are needed by one that does are forgotten at once; this does not change the parse.
* The order of everything is fixed: by count, then first occurrence, never by symbol or by the order of a set.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from palimpsest.errors import InputError
from palimpsest.models.chunk_parse import NOVEL, Parse, expand, parse
from palimpsest.models.chunk_rounds import Learner, LearningSettings
from palimpsest.models.code_length import CodeLengths, count_table_bits, sequence_complexity, storage_cost
from palimpsest.models.symbols import SymbolTable

TEXT_LIMIT_BITS = -math.log2(0.01)  # what the paper's code joins a round on text
SMOOTHING = 0.5  # added to every count in a probability (Krichevsky & Trofimov)


class ParsedUnit(NamedTuple):
    """One unit of a parse.

    Attributes:
        unit: its number; −1 for a symbol that was never seen.
        bindings: (variable, member) for each variable in it, from left to right; those inside a member follow it.
        start, end: which symbols of the sequence it covers.
    """

    unit: int
    bindings: tuple[tuple[int, int], ...]
    start: int
    end: int


@dataclass(frozen=True)
class ChunkCode:
    """A sequence in the terms of a model.

    Attributes:
        units: int64 (K,): the units; −1 for a symbol that the model does not know.
        members: int64 (B,): what the variables in them stand for, from left to right.
        novel: the unknown symbols, one by one.
        is_text: the sequence was a string.
    """

    units: np.ndarray
    members: np.ndarray
    novel: tuple[Hashable, ...]
    is_text: bool


class HVM:
    """The hierarchical variable model.

    Args:
        min_count: a pair must occur so often to be joined; one of a set must follow the same unit more often than this.
        alpha: level of the test for independence.
        max_iter: rounds, at most; learning ends before when a round changes nothing.
        ratio: pairs of a lower benefit are not joined.
        limit_bits: how much may be joined in a round, as Σ −log2 p; the pair that exceeds it is the last.
        dependent_only: abstract only from pairs that are not independent, the stricter variant of the paper's code for text.
        min_members, max_members: sizes of a set that becomes a variable; None: 4 to 49, and 2 to 4 with `dependent_only`.
        forgetting: weight that counts keep from one parse to the next (the paper's θ is 0.75); 0 counts every parse afresh.

    Attributes:
        settings: all of these.
        table: the symbols of the atoms.
        dictionary: atoms, chunks and variables.
        evidence: the counts that the probabilities follow.
        parsed: the parse of the sequence that it was fitted to.
        history: one dict a step of learning: which, how many units it made, and the length of the parse after it.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> text = "the cat sat, the hen lay, the pig ran, the cow sat, the dog lay; " * 8
        >>> model = HVM().fit(text)
        >>> model.decode(model.encode("the owl flew."))
        'the owl flew.'
        >>> len(model.parsed) < len(text)
        True
    """

    def __init__(
        self,
        min_count: float = 6,
        alpha: float = 0.05,
        max_iter: int = 20,
        *,
        ratio: float = 0.0,
        limit_bits: float = -math.log2(0.001),
        dependent_only: bool = False,
        min_members: int | None = None,
        max_members: int | None = None,
        forgetting: float = 0.0,
    ) -> None:
        least, most = (2, 4) if dependent_only else (4, 49)
        self.settings = LearningSettings(
            variables=True,
            min_count=min_count,
            alpha=alpha,
            max_iter=max_iter,
            ratio=ratio,
            limit_bits=limit_bits,
            dependent_only=dependent_only,
            min_members=least if min_members is None else min_members,
            max_members=most if max_members is None else max_members,
            forgetting=forgetting,
        )
        self.fit(())

    def fit(self, sequence: Iterable[Hashable]) -> Self:
        """Learns chunks and variables from one sequence; what was learnt before is gone.

        Args:
            sequence: a string, a list or a one-dimensional array of symbols; an empty one gives an empty model.

        Raises:
            SymbolTypeError: a symbol that cannot be hashed.
        """
        self.table = SymbolTable()
        atoms = self.table.add(sequence)
        learner = Learner(atoms, len(self.table), self.settings).learn()
        self.dictionary, self.evidence, self.parsed, self.history = learner.dictionary, learner.evidence, learner.parsed, learner.history
        self._rank, self._last, self._length = learner.rank, learner.last, atoms.size
        members = [self.dictionary.members[v] for v in self.dictionary.variables]
        self._groups = np.cumsum([0] + [len(m) for m in members])  # where the memberships of every variable begin
        self._place = {(v, m): i for i, (v, m) in enumerate((v, m) for v in self.dictionary.variables for m in self.dictionary.members[v])}
        return self

    def parse(self, sequence: Iterable[Hashable]) -> list[ParsedUnit]:
        """The units of a sequence, from left to right.

        Raises:
            SymbolTypeError: a symbol that cannot be hashed.
        """
        parsed, _ = self._parse(sequence)
        bindings = list(zip(parsed.variables.tolist(), parsed.members.tolist(), strict=True))
        at, starts = parsed.bindings_at.tolist(), parsed.starts.tolist()
        return [
            ParsedUnit(unit, tuple(bindings[at[k] : at[k + 1]]), starts[k], starts[k + 1]) for k, unit in enumerate(parsed.units.tolist())
        ]

    def encode(self, sequence: Iterable[Hashable]) -> ChunkCode:
        """A sequence as units and bindings; symbols that were never seen are kept as they are.

        Raises:
            SymbolTypeError: a symbol that cannot be hashed.
        """
        parsed, novel = self._parse(sequence)
        return ChunkCode(parsed.units, parsed.members, tuple(novel), isinstance(sequence, str))

    def decode(self, code: ChunkCode) -> Any:
        """The sequence of a code: a string if it was one, else a list.

        Raises:
            InputError: the code holds a unit that this model does not have.
        """
        n = len(self.dictionary)
        for unit in (*code.units.tolist(), *code.members.tolist()):
            if not NOVEL <= unit < n:
                raise InputError(f"The code holds the unit {unit}, and this model has {n}.", "Decode with the model that encoded it.")
        symbols = self.table.decode(expand(self.dictionary, code.units, code.members), code.novel)
        return "".join(map(str, symbols)) if code.is_text else symbols

    def logprob(self, sequence: Iterable[Hashable]) -> float:
        """Natural log of the probability of a sequence: of the units of its parse, and of what their variables are bound to.

        Every count is raised by ½, so that nothing is impossible. A symbol that was never seen is as probable as one more unit that
        never occurred; which symbol it is costs nothing, for the alphabet that it comes from is not known.

        Raises:
            SymbolTypeError: a symbol that cannot be hashed.
        """
        parsed, _ = self._parse(sequence)
        counts, bound = self.evidence.counts, self.evidence.bound
        kinds = len(self.dictionary) - len(self.dictionary.variables) + 1  # the last stands for all that was never seen
        raised = np.append(counts, 0.0)[parsed.units] + SMOOTHING  # unit −1 is the last
        logprob = np.log(raised / (counts.sum() + SMOOTHING * kinds)).sum()
        places = np.array([self._place[pair] for pair in zip(parsed.variables.tolist(), parsed.members.tolist(), strict=True)], np.int64)
        if places.size:
            rows = np.searchsorted(self._groups, places, side="right") - 1
            totals = np.add.reduceat(bound, self._groups[:-1]) + SMOOTHING * np.diff(self._groups)
            logprob += np.log((bound[places] + SMOOTHING) / totals[rows]).sum()
        return float(logprob)

    def code_lengths(self) -> CodeLengths:
        """What the sequence that the model was fitted to costs in its terms, by the frequencies of its last parse.

        `total` includes the dictionary: for every element of a chunk, and one more that ends it, log2(atoms + variables + 1) bits; for
        every member of a variable, and one more, log2(units + 1); and the counts that all probabilities follow.
        """
        counts, n, n_variables = self._last.counts, len(self.dictionary), len(self.dictionary.variables)
        groups = [self._last.bound[begin:end] for begin, end in zip(self._groups, self._groups[1:], strict=False)]
        chunks = [content for content in self.dictionary.contents[self.dictionary.n_atoms :] if content]
        written = sum(len(content) + 1 for content in chunks) * math.log2(self.dictionary.n_atoms + n_variables + 1)
        written += sum(group.size + 1 for group in groups) * math.log2(n + 1)
        tables = count_table_bits(counts.sum(), n - n_variables) + sum(count_table_bits(group.sum(), group.size) for group in groups)
        complexity, resolution = sequence_complexity(counts), math.fsum(sequence_complexity(group) for group in groups)
        return CodeLengths(
            symbols=self._length,
            parse_length=len(self.parsed),
            entries=n,
            complexity=complexity,
            resolution=resolution,
            storage=storage_cost(counts),
            total=complexity + resolution + written + tables,
        )

    def describe(self, unit: int) -> str:
        """A unit as text: a chunk by its symbols, with variables by their number as ⟨12⟩; a variable as its number."""
        if self.dictionary.is_variable(unit):
            return f"⟨{unit}⟩"
        pieces = [f"⟨{e}⟩" if self.dictionary.is_variable(e) else str(self.table.symbols[e]) for e in self.dictionary.contents[unit]]
        return ("" if self.table.is_text else " ").join(pieces)

    def report(self) -> dict[str, Any]:
        """What was learnt, as plain JSON types: chunks and variables by how often they occur, the code lengths, and every step."""
        counts, covered, bound = self._last.counts, self._last.covered, self._last.bound
        chunks: list[dict[str, Any]] = []
        variables: list[dict[str, Any]] = []
        for unit in range(self.dictionary.n_atoms, len(self.dictionary)):
            members = self.dictionary.members[unit]
            if members:
                held: list[dict[str, Any]] = [
                    {"unit": m, "text": self.describe(m), "count": int(bound[self._place[unit, m]])} for m in members
                ]
                held.sort(key=lambda member: (-member["count"], member["unit"]))
                variables.append({"unit": unit, "count": sum(member["count"] for member in held), "members": held})
                continue
            mean = float(covered[unit] / counts[unit]) if counts[unit] else None
            entry = {"unit": unit, "text": self.describe(unit), "parts": list(self.dictionary.parts[unit]), "count": int(counts[unit])}
            chunks.append(entry | {"mean_length": mean})
        return {
            "model": type(self).__name__,
            "alphabet": self.dictionary.n_atoms,
            "chunks": sorted(chunks, key=lambda chunk: (-chunk["count"], chunk["unit"])),
            "variables": sorted(variables, key=lambda variable: (-variable["count"], variable["unit"])),
            "code": self.code_lengths().to_dict(),
            "history": self.history,
        }

    def _parse(self, sequence: Iterable[Hashable]) -> tuple[Parse, list[Hashable]]:
        atoms, novel = self.table.encode(sequence)
        return parse(self.dictionary, atoms, self._rank), novel


class HCM(HVM):
    """The hierarchical chunking model: `HVM` that never abstracts.

    Args:
        min_count, alpha, max_iter, ratio, limit_bits, forgetting: as of `HVM`.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> model = HCM().fit("once upon a time, once upon a hill, " * 6)
        >>> model.dictionary.variables
        []
    """

    def __init__(
        self,
        min_count: float = 6,
        alpha: float = 0.05,
        max_iter: int = 20,
        *,
        ratio: float = 0.0,
        limit_bits: float = -math.log2(0.001),
        forgetting: float = 0.0,
    ) -> None:
        super().__init__(min_count, alpha, max_iter, ratio=ratio, limit_bits=limit_bits, forgetting=forgetting)
        self.settings = replace(self.settings, variables=False)
