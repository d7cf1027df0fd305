"""Claim check of InfLLM: what has left the window is found again, without training, and nothing is lost in fluency.

Xiao et al., NeurIPS 2024, in two parts:

1. *SmolLM2-135M in a window of 256 tokens* (32 first tokens, blocks of 32, six looked up): pass keys in 1,500 tokens, at depths where
   they have left the window. InfLLM finds them, LM-Infinite with the same window does not; its loss on running text is within 3 %. Blocks
   that are represented by keys drawn at random, in place of those that received the most attention, give the answer less probability.
2. *Models trained on 256 tokens* (`short_context_lm`): loss is at 3,072 tokens what it is for the very same tokens at 128, and the model
   that is taught pass keys finds them in 8,192 tokens, 32 times its length, where LM-Infinite has lost them. Its blocks are single tokens,
   eight looked up, in front of a window of 160. That was chosen on a model of seed 100 in 8,192 tokens, where it found 9 of 10; with blocks
   of two, 32 looked up, 11 of 15, with blocks of eight, 2 of 5: the mean of several keys of this model is too blunt to tell one in a
   thousand blocks. What blocks of eight find is reported.

Pass keys are read before the question is known: context first, question behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from palimpsest.audit.alignment import ChatTemplate
from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.infllm import InfLLM
from palimpsest.context.infllm_layer import MemoryLayer
from palimpsest.context.lm_infinite import LMInfinite
from palimpsest.evaluation.context_bench import passkey, stream_nll
from palimpsest.evaluation.context_prompts import KeyPrompt
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.short_context_lm import (
    SMOKE,
    WITH_KEYS,
    ShortLMConfig,
    held_out_haystack,
    held_out_rows,
    trained,
    within_length,
)
from palimpsest.measurement import Curve, Series
from palimpsest.models.hf import HFModel
from palimpsest.models.load import load_model

STATEMENT = (
    "Looking up blocks of distant keys by a few representative keys finds pass keys far behind the window without training, also at 32 "
    "times the trained length, and costs nothing in fluency."
)
CHAT = ChatTemplate(
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>",
)
SMOL: dict[str, Any] = {"n_init": 32, "n_local": 256, "block": 32, "repr_topk": 4, "exec_block": 64, "cached_blocks": 16}
TOPK, OTHER_TOPK = 6, (2, 12)
LEAST_FOUND = 0.8  # of pass keys
DEPTHS = (0.1, 0.25, 0.4, 0.55, 0.7)
TIMES = 32  # the trained length, for pass keys of the short model


@dataclass(frozen=True)
class RandomRepresentatives(InfLLM):
    """InfLLM whose blocks are represented by keys drawn at random."""

    def make_layer(self, info: LayerInfo) -> MemoryLayer:
        return _RandomLayer(info, self)


class _RandomLayer(MemoryLayer):
    def represent(self, keys: Tensor, received: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seen)
        return super().represent(keys, torch.rand(received.shape, generator=generator))


def run(scale: str, seed: int) -> Claim:
    """Asks both models for pass keys and reads running text with them.

    Args:
        scale: "smoke": the second part on a model that knows nothing; only its loss being finite is held against anything; "cpu".
        seed: of keys and filler, and of the second part's models.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    rows: list[dict[str, Any]] = []
    checks = _smol(rows, seed) if full else []
    others = [row for row in rows if row["arm"].endswith("blocks")]
    notes = [f"SmolLM2 finds {row['exact']:.0%} of pass keys with {row['arm']}." for row in others]
    short, curve = _short(rows, seed, full)
    return Claim("infllm", STATEMENT, checks + short, rows, seed, scale, notes, [curve])


def _smol(rows: list[dict[str, Any]], seed: int) -> list[Check]:
    model = load_model("smollm2-135m")
    assert isinstance(model, HFModel)
    haystack, prompt = held_out_haystack(model.tokenizer), KeyPrompt.chat(CHAT)
    window = LMInfinite(SMOL["n_init"], SMOL["n_local"])
    arms: dict[str, ContextMethod] = {
        "InfLLM": InfLLM(**SMOL, topk=TOPK),
        "LM-Infinite": window,
        "random representatives": RandomRepresentatives(**SMOL, topk=TOPK),
    }
    exact, logprob = {}, {}

    def find(name: str, arm: ContextMethod) -> None:
        found = passkey(model, model.tokenizer, arm, haystack, 1500, DEPTHS, 3, chunk=SMOL["n_local"], prompt=prompt, seed=seed)
        exact[name], logprob[name] = (found.summary[figure]["estimate"] for figure in ("exact", "logprob"))
        rows.append({"model": "SmolLM2-135M", "arm": name, "tokens": 1500, "exact": exact[name], "logprob": logprob[name]})

    for name, arm in arms.items():
        find(name, arm)
    if exact["InfLLM"] < LEAST_FOUND:
        for topk in OTHER_TOPK:
            find(f"InfLLM, {topk} blocks", InfLLM(**SMOL, topk=topk))
    texts = held_out_rows(model.tokenizer, 2, 1500)
    loss = {}
    for name in ("InfLLM", "LM-Infinite"):
        found = stream_nll(model, model.tokenizer, arms[name], texts, chunk=SMOL["n_local"], edges=[0, 512], seed=seed)
        loss[name] = found.summary["buckets"][-1]["nll"]["estimate"]
        rows.append({"model": "SmolLM2-135M", "arm": name, "tokens": 1500, "nll": loss[name]})
    return [
        Check("SmolLM2: pass keys found in 1,500 tokens, window 256", exact["InfLLM"], ">=", LEAST_FOUND, exact["LM-Infinite"], "share"),
        Check("SmolLM2: pass keys found by LM-Infinite", exact["LM-Infinite"], "<=", 0.3, unit="share"),
        Check("SmolLM2: loss of InfLLM over loss of LM-Infinite", loss["InfLLM"] / loss["LM-Infinite"], "<=", 1.03, unit="ratio"),
        Check(
            "SmolLM2: log-probability of the key, less that with random representatives",
            logprob["InfLLM"] - logprob["random representatives"],
            ">",
            0,
            unit="nat",
        ),
    ]


def _short(rows: list[dict[str, Any]], seed: int, full: bool) -> tuple[list[Check], Curve]:
    model = trained(ShortLMConfig(seed=seed) if full else SMOKE)
    length = model.context_length
    finds = trained(replace(WITH_KEYS, seed=seed)) if full else model
    half, window, block = length // 2, 5 * length // 8, length // 32
    settings: dict[str, Any] = {"n_init": 10, "n_local": window, "exec_block": 2 * block, "cached_blocks": 16}
    arms: dict[str, ContextMethod | None] = {
        "InfLLM": InfLLM(**settings, block=1, repr_topk=1, topk=8),
        "LM-Infinite": LMInfinite(10, window),
        "the model itself": None,
    }
    coarse = InfLLM(**settings, block=block, repr_topk=block, topk=12)
    texts = held_out_rows(model.tokenizer, 4 if full else 1, 16 * length)
    edges = [0, half, *(length * times for times in (1, 2, 4, 8, 12)), 12 * length + half]
    haystack = held_out_haystack(model.tokenizer)
    losses: dict[str, dict[int, float]] = {}
    grown = {}
    exact, series = {}, []
    for name, arm in arms.items():
        found = stream_nll(model, model.tokenizer, arm, texts, chunk=length, edges=edges, batch=4, seed=seed)
        losses[name] = {one["start"]: one["nll"]["estimate"] for one in found.summary["buckets"]}
        rows += [{"model": "short", "arm": name, "tokens": start, "nll": nll} for start, nll in losses[name].items()]
        same = stream_nll(model, model.tokenizer, arm, within_length(texts, 12 * length, length), chunk=length, edges=[0, half], batch=4)
        near = same.summary["buckets"][-1]["nll"]["estimate"]
        grown[name] = losses[name][12 * length] / near
        rows.append({"model": "short", "arm": f"{name}, within L0", "tokens": 12 * length, "nll": near})
        points = [{"x": (one["start"] + one["end"]) / 2, "y": one["nll"]["estimate"]} for one in found.summary["buckets"]]
        series.append(Series(name, points))
    tokens = TIMES * length if full else 4 * length
    for name, arm in (("InfLLM", arms["InfLLM"]), ("blocks of eight", coarse), ("LM-Infinite", arms["LM-Infinite"])):
        found = passkey(finds, finds.tokenizer, arm, haystack, tokens, DEPTHS, 2 if full else 1, chunk=length, seed=seed)
        exact[name], logprob = (found.summary[figure]["estimate"] for figure in ("exact", "logprob"))
        rows.append({"model": "short", "arm": name, "tokens": tokens, "exact": exact[name], "logprob": logprob})
    own = length if full else 4 * length  # bytes as tokens take more room
    inside = passkey(finds, finds.tokenizer, None, haystack, own, DEPTHS, 2 if full else 1, chunk=length, seed=seed)
    rows.append({"model": "short", "arm": "the model itself", "tokens": own, "exact": inside.summary["exact"]["estimate"]})
    checks = [
        Check("short model: loss at 3,072 over that of the same tokens at 128, InfLLM", grown["InfLLM"], "<=", 1.05, unit="ratio"),
        Check("short model: loss at 3,072 over that of the same tokens at 128, the model itself", grown["the model itself"], unit="ratio"),
        Check("short model: pass keys found at 32 times its length", exact["InfLLM"], ">=", LEAST_FOUND, exact["LM-Infinite"], "share"),
        Check("short model: pass keys found there with blocks of eight tokens", exact["blocks of eight"], unit="share"),
        Check("short model: pass keys found there by LM-Infinite", exact["LM-Infinite"], "<=", 0.3, unit="share"),
        Check("short model: pass keys that it finds by itself in 256 tokens", inside.summary["exact"]["estimate"], unit="share"),
    ]
    if not full:
        checks = [Check(one.what, one.ours, one.relation, None, one.baseline, one.unit) for one in checks]
        checks.insert(0, Check("short model: loss of InfLLM", losses["InfLLM"][0], ">", 0, unit="nat"))
    curve = Curve("infllm-nll", "Loss by position", "position (tokens)", "nat per token", series, x_scale="log")
    return checks, curve
