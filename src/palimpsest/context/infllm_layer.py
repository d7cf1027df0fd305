"""The cache layer of InfLLM (see `infllm.py`): window and remainder in columns, first tokens apart, all other tokens in a `BlockStore`.

Columns stand in the order of the text: for every row [padding,] remainder, window. A row's token of rank r is

    first token   if r < n_init (held apart, and in a column as long as it is near),
    in a block    if n_init ≤ r < stored,   stored = n_init + block · blocks of the row,
    remainder     if stored ≤ r, and it is no longer in the window.

Rows with padding in front have seen fewer tokens than others and form their blocks at other times, so that `stored`, and where an
execution block begins, differ from row to row. These few numbers are kept on the host; all work on keys is one operation over all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from palimpsest.context.block_store import BlockStore
from palimpsest.context.session import LayerInfo
from palimpsest.context.window import WindowLayer
from palimpsest.errors import CannotRollbackError

if TYPE_CHECKING:
    from palimpsest.context.infllm import InfLLM


class Stretch(NamedTuple):
    """One execution block: which queries of the pass, which columns.

    Attributes:
        first_query, first_key: where the queries and the columns begin: a number for all rows, or (batch,) int64 on the host, and then
            they may lie outside.
        n_queries, n_keys: how many, in every row.
        done: (batch,) tokens of each row that will have been worked off behind it.
    """

    first_query: Tensor | int
    n_queries: int
    first_key: Tensor | int
    n_keys: int
    done: Tensor

    def queries(self, x: Tensor, fill: float = 0) -> Tensor:
        """The queries' part of (batch, heads, time, head_dim) or (batch, time)."""
        return _take(x, self.first_query, self.n_queries, fill)

    def keys(self, x: Tensor, fill: float = 0) -> Tensor:
        """The columns' part of (batch, kv_heads, columns, …) or (batch, columns)."""
        return _take(x, self.first_key, self.n_keys, fill)

    def write(self, out: Tensor, part: Tensor, ranks: Tensor) -> None:
        """Puts the result of the queries, (batch, n_queries, …), into its place in `out`; that of padding nowhere."""
        if isinstance(self.first_query, int):
            out[:, self.first_query : self.first_query + self.n_queries] = part
            return
        row, time = (ranks >= 0).nonzero(as_tuple=True)
        out[row, self.first_query.to(out.device)[row] + time] = part[row, time]


class SeenBlocks(NamedTuple):
    """Keys and values of looked-up blocks, (batch, kv_heads, keys, head_dim), and which are there (None: all)."""

    keys: Tensor
    values: Tensor
    seen: Tensor | None


class MemoryLayer(WindowLayer):
    """Window, remainder, first tokens and blocks of one attention layer.

    Args:
        info: the layer of the model.
        method: the hyper-parameters.

    Attributes:
        counts: (batch,) int64 on the host, tokens of each row so far, without padding.
        blocks: (batch,) of them in blocks, in blocks.
        store: the blocks; None before the first token, and without lookups.
    """

    def __init__(self, info: LayerInfo, method: InfLLM) -> None:
        assert info.rotary is not None
        super().__init__(info.rotary, method.n_init, method.n_local)
        self.info, self.method = info, method
        self.fills["received"] = 0
        self.counts = self.blocks = self.arrived = self.lead = self.begin = torch.empty(0, dtype=torch.long)
        self.padded = False  # whether some of the new tokens are padding
        self.store: BlockStore | None = None

    @property
    def stored(self) -> Tensor:
        """(batch,) on the host: the rank of the first token that is neither a first token nor in a block."""
        return self.method.n_init + self.method.block * self.blocks

    def take_in(self, new: dict[str, Tensor]) -> None:
        """See `PositionedLayer.take_in`."""
        ranks = new["positions"][:, 0]
        batch, time = ranks.shape
        if not len(self.counts):
            self.counts = self.blocks = torch.zeros(batch, dtype=torch.long)
            self.store = self._make_store(new["keys"]) if self.method.topk else None
        self.padded = self.has_empty and bool((ranks < 0).any())
        if self.padded:
            counted = (ranks >= 0).cpu()
            self.arrived, self.lead = counted.sum(1), counted.int().argmax(1)
            self.lead[self.arrived == 0] = time
        else:
            self.arrived, self.lead = torch.full((batch,), time), torch.zeros(batch, dtype=torch.long)
        self.begin = self.length + self.lead  # the column of the first new token
        self.counts = self.counts + self.arrived
        received = torch.zeros(batch, self.info.kv_heads, time, self.info.groups, device=ranks.device)
        super().take_in({**new, "received": received})

    def stretches(self, exec_block: int) -> Iterator[Stretch]:
        """The execution blocks of what has just been taken in; each must be done before the next is asked for."""
        n_local, longest = self.method.n_local, int(self.arrived.max())
        before = self.counts - self.arrived
        for start in range(0, longest, exec_block):
            n_queries = min(exec_block, longest - start)
            # All that is in some query's window, and what has left the window and is in no block.
            remainder = int((before + start + n_queries - n_local - self.stored).max()) if self.method.topk else 0
            n_keys = max(n_local + max(remainder, 0), n_local - 1 + n_queries)
            done = before + self.arrived.clamp(max=start + n_queries)
            if not self.padded:
                end = int(self.begin[0]) + start + n_queries
                n_keys = min(n_keys, end)
                yield Stretch(start, n_queries, end - n_keys, n_keys, done)
            else:
                yield Stretch(self.lead + start, n_queries, self.begin + start + n_queries - n_keys, n_keys, done)

    def lookup(self, far: Tensor, ranks: Tensor) -> SeenBlocks | None:
        """The blocks for queries (batch, heads, time, head_dim), one lookup for all of them; None while there is no block."""
        assert self.store is not None
        if not self.store.longest:
            return None
        if self.padded:
            counted = (ranks >= 0)[:, None, :, None]
            mean = (far * counted).sum(2) / counted.sum(2).clamp(min=1)
        else:
            mean = far.mean(2)
        units, heads = self.store.counts.shape[0], self.info.heads * len(self.counts) // self.store.counts.shape[0]
        found = self.store.lookup(mean.view(units, heads, -1), self.method.topk)
        keys, values = (part.view(len(self.counts), self.info.kv_heads, -1, part.shape[-1]) for part in (found.keys, found.values))
        if bool((found.numbers >= 0).all()):
            return SeenBlocks(keys, values, None)
        seen = found.held.view(len(self.counts), -1, 1, found.held.shape[1]).repeat_interleave(self.method.block, 3)
        return SeenBlocks(keys, values, seen if seen.shape[1] == 1 else seen.repeat_interleave(self.info.groups, 1))

    def receive(self, stretch: Stretch, weights: Tensor) -> None:
        """Adds up what the stretch's columns have received: probabilities (batch, heads, time, columns)."""
        batch, _, _, n_keys = weights.shape
        received = weights.sum(2).view(batch, self.info.kv_heads, self.info.groups, n_keys).transpose(2, 3)
        first = stretch.first_key
        if isinstance(first, int):
            self.slot("received")[:, :, first : first + n_keys] += received
            return
        columns = (first[:, None] + torch.arange(n_keys)).clamp(0, self.length - 1).to(weights.device)
        index = columns[:, None, :, None].expand_as(received)  # a column outside of the text received nothing
        self.slot("received").scatter_add_(2, index, received)

    def credit(self, weights: Tensor, ranks: Tensor) -> None:
        """Tells the store what the blocks of the last lookup have received: probabilities (batch, heads, time, keys)."""
        assert self.store is not None
        if self.method.policy == "lru-s":
            received = (weights * (ranks >= 0)[:, None, :, None]).sum(2)
            units = len(self.store.counts)
            received = received.view(units, -1, weights.shape[-1] // self.method.block, self.method.block)
            self.store.credit(received.sum((1, 3)))

    def form_blocks(self, stretch: Stretch) -> None:
        """Puts what has left the window behind the stretch into blocks, where it fills one."""
        if self.store is None:
            return
        due = (stretch.done - self.method.n_local - self.method.n_init).clamp(min=0) // self.method.block
        while bool((self.blocks < due).any()):
            rows = (self.blocks < due).nonzero()[:, 0]
            self._form(rows)
            self.blocks = self.blocks + (self.blocks < due)
            self.tail = 0  # from here on nothing can be taken back

    def _form(self, rows: Tensor) -> None:
        """Writes one block of each of these rows."""
        assert self.store is not None
        rank = self.stored[rows]
        column = self.begin[rows] + rank - (self.counts - self.arrived)[rows]
        columns = (column[:, None] + torch.arange(self.method.block)).to(self.slots["keys"].device)
        there = rows.to(columns.device)[:, None]
        keys, values, received = (self.slot(name)[there, :, columns].transpose(1, 2) for name in ("keys", "values", "received"))
        keys = self.far(keys, self.ranks[there, columns])  # (rows, kv_heads, block, head_dim)
        representatives = self.represent(keys, received)
        if self.method.per_head:
            kv_heads = self.info.kv_heads
            rows = (rows[:, None] * kv_heads + torch.arange(kv_heads)).flatten()
            keys, values = keys.flatten(0, 1).unsqueeze(1), values.flatten(0, 1).unsqueeze(1)
            representatives = representatives.view(len(rows), self.info.groups, -1)
        self.store.append(keys, values, representatives, rows)

    def represent(self, keys: Tensor, received: Tensor) -> Tensor:
        """Of every block one vector for each query head, (rows, heads, head_dim): the mean of the keys that received the most.

        Args:
            keys: (rows, kv_heads, block, head_dim), at position 0.
            received: (rows, kv_heads, block, groups), by each query head, in the time of the key in the window.
        """
        best = received.topk(self.method.repr_topk, dim=2).indices.transpose(2, 3)  # (rows, kv_heads, groups, repr_topk)
        of_group = keys[:, :, None].expand(-1, -1, self.info.groups, -1, -1)
        return of_group.gather(3, best[..., None].expand(*best.shape, keys.shape[-1])).mean(3).flatten(1, 2)

    def drop(self) -> None:
        """Drops the columns that no row needs any more: neither in the window of the next token nor remainder."""
        needed = self.counts - self.method.n_local + 1
        if self.store is not None:
            needed = torch.minimum(needed, self.stored)
        end = self.begin + self.arrived
        first = int((end - self.counts + needed.clamp(min=0)).min().clamp(min=0))
        # Single tokens are dropped a block at a time: each time costs a copy of the window.
        if first >= self.method.block or (first and int(self.arrived.max()) > 1):
            columns = torch.arange(first, self.length, device=self.slots["keys"].device)
            self.keep(columns.expand(*self.positions.shape[:2], -1), spare=2 * self.method.block)

    def _make_store(self, keys: Tensor) -> BlockStore:
        m = self.method
        like, heads = (keys.flatten(0, 1).unsqueeze(1), self.info.groups) if m.per_head else (keys, self.info.heads)
        return BlockStore(like, heads, m.block, m.cached_blocks, m.policy, m.score_decay, m.offload)

    def tensors(self) -> Iterable[Tensor]:
        """Every tensor that the layer holds, on the device or on the host."""
        yield from super().tensors()
        if self.store is not None:
            yield from self.store.tensors()

    def device_nbytes(self) -> int:
        """Bytes on the device: without the blocks that live in host memory."""
        parts = [*super().tensors(), *(self.store.tensors("device") if self.store is not None else [])]
        return sum(part.numel() * part.element_size() for part in parts)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuses: the attention that tokens have given to others cannot be taken back.

        Raises:
            CannotRollbackError: always, but for no token at all.
        """
        if tokens_to_remove:
            raise CannotRollbackError("InfLLM cannot take tokens back.", "Copy the cache before.")

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.counts, self.store = torch.empty(0, dtype=torch.long), None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Goes over to other rows of the batch, as beam search does."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx.cpu())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows of the batch."""
        super().batch_select_indices(indices)
        self._select(torch.arange(len(self.counts))[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch."""
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(len(self.counts)).repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        self.counts, self.blocks = self.counts[rows], self.blocks[rows]
        if self.store is not None:
            kv_heads = self.info.kv_heads
            units = (rows[:, None] * kv_heads + torch.arange(kv_heads)).flatten() if self.method.per_head else rows
            self.store.select(units)


def _take(x: Tensor, first: Tensor | int, length: int, fill: float) -> Tensor:
    """Of (batch, time) or (batch, heads, time, …) `length` entries of time from `first` on, in every row from its own; `fill` outside."""
    axis = 1 if x.dim() == 2 else 2
    if isinstance(first, int):
        return x.narrow(axis, first, length)
    columns = first[:, None] + torch.arange(length)
    outside = ((columns < 0) | (columns >= x.shape[axis])).to(x.device)
    columns, row = columns.clamp(0, x.shape[axis] - 1).to(x.device), torch.arange(len(first), device=x.device)[:, None]
    if axis == 1:
        return x[row, columns].masked_fill(outside, fill)
    return x[row, :, columns].transpose(1, 2)
