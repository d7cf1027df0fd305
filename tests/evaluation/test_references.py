"""The measurement of recalled references: its rows, its rates against a recount, and what is refused."""

from __future__ import annotations

import pytest

from palimpsest.errors import InputError
from palimpsest.evaluation.answers import is_right
from palimpsest.evaluation.references import BM25, FREE, METHODS, ONE, RANDOM, TWO, Question, measure_references
from palimpsest.experiments.reference_recall import ASKED, SMOKE
from palimpsest.measurement import Measurement
from palimpsest.recall import ReferenceRecall

SETTINGS = {"n_titles": 1, "title_beams": 4, "passage_beams": 3, "prefix_len": 3, "passage_len": 20}


@pytest.fixture(scope="module")
def measured(tiny_model):
    return measure_references(tiny_model, SMOKE, ASKED, k=3, seed=2, **SETTINGS)


def rows(measured, method):
    return measured.table.filter(measured.table["method"] == method).rows(named=True)


def test_every_question_is_asked_of_every_method(measured):
    assert measured.table.select("method", "question").rows() == [(name, i) for name in METHODS for i in range(3)]
    assert Measurement.from_json(measured.to_json()).table.height == 15


def test_the_two_stages_are_those_of_the_recall(measured, tiny_model):
    recall = ReferenceRecall(tiny_model, SMOKE, **SETTINGS)
    single = ReferenceRecall(tiny_model, SMOKE, **{**SETTINGS, "n_titles": None})
    for name, own in ((TWO, recall), (ONE, single)):
        for row, asked in zip(rows(measured, name), ASKED, strict=True):
            found = own.search(asked.text, 3)
            assert (row["article"], row["start"], row["text"]) == (found[0].article, found[0].start, found[0].text)
            assert row["answer"] == is_right(found[0].text, asked.answers, "contains")
            assert row["answer_k"] == any(is_right(one.text, asked.answers, "contains") for one in found)
            assert row["located"]
    for row, asked in zip(rows(measured, TWO), ASKED, strict=True):
        (title, _), *_ = recall.titles([asked.text])[0]
        [article] = [article for article in SMOKE if tuple(tiny_model.tokenizer.encode(f" {article.title}")) == title]
        assert row["title"] == (article.id == asked.article)
    assert measured.summary["title_chance"] == pytest.approx(1 / 3)


def test_the_controls(measured, tiny_model):
    texts = {article.id: tiny_model.tokenizer.encode(article.text) for article in SMOKE}
    for name in (RANDOM, BM25):
        for row in rows(measured, name):
            ids = texts[row["article"]]
            assert row["text"] == tiny_model.tokenizer.decode(ids[row["start"] : row["start"] + 20])
            assert (row["title"], row["located"]) == (None, None)
    assert [row["answer"] for row in rows(measured, BM25)].count(True) >= 2  # the words of the questions stand in the articles
    for row in rows(measured, FREE):
        assert row["answer"] is None
        assert not row["located"]  # a random model writes nothing that stands anywhere


def test_the_summary_follows_from_the_table(measured):
    for name in METHODS:
        for figure, rate in measured.summary["methods"][name].items():
            values = [row[figure] for row in rows(measured, name)]
            assert rate["estimate"] == pytest.approx(sum(values) / len(values))
            assert rate["low"] < rate["high"]
    assert set(measured.summary["methods"][FREE]) == {"located"}
    assert [(pair["first"], pair["second"]) for pair in measured.summary["comparisons"]] == [(ONE, TWO), (RANDOM, TWO)]


def test_the_same_seed_gives_the_same_table(measured, tiny_model):
    assert measure_references(tiny_model, SMOKE, ASKED, k=3, seed=2, **SETTINGS).table.equals(measured.table)
    other = measure_references(tiny_model, SMOKE, ASKED, k=3, seed=3, **SETTINGS)
    assert [row["text"] for row in rows(other, RANDOM)] != [row["text"] for row in rows(measured, RANDOM)]
    assert rows(other, TWO) == rows(measured, TWO)


@pytest.mark.parametrize(
    ("questions", "options", "says"),
    [
        ([], {}, "no questions"),
        ([Question("Who?", "9", ("he",))], {}, "'9'"),
        ([Question("Who?", "1", ())], {}, "0 answers"),
        (ASKED, {"n_titles": None}, "n_titles is None"),
        (ASKED, {"k": 0}, "k is 0"),
    ],
)
def test_bad_input_is_refused(tiny_model, questions, options, says):
    with pytest.raises(InputError, match=says):
        measure_references(tiny_model, SMOKE, questions, **{**SETTINGS, **options})
