"""`palimpsest lab`: train the planted twin models that the demonstration ships, and look at what a suite holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from palimpsest.cli.options import Json

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the suite; it must not be there yet.")],
    size: Annotated[list[str] | None, typer.Option(help="Only this size (s, m or l); may be given several times.")] = None,
    sequences: Annotated[int | None, typer.Option(help="Training sequences; the shipped twins saw 9000.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of text, places and weights; the shipped twins have 0.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the suite as JSON.")] = False,
) -> None:
    """Train standard and perturbed twins as the shipped ones were trained, on one thread of the processor.

    Without options the result equals the shipped twins: to the bit with the same torch on the same kind of processor, otherwise
    up to rounding. Finished models are kept in the cache, so that a run that was stopped goes on with the next one.
    """
    from palimpsest.errors import InputError
    from palimpsest.experiments.canaries import DEMONSTRATION, train_suite
    from palimpsest.experiments.suite import save_suite

    if out.exists():  # before minutes are spent
        raise InputError(f"{out} is there already.", "Choose another folder, or delete this one.")
    config = replace(
        DEMONSTRATION,
        sizes=tuple(dict.fromkeys(size)) if size else DEMONSTRATION.sizes,
        n_sequences=DEMONSTRATION.n_sequences if sequences is None else sequences,
        seed=seed,
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def step(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        suite = train_suite(config, progress=step)
    save_suite(suite, out)
    show(out, as_json=as_json)


@app.command()
def show(
    suite: Annotated[Path | None, typer.Argument(help="Folder of a suite; by default the twins that ship with the package.")] = None,
    as_json: Json = False,
) -> None:
    """The models of a suite and the texts that were planted into their training data."""
    from palimpsest.experiments.canaries import open_suite, twins

    opened = twins() if suite is None else open_suite(suite)
    models = [
        {
            "name": name,
            "parameters": card["parameters"],
            "steps": card["train"]["steps"],
            "tokens_seen": card["tokens_seen"],
            "lr": card["train"]["lr"],
            "validation_loss": card["validation_loss"],
            "data": card["data"],
            "folder": str(opened.folders[name]),
        }
        for name, card in opened.cards.items()
    ]
    counts = opened.ledger.group_by("domain", "copies").len().sort("domain", "copies")
    planted: dict[str, dict[str, int]] = {}
    for domain, copies, n in counts.iter_rows():
        planted.setdefault(domain, {})[str(copies)] = n
    if as_json:
        typer.echo(json.dumps({"models": models, "planted": planted, "seed": opened.config.seed}, ensure_ascii=False, indent=1))
        return
    console = Console()
    table = Table("model", "parameters", "steps", "tokens seen", "learning rate", "held-out loss (nat)", header_style="bold")
    for m in models:
        table.add_row(
            m["name"], f"{m['parameters']:,}", f"{m['steps']:,}", f"{m['tokens_seen']:,}", f"{m['lr']:g}", f"{m['validation_loss']:.3f}"
        )
    console.print(table)
    levels = [str(c) for c in sorted(opened.ledger["copies"].unique())]
    table = Table("texts planted so often", *levels, header_style="bold")
    for domain, by in planted.items():
        table.add_row(domain, *(str(by.get(level, 0)) for level in levels))
    console.print(table)
