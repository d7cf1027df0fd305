"""The claim check of the planted suite at its smallest scale, and the figures it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import planted_suite


@pytest.fixture(scope="module")
def claim(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        return planted_suite.run("smoke", 0)


def test_smoke_holds_the_invariants_of_planting_and_reports_the_rest(claim):
    assert claim.passed
    held = {c.what: c.ours for c in claim.checks if c.threshold is not None}
    assert len(held) == 4
    assert set(held.values()) == {0}
    reported = [c for c in claim.checks if c.threshold is None]
    assert {c.what.split(":")[0] for c in reported} >= {"twins", "dilution", "ordering", "membership by loss", "membership by min-k++"}
    assert all(np.isfinite(c.ours) for c in reported if c.what != "dilution: extraction at 6 copies in twice the tokens")


def test_rows_and_curves_hold_every_level(claim):
    assert [row["copies"] for row in claim.rows] == [0, 1, 2, 6]
    assert all(row[f"gain_{name}"] == 0 for row in claim.rows[:1] for name in ("plain", "diluted", "early", "late"))
    assert {c.id for c in claim.curves} == {"planted-gain", "planted-membership"}
    claim.to_dict()


def test_the_cpu_scale_holds_every_threshold_of_the_claim():
    """Made-up figures of a model that remembers as claimed pass; each law broken on its own fails a check of that law."""
    levels = [0, 1, 2, 4, 8, 16, 32, 48, 64]
    up = {c: c / 64 for c in levels}
    half = {c: c / 128 for c in levels}
    good = {
        "levels": levels,
        "gaps": up,
        "validation": {"standard": 3.0, "perturbed": 3.05},
        "gains": {"plain": up, "diluted": half, "early": half, "late": up},
        "rates": {"plain": up, "diluted": half, "early": half, "late": up},
        "aucs": {"loss": {c: 0.5 + c / 128 for c in levels[1:]}},
    }
    assert all(c.passed for c in planted_suite._claimed(**good))
    down = {c: 1 - v for c, v in up.items()}
    broken = {
        "twins": {"gaps": down},
        "twins: validation": {"validation": {"standard": 3.0, "perturbed": 3.1}},
        "dilution": {"gains": good["gains"] | {"diluted": up}},
        "dilution: extraction": {"rates": good["rates"] | {"diluted": up}},
        "dilution: extraction at 64": {"rates": {name: dict.fromkeys(levels, 0.0) for name in good["rates"]}},  # nothing to dilute
        "ordering": {"gains": good["gains"] | {"late": half, "early": up}},
        "membership": {"aucs": {"loss": dict.fromkeys(levels[1:-1], 0.9) | {64: 0.97}}},
    }
    for law, change in broken.items():
        failed = [c.what for c in planted_suite._claimed(**{**good, **change}) if not c.passed]
        assert failed, law
        assert all(what.startswith(law) for what in failed), law


def test_a_scale_that_it_does_not_have_is_refused():
    with pytest.raises(InputError, match="gpu"):
        planted_suite.run("gpu", 0)
