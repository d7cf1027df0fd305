"""The laboratory of order recall: its rows against the sequences they are made of, its trials, and a model that learns to recite."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from palimpsest.experiments import book_sort_lab as lab
from palimpsest.training.batch import IGNORE

CONFIG = lab.SortLabConfig(seed=3, words=12, length=8, recited=5, steps=2, tasks=6, texts=3, ramp=0, width=16, layers=1, heads=2, trials=40)


def test_a_task_says_which_of_two_segments_of_its_sequence_comes_first():
    batch = lab.SortBatches(replace(CONFIG, tasks=200))[0]
    names = set()
    for ids, labels in zip(batch.input_ids[:200].tolist(), batch.labels[:200].tolist(), strict=True):
        sequence, a, b = ids[1:9], ids[10:12], ids[13:15]
        assert (ids[0], ids[9], ids[12], ids[15]) == (lab.END, lab.A, lab.B, lab.ASK)
        assert len(set(sequence)) == 8
        at, other = (next(k for k in range(7) if sequence[k : k + 2] == segment) for segment in (a, b))
        assert abs(at - other) >= 2
        assert ids[16] == (lab.A if at < other else lab.B)
        names.add(ids[16])
        assert [k for k, label in enumerate(labels) if label != IGNORE] == [10, 13, 15]  # second words and the label, one place before
        assert [labels[k] for k in (10, 13, 15)] == [a[1], b[1], ids[16]]
    assert names == {lab.A, lab.B}


def test_a_text_is_one_of_those_that_are_learnt_and_asked_for_whole():
    texts = {tuple(row) for row in lab.learnt(CONFIG).tolist()}
    assert len(texts) == 5
    batch = lab.SortBatches(CONFIG)[7]
    for ids, labels in zip(batch.input_ids[6:].tolist(), batch.labels[6:].tolist(), strict=True):
        assert tuple(ids[1:9]) in texts
        assert labels[:8] == ids[1:9]
        assert set(labels[8:]) == {IGNORE}


def test_sequences_grow_from_two_segments_to_the_whole():
    batches = lab.SortBatches(replace(CONFIG, ramp=8))
    assert [batches.length(k) for k in (0, 1, 2, 6, 8, 100)] == [4, 4, 5, 7, 8, 8]
    ids, labels = batches[0].input_ids[0].tolist(), batches[0].labels[0].tolist()
    assert [ids[k] for k in (0, 5, 8, 11)] == [lab.END, lab.A, lab.B, lab.ASK]
    assert [k for k, label in enumerate(labels) if label != IGNORE] == [6, 9, 11]
    assert labels[11] == ids[12] == (lab.A if ids[6:8] == ids[1:3] else lab.B)


def test_batches_follow_from_their_number():
    one, same, other = (lab.SortBatches(CONFIG)[k].input_ids for k in (4, 4, 5))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    prints = {lab.SortBatches(c).fingerprint for c in (CONFIG, replace(CONFIG), replace(CONFIG, texts=4))}
    assert len(prints) == 2


def test_all_pairs_of_places_that_do_not_overlap_are_drawn():
    places = lab.draw(CONFIG, np.random.default_rng(0), 4000)[1]
    assert {tuple(row) for row in places.tolist()} == {(a, b) for a in range(7) for b in range(7) if b - a >= 2}


def test_trials_are_balanced_and_their_prompts_have_the_form_of_the_rows():
    rng = np.random.default_rng(1)
    sequences, _, _ = lab.draw(CONFIG, rng, 20)
    found = lab.trials(CONFIG, sequences, rng)
    assert sum(trial.earlier_is_a for trial in found) == 20
    assert {sum(t.book == f"sequence {k}" for t in found) for k in range(20)} == {2}
    tokens = lab.tokenizer(CONFIG)
    for number, trial in enumerate(found[:8]):
        ids = tokens.encode(lab.PROMPT.fill(trial, trial.excerpt, trial.earlier_is_a, "first"))
        label = lab.A if trial.earlier_is_a else lab.B
        row = lab.task_rows(sequences[number, None], np.array([trial.at]), np.array([trial.earlier_is_a]), 2)[0]
        assert [*ids, label] == row.tolist()


def test_a_model_is_trained_once_and_recites_what_it_was_taught(tmp_path, monkeypatch):
    config = replace(CONFIG, recited=2, tasks=1, texts=8, steps=80, lr=1e-2, width=32)
    checks, rows = lab.laboratory(config, tmp_path)
    recited, fresh, memory, *_ = checks
    assert recited.ours == 1.0
    assert recited.passed
    assert 0 <= fresh.ours <= 1
    assert [(row["sequences"], row["condition"], row["n"]) for row in rows[:2]] == [
        ("fresh", "in_context", 40),
        ("fresh", "from_memory", 40),
    ]
    monkeypatch.setattr(lab.Trainer, "fit", lambda *_: pytest.fail("it was trained again"))
    assert lab.laboratory(config, tmp_path)[0] == checks
    assert [(check.relation, check.threshold) for check in (recited, fresh, memory)] == [(">=", 0.9), (">=", 0.85), ("<=", 0.65)]
