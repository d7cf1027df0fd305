"""`palimpsest index`: build, check and query the index of a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest.cli.index_changes import append, compact, delete, progress_bar
from palimpsest.cli.index_duplicates import duplicates
from palimpsest.cli.index_export import export
from palimpsest.cli.index_near import near
from palimpsest.cli.index_next import next_tokens
from palimpsest.cli.index_passage import Folder, Ids, Passage, as_text, open_index, read_queries
from palimpsest.cli.options import Json, Memory, OwnModel, OwnTokenizer
from palimpsest.cluster import notices_aside
from palimpsest.errors import InputError, StorageError

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex, Hit
    from palimpsest.tokenizer import Tokenizer

_ABSENT = {
    "tokenizer": "none: built from ids",
    "memory_bound": "none: half of what was free",
    "memory_bound_then": "none: half of what was free",
}
app = typer.Typer(no_args_is_help=True, help="Build, check and query the index of a corpus.")


@app.command()
def build(
    corpus: Annotated[
        Path,
        typer.Argument(help="A text file, a folder, .jsonl[.gz|.zst] or .parquet with a column `text`, or an index folder of infini-gram."),
    ],
    out: Annotated[Path, typer.Option(help="The index folder to write.")],
    tokenizer: OwnTokenizer = None,
    model: OwnModel = None,
    shards: Annotated[int, typer.Option(help="Parts that are sorted on their own.")] = 1,
    memory: Memory = None,
    engine: Annotated[str, typer.Option(help="Where the work is done: local, or ray (a cluster whose machines all see OUT).")] = "local",
    as_json: Json = False,
) -> None:
    """Index CORPUS; an interrupted build continues when the same command is run again."""
    from palimpsest.corpus import CorpusIndex, InfiniGramFolder
    from palimpsest.corpus.manifest import folder_state
    from palimpsest.corpus.memory import resident_memory

    tokenized = (corpus / "tokenized.0").is_file()
    documents = InfiniGramFolder(corpus) if tokenized else corpus
    chosen = None if tokenized and tokenizer is None and model is None else choose_tokenizer(tokenizer, model)
    found = folder_state(out)
    with notices_aside(), progress_bar() as progress:
        before = resident_memory()
        index = CorpusIndex.build(documents, chosen, out, shards=shards, memory=memory, progress=progress, engine=engine)
    after = resident_memory()
    if found is not None and folder_state(out) == found:  # it is the index of this corpus already: what it was given then is not news
        show_info(index, as_json=as_json, more={"built": "earlier", "memory_bound_then": index.manifest.get("memory")})
        return
    peak = max(after[1], before[0]) if before and after else 0  # the kernel's own may be some pages short, see `resident_memory`
    used = {"peak_memory": peak, "build_memory": peak - before[0]} if before and after else {}
    show_info(index, as_json=as_json, more={"built": "now"} | used | {"memory_bound": index.manifest.get("memory")})


@app.command()
def info(index: Folder, as_json: Json = False) -> None:
    """What the index holds."""
    show_info(open_index(index), as_json=as_json)


@app.command()
def verify(index: Folder, as_json: Json = False) -> None:
    """Hash every file again and compare with the manifest; exit code 2 names the file that is damaged."""
    from palimpsest.corpus import CorpusIndex

    opened = CorpusIndex.open(index, verify=True)
    if as_json:
        typer.echo(json.dumps({"path": str(index), "whole": True, "files": len(opened.manifest["files"])}))
    else:
        typer.echo(f"{index}: {len(opened.manifest['files'])} files, all whole.")


@app.command()
def count(index: Folder, text: Passage = None, ids: Ids = None, as_json: Json = False) -> None:
    """How often a passage occurs."""
    opened = open_index(index)
    queries = read_queries(opened, text, ids)
    counts = [opened.count(query) for query in queries.values()]
    if as_json:
        parts = [{"as": name, "ids": query, "count": n} for (name, query), n in zip(queries.items(), counts, strict=True)]
        typer.echo(json.dumps({"count": sum(counts), "parts": parts}))
    else:
        typer.echo(sum(counts))


@app.command()
def find(
    index: Folder,
    text: Passage = None,
    ids: Ids = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many documents.")] = 10,
    context: Annotated[int, typer.Option(min=0, help="Tokens to show before and after.")] = 20,
    as_json: Json = False,
) -> None:
    """The documents that hold a passage, with what stands around it."""
    opened = open_index(index)
    hits: dict[int, Hit] = {}
    for query in read_queries(opened, text, ids).values():
        for hit in opened.documents(query, limit=limit, context=context):
            hits.setdefault(hit.index, hit)
    found = [hits[number] for number in sorted(hits)][:limit]
    if as_json:
        typer.echo(json.dumps({"documents": [describe_hit(opened, hit) for hit in found]}, ensure_ascii=False))
        return
    console = Console()
    for hit in found:
        before, match, after = (as_text(opened, part) for part in (hit.before, hit.match, hit.after))
        console.print(Text(f"{hit.doc_id} (document {hit.index}, token {hit.offset})", style="dim"))
        console.print(Text.assemble("  … ", before, (match, "bold reverse"), after, " …"))
    if not found:
        console.print("No document holds this passage.")


app.command("next")(next_tokens)
app.command("near")(near)
app.command("export")(export)
app.command("duplicates")(duplicates)
app.command("delete")(delete)
app.command("append")(append)
app.command("compact")(compact)


def choose_tokenizer(tokenizer: str | None, model: str | None) -> Tokenizer:
    """The tokenizer that the options name.

    Raises:
        InputError: neither of the two is given, or both.
    """
    if (tokenizer is None) == (model is None):
        raise InputError("An index needs one tokenizer.", "Give --tokenizer or --model, the one that will be asked about this corpus.")
    if tokenizer is not None and Path(tokenizer).is_file():
        from palimpsest.tokenizer import Tokenizer

        return Tokenizer.from_file(tokenizer)
    from palimpsest.models.load import load_model, read_tokenizer  # imports torch: not needed for a file

    return read_tokenizer(tokenizer) if tokenizer is not None else load_model(str(model)).tokenizer


def describe_hit(index: CorpusIndex, hit: Hit) -> dict[str, Any]:
    """A hit as plain JSON types."""
    parts = {name: as_text(index, getattr(hit, name)) for name in ("before", "match", "after")}
    return {"document": hit.doc_id, "index": hit.index, "offset": hit.offset, "metadata": hit.metadata, **parts}


def show_info(index: CorpusIndex, *, as_json: bool, more: dict[str, Any] | None = None) -> None:
    """Prints what an index holds, and `more`, in bytes."""
    try:
        size = sum((index.path / name).stat().st_size for name in index.manifest["files"])
    except OSError as error:
        raise StorageError(f"{index.path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    value = {
        "path": str(index.path),
        "documents": index.n_documents,
        "tokens": index.n_tokens,
        "shards": len(index.manifest["shards"]),
        "token_type": index.manifest["token_dtype"],
        "bytes": size,
        "fingerprint": index.fingerprint,
        "tokenizer": index.tokenizer_fingerprint,
        **(more or {}),
    }
    if as_json:
        typer.echo(json.dumps(value))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, entry in value.items():
        table.add_row(name.replace("_", " "), f"{entry:,}" if isinstance(entry, int) else str(entry or _ABSENT[name]))
    Console().print(table)
