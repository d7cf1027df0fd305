"""`palimpsest index near`: the passages of the corpus that are nearly the given one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from palimpsest.cli.index_passage import Folder, Ids, Passage, as_text, open_index, read_queries
from palimpsest.cli.options import Json
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus import NearMatch


def near(
    index: Folder,
    text: Passage = None,
    ids: Ids = None,
    edits: Annotated[int | None, typer.Option(min=0, help="Tokens that may differ; by default a tenth of the passage.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many passages, the nearest first.")] = 10,
    context: Annotated[int, typer.Option(min=0, help="Tokens to show before and after.")] = 20,
    as_json: Json = False,
) -> None:
    """The passages that a few inserted, deleted or replaced tokens turn into this one."""
    if text == "-":
        text = typer.get_text_stream("stdin").read()
    opened = open_index(index)
    found: dict[tuple[int, int], NearMatch] = {}
    complete = True
    for query in read_queries(opened, text, ids).values():
        allowed = max(1, len(query) // 10) if edits is None else edits
        if len(query) <= allowed:
            raise InputError(f"The passage has {len(query)} tokens, and {allowed} may differ.", "Give a longer one, or fewer --edits.")
        answer = opened.near(query, allowed, limit=limit, context=context)
        complete &= answer.complete
        for match in answer.matches:  # a place that both readings of the passage find counts at its lesser distance
            place = (match.hit.index, match.hit.offset)
            if place not in found or match.distance < found[place].distance:
                found[place] = match
    nearest = sorted(found.values(), key=lambda match: (match.distance, match.hit.index, match.hit.offset))[:limit]
    if as_json:
        rows = [
            {
                "document": match.hit.doc_id,
                "index": match.hit.index,
                "offset": match.hit.offset,
                "distance": match.distance,
                **{name: as_text(opened, getattr(match.hit, name)) for name in ("before", "match", "after")},
            }
            for match in nearest
        ]
        typer.echo(json.dumps({"complete": complete, "passages": rows}, ensure_ascii=False))
        return
    console = Console()
    for match in nearest:
        hit = match.hit
        before, middle, after = (as_text(opened, part) for part in (hit.before, hit.match, hit.after))
        console.print(Text(f"{match.distance} edits: {hit.doc_id} (document {hit.index}, token {hit.offset})", style="dim"))
        console.print(Text.assemble("  … ", before, (middle, "bold reverse"), after, " …"))
    if not nearest:
        console.print("No passage of the corpus is that near.")
    if not complete:
        console.print("Some parts of the passage are too frequent to be followed everywhere: there may be more.")
