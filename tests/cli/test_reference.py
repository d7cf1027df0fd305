"""`palimpsest reference`: passages of the articles, as text and as JSON, and what is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.cli.reference import read_articles

runner = CliRunner()
ARTICLES = {"a": ("The Fox", "The quick brown fox jumps over the lazy dog."), "b": (None, "A palimpsest is a page that was scraped off.")}


@pytest.fixture
def run(tmp_path, tiny_model, monkeypatch):
    """Asks the tiny model about two articles, one of which has a title."""
    lines = [json.dumps({"id": name, "text": text, **({"title": title} if title else {})}) for name, (title, text) in ARTICLES.items()]
    (tmp_path / "articles.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("palimpsest.models.load_model", lambda spec: tiny_model)

    def call(*options, code=0):
        answer = runner.invoke(app, ["reference", "any", str(tmp_path / "articles.jsonl"), *map(str, options)])
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


SHORT = ("--prefix", 3, "--length", 8, "--title-beams", 4, "--passage-beams", 4)


def test_passages_are_shown(run, tiny_tokenizer):
    answers = json.loads(run("Who?", "What?", *SHORT, "--passages", 2, "--titles", 1, "--json").splitlines()[-1])["answers"]
    assert [answer["question"] for answer in answers] == ["Who?", "What?"]
    for answer in answers:
        assert 1 <= len(answer["references"]) <= 2
        for found in answer["references"]:
            ids = tiny_tokenizer.encode(ARTICLES[found["article"]][1])
            assert found["text"] == tiny_tokenizer.decode(ids[found["start"] : found["end"]])
            assert found["title"] == ("The Fox" if found["article"] == "a" else "b")
    best = answers[0]["references"][0]
    shown = run("Who?", *SHORT, "--passages", 1, "--titles", 1)
    assert "Who?\n" in shown
    assert f"{best['title']}, tokens {best['start']} to {best['end']}" in shown


def test_no_title_is_asked_for(run):
    answers = json.loads(run("Who?", *SHORT, "--titles", 0, "--json").splitlines()[-1])["answers"]
    assert {found["title_score"] for found in answers[0]["references"]} == {None}


def test_files_are_called_by_their_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "The_lazy_dog.txt").write_text("It sleeps.")
    [article] = read_articles(tmp_path)
    assert (article.id, article.title, article.text) == ("sub/The_lazy_dog.txt", "The lazy dog", "It sleeps.")


def test_what_cannot_be_asked_is_refused(run):
    assert "shorter than its prefix" in run("Who?", "--prefix", 9, "--length", 8, code=2)
    assert "lam 2.0" in run("Who?", "--weight", 2, code=2)
    assert "questions are" in run(" ", *SHORT, code=2)
