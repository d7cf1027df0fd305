"""A cache layer whose older part keeps only some channels of its keys (117), and how the channels are chosen.

See `think` for the method. The part is read where it lies: for a query its few channels are gathered and multiplied with the packed keys,
its whole with the columns behind, and one softmax goes over both; neither part is copied in a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.context.layers import PositionedLayer

BLOCK = 128  # queries whose logits are held at once


class PackedKeyLayer(PositionedLayer):
    """A cache layer whose older part is packed: fewer channels of the keys, and of the values where that is asked for.

    The ordinary columns (`keys`, `values`, `positions`) are those that came after the packed part. Of that, in `rows`:

    Attributes:
        packed: whether there is a packed part.
        rows["packed_keys"]: (batch, kv_heads, P, d').
        rows["packed_values"]: (batch, kv_heads, P, d_v').
        rows["packed_valid"]: (batch, kv_heads, P) bool, only where some place holds nothing.
        rows["channels"]: (batch, kv_heads, d') int16, ascending.
        rows["value_channels"]: (batch, kv_heads, d_v') int16, only where values lost channels.
    """

    @property
    def packed(self) -> bool:
        return "packed_keys" in self.rows

    @property
    def lengths(self) -> Tensor:
        """How many entries every head holds, packed or not, (batch, kv_heads)."""
        if not self.packed:
            return super().lengths
        valid = self.rows.get("packed_valid")
        return super().lengths + (self.rows["packed_keys"].shape[2] if valid is None else valid.sum(-1))

    def remember_last(self, q: Tensor, position_ids: Tensor, window: int) -> None:
        """Keeps the last `window` queries of the prompt, (batch, heads, w, d), and their positions, until it is packed."""
        positions = position_ids.expand(q.shape[0], -1)
        if "last_queries" in self.rows and q.shape[2] < window:
            q = torch.cat([self.rows["last_queries"], q], 2)
            positions = torch.cat([self.rows["last_positions"], positions], 1)
        self.rows["last_queries"] = q[:, :, -window:].clone()
        self.rows["last_positions"] = positions[:, -window:].clone()

    def window_length(self) -> int:
        """Queries that are remembered in the row that has the fewest."""
        positions = self.rows.get("last_positions")
        return 0 if positions is None else int((positions >= 0).sum(1).amin())

    def channel_scores(self, q: Tensor, keys: Tensor, q_valid: Tensor, valid: Tensor | None) -> Tensor:
        """What every key channel is worth, (batch, kv_heads, d); the largest stay."""
        return key_scores(q, keys, q_valid, valid)

    def pack(self, kept: int, kept_values: int, recent: int, own: int, scaling: float) -> None:
        """Chooses channels and packs all columns but, by position, the last `recent` and `own` ones.

        Args:
            kept, kept_values: channels of keys and values that stay.
            recent: entries of the prompt that stay whole.
            own: columns at the end that are not of the prompt.
            scaling: of the logits.
        """
        q, q_pos = self.rows.pop("last_queries"), self.rows.pop("last_positions")
        size = self.length - own
        keys, values, positions = (self.slot(name)[:, :, :size] for name in ("keys", "values", "positions"))
        valid = positions >= 0 if self.has_empty else None
        channels = largest(self.channel_scores(q, keys, q_pos >= 0, valid), kept)
        order = positions.argsort(dim=-1, stable=True)  # places that hold nothing come first
        longest = size if valid is None else int(valid.sum(-1).amax())
        whole, packed = min(recent, size), max(0, longest - recent)
        old = order[:, :, size - whole - packed : size - whole]
        packed_keys, packed_values = (x.gather(2, old[..., None].expand(-1, -1, -1, x.shape[3])) for x in (keys, values))
        rows = {"packed_keys": _channels_of(packed_keys, channels), "channels": channels}
        if kept_values < values.shape[3]:
            rows["value_channels"] = largest(value_scores(q, keys, values, q_pos, positions, scaling), kept_values)
            packed_values = _channels_of(packed_values, rows["value_channels"])
        rows["packed_values"] = packed_values
        if valid is not None:
            rows["packed_valid"] = valid.gather(2, old)
        # what the other method noted goes
        self.slots = {name: self.slots[name] for name in ("keys", "values", "positions")}
        self.rows = {name: self.rows[name] for name in self.lasting if name in self.rows}
        self.keep(torch.cat([order[:, :, size - whole :], torch.arange(size, self.length).expand(*order.shape[:2], -1).to(order)], 2))
        self.rows.update(rows)

    def repack(self, recent: int) -> None:
        """Moves all columns but the last `recent` into the packed part, with the channels that it has."""
        count = self.length - recent
        rows = self.rows
        keys = _channels_of(self.slot("keys")[:, :, :count], rows["channels"])
        values = _channels_of(self.slot("values")[:, :, :count], rows.get("value_channels"))
        if self.has_empty:
            known = rows.get("packed_valid", torch.ones(rows["packed_keys"].shape[:3], dtype=torch.bool, device=keys.device))
            rows["packed_valid"] = torch.cat([known, self.positions[:, :, :count] >= 0], 2)
        rows["packed_keys"] = torch.cat([rows["packed_keys"], keys], 2)
        rows["packed_values"] = torch.cat([rows["packed_values"], values], 2)
        columns = torch.arange(count, self.length, device=keys.device)
        self.keep(columns.expand(*keys.shape[:2], -1))

    def attend(self, q: Tensor, scaling: float) -> Tensor:
        """Attention over both parts, (batch, queries, heads, d_v), for queries (batch, heads, queries, d) whose keys came last."""
        count = q.shape[2]
        outs = [self._attend(q[:, :, at : at + BLOCK], count - at, scaling) for at in range(0, count, BLOCK)]
        return torch.cat(outs, 2).transpose(1, 2)

    def _attend(self, q: Tensor, behind: int, scaling: float) -> Tensor:
        """A block of queries; `behind` columns, the first query's own among them, are not older than that."""
        rows, keys, values = self.rows, self.slot("keys"), self.slot("values")
        batch, heads, count, _ = q.shape
        kv_heads, size = keys.shape[1], rows["packed_keys"].shape[2]
        grouped = q.reshape(batch, kv_heads, -1, q.shape[3])  # (batch, kv_heads, group · queries, d)
        fewer = _channels_of(grouped, rows["channels"])
        logits = torch.cat([fewer @ rows["packed_keys"].transpose(-1, -2), grouped @ keys.transpose(-1, -2)], -1).float() * scaling
        logits = logits.view(batch, kv_heads, -1, count, logits.shape[-1])
        least = torch.finfo(logits.dtype).min
        if "packed_valid" in rows:
            logits[..., :size].masked_fill_(~rows["packed_valid"][:, :, None, None], least)
        if self.has_empty:
            logits[..., size:].masked_fill_((self.positions < 0)[:, :, None, None], least)
        if behind > 1:
            seen = torch.ones(count, keys.shape[2], dtype=torch.bool, device=q.device).tril(keys.shape[2] - behind)
            logits[..., size:].masked_fill_(~seen, least)
        probs = logits.softmax(-1).to(values.dtype).view(batch, kv_heads, -1, logits.shape[-1])
        out = probs[..., :size] @ rows["packed_values"]
        if "value_channels" in rows:
            index = rows["value_channels"].long()[:, :, None].expand(-1, -1, out.shape[2], -1)
            out = out.new_zeros(*out.shape[:3], values.shape[3]).scatter(3, index, out)
        return (out + probs[..., size:] @ values).view(batch, heads, count, -1)


def key_scores(q: Tensor, keys: Tensor, q_valid: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """The square of ‖Q_{:,i}‖ ‖K_{:,i}‖ of every channel, with the mean of Q² over the query heads of a group.

    Args:
        q: (batch, heads, w, d), rotated.
        keys: (batch, kv_heads, S, d), rotated.
        q_valid: (batch, w) bool; None: all count.
        valid: (batch, kv_heads, S) bool; None: all count.

    Returns:
        (batch, kv_heads, d), float32.
    """
    q2, k2 = q.float().square(), keys.float().square()
    if q_valid is not None:
        q2 = q2 * q_valid[:, None, :, None]
    if valid is not None:
        k2 = k2 * valid[..., None]
    return q2.sum(2).unflatten(1, (keys.shape[1], -1)).mean(2) * k2.sum(2)


def value_scores(q: Tensor, keys: Tensor, values: Tensor, q_pos: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """The square of ‖softmax(Q Kᵀ) V_{:,i}‖ of every value channel, summed over the group: (batch, kv_heads, d_v), float32."""
    batch, _, count, d = q.shape
    logits = q.reshape(batch, keys.shape[1], -1, d) @ keys.transpose(-1, -2)
    logits = logits.float().view(batch, keys.shape[1], -1, count, keys.shape[2]) * scaling
    seen = (positions[:, :, None] <= q_pos[:, None, :, None]) & (positions >= 0)[:, :, None]  # (batch, kv_heads, w, S)
    probs = logits.masked_fill(~seen[:, :, None], torch.finfo(logits.dtype).min).softmax(-1)
    probs = probs * (seen & (q_pos >= 0)[:, None, :, None])[:, :, None]
    return (probs.flatten(2, 3) @ values.float()).square().sum(2)


def largest(scores: Tensor, kept: int) -> Tensor:
    """The `kept` channels of the largest scores, (batch, kv_heads, kept) int16, ascending."""
    return scores.topk(kept, dim=-1).indices.sort(-1).values.to(torch.int16)


def _channels_of(x: Tensor, channels: Tensor | None) -> Tensor:
    """Some channels of x (batch, kv_heads, n, d), given as (batch, kv_heads, d'); all for None."""
    return x if channels is None else x.gather(3, channels.long()[:, :, None].expand(-1, -1, x.shape[2], -1))
