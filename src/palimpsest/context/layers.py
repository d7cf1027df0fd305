"""Cache layers that know where every key came from, and that can give keys up.

A `PositionedLayer` takes the place of one layer of a transformers `Cache`. Beside keys and values (batch, kv_heads, columns, head_dim)
it holds the position of every entry, (batch, kv_heads, columns) int32, with `EMPTY` = -1 where there is nothing to attend to: padding,
a place that has been given up, or the rest of a shorter head. So a mask is `positions >= 0`, padding never has to be looked up
elsewhere, and heads may keep different numbers of entries.

* `keep(columns)` goes over to a choice of the columns (a copy: the buffers become as small as what is kept).
* `give_up(column)` takes one entry from every head; the next single token is written into its place. In the steady state of decoding,
  one token in and one out, nothing is copied but that token.
* Otherwise tokens are appended to buffers that are larger than what they hold, by at most `STEP` columns.

Entries that were appended by one forward pass stand at the end, in order, so a chunk's own queries are causal by index.

`seen` counts all tokens that ever came in, padding included: the length that transformers asks for. Other tensors of a method go
into `slots` (aligned with the columns) or `rows` (aligned with the batch) and then follow every move: beam search, selection, `keep`,
`crop`, offloading, `nbytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from palimpsest.errors import CannotRollbackError, InputError

EMPTY = -1  # the position of a column that holds nothing
STEP = 128  # columns that a full buffer grows by at most when single tokens come in


class PositionedLayer(DynamicLayer):
    """A cache layer with a position for every entry.

    Args:
        owner: the method that made the layer; only sessions of an equal method write to it.

    Attributes:
        slots: tensors aligned with the columns, (batch, kv_heads, capacity, …): "keys", "values", "positions", and a method's own.
        rows: tensors aligned with the batch in their first axis.
        length: columns in use; `seen`: tokens that came in.
        has_empty: whether some column in use may be `EMPTY`.
        given_up: whether entries ever went, so that heads may hold different ones.

    Example:
        >>> layer = PositionedLayer()
        >>> layer.expect(torch.arange(5)[None])
        >>> keys, values = layer.update(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8))
        >>> layer.keep(torch.tensor([0, 4]).expand(1, 2, 2))
        >>> layer.positions[0, 0].tolist(), layer.get_seq_length()
        ([0, 4], 5)
    """

    lasting: ClassVar[tuple[str, ...]] = ()  # `rows` that are needed also when nothing is given up any more
    is_croppable = False  # for transformers: a roll-back may fail, so its loops that rely on one are not taken

    def __init__(self, owner: Any = None) -> None:
        self.owner = owner
        self.slots: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self.fills: dict[str, float] = {"keys": 0, "values": 0, "positions": EMPTY}
        self.length = 0
        self.seen = 0
        self.has_empty = False
        self.given_up = False
        self.free: Tensor | int | None = None  # the column that the next single token is written to, (batch, kv_heads) or the same for all
        self.reading = False  # whether the tokens that come in are part of a text that `prefill` reads
        self.tail = 0  # columns at the end that were appended since anything was given up
        self._expected: Tensor | None = None
        super().__init__()

    # What is held

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        """Keys in use, (batch, kv_heads, columns, head_dim); None before the first token."""
        return self.slot("keys") if "keys" in self.slots else None

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        if value is not None:  # transformers sets None when it makes a layer
            raise InputError("The keys of a PositionedLayer cannot be replaced.", "Use keep, give_up or update.")

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """Values in use, (batch, kv_heads, columns, head_dim); None before the first token."""
        return self.slot("values") if "values" in self.slots else None

    @values.setter
    def values(self, value: Tensor | None) -> None:
        if value is not None:
            raise InputError("The values of a PositionedLayer cannot be replaced.", "Use keep, give_up or update.")

    @property
    def positions(self) -> Tensor:
        """Positions in use, (batch, kv_heads, columns) int32, `EMPTY` where nothing is held."""
        return self.slot("positions")

    @property
    def lengths(self) -> Tensor:
        """How many entries every head holds, (batch, kv_heads)."""
        return (self.positions >= 0).sum(-1)

    def slot(self, name: str) -> Tensor:
        """The part in use of a tensor of `slots`, a view."""
        return self.slots[name][:, :, : self.length]

    def add_slot(self, name: str, like: Tensor, fill: float) -> None:
        """Makes a tensor aligned with the columns, of the type and trailing shape of `like` (batch, kv_heads, columns, …)."""
        batch, heads, capacity = self.slots["positions"].shape
        self.fills[name] = fill
        self.slots[name] = torch.full((batch, heads, capacity, *like.shape[3:]), fill, dtype=like.dtype, device=like.device)

    def valid(self) -> Tensor | None:
        """Which columns hold something, (batch, kv_heads, columns) bool; None where all do."""
        return self.positions >= 0 if self.has_empty else None

    def tensors(self) -> Iterable[Tensor]:
        """Every tensor that the layer holds; override to add more."""
        yield from self.slots.values()
        yield from self.rows.values()
        if isinstance(self.free, Tensor):
            yield self.free

    def nbytes(self) -> int:
        """Bytes of every tensor held, unused capacity included."""
        return sum(tensor.nbytes for tensor in self.tensors())

    # What comes in

    def expect(self, positions: Tensor, padded: bool = False) -> None:
        """Says which positions the next `update` brings.

        Args:
            positions: (batch or 1, time), `EMPTY` for padding.
            padded: whether any is `EMPTY`.
        """
        self._expected = positions
        self.has_empty = self.has_empty or padded

    def announced(self) -> Tensor:
        """The positions that `expect` was told, (batch or 1, time), once.

        Raises:
            InputError: no session announced any, as when the cache is used after its session has ended.
        """
        positions, self._expected = self._expected, None
        if positions is None:
            raise InputError(
                "This cache layer was written by a context method, and is used outside of its session.",
                "Go on inside `with method(model):`, or start with a new cache.",
            )
        return positions

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes over type and device from the first keys; the buffers are made when they are needed."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes new keys and values in and returns all, (batch, kv_heads, columns, head_dim), the new ones at the end of a chunk.

        Raises:
            InputError: no session announced positions, as when the cache is used after its session has ended.
        """
        positions = self.announced()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, heads, count = key_states.shape[:3]
        positions = positions.to(torch.int32)[:, None].expand(batch, heads, count)
        self.take_in({"keys": key_states, "values": value_states, "positions": positions})
        return self.slot("keys"), self.slot("values")

    def take_in(self, new: dict[str, Tensor]) -> None:
        """Writes new entries, (batch, kv_heads, time, …) each, into the free place or behind the last column."""
        count = new["positions"].shape[2]
        if self.free is not None and count == 1:
            for name, buffer in self.slots.items():
                # What the method noted of the entry that stood here is not true of the new one.
                value = new.get(name, self.fills[name])
                if isinstance(self.free, int):
                    buffer[:, :, self.free : self.free + 1] = value
                else:
                    buffer.scatter_(2, spread(self.free[..., None], buffer), value)
            self.free = None
        else:
            if self.free is not None:
                self.has_empty, self.free = True, None
            self._make_room(new, self.length + count)
            for name, value in new.items():
                self.slots[name][:, :, self.length : self.length + count] = value
            self.length += count
            self.tail += count
        self.seen += count

    def _make_room(self, new: dict[str, Tensor], needed: int) -> None:
        if "positions" in self.slots and self.slots["positions"].shape[2] >= needed:
            return
        # Single tokens are followed by more of them, so room is made for a number of them; a chunk takes what it needs.
        capacity = needed + (min(STEP, max(16, needed // 16)) - 1 if self.length and new["positions"].shape[2] == 1 else 0)
        for name in {**new, **self.slots}:
            like = self.slots.get(name, new.get(name))
            assert like is not None
            buffer = torch.empty((*like.shape[:2], capacity, *like.shape[3:]), dtype=like.dtype, device=like.device)
            if name in self.slots:
                buffer[:, :, : self.length] = self.slot(name)
            buffer[:, :, self.length :] = self.fills[name]
            self.slots[name] = buffer

    # What goes out

    def keep(self, columns: Tensor, valid: Tensor | None = None, spare: int = 1) -> None:
        """Goes over to a choice of the columns.

        Args:
            columns: (batch, kv_heads, kept), integer, in the order in which they are to stand.
            valid: (batch, kv_heads, kept) bool: False leaves a place empty, where a head keeps fewer than others.
            spare: columns to leave room for.
        """
        kept = columns.shape[2]
        for name, buffer in self.slots.items():
            fresh = torch.empty((*buffer.shape[:2], kept + spare, *buffer.shape[3:]), dtype=buffer.dtype, device=buffer.device)
            fresh[:, :, :kept] = buffer.gather(2, spread(columns, buffer))
            fresh[:, :, kept:] = self.fills[name]
            self.slots[name] = fresh
        if valid is not None:
            self.slots["positions"][:, :, :kept].masked_fill_(~valid, EMPTY)
        may_be_empty = self.has_empty or self.free is not None or valid is not None
        self.length, self.tail, self.free, self.given_up = kept, 0, None, True
        self.has_empty = may_be_empty and bool((self.positions < 0).any())

    def give_up(self, column: Tensor | int) -> None:
        """Empties one column of every head; the next single token is written into it.

        Args:
            column: (batch, kv_heads), integer; or one number, where it is the same for all.
        """
        if isinstance(column, int):
            self.slots["positions"][:, :, column] = EMPTY
        else:
            self.slots["positions"].scatter_(2, column[..., None], EMPTY)
        self.free, self.tail, self.given_up = column, 0, True

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last tokens back; as in transformers the number is negative.

        Raises:
            CannotRollbackError: entries have been given up since the first of these tokens came in.
        """
        if tokens_to_remove > 0:
            raise InputError(f"crop({tokens_to_remove}) asks for a length.", "Give the negative number of tokens to take back.")
        count = -tokens_to_remove
        if count == 0 or not self.is_initialized:
            return
        if count > self.tail:
            raise CannotRollbackError(
                f"{count} tokens were to be taken back, but entries were given up {self.tail} tokens ago.",
                "Copy the cache before, or use a budget that holds all of the text.",
            )
        self.length -= count
        self.tail -= count
        self.seen -= count
        for name, buffer in self.slots.items():
            buffer[:, :, self.length : self.length + count] = self.fills[name]

    # What transformers asks for

    def get_seq_length(self) -> int:
        """Tokens that came in, kept or not."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns, offset) of the mask that transformers builds; the attention of a session uses `valid` instead."""
        offset = max(0, self.seen - self.length)
        return self.seen + query_length - offset, offset

    def reset(self) -> None:
        """Forgets everything."""
        self.slots, self.rows, self.free = {}, {}, None
        self.length = self.seen = self.tail = 0
        self.has_empty = self.given_up = self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Goes over to other rows of the batch, as beam search does."""
        self.move(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows of the batch."""
        self.move(lambda tensor: tensor[indices, ...])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch."""
        self.move(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """Moves everything to the processor's memory."""
        self.move(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Moves everything back to where the keys came from."""
        if self.is_initialized:
            self.move(lambda tensor: tensor.to(self.device, non_blocking=True))

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Applies a change of the first axis, or of the device, to every tensor; override to add more tensors."""
        self.slots = {name: change(tensor) for name, tensor in self.slots.items()}
        self.rows = {name: change(tensor) for name, tensor in self.rows.items()}
        self.free = change(self.free) if isinstance(self.free, Tensor) else self.free


def spread(columns: Tensor, like: Tensor) -> Tensor:
    """Columns (batch, kv_heads, n) as an index into the third axis of `like` (batch, kv_heads, columns, …)."""
    index = columns.reshape(*columns.shape, *[1] * (like.dim() - 3))
    return index.expand(*columns.shape, *like.shape[3:])
