"""SnapKV: what the end of the prompt looks at stays (Li et al., NeurIPS 2024, arXiv 2404.14469).

The last `window` queries vote: the score of key j in front of the window is the mean of p_ij over these queries and over the group of
query heads, smoothed over neighbouring keys by an average of `kernel` columns, so that what stays are runs and not single tokens. The
`budget` - `window` highest stay, and the window itself.

Question visible: the prompt ends with the question, so the question's own queries vote. Question hidden: read the context first
(`prefill(session, context)`), which is then compressed by its own last tokens, and append the question afterwards.

The paper compresses once, when the prompt has been read. Here a prompt that comes in chunks is compressed after each, with the last
`window` queries of all chunks so far; and while decoding the layer grows by `window` tokens, then is compressed again, with the
queries of these. So a head never holds more than `budget` + `window` - 1 entries after a step. Once `prefill` has read a text its queries
are forgotten: in a text behind it only its own vote.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from palimpsest.context.attach import LayerInfo
from palimpsest.context.eviction import EvictingMethod, RankedLayer, evict, protect_recent
from palimpsest.context.layers import PositionedLayer
from palimpsest.context.scoring import attention_stats
from palimpsest.errors import InputError


@dataclass(frozen=True)
class SnapKV(EvictingMethod):
    """The keys that the last queries look at, and the last tokens.

    Args:
        budget: entries that every key-value head keeps, the window included.
        window: how many of the last queries vote.
        kernel: over how many neighbours scores are averaged, odd.

    Raises:
        InputError: a budget that the window fills, or an even kernel.

    Example:
        >>> with SnapKV(budget=256)(model) as session:                        # doctest: +SKIP
        ...     read = prefill(session, context)          # the question is hidden
        ...     model.generate(context_and_question, past_key_values=read.cache, max_new_tokens=32)
    """

    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.window < self.budget:
            raise InputError(f"window is {self.window} with a budget of {self.budget}.", "Give 1 <= window < budget.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"kernel is {self.kernel}.", "Give an odd number of columns.")

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return QueryLayer(self.window)

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: QueryLayer) -> None:
        layer.remember(q, position_ids)
        single, surplus = q.shape[2] == 1, layer.length - self.entries(info)
        if surplus >= (self.window if single else 1):
            priority = self.priority(info, q, k, v, position_ids, layer)
            evict(layer, priority, self.entries(info), in_place=False, spare=self.window if single else 1)

    def finish(self, info: LayerInfo, layer: QueryLayer) -> None:
        if layer.came > 1:  # a single token is a step of decoding, also where `prefill` makes it
            layer.forget()

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        scores = self.scores(info, k, position_ids, layer)
        return protect_recent(scores, layer, position_ids, self.window)

    def scores(self, info: LayerInfo, k: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        """The smoothed votes for every key, (batch, kv_heads, columns); zero for those of the window."""
        votes = attention_stats(
            layer.rows["queries"], k, layer.rows["query_positions"], layer.positions, scaling=info.scaling, reduce="mean"
        )
        inside = layer.positions > position_ids.amax(-1)[:, None, None] - self.window
        return smooth(votes.masked_fill(inside, 0.0), self.kernel)


def smooth(votes: Tensor, kernel: int) -> Tensor:
    """The mean over `kernel` neighbouring columns, with zeros beyond both ends."""
    return avg_pool1d(votes, kernel, stride=1, padding=kernel // 2)


class QueryLayer(RankedLayer):
    """A layer that remembers the last queries, up to `window`: `rows` "queries" (batch, heads, n, head_dim) and "query_positions"."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.next = 0
        self.came = 0  # queries of the last forward pass
        super().__init__()

    def remember(self, q: Tensor, position_ids: Tensor) -> None:
        """Takes the last queries of a forward pass in, (batch, heads, queries, head_dim), and their positions."""
        batch, _, count, _ = q.shape
        self.came = count
        new, at = q[:, :, -self.window :], position_ids[:, -self.window :].expand(batch, -1)
        held = self.rows.get("queries")
        if held is not None and held.shape[2] == self.window:
            places = (torch.arange(new.shape[2], device=q.device) + self.next) % self.window
            held[:, :, places] = new
            self.rows["query_positions"][:, places] = at
            self.next = (self.next + new.shape[2]) % self.window
        else:  # no room for queries that have not come
            if held is not None:
                new, at = torch.cat([held, new], 2), torch.cat([self.rows["query_positions"], at], 1)
            self.rows["queries"] = new[:, :, -self.window :].clone()
            self.rows["query_positions"] = at[:, -self.window :].clone()
        self.tail = 0  # queries that left the ring cannot be brought back

    def forget(self) -> None:
        """Lets go of all queries: of a text that has been read whole, and of the room that they take."""
        self.rows.pop("queries", None)
        self.rows.pop("query_positions", None)
        self.next = 0

    def reset(self) -> None:
        super().reset()
        self.next = 0
