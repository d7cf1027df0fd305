"""All measurements of `context_bench` for one model and several methods, put into one table and a few curves (`palimpsest bench context`).

For each method and length: one key by depth, one of several keys, several questions about one reading, loss by position, bytes and speed.
A method is given as a function of the length, since a budget is a share of it. What a method cannot do, because it needs a question that
nobody asks of running text, or because the budget is below what it needs, is a reason in the table and not a gap.

Every cell is kept in a folder as soon as it is measured, under the hash of all that decides it: a run that was stopped goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.context.attach import ContextMethod
from palimpsest.errors import InputError, PalimpsestError
from palimpsest.evaluation.context_bench import CHUNK, multi_needle, passkey, stream_nll, throughput
from palimpsest.evaluation.context_prompts import KeyPrompt
from palimpsest.evaluation.haystack import Haystack
from palimpsest.files import sha256_json
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models.base import Progress
from palimpsest.models.hf import HFModel

MEASURES = ("passkey", "multi-needle", "multi-question", "stream", "speed")
Factory = Callable[[int], ContextMethod | None]


@dataclass(frozen=True)
class SuiteConfig:
    """How much is asked.

    Attributes:
        lengths: tokens of context and question.
        depths, per_depth: of the one key.
        keys: of the same form; `needles`: contexts in which one is asked for; `contexts`: in which each is.
        rows: texts for the loss by position, as long as the longest length.
        query_aware: whether questions are read with the context; methods that select for a question always are.
        chunk: tokens in one forward pass of reading.
        new_tokens, threads: of the speed.
        seed: of keys, filler and bootstrap.
        measures: which of `MEASURES`.
    """

    lengths: tuple[int, ...] = (512, 1024)
    depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    per_depth: int = 4
    keys: int = 4
    needles: int = 20
    contexts: int = 5
    rows: int = 4
    query_aware: bool = False
    chunk: int = CHUNK
    new_tokens: int = 32
    threads: int = 2
    seed: int = 0
    measures: tuple[str, ...] = MEASURES

    def __post_init__(self) -> None:
        unknown = sorted(set(self.measures) - set(MEASURES))
        if unknown or not self.measures:
            raise InputError(f"measures has {', '.join(unknown) or 'nothing'}.", f"Choose from {', '.join(MEASURES)}.")
        if not self.lengths or sorted(set(self.lengths)) != list(self.lengths) or self.lengths[0] < 1:
            raise InputError(f"lengths is {self.lengths}.", "Give different lengths of at least 1 in ascending order.")


@dataclass
class ContextReport:
    """What was found of one model.

    Attributes:
        model: its name.
        rows: one dict a method and length: method, settings, length, exact figures with intervals, bytes, speed, and reasons.
        cells: every measurement by (method, measure, length).
        curves: loss by position; keys found by depth, one for each length; keys found by bytes.
    """

    model: str
    rows: list[dict[str, Any]]
    cells: dict[tuple[str, str, int], Measurement] = field(repr=False, default_factory=dict)
    curves: list[Curve] = field(repr=False, default_factory=list)


def run_suite(
    model: HFModel,
    methods: Mapping[str, Factory],
    haystack: Haystack,
    rows: np.ndarray,
    config: SuiteConfig | None = None,
    *,
    prompt: KeyPrompt | None = None,
    out: Path | None = None,
    progress: Callable[[str], None] | None = None,
    inner: Progress | None = None,
) -> ContextReport:
    """Measures every method on one model.

    Args:
        model: a model in this process.
        methods: name → method at a length; None is the model as it is.
        haystack: filler for the keys.
        rows: texts for the loss by position, ids (n, tokens) of at least the longest length.
        config: how much.
        prompt: the wording of the questions.
        out: the folder of finished cells; None keeps nothing.
        progress: called with a few words before each cell; `inner` within one.

    Raises:
        InputError: no method, or texts that are too short.
    """
    config = config or SuiteConfig()
    if not methods:
        raise InputError("There is no method to measure.", "Name at least one; full is the model as it is.")
    if rows.ndim != 2 or rows.shape[1] < config.lengths[-1]:
        raise InputError(f"The texts have shape {rows.shape}.", f"Give rows of {config.lengths[-1]} tokens.")
    report = ContextReport(model.name, [])
    for name, factory in methods.items():
        for length in config.lengths:
            row: dict[str, Any] = {"model": model.name, "method": name, "length": length}
            reasons: dict[str, str] = {}
            try:
                method = factory(length)
            except PalimpsestError as error:
                report.rows.append(row | {"settings": "", "query_aware": False, "reasons": {"all": str(error)}})
                continue
            aware = config.query_aware or hasattr(getattr(method, "session", None), "read")
            row |= {"settings": "" if method is None else repr(method), "query_aware": aware}
            for measure in config.measures:
                if measure in ("stream", "speed") and length != config.lengths[-1]:
                    continue  # a row of the longest length has all shorter positions
                if progress:
                    progress(f"{model.name} · {name} · {measure} · {length:,}")
                try:
                    cell = _cell(model, method, measure, length, aware, haystack, rows[:, :length], config, prompt, out, inner)
                except PalimpsestError as error:
                    reasons[measure] = str(error)
                    continue
                report.cells[name, measure, length] = cell
                row |= _figures(measure, cell.summary)
            report.rows.append(row | {"reasons": reasons})
    report.curves = curves(report)
    return report


def _cell(
    model: HFModel,
    method: ContextMethod | None,
    measure: str,
    length: int,
    aware: bool,
    haystack: Haystack,
    rows: np.ndarray,
    config: SuiteConfig,
    prompt: KeyPrompt | None,
    out: Path | None,
    inner: Progress | None,
) -> Measurement:
    """One measurement, or the one that is kept."""
    asked = {name: value for name, value in asdict(config).items() if name not in ("lengths", "measures", "query_aware")}
    decides = {
        "version": 1, "model": model.fingerprint, "method": repr(method), "measure": measure, "length": length, "aware": aware,
        "settings": asked, "prompt": vars(prompt or KeyPrompt()), "filler": haystack.fingerprint, "rows": sha256_json(rows.tolist()),
    }  # fmt: skip
    file = None if out is None else out / "cells" / f"{sha256_json(decides)[:24]}.json"
    if file is not None and file.is_file():
        return Measurement.load(file)
    common: dict[str, Any] = {"chunk": config.chunk, "seed": config.seed}
    keyed: dict[str, Any] = {**common, "prompt": prompt, "progress": inner}
    tokenizer = model.tokenizer
    if measure == "passkey":
        found = passkey(model, tokenizer, method, haystack, length, config.depths, config.per_depth, query_aware=aware, **keyed)
    elif measure == "multi-needle":
        found = multi_needle(model, tokenizer, method, haystack, length, config.keys, config.needles, query_aware=aware, **keyed)
    elif measure == "multi-question":
        if aware and not config.query_aware:
            raise InputError("It reads for one question.", "Ask several of a method that reads for none.")
        found = multi_needle(
            model, tokenizer, method, haystack, length, config.keys, config.contexts, every=True, query_aware=config.query_aware, **keyed
        )
    elif measure == "stream":
        found = stream_nll(model, tokenizer, method, rows[: config.rows], progress=inner, **common)
    else:
        found = throughput(model, tokenizer, method, rows[0], new_tokens=config.new_tokens, threads=config.threads, **common)
    if file is not None:
        found.save(file)
    return found


def _figures(measure: str, summary: dict[str, Any]) -> dict[str, Any]:
    """What of a measurement goes into the table."""
    if measure == "stream":
        last = summary["buckets"][-1]
        return {"nll": list(last["nll"].values()), "perplexity": last["perplexity"], "nll_from": last["start"]}
    if measure == "speed":
        names = ("prefill_tokens_per_second", "decode_tokens_per_second")
        return {name: summary[name] for name in names}
    found: dict[str, Any] = {measure: list(summary["exact"].values()), f"{measure} logprob": list(summary["logprob"].values())}
    if measure == "passkey":
        found |= {"bytes": summary["bytes"]["prefill"], "peak_bytes": summary["bytes"]["peak"]}
    return found


def curves(report: ContextReport) -> list[Curve]:
    """The figures of a report, one series a method."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in report.model)
    names = list(dict.fromkeys(row["method"] for row in report.rows))
    lengths = sorted({length for _, _, length in report.cells})
    drawn: list[Curve] = []
    streams = _series(report, names, "stream", "stream", lengths[-1]) if lengths else []
    if streams:
        title = f"{report.model}: loss by position"
        caption = "Running text is read in chunks through the cache; 95 % intervals over texts."
        drawn.append(Curve(f"{slug}-stream", title, "position (tokens)", "nat per token", streams, x_scale="log", caption=caption))
    for length in lengths:
        by_depth = _series(report, names, "passkey", "depth", length)
        if by_depth:
            title = f"{report.model}: one key in {length:,} tokens"
            drawn.append(
                Curve(f"{slug}-depth-{length}", title, "depth", "found", by_depth, y_domain=(0, 1), y_format="percent", x_format="percent")
            )
    points = []
    for name in names:
        known = [row for row in report.rows if row["method"] == name and "passkey" in row]
        if known:
            at = [{"x": row["bytes"] / 1e6, "y": row["passkey"][0], "low": row["passkey"][1], "high": row["passkey"][2]} for row in known]
            points.append(Series(name, at, style="points"))
    if points:
        title = f"{report.model}: keys found and bytes"
        drawn.append(
            Curve(f"{slug}-bytes", title, "cache after reading (MB)", "found", points, x_scale="log", y_domain=(0, 1), y_format="percent")
        )
    return drawn


def _series(report: ContextReport, names: Sequence[str], measure: str, curve: str, length: int) -> list[Series]:
    found = []
    for name in names:
        cell = report.cells.get((name, measure, length))
        if cell is not None and curve in cell.curves:
            found.append(Series(name, cell.curves[curve].series[0].points))
    return found
