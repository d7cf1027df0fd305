"""The examples in the docstrings of the statistics say what they print."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

FAMILIES = ("agreement", "correction", "equivalence", "fits", "intervals", "paired", "planning", "roc", "sequential")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_examples_hold(family):
    result = doctest.testmod(import_module(f"palimpsest.stats.{family}"))
    assert result.attempted > 0
    assert result.failed == 0
