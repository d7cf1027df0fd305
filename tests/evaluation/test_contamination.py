"""Leaks against a naive search."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError, LeakError
from palimpsest.evaluation.contamination import audit_contamination
from palimpsest.evaluation.items import Item
from palimpsest.evaluation.retrieval import Doc

DAY = date(2020, 1, 1)
WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=80)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 6))
def test_text_leaks_are_those_of_a_naive_search(questions, texts, n):
    items = [Item(f"i{k}", question, (gold,), DAY, evidence_ids=frozenset({"d0"})) for k, (question, gold) in enumerate(questions)]
    docs = [Doc(f"d{k}", text, DAY) for k, text in enumerate(texts)]

    def holds(text: list[str], part: list[str]) -> bool:
        return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))

    expected = set()
    for item in items:
        whole = words(item.question) + words(item.golds[0])
        parts = [words(item.question), *(whole[i : i + n] for i in range(len(whole) - n + 1))]
        for doc in docs[1:]:
            if any(holds(words(doc.text), part) for part in parts):
                expected.add((item.id, doc.id))
    report = audit_contamination(items, docs, policy="flag", ngram=n)
    assert {(leak.item, leak.doc) for leak in report.leaks} == expected
    assert report.counts["text"] == len(expected)


def test_near_duplicates_in_the_training_data_are_found():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(500)]
    texts = [[str(word) for word in rng.choice(vocabulary, 40)] for _ in range(30)]
    items = [Item(f"i{k:02}", " ".join(text), ("end",), DAY) for k, text in enumerate(texts)]
    near, far = texts[3].copy(), texts[7].copy()
    near[38] = "other"
    far[5] = far[15] = far[25] = far[35] = "other"
    training = [Doc("near", " ".join([*near, "end"]), DAY), Doc("far", " ".join([*far, "end"]), DAY)]
    training += [Doc(f"t{k}", " ".join(rng.choice(vocabulary, 40)), DAY) for k in range(50)]
    report = audit_contamination(items, training=training, policy="flag")
    assert [(leak.kind, leak.item, leak.doc) for leak in report.leaks] == [("duplicate", "i03", "near")]
    assert report.leaks[0].detail == "Jaccard similarity 0.85"


def test_time_leaks_are_of_evidence_and_of_training():
    item = Item("i", "Who leads it?", ("Ann",), DAY, evidence_ids=frozenset({"late", "early"}))
    docs = [Doc("late", "Ann leads", date(2020, 1, 2)), Doc("early", "Ann does", DAY), Doc("other", "Bob", date(2021, 1, 1))]
    training = [Doc("corpus", "text", date(2022, 1, 1)), Doc("first", "text", DAY), Doc("second", "text", date(2021, 1, 1))]
    report = audit_contamination([item], docs, training, policy="flag")
    assert [(leak.kind, leak.doc) for leak in report.leaks] == [("time", "corpus"), ("time", "late")]
    assert report.leaks[0].detail == "2 training documents after 2020-01-01, the last of 2022-01-01"
    assert report.excluded == ()


def test_the_policy_decides():
    item, other = (Item(name, f"Who leads {name}?", ("Ann",), DAY, evidence_ids=frozenset({"d"})) for name in "ab")
    docs = [Doc("d", "Ann", DAY), Doc("copy", "He asked: who leads a?", DAY)]
    with pytest.raises(LeakError, match=r"item 'a' and document 'copy'"):
        audit_contamination([item, other], docs)
    assert audit_contamination([item, other], docs, policy="exclude").excluded == ("a",)
    assert audit_contamination([other], docs[:1]).leaks == ()
    report = audit_contamination([item, other], docs, policy="flag").to_dict()
    assert report["counts"] == {"time": 0, "text": 1, "duplicate": 0}
    assert report["looked_at"] == {"items": 2, "docs": 2, "training": 0}
    for bad in ({"policy": "ignore"}, {"ngram": 0}, {"similarity": 0.0}):
        with pytest.raises(InputError):
            audit_contamination([item], docs, **bad)
    with pytest.raises(InputError, match="0 items"):
        audit_contamination([], docs)
