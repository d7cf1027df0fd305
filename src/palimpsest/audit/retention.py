"""Recognition, recall and retention of few-shot memories: what one to three exposures leave in a model, and how it fades.

Orhan, 2023, arXiv 2303.17557. Texts are studied by plain training, one exposure an epoch. Afterwards

* *recognition* is a choice between a seen text and its foil: right when the seen one has the lower mean loss per token. Equal losses, as
  those of equal texts, count half;
* *recall* gives the first ⌊n/2⌋ of a text's n tokens and lets the model write the other n − ⌊n/2⌋ greedily; ROUGE-1, -2 and -L of the whole
  string, as in the paper's repository (`full`), and of the continuation alone (`cont`), which is what the cue does not give away;
* *retention* trains on with other texts and asks again after 0, 1, 3, 10, 30, … updates, and `forgetting_curve` fits what is left.

Before the study the same questions are asked once: recognition of word lists or gibberish against text begins near 0, not at 0.5, and
ROUGE of a continuation not at 0. Losses are of the tokens after the first. Retention begins with a fresh optimizer, as in the paper, unless
`keep_optimizer`. Beside the paper's order, in which every exposure is an epoch, `massed` (ours) shows a batch its exposures in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import curve_fit

from palimpsest.audit.cued_recall import require_room
from palimpsest.audit.cued_recall import study as train
from palimpsest.audit.retention_probes import SCORES, AfterUpdates, Learning, batches_of, config_of, recall, recognition, study
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models.hf import HFModel
from palimpsest.stats import Interval, bootstrap_interval, rate_interval

GRID = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def retain(
    model: HFModel,
    seen: Sequence[str],
    foils: Sequence[str],
    stream: Sequence[str],
    *,
    exposures: int = 3,
    updates: int = 60,
    checkpoints: Sequence[int] = GRID,
    learning: Learning | None = None,
    keep_optimizer: bool = False,
) -> Measurement:
    """Studies, asks after each exposure, goes on with other texts, and asks at the checkpoints.

    Args:
        model: what begins; stays as it is.
        seen, foils: pairs; the seen ones are studied.
        stream: other texts, gone through in epochs when there are fewer than `updates` batches of them.
        exposures: how many times the texts are studied before the stream.
        updates: of the stream.
        checkpoints: updates after which to ask; those beyond `updates` are left out, 0 and `updates` are always asked.
        learning: of the study, and of the stream (which is never massed).
        keep_optimizer: go on with the optimizer of the study.

    Returns:
        One row a text, phase ("before", "study", "stream"), exposures and updates: what `recognition` and `recall` say. The study is
        asked after each exposure. Summary: figures with intervals by phase, and `forgetting_curve`.

    Raises:
        ContextOverflowError: a text does not fit the model's window.
        InputError: a foil, or a text of the stream, that was seen; no stream; what `study`, `recognition` and `recall` refuse.
    """
    learning = learning or Learning()
    both = set(seen) & {*foils, *stream}
    if both:
        raise InputError(f"{len(both)} foils or texts of the stream are studied, {min(both)!r} among them.", "Exchange them.")
    if updates < 1 or not stream:
        raise InputError(f"{len(stream)} texts for {updates} updates.", "Give some of both.")
    data = batches_of(model, list(dict.fromkeys(stream)), learning)
    require_room(model, data)  # before anything is studied
    tables: list[pl.DataFrame] = []

    def ask(asked: HFModel, phase: str, shown: int, update: int) -> None:
        answers = pl.concat([recognition(asked, seen, foils), recall(asked, seen)], how="horizontal").with_row_index("text")
        tables.append(answers.with_columns(phase=pl.lit(phase), exposures=pl.lit(shown), updates=pl.lit(update)))

    ask(model, "before", 0, 0)
    studied, left = study(model, seen, exposures, learning, after=lambda copy, shown: ask(copy, "study", shown, 0))
    tables.append(tables[-1].with_columns(phase=pl.lit("stream")))  # nothing has changed yet
    wanted = {updates} | {at for at in checkpoints if 0 < at < updates}
    asking = AfterUpdates(list(wanted), lambda at: ask(studied, "stream", exposures, at))
    train(studied, data, config_of(updates, learning), callbacks=[asking], optimizer=left.optimizer if keep_optimizer else None)
    return _measured(model, pl.concat(tables), learning, keep_optimizer)


def forgetting_curve(updates: Sequence[float], values: Sequence[float]) -> dict[str, dict[str, float] | None]:
    """Least-squares fits of what is left after so many updates: "power" a (1 + t)^−b and "exponential" a e^(−bt), with the root mean square
    of their errors; None where a fit does not converge.

    Raises:
        InputError: fewer than three points, or lists of different length.

    Example:
        >>> fits = forgetting_curve([0, 1, 3, 10, 30], [0.8 * (1 + t) ** -0.5 for t in [0, 1, 3, 10, 30]])
        >>> round(fits["power"]["b"], 3), fits["power"]["rmse"] < fits["exponential"]["rmse"]
        (0.5, True)
    """
    t, y = np.asarray(updates, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(t) != len(y) or len(t) < 3:
        raise InputError(f"{len(t)} updates, {len(y)} values.", "Give three of both at least.")
    shapes = {"power": lambda x, a, b: a * (1 + x) ** -b, "exponential": lambda x, a, b: a * np.exp(-b * x)}
    found: dict[str, dict[str, float] | None] = {}
    for name, shape in shapes.items():
        try:
            (a, b), _ = curve_fit(shape, t, y, p0=(max(float(y[0]), 1e-3), 0.1), bounds=([0, 0], [np.inf, 50]))
        except RuntimeError:
            found[name] = None
            continue
        found[name] = {"a": float(a), "b": float(b), "rmse": float(np.sqrt(np.mean((shape(t, a, b) - y) ** 2)))}
    return found


def _measured(model: HFModel, table: pl.DataFrame, learning: Learning, keep_optimizer: bool) -> Measurement:
    asked = [
        {"phase": phase, "exposures": shown, "updates": at, **{name: value._asdict() for name, value in _figures(part).items()}}
        for (phase, shown, at), part in table.group_by("phase", "exposures", "updates", maintain_order=True)
    ]
    base = asked[0]["rougeL_cont"]["estimate"]
    stream = [row for row in asked if row["phase"] == "stream"]
    at, gains = [row["updates"] for row in stream], [row["rougeL_cont"]["estimate"] - base for row in stream]
    before = table.filter(pl.col("phase") == "before")
    summary = {
        "asked": asked,
        "forgetting": {
            "recall": forgetting_curve(at, gains) if len(at) > 2 else None,
            "recognition": forgetting_curve(at, [row["recognized"]["estimate"] - 0.5 for row in stream]) if len(at) > 2 else None,
        },
        "by_length": _by_length(table, before),
        "pairs": before.height,
    }
    provenance = {
        "model": model.fingerprint, "tokenizer": model.tokenizer.fingerprint, "learning": vars(learning),
        "keep_optimizer": keep_optimizer, "environment": environment(),
    }  # fmt: skip
    return Measurement("retention", table, summary, provenance, {"retention": _curve(stream)})


def _figures(table: pl.DataFrame) -> dict[str, Interval]:
    names = ["recognized", "exact", *(f"{score}_{part}" for part in ("cont", "full") for score in SCORES)]
    columns = {name: table[name].cast(pl.Float64).to_numpy() for name in names}
    return {
        name: rate_interval(own) if name in names[:2] and set(own) <= {0, 1} else bootstrap_interval(own) for name, own in columns.items()
    }


def _by_length(table: pl.DataFrame, before: pl.DataFrame) -> dict[str, dict[str, float | int]]:
    """Recognition where the seen text is the shorter one, as long, and longer, before the study and after it."""
    studied = table.filter(pl.col("phase") == "study")
    after = studied.filter(pl.col("exposures") == studied["exposures"].max())
    found: dict[str, dict[str, float | int]] = {}
    for name, sign in (("shorter", -1), ("equal", 0), ("longer", 1)):
        some = ((before["tokens_seen"] - before["tokens_foil"]).sign() == sign).to_numpy()
        if some.any():
            found[name] = {"pairs": int(some.sum())}
            for moment, part in (("before", before), ("after", after)):
                found[name][moment] = float(part["recognized"].to_numpy()[some].mean())
    return found


def _curve(stream: list[dict[str, Any]]) -> Curve:
    def line(name: str) -> list[dict[str, Any]]:
        return [
            {"x": row["updates"], "y": row[name]["estimate"], "low": row[name]["low"], "high": row[name]["high"], "n": None}
            for row in stream
        ]

    series = [Series("recognition (2AFC)", line("recognized")), Series("recall (ROUGE-L of the continuation)", line("rougeL_cont"))]
    return Curve(
        "retention", "What is left of a few exposures", "updates on other texts", "share", series, x_scale="symlog",
        y_domain=(0.0, 1.0), y_format="percent", caption="95 % intervals over texts: Wilson's of recognition without ties, else bootstrap.",
    )  # fmt: skip
