"""A tiny governed system, and changes to it."""

from __future__ import annotations

import copy

import pytest

from palimpsest.governance.items import ChangeRequest, FactChange, Kind
from palimpsest.governance.system import System

GENERAL = [
    "In the beginning was the word, and the word was written down.",
    "The quick brown fox jumps over the lazy dog.",
    "A palimpsest is a page that still shows what stood there before.",
    "The five boxing wizards jump quickly; sheep were counted.",
]


@pytest.fixture
def system(tiny_model) -> System:
    """The tiny random Llama, a copy for this test alone."""
    door = copy.copy(tiny_model)
    door.model = copy.deepcopy(tiny_model.model)
    vars(door).pop("fingerprint", None)
    return System.of(door, GENERAL)


def change(system: System, subject: str = "Ada", target: str | None = "Rome", old: str = "Paris", neighbours: int = 100) -> FactChange:
    """A change whose neighbours the random model happens to know: of each pair it is the likelier value that is called true."""
    key = (system.model.tokenizer.fingerprint, target or old)
    if key not in _KNOWN:
        _KNOWN[key] = known_pairs(system, target or old)
    wordings = tuple(f"{phrase} {subject} is in" for phrase in ("The home of", "The house of", "The flat of"))
    return FactChange(subject, "home", f"{subject} lives in", target, old, wordings, wordings * 6, tuple(_KNOWN[key][:neighbours]))


_KNOWN: dict[tuple[str, str], list[tuple[str, str]]] = {}  # the weights are the same in every test


def known_pairs(system: System, target: str) -> list[tuple[str, str]]:
    """Cues and values that the model prefers to `target`."""
    names = [f"{head}{tail}" for head in ("Bo", "Cy", "Di", "Eve") for tail in ("", "lla", "ster", "na", "ro")]
    cues = [f"{name} lives in" for name in names]
    values = [f"{head}{tail}" for head in ("Os", "Bo", "Wi") for tail in ("lo", "nn", "ga", "rin")]
    pairs = [(cue, value) for cue in cues for value in values]
    known = system.prefers([cue for cue, _ in pairs], [value for _, value in pairs], [target] * len(pairs))
    pairs = [pair for pair, is_known in zip(pairs, known, strict=True) if is_known]
    assert len(pairs) >= 75  # Wilson's lower bound of 75 of 75 is above 0.95
    return pairs


@pytest.fixture
def request_(system) -> ChangeRequest:
    """An update that a store row carries out."""
    return ChangeRequest(Kind.UPDATE, (change(system),), attributed=True, source="desk")
