"""Claim check of memory tokens: one input vector of a frozen model gives a short text back, and a larger model's holds a longer one.

Sastre and Rosá 2025, arXiv 2506.15001, on SmolLM2-135M-Instruct: six texts of 8, 16 and 32 tokens (three of the Bible where
$PALIMPSEST_DATA has it, otherwise of the held-out novels; three docstrings of Python's library), one vector each behind <|endoftext|>,
Adam, at most 250 steps. Checks, as the specification has them:

* of the texts of 8 tokens at least 5 in 6 come back to the letter;
* the share that comes back does not rise with the length;
* the untrained vector and the vector of another text give none back;
* at the greatest length of which SmolLM2 gives at least 5 in 6 back, the laboratory's model of 1.5 million parameters gives fewer back;
* at every length at least as great a share of the texts comes back as of random tokens.

Tried on seed 100: with nothing in front of the vector, as in the paper, none of the texts of 8 tokens comes back within 250 steps at any
of four rates and both starts, while often all positions but one are right: the model's first position is an attention sink. What the
paper's arrangement gives at 8 tokens is reported beside. A first run of the three seeds is void: a text that was right
before others was moved once more, by Adam's momentum, and then often wrong (12 of 18 texts of 8 tokens came back). The paper trains up to
3,000 steps, on models of up to 8 billion parameters and texts of up to 240 tokens.
"""

from __future__ import annotations

import importlib
import inspect
from itertools import pairwise
from typing import Any

import numpy as np

from palimpsest.evaluation.reversible import RANDOM, TEXT, measure_reversible
from palimpsest.experiments.canaries import twins
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.copyright_lcs import bible
from palimpsest.experiments.planted_texts import base_text
from palimpsest.measurement import Measurement
from palimpsest.models import load_model

STATEMENT = (
    "One optimised input vector makes a frozen model give back a text of up to a few hundred tokens exactly; larger models reach longer "
    "texts."
)
MODEL, LAB = "smollm2-135m", "standard-l"
LENGTHS, STEPS, LR, ENOUGH = (8, 16, 32), 250, 0.1, 5 / 6
SINK = "<|endoftext|>"  # for what stands in front of the vector; both models know it
MODULES = (
    "argparse", "asyncio", "collections", "csv", "datetime", "decimal", "fractions", "functools", "heapq", "json", "logging", "pickle",
    "random", "statistics", "string", "textwrap", "threading", "unittest", "zipfile",
)  # fmt: skip


def run(scale: str, seed: int) -> Claim:
    """Trains the vectors and reads them.

    Args:
        scale: "smoke": two texts of 2 and 4 tokens, 5 steps, the laboratory's smallest model; only the controls are held against
            anything; "cpu".
        seed: which texts, and the random tokens.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    lab = twins().models
    texts, sources = draw_texts(seed, 3 if full else 1)
    if not full:
        small = measure_reversible(lab["standard-s"], texts, (2, 4), random=1, seed=seed, max_steps=5)
        checks = [Check(check.what, check.ours, unit=check.unit) for check in judged(small, None)]
        return Claim("memory-tokens", STATEMENT, [*controls(small), *checks], rows_of(small), seed, scale, [sources])
    model = load_model(MODEL)
    how: dict[str, Any] = {"seed": seed, "lr": LR, "max_steps": STEPS}
    measured = measure_reversible(model, texts, LENGTHS, before=SINK, random=2, **how)
    smaller = measure_reversible(lab[LAB], texts, LENGTHS, before=SINK, random=0, **how)
    alone = measure_reversible(model, texts, LENGTHS[:1], random=0, **how)
    plain = alone.summary["levels"][0]
    checks = [*controls(measured), *judged(measured, smaller)]
    checks.append(
        Check(f"share of the texts of {LENGTHS[0]} tokens given back, nothing in front", plain["exact"]["estimate"], unit="share")
    )
    checks.append(Check("share of their positions that are right, teacher-forced, nothing in front", plain["accuracy"], unit="share"))
    notes = [sources, "Two sequences of random tokens of each length, beside six texts.", f"In front of the vector stands {SINK}."]
    rows = [*rows_of(measured), *rows_of(smaller)]
    return Claim("memory-tokens", STATEMENT, checks, rows, seed, scale, notes, list(measured.curves.values()))


def draw_texts(seed: int, each: int) -> tuple[list[str], str]:
    """`each` passages of prose and as many docstrings, of at least 60 words; and a note that says what they are of."""
    rng = np.random.default_rng((seed, 80))
    table = bible()
    if table is not None:
        prose, source = [" ".join(verses) for verses in table.values()], "the Bible"
    else:
        prose, source = base_text().held_out, "held-out chapters of the novels (the Bible was not at hand)"
    documented = [inspect.getdoc(value) or "" for name in MODULES for value in _public(importlib.import_module(name))]
    chosen = []
    for pool in (prose, documented):
        long = sorted({text for text in pool if len(text.split()) >= 60})
        chosen += [long[i] for i in rng.permutation(len(long))[:each]]
    return chosen, f"Prose of {source}; docstrings of this Python's library."


def _public(module: Any) -> list[Any]:
    """A module, and the classes and functions that it names as its own."""
    return [module, *(value for name in getattr(module, "__all__", ()) if callable(value := getattr(module, name, None)))]


def level(measured: Measurement, kind: str, length: int) -> dict[str, Any]:
    """The figures of one kind and length."""
    return next(row for row in measured.summary["levels"] if (row["kind"], row["length"]) == (kind, length))


def controls(measured: Measurement) -> list[Check]:
    """No text may come back from a vector that was not trained on it."""
    given = {name: sum(row[name] for row in measured.summary["levels"]) for name in ("untrained", "swapped")}
    return [
        Check("sequences given back by the untrained vector", given["untrained"], "==", 0, unit="sequences"),
        Check("sequences given back by the vector of another", given["swapped"], "==", 0, unit="sequences"),
    ]


def judged(measured: Measurement, smaller: Measurement | None) -> list[Check]:
    """The checks on what came back; a figure that could not be had is missing, and fails."""
    lengths = sorted({row["length"] for row in measured.summary["levels"]})
    rate = {(row["kind"], row["length"]): row["exact"]["estimate"] for row in measured.summary["levels"]}
    rise = max(rate[TEXT, longer] - rate[TEXT, shorter] for shorter, longer in pairwise(lengths))
    ahead = min(rate[TEXT, length] - rate[RANDOM, length] for length in lengths)
    reach = max((length for length in lengths if rate[TEXT, length] >= ENOUGH), default=None)
    gap = None
    if smaller is not None and reach is not None:
        gap = rate[TEXT, reach] - level(smaller, TEXT, reach)["exact"]["estimate"]
    first = lengths[0]
    return [
        Check(f"share of the texts of {first} tokens given back", rate[TEXT, first], ">=", ENOUGH, rate[RANDOM, first], "share"),
        Check("greatest rise of the share from one length to the next", rise, "<=", 0, unit="share"),
        Check(f"share of the texts of {reach} tokens given back, less that of the laboratory's model", gap, ">", 0, unit="share"),
        Check("least lead of the texts' share over that of random tokens", ahead, ">=", 0, unit="share"),
        *(Check(f"share of the texts of {length} tokens given back", rate[TEXT, length], unit="share") for length in lengths[1:]),
        *(Check(f"share of {length} random tokens given back", rate[RANDOM, length], unit="share") for length in lengths),
    ]


def rows_of(measured: Measurement) -> list[dict[str, Any]]:
    """The levels as rows of the claim."""
    name = measured.provenance["model"]["name"]
    return [{"model": name, **row, "exact": row["exact"]["estimate"]} for row in measured.summary["levels"]]
