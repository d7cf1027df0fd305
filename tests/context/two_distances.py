"""Plain references for LM-Infinite and InfLLM: every key is kept unrotated, nothing is evicted, masks are dense, and loops are loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.context import ContextMethod

VOCABULARY = 100


def tiny_llama(seed=0, layers=2, trained=64, rope=None):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=trained,
        initializer_range=0.2,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 10_000.0},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def random_ids(tokens, rows=1, seed=0):  # without 0, which generate takes for padding
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class DenseLambda(ContextMethod):
    """Near keys at their distance, keys before n_global that are not near at min(ceiling, m): one dense softmax."""

    n_global: int
    n_local: int
    ceiling: int
    keys: ClassVar = "pre_rope"

    def attend(self, info, q, k, v, pad_mask, position_ids, layer):
        k, v = (part.repeat_interleave(info.groups, 1) for part in (k, v))
        m, n = position_ids[..., None], layer.positions[:, 0, None]
        near_logits = info.rotary.rotate(q, position_ids) @ info.rotary.rotate(k, layer.positions[:, 0]).transpose(-1, -2)
        zero = info.rotary.rotate(k, torch.zeros(1))
        far_logits = info.rotary.rotate(q, position_ids.clamp(max=self.ceiling)) @ zero.transpose(-1, -2)
        near = (n <= m) & (m - n < self.n_local)
        far = (m - n >= self.n_local) & (n < self.n_global)
        logits = torch.where(near[:, None], near_logits, far_logits).masked_fill(~(near | far)[:, None], -torch.inf)
        return ((logits * info.scaling).softmax(-1) @ v).transpose(1, 2)


@dataclass(frozen=True)
class LoopInfLLM(ContextMethod):
    """InfLLM for one row and plain rotary maps, token by token and block by block, without a cache."""

    n_init: int
    n_local: int
    block: int
    topk: int
    repr_topk: int
    exec_block: int
    per_head: bool = False
    keys: ClassVar = "pre_rope"

    def attend(self, info, q, k, v, pad_mask, position_ids, layer):
        state = vars(layer).setdefault("memory", {"received": torch.zeros(info.heads, 0), "blocks": []})
        k, v = (part[0].repeat_interleave(info.groups, 0) for part in (k, v))  # (heads, tokens, head_dim)
        total, count = k.shape[1], q.shape[2]
        state["received"] = torch.cat([state["received"], torch.zeros(info.heads, count)], 1)
        out = []
        for begin in range(total - count, total, self.exec_block):
            ranks = list(range(begin, min(begin + self.exec_block, total)))
            fixed = info.rotary.rotate(q[:, :, [r - total + count for r in ranks]], torch.tensor([self.n_local]))[0]
            held = self._lookup(info, fixed.mean(1), state["blocks"])
            for i, m in enumerate(ranks):
                rotated = info.rotary.rotate(q[:, :, [m - total + count]], torch.tensor([m]))[0]
                rows = []
                for head in range(info.heads):
                    far = list(range(min(self.n_init, max(0, m - self.n_local + 1))))
                    far += [n for number in held[head] for n in range(*self._span(number))]
                    far += list(range(self._span(len(state["blocks"]))[0], max(0, m - self.n_local + 1)))
                    near = list(range(max(0, m - self.n_local + 1), m + 1))
                    assert len(set(far + near)) == len(far + near)
                    keys = info.rotary.rotate(k[None, [head]][:, :, near], torch.tensor(near))[0, 0]
                    logits = torch.cat([rotated[head] @ keys.T, fixed[head, [i]] @ k[head, far].T], 1) * info.scaling
                    weights = logits.softmax(-1)[0]
                    state["received"][head, near] += weights[: len(near)]
                    rows.append(weights @ v[head, near + far])
                out.append(torch.stack(rows))
            while ranks[-1] + 1 - self._span(len(state["blocks"]))[1] >= self.n_local:
                span = slice(*self._span(len(state["blocks"])))
                best = state["received"][:, span].topk(self.repr_topk, dim=1).indices
                state["blocks"].append(torch.stack([k[head, span][best[head]].mean(0) for head in range(info.heads)]))
        return torch.stack(out)[None]

    def _span(self, number):
        return self.n_init + number * self.block, self.n_init + (number + 1) * self.block

    def _lookup(self, info, mean, blocks):
        scores = torch.stack([(mean * block).sum(-1) for block in blocks]) if blocks else torch.zeros(0, info.heads)
        if not self.per_head:
            chosen = scores.sum(1).topk(min(self.topk, len(blocks))).indices.tolist()
            return [chosen] * info.heads
        scores = scores.view(len(blocks), info.kv_heads, info.groups).sum(2)
        return [scores[:, head // info.groups].topk(min(self.topk, len(blocks))).indices.tolist() for head in range(info.heads)]
