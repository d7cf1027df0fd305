"""Contexts of an exact number of tokens: real text, with needles at given depths.

Kamradt's needle in a haystack (2023), as contexts rather than as a benchmark; systems 008, 015 and 104 make their trials of it. A context
is

    before · filler … needle … filler · after

in ids: every part is encoded by itself and joined as ids, so that lengths are exact, no special token stands in the middle, and a needle
stands in the context once and contiguous. The filler is real text, cut into sentences. It starts at a place that the seed chooses, runs
over the texts in order and ends with a whole sentence; what is too much is cut off its beginning, as a window into a longer text would.

Depth 0 is before all filler, depth 1 behind all of it; between them a needle stands at the last end of a sentence at or before
δ · (filler tokens), so the depth reached is a little less than what was asked, and is reported. Where sentences are long that matters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError
from palimpsest.tokenizer import Tokenizer

_SENTENCE = re.compile(r"[^\n.!?]*(?:[.!?]+[\"'”’)\]]*|\n+|$)\s*")


@dataclass(frozen=True)
class Recipe:
    """All that makes a context, so that it can be made again from a row of a table.

    Attributes:
        needles: texts.
        depths: where each is to stand, 0 to 1, ascending.
        length: tokens of the whole context.
        before, after: texts around it (a prompt's head; its question).
        seed: where the filler starts.
    """

    needles: tuple[str, ...]
    depths: tuple[float, ...]
    length: int
    before: str = ""
    after: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "needles", tuple(self.needles))
        object.__setattr__(self, "depths", tuple(self.depths))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON types; `Recipe(**value)` is its inverse."""
        return {**asdict(self), "needles": list(self.needles), "depths": list(self.depths)}


@dataclass(frozen=True)
class Context:
    """A context.

    Attributes:
        ids: int64 (recipe.length,).
        spans: where each needle stands, (start, end) in tokens.
        depths: where they really stand, as shares of the filler.
        filler: tokens of filler.
        recipe: what it was made from.
    """

    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    depths: tuple[float, ...]
    filler: int
    recipe: Recipe


class Haystack:
    """Makes contexts for one tokenizer from filler texts.

    Args:
        tokenizer: the model's.
        texts: the filler: real texts, the more the better.
        cycle: whether the texts may be repeated when they are too short.

    Attributes:
        tokens: tokens of all texts together.

    Raises:
        InputError: texts without a token.

    Example:
        >>> haystack = Haystack(tokenizer, [book])                                                  # doctest: +SKIP
        >>> context = haystack.make(Recipe(("The code is 7. ",), (0.5,), 512, after="The code is"))  # doctest: +SKIP
        >>> len(context.ids)                                                                        # doctest: +SKIP
        512
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], *, cycle: bool = False) -> None:
        self.tokenizer, self.cycle = tokenizer, cycle
        pieces = [piece for text in texts for piece in sentences(text if text.endswith("\n") else text + "\n")]
        encoded = [ids for ids in tokenizer.encode_batch(pieces) if ids] if pieces else []
        if not encoded:
            raise InputError("The filler texts have no tokens.", "Give real text.")
        self._ids = np.concatenate([np.array(ids, np.int64) for ids in encoded])
        self._ends = np.cumsum([len(ids) for ids in encoded])
        self.tokens = len(self._ids)
        self._is_end = np.zeros(self.tokens, bool)  # of each token, whether a sentence ends behind it
        self._is_end[self._ends - 1] = True

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the filler's ids, of where its sentences end, and of whether it is repeated."""
        digest = hashlib.sha256(f"{self.cycle} ".encode())
        for part in (self._ids, self._is_end):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def make(self, recipe: Recipe, *, forbidden: Sequence[str] = ()) -> Context:
        """The context of a recipe.

        Args:
            recipe: what it is made of; the same recipe gives the same context.
            forbidden: texts that the filler must not hold, such as the answer.

        Returns:
            Exactly `recipe.length` tokens.

        Raises:
            InputError: depths that do not fit the needles, a length with no room for them, too little filler, or filler that holds
                something forbidden.
        """
        needles = [np.array(self.tokenizer.encode(needle), np.int64) for needle in recipe.needles]
        before, after = (np.array(self.tokenizer.encode(text) if text else [], np.int64) for text in (recipe.before, recipe.after))
        depths = list(recipe.depths)
        if len(depths) != len(needles) or depths != sorted(depths) or (depths and not 0 <= depths[0] <= depths[-1] <= 1):
            raise InputError(f"{len(needles)} needles with depths {depths}.", "Give one ascending depth from 0 to 1 for each.")
        if any(len(needle) == 0 for needle in needles):
            raise InputError("A needle has no tokens.", "Give a text that this tokenizer knows.")
        room = recipe.length - len(before) - len(after) - sum(map(len, needles))
        if room < 0:
            raise InputError(
                f"A context of {recipe.length} tokens has no room for its needles, head and question of {recipe.length - room}.",
                "Ask for a longer context.",
            )
        filler, ends = self._filler(room, recipe.seed)
        held = f" {' '.join(words(self.tokenizer.decode(filler)))} " if forbidden else ""
        hits = [text for text in forbidden if f" {' '.join(words(text))} " in held]
        if hits:
            raise InputError(f"The filler holds {hits[0]!r}.", "Choose other filler, another seed or another needle.")
        places = [0 if depth == 0 else room if depth == 1 else int(ends[ends <= depth * room].max(initial=0)) for depth in depths]
        parts, spans, at, done = [before], [], len(before), 0
        for place, needle in zip(places, needles, strict=True):
            parts += [filler[done:place], needle]
            at += place - done
            spans.append((at, at + len(needle)))
            at, done = at + len(needle), place
        parts += [filler[done:], after]
        reached = tuple(place / room if room else 0.0 for place in places)
        return Context(np.concatenate(parts), tuple(spans), reached, room, recipe)

    def _filler(self, room: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`room` tokens that end with a sentence, and the ends of sentences in them, ascending."""
        if room == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if room > self.tokens and not self.cycle:
            raise InputError(f"{room} tokens of filler were asked for, the texts have {self.tokens}.", "Give more text, or cycle=True.")
        rng = np.random.default_rng(seed)
        stops = self._ends if self.cycle else self._ends[self._ends >= room]
        stop = int(stops[rng.integers(len(stops))])
        positions = np.arange(stop - room, stop)
        ids = self._ids[positions % self.tokens]
        ends = np.flatnonzero(self._is_end[positions % self.tokens]) + 1
        return ids, ends


def sentences(text: str) -> list[str]:
    """A text cut behind the ends of its sentences and lines; joined, the pieces are the text.

    Example:
        >>> sentences("It is. Is it? Yes")
        ['It is. ', 'Is it? ', 'Yes']
    """
    return [piece for piece in _SENTENCE.findall(text) if piece]
