"""The claim check of split and rephrase: its smallest scale, and its verdict on scores of which the outcome is known."""

from __future__ import annotations

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import split_rephrase


def test_smoke_runs_and_its_invariant_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))  # without WikiSplit
    claim = split_rephrase.run("smoke", 0)
    assert claim.passed
    held = [check for check in claim.checks if check.threshold is not None]
    assert ["leak-free split" in check.what for check in held] == [True]
    assert [(row["split"], row["model"]) for row in claim.rows] == [
        (split, model) for split in ("random", "leak-free") for model in ("source copy", "plain", "copy")
    ]
    assert any("was left out" in note for note in claim.notes)


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        split_rephrase.run("gpu", 0)


def test_wiki_split_is_only_reported(monkeypatch, tmp_path):
    folder = tmp_path / "wiki-split"
    folder.mkdir()
    for name in ("tune.tsv", "test.tsv"):
        (folder / name).write_text("a b , c d .\ta b . <::::> c d .\n" * 4 + "a a a a a a a a a\ta\n", encoding="utf-8")
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    config = split_rephrase.Config(d=8, batch_size=2, wiki_longest=8, wiki_epochs=1, wiki_asked=9)
    rows = split_rephrase.wiki_split(config, 0)
    assert [(row["split"], row["model"], row["n"]) for row in rows] == [("WikiSplit", name, 4) for name in ("source copy", "plain", "copy")]
    checks = split_rephrase._claimed(outcome() + rows, {"random": [0.9], "leak-free": [0.0]})
    assert all(check.threshold is None for check in checks if "WikiSplit" in check.what)


def outcome(plain=(60, 20), copy=(80, 70), invented=(0.5, 0.1)):
    """Rows with given BLEU on the random and on the leak-free split."""
    return [
        {"split": split, "model": model, "bleu": value, "hallucination": rate}
        for model, scores, rate in (("source copy", (50, 50), 0.0), ("plain", plain, invented[0]), ("copy", copy, invented[1]))
        for split, value in zip(("random", "leak-free"), scores, strict=True)
    ]


@pytest.mark.parametrize(
    ("rows", "leaks", "failed"),
    [
        (outcome(), ([0.9, 0.85], [0.0, 0.0]), 0),
        (outcome(), ([0.9, 0.79], [0.0, 0.0]), 1),
        (outcome(), ([0.9, 0.85], [0.0, 0.01]), 1),
        (outcome(plain=(44, 20), copy=(71, 70)), ([0.9], [0.0]), 1),  # the plain model does not fall
        (outcome(plain=(60, 20), copy=(30, 27)), ([0.9], [0.0]), 1),  # copying does not help
        (outcome(copy=(99, 70)), ([0.9], [0.0]), 1),  # copying falls as well
        (outcome(invented=(0.1, 0.1)), ([0.9], [0.0]), 1),
        (outcome(invented=(None, 0.1)), ([0.9], [0.0]), 1),
        (outcome(plain=(20, 20)), ([0.9], [0.0]), 2),  # no gap, and no half of it
    ],
)
def test_the_verdict_follows_the_scores(rows, leaks, failed):
    checks = split_rephrase._claimed(rows, dict(zip(("random", "leak-free"), leaks, strict=True)))
    assert sum(not check.passed for check in checks) == failed
    assert sum(check.threshold is not None for check in checks) == 6
