"""The claim check of the contrast: its smallest scale with a random model, its verdict, and the control."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.audit.contrast_items import builtin_rows, idiom_clozes
from palimpsest.errors import InputError
from palimpsest.experiments import rome


def test_smoke_runs(monkeypatch, tiny_model):
    monkeypatch.setattr(rome, "load_model", lambda name: tiny_model)
    claim = rome.run("smoke", 100)
    assert claim.passed
    assert all(check.threshold is None for check in claim.checks)
    rates = {row["scope"]: row["n"] for row in claim.rows if row["table"] == "rates"}
    assert rates == {"all": 36, "idiom": 24, "capital": 12}
    assert claim.to_dict()["checks"]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        rome.run("gpu", 0)


def summary(**changes):
    found = {"delta": -0.3, "p": 0.01, "auc": 0.8, "shuffled": 0.5, "cosine": 0.2, "idiom": 30, "fact": 30} | changes
    return {
        "rates": {
            "all": {"n": 200, "memorized": 60, "rate": 0.3},
            "idiom": {"n": 100, "memorized": found["idiom"], "rate": found["idiom"] / 100},
            "capital": {"n": 100, "memorized": found["fact"], "rate": found["fact"] / 100},
        },
        "tests": [{"scope": "all", "factor": "answer_letters", "delta": found["delta"], "p": found["p"]}],
        "layers": [{"scope": "all", "layer": 4, "place": "prompt", "auc": found["auc"], "shuffled_auc": found["shuffled"]}],
        "concepts": [{"layer": 4, "delta": found["cosine"], "p": 0.3}],
    }


BLOCKS = {"spearman_emitted": 0.2, "spearman_logprob_mean": 0.1}


def test_the_verdict_follows_the_figures():
    def failed(contrast, blocks=BLOCKS):
        return [check.what for check in rome.judged(contrast, blocks, 0.0, 4) if not check.passed]

    assert failed(summary()) == []
    for changes, what in (
        ({"delta": 0.1}, "letters"),
        ({"p": 0.05}, "its p"),
        ({"auc": 0.64}, "AUC of the probe"),
        ({"shuffled": 0.42}, "shuffled labels"),
        ({"cosine": 0.0}, "cosine"),
        ({"idiom": 4}, "idioms"),
        ({"fact": 96}, "facts"),
    ):
        [only] = failed(summary(**changes))
        assert what in only
    assert "Spearman" in failed(summary(), {**BLOCKS, "spearman_emitted": None})[0]
    assert len(failed({"rates": summary()["rates"], "comparable": False})) == 5  # figures that are missing fail


def test_the_control_has_other_words_of_equal_length():
    idioms = idiom_clozes([phrase for (phrase,) in builtin_rows()["idiom"]])
    made = rome.random_last_words(idioms, np.random.default_rng(0))
    by_prompt = {cloze.prompt: cloze for cloze in idioms}
    assert len(made) > 0.9 * len(idioms)
    same_prompt = {cloze.prompt for cloze in idioms if [other.prompt for other in idioms].count(cloze.prompt) > 1}
    for cloze in made:
        if cloze.prompt not in same_prompt:
            assert cloze.answer != by_prompt[cloze.prompt].answer
            assert len(cloze.answer) == len(by_prompt[cloze.prompt].answer)
