"""Texts as the ids of a vocabulary of chosen size: byte-pair codings of one corpus, and two controls that change one thing alone.

Ids are laid out alike in every coding: 0 ends a text, 1 is the filler, then come the labels, then the tokens, r ids for each. A coding has

    id of an occurrence of token b = reserved + b·r + a,   a drawn from 0 … r−1 by the seed and the text, so that a text has one form,

so that r = 1 is plain BPE and r > 1 the *alias* control: a vocabulary r times as large, of the same length. Aliases that stay are marks by
which a text of n tokens can be told from others, n · log r of them; `redraw` draws them anew each time that a text is seen, so that the
vocabulary grows and nothing else is said. The *length* control spreads
the tokens of a coding evenly over the length that another coding gives the text, the filler between them: as long, with the same
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from palimpsest.errors import InputError

END, FILLER, FIRST_LABEL = 0, 1, 2
BYTES = 256


@dataclass(frozen=True)
class Coding:
    """A vocabulary and how texts become its ids.

    Attributes:
        merges: of the byte-pair encoding; 0 leaves bytes.
        backend: the tokenizer behind it, of BYTES + merges tokens.
        labels: ids kept for labels.
        aliases: r, ids of a token.
        redraw: whether training draws them anew each epoch; `encode` gives the same ones always.
        as_long_as: the coding whose length texts are stretched to.
        seed: of the aliases.

    Example:
        >>> plain = train_coding(["to be or not to be"], merges=2)
        >>> plain.decode(plain.encode("to be")), plain.vocab_size
        ('to be', 262)
        >>> long = replace(plain, as_long_as=train_coding(["to be or not to be"], merges=0))
        >>> len(plain.encode("to be")), len(long.encode("to be")), long.decode(long.encode("to be"))
        (3, 5, 'to be')
    """

    merges: int
    backend: tokenizers.Tokenizer = field(repr=False, compare=False)
    labels: int = 2
    aliases: int = 1
    redraw: bool = False
    as_long_as: Coding | None = field(default=None, repr=False)
    seed: int = 0

    @property
    def name(self) -> str:
        """What tables call it."""
        alias = f" ×{self.aliases}" + (" redrawn" if self.redraw else "") if self.aliases > 1 else ""
        return f"{self.merges:,} merges{alias}" + (f" as long as {self.as_long_as.merges:,}" if self.as_long_as else "")

    @property
    def plain(self) -> bool:
        """Whether it is neither control."""
        return self.aliases == 1 and self.as_long_as is None

    @property
    def reserved(self) -> int:
        """Ids before those of the tokens."""
        return FIRST_LABEL + self.labels

    @property
    def vocab_size(self) -> int:
        """Ids in all."""
        return self.reserved + (BYTES + self.merges) * self.aliases

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end."""
        head, tail = self.split(text, len(text))
        return head + tail

    def split(self, text: str, cut: int) -> tuple[list[int], list[int]]:
        """The ids of a text in two parts, the first of which spells `text[:cut]`.

        Raises:
            InputError: a token spans the cut, or the ids do not spell the text.
        """
        base = self._base(text)
        first = len(self._base(text[:cut])) if cut < len(text) else len(base)
        if self.backend.decode(base[:first]) != text[:cut] or self.backend.decode(base) != text:
            raise InputError(f"{text!r} cannot be cut after {cut} characters with {self.merges} merges.", "Cut in front of a space.")
        rng = np.random.default_rng((self.seed, crc32(text.encode())))
        drawn = rng.integers(self.aliases, size=len(base))
        ids = self.reserved + np.asarray(base, dtype=np.int64) * self.aliases + drawn
        if self.as_long_as is None:
            return ids[:first].tolist(), ids[first:].tolist()
        length = max(len(base), len(self.as_long_as.encode(text)))
        places = np.arange(len(base)) * length // max(1, len(base))
        row = np.full(length, FILLER, dtype=np.int64)
        row[places] = ids
        at = int(places[first]) if first < len(base) else length
        return row[:at].tolist(), row[at:].tolist()

    def redrawn(self, ids: Sequence[int], rng: np.random.Generator) -> list[int]:
        """The ids of a row with other aliases; ends, fillers and labels stay."""
        row = np.asarray(ids, dtype=np.int64)
        drawn = self.reserved + (row - self.reserved) // self.aliases * self.aliases + rng.integers(self.aliases, size=len(row))
        return np.where(row < self.reserved, row, drawn).tolist()

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; ends, fillers and labels spell nothing."""
        return self.backend.decode([(int(i) - self.reserved) // self.aliases for i in ids if i >= self.reserved])

    def _base(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids


def train_coding(texts: Sequence[str], merges: int, labels: int = 2) -> Coding:
    """A byte-level BPE of exactly so many merges, none of them of a pair that comes once.

    Raises:
        InputError: the texts do not have so many pairs to merge, a number out of range, or no texts.
    """
    if merges < 0 or labels < 2 or not any(texts):
        raise InputError(f"{merges} merges, {labels} labels, {len(texts)} texts.", "Give 0 merges or more, 2 labels or more, and texts.")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + merges, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size() - BYTES
    if found != merges:
        raise InputError(f"The texts have pairs for {found} merges, not for {merges}.", "Ask for fewer merges, or give more text.")
    return Coding(merges, backend, labels)


def with_aliases(coding: Coding, aliases: int, seed: int = 0, *, redraw: bool = False) -> Coding:
    """The alias control of a coding.

    Raises:
        InputError: fewer than 2 aliases.
    """
    if aliases < 2:
        raise InputError(f"{aliases} aliases change nothing.", "Give 2 or more.")
    return replace(coding, aliases=aliases, seed=seed, redraw=redraw)


def cut_of(text: str, share: float) -> int | None:
    """The space nearest to a share of the characters: no vocabulary has a token across it; None where there is none.

    Example:
        >>> cut_of("what is memory ?", 0.5), cut_of("memory", 0.5)
        (7, None)
    """
    spaces = [at for at in range(1, len(text) - 1) if text[at] == " " and text[at - 1] != " "]
    return min(spaces, key=lambda at: (abs(at - share * len(text)), at), default=None)
