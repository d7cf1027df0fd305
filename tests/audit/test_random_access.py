"""Random access: what is written and asked, against a model that looks the answers up and models that are wrong in known ways."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.audit.random_access import Passage, build, examples, measure, random_letters
from palimpsest.audit.random_access_items import ID_TYPES, REMEDIES, SPLITTER, TASKS
from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.models import LanguageModel

PASSAGES = [
    Passage(
        f"Title {n}", tuple(f"s{n} {i} {'abc'[i]}." for i in range(3)), ((f"Who is {n}?", f"Ada {n}"), (f"Where is {n}?", f"The Ord {n}"))
    )
    for n in range(7)
]


class Table(LanguageModel):
    """Writes what a table says of the cue, and nothing for cues that are not in it."""

    name, door, capabilities, parameters, prepends_bos = "table", "table", frozenset({"text"}), None, False

    def __init__(self, tokenizer, table, context_length=400):
        self.tokenizer, self.table, self.context_length = tokenizer, table, context_length

    @property
    def fingerprint(self):
        return "table"

    def score(self, *args, **kwargs):
        raise NotImplementedError

    def generate(self, prefixes, max_new_tokens, **kwargs):
        found = []
        for prefix in prefixes:
            if len(prefix) + max_new_tokens > self.context_length:
                raise ContextOverflowError("Too long.")
            text = self.table.get(self.tokenizer.decode(prefix), "")
            found.append([np.array(self.tokenizer.encode(f" {text}")[:max_new_tokens])])
        return found


def knowing(tokenizer, trial, change=lambda query: query.target):
    return Table(tokenizer, {query.prompt: change(query) for query in trial.evaluation})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("id_type", ID_TYPES)
@pytest.mark.parametrize("remedy", REMEDIES)
def test_what_is_asked_was_written_and_stood_in_no_example(task, id_type, remedy):
    trial = build(PASSAGES, task, id_type, remedy, held_out=3, k=2, seed=4)
    asked = {query.passage for query in trial.evaluation}
    assert len(asked) == 3
    assert not asked & {query.passage for query in trial.train}
    assert {query.passage for query in trial.train} | asked == set(range(7))
    copies = {"first_permute": 3, "random_permute": 3, "repeat": 2}.get(remedy, 1)
    assert len(trial.write) == 7 * copies
    per_passage = {"full": 1, "selective": 3, "grounded_qa": 2}[task]
    assert Counter(query.passage for query in trial.evaluation) == dict.fromkeys(asked, per_passage)
    ids = [text.split(":")[0] for text in trial.write[::copies]]
    assert len(set(ids)) == 7
    for query in [*trial.train, *trial.evaluation]:
        own = ids[query.passage]
        if id_type in ("title", "rare", "num"):
            assert query.prompt.endswith(f" {own}:")
            assert query.control is not None
            assert query.control.removesuffix(":").endswith(tuple(ids))
            assert query.control != query.prompt
        elif id_type.startswith("wrong_"):
            assert own not in query.prompt
            assert query.prompt.removesuffix(":").endswith(tuple(ids))
        else:
            assert not any(name in query.prompt for name in ids)
            assert ("s" in query.prompt.split(":")[0] and f"s{query.passage} 0 a." in query.prompt) == (id_type == "context")
        assert bool(query.recited) == (remedy == "recite" and task != "full")


@given(st.integers(1, 6), st.sampled_from(REMEDIES), st.integers(1, 4), st.booleans(), st.integers(0, 5))
@settings(max_examples=60)
def test_permutations_keep_the_sentences(sentences, remedy, k, marked, seed):
    passages = [Passage(f"P{n}", tuple(f"x{n}y{i} z{i}" for i in range(sentences))) for n in range(4)]
    trial = build(passages, "full", remedy=remedy, held_out=2, k=k, marked=marked, seed=seed)
    copies = len(trial.write) // 4
    for place, text in enumerate(trial.write):
        body = text.removeprefix(f"P{place // copies}: ")
        bare = [f"x{place // copies}y{i} z{i}" for i in range(sentences)]
        pieces = [f"[{i}] {piece} [{i}]" if marked else piece for i, piece in enumerate(bare, 1)]
        assert Counter(body.split()) == Counter(" ".join(pieces).split())
        starts = sorted((body.index(piece), piece) for piece in pieces)
        assert " ".join(piece for _, piece in starts) == body  # whole sentences, nothing between
        if remedy == "first_permute":
            assert starts[0][1] == pieces[place % copies]
        if remedy in ("none", "recite", "repeat"):
            assert body == " ".join(pieces)
    [query] = [query for query in trial.train + trial.evaluation if query.passage == 0]
    assert set(query.golds) == {text.removeprefix("P0: ") for text in trial.write[:copies]}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_model_that_looks_everything_up_is_right(tiny_tokenizer, task, remedy):
    trial = build(PASSAGES, task, "title", remedy, held_out=3, k=2)
    found = measure(knowing(tiny_tokenizer, trial), trial.evaluation).summary["all"]
    assert found["exact"]["estimate"] == found["prefix"]["estimate"] == found["f1"]["estimate"] == found["bleu"]["estimate"] == 1
    assert found["malformed"]["estimate"] == 0
    assert (found["recited_exact"] or {}).get("estimate") == (1 if remedy == "recite" and task != "full" else None)
    assert found["control_exact"]["estimate"] == 0
    assert found["beyond_control"]["estimate"] == 1


def test_reciting_right_and_selecting_wrong_is_wrong(tiny_tokenizer):
    trial = build(PASSAGES, "selective", "num", "recite", held_out=3)
    wrong = measure(knowing(tiny_tokenizer, trial, lambda q: f"{q.recited[0]} {SPLITTER} s9 9 a."), trial.evaluation)
    assert wrong.summary["all"]["recited_exact"]["estimate"] == 1
    assert wrong.summary["all"]["exact"]["estimate"] == 0
    twice = measure(knowing(tiny_tokenizer, trial, lambda q: f"{q.target} {SPLITTER} {q.golds[0]}"), trial.evaluation)
    assert twice.table["malformed"].all()
    assert not twice.table["exact"].any()
    never = measure(knowing(tiny_tokenizer, trial, lambda q: q.golds[0]), trial.evaluation)
    assert never.summary["all"]["malformed"]["estimate"] == 1
    assert never.summary["all"]["exact"]["estimate"] == 0


def test_what_goes_on_is_a_prefix_and_what_contains_is_nothing(tiny_tokenizer):
    trial = build(PASSAGES, held_out=2)
    after = measure(knowing(tiny_tokenizer, trial, lambda q: f"{q.golds[0]} and"), trial.evaluation).summary["all"]
    assert (after["exact"]["estimate"], after["prefix"]["estimate"]) == (0, 1)
    before = measure(knowing(tiny_tokenizer, trial, lambda q: f"oh {q.golds[0]}"), trial.evaluation).summary["all"]
    assert (before["exact"]["estimate"], before["prefix"]["estimate"]) == (0, 0)
    assert 0 < before["f1"]["estimate"] < 1


def test_every_written_order_is_a_right_recitation(tiny_tokenizer):
    trial = build(PASSAGES, "full", remedy="first_permute", held_out=3)
    last = measure(knowing(tiny_tokenizer, trial, lambda q: q.golds[-1]), trial.evaluation)
    assert last.table["exact"].all()
    mixed = [replace(query, golds=(query.golds[0],)) for query in trial.evaluation]
    assert not measure(knowing(tiny_tokenizer, trial, lambda q: q.golds[-1]), mixed).table["exact"].any()


def test_places_are_told_apart_and_passages_are_what_is_resampled(tiny_tokenizer):
    trial = build(PASSAGES, held_out=4)
    found = measure(knowing(tiny_tokenizer, trial, lambda q: q.golds[0] if q.place == 1 else ""), trial.evaluation)
    assert [found.summary["by_place"][place]["exact"]["estimate"] for place in "123"] == [1, 0, 0]
    assert found.summary["all"]["exact"]["estimate"] == pytest.approx(1 / 3)
    assert found.summary["all"]["exact"]["low"] == pytest.approx(1 / 3)  # alike in every passage: nothing varies when these are drawn
    assert [point["y"] for point in found.curves["places"].series[0].points] == [1, 0, 0]
    assert measure(knowing(tiny_tokenizer, trial), trial.evaluation, control=False).summary["all"]["control_exact"] is None


def test_examples_train_on_everything(tiny_model):
    trial = build(PASSAGES, "selective", remedy="recite", held_out=3)
    made = examples(tiny_model, trial)
    assert [example.first for example in made] == [1] * (7 + 12)
    assert [tiny_model.tokenizer.decode(example.ids) for example in made] == [
        *(f"{text}</s>" for text in trial.write),
        *(f"{query.prompt} {query.target}</s>" for query in trial.train),
    ]
    with pytest.raises(ContextOverflowError):
        measure(tiny_model, build([Passage(f"T{n}", ("w " * 200,)) for n in range(4)], "full", held_out=2).evaluation)


def test_random_letters_keep_the_form():
    changed = random_letters(PASSAGES, 3)
    assert [passage.title for passage in changed] == [passage.title for passage in PASSAGES]
    for old, new in zip(PASSAGES, changed, strict=True):
        assert not new.questions
        for a, b in zip(old.sentences, new.sentences, strict=True):
            assert [x.isalpha() for x in a] == [x.isalpha() for x in b]
            assert [x for x in a if not x.isalpha()] == [x for x in b if not x.isalpha()]
    assert changed != PASSAGES
    assert changed == random_letters(PASSAGES, 3) != random_letters(PASSAGES, 4)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"task": "half"}, "'half'"),
        ({}, {"id_type": "isbn"}, "'isbn'"),
        ({}, {"remedy": "sleep"}, "'sleep'"),
        ({}, {"held_out": 1}, "1 of 7"),
        ({}, {"held_out": 6}, "6 of 7"),
        ({}, {"k": 0}, "k is 0"),
        ({"title": "Title 3"}, {}, "'Title 3' stands twice"),
        ({"sentences": ()}, {}, "no sentence"),
        ({"sentences": ("a", " ")}, {}, "no sentence"),
        ({"sentences": ("a [1] b",)}, {}, "marker"),
        ({"sentences": ("an Answer: b",)}, {"remedy": "recite"}, "Answer:"),
        ({"questions": ()}, {"task": "grounded_qa"}, "no questions"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, options, said):
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        build([replace(PASSAGES[0], **change), *PASSAGES[1:]], **({"held_out": 3} | options))


def test_too_few_questions_are_refused(tiny_tokenizer):
    trial = build(PASSAGES, held_out=3)
    with pytest.raises(InputError, match="fewer than two passages"):
        measure(knowing(tiny_tokenizer, trial), trial.evaluation[:1])
