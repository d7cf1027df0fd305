"""The figures of needles asked for by several prompts in the same cells; the measurement, and what they mean, stand in `needle`.

A table has one row a prompt (test, wording) and cell (length, depth, seed), with `right` and `prior`; rows without a depth are controls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Series, plain
from palimpsest.stats import Interval, cochran_q, mcnemar, wilson_interval

CELL = ["length", "depth", "seed"]


def prompt_dependence(table: pl.DataFrame, twins: dict[str, str] | None = None, *, shuffles: int = 100, seed: int = 0) -> dict[str, Any]:
    """The figures of a table of `measure_needles`, as plain JSON types.

    Args:
        table: every prompt in every cell.
        twins: conflicting test -> its neutral twin.
        shuffles: how often the prompts' names are shuffled within the cells, as a control.
        seed: of the shuffles and of the bootstrap.

    Returns:
        `by_prompt` recall, and how many answers are empty; `control`; `omnibus` (Q over prompts), `omnibus_by_test` (over its wordings),
        `prompt_dependence` (interval), `shuffled` (mean PD and the share of shuffles with p > 0.05), `components`, `conflicts`.

    Raises:
        InputError: fewer than 2 prompts or cells, or a cell without one of the prompts.
    """
    names, cells, right = outcomes(table)
    rng = np.random.default_rng(seed)
    drawn = [rng.permuted(right, axis=1) for _ in range(shuffles)]
    asked = table.filter(pl.col("depth").is_not_null())
    control = table.filter(pl.col("depth").is_null())
    empty = {(test, wording): number for test, wording, number in asked.group_by("test", "wording").agg(pl.col("empty").sum()).rows()}
    by_prompt = [
        {
            "test": test,
            "wording": wording,
            "n": len(column),
            "empty": empty[test, wording],
            **wilson_interval(int(column.sum()), len(column))._asdict(),
        }
        for (test, wording), column in zip(names, right.T, strict=True)
    ]
    by_test: dict[str, Any] = {}
    for test in dict.fromkeys(name for name, _ in names):
        own = right[:, [name == test for name, _ in names]]
        by_test[test] = cochran_q(*own.T).to_dict() if own.shape[1] > 1 else None
    conflicts = []
    for test, neutral in (twins or {}).items():
        first, second = (right[:, [name == one for name, _ in names]].ravel() for one in (neutral, test))
        given = asked.filter(pl.col("test") == test)["prior"].to_numpy()
        compared = replace(mcnemar(first, second), first=neutral, second=test)
        conflicts.append({**compared.to_dict(), "prior": wilson_interval(int(given.sum()), len(given))._asdict()})
    value = {
        "by_prompt": by_prompt,
        "recall": float(right.mean()),
        "control": wilson_interval(int(control["right"].sum()), control.height)._asdict() if control.height else None,
        "omnibus": cochran_q(*right.T).to_dict(),
        "omnibus_by_test": by_test,
        "prompt_dependence": spread(right, seed=seed)._asdict(),
        "shuffled": {
            "n": shuffles,
            "prompt_dependence": float(np.mean([np.ptp(one.mean(axis=0)) for one in drawn])),
            "not_significant": float(np.mean([cochran_q(*one.T).p_value > 0.05 for one in drawn])),
        },
        "components": components(right, cells),
        "conflicts": conflicts,
    }
    return dict(plain(value))


def outcomes(table: pl.DataFrame) -> tuple[list[tuple[str, int]], pl.DataFrame, np.ndarray]:
    """Prompts (test, wording), cells (length, depth, seed) and right bool (cells, prompts), without the controls.

    Raises:
        InputError: fewer than 2 prompts or cells, or not every prompt once in every cell.
    """
    rows = table.filter(pl.col("depth").is_not_null()).sort(*CELL, "test", "wording")
    complete = rows.select(*CELL, "test", "wording").n_unique() == rows.height
    names = rows.select("test", "wording").unique().sort("test", "wording").rows()
    cells = rows.select(CELL).unique().sort(CELL)
    if len(names) < 2 or cells.height < 2 or rows.height != len(names) * cells.height or not complete:
        raise InputError(
            f"{rows.height} answers to {len(names)} prompts in {cells.height} cells.",
            "Ask 2 prompts or more once in each of 2 cells or more.",
        )
    return [(str(test), int(wording)) for test, wording in names], cells, rows["right"].to_numpy().reshape(cells.height, len(names))


def spread(right: np.ndarray, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """PD: the greatest less the least mean recall of the columns of right (cells, prompts), with a bootstrap over cells.

    Example:
        >>> spread(np.array([[1, 0], [1, 0], [1, 1], [1, 1]])).estimate
        0.5
    """
    values = np.asarray(right, dtype=np.float64)
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)  # how often each cell was drawn
    ranges = np.ptp(weights @ values / n, axis=1)
    low, high = np.quantile(ranges, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.ptp(values.mean(axis=0))), float(low), float(high))


def components(right: np.ndarray, cells: pl.DataFrame) -> dict[str, float | None]:
    """Variance components of a full layout, by the method of moments; they may be below 0, which says that the factor does nothing.

    Args:
        right: (cells, prompts).
        cells: the columns length, depth, seed of the rows of `right`: every combination once.

    Returns:
        "prompt", "length", "depth", "seed" (None where there is one level) and "rest".

    Raises:
        InputError: some combination is missing, or nothing is left for the rest.
    """
    y = np.asarray(right, dtype=np.float64)
    codes = {name: np.unique(cells[name].to_numpy(), return_inverse=True)[1] for name in CELL}
    levels = {name: int(code.max()) + 1 for name, code in codes.items()}
    if np.prod(list(levels.values())) != len(y):
        raise InputError(f"{len(y)} cells are not all combinations of {levels}.", "Ask in every combination of length, depth and seed.")
    levels["prompt"] = y.shape[1]
    means = {name: np.bincount(code, y.mean(axis=1)) / np.bincount(code) for name, code in codes.items()} | {"prompt": y.mean(axis=0)}
    squares = {name: y.size / levels[name] * float(((mean - y.mean()) ** 2).sum()) for name, mean in means.items()}
    free = y.size - 1 - sum(count - 1 for count in levels.values())
    if free < 1:
        raise InputError(f"{y.size} answers leave nothing for the rest.", "Ask more prompts in more cells.")
    rest = (float(((y - y.mean()) ** 2).sum()) - sum(squares.values())) / free
    found: dict[str, float | None] = {"rest": rest}
    for name, count in levels.items():
        found[name] = (squares[name] / (count - 1) - rest) / (y.size / count) if count > 1 else None
    return found


def prompt_curve(table: pl.DataFrame) -> Curve:
    """Recall by depth, a series a prompt, over all lengths and seeds."""
    names, cells, right = outcomes(table)
    series = []
    for (test, wording), column in zip(names, right.T, strict=True):
        points: list[dict[str, float | int | None]] = []
        for depth in cells["depth"].unique().sort():
            own = column[(cells["depth"] == depth).to_numpy()]
            rate = wilson_interval(int(own.sum()), len(own))
            points.append({"x": float(depth), "y": rate.estimate, "low": rate.low, "high": rate.high, "n": len(own)})
        series.append(Series(f"{test}, wording {wording + 1}", points))
    caption = "Share of cells in which the needle is found, by its place, one line a prompt; 95 % Wilson intervals."
    return Curve("needle-prompts", "What is found depends on how it is asked for", "depth in the context", "needles found", series,
                 x_format="percent", y_domain=(0, 1), y_format="percent", caption=caption)  # fmt: skip
