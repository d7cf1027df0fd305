"""A key-value memory of fixed size that lets go of what is attended least (016).

Yang and Hua, *Attendre: Wait To Attend By Retrieval With Evicted Queries in Memory-Based Transformers* (2024, arXiv 2401.04881). The memory
of a head has M slots, each with a key, a value, a position and a score s_j. A chunk of S tokens goes through four steps: its entries are
*inserted*, for which the S entries of lowest (s_j, position) are *evicted*, empty slots first; its queries *retrieve*,

    p_ij = softmax_j(q_i·k_j / √d)   over valid entries j, over the top_k best of them, and over k_pos <= q_pos where that is asked for,
    o_i = Σ_j p_ij v_j;

and the scores are *updated*:

    FIFO   s_j = 0: the oldest position goes first (first in, first out)
    LRA    s_j = the last step in which j was attended, at first the step in which it came in (least recently attended)
    LFA    s_j ← λ s_j + Σ_i p_ij over the queries of the chunk and of all heads that share j, at first 0 (least frequently attended)

Shapes: keys, values (batch, kv heads, M, d); queries (batch, heads, S, d), `heads` a multiple of `kv heads`. All sizes are fixed, so that a
step is one static graph, and a step of one token is a scatter into one slot, not a copy of the memory.

The paper could be read in its abstract alone and there is no code, so these are ours: "attended" means, for at least one query of one head
that shares j, being among the top_k, or p_ij > 1 / (2 · number of entries that the query sees) where there is no top_k (if every entry with
p > 0 counted, LRA would be FIFO); the decay λ, 1 by default; the protection of the last `recent` positions, without which LFA, fed one
token at a time, would evict the newest entry, which nobody could attend yet, at every step; and attention sinks, which are never evicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from palimpsest.context.layers import EMPTY
from palimpsest.errors import InputError

POLICIES = ("fifo", "lra", "lfa")
_LAST = 1 << 62  # a priority above those of all entries that may be evicted


@dataclass(frozen=True)
class MemoryState:
    """What a memory holds. An `insert` without gradients writes into these tensors: the state that it was given is used up.

    Attributes:
        keys: (batch, kv heads, M, d).
        values: (batch, kv heads, M, d_v).
        positions: (batch, kv heads, M) int32, `EMPTY` for an empty slot.
        scores: (batch, kv heads, M) float32, never negative.
        step: chunks that were read.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    scores: Tensor
    step: int = 0

    @property
    def valid(self) -> Tensor:
        """Which slots hold something, (batch, kv heads, M) bool."""
        return self.positions >= 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.numel() * part.element_size() for part in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the attributes; the first dimension of each is the batch."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name != "step")

    def map(self, change: Callable[[Tensor], Tensor]) -> MemoryState:
        """The state with `change` applied to every tensor, as for reordering the batch."""
        return MemoryState(change(self.keys), change(self.values), change(self.positions), change(self.scores), self.step)


@dataclass(frozen=True)
class EvictingMemory:
    """The rules of a memory; what it holds is a `MemoryState`.

    Args:
        capacity: slots a head, M.
        policy: "fifo", "lra" or "lfa".
        top_k: entries that a query reads; None: all.
        per_head: whether every kv head evicts for itself; if not, all evict the same entries, by the mean (LFA) or the latest (LRA) score.
        decay: λ of LFA, in (0, 1].
        sinks: positions from 0 that are never evicted.
        recent: the last positions that are never evicted; the chunk that comes in never is.

    Raises:
        InputError: a value out of range.

    Example:
        >>> memory = EvictingMemory(capacity=2)
        >>> q, k, v = (torch.eye(3)[None, None] for _ in range(3))
        >>> state = memory.start(k, v)
        >>> for t in range(3):
        ...     out, probs, state = memory.step(state, *(x[:, :, t : t + 1] for x in (q, k, v)), torch.tensor([[t]]))
        >>> state.positions.tolist()
        [[[2, 1]]]
    """

    capacity: int
    policy: str = "fifo"
    top_k: int | None = None
    per_head: bool = True
    decay: float = 1.0
    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        wrong = {
            "capacity": (self.capacity < 1, "1 or more"),
            "policy": (self.policy not in POLICIES, f"one of {', '.join(POLICIES)}"),
            "top_k": (self.top_k is not None and self.top_k < 1, "1 or more, or None"),
            "decay": (not 0 < self.decay <= 1, "a number above 0, up to 1"),
            "sinks": (self.sinks < 0, "0 or more"),
            "recent": (self.recent < 0, "0 or more"),
        }
        for name, (bad, remedy) in wrong.items():
            if bad:
                raise InputError(f"{name} is {getattr(self, name)!r}.", f"Give {remedy}.")
        self.check(1)

    def check(self, chunk: int) -> None:
        """Raises `InputError` if chunks of so many tokens do not fit beside what may not be evicted."""
        needed = self.sinks + max(self.recent, chunk)
        if self.capacity < needed:
            raise InputError(
                f"{self.capacity} slots do not take chunks of {chunk} beside {self.sinks} sinks and {self.recent} recent positions.",
                f"Give a capacity of at least {needed}, or smaller chunks.",
            )

    def start(self, keys: Tensor, values: Tensor) -> MemoryState:
        """An empty memory for keys (batch, kv heads, ·, d) and values of this shape and type."""
        shape = (*keys.shape[:2], self.capacity)
        return MemoryState(
            keys.new_zeros(*shape, keys.shape[-1]),
            values.new_zeros(*shape, values.shape[-1]),
            torch.full(shape, EMPTY, dtype=torch.int32, device=keys.device),
            torch.zeros(shape, dtype=torch.float32, device=keys.device),
        )

    def step(
        self,
        state: MemoryState,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        valid: Tensor | None = None,
        *,
        causal: bool = True,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor, MemoryState]:
        """Insert, retrieve and update for a chunk whose queries and keys are of the same tokens.

        Args:
            state: of the memory.
            q: (batch, heads, S, d).
            k, v: (batch, kv heads, S, d).
            positions: (batch, S) int64.
            valid: (batch, S) bool; None: all.
            causal: whether a query sees only entries at its position and before.
            scale: of the logits; by default 1/√d.

        Returns:
            What the queries read, (batch, heads, S, d_v), probabilities (batch, heads, S, M), and the state after.

        Raises:
            InputError: a chunk that does not fit.
        """
        state = self.insert(state, k, v, positions, valid)
        out, probs, visible = self.retrieve(state, q, positions if causal else None, valid, scale)
        return out, probs, self.update(state, probs, visible)

    def insert(self, state: MemoryState, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None = None) -> MemoryState:
        """Writes S entries over the S that may go first; entries that are not valid replace nothing."""
        self.check(k.shape[2])
        slots = self._slots(state, positions, valid)  # (batch, kv heads, S), the first to go first
        heads = k.shape[1]
        if valid is not None:  # valid entries first, so that n of them take the n slots that go first
            order = (~valid).to(torch.uint8).argsort(dim=-1, stable=True)
            positions, valid = positions.gather(1, order), valid.gather(1, order)
            k, v = (x.gather(2, order[:, None, :, None].expand(-1, heads, -1, x.shape[-1])) for x in (k, v))
        kept = None if valid is None else ~valid[:, None].expand(-1, heads, -1)  # slots that stay as they are

        def written(old: Tensor, new: Tensor) -> Tensor:
            index = slots if old.dim() == 3 else slots[..., None].expand(-1, -1, -1, old.shape[-1])
            if kept is not None:
                new = torch.where(kept if old.dim() == 3 else kept[..., None], old.gather(2, index), new)
            return old.scatter(2, index, new) if torch.is_grad_enabled() else old.scatter_(2, index, new)

        score = float(state.step) if self.policy == "lra" else 0.0
        return MemoryState(
            written(state.keys, k),
            written(state.values, v),
            written(state.positions, positions[:, None].expand(slots.shape).to(torch.int32)),
            written(state.scores, torch.full_like(slots, score, dtype=torch.float32)),
            state.step + 1,
        )

    def _slots(self, state: MemoryState, positions: Tensor, valid: Tensor | None) -> Tensor:
        """The slots that are written next, (batch, kv heads, S)."""
        # A float that is not negative sorts as its bits do: score and position in one integer sort by score, then by age.
        priority = (state.scores.view(torch.int32).long() << 31) | state.positions
        last = positions if valid is None else positions.masked_fill(~valid, -1)
        kept = state.positions > (last.amax(1) - self.recent)[:, None, None]
        if self.sinks:
            kept |= state.positions < self.sinks
        priority = priority.masked_fill(kept, _LAST).masked_fill(~state.valid, -1)
        return priority.topk(positions.shape[1], dim=-1, largest=False, sorted=True).indices

    def retrieve(
        self, state: MemoryState, q: Tensor, positions: Tensor | None = None, valid: Tensor | None = None, scale: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What queries read.

        Args:
            state: of the memory.
            q: (batch, heads, S, d).
            positions: (batch, S): a query then sees only entries at its position and before; None: all.
            valid: (batch, S) bool: queries that are not see nothing and read zeros; None: all are.
            scale: of the logits; by default 1/√d.

        Returns:
            (batch, heads, S, d_v); probabilities (batch, heads, S, M), float32; and what is seen, bool (batch, kv heads, 1, S, M).
        """
        batch, heads, size, d = q.shape
        kv_heads = state.keys.shape[1]
        grouped = q.reshape(batch, kv_heads, -1, d)  # query heads that share a kv head stand together
        logits = (grouped @ state.keys.transpose(-1, -2)).view(batch, kv_heads, heads // kv_heads, size, -1).float()
        logits = logits * (d**-0.5 if scale is None else scale)
        visible = state.valid[:, :, None, None]
        if positions is not None:
            visible = visible & (state.positions[:, :, None, None] <= positions[:, None, None, :, None])
        if valid is not None:
            visible = visible & valid[:, None, None, :, None]
        logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
        read = visible
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            best = logits.topk(self.top_k, dim=-1).indices
            read = visible & torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
            logits = logits.masked_fill(~read, torch.finfo(logits.dtype).min)
        probs = logits.softmax(-1).masked_fill(~read, 0.0)  # a query that sees nothing reads zeros
        out = probs.to(state.values.dtype).view(batch, kv_heads, -1, probs.shape[-1]) @ state.values
        return out.view(batch, heads, size, -1), probs.view(batch, heads, size, -1), visible

    @torch.no_grad()
    def update(self, state: MemoryState, probs: Tensor, visible: Tensor) -> MemoryState:
        """Scores after a retrieval; see `retrieve` for the two that it gives."""
        if self.policy == "fifo":
            return state
        batch, kv_heads = state.valid.shape[:2]
        probs = probs.detach().view(batch, kv_heads, -1, probs.shape[-2], probs.shape[-1])
        if self.policy == "lfa":
            gained = probs.sum((2, 3))
            gained = gained if self.per_head else gained.mean(1, keepdim=True)
            return replace(state, scores=self.decay * state.scores + gained)
        least = 0.0 if self.top_k is not None else 0.5 / visible.sum(-1, keepdim=True).clamp_min(1)
        attended = (probs > least).any(3).any(2)
        attended = attended if self.per_head else attended.any(1, keepdim=True)
        return replace(state, scores=torch.where(attended, float(state.step - 1), state.scores))
