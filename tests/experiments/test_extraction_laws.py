"""The claim check of the extraction laws: its smallest scale, and its verdict on measurements of which the laws are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from palimpsest.audit.laws import extraction_summary, size_law, with_gain
from palimpsest.errors import InputError
from palimpsest.experiments import extraction_laws
from palimpsest.measurement import Measurement


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_smoke_runs_and_its_invariant_holds():
    claim = extraction_laws.run("smoke", 0)
    assert claim.passed
    held = [check for check in claim.checks if check.threshold is not None]
    assert [check.what for check in held] == ["suffixes on which scoring and greedy generation disagree"]
    assert len(claim.rows) == 3 * 5 * 5  # sizes, contexts, levels
    assert {row["model"] for row in claim.rows} == {"perturbed-s", "perturbed-m", "perturbed-l"}
    assert {curve.id for curve in claim.curves} >= {"extraction-gain", "extraction-context", "extraction-size"}
    again = extraction_laws.run("smoke", 0)
    assert again.rows == claim.rows
    assert [check.ours for check in again.checks] == [check.ours for check in claim.checks]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        extraction_laws.run("gpu", 0)


def measured(strength: float, seed: int, parameters: int):
    """What `measure_extraction` would return for a model whose gain is `strength` times the logarithm of copies and of context."""
    rng = np.random.default_rng(seed)
    rows = []
    for sample in range(60):
        copies = (0, 1, 4, 16, 64)[sample // 12]
        for context in extraction_laws.CONTEXTS:
            gain = strength * np.log10(copies) * np.log10(context) if copies else 0.0
            rows.append((sample, str(sample), "a", copies, context, 16, False, 0, -4 + gain + rng.normal(0, 0.1)))
    names = ["sample", "id", "domain", "copies", "context", "suffix_len", "extracted", "matched", "logprob"]
    table = with_gain(pl.DataFrame(rows, schema=names, orient="row"))
    return {"name": f"m{parameters}", "parameters": parameters}, Measurement("extraction", table, extraction_summary(table), {})


@pytest.mark.parametrize(
    ("strengths", "unperturbed", "expected"),
    [((0.3, 0.6, 0.9), 0.0, True), ((0.9, 0.6, 0.3), 0.0, False), ((0, 0, 0), 0.0, False), ((0.3, 0.6, 0.9), 0.1, False)],
)
def test_the_verdict_follows_the_laws(strengths, unperturbed, expected):
    pairs = [measured(strength, i, 10 ** (5 + i)) for i, strength in enumerate(strengths)]
    checks = extraction_laws._claimed([one for _, one in pairs], size_law(pairs), unperturbed)
    assert all(check.passed for check in checks) == expected
    assert sum(check.threshold is not None for check in checks) == 7
