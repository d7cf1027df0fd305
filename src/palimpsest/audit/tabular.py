"""Tabular memory: has a model read this table, and does it know it to the letter?

Bordt, Nori, Rodrigues, Nushi and Caruana, "Elephants Never Forget: Memorization and Learning of Tabular Data in Large Language Models",
COLM 2024, arXiv 2404.06209. `TabularAudit` runs their tests (header, row completion, feature completion, first token; feature names,
feature values, dataset name, samples) and four of ours (nearness, decoy rank, order, twin), each with its control on the same queries.
The rows that row completion, first token, nearness and twin ask for are written once; see the modules of the tests for what each is.

Departures from the paper and from `tabmemcheck`: prompts are those for models that complete text; a row must end where the true row ends
(theirs: it may stand anywhere in the answer, so that "1" is found in "10"); the first token is compared with the best guess of the truth
(theirs: with how often the model itself says the most common one); rows that occur twice in the file are never asked for; every test gives
figures and a p-value instead of coloured text; there is no global state. `compat_tabmemcheck` is for comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit import tabular_completion as completion
from palimpsest.audit import tabular_knowledge as knowledge
from palimpsest.audit import tabular_likelihood as likelihood
from palimpsest.audit.tabular_decoys import Decoys
from palimpsest.audit.tabular_outcome import KNOWLEDGE, MEMORY, not_applicable, provenance
from palimpsest.audit.tabular_prompts import SHOWN, RowQueries, fitting_rows
from palimpsest.audit.tabular_table import Table
from palimpsest.audit.tabular_transform import perturbed
from palimpsest.errors import CapabilityError, ContextOverflowError, InputError
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import holm

LEVEL = 0.05
TO_THE_LETTER = ("header", "row-completion", "feature-completion", "first-token", "twin")
TESTS = {
    "header": MEMORY,
    "row-completion": MEMORY,
    "nearness": MEMORY,
    "first-token": MEMORY,
    "feature-completion": MEMORY,
    "twin": MEMORY,
    "decoy-rank": MEMORY,
    "order": MEMORY,
    "feature-names": KNOWLEDGE,
    "feature-values": KNOWLEDGE,
    "dataset-name": KNOWLEDGE,
    "sampling": KNOWLEDGE,
}


@dataclass
class TabularAudit:
    """All tests of one model on one table.

    Args:
        model: what is audited; "text" is enough for all tests but decoy-rank and order, which need "logprobs".
        table: a `Table`, or the path of one.
        n: rows and cells that are asked for.
        decoys: decoys a row.
        shown: rows before the one that is asked for; None: 10, or as many as the model can see.
        column: the cell of feature completion; None: that of the column with the most different values.
        seed: of every random choice.

    Example:
        >>> audit = TabularAudit(palimpsest.load_model("smollm2-135m"), "iris.csv")      # doctest: +SKIP
        >>> audit.run(["header", "decoy-rank"]).table.select("test", "p_value")         # doctest: +SKIP
    """

    model: LanguageModel
    table: Table
    n: int = 25
    decoys: int = 24
    shown: int | None = None
    column: str | None = None
    seed: int = 0
    results: dict[str, Measurement] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.table, Table):
            self.table = Table.read(self.table)
        for name in ("n", "decoys"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Give at least 1.")

    @cached_property
    def queries(self) -> RowQueries:
        """The rows that are asked for."""
        shown = self.shown if self.shown is not None else fitting_rows(self.model, self.table, SHOWN)
        return RowQueries.draw(self.table, self.n, shown, self.seed)

    @cached_property
    def twin(self) -> Table:
        """The perturbed twin."""
        return perturbed(self.table, self.seed)

    @cached_property
    def rivals(self) -> Decoys:
        """The decoys of the table."""
        return Decoys(self.table, self.queries.shown, self.seed)

    @cached_property
    def answers(self) -> list[str]:
        """What the model writes behind the shown rows, for all tests that read it."""
        return completion.write_rows(self.model, self.queries)

    def measure(self, test: str, progress: Progress | None = None) -> Measurement:
        """One of `TESTS`.

        Raises:
            InputError: no such test, or a table on which it cannot be made.
            CapabilityError, ContextOverflowError, NonFiniteError: as the door says.
        """
        tests: dict[str, Callable[[], Measurement]] = {
            "header": lambda: completion.measure_header(self.model, self.table, seed=self.seed, progress=progress),
            "row-completion": lambda: completion.measure_row_completion(self.model, self.queries, self.answers),
            "nearness": lambda: completion.measure_nearness(self.model, self.queries, self.answers, self.rivals, self.decoys),
            "first-token": lambda: completion.measure_first_token(self.model, self.queries, self.answers, self.seed),
            "feature-completion": lambda: completion.measure_feature_completion(
                self.model, self.table, self.column, n=self.n, seed=self.seed, progress=progress
            ),
            "twin": lambda: likelihood.measure_twin(self.model, self.queries, self.twin, self.answers, progress=progress),
            "decoy-rank": lambda: likelihood.measure_decoy_rank(self.model, self.queries, self.rivals, self.decoys, progress=progress),
            "order": lambda: likelihood.measure_order(self.model, self.table, seed=self.seed, progress=progress),
            "feature-names": lambda: knowledge.measure_feature_names(self.model, self.table, progress=progress),
            "feature-values": lambda: knowledge.measure_feature_values(self.model, self.table, seed=self.seed, progress=progress),
            "dataset-name": lambda: knowledge.measure_dataset_name(self.model, self.table, progress=progress),
            "sampling": lambda: knowledge.measure_samples(self.model, self.table, seed=self.seed, progress=progress),
        }
        if test not in tests:
            raise InputError(f"There is no test {test!r} of tables.", f"Choose from {', '.join(tests)}.")
        return tests[test]()

    def attempt(self, test: str, progress: Progress | None = None) -> Measurement:
        """`measure`, or a measurement that says why it could not be made: the door cannot do it, or the table is not made for it."""
        try:
            return self.measure(test, progress)
        except (CapabilityError, InputError) as error:
            if test not in TESTS:
                raise
            return not_applicable(test, TESTS[test], self.model, self.table, str(error), {"seed": self.seed})

    def run(self, tests: str | Sequence[str] = "all", seed: int | None = None, progress: Progress | None = None) -> Measurement:
        """Runs tests and puts them side by side.

        Args:
            tests: "all", or some of `TESTS`.
            seed: of every random choice; None: that of the audit.
            progress: called with (tests done, tests in all).

        Returns:
            One row a test, see `compare`; the measurement of each stays in `results`.

        Raises:
            InputError: an unknown test, or no test could be made; the message is that of the first.
        """
        audit = self if seed is None or seed == self.seed else replace(self, seed=seed)
        names = list(TESTS) if tests == "all" else [tests] if isinstance(tests, str) else list(tests)
        self.results = {}
        for done, name in enumerate(names):
            self.results[name] = audit.attempt(name)
            if progress:
                progress(done + 1, len(names))
        return compare(audit.model, audit.table, self.results, audit.seed)


def compare(model: LanguageModel, table: Table, results: dict[str, Measurement], seed: int) -> Measurement:
    """Tests side by side.

    Returns:
        One row a test: test, kind, status, n, hits, rate, low, high, control, control_hits, p_value, adjusted (Holm over the tests of
        memory that have a p-value), reason. The summary holds `level` (see `level_of`), `found` (tests of memory that are significant), and
        every test's own summary.

    Raises:
        InputError: no test could be made.
    """
    measured = {name: result for name, result in results.items() if result.summary["status"] == "measured"}
    if not measured:
        reason = next((result.summary["reason"] for result in results.values()), "No test was asked for.")
        raise InputError(f"No test of {table.name} could be made with {model.name}: {reason}", "")
    tried = [name for name, result in measured.items() if result.summary["kind"] == MEMORY and result.summary["p_value"] is not None]
    adjusted = dict(zip(tried, holm([measured[name].summary["p_value"] for name in tried]).tolist(), strict=True)) if tried else {}
    keys = ("test", "kind", "status", "n", "hits", "rate", "low", "high", "control", "control_hits", "p_value", "reason")
    rows = [{**{key: result.summary.get(key) for key in keys}, "adjusted": adjusted.get(name)} for name, result in results.items()]
    schema = {"hits": pl.Int64, "rate": pl.Float64, "low": pl.Float64, "high": pl.Float64, "control": pl.String, "control_hits": pl.Int64}
    schema |= {"p_value": pl.Float64, "adjusted": pl.Float64, "reason": pl.String}
    found = [name for name, p in adjusted.items() if p < LEVEL]
    summary: dict[str, Any] = {"level": level_of(found, measured), "found": found, "adjusted": adjusted}
    summary["tests"] = {name: result.summary for name, result in results.items()}
    curves = {"tabular-ranks": _rank_curve(measured["decoy-rank"])} if "decoy-rank" in measured else {}
    return Measurement("tabular", pl.DataFrame(rows, schema_overrides=schema), summary, provenance(model, table, {"seed": seed}), curves)


def level_of(found: Sequence[str], measured: dict[str, Measurement]) -> str:
    """How much of a table a model remembers, by one rule over the tests of memory that are significant at 5 % after Holm's correction.

    none: no test; low: only tests of likelihood or nearness; moderate: something comes out to the letter more often than its control; high:
    so do whole rows, a tenth of them or more.
    """
    if not found:
        return "none"
    rows = measured.get("row-completion")
    if "row-completion" in found and rows is not None:
        return "high" if (rows.summary["hits"] - rows.summary["control_hits"]) / rows.summary["n"] >= 0.1 else "moderate"
    return "moderate" if set(found) & set(TO_THE_LETTER) else "low"


def _rank_curve(result: Measurement) -> Curve:
    """Where the true rows stand among their decoys, against chance."""
    places = np.sort(result.table["p_value"].to_numpy())
    points: list[dict[str, float | int | None]] = [{"x": 0.0, "y": 0.0}]
    points += [{"x": float(place), "y": (i + 1) / len(places), "n": len(places)} for i, place in enumerate(places)]
    points.append({"x": 1.0, "y": 1.0})
    return Curve(
        "tabular-ranks",
        "How likely are the true rows among rows that could as well be true?",
        "place of the true row (0: likelier than all decoys)",
        "share of rows",
        [Series("true rows", points), Series("never seen", [{"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0}], "dashed")],
        x_format="percent",
        y_domain=(0.0, 1.0),
        y_format="percent",
        caption="Every row is ranked among decoys by its log-probability behind the rows before it. A table that was never seen lies on "
        "the diagonal; the further above, the better it is known.",
    )


class TabmemcheckModel:
    """A model as `tabmemcheck` wants it: `chat_mode` False, and `completion(prompt, temperature, max_tokens)`.

    Attributes:
        calls, tokens: how often it was asked, and how much it wrote.
    """

    chat_mode = False

    def __init__(self, model: LanguageModel) -> None:
        model.require("text", "Completing a prompt")
        self.model, self.calls, self.tokens = model, 0, 0

    def completion(self, prompt: str, temperature: float, max_tokens: int) -> str:
        """The text behind `prompt`; like a server's, it ends where the context does."""
        ids = self.model.tokenizer.encode(prompt)
        room = self.model.room - len(ids)
        if room < 1:
            raise ContextOverflowError(f"The prompt has {len(ids)} tokens, {self.model.name} sees {self.model.room}.", "Show fewer rows.")
        written = self.model.generate([ids], min(max_tokens, room), temperature=temperature, seed=self.calls)[0][0]
        self.calls, self.tokens = self.calls + 1, self.tokens + len(written)
        return self.model.tokenizer.decode([*ids, *written.tolist()])[len(self.model.tokenizer.decode(ids)) :]

    def __repr__(self) -> str:
        return self.model.name


def compat_tabmemcheck(model: LanguageModel) -> TabmemcheckModel:
    """The model behind the interface of `tabmemcheck`, for its own functions.

    Example:
        >>> tabmemcheck.row_completion_test("iris.csv", compat_tabmemcheck(model))   # doctest: +SKIP
    """
    return TabmemcheckModel(model)


def compat_row_completion(
    model: LanguageModel, path: str | Path, *, shown: int = SHOWN, n: int = 25, rng: np.random.Generator | None = None
) -> tuple[list[str], list[str], int]:
    """Row completion as `tabmemcheck` 0.1.6 does it: equal queries for an equal `rng`, counted as it counts, all rows written in one call.

    Returns:
        True rows, the first lines of the answers, and how many true rows occur in their answer.

    Raises:
        InputError: fewer rows than shown and asked for.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8").split("\n") if line][:100_000]  # with the line of names, as they do
    rng = rng or np.random.default_rng()
    if len(lines) - shown < n:
        raise InputError(f"{path} has {len(lines)} lines; {shown} are shown and {n} asked for.", "Ask for fewer.")
    places = rng.choice(len(lines) - shown, n, replace=False).tolist()
    truths = [lines[place + shown] for place in places]
    prompts = [model.tokenizer.encode("\n".join(lines[place : place + shown])) for place in places]
    limits = [1 + len(truth) for truth in truths]
    written = model.generate(prompts, min(max(limits), model.room - max(map(len, prompts))))
    answers = []
    for ids, outputs, limit in zip(prompts, written, limits, strict=True):
        text = model.tokenizer.decode([*ids, *outputs[0][:limit].tolist()])[len(model.tokenizer.decode(ids)) :]
        answers.append(text.strip("\n").split("\n")[0])
    return truths, answers, sum(truth.strip() in answer.strip() for truth, answer in zip(truths, answers, strict=True))
