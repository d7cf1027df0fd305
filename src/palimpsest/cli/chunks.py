"""`palimpsest chunks`: learn the chunks and variables of a text, and what it costs in them beside Lempel-Ziv (004)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest.errors import CorpusError

_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


def chunks(
    text: Annotated[Path, typer.Argument(metavar="TEXTFILE", help="A text, or any corpus as for `palimpsest index build`; - for stdin.")],
    no_variables: Annotated[bool, typer.Option("--no-variables", help="Chunks alone.")] = False,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Also abstract from units that follow each other by chance.")] = False,
    iterations: Annotated[int, typer.Option(min=0, help="Rounds of learning, at most.")] = 25,
    top: Annotated[int, typer.Option(min=1, help="Chunks and variables that are shown.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Learn chunks and variables, character by character, and compare their code with LZ78 and LZW."""
    from palimpsest.models.chunk_variable import HCM, HVM, TEXT_LIMIT_BITS
    from palimpsest.models.lempel_ziv import LZ78, LZW

    characters = read_text(text)
    with Console(stderr=True).status(f"learning from {len(characters):,} characters …"):
        if no_variables:
            model: HVM = HCM(max_iter=iterations, limit_bits=TEXT_LIMIT_BITS)
        else:
            model = HVM(max_iter=iterations, limit_bits=TEXT_LIMIT_BITS, dependent_only=not all_pairs)
        report = model.fit(characters).report()
        codes = {report["model"]: report["code"]}
        if not no_variables:
            codes["HCM"] = HCM(max_iter=iterations, limit_bits=TEXT_LIMIT_BITS).fit(characters).code_lengths().to_dict()
        codes |= {"LZ78": LZ78().code_lengths(characters).to_dict(), "LZW": LZW().code_lengths(characters).to_dict()}
    if as_json:
        typer.echo(json.dumps(report | {"codes": codes}, ensure_ascii=False))
        return
    console = Console()
    show_chunks(console, report, top)
    if report["variables"]:
        show_variables(console, report, top)
    console.print(codes_table(codes))
    console.print(
        "complexity, resolution: bits to say which units follow each other, and what their variables stand for; total: these and the "
        "dictionary.",
        style="dim",
    )


def read_text(path: Path) -> str:
    """The text of a file or corpus, its documents one after the other.

    Raises:
        CorpusError: there is nothing to read, or nothing in it.
    """
    from palimpsest.corpus import read_documents

    if str(path) == "-":
        characters = typer.get_text_stream("stdin").read()
    else:
        characters = "\n".join(document.text or "" for document in read_documents(path))
    if not characters:
        raise CorpusError(
            f"{'The standard input' if str(path) == '-' else path} holds no text.", "Give a text of a thousand characters or more."
        )
    return characters


def show_chunks(console: Console, report: dict[str, Any], top: int) -> None:
    """Prints the most frequent chunks."""
    table = Table(box=None, header_style="bold", title=f"{len(report['chunks']):,} chunks", title_justify="left")
    table.add_column("count", justify="right")
    table.add_column("mean length", justify="right")
    table.add_column("chunk")
    for chunk in report["chunks"][:top]:
        length = "" if chunk["mean_length"] is None else f"{chunk['mean_length']:.1f}"
        table.add_row(f"{chunk['count']:,}", length, visible(chunk["text"]))
    console.print(table)


def show_variables(console: Console, report: dict[str, Any], top: int) -> None:
    """Prints the most frequent variables with what they stand for."""
    table = Table(box=None, header_style="bold", title=f"{len(report['variables']):,} variables", title_justify="left")
    table.add_column("variable", justify="right")
    table.add_column("count", justify="right")
    table.add_column("stands for")
    for variable in report["variables"][:top]:
        members = Text(", ").join(Text.assemble(visible(m["text"]), (f" {m['count']:,}", "dim")) for m in variable["members"])
        table.add_row(f"⟨{variable['unit']}⟩", f"{variable['count']:,}", members)
    console.print(table)


def codes_table(codes: dict[str, dict[str, Any]]) -> Table:
    """What the text costs in every code."""
    table = Table(box=None, header_style="bold", title="Code lengths", title_justify="left")
    table.add_column("")
    for heading in ("entries", "units", "complexity", "resolution", "storage", "total bits"):
        table.add_column(heading, justify="right")
    for name, code in codes.items():
        figures = [code["entries"], code["parse_length"], *(round(code[key]) for key in ("complexity", "resolution", "storage", "total"))]
        table.add_row(name, *(f"{figure:,}" for figure in figures))
    return table


def visible(text: str) -> Text:
    """Text in which spaces and line breaks can be seen."""
    return Text(text.translate(_VISIBLE))
