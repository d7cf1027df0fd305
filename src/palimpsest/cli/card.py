"""`palimpsest card`: check, show and compare evaluation cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.errors import InputError

app = typer.Typer(no_args_is_help=True)


@app.command()
def validate(
    card: Annotated[Path, typer.Argument(help="A card, as JSON.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what is wrong as JSON.")] = False,
) -> None:
    """Say everything that is missing or wrong in a card; exit code 2 when something is."""
    from palimpsest.evaluation.card import problems

    found = problems(_read(card))
    if as_json:
        typer.echo(json.dumps({"card": str(card), "valid": not found, "problems": found}, ensure_ascii=False))
    elif found:
        for problem in found:
            typer.echo(problem)
    else:
        typer.echo(f"{card} is a complete card.")
    if found:
        raise typer.Exit(2)


@app.command()
def show(
    card: Annotated[Path, typer.Argument(help="A card, as JSON.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the checked card as JSON.")] = False,
) -> None:
    """Print a card as Markdown."""
    from palimpsest.evaluation.card import load_card
    from palimpsest.evaluation.card_text import render_md

    loaded = load_card(card)
    typer.echo(json.dumps(loaded.to_dict(), ensure_ascii=False) if as_json else render_md(loaded))


@app.command("diff")
def compare(
    first: Annotated[Path, typer.Argument(help="A card.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    force: Annotated[bool, typer.Option("--force", help="Compare what should not be compared; the result is stamped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the difference as JSON.")] = False,
) -> None:
    """The figures of two cards side by side, if nothing but the model differs."""
    from palimpsest.evaluation.card import load_card
    from palimpsest.evaluation.comparison import diff

    found = diff(load_card(first), load_card(second), force=force)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    console = Console()
    if found.stamp:
        console.print(found.stamp, style="bold red", markup=False)
    table = Table(box=None, header_style="bold")
    for heading in ("layer", "figure", "first", "second", "second − first", "apart"):
        table.add_column(heading, justify="left" if heading in ("layer", "figure") else "right")
    for row in found.rows:
        change = f"{row.difference:+.3f} ± {row.margin:.3f}"
        table.add_row(row.layer, row.metric, f"{row.first:.3f}", f"{row.second:.3f}", change, "yes" if row.separate else "no")
    console.print(table)
    for name, only in (("first", found.only_first), ("second", found.only_second)):
        if only:
            console.print(f"Only in the {name}: {', '.join(only)}", style="dim", markup=False)
    console.print("The margins take the two cards for independent; paired tests need the tables of the runs.", style="dim")


@app.command()
def schema(as_json: Annotated[bool, typer.Option("--json", help="Without indentation.")] = False) -> None:
    """Print the JSON Schema of a card."""
    from palimpsest.evaluation import card

    typer.echo(json.dumps(card.schema(), ensure_ascii=False, indent=None if as_json else 1))


def _read(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.", "Give the path of a card.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}.", "A card is one JSON object.")
    return value
