"""`palimpsest function-tokens`: do a few frequent tokens activate most of a model's features, and where is the loss (097)?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from palimpsest.cli.measured import columns, kept
from palimpsest.cli.options import Json, writable


def function_tokens(
    model: Annotated[str, typer.Argument(help="The model, with its weights.")],
    texts: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Texts, or folders of them.")],
    layers: Annotated[str | None, typer.Option(help="Layers read, like 8,15,24; by default a shallow, a middle and a deep one.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="The most tokens read.")] = 40_000,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 128,
    mass: Annotated[float, typer.Option(help="Share of all occurrences that function tokens make up.")] = 0.4,
    expansion: Annotated[int, typer.Option(min=1, help="Features for every dimension of a state.")] = 8,
    active: Annotated[int, typer.Option("--k", min=1, help="Features of a state.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Of the autoencoders.")] = 4,
    control: Annotated[bool, typer.Option(help="Also measure the same architecture with random weights.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of autoencoders and draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option(callback=writable, help="Write the measurement, with one row a token and layer, to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train sparse autoencoders on a model's states at TEXTs, and see which tokens their features are active at."""
    from palimpsest.audit.function_activation import measure_function_tokens, text_rows
    from palimpsest.audit.sae import SAEConfig
    from palimpsest.cli.audit import progress_bar
    from palimpsest.cli.contrast import parse_layers
    from palimpsest.corpus.documents import read_documents
    from palimpsest.models import load_model

    chosen = parse_layers(layers)
    documents = [str(document.text) for path in texts for document in read_documents(path)]
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("loading", total=None)
        door = load_model(model)
        bar.update(job, description="layers")
        measured = measure_function_tokens(
            door, text_rows(door.tokenizer, documents, length, tokens), chosen, mass=mass,
            sae=SAEConfig(expansion, active, epochs), control=control, seed=seed,
            progress=lambda done, total: bar.update(job, completed=done, total=total),
        )  # fmt: skip
    if not kept(measured, out, as_json=as_json):
        show(Console(), measured.summary)


def show(console: Console, summary: dict[str, Any]) -> None:
    """What the tokens are, what they cover by layer, and where the loss is."""
    from palimpsest.numbers import percent

    frequent = " ".join(repr(text) for text in summary["most_frequent"])
    console.print(
        f"{summary['function_tokens']:,} function tokens make up {percent(summary['function_share'])} of all: {frequent} …",
        highlight=False, markup=False,
    )  # fmt: skip
    table = columns("model, layer", "features", "explained", "C(10)", "C(100)", "10 by lot", "function / content")
    for row in summary["layers"]:
        lot = "–" if row["coverage_random_10"] is None else percent(row["coverage_random_10"])
        ratio = row["control"]
        figures = (percent(row["explained_variance"]), percent(row["coverage_10"]), percent(row["coverage_100"]), lot)
        table.add_row(
            f"{row['model']}, {row['layer']}", f"{row['features']:,}", *figures,
            f"{ratio['estimate']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        )  # fmt: skip
    console.print(table)
    table = columns("loss", "nat a token", "share of tokens", "share of loss")
    for row in summary["losses"]:
        mean = "–" if row["loss"] is None else f"{row['loss']:.2f}"
        table.add_row(row["cell"], mean, percent(row["share"]), percent(row["loss_share"]))
    console.print(table)
    console.print("function / content: features at equally many occurrences; above 1 there is more to it than frequency.", style="dim")
