"""`palimpsest report DIR`: the page of an audit, rendered again from its `audit.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.errors import InputError


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds an audit.json; the page is written there.")] = Path(
        "report"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Render the audit.json in DIR as one self-contained HTML page, with its figures as SVG and PNG beside it."""
    from palimpsest.report import render

    audit = read_audit(folder / "audit.json")
    page = render(audit, folder)
    written = sorted(str(path) for path in figure_files(audit, folder / "figures"))
    if as_json:
        typer.echo(json.dumps({"page": str(page), "bytes": page.stat().st_size, "figures": written}, ensure_ascii=False))
    else:
        typer.echo(f"{page} ({page.stat().st_size / 1e3:,.0f} kB, {len(written) // 2} figures)")


def figure_files(audit: dict[str, Any], folder: Path) -> list[Path]:
    """The files of the audit's figures; a curve without points has none."""
    names = [block["id"] for section in audit["sections"] for block in section["blocks"] if block["type"] == "curve"]
    return [path for name in names for kind in ("svg", "png") if (path := folder / f"{name}.{kind}").is_file()]


def read_audit(path: Path) -> Any:
    """The content of an `audit.json`.

    Raises:
        InputError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no {path}.", "Give the folder that `palimpsest audit --out` wrote.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply for an audit.", "Run the audit again: finished measurements are kept.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}.", "Run the audit again: finished measurements are kept.") from error
