"""What the verbs that measure do with a measurement at their end: keep it, print it as JSON, or show it in a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

if TYPE_CHECKING:
    from palimpsest.measurement import Measurement


def kept(measured: Measurement, out: Path | None, *, as_json: bool) -> bool:
    """Writes a measurement where it is wanted, and prints it when JSON is; returns whether nothing else is to be printed."""
    if out is not None:
        measured.save(out)
    if as_json:
        typer.echo(measured.to_json())
    return as_json


def columns(first: str, *others: str) -> Table:
    """An empty table with names on the left and figures on the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
