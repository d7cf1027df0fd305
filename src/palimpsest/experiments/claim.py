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
    runs = _runs(target) if target and target.is_file() else {}
    result: dict[str, Any] = {}
    for seed in seeds:
        began = time.perf_counter()
        claim = run(scale, seed)
        claim.seconds = time.perf_counter() - began
        claim.seed, claim.scale = seed, scale
        runs[seed] = claim.to_dict()
        result = _result(slug, scale, claim.statement, runs)
        if target:
            write_json(target, result)
        if report:
            report(claim)
    return result


def merge(slug: str, scale: str, sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Adds the runs in other results of the same experiment to `out/<slug>.<scale>.json` and runs nothing: seeds may run side by side.

    A seed that the file already holds is replaced, one that two sources hold is an error.

    Args:
        slug, scale: as in `reproduce`.
        sources: result files, or the folders that hold them.
        out: the folder of results.

    Returns:
        What `reproduce` returns.

    Raises:
        InputError: no sources, one that is no result file of this system and scale, a seed in two sources, or runs that are not of one
            set-up: the statement, the version of the package, or the relations of the checks differ.
    """
    if not sources:
        raise InputError("There are no results to merge.", "Give at least one file or folder.")
    target = out / f"{slug}.{scale}.json"
    added: dict[int, dict[str, Any]] = {}
    for source in sources:
        file = source / target.name if source.is_dir() else source
        for seed, entry in _runs(file).items():
            if (entry.get("slug"), entry.get("scale")) != (slug, scale):
                raise InputError(
                    f"{file} holds a run of {entry.get('slug')} at {entry.get('scale')} scale.", f"Give results of {slug} at {scale}."
                )
            if seed in added:
                raise InputError(f"Seed {seed} stands in two of the results.", "Give each seed once.")
            added[seed] = entry
    runs = (_runs(target) if target.is_file() else {}) | added
    first, *others = sorted(runs)
    for seed in others:
        if not _of_one_setup(runs[first], runs[seed]):
            raise InputError(
                f"The runs of seeds {first} and {seed} of {slug} are not of one set-up: their statement, version or checks differ.",
                "Run both with the same code.",
            )
    result = _result(slug, scale, runs[first]["statement"], runs)
    write_json(target, result)
    return result


def _runs(file: Path) -> dict[int, dict[str, Any]]:
    """The runs of a result file by seed."""
    try:
        return {entry["seed"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))["runs"]}
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.", "Give a file that `palimpsest reproduce` wrote.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a result file: {error}.", "Remove it and run the same command again.") from error


def _of_one_setup(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs may stand in one file. Names and thresholds of checks may hang on what was found; their number, relations and units
    do not. A run from sources that are not installed has no version, which says nothing."""
    found = []
    for entry in (one, other):
        try:
            checks = [(check["relation"], check["unit"]) for check in entry["checks"]]
            found.append((entry["statement"], checks, entry["environment"].get("packages", {}).get("palimpsest-lm")))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"The run of seed {entry['seed']} is not whole: {error!r}.", "Run it again.") from error
    versions = {version for *_, version in found if version is not None}
    return found[0][:2] == found[1][:2] and len(versions) <= 1


def _result(slug: str, scale: str, statement: str, runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What a result file holds."""
    ordered = [runs[seed] for seed in sorted(runs)]
    return {"slug": slug, "scale": scale, "statement": statement, "passed": all(entry["passed"] for entry in ordered), "runs": ordered}
