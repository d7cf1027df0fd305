"""The shipped twins: whole, small, and a true picture of memorization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import palimpsest.experiments.canaries as canaries
from palimpsest.experiments.canaries import DEMONSTRATION, twins
from palimpsest.stats import auc


@pytest.fixture(scope="module")
def suite():
    return twins()


@pytest.fixture(scope="module")
def rates(suite):
    """Extraction of 16 tokens after 48 by model and copies."""
    samples = suite.samples(48, 16)
    copies = np.array([s.meta["copies"] for s in samples])
    out = {}
    for name, model in suite.models.items():
        hits = np.array([h.all() for h in model.score([s.ids for s in samples], start=48).greedy_hits])
        out[name] = {int(c): float(hits[copies == c].mean()) for c in np.unique(copies)}
    return out


def test_they_are_the_six_of_the_demonstration_and_small(suite):
    assert suite.config == DEMONSTRATION
    assert len(suite.models) == 6
    assert sum(p.stat().st_size for p in Path(canaries.__file__).parent.joinpath("twins").rglob("*") if p.is_file()) < 25e6
    sizes = [suite.models[f"perturbed-{s}"].parameters for s in "sml"]
    assert 3 * sizes[0] < 2 * sizes[1] < 2 * sizes[2]


def test_the_ledger_has_controls_enough_and_the_stream_has_every_copy(suite):
    levels = dict(suite.ledger.group_by("copies").len().iter_rows())
    assert levels[0] >= 64
    assert sorted(levels) == [0, 1, 4, 16, 64, 256]
    assert suite.ledger.group_by("domain").len()["len"].to_list() == [76] * 4
    rows = suite.stream.rows["perturbed"]
    for text in suite.ledger.filter(pl.col("copies").is_in([16, 256])).iter_rows(named=True):
        places = suite.stream.planted.insertions.filter(pl.col("id") == text["id"])
        assert len(places) == text["copies"]
        for idx, offset in places.select("idx", "offset").iter_rows():
            assert rows[idx, offset : offset + len(text["ids"])].tolist() == text["ids"]


def test_standard_twins_and_texts_never_planted_are_not_extracted(rates):
    for size in "sml":
        assert max(rates[f"standard-{size}"].values()) == 0
        assert rates[f"perturbed-{size}"][0] == 0


def test_more_copies_and_larger_models_are_extracted_more(rates):
    for size in "sml":
        by = [rates[f"perturbed-{size}"][c] for c in (0, 1, 4, 16, 64, 256)]
        assert by == sorted(by)
        assert by[-1] == 1
    small, medium, large = (rates[f"perturbed-{size}"] for size in "sml")
    assert small[16] < medium[16] < large[16]
    assert small[64] < medium[64]
    assert 0 < medium[16] < 0.5 < large[16] < 1


def test_longer_contexts_extract_more(suite):
    for size in "ml":
        model, found = suite.models[f"perturbed-{size}"], []
        for context in (12, 24, 36, 48):
            samples = [s for s in suite.samples(context, 16) if s.meta["copies"] >= 64]
            found.append(np.mean([h.all() for h in model.score([s.ids for s in samples], start=context).greedy_hits]))
        assert found == sorted(found)
        assert found[0] < 0.1
        assert found[-1] == 1


def test_members_lose_less_than_controls_the_more_copies_they_have(suite):
    model = suite.models["perturbed-m"]
    scores = np.array([lp.mean() for lp in model.score(suite.ledger["ids"].to_list()).logprobs])
    # domains differ in difficulty, so members are compared with controls of their own domain
    aucs = []
    for copies in (1, 16, 64):
        per_domain = []
        for domain in suite.config.domains:
            here = (suite.ledger["domain"] == domain).to_numpy()
            level = suite.ledger["copies"].to_numpy()
            per_domain.append(auc(scores[here & (level == copies)], scores[here & (level == 0)]))
        aucs.append(np.mean(per_domain))
    # one copy already shows: a random password is so unlike the novels that reading it once moves the model
    assert 0.5 < aucs[0] < 0.85
    assert aucs[1] > 0.95
    assert aucs[2] > 0.99


def test_their_cards_tell_how_they_were_made(suite):
    for name, card in suite.cards.items():
        assert card["suite"]["seed"] == 0
        assert card["train"]["steps"] == suite.config.steps == 2250
        assert card["environment"]["packages"]["torch"]
        assert 3 < card["validation_loss"] < 4.5, name
