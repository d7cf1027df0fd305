"""Pairs of a source and a target as batches of ids, with temporary ids for words that only the source knows.

A vocabulary of V words numbers them 0 … V−1. The words of one source that are not in it get the ids V, V+1, … in the order in which
they come, for this source alone: with them a model that copies can write what it has no word for. Where the target has such a word, its
label is that id; a word that neither knows is `UNK`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from palimpsest.errors import InputError
from palimpsest.training.batch import IGNORE

PAD, UNK, BOS, EOS = range(4)
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")

Text = Sequence[str]  # words


class Vocabulary:
    """Words and their ids, the four special ones first.

    Args:
        words: all others, each once.

    Raises:
        InputError: a word that is there twice, or has the form of a special one.

    Example:
        >>> vocab = Vocabulary.of([["a", "b", "a"], ["c"]])
        >>> ids, extended, unknown = vocab.encode_source(["a", "x", "y", "x"])
        >>> ids, extended, unknown
        ([4, 1, 1, 1], [4, 7, 8, 7], ['x', 'y'])
        >>> vocab.decode(vocab.encode_target(["y", "a", "z"], unknown), unknown)
        ['y', 'a', '<unk>']
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = (*SPECIAL, *words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            twice = [word for word, n in Counter(self.words).items() if n > 1]
            raise InputError(f"The vocabulary has {twice[0]!r} twice.", "Give every word once, and none of the form of a special one.")

    @classmethod
    def of(cls, texts: Iterable[Text], min_count: int = 1) -> Vocabulary:
        """The words that texts have at least `min_count` times, the most common first, then in the order in which they come."""
        counts = Counter(word for text in texts for word in text)
        return cls([word for word, n in sorted(counts.items(), key=lambda item: -item[1]) if n >= min_count and word not in SPECIAL])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def encode_source(self, text: Text) -> tuple[list[int], list[int], list[str]]:
        """Ids with `UNK`, ids with temporary ones, and the words that have these, in order."""
        ids = [self._ids.get(word, UNK) for word in text]
        unknown = list(dict.fromkeys(word for word in text if word not in self._ids))
        temporary = {word: len(self) + i for i, word in enumerate(unknown)}
        return ids, [temporary.get(word, i) for word, i in zip(text, ids, strict=True)], unknown

    def encode_target(self, text: Text, unknown: Sequence[str] = ()) -> list[int]:
        """Ids of a target whose source has the words `unknown` (see `encode_source`)."""
        temporary = {word: len(self) + i for i, word in enumerate(unknown)}
        return [self._ids.get(word, temporary.get(word, UNK)) for word in text]

    def decode(self, ids: Iterable[int], unknown: Sequence[str] = ()) -> list[str]:
        """Words again."""
        return [self.words[i] if i < len(self) else unknown[i - len(self)] for i in ids]


@dataclass(frozen=True)
class PairBatch:
    """Sources, and targets where there are any.

    Attributes:
        source: (batch, source time) int64, `UNK` for what is not in the vocabulary, `PAD` at the end.
        extended: the same with temporary ids.
        lengths: (batch,) int64: words of each source; on the CPU, as packing asks for.
        target_input: (batch, target time) int64: `BOS` and the target; temporary ids are `UNK` here, there is no embedding for them.
        labels: (batch, target time) int64: the target, with temporary ids, and `EOS`; -100 after it.
        n_unknown: the most words of one source that are not in the vocabulary.
    """

    source: torch.Tensor
    extended: torch.Tensor
    lengths: torch.Tensor
    target_input: torch.Tensor
    labels: torch.Tensor
    n_unknown: int

    @classmethod
    def of(cls, vocab: Vocabulary, sources: Sequence[Text], targets: Sequence[Text] | None = None, copying: bool = True) -> PairBatch:
        """Encodes and pads.

        Args:
            vocab: of both sides.
            sources: texts of a word or more.
            targets: one each; None: none, as for decoding.
            copying: whether labels may be temporary ids; if not, what is not in the vocabulary is `UNK`.

        Raises:
            InputError: no source, an empty one, or not one target each.

        Example:
            >>> batch = PairBatch.of(Vocabulary(["a", "b"]), [["a", "x"], ["b"]], [["x"], ["b", "a"]])
            >>> batch.extended.tolist(), batch.labels.tolist(), batch.target_input.tolist()
            ([[4, 6], [5, 0]], [[6, 3, -100], [5, 4, 3]], [[2, 1, 0], [2, 5, 4]])
        """
        if not sources or not all(sources):
            raise InputError(f"There are {len(sources)} sources, or one is empty.", "Give at least one source, each of a word or more.")
        if targets is not None and len(targets) != len(sources):
            raise InputError(f"There are {len(sources)} sources and {len(targets)} targets.", "Give one target for every source.")
        encoded = [vocab.encode_source(text) for text in sources]
        known = [unknown if copying else [] for _, _, unknown in encoded]
        wanted = [vocab.encode_target(text, words) for text, words in zip(targets or [[]] * len(sources), known, strict=True)]
        return cls(
            _padded([ids for ids, _, _ in encoded], PAD),
            _padded([extended for _, extended, _ in encoded], PAD),
            torch.tensor([len(ids) for ids, _, _ in encoded]),
            _padded([[BOS, *(i if i < len(vocab) else UNK for i in ids)] for ids in wanted], PAD),
            _padded([[*ids, EOS] for ids in wanted], IGNORE),
            max(len(unknown) for _, _, unknown in encoded),
        )

    @property
    def n_tokens(self) -> int:
        """Words of the sources, and of the targets with their ends."""
        return int(self.lengths.sum()) + self.n_target_tokens

    @property
    def n_target_tokens(self) -> int:
        """Words of the targets with their ends."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device | str) -> PairBatch:
        """The batch on another device, its lengths excepted."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("source", "extended", "target_input", "labels")})


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs for the training loop: shuffled anew each epoch, pairs of like length together.

    Args:
        vocab: of both sides.
        sources, targets: the texts.
        batch_size: pairs a batch; the last one of an epoch may be smaller.
        seed: of the order.
        copying: as of `PairBatch.of`.

    Raises:
        InputError: no pair, an empty source, not one target each, or batch_size < 1.
    """

    vocab: Vocabulary
    sources: Sequence[Text]
    targets: Sequence[Text]
    batch_size: int = 64
    seed: int = 0
    copying: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}.", "Give at least 1.")
        PairBatch.of(self.vocab, self.sources[:1], self.targets[:1])
        empty = next((i for i, text in enumerate(self.sources) if not text), None)
        if empty is not None or len(self.sources) != len(self.targets):
            raise InputError(
                f"There are {len(self.sources)} sources and {len(self.targets)} targets, the first empty source is {empty}.",
                "Give one target for every source, and no empty source.",
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.sources) // self.batch_size)

    def __getitem__(self, k: int) -> PairBatch:
        epoch, number = divmod(k, len(self))
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.sources))
        order = order[np.argsort(self._lengths[order], kind="stable")]  # equally long ones stay shuffled
        place = int(rng.permutation(len(self))[number])
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
        return PairBatch.of(self.vocab, [self.sources[i] for i in chosen], [self.targets[i] for i in chosen], self.copying)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(source) + len(target) for source, target in zip(self.sources, self.targets, strict=True)])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the pairs, the vocabulary and how they are cut and ordered."""
        content = [self.vocab.words, self.sources, self.targets, self.batch_size, self.seed, self.copying]
        return hashlib.sha256(json.dumps([list(part) if isinstance(part, Sequence) else part for part in content]).encode()).hexdigest()


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *([filler] * (width - len(row)))] for row in rows])
