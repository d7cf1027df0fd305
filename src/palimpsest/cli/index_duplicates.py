"""`palimpsest index duplicates`: what a corpus says twice, and what to drop so that it says it once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli.index_passage import Folder, open_index
from palimpsest.cli.options import Json
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex, Duplicates, NearDuplicates


def duplicates(
    index: Folder,
    min_len: Annotated[int | None, typer.Option(help="Repeated passages of so many tokens and more count; 50 if not given.")] = None,
    near: Annotated[
        float | None, typer.Option(metavar="THRESHOLD", help="Whole documents of this Jaccard similarity (5-grams) instead of passages.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write what to drop here, one JSON object a line.")] = None,
    as_json: Json = False,
) -> None:
    """Passages that repeat an earlier one, or documents that are nearly the same; the first occurrence is always kept."""
    if near is not None and min_len is not None:
        raise InputError("--min-len asks for passages, --near for documents.", "Give one of them.")
    opened = open_index(index)
    if near is not None:
        documents = opened.near_duplicates(near)
        value, rows = summarize_near(documents), near_rows(opened, documents)
        line = (
            f"{value['drop_documents']:,} of {value['documents']:,} documents ({value['share']:.2%}) are near-duplicates of an earlier one "
            f"in {value['clusters']:,} clusters (Jaccard similarity {near} and more; recall at the threshold {value['recall']:.4f})."
        )
    else:
        passages = opened.duplicates(50 if min_len is None else min_len)
        value, rows = summarize_passages(passages), passage_rows(opened, passages)
        line = (
            f"{value['drop_tokens']:,} of {value['tokens']:,} tokens ({value['share']:.2%}) repeat an earlier passage of "
            f"{value['min_len']} tokens or more: {value['ranges']:,} ranges in {value['documents']:,} documents."
        )
    if out is not None:
        write_rows(out, rows)
    if as_json:
        typer.echo(json.dumps(value))
    else:
        typer.echo(line)


def summarize_passages(found: Duplicates) -> dict[str, Any]:
    """Repeated passages in numbers."""
    return {
        "min_len": found.min_len,
        "ranges": len(found),
        "documents": found.documents.size,
        "tokens": found.n_tokens,
        "drop_tokens": found.dropped,
        "share": found.share,
    }


def summarize_near(found: NearDuplicates) -> dict[str, Any]:
    """Near-duplicate documents in numbers."""
    return {
        "threshold": found.threshold,
        "clusters": len(found.clusters),
        "documents": found.n_documents,
        "drop_documents": found.drop.size,
        "share": found.share,
        "candidates": found.candidates,
        "recall": found.recall,
    }


def passage_rows(index: CorpusIndex, found: Duplicates) -> Iterator[dict[str, Any]]:
    """Every range to drop: document, its number, start and end in tokens."""
    for document, start, end in found.ranges.tolist():
        yield {"document": index.document(document)[0], "index": document, "start": start, "end": end}


def near_rows(index: CorpusIndex, found: NearDuplicates) -> Iterator[dict[str, Any]]:
    """Every document to drop, with the document of its cluster that is kept."""
    for cluster in found.clusters:
        kept, *others = cluster.tolist()
        for document in others:
            yield {"document": index.document(document)[0], "index": document, "kept": index.document(kept)[0], "kept_index": kept}


def write_rows(out: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes JSON lines, whole or not at all."""
    from palimpsest.files import atomic_path

    # The bytes of a name that are not UTF-8 become JSON's own escapes.
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
