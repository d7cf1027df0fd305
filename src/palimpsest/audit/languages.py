"""In which language a text is written, told by a naive Bayes classifier over its byte n-grams.

Lui & Baldwin, *langid.py: An Off-the-shelf Language Identification Tool*, ACL 2012 (demonstrations): a multinomial naive Bayes over
n-grams of 1 to 4 bytes. Here it is trained on texts that the caller has, so that it knows the languages in question, made-up ones of a
laboratory included, and needs no file of weights:

    language(x) = argmax_l  log p(l) + Σ_g c_x(g) log (c_l(g) + ½) / (Σ_g' c_l(g') + |G| / 2),    p(l) uniform.

The paper of `alignment_forgetting` uses fastText's identifier; whatever has a method `identify` takes this one's place there. Three words
tell little: a text of fewer than `least` letters is left undetermined (None) rather than guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from palimpsest.errors import InputError

ORDERS = (1, 2, 3, 4)  # bytes
UNDETERMINED = "undetermined"


class Identifier(Protocol):
    """Tells languages: one code a text, None where it cannot tell."""

    def identify(self, texts: Sequence[str]) -> list[str | None]: ...


class LanguageIdentifier:
    """A naive Bayes classifier of languages.

    Args:
        samples: language -> texts in it.
        features: so many n-grams are kept, the most frequent ones of every language.
        least: letters that a text must have to be told.

    Attributes:
        languages: their codes, in the order of `samples`.

    Raises:
        InputError: fewer than two languages, or one without text.

    Example:
        >>> told = LanguageIdentifier({"en": ["the cat sat on the mat"], "de": ["die Katze saß auf der Matte"]}, least=5)
        >>> told.identify(["the mat sat", "auf die Matte", "?"])
        ['en', 'de', None]
    """

    def __init__(self, samples: Mapping[str, Iterable[str]], *, features: int = 3000, least: int = 12) -> None:
        counts = {language: Counter(gram for text in texts for gram in _grams(text)) for language, texts in samples.items()}
        empty = [language for language, found in counts.items() if not found]
        if len(counts) < 2 or empty:
            raise InputError(
                f"There are {len(counts)} languages, {len(empty)} of them without text.", "Give texts in at least two languages."
            )
        if features < 1 or least < 0:
            raise InputError(f"features is {features}, least is {least}.", "Give at least 1 feature, and no negative number of letters.")
        self.languages = list(counts)
        self.least = least
        kept = sorted({gram for found in counts.values() for gram, _ in sorted(found.items(), key=lambda g: (-g[1], g[0]))[:features]})
        self._column = {gram: i for i, gram in enumerate(kept)}
        table = np.array([[found[gram] for gram in kept] for found in counts.values()], np.float64) + 0.5
        self._logs = np.log(table / table.sum(axis=1, keepdims=True))  # (languages, n-grams)

    def identify(self, texts: Sequence[str]) -> list[str | None]:
        """The language of every text, None for one with too few letters or without a known n-gram."""
        out: list[str | None] = []
        for text in texts:
            columns = [self._column[gram] for gram in _grams(text) if gram in self._column]
            if not columns or sum(map(str.isalpha, text)) < self.least:
                out.append(None)
            else:
                out.append(self.languages[int(self._logs[:, columns].sum(axis=1).argmax())])
        return out


def language_shares(found: Sequence[str | None]) -> dict[str, float]:
    """The share of every language among the texts, those that were not told being "undetermined"; they sum to 1.

    Raises:
        InputError: no texts.
    """
    if not found:
        raise InputError("There are no texts.", "Give at least one.")
    counts = Counter(UNDETERMINED if language is None else language for language in found)
    return {language: count / len(found) for language, count in sorted(counts.items())}


def _grams(text: str) -> list[bytes]:
    """The byte n-grams of a text in lower case, digits and repeated blanks aside."""
    data = " ".join("".join(" " if c.isdigit() else c for c in text.lower()).split()).encode()
    return [data[i : i + n] for n in ORDERS for i in range(len(data) - n + 1)]
