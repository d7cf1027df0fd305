"""Split and rephrase: that examples say what they claim to, the guarantees of a split of them, and scores counted by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from palimpsest.bleu import sentence_bleu
from palimpsest.corpus import FactWorld, leak_free_split, leakage_report
from palimpsest.errors import CorpusError, InputError
from palimpsest.seq2seq.split_rephrase import (
    RELATIONS,
    SEPARATOR,
    WORDINGS,
    Example,
    compose,
    entity_words_of,
    measure_rewriting,
    mentions,
    pairs,
    read_wiki_split,
    simple_sentences,
    source_copy,
    tokens,
)


@pytest.fixture(scope="module")
def world() -> FactWorld:
    return FactWorld(seed=2, people=30)


@pytest.fixture(scope="module")
def examples(world) -> list[Example]:
    return compose(world, 300, seed=2)


# --- examples -----------------------------------------------------------------------------------------------------------------------


def test_every_rewriting_says_each_triple_once(world, examples):
    saying: dict[str, tuple] = {}
    for name in RELATIONS:
        for fact in world.valid_at(world.end, name):
            for wording in range(WORDINGS):
                saying[" ".join(tokens(world.sentence(fact, wording)))] = fact.triple
    assert len(examples) == len({one.sentence for one in examples}) == 300
    for one in examples:
        assert 2 <= len(one.triples) <= 3
        assert len({subject for subject, _, _ in one.triples}) == 1
        assert len(set(one.rewritings)) == 3
        for text in one.rewritings:
            said = [saying[" ".join(sentence)] for sentence in simple_sentences(text)]
            assert Counter(said) == Counter(one.triples)
            assert text.count(SEPARATOR) == len(said) - 1


def test_the_first_rewriting_is_in_the_words_of_the_complex_sentence(examples):
    for one in examples:
        said = Counter(word for word in one.rewritings[0] if word != SEPARATOR)
        said.subtract(one.sentence)
        missing = {word for word, n in said.items() if n < 0}
        subject = next(iter(one.triples))[0].split()
        assert missing <= {",", "and", "who", "which"}  # only what joins
        assert {word for word, n in said.items() if n > 0} <= {*subject, "."}  # only what is said again


def test_the_seed_decides(world, examples):
    assert compose(world, 300, seed=2) == examples
    assert compose(world, 300, seed=3) != examples
    assert {len(one.rewritings) for one in compose(world, 20, rewritings=1)} == {1}


def test_a_leak_free_split_of_them_shares_neither_triples_nor_sentences(examples):
    split = leak_free_split(examples, lambda one: one.triples, lambda one: {r for _, r, _ in one.triples}, seed=1)
    train, dev, test = ({triple for one in split[part] for triple in one.triples} for part in ("train", "dev", "test"))
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert {relation for _, relation, _ in dev | test} - {relation for _, relation, _ in train} == set(split.uncovered)
    overlap = leakage_report(split, lambda one: one.simple).summary["overlap"]
    assert {row["share"] for row in overlap if row["what"] == "targets"} == {0.0}


def test_pairs_are_every_sentence_with_each_rewriting(examples):
    sources, targets = pairs(examples[:4])
    assert [(s, t) for s, t in zip(sources, targets, strict=True)] == [(one.sentence, t) for one in examples[:4] for t in one.rewritings]


# --- scores -------------------------------------------------------------------------------------------------------------------------


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONE = Example(words("Ada Bo , who plays , lives in X ."), (words("Ada Bo plays . <::::> Ada Bo lives in X ."), words("Ada Bo plays .")))
TWO = Example(words("Cy Bo works and sings ."), (words("Cy Bo works . <::::> Cy Bo sings ."),))
NAMES = frozenset({"Ada", "Bo", "Cy", "X", "Dy"})


def test_scores_by_hand():
    outputs = [words("Ada Bo plays . <::::> Ada Bo lives in Dy . <::::>"), words("Ada Bo works . <::::> Cy Bo sings .")]
    measured = measure_rewriting([ONE, TWO], outputs, NAMES)
    assert measured.table["sentences"].to_list() == [2, 2]
    assert measured.table["tokens"].to_list() == [10, 8]
    assert measured.table["entities"].to_list() == [3, 2]
    assert measured.table["hallucinated"].to_list() == [1, 1]  # Dy; "Ada Bo" where the source has only Cy Bo
    summary = measured.summary
    assert summary["sentences"] == 2
    assert summary["tokens"] == 18 / 4
    assert summary["hallucination"] == 2 / 5
    first = sentence_bleu(
        words("Ada Bo plays . Ada Bo lives in Dy ."), [words("Ada Bo plays . Ada Bo lives in X ."), words("Ada Bo plays .")], None
    )
    assert measured.table["bleu"][0] == pytest.approx(100 * first)
    assert summary["bleu"] == pytest.approx(measured.table["bleu"].mean())
    assert summary["low"] <= summary["bleu"] <= summary["high"]


def test_a_rewriting_scores_100_however_its_sentences_are_parted(examples):
    whole = [one.rewritings[i % 3] for i, one in enumerate(examples)]
    bare = [tuple(word for word in text if word != SEPARATOR) for text in whole]
    for outputs, sentences in ((whole, float(np.mean([len(one.triples) for one in examples]))), (bare, 1.0)):
        measured = measure_rewriting(examples, outputs)
        assert measured.summary["bleu"] == pytest.approx(100)
        assert measured.summary["sentences"] == pytest.approx(sentences)
        assert measured.summary["hallucination"] is None


def test_the_source_is_a_strong_baseline_without_hallucination(world, examples):
    measured = measure_rewriting(examples, source_copy(examples), entity_words_of(world))
    assert measured.summary["bleu"] > 40
    assert measured.summary["sentences"] == 1
    assert measured.summary["entities"] >= 600  # a subject and some objects each
    assert measured.summary["hallucination"] == 0


def test_names_of_the_world_are_found(world, examples):
    names = entity_words_of(world)
    for one in examples:
        found = {" ".join(run) for run in mentions(one.sentence, names)}
        for subject, _, value in one.triples:
            assert any(run in subject or run in value for run in found)
        assert all(any(run in name for triple in one.triples for name in triple) for run in found)


def test_nothing_written_counts_as_nothing():
    measured = measure_rewriting([ONE, TWO], [(), (SEPARATOR,)], NAMES)
    assert measured.summary["bleu"] == 0
    assert measured.summary["sentences"] == 0
    assert measured.summary["tokens"] is None
    assert measured.summary["hallucination"] is None


# --- WikiSplit and what is refused --------------------------------------------------------------------------------------------------


def test_wiki_split_is_read(tmp_path):
    path = tmp_path / "tune.tsv"
    path.write_text("a b , c .\ta b . <::::> c .\nd e .\td . <::::> e .\n", encoding="utf-8")
    [one, two] = read_wiki_split(path)
    assert one == Example(words("a b , c ."), (words("a b . <::::> c ."),))
    assert simple_sentences(two.rewritings[0]) == [words("d ."), words("e .")]
    assert read_wiki_split(path, 1) == [one]
    for content, message in (("a b\n", "line 1"), ("a\tb <::::> \n", "line 1"), ("", "is empty")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(CorpusError, match=message):
            read_wiki_split(path)
    with pytest.raises(CorpusError, match="cannot be read"):
        read_wiki_split(tmp_path / "none.tsv")


def test_bad_input_is_refused(world):
    for call, message in [
        (lambda: compose(world, 0), "0 examples"),
        (lambda: compose(world, 5, rewritings=7), "7 rewritings"),
        (lambda: compose(world, 5, relations=["shoe_size"]), "'shoe_size'"),
        (lambda: compose(world, 5, relations=["mother"]), "Only 0 of 5"),
        (lambda: compose(world, 5_000, relations=["river", "mayor"], tries=1), "of 5000 complex"),
        (lambda: measure_rewriting([], []), "0 examples"),
        (lambda: measure_rewriting([ONE], []), "1 examples and 0 outputs"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
