"""The contextual layer: how well is what stands in the prompt found, depending on where it stands and how long the prompt is?

`measure_positions` asks for needles in contexts of exact length (`palimpsest.evaluation.haystack`). Its control is the same context without
the needle: what is right there was guessed, or was known before.

* **Mid-sequence drop**: MSD = ½ (Acc[first 10 %] + Acc[last 10 %]) − Acc[40–60 %] of the depths, with a bootstrap over needles, which
  stand at all depths (Liu et al., *Lost in the Middle*, TACL 2024, arXiv 2307.03172, for the phenomenon; the figure is ours).
* **U-contrast**: Σ_j c_j y_j with the quadratic orthogonal polynomial c over the depths, one number a needle, tested by flipping signs:
  positive when both ends are better than the middle.
* **Effective length**: the greatest length whose accuracy is at least 0.85 of that at the shortest, all shorter ones included. The share
  is declared, not tuned (after Hsieh et al., RULER, arXiv 2404.06654).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.evaluation.answers import is_right
from palimpsest.evaluation.haystack import Haystack, Recipe
from palimpsest.measurement import Curve, Measurement, Series, environment, plain
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress
from palimpsest.stats import Comparison, Interval, bootstrap_interval, paired_permutation, wilson_interval

RETAINED = 0.85  # of the accuracy at the shortest length


@dataclass(frozen=True)
class Needle:
    """What is hidden and how it is asked for.

    Attributes:
        id: its name.
        text: the sentence that is hidden, with the space behind it.
        question: what stands behind the context.
        golds: accepted forms of the answer.
    """

    id: str
    text: str
    question: str
    golds: tuple[str, ...]


def measure_positions(
    model: LanguageModel,
    haystack: Haystack,
    needles: Sequence[Needle],
    lengths: Sequence[int],
    depths: Sequence[float] = tuple(np.linspace(0, 1, 11)),
    *,
    before: str = "",
    answer_tokens: int = 16,
    stop: str = "\n",
    rule: str = "contains",
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Asks for every needle at every depth and length, and once a length without it.

    Args:
        model: needs "text".
        haystack: of the model's tokenizer.
        needles: at least 2, with distinct ids.
        lengths: tokens of the whole prompt.
        depths: shares of the filler.
        before: what stands in front of the context.
        answer_tokens: the most tokens of an answer; it ends at `stop`.
        rule: when an answer is right, see `palimpsest.evaluation.answers`.
        seed: of the filler; every needle and length has filler of its own.
        progress: called with (prompts done, prompts in all).

    Returns:
        One row a needle, length and depth, and one without depth for the control: id, length, depth, reached, answer, right, and the
        seed of the filler. The summary has the accuracy by length and depth, the control, the gain over it (mean over depths), MSD,
        U-contrast (both None where the depths do not allow them), and the effective length.

    Raises:
        InputError: fewer than 2 needles, no lengths, unordered depths, or filler that holds an answer.
        ContextOverflowError: a prompt with its answer does not fit the model.

    Example:
        >>> m = measure_positions(model, haystack, needles, lengths=[512, 1024])   # doctest: +SKIP
        >>> m.summary["by_length"][0]["drop"]["estimate"]                          # doctest: +SKIP
    """
    model.require("text", "Answering from the context")
    model.tokenizer.require_same(haystack.tokenizer.fingerprint, "the haystack")
    grid = [float(depth) for depth in depths]
    if len({needle.id for needle in needles}) < max(2, len(needles)) or not lengths or not grid or grid != sorted(set(grid)):
        raise InputError(
            f"{len(needles)} needles, lengths {list(lengths)}, depths {grid}.",
            "Give 2 needles with distinct ids, lengths, ascending depths.",
        )
    if max(lengths) + answer_tokens > model.room:
        raise ContextOverflowError(
            f"A prompt of {max(lengths)} tokens with an answer of {answer_tokens} does not fit the {model.room} tokens of {model.name!r}.",
            "Ask for shorter contexts.",
        )
    rows: list[dict[str, Any]] = []
    prompts = []
    for length in sorted(set(lengths)):
        for number, needle in enumerate(needles):
            own = seed * 1_000_003 + length * 1009 + number
            for depth in (None, *grid):
                texts, places = ((), ()) if depth is None else ((needle.text,), (depth,))
                recipe = Recipe(texts, places, length, before, needle.question, own)
                context = haystack.make(recipe, forbidden=needle.golds)
                reached = context.depths[0] if context.depths else None
                rows.append({"id": needle.id, "length": length, "depth": depth, "reached": reached, "filler_seed": own})
                prompts.append(context.ids)
    golds = {needle.id: needle.golds for needle in needles}
    written = model.generate(prompts, answer_tokens, progress=progress)
    for row, continuations in zip(rows, written, strict=True):
        answer = model.tokenizer.decode(continuations[0]).lstrip().split(stop, 1)[0].strip()
        row |= {"answer": answer, "right": is_right(answer, golds[row["id"]], rule)}
    table = pl.DataFrame(rows, infer_schema_length=None)
    summary = position_summary(table, seed=seed)
    provenance = {
        "model": model.describe(),
        "needles": [needle.id for needle in needles],
        "lengths": sorted(set(lengths)),
        "depths": grid,
        "rule": rule,
        "decoding": "greedy",
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("positions", table, summary, provenance, {"positions": position_curve(table)})


def position_summary(table: pl.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """The figures of a table of `measure_positions`, as plain JSON types."""
    by_length = []
    for (length,), rows in table.group_by("length", maintain_order=True):
        _, depths, right = outcomes(rows)
        control = rows.filter(pl.col("depth").is_null()).sort("id")["right"].to_numpy()
        at_all = np.asarray(right.all(axis=1))
        by_length.append(
            {
                "length": length,
                "accuracy": bootstrap_interval(right.mean(axis=1), seed=seed)._asdict(),
                "by_depth": [
                    {"depth": float(depth), **wilson_interval(int(column.sum()), len(column))._asdict(), "n": len(column)}
                    for depth, column in zip(depths, right.T, strict=True)
                ],
                "worst_depth": float(depths[right.mean(axis=0).argmin()]),
                "all_depths": wilson_interval(int(at_all.sum()), len(at_all))._asdict(),
                "control": wilson_interval(int(control.sum()), len(control))._asdict(),
                "gain": bootstrap_interval(right.mean(axis=1) - control, seed=seed)._asdict(),
                "drop": _or_none(mid_sequence_drop, depths, right, seed),
                "u_contrast": _or_none(u_contrast, depths, right, seed),
            }
        )
    accuracy = {row["length"]: row["accuracy"]["estimate"] for row in by_length}
    return dict(plain({"by_length": by_length, "effective_length": effective_length(accuracy), "retained": RETAINED}))


def outcomes(rows: pl.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Needles, depths (d,) and right bool (needles, d) of the rows of one length."""
    wide = rows.filter(pl.col("depth").is_not_null()).sort("id", "depth")
    depths = wide["depth"].unique().sort().to_numpy()
    names = wide["id"].unique(maintain_order=True).to_list()
    return names, depths, wide["right"].to_numpy().reshape(len(names), len(depths))


def mid_sequence_drop(depths: np.ndarray, right: np.ndarray, *, seed: int = 0) -> Interval:
    """How much worse the middle is than the two ends, with a bootstrap over needles.

    Args:
        depths: (d,) ascending.
        right: (needles, d) outcomes.
        seed: of the bootstrap.

    Raises:
        InputError: no depth in the first or last 10 %, or none in 40 to 60 %; fewer than 2 needles.

    Example:
        >>> mid_sequence_drop(np.array([0.0, 0.5, 1.0]), np.array([[1, 0, 1], [1, 0, 0]])).estimate
        0.75
    """
    first, last, middle = depths <= 0.1, depths >= 0.9, (depths >= 0.4) & (depths <= 0.6)
    if not first.any() or not last.any() or not middle.any():
        raise InputError(
            f"The depths {depths.tolist()} lack an end or the middle.", "Give depths up to 0.1, from 0.9, and from 0.4 to 0.6."
        )
    values = np.asarray(right, dtype=np.float64)
    drops = (values[:, first].mean(axis=1) + values[:, last].mean(axis=1)) / 2 - values[:, middle].mean(axis=1)
    return bootstrap_interval(drops, seed=seed)


def u_contrast(depths: np.ndarray, right: np.ndarray, *, seed: int = 0) -> Comparison:
    """Whether accuracy is U-shaped over depth: the quadratic orthogonal-polynomial contrast, a number a needle, against 0.

    The contrast has unit length and no part that is constant or linear in depth; its sign is positive for a U.

    Raises:
        InputError: fewer than 3 depths or 2 needles.

    Example:
        >>> u_contrast(np.array([0.0, 0.5, 1.0]), np.array([[1, 0, 1]] * 8)).difference.estimate > 0
        True
    """
    if len(depths) < 3:
        raise InputError(f"There are {len(depths)} depths.", "A quadratic contrast takes at least 3.")
    basis, _ = np.linalg.qr(np.vander(depths, 3, increasing=True))
    contrast = basis[:, 2] * np.sign(basis[0, 2])
    values = np.asarray(right, dtype=np.float64) @ contrast
    values[np.abs(values) < 1e-9] = 0.0  # rounding has a sign, and signs are what is tested
    return paired_permutation(np.zeros(len(values)), values, seed=seed)


def effective_length(accuracy: dict[int, float]) -> int | None:
    """The greatest length up to which accuracy stays at or above 0.85 of that at the shortest; None when that is 0.

    Example:
        >>> effective_length({256: 0.8, 512: 0.75, 1024: 0.5})
        512
    """
    lengths = sorted(accuracy)
    if accuracy[lengths[0]] == 0:
        return None
    reached = lengths[0]
    for length in lengths[1:]:
        if accuracy[length] < RETAINED * accuracy[lengths[0]]:
            break
        reached = length
    return reached


def position_curve(table: pl.DataFrame) -> Curve:
    """Accuracy by depth, a series a length, with Wilson intervals; the control as a dashed line."""
    series = []
    for (length,), rows in table.group_by("length", maintain_order=True):
        _, depths, right = outcomes(rows)
        points: list[dict[str, float | int | None]] = []
        for depth, column in zip(depths, right.T, strict=True):
            rate = wilson_interval(int(column.sum()), len(column))
            points.append({"x": float(depth), "y": rate.estimate, "low": rate.low, "high": rate.high, "n": len(column)})
        series.append(Series(f"{length} tokens", points))
    control = table.filter(pl.col("depth").is_null())["right"].to_numpy()
    guessed = float(control.mean())
    ends: list[dict[str, float | int | None]] = [{"x": x, "y": guessed, "low": None, "high": None, "n": len(control)} for x in (0.0, 1.0)]
    series.append(Series("without the needle", ends, "dashed"))
    caption = "Share of needles that are found, by where they stand in the context; 95 % Wilson intervals."
    return Curve("positions", "What stands in the middle is found less often", "depth in the context", "needles found", series,
                 x_format="percent", y_domain=(0, 1), y_format="percent", caption=caption)  # fmt: skip


def _or_none(figure: Any, depths: np.ndarray, right: np.ndarray, seed: int) -> dict[str, Any] | None:
    """A figure that the depths may not allow."""
    try:
        value = figure(depths, right, seed=seed)
    except InputError:
        return None
    return value._asdict() if isinstance(value, Interval) else value.to_dict()
