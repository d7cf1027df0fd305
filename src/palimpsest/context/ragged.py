"""A cache layer whose heads hold different numbers of entries, and only the bytes of these.

In (batch, kv_heads, columns) the longest head sets the columns of all. Here what has been kept lies in pages of `PAGE` entries, each of
one head of one row: keys (pages, PAGE, head_dim) and `owner` (pages,) = row kv_heads + head. A head of n entries takes ceil(n / PAGE)
pages. Tokens that came since stand behind them in the ordinary columns of a `PositionedLayer` (the *tail*), until `pack` is called.

Attention over both is one softmax: the queries of a page's owner are gathered, logits of all pages are one batched product, and the
maxima, sums and outputs of pages are added up by owner, with those of the tail. There is no loop over heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from palimpsest.context.layers import EMPTY, spread
from palimpsest.context.session import LayerInfo, visible
from palimpsest.context.snapkv import QueryLayer

PAGE = 16
BLOCK = 64  # queries whose logits are held at once
PARTS = ("keys", "values", "positions")


class RaggedLayer(QueryLayer):
    """A layer of pages and a tail.

    Attributes:
        pages: "keys" and "values" (pages, PAGE, head_dim), "positions" (pages, PAGE), and "owner" (pages,); empty before `pack`.
    """

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self.pages: dict[str, Tensor] = {}

    @property
    def lengths(self) -> Tensor:
        found = super().lengths
        if self.pages:
            held = (self.pages["positions"] >= 0).sum(-1)
            found = found + torch.zeros_like(found).flatten().index_add_(0, self.pages["owner"], held).view_as(found)
        return found

    def tensors(self) -> Iterable[Tensor]:
        yield from super().tensors()
        yield from self.pages.values()

    def whole(self) -> dict[str, Tensor]:
        """Pages and tail as keys, values (batch, kv_heads, columns, head_dim) and positions, `EMPTY` where a head has no more."""
        tail = {name: self.slot(name) for name in PARTS}
        if not self.pages:
            return tail
        batch, heads = tail["positions"].shape[:2]
        owner = self.pages["owner"]
        ranks = _ranks(owner, batch * heads)
        most = int(ranks.max()) + 1
        out = {}
        for name in PARTS:
            paged = self.pages[name]
            by_head = paged.new_full((batch * heads, most, *paged.shape[1:]), self.fills[name])
            by_head[owner, ranks] = paged
            out[name] = torch.cat([by_head.view(batch, heads, most * PAGE, *paged.shape[2:]), tail[name]], dim=2)
        return out

    def in_order(self) -> dict[str, Tensor]:
        """As `whole`, with the entries of every head side by side, oldest first, and empty columns behind them."""
        whole = self.whole()
        empty = whole["positions"] < 0
        columns = empty.to(torch.int8).argsort(dim=-1, stable=True)[..., : int((~empty).sum(-1).max())]
        return {name: tensor.gather(2, spread(columns, tensor)) for name, tensor in whole.items()}

    def pack(self, whole: dict[str, Tensor], kept: Tensor) -> None:
        """Goes over to pages of the entries that are kept, and an empty tail.

        Args:
            whole: what `whole` or `in_order` returned.
            kept: (batch, kv_heads, columns) bool.
        """
        batch, heads, columns = kept.shape
        counts = kept.sum(-1).flatten()
        per_head = (counts + PAGE - 1) // PAGE
        owner = torch.repeat_interleave(torch.arange(batch * heads, device=kept.device), per_head)
        starts = (per_head.cumsum(0) - per_head) * PAGE
        row, column = kept.view(-1, columns).nonzero(as_tuple=True)  # by head, and within it in order
        place = starts[row] + (kept.view(-1, columns).cumsum(-1) - 1)[row, column]
        pages = {}
        for name in PARTS:
            source = whole[name].flatten(0, 1)
            flat = source.new_full((len(owner) * PAGE, *source.shape[2:]), self.fills[name])
            flat[place] = source[row, column]
            pages[name] = flat.view(len(owner), PAGE, *source.shape[2:])
        self.pages = {**pages, "owner": owner}
        self.slots = {name: buffer[:, :, :0].clone() for name, buffer in self.slots.items()}
        self.length, self.tail, self.has_empty = 0, 0, False

    def attend(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over pages and tail: (batch, queries, heads, head_dim) from q (batch, heads, queries, head_dim) and the tail."""
        batch, heads, queries, dim = q.shape
        own = visible(self, queries, k.shape[2])
        if own is None and queries > 1:
            own = torch.ones(queries, queries, dtype=torch.bool, device=q.device).tril_()[None, None]
        out = []
        for begin in range(0, queries, BLOCK):
            part = q[:, :, begin : begin + BLOCK].reshape(batch, info.kv_heads, -1, dim)
            rows = part.shape[2] // info.groups
            mask = None if own is None else own[:, :, begin : begin + BLOCK]
            block = self._attend_block(info, part, k, v, mask)
            out.append(block.view(batch, heads, rows, -1))
        return torch.cat(out, dim=2).transpose(1, 2)

    def _attend_block(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, kv_heads, group x queries, head_dim), from q of that shape and a mask (batch or 1, kv_heads or 1, queries, tail)."""
        tail = (q @ k.transpose(-1, -2)).float().mul_(info.scaling)
        if mask is not None:
            tail.masked_fill_(~mask.repeat(1, 1, info.groups, 1), -torch.inf)
        owner, pages = self.pages["owner"], self.pages
        asked = q.flatten(0, 1)  # (batch kv_heads, group x queries, head_dim)
        paged = (asked[owner] @ pages["keys"].transpose(-1, -2)).float().mul_(info.scaling)
        paged.masked_fill_((pages["positions"] < 0)[:, None], -torch.inf)
        highest = tail.amax(-1).flatten(0, 1)
        highest = highest.scatter_reduce(0, owner[:, None].expand(-1, highest.shape[1]), paged.amax(-1), "amax")
        highest = highest.clamp_min(torch.finfo(torch.float32).min)  # a row that sees nothing
        tail = (tail - highest.view(*tail.shape[:3], 1)).exp_()
        paged = (paged - highest[owner][..., None]).exp_()
        total = tail.sum(-1).flatten(0, 1).index_add_(0, owner, paged.sum(-1))
        out = (tail.to(v.dtype) @ v).flatten(0, 1).float()
        out.index_add_(0, owner, (paged.to(v.dtype) @ pages["values"]).float())
        return (out / total.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).to(v.dtype).view(*q.shape[:3], -1)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.pages:
            whole = {name: change(tensor) for name, tensor in self.whole().items()}
            count, padded = self.length, self.has_empty
            super().move(change)
            tail = whole["positions"].shape[2] - count
            slots, seen = self.slots, self.seen
            self.pack({name: tensor[:, :, :tail] for name, tensor in whole.items()}, whole["positions"][:, :, :tail] != EMPTY)
            self.slots, self.seen, self.length, self.has_empty = slots, seen, count, padded
        else:
            super().move(change)

    def reset(self) -> None:
        super().reset()
        self.pages = {}


def _ranks(owner: Tensor, owners: int) -> Tensor:
    """For every page its number among those of its owner; pages of one owner stand together."""
    counts = torch.bincount(owner, minlength=owners)
    return torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
