"""The claim check of VocabTrim: its smallest scale, its data, and its verdict on a drafter that loses too much."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import vocabtrim


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PALIMPSEST_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def smoke(cache):
    return vocabtrim.run("smoke", 0)


def test_smoke_writes_the_targets_text_and_decides_nothing_else(smoke):
    assert smoke.passed
    assert [check.what for check in smoke.checks if check.threshold is not None] == ["greedy texts that are the target's own"]
    heads = [row["head"] for row in smoke.rows if row["decoding"] == "sampled" and "mbsu" in row]
    assert heads[:4] == ["whole head", "target", "drafter", "raw text"]
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True


def test_the_pair_is_trained_once(cache, smoke):
    files = sorted((cache / "lab" / "speculative").iterdir())
    assert len(files) == 2
    before = [file.stat().st_mtime_ns for file in files]
    again = vocabtrim.run("smoke", 0)
    assert [file.stat().st_mtime_ns for file in files] == before
    pairs = zip(again.checks, smoke.checks, strict=True)
    assert all(a.ours == b.ours for a, b in pairs)


def test_prompts_of_calibration_and_test_share_nothing(cache):
    config = replace(vocabtrim.SMOKE, prompts=60)
    target, drafter = vocabtrim.pair(config, 0)
    counted, asked = vocabtrim.prompts(config, target, 0)
    assert len(counted) == len(asked) == 60
    assert {len(row) for row in (*counted, *asked)} == {vocabtrim.PROMPT}
    assert not {tuple(row) for row in counted} & {tuple(row) for row in asked}
    counts = vocabtrim.calibrations(config, target, drafter, counted, 0)
    assert {int(count.sum()) for count in counts.values()} == {config.calibration}
    assert not np.array_equal(counts["target"], counts["raw text"])


def test_a_head_cut_too_far_fails(cache, smoke):
    """With 20 tokens kept block efficiency falls, and the decided check says so."""
    claim = vocabtrim.measured(replace(vocabtrim.SMOKE, k=20), 0)
    lost = next(check for check in claim.checks if "lost" in check.what)
    assert not lost.passed
    assert lost.ours > 0.05
    assert claim.checks[-1].passed  # the text is the target's all the same


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="gpu"):
        vocabtrim.run("gpu", 0)
