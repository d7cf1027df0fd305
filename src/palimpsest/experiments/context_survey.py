"""Claim check of the survey of context methods: positions beyond what was trained, and half a cache, under one protocol.

Wang et al., "Beyond the Limits", IJCAI 2024, has no figure of its own; its executable form are the baselines that it orders. Two parts:

* **A, positions**: the model of `short_context_lm`, trained on 256 tokens, reads held-out text to 1,024 in chunks of 64. Perplexity is
  that of the tokens 768-895, against that of the same tokens when they are 128-255 of what is read. Unchanged: at least twice as high.
  Positions interpolated (PI) or with another base (NTK-aware), without tuning: lower than unchanged. StreamingLLM and LM-Infinite: within
  10 % of their own value. YaRN, dynamic NTK and Self-Extend are reported. The window of StreamingLLM is 192 tokens, which with a chunk of
  64 is no distance above 255.
* **B, half a cache**: SmolLM2-135M, one pass key in 1,024 tokens of real text, read at once, half of the entries kept. Full attention finds
  at least 90 %; StreamingLLM the keys that stand in its sinks and window, within 10 points; SnapKV at least 90 % when the question stands
  at the text's end, and fewer when the question is hidden. H2O, TOVA and random eviction are reported, with the question hidden. The
  question has 18 tokens, so the last 16 vote in SnapKV, smoothed over 13 columns; chosen on seed 100, where with the question seen windows
  of 16, 32 and 64 found 80, 30 and 20 % over 5 columns, and one of 16 found all over 7 and over 13.

Half of the filler is WikiText-2's test part and half the Bible's last chapters; without $PALIMPSEST_DATA it is chapters of novels.

    >>> claim = run("smoke", 0)
    >>> len(claim.checks) > 6
    True
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palimpsest.context.attach import ContextMethod
from palimpsest.context.catalogue import make
from palimpsest.context.lm_infinite import LMInfinite
from palimpsest.evaluation.context_bench import ask, stream_nll
from palimpsest.evaluation.context_prompts import KeyPrompt, KeySample, passkey_samples
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.short_context_lm import (
    SMOKE,
    ShortLMConfig,
    held_out_haystack,
    held_out_rows,
    short_texts,
    trained,
    within_length,
)
from palimpsest.measurement import Curve, Series
from palimpsest.models import load_model
from palimpsest.models.hf import HFModel

STATEMENT = (
    "Position scaling, attention windows and cache eviction extend a context at different costs: windows keep a short model fluent, scaled "
    "positions help it without tuning, and half a cache keeps what its rule can know of."
)
SCALED = {"PI": "pi", "NTK-aware": "ntk", "YaRN": "yarn"}
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
SNAPKV = {"window": 16, "kernel": 13}


@dataclass(frozen=True)
class Config:
    """How much is read and asked.

    Attributes:
        lm: the model of part A; length: what it reads, four times what it was trained on.
        rows: texts; batch: read at once; chunk: tokens in one forward pass.
        model: of part B; None is part A's.
        tokens: of context and question; per_depth: samples.
    """

    lm: ShortLMConfig
    rows: int = 48
    batch: int = 16
    model: str | None = "smollm2-135m"
    tokens: int = 1024
    per_depth: int = 4


CPU, TRIAL = Config(ShortLMConfig()), Config(SMOKE, rows=4, batch=4, model=None, tokens=200, per_depth=1)


def run(scale: str, seed: int) -> Claim:
    """Reads text with the model of 256 tokens, and asks SmolLM2 for pass keys, under every method.

    Args:
        scale: "smoke": a model that knows nothing, for both parts; nothing is held against anything; "cpu".
        seed: of the model of part A, of keys and filler.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
        ModelNotFoundError: SmolLM2 cannot be had.
    """
    full = decides(scale)
    config = CPU if full else TRIAL
    config = replace(config, lm=replace(config.lm, seed=seed))
    lm = trained(config.lm)
    rows, checks, streams = positions(lm, config)
    door = lm if config.model is None else load_model(config.model)
    assert isinstance(door, HFModel)
    found, more, depths = half_a_cache(door, config, seed)
    checks += more
    if not full:
        checks = [replace(check, threshold=None) for check in checks]
    notes = [
        f"Text: {short_texts().source}, held out. {config.rows} texts of {4 * config.lm.length} tokens; {5 * config.per_depth} pass keys.",
        "Perplexities at two places are of the same tokens.",
    ]
    return Claim("context-survey", STATEMENT, checks, rows + found, seed, scale, notes, [streams, depths])


def positions(lm: HFModel, config: Config) -> tuple[list[dict[str, Any]], list[Check], Curve]:
    """Part A."""
    trained_on = config.lm.length
    quarter = trained_on // 4
    texts = held_out_rows(lm.tokenizer, config.rows, 4 * trained_on)
    arms: dict[str, ContextMethod | None] = {"unchanged": None}
    arms |= {name: make(method, factor=4.0) for name, method in SCALED.items()}
    arms |= {
        "dynamic NTK": make("dynamic-ntk"),
        "Self-Extend": make("self-extend", group=8, neighbours=trained_on // 2),
        "StreamingLLM": make("streaming-llm", budget=3 * quarter),
        "LM-Infinite": LMInfinite(n_global=10, n_local=trained_on // 2),
    }
    edges = [0, quarter, *(trained_on * k // 2 for k in (1, 2, 4, 6, 7))]
    near = within_length(texts, 3 * trained_on, trained_on)
    found, series, rows = {}, [], []
    for name, method in arms.items():
        measured = stream_nll(lm, lm.tokenizer, method, texts, chunk=quarter, edges=edges, batch=config.batch)
        by_start = {bucket["start"]: bucket for bucket in measured.summary["buckets"]}
        same = stream_nll(lm, lm.tokenizer, method, near, chunk=quarter, edges=[0, trained_on // 2], batch=config.batch)
        found[name] = (same.summary["buckets"][-1]["perplexity"], by_start[3 * trained_on]["perplexity"])
        rows.append({"part": "A, within L0", "method": name, **same.summary["buckets"][-1]["nll"], **same.summary["buckets"][-1]})
        series.append(Series(name, measured.curves["stream"].series[0].points))
        rows += [{"part": "A", "method": name, **bucket["nll"], **bucket} for bucket in measured.summary["buckets"]]
    unchanged = found["unchanged"]
    checks = [Check("A: perplexity of the model at 4 L0, by that at L0", unchanged[1] / unchanged[0], ">=", 2.0, unit="ratio")]
    for name in ("PI", "NTK-aware"):
        checks.append(Check(f"A: {name}, perplexity at 4 L0", found[name][1], "<", unchanged[1], unchanged[1], "perplexity"))
    for name in ("StreamingLLM", "LM-Infinite"):
        away = abs(math.log(found[name][1] / found[name][0]))
        checks.append(Check(f"A: {name}, how far perplexity at 4 L0 is from that at L0", math.exp(away) - 1, "<=", 0.1, unit="share"))
    for name in ("YaRN", "dynamic NTK", "Self-Extend"):
        checks.append(Check(f"A: {name}, perplexity at 4 L0", found[name][1], baseline=unchanged[1], unit="perplexity"))
    caption = f"A model of {trained_on} tokens reads {4 * trained_on}; means over texts."
    return rows, checks, Curve("context-survey-positions", "Loss by position", "position", "nat per token", series, "log", caption=caption)


def half_a_cache(door: HFModel, config: Config, seed: int) -> tuple[list[dict[str, Any]], list[Check], Curve]:
    """Part B."""
    prompt = KeyPrompt() if config.model is None else chat_prompt(config.model)
    samples = passkey_samples(held_out_haystack(door.tokenizer), config.tokens, DEPTHS, config.per_depth, seed=seed, prompt=prompt)
    budget = config.tokens // 2
    arms: dict[str, tuple[ContextMethod | None, bool]] = {
        "full": (None, False),
        "StreamingLLM": (make("streaming-llm", budget=budget), False),
        "SnapKV, question seen": (make("snapkv", budget=budget, **SNAPKV), True),
        "SnapKV, question hidden": (make("snapkv", budget=budget, **SNAPKV), False),
        "H2O": (make("h2o", budget=budget), False),
        "TOVA": (make("tova", budget=budget), False),
        "random": (make("random", budget=budget), False),
    }
    exact, rows, series = {}, [], []
    for name, (method, aware) in arms.items():
        measured = ask(door, door.tokenizer, method, samples, query_aware=aware, chunk=config.tokens, seed=seed)
        exact[name] = measured.summary["exact"]["estimate"]
        kept = {key: measured.summary[key] for key in ("n", "exact", "logprob", "bytes")}
        rows.append({"part": "B", "method": name, "query_aware": aware, **kept})
        series.append(Series(name, measured.curves["depth"].series[0].points))
    share = float(np.mean([in_window(sample, budget) for sample in samples]))
    checks = [
        Check("B: full attention finds", exact["full"], ">=", 0.9, unit="share"),
        Check("B: StreamingLLM, away from the keys in its window", abs(exact["StreamingLLM"] - share), "<=", 0.1, share, "share"),
        Check("B: SnapKV finds, the question seen", exact["SnapKV, question seen"], ">=", 0.9, unit="share"),
        Check("B: SnapKV finds, the question hidden", exact["SnapKV, question hidden"], "<", exact["SnapKV, question seen"], unit="share"),
        *(Check(f"B: {name} finds", exact[name], unit="share") for name in ("StreamingLLM", "H2O", "TOVA", "random")),
    ]
    title = "One key in half a cache, by depth"
    return rows, checks, Curve("context-survey-cache", title, "depth", "found", series, y_domain=(0, 1), y_format="percent")


def in_window(sample: KeySample, budget: int, sinks: int = 4) -> bool:
    """Whether the sentence with the key is whole in the sinks or in the newest entries when the context has been read."""
    start, end = sample.questions[0].span
    return end <= sinks or start >= len(sample.context) - (budget - sinks)


def chat_prompt(model: str) -> KeyPrompt:
    """The wording in the model's own chat template."""
    from transformers import AutoTokenizer

    from palimpsest.audit.alignment import ChatTemplate
    from palimpsest.models.quiet import quiet
    from palimpsest.models.registry import fetch

    with quiet():
        template = AutoTokenizer.from_pretrained(fetch(model), local_files_only=True).chat_template
    return KeyPrompt.chat(ChatTemplate.from_jinja(template))
