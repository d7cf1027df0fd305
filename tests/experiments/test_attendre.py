"""The claim check of Attendre: its texts, and its smallest scale."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import attendre as experiment
from palimpsest.experiments.attendre_lab import LabBatches, RecallConfig, TaggingConfig, recall_texts, tagging_texts
from palimpsest.training.batch import IGNORE


def test_smoke_runs_and_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    claim = experiment.run("smoke", 100)
    assert claim.passed
    assert claim.checks[0].threshold is not None
    assert {(row["policy"], row["slots"]) for row in claim.rows if row["kind"] == "recall"} == {
        ("full", 64), ("fifo", 24), ("lra", 24), ("lfa", 24), ("fifo", 48),
    }  # fmt: skip


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)


@pytest.mark.parametrize("test", [False, True])
def test_every_question_is_about_a_pair_that_was_announced(test):
    c = RecallConfig()
    ids, wanted, ago = recall_texts(c, np.random.default_rng(0), 8, test)
    asked_of = []
    for row, wants, ages in zip(ids.tolist(), wanted.tolist(), ago.tolist(), strict=True):
        told, asked = {}, set()
        for place, word in enumerate(row):
            if word >= c.fillers + c.keys:
                key, value = divmod(word - c.fillers - c.keys, c.values)
                assert key not in told
                told[key] = (place, value)
                assert wants[place] == -1
            elif word >= c.fillers:
                key = word - c.fillers
                asked.add(key)
                assert (place - told[key][0], told[key][1]) == (ages[place], wants[place])
            else:
                assert wants[place] == ages[place] == -1
        assert len(told) == c.keys if test else 4 <= len(told) <= c.keys
        asked_of.append(len(asked))
    assert max(asked_of) <= (c.keys // 4 if test else c.keys)
    assert 0.2 < (wanted >= 0).mean() < 0.5


def test_every_tag_is_said_later_and_once():
    c = TaggingConfig()
    ids, wanted = tagging_texts(c, np.random.default_rng(0), 20)
    later = []
    for row, wants in zip(ids.tolist(), wanted.tolist(), strict=True):
        for place, value in enumerate(wants):
            if value >= 0:
                key = row[place] - c.fillers
                assert 0 <= key < c.keys
                [said] = [t for t, w in enumerate(row) if w >= c.fillers + c.keys and (w - c.fillers - c.keys) // c.values == key]
                assert (row[said] - c.fillers - c.keys) % c.values == value
                later.append(said - place)
    assert (min(later), max(later)) == (9, 24)
    assert len(later) > 20 * 8


def test_batches_are_drawn_from_their_number():
    for config in (RecallConfig(rows=2), TaggingConfig(rows=2)):
        data = LabBatches(config)
        assert data[3].input_ids.equal(data[3].input_ids)
        assert not data[3].input_ids.equal(data[4].input_ids)
        assert (data[3].labels != IGNORE).any()
        assert data.fingerprint != LabBatches(type(config)(rows=2, seed=1)).fingerprint
