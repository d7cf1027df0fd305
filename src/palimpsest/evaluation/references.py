"""Does a model know where an answer stands? Recalled passages beside one-stage, unconstrained, random and searched ones.

The measurement of `palimpsest.recall.reference` (Wang et al., ACL 2025, arXiv 2402.17010): a passage is right when it holds an answer, by
words. On the same questions stand

* **one stage**: the prefix is held to all articles at once, no title is asked for;
* **unconstrained**: the prefix is written freely; can it be found in any article at all?
* **random**: a passage from a random place of a random article;
* **BM25** over fixed passages of the same length, with their titles: what an index does. A reference, not a rival: it sees the text.

Two stages and one, and two stages and random, are compared by McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from palimpsest.corpus.passages import PassageIndex
from palimpsest.errors import InputError
from palimpsest.evaluation.answers import is_right
from palimpsest.evaluation.retrieval import Doc, Snapshot
from palimpsest.measurement import Measurement, environment
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress
from palimpsest.recall import Article, Reference, ReferenceRecall
from palimpsest.stats import mcnemar, wilson_interval

METHODS = TWO, ONE, FREE, RANDOM, BM25 = "two stages", "one stage", "unconstrained", "random", "BM25"
Placed = tuple[str, int, str]  # article, first token, text


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Attributes:
        text: the question.
        article: id of the article that answers it.
        answers: any of them is right.
    """

    text: str
    article: str
    answers: tuple[str, ...]


def measure_references(
    model: LanguageModel,
    articles: Sequence[Article],
    questions: Sequence[Question],
    *,
    k: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Measurement:
    """Recalls a reference for every question, and holds it against the controls.

    Args:
        model: needs "weights".
        articles: what can be recalled.
        questions: each about one of them.
        k: passages that are looked at besides the first.
        seed: of the random passages.
        progress: called with (questions done, questions in all), of the two-stage search.
        settings: of `ReferenceRecall`; n_titles must be a number.

    Returns:
        One row a question and method: title (the right article is among those chosen; null where none are), answer (in the first
        passage; null for unconstrained), answer_k (in the first k), located (what was written stands in an article; null for random and
        BM25), article, start, text. The summary holds the rates with 95 % Wilson intervals, the comparisons, and `title_chance`.

    Raises:
        InputError: no question, one of an article that is not there or without answers, n_titles None, or what `ReferenceRecall` refuses.

    Example:
        >>> measure_references(model, articles, questions).summary["methods"]["two stages"]["answer"]   # doctest: +SKIP
    """
    if settings.get("n_titles", 2) is None:
        raise InputError("n_titles is None: both stages are measured.", "Give a number of titles.")
    recall = ReferenceRecall(model, articles, **settings)
    names = {article.id for article in articles}
    if not questions:
        raise InputError("There are no questions.", "Give at least one.")
    for number, question in enumerate(questions):
        if question.article not in names or not question.answers:
            raise InputError(f"Question {number} is of {question.article!r}, with {len(question.answers)} answers.",
                             "Name one of the articles, and one answer or more.")  # fmt: skip
    texts = [question.text for question in questions]
    passages: dict[str, list[list[Placed]]] = {}
    assert recall.n_titles is not None
    scored = [recall.articles_of(dict(found[: recall.n_titles])) for found in recall.titles(texts)]
    passages[TWO] = [_placed(found) for found in recall.passages(texts, scored, k, progress)]
    passages[ONE] = [_placed(found) for found in ReferenceRecall(model, articles, **{**settings, "n_titles": None}).search_batch(texts, k)]
    rng = np.random.default_rng((seed, 9))
    drawn = [int(rng.integers(len(articles))) for _ in questions]
    passages[RANDOM] = [[recall.passage(document, int(rng.integers(len(recall.rows[document]))))] for document in drawn]
    passages[BM25] = searched(recall, texts, k)
    methods = {name: [_row(name, i, questions[i], found) for i, found in enumerate(every)] for name, every in passages.items()}
    for name in (TWO, ONE):
        for row, found in zip(methods[name], passages[name], strict=True):
            row["located"] = bool(found)
    for row, articles_found in zip(methods[TWO], scored, strict=True):
        row["title"] = any(recall.articles[number].id == questions[row["question"]].article for number in articles_found)
    whole = PassageIndex(recall.rows)
    free = recall.unconstrained(texts)
    located = [len(ids) == recall.prefix_len and whole.count(ids) > 0 for ids in free]
    methods[FREE] = [
        {"question": i, "method": FREE, "located": there, "text": model.tokenizer.decode(ids)}
        for i, (ids, there) in enumerate(zip(free, located, strict=True))
    ]
    table = pl.DataFrame([row for name in METHODS for row in methods[name]], schema=_SCHEMA)
    chance = min(1.0, recall.n_titles / len({article.title for article in articles}))
    summary = {"methods": {name: _rates(table, name) for name in METHODS}, "comparisons": _compared(table), "title_chance": chance}
    provenance = {"model": model.describe(), "settings": settings, "k": k, "seed": seed, "environment": environment()}
    return Measurement("references", table, summary, provenance)


def searched(recall: ReferenceRecall, questions: Sequence[str], k: int) -> list[list[Placed]]:
    """What BM25 finds among passages of `passage_len` tokens, each with its title in front."""
    places = [recall.passage(d, start) for d, ids in enumerate(recall.rows) for start in range(0, len(ids), recall.passage_len)]
    titles = {article.id: article.title for article in recall.articles}
    day = date(2000, 1, 1)
    snapshot = Snapshot([Doc(f"{number:08d}", f"{titles[name]}\n{text}", day) for number, (name, _, text) in enumerate(places)])
    return [[places[int(found.doc.id)] for found in snapshot.search(question, k)] for question in questions]


def _placed(found: Sequence[Reference]) -> list[Placed]:
    return [(reference.article, reference.start, reference.text) for reference in found]


def _row(method: str, number: int, question: Question, found: list[Placed]) -> dict[str, Any]:
    right = [is_right(text, question.answers, "contains") for _, _, text in found]
    first = dict(zip(("article", "start", "text"), found[0], strict=True)) if found else {}
    return {"question": number, "method": method, "answer": any(right[:1]), "answer_k": any(right), **first}


_SCHEMA = {
    "question": pl.Int64,
    "method": pl.String,
    "title": pl.Boolean,
    "answer": pl.Boolean,
    "answer_k": pl.Boolean,
    "located": pl.Boolean,
    "article": pl.String,
    "start": pl.Int64,
    "text": pl.String,
}


def _rates(table: pl.DataFrame, method: str) -> dict[str, Any]:
    """The rate of each column that the method has."""
    own = table.filter(pl.col("method") == method)
    columns = {name: own[name].drop_nulls() for name in ("title", "answer", "answer_k", "located")}
    return {name: wilson_interval(int(column.sum()), len(column))._asdict() for name, column in columns.items() if len(column)}


def _compared(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Two stages against one, and against random, by whether the first passage is right."""
    right = {name: table.filter(pl.col("method") == name)["answer"].to_numpy() for name in (TWO, ONE, RANDOM)}
    return [{**mcnemar(right[other], right[TWO]).to_dict(), "first": other, "second": TWO} for other in (ONE, RANDOM)]
