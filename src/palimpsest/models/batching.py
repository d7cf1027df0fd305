"""Rows of token ids on their way into a model: checked once, at the door, and packed into batches of similar length.

A row that passes `check_rows` is an int64 array of at least one id inside the vocabulary and, with BOS, inside the context:
nothing behind the door has to ask again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from palimpsest.errors import ContextOverflowError, InputError


def check_rows(
    batch_ids: Sequence[Sequence[int] | np.ndarray], vocab_size: int, context_length: int, extra: int = 0, what: str = "Row"
) -> list[np.ndarray]:
    """The rows as int64 arrays, or the error that names the first bad one.

    Args:
        batch_ids: rows of token ids.
        vocab_size: ids must be in [0, vocab_size).
        context_length: the most tokens that the model can see.
        extra: tokens that will stand beside each row in the context (BOS, tokens to be written).
        what: what a row is called in messages.

    Raises:
        InputError: no rows, an empty row, a row that is not one-dimensional or not integer, an id outside the vocabulary.
        ContextOverflowError: a row that does not fit into the context together with `extra` tokens.
    """
    if isinstance(batch_ids, str | bytes) or (isinstance(batch_ids, np.ndarray) and batch_ids.ndim < 2):
        raise InputError(f"A batch of rows is expected, not one {type(batch_ids).__name__}.", "Give a list of rows of token ids: [ids].")
    if len(batch_ids) == 0:
        raise InputError("The batch has no rows.", "Give at least one row of token ids.")
    rows = []
    for index, ids in enumerate(batch_ids):
        try:
            row = np.asarray(ids)
        except (TypeError, ValueError) as error:
            raise InputError(f"{what} {index} is not a row of numbers: {error}.", "Give a flat list of token ids.") from error
        if row.ndim != 1:
            raise InputError(f"{what} {index} has shape {row.shape}.", "Give a flat list of token ids.")
        if row.size == 0:
            raise InputError(f"{what} {index} is empty.", "Every row needs at least one token id.")
        if not np.issubdtype(row.dtype, np.integer):
            raise InputError(
                f"{what} {index} has type {row.dtype}.", "Token ids are integers; encode text with model.tokenizer.encode(text)."
            )
        low, high = int(row.min()), int(row.max())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise InputError(
                f"{what} {index} holds the id {wrong}, but the model knows the ids 0 to {vocab_size - 1}.",
                "Encode the text with this model's own tokenizer.",
            )
        if len(row) + extra > context_length:
            beside = f" and {extra} tokens beside it" if extra else ""
            raise ContextOverflowError(
                f"{what} {index} has {len(row)} tokens{beside}, but the model sees at most {context_length}.",
                "Give a shorter row, or a model with a longer context.",
            )
        rows.append(row.astype(np.int64, copy=False))
    return rows


def check_starts(start: int | Sequence[int], rows: Sequence[np.ndarray]) -> list[int]:
    """The first scored position of every row.

    Raises:
        InputError: not one start or one a row, or a start outside 1 to the row's length.
    """
    starts = [start] * len(rows) if isinstance(start, int | np.integer) else list(start)
    if len(starts) != len(rows):
        raise InputError(f"There are {len(starts)} starts for {len(rows)} rows.", "Give one start, or one for each row.")
    for index, (first, row) in enumerate(zip(starts, rows, strict=True)):
        if not isinstance(first, int | np.integer) or not 1 <= first <= len(row):
            raise InputError(
                f"start is {first!r} for row {index} of {len(row)} tokens.",
                "Give an integer from 1 (0 has no context) to the row's length.",
            )
    return [int(first) for first in starts]


def batches_by_length(
    lengths: Sequence[int], batch_tokens: int, max_rows: int | None = None, *, equal: bool = False
) -> Iterator[list[int]]:
    """Row numbers in batches, longest rows first, so that a batch holds at most `batch_tokens` padded tokens.

    Longest first: memory is at its peak in the first batch, and the estimate of what is left only gets better. A row that is
    longer than `batch_tokens` goes alone. With `equal`, only rows of one length share a batch.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batch: list[int] = []
    width = 0
    for row in order:
        full = (len(batch) + 1) * width > batch_tokens or len(batch) == max_rows or (equal and lengths[row] != width)
        if batch and full:
            yield batch
            batch = []
        if not batch:
            width = lengths[row]
        batch.append(row)
    if batch:
        yield batch


def pad(rows: Sequence[np.ndarray], side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input ids, attention mask and position ids, each (rows, longest), padded on `side` ("left" or "right") with id 0.

    Position ids count real tokens from 0; padding, which no real token attends to, has position 0.
    """
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, span] = row
        mask[index, span] = 1
    positions = (np.cumsum(mask, axis=1) - 1) * mask
    return tuple(torch.from_numpy(array).to(device) for array in (ids, mask, positions))  # type: ignore[return-value]
