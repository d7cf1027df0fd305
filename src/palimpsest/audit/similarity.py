"""How alike two token sequences are: the string measures that every comparison of outputs with true text uses.

All functions take sequences of token ids or of words, never a bare `str` (split it first: characters and words give different
figures). With candidate y and reference s:

* edit similarity 1 - d / max(|y|, |s|), d the Levenshtein distance (unit costs);
* BLEU-4 (Papineni et al., ACL 2002) for single short pairs: BP * exp(mean_n log p_n), n = 1..4 with uniform weights, p_n the
  clipped precision, BP = min(1, exp(1 - |s| / |y|)). Zero counts are smoothed as "method 1" of Chen and Cherry (WMT 2014):
  a numerator of 0 becomes `SMOOTHING` = 0.1. Orders longer than the candidate are left out and the weights stay uniform over
  the rest, so that a sequence compared with itself always gives 1; no common token at all gives exactly 0;
* longest common run (substring: contiguous) and longest common subsequence;
* ROUGE-L (Lin, 2004): precision, recall and F1 of the longest common subsequence.

Two empty sequences are equal (similarity 1); an empty one against any other gives 0. Edit distance and subsequence are
rapidfuzz's bit-parallel ones; BLEU and the common run are compiled loops over the whole batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq, Levenshtein

from palimpsest.errors import InputError

SMOOTHING = 0.1  # what a clipped n-gram count of 0 becomes in BLEU (Chen and Cherry's method 1, their value)

Tokens = Sequence[Hashable] | np.ndarray


class RougeL(NamedTuple):
    """Precision, recall and F1 of the longest common subsequence, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


class CommonRun(NamedTuple):
    """The longest run of tokens that two sequences share, leftmost in the candidate, then in the reference."""

    length: int
    candidate_start: int
    reference_start: int


class Similarities(NamedTuple):
    """All measures of many pairs; every field is an array with one entry a pair."""

    exact: np.ndarray  # bool
    edit_distance: np.ndarray  # int64
    edit_similarity: np.ndarray  # float64 in [0, 1]
    bleu: np.ndarray  # float64 in [0, 1]
    longest_run: np.ndarray  # int64, tokens
    longest_subsequence: np.ndarray  # int64, tokens
    rouge_l: np.ndarray  # float64 in [0, 1], the F1


def exact_match(candidate: Tokens, reference: Tokens) -> bool:
    """Whether the two sequences are the same.

    Example:
        >>> exact_match([1, 2, 3], [1, 2, 3])
        True
    """
    return bool(similarities([candidate], [reference]).exact[0])


def edit_distance(candidate: Tokens, reference: Tokens) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions of tokens.

    Example:
        >>> edit_distance("to be or not".split(), "to bee or not".split())
        1
    """
    return int(similarities([candidate], [reference]).edit_distance[0])


def edit_similarity(candidate: Tokens, reference: Tokens) -> float:
    """1 - d / max(|y|, |s|), in [0, 1].

    Example:
        >>> edit_similarity([1, 2, 3, 4], [1, 2, 3, 5])
        0.75
    """
    return float(similarities([candidate], [reference]).edit_similarity[0])


def bleu(candidate: Tokens, reference: Tokens) -> float:
    """Sentence BLEU-4 against one reference, smoothed as said in the module's docstring; in [0, 1].

    Example:
        >>> bleu([5, 6, 7, 8, 9], [5, 6, 7, 8, 9])
        1.0
    """
    return float(similarities([candidate], [reference]).bleu[0])


def longest_common_substring(candidate: Tokens, reference: Tokens) -> CommonRun:
    """The longest contiguous run that both sequences hold, and where it begins in each.

    Example:
        >>> longest_common_substring([1, 2, 3, 9], [7, 2, 3, 8])
        CommonRun(length=2, candidate_start=1, reference_start=1)
    """
    (y, _), (s, _) = _pack([candidate], [reference])
    length, y_start, s_start = _common_run(y, s)
    return CommonRun(int(length), int(y_start), int(s_start))


def longest_common_subsequence(candidate: Tokens, reference: Tokens) -> int:
    """Length of the longest common subsequence, which may skip tokens on both sides.

    Example:
        >>> longest_common_subsequence([1, 2, 3, 4], [1, 9, 3, 4])
        3
    """
    return int(similarities([candidate], [reference]).longest_subsequence[0])


def rouge_l(candidate: Tokens, reference: Tokens) -> RougeL:
    """ROUGE-L of one pair; precision is over the candidate's length, recall over the reference's.

    Example:
        >>> rouge_l([1, 2], [1, 2, 3, 4])
        RougeL(precision=1.0, recall=0.5, f1=0.6666666666666666)
    """
    if len(candidate) == 0 and len(reference) == 0:
        return RougeL(1.0, 1.0, 1.0)
    common = longest_common_subsequence(candidate, reference)
    if common == 0:
        return RougeL(0.0, 0.0, 0.0)
    return RougeL(common / len(candidate), common / len(reference), 2 * common / (len(candidate) + len(reference)))


def similarities(candidates: Sequence[Tokens], references: Sequence[Tokens]) -> Similarities:
    """Every measure for many pairs at once: `candidates[i]` against `references[i]`.

    Args:
        candidates: what a model wrote; rows of ids or of words, of any length, also empty.
        references: the true text of each, as many rows.

    Raises:
        InputError: no pair, lists of different length, or a `str` where a sequence of tokens is expected.

    Example:
        >>> similarities([[1, 2, 3], []], [[1, 2, 4], [1]]).edit_similarity.round(3).tolist()
        [0.667, 0.0]
    """
    (y, y_offsets), (s, s_offsets) = _pack(candidates, references)
    y_rows, s_rows = _rows(y, y_offsets), _rows(s, s_offsets)
    y_lengths, s_lengths = np.diff(y_offsets), np.diff(s_offsets)
    distance = process.cpdist(y_rows, s_rows, scorer=Levenshtein.distance, dtype=np.int64)
    subsequence = process.cpdist(y_rows, s_rows, scorer=LCSseq.similarity, dtype=np.int64)
    longest = np.maximum(np.maximum(y_lengths, s_lengths), 1)
    total = y_lengths + s_lengths
    bleus, runs = _bleu_and_runs(y, y_offsets, s, s_offsets, SMOOTHING)
    return Similarities(
        exact=distance == 0,
        edit_distance=distance,
        edit_similarity=1.0 - distance / longest,
        bleu=bleus,
        longest_run=runs,
        longest_subsequence=subsequence,
        rouge_l=np.where(total == 0, 1.0, 2.0 * subsequence / np.maximum(total, 1)),
    )


def _pack(
    candidates: Sequence[Tokens], references: Sequence[Tokens]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Both sides as one flat int64 array of codes and row offsets; equal tokens get equal codes on both sides."""
    if len(candidates) == 0 or len(candidates) != len(references):
        raise InputError(
            f"There are {len(candidates)} candidates and {len(references)} references.", "Give one reference for every candidate."
        )
    codes: dict[Hashable, int] = {}
    return _encode(candidates, codes), _encode(references, codes)


def _encode(rows: Sequence[Tokens], codes: dict[Hashable, int]) -> tuple[np.ndarray, np.ndarray]:
    flat: list[Hashable] = []
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    for number, row in enumerate(rows):
        if isinstance(row, str | bytes):
            raise InputError(f"Row {number} is text: {row[:40]!r}.", "Give token ids, or words: text.split().")
        if isinstance(row, np.ndarray) and row.ndim != 1:
            raise InputError(f"Row {number} has shape {row.shape}.", "Give one row of tokens.")
        flat.extend(row.tolist() if isinstance(row, np.ndarray) else row)
        offsets[number + 1] = len(flat)
    return np.fromiter(_codes_of(flat, codes), dtype=np.int64, count=len(flat)), offsets


def _codes_of(flat: list[Hashable], codes: dict[Hashable, int]) -> Iterable[int]:
    return (codes.setdefault(token, len(codes)) for token in flat)


def _rows(flat: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    values, ends = flat.tolist(), offsets.tolist()
    return [values[begin:end] for begin, end in pairwise(ends)]


@numba.njit(cache=True)
def _common_run(y: np.ndarray, s: np.ndarray) -> tuple[int, int, int]:
    """Longest common substring by the classic recurrence, one row of the table at a time."""
    best, y_start, s_start = 0, 0, 0
    row = np.zeros(len(s) + 1, dtype=np.int64)  # row[j + 1]: length of the common run that ends at y[i] and s[j]
    for i in range(len(y)):
        diagonal = 0
        for j in range(len(s)):
            above = row[j + 1]
            row[j + 1] = diagonal + 1 if y[i] == s[j] else 0
            diagonal = above
            if row[j + 1] > best:
                best, y_start, s_start = row[j + 1], i - row[j + 1] + 1, j - row[j + 1] + 1
    return best, y_start, s_start


@numba.njit(cache=True)
def _clipped_matches(y: np.ndarray, s: np.ndarray, order: int) -> int:
    """Number of the candidate's n-grams that find an n-gram of the reference not yet taken by another."""
    taken = np.zeros(max(len(s) - order + 1, 0), dtype=np.bool_)
    matches = 0
    for i in range(len(y) - order + 1):
        for j in range(len(taken)):
            if taken[j] or y[i] != s[j]:
                continue
            equal = True
            for k in range(1, order):
                if y[i + k] != s[j + k]:
                    equal = False
                    break
            if equal:
                taken[j] = True
                matches += 1
                break
    return matches


@numba.njit(cache=True)
def _bleu_and_runs(
    y_flat: np.ndarray, y_offsets: np.ndarray, s_flat: np.ndarray, s_offsets: np.ndarray, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    pairs = len(y_offsets) - 1
    bleus = np.zeros(pairs, dtype=np.float64)
    runs = np.zeros(pairs, dtype=np.int64)
    for pair in range(pairs):
        y = y_flat[y_offsets[pair] : y_offsets[pair + 1]]
        s = s_flat[s_offsets[pair] : s_offsets[pair + 1]]
        runs[pair] = _common_run(y, s)[0]
        if len(y) == 0 or len(s) == 0:
            bleus[pair] = 1.0 if len(y) == len(s) else 0.0
            continue
        if runs[pair] == 0:
            continue
        orders = min(4, len(y))
        total = 0.0
        for order in range(1, orders + 1):
            matches = _clipped_matches(y, s, order)
            total += np.log((matches if matches > 0 else smoothing) / (len(y) - order + 1))
        bleus[pair] = np.exp(total / orders) * min(1.0, np.exp(1.0 - len(s) / len(y)))
    return bleus, runs
