"""Attendre: queries that wait until later text has come, so that a model that reads in chunks looks both ways (016).

Yang and Hua, *Attendre: Wait To Attend By Retrieval With Evicted Queries in Memory-Based Transformers* (2024, arXiv 2401.04881). A layer
reads chunks of S tokens and has two memories. The K/V memory (`EvictingMemory`) takes the keys and values of the chunk at once. The
queries, with the residual stream and the positions of their tokens, go into the *Q memory*: first in first out, D = `q_delay` places, D a
multiple of S. The S queries that leave it, those of chunk t − D/S, retrieve from the K/V memory, which by then holds up to D tokens after
them beside what it kept of those before:

    K/V ← insert(K_t, V_t);   Q ← push(Q_t);   Q_out = pop(Q);   y = x_out + W_o retrieve(Q_out, K/V);   y ← y + FFN(y)

so that the output of step t is chunk t − D/S, and the residual and the FFN meet the token that the query came from. In the first D/S steps
nothing comes out (the chunk is marked as not valid), and D/S empty chunks at the end flush the queue. The delays of stacked layers add up.
With D = 0 and `causal` a layer is an ordinary causal one with a memory; with a memory and a delay as long as the text it is full
bidirectional attention of the same weights.

Shapes: x (batch, S, d); queries, keys, values (batch, heads, ·, d / heads); positions and valid (batch, S).

Departures: the paper rotates what it stores when it is retrieved; positions here are absolute and do not change, so keys and queries are
rotated once, as they come in, which gives the same products. Its own layers are those of PaLM 2 and T5; these are pre-norm blocks of RMS
norm, attention and a GELU network. `AttentionEviction` is the paper's other half: its policies for a causal model as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.context.evicting_memory import EvictingMemory, MemoryState
from palimpsest.context.rotary import RotaryMap
from palimpsest.errors import InputError


class Chunk(NamedTuple):
    """S tokens on their way through the layers.

    Attributes:
        x: residual stream, (batch, S, d).
        positions: (batch, S) int64.
        valid: (batch, S) bool; False for padding, and for what comes out before the first token does.
    """

    x: Tensor
    positions: Tensor
    valid: Tensor


class LayerState(NamedTuple):
    """What a layer holds between chunks.

    Attributes:
        memory: of keys and values.
        queries: those that wait, (batch, heads, D, d / heads), the oldest first.
        waiting: their tokens, a `Chunk` of D.
    """

    memory: MemoryState
    queries: Tensor
    waiting: Chunk


class AttendreAttention(nn.Module):
    """Attention whose queries wait for D tokens.

    Args:
        d: width.
        heads: that divide it into even parts.
        kv_capacity: entries of the K/V memory, at least the size of a chunk.
        q_delay: queries that wait, D; a multiple of the size of a chunk.
        policy, top_k: of the K/V memory, see `EvictingMemory`.
        causal: whether queries see only what stands before them; with a delay that only costs time.
        rope_base: of the rotary positions.

    Raises:
        InputError: a size out of range.

    Example:
        >>> layer = AttendreAttention(d=8, heads=2, kv_capacity=16, q_delay=4)
        >>> chunk = Chunk(torch.randn(1, 4, 8), torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool))
        >>> read, out, state = layer(chunk.x, chunk, layer.start(1))
        >>> bool(out.valid.any()), state.waiting.positions.tolist()      # the first chunk waits
        (False, [[0, 1, 2, 3]])
    """

    def __init__(
        self,
        d: int,
        heads: int,
        kv_capacity: int,
        q_delay: int = 0,
        policy: str = "fifo",
        top_k: int | None = None,
        *,
        causal: bool = False,
        rope_base: float = 10_000.0,
    ) -> None:
        super().__init__()
        if heads < 1 or d < 1 or d % (2 * heads) or q_delay < 0:
            raise InputError(
                f"d is {d}, heads {heads}, q_delay {q_delay}.", "Give a width of an even part for every head, and a delay of 0 or more."
            )
        self.heads, self.q_delay, self.causal = heads, q_delay, causal
        self.memory = EvictingMemory(kv_capacity, policy, top_k)
        self.project = nn.Linear(d, 3 * d, bias=False)
        self.output = nn.Linear(d, d, bias=False)
        self.rotary = RotaryMap.of_base(rope_base, d // heads)

    def start(self, batch: int) -> LayerState:
        """The state before the first chunk: an empty memory, and D queries of no token."""
        weight = self.project.weight
        d, D = weight.shape[1], self.q_delay
        queries = weight.new_zeros(batch, self.heads, D, d // self.heads)
        nobody = torch.zeros(batch, D, dtype=torch.int64, device=weight.device)
        return LayerState(self.memory.start(queries, queries), queries, Chunk(weight.new_zeros(batch, D, d), nobody, nobody.bool()))

    def forward(self, hidden: Tensor, chunk: Chunk, state: LayerState) -> tuple[Tensor, Chunk, LayerState]:
        """Reads a chunk.

        Args:
            hidden: what keys, values and queries are made of, usually the normed `chunk.x`, (batch, S, d).
            chunk: its tokens; `chunk.x` waits with the queries.
            state: used up if there are no gradients, see `MemoryState`.

        Returns:
            What the queries that left have read, (batch, S, d); their tokens; and the state after.

        Raises:
            InputError: D is no multiple of S, or the memory is smaller than S.
        """
        size = hidden.shape[1]
        if self.q_delay % size:
            raise InputError(f"q_delay is {self.q_delay} and a chunk has {size} tokens.", "Give a delay that is a multiple of the chunk.")
        q, k, v = self.project(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.rotary.rotate(q, chunk.positions), self.rotary.rotate(k, chunk.positions)
        memory = self.memory.insert(state.memory, k, v, chunk.positions, chunk.valid)
        queries = torch.cat([state.queries, q], 2)
        tokens = [torch.cat(parts, 1) for parts in zip(state.waiting, chunk, strict=True)]
        leaving = Chunk(*(part[:, :size] for part in tokens))
        read, probs, visible = self.memory.retrieve(memory, queries[:, :, :size], leaving.positions if self.causal else None, leaving.valid)
        memory = self.memory.update(memory, probs, visible)
        waiting = Chunk(*(part[:, size:] for part in tokens))
        return self.output(read.transpose(1, 2).flatten(2)), leaving, LayerState(memory, queries[:, :, size:], waiting)


class AttendreLayer(nn.Module):
    """A pre-norm block around `AttendreAttention`; see there for the arguments."""

    def __init__(self, attention: AttendreAttention) -> None:
        super().__init__()
        d = attention.output.weight.shape[0]
        self.attention = attention
        self.norms = nn.ModuleList([nn.RMSNorm(d), nn.RMSNorm(d)])
        self.wide, self.narrow = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, chunk: Chunk, state: LayerState) -> tuple[Chunk, LayerState]:
        """The chunk that leaves, and the state after."""
        read, leaving, state = self.attention(self.norms[0](chunk.x), chunk, state)
        x = leaving.x + read
        return leaving._replace(x=x + self.narrow(F.gelu(self.wide(self.norms[1](x))))), state


class AttendreEncoder(nn.Module):
    """A stack of `AttendreLayer`s that encodes a text of any length in chunks, each token with a look ahead of the delays' sum.

    Args:
        d: width.
        layers: how many.
        heads: of each.
        chunk: tokens at a time, S.
        kv_capacity: entries of the K/V memory of each layer.
        q_delay: of each layer, or one for each.
        policy, top_k, causal, rope_base: see `AttendreAttention`.

    Raises:
        InputError: a size out of range, a delay that is no multiple of the chunk, or a memory smaller than it.

    Example:
        >>> encoder = AttendreEncoder(d=16, layers=2, heads=2, chunk=4, kv_capacity=32, q_delay=(8, 0))
        >>> encoder(torch.randn(2, 21, 16)).shape
        torch.Size([2, 21, 16])
    """

    def __init__(
        self,
        d: int,
        layers: int,
        heads: int,
        *,
        chunk: int,
        kv_capacity: int,
        q_delay: int | Sequence[int] = 0,
        policy: str = "fifo",
        top_k: int | None = None,
        causal: bool = False,
        rope_base: float = 10_000.0,
    ) -> None:
        super().__init__()
        delays = [q_delay] * layers if isinstance(q_delay, int) else list(q_delay)
        if layers < 1 or chunk < 1 or len(delays) != layers or any(delay % chunk for delay in delays):
            raise InputError(
                f"There are {layers} layers with the delays {delays}, and chunks of {chunk}.",
                "Give one delay a layer, each a multiple of the chunk.",
            )
        self.chunk, self.delay = chunk, sum(delays)
        attentions = [
            AttendreAttention(d, heads, kv_capacity, delay, policy, top_k, causal=causal, rope_base=rope_base) for delay in delays
        ]
        for attention in attentions:
            attention.memory.check(chunk)
        self.layers = nn.ModuleList(AttendreLayer(attention) for attention in attentions)
        self.norm = nn.RMSNorm(d)

    def start(self, batch: int) -> list[LayerState]:
        """The state of every layer before the first chunk."""
        layers: Any = self.layers
        return [layer.attention.start(batch) for layer in layers]

    def step(self, chunk: Chunk, states: Sequence[LayerState]) -> tuple[Chunk, list[LayerState]]:
        """One chunk in, the chunk that is `delay` tokens older out, with the states after; for texts that come bit by bit."""
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            chunk, state = layer(chunk, state)
            after.append(state)
        return chunk._replace(x=self.norm(chunk.x)), after

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Encodes whole texts.

        Args:
            x: embedded tokens, (batch, time, d).
            valid: (batch, time) bool, False for padding on either side; None: all. Positions count the valid tokens.

        Returns:
            (batch, time, d), in order; zeros where there is padding.
        """
        batch, time, _ = x.shape
        valid = torch.ones(batch, time, dtype=torch.bool, device=x.device) if valid is None else valid
        steps = -(-time // self.chunk)
        size = (steps + self.delay // self.chunk) * self.chunk  # the last chunks are empty: they flush the queues
        positions = (valid.cumsum(1) - 1).clamp_min(0)
        parts = (F.pad(x, (0, 0, 0, size - time)), *(F.pad(part, (0, size - time)) for part in (positions, valid)))
        states, outs = self.start(batch), []
        for chunk in zip(*(part.split(self.chunk, 1) for part in parts), strict=True):
            out, states = self.step(Chunk(*chunk), states)
            outs.append(out.x.masked_fill(~out.valid[..., None], 0.0))
        return torch.cat(outs[self.delay // self.chunk :], 1)[:, :time]
