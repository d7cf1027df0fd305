"""The claim check of relay attention: its smallest scale, its texts, and its verdict on figures that are known."""

from __future__ import annotations

import json

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import relay_attention as check
from palimpsest.experiments.canaries import twins


@pytest.fixture(scope="module")
def smoke():
    return check.run("smoke", 0)


def test_smoke_is_exact_and_holds_no_times_against_anything(smoke):
    assert smoke.passed
    assert sum(line.threshold is not None for line in smoke.checks) == 3
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True
    assert [row["shared"] for row in smoke.rows] == [16, 40]
    for row in smoke.rows:
        assert row["bytes_copied"] == 3 * row["bytes_shared"]
        assert row["bytes_contexts"] * row["shared"] == 3 * row["bytes_shared"] * (4 + 4)  # tokens of three contexts, against one prompt's
    assert smoke.rows[0]["first_again_ms"] > 0
    assert smoke.rows[0]["logits_float64"] <= 1e-9
    assert "first_again_ms" not in smoke.rows[1]


def test_prompts_are_nested_and_drawn_by_the_seed():
    tokenizer = twins().tokenizer
    prompts, contexts = check.texts(tokenizer, check.CPU, 0)
    assert [len(prompt) for prompt in prompts] == [256, 1024, 2048]
    assert prompts[2][-256:] == prompts[0]
    assert contexts.shape == (8, 16)
    assert check.texts(tokenizer, check.CPU, 0)[0] == prompts != check.texts(tokenizer, check.CPU, 1)[0]
    with pytest.raises(InputError, match="do not hold"):
        check.texts(tokenizer, check.Setting(shared=(10**7,)), 0)


def made(ratios=(0.9, 0.6, 0.4), logits=1e-5, equal=8, share=1.0):
    return [
        {
            "shared": shared, "bytes_shared": share * 100, "bytes_copied": 800, "logits": logits, "texts_equal": equal, "step_ratio": ratio,
            "attention_relay_ms": 1.0, "attention_copies_ms": 3.0, "first_again_ms": 9.0, "first_relay_ms": 2.0,
            "logits_of_two_ordinary_ways": 1e-5, "logits_float64": 1e-12,
        }
        for shared, ratio in zip((256, 1024, 2048), ratios, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "failing"),
    [
        ({}, []),
        ({"share": 1.01}, ["bytes of the shared prompt"]),
        ({"logits": 2e-4}, ["greatest difference"]),
        ({"equal": 7}, ["texts that are the same"]),
        ({"ratios": (0.95, 0.9, 0.85)}, ["time of a step"]),
        ({"ratios": (0.5, 0.6, 0.4)}, ["least rise"]),
    ],
)
def test_the_verdict(figures, failing):
    found = [line.what for line in check.judged(made(**figures), check.CPU) if not line.passed]
    assert len(found) == len(failing)
    assert all(what.startswith(start) for what, start in zip(found, failing, strict=True))


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        check.run("gpu", 0)
