"""Examples to train on: rows of token ids of different length, each with the first position that is asked for.

`ids[first:]` are the targets of a row, what stands before is given. Rows are padded on the right; the padding is neither seen nor asked
for. `ExampleBatches` deals them in a new order each epoch; batch k is a pure function of k, as the training loop wants it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from palimpsest.errors import InputError
from palimpsest.training.batch import IGNORE, PackedBatch


@dataclass(frozen=True)
class Example:
    """A row to train on.

    Attributes:
        ids: token ids, BOS included where the model wants it.
        first: the first position whose id is asked for, at least 1.
    """

    ids: tuple[int, ...]
    first: int = 1


@dataclass(frozen=True)
class ExampleBatches:
    """Batches of examples of different length, in a new order each epoch; see `palimpsest.training.batch.BatchSource`.

    Args:
        examples: at least one.
        batch_size: examples a batch.
        pad_id: fills rows on the right; never seen and never asked for.
        seed: of the order.

    Raises:
        InputError: no examples, or one that asks for nothing.
    """

    examples: Sequence[Example]
    batch_size: int
    pad_id: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        bad = [e for e in self.examples if not 1 <= e.first < len(e.ids)]
        if not self.examples or bad or self.batch_size < 1:
            raise InputError(
                f"There are {len(self.examples)} examples, {len(bad)} of them ask for nothing; batch_size is {self.batch_size}.",
                "Give examples with at least one token after the first.",
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.examples) // self.batch_size)

    def chosen(self, k: int) -> list[Example]:
        """The examples of batch k."""
        epoch, batch = divmod(k, len(self))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.examples))
        return [self.examples[i] for i in order[batch * self.batch_size : (batch + 1) * self.batch_size]]

    def __getitem__(self, k: int) -> PackedBatch:
        return packed(self.chosen(k), self.pad_id)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the examples and of how they are dealt."""
        return hashlib.sha256(repr((tuple(self.examples), self.batch_size, self.pad_id, self.seed)).encode()).hexdigest()


def packed(examples: Sequence[Example], pad_id: int) -> PackedBatch:
    """One batch of these examples, padded on the right, with targets from `first` on."""
    width = max(len(example.ids) for example in examples)
    rows = np.full((len(examples), width), pad_id, dtype=np.int64)
    segments = np.zeros((len(examples), width), dtype=np.int64)
    for place, example in enumerate(examples):
        rows[place, : len(example.ids)] = example.ids
        segments[place, : len(example.ids)] = 1
    batch = PackedBatch.from_rows(rows, segments)
    labels = batch.labels.clone()
    for place, example in enumerate(examples):
        labels[place, : example.first - 1] = IGNORE
    return replace(batch, labels=labels)
