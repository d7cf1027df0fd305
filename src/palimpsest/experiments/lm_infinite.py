"""Claim check of LM-Infinite: a model trained on 256 tokens stays what it is at any length, for a cache of constant size.

Han et al., NAACL 2024, in two parts, on the model of `short_context_lm` (L0 = 256 tokens):

1. *Fluency*: negative log-likelihood of held-out text by position, up to 8 L0. With a window of L0/2 and ten first tokens it is at 3 L0
   what it is for the very same tokens at L0/2, where the model by itself has lost it. Without the first tokens, and without the ceiling of
   distances, it is worse; the cache has the same size after 138 tokens and after 2,048.
2. *Pass key* at 4 L0, where the key has left the window: found with five middle keys for each query, never without them. This part has
   the model that was trained on pass keys too; how often it finds one within 256 tokens by itself is reported. Middle keys from layer 1
   and at half the window's distance were chosen on a model of seed 100 (layer 0: as good; layers 2, 3: nothing found).

The specification compares the loss at 768-1,024 with that at 128-256, which are different tokens: on seed 100 StreamingLLM's perplexity
seemed to grow by 15 % that way, and for the same tokens does not grow at all.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from palimpsest.context.attach import ContextMethod
from palimpsest.context.lm_infinite import LMInfinite
from palimpsest.evaluation.context_bench import passkey, stream_nll
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

STATEMENT = (
    "The first tokens and a window, at distances that the model knows, keep a model trained on 256 tokens fluent at eight times its "
    "length for a cache of constant size; with a few middle keys it also finds what has left the window."
)
N_GLOBAL = 10
MIDDLE = {"middle_topk": 5, "middle_from_layer": 1}
DEPTHS = (0.1, 0.3, 0.5, 0.7)  # all have left the window when the question comes


def run(scale: str, seed: int) -> Claim:
    """Reads held-out text and pass keys with and without the method.

    Args:
        scale: "smoke": a model that knows nothing, only the bytes are held against anything; "cpu".
        seed: of the models and of the keys.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    model = trained(ShortLMConfig(seed=seed) if full else SMOKE)
    length = model.context_length  # L0
    window = length // 2
    method = LMInfinite(N_GLOBAL, window)
    arms: dict[str, ContextMethod | None] = {
        "the model itself": None,
        "LM-Infinite": method,
        "without first tokens": LMInfinite(0, window),
        "without ceiling": LMInfinite(N_GLOBAL, window, distance_ceiling=8 * length),
    }
    texts = held_out_rows(model.tokenizer, 12 if full else 2, 8 * length)
    edges = [0, window, length, 2 * length, 3 * length, 3 * length + window, 4 * length, 6 * length]
    rows: list[dict[str, Any]] = []
    series = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the ceiling beyond what the model knows, which is the point of that arm
        for name, arm in arms.items():
            found = stream_nll(model, model.tokenizer, arm, texts, chunk=length, edges=edges, batch=4, seed=seed)
            buckets = found.summary["buckets"]
            rows += [{"arm": name, **{key: one[key] for key in ("start", "end", "perplexity")}, **one["nll"]} for one in buckets]
            same = stream_nll(
                model, model.tokenizer, arm, within_length(texts, 3 * length, length), chunk=length, edges=[0, window], batch=4
            )
            rows.append({"arm": f"{name}, within L0", "start": 3 * length, **same.summary["buckets"][-1]["nll"]})
            points = [{"x": (one["start"] + one["end"]) / 2, "y": one["nll"]["estimate"]} for one in buckets]
            series.append(Series(name, points))
    sizes = [
        stream_nll(model, model.tokenizer, method, texts[:1, :tokens], chunk=length).summary["bytes"]
        for tokens in (window + N_GLOBAL, 8 * length)
    ]
    model = trained(replace(WITH_KEYS, seed=seed)) if full else model
    haystack = held_out_haystack(model.tokenizer)
    asked = {
        "in the model's own length": (None, length if full else 4 * length),  # bytes as tokens take more room
        "five middle keys": (LMInfinite(N_GLOBAL, window, **MIDDLE), 4 * length),
        "window and first tokens": (method, 4 * length),
    }
    exact = {}
    for name, (arm, tokens) in asked.items():
        found = passkey(model, model.tokenizer, arm, haystack, tokens, DEPTHS, 6 if full else 1, chunk=window, seed=seed)
        exact[name] = found.summary["exact"]["estimate"]
        rows.append({"arm": f"pass key: {name}", "tokens": tokens, "exact": exact[name], "logprob": found.summary["logprob"]["estimate"]})
    checks = [Check("bytes of the cache at 8 L0 less those at L0/2 + 10 tokens", sizes[1] - sizes[0], "==", 0, unit="bytes")]
    checks += _checks(rows, exact, length, full)
    curve = Curve("lm-infinite-nll", "Loss by position", "position (tokens)", "nat per token", series, x_scale="log")
    return Claim("lm-infinite", STATEMENT, checks, rows, seed, scale, _notes(exact) if full else [], [curve])


def _checks(rows: list[dict[str, Any]], exact: dict[str, float], length: int, full: bool) -> list[Check]:
    def nll(arm: str, start: int) -> float:
        return next(row["estimate"] for row in rows if row["arm"] == arm and row.get("start") == start)

    def grown(arm: str) -> float:
        return nll(arm, 3 * length) / nll(f"{arm}, within L0", 3 * length)

    def worse(arm: str, start: int) -> float:
        return nll(arm, start) - nll("LM-Infinite", start)

    checks = [
        Check("loss at 768-896 over that of the same tokens at 128-256, LM-Infinite", grown("LM-Infinite"), "<=", 1.05, unit="ratio"),
        Check(
            "loss at 768-896 over that of the same tokens at 128-256, the model itself", grown("the model itself"), ">=", 1.5, unit="ratio"
        ),
        Check("loss at 768-896 without first tokens, less with them", worse("without first tokens", 3 * length), ">", 0, unit="nat"),
        Check("loss at 1536-2048 without the ceiling, less with it", worse("without ceiling", 6 * length), ">", 0, unit="nat"),
        Check("pass keys found at 1024 tokens with five middle keys", exact["five middle keys"], ">", 0.8, unit="share"),
        Check("pass keys found at 1024 tokens without them", exact["window and first tokens"], "==", 0, unit="share"),
        Check("pass keys that the model itself finds in 256 tokens", exact["in the model's own length"], unit="share"),
    ]
    return checks if full else [Check(one.what, one.ours, one.relation, None, one.baseline, one.unit) for one in checks]


def _notes(exact: dict[str, float]) -> list[str]:
    return [f"The model itself finds {exact[name]:.0%} of pass keys {name}." for name in exact if name == "in the model's own length"]
