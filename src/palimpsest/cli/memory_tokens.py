"""`palimpsest memory-tokens`: write texts into input vectors of a frozen model, read them back, measure how long a text they hold (002)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.options import Json, writable
from palimpsest.errors import InputError

app = typer.Typer(no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="The model, with its weights: a known name, a folder, a hub id or a .gguf file.")]
Texts = Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Texts, or folders of them; every document is a text.")]
Before = Annotated[str, typer.Option(help="What stands in front of the vectors, a special token for instance.")]
Vectors = Annotated[int, typer.Option("--vectors", min=1, help="Input vectors a text.")]
Optimizer = Annotated[str, typer.Option(help="adam, or sgd as in the paper.")]
Rate = Annotated[float | None, typer.Option(help="The optimizer's rate [default: 0.05 for adam, 5 for sgd].")]
Steps = Annotated[int, typer.Option(min=0, help="The most steps; a text that is right stops earlier.")]
Init = Annotated[str, typer.Option(help="Start from the mean of the embedding (mean), or from drawn tokens (token).")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn.")]


@app.command()
def write(
    model: Model,
    texts: Texts,
    out: Annotated[Path, typer.Option(help="The folder to write the vectors and their record to.")],
    before: Before = "",
    vectors: Vectors = 1,
    optimizer: Optimizer = "adam",
    lr: Rate = None,
    steps: Steps = 3000,
    init: Init = "mean",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train input vectors from which MODEL writes every text back."""
    from palimpsest.cli.audit import progress_bar
    from palimpsest.latent import MemoryTokens
    from palimpsest.models import load_model

    writable(out / "memories.json")
    names, contents = _read(texts)
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("writing", total=None)
        bank = MemoryTokens(load_model(model), before).encode(
            contents, n_tokens=vectors, optimizer=optimizer, lr=lr, max_steps=steps, init=init, seed=seed,
            progress=lambda done, total: bar.update(job, completed=done, total=total),
        )  # fmt: skip
    bank.save(out)
    found: list[dict[str, Any]] = [
        {"text": name, "tokens": memory.length, "exact": memory.exact, "accuracy": memory.accuracy, "steps": memory.steps}
        for name, memory in zip(names, bank.memories, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps({"out": str(out), "texts": found, **bank.settings}, ensure_ascii=False))
        return
    table = _table("text", "tokens", "given back", "right in place", "steps")
    for row in found:
        table.add_row(row["text"], f"{row['tokens']:,}", "yes" if row["exact"] else "no", f"{row['accuracy']:.0%}", f"{row['steps']:,}")
    Console().print(table)


@app.command()
def read(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="MEMORIES", help="The folder that `memory-tokens write` wrote.")],
    number: Annotated[int | None, typer.Option(min=1, help="Read this text alone, counted from 1.")] = None,
    as_json: Json = False,
) -> None:
    """Have MODEL write out what its vectors hold."""
    from palimpsest.latent import MemoryBank, MemoryTokens
    from palimpsest.models import load_model

    bank = MemoryBank.load(folder)
    if number is not None and number > len(bank):
        raise InputError(f"--number is {number}, but {folder} holds {len(bank)} texts.", f"Give 1 to {len(bank)}.")
    tokens = MemoryTokens(load_model(model), bank.settings["before"])
    if tokens.model.fingerprint != bank.model:
        raise InputError(
            f"{folder} was written with the model {bank.model[:12]}, {model} is {tokens.model.fingerprint[:12]}.",
            "Vectors mean nothing to another model: give the one that they were trained with.",
        )
    chosen = range(len(bank)) if number is None else [number - 1]
    written = [tokens.model.tokenizer.decode(tokens.decode(bank[i], bank.memories[i].length + 1)) for i in chosen]
    if as_json:
        found = [{"number": i + 1, "exact": bank.memories[i].exact, "text": text} for i, text in zip(chosen, written, strict=True)]
        typer.echo(json.dumps({"texts": found}, ensure_ascii=False))
        return
    for text in written:
        typer.echo(text)


@app.command()
def measure(
    model: Model,
    texts: Texts,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of a beginning; may be repeated [default: 8, 16 and 32].")] = None,
    random: Annotated[int | None, typer.Option(min=0, help="Random sequences of each length [default: as many as texts].")] = None,
    before: Before = "",
    vectors: Vectors = 1,
    optimizer: Optimizer = "adam",
    lr: Rate = None,
    steps: Steps = 3000,
    init: Init = "mean",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure how long beginnings of the texts one memory holds, beside random tokens."""
    from palimpsest.cli.audit import progress_bar
    from palimpsest.evaluation.reversible import measure_reversible
    from palimpsest.models import load_model

    _, contents = _read(texts)
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("writing and reading", total=None)
        measured = measure_reversible(
            load_model(model), contents, length or (8, 16, 32), before=before, random=random, seed=seed,
            progress=lambda done, total: bar.update(job, completed=done, total=total),
            n_tokens=vectors, optimizer=optimizer, lr=lr, max_steps=steps, init=init,
        )  # fmt: skip
    if as_json:
        typer.echo(measured.to_json())
        return
    show(Console(), measured.summary)


def show(console: Console, summary: dict[str, Any]) -> None:
    """Exact rates by kind and length, and the controls."""
    from palimpsest.numbers import interval

    table = _table("what", "tokens", "given back", "right in place", "bits to carry", "steps")
    for level in summary["levels"]:
        means = (f"{level['accuracy']:.0%}", f"{level['bits']:,.0f}", f"{level['steps']:,.0f}")
        table.add_row(level["kind"], f"{level['length']:,}", interval(*level["exact"].values()), *means)
    console.print(table)
    controls = {name: sum(level[name] for level in summary["levels"]) for name in ("untrained", "swapped")}
    console.print(f"Given back by the untrained vector: {controls['untrained']}; by the next text's vector: {controls['swapped']}.")
    reach = "no length that was tried" if summary["reach"] is None else f"{summary['reach']:,} tokens"
    console.print(f"At least half the texts come back up to: {reach}.", highlight=False)


def _read(paths: list[Path]) -> tuple[list[str], list[str]]:
    """Names and contents of the documents."""
    from palimpsest.corpus.documents import read_documents

    documents = [document for path in paths for document in read_documents(path)]
    return [document.id for document in documents], [str(document.text) for document in documents]


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("text", "what") else "right")
    return table
