"""What a model is asked about a table, and how its answers are read.

Doors of this library complete text, so prompts are those for base models: rows of the file, or blocks that show the form of the answer on
other tables. These come with scikit-learn (iris, wine, diabetes, breast cancer), need no network, and are left out when they hold rows of
the table that is tested. All prompts of a test go to the door in one call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn import datasets

from palimpsest.audit.tabular_cells import missing
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.models.base import LanguageModel, Progress

SHOWN = 10  # rows before the one that is asked for
MARGIN = 3  # tokens behind the longest true answer: its end must be seen
_FENCE = re.compile(r"^\s*```[^\n]*\n?", re.MULTILINE)
_LIKE = 5  # rows of a shown table that are looked for in the tested one


def complete(
    model: LanguageModel,
    prompts: Sequence[str],
    tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """What the model writes behind every prompt, at most `tokens` tokens; code fences are taken off.

    Raises:
        CapabilityError, ContextOverflowError, NonFiniteError: as `LanguageModel.generate` says.
    """
    model.require("text", "Asking for a table")
    rows = [np.asarray(ids, np.int64) for ids in model.tokenizer.encode_batch(prompts)]
    found = model.generate(rows, tokens, temperature=temperature, seed=seed, progress=progress)
    answers = []
    for ids, outputs in zip(rows, found, strict=True):
        shown = model.tokenizer.decode(ids)
        answers.append(_FENCE.sub("", model.tokenizer.decode([*ids.tolist(), *outputs[0].tolist()])[len(shown) :]))
    return answers


def token_counts(model: LanguageModel, texts: Sequence[str]) -> np.ndarray:
    """Tokens of every text, int64 (texts,)."""
    return np.array([len(ids) for ids in model.tokenizer.encode_batch(list(texts))], np.int64)


def first_line(answer: str) -> str:
    """The first line of an answer that is not empty; lines end as those of tables do.

    Example:
        >>> first_line("\\r\\n1,2\\r3,4\\r")
        '1,2'
    """
    return next((line for line in re.split(r"[\r\n]", answer) if line.strip()), "")


def is_row(answer: str, truth: str) -> bool:
    """Whether an answer is the row `truth` to the letter and nothing more: a longer row that begins with it is another row.

    Example:
        >>> is_row("\\n5.1,3.5\\n4.9,3.0", "5.1,3.5"), is_row("5.1,3.55", "5.1,3.5")
        (True, False)
    """
    written = answer.lstrip("\r\n")
    return written.startswith(truth) and written[len(truth) :][:1] in ("", "\n", "\r")


@dataclass(frozen=True)
class RowQueries:
    """Rows of a table that a model is asked for, each behind the rows that stand before it in the file.

    Attributes:
        table: the table.
        shown: how many rows are shown.
        rows: numbers of the rows that are asked for.
        excluded: rows that cannot be asked for because the same text stands elsewhere in the file: knowing it would prove nothing.
    """

    table: Table
    shown: int
    rows: tuple[int, ...]
    excluded: int

    @classmethod
    def draw(cls, table: Table, n: int, shown: int = SHOWN, seed: int = 0) -> RowQueries:
        """At most `n` rows of those that can be asked for, drawn at random.

        Raises:
            InputError: n or shown below 1, or no row can be asked for.
        """
        if n < 1 or shown < 1:
            raise InputError(f"{n} rows were to be asked for behind {shown} others.", "Give at least 1 of each.")
        values, counts = np.unique(np.array(table.rows, dtype=object).astype(str), return_counts=True)
        twice = set(values[counts > 1].tolist())
        fit = [row for row in range(shown, len(table)) if table.rows[row] not in twice]
        if not fit:
            raise InputError(
                f"No row of {table.name} can be asked for: {len(table)} rows, of which {shown} are shown, and the others occur twice.",
                "Give more rows, or show fewer.",
            )
        chosen = np.random.default_rng((seed, 84)).permutation(np.array(fit))[:n]
        return cls(table, shown, tuple(chosen.tolist()), len(table) - shown - len(fit))

    @property
    def prompts(self) -> list[str]:
        """The shown rows of every query, without the newline behind the last."""
        return [self.table.newline.join(self.table.rows[row - self.shown : row]) for row in self.rows]

    @property
    def truths(self) -> list[str]:
        """The rows that are asked for."""
        return [self.table.rows[row] for row in self.rows]


def fitting_rows(model: LanguageModel, table: Table, most: int = SHOWN, behind: int = 2) -> int:
    """How many rows a model can be shown, at most `most`, with room for `behind` times the longest row.

    Raises:
        ContextOverflowError: not even one.
    """
    lengths = token_counts(model, [row + table.newline for row in table.rows])
    sums = np.concatenate([[0], np.cumsum(lengths)])
    room = model.room - behind * int(lengths.max()) - MARGIN - 1
    for shown in range(min(most, len(table) - 1), 0, -1):
        if int((sums[shown:] - sums[:-shown]).max()) <= room:
            return shown
    raise ContextOverflowError(
        f"A row of {table.name} has up to {lengths.max()} tokens, but {model.name} sees only {model.room} at once.",
        "Leave out columns, or take a model with a longer context.",
    )


@cache
def known_tables() -> tuple[Table, ...]:
    """The tables that show the form of an answer, in the order in which they are used."""
    tables = []
    loads = (
        ("iris", datasets.load_iris, "species", 4),
        ("wine", datasets.load_wine, "cultivar", 13),
        ("breast-cancer-wisconsin", datasets.load_breast_cancer, "diagnosis", 10),
    )
    for name, load, target, width in loads:
        found = load()
        columns = [str(column).replace(" (cm)", "").replace(" ", "_").replace("/", "_") for column in found.feature_names[:width]]
        cells = [
            [*(f"{value:.6g}" for value in row[:width]), str(found.target_names[label])]
            for row, label in zip(found.data.tolist(), found.target.tolist(), strict=True)
        ]
        tables.append(Table.of(name, [*columns, target], cells))
    found = datasets.load_diabetes(scaled=False)
    cells = [[f"{value:.6g}" for value in (*row, label)] for row, label in zip(found.data.tolist(), found.target.tolist(), strict=True)]
    tables.append(Table.of("diabetes-progression", [*found.feature_names, "progression"], cells))
    return tuple(tables)


def shots(table: Table) -> list[Table]:
    """The known tables that are not the tested one: none of their first rows has all its numbers in one row of `table`."""
    seen = [_numbers(row) for row in table.cells]
    return [known for known in known_tables() if not any(_numbers(row) <= other for row in known.cells[:_LIKE] for other in seen)]


def _numbers(row: Sequence[str]) -> frozenset[float]:
    values = set()
    for cell in row:
        try:
            values.add(float(cell))
        except ValueError:
            continue
    return frozenset(values)


def feature_text(columns: Sequence[str], cells: Sequence[str]) -> str:
    """A row as "name = value, name = value".

    Example:
        >>> feature_text(["a", "b"], ["1", " x"])
        'a = 1, b = x'
    """
    return ", ".join(f"{column} = {cell.strip()}" for column, cell in zip(columns, cells, strict=True))


def read_features(answer: str, columns: Sequence[str]) -> dict[str, str]:
    """The values that an answer of the form of `feature_text` gives; a column that is not named, or named twice at first, is missing.

    A name counts where it stands at the beginning or behind a comma, so that "age" is not found inside "mileage".

    Example:
        >>> read_features("mileage = 7, age = 31, sex = ?", ["age", "sex", "mileage"])
        {'mileage': '7', 'age': '31', 'sex': '?'}
    """
    text = next((block for block in answer.split("\n") if " = " in block), "")
    longest_first = sorted(columns, key=len, reverse=True)
    mark = re.compile(r"(?:^|,)\s*(" + "|".join(re.escape(column) for column in longest_first) + r") = ")
    found = list(mark.finditer(text))
    out: dict[str, str] = {}
    ends = [*(after.start() for after in found[1:]), len(text)]
    for here, end in zip(found, ends[: len(found)], strict=True):
        value = text[here.end() : end].strip().rstrip(",").strip()
        out.setdefault(here.group(1), value)
    return out


def share_missing(values: dict[str, str], columns: Sequence[str]) -> float:
    """Share of columns that an answer does not give."""
    return sum(missing(values.get(column, "")) for column in columns) / len(columns)
