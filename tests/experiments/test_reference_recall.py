"""The claim check of reference recall: its smallest scale, its data, and that the verdict follows the figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from palimpsest.errors import InputError
from palimpsest.evaluation.references import BM25, FREE, ONE, RANDOM, TWO
from palimpsest.experiments import reference_recall

DATA = Path(os.environ.get("PALIMPSEST_DATA", "")) / "xquad" / "xquad.en.json"


def test_smoke_runs():
    claim = reference_recall.run("smoke", 100)
    assert claim.passed
    assert sum(check.threshold is not None for check in claim.checks) == 2
    assert {(row["method"], row["figure"]) for row in claim.rows} >= {(TWO, "title"), (BM25, "answer_k"), (FREE, "located")}
    assert claim.to_dict()["checks"]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        reference_recall.run("gpu", 0)


def test_the_articles_are_read(tmp_path, monkeypatch):
    qas = [{"question": " Who? ", "answers": [{"text": "he"}, {"text": "he"}, {"text": "him"}]}]
    entry = {"title": "The_Fox", "paragraphs": [{"context": "One.", "qas": qas}, {"context": "Two.", "qas": []}]}
    (tmp_path / "xquad").mkdir()
    (tmp_path / "xquad" / "xquad.en.json").write_text(json.dumps({"data": [entry]}))
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    [article], [question] = reference_recall.squad()
    assert (article.id, article.title, article.text) == ("The_Fox", "The Fox", "One.\nTwo.")
    assert (question.text, question.article, question.answers) == ("Who?", "The_Fox", ("he", "him"))
    monkeypatch.delenv("PALIMPSEST_DATA")
    with pytest.raises(InputError, match="not at hand"):
        reference_recall.squad()


@pytest.mark.skipif(not DATA.is_file(), reason="needs xquad/xquad.en.json in PALIMPSEST_DATA")
def test_the_real_articles():
    articles, questions = reference_recall.squad()
    assert (len(articles), len(questions)) == (48, 1190)
    texts = {article.id: article.text for article in articles}
    assert all(answer in texts[question.article] for question in questions for answer in question.answers)


def summary(title=0.3, two=0.2, one=0.1, random=0.05, free=0.1, located=1.0):
    figures = {
        TWO: {"title": title, "answer": two, "answer_k": two, "located": located},
        ONE: {"answer": one, "answer_k": one, "located": 1.0},
        RANDOM: {"answer": random, "answer_k": random},
        BM25: {"answer": 0.8, "answer_k": 0.9},
        FREE: {"located": free},
    }
    methods = {name: {figure: {"estimate": value} for figure, value in own.items()} for name, own in figures.items()}
    return {"methods": methods, "title_chance": 2 / 48}


def test_the_verdict_follows_the_figures():
    def failed(**changes):
        return [check.what for check in reference_recall.judged(summary(**changes)) if not check.passed]

    assert failed() == []
    for changes, what in (
        ({"title": 0.2}, "over chance"),
        ({"one": 0.17}, "less one"),
        ({"random": 0.2}, "less random"),
        ({"free": 0.3}, "without a constraint"),
        ({"located": 0.99}, "without a passage"),
    ):
        [only] = failed(**changes)
        assert what in only
