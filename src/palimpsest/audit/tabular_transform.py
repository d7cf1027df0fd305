"""The same table, further and further from the text that a model may have read.

Bordt et al., COLM 2024, section 4: what a model can do with a table that it has read, it can do less of, the less the table looks like it.

* original: the table, the target last;
* perturbed: numbers moved a little (by default one unit of their last digit, up or down), the target untouched; every value stays between
  the least and the greatest of its column, and frozen values stay as they are;
* task: perturbed, then rounded or noised, columns renamed and categories recoded (by default: one digit fewer, names in plain words);
* statistical: no names (X1, X2, …, Y), categories as numbers in random order, numbers standardised, times −3.33, with noise, two decimals.

What is done to which column can be given as YAML in the form that `tabmemcheck` uses (`target`, `perturbations`, `transform`, `rename`,
`recode`); of its types those that are general are known: integer, swap, round, add_normal_noise_and_round, scale and astype.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from palimpsest.audit.tabular_cells import missing
from palimpsest.audit.tabular_table import Table, require_column
from palimpsest.errors import InputError

VERSIONS = ("original", "perturbed", "task", "statistical")
TYPES = ("integer", "swap", "round", "add_normal_noise_and_round", "scale", "astype")
_FACTOR, _NOISE = -3.33, 0.05
_CLASSES = 10  # a target of so many values is a class, also when they are numbers


@dataclass(frozen=True)
class Change:
    """What is done to a column of numbers.

    Attributes:
        column: which.
        type: "integer" (a whole number from −size … size but 0, times scale), "swap" (the next value of the column up or down), "round" (to
            `decimals`), "add_normal_noise_and_round" (`noise_std`, `digits`), "scale" (`factor`) or "astype" (to whole numbers).
        options: the numbers of that type, and "frozen_values".

    Raises:
        InputError: an unknown type.
    """

    column: str
    type: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise InputError(f"{self.type!r} is no change of a column ({self.column!r}).", f"Choose one of {', '.join(TYPES)}.")


@dataclass(frozen=True)
class Transform:
    """What makes the versions of a table; see the module's docstring.

    Attributes:
        target: the column that is to be predicted; None: the last.
        perturb, task: changes of the perturbed version, and those that the task version adds.
        rename: old name -> new name; recode: column -> (old value -> new value); both of the task version.

    Example:
        >>> table = Table.parse("a,b\\n" + "".join(f"{i},{i % 2}\\n" for i in range(12)), name="demo")
        >>> Transform.automatic(table).version(table, "statistical").columns
        ('X1', 'Y')
    """

    target: str | None = None
    perturb: tuple[Change, ...] = ()
    task: tuple[Change, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    recode: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Transform:
        """Reads a YAML file.

        Raises:
            InputError: no such file, not YAML, or entries that mean nothing here.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(
                f"{path} cannot be read as YAML: {error}.", "Give a file with target, perturbations, transform, rename."
            ) from error
        known = {"target", "perturbations", "transform", "rename", "recode"}
        if not isinstance(data, dict) or not set(data) <= known:
            wrong = sorted(set(data) - known) if isinstance(data, dict) else [type(data).__name__]
            raise InputError(f"{path} holds {', '.join(map(str, wrong))}.", f"Known are {', '.join(sorted(known))}.")
        recode = {column: {str(old): str(new) for old, new in pairs.items()} for column, pairs in (data.get("recode") or {}).items()}
        return cls(
            data.get("target"), _changes(data.get("perturbations")), _changes(data.get("transform")), data.get("rename") or {}, recode
        )

    @classmethod
    def automatic(cls, table: Table, target: str | None = None) -> Transform:
        """The default for a table: one unit of the last digit, then one digit fewer, names in plain words."""
        last = table.columns[require_column(table, target)] if target is not None else table.columns[-1]
        perturb, task = [], []
        for j, column in enumerate(table.columns):
            if column == last or table.kinds[j] != "number":
                continue
            decimals = _usual_decimals([row[j] for row in table.cells])
            perturb.append(Change(column, "integer", {"size": 1, "scale": 10.0**-decimals, "frozen_values": [0]}))
            if decimals > 1:
                task.append(Change(column, "round", {"decimals": decimals - 1}))
        rename = {column: column.replace("_", " ").replace(".", " ").strip().capitalize() for column in table.columns}
        if len(set(rename.values())) < len(rename):
            rename = {}
        return cls(last, tuple(perturb), tuple(task), rename)

    def version(self, table: Table, which: str, seed: int = 0) -> Table:
        """One of `VERSIONS` of a table.

        Raises:
            InputError: an unknown version, or a column that the table does not have.
        """
        if which not in VERSIONS:
            raise InputError(f"There is no version {which!r}.", f"Choose one of {', '.join(VERSIONS)}.")
        target = require_column(table, self.target) if self.target is not None else len(table.columns) - 1
        order = [*(j for j in range(len(table.columns)) if j != target), target]
        names = [table.columns[j] for j in order]
        columns = [[row[j].strip() for row in table.cells] for j in order]
        rng = np.random.default_rng((seed, 92))
        if which != "original":
            self._apply(table, self.perturb, names, columns, rng)
        if which in ("task", "statistical"):
            self._apply(table, self.task, names, columns, rng)
        if which == "task":
            for column, pairs in self.recode.items():
                place = names.index(table.columns[require_column(table, column)])
                columns[place] = [pairs.get(cell, cell) for cell in columns[place]]
            names = [self.rename.get(name, name) for name in names]
        if which == "statistical":
            kinds = [table.kinds[j] for j in order]
            kinds[-1] = "text" if len(set(columns[-1])) <= _CLASSES else kinds[-1]
            columns = [_statistical(column, kind, rng) for column, kind in zip(columns, kinds, strict=True)]
            names = [*(f"X{i + 1}" for i in range(len(names) - 1)), "Y"]
        return Table.of(table.name, names, list(zip(*columns, strict=True)), like=table)

    def _apply(self, table: Table, changes: Sequence[Change], names: list[str], columns: list[list[str]], rng: np.random.Generator) -> None:
        target = self.target if self.target is not None else table.columns[-1]
        for change in changes:
            j = require_column(table, change.column)
            if table.kinds[j] != "number":
                raise InputError(f"{change.column!r} is not a column of numbers.", f"A change of type {change.type!r} needs one.")
            if change.column == target and change.type in ("integer", "swap"):
                raise InputError(f"{change.column!r} is the target.", "It must not be perturbed: leave it out.")
            place = names.index(change.column)
            columns[place] = _changed(columns[place], change, rng)


def perturbed(table: Table, seed: int = 0) -> Table:
    """A twin of the table: every number one unit of its last digit off, within the range of its column; texts and the last column stay.

    Example:
        >>> table = Table.parse("a,b\\n" + "".join(f"{i},x\\n" for i in range(12)), name="demo")
        >>> twin = perturbed(table)
        >>> twin.columns, any(a == b for a, b in zip(table.rows, twin.rows))
        (('a', 'b'), False)
    """
    rng = np.random.default_rng((seed, 93))
    columns = [[row[j] for row in table.cells] for j in range(len(table.columns))]
    for j, kind in enumerate(table.kinds[:-1]):
        if kind == "number":
            scale = 10.0 ** -_usual_decimals(columns[j])
            columns[j] = _changed(columns[j], Change(table.columns[j], "integer", {"size": 1, "scale": scale}), rng)
    return Table.of(table.name, table.columns, list(zip(*columns, strict=True)), like=table)


def _changes(entries: Any) -> tuple[Change, ...]:
    found = []
    for entry in entries or ():
        if not isinstance(entry, dict) or "name" not in entry or "type" not in entry:
            raise InputError(f"{entry!r} is no change of a column.", "Give name and type.")
        options = {key: value for key, value in entry.items() if key not in ("name", "type")}
        names = entry["name"] if isinstance(entry["name"], list) else [entry["name"]]
        found += [Change(str(name), str(entry["type"]), options) for name in names]
    return tuple(found)


def _changed(cells: list[str], change: Change, rng: np.random.Generator) -> list[str]:
    """The cells of a column of numbers after a change; missing and frozen ones keep their text."""
    options = change.options
    frozen = {float(value) for value in options.get("frozen_values", ())}
    moved = [i for i, cell in enumerate(cells) if not missing(cell) and float(cell) not in frozen]
    numbers = [float(cell) for cell in cells if not missing(cell)]
    if not moved:
        return cells
    values = np.array([float(cells[i]) for i in moved])
    decimals = [_decimals([cells[i]]) for i in moved]
    if change.type == "integer":
        size, scale = int(options.get("size", 1)), float(options.get("scale", 1))
        steps = np.concatenate([np.arange(-size, 0), np.arange(1, size + 1)])
        shifted = values + scale * rng.choice(steps, len(values))
        mirrored = 2 * values - shifted  # at the ends of the range the other way, so that (nearly) every value moves
        inside = (shifted >= min(numbers) - 1e-9) & (shifted <= max(numbers) + 1e-9)
        values = np.clip(np.where(inside, shifted, mirrored), min(numbers), max(numbers))
        decimals = [max(own, _decimals([f"{scale:.10f}".rstrip("0")])) for own in decimals]
    elif change.type == "swap":
        levels = np.unique(numbers)
        place = np.searchsorted(levels, values) + rng.choice([-1, 1], len(values))
        place = np.where(place < 0, min(1, len(levels) - 1), np.where(place >= len(levels), max(0, len(levels) - 2), place))
        values = levels[place]
    elif change.type == "round":
        decimals = [min(own, int(options.get("decimals", 0))) for own in decimals]
    elif change.type == "add_normal_noise_and_round":
        values = np.clip(values + rng.normal(0, float(options.get("noise_std", 0.02)), len(values)), min(numbers), max(numbers))
        decimals = [int(options.get("digits", 2))] * len(values)
    elif change.type == "scale":
        values = values * float(options.get("factor", 1.0))
        decimals = [_decimals([f"{value:.6g}"]) for value in values]
    else:
        decimals = [0] * len(values)
    out = list(cells)
    for i, value, places in zip(moved, values.tolist(), decimals, strict=True):
        text = f"{value:.{places}f}"
        own = cells[i].strip()
        if own.startswith(".") and text.startswith("0."):
            text = text[1:]  # a file that writes .28 goes on to do so
        out[i] = cells[i].replace(own, text)
    return out


def _decimals(cells: Sequence[str]) -> int:
    """The most decimals that any of these numbers is written with; an exponent counts for none."""
    return max((len(cell.strip().partition(".")[2]) for cell in cells if not missing(cell) and "e" not in cell.lower()), default=0)


def _usual_decimals(cells: Sequence[str]) -> int:
    """The number of decimals that says something in most cells: "52.0" has none."""
    lengths = [len(cell.strip().partition(".")[2].rstrip("0")) for cell in cells if not missing(cell) and "e" not in cell.lower()]
    return Counter(lengths).most_common(1)[0][0] if lengths else 0


def _statistical(column: list[str], kind: str, rng: np.random.Generator) -> list[str]:
    if kind == "text":
        levels = sorted(set(column))
        number = dict(zip(levels, rng.permutation(len(levels)).tolist(), strict=True))
        return [str(number[cell]) for cell in column]
    given = [i for i, cell in enumerate(column) if not missing(cell)]
    values = np.array([float(column[i]) for i in given])
    spread = float(values.std()) or 1.0
    scaled = _FACTOR * (values - values.mean()) / spread + _NOISE * rng.normal(size=len(values))
    out = list(column)
    for i, value in zip(given, scaled.tolist(), strict=True):
        out[i] = f"{value:.2f}"
    return out
