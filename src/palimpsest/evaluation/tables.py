"""The audit of a table: every test of tabular memory that the door allows, one report.

System 084, see `palimpsest.audit.tabular`. Like the audit of a corpus it is done in steps that stay on the disk, one a test, so that a
killed audit goes on where it was, and it ends in the same evaluation card, from which `palimpsest.report` makes the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from palimpsest import __version__
from palimpsest.audit.tabular import LEVEL, TESTS, TabularAudit, compare
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import InputError
from palimpsest.evaluation import blocks
from palimpsest.evaluation.protocol import FORMAT, claimed
from palimpsest.evaluation.record import slug
from palimpsest.evaluation.steps import Job, JobProgress, Step
from palimpsest.evaluation.table_sections import all_sections, tiles
from palimpsest.files import write_json
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models import LanguageModel

HEADLINES = {
    "none": "Nothing shows that the model has read this table.",
    "low": "The model knows this table, but does not write it out.",
    "moderate": "Parts of this table come out to the letter.",
    "high": "Rows of this table come out to the letter.",
}
_WORK = {"decoy-rank": 6.0, "order": 5.0, "header": 3.0, "sampling": 2.0, "row-completion": 2.0, "twin": 2.0, "feature-completion": 2.0}
_REFERENCES = (
    (
        "Bordt et al., Elephants Never Forget: Memorization and Learning of Tabular Data in Large Language Models, COLM 2024",
        "https://arxiv.org/abs/2404.06209",
    ),
    ("Candès et al., Panning for gold: model-X knockoffs, JRSS B 2018 (conditional randomisation)", "https://arxiv.org/abs/1610.02351"),
)


def run_table_audit(
    model: LanguageModel,
    table: Table | str | Path,
    out: str | Path,
    *,
    n: int = 25,
    column: str | None = None,
    tests: Sequence[str] | None = None,
    seed: int = 0,
    progress: JobProgress | None = None,
) -> dict[str, Any]:
    """Audits a model for one table and writes `out/audit.json` (`palimpsest.report.render` makes the page of it).

    Args:
        model: any door; what it cannot do is in the report with the reason.
        table: a table, or the path of one.
        out: the folder of the results; an earlier audit in it is continued.
        n: rows and cells that are asked for.
        column: the cell of feature completion; None: that of the column with the most different values.
        tests: some of `palimpsest.audit.tabular.TESTS`; None: all.
        seed: of every random choice.
        progress: called with (what is being done, units done, units in all).

    Returns:
        The evaluation card, as written to `audit.json`.

    Raises:
        CorpusError: a table that cannot be read or is too small.
        InputError: an unknown test, a column that is not there, or no test that can be made.
        StorageError: the folder cannot be written.

    Example:
        >>> card = palimpsest.run_table_audit(palimpsest.load_model("smollm2-135m"), "iris.csv", "report")  # doctest: +SKIP
    """
    audit = TabularAudit(model, table if isinstance(table, Table) else Table.read(table), n=n, column=column, seed=seed)
    names = list(TESTS) if tests is None else list(tests)
    unknown = [name for name in names if name not in TESTS]
    if unknown or not names:
        raise InputError(f"There is no test {', '.join(unknown) or 'to make'}.", f"Choose from {', '.join(TESTS)}.")
    if column is not None and column not in audit.table.columns:
        raise InputError(f"{audit.table.name} has no column {column!r}.", f"Choose one of {', '.join(audit.table.columns)}.")
    shared = {"version": __version__, "model": model.fingerprint, "table": audit.table.fingerprint, "n": n, "column": column, "seed": seed}
    steps = [
        Step(f"tabular-{name}.{slug(model.name)}", name.replace("-", " "), _WORK.get(name, 1.0), {**shared, "test": name},
             partial(audit.attempt, name))
        for name in names
    ]  # fmt: skip
    with claimed(out) as folder:
        job = Job(folder / "measurements", progress)
        job.run(steps)
        results = {name: job.results[step.name] for name, step in zip(names, steps, strict=True)}
        if all(result.summary["status"] != "measured" for result in results.values()):  # an error follows, which leaves nothing behind
            for step in steps:
                (job.folder / f"{step.name}.json").unlink()
            with suppress(OSError):  # an earlier audit's results are in it
                job.folder.rmdir()
        made = {
            "format": FORMAT,
            "title": f"What {model.name} remembers of the table {audit.table.name}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "demonstration": False,
            **compose(audit, results),
            "timing": {name: round(job.seconds[step.name], 2) for name, step in zip(names, steps, strict=True)},
        }
        card: dict[str, Any] = plain(made)
        write_json(folder / "audit.json", card)
    return card


def compose(audit: TabularAudit, results: dict[str, Measurement]) -> dict[str, Any]:
    """Everything in the card but its title, date and times."""
    table, model = audit.table, audit.model
    whole = compare(model, table, results, audit.seed)
    level = whole.summary["level"]
    return {
        "verdict": {"level": level, "headline": HEADLINES[level], "sentences": _sentences(model, table, results, whole)},
        "tiles": tiles(results, level),
        "models": [{**model.describe(), "role": "audited"}],
        "corpus": {
            "name": table.name,
            "rows": len(table),
            "columns": ", ".join(table.columns),
            "fingerprint": table.fingerprint,
        },
        "settings": {"rows asked for": audit.n, "decoys": audit.decoys, "column": audit.column, "seed": audit.seed},
        "sections": all_sections(results, whole),
        "limits": _limits(table, results),
        "environment": environment(),
        "references": [{"title": title, "url": url} for title, url in _REFERENCES],
        "tests": whole.table.to_dicts(),
    }


def _sentences(model: LanguageModel, table: Table, results: dict[str, Measurement], whole: Measurement) -> list[str]:
    found = whole.summary["found"]
    tried = len(whole.summary["adjusted"])
    said = [
        f"Of {tried} tests of memory that could be made, {len(found)} find it at {100 * LEVEL:g} %, corrected for being {tried}"
        + (f": {', '.join(name.replace('-', ' ') for name in found)}." if found else ".")
    ]
    rows = results.get("row-completion")
    if rows is not None and rows.summary["status"] == "measured":
        summary = rows.summary
        said.append(
            f"Shown {rows.provenance['shown']} rows of {table.name}, {model.name} writes the next one to the letter for "
            f"{blocks.count_of(summary['hits'], summary['n'])}; the best guess without a language model, the {summary['control']}, "
            f"gets {summary['control_hits']}."
        )
    ranked = results.get("decoy-rank")
    if ranked is not None and ranked.summary["status"] == "measured":
        summary = ranked.summary
        said.append(
            f"Among {summary['decoys']} rows that could as well be true, the true one is the likeliest for "
            f"{blocks.count_of(summary['first'], summary['n'])}; its mean place is {summary['mean_rank']:.1f} where chance gives "
            f"{(summary['decoys'] + 2) / 2:.1f}."
        )
    return said


def _limits(table: Table, results: dict[str, Measurement]) -> list[str]:
    said = list(table.notes)
    rows = results.get("row-completion")
    if rows is not None and rows.summary["status"] == "measured":
        if rows.provenance["shown"] < 10:
            said.append(f"The model sees too little for ten rows: {rows.provenance['shown']} were shown.")
        if rows.summary["excluded"]:
            said.append(f"{rows.summary['excluded']} rows were not asked for because the same text stands elsewhere in the table.")
    said += [
        f"{name.replace('-', ' ').capitalize()} was not measured. {result.summary['reason']}"
        for name, result in results.items()
        if result.summary["status"] != "measured"
    ]
    return [
        *said,
        "A table that leaves no trace here may still have been read: few copies in much text are often forgotten, and another form of the "
        "same table (other columns, other rounding) is another text.",
        "Decoys take for granted that the swapped cells of rows with nearly the same other cells could have stood in each other's place.",
        "Tests of knowledge show what the model knows of the table's subject; they are no proof that it read the file.",
    ]
