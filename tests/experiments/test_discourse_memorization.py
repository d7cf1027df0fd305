"""The claim check of discourse and memorization: its smallest scale, its verdict, and the infinity-gram model against a scan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError
from palimpsest.experiments import discourse_memorization as experiment


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_smoke_runs_and_what_holds_for_every_model_holds():
    claim = experiment.run("smoke", 0)
    assert claim.passed
    held = [check for check in claim.checks if check.threshold is not None]
    assert [check.ours for check in held][1] == 0
    assert held[0].ours >= 0.95
    assert {(row["model"], row["mitigation"], row["corpus"]) for row in claim.rows if "model" in row} == {
        (model, mitigation, corpus)
        for model, mitigation in (("perturbed-s", "none"), ("perturbed-s", "memfree"), (experiment.INFGRAM, "none"))
        for corpus in (True, False)
    }


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=4), st.lists(st.integers(0, 2), max_size=6))
def test_greedy_text_is_what_a_scan_of_the_corpus_says(tmp_path_factory, docs, prompt):
    if all(len(doc) < 2 for doc in docs):
        docs = [*docs, [0, 1]]
    index = CorpusIndex.build(docs, None, tmp_path_factory.mktemp("index") / "index")
    text = list(prompt)
    for _ in range(5):
        for start in range(len(text) + 1):
            suffix = text[start:]
            n = len(suffix)
            after = [doc[i + n] for doc in docs for i in range(len(doc) - n) if doc[i : i + n] == suffix]
            if after:
                break
        text.append(min(set(after), key=lambda token: (-after.count(token), token)))
    assert experiment.continue_greedily(index, prompt, 5).tolist() == text[len(prompt) :]


SHARE = {"s": 0.1, "m": 0.2, "l": 0.5, experiment.INFGRAM: 1.0}
RELATED = [{"label": "quality", "scope": scope, "r": 0.4, "low": 0.2, "high": 0.6} for scope in ("pooled", "within models")]
EFFECTS = {"memorized": {"before": 0.5, "after": 0.1}, "quality": {"before": 0.6, "after": 0.5}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"share": SHARE | {"m": 0.05}}, False),
        ({"related": [entry | {"low": -0.1} for entry in RELATED]}, False),
        ({"related": []}, False),
        ({"effects": EFFECTS | {"memorized": {"before": 0.5, "after": 0.3}}}, False),
        ({"effects": EFFECTS | {"memorized": {"before": 0.0, "after": 0.0}}}, False),
    ],
)
def test_the_verdict_follows_the_figures(change, expected):
    given = {"share": SHARE, "models": ["s", "m", "l"], "related": RELATED, "effects": EFFECTS} | change
    assert all(check.passed for check in experiment._claimed(**given)) == expected


def test_quality_falls_with_repetition_and_rises_with_likelihood(tiny_model):
    import polars as pl

    texts = ["the quick brown fox", "qz#~", "the lazy dog and the"]
    table = pl.DataFrame({"text": texts, "repetition": [0.0, 0.0, 0.9]})
    judged = experiment.with_quality(table, tiny_model)
    logprobs = [float(tiny_model.logprobs([tiny_model.tokenizer.encode(text)])[0].mean()) for text in texts]
    assert judged["judge_logprob"].to_list() == pytest.approx(logprobs, abs=1e-4)
    ranks = np.argsort(np.argsort(logprobs)) + 1
    assert judged["quality"].to_list() == pytest.approx([(r / 3 + q / 3) / 2 for r, q in zip(ranks, (2.5, 2.5, 1), strict=True)])
    with pytest.raises(InputError, match="too short"):
        experiment.with_quality(pl.DataFrame({"text": ["a"], "repetition": [0.0]}), tiny_model)
