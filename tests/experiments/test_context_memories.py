"""The smoke scale of the claim checks of LM-Infinite, InfLLM and Extended Mind."""

from __future__ import annotations

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import extended_mind, infllm, lm_infinite


@pytest.mark.parametrize(("module", "arms"), [(lm_infinite, 11), (infllm, 7), (extended_mind, 4)])
def test_smoke(module, arms):
    claim = module.run("smoke", 0)
    assert claim.passed
    assert len({row["arm"] for row in claim.rows}) == arms
    assert all(check.ours is not None for check in claim.checks)


def test_every_capital_goes_elsewhere_and_the_seed_decides_where():
    answers = list(extended_mind.CAPITALS.values())
    first = extended_mind.swapped(answers, 0)
    assert sorted(first) == sorted(answers)
    assert all(a != b for a, b in zip(first, answers, strict=True))
    assert first == extended_mind.swapped(answers, 0)
    assert first != extended_mind.swapped(answers, 1)


@pytest.mark.parametrize("module", [lm_infinite, infllm, extended_mind])
def test_there_is_no_gpu_scale(module):
    with pytest.raises(InputError):
        module.run("gpu", 0)
