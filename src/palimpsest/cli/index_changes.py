"""`palimpsest index delete`, `append` and `compact`: what changes an index without building it again, and what tidies up."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from palimpsest.cli.index_passage import Folder, open_index
from palimpsest.cli.options import Json, Memory
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex


def delete(
    index: Folder,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names, as `find` shows them.")] = None,
    number: Annotated[list[int] | None, typer.Option(help="A document's number; may be given several times.")] = None,
    as_json: Json = False,
) -> None:
    """Take documents out of the index; their tokens stay on the disk until `compact`."""
    if not names and not number:
        raise InputError("No document is given.", "Give names, or numbers with --number.")
    show_change(open_index(index).delete([*(names or []), *(number or [])]), as_json=as_json)


def append(
    index: Folder,
    corpus: Annotated[Path, typer.Argument(help="A corpus, as for `palimpsest index build`.")],
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Add the documents of CORPUS to the index, in a shard of their own; when interrupted, the same command continues."""
    with progress_bar() as progress:
        changed = open_index(index).append(corpus, memory=memory, progress=progress)
    show_change(changed, as_json=as_json)


def compact(
    index: Folder,
    out: Annotated[Path | None, typer.Option(help="Where to; by default in place.")] = None,
    shards: Annotated[int, typer.Option(help="Parts that are sorted on their own: more need less memory.")] = 1,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Build the index anew from what is left of it; nothing of the deleted documents stays in its files."""
    with progress_bar() as progress:
        changed = open_index(index).compact(index if out is None else out, shards=shards, memory=memory, progress=progress)
    show_change(changed, as_json=as_json)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on stderr for every stage of a build; yields what the build is to call."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress


def show_change(index: CorpusIndex, *, as_json: bool) -> None:
    """Prints what the index holds now."""
    value = {
        "path": str(index.path),
        "documents": index.n_documents,
        "tokens": index.n_tokens,
        "shards": len(index.manifest["shards"]),
        "fingerprint": index.fingerprint,
    }
    if as_json:
        typer.echo(json.dumps(value))
    else:
        typer.echo(f"{index.path}: {index.n_documents:,} documents, {index.n_tokens:,} tokens, {value['shards']} shards.")
