"""Claims and how they are reproduced: one module an experiment, one result file a scale.

`experiments/<slug with underscores>.py` holds `run(scale, seed) -> Claim`. `reproduce` runs it for every seed, writes
`results/<slug>.<scale>.json` and never edits a threshold: a claim that fails stays failed, with what was tried in `notes`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from palimpsest.errors import InputError
from palimpsest.files import write_json
from palimpsest.measurement import Curve, environment, plain

SCALES = ("smoke", "cpu", "gpu")


@dataclass(frozen=True)
class Check:
    """One line of a claim: a figure held against a threshold.

    Attributes:
        what: the statement in words, e.g. "verbatim rate with the guard".
        ours: the figure that was measured.
        relation: "<=", "<", ">=", ">" or "==".
        threshold: what it is held against; None for a figure that is only reported.
        baseline: the same figure for what the method is compared with, where there is one.
        unit: "share", "nat", "tokens", "ratio", …
    """

    what: str
    ours: float | None
    relation: str = ">="
    threshold: float | None = None
    baseline: float | None = None
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether the relation holds; a reported figure (no threshold) always passes; a missing figure never does."""
        if self.threshold is None:
            return True
        if self.ours is None:
            return False
        return {
            "<=": self.ours <= self.threshold,
            "<": self.ours < self.threshold,
            ">=": self.ours >= self.threshold,
            ">": self.ours > self.threshold,
            "==": self.ours == self.threshold,
        }[self.relation]


@dataclass
class Claim:
    """The outcome of one run of an experiment.

    Attributes:
        slug: the system's slug.
        statement: the paper's claim in one sentence.
        checks: the figures and their thresholds.
        rows: the table behind them, one dict a row.
        seed, scale: what was run.
        notes: what was tried, what surprised, where the set-up departs from the paper.
        curves: figures for the system's page.
        environment: versions and processor.
        seconds: wall time.
    """

    slug: str
    statement: str
    checks: list[Check]
    rows: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    scale: str = "smoke"
    notes: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=environment)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The claim as plain JSON types."""
        return {
            "slug": self.slug,
            "statement": self.statement,
            "scale": self.scale,
            "seed": self.seed,
            "passed": self.passed,
            "checks": [{**plain(vars(check)), "passed": check.passed} for check in self.checks],
            "rows": plain(self.rows),
            "notes": list(self.notes),
            "curves": [curve.to_dict() for curve in self.curves],
            "environment": plain(self.environment),
            "seconds": round(self.seconds, 1),
        }


def decides(scale: str) -> bool:
    """Whether a run at `scale` decides a claim, for experiments that have the scales "smoke" (False) and "cpu" (True).

    Raises:
        InputError: the scale "gpu", or an unknown one.
    """
    if scale not in ("smoke", "cpu"):
        raise InputError(f"The experiment has no scale {scale!r}.", "Run it at 'smoke' or 'cpu'.")
    return scale == "cpu"


def experiment(slug: str) -> Callable[[str, int], Claim]:
    """The `run` function of the experiment `slug`.

    Raises:
        InputError: there is no such experiment.
    """
    name = slug.replace("-", "_")
    try:
        return import_module(f"palimpsest.experiments.{name}").run
    except ModuleNotFoundError as error:
        if error.name != f"palimpsest.experiments.{name}":
            raise
        known = ", ".join(available())
        raise InputError(f"There is no experiment {slug!r}.", f"Choose one of: {known}.") from error


def available() -> list[str]:
    """Slugs of all experiments that can be run: the catalogue's slugs that have a module here."""
    from palimpsest.catalogue import SYSTEMS

    here = Path(__file__).parent
    return [system.slug for system in SYSTEMS if (here / f"{system.slug.replace('-', '_')}.py").is_file()]


def reproduce(
    slug: str, scale: str = "cpu", seeds: Sequence[int] = (0, 1, 2), out: Path | None = None, report: Callable[[Claim], None] | None = None
) -> dict[str, Any]:
    """Runs an experiment for every seed and writes `out/<slug>.<scale>.json`.

    A seed that the file already holds is run again and replaced; the other seeds in it are kept.

    Args:
        slug: which system.
        scale: "smoke" (seconds), "cpu" (minutes, decides the claim) or "gpu".
        seeds: one run each.
        out: the folder of results; None writes nothing.
        report: called with every finished `Claim`.

    Returns:
        `{"slug", "scale", "statement", "passed", "runs": [Claim.to_dict(), …]}`.

    Raises:
        InputError: an unknown slug or scale, or no seed.
    """
    if scale not in SCALES:
        raise InputError(f"The scale {scale!r} is unknown.", f"Choose one of {', '.join(SCALES)}.")
    if not seeds:
        raise InputError("There is no seed to run.", "Give at least one.")
    run = experiment(slug)
    target = out / f"{slug}.{scale}.json" if out else None
    runs: dict[int, dict[str, Any]] = {}
    if target and target.is_file():
        try:
            runs = {entry["seed"]: entry for entry in json.loads(target.read_text(encoding="utf-8"))["runs"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{target} is not a result file: {error}.", "Remove it and run the same command again.") from error
    result: dict[str, Any] = {}
    for seed in seeds:
        began = time.perf_counter()
        claim = run(scale, seed)
        claim.seconds = time.perf_counter() - began
        claim.seed, claim.scale = seed, scale
        runs[seed] = claim.to_dict()
        ordered = [runs[s] for s in sorted(runs)]
        result = {
            "slug": slug,
            "scale": scale,
            "statement": claim.statement,
            "passed": all(entry["passed"] for entry in ordered),
            "runs": ordered,
        }
        if target:
            write_json(target, result)
        if report:
            report(claim)
    return result
