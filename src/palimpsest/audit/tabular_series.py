"""Does a model know how a time series went on? One column of numbers in the order of time.

Bordt et al., COLM 2024, ask for the next value of well-known series, and compare years that a model may have read of with years that it
cannot. Here the next value is asked for at many places of one series, behind the values before it, and compared with what can be told from
these alone: the last value, and the last value and the mean step. Exact values are compared by McNemar's exact test, relative errors by
Wilcoxon's signed ranks, both one-sided against the better control. Answers that are no number are counted, and are not errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy import stats

from palimpsest.audit.tabular_cells import number, same
from palimpsest.audit.tabular_outcome import MEMORY, outcome
from palimpsest.audit.tabular_prompts import MARGIN, complete, first_line, token_counts
from palimpsest.audit.tabular_table import Table, require_column
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement
from palimpsest.models.base import LanguageModel, Progress

CONTROLS = ("last value", "last value and mean step")


def measure_time_series(
    model: LanguageModel, table: Table, column: str, *, n: int = 25, shown: int = 20, seed: int = 0, progress: Progress | None = None
) -> Measurement:
    """Asks for the next value of a column at `n` places drawn at random; see the module's docstring.

    Args:
        model: needs "text".
        table: its rows are in the order of time.
        column: a column of numbers without gaps.
        n, shown: places asked for, and values shown before each.
        seed: of the places.
        progress: called with (places done, places in all).

    Returns:
        One row a place: row, truth, answer, value (None where the answer is no number), exact, control (exact), error and control_error
        (relative to the truth, or absolute where that is 0). The summary holds `error_p_value`, `error`, `control_error` (medians) and
        `unparsed`.

    Raises:
        InputError: a column that is not of numbers or has gaps, or too few rows.
    """
    place = require_column(table, column)
    cells = [row[place].strip() for row in table.cells]
    values = [number(cell) for cell in cells]
    gaps = sum(value is None for value in values)
    if gaps:
        raise InputError(f"The column {column!r} has {gaps} cells that are no numbers.", "Give a series without gaps.")
    if n < 1 or shown < 2 or len(cells) <= shown:
        raise InputError(f"{n} places behind {shown} of {len(cells)} values were asked for.", "Show at least 2 values, and leave some.")
    series = np.array(values, np.float64)
    places = (shown + np.random.default_rng((seed, 95)).permutation(len(cells) - shown)[:n]).tolist()
    truths = [cells[i] for i in places]
    tokens = int(token_counts(model, [f"\n{truth}\n" for truth in truths]).max()) + MARGIN
    answers = [
        first_line(text).strip() for text in complete(model, ["\n".join(cells[i - shown : i]) for i in places], tokens, progress=progress)
    ]
    given = [number(answer) for answer in answers]
    hits = [same(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    guesses = {
        CONTROLS[0]: series[np.array(places) - 1],
        CONTROLS[1]: np.array([series[i - 1] + np.diff(series[i - shown : i]).mean() for i in places]),
    }
    errors = {name: _errors(guess, series[places]) for name, guess in guesses.items()}
    best = min(CONTROLS, key=lambda name: float(np.median(errors[name])))
    control = [bool(guess == series[i]) for guess, i in zip(guesses[best], places, strict=True)]
    read = [i for i, value in enumerate(given) if value is not None]
    own = _errors(np.array([given[i] for i in read], np.float64), series[[places[i] for i in read]])
    gain = errors[best][read] - own
    frame = pl.DataFrame(
        {
            "row": places,
            "truth": truths,
            "answer": answers,
            "value": given,
            "exact": hits,
            "control": control,
            "error": _spread(own, read, len(places)),
            "control_error": errors[best],
        },
        schema_overrides={"value": pl.Float64, "error": pl.Float64},
    )
    p_value = float(stats.wilcoxon(gain, alternative="greater").pvalue) if np.any(gain) else 1.0
    figures = {"error": float(np.median(own)) if read else None, "control_error": float(np.median(errors[best]))}
    return outcome("time-series", MEMORY, model, table, frame, hits=hits, control=(best, control), error_p_value=p_value, **figures,
                   unparsed=len(places) - len(read), settings={"column": column, "shown": shown, "seed": seed})  # fmt: skip


def _errors(guesses: Sequence[float] | np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Differences as shares of the truth; as they are where that is 0."""
    difference = np.abs(np.asarray(guesses, np.float64) - truths)
    return difference / np.where(truths == 0, 1.0, np.abs(truths))


def _spread(values: np.ndarray, places: Sequence[int], n: int) -> list[float | None]:
    out: list[float | None] = [None] * n
    for place, value in zip(places, values.tolist(), strict=True):
        out[place] = value
    return out
