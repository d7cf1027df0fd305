"""Our tests of tabular memory beside those of `tabmemcheck`, on the same model and tables: verdicts, calls of the model, seconds.

The peer asks the model one prompt at a time and lets a base model write up to `tabmemcheck.config.max_tokens` (1000 by default) for
everything but rows; here it may write `--peer-tokens`, which is in its favour. Ours gives a door all prompts of a test at once, writes rows
once for three tests, and reads the header test from one pass. A *call* is one call of `generate` or `score`; *prompts* are its rows.

    python benchmarks/tabular.py [--model smollm2-135m] [--table iris.csv …] [--queries 25] [--peer-tokens 100] [--json]

`--model lab` is the laboratory's model of the claim check (its tables are then of the laboratory: one read 80 times, one never).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table as Grid

try:
    import tabmemcheck
except ModuleNotFoundError:
    raise SystemExit("tabmemcheck, the peer of this comparison, is not installed: pip install tabmemcheck==0.1.6") from None

from palimpsest.audit.tabular import TabularAudit
from palimpsest.audit.tabular_prompts import is_row
from palimpsest.audit.tabular_table import Table
from palimpsest.experiments import tabular_peer
from palimpsest.experiments.tabular_lab import LabConfig, lab_tables, source_tables, train
from palimpsest.measurement import environment
from palimpsest.models import HFModel, LanguageModel, load_model

FOLDER = Path(os.environ.get("PALIMPSEST_DATA", ".")) / "tabular-csv"
OURS = ("header", "row-completion", "first-token", "feature-completion", "feature-names", "feature-values", "sampling")
MORE = ("nearness", "decoy-rank")  # what the peer has not


class Counting:
    """Counts the calls that a model gets, and the rows in them."""

    def __init__(self, model: HFModel) -> None:
        self.model, self.calls, self.prompts = model, 0, 0
        for name in ("generate", "score"):
            setattr(model, name, self._counted(getattr(type(model), name)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(rows: Any, *args: Any, **options: Any) -> Any:
            self.calls, self.prompts = self.calls + 1, self.prompts + len(rows)
            return method(self.model, rows, *args, **options)

        return call

    def during(self, work: Callable[[], Any]) -> dict[str, Any]:
        """What `work` returns, its calls and prompts, and its seconds of the processor and of the wall."""
        calls, prompts, busy, began = self.calls, self.prompts, time.process_time(), time.perf_counter()
        found = work()
        return {
            "found": found,
            "calls": self.calls - calls,
            "prompts": self.prompts - prompts,
            "processor_seconds": time.process_time() - busy,
            "seconds": time.perf_counter() - began,
        }


def peers(model: LanguageModel, path: Path, n: int, seed: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """The peer's tests by our names."""
    np.random.seed(seed)

    def rng() -> np.random.Generator:
        return np.random.default_rng(seed)

    def call(test: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
        return tabular_peer.call(test, model, str(path), *args, **options)

    return {
        "header": lambda: call(tabmemcheck.header_test, rng=rng(), verbose=False),
        "row-completion": lambda: tabular_peer.row_completion(model, path, n, seed),
        "first-token": lambda: call(tabmemcheck.first_token_test, num_queries=n, rng=rng()),
        "feature-completion": lambda: call(tabmemcheck.feature_completion_test, num_queries=n, rng=rng()),
        "feature-names": lambda: call(tabmemcheck.feature_names_test, verbose=False),
        "feature-values": lambda: call(tabmemcheck.feature_values_test),
        "sampling": lambda: call(tabmemcheck.sample, 10),
    }


def peer_verdict(test: str, found: dict[str, Any]) -> str:
    """What the peer's output says, in a few words."""
    returned, printed = found["returned"], re.sub(r"\x1b\[[0-9;]*m", "", found["printed"])
    if test == "header":
        _, truth, answer = returned
        return (
            f"{next((i for i, (a, b) in enumerate(zip(truth, answer, strict=False)) if a != b), min(map(len, (truth, answer))))} characters"
        )
    if test == "feature-names":
        return f"answer {returned[2][:40]!r}"
    if test == "sampling":
        return f"{len(returned)} valid rows"
    if test == "row-completion":
        whole = sum(is_row(answer + "\n", truth) for truth, answer in zip(found["truths"], found["answers"], strict=True))
        return f"{found['matches']} matches ({whole} are whole rows)"
    said = re.findall(r"(\d+/\d+)(?: exact matches)?\.", printed)
    if said:
        return f"{said[0]} matches" + (f", its baseline {said[1]}" if len(said) > 1 else "")
    return next((line[:60] for line in reversed(printed.splitlines()) if line.strip()), "nothing")


def our_verdict(summary: dict[str, Any]) -> str:
    """What our test says, in a few words."""
    if summary["status"] != "measured":
        return f"not applicable: {summary['reason'][:50]}…"
    p = "" if summary["p_value"] is None else f", p = {summary['p_value']:.2g}"
    if "agreed" in summary:
        return f"{summary['agreed']} characters{p}"
    if "mean_rank" in summary:
        return f"mean rank {summary['mean_rank']:.1f} of {summary['decoys'] + 1}{p}"
    if "distance" in summary:
        return f"{summary['distance']:g} edits from a row{p}"
    control = f", {summary['control_hits']} without a model" if "control_hits" in summary else ""
    return f"{summary['hits']}/{summary['n']} right{control}{p}"


def beside(model: HFModel, path: Path, n: int, peer_tokens: int, seed: int) -> list[dict[str, Any]]:
    """One row a test: both verdicts, calls, prompts and seconds."""
    counting = Counting(model)
    tabmemcheck.config.max_tokens = peer_tokens
    audit = TabularAudit(model, Table.read(path), n=n, seed=seed)
    theirs = peers(model, path, n, seed)
    rows = []
    for test in (*OURS, *MORE):
        own = counting.during(lambda test=test: audit.attempt(test))  # type: ignore[misc]
        row = {
            "table": path.stem,
            "test": test,
            "ours": our_verdict(own["found"].summary),
            **{f"our_{k}": own[k] for k in own if k != "found"},
        }
        if test in theirs:
            try:
                peer = counting.during(theirs[test])
                row |= {"peer": peer_verdict(test, peer["found"]), **{f"peer_{k}": peer[k] for k in peer if k != "found"}}
            except Exception as error:  # what the peer does with this model and table is part of the comparison
                row["peer"] = f"fails: {type(error).__name__}: {str(error)[:60]}"
        rows.append(row)
    return rows


def main(
    model: Annotated[str, typer.Option(help="'lab', or anything that load_model takes.")] = "smollm2-135m",
    table: Annotated[list[Path] | None, typer.Option(help="Tables; by default iris of $PALIMPSEST_DATA.")] = None,
    queries: Annotated[int, typer.Option(help="Rows and cells asked for.")] = 25,
    peer_tokens: Annotated[int, typer.Option(help="The most tokens that the peer may have written for an answer.")] = 100,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare with tabmemcheck."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = list(table or [FOLDER / "iris.csv"])
        if model == "lab":
            config = LabConfig(seed=seed)
            sources = source_tables()
            tables = lab_tables(config, sources)
            door = train(config, tables, sources)
            chosen = [max(tables, key=lambda entry: entry.exposures), next(entry for entry in tables if entry.exposures == 0)]
            paths = []
            for entry in chosen:
                paths.append(Path(folder) / f"{entry.source}-read-{entry.exposures * config.epochs}-times.csv")
                paths[-1].write_text(entry.table.text, encoding="utf-8")
        else:
            loaded = load_model(model)
            assert isinstance(loaded, HFModel), "the comparison counts the calls of a model that is here"
            door = loaded
        rows = [row for path in paths for row in beside(door, path, queries, peer_tokens, seed)]
    if as_json:
        typer.echo(json.dumps({"model": model, "peer": tabmemcheck.__version__, "environment": environment(), "rows": rows}))
        return
    console = Console(width=190)
    for name in dict.fromkeys(row["table"] for row in rows):
        here = [row for row in rows if row["table"] == name]
        grid = Grid(title=f"{model}, {name}", title_justify="left", box=None, header_style="bold")
        for heading in ("test", "tabmemcheck", "ours", "calls", "prompts", "processor s"):
            grid.add_column(heading, justify="left" if heading in ("test", "tabmemcheck", "ours") else "right")
        for row in here:
            pairs = [f"{row[f'peer_{k}']:.{d}f} / {row[f'our_{k}']:.{d}f}" if f"peer_{k}" in row else f"{row[f'our_{k}']:.{d}f}"
                     for k, d in (("calls", 0), ("prompts", 0), ("processor_seconds", 1))]  # fmt: skip
            grid.add_row(row["test"], row.get("peer", "–"), row["ours"], *pairs)
        console.print(grid)
        both = [row for row in here if "peer_calls" in row]
        for key in ("calls", "prompts", "processor_seconds"):
            peer, own = (sum(row[f"{side}_{key}"] for row in both) for side in ("peer", "our"))
            console.print(f"{key.replace('_', ' ')}, tests that both have: {peer:.1f} / {own:.1f} = {peer / max(own, 1e-9):.1f}")
        console.print()


if __name__ == "__main__":
    typer.run(main)
