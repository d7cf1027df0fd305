"""`palimpsest split`: deal the records of a file out to train, dev and test so that no key stands in two of them (106)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.errors import CorpusError, InputError
from palimpsest.files import storage_errors, write_json, write_text


def split(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object a line.")],
    key: Annotated[list[str], typer.Option(metavar="FIELD", help="A field whose values must not be shared; may be given again.")],
    out: Annotated[Path, typer.Option(help="The folder to write train.jsonl, dev.jsonl, test.jsonl and split.json to.")],
    cover: Annotated[list[str] | None, typer.Option(metavar="FIELD", help="A field of which train is to have all values.")] = None,
    target: Annotated[list[str] | None, typer.Option(metavar="FIELD", help="A text whose overlap is reported [default: text].")] = None,
    ratios: Annotated[str, typer.Option(help="Sizes of train, dev and test, or of train and test.")] = "80,10,10",
    seed: Annotated[int, typer.Option(min=0, help="Of what goes where.")] = 0,
    cut_above: Annotated[float | None, typer.Option(help="Ignore keys that more than this share of the records have.")] = None,
    tolerance: Annotated[float, typer.Option(help="By how much a part's share may differ from what was asked for.")] = 0.1,
    ngram: Annotated[int, typer.Option(min=1, help="Words of an n-gram in the report.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Split records so that no key stands in two parts, and report what the parts still share."""
    from palimpsest.corpus import leak_free_split, leakage_report

    lines, records = read_records(file)
    for field in (*key, *(cover or ())):
        require_field(records, field, file)
    asked = target if target is not None else ["text"] if all(isinstance(record.get("text"), str) for record in records) else []
    for field in asked:
        require_field(records, field, file)
    made = leak_free_split(
        records,
        lambda record: values(record, key),
        lambda record: values(record, cover or []),
        parse_ratios(ratios),
        seed,
        cut_above=cut_above,
        tolerance=tolerance,
    )
    measured = leakage_report(made, lambda record: [text for field in asked for text in texts(record[field])], ngram)
    for name in ("train", "dev", "test"):
        if name not in made.parts and (out / f"{name}.jsonl").exists():
            raise InputError(f"{out / name}.jsonl is of another split.", "Choose another folder, or remove the file.")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for name, indices in made.parts.items():
        write_text(out / f"{name}.jsonl", "".join(f"{lines[i]}\n" for i in indices.tolist()))
    value = {"file": str(file), "key": key, "cover": cover or [], "target": asked, **measured.provenance, **measured.summary}
    write_json(out / "split.json", value)
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    console = Console()
    for table in tables(value):
        console.print(table)
    if value["uncovered"]:
        console.print(f"train lacks: {', '.join(value['uncovered'])}", style="yellow", markup=False)
    console.print(
        f"{value['groups']:,} groups, the largest of {value['largest_group']:,} records. Written to {out}.", style="dim", markup=False
    )


def read_records(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The lines of a file and the objects that they hold; empty lines are left out.

    Raises:
        CorpusError: no such file, bytes that are not UTF-8, or a line that is no JSON object.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror}.", "Give a file with one JSON object a line.") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file} is not UTF-8 at byte {error.start}.", "Convert it, for example with iconv.") from error
    lines, records = [], []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{file}, line {number} is not JSON: {error}.", "Write one JSON object a line.") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{file}, line {number} is a {type(record).__name__}.", "Write one JSON object a line.")
        lines.append(line.removesuffix("\r"))
        records.append(record)
    return lines, records


def require_field(records: list[dict[str, Any]], field: str, file: Path) -> None:
    """Raises `InputError` unless every record has the field; null is a value that stands for none."""
    for number, record in enumerate(records, start=1):
        if field not in record:
            raise InputError(
                f"Record {number} of {file} has no field {field!r}, but {', '.join(record) or 'nothing'}.",
                "Name a field that every record has; null stands for no value.",
            )


def values(record: dict[str, Any], fields: list[str]) -> list[Any]:
    """What a record carries in some fields; with the field's name where there are several, so that these do not mix."""
    found = []
    for field in fields:
        given = record[field]
        several = given if isinstance(given, list) else [] if given is None else [given]
        found += [hashable(value) if len(fields) == 1 else (field, hashable(value)) for value in several]
    return found


def hashable(value: Any) -> Any:
    """A JSON value that can be a key: a list as a tuple, an object as its canonical text."""
    if isinstance(value, list):
        return tuple(hashable(item) for item in value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict) else value


def texts(value: Any) -> list[Any]:
    """The texts of a target field: one, a list of them, or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def parse_ratios(text: str) -> list[float]:
    """The numbers in "80,10,10".

    Raises:
        InputError: something else stands there.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--ratios is {text!r}.", "Give two or three numbers separated by commas, such as 80,10,10.") from error


def tables(value: dict[str, Any]) -> list[Table]:
    """How large the parts are, and what they share with train."""
    total = sum(value["parts"].values())
    sizes = Table(box=None, header_style="bold")
    for heading in ("part", "records", "share"):
        sizes.add_column(heading, justify="left" if heading == "part" else "right")
    for name, size in value["parts"].items():
        sizes.add_row(name, f"{size:,}", f"{size / total:.1%}")
    shared = Table(box=None, header_style="bold", title="Shared with train", title_justify="left")
    for heading in ("part", "what", "distinct", "in train", "share"):
        shared.add_column(heading, justify="left" if heading in ("part", "what") else "right")
    for row in value["overlap"]:
        if row["distinct"]:
            shared.add_row(row["part"], row["what"], f"{row['distinct']:,}", f"{row['in_train']:,}", f"{row['share']:.1%}")
    return [sizes, shared]
