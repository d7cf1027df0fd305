"""`palimpsest audit --plan`: how many samples does a question need, before any model is asked?"""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.errors import InputError

ALLOWED = {"plan", "samples", "rate", "half_width", "confidence", "as_json"}


def show_plan(given: set[str], samples: int, rate: str, half_width: str, confidence: float, as_json: bool) -> None:
    """Prints the sample sizes.

    Args:
        given: names of the options and arguments on the command line.
        samples: what --samples says; its half-widths are shown when it was given.
        rate, half_width: lists, as written.
        confidence: of the intervals.
        as_json: whether the plan is printed as one JSON object.

    Raises:
        InputError: an option that has no place in a plan, or numbers out of range.
    """
    if given - ALLOWED:
        raise InputError(
            f"--plan does not take {', '.join(sorted(name.replace('_', '-') for name in given - ALLOWED))}.",
            "A plan asks no model: give only --rate, --half-width, --confidence, --samples and --json.",
        )
    plan = sample_plan(shares(rate, "--rate"), shares(half_width, "--half-width"), confidence, samples if "samples" in given else None)
    if as_json:
        typer.echo(json.dumps(plan))
        return
    console = Console()
    table = Table(box=None, header_style="bold", title=f"Samples for a {confidence:.0%} interval (Wilson)", title_justify="left")
    table.add_column("expected rate", justify="right")
    for width in plan["half_widths"]:
        table.add_column(f"± {100 * width:g} points", justify="right")
    table.add_column("to see one", justify="right")
    if plan["samples"] is not None:
        table.add_column(f"with {plan['samples']:,}", justify="right")
    for row in plan["rates"]:
        cells = [f"{100 * row['rate']:g} %", *(f"{n:,}" for n in row["samples"])]
        cells.append(f"{row['to_see_one']:,}" if row["to_see_one"] is not None else "–")
        if plan["samples"] is not None:
            cells.append(f"± {100 * row['half_width']:.1f} points")
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"\nTo see one: so many samples hold at least one with probability {confidence:g}; when so many show none, the rate is lower.\n"
        "Passages of one document are no independent samples: draw from many.",
        style="dim",
        highlight=False,
    )


def sample_plan(rates: list[float], half_widths: list[float], confidence: float, samples: int | None) -> dict[str, Any]:
    """The sizes as plain JSON types.

    Raises:
        InputError: a rate outside [0, 1], a half-width outside [1e-6, 0.5), a confidence outside (0, 1), or fewer than 1 sample.
    """
    from palimpsest.stats import planning

    rows = [
        {
            "rate": rate,
            "samples": [planning.samples_for_half_width(rate, width, confidence) for width in half_widths],
            "to_see_one": planning.samples_to_see(rate, confidence) if 0 < rate < 1 else None,
            "half_width": planning.half_width(rate, samples, confidence) if samples is not None else None,
        }
        for rate in rates
    ]
    return {"confidence": confidence, "half_widths": half_widths, "samples": samples, "rates": rows}


def shares(text: str, option: str) -> list[float]:
    """`"0.01,0.5"` as `[0.01, 0.5]`.

    Raises:
        InputError: something that is no list of numbers.
    """
    try:
        values = [float(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError as error:
        raise InputError(f"{option} {text!r} is no list of numbers.", "Write it like 0.01,0.1,0.5.") from error
    if not values:
        raise InputError(f"{option} {text!r} is empty.", "Write it like 0.01,0.1,0.5.")
    return values
