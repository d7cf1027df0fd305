"""Blocks of distant keys and values, found by a few representative keys, most of them in host memory.

The memory of InfLLM (Xiao et al., NeurIPS 2024, arXiv 2402.04617, §3.2 and "Cache management"). A *unit* is what is looked up on its own:
a row of the batch, or a row and a key head. A block holds `block` consecutive unrotated keys and values of a unit; query head h of the
unit has one representative vector r_h for it (a mean of a few of its keys). A lookup scores all blocks of every unit,

    score(block) = Σ_h q̄_h · r_h(block),        q̄ (units, heads, head_dim), r (units, heads, blocks, head_dim)

and gives back the `topk` best in the order in which they were written. With `offload="cpu"` blocks live in host memory and pass through a
device cache of `cached_blocks` slots a unit. When a slot is needed, the one that is worth least goes: "lru" by the last lookup, "lru-s"
by frequency, s ← decay · s + attention received since; never one of the blocks just asked for, which is why topk ≤ cached_blocks.

The release zeroes s at every lookup of a block before adding to it; the paper lets it decay, and so does this. Units may hold different
numbers of blocks (rows of a left-padded batch do); all steps are one operation over all units, none is a loop over units or blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.errors import InputError

POLICIES = ("lru", "lru-s")


class Blocks(NamedTuple):
    """What a lookup found.

    Attributes:
        keys, values: (units, kv_heads, n · block, head_dim) on the device.
        held: (units, n) bool: False where a unit has fewer than n blocks; its keys there are not to be seen.
        numbers: (units, n) int64, the blocks' numbers in the order of writing, −1 where not held.
    """

    keys: Tensor
    values: Tensor
    held: Tensor
    numbers: Tensor


class BlockStore:
    """Blocks of many units, their representatives, and the device cache in front of them.

    Args:
        like: (units, kv_heads, …, head_dim), a tensor whose type, device and named sizes those of the keys are.
        heads: query heads a unit, a multiple of kv_heads.
        block: tokens a block.
        cached_blocks: slots of the device cache a unit; without offload there is no cache.
        policy: "lru" or "lru-s".
        decay: of the score of "lru-s", in [0, 1].
        offload: "cpu", or None to keep all blocks on the device.

    Attributes:
        counts: (units,) int64 on the host, blocks held.
        longest: the most blocks that a unit holds.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> keys = torch.randn(3, 1, 4, 8)                                  # a block for three units with one key head
        >>> store = BlockStore(keys, heads=1, block=4, cached_blocks=2)
        >>> store.append(keys, keys, keys.mean(2), torch.arange(3))
        >>> store.lookup(torch.randn(3, 1, 8), topk=2).numbers.tolist()
        [[0], [0], [0]]
    """

    def __init__(
        self,
        like: Tensor,
        heads: int,
        block: int,
        cached_blocks: int = 32,
        policy: str = "lru",
        decay: float = 0.1,
        offload: str | None = "cpu",
    ) -> None:
        if block < 1 or cached_blocks < 1:
            raise InputError(f"block is {block} and cached_blocks is {cached_blocks}.", "Give at least 1 of each.")
        if policy not in POLICIES:
            raise InputError(f"policy is {policy!r}.", f"Choose one of {', '.join(POLICIES)}.")
        if not 0 <= decay <= 1:
            raise InputError(f"The decay is {decay}.", "Give a number from 0 to 1.")
        if offload not in ("cpu", None):
            raise InputError(f"offload is {offload!r}.", "Choose 'cpu' or None.")
        self.block, self.cached_blocks, self.policy, self.decay, self.offload = block, cached_blocks, policy, decay, offload
        units, kv_heads, head_dim = like.shape[0], like.shape[1], like.shape[-1]
        host = torch.device("cpu") if offload else like.device
        self.counts = torch.zeros(units, dtype=torch.long)
        self.longest = 0
        # these grow by doubling: (units, kv_heads, room, block, head_dim) and (units, heads, room, head_dim)
        self._keys = like.new_empty(units, kv_heads, 0, block, head_dim, device=host)
        self._values = torch.empty_like(self._keys)
        self._representatives = like.new_empty(units, heads, 0, head_dim)
        # the cache: (units, kv_heads, cached_blocks, block, head_dim), the block in each slot (−1: none) and what the slot is worth
        slots = cached_blocks if offload else 0
        self._cached_keys = like.new_zeros(units, kv_heads, slots, block, head_dim)
        self._cached_values = torch.zeros_like(self._cached_keys)
        self._slots = torch.full((units, slots), -1)
        self._worth = torch.zeros(units, slots, dtype=torch.float64)
        self._last = torch.empty(units, 0, dtype=torch.long)  # the slots of the last lookup, −1 where no block was held
        self._clock = 0

    def append(self, keys: Tensor, values: Tensor, representatives: Tensor, units: Tensor) -> None:
        """Writes one more block to each of `units`.

        Args:
            keys, values: (n, kv_heads, block, head_dim).
            representatives: (n, heads, head_dim).
            units: (n,) int64 on the host, none twice.

        Raises:
            InputError: a block of another length.
        """
        if keys.shape[2] != self.block:
            raise InputError(f"The block has {keys.shape[2]} tokens.", f"This store takes blocks of {self.block}.")
        numbers = self.counts[units]
        self._make_room(int(numbers.max()) + 1)
        host, device = self._keys.device, self._representatives.device
        self._keys[units.to(host), :, numbers.to(host)] = keys.to(host)
        self._values[units.to(host), :, numbers.to(host)] = values.to(host)
        self._representatives[units.to(device), :, numbers.to(device)] = representatives
        self.counts[units] += 1
        self.longest = int(self.counts.max())

    def lookup(self, queries: Tensor, topk: int) -> Blocks:
        """The blocks that answer the queries best.

        Args:
            queries: (units, heads, head_dim), rotated to the distance at which blocks are seen.
            topk: how many, at most `cached_blocks` with offload.

        Raises:
            InputError: topk is out of range.
        """
        if topk < 1 or (self.offload and topk > self.cached_blocks):
            raise InputError(f"topk is {topk}, and the cache has {self.cached_blocks} slots.", "Give 1 to cached_blocks.")
        numbers = self._best(queries, min(topk, self.longest))
        held = numbers < self.counts.unsqueeze(1)
        numbers = numbers.where(held, torch.tensor(-1))
        if self.offload:
            self._last = self._load(numbers, held)
            keys, values = (_rows(part, self._last.clamp(min=0)) for part in (self._cached_keys, self._cached_values))
        else:
            keys, values = (_rows(part, numbers.clamp(min=0)) for part in (self._keys, self._values))
        return Blocks(keys, values, held.to(keys.device), numbers)

    def credit(self, received: Tensor) -> None:
        """Tells "lru-s" how much attention the blocks of the last lookup received: (units, n); nothing under another policy."""
        if self.policy == "lru-s" and self.offload:
            self._worth *= self.decay
            received = received.to("cpu", torch.float64).masked_fill(self._last < 0, 0)
            self._worth.scatter_add_(1, self._last.clamp(min=0), received)

    def select(self, units: Tensor) -> None:
        """Keeps the units named, in that order; a unit may be named many times (beam search)."""
        host, device = self._keys.device, self._representatives.device
        self.counts, self._slots, self._worth, self._last = (
            part[units.cpu()] for part in (self.counts, self._slots, self._worth, self._last)
        )
        self._keys, self._values = self._keys[units.to(host)], self._values[units.to(host)]
        self._representatives, self._cached_keys, self._cached_values = (
            part[units.to(device)] for part in (self._representatives, self._cached_keys, self._cached_values)
        )
        self.longest = int(self.counts.max()) if len(self.counts) else 0

    def tensors(self, where: str = "all") -> list[Tensor]:
        """The tensors of keys and values held: "all", or those on the "device" (representatives and cache; without offload all)."""
        near = [self._representatives, self._cached_keys, self._cached_values]
        return near if where == "device" and self.offload else [*near, self._keys, self._values]

    def _best(self, queries: Tensor, n: int) -> Tensor:
        """(units, n) on the host: the n best blocks' numbers, ascending; numbers beyond a unit's count are none."""
        if n == self.longest:  # all of them: what they score does not matter
            return torch.arange(n).expand(len(self.counts), n)
        representatives = self._representatives[:, :, : self.longest]
        scores = torch.einsum("uhd,uhnd->un", queries.float(), representatives.float())
        beyond = torch.arange(self.longest) >= self.counts.unsqueeze(1)
        best = scores.masked_fill(beyond.to(scores.device), -torch.inf).topk(n, dim=1).indices
        return best.sort(dim=1).values.cpu()

    def _load(self, numbers: Tensor, held: Tensor) -> Tensor:
        """(units, n): the slots that hold the blocks `numbers` once those not yet in the cache are copied there; −1 where not held."""
        match = (numbers.unsqueeze(2) == self._slots.unsqueeze(1)) & held.unsqueeze(2)  # (units, n, slots)
        hit = match.any(2)
        worth = self._worth.masked_fill(self._slots < 0, -torch.inf).masked_fill(match.any(1), torch.inf)
        by_number = self._slots.argsort(dim=1)  # of two that are worth the same, the older block goes
        cheapest = by_number.gather(1, worth.gather(1, by_number).argsort(dim=1, stable=True))
        missing = held & ~hit
        free = cheapest.gather(1, (missing.cumsum(1) - 1).clamp(min=0))
        slots = match.int().argmax(2).where(hit, free)
        unit, place = missing.nonzero(as_tuple=True)
        if len(unit):
            number, slot = numbers[unit, place], slots[unit, place]
            device = self._cached_keys.device
            here, there = unit.to(device), slot.to(device)
            self._cached_keys[here, :, there] = self._keys[unit, :, number].to(device, non_blocking=True)
            self._cached_values[here, :, there] = self._values[unit, :, number].to(device, non_blocking=True)
            self._slots[unit, slot] = number
            self._worth[unit, slot] = 0
        if self.policy == "lru":
            self._clock += 1
            unit, place = held.nonzero(as_tuple=True)
            self._worth[unit, slots[unit, place]] = self._clock
        return slots.masked_fill(~held, -1)

    def _make_room(self, blocks: int) -> None:
        room = self._keys.shape[2]
        if blocks > room:
            more = max(blocks, 2 * room, 8) - room
            self._keys, self._values = _grown(self._keys, more), _grown(self._values, more)
            self._representatives = _grown(self._representatives, more)


def _grown(part: Tensor, more: int) -> Tensor:
    """`part` with `more` places behind its third axis; zeros, since a hidden key may hold anything but NaN: 0 · NaN is NaN."""
    grown = part.new_zeros(*part.shape[:2], part.shape[2] + more, *part.shape[3:])
    grown[:, :, : part.shape[2]] = part
    return grown


def _rows(part: Tensor, numbers: Tensor) -> Tensor:
    """(units, kv_heads, n · block, head_dim): from `part` (units, kv_heads, places, block, head_dim) the places `numbers` (units, n)."""
    units, kv_heads, places, block, head_dim = part.shape
    first = torch.arange(units * kv_heads).view(units, kv_heads, 1) * places
    rows = (first + numbers.unsqueeze(1)).view(-1).to(part.device)
    # whole blocks are copied: faster than gathering numbers one by one
    return part.view(-1, block * head_dim).index_select(0, rows).view(units, kv_heads, numbers.shape[1] * block, head_dim)
