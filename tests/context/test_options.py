"""Methods from words: types are read from the fields, and what cannot be read says why."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import pytest

from palimpsest.context import options
from palimpsest.context.attach import ContextMethod
from palimpsest.context.options import build_method, method_class
from palimpsest.errors import InputError


@dataclass(frozen=True)
class Plain(ContextMethod):
    """One of each type."""

    budget: int
    share: float = 0.5
    kind: Literal["a", "b"] = "a"
    per_head: bool = False
    offload: str | None = "cpu"
    most: int | None = None
    other: ContextMethod | None = None
    table: dict[str, int] | None = None


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of two."""
    entries = {"plain": f"{__name__}:Plain", "trained": "palimpsest.context.options:build_method"}
    monkeypatch.setattr(options, "method", lambda name: SimpleNamespace(entry_point=entries[name], needs=()))


def test_fields_are_read_by_their_types() -> None:
    words = {"budget": "12", "share": "1e-1", "kind": "b", "per_head": "Yes", "offload": "none", "most": "7"}
    assert build_method("plain", words) == Plain(12, 0.1, "b", True, None, 7)
    assert build_method("plain", {"budget": "1", "most": "None", "offload": "cuda"}) == Plain(1, offload="cuda", most=None)


def test_a_method_inside_of_a_method_has_options_of_its_own() -> None:
    words = {"budget": "1", "other": "plain", "other.budget": "2", "other.other": "plain", "other.other.budget": "3"}
    assert build_method("plain", words) == Plain(1, other=Plain(2, other=Plain(3)))
    assert build_method("plain", {"budget": "1", "other": "none"}) == Plain(1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"budget": "many"}, "an integer"),
        ({"budget": "1.5"}, "an integer"),
        ({"budget": "1", "share": "x"}, "a number"),
        ({"budget": "1", "kind": "c"}, "one of a, b"),
        ({"budget": "1", "per_head": "perhaps"}, "true or false"),
        ({"budget": "1", "most": "x"}, "an integer or none"),
        ({"budget": "1", "size": "2"}, "It has: budget, share"),
        ({"budget": "1", "other.budget": "2"}, "other=NAME"),
        ({"budget": "1", "other": "plain"}, "plain needs budget"),
        ({}, "budget=256"),
        ({"budget": "1", "table": "x"}, "from Python|Give"),
    ],
)
def test_what_cannot_be_read_says_what_would_be(words: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_method("plain", words)


def test_an_entry_that_is_no_method_is_refused() -> None:
    assert method_class("plain") is Plain
    with pytest.raises(InputError, match="not a method that can be put on a model"):
        build_method("trained")
