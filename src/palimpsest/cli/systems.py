"""`palimpsest systems`: the catalogue as a table, or one system's card."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from palimpsest.catalogue import FAMILIES, KINDS, SYSTEMS, State, System, claim_result, experiment_file, find, missing, state
from palimpsest.cli.options import Json
from palimpsest.errors import InputError
from palimpsest.taxonomy import MemoryKind

COLOURS = {State.PLANNED: "dim", State.IMPLEMENTED: "cyan", State.CLAIM_SHOWN: "green", State.CLAIM_FAILED: "red"}


def systems(
    slug: Annotated[str | None, typer.Argument(help="Show one system's card: its slug or number.")] = None,
    wanted_state: Annotated[str | None, typer.Option("--state", help=f"Only systems that are: {', '.join(State)}.")] = None,
    family: Annotated[
        str | None, typer.Option(help=f"Only systems of a family: {', '.join(FAMILIES)}, or audit for both of the audit.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only systems of a kind: {', '.join(KINDS)}.")] = None,
    memory: Annotated[str | None, typer.Option(help=f"Only systems about a memory that is: {', '.join(MemoryKind)}.")] = None,
    as_json: Json = False,
) -> None:
    """The catalogue of 119 published systems, how far each is, and what was found."""
    if slug is not None:
        show_card(find(slug), as_json=as_json)
        return
    states = {system.slug: state(system) for system in SYSTEMS}
    chosen = [
        system
        for system in SYSTEMS
        if _fits(wanted_state, [states[system.slug]], list(State), "--state")
        and _fits(family, [system.family, system.family.split("-")[0]], [*FAMILIES, "audit"], "--family")
        and _fits(kind, list(system.kinds), list(KINDS), "--kind")
        and _fits(memory, [system.memory_kind], list(MemoryKind), "--memory")
    ]
    if as_json:
        typer.echo(json.dumps([system.to_dict() for system in chosen], ensure_ascii=False, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("no.", "system", "state", "memory"):
        table.add_column(heading, no_wrap=True)
    table.add_column("title")  # may shrink, so that it gives way first when the terminal is narrow
    for system in chosen:
        colour = COLOURS[states[system.slug]]
        name = f"[{colour}]{states[system.slug]}[/]"
        table.add_row(
            f"{system.number:03d}", system.slug, name, system.memory_kind.value, Text(system.title, no_wrap=True, overflow="ellipsis")
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a pipe has no width: do not cut the titles
    console.print(table)
    counts = Counter(states[system.slug] for system in chosen)
    console.print(f"\n{len(chosen)} systems: " + ", ".join(f"{counts[name]} {name}" for name in State if counts[name]), highlight=False)


def _fits(wanted: str | None, values: list[Any], allowed: list[Any], option: str) -> bool:
    """Whether `wanted` is among `values`; hyphens may stand for spaces."""
    if wanted is None:
        return True
    name = wanted if wanted in allowed else wanted.replace("-", " ")
    if name not in allowed:
        raise InputError(f"{option} is {wanted!r}.", f"Choose one of: {', '.join(allowed)}.")
    return name in values


def show_card(system: System, *, as_json: bool) -> None:
    """Prints one system's card with the outcome of its claim check."""
    result = claim_result(system)
    if as_json:
        outcome = None if result is None else {"scale": result.scale, "passed": result.passed, "runs": result.runs}
        typer.echo(json.dumps({**system.to_dict(), "missing": missing(system), "result": outcome}, ensure_ascii=False, indent=1))
        return
    absent = set(missing(system))
    path = {name: value for name, value in vars(system.memory).items() if isinstance(value, str)}
    control = system.memory.controllability
    granted = [name.replace("_", " ") for name, value in vars(control).items() if value is True]
    rows = {
        "source": system.source + (f"\n{system.url}" if system.url else ""),
        "kind": ", ".join(system.kinds),
        "claim": system.claim,
        "memory": f"{system.memory_kind.value}; " + "; ".join(f"{_words(name)}: {_words(value)}" for name, value in path.items()),
        "control": f"{', '.join(granted) or 'none'}; revert: {control.revert.value}",
        "stages": " → ".join(stage.value for stage in system.stages),
        "lives in": "\n".join(entry + (" (not there yet)" if entry in absent else "") for entry in system.lives_in),
        "state": state(system).value,
    }
    if experiment_file(system.slug).is_file():
        rows["check it"] = f"palimpsest reproduce {system.slug}"
    console = Console()
    console.print(f"[bold]{system.number:03d} {system.slug}[/] — {escape(system.title)}\n", highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, escape(text))
    console.print(table, highlight=False)
    if result is not None:
        console.print(f"\n{escape(result.statement)} ({result.scale} scale, seeds {', '.join(str(run['seed']) for run in result.runs)})")
        from palimpsest.cli.reproduce import checks_table

        console.print(checks_table(result.runs))


def _words(name: str) -> str:
    return name.replace("_", " ")
