"""The catalogue: 119 published systems, each with the card of the memory that it is about and a state that is derived, never typed.

The rows stand in `catalogue.toml`, the terms of the card in `taxonomy.py`. Whether a system is implemented is read from the source
files (every object that its row names is defined; nothing is imported), whether its claim holds from `results/<slug>.cpu.json`.

    >>> from palimpsest.catalogue import find
    >>> find("memfree").memory_kind.value
    'parametric'
"""

from __future__ import annotations

import ast
import difflib
import json
import tomllib
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest.errors import InputError
from palimpsest.taxonomy import (
    AccessPath,
    Controllability,
    Location,
    MemoryKind,
    Persistence,
    Quadruple,
    Revert,
    Stage,
    WritePath,
    classify,
)

PACKAGE = Path(__file__).parent
FAMILIES = ("audit-extraction", "audit-probes", "context", "continual", "latent", "mixers", "recall-ranking", "training")
KINDS = (
    "architecture", "benchmark", "framework", "measurement", "method", "serving system", "survey", "theory", "training method",
    "training suite", "training system",
)  # fmt: skip


class State(StrEnum):
    """How far a system is."""

    PLANNED = "planned"
    IMPLEMENTED = "implemented"
    CLAIM_SHOWN = "claim shown"
    CLAIM_FAILED = "claim failed"


@dataclass(frozen=True)
class System:
    """One row of the catalogue.

    Attributes:
        number, slug, title: as in the list of the 119 systems.
        authors, year, venue, arxiv: the source; None where there is none or it is not known.
        unchecked: fields of the source that were noted from memory and not compared with the paper.
        kinds: what it is, of `KINDS`.
        family: which group of the library it belongs to, of `FAMILIES`.
        lives_in: what it consists of, "module:object" or "module".
        memory: the memory that it is about.
        stages: what it does with that memory.
        claim: its central claim in one sentence.
    """

    number: int
    slug: str
    title: str
    authors: str
    year: int
    venue: str | None
    arxiv: str | None
    unchecked: tuple[str, ...]
    kinds: tuple[str, ...]
    family: str
    lives_in: tuple[str, ...]
    memory: Quadruple
    stages: tuple[Stage, ...]
    claim: str

    @property
    def memory_kind(self) -> MemoryKind:
        """Parametric, contextual, external or procedural/episodic."""
        return classify(self.memory)

    @property
    def url(self) -> str | None:
        """The paper's page on arXiv."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None

    @property
    def source(self) -> str:
        """Authors, venue, year and arXiv id in one line; what was not checked is said."""
        place = self.venue if self.venue and str(self.year) in self.venue else ", ".join(filter(None, (self.venue, str(self.year))))
        line = ", ".join(filter(None, (self.authors, place, self.arxiv and f"arXiv {self.arxiv}")))
        return line + (f" ({' and '.join(self.unchecked)} not checked)" if self.unchecked else "")

    def to_dict(self) -> dict[str, Any]:
        """The card as plain JSON types, with the derived kind of memory and state."""
        card = {**asdict(self), "memory_kind": self.memory_kind, "source": self.source, "url": self.url, "state": state(self)}
        return dict(json.loads(json.dumps(card)))


SEEDS = 3  # a claim is shown when it held for at least so many


@dataclass(frozen=True)
class ClaimResult:
    """What `results/<slug>.<scale>.json` says: the runs (one a seed) and whether all of them passed."""

    path: Path
    scale: str
    statement: str
    runs: list[dict[str, Any]]

    @property
    def passed(self) -> bool:
        """Whether the claim held for every seed."""
        return all(run["passed"] is True for run in self.runs)


def _system(row: dict[str, Any]) -> System:
    """A `System` from a row of the TOML file; an unknown field or value raises."""
    row = dict(row)
    control = dict(row.pop("control"))
    path = row.pop("memory")
    memory = Quadruple(
        Location(path.pop("location")),
        Persistence(path.pop("persistence")),
        WritePath(path.pop("write_path")),
        AccessPath(path.pop("access_path")),
        Controllability(revert=Revert(control.pop("revert")), **control),
    )
    stages = tuple(Stage(stage) for stage in row.pop("stages"))
    unchecked, kinds, lives_in = (tuple(row.pop(name, ())) for name in ("unchecked", "kinds", "lives_in"))
    optional = {"venue": row.pop("venue", None), "arxiv": row.pop("arxiv", None)}
    return System(memory=memory, stages=stages, unchecked=unchecked, kinds=kinds, lives_in=lives_in, **optional, **row)


SYSTEMS: tuple[System, ...] = tuple(
    _system(row) for row in tomllib.loads((PACKAGE / "catalogue.toml").read_text(encoding="utf-8"))["system"]
)


def find(slug: str) -> System:
    """The system with this slug, or number (as "1" or "001").

    Raises:
        InputError: there is none; the message names the nearest slugs.
    """
    for system in SYSTEMS:
        if slug == system.slug or (slug.isdecimal() and int(slug) == system.number):
            return system
    near = difflib.get_close_matches(slug, [system.slug for system in SYSTEMS], n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"There is no system {slug!r} in the catalogue.", f"{hint}`palimpsest systems` lists all {len(SYSTEMS)}.")


def results_dir() -> Path:
    """The folder of committed claim results: at the root of a checkout, inside the package of an installation."""
    checkout = PACKAGE.parents[1]
    return checkout / "results" if (checkout / "pyproject.toml").is_file() else PACKAGE / "results"


def experiment_file(slug: str) -> Path:
    """Where the claim check of a system stands, whether it exists or not."""
    return PACKAGE / "experiments" / f"{slug.replace('-', '_')}.py"


def missing(system: System, package: Path = PACKAGE) -> list[str]:
    """Which of the objects that the row names are not defined in the source; empty means that the system is implemented."""
    return [entry for entry in system.lives_in if not _defined(entry, package)]


def _defined(entry: str, package: Path) -> bool:
    module, _, name = entry.partition(":")
    path = package.joinpath(*module.split(".")[1:])
    file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
    return file is not None and (not name or name in _names(file))


@cache
def _names(file: Path) -> frozenset[str]:
    """The names that a source file defines at its top level, read without running it."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names.update(target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(names)


def claim_result(system: System, results: Path | None = None) -> ClaimResult | None:
    """The committed outcome of the system's claim check: at `cpu` scale, else at `gpu` scale, else None.

    Raises:
        InputError: the file is not a result of this system.
    """
    for scale in ("cpu", "gpu"):
        path = (results or results_dir()) / f"{system.slug}.{scale}.json"
        if path.is_file():
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                outcome = ClaimResult(path, scale, value["statement"], value["runs"])
                if (value["slug"], value["scale"], bool(value["runs"])) != (system.slug, scale, True) or value[
                    "passed"
                ] is not outcome.passed:
                    raise ValueError("its slug, scale, runs and verdict do not belong together")
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} is not a result of {system.slug}: {error}.", f"Run `palimpsest reproduce {system.slug}`."
                ) from error
            return outcome
    return None


def state(system: System, results: Path | None = None, package: Path = PACKAGE) -> State:
    """How far a system is: planned, implemented, or its claim shown (by at least `SEEDS` seeds) or failed (by one)."""
    if missing(system, package):
        return State.PLANNED
    result = claim_result(system, results)
    if result is not None and not result.passed:
        return State.CLAIM_FAILED
    decided = result is not None and len({run["seed"] for run in result.runs}) >= SEEDS
    return State.CLAIM_SHOWN if decided else State.IMPLEMENTED
