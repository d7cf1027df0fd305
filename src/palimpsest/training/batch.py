"""Batches of token rows, as the training loop eats them.

A `PackedBatch` carries its own targets: `labels[b, t]` is the id that must follow `input_ids[b, t]`, or -100 where nothing is
asked. Where `segment_ids` are given, a label never crosses from one segment (document) into the next, padding (segment 0) is
never a target, and positions restart in every segment. `RowBatches` cuts a matrix of equally long rows into batches, in the
given order or shuffled anew each epoch; batch k is a pure function of k, which is what makes training resumable to the bit.
Other batches (pairs of a source and a target) and other sources of them need only be a `Batch` and a `BatchSource`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from palimpsest.errors import InputError

IGNORE = -100  # torch's own "no target"


@dataclass(frozen=True)
class PackedBatch:
    """Rows of tokens with their targets.

    Attributes:
        input_ids: (batch, time) int64.
        labels: (batch, time) int64; the id to predict at each position, -100 for none.
        position_ids: (batch, time) int64.
        segment_ids: (batch, time) int64, 0 = padding, 1.. = document in the row; None when a row is one stream of text.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor | None = None

    @classmethod
    def from_rows(cls, rows: np.ndarray, segment_ids: np.ndarray | None = None) -> PackedBatch:
        """Makes labels and positions from rows of ids.

        Args:
            rows: (batch, time) integers, time at least 2.
            segment_ids: (batch, time) integers, 0 = padding; None: every row is one segment.

        Raises:
            InputError: a wrong shape or type, or no target at all.

        Example:
            >>> batch = PackedBatch.from_rows(np.array([[5, 6, 7, 8]]), np.array([[1, 1, 2, 2]]))
            >>> batch.labels.tolist(), batch.position_ids.tolist()
            ([[6, -100, 8, -100]], [[0, 1, 0, 1]])
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2 or not np.issubdtype(rows.dtype, np.integer):
            raise InputError(f"Rows have shape {rows.shape} and type {rows.dtype}.", "Give integers of shape (batch, time >= 2).")
        labels = np.full(rows.shape, IGNORE, np.int64)
        labels[:, :-1] = rows[:, 1:]
        positions = np.broadcast_to(np.arange(rows.shape[1]), rows.shape).copy()
        if segment_ids is not None:
            segment_ids = np.asarray(segment_ids)
            if segment_ids.shape != rows.shape:
                raise InputError(f"segment_ids have shape {segment_ids.shape}, the rows {rows.shape}.", "Give one segment a token.")
            same = segment_ids[:, 1:] == segment_ids[:, :-1]
            labels[:, :-1][~same | (segment_ids[:, :-1] == 0)] = IGNORE
            starts = np.where(np.pad(~same, ((0, 0), (1, 0))), positions, 0)
            positions = positions - np.maximum.accumulate(starts, axis=1)
        if not (labels != IGNORE).any():
            raise InputError("The batch has no target.", "Give rows in which at least one token follows another of its document.")
        tensor = torch.from_numpy
        return cls(
            tensor(rows.astype(np.int64)),
            tensor(labels),
            tensor(positions),
            None if segment_ids is None else tensor(segment_ids.astype(np.int64)),
        )

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.input_ids.numel() if self.segment_ids is None else int((self.segment_ids > 0).sum())

    @property
    def n_target_tokens(self) -> int:
        """Positions at which something must be predicted."""
        return int((self.labels != IGNORE).sum())

    def attention_mask(self, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        """The additive (batch, 1, time, time) mask that keeps segments apart; None when every row is one stream.

        A padding position sees itself alone, so that its softmax is finite.
        """
        if self.segment_ids is None:
            return None
        seg = self.segment_ids
        time = seg.shape[1]
        allowed = (seg[:, :, None] == seg[:, None, :]) & (seg[:, :, None] > 0)
        allowed &= torch.ones(time, time, dtype=torch.bool, device=seg.device).tril()
        allowed |= torch.eye(time, dtype=torch.bool, device=seg.device)
        return torch.zeros(allowed.shape, dtype=dtype, device=seg.device).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("input_ids", "labels", "position_ids")}
        return replace(self, **moved, segment_ids=None if self.segment_ids is None else self.segment_ids.to(device))


class Batch(Protocol):
    """What the training loop asks of a batch: how much of it counts, and to be moved. What is in it, the loss knows."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def n_target_tokens(self) -> int: ...

    def to(self, device: torch.device | str) -> Batch: ...


class BatchSource(Protocol):
    """What the training loop asks of its data: batch k of an endless sequence, the same at every call."""

    @property
    def fingerprint(self) -> str: ...

    def __getitem__(self, k: int) -> Batch: ...


@dataclass(frozen=True)
class RowBatches:
    """Batches of `batch_size` rows; after the last row the next epoch begins. A last, smaller batch is kept.

    Args:
        rows: (n, time) integers.
        batch_size: rows a batch.
        shuffle_seed: None keeps the order of the rows in every epoch; a number shuffles each epoch anew.

    Raises:
        InputError: no rows, or batch_size < 1.

    Example:
        >>> data = RowBatches(np.arange(12).reshape(6, 2), batch_size=4)
        >>> len(data), data[1].input_ids.tolist()
        (2, [[8, 9], [10, 11]])
    """

    rows: np.ndarray
    batch_size: int
    shuffle_seed: int | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or len(self.rows) == 0:
            raise InputError(f"Rows have shape {self.rows.shape}.", "Give at least one row of shape (time,).")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}.", "Give at least 1.")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, k: int) -> PackedBatch:
        epoch, batch = divmod(k, len(self))
        chosen = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        if self.shuffle_seed is None:
            return PackedBatch.from_rows(self.rows[chosen])
        order = np.random.default_rng((self.shuffle_seed, epoch)).permutation(len(self.rows))
        return PackedBatch.from_rows(self.rows[order[chosen]])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows and of how they are cut and ordered."""
        rows = np.ascontiguousarray(self.rows, dtype=np.int64)
        head = f"{rows.shape} {self.batch_size} {self.shuffle_seed} ".encode()
        return hashlib.sha256(head + rows.tobytes()).hexdigest()
