"""Keys and values of everything that is being written, in slots, and attention over them without padding.

One step of continuous batching (Yu, Jeong, Kim, Kim and Chun, "Orca", OSDI 2022) feeds the model one row of T tokens: the newest token
of every running request and pieces of the prompts that are still being read (Agrawal et al., "Sarathi-Serve", OSDI 2024). What works
token by token (projections, MLPs, norms, the head) runs over all T at once, so that the weights are read once for all requests;
only attention knows whose token is whose. It is given to transformers as an attention function under the name `ATTENTION`, which

* writes the new keys and values where they belong: ``K[slot, :, position] = k``, in place;
* lets neighbouring slots that write one token each attend together, up to the longest of them: queries (n, Hkv, G, d), G query heads
  to a key head, against ``K[first:last, :, :longest]``, with a mask for the shorter ones;
* lets every piece of a prompt, of c tokens, attend alone: queries (1, Hkv, G c, d) against what its slot holds, causally.

Storage: for every layer and for keys and values (slots, Hkv, capacity, d), all layers of one shape in one tensor
(planes, slots, Hkv, capacity, d). The capacity grows by doubling; memory is taken only where something is written, because a
processor's untouched zeros are no memory. They must be zeros: what is masked still takes part with weight 0, and 0 x NaN is NaN.

Which neighbours attend together is decided by what it costs: a call to attention is worth `CALL_COST` cached tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "palimpsest-slots"
CALL_COST = 256  # cached tokens that attention reads in the time that one more call takes
_FIRST_CAPACITY = 256
_current = threading.local()  # .seen: what the model call that this thread is in gives its attention function


@dataclass(frozen=True)
class Work:
    """What one request feeds in one step.

    Attributes:
        slot: where its keys and values are.
        start: tokens that the slot holds already.
        ids: the tokens that follow, at least one.
        wanted: for how many of the last tokens logits are wanted.
    """

    slot: int
    start: int
    ids: Sequence[int]
    wanted: int = 1

    @property
    def end(self) -> int:
        """Tokens that the slot holds afterwards."""
        return self.start + len(self.ids)


class SlotStore:
    """Keys and values by layer, slot and position.

    Args:
        shapes: for every layer the shapes (Hkv, d) of keys and of values.
        slots: number of slots.
        dtype, device: of keys and values.

    Attributes:
        capacity: positions of a slot.
        lengths: for every slot how many of them are in use.
        token_bytes: bytes that a token takes in all layers.
    """

    def __init__(
        self, shapes: dict[int, tuple[tuple[int, int], tuple[int, int]]], slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots, self.capacity, self.dtype, self.device = slots, _FIRST_CAPACITY, dtype, device
        self.lengths = [0] * slots
        self._places: dict[int, tuple[tuple[tuple[int, int], int], tuple[tuple[int, int], int]]] = {}
        counts: dict[tuple[int, int], int] = {}
        for layer, pair in sorted(shapes.items()):
            places = []
            for shape in pair:
                places.append((shape, counts.get(shape, 0)))
                counts[shape] = counts.get(shape, 0) + 1
            self._places[layer] = (places[0], places[1])
        self._planes = {shape: self._zeros(shape, count) for shape, count in counts.items()}
        self.token_bytes = sum(count * shape[0] * shape[1] for shape, count in counts.items()) * dtype.itemsize

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, each (slots, Hkv, capacity, d)."""
        (key_shape, key_plane), (value_shape, value_plane) = self._places[layer]
        return self._planes[key_shape][key_plane], self._planes[value_shape][value_plane]

    def reserve(self, positions: int) -> None:
        """Makes room for so many positions a slot."""
        if positions <= self.capacity:
            return
        while self.capacity < positions:
            self.capacity *= 2
        for shape, old in list(self._planes.items()):
            new = self._zeros(shape, old.shape[0])
            for slot, length in enumerate(self.lengths):
                new[:, slot, :, :length] = old[:, slot, :, :length]
            self._planes[shape] = new

    def read(self, slot: int, begin: int, end: int) -> list[torch.Tensor]:
        """A copy of what a slot holds at [begin, end): one tensor (planes, Hkv, end - begin, d) for each shape."""
        return [planes[:, slot, :, begin:end].clone() for planes in self._planes.values()]

    def write(self, slot: int, begin: int, parts: Sequence[torch.Tensor]) -> None:
        """Puts a copy back, in whatever slot, at the positions that it was made of."""
        for planes, part in zip(self._planes.values(), parts, strict=True):
            planes[:, slot, :, begin : begin + part.shape[2]] = part
        self.lengths[slot] = max(self.lengths[slot], begin + parts[0].shape[2])

    def release(self, slot: int, spoiled: bool) -> None:
        """Empties a slot. What may not be finite is zeroed: it would spoil the next request there."""
        if spoiled:
            for planes in self._planes.values():
                planes[:, slot, :, : self.lengths[slot]] = 0
        self.lengths[slot] = 0

    def _zeros(self, shape: tuple[int, int], count: int) -> torch.Tensor:
        size = (count, self.slots, shape[0], self.capacity, shape[1])
        if self.device.type != "cpu":
            return torch.zeros(size, dtype=self.dtype, device=self.device)
        # numpy asks the system for zeros, which are no memory until they are written; torch would write them.
        return torch.from_numpy(np.zeros(int(np.prod(size)) * self.dtype.itemsize, dtype=np.uint8)).view(self.dtype).view(size)


class SlotBatch:
    """The tokens of one step, and who attends to what; rows that feed one token come first, by slot.

    Args:
        work: at most one for each slot.
        store: where keys and values are; it must have room.

    Attributes:
        work: in the order of the rows.
        ids, positions, chosen: int64 (T,), (T,) and the rows of which logits are wanted.
    """

    def __init__(self, work: Sequence[Work], store: SlotStore) -> None:
        self.work = sorted(work, key=lambda one: (len(one.ids) > 1, one.slot))
        self._store = store
        device = store.device
        counts = [len(one.ids) for one in self.work]
        ends = np.cumsum(counts)
        self.ids = torch.tensor([token for one in self.work for token in one.ids], device=device)
        positions = np.concatenate([np.arange(one.start, one.end) for one in self.work])
        self.positions = torch.from_numpy(positions).to(device)
        self._slots = torch.from_numpy(np.repeat([one.slot for one in self.work], counts)).to(device)
        self.chosen = torch.from_numpy(np.concatenate([np.arange(end - one.wanted, end) for one, end in zip(self.work, ends, strict=True)]))
        self.chosen = self.chosen.to(device)
        single = sum(count == 1 for count in counts)
        self._runs = _runs([(one.slot, one.end) for one in self.work[:single]])
        self._chunks = [(end - count, end, one) for count, end, one in zip(counts, ends.tolist(), self.work, strict=True)][single:]
        self._masks: dict[tuple[int, int | None, int], torch.Tensor | None] = {}

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        """Attention of a layer: q (1, Hq, T, d), k and v (1, Hkv, T, d) to (1, T, Hq, d)."""
        keys, values = self._store.layer(layer)
        keys[self._slots, :, self.positions] = k[0].transpose(0, 1)
        values[self._slots, :, self.positions] = v[0].transpose(0, 1)
        (heads, width), groups = (q.shape[1], values.shape[-1]), q.shape[1] // keys.shape[1]
        parts = []
        for number, (row, count, slot, longest) in enumerate(self._runs):
            queries = q[0, :, row : row + count].transpose(0, 1).reshape(count, -1, groups, q.shape[-1])
            mask = self._mask(number, window, 1, q.dtype)
            span = slice(slot, slot + count)
            found = scaled_dot_product_attention(queries, keys[span, :, :longest], values[span, :, :longest], attn_mask=mask, scale=scale)
            parts.append(found.reshape(count, heads, width))
        for number, (first, last, one) in enumerate(self._chunks, start=len(self._runs)):
            count, span = last - first, slice(one.slot, one.slot + 1)
            queries = q[:, :, first:last].reshape(1, -1, groups * count, q.shape[-1])
            mask = self._mask(number, window, groups, q.dtype)
            found = scaled_dot_product_attention(queries, keys[span, :, : one.end], values[span, :, : one.end], attn_mask=mask, scale=scale)
            parts.append(found.reshape(heads, count, width).transpose(0, 1))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)

    def _mask(self, number: int, window: int | None, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the scores of a run or chunk, the same for all layers of one window; None where everything is seen."""
        if (number, window, repeats) not in self._masks:
            self._masks[number, window, repeats] = self._make_mask(number, window, repeats, dtype)
        return self._masks[number, window, repeats]

    def _make_mask(self, number: int, window: int | None, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        if number < len(self._runs):
            row, count, _, length = self._runs[number]
            own = self.positions[row : row + count, None]  # (rows, 1)
        else:
            first, last, one = self._chunks[number - len(self._runs)]
            length = one.end
            own = self.positions[first:last].repeat(repeats)[:, None]  # (G c, 1)
        columns = torch.arange(length, device=own.device)
        seen = columns <= own
        if window is not None:
            seen &= columns > own - window
        if bool(seen.all()):
            return None
        mask = torch.zeros(seen.shape, dtype=dtype, device=own.device).masked_fill_(~seen, -torch.inf)
        return mask[:, None, None] if number < len(self._runs) else mask


def _runs(rows: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Neighbouring slots that attend together: (first row, rows, first slot, longest) each, the cheapest way to cut.

    Args:
        rows: (slot, length), by slot.
    """
    best: list[tuple[int, int]] = [(0, 0)]  # for the first rows: the least cost, and where its last run begins
    for end in range(1, len(rows) + 1):
        longest, choices = 0, []
        for begin in range(end - 1, -1, -1):
            if begin < end - 1 and rows[begin][0] + 1 != rows[begin + 1][0]:
                break
            longest = max(longest, rows[begin][1])
            choices.append((best[begin][0] + CALL_COST + (end - begin) * longest, begin))
        best.append(min(choices))
    runs = []
    end = len(rows)
    while end:
        begin = best[end][1]
        runs.append((begin, end - begin, rows[begin][0], max(length for _, length in rows[begin:end])))
        end = begin
    return runs[::-1]


@contextmanager
def attending(seen: Any) -> Iterator[None]:
    """Model calls of this thread give their attention to `seen`, which has an `attend` like that of `SlotBatch`."""
    _current.seen = seen
    try:
        yield
    finally:
        _current.seen = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of a model that is being served; whoever else calls the model meanwhile gets transformers' own."""
    seen = getattr(_current, "seen", None)
    if seen is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    unknown = sorted(name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None)
    if unknown:
        raise NotImplementedError(f"its attention uses {', '.join(unknown)}")
    return seen.attend(module.layer_idx, query, key, value, scaling, options.get("sliding_window")), None


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    return sdpa_mask(*args, **options) if getattr(_current, "seen", None) is None else None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)
