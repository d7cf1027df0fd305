"""`palimpsest reproduce`: run the claim checks of systems, show every figure against its threshold, write the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palimpsest.catalogue import find
from palimpsest.errors import InputError
from palimpsest.files import storage_errors


def reproduce(
    slugs: Annotated[list[str], typer.Argument(metavar="SLUG...", help="Systems to check: slugs or numbers of the catalogue.")],
    scale: Annotated[str, typer.Option(help="smoke (seconds), cpu (minutes on two cores, decides the claim) or gpu.")] = "cpu",
    seeds: Annotated[str, typer.Option(help="Seeds to run, separated by commas.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder of the result files.")] = Path("results"),
    merged: Annotated[
        list[Path] | None,
        typer.Option("--merge", help="Run nothing: add the runs of this result file, or folder of them, to --out. May be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check the claims of systems: exit code 1 if one of them fails. A seed that was run before is run again.

    Seeds may be run side by side, each with a --out of its own, and be put together with --merge.
    """
    chosen = [find(slug).slug for slug in slugs]
    numbers = parse_seeds(seeds)
    from palimpsest.experiments import claim  # imports torch: after the arguments are known to be good

    for slug in chosen:
        claim.experiment(slug)  # refuse an unknown experiment, and a folder that is closed to us, before minutes are spent
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    results = []
    console, progress = Console(), Console(stderr=True)
    for slug in chosen:
        if merged:
            results.append(claim.merge(slug, scale, merged, out))
            if not as_json:
                show(console, results[-1], out)
            continue
        with progress.status(f"{slug} at {scale} scale, seed {numbers[0]} …") as status:

            def announce(done: claim.Claim, slug: str = slug, status: Any = status) -> None:
                progress.print(f"{slug} seed {done.seed}: {'passed' if done.passed else 'failed'} in {done.seconds:.0f} s", highlight=False)
                status.update(f"{slug} at {scale} scale …")

            result = claim.reproduce(slug, scale, numbers, out, announce)
        results.append(result)
        if not as_json:
            show(console, result, out)
    passed = all(result["passed"] for result in results)
    if as_json:
        typer.echo(json.dumps({"passed": passed, "results": results}, ensure_ascii=False, indent=1))
    if not passed:
        raise typer.Exit(1)


def parse_seeds(text: str) -> list[int]:
    """The seeds in "0,1,2".

    Raises:
        InputError: something in it is not a whole number >= 0, or a seed stands twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) != len(parts):
        raise InputError(f"--seeds is {text!r}.", "Give different whole numbers separated by commas, such as 0,1,2.")
    return [int(part) for part in parts]


def show(console: Console, result: dict[str, Any], out: Path) -> None:
    """Prints a result: the statement, the checks and the verdict."""
    verdict = "[green]holds[/]" if result["passed"] else "[red]fails[/]"
    console.print(f"\n[bold]{result['slug']}[/] — {escape(result['statement'])}", highlight=False)
    console.print(checks_table(result["runs"]))
    for note in dict.fromkeys(note for run in result["runs"] for note in run["notes"]):
        console.print(f"  · {escape(note)}", highlight=False)
    file = out / f"{result['slug']}.{result['scale']}.json"
    console.print(
        f"The claim {verdict} at {result['scale']} scale over {len(result['runs'])} seed(s): {escape(str(file))}", highlight=False
    )


def checks_table(runs: list[dict[str, Any]]) -> Table:
    """One line a check: what it says, the baseline, our figure for every seed, and what was asked of it."""
    table = Table(header_style="bold")
    table.add_column("check")
    table.add_column("asked", no_wrap=True)
    for run in runs:
        table.add_column(f"seed {run['seed']}", justify="right", no_wrap=True)
    table.add_column("passed", no_wrap=True)
    for what in dict.fromkeys(check["what"] for run in runs for check in run["checks"]):
        line = [next((check for check in run["checks"] if check["what"] == what), None) for run in runs]
        present = [check for check in line if check is not None]
        first = present[0]
        asked = "reported" if first["threshold"] is None else f"{first['relation']} {number(first['threshold'])}"
        unit = f" ({first['unit']})" if first["unit"] else ""
        held = sum(check["passed"] for check in present)
        colour = "green" if held == len(runs) else "red"
        cells = ["not measured" if check is None else _cell(check) for check in line]
        table.add_row(escape(what + unit), asked, *cells, f"[{colour}]{held} of {len(runs)}[/]")
    return table


def _cell(check: dict[str, Any]) -> str:
    """Our figure, and the baseline's behind it where there is one."""
    ours = number(check["ours"])
    text = ours if check["baseline"] is None else f"{ours} vs {number(check['baseline'])}"
    return text if check["passed"] else f"[red]{text}[/]"


def number(value: float | None) -> str:
    """A figure with four significant digits."""
    return "none" if value is None else f"{value:.4g}"
