"""The claim check of (n, p)-extraction: its smallest scale, and that it can fail."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.audit.probabilistic import measure_probabilistic, suffix_logprob
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import InputError
from palimpsest.experiments import probabilistic_extraction as experiment


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_smoke_runs_and_its_invariants_hold():
    claim = experiment.run("smoke", 0)
    assert claim.passed
    held = {check.what: check for check in claim.checks if check.threshold is not None}
    assert len(held) == 2
    compared = next(check for what, check in held.items() if "4 standard errors" in what)
    assert compared.ours >= 1
    assert [row["copies"] for row in claim.rows] == [0, 1, 2, 6]
    assert {curve.id for curve in claim.curves} == {"probabilistic-n", "probabilistic-n-copies", "probabilistic-copies"}


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)


@pytest.fixture(scope="module")
def passages(tiny_model):
    """Samples of 32 + 16 tokens, the suffix drawn from the model itself."""
    prefixes = np.random.default_rng(0).integers(2, tiny_model.tokenizer.vocab_size, size=(12, experiment.CONTEXT))
    drawn = tiny_model.generate(list(prefixes), experiment.SUFFIX, temperature=0.5, seed=1, stop_at_eos=False)
    return [
        PrefixSuffix(
            np.concatenate([prefix, rows[0]]), experiment.CONTEXT, experiment.SUFFIX, {"id": str(i), "copies": (0, 1, 16, 24)[i % 4]}
        )
        for i, (prefix, rows) in enumerate(zip(prefixes, drawn, strict=True))
    ]


def test_targets_lie_in_the_range_and_sampling_confirms_them(tiny_model, passages):
    targets = experiment._targets(tiny_model, passages)
    assert len({sample.meta["id"] for sample, _ in targets}) == len(targets) >= 10
    for sample, p_z in targets:
        assert experiment.RANGE[0] <= p_z <= experiment.RANGE[1]
        assert p_z == pytest.approx(np.exp(suffix_logprob(tiny_model, [sample])[0]), rel=1e-4)
    assert not any(experiment._is_outside(tiny_model, sample, p_z, 0) for sample, p_z in targets[:5])
    assert any(experiment._is_outside(tiny_model, sample, p_z / 2, 0) for sample, p_z in targets if p_z > 0.05)


def test_a_model_that_remembers_nothing_fails_the_claim(tiny_model, passages):
    checks = experiment._claimed(measure_probabilistic(tiny_model, passages))
    assert [check.what for check in checks if not check.passed]
    assert sum(check.threshold is not None for check in checks) == 7


def test_disorder_is_seen(tiny_model, passages):
    measured = measure_probabilistic(tiny_model, passages)
    assert experiment._disorder(measured) == 0
    rates = measured.summary["overall"]["rates"]
    rates[0]["rate"] = rates[-1]["rate"] + 1.0  # the fewest samples extract the most
    assert experiment._disorder(measured) > 0
