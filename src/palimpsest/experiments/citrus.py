"""Claim check of CItruS: what the instruction looks at stays, at a size at which what the text looks at loses it.

Bai et al., EMNLP 2024, arXiv 2406.12018, who read LongBench with Llama-2-7B and Mistral-7B. Here SmolLM2-135M reads 1,000 tokens of text in
which four pass keys of one form are hidden ("The pass key of Anna is 48213."), and is asked for one of them; k = 128 states and the newest
chunk of 64 stay, a fifth of the text:

* "individual" finds the key more often than "standard" by .2 or more, and gives it more probability (95 % interval of the difference over
  the same samples above 0);
* StreamingLLM with as many states (192) finds it at most 3 times in 10;
* the loss of running text read by "standard" is within 10 % of that of H2O with as many states.

All arms know the question while they read; "individual" needs two caches, so it is also reported with k = 32, where both together are as
large as the one of "standard". Also reported: "shared", and full attention.

    >>> claim = run("smoke", 0)                           # doctest: +SKIP
    >>> claim.passed                                      # doctest: +SKIP
    True
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from palimpsest.context.attach import ContextMethod
from palimpsest.context.citrus import CItruS
from palimpsest.context.h2o import H2O
from palimpsest.context.windows import StreamingLLM
from palimpsest.evaluation.context_bench import multi_needle, stream_nll
from palimpsest.evaluation.context_prompts import KeyPrompt
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.infllm import CHAT
from palimpsest.experiments.short_context_lm import SMOKE, held_out_haystack, held_out_rows, trained
from palimpsest.measurement import Curve, Series
from palimpsest.models.hf import HFModel
from palimpsest.models.load import load_model
from palimpsest.stats import bootstrap_interval

STATEMENT = (
    "Letting the instruction, and not only the document, decide which cache entries stay keeps the needed facts at a cache size at which "
    "document-driven eviction loses them."
)
K, CHUNK, LENGTH, KEYS, N, TEXTS = 128, 64, 1000, 4, 12, 24


def run(scale: str, seed: int) -> Claim:
    """Asks for keys and reads text, arm by arm.

    Args:
        scale: "smoke": a model that knows nothing, where only the number of states is held against anything; "cpu": SmolLM2-135M.
        seed: of keys, names, filler and the rows drawn.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    model = load_model("smollm2-135m") if full else trained(SMOKE)
    assert isinstance(model, HFModel)
    k, chunk, length, n = (K, CHUNK, LENGTH, N) if full else (12, 8, 150, 2)
    half = (k - chunk) // 2
    arms: dict[str, ContextMethod | None] = {
        "full": None,
        "StreamingLLM": StreamingLLM(budget=k + chunk),
        **{kind: CItruS(k, chunk, kind) for kind in ("standard", "shared", "individual")},
        "individual, same bytes": CItruS(half, chunk, "individual"),
    }
    haystack, prompt = held_out_haystack(model.tokenizer), KeyPrompt.chat(CHAT) if full else KeyPrompt()
    rows, found = [], {}
    for name, arm in arms.items():
        asked = multi_needle(
            model, model.tokenizer, arm, haystack, length, KEYS if full else 2, n, query_aware=True, chunk=chunk, prompt=prompt, seed=seed
        )
        table, said = asked.table.sort("id"), asked.summary
        found[name] = (table["exact"].to_numpy(), table["logprob"].to_numpy())
        figures = {figure: said[figure]["estimate"] for figure in ("exact", "logprob")}
        cost = {"peak_bytes": said["bytes"]["peak"], "seconds": said["seconds"]}
        rows.append({"kind": "keys", "arm": name, "n": said["n"], **figures, **cost})
    losses = {}
    readers = {"standard": arms["standard"], "H2O": H2O(budget=k + chunk), "StreamingLLM": arms["StreamingLLM"]}
    texts = held_out_rows(model.tokenizer, TEXTS if full else 2, 1024 if full else 64)
    texts = texts[np.random.default_rng((seed, 33)).permutation(len(texts))[: 2 if full else 1]]
    for name, arm in readers.items():
        summary = stream_nll(model, model.tokenizer, arm, texts, chunk=chunk, edges=[0, (k + chunk) if full else 32], seed=seed).summary
        losses[name] = summary["buckets"][-1]["nll"]["estimate"]
        rows.append({"kind": "text", "arm": name, "nll": losses[name], "seconds": summary["seconds"]})
    exact = {name: float(hits.mean()) for name, (hits, _) in found.items()}
    more = found["individual"][1] - found["standard"][1]
    low = bootstrap_interval(more, seed=seed).low
    checks = [
        Check("keys found: individual less standard", exact["individual"] - exact["standard"], ">=", 0.2, exact["standard"], "share"),
        Check("log-probability of the key: individual less standard, lower end", low, ">", 0, unit="nat"),
        Check("keys found by StreamingLLM", exact["StreamingLLM"], "<=", 0.3, exact["full"], "share"),
        Check("loss of text: standard over H2O", losses["standard"] / losses["H2O"], "<=", 1.1, unit="ratio"),
        Check("keys found by individual", exact["individual"], baseline=exact["full"], unit="share"),
        Check("keys found by individual, same bytes", exact["individual, same bytes"], baseline=exact["standard"], unit="share"),
        Check("keys found by shared", exact["shared"], baseline=exact["standard"], unit="share"),
        Check("loss of text: StreamingLLM over H2O", losses["StreamingLLM"] / losses["H2O"], unit="ratio"),
    ]
    if not full:
        checks = [replace(check, threshold=None) for check in checks]
        checks.insert(0, Check("loss of text read by standard", losses["standard"], ">", 0, unit="nat"))
    notes = [f"{n} questions, {KEYS if full else 2} keys in {length} tokens; k = {k}, chunks of {chunk}; same bytes: k = {half}."]
    return Claim("citrus", STATEMENT, checks, rows, seed, scale, notes, [curve(rows)])


def curve(rows: list[dict[str, Any]]) -> Curve:
    """Keys found against the most bytes that the cache held."""
    points = [
        Series(row["arm"], [{"x": row["peak_bytes"] / 1e6, "y": row["exact"]}], style="points") for row in rows if row["kind"] == "keys"
    ]
    return Curve(
        "citrus-keys", "Keys found by the size of the cache", "megabytes at most", "found", points, y_domain=(0, 1), y_format="percent"
    )
