"""The claim check of memory tokens: its smallest scale, its texts, and that the verdict follows the figures."""

from __future__ import annotations

import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import memory_tokens
from palimpsest.measurement import Measurement


def test_smoke_runs():
    claim = memory_tokens.run("smoke", 100)
    assert claim.passed
    assert {check.what for check in claim.checks if check.threshold is not None} == {
        "sequences given back by the untrained vector",
        "sequences given back by the vector of another",
    }
    assert [(row["kind"], row["length"], row["n"]) for row in claim.rows] == [
        ("text", 2, 2), ("random", 2, 1), ("text", 4, 2), ("random", 4, 1),
    ]  # fmt: skip
    assert claim.to_dict()["checks"]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        memory_tokens.run("gpu", 0)


def test_the_texts_are_drawn_by_the_seed(monkeypatch):
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    texts, note = memory_tokens.draw_texts(1, 3)
    assert "not at hand" in note
    assert len(set(texts)) == 6
    assert all(len(text.split()) >= 60 for text in texts)
    assert memory_tokens.draw_texts(1, 3) == (texts, note)
    assert memory_tokens.draw_texts(2, 3)[0] != texts


def made(text, random=(0.0, 0.0, 0.0), **controls):
    """A measurement with these shares at 8, 16 and 32 tokens."""
    levels = [
        {"kind": kind, "length": length, "exact": {"estimate": share}, "untrained": 0, "swapped": 0, **controls}
        for kind, shares in (("text", text), ("random", random))
        for length, share in zip((8, 16, 32), shares, strict=True)
    ]
    return Measurement("reversible", pl.DataFrame(), {"levels": levels}, {"model": {"name": "m"}})


def failed(measured, smaller=None):
    smaller = smaller or made((0.1, 0.0, 0.0))
    checks = [*memory_tokens.controls(measured), *memory_tokens.judged(measured, smaller)]
    return [check.what for check in checks if not check.passed]


def test_the_verdict_follows_the_figures():
    assert failed(made((1.0, 5 / 6, 0.5), (0.5, 0.0, 0.0))) == []
    assert "share of the texts of 8 tokens given back" in failed(made((4 / 6, 0.5, 0.0)))
    assert failed(made((1.0, 0.5, 4 / 6))) == ["greatest rise of the share from one length to the next"]
    assert failed(made((1.0, 0.5, 0.0), (1.0, 0.6, 0.0))) == ["least lead of the texts' share over that of random tokens"]
    [gap] = failed(made((1.0, 1.0, 0.0)), made((1.0, 1.0, 0.0)))
    assert gap == "share of the texts of 16 tokens given back, less that of the laboratory's model"
    assert len(failed(made((1.0, 0.5, 0.0), untrained=1))) == 1
    assert len(failed(made((1.0, 0.5, 0.0), swapped=1))) == 1
    assert any("None tokens" in what for what in failed(made((0.5, 0.5, 0.0))))  # without a length that is held there is no gap
