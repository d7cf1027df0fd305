"""Sequences with hidden chunks and variables: the benchmark generator of the hierarchical variable model (004).

Wu et al., ICLR 2025. A random inventory is built in `depth` steps on top of the alphabet. Each step makes, with probability
`p_variable`, a variable over 2 to 5 different chunks that are there (atoms count as chunks), else a chunk of 2 to 5 chunks and
variables, drawn with replacement until the first and the last are chunks, so that every chunk begins and ends with an atom. Chunks
get probabilities from a flat Dirichlet distribution, and so do the members of each variable. The sequence is a row of independent
chunks, cut off at `length`. Each occurrence of a variable is drawn by itself; the upstream code draws a variable once a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palimpsest.errors import InputError
from palimpsest.models.chunk_dictionary import Dictionary

_SIZES = (2, 5)  # elements of a chunk, members of a variable


@dataclass(frozen=True)
class HierarchicalSequence:
    """A sequence and what it was made from.

    Attributes:
        symbols: int64 (length,): the sequence, of the numbers 0 … alphabet − 1.
        dictionary: the hidden atoms, chunks and variables.
        probabilities: float64 (units,): of every atom and chunk, 0 for a variable; they add up to 1.
        member_probabilities: of every variable, float64 (members,).
        bits: −log2 of the probability of the draws: what the sequence costs to one who knows all of this (the last chunk whole).
    """

    symbols: np.ndarray
    dictionary: Dictionary
    probabilities: np.ndarray
    member_probabilities: dict[int, np.ndarray]
    bits: float


def hierarchical_sequence(
    alphabet: int = 10, depth: int = 5, length: int = 1000, p_variable: float = 0.5, seed: int = 0
) -> HierarchicalSequence:
    """Draws an inventory and a sequence from it.

    Args:
        alphabet: number of atoms.
        depth: steps in which a chunk or a variable is made; one that is there already is no new one.
        length: symbols in the sequence.
        p_variable: probability that a step makes a variable.
        seed: of everything.

    Raises:
        InputError: an empty alphabet, a negative depth or length, or a probability outside 0 … 1.

    Example:
        >>> made = hierarchical_sequence(alphabet=4, depth=3, length=8, seed=1)
        >>> made.symbols.size, int(made.symbols.max()) < 4
        (8, True)
    """
    for name, value, holds, expected in (
        ("alphabet", alphabet, alphabet >= _SIZES[0], f"a number >= {_SIZES[0]}"),
        ("depth", depth, depth >= 0, "a number >= 0"),
        ("length", length, length >= 0, "a number >= 0"),
        ("p_variable", p_variable, 0 <= p_variable <= 1, "a probability"),
    ):
        if not holds:
            raise InputError(f"{name} is {value}.", f"Give {expected}.")
    rng = np.random.default_rng(seed)
    dictionary = Dictionary(alphabet)
    for _ in range(depth):
        chunks = [unit for unit in range(len(dictionary)) if not dictionary.is_variable(unit)]
        size = int(rng.integers(_SIZES[0], _SIZES[1] + 1))
        if rng.random() < p_variable:
            dictionary.add_variable(rng.choice(chunks, min(size, len(chunks)), replace=False).tolist())
        else:
            drawn = rng.integers(len(dictionary), size=size)
            while dictionary.is_variable(drawn[0]) or dictionary.is_variable(drawn[-1]):
                drawn = rng.integers(len(dictionary), size=size)
            dictionary.add_chunk(tuple(drawn.tolist()))
    chunks = [unit for unit in range(len(dictionary)) if not dictionary.is_variable(unit)]
    probabilities = np.zeros(len(dictionary))
    probabilities[chunks] = rng.dirichlet(np.ones(len(chunks)))
    shares = {variable: rng.dirichlet(np.ones(len(dictionary.members[variable]))) for variable in dictionary.variables}
    symbols: list[int] = []
    bits = 0.0
    while len(symbols) < length:
        waiting = [int(rng.choice(len(dictionary), p=probabilities))]
        bits -= float(np.log2(probabilities[waiting[0]]))
        while waiting:
            element = waiting.pop()
            if element < alphabet:
                symbols.append(element)
            elif element in shares:
                chosen = int(rng.choice(shares[element].size, p=shares[element]))
                bits -= float(np.log2(shares[element][chosen]))
                waiting.append(dictionary.members[element][chosen])
            else:
                waiting.extend(reversed(dictionary.contents[element]))
    return HierarchicalSequence(np.array(symbols[:length], np.int64), dictionary, probabilities, shares, bits)
