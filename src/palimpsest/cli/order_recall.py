"""`palimpsest order-recall`: can a model tell which of two segments of a book came first, with the text and without (008)?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.options import Json


def order_recall(
    model: Annotated[str, typer.Argument(help="The model: a known name, a folder, a .gguf file, a hub id or an endpoint.")],
    books: Annotated[list[Path], typer.Argument(metavar="BOOK...", help="Texts, or folders of them; every document is a book.")],
    excerpt: Annotated[int, typer.Option(min=1, help="Words of an excerpt.")] = 250,
    segment: Annotated[int, typer.Option(min=1, help="Words of a segment.")] = 20,
    trials: Annotated[int, typer.Option(min=2, help="How many pairs of segments, an even number.")] = 100,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="in_context, from_memory or shuffled; may be repeated [default: in_context and from_memory]."),
    ] = None,
    task: Annotated[str, typer.Option(help="Which segment is asked for: first or last.")] = "first",
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of an endpoint: a folder or a tokenizer.json.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the trials.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask a model which of two segments of a book came first, with the excerpt in the prompt and from memory."""
    from palimpsest.cli.audit import progress_bar
    from palimpsest.corpus.documents import read_documents
    from palimpsest.evaluation.order_recall import measure_order
    from palimpsest.evaluation.order_trials import build_trials
    from palimpsest.models import load_model

    texts = {document.id: str(document.text) for path in books for document in read_documents(path)}
    drawn = build_trials(texts, excerpt, segment, trials, seed=seed)
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("asking", total=None)
        measured = measure_order(
            load_model(model, tokenizer=tokenizer),
            drawn,
            condition or ["in_context", "from_memory"],
            task=task,
            seed=seed,
            progress=lambda done, total: bar.update(job, completed=done, total=total),
        )
    if as_json:
        typer.echo(measured.to_json())
        return
    show(Console(), measured.summary)


def show(console: Console, summary: dict[str, Any]) -> None:
    """Accuracies by condition, and how the others differ from the first."""
    from palimpsest.numbers import interval, number, percent

    table = Table(box=None, header_style="bold")
    for heading in ("condition", "right", "right without label prior", "ties", "says A"):
        table.add_column(heading, justify="left" if heading == "condition" else "right")
    for row in summary["conditions"]:
        rates = [interval(*row[name].values()) for name in ("raw", "debiased")]
        table.add_row(row["condition"], *rates, f"{row['ties']:,}", percent(row["said_a"]["estimate"]))
    console.print(table)
    for pair in summary["comparisons"]:
        points = f"{100 * pair['difference']['estimate']:+.1f} points"
        console.print(f"{pair['second']} against {pair['first']}: {points}, p = {number(pair['adjusted'])}.", highlight=False)
    console.print("50 % is chance. A trial is asked in both orders; a tie is one that only a preference for a label decided.", style="dim")
