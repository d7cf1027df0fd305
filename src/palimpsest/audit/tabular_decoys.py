"""Decoys: rows that could as well have been the true one, for all that can be known without having read the table.

A row is x = (x_J, x_K). J are the columns that the others, together or one alone, say least about; K the rest. A decoy takes x_J from
another row of the table that has nearly the same x_K and stands in nearly the same part of the file, and draws the last digit of those
numbers of K whose last digits are uniform over 0 … 9 anew. Given x_K the donor's x_J and the row's own are two draws from one
distribution, so that truth and decoys are exchangeable (conditional randomisation: Candès et al., JRSS B 2018; Berrett et al., JRSS B
2020). That is exact when the donors' x_K are the row's own, and as good as the match where they are near; the calibration on tables that
were never seen is part of the claim check.

Donors never come from the rows that the model is shown; those behind the row may serve, because where neighbours resemble each other a
donor from far away would be told by that alone. A decoy that is another row of the table is left out; one that is the row itself is kept
as a tie.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

from palimpsest.audit.tabular_table import Table
from palimpsest.errors import InputError

FEWEST = 9  # decoys: with fewer no row says anything at 10 %
_FITTED = 1000  # rows on which it is found out which columns the others tell
_TREES = 30
_UNIFORM = 0.05  # level of the test that last digits are uniform
_MOST_CLASSES = 50
_FEWEST_LISTED = 10  # rows


@dataclass(frozen=True)
class Decoys:
    """Makes decoys for the rows of a table.

    Attributes:
        table: the table.
        shown: rows before a row that are no donors for it, because the model is shown them.
        seed: of the last digits and of the trees.

    Example:
        >>> table = Table.parse("a,b,c\\n" + "".join(f"{i * 7 % 13},{i * 5 % 11},x\\n" for i in range(60)), name="demo")
        >>> made = Decoys(table, shown=2).of(30, 9)
        >>> len(made), any(row in table.rows and row != table.rows[30] for row in made)
        (9, False)
    """

    table: Table
    shown: int = 10
    seed: int = 0

    @cached_property
    def determined(self) -> np.ndarray:
        """For every column how well the others tell it, 0 to 1: the better of a forest on all of them and of a list of one's values."""
        matrix = filled(self.table.matrix)
        rng = np.random.default_rng((self.seed, 1))
        rows = rng.permutation(len(matrix))[:_FITTED]
        out = np.ones(matrix.shape[1])
        for j in range(matrix.shape[1]):
            y, rest = matrix[rows, j], np.delete(matrix[rows], j, axis=1)
            if np.ptp(y) > 0:
                others = [matrix[rows, i] for i in range(matrix.shape[1]) if i != j]
                out[j] = max(_told(rest, y, self.table.kinds[j] == "text", self.seed), *(_listed(y, other) for other in others))
        return out

    @cached_property
    def swapped(self) -> tuple[int, ...]:
        """The columns J: the less determined half, and more while their values tell fewer than half of the rows apart.

        Raises:
            InputError: no column varies.
        """
        varies = [j for j, column in enumerate(zip(*self.table.cells, strict=True)) if len(set(column)) > 1]
        if not varies:
            raise InputError(f"All rows of {self.table.name} are equal.", "Give a table whose rows differ.")
        order = sorted(varies, key=lambda j: (self.determined[j], j))
        count = max(1, len(order) // 2)
        while count < len(order) - 1 and len({tuple(row[j] for j in order[:count]) for row in self.table.cells}) < len(self.table) / 2:
            count += 1
        return tuple(sorted(order[:count]))

    @cached_property
    def redrawn(self) -> tuple[int, ...]:
        """The columns of K whose last digit may be drawn anew: numbers of one number of decimals with uniform last digits."""
        return tuple(j for j in range(len(self.table.columns)) if j not in self.swapped and self._has_free_digit(j))

    def _has_free_digit(self, column: int) -> bool:
        cells = [row[column] for row in self.table.cells]
        if self.table.kinds[column] != "number" or len(cells) < 100:
            return False
        forms = Counter(len(cell.strip().partition(".")[2]) for cell in cells)
        digits = [cell[-1] for cell in cells if cell and cell[-1].isdigit() and cell.isascii()]
        long = [cell for cell in cells if sum(character.isdigit() for character in cell) >= 3]
        if forms.most_common(1)[0][1] < len(cells) or len(digits) < len(cells) or len(long) < 0.95 * len(cells):
            return False
        counts = np.bincount([int(digit) for digit in digits], minlength=10)
        return bool(stats.chisquare(counts).pvalue > _UNIFORM)

    @cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        """What donors must share, (rows, columns of K + 1): numbers over their range, texts as codes, last the place in the file; and
        which of these columns are texts."""
        kept = [j for j in range(len(self.table.columns)) if j not in self.swapped]
        place = np.arange(len(self.table), dtype=np.float64)[:, None]
        matrix = np.hstack([filled(self.table.matrix[:, kept]), place])
        texts = np.array([*(self.table.kinds[j] == "text" for j in kept), False], bool)
        spans = np.where(texts, 1.0, np.maximum(np.ptp(matrix, axis=0), 1e-12))
        return matrix / spans, texts

    @cached_property
    def _real(self) -> frozenset[str]:
        return frozenset(self.table.rows)

    def of(self, row: int, count: int) -> list[str]:
        """At most `count` decoys of a row, those of the nearest donors first; fewer where the table has not more."""
        kept, texts = self._kept
        difference = np.abs(kept - kept[row])
        difference[:, texts] = difference[:, texts] > 0
        distance = difference.sum(axis=1)
        rng = np.random.default_rng((self.seed, 2, row))
        lot = rng.random(len(distance))  # equally near donors come in no order of the file
        made: list[str] = []
        for donor in np.lexsort((lot, distance)).tolist():
            if len(made) == count:
                break
            if row - self.shown <= donor <= row:
                continue
            changed = {j: self.table.cells[donor][j] for j in self.swapped}
            for j in self.redrawn:
                changed[j] = self.table.cells[row][j][:-1] + str(rng.integers(10))
            decoy = self.table.with_cells(row, changed)
            if decoy == self.table.rows[row] or decoy not in self._real:
                made.append(decoy)
        return made

    def enough(self, rows: list[int], count: int) -> int:
        """How many decoys every one of `rows` can have, at most `count`.

        Raises:
            InputError: fewer than 9.
        """
        least = min((len(self.of(row, count)) for row in rows), default=0)
        if least < FEWEST:
            raise InputError(
                f"{self.table.name} gives a row only {least} decoys; {FEWEST} are needed.", "Give a table with more varied rows."
            )
        return least


def filled(matrix: np.ndarray) -> np.ndarray:
    """Missing numbers become the column's median."""
    out = matrix.copy()
    for j in range(out.shape[1]):
        gaps = np.isnan(out[:, j])
        if gaps.any():
            out[gaps, j] = 0.0 if gaps.all() else np.median(out[~gaps, j])
    return out


def _listed(y: np.ndarray, other: np.ndarray) -> float:
    """How well another column's value tells this one's by what stands beside it in other rows, above the most common value, 0 to 1.

    Two names of one thing (a grade and its number) are told so with few rows, where a forest sees little. Rows whose value of the other
    column is their own alone say nothing.
    """
    right = told = 0
    inside = np.zeros(len(y), bool)
    for value in np.unique(other):
        group = np.flatnonzero(other == value)
        if len(group) < 2:
            continue
        counts = np.sort(np.unique(y[group], return_counts=True)[1])[::-1]
        told += len(group)
        inside[group] = True
        if counts[0] >= 2 and (len(counts) == 1 or counts[0] - 1 >= counts[1]):  # also without the row itself the most common
            right += int(counts[0])
    if told < _FEWEST_LISTED:
        return 0.0
    common = float(np.unique(y[inside], return_counts=True)[1].max() / told)
    return max(0.0, (right / told - common) / max(1 - common, 1e-12))


def _told(rest: np.ndarray, y: np.ndarray, classes: bool, seed: int) -> float:
    """Out-of-bag R² of a forest, or its accuracy above the most common class scaled to [0, 1]."""
    how = {"n_estimators": _TREES, "bootstrap": True, "oob_score": True, "random_state": seed, "min_samples_leaf": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a row that every tree has seen has no out-of-bag figure
        if classes and len(np.unique(y)) > _MOST_CLASSES:
            return 0.0  # nearly a name of its own in every row
        if classes:
            common = float(np.unique(y, return_counts=True)[1].max() / len(y))
            return max(0.0, (float(ExtraTreesClassifier(**how).fit(rest, y).oob_score_) - common) / max(1 - common, 1e-12))
        return max(0.0, float(ExtraTreesRegressor(**how).fit(rest, y).oob_score_))
