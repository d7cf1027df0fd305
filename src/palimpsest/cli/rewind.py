"""`palimpsest rewind`: does a prompt that declares an earlier end of knowledge make a model answer as of then (099)?"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.measured import kept
from palimpsest.cli.options import Json, writable


def rewind(
    model: Annotated[str, typer.Argument(help="The model: a known name, a folder, a .gguf file, a hub id or an endpoint.")],
    items: Annotated[
        Path | None,
        typer.Argument(help='JSON lines {"id", "subset", "question", "year", "now", "then", "options"}; by default our own.'),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="YAML of prompts; by default P1 and P2.")] = None,
    frame: Annotated[str, typer.Option(help="plain, chatml, or a text with {system} and {user}.")] = "plain",
    subset: Annotated[list[str] | None, typer.Option(help="factual, semantic or counterfactual; may be repeated [default: all].")] = None,
    this_year: Annotated[int | None, typer.Option(help="The present year, whose end the placebo declares [default: by the clock].")] = None,
    embedder: Annotated[str | None, typer.Option(help="Model whose mean states compare definitions [default: the model itself].")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 256,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of an endpoint: a folder or a tokenizer.json.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of options.")] = 0,
    out: Annotated[Path | None, typer.Option(callback=writable, help="Write the measurement, with every answer, to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a model what was right before a year, with and without prompts that declare that its knowledge ends there."""
    from palimpsest.cli.audit import progress_bar
    from palimpsest.errors import InputError
    from palimpsest.evaluation.rewind import mean_state_embedder, measure_rewind
    from palimpsest.evaluation.rewind_items import DEFAULT_ITEMS, DEFAULT_PROMPTS, SUBSETS, read_prompts, read_rewind_items
    from palimpsest.models import load_model
    from palimpsest.models.hf import HFModel

    wanted = subset or list(SUBSETS)
    if not set(wanted) <= set(SUBSETS):
        raise InputError(f"--subset {', '.join(wanted)} is unknown.", f"Choose of {', '.join(SUBSETS)}.")
    chosen = [item for item in read_rewind_items(items or DEFAULT_ITEMS) if item.subset in wanted]
    wordings = list(read_prompts(prompts or DEFAULT_PROMPTS, frame).values())
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("loading", total=None)
        door = load_model(model, tokenizer=tokenizer)
        reader = load_model(embedder) if embedder else door
        compare = None
        if isinstance(reader, HFModel):
            compare = mean_state_embedder(reader, int(reader.model.config.get_text_config().num_hidden_layers) * 2 // 3)
        bar.update(job, description="asking")
        measured = measure_rewind(
            door, chosen, wordings, this_year=this_year or datetime.now(UTC).year, embedder=compare, max_new_tokens=max_new_tokens,
            seed=seed, progress=lambda done, total: bar.update(job, completed=done, total=total),
        )  # fmt: skip
    if not kept(measured, out, as_json=as_json):
        show(Console(), measured.summary)


def show(console: Console, summary: dict[str, Any]) -> None:
    """The paper's success and what it is made of, by prompt and subset."""
    from palimpsest.numbers import percent

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("prompt, subset", "n", "success", "then", "now", "other", "n/a", "known", "placebo", "net"):
        table.add_column(heading, justify="left" if heading == "prompt, subset" else "right", no_wrap=True)
    for row in summary["rates"]:
        shares = ["–" if row[name] is None else percent(row[name]) for name in ("then", "now", "other", "na")]
        rates = {name: _rate(row[name]) for name in ("success", "known", "placebo_change")}
        effect = "–" if row["corrected"] is None else f"{100 * row['corrected']['estimate']:+.0f}"
        table.add_row(
            f"{row['prompt']}, {row['subset']}", str(row["n"]), rates["success"], *shares, rates["known"], rates["placebo_change"], effect
        )
    console.print(table)
    for row in summary["retention"]:
        if row["subset"] == "all":
            console.print(f"{row['prompt']}: {_rate(row['right'])} of {row['n']} known unchanged answers stay right.", highlight=False)
    console.print(
        "success: not today's answer, whatever else. n/a: refused or unreadable. placebo: known answers that a year to come "
        "changes. net: success on known items less that, in points.", style="dim",
    )  # fmt: skip


def _rate(interval: dict[str, float] | None) -> str:
    from palimpsest.numbers import percent

    return "–" if interval is None else percent(interval["estimate"])
