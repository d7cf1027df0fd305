"""`palimpsest audit MODEL table.csv`: the audit of a table, which `palimpsest audit` calls when its CORPUS is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palimpsest.errors import InputError

OPTIONS = frozenset(
    {"model", "corpus", "out", "samples", "table", "column", "tokenizer", "timeout", "concurrency", "seed", "engine", "as_json"}
)
ROWS = 25  # rows that are asked for when --samples says nothing


def is_table(corpus: Path) -> bool:
    """Whether a corpus is a table: a `.csv` or `.tsv` file, or a `.parquet` file without a column "text"."""
    if corpus.suffix.lower() != ".parquet" or not corpus.is_file():
        return corpus.suffix.lower() in (".csv", ".tsv")  # a missing file is refused by the reader of tables
    import polars as pl

    try:
        return "text" not in pl.read_parquet_schema(corpus)
    except (pl.exceptions.PolarsError, OSError):
        return False  # damaged: the reader of corpora says so


def refuse_options(given: set[str]) -> None:
    """Raises `InputError` when options were given that mean nothing for a table."""
    wrong = sorted(given - OPTIONS)
    if wrong:
        raise InputError(
            f"The audit of a table does not take {', '.join('--' + name.replace('_', '-') for name in wrong)}.",
            "Leave it out: --samples says how many rows are asked for, --column which cell of them.",
        )


def show_tests(console: Console, card: dict[str, Any]) -> None:
    """The tests of a table's card on the terminal."""
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for name in ("test", "right", "without a model", "p", "Holm", ""):
        table.add_column(name, justify="left" if name in ("test", "") else "right")
    for test in card["tests"]:
        right = "" if test["hits"] is None else f"{test['hits']} of {test['n']}"
        control = "" if test["control_hits"] is None else str(test["control_hits"])
        p, adjusted = ("" if test[key] is None else f"{test[key]:.2g}" for key in ("p_value", "adjusted"))
        table.add_row(test["test"].replace("-", " "), right, control, p, adjusted, f"[dim]{escape(test['reason'] or '')}[/]")
    console.print()
    console.print(table)
