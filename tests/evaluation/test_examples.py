"""The examples in the docstrings of the evaluation say what they print."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = (
    "answers", "card", "contamination", "haystack", "items", "memory_test", "propositions", "retrieval", "temporal", "timeline",
    "layers.contextual", "layers.episodic", "layers.external", "layers.parametric",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_hold(module):
    result = doctest.testmod(import_module(f"palimpsest.evaluation.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
