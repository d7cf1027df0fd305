"""Prompts in which the order of marked parts provably does not matter (system 049).

McIlroy-Young, Brown, Olson, Zhang, Dwork, NeurIPS 2024, arXiv 2406.06581. A prompt is text A, a set {S_1 … S_m}, text D, and more sets if
one likes. Every piece is tokenised on its own. All S_j begin at position |A| and do not see each other; D begins at |A| + max_j |S_j| and
sees everything, as does what is generated (the rule: `set_masks`; the model's side: `set_decoding`). The states of S_j then depend on A and
S_j only, and attention, a sum over keys, does not know in which order it adds: the output is the same for every order of the pieces, up to
the order of the additions in floating-point numbers. With `canonical` the pieces are sorted before they are read, and it is the same to
the bit.

    A <|start_2d|>S_1<|split_2d|>S_2<|end_2d|> D        the marks, as in the authors' code

Blanks and newlines between pieces belong to the pieces: what is glued to one of them changes with its place. A tokenizer that puts a blank
before every text (SentencePiece with a dummy prefix) puts one before every piece, as in the authors' code. Of the two forms there, with
pieces padded to one length and without, this is the one without, which the paper reports. Beyond it: a BOS once, whatever comes first;
sliding windows, which are measured in positions; and whether a model keeps the promise is tried out once on a few ids.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palimpsest.context.set_masks import EncodedSets
from palimpsest.errors import InputError
from palimpsest.tokenizer import Tokenizer

START, SPLIT, END = "<|start_2d|>", "<|split_2d|>", "<|end_2d|>"
_MARK = re.compile("|".join(map(re.escape, (START, SPLIT, END))))


@dataclass(frozen=True)
class SetPrompt:
    """A prompt of texts and sets of texts.

    Args:
        parts: in their order; a text is a string, a set a collection of strings (a list keeps an order that can be asked for again).

    Raises:
        InputError: no set, an empty set or piece, a set inside a set, a mark inside a text, or nothing behind the last set.

    Example:
        >>> prompt = SetPrompt(["The sea is one of", [" dry", " wet"], ":"])
        >>> str(prompt)
        'The sea is one of<|start_2d|> dry<|split_2d|> wet<|end_2d|>:'
        >>> SetPrompt.parse(str(prompt)) == prompt
        True
    """

    parts: Sequence[str | Collection[str]]

    def __post_init__(self) -> None:
        parts: list[str | tuple[str, ...]] = []
        for part in self.parts:
            pieces = (part,) if isinstance(part, str) else tuple(part) if isinstance(part, Collection) else ()
            if not pieces or not all(isinstance(piece, str) for piece in pieces):
                raise InputError(f"The set {part!r} is empty, or holds what is no text.", "Give at least one text; sets do not nest.")
            if isinstance(part, set | frozenset):  # which has no order of its own, so that none may be read out of it
                pieces = tuple(sorted(pieces))
            if not isinstance(part, str) and not all(pieces):
                raise InputError(f"The set {part!r} holds an empty piece.", "Leave it out, or write what it stands for.")
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part  # one text, which is tokenised as one
            elif part != "":
                parts.append(part if isinstance(part, str) else pieces)
        for text in itertools.chain.from_iterable([part] if isinstance(part, str) else part for part in parts):
            if marked := _MARK.search(text):
                raise InputError(f"The mark {marked.group()} stands inside the text {text!r}.", "Read marked text with SetPrompt.parse.")
        object.__setattr__(self, "parts", tuple(parts))
        if not self.sets:
            raise InputError("The prompt holds no set.", f"Mark one: {START}a{SPLIT}b{END}.")
        if not isinstance(parts[-1], str):
            raise InputError(
                "Nothing stands behind the last set, so the last piece alone would be continued.", "Put text behind it, a newline at least."
            )

    @classmethod
    def parse(cls, text: str) -> SetPrompt:
        """The prompt that a text with marks stands for.

        Raises:
            InputError: a mark where none may stand, or a set that does not end; the message says at which character.
        """
        parts: list[str | list[str]] = []
        inside, at = False, 0
        for found in _MARK.finditer(text):
            mark, start = found.group(), found.start()
            if inside == (mark == START):
                problem = "begins inside another set" if inside else "stands outside of a set"
                raise InputError(f"{mark} at character {start} {problem}.", "Sets neither nest nor overlap: end one first.")
            piece = text[at:start]
            if inside:
                parts[-1].append(piece)  # type: ignore[union-attr]
            else:
                parts.append(piece)
            if mark == START:
                parts.append([])
            inside, at = mark != END, start + len(mark)
        if inside:
            raise InputError(f"The last {START} of the prompt has no {END}.", f"Put {END} behind the last piece.")
        return cls([*parts, text[at:]])

    def __str__(self) -> str:
        return "".join(part if isinstance(part, str) else START + SPLIT.join(part) + END for part in self.parts)

    @property
    def sets(self) -> list[tuple[str, ...]]:
        """The sets, each in its order."""
        return [part for part in self.parts if isinstance(part, tuple)]

    def orders(self, count: int, seed: int = 0) -> list[SetPrompt]:
        """At most `count` different orders of the pieces, this one first, the others drawn by the seed.

        Raises:
            InputError: count < 1.
        """
        if count < 1:
            raise InputError(f"{count} orders were asked for.", "Give at least 1.")
        rng = np.random.default_rng(seed)
        total = math.prod(math.factorial(len(pieces)) for pieces in self.sets)
        if total <= 2 * count:  # few: all of them, shuffled
            every = itertools.product(*(itertools.permutations(range(len(pieces))) for pieces in self.sets))
            others = list(every)[1:]
            rng.shuffle(others)
            drawn: Iterator[Any] = iter(others)
        else:
            drawn = (tuple(tuple(rng.permutation(len(pieces)).tolist()) for pieces in self.sets) for _ in itertools.count())
        found = {tuple(tuple(range(len(pieces))) for pieces in self.sets): self}
        for places in drawn:
            if len(found) == count:
                break
            key = tuple(tuple(map(int, order)) for order in places)
            found.setdefault(key, self._ordered(key))
        return list(found.values())

    def _ordered(self, places: tuple[tuple[int, ...], ...]) -> SetPrompt:
        orders = iter(places)
        return SetPrompt([tuple(part[i] for i in next(orders)) if isinstance(part, tuple) else part for part in self.parts])

    def encode(
        self, tokenizer: Tokenizer, bos: int | None = None, *, canonical: bool = False, apart: bool = True, parallel: bool = True
    ) -> EncodedSets:
        """The prompt's tokens, their positions, sets and pieces.

        Args:
            tokenizer: of the model.
            bos: the id to put in front, if the model expects one.
            canonical: whether the pieces of a set are sorted by their ids.
            apart: whether pieces are hidden from each other. The method needs it; without it and `parallel` this is the plain prompt.
            parallel: whether pieces share their positions. The method needs it.

        Raises:
            InputError: a piece, or the text behind the last set, has no token.
        """
        out = EncodedSets.empty().with_text([] if bos is None else [bos])
        for part in self.parts:
            if not isinstance(part, tuple):
                out = out.with_text(tokenizer.encode(str(part)))
                continue
            pieces = tokenizer.encode_batch(part)
            if not all(pieces):
                raise InputError(f"The piece {part[pieces.index([])]!r} has no token.", "Give text that the tokenizer knows.")
            out = out.with_set(sorted(pieces) if canonical else pieces)
        if out.sets[-1] >= 0:
            raise InputError(f"The text {self.parts[-1]!r} behind the last set has no token.", "Give text that the tokenizer knows.")
        nowhere = np.full(len(out), -1)
        sets, pieces_of = (out.sets, out.pieces) if apart else (nowhere, nowhere)
        positions, after = (out.positions, out.after) if parallel else (np.arange(len(out)), len(out))
        return EncodedSets(out.ids, positions, sets, pieces_of, after)
