"""What an audit will cost, on the terminal before it begins: tokens and seconds a measurement, and what cannot be measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest import numbers

if TYPE_CHECKING:
    from palimpsest.evaluation.suite.planning import Estimate


def show_estimate(console: Console, estimate: Estimate) -> None:
    """Prints one row a measurement, then what is not measured and why."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"The {estimate.suite} suite", title_justify="left")
    table.add_column("to be measured")
    for name in ("tokens read", "written", "about"):
        table.add_column(name, justify="right")
    for row in estimate.rows:
        if row["finished"] == row["steps"]:
            table.add_row(row["title"], "", "", Text("done before", style="dim"))
            continue
        time = "not known" if row["seconds"] is None else numbers.seconds(row["seconds"])
        table.add_row(row["title"], numbers.integer(row["read"]), numbers.integer(row["written"]), time)
    console.print(table)
    seconds = estimate.seconds
    total = "The time of a model behind a server is not known." if seconds is None else f"About {numbers.seconds(seconds)} in all."
    how = "Every measurement by itself, from the speed on a few passages: what several read is scored once; guard and index come on top."
    console.print(f"{total} {how}", style="dim", highlight=False)
    for title, reason in estimate.skipped.items():
        console.print(Text.assemble(("not measured: ", "yellow"), f"{title}{'' if title.endswith('?') else '.'} {reason}"))
    others = ", ".join(f"{title} ({command})" if command else title for title, command in estimate.elsewhere.items())
    if others:
        console.print(Text.assemble(("not part of an audit: ", "yellow"), f"{others}. The report says why."))
