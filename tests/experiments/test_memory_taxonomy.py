"""The claim check of the taxonomy: its texts, its smallest scale, and its verdict on factors of which the truth is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import special

from palimpsest.audit.memorization_classes import classify
from palimpsest.audit.templating import period, step
from palimpsest.errors import InputError
from palimpsest.experiments import memory_taxonomy
from palimpsest.experiments.memorization_families import FAMILIES, FamilySizes, draw_families
from palimpsest.experiments.planted_texts import EOS_ID, train_tokenizer


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(1024)


@pytest.fixture(scope="module")
def families(tokenizer):
    return draw_families(tokenizer, FamilySizes(recite=9, reconstruct=60, recollect=20), seed=5)


def test_families_are_as_large_as_asked_and_stand_as_often_as_they_say(families):
    kinds = [sample.meta["domain"] for sample in families.samples]
    assert {kind: kinds.count(kind) for kind in FAMILIES} == {"recite": 18, "reconstruct": 60, "recollect": 20}
    copies = [s.meta["copies"] for s in families.samples if s.meta["domain"] == "recite"]
    assert sorted(copies) == [8] * 9 + [16] * 9
    rows = families.rows()
    assert rows.shape == (9 * 8 + 9 * 16 + 80, 33)
    assert (rows[:, -1] == EOS_ID).all()
    for sample in families.samples:
        assert (rows[:, :-1] == sample.ids).all(axis=1).sum() == sample.meta["copies"]
    assert len({s.suffix.tobytes() for s in families.samples}) == len(families.samples)
    assert len({s.meta["id"] for s in families.samples}) == len(families.samples)


def test_paired_texts_share_their_prompt_and_nothing_else_does(families):
    paired = [s for s in families.samples if s.meta["paired"]]
    assert len(paired) == 12
    prompts = [s.prefix.tobytes() for s in families.samples if s.meta["domain"] != "reconstruct"]
    assert sum(prompts.count(prompt) == 2 for prompt in prompts) == 12
    for one, other in zip(paired[::2], paired[1::2], strict=True):
        assert np.array_equal(one.prefix, other.prefix)
        assert not np.array_equal(one.suffix, other.suffix)


def test_what_follows_a_rule_is_seen_to_and_prose_is_not(families):
    for sample in families.samples:
        text = families.tokenizer.decode(sample.ids)
        assert (period(text) is not None or step(text) is not None) == (sample.meta["domain"] == "reconstruct"), text


def test_draws_are_seeded(tokenizer):
    sizes = FamilySizes(recite=3, reconstruct=5, recollect=4)
    first, again, other = (draw_families(tokenizer, sizes, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.rows(), again.rows())
    assert not np.array_equal(first.rows(), other.rows())
    with pytest.raises(InputError, match="paragraphs"):
        draw_families(tokenizer, FamilySizes(recollect=10**6), 0)


def test_smoke_runs_and_its_invariants_hold():
    claim = memory_taxonomy.run("smoke", 0)
    held = [check for check in claim.checks if check.threshold is not None]
    assert len(held) == 2
    assert claim.passed, [(check.what, check.ours) for check in held]
    again = memory_taxonomy.run("smoke", 0)
    assert [check.ours for check in again.checks] == [check.ours for check in claim.checks]
    assert sum(row["n"] for row in claim.rows if row["table"] == "families") == 66


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        memory_taxonomy.run("gpu", 0)


def factors(differ, seed=0, n=900):
    """Factors and labels: duplicates act among the recited, the prompt's perplexity one way here and the other way there, if `differ`."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.arange(n) % 3)
    frame = pl.DataFrame(
        {
            "duplicates": np.where(kind == 0, rng.integers(6, 20, n), 1),
            "templating": kind == 1,
            "frequency_mean": rng.lognormal(5, 1, n),
            "perplexity_prompt": rng.lognormal(2, 0.5, n),
            "perplexity_continuation": rng.lognormal(2, 0.5, n),
            "code_length": rng.normal(4, 0.3, n),
        }
    )
    z = (np.log(frame["perplexity_prompt"].to_numpy()) - 2) / 0.5
    logits = np.where(kind == 0, 0.5 * (frame["duplicates"].to_numpy() - 12) - 2 * z, 2 * z) if differ else 0.3 * z
    frame = frame.with_columns(memorized=pl.Series(rng.random(n) < special.expit(logits)))
    return frame.with_columns(classify(frame))


@pytest.mark.parametrize("differ", [True, False])
def test_the_verdict_follows_the_factors(differ, monkeypatch):
    monkeypatch.setattr(memory_taxonomy, "SPLITS", 2)
    compared = memory_taxonomy.compare(factors(differ), seed=0)
    checks = memory_taxonomy.claimed_checks(compared)
    held = {check.what: check.passed for check in checks if check.threshold is not None}
    assert len(held) == 4
    assert all(held.values()) == differ
    if not differ:
        assert not held["held-out log-loss, taxonomy less one model for all, mean of five splits"]
        assert not held["likelihood-ratio test of one model for all against one a class, p"]
    (curve,) = memory_taxonomy._curves(compared)
    assert [len(series.points) for series in curve.series] == [4, 3, 3]  # duplicates vary among the recited alone


def test_a_class_without_both_labels_fails_the_claim_and_says_why():
    frame = factors(True).with_columns(memorized=pl.col("memorized") | (pl.col("class") == "recitation"))
    compared = memory_taxonomy.compare(frame, seed=0)
    assert "recitation" in compared["reason"]
    checks = memory_taxonomy.claimed_checks(compared)
    assert not any(check.passed for check in checks if check.threshold is not None)
    assert memory_taxonomy._curves(compared) == []
