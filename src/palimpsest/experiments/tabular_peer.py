"""`tabmemcheck` beside our tests: the same model, the same tables, its own functions.

Bordt et al.'s package (`pip install tabmemcheck`) prints what it finds; here its text is taken away and its return values are kept. Its
random choices come from numpy's global state unless a generator is given, so a seed is set before each call.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.audit.tabular import TabmemcheckModel, compat_tabmemcheck
from palimpsest.models import LanguageModel


def has_tabmemcheck() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("tabmemcheck") is not None


def call(test: Callable[..., Any], model: LanguageModel, *args: Any, **options: Any) -> dict[str, Any]:
    """One of its tests: what it returns, what it prints, calls of the model, tokens written, seconds."""
    import tabmemcheck  # type: ignore[import-not-found]

    door: TabmemcheckModel = compat_tabmemcheck(model)
    printed = io.StringIO()
    began, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(printed):
        returned = test(*args[:1], door, *args[1:], **options)
    return {
        "returned": returned,
        "printed": printed.getvalue(),
        "calls": door.calls,
        "tokens": door.tokens,
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - busy,
        "version": tabmemcheck.__version__,
    }


def row_completion(model: LanguageModel, path: str | Path, n: int = 25, seed: int = 0) -> dict[str, Any]:
    """Its row completion test, with `truths`, `answers` and `matches` as it counts them."""
    import tabmemcheck

    found = call(tabmemcheck.row_completion_test, model, str(path), num_queries=n, print_levenshtein=False, rng=np.random.default_rng(seed))
    truths, answers = found["returned"]
    matches = sum(truth.strip() in answer.strip() for truth, answer in zip(truths, answers, strict=True))
    return {**found, "truths": list(truths), "answers": list(answers), "matches": matches}
