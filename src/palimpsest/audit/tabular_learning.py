"""Few-shot learning on tables: what a model predicts from rows in its context, on versions further and further from the published text.

Bordt et al., COLM 2024, section 5. The target of a row is predicted from a few rows that are shown, as "IF a = 1, b = 2 THEN target = x",
on the versions of `tabular_transform`; the same rows are asked for and shown in each. Beside the model stand logistic regression and
boosted trees, fitted on the rows that are shown and on all rows that are not asked for. A model that has read a table does better on the
original than on a version of which it has not read a word, while its rivals do not care: the fall is tested by McNemar's exact test.

A target of numbers of more than 10 values is cut at its median into "low" and "high", as the paper does for house prices.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from palimpsest.audit.tabular_cells import missing, same
from palimpsest.audit.tabular_decoys import filled
from palimpsest.audit.tabular_outcome import provenance
from palimpsest.audit.tabular_prompts import MARGIN, complete, feature_text, first_line, token_counts
from palimpsest.audit.tabular_ranks import more_often
from palimpsest.audit.tabular_table import Table, require_column
from palimpsest.audit.tabular_transform import VERSIONS, Transform
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import wilson_interval

_CLASSES = 10


def measure_few_shot(
    model: LanguageModel,
    table: Table,
    target: str | None = None,
    *,
    transform: Transform | None = None,
    versions: Sequence[str] = VERSIONS,
    n: int = 50,
    shots: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Few-shot learning on versions of a table; see the module's docstring.

    Args:
        model: needs "text".
        table: the table.
        target: the column to predict; None: that of `transform`, or the last.
        transform: what makes the versions; None: `Transform.automatic`.
        versions: some of `VERSIONS`.
        n: rows asked for; shots: rows shown, all classes of the target in turn.
        seed: of rows and versions.
        progress: called with (versions done, versions in all).

    Returns:
        One row a version and query: version, row, truth, answer, exact, logistic, trees (whether those fitted on the shown rows are right).
        The summary holds `versions`, for each the accuracy with its Wilson interval and those of the rivals (`logistic`, `trees`,
        `logistic_all`, `trees_all`), and `fall`: accuracy on the first version less that on the last, with its one-sided p-value.

    Raises:
        InputError: no such column or version, a target of one value, too few rows.
        ContextOverflowError: the shown rows do not fit the context.

    Example:
        >>> measure_few_shot(model, Table.read("iris.csv")).summary["fall"]   # doctest: +SKIP
        {'difference': 0.12, 'p_value': 0.03}
    """
    if n < 1 or shots < 2 or not versions:
        raise InputError(f"{n} rows with {shots} shown ones on {len(versions)} versions were asked for.", "Give at least 1, 2 and 1.")
    named = target if target is not None else transform.target if transform is not None else None
    column = require_column(table, named) if named is not None else len(table.columns) - 1
    table = _with_classes(table, column)
    transform = transform or Transform.automatic(table, table.columns[column])
    labels = [row[column].strip() for row in table.cells]
    asked, shown = _draw(labels, n, shots, seed)
    rows: list[dict[str, Any]] = []
    figures: dict[str, dict[str, Any]] = {}
    for done, which in enumerate(versions):
        version = transform.version(table, which, seed)
        found = _one(model, version, asked, shown, seed)
        figures[which] = found.pop("figures")
        rows += [{"version": which, "row": row, **{key: values[i] for key, values in found.items()}} for i, row in enumerate(asked)]
        if progress:
            progress(done + 1, len(versions))
    frame = pl.DataFrame(rows)
    first, last = (frame.filter(pl.col("version") == which)["exact"].to_list() for which in (versions[0], versions[-1]))
    fall = {"difference": float(np.mean(first) - np.mean(last)), "p_value": more_often(first, last) if len(versions) > 1 else None}
    summary = {"versions": figures, "fall": fall, "target": table.columns[column], "n": len(asked), "shots": len(shown)}
    return Measurement("tabular-few-shot", frame, summary, provenance(model, table, {"seed": seed}))


def measure_linear_classification(
    model: LanguageModel, features: int = 2, *, n: int = 50, shots: int = 20, seed: int = 0, progress: Progress | None = None
) -> Measurement:
    """In-context linear classification: what a model learns where there is nothing to remember.

    Points with independent normal coordinates, two decimals, belong to class 1 where a random direction says so, to 0 elsewhere.

    Args:
        model: needs "text".
        features: coordinates.
        n, shots, progress: as for `measure_few_shot`.
        seed: of points, direction and order.

    Returns:
        As `measure_few_shot`, with one version.

    Raises:
        InputError: fewer than one feature.
    """
    if features < 1:
        raise InputError(f"Points of {features} features were asked for.", "Give at least 1.")
    rng = np.random.default_rng((seed, 96))
    points = rng.normal(size=(2 * (n + shots), features)).round(2)
    classes = (points @ rng.normal(size=features) > 0).astype(int)
    names = [*(f"X{i + 1}" for i in range(features)), "Y"]
    cells = [[*(f"{value:.2f}" for value in point), str(label)] for point, label in zip(points.tolist(), classes.tolist(), strict=True)]
    table = Table.of("linear", names, cells)
    return measure_few_shot(model, table, "Y", versions=["original"], n=n, shots=shots, seed=seed, progress=progress)


def _with_classes(table: Table, column: int) -> Table:
    """The table with a target of classes: its own, or "low" and "high" for many numbers."""
    values = {row[column].strip() for row in table.cells if not missing(row[column])}
    if len(values) < 2:
        raise InputError(f"The column {table.columns[column]!r} has {len(values)} value.", "Give a target that differs between rows.")
    if len(values) <= _CLASSES:
        return table
    if table.kinds[column] != "number":
        raise InputError(f"The column {table.columns[column]!r} has {len(values)} different texts.", f"Give a target of 2 to {_CLASSES}.")
    numbers = table.matrix[:, column]
    middle = np.nanmedian(numbers)
    cells = [
        [*row[:column], row[column] if np.isnan(number) else "high" if number > middle else "low", *row[column + 1 :]]
        for row, number in zip(table.cells, numbers.tolist(), strict=True)
    ]
    return Table.of(table.name, table.columns, cells, like=table)


def _draw(labels: Sequence[str], n: int, shots: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows that are asked for, and rows that are shown: these from every class in turn, in an order drawn by lot."""
    rng = np.random.default_rng((seed, 94))
    order = [i for i in rng.permutation(len(labels)).tolist() if not missing(labels[i])]
    classes = sorted({labels[i] for i in order})
    shown: list[int] = []
    piles = {label: [i for i in order if labels[i] == label] for label in classes}
    while len(shown) < min(shots, len(order) // 2):
        for label in classes:
            if piles[label] and len(shown) < shots:
                shown.append(piles[label].pop())
    asked = [i for i in order if i not in set(shown)][:n]
    if not asked or len({labels[i] for i in shown}) < 2:
        raise InputError(f"{len(order)} rows with a target give no rows to ask for beside {len(shown)} shown ones.", "Give more rows.")
    return asked, rng.permutation(shown).tolist()


def _one(model: LanguageModel, version: Table, asked: list[int], shown: list[int], seed: int) -> dict[str, Any]:
    """Truths, answers and rivals' hits on one version, whose target is its last column."""
    names, target = version.columns[:-1], version.columns[-1]
    truths = [version.cells[i][-1].strip() for i in asked]
    told = "".join(f"IF {feature_text(names, version.cells[i][:-1])} THEN {target} = {version.cells[i][-1].strip()}\n" for i in shown)
    prompts = [told + f"IF {feature_text(names, version.cells[i][:-1])} THEN {target} =" for i in asked]
    tokens = int(token_counts(model, [f" {truth}\n" for truth in set(truths)]).max()) + MARGIN
    answers = [first_line(answer).strip() for answer in complete(model, prompts, tokens)]
    hits = [same(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    x = filled(version.matrix[:, :-1])
    y = np.array([row[-1].strip() for row in version.cells])
    others = np.setdiff1d(np.arange(len(version)), asked)
    rate = wilson_interval(sum(hits), len(hits))
    figures: dict[str, Any] = {"rate": rate.estimate, "low": rate.low, "high": rate.high}
    out: dict[str, Any] = {"truth": truths, "answer": answers, "exact": hits}
    for name, rows in (("", np.array(shown)), ("_all", others)):
        for kind in ("logistic", "trees"):
            right = (_rival(kind, x[rows], y[rows], seed).predict(x[asked]) == np.array(truths)).tolist()
            figures[kind + name] = float(np.mean(right))
            if not name:
                out[kind] = right
    return {**out, "figures": figures}


def _rival(kind: str, x: np.ndarray, y: np.ndarray, seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows: a fit need not converge to be a rival
        if kind == "logistic":
            return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(x, y)
        return HistGradientBoostingClassifier(max_iter=50, min_samples_leaf=2, early_stopping=False, random_state=seed).fit(x, y)
