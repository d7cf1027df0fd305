"""What can be told about a table without a language model: the controls of every test.

* `row_controls`, `feature_controls`, `token_controls`: predictions for the very queries that the model is asked, by the previous row, the
  most common value, the nearest rows, and gradient-boosted trees fitted on rows that are not asked for. A test's control is the one that
  is right most often, on the truth (not on the model's answers).
* `dependence`: do the rows before a row tell it? Then "the next row" can be guessed without having been read, and tests that take rows for
  exchangeable do not apply. Boosted trees and a linear model on the previous rows are compared with the best constant on held-out blocks
  of the file: exact McNemar for classes, Wilcoxon's signed ranks of the absolute errors for numbers, twice the smaller p-value.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from palimpsest.audit.tabular_cells import codes, row_text, same
from palimpsest.audit.tabular_decoys import filled
from palimpsest.audit.tabular_prompts import RowQueries
from palimpsest.audit.tabular_ranks import more_often
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import InputError

NEIGHBOURS = 5
LONGEST_TOKEN = 6  # characters of the "first token"
_BLOCKS = 10
_FITTED = 2000  # rows that a model is fitted on and tried on
_MOST_CLASSES = 12  # rarer values are one class


def best_control(controls: dict[str, list[str]], truths: Sequence[str], equal: Callable[[str, str], bool] = same) -> tuple[str, list[bool]]:
    """The control that is right most often, and where it is right.

    Example:
        >>> best_control({"a": ["1", "2"], "b": ["1", "3"]}, ["1", "3"])
        ('b', [True, True])
    """
    hits = {name: [equal(guess, truth) for guess, truth in zip(guesses, truths, strict=True)] for name, guesses in controls.items()}
    best = max(hits, key=lambda name: sum(hits[name]))
    return best, hits[best]


def row_controls(queries: RowQueries) -> dict[str, list[str]]:
    """Guesses of whole rows: the previous one, and the most common value of every column."""
    table = queries.table
    common = row_text([Counter(column).most_common(1)[0][0] for column in zip(*table.cells, strict=True)], table.delimiter)
    return {"previous row": [table.rows[row - 1] for row in queries.rows], "most common values": [common] * len(queries.rows)}


def feature_controls(table: Table, column: int, rows: Sequence[int], seed: int = 0) -> dict[str, list[str]]:
    """Guesses of one cell from the others of its row, by rows that are not among `rows`."""
    asked = np.array(rows)
    others = _others(len(table), asked, seed)
    values = [row[column].strip() for row in table.cells]
    matrix = np.delete(filled(table.matrix), column, axis=1)
    kinds = [kind for j, kind in enumerate(table.kinds) if j != column]
    near = _nearest(matrix, kinds, asked, others)
    guesses = {
        "most common value": [Counter(values[i] for i in others).most_common(1)[0][0]] * len(asked),
        "nearest row": [values[row[0]] for row in near],
        f"{NEIGHBOURS} nearest rows": [Counter(values[i] for i in row).most_common(1)[0][0] for row in near],
    }
    y = filled(table.matrix[:, [column]])[others, 0]
    levels, level = np.unique(y, return_inverse=True)
    classes = table.kinds[column] == "text" or len(levels) <= _MOST_CLASSES
    tree = _trees(classes, y, seed)
    if tree is not None:
        predicted = tree.fit(matrix[others], level if classes else y).predict(matrix[asked])
        places = predicted.astype(int) if classes else np.abs(levels[None] - predicted[:, None]).argmin(axis=1)
        first = {int(place): values[i] for place, i in zip(level.tolist(), others.tolist(), strict=True)}
        guesses["boosted trees"] = [first[int(place)] for place in places]
    return guesses


def token_length(table: Table) -> int:
    """Characters of the "first token" of a row: the fewest, at most 6, with which it takes three values, none of them in half of the rows.

    Raises:
        InputError: no such number.
    """
    for length in range(1, LONGEST_TOKEN + 1):
        counts = Counter(row[:length] for row in table.rows)
        if len(counts) >= 3 and max(counts.values()) < len(table) / 2:
            return length
    raise InputError(
        f"The first {LONGEST_TOKEN} characters of the rows of {table.name} hardly differ.",
        "There is no first token to ask for in this table.",
    )


def token_controls(queries: RowQueries, length: int, seed: int = 0) -> dict[str, list[str]]:
    """Guesses of the first `length` characters of a row, from the rows before it."""
    table, asked = queries.table, np.array(queries.rows)
    tokens = [row[:length] for row in table.rows]
    others = _others(len(table), asked, seed)
    guesses = {
        "most common": [Counter(tokens[i] for i in others).most_common(1)[0][0]] * len(asked),
        "previous row": [tokens[row - 1] for row in queries.rows],
    }
    window = _window(len(table))
    y = np.minimum(codes(tokens), _MOST_CLASSES).astype(int)
    usable = others[others >= window]
    tree = _trees(True, y[usable], seed)
    if tree is not None:
        before = _before(filled(table.matrix), window)
        first = {int(place): token for place, token in zip(y.tolist(), tokens, strict=True)}
        predicted = tree.fit(before[usable], y[usable]).predict(before[np.maximum(asked, window)])
        guesses["boosted trees"] = [first[int(place)] for place in predicted]
    return guesses


def dependence(table: Table, column: int | None = None, *, tokens: Sequence[str] | None = None, seed: int = 0) -> float:
    """p-value of "the rows before a row do not tell its cell in `column`", or its entry of `tokens` where these are given.

    Returns:
        1.0 for a column that does not vary.
    """
    classes = tokens is not None or table.kinds[column or 0] == "text"
    y = codes(tokens) if tokens is not None else filled(table.matrix[:, [column or 0]])[:, 0]
    y = y[:_FITTED]
    classes = classes or len(np.unique(y)) <= _MOST_CLASSES
    y = np.minimum(codes([str(value) for value in y]), _MOST_CLASSES).astype(int) if classes else stats.rankdata(y)
    window = _window(len(y))
    x = _before(filled(table.matrix[: len(y)]), window)
    block = np.arange(len(y)) * _BLOCKS // len(y)
    inside = np.arange(len(y)) - np.searchsorted(block, block) >= window  # its previous rows lie in its own block
    train, test = inside & (block % 2 == 0), inside & (block % 2 == 1)
    if len(np.unique(y[train])) < 2 or test.sum() < 8:
        return 1.0
    values, counts = np.unique(y[train], return_counts=True)
    constant = values[counts.argmax()] if classes else np.median(y[train])
    p_values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200) if classes else Ridge())
        for model in (_trees(classes, y[train], seed), linear):
            if model is None:
                continue
            guess = model.fit(x[train], y[train]).predict(x[test])
            if classes:
                p_values.append(more_often(guess == y[test], np.full(test.sum(), constant) == y[test]))
            else:
                gain = np.abs(constant - y[test]) - np.abs(guess - y[test])
                p_values.append(float(stats.wilcoxon(gain, alternative="greater").pvalue) if np.any(gain) else 1.0)
    return min(1.0, len(p_values) * min(p_values))


def _window(rows: int) -> int:
    """How many previous rows a predictor sees: few where there are few rows to learn from."""
    return 1 if rows < 200 else 2 if rows < 500 else 3 if rows < 1000 else 5


def _before(matrix: np.ndarray, window: int) -> np.ndarray:
    """The `window` rows before each row, flattened; what stands before the file repeats its first row."""
    index = np.arange(len(matrix))[:, None] - np.arange(1, window + 1)
    return matrix[np.maximum(index, 0)].reshape(len(matrix), -1)


def _others(rows: int, asked: np.ndarray, seed: int) -> np.ndarray:
    free = np.setdiff1d(np.arange(rows), asked)
    return np.sort(np.random.default_rng((seed, 3)).permutation(free)[:_FITTED])


def _nearest(matrix: np.ndarray, kinds: Sequence[str], asked: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Row numbers (asked, neighbours) of those among `others` with the least sum of scaled differences."""
    texts = np.array([kind == "text" for kind in kinds], bool)
    spans = np.where(texts, 1.0, np.maximum(np.ptp(matrix, axis=0), 1e-12))
    scaled = matrix / spans
    out = []
    for row in asked:
        difference = np.abs(scaled[others] - scaled[row])
        difference[:, texts] = difference[:, texts] > 0
        out.append(others[np.argsort(difference.sum(axis=1), kind="stable")[:NEIGHBOURS]])
    return np.array(out)


def _trees(classes: bool, y: np.ndarray, seed: int) -> HistGradientBoostingClassifier | HistGradientBoostingRegressor | None:
    """Boosted trees for `y`; None where it has one value, or too many classes."""
    levels = len(np.unique(y))
    if levels < 2 or (classes and levels > _MOST_CLASSES + 1):
        return None
    kind = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    return kind(max_iter=30 if classes else 100, early_stopping=False, random_state=seed)
