"""`palimpsest vocabulary`: how much more do models memorize of texts when the vocabulary is larger (066)?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.measured import kept
from palimpsest.cli.options import Json, writable
from palimpsest.errors import InputError


def vocabulary(
    texts: Annotated[Path, typer.Argument(help="A file with one text a line.")],
    merges: Annotated[str, typer.Option(help="Merges of the vocabularies, like 0,500,4000; 0 is bytes.")] = "0,500",
    task: Annotated[str, typer.Option(help="random_labels, membership or recovery.")] = "random_labels",
    aliases: Annotated[int, typer.Option(min=1, help="Also try the second vocabulary with so many ids a token.")] = 1,
    parameters: Annotated[int, typer.Option(min=1, help="Parameters of every model.")] = 600_000,
    epochs: Annotated[int, typer.Option(min=1, help="How often every text is seen.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, with seeds 0, 1, ….")] = 1,
    out: Annotated[Path | None, typer.Option(callback=writable, help="Write the measurement, with one row a text, to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Train models of one size on the lines of TEXTS in vocabularies of different size, and see how much each memorizes."""
    sizes = parse_merges(merges)
    from palimpsest.audit.vocabulary import VocabularySweep
    from palimpsest.audit.vocabulary_training import Shape
    from palimpsest.cli.audit import progress_bar
    from palimpsest.cli.study_files import read_lines

    lines = list(dict.fromkeys(line for line in read_lines(texts) if line.strip()))
    controls = [(sorted(sizes)[1], aliases)] if aliases > 1 and len(sizes) > 1 else []
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("vocabularies", total=None)
        sweep = VocabularySweep(
            lines, sizes, aliases=controls, shape=Shape(parameters=parameters, epochs=epochs),
            progress=lambda words: bar.update(job, description=words),
        )  # fmt: skip
        measured = sweep.run(task, range(seeds))
    if not kept(measured, out, as_json=as_json):
        show(Console(), measured.summary)


def parse_merges(text: str) -> tuple[int, ...]:
    """`"0,500"` as `(0, 500)`.

    Raises:
        InputError: something that is no list of integers of at least 0.

    Example:
        >>> parse_merges("0, 500")
        (0, 500)
    """
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"--merges {text!r} is no list of numbers.", "Write it like 0,500,4000.")
    return tuple(int(part) for part in parts)


def show(console: Console, summary: dict[str, Any]) -> None:
    """The figure of every vocabulary, and what the sizes have to do with it."""
    from palimpsest.numbers import interval

    figure = summary["figure"]
    table = Table(box=None, header_style="bold")
    for heading in ("vocabulary", "ids", "parameters", "tokens a text", figure):
        table.add_column(heading, justify="left" if heading == "vocabulary" else "right")
    for row in summary["arms"]:
        table.add_row(
            row["arm"], f"{row['vocabulary']:,}", f"{row['parameters']:,}", f"{row['tokens']:.1f}", interval(*row[figure].values())
        )
    console.print(table)
    rank = (
        "no rank correlation, all are equal"
        if summary["spearman"] is None
        else f"rank correlation with the size {summary['spearman']:+.2f}"
    )
    console.print(f"Largest less smallest: {100 * summary['difference']:+.1f} points; {rank}.", highlight=False)
    for row in summary["controls"]:
        console.print(f"{row['arm']} against {row['base']}: {100 * row['difference']:+.1f} points.", highlight=False)
