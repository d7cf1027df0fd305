"""Rates, log-linear laws and curves of extraction: what `measure_extraction` makes of its table (Carlini et al., ICLR 2023).

The laws are y = a + b log10 x for x = copies in the training data, tokens of context, parameters. y is one of

* the extraction rate, fitted to the levels between 5 % and 95 % only: outside it is at floor or ceiling, in small models it is a
  steep sigmoid, and a line through saturated points is not the law;
* the gain (nat): mean log-probability per suffix token, less that of a reference model that never saw the text (the difficulty of
  the passage cancels out), less the mean of the same over the controls (0 copies) at the same context (what the models differ in
  otherwise cancels out); one of the two is enough. All levels are fitted. The interval of the slope is that of the passages
  fitted; the mean of the controls is taken as given.

Copies are grouped as the paper's strata, level b holding 2^(b/4) <= copies < 2^((b+1)/4), and stand at the mean of their level.
A fit needs three levels: through two every line is perfect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models.base import LanguageModel
from palimpsest.stats import fit_log_law, wilson_interval

UNSATURATED = (0.05, 0.95)
MIN_LEVELS = 3


def with_gain(table: pl.DataFrame) -> pl.DataFrame:
    """Adds `gain` (see the module's docstring) where there is a reference or, at every context, a control."""
    if "logprob" not in table.columns:
        return table
    paired = "reference_logprob" in table.columns
    better = pl.col("logprob") - pl.col("reference_logprob") if paired else pl.col("logprob")
    controls = table.filter(pl.col("copies") == 0)
    if controls["context"].n_unique() < table["context"].n_unique():
        return table.with_columns(gain=better) if paired else table
    level = controls.group_by("context").agg(control=better.mean())
    return table.join(level, on="context", how="left", maintain_order="left").with_columns(gain=better - pl.col("control")).drop("control")


def extraction_summary(table: pl.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Rates by context, copies, both and domain, and the laws of copies and of context.

    `context` names the context that stands for the whole: the longest of those at which most samples could be measured; the law
    of copies and the split by domain are taken there. The law of context is taken over the samples measured at every context.
    """
    counts = table.group_by("context").len().sort("len", "context")
    context = int(counts["context"][-1])
    here = table.filter(pl.col("context") == context)
    overall = rates(here)[0]
    return {
        "context": context,
        "overall": overall,
        "by_context": rates(table, "context"),
        "by_copies": rates(here, "copies"),
        "by_context_copies": rates(table, "context", "copies"),
        "by_domain": rates(here, "domain"),
        "laws": {"copies": _copies_laws(here, seed), "context": _context_laws(table, seed)},
    }


def rates(table: pl.DataFrame, *by: str) -> list[dict[str, Any]]:
    """One row per group: n, extracted, rate with its 95 % Wilson interval, and the means of the other figures in the table.

    Groups with a null in `by` are left out. Grouping by "copies" groups by level (see the module's docstring).
    """
    keys = ["level" if name == "copies" else name for name in by]
    if "copies" in by:
        table = _with_level(table)
    means = {"logprob", "gain", "reference_logprob", "matched"} & set(table.columns)
    shares = {"any_match": "any_rate", "reference_extracted": "reference_rate"}
    figures = [
        pl.len().alias("n"),
        pl.col("extracted").sum().alias("extracted"),
        *(pl.col(name).mean().alias(name) for name in sorted(means)),
        *(pl.col(name).mean().alias(alias) for name, alias in shares.items() if name in table.columns),
    ]
    if "copies" in by:
        copies = pl.col("copies")
        figures += [copies.mean().alias("copies"), copies.min().alias("copies_low"), copies.max().alias("copies_high")]
    grouped = table.drop_nulls(keys).group_by(keys).agg(figures).sort(keys) if keys else table.select(figures)
    rows = []
    for row in grouped.iter_rows(named=True):
        interval = wilson_interval(row["extracted"], row["n"])
        rows.append({name: value for name, value in row.items() if name != "level"} | {"rate": interval.estimate})
        rows[-1] |= {"low": interval.low, "high": interval.high}
    return rows


def size_law(
    measurements: Sequence[tuple[LanguageModel | Mapping[str, Any], Measurement]], *, context: int | None = None, seed: int = 0
) -> Measurement:
    """Combines extraction measurements of models of different size, on the same samples, into the law of size.

    Args:
        measurements: pairs of a model (or its `describe()`) and what `measure_extraction` returned for it.
        context: tokens of context; by default the longest that all measurements have.
        seed: of the bootstrap, which resamples the passages, the same ones for every model.

    Returns:
        One row per model and copy level; the summary holds the laws of rate and gain over log10(parameters), taken over all
        passages with at least one copy (all of them where copies are unknown), and `models`, the rows without the split by copies.

    Raises:
        InputError: fewer than 2 models, a model of unknown or repeated size, or samples that are not the same for all.

    Example:
        >>> size_law([(small, measured_small), (large, measured_large)]).summary["laws"]   # doctest: +SKIP
    """
    described = [dict(model) if isinstance(model, Mapping) else model.describe() for model, _ in measurements]
    sizes: list[int] = [record.get("parameters") or 0 for record in described]
    if len(sizes) < 2 or 0 in sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"The models have {sizes} parameters.", "Give at least 2 models of known and different size.")
    order = np.argsort(sizes).tolist()
    contexts = sorted(set.intersection(*(set(measured.table["context"].to_list()) for _, measured in measurements)))
    chosen = context if context is not None else (contexts[-1] if contexts else None)
    tables = [measurements[i][1].table.filter(pl.col("context") == chosen).sort("sample") for i in order]
    keys = [table.select("sample", "id", "suffix_len").rows() for table in tables]
    if not keys[0] or any(key != keys[0] for key in keys):
        raise InputError(
            f"At context {chosen} the models were measured on {[len(key) for key in keys]} samples, not all the same; "
            f"all have the contexts {contexts}.",
            "Measure every model with the same samples and contexts.",
        )
    names, parameters = [str(described[i]["name"]) for i in order], [sizes[i] for i in order]
    labelled = [
        table.with_columns(model=pl.lit(name), parameters=pl.lit(size)) for table, name, size in zip(tables, names, parameters, strict=True)
    ]
    whole = pl.concat(labelled, how="diagonal_relaxed")
    planted = whole.filter(pl.col("copies").is_null() | (pl.col("copies") >= 1))
    if planted.is_empty():
        raise InputError("Every sample has 0 copies.", "Give samples that stand in the training data.")
    models, by_copies = rates(planted, "parameters", "model"), rates(whole, "parameters", "model", "copies")
    laws: dict[str, Any] = {}
    for figure, column in (("rate", "extracted"), ("gain", "gain")):
        rows = [planted.filter(pl.col("parameters") == size) for size in parameters]
        laws[figure] = _fit(parameters, rows, column, "sizes", paired=True, seed=seed)
    curve = Curve(
        "extraction-size",
        "Larger models give away more",
        "parameters",
        "share of passages extracted",
        [_series("all with copies", models, "parameters"), *_split(by_copies, "copies", "parameters", "{} copies")],
        x_scale="log",
        y_domain=(0, 1),
        y_format="percent",
        caption=f"The same passages with {chosen} tokens of context, greedy; 95 % Wilson intervals.",
    )
    summary = {"context": chosen, "models": models, "by_copies": by_copies, "laws": laws}
    provenance = {"models": [described[i] for i in order], "context": chosen, "seed": seed, "environment": environment()}
    table = pl.DataFrame(by_copies or models, infer_schema_length=None)
    return Measurement("extraction-size", table, summary, provenance, {curve.id: curve})


def extraction_curves(summary: Mapping[str, Any]) -> dict[str, Curve]:
    """The curves of an extraction summary: rate by copies, rate by context, gain by copies; those that have points."""
    cells = summary["by_context_copies"]
    here = summary["context"]
    bands = "95 % Wilson intervals."
    rate: dict[str, Any] = {"y_domain": (0, 1), "y_format": "percent"}
    curves = []
    if cells:
        series = _split(cells, "context", "copies", "{} tokens of context")
        reference = [row for row in summary["by_copies"] if row.get("reference_rate") is not None]
        if reference:
            points = [{"x": row["copies"], "y": row["reference_rate"], "low": None, "high": None, "n": row["n"]} for row in reference]
            series.append(Series("reference model", points, "dashed"))
        series += _line(summary["laws"]["copies"]["rate"], f"law at {here} tokens")
        title, caption = "Extraction grows with repetition", f"Share of suffixes that greedy decoding writes word for word; {bands}"
        curves.append(
            Curve("extraction-copies", title, "copies in the training data", "share extracted", series, "symlog", caption=caption, **rate)
        )
        gains = [row for row in cells if row.get("gain") is not None]
        if gains:
            series = _split(gains, "context", "copies", "{} tokens of context", "gain")
            series += _line(summary["laws"]["copies"]["gain"], f"law at {here} tokens")
            caption = "Mean log-probability of a suffix token, less that of the reference model and that of passages that were never seen."
            title, y_label = "What repetition adds below the threshold", "gain (nat per token)"
            curves.append(Curve("extraction-gain", title, "copies in the training data", y_label, series, "symlog", caption=caption))
    series = [_series("all", summary["by_context"], "context"), *_split(cells, "copies", "context", "{} copies")]
    series += _line(summary["laws"]["context"]["rate"], "law")
    title, caption = "Longer prompts draw out more", f"The same suffixes with more of what stands before them; {bands}"
    curves.append(Curve("extraction-context", title, "tokens of context", "share extracted", series, "log", caption=caption, **rate))
    return {curve.id: curve for curve in curves}


def _copies_laws(here: pl.DataFrame, seed: int) -> dict[str, Any]:
    planted = _with_level(here).filter(pl.col("copies") >= 1)
    groups = [group for _, group in planted.sort("level").group_by("level", maintain_order=True)]
    levels = [float(group["copies"].mean()) for group in groups]  # type: ignore[arg-type]
    return {
        figure: _fit(levels, groups, column, "levels of copies", paired=False, seed=seed)
        for figure, column in (("rate", "extracted"), ("gain", "gain"))
    }


def _context_laws(table: pl.DataFrame, seed: int) -> dict[str, Any]:
    contexts = sorted(set(table["context"].to_list()))
    everywhere = table.filter((pl.len().over("sample") == len(contexts)) & (pl.col("copies").is_null() | (pl.col("copies") >= 1)))
    groups = [everywhere.filter(pl.col("context") == context).sort("sample") for context in contexts]
    return {
        figure: _fit(contexts, groups, column, "contexts", paired=True, seed=seed)
        for figure, column in (("rate", "extracted"), ("gain", "gain"))
    }


def _fit(levels: Sequence[float], groups: Sequence[pl.DataFrame], column: str, what: str, *, paired: bool, seed: int) -> dict[str, Any]:
    """The law of `column` over `levels` as plain types, or `{"reason": …}` when there is none."""
    chosen = [
        (float(level), group[column].cast(pl.Float64).to_numpy())
        for level, group in zip(levels, groups, strict=True)
        if column in group.columns and len(group) and not group[column].null_count()
    ]
    if not chosen:
        return {"reason": f"there are no {what} with a {'gain' if column == 'gain' else 'rate'}"}
    measured = len(chosen)
    if column == "extracted":
        chosen = [(level, values) for level, values in chosen if UNSATURATED[0] <= values.mean() <= UNSATURATED[1]]
    if len(chosen) < MIN_LEVELS:
        between = " between 5 % and 95 %" if column == "extracted" else ""
        return {"reason": f"{len(chosen)} of {measured} {what} have a mean{between}, and a fit needs {MIN_LEVELS}"}
    law = fit_log_law([level for level, _ in chosen], [values for _, values in chosen], paired=paired, seed=seed)
    return law.to_dict() | {"levels": [level for level, _ in chosen]}


def copy_levels(copies: np.ndarray) -> np.ndarray:
    """The level of each number of copies: b of the module's docstring, -1 for 0 copies.

    Example:
        >>> copy_levels(np.array([0, 1, 2, 8, 9, 10])).tolist()
        [-1, 0, 4, 12, 12, 13]
    """
    # 1e-9 keeps exact powers of two on their own level whatever the rounding of the logarithm
    level = np.floor(4 * np.log2(np.maximum(copies, 1).astype(np.float64)) + 1e-9).astype(np.int64)
    return np.where(copies > 0, level, -1)


def _with_level(table: pl.DataFrame) -> pl.DataFrame:
    known = table.filter(pl.col("copies").is_not_null())
    return known.with_columns(level=pl.Series(copy_levels(known["copies"].to_numpy()), dtype=pl.Int64))


def _number(value: float) -> str:
    return f"{value:g}" if float(value).is_integer() else f"{value:.1f}"


def _series(name: str, rows: Sequence[Mapping[str, Any]], x: str, y: str = "rate") -> Series:
    band = y == "rate"
    points = [
        {"x": row[x], "y": row[y], "low": row["low"] if band else None, "high": row["high"] if band else None, "n": row["n"]}
        for row in rows
    ]
    return Series(name, points)


def _split(rows: Sequence[Mapping[str, Any]], by: str, x: str, label: str, y: str = "rate") -> list[Series]:
    values = sorted({row[by] for row in rows})
    return [_series(label.format(_number(value)), [row for row in rows if row[by] == value], x, y) for value in values]


def _line(law: Mapping[str, Any], name: str) -> list[Series]:
    if "slope" not in law:
        return []
    ends = (min(law["levels"]), max(law["levels"]))
    points = [{"x": x, "y": law["intercept"] + law["slope"] * float(np.log10(x)), "low": None, "high": None, "n": None} for x in ends]
    return [Series(f"{name} (R² {law['r2']:.2f})", points, "dashed")]
