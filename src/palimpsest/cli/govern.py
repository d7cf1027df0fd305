"""`palimpsest govern`: change a model's memory under thresholds, with a log and a way back (104)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palimpsest.errors import InputError, LedgerBrokenError, ModelNotFoundError, WeightsMissingError

if TYPE_CHECKING:
    from palimpsest.governance.loop import Governor
    from palimpsest.governance.record import Position
    from palimpsest.measurement import Measurement

app = typer.Typer(no_args_is_help=True, help="Change a model's memory under thresholds, with a log and a way back.")

Folder = Annotated[Path, typer.Argument(help="The folder of the governed memory.")]
Item = Annotated[str, typer.Argument(help="The item's name, as `propose` printed it.")]
Actor = Annotated[str, typer.Option(help="Who acts; stands in the log.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    folder: Folder,
    model: Annotated[str, typer.Option(help="A known name, a folder or a hub id.")],
    general: Annotated[Path, typer.Option(help="Text that no change is about, one piece a line: what must not suffer.")],
    policy: Annotated[Path | None, typer.Option(help="Thresholds as TOML or JSON; defaults without it.")] = None,
    actor: Actor = "",
    as_json: Json = False,
) -> None:
    """Begin to govern MODEL: save it as the first version and open the log."""
    from palimpsest.governance.loop import Governor
    from palimpsest.governance.policy import Policy
    from palimpsest.governance.system import System

    thresholds = Policy.load(policy) if policy else Policy()
    texts = [line for line in lines_of(general) if line.strip()]
    if len(texts) < 2:
        raise InputError(f"{general} holds {len(texts)} pieces of text.", "Give at least 2, one a line.")
    system = System.of(open_model(model), texts)
    place = str(Path(model).resolve()) if Path(model).expanduser().exists() else model
    governor = Governor.init(folder, system, thresholds, actor=actor, settings={"model": place, "general": texts})
    show({"folder": str(folder), "live": governor.live(), "policy": thresholds.hash}, as_json)


@app.command()
def propose(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="The request as JSON: kind, facts, …")],
    actor: Actor = "",
    as_json: Json = False,
) -> None:
    """Enter a request into the log, and say by which actions it may be carried out."""
    from palimpsest.governance.items import ChangeRequest
    from palimpsest.governance.router import route

    wanted = ChangeRequest.from_dict(read_json(request))
    governor = open_governor(folder, actor)
    chosen = route(wanted, governor.policy)
    item = governor.propose(wanted)
    show({"item": item, "rule": chosen.rule, "why": chosen.why, "actions": list(chosen.actions), "joint": chosen.joint}, as_json)


@app.command()
def admit(
    folder: Folder,
    item: Item,
    action: Annotated[str | None, typer.Option(help="The action that carries it out; by default the first of its route.")] = None,
    actor: Actor = "",
    as_json: Json = False,
) -> None:
    """Try an item on a copy and hold it against the thresholds: exit code 1 if it is rejected."""
    result = open_governor(folder, actor).admit(item, action)
    if as_json:
        typer.echo(json.dumps({"item": item, **result.summary}, ensure_ascii=False))
    else:
        show_admission(item, result)
    if not result.summary["admitted"]:
        raise typer.Exit(1)


@app.command()
def rollout(folder: Folder, item: Item, actor: Actor = "", as_json: Json = False) -> None:
    """Take an item to its next stage: a greater share of sessions, in the end all; exit code 1 if a breach takes it back instead."""
    place = open_governor(folder, actor).rollout(item)
    show_position(item, place, as_json)
    if place.state == "rolled_back":
        raise typer.Exit(1)


@app.command()
def monitor(
    folder: Folder,
    item: Item,
    observations: Annotated[Path, typer.Argument(help="JSON lines: session, right, right_before, outdated, refused, latency, …")],
    actor: Actor = "",
    as_json: Json = False,
) -> None:
    """Add what was observed of an item and test it; a breach takes the change back, with exit code 1."""
    from palimpsest.files import sha256_file
    from palimpsest.governance.monitor import Observation

    rows = []
    for number, line in enumerate(lines_of(observations), 1):
        if line.strip():
            try:
                rows.append(Observation.from_dict(parsed(line, observations)))
            except InputError as error:
                raise InputError(f"Line {number} of {observations}: {error.problem}", error.remedy) from error
    governor = open_governor(folder, actor, damaged=True)
    result = governor.monitor(item, rows, batch=sha256_file(observations))
    state = str(governor.position(item).state)
    if as_json:
        typer.echo(json.dumps({"item": item, "state": state, **result.summary}, ensure_ascii=False))
    else:
        breach = result.summary["breach"]
        found = f"breach of {breach['rate']} at observation {breach['observation']}: rolled back" if breach else "no breach"
        typer.echo(f"{item}: {result.summary['n']} observations, {found}.")
        for name, rate in result.summary["rates"].items():
            typer.echo(f"  {name}: {rate['rate']:.1%} (limit {rate['limit']:.0%}), e = {rate['e']:.3g}")
    if result.summary["breach"] is not None:
        raise typer.Exit(1)


@app.command()
def rollback(
    folder: Folder,
    item: Item,
    reason: Annotated[str, typer.Option(help="Why; stands in the log.")] = "by command",
    actor: Actor = "",
    as_json: Json = False,
) -> None:
    """Take a change back: the model is again, to the bit, what it was before."""
    show_position(item, open_governor(folder, actor, damaged=True).rollback(item, reason), as_json)


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="The folder to write, as transformers reads it.")],
    as_json: Json = False,
) -> None:
    """Write the model that is in force, to be served."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    from palimpsest.files import storage_errors
    from palimpsest.models.quiet import quiet

    if out.exists():
        raise InputError(f"{out} is there already.", "Choose another folder.")
    governor = open_governor(folder, "")
    model, tokenizer = governor.system.model, governor.system.model.tokenizer
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    special = {name: tokenizer.backend.id_to_token(number) for name, number in ids.items() if number is not None}
    with storage_errors(out), quiet():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as beside:
            whole = Path(beside) / "model"
            model.model.save_pretrained(whole)
            PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer.backend.to_str()), **special).save_pretrained(whole)
            whole.rename(out)
    show({"folder": str(out), "version": governor.live(), "store_rows": len(governor.system.store.as_of())}, as_json)


@app.command()
def log(
    folder: Folder,
    item: Annotated[str | None, typer.Option(help="Of this item alone.")] = None,
    head: Annotated[
        str | None, typer.Option(help="A hash that the log once ended with, kept elsewhere: finds a cut or rewritten end.")
    ] = None,
    certificate: Annotated[int | None, typer.Option(help="Print the proof that the entry of this number is in the log.")] = None,
    as_json: Json = False,
) -> None:
    """Check the chain of hashes and show what was done; a broken entry is named by its seq."""
    from dataclasses import asdict

    from palimpsest.governance.ledger import Ledger

    path = folder / "ledger.jsonl"
    if not path.is_file() and not (folder / "policy.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no governed memory.", "Make one with `palimpsest govern init`.")
    ledger = Ledger(path)
    count = ledger.verify(head)
    if not count:
        raise LedgerBrokenError(f"The log of {folder} is missing or empty.", "Take the folder from a backup.", seq=0)
    if certificate is not None:
        typer.echo(json.dumps(asdict(ledger.certificate(certificate)), ensure_ascii=False))
        return
    entries = [entry for entry in ledger.entries() if item is None or item in (entry.get("item"), entry.get("also", {}).get("item"))]
    if as_json:
        typer.echo(json.dumps({"entries": entries, "verified": count, "head": ledger.head}, ensure_ascii=False))
        return
    table = Table(header_style="bold")
    for name in ("seq", "time", "actor", "item", "event", "rule"):
        table.add_column(name)
    for entry in entries:
        event = f"{entry['from'] or 'new'} → {entry['to']}" if entry["event"] == "transition" else entry["event"]
        words = (entry["actor"], entry.get("item", ""), event, entry.get("rule", ""))
        table.add_row(str(entry["seq"]), entry["time"][:19], *map(escape, words))
    console = Console()
    console.print(table)
    console.print(f"{count} entries, chain whole, head {ledger.head}", style="dim")


def open_governor(folder: Path, actor: str, *, damaged: bool = False) -> Governor:
    """The governed memory of a folder, with its model at the version that is in force.

    Args:
        damaged: open it also where that version is gone, with the model as it was loaded: what leads back to a whole version must go on.

    Raises:
        ModelNotFoundError: the folder holds none, or its model is gone.
        WeightsMissingError: the version in force is gone.
    """
    from palimpsest.governance.loop import Governor
    from palimpsest.governance.record import Record
    from palimpsest.governance.system import System

    record = Record(folder)
    settings = read_json(folder / "settings.json")
    model, general = settings.get("model"), settings.get("general")
    if not isinstance(model, str) or not isinstance(general, list) or not all(isinstance(text, str) for text in general):
        raise InputError(f"{folder / 'settings.json'} is not what `init` wrote.", "Take it from a backup.")
    system = System.of(open_model(model), general)
    try:
        record.versions.restore(record.live(), system)
    except WeightsMissingError:
        if not damaged:
            raise
    return Governor(folder, system, actor=actor)


def open_model(name: str) -> Any:
    """A model with weights."""
    from palimpsest.models import load_model

    model = load_model(name)
    model.require("weights", "Governing a model")
    return model


def read_json(path: Path) -> Any:
    """The JSON object in a file.

    Raises:
        InputError: it cannot be read, or is no object.
    """
    value = parsed(text_of(path), path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}.", "Give a JSON object.")
    return value


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, cut at line feeds alone: JSON may hold the other separators of Unicode.

    Raises:
        InputError: it cannot be read.
    """
    return text_of(path).split("\n")


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Give a text file.") from error


def parsed(text: str, path: Path) -> Any:
    """JSON from a file.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply.", "See the documentation of the governance loop for what it holds.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.", "See the documentation of the governance loop for what it holds.") from error


def show(value: dict[str, Any], as_json: bool) -> None:
    """Prints a few values."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    for name, content in value.items():
        typer.echo(f"{name}: {', '.join(content) if isinstance(content, list) else content}")


def show_position(item: str, place: Position, as_json: bool) -> None:
    """Prints where an item is."""
    show({"item": item, "state": str(place.state), "share": place.share, "version": place.version, "parent": place.parent}, as_json)


def show_admission(item: str, result: Measurement) -> None:
    """Prints the clauses of an admission."""
    summary = result.summary
    console = Console()
    console.print(f"[bold]{item}[/] {'[green]admitted[/]' if summary['admitted'] else '[red]rejected[/]'}", highlight=False)
    if "error" in summary:
        console.print(summary["error"], markup=False)
        return
    table = Table(header_style="bold")
    for name in ("clause", "measured", "held", "asked", "met"):
        table.add_column(name)
    for name, clause in summary["clauses"].items():
        measured, held = ("nothing to measure" if clause[key] is None else f"{clause[key]:.4g}" for key in ("value", "held"))
        asked = f"{'<=' if clause['at_most'] else '>='} {clause['threshold']:.4g}"
        table.add_row(name, f"{measured} (n = {clause['n']})", held, asked, "[green]yes[/]" if clause["passed"] else "[red]no[/]")
    console.print(table)
