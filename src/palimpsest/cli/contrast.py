"""`palimpsest contrast`: how do the clozes that a model has memorized differ from those that it has not?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from palimpsest.cli.measured import columns
from palimpsest.cli.options import Json
from palimpsest.errors import InputError

_FACTORS = ("prompt_tokens", "prompt_words", "answer_letters", "answer_tokens", "answer_frequency")
_CONFIDENCE = ("max_logprob", "entropy", "margin")


def contrast(
    model: Annotated[str, typer.Argument(help="The model, with its weights.")],
    items: Annotated[
        Path | None, typer.Argument(help='JSON lines {"prompt", "answer", "category", "concept", "pos"}; by default idioms and facts.')
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers compared, like 0,15,30; by default the first, the quarters, the last.")] = None,
    index: Annotated[Path | None, typer.Option(help="The index of the training corpus, for how often it has the answers.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the matching and of the folds.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the measurement, with one row a cloze, to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Split clozes by whether MODEL completes them, and compare the groups by text, confidence and hidden state."""
    chosen = parse_layers(layers)
    from palimpsest.audit.contrast import measure_contrast
    from palimpsest.audit.contrast_items import builtin_clozes
    from palimpsest.audit.contrast_readings import read_items
    from palimpsest.cli.audit import progress_bar
    from palimpsest.corpus import CorpusIndex
    from palimpsest.models import load_model

    clozes = read_items(items) if items is not None else builtin_clozes()
    corpus = CorpusIndex.open(index) if index is not None else None
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("loading", total=None)
        door = load_model(model)
        bar.update(task, description="reading clozes")
        measured = measure_contrast(
            door, clozes, layers=chosen, index=corpus, seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if out is not None:
        measured.save(out)
    if as_json:
        typer.echo(json.dumps({"model": door.name, **measured.summary}, ensure_ascii=False, allow_nan=False))
        return
    show(Console(), door.name, measured.summary)


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`"0,15"` as `(0, 15)`.

    Raises:
        InputError: something that is no list of integers of at least 0.

    Example:
        >>> parse_layers("0,15")
        (0, 15)
    """
    if text is None:
        return None
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"--layers {text!r} is no list of layers.", "Write it like 0,15,30.")
    return tuple(int(part) for part in parts)


def show(console: Console, name: str, summary: dict[str, Any]) -> None:
    """The rates, the factors of all items, the layers and the contexts on the terminal."""
    from palimpsest.numbers import number, percent

    for scope, rate in summary["rates"].items():
        console.print(f"{name} has memorized {percent(rate['rate'])} of {rate['n']:,} clozes ({scope}).", highlight=False, markup=False)
    if not summary["comparable"]:
        console.print(summary["reason"], highlight=False)
        return
    table = columns("factor", "memorized", "rest", "Cliff's δ", "adjusted p", "δ at equal length")
    for row in summary["tests"]:
        if row["scope"] == "all" and row["factor"] in (*_FACTORS, *_CONFIDENCE):
            again = "–" if row["matched_delta"] is None else f"{row['matched_delta']:+.2f}"
            means = (number(row["memorized"]), number(row["rest"]))
            table.add_row(row["factor"].replace("_", " "), *means, f"{row['delta']:+.2f}", f"{row['adjusted']:.2g}", again)
    console.print(table)
    table = columns("hidden state at", "layer", "probe's AUC", "shuffled", "silhouette")
    for row in summary["layers"]:
        if row["scope"] == "all":
            figures = [f"{row[figure]:.2f}" for figure in ("auc", "shuffled_auc", "silhouette")]
            table.add_row("last prompt token" if row["place"] == "prompt" else "answer", str(row["layer"]), *figures)
    console.print(table)
    if summary["concepts"]:
        table = columns("cosine between contexts, layer", "memorized", "rest", "Cliff's δ", "p")
        for row in summary["concepts"]:
            means = (f"{row['memorized']:.3f}", f"{row['rest']:.3f}")
            table.add_row(str(row["layer"]), *means, f"{row['delta']:+.2f}", f"{row['p']:.2g}")
        console.print(table)
    console.print("Confidence differs by definition: a greedy answer is the likeliest one. See the margins in --json.", style="dim")
