"""`palimpsest alignment`: does a tuned model give its instruction data away behind the bare chat template (041)?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.measured import kept
from palimpsest.cli.options import Json, writable
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.audit.alignment import ChatTemplate


def alignment(
    model: Annotated[str, typer.Argument(help="The tuned model: a known name, a folder, a hub id or a .gguf file.")],
    items: Annotated[Path, typer.Argument(help="What it was tuned on: a document an item, question and answer as one text.")],
    held_out: Annotated[Path, typer.Argument(help="Items of the same source that it was not tuned on, in the same form.")],
    template: Annotated[Path | None, typer.Option(help="A Jinja chat template; by default the model's own.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many to draw.")] = 1000,
    tokens: Annotated[int, typer.Option(min=1, help="The most tokens of a sample.")] = 256,
    threshold: Annotated[float, typer.Option(help="The cosine that is reported beside the calibrated one.")] = 0.95,
    embedder: Annotated[Path | None, typer.Option(help="The folder of a BERT sentence embedder; by default all-MiniLM-L6-v2.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    out: Annotated[Path | None, typer.Option(callback=writable, help="Write the measurement, with one row a sample, to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Sample MODEL behind the tokens that open a user's turn, and match what it writes to ITEMS by meaning and by letters."""
    from palimpsest.audit.alignment import measure_alignment
    from palimpsest.cli.audit import progress_bar
    from palimpsest.models import load_model
    from palimpsest.models.minilm import MiniLM

    known, unseen = read_items(items), read_items(held_out)
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("loading", total=None)
        door = load_model(model)
        chat = chat_template(model, template)
        embed = MiniLM(embedder, progress=lambda stage: bar.update(job, description=stage))
        bar.update(job, description="sampling")
        measured = measure_alignment(
            door, chat, known, unseen, embed, n=samples, threshold=threshold, max_new_tokens=tokens, seed=seed,
            progress=lambda done, total: bar.update(job, completed=done, total=total),
        )  # fmt: skip
    if not kept(measured, out, as_json=as_json):
        show(Console(), measured.summary)


def read_items(path: Path) -> list[str]:
    """The documents at a path as plain texts.

    Raises:
        CorpusError: they cannot be read.
    """
    from palimpsest.corpus.documents import read_documents

    return [" ".join(str(document.text).split()) for document in read_documents(path)]


def chat_template(model: str, file: Path | None) -> ChatTemplate:
    """A file's chat template, or the model's own.

    Raises:
        InputError: the model has none, or the file cannot be read.
    """
    from palimpsest.audit.alignment import ChatTemplate
    from palimpsest.cli.study_files import read_utf8
    from palimpsest.models.chat_template import find_chat_template

    if file is not None:
        return ChatTemplate.from_jinja(read_utf8(file))
    found = find_chat_template(model)
    if found is None:
        raise InputError(f"{model} has no chat template.", "Give one with --template, a Jinja file as transformers renders them.")
    return ChatTemplate.from_jinja(found)


def show(console: Console, summary: dict[str, Any]) -> None:
    """What matched, by each rule, and what the rules are worth."""
    from palimpsest.numbers import interval, percent

    thresholds = summary["thresholds"]
    names = {
        "semantic": f"by meaning, cosine {thresholds['semantic']:.3f} (calibrated)",
        "semantic_paper": f"by meaning, cosine {thresholds['semantic_paper']:.3f}",
        "string": f"by letters, similarity {thresholds['string']:.2f}",
        "swapped": "of these, but for their numbers",
    }
    table = Table(box=None, header_style="bold")
    for heading in ("samples that match an item", "samples", "share", "of the items"):
        table.add_column(heading, justify="left" if heading.startswith("samples that") else "right")
    for name, title in names.items():
        share = interval(*summary["rates"][name].values())
        table.add_row(title, f"{summary['counts'][name]:,}", share, percent(summary["coverage"][name]))
    console.print(table)
    cosines = summary["mean_cosine"]
    console.print(f"Nearest item of a sample: cosine {cosines['samples']:.2f} on average; of a held-out item: {cosines['held_out']:.2f}.")
    console.print(f"{summary['empty']:,} of {summary['samples']:,} samples were empty.", highlight=False)
