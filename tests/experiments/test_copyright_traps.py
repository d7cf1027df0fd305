"""The claim check of copyright traps: its documents, its rows, its checks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import copyright_traps as experiment
from palimpsest.experiments.planted_texts import EOS_ID, base_text
from palimpsest.measurement import Measurement


def test_smoke_runs_and_what_holds_for_every_model_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    documents = experiment.cut_documents(0)[:14]  # the whole novels take half a minute to encode
    monkeypatch.setattr(experiment, "cut_documents", lambda _: documents)
    claim = experiment.run("smoke", 0)
    assert claim.passed
    assert [check.ours for check in claim.checks if check.threshold is not None] == [0, 0]
    cells = {(row["model"], row["length"], row["copies"]) for row in claim.rows}
    assert cells == {(name, length, copies) for name in ("standard", "perturbed") for length in (8, 24) for copies in (1, 8, 32)}


def test_documents_hold_every_paragraph_once():
    documents = experiment.cut_documents(0)
    assert min(document.count(" ") + 1 for document in documents) >= experiment.MIN_WORDS
    assert sorted(" ".join(documents).split(" ")) == sorted(" ".join(base_text().train).split(" "))
    assert documents == experiment.cut_documents(0)
    assert documents != experiment.cut_documents(1)


def test_rows_hold_the_documents_in_one_order(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(experiment, "validation_rows", lambda *_: np.zeros((1, 8), np.uint16))
    config = replace(experiment.SMOKE, n_sequences=6, seq_len=8)
    texts = ["the word was written down", "a page that still shows"]
    stream = experiment._stream(config, tiny_tokenizer, {"standard": texts, "perturbed": texts[::-1]})
    whole = [i for text in texts for i in (*tiny_tokenizer.encode(text), EOS_ID)]
    order = np.random.default_rng((config.seed, 72)).permutation(6)
    back = np.empty_like(stream.rows["standard"])
    back[order] = stream.rows["standard"]
    assert back.ravel().tolist() == (whole * 48)[:48]
    assert stream.rows["perturbed"].shape == (6, 8)


def outcome(auc: dict[tuple[int, int], float], p: list[float], top: float) -> Measurement:
    levels = [
        {"length": length, "copies": copies, "method": method, "auc": value - (method == "perplexity") * 0.01, "low_ci": value - 0.05}
        | {"high_ci": value + 0.05, "n": 24}
        for (length, copies), value in auc.items()
        for method in ("ratio", "perplexity")
    ]
    owner = [{"length": length, "copies": copies, "p": top, "fisher": top, "groups": 24} for length, copies in auc]
    table = pl.DataFrame({"member": [True] * len(p), "p": p})
    return Measurement("traps", table, {"levels": levels, "owner": {"p": top, "levels": owner}}, {})


GOOD = {(8, 1): 0.52, (8, 8): 0.6, (8, 32): 0.8, (24, 1): 0.6, (24, 8): 0.8, (24, 32): 0.95}
UNIFORM = [0.25, 0.5, 0.75, 1.0] * 36


@pytest.mark.parametrize(
    ("change", "p", "top", "failing"),
    [
        ({}, UNIFORM, 0.001, []),
        ({(24, 32): 0.89}, UNIFORM, 0.001, ["AUC of the ratio, 24 tokens, 32 copies"]),
        ({(8, 1): 0.71}, UNIFORM, 0.001, ["AUC of the ratio, 8 tokens, 1 copy (0.5 where its interval holds it)"]),
        ({(24, 8): 0.58}, UNIFORM, 0.001, ["Spearman's rho of AUC and copies, 24 tokens"]),
        ({}, [0.25] * 100 + [1.0] * 44, 0.001, ["clean model: Kolmogorov-Smirnov p of the owner's p-values"]),
        ({}, UNIFORM, 0.01, ["owner's p-value, 24 tokens, 32 copies"]),
    ],
)
def test_each_check_can_fail(change, p, top, failing):
    checks = experiment._claimed(outcome(GOOD | change, UNIFORM, top), outcome(GOOD, p, 0.5), seed=0)
    assert [check.what for check in checks if not check.passed] == failing


def test_it_has_no_gpu_scale():
    with pytest.raises(InputError, match="no scale 'gpu'"):
        experiment.run("gpu", 0)
