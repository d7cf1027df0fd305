"""Reference recall: equal to trying everything, never outside the articles, and its weights do what they say."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.errors import CapabilityError, InputError
from palimpsest.models import EndpointModel, HFModel
from palimpsest.recall import Article, ReferenceRecall
from palimpsest.tokenizer import Tokenizer

EOS = 1
ARTICLES = [
    Article("a", "Fox", "The quick brown fox jumps over the lazy dog."),
    Article("b", "Foxes", "A fox is a fox, and the dog is lazy. The quick brown fox jumps."),
    Article("c", "Page", "A palimpsest is a page."),
    Article("d", "Fox", "Five boxing wizards jump quickly over sheep."),
    Article("e", "Word", "In"),
]
QUESTIONS = ["Who jumps over the dog?", "What is a page?"]
PROMPTS = {"title_prompt": "Q: {}\nT:", "passage_prompt": "Q: {}\nA:"}


def made(model, **options):
    return ReferenceRecall(
        model, ARTICLES, **{"title_beams": 16, "passage_beams": 4, "prefix_len": 3, "passage_len": 6, **PROMPTS, **options}
    )


def mean_logprob(model, prompt, ids):
    head = model.tokenizer.encode(prompt)
    return float(model.score([[*head, *ids]], start=len(head)).logprobs[0].astype(np.float64).mean())


def test_the_titles_are_those_of_trying_all(tiny_model):
    """With as many beams as there are partial titles nothing is lost; "Fox" is reached beside "Foxes", which it begins."""
    expected = []
    for title in ("Fox", "Foxes", "Page", "Word"):
        ids = tiny_model.tokenizer.encode(f" {title}")
        expected.append((tuple(ids), mean_logprob(tiny_model, f"Q: {QUESTIONS[0]}\nT:", [*ids, EOS])))
    expected.sort(key=lambda pair: -pair[1])
    for exact in (False, True):
        found = made(tiny_model, exact_titles=exact).titles(QUESTIONS)[0]
        assert [ids for ids, _ in found] == [ids for ids, _ in expected]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=1e-4)


def test_the_best_passage_is_that_of_trying_all(tiny_model):
    """One stage over all articles, with beams for every prefix there is."""
    rows = [tiny_model.tokenizer.encode(article.text) for article in ARTICLES]
    starts = [(d, i) for d, row in enumerate(rows) for i in range(len(row))]
    prompt = f"Q: {QUESTIONS[1]}\nA:"
    score = {(d, i): mean_logprob(tiny_model, prompt, rows[d][i : i + 2]) for d, i in starts if i + 2 <= len(rows[d])}
    best = max(score.values())
    recall = made(tiny_model, n_titles=None, passage_beams=250, prefix_len=2)
    found = recall.search(QUESTIONS[1], k=5)
    assert found[0].score == pytest.approx(best, abs=1e-4)
    assert score[ord(found[0].article) - ord("a"), found[0].start] == pytest.approx(best, abs=1e-4)
    assert found[0].title_score is None
    assert [reference.score for reference in found] == sorted((reference.score for reference in found), reverse=True)


def test_all_places_of_a_prefix_are_passages(tiny_model):
    """Every reference begins with what was written, and wherever that stands there is a reference."""
    recall = made(tiny_model, n_titles=None, passage_beams=250, prefix_len=2)
    rows = {article.id: tiny_model.tokenizer.encode(article.text) for article in ARTICLES}
    found = recall.search(QUESTIONS[0], k=1000)
    assert len({(reference.article, reference.start) for reference in found}) == len(found)  # no place twice
    by_prefix = {}
    for reference in found:
        ids = rows[reference.article]
        assert reference.text == tiny_model.tokenizer.decode(ids[reference.start : reference.end])
        assert reference.end == min(len(ids), reference.start + 6)
        by_prefix.setdefault(tuple(ids[reference.start : reference.start + 2]), set()).add((reference.article, reference.start))
    for prefix, places in by_prefix.items():
        if len(prefix) == 2:
            every = {(name, i) for name, ids in rows.items() for i in range(len(ids)) if tuple(ids[i : i + 2]) == prefix}
        else:  # an article ends with it
            every = {(name, len(ids) - 1) for name, ids in rows.items() if ids[-1] == prefix[0]}
        assert places == every
    assert any(len(prefix) == 1 for prefix in by_prefix)  # an article shorter than the prefix, or its end
    assert any(len(places) > 1 for places in by_prefix.values())


def test_passages_come_from_the_chosen_articles(tiny_model):
    for n in (1, 2, 4):
        recall = made(tiny_model, n_titles=n)
        for question, found in zip(QUESTIONS, recall.search_batch(QUESTIONS), strict=True):
            kept = {ids for ids, _ in recall.titles([question])[0][:n]}
            assert found
            assert {tuple(tiny_model.tokenizer.encode(f" {reference.title}")) for reference in found} <= kept
    fox = tuple(tiny_model.tokenizer.encode(" Fox"))
    recall = made(tiny_model, passage_beams=250)
    [found] = recall.passages(QUESTIONS[:1], [dict.fromkeys(recall._titled[fox], -1.0)], 1000)
    assert {reference.article for reference in found} == {"a", "d"}  # both articles of one title


def test_the_weight_of_the_title(tiny_model):
    by_title = made(tiny_model, lam=1.0).search(QUESTIONS[0])
    assert [reference.score for reference in by_title] == [reference.title_score for reference in by_title]
    by_passage = made(tiny_model, lam=0.0).search(QUESTIONS[0])
    assert [reference.score for reference in by_passage] == [reference.passage_score for reference in by_passage]
    mixed = made(tiny_model, lam=0.75).search(QUESTIONS[0])
    for reference in mixed:
        assert reference.score == pytest.approx(0.75 * reference.title_score + 0.25 * reference.passage_score)
    for found in (by_title, by_passage, mixed):
        assert [reference.score for reference in found] == sorted((reference.score for reference in found), reverse=True)


def test_questions_do_not_depend_on_each_other(tiny_model):
    recall = made(tiny_model)
    together = recall.search_batch(QUESTIONS)
    for question, found in zip(QUESTIONS, together, strict=True):
        alone = recall.search(question)
        assert [(r.article, r.start, r.end) for r in alone] == [(r.article, r.start, r.end) for r in found]
        np.testing.assert_allclose([r.score for r in alone], [r.score for r in found], atol=1e-4)


@pytest.mark.parametrize(
    ("articles", "options", "says"),
    [
        ([], {}, "no articles"),
        ([Article("a", "T", " ")], {}, "no text"),
        ([Article("a", "", "text")], {}, "no title"),
        ([Article("a", "T", "one"), Article("a", "U", "two")], {}, "given twice"),
        ([Article("a", "T", "one</s>two")], {}, "EOS"),
        (ARTICLES, {"n_titles": 0}, "n_titles is 0"),
        (ARTICLES, {"title_beams": 0}, "beams 0"),
        (ARTICLES, {"lam": 1.1}, "lam 1.1"),
        (ARTICLES, {"passage_len": 2}, "shorter than its prefix"),
        (ARTICLES, {"title_prompt": "no place"}, "no single place"),
    ],
)
def test_bad_input_is_refused(tiny_model, articles, options, says):
    with pytest.raises(InputError, match=says):
        ReferenceRecall(tiny_model, articles, **{"prefix_len": 3, "passage_len": 6, **options})


def test_bad_questions_are_refused(tiny_model):
    recall = made(tiny_model)
    for questions in ([], [" "], "text"):
        with pytest.raises(InputError, match="questions are"):
            recall.search_batch(questions)
    with pytest.raises(InputError, match="k is 0"):
        recall.search(QUESTIONS[0], 0)


def test_a_door_without_weights_or_end_is_refused(tiny_model, server):
    with pytest.raises(CapabilityError, match="constraint"):
        made(EndpointModel.from_url(server.url + "#tiny", tiny_model.tokenizer))
    with pytest.raises(InputError, match="no EOS"):
        made(HFModel(tiny_model.model, Tokenizer(tiny_model.tokenizer.backend)))


def test_a_prompt_may_hold_other_braces(tiny_model):
    recall = ReferenceRecall(tiny_model, ARTICLES, passage_prompt='{{"q": "{}"}}', prefix_len=3, passage_len=8)
    assert recall._prompts(["{x}?"], recall.passage_prompt) == [tiny_model.tokenizer.encode('{{"q": "{x}?"}}')]
