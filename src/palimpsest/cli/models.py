"""`palimpsest models`: which models are known by name, fetching one, and what a door offers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.models.registry import KNOWN, KnownModel, fetch, is_fetched, known

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command("list")
def list_models(as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table.")) -> None:
    """List the models that are known by name, and which of them are already here."""
    entries = [_entry(model) for model in KNOWN.values()]
    if as_json:
        typer.echo(json.dumps(entries, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold")
    for heading, justify in (
        ("name", "left"),
        ("parameters", "right"),
        ("download", "right"),
        ("licence", "left"),
        ("state", "left"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for entry in entries:
        state = "[green]here[/green]" if entry["fetched"] else "not fetched"
        size = f"{entry['download_bytes'] / 1e6:.0f} MB"
        table.add_row(entry["name"], f"{entry['parameters'] / 1e6:.0f} M", size, entry["licence"], state, entry["summary"])
    console = Console()
    console.print(table)
    console.print("Also accepted everywhere: a transformers folder, a .gguf file, a hub id, http://host:port/v1#name.", style="dim")


@app.command("fetch")
def fetch_model(
    name: str = typer.Argument(help="A name from `palimpsest models list`."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Fetch a known model from the package index, check it by hash and convert it; check it again if it is already here."""
    console = Console(stderr=True)
    with console.status(f"{name}: looking") as status:
        folder = fetch(name, verify=True, progress=lambda stage: status.update(f"{name}: {stage}"))
    if as_json:
        typer.echo(json.dumps(_entry(known(name)), ensure_ascii=False))
    else:
        typer.echo(f"{name} is in {folder}, every file as its manifest says.")


@app.command("info")
def info(
    spec: str = typer.Argument(help="A known name, a folder, a .gguf file, a hub id, or http://host:port/v1#name."),
    tokenizer: str | None = typer.Option(None, help="Tokenizer of an endpoint: a tokenizer.json, a folder or a known name."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Open the door to a model and say what it offers."""
    from palimpsest.models.endpoint import EndpointModel
    from palimpsest.models.load import load_model

    console = Console(stderr=True)
    with console.status(f"{spec}: loading") as status:
        model = load_model(spec, tokenizer=tokenizer, progress=lambda stage: status.update(f"{spec}: {stage}"))
        facts: dict[str, Any] = {**model.describe(), "vocabulary": model.tokenizer.vocab_size}
    if isinstance(model, EndpointModel):
        facts["without_logprobs"] = model.without_logprobs
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else "unknown" if value is None else str(value)
        if label == "without_logprobs" and value is None:
            continue
        table.add_row(label.replace("_", " "), shown)
    Console().print(table)


def _entry(model: KnownModel) -> dict[str, Any]:
    fetched = is_fetched(model.name)
    return {
        "name": model.name,
        "summary": model.summary,
        "parameters": model.parameters,
        "licence": model.licence,
        "download_bytes": model.wheel_bytes,
        "source": model.source,
        "fetched": fetched,
        "folder": str(Path(model.folder)) if fetched else None,
    }
