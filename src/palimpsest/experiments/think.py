"""Claim check of ThinK: two in five key channels can go, if the queries say which.

Xu et al., ICLR 2025, arXiv 2407.21018, who measure LongBench with models of 7 and 8 billion parameters. Here SmolLM2-135M (three key
heads of 64 channels) reads running text of 1,024 tokens in chunks of 256, is packed, and reads 128 more; and it is asked for pass keys in
1,000 tokens:

* λ = .4: pass keys are found no less than .05 below full attention, and the loss of the continuation rises by no more than .05 nat;
* λ = .5: the loss rises less than with channels drawn at random, and these less than with those that the queries need least;
* the bytes of the cache are (1 − λ/2 · (S − recent)/S) of the full one's, to 2 %, and behind H2O with half of the tokens 41 % or less.

The question is not known when the context is packed: the window that chooses is the end of the context. Each seed draws 4 of 24 rows of
held-out text (`short_context_lm`) and its own keys and filler.

    >>> claim = run("smoke", 0)                           # doctest: +SKIP
    >>> claim.passed                                      # doctest: +SKIP
    True
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.h2o import H2O
from palimpsest.context.packed import PackedKeyLayer
from palimpsest.context.prefill import prefill
from palimpsest.context.think import ThinK
from palimpsest.evaluation.context_bench import passkey
from palimpsest.evaluation.context_prompts import KeyPrompt
from palimpsest.evaluation.context_reading import attached
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.infllm import CHAT
from palimpsest.experiments.short_context_lm import SMOKE, held_out_haystack, held_out_rows, trained
from palimpsest.measurement import Curve, Series
from palimpsest.models.hf import HFModel
from palimpsest.models.load import load_model

STATEMENT = (
    "Dropping the key-cache channels that the query needs least saves a fifth or more of the cache beyond token eviction, at hardly any "
    "loss."
)
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
CHUNK = 256


@dataclass(frozen=True)
class Config:
    """What is read.

    Attributes:
        context, more: tokens before packing and after.
        rows, drawn: rows of text, and how many of them a seed draws.
        asked: tokens of context and question with pass keys, and how many a depth; 0 asks none.
        window, recent: of ThinK.
    """

    context: int = 1024
    more: int = 128
    rows: int = 24
    drawn: int = 4
    asked: tuple[int, int] = (1000, 5)
    window: int = 32
    recent: int = 32


CPU, SMALL = Config(), Config(context=40, more=8, rows=2, drawn=1, asked=(0, 0), window=8, recent=8)


@dataclass(frozen=True)
class RandomChannels(ThinK):
    """ThinK that keeps channels drawn at random."""

    seed: int = 0

    def make_layer(self, info: LayerInfo) -> PackedKeyLayer:
        return _RandomLayer(torch.Generator().manual_seed(1000 * self.seed + info.index))


class _RandomLayer(PackedKeyLayer):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def channel_scores(self, q: Tensor, keys: Tensor, q_valid: Tensor, valid: Tensor | None) -> Tensor:
        return torch.rand(*keys.shape[:2], keys.shape[3], generator=self.generator)


@dataclass(frozen=True)
class LeastChannels(ThinK):
    """ThinK that keeps the channels of the lowest scores."""

    def make_layer(self, info: LayerInfo) -> PackedKeyLayer:
        return _LeastLayer()


class _LeastLayer(PackedKeyLayer):
    def channel_scores(self, q: Tensor, keys: Tensor, q_valid: Tensor, valid: Tensor | None) -> Tensor:
        return -super().channel_scores(q, keys, q_valid, valid)


def run(scale: str, seed: int) -> Claim:
    """Reads, packs, goes on, and asks.

    Args:
        scale: "smoke": a model that knows nothing, where only the bytes are held against anything; "cpu": SmolLM2-135M.
        seed: of the rows drawn, random channels, keys and filler.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = CPU if full else SMALL
    model = load_model("smollm2-135m") if full else trained(SMOKE)
    assert isinstance(model, HFModel)
    some, others = ThinK(0.4, config.window, config.recent), ThinK(0.5, config.window, config.recent)
    plain = {name: getattr(others, name) for name in ("ratio", "window", "recent")}
    arms: dict[str, ContextMethod | None] = {
        "full": None, "ThinK .4": some, "ThinK .5": others, "random .5": RandomChannels(**plain, seed=seed),
        "least .5": LeastChannels(**plain), "H2O + ThinK .4": H2O(budget=config.context // 2) | some,
    }  # fmt: skip
    texts = held_out_rows(model.tokenizer, config.rows, config.context + config.more)
    texts = texts[np.random.default_rng((seed, 117)).permutation(config.rows)[: config.drawn]]
    rows: list[dict[str, Any]] = []
    for name, arm in arms.items():
        losses, held = continued(model, arm, texts, config)
        rows.append({"arm": name, "nll": float(losses.mean()), "by_row": losses.tolist(), "bytes": held})
    by = {row["arm"]: row for row in rows}
    rise = {name: row["nll"] - by["full"]["nll"] for name, row in by.items()}
    share = {name: row["bytes"] / by["full"]["bytes"] for name, row in by.items()}
    said = 1 - some.ratio / 2 * (config.context - config.recent) / config.context
    checks = [
        Check("λ = .4: bytes of the cache over what the formula says", share["ThinK .4"] / said, "<=", 1.02, unit="ratio"),
        Check("λ = .4: the same, from below", share["ThinK .4"] / said, ">=", 0.98, unit="ratio"),
        Check("H2O with half the tokens, then λ = .4: bytes", share["H2O + ThinK .4"], "<=", 0.41, share["ThinK .4"], "share"),
        Check("λ = .4: rise of the loss", rise["ThinK .4"], "<=", 0.05, by["full"]["nll"], "nat"),
        Check("λ = .5: rise with random channels less that with ThinK's", rise["random .5"] - rise["ThinK .5"], ">", 0, unit="nat"),
        Check("λ = .5: rise with the least needed less that with random ones", rise["least .5"] - rise["random .5"], ">", 0, unit="nat"),
        Check("λ = .5: rise of the loss", rise["ThinK .5"], unit="nat"),
        Check("H2O with half the tokens, then λ = .4: rise of the loss", rise["H2O + ThinK .4"], unit="nat"),
    ]
    if full:
        found = {name: asked(model, arms[name], config, seed) for name in ("full", "ThinK .4")}
        rows += [{"arm": name, **one} for name, one in found.items()]
        less = found["ThinK .4"]["exact"] - found["full"]["exact"]
        checks.append(Check("λ = .4: pass keys found, less those of full attention", less, ">=", -0.05, found["full"]["exact"], "share"))
    else:  # of 16 channels, 6 of 40 % go, and the spare column weighs as much as a sixth of the recent ones
        checks = [replace(checks[0], threshold=1.2), *(replace(check, threshold=None) for check in checks[1:])]
    notes = [
        f"{config.drawn} rows of {config.context} tokens, and {config.more} more; int(λd) channels go, so 25 of 64 for λ = .4.",
        "Bytes are those of every tensor of the cache after the prompt, one column of spare room and the channels' numbers included.",
    ]
    return Claim("think", STATEMENT, checks, rows, seed, scale, notes, [curve(by)])


@torch.no_grad()
def continued(model: HFModel, arm: ContextMethod | None, texts: np.ndarray, config: Config) -> tuple[np.ndarray, int]:
    """Mean loss of each row's continuation, and the bytes of its cache before it."""
    losses, held = [], 0
    with attached(model, arm) as session:
        for text in texts:
            ids = torch.from_numpy(text)[None].to(model.device)
            read = prefill(session, ids[:, : config.context], CHUNK)
            more = prefill(session, ids[:, config.context : -1], CHUNK, cache=read.cache, logits="all")
            assert read.logits is not None
            assert more.logits is not None
            logits = torch.cat([read.logits, more.logits], 1)[0].float()
            losses.append(float(F.cross_entropy(logits, ids[0, config.context :])))
            held = read.nbytes
    return np.array(losses), held


def asked(model: HFModel, arm: ContextMethod | None, config: Config, seed: int) -> dict[str, Any]:
    """Pass keys that are found, and their log-probability."""
    length, n = config.asked
    haystack = held_out_haystack(model.tokenizer)
    found = passkey(model, model.tokenizer, arm, haystack, length, DEPTHS, n, chunk=CHUNK, prompt=KeyPrompt.chat(CHAT), seed=seed)
    return {"exact": found.summary["exact"]["estimate"], "logprob": found.summary["logprob"]["estimate"], "n": found.summary["n"]}


def curve(by: dict[str, dict[str, Any]]) -> Curve:
    """Loss against the bytes of the cache."""
    points = [Series(name, [{"x": row["bytes"] / 1e6, "y": row["nll"]}], style="points") for name, row in by.items()]
    return Curve("think-bytes", "Loss of a continuation by the size of the cache", "megabytes", "nat per token", points)
