"""The claim check of the long-context recipe runs through; its arms differ in what they say they do, and are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from palimpsest.experiments import long_context_recipe, short_context_lm
from palimpsest.experiments.long_context_recipe import CPU, TRIAL, continued, recipes, run
from palimpsest.experiments.planted_texts import base_text


@pytest.fixture(autouse=True)
def few_texts(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    base = base_text()
    texts = short_context_lm.ShortTexts("novels", tuple(base.train[:300]), (tuple(base.held_out[:100]),))
    for module in (short_context_lm, long_context_recipe):
        monkeypatch.setattr(module, "short_texts", lambda: texts)


def test_smoke():
    claim = run("smoke", 1)
    assert {row["arm"] for row in claim.rows} == {"plain", "PI", "ABF", "curriculum"}
    by_what = {check.what: check for check in claim.checks}
    assert by_what["curriculum: operations saved"].threshold == 0.3
    ends = {row["arm"]: row["nll"]["estimate"] for row in claim.rows if row["kind"] == "loss" and row["start"] == 96}
    assert by_what["loss at the end: ABF less plain"].ours == pytest.approx(ends["ABF"] - ends["plain"])
    law = next(row for row in claim.rows if row["kind"] == "law")
    assert law["lengths"] == [4, 8, 16, 32, 64, 128]


def test_arms_differ_in_positions_alone_and_are_kept(monkeypatch):
    config = replace(TRIAL, steps=2)
    arms = recipes(config)
    models = {name: continued(config, recipe) for name, recipe in arms.items()}
    frequencies = {name: model.model.model.rotary_emb.inv_freq.numpy() for name, model in models.items()}
    assert np.allclose(frequencies["PI"], frequencies["plain"] / 2)
    assert np.allclose(frequencies["ABF"], 50_000.0 ** -(np.arange(0, 16, 2) / 16))
    assert models["ABF"].context_length == 128
    assert arms["curriculum"].curriculum.at(0, 200) == config.lm.length
    monkeypatch.setattr(long_context_recipe, "extend", lambda *_: pytest.fail("trained again"))
    assert continued(config, arms["ABF"]).fingerprint == models["ABF"].fingerprint
    assert continued(config, arms["PI"]).fingerprint == models["PI"].fingerprint


def test_the_curriculum_of_the_deciding_run_saves_less_than_is_asked_of_it():
    model = short_context_lm.build(CPU.lm)
    arms = recipes(CPU)
    spent = [long_context_recipe.flops(model, arms[name]) for name in ("ABF", "curriculum")]
    assert 1 - spent[1] / spent[0] == pytest.approx(0.15, abs=0.005)
