"""Claim check of Attendre: what is attended least can go, and a query that waits sees what comes later.

Yang and Hua, 2024, arXiv 2401.04881, who extend PaLM 2-S and FLAN-T5 XXL on TriviaQA. Here (see `attendre_lab`):

* a causal model of two layers that recalls values of 64 keys in texts of 512 words, read with a memory of 128 slots a head in chunks of 16;
  a quarter of the keys is asked for, Zipf 1.2. Over the questions of the second half of the text, least frequently (LFA) and least
  recently attended (LRA) are each right more often by .1 or more than first in, first out (FIFO), and no less than .05 below FIFO with 384
  slots;
* two-layer encoders in chunks of 8 that tag words with what is said 9 to 24 words later: with queries that wait for 24 words .95 or more
  are right, without waiting no more than by chance (1/8) and .1, and with 8 words in between;
* with slots for the whole text every policy gives the logits of full attention, to 1e-3.

Figures that are only reported: full attention, and each policy's share by how long ago the key was announced.

Set up on seed 100. A query reads the four best entries, and has attended to these: where it reads all, nearly every entry is attended by
some query of a chunk, if only by a filler's, and LRA is right .22 of the time, LFA .73, FIFO .15 and with 384 slots .82. With one, two,
four or eight entries LRA was right .88, .90, .92 and .87 of the time, FIFO with 384 slots .84; LFA, with two, .96. Among 64 keys alone
nothing was learnt in the first 320 steps.

    >>> claim = run("smoke", 0)
    >>> claim.passed
    True
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from palimpsest.context.attention_eviction import AttentionEviction
from palimpsest.context.evicting_memory import POLICIES
from palimpsest.experiments.attendre_lab import RecallConfig, TaggingConfig, recall_model, recall_texts, tagger, tagging_texts
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.measurement import Curve, Series

STATEMENT = (
    "Evicting the least attended entries lets a small memory match a much larger first-in-first-out one, and delaying queries gives a "
    "chunked model a look at later text."
)
CHUNK, SMALL, LARGE, BEST = 16, 128, 384, 4
WAITS = (0, 8, 24)


def run(scale: str, seed: int) -> Claim:
    """Trains the laboratory's models, if they are not there, and reads with memories of different kinds.

    Args:
        scale: "smoke": untrained models, of which only the equality with full attention is held against anything; "cpu".
        seed: of texts and weights.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    recall, tags = RecallConfig(seed=seed), TaggingConfig(seed=seed)
    if not full:
        recall = replace(recall, keys=8, train_length=32, test_length=64, width=16, heads=2, steps=2, rows=2)
        tags = replace(tags, keys=4, length=32, width=16, heads=2, steps=2, rows=2)
    small, large = (SMALL, LARGE) if full else (24, 48)
    rows, apart = recalled(recall, small, large, 24 if full else 2)
    rows += [tagged(replace(tags, delays=(wait, 0)), 256 if full else 4) for wait in WAITS]
    held = {(row["policy"], row["slots"]): row["accuracy"] for row in rows if row["kind"] == "recall"}
    right = {row["wait"]: row["accuracy"] for row in rows if row["kind"] == "tagging"}
    checks = [Check("greatest difference of logits with slots for all", apart, "<=", 1e-3)]
    checks.append(Check("recall: full attention", held["full", recall.test_length], unit="share"))
    for policy in ("lfa", "lra"):
        ours, fifo, more = held[policy, small], held["fifo", small], held["fifo", large]
        checks += [
            Check(f"recall: {policy.upper()} less FIFO, {small} slots", ours - fifo, ">=", 0.1, baseline=fifo, unit="share"),
            Check(f"recall: {policy.upper()} with {small} slots less FIFO with {large}", ours - more, ">=", -0.05, more, "share"),
        ]
    chance = 1 / tags.values
    checks += [
        Check(f"tagging: queries that wait for {WAITS[2]}", right[24], ">=", 0.95, chance, "share"),
        Check("tagging: queries that do not wait", right[0], "<=", chance + 0.1, chance, "share"),
        Check(f"tagging: waiting for {WAITS[1]} less not waiting", right[8] - right[0], ">", 0.0, unit="share"),
        Check(f"tagging: waiting for {WAITS[2]} less for {WAITS[1]}", right[24] - right[8], ">", 0.0, unit="share"),
    ]
    if not full:
        checks = [checks[0], *(replace(check, threshold=None) for check in checks[1:])]
    notes = [
        f"The recalling model was trained for {recall.steps} steps of {recall.rows} texts of {recall.train_length} words, the encoders for "
        f"{tags.steps} steps of {tags.rows} texts of {tags.length}; a pair of key and value is one word.",
        "The paper's exact rules of LRA and LFA could not be read; see `palimpsest.context.evicting_memory` for ours.",
    ]
    return Claim("attendre", STATEMENT, checks, rows, seed, scale, notes, curves(rows, small, large))


def recalled(c: RecallConfig, small: int, large: int, n: int) -> tuple[list[dict[str, Any]], float]:
    """One row a memory; and the greatest difference of logits of a memory for the whole text from full attention."""
    model = recall_model(c)
    ids, wanted, ago = recall_texts(c, np.random.default_rng((c.seed, 17)), n, test=True)
    first, tokens = c.vocabulary - c.values, torch.from_numpy(ids)
    late = (wanted >= 0) & (np.arange(c.test_length) >= c.test_length // 2)
    rows = []

    def row(policy: str, slots: int, logits: torch.Tensor) -> dict[str, Any]:
        hit = logits.argmax(-1).numpy() == wanted + first
        spans = pairwise(edge for edge in (0, 64, 128, 256, 384, 512) if edge <= c.test_length)
        ages = [(low, late & (ago >= low) & (ago < high)) for low, high in spans]
        by_age = [{"from": low, "accuracy": float(hit[age].mean()), "n": int(age.sum())} for low, age in ages if age.any()]
        return {
            "kind": "recall", "policy": policy, "slots": slots, "accuracy": float(hit[late].mean()), "n": int(late.sum()),
            "by_age": by_age,
        }  # fmt: skip

    with one_thread(), torch.no_grad():
        plain = model(tokens).logits
        rows.append(row("full", c.test_length, plain))
        apart = 0.0
        for policy in POLICIES:
            with AttentionEviction(policy, budget=c.test_length, chunk=CHUNK)(model):
                apart = max(apart, float((model(tokens[:2]).logits - plain[:2]).abs().max()))
        for policy, slots in (("fifo", small), ("lra", small), ("lfa", small), ("fifo", large)):
            with AttentionEviction(policy, budget=slots, chunk=CHUNK, top_k=BEST)(model):
                rows.append(row(policy, slots, model(tokens).logits))
    return rows, apart


def tagged(c: TaggingConfig, n: int) -> dict[str, Any]:
    """How many tags an encoder gets right, whose queries wait for `c.delays` words."""
    model = tagger(c)
    ids, wanted = tagging_texts(c, np.random.default_rng((c.seed, 18)), n)
    with one_thread(), torch.no_grad():
        hit = model(torch.from_numpy(ids)).argmax(-1).numpy() == wanted
    return {"kind": "tagging", "wait": sum(c.delays), "accuracy": float(hit[wanted >= 0].mean()), "n": int((wanted >= 0).sum())}


def curves(rows: list[dict[str, Any]], small: int, large: int) -> list[Curve]:
    """Recall by how long ago the key was announced, and tagging by how long queries wait."""
    recall = [row for row in rows if row["kind"] == "recall"]
    names = {("fifo", small): f"FIFO, {small}", ("lra", small): f"LRA, {small}", ("lfa", small): f"LFA, {small}"}
    series = [
        Series(
            names.get((row["policy"], row["slots"]), f"FIFO, {large}" if row["policy"] == "fifo" else "full attention"),
            [{"x": age["from"], "y": age["accuracy"], "n": age["n"]} for age in row["by_age"]],
        )
        for row in recall
    ]
    waits = [{"x": row["wait"], "y": row["accuracy"], "n": row["n"]} for row in rows if row["kind"] == "tagging"]
    return [
        Curve(
            "attendre-recall", "What is asked for again stays in a memory that looks at attention", "announced so many words ago, or more",
            "right answers", series, y_domain=(0, 1), y_format="percent",
            caption="Texts of 512 words in chunks of 16, read with memories of so many slots a head.",
        ),
        Curve(
            "attendre-wait", "A query that waits sees what comes later", "words that queries wait for", "right tags",
            [Series("encoder in chunks of 8", waits)], y_domain=(0, 1), y_format="percent",
            caption="Tags are said 9 to 24 words after the word that they belong to.",
        ),
    ]  # fmt: skip
