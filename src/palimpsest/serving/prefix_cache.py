"""Keys and values of prompts that begin alike, kept between requests: a tree of blocks of tokens, and a limit in bytes.

A prompt is cut into blocks of `BLOCK` tokens; a block is known by the blocks before it and its own ids, compared one by one, so that no
two prompts are ever taken for each other. Its keys and values are those of its tokens at their positions, hence good for every
prompt that begins with the same tokens (Kwon et al., vLLM, SOSP 2023, hash such blocks; Zheng et al., SGLang, NeurIPS 2024, keep a
radix tree). They are copied into a slot, and copied out of it once they are computed. When the limit is reached, the block that was
used longest ago goes, among those that none other follows.

    root ── "You are a helpful" ── " assistant. Answer" ── " in one word. …"
                                └─ " assistant. Speak" …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from palimpsest.errors import InputError
from palimpsest.serving.slots import SlotStore

BLOCK = 16  # tokens


@dataclass(eq=False)
class _Block:
    """A node of the tree."""

    parent: _Block | None
    ids: tuple[int, ...]
    parts: list[torch.Tensor] = field(default_factory=list)  # one tensor (planes, Hkv, BLOCK, d) for each shape
    children: dict[tuple[int, ...], _Block] = field(default_factory=dict)
    used: int = 0


class PrefixCache:
    """Blocks of prompts; used by the engine's thread alone.

    Args:
        limit: bytes that keys and values may take; 0 keeps nothing.

    Attributes:
        bytes: what they take.
        blocks: how many there are.

    Raises:
        InputError: a negative limit.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise InputError(f"The prefix cache is to have {limit} bytes.", "Give a number >= 0; 0 keeps nothing.")
        self.limit, self.bytes, self.blocks = limit, 0, 0
        self._roots: dict[str | None, _Block] = {}
        self._leaves: set[_Block] = set()  # blocks that none follows
        self._clock = 0

    def match(self, key: str | None, ids: Sequence[int]) -> int:
        """How many of the first tokens are known; the last one is never among them, for its logits are wanted."""
        return len(self._path(key, ids[: len(ids) - 1])) * BLOCK

    def load(self, key: str | None, ids: Sequence[int], store: SlotStore, slot: int, begin: int) -> int:
        """Copies the known blocks from position `begin`, a multiple of `BLOCK`, on into a slot; returns where they end."""
        path = self._path(key, ids[: len(ids) - 1])
        for number, block in enumerate(path):
            if number * BLOCK >= begin:
                store.write(slot, number * BLOCK, block.parts)
            self._use(block)
        return max(begin, len(path) * BLOCK)

    def keep(self, key: str | None, ids: Sequence[int], store: SlotStore, slot: int) -> None:
        """Copies the whole blocks of `ids`, which a slot holds, where they are not known yet."""
        size = store.token_bytes * BLOCK
        if size > self.limit:
            return
        path = self._path(key, ids)
        for block in path:
            self._use(block)
        node = path[-1] if path else self._roots.get(key, _Block(None, ()))
        for number in range(len(path), len(ids) // BLOCK):
            while self.bytes + size > self.limit:
                if not self._drop_oldest(node):
                    return
            begin = number * BLOCK
            own = tuple(ids[begin : begin + BLOCK])
            block = _Block(node, own, store.read(slot, begin, begin + BLOCK))
            if node.parent is None:
                self._roots[key] = node
            node.children[own] = block
            self._leaves.discard(node)
            self._leaves.add(block)
            self.bytes += size
            self.blocks += 1
            self._use(block)
            node = block

    def forget(self, key: str | None, ids: Sequence[int]) -> None:
        """Drops the blocks that `ids` begins with, the last first, up to one that another prompt goes on from."""
        for block in reversed(self._path(key, ids)):
            if block.children:
                return
            self._drop(block)

    def _path(self, key: str | None, ids: Sequence[int]) -> list[_Block]:
        node = self._roots.get(key)
        path: list[_Block] = []
        for begin in range(0, len(ids) - BLOCK + 1, BLOCK):
            node = node.children.get(tuple(ids[begin : begin + BLOCK])) if node is not None else None
            if node is None:
                break
            path.append(node)
        return path

    def _use(self, block: _Block) -> None:
        self._clock += 1
        block.used = self._clock

    def _drop_oldest(self, spare: _Block) -> bool:
        """Drops the leaf used longest ago, but not `spare`; False where there is none other."""
        leaf = min(self._leaves - {spare}, key=lambda block: block.used, default=None)
        if leaf is None:
            return False
        self._drop(leaf)
        return True

    def _drop(self, leaf: _Block) -> None:
        parent = leaf.parent
        assert parent is not None
        self._leaves.remove(leaf)
        del parent.children[leaf.ids]
        self.bytes -= sum(part.nbytes for part in leaf.parts)
        self.blocks -= 1
        if not parent.children:
            if parent.parent is not None:
                self._leaves.add(parent)
            else:
                self._roots = {key: root for key, root in self._roots.items() if root is not parent}
