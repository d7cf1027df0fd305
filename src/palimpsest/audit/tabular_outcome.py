"""What every test of a table says in one form, so that tests can be read side by side.

The summary of each is: `test`, `status` ("measured" or "not applicable"), `reason`, `kind` ("memory": the text of the file; "knowledge":
what one can know of a table without having read it to the letter), `n` trials, `hits` with their `rate` and Wilson interval (`low`,
`high`), the `control` that is right most often on the same trials with `control_hits`, `p_value` (the model is not better than its
control, or the truth not above its rivals) and `excluded` trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from palimpsest.audit.tabular_ranks import more_often
from palimpsest.audit.tabular_table import Table
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel
from palimpsest.stats import wilson_interval

MEMORY, KNOWLEDGE = "memory", "knowledge"


def outcome(
    test: str,
    kind: str,
    model: LanguageModel,
    table: Table,
    rows: pl.DataFrame,
    *,
    hits: Sequence[bool] | None = None,
    control: tuple[str, Sequence[bool]] | None = None,
    p_value: float | None = None,
    settings: dict[str, Any],
    **more: Any,
) -> Measurement:
    """A test that was made.

    Args:
        test, kind: its name; MEMORY or KNOWLEDGE.
        model, table: what was asked about what.
        rows: one row a trial.
        hits: where the model was right; None for tests without right and wrong.
        control: what the model's hits are compared with: a name, and where it was right.
        p_value: of the test; with a control and without one given, that of McNemar's exact test against the control.
        settings: what it takes to repeat it.
        more: further figures of the summary.
    """
    summary: dict[str, Any] = {"test": test, "status": "measured", "reason": None, "kind": kind, "n": len(rows), "excluded": 0}
    if hits is not None:
        rate = wilson_interval(int(sum(hits)), len(hits))
        summary |= {"n": len(hits), "hits": int(sum(hits)), "rate": rate.estimate, "low": rate.low, "high": rate.high}
        if control is not None:
            summary |= {"control": control[0], "control_hits": int(sum(control[1]))}
            p_value = more_often(hits, control[1]) if p_value is None else p_value
    return Measurement(f"tabular-{test}", rows, {**summary, "p_value": p_value, **more}, provenance(model, table, settings))


def not_applicable(test: str, kind: str, model: LanguageModel, table: Table, reason: str, settings: dict[str, Any]) -> Measurement:
    """A test that would mean nothing on this table, with the reason."""
    summary = {"test": test, "status": "not applicable", "reason": reason, "kind": kind, "n": 0, "p_value": None}
    return Measurement(f"tabular-{test}", pl.DataFrame(), summary, provenance(model, table, settings))


def provenance(model: LanguageModel, table: Table, settings: dict[str, Any]) -> dict[str, Any]:
    """Model, table, settings and versions."""
    described = {"name": table.name, "rows": len(table), "columns": len(table.columns), "fingerprint": table.fingerprint}
    return {"model": model.describe(), "table": described, **settings, "environment": environment()}
