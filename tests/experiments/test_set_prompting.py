"""The claim check of prompts with sets: its smallest scale, its questions, and its verdict on figures that are known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import set_prompting as check
from palimpsest.measurement import Measurement


def test_smoke_holds_the_guarantee_and_decides_nothing_else():
    smoke = check.run("smoke", 0)
    assert smoke.passed
    assert [line.what for line in smoke.checks if line.threshold is not None] == [
        "as a set: questions whose answer changes",
        "as a set: greatest difference",
    ]
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True
    assert {row["table"] for row in smoke.rows} == {"questions", "ablations", "facts"}
    assert next(line.ours for line in smoke.checks if "to the bit" in line.what) == 1.0
    [curve] = smoke.curves
    assert [len(series.points) for series in curve.series] == [2, 2]


def test_facts_are_drawn_by_the_seed_and_have_one_answer():
    prompts, choices, right = check.facts(3, 4, 5)
    assert check.facts(3, 4, 5)[0] == prompts != check.facts(4, 4, 5)[0]
    for prompt, options, number in zip(prompts, choices, right, strict=True):
        name = str(prompt.parts[-1]).split()[5]
        [fact] = [piece for piece in prompt.sets[0] if name in piece]
        assert fact.endswith(options[number] + ".")
        assert len(set(options)) == 5


def test_questions_are_those_of_the_file():
    if not (Path(os.environ.get("PALIMPSEST_DATA", "")) / "commonsenseqa-set-prompting").is_dir():
        pytest.skip("PALIMPSEST_DATA does not say where the questions are")
    prompts, choices, right = check.questions(0, 5)
    assert len(prompts) == 5
    assert all(len(prompt.sets[0]) == len(options) == 5 for prompt, options in zip(prompts, choices, strict=True))
    assert all(options[number].strip() in prompt.sets[0][number] for prompt, options, number in zip(prompts, choices, right, strict=True))
    assert all(str(prompt).endswith("Answer:") for prompt in prompts)


def test_without_the_questions_it_says_where_they_are(monkeypatch):
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    with pytest.raises(InputError, match="csqa_input"):
        check.run("cpu", 0)
    with pytest.raises(InputError, match="'gpu'"):
        check.run("gpu", 0)


def made(ways):
    """A measurement with these figures."""
    keys = ("changed", "greatest_difference", "accuracy")
    return Measurement("m", pl.DataFrame(), {"ways": {way: dict(zip(keys, values, strict=True)) for way, values in ways.items()}}, {})


@pytest.mark.parametrize(
    ("plain", "method", "ablations", "failing"),
    [
        ((0.5, 2.0, 0.4), (0.0, 1e-5, 0.31), (0.5, 0.5), []),
        ((0.5, 2.0, 0.4), (0.01, 1e-5, 0.4), (0.5, 0.5), ["as a set: questions whose answer changes"]),
        ((0.1, 2.0, 0.4), (0.0, 2e-3, 0.4), (0.5, 0.5), ["as a set: greatest difference", "plainly: questions whose answer changes"]),
        ((0.5, 2.0, 0.4), (0.0, 1e-5, 0.29), (0.5, 0.5), ["accuracy as a set, against plain less .10"]),
        ((0.5, 2.0, 0.4), (0.0, 1e-5, 0.4), (1e-4, 0.5), ["mask only: greatest difference"]),
    ],
)
def test_the_verdict(plain, method, ablations, failing):
    main = made({"plain": plain, "set": method})
    parts = made({"mask only": (0, ablations[0], 0), "positions only": (0, ablations[1], 0)})
    assert [line.what for line in check.judged(main, parts) if not line.passed] == failing
