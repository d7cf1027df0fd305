"""The cache layer of CItruS (033): tokens that all heads share, and keys that are rotated once no more are given up."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.context.layers import EMPTY, PositionedLayer
from palimpsest.context.session import LayerInfo


class CitrusLayer(PositionedLayer):
    """A cache layer whose heads all hold the same tokens, with keys from before rotation until it is settled.

    Attributes:
        mode: what new tokens do. "stream" and "chunk": they are read in chunks that select, or for which others selected (in a session's
            `read`); "peek": they select, and will be taken back; "append": they are added.
        selected: (batch, columns) bool, what the last "peek" wants to keep; the next chunk's selection.
        settled: whether the keys are rotated to their index already.
    """

    lasting = ("count",)

    def __init__(self) -> None:
        super().__init__()
        self.mode = "stream"
        self.selected: Tensor | None = None
        self.settled = False

    def held(self, columns: int | None = None) -> Tensor | None:
        """Which of the first columns hold something, (batch, columns) bool; None where all do."""
        return self.positions[:, 0, :columns] >= 0 if self.has_empty else None

    def index(self, columns: int) -> Tensor:
        """The place of each of the first columns among those that hold something, (batch or 1, columns)."""
        return compact(self.held(columns), torch.arange(columns, device=self.device)[None])

    def go_over(self, columns: Tensor, held: Tensor | None) -> None:
        """Keeps those of some columns (batch, n) that hold something by `held` (batch, length); shorter rows end in empty places."""
        heads, some = self.positions.shape[1], None
        if held is not None:
            some = held.gather(1, columns)
            chosen = (~some).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(some.sum(1).amax())]
            columns, some = columns.gather(1, chosen), some.gather(1, chosen)[:, None].expand(-1, heads, -1)
        self.keep(columns[:, None].expand(-1, heads, -1), some)

    def reduce(self) -> None:
        """Keeps what the last "peek" selected."""
        assert self.selected is not None
        kept, self.selected = self.selected, None
        self.go_over(torch.arange(self.length, device=kept.device).expand(kept.shape), kept)

    def take_over(self, source: CitrusLayer, new: Tensor) -> None:
        """Keeps what the last "peek" selected, and appends the newest tokens of another layer, as many as `new` (batch, n) has."""
        assert self.selected is not None
        held, more = self.held(), new.sum(1, keepdim=True)
        if held is not None:  # a row that has ended keeps what it has
            self.selected = torch.where(more > 0, self.selected, held)
        elif not bool(more.all()):
            self.selected = self.selected | (more == 0)
        self.reduce()
        held = source.held()
        total = torch.full_like(more, source.length) if held is None else held.sum(1, keepdim=True)
        places = torch.arange(new.shape[1], device=new.device)[None]
        columns = (total - more + places).clamp(max=source.length - 1)
        taken = {name: columns_of(source.slot(name), columns) for name in ("keys", "values")}
        positions = source.positions.gather(2, columns[:, None].expand(-1, source.positions.shape[1], -1))
        taken["positions"] = positions.masked_fill((places >= more)[:, None], EMPTY)
        self.has_empty = self.has_empty or not bool(new.all())
        self.take_in(taken)
        if self.has_empty:
            self.go_over(torch.arange(self.length, device=new.device).expand(len(new), -1), self.held())

    def unsettle(self, info: LayerInfo, own: int) -> None:
        """Takes the rotation of all keys but the last `own` back."""
        if self.settled:
            assert info.rotary is not None
            keys = self.slot("keys")[:, :, : self.length - own]
            keys.copy_(info.rotary.unrotate(keys, self.index(self.length - own)))
            self.rows.pop("count")
            self.settled = False

    def crop(self, tokens_to_remove: int) -> None:
        """See `PositionedLayer.crop`."""
        if "count" in self.rows and tokens_to_remove < 0:
            gone = self.positions[:, 0, tokens_to_remove:] >= 0
            super().crop(tokens_to_remove)
            self.rows["count"] = self.rows["count"] - gone.sum(-1)
        else:
            super().crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.mode, self.selected, self.settled = "stream", None, False


def compact(held: Tensor | None, columns: Tensor) -> Tensor:
    """Compact positions of columns (batch, n): how many that hold something come before."""
    if held is None:
        return torch.arange(columns.shape[1], device=columns.device)[None]
    return (held.cumsum(1) - 1).clamp_min(0)


def columns_of(x: Tensor, chosen: Tensor) -> Tensor:
    """Some columns of x (batch, heads, ·, d), for every row its own (batch, n)."""
    return x.gather(2, chosen[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
