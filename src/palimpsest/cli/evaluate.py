"""`palimpsest evaluate PLAN`: the three-setting protocol, from a file to an evaluation card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def evaluate(
    plan: Annotated[Path, typer.Argument(help="The plan, as YAML or JSON: model, items, stores, and what the card says.")],
    out: Annotated[Path, typer.Option(help="Folder of measurement.json, card.json and card.md.")] = Path("evaluation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON instead of a table.")] = False,
) -> None:
    """Ask the same questions without evidence, with a frozen store and with a live one, and write an evaluation card."""
    from palimpsest.evaluation.protocol_plan import load_plan, run_plan

    loaded = load_plan(plan)
    with Console(stderr=True).status("asking") as status:
        measured, card = run_plan(loaded, out, progress=lambda done, total: status.update(f"asking: {done} of {total} settings done"))
    if as_json:
        typer.echo(json.dumps(card.to_dict(), ensure_ascii=False))
        return
    show(Console(), measured.summary, out)


def show(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Accuracies, gains and the five rates on the terminal."""
    table = Table(box=None, header_style="bold")
    for heading in ("setting", "right", "95 % interval", *(next(iter(summary["freshness"].values()), {}))):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for name, rate in summary["accuracy"].items():
        rates = [f"{100 * kind['estimate']:.1f} %" for kind in summary["freshness"].get(name, {}).values()]
        table.add_row(name, f"{100 * rate['estimate']:.1f} %", _span(rate), *rates)
    console.print(table)
    gains = Table(box=None, header_style="bold")
    for heading in ("gain", "points", "95 % interval", "adjusted p", "rescued", "harmed"):
        gains.add_column(heading, justify="left" if heading == "gain" else "right")
    for name, pair in summary["gains"].items():
        cells, rate = summary["transitions"][name], pair["difference"]
        moved = [f"{100 * cells[kind]['estimate']:.1f} %" for kind in ("rescued", "harmed")]
        gains.add_row(name, f"{100 * rate['estimate']:+.1f}", _span(rate), f"{pair['adjusted']:.2g}", *moved)
    console.print()
    console.print(gains)
    leaks = ", ".join(f"{count} {kind}" for kind, count in summary["leaks"].items())
    console.print(f"\n{summary['n']:,} items. Leaks: {leaks}. Card: {out / 'card.json'}", style="dim", soft_wrap=True)


def _span(rate: dict[str, float]) -> str:
    return f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
