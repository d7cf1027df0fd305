"""The claim check of random access: its smallest scale, what the arms study, and its verdict on figures that are known."""

from __future__ import annotations

import json
from collections import Counter

import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import random_access
from palimpsest.experiments.random_access import ARMS, SENTENCES, SMOKE, Laboratory
from palimpsest.experiments.study_lab import new_model
from palimpsest.measurement import Measurement


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.getbasetemp() / "random-access"))


def test_smoke_decides_nothing_and_is_the_same_again():
    smoke = random_access.run("smoke", 0)
    assert smoke.passed
    assert all(check.threshold is None for check in smoke.checks)
    assert {(row["arm"], row["task"]) for row in smoke.rows} == {(arm, task) for arm in ARMS for task in ("full", "selective")}
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True
    assert random_access.run("smoke", 0).rows == smoke.rows  # from the cache


def test_what_the_arms_study():
    lab = Laboratory(SMOKE, 1)
    model = new_model(lab.tokenizer, SMOKE.shape, 1)
    texts = {arm: Counter(lab.tokenizer.decode(example.ids[1:]) for example in lab.examples(arm, model)) for arm in ARMS}
    train = SMOKE.passages - SMOKE.held_out
    assert sum(texts["plain"].values()) == SMOKE.passages + train * (SENTENCES + 1)
    assert sum(texts["permuted"].values()) == sum(texts["repeated"].values()) == SENTENCES * SMOKE.passages + train * (SENTENCES + 1)
    assert sum(texts["selecting"].values()) == sum(texts["reciting"].values()) == SMOKE.selecting_steps * SMOKE.batch_size
    assert not any("<unk>" in text for counted in texts.values() for text in counted)
    asked = [query for task in ("full", "selective") for query in lab.trial("plain", task).evaluation]
    for counted in texts.values():
        assert not {f"{query.prompt} {query.target} <eos>" for query in asked} & set(counted)
        held_out = {f"{lab.passages[query.passage].title}:" for query in asked}
        assert held_out <= {text.split()[0] for text in counted}  # written all the same
    written = Counter(text.split()[0] for text in texts["repeated"].elements() if text.startswith("P"))
    assert set(written.values()) == {SENTENCES}


def answers(by_place: list[float], control: float = 0.0) -> Measurement:
    """100 answers for each place, this share of them right."""
    rows = [
        {"place": place, "exact": n < 100 * share, "control_exact": n < 100 * control}
        for place, share in enumerate(by_place, 1)
        for n in range(100)
    ]
    rate = {"estimate": by_place[0], "low": 0.0, "high": 1.0}
    summary = dict.fromkeys(("exact", "recited_exact", "malformed"), rate)
    return Measurement("random-access", pl.DataFrame(rows), {"all": summary, "by_place": {"1": summary}}, {})


GOOD = {
    "plain": [1, 0.1, 0.2, 0.3],
    "permuted": [1, 0.5, 0.5, 0.5],
    "repeated": [1, 0.2, 0.2, 0.2],
    "selecting": [1, 0, 0, 0],
    "reciting": [1] * 4,
}


@pytest.mark.parametrize(
    ("change", "full", "control", "failing"),
    [
        ({}, 0.9, 0.05, []),
        ({}, 0.89, 0.05, ["plain: full recitation"]),
        ({}, 0.9, 0.06, ["plain: with another passage's id"]),
        (
            {"plain": [0, 0.3, 0.3, 0.3]}, 0.9, 0.0,
            ["plain: selection after the first sentence", "permuted against plain, after the first sentence"],
        ),
        ({"reciting": [1, 0.2, 0.3, 0.2]}, 0.9, 0.0, ["reciting against selecting, after the first sentence"]),
    ],
)  # fmt: skip
def test_the_verdict(change, full, control, failing):
    figures = GOOD | change
    found = {arm: {"full": answers([full]), "selective": answers(figures[arm], control)} for arm in ARMS}
    assert [check.what for check in random_access.judged(found) if not check.passed] == failing


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        random_access.run("gpu", 0)
