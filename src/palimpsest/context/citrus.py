"""CItruS: reading a long text in chunks and keeping what the instruction looks at, not only what the text does (033).

Bai, Zou, Huang, Chen, Rondeau, Gao and Cheung, *CItruS: Chunked Instruction-aware State Eviction for Long Sequence Modeling* (EMNLP
2024, arXiv 2406.12018; ybai-nlp/CItruS). Keys are kept before rotation and rotated to their index in the cache, so that positions are those
of a short text however long the document is. A document is cut into chunks c_0, c_1, … Reading c_t, t > 0, on a cache of n keys, every
layer gives

    score_j = mean over all query heads and over the rows i of the selector of softmax(q_i·k / √d)_j,    j = 1 … n,

and keeps, in their order and the same for all its heads, the k old keys of the largest scores, and all of c_t: at most k + chunk states
after a step, k + 2 chunk within. Who selects is the difference ("information neglect": what keeps a text fluent is not what a task needs):

* "standard" (chunked state eviction): the chunk itself;
* "shared": the instruction, run on the cache without c_t, its own states thrown away;
* "individual": two caches. The context cache is "standard", and reads the document. The instruction cache is selected by the instruction
  run on itself, gets the newest chunk's states from the context cache, and answers. It needs twice the bytes.

Then the instruction is run once more to select k of all keys, thrown away, run again on what is left, and generation goes on from there
with nothing given up. In the paper's step 0 c_0 and c_1 go through the model together; as c_1 then sees all of c_0, that is the step above.

Without an instruction, `with CItruS(cache="standard")(model)` is a cache like others: texts are cut into chunks inside of every layer
(which is the same as a forward pass a chunk), single tokens are appended. Rows of a batch are each cut from their own first token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.citrus_layer import CitrusLayer, columns_of, compact
from palimpsest.context.citrus_session import CitrusSession
from palimpsest.context.scoring import attend_with_probabilities, attention_stats
from palimpsest.errors import InputError

CACHES = ("standard", "shared", "individual")


@dataclass(frozen=True)
class CItruS(ContextMethod):
    """Keeps k states of a document that an instruction, or the document itself, attends to, and its newest chunk.

    Args:
        k: old states that are kept in every layer.
        chunk: tokens that are read at a time.
        cache: "standard", "shared" or "individual".

    Raises:
        InputError: k or chunk below 1, or an unknown kind of cache.

    Example:
        >>> with CItruS(k=256, chunk=128).read(model, document_ids, question_ids) as session:        # doctest: +SKIP
        ...     answer = session.generate(max_new_tokens=20)
    """

    k: int = 768
    chunk: int = 256
    cache: str = "individual"

    keys = "pre_rope"
    session = CitrusSession

    def __post_init__(self) -> None:
        for name in ("k", "chunk"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Give at least 1.")
        if self.cache not in CACHES:
            raise InputError(f"cache is {self.cache!r}.", f"Choose one of {', '.join(CACHES)}.")

    def validate(self, config: Any) -> None:
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and self.chunk > longest:
            raise InputError(f"chunk is {self.chunk}, the model's window {longest}.", "Give a chunk that the model can read.")

    @contextmanager
    def read(self, model: Any, document_ids: Tensor, instruction_ids: Tensor, **masks: Tensor) -> Iterator[CitrusSession]:
        """Attaches the method and reads; see `CitrusSession.read` for the arguments."""
        with self(model) as session:
            assert isinstance(session, CitrusSession)
            session.read(document_ids, instruction_ids, **masks)
            yield session

    def make_layer(self, info: LayerInfo) -> CitrusLayer:
        return CitrusLayer()

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: CitrusLayer
    ) -> Tensor:
        count = q.shape[2]
        if layer.mode == "append" or (layer.mode == "stream" and count == 1):
            self.settle(info, layer, own=count)
            q = self.place(info, q, position_ids, layer)
            return _attention(q, layer.slot("keys"), v, layer.held(), info.scaling)
        if layer.mode == "stream" and self.cache != "standard":
            raise InputError(f"There is no instruction for the cache {self.cache!r}.", 'Use session.read, or cache="standard".')
        layer.unsettle(info, own=count)
        if layer.mode == "peek":
            columns = torch.arange(layer.length, device=q.device).expand(q.shape[0], -1)
            out, scores = self._chunk(info, q, columns, layer.held(), layer)
            layer.selected = _best(scores[:, :-count], layer.held(layer.length - count), self.k)
            return out
        return self._stream(info, q, position_ids, layer)

    def settle(self, info: LayerInfo, layer: CitrusLayer, own: int) -> None:
        """Rotates all keys but the last `own` to their index, once; from then on keys are rotated as they come in (`place`)."""
        if not layer.settled:
            assert info.rotary is not None
            keys, index = layer.slot("keys")[:, :, : layer.length - own], layer.index(layer.length - own)
            keys.copy_(info.rotary.rotate(keys, index))
            held = layer.held(layer.length - own)
            count = torch.full((keys.shape[0],), keys.shape[2], device=keys.device) if held is None else held.sum(-1)
            layer.rows["count"] = count
            layer.settled = True

    def place(self, info: LayerInfo, q: Tensor, position_ids: Tensor, layer: CitrusLayer) -> Tensor:
        """Rotates the newest keys of a settled layer in place, and gives their queries rotated."""
        assert info.rotary is not None
        new = (position_ids >= 0).expand(q.shape[0], -1)
        index = layer.rows["count"][:, None] + new.cumsum(-1) - 1
        layer.rows["count"] = layer.rows["count"] + new.sum(-1)
        keys = layer.slot("keys")[:, :, -q.shape[2] :]
        keys.copy_(info.rotary.rotate(keys, index))
        return info.rotary.rotate(q, index)

    def rotated(self, info: LayerInfo, q: Tensor, position_ids: Tensor, layer: CitrusLayer) -> Tensor:
        """Queries whose keys are the newest of a layer, rotated to their index."""
        assert info.rotary is not None
        held = layer.held()
        total = layer.length if held is None else held.sum(-1, keepdim=True)
        behind = (position_ids >= 0).flip(-1).cumsum(-1).flip(-1)
        return info.rotary.rotate(q, (total - behind).clamp_min(0).expand(q.shape[0], -1))

    def _stream(self, info: LayerInfo, q: Tensor, position_ids: Tensor, layer: CitrusLayer) -> Tensor:
        """Reads new tokens chunk by chunk, selecting as it goes."""
        batch, _, count, _ = q.shape
        first, held = layer.length - count, layer.held()
        order = torch.arange(count, device=q.device).expand(batch, -1)
        if held is not None:  # every row from its own first token
            order = (position_ids >= 0).expand(batch, -1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
            q = columns_of(q, order)
        columns, outs = torch.arange(first, device=q.device).expand(batch, -1), []
        for begin in range(0, count, self.chunk):
            new = first + order[:, begin : begin + self.chunk]
            old, columns = columns.shape[1], torch.cat([columns, new], 1)
            out, scores = self._chunk(info, q[:, :, begin : begin + self.chunk], columns, held, layer)
            outs.append(out)
            if old:
                kept = self._selected(scores, old, columns, held, layer)
                width = min(self.k, old) + new.shape[1] if held is None else int(kept.sum(1).amax())
                chosen = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
                columns = columns.gather(1, chosen)
                if held is not None:  # a shorter row is filled up with columns that it has not kept
                    held = held.scatter(1, columns, kept.gather(1, chosen))
        layer.go_over(columns, held)
        out = torch.cat(outs, 1)
        return out if held is None else out.gather(1, order.argsort(dim=1)[:, :, None, None].expand(out.shape))

    def _chunk(self, info: LayerInfo, q: Tensor, columns: Tensor, held: Tensor | None, layer: CitrusLayer) -> tuple[Tensor, Tensor]:
        """Attention of queries whose keys are the last of `columns` (batch, n), and the score of every column, (batch, n).

        `held` (batch, columns of the layer) says which columns hold something; None: all.
        """
        assert info.rotary is not None
        keys, values = layer.slot("keys"), layer.slot("values")
        if columns.shape[1] != layer.length or held is not None:
            keys, values = columns_of(keys, columns), columns_of(values, columns)
            held = None if held is None else held.gather(1, columns)
        index = compact(held, columns)
        keys, q = info.rotary.rotate(keys, index), info.rotary.rotate(q, index[:, -q.shape[2] :])
        out = _attention(q, keys, values, held, info.scaling)
        places = index if held is None else index.masked_fill(~held, -1)
        stats = attention_stats(q, keys, places[:, -q.shape[2] :], places, scaling=info.scaling, reduce="mean", block=q.shape[2])
        return out, stats.mean(1)

    def _selected(self, scores: Tensor, old: int, columns: Tensor, held: Tensor | None, layer: CitrusLayer) -> Tensor:
        """Which of the columns stay, (batch, n): k of the `old` first ones, and all that are new."""
        alive = torch.ones_like(columns, dtype=torch.bool) if held is None else held.gather(1, columns)
        best = _best(scores[:, :old], alive[:, :old], self.k) if layer.selected is None else layer.selected
        layer.selected = None
        if held is not None:  # a row that has ended keeps what it has
            best = torch.where(alive[:, old:].any(1, keepdim=True), best, alive[:, :old])
        return torch.cat([best, alive[:, old:]], 1)


def _best(scores: Tensor, held: Tensor | None, k: int) -> Tensor:
    """(batch, n) bool: the k columns of the largest scores among those that hold something, all if there are no more."""
    if held is not None:
        scores = scores.masked_fill(~held, -1.0)
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
    return kept if held is None else kept & held


def _attention(q: Tensor, k: Tensor, v: Tensor, held: Tensor | None, scaling: float) -> Tensor:
    """Causal attention of queries whose keys are the last, (batch, queries, heads, head_dim)."""
    count, columns = q.shape[2], k.shape[2]
    if count == 1:
        return attend_with_probabilities(q, k, v, scaling, None if held is None else held[:, None].expand(-1, k.shape[1], -1))[0]
    mask = torch.ones(count, columns, dtype=torch.bool, device=q.device).tril(columns - count)[None, None]
    if held is not None:
        mask = mask & held[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True).transpose(1, 2)
