"""`palimpsest traps`: make sequences that nobody else writes, plant them in documents, ask a model whether it knows them (007)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.options import Json
from palimpsest.cli.split import read_records, require_field
from palimpsest.errors import CorpusError, InputError
from palimpsest.files import storage_errors, write_text

if TYPE_CHECKING:
    from palimpsest.measurement import Measurement

_Number = TypeVar("_Number", int, float)

app = typer.Typer(no_args_is_help=True)

Documents = Annotated[Path, typer.Argument(metavar="FILE.jsonl", help='One JSON object a line, the text in the field "text".')]


@app.command()
def make(
    model: Annotated[str, typer.Argument(help="The reference model: a known name, a folder, a hub id or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="Where to write the traps, as JSON.")],
    n: Annotated[int, typer.Option("--traps", min=1, help="Traps of every length and bucket, siblings included.")] = 40,
    length: Annotated[str, typer.Option(help="Tokens of a trap, a list.")] = "25,50,100",
    buckets: Annotated[str, typer.Option(help="Ranges of perplexity LOW-HIGH, a list.")] = ",".join(
        f"{low}-{low + 10}" for low in range(1, 101, 10)
    ),
    temperatures: Annotated[str, typer.Option(help="Of the sampling, a list; higher surprises more.")] = "0.5,1,1.5,2,2.5,3,3.5,4",
    cell: Annotated[float, typer.Option(help="Width of the cells of a bucket that get equally many traps.")] = 1.0,
    max_jaccard: Annotated[float, typer.Option(help="Greatest share of tokens that two traps may have in common.")] = 0.2,
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 128,
    max_rounds: Annotated[int, typer.Option(min=1, help="Rounds over all temperatures before giving up.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Make traps with a reference model."""
    lengths = numbers(length, "--length", int)
    grid = numbers(temperatures, "--temperatures", float)
    ranges = [_range(part) for part in buckets.split(",")]
    from palimpsest.audit.traps import TrapFactory
    from palimpsest.models import load_model

    factory = TrapFactory(load_model(model), temperatures=grid, cell=cell, max_jaccard=max_jaccard, batch=batch, max_rounds=max_rounds)
    made = factory.make(n, lengths, ranges, seed)
    made.save(out)
    value = {"out": str(out), "traps": len(made.traps), **made.provenance}
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    typer.echo(f"{len(made.traps)} traps, of {value['samples']['drawn']:,} samples, written to {out}. For example:")
    typer.echo(f"  {made.traps[-1].text!r} (perplexity {made.traps[-1].perplexity:.1f})")


@app.command()
def inject(
    file: Documents,
    traps: Annotated[Path, typer.Argument(metavar="TRAPS.json", help="What `traps make` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder to write documents.jsonl and manifest.json to.")],
    copies: Annotated[str, typer.Option(help="How often a trap is planted, a list; each for equally many traps.")] = "1,10,100,1000",
    siblings: Annotated[int, typer.Option(min=1, help="Traps kept back for every planted one.")] = 1,
    min_words: Annotated[int, typer.Option(min=1, help="Shorter documents get no trap.")] = 4000,
    fuzzy: Annotated[int, typer.Option(min=0, help="Words replaced in every copy, against the removal of repeated passages.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of what goes where.")] = 0,
    as_json: Json = False,
) -> None:
    """Plant traps in documents; the manifest is the proof: keep it secret."""
    from palimpsest.audit.traps import TrapSet
    from palimpsest.audit.traps_injection import inject as plant

    records = _records(file)
    levels = numbers(copies, "--copies", int)
    texts, manifest = plant(
        [record["text"] for record in records], TrapSet.load(traps), levels, siblings=siblings, min_words=min_words, fuzzy=fuzzy, seed=seed
    )
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record | {"text": text}, ensure_ascii=False) for record, text in zip(records, texts, strict=True)]
    write_text(out / "documents.jsonl", "".join(f"{line}\n" for line in lines))
    manifest.save(out / "manifest.json")
    total = sum(planting.copies for planting in manifest.plantings)
    value = {"out": str(out), "documents": len(texts), "planted": len(manifest.plantings), "copies": total, "seed": seed}
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    typer.echo(f"{value['planted']} traps planted, {total:,} copies in all, in {len(texts):,} documents. Written to {out}.")
    typer.echo("Keep manifest.json secret: it proves the traps, and removes them.")


@app.command()
def detect(
    model: Annotated[str, typer.Argument(help="The model under suspicion: a name, a folder, a hub id, .gguf or http://host/v1#name.")],
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST.json", help="What `traps inject` wrote.")],
    reference: Annotated[str | None, typer.Option(help="A model that never saw the traps, such as the one that made them.")] = None,
    documents: Annotated[Path | None, typer.Option(help="The documents with their traps, for --context-tokens.")] = None,
    context_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the document shown in front of a trap.")] = 0,
    unit: Annotated[str, typer.Option(help="token, or character where the reference has another tokenizer.")] = "token",
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of an endpoint: a folder or a tokenizer.json.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the whole measurement to this file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the context and the intervals.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask whether a model was trained on documents with traps."""
    from palimpsest.audit.traps_detection import detect as measure
    from palimpsest.audit.traps_injection import Manifest
    from palimpsest.models import load_model

    known = Manifest.load(manifest)
    texts = None if documents is None else [record["text"] for record in _records(documents)]
    result = measure(
        load_model(model, tokenizer=tokenizer),
        known,
        reference=None if reference is None else load_model(reference),
        documents=texts,
        context_tokens=context_tokens,
        unit=unit,
        seed=seed,
    )
    if out is not None:
        result.save(out)
    if as_json:
        typer.echo(json.dumps(json.loads(result.to_json())["summary"], ensure_ascii=False))
    else:
        _show(result)


def numbers(text: str, option: str, kind: Callable[[str], _Number]) -> list[_Number]:
    """The numbers in "25,50".

    Raises:
        InputError: something else stands there.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is {text!r}.", "Give numbers separated by commas.") from error


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise InputError(f"--buckets holds {text!r}.", "Give ranges such as 1-11,11-21.") from error


def _records(file: Path) -> list[dict[str, Any]]:
    _, records = read_records(file)
    require_field(records, "text", file)
    for number, record in enumerate(records, start=1):
        if not isinstance(record["text"], str):
            raise CorpusError(f"The text of record {number} of {file} is a {type(record['text']).__name__}.", "Write a string.")
    return records


def _show(result: Measurement) -> None:
    """The table of AUCs, and the owner's verdict."""
    console = Console()
    table = Table(box=None, header_style="bold")
    for heading in ("tokens", "copies", "score", "AUC", "95 %", "traps"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for row in result.summary["levels"]:
        interval = f"{row['low_ci']:.2f} to {row['high_ci']:.2f}"
        table.add_row(str(row["length"]), str(row["copies"]), row["method"], f"{row['auc']:.2f}", interval, str(row["n"]))
    console.print(table)
    owner = result.summary["owner"]
    console.print(
        f"A model that never saw the traps ranks them so high by {owner['score']} with probability {owner['p']:.2g}.",
        markup=False,
        highlight=False,
    )
