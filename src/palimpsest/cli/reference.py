"""`palimpsest reference`: where does the answer stand? A model names the article and the words, and the passage is looked up (009)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from palimpsest.cli.options import Json

if TYPE_CHECKING:
    from palimpsest.recall import Article


def reference(
    model: Annotated[str, typer.Argument(help="The model, with its weights: a known name, a folder, a hub id or a .gguf file.")],
    articles: Annotated[
        Path, typer.Argument(help='Texts, or a folder of them; the title is the field "title", or else the name without its ending.')
    ],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What is asked.")],
    k: Annotated[int, typer.Option("--passages", min=1, help="The most passages shown for a question.")] = 3,
    titles: Annotated[int, typer.Option(min=0, help="Titles kept; 0 asks for none and looks in all articles at once.")] = 2,
    title_beams: Annotated[int, typer.Option(min=1, help="Beams of the search for titles.")] = 15,
    passage_beams: Annotated[int, typer.Option(min=1, help="Beams of the search for the passage's beginning.")] = 10,
    prefix: Annotated[int, typer.Option(min=1, help="Tokens written to find a passage.")] = 16,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a passage.")] = 150,
    weight: Annotated[float, typer.Option(help="Of the title's score, from 0 to 1.")] = 0.9,
    as_json: Json = False,
) -> None:
    """Have MODEL recall, without an index, which passages of ARTICLES answer a question."""
    from palimpsest.cli.audit import progress_bar
    from palimpsest.models import load_model
    from palimpsest.recall import ReferenceRecall

    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("recalling", total=None)
        recall = ReferenceRecall(
            load_model(model), read_articles(articles), n_titles=titles or None, title_beams=title_beams, passage_beams=passage_beams,
            prefix_len=prefix, passage_len=length, lam=weight,
        )  # fmt: skip
        found = recall.search_batch(questions, k, lambda done, total: bar.update(job, completed=done, total=total))
    if as_json:
        answers = [
            {"question": question, "references": [asdict(one) for one in every]} for question, every in zip(questions, found, strict=True)
        ]
        typer.echo(json.dumps({"answers": answers}, ensure_ascii=False, allow_nan=False))
        return
    console = Console()
    for question, every in zip(questions, found, strict=True):
        console.print(question, style="bold", highlight=False, markup=False)
        for one in every:
            console.print(f"{one.title}, tokens {one.start:,} to {one.end:,} (score {one.score:.2f})", highlight=False, markup=False)
            console.print(" ".join(one.text.split()), style="dim", highlight=False, markup=False)


def read_articles(path: Path) -> list[Article]:
    """The documents at a path as articles; those that bear no title are called as their file is."""
    from palimpsest.corpus.documents import read_documents
    from palimpsest.recall import Article

    return [
        Article(document.id, str(document.metadata.get("title") or PurePosixPath(document.id).stem.replace("_", " ")), str(document.text))
        for document in read_documents(path)
    ]
