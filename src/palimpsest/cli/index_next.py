"""`palimpsest index next`: which tokens follow a passage in the corpus."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest.cli.index_passage import Folder, Ids, Passage, open_index, read_queries
from palimpsest.cli.options import Json
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex, NextTokenDist


def next_tokens(
    index: Folder,
    text: Passage = None,
    ids: Ids = None,
    infgram: Annotated[bool, typer.Option("--infgram", help="After the longest end of the passage that the corpus continues.")] = False,
    min_count: Annotated[int | None, typer.Option(min=1, help="How often that end must occur, with --infgram; 1 unless given.")] = None,
    max_support: Annotated[int | None, typer.Option(min=1, help="Estimate from so many occurrences where there are more.")] = None,
    seed: Annotated[int, typer.Option(help="Of that estimate.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many tokens, the most frequent first.")] = 10,
    as_json: Json = False,
) -> None:
    """Which tokens follow a passage, and how often: of the whole passage, or with --infgram of what the corpus knows of its end."""
    if min_count is not None and not infgram:
        raise InputError("--min-count is for the end of a passage that --infgram looks for.", "Add --infgram, or leave it out.")
    opened = open_index(index)
    answers: dict[tuple[int, ...], dict[str, Any]] = {}
    for name, query in read_queries(opened, text, ids).items():
        dist = opened.infgram_ntd(query, min_count or 1, max_support, seed) if infgram else opened.ntd(query, max_support, seed)
        context = query[len(query) - dist.suffix_len :]
        answers.setdefault(tuple(context), describe(opened, name, query, dist, limit))  # both readings may have the same end
    if as_json:
        typer.echo(json.dumps({"parts": list(answers.values())}, ensure_ascii=False))
        return
    for answer in answers.values():
        show(answer)


def describe(index: CorpusIndex, name: str, query: list[int], dist: NextTokenDist, limit: int) -> dict[str, Any]:
    """A distribution as plain JSON types, its `limit` most frequent tokens alone."""
    top = np.argsort(-dist.counts, kind="stable")[:limit]
    rows = zip(dist.ids[top].tolist(), dist.counts[top].tolist(), dist.probs[top].tolist(), strict=True)
    return {
        "as": name,
        "ids": query,
        "suffix_len": dist.suffix_len,
        "total": dist.total,
        "eod_count": dist.eod_count,
        "distinct": dist.ids.size,
        "approx": dist.approx,
        "next": [
            {"id": i, "text": index.tokenizer.decode([i]) if index.tokenizer else None, "count": count, "prob": prob}
            for i, count, prob in rows
        ],
    }


def show(answer: dict[str, Any]) -> None:
    """Prints one distribution as a table."""
    least, about = ("at least ", "≈ ") if answer["approx"] else ("", "")
    line = (
        f"{answer['as']}, {answer['suffix_len']} of {len(answer['ids'])} tokens: followed {answer['total']:,} times,"
        f" by {least}{answer['distinct']:,} different tokens; {answer['eod_count']:,} times at the end of a document"
    )
    console = Console()
    console.print(Text(line, style="dim"))
    if not answer["next"]:
        return
    table = Table(box=None, header_style="bold")
    for column in ("id", "count", "probability"):
        table.add_column(column, justify="right")
    table.add_column("token")
    for row in answer["next"]:
        token = "" if row["text"] is None else repr(row["text"])  # quoted: many tokens begin with a space
        table.add_row(str(row["id"]), f"{about}{row['count']:,}", f"{row['prob']:.4f}", Text(token))
    console.print(table)
