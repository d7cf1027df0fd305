"""The catalogue: 119 published systems (rows of `catalogue.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class System:
    """One row of the catalogue."""

    number: int
    slug: str
    title: str
    family: str


SYSTEMS: tuple[System, ...] = tuple(
    System(**row) for row in tomllib.loads((Path(__file__).parent / "catalogue.toml").read_text(encoding="utf-8"))["system"]
)
