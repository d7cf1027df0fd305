"""`palimpsest context`: the methods that give a frozen model a longer or a cheaper context, and which of them suits a model (013)."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from palimpsest.cli.options import Json
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.context.catalogue import Method

app = typer.Typer(no_args_is_help=True, help="Methods that give a frozen model a longer or a cheaper context.")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@app.command("list")
def list_methods(
    family: Annotated[str | None, typer.Option(help="Only those that change: position, attention, cache or input.")] = None,
    phase: Annotated[str | None, typer.Option(help="Only those at work in: inference, finetune or pretrain.")] = None,
    as_json: Json = False,
) -> None:
    """Every context method by name, with its family, whether it is exact, its options and its paper."""
    from palimpsest.cli.measured import columns
    from palimpsest.context.catalogue import methods

    rows = [described(record) for record in methods(family, phase)]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    table = columns("name")
    table.columns[0].no_wrap = True  # a name is to be typed
    for heading in ("what it changes", "result", "keys stand at", "options", "source"):
        table.add_column(heading, no_wrap=heading == "result")
    for row in rows:
        options = " ".join(f"{name}={value}" if value != "" else name for name, value in row["options"].items())
        result = "exact" if row["exact"] else "for a question" if row["needs_question"] else "approximate"
        table.add_row(row["name"], row["family"], result, row["positions"], options, row["source"])
    Console().print(table)


@app.command()
def recommend(
    model: Annotated[str, typer.Argument(help="A known name, a folder or a hub id.")],
    length: Annotated[int, typer.Option(min=1, help="Tokens of the text.")],
    memory: Annotated[str, typer.Option(help="What the cache of keys and values may take, such as 500MB or 2GiB.")],
    batch: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 1,
    question: Annotated[bool, typer.Option("--question", help="The question stands at the text's end while it is read.")] = False,
    can_train: Annotated[bool, typer.Option("--can-train", help="The model may be trained on.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Rank the methods for a model, a length and a number of bytes, with reasons; a rule, which `bench context` can check."""
    from palimpsest.cli.measured import columns
    from palimpsest.context import catalogue

    found = catalogue.recommend(configuration(model), length, size(memory), can_train, batch=batch, question_known=question)[:top]
    rows = [{**vars(one), "reasons": list(one.reasons)} for one in found]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    table = columns("method", "cache")
    for heading in ("options", "because"):
        table.add_column(heading)
    for row in rows:
        options = " ".join(f"{name}={value}" for name, value in row["options"].items())
        table.add_row(row["name"], f"{row['cache_bytes'] / 1e6:,.1f} MB", options, "; ".join(row["reasons"]))
    Console().print(table)


def described(record: Method) -> dict[str, Any]:
    """A record of the catalogue with the options of its class and their defaults ("" where one has to be given)."""
    from dataclasses import MISSING, fields

    from palimpsest.context.options import method_class

    options = {
        field.name: "" if field.default is MISSING else plain(field.default)
        for field in fields(method_class(record.name))  # type: ignore[arg-type]
    }
    names = ("name", "title", "source", "phase", "family", "exact", "needs_question", "positions", "has_budget", "beyond_trained")
    return {name: getattr(record, name) for name in names} | {"options": options, "entry_point": record.entry_point}


def plain(value: Any) -> Any:
    """A default as JSON can hold it."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def size(text: str) -> int:
    """Bytes of a text such as "500MB" or "2GiB".

    Raises:
        InputError: no such size.

    Example:
        >>> size("1.5 MB"), size("2KiB"), size("100")
        (1500000, 2048, 100)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None or not 1 <= float(found[1]) * unit < math.inf:
        raise InputError(f"{text!r} is not a size.", "Give it like 500MB, 2GiB or a number of bytes.")
    return int(float(found[1]) * unit)


def configuration(model: str) -> Any:
    """The configuration of a model, without its weights where that is possible.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    from pathlib import Path

    from transformers import AutoConfig

    from palimpsest.cli.generate import local_model
    from palimpsest.models.quiet import quiet
    from palimpsest.models.registry import KNOWN, is_fetched

    place = KNOWN[model].folder if model in KNOWN and is_fetched(model) else Path(model)
    if (place / "config.json").is_file():
        with quiet():
            return AutoConfig.from_pretrained(place, local_files_only=True)
    return local_model(model).model.config
