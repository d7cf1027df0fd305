"""The claim check of prompt-dependent recall: its smallest scale, and that it can fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import prompt_dependent_recall as experiment
from palimpsest.experiments.planted_texts import train_tokenizer


class Parrot(experiment.LexicalReader):
    """Answers every question alike, and never right."""

    def generate(self, prefixes, max_new_tokens, **options):
        return [[np.array(self.tokenizer.encode(" Paris")[:max_new_tokens], np.int64)] for _ in prefixes]


class Half(experiment.LexicalReader):
    """Finds a needle unless the question says "According"."""

    def read(self, prompt):
        return "no" if "According" in prompt.rpartition("\n\n")[2] else super().read(prompt)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(1024)


def measured(reader):
    tests = [replace(test, neutral="") for test in experiment.TESTS]
    return experiment.measure(reader, 100, (256,), (0.0, 0.25, 0.5, 1.0), tests)


def test_smoke_runs_and_passes():
    claim = experiment.run("smoke", 100)
    assert claim.passed
    assert [check.ours for check in claim.checks] == [0, 0]
    assert len(claim.rows) == 12


def test_the_reader_reads_the_needle_in_a_longer_context(tokenizer):
    reader = experiment.LexicalReader(tokenizer)
    context = "Of the capital much is said in this place. The capital of France is the town of Arlby. What is best?"
    assert reader.read(f"{context}\n\nQuestion: What is the capital of France?") == "The capital of France is the town of Arlby."
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)


def test_a_claim_can_hold_and_fail(tokenizer, monkeypatch):
    monkeypatch.setattr(experiment, "conflict", lambda measurement: 0.0)  # the small tokenizer has no twins of one length
    held = experiment.claimed_checks(measured(Half(tokenizer)))
    assert all(check.passed for check in held)
    assert held[1].ours == 1
    for reader in (experiment.LexicalReader(tokenizer), Parrot(tokenizer)):
        checks = experiment.claimed_checks(measured(reader))
        assert not checks[0].passed
        assert not checks[1].passed
