"""Rates of the same passages under two conditions, side by side: the difference with its interval, and p corrected for all that stand in
one table.

McNemar's exact test and Newcombe's interval for paired proportions (`palimpsest.stats.mcnemar`); Holm up to 20 comparisons, Benjamini and
Hochberg above.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import polars as pl

from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block
from palimpsest.evaluation.record import AuditRecord
from palimpsest.stats import adjusted, mcnemar

Outcomes = Sequence[bool]


def differences(pairs: Sequence[tuple[Outcomes, Outcomes] | None]) -> tuple[list[dict[str, Any]], str]:
    """For each pair of conditions on the same items the cells "over" (second minus first, with its ends) and "p"; how p was corrected.

    A pair that is None, or has no items, has empty cells and is no comparison.

    Example:
        >>> cells, correction = differences([([False] * 8, [True] * 8), None])
        >>> cells[0]["over"][0], cells[0]["p"], cells[1], correction
        (1.0, '0.0078', {'over': None, 'p': None}, 'Holm')
    """
    tests = [mcnemar(*pair) if pair is not None and len(pair[0]) else None for pair in pairs]
    made = [test.p_value for test in tests if test is not None]
    if not made:
        return [{"over": None, "p": None} for _ in tests], "none"
    corrected, name = adjusted(made)
    values = iter(corrected.tolist())
    cells: list[dict[str, Any]] = [
        {"over": list(test.difference), "p": blocks.p_value(next(values))} if test is not None else {"over": None, "p": None}
        for test in tests
    ]
    return cells, name


def model_differences(record: AuditRecord) -> list[Block]:
    """Which of several audited models writes more of the same passages; nothing for a single one."""
    models = list(itertools.combinations(record.plan.models, 2))
    if not models:
        return []
    hits = {model.name: record.extracted(model).sort("sample").select("sample", "extracted") for model in record.plan.models}
    pairs = []
    for one, two in models:
        both = hits[one.name].join(hits[two.name], on="sample", suffix="_second").sort("sample")
        pairs.append((both["extracted"].to_list(), both["extracted_second"].to_list()))
    cells, correction = differences(pairs)
    rows = [
        {"first": one.name, "second": two.name, "n": len(pair[0]), **cell}
        for (one, two), pair, cell in zip(models, pairs, cells, strict=True)
    ]
    columns = [("first", "Model", "text"), ("second", "Other model", "text"), ("n", "Passages", "int"),
               ("over", "The other writes more", "percent"), ("p", "p, corrected", "text")]  # fmt: skip
    caption = f"The same passages, written to the letter: McNemar's exact test, corrected for all rows ({correction})."
    return [blocks.table("extraction-models", "Models compared", columns, rows, caption)]


def above_reference(tables: Sequence[pl.DataFrame]) -> tuple[list[dict[str, Any]], str]:
    """`differences` of what a model and its reference write, for each table of passages that has a reference."""
    pairs = [
        (table["reference_extracted"].to_list(), table["extracted"].to_list()) if "reference_extracted" in table.columns else None
        for table in tables
    ]
    return differences(pairs)
