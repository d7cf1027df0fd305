"""Texts as words and n-grams of words, numbered: what two texts share besides their spelling.

A text is normalised before it is compared: compatible characters are made one (NFKC), case is folded, and only the words are kept, runs
of letters and digits; case, punctuation and spacing no longer tell two texts apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, normalised.

    Example:
        >>> words("The “Ｆirst” one,  the 2nd.")
        ['the', 'first', 'one', 'the', '2nd']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def word_ngrams(texts: Sequence[Sequence[str]], n: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Every n-gram of every text as a number, equal ones alike; exact, not hashed.

    Args:
        texts: rows of words.
        n: words of an n-gram, 1 at least.

    Returns:
        offsets int64 (texts + 1,), numbers int64 (n-grams,) from 0 on, and how many there are; a shorter text has none.

    Example:
        >>> at, ids, distinct = word_ngrams([["a", "b", "a", "b"], ["b", "a"], ["b"]], 2)
        >>> at.tolist(), ids.tolist(), distinct
        ([0, 3, 4, 4], [0, 1, 0, 1], 2)
    """
    numbers: dict[str, int] = {}
    tokens = np.array([numbers.setdefault(word, len(numbers)) for text in texts for word in text], np.int64)
    lengths = np.array([len(text) for text in texts], np.int64)
    rest = np.repeat(np.cumsum(lengths), lengths) - np.arange(tokens.size)  # words from here to the end of the text
    ids, distinct = tokens, len(numbers)
    for length in range(2, n + 1):  # an n-gram is an (n − 1)-gram and a word
        starts = np.flatnonzero(rest >= length)
        longer = np.full(tokens.size, -1, np.int64)
        found, longer[starts] = np.unique(ids[starts] * len(numbers) + tokens[starts + length - 1], return_inverse=True)
        ids, distinct = longer, found.size
    amounts = np.maximum(lengths - n + 1, 0)
    return np.concatenate([[0], np.cumsum(amounts)]), ids[rest >= n], distinct
