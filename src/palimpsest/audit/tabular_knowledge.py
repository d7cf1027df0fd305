"""Does the model know the table, as one may without having read it to the letter? Names, values, samples.

Bordt et al., COLM 2024 (`tabmemcheck`): feature names, feature values, dataset name and zero-knowledge samples, with blocks of other tables
that show the form of the answer. These are tests of knowledge: a model may know that iris has petals. What is held against what, ours:

* feature names against names that go on by a rule (the last number one higher, the last name again), McNemar's exact test;
* feature values: the distance of a greedy sample to the nearest real row (edit distances, summed; numbers compared as numbers) is ranked
  among that of rows that are put together from independent columns of the table;
* samples: how many are real rows to the letter, against the share of such rows put together from independent columns (exact binomial).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein
from scipy import stats

from palimpsest.audit.tabular_cells import same
from palimpsest.audit.tabular_outcome import KNOWLEDGE, not_applicable, outcome
from palimpsest.audit.tabular_prompts import MARGIN, complete, feature_text, first_line, read_features, share_missing, shots, token_counts
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement
from palimpsest.models.base import LanguageModel, Progress

TEMPERATURE = 0.7
SAMPLES, GREEDY_SAMPLES = 10, 3
_DRAWN = 20_000  # rows put together from independent columns: how often is one a real row?
_RIVALS = 99
_NAMED = 5  # rows from which the dataset's name is asked
_COMPARED = 2000  # rows that a sample is compared with


def measure_feature_names(model: LanguageModel, table: Table, *, shown: int | None = None, progress: Progress | None = None) -> Measurement:
    """Feature names: given the name of the table and its first columns, does the model name the rest, in order?

    Args:
        model: needs "text".
        table: a table whose file names its columns.
        shown: how many names are given; by default a quarter, at least one.
        progress: called with (prompts done, prompts in all).

    Returns:
        One row a column: column, answer, exact, control.

    Raises:
        InputError: `shown` leaves no name to ask for.
    """
    shown = max(1, len(table.columns) // 4) if shown is None else shown
    settings = {"shown": shown}
    if not 1 <= shown < len(table.columns):
        raise InputError(f"{shown} of {len(table.columns)} names were to be shown.", "Show at least one and leave at least one.")
    if table.header is None:
        return not_applicable("feature-names", KNOWLEDGE, model, table, "The file does not name its columns.", settings)
    blocks = [_names(known.name, known.columns) + ", ".join(known.columns) + "\n\n" for known in shots(table)]
    prompt = "".join(blocks) + _names(table.name, table.columns) + ", ".join(table.columns[:shown]) + ","
    truths = table.columns[shown:]
    tokens = int(token_counts(model, [" " + ", ".join(truths) + "\n\n"])[0]) + MARGIN
    written = [name.strip() for name in first_line(complete(model, [prompt], tokens, progress=progress)[0]).split(",")]
    answers = [*written, *[""] * len(truths)][: len(truths)]
    hits = [answer.casefold() == truth.casefold() for answer, truth in zip(answers, truths, strict=True)]
    controls = [
        truth.casefold() in (name.casefold(), _next(name).casefold())
        for name, truth in zip(table.columns[shown - 1 :], truths, strict=False)
    ]
    frame = pl.DataFrame({"column": truths, "answer": answers, "exact": hits, "control": controls})
    return outcome("feature-names", KNOWLEDGE, model, table, frame, hits=hits, control=("the name before, counted on", controls),
                   settings=settings, anywhere=sum(truth.casefold() in {w.casefold() for w in written} for truth in truths))  # fmt: skip


def _names(name: str, columns: Sequence[str]) -> str:
    return f"Dataset: {name}\nNumber of Features: {len(columns)}\nFeature Names: "


def _next(name: str) -> str:
    """A name with its last number one higher."""
    return re.sub(r"\d+(?=\D*$)", lambda match: str(int(match.group()) + 1).zfill(len(match.group())), name)


def measure_dataset_name(model: LanguageModel, table: Table, *, progress: Progress | None = None) -> Measurement:
    """Dataset name: from the beginning of the file, does the model say what it is called?

    Names are compared without case, spaces and punctuation; either may hold the other, from four characters on. No p-value: one name is
    one trial.
    """
    blocks = [_beginning(known) + known.name + "\n\n" for known in shots(table)]
    answer = complete(model, ["".join(blocks) + _beginning(table).rstrip(" ")], 16, progress=progress)[0]
    said, name = (re.sub(r"[\W_]+", "", text.casefold()) for text in (first_line(answer), table.name))
    hit = said == name or (min(len(said), len(name)) >= 4 and (said in name or name in said))
    frame = pl.DataFrame({"truth": [table.name], "answer": [first_line(answer).strip()], "exact": [hit]})
    return outcome("dataset-name", KNOWLEDGE, model, table, frame, hits=[hit], settings={"rows": _NAMED})


def _beginning(table: Table) -> str:
    lines = [*([] if table.header is None else [table.header]), *table.rows[:_NAMED]]
    return "\n".join(lines) + "\nName of this dataset: "


def sample_rows(
    model: LanguageModel, table: Table, n: int, temperature: float, *, seed: int = 0, progress: Progress | None = None
) -> tuple[list[dict[str, str]], int]:
    """Rows that the model writes when it is asked for one by the names of table and columns, and how many answers were none.

    An answer that leaves out more than half of the columns is none. The rows of other tables that show the form are drawn anew each time.
    """
    rng = np.random.default_rng((seed, 89))
    prompts = []
    for _ in range(n):
        blocks = [
            _asked(known) + " " + feature_text(known.columns, known.cells[int(rng.integers(len(known)))]) + "\n\n" for known in shots(table)
        ]
        prompts.append("".join(blocks) + _asked(table))
    longest = [" " + feature_text(table.columns, row) + "\n\n" for row in table.cells[:_COMPARED]]
    tokens = int(token_counts(model, longest).max()) + MARGIN
    answers = complete(model, prompts, tokens, temperature=temperature, seed=seed, progress=progress)
    read = [read_features(answer, table.columns) for answer in answers]
    kept = [values for values in read if share_missing(values, table.columns) <= 0.5]
    return kept, n - len(kept)


def _asked(table: Table) -> str:
    return f"Dataset: {table.name}\nFeature Names: {', '.join(table.columns)}\nRandom Sample:"


def measure_feature_values(model: LanguageModel, table: Table, *, seed: int = 0, progress: Progress | None = None) -> Measurement:
    """Feature values: how near is a greedy sample to a real row? See the module's docstring.

    Returns:
        One row a valid sample: sample, nearest (the row), distance, p_value. The p-value is that of the first sample.
    """
    kept, none = sample_rows(model, table, GREEDY_SAMPLES, 0.0, seed=seed, progress=progress)
    settings: dict[str, Any] = {"samples": GREEDY_SAMPLES, "seed": seed}
    if not kept:
        return not_applicable("feature-values", KNOWLEDGE, model, table, "No answer was a row of these columns.", settings)
    rng = np.random.default_rng((seed, 90))
    near = _Nearest(table, rng.permutation(len(table))[:_COMPARED])
    rivals = np.array([near.of(dict(zip(table.columns, row, strict=True)))[0] for row in _independent(table, _RIVALS, rng)])
    rows: list[dict[str, Any]] = []
    for values in kept:
        distance, place = near.of(values)
        rows.append({"sample": feature_text(list(values), list(values.values())), "nearest": table.rows[place], "distance": distance,
                     "p_value": (1 + int((rivals <= distance).sum())) / (_RIVALS + 1)})  # fmt: skip
    return outcome("feature-values", KNOWLEDGE, model, table, pl.DataFrame(rows), p_value=rows[0]["p_value"], settings=settings,
                   distance=rows[0]["distance"], rivals=float(np.median(rivals)), invalid=none)  # fmt: skip


def measure_samples(
    model: LanguageModel,
    table: Table,
    *,
    n: int = SAMPLES,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Zero-knowledge samples: rows that the model draws when it is asked for some. See the module's docstring.

    Returns:
        One row a valid sample: sample, exact (it is a row of the table), known (share of its cells that occur in their column).
    """
    kept, none = sample_rows(model, table, n, temperature, seed=seed, progress=progress)
    settings = {"samples": n, "temperature": temperature, "seed": seed}
    if not kept:
        return not_applicable("sampling", KNOWLEDGE, model, table, "No answer was a row of these columns.", settings)
    real = {_key(row) for row in table.cells}
    values = [{_cell(cell) for cell in column} for column in zip(*table.cells, strict=True)]
    hits, rows = [], []
    for found in kept:
        cells = [found.get(column, "") for column in table.columns]
        hits.append(_key(cells) in real)
        known = float(np.mean([_cell(cell) in column for cell, column in zip(cells, values, strict=True)]))
        rows.append({"sample": feature_text(table.columns, cells), "exact": hits[-1], "known": known})
    rng = np.random.default_rng((seed, 91))
    chance = max(1, sum(_key(row) in real for row in _independent(table, _DRAWN, rng))) / _DRAWN
    p_value = float(stats.binomtest(sum(hits), len(hits), chance, alternative="greater").pvalue)
    frame = pl.DataFrame(rows)
    return outcome("sampling", KNOWLEDGE, model, table, frame, hits=hits, p_value=p_value, settings=settings, invalid=none, chance=chance,
                   known=float(frame["known"].to_numpy().mean()), different=frame["sample"].n_unique())  # fmt: skip


def _independent(table: Table, n: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Rows whose cells are drawn from each column apart."""
    columns = list(zip(*table.cells, strict=True))
    drawn = rng.integers(len(table), size=(n, len(columns)))
    return [tuple(column[i] for column, i in zip(columns, row, strict=True)) for row in drawn.tolist()]


def _cell(text: str) -> str | float:
    """A cell that is equal to those that say the same."""
    plain = text.strip().strip('"')
    try:
        return float(plain)
    except ValueError:
        return plain


def _key(cells: Sequence[str]) -> tuple[str | float, ...]:
    return tuple(_cell(cell) for cell in cells)


class _Nearest:
    """The real row with the least distance to a sample."""

    def __init__(self, table: Table, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows
        self.levels: list[tuple[list[str], np.ndarray]] = []
        for column in zip(*(table.cells[i] for i in rows), strict=True):
            values, level = np.unique(np.array([cell.strip().strip('"') for cell in column], dtype=object).astype(str), return_inverse=True)
            self.levels.append((values.tolist(), level))

    def of(self, values: dict[str, str]) -> tuple[float, int]:
        """Its distance and number; a column that the sample leaves out costs as much as its cell is long."""
        total = np.zeros(len(self.rows))
        for column, (levels, level) in zip(self.table.columns, self.levels, strict=True):
            given = values.get(column, "").strip().strip('"')
            each = np.array([0 if same(given, known) else Levenshtein.distance(given, known) for known in levels], np.float64)
            total += each[level]
        best = int(total.argmin())
        return float(total[best]), int(self.rows[best])
