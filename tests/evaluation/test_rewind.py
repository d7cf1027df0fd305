"""Prompted cut-offs: items, prompts and answers by rule, scripted models whose figures are known, and what must add up."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import CapabilityError, InputError
from palimpsest.evaluation.rewind import OUTCOMES, mean_state_embedder, measure_rewind, rewind_summary, then_ratios
from palimpsest.evaluation.rewind_items import (
    CHATML,
    RewindItem,
    RewindPrompt,
    lettered,
    read_answer,
    read_prompts,
    read_rewind_items,
)
from palimpsest.evaluation.temporal import TimedValue
from palimpsest.models.base import LanguageModel

YES = RewindItem("y", "factual", "Is it so?", 2018, "No", "Yes")
VALUE = RewindItem("v", "factual", "Who is it?", 2018, "North Ada", "Ada")
LETTER = RewindItem("l", "counterfactual", "When?", 2018, "2021", "2020", ("2019", "2020", "2021", "2022"))
WORD = RewindItem("w", "semantic", "tweet", 2006, "a message", "a chirp")
SAME = RewindItem("s", "factual", "Where is it?", 2018, "Rome", "Rome")
SHOWN = ("2021", "2019", "2020", "2022")


class Scripted(LanguageModel):
    """Writes what a function makes of the prompt's text."""

    def __init__(self, tokenizer, answer):
        self.tokenizer, self.answer = tokenizer, answer
        self.name, self.door, self.capabilities = "scripted", "test", frozenset({"text"})
        self.context_length, self.parameters, self.prepends_bos = 1 << 20, None, False
        self.seen = []

    @property
    def fingerprint(self):
        return "scripted"

    def score(self, batch_ids, **options):
        raise self.lacks("logprobs", "scores")

    def generate(self, prefixes, max_new_tokens, **options):
        self.seen = [self.tokenizer.decode(ids) for ids in prefixes]
        return [[np.array(self.tokenizer.encode(self.answer(text)))] for text in self.seen]


# --- items and prompts --------------------------------------------------------------------------------------------------------------


def test_forms_follow_from_the_item():
    assert [item.form for item in (YES, VALUE, LETTER, WORD)] == ["yes_no", "value", "letter", "definition"]
    assert [item.retention for item in (YES, SAME)] == [False, True]


@pytest.mark.parametrize(
    "changed",
    [
        {"year": None},
        {"year": "2018"},
        {"year": 0},
        {"subset": "poetic"},
        {"now": " "},
        {"options": ("2020", "2021", "2022")},
        {"options": ("2019", "2020", "2018", "2022")},
        {"options": ("2020", "2020", "2021", "2022")},
        {"subset": "semantic"},
    ],
)
def test_bad_items_are_refused(changed):
    with pytest.raises(ValueError, match="item 'l'"):
        RewindItem(**{**vars(LETTER), **changed})


def test_the_shipped_items_are_forty_changed_ones_and_balanced():
    items = read_rewind_items()
    changed = [item for item in items if not item.retention]
    assert len(changed) == 40
    assert {item.subset for item in changed} == {"factual", "semantic", "counterfactual"}
    yes_no = Counter(item.then for item in changed if item.form == "yes_no")
    assert yes_no["Yes"] == yes_no["No"]


def test_items_are_read_from_lines_and_bad_lines_named(tmp_path):
    path = tmp_path / "items.jsonl"
    row = {"id": "a", "subset": "factual", "question": "Q?", "year": 2018, "now": "x", "then": "y"}
    path.write_text(json.dumps(row) + "\n\n")
    assert read_rewind_items(path) == [RewindItem("a", "factual", "Q?", 2018, "x", "y")]
    for text, message in (
        ("", "0 items"),
        (json.dumps(row) + "\n" + json.dumps(row), "1 different ids"),
        (json.dumps({k: v for k, v in row.items() if k != "year"}), "Line 1"),
        ("\nno json", "Line 2"),
        ("[1]", "Line 1"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_rewind_items(path)
    path.write_bytes(b"\x80")
    with pytest.raises(InputError, match="UTF-8"):
        read_rewind_items(path)
    path.write_text(json.dumps({**row, "question": "a\u2028b"}, ensure_ascii=False), encoding="utf-8")
    assert read_rewind_items(path)[0].question == "a\u2028b"


def test_prompts_name_the_year_and_the_year_before():
    for prompt in read_prompts().values():
        for item in (YES, VALUE, LETTER, WORD):
            text = prompt.fill(item, SHOWN)
            assert str(item.year - 1) in text
            assert item.question in text
            assert not re.search(r"[{}]", text)
            assert prompt.fill(item, SHOWN, item.year) == text  # a placebo of the item's own year is the prompt
            assert str(item.year - 1) not in prompt.fill(item, SHOWN, 2030)
            bare = prompt.without().fill(item, SHOWN)
            assert str(item.year) not in bare
            assert str(item.year - 1) not in bare
    assert "A. 2021\nB. 2019\nC. 2020\nD. 2022" in read_prompts()["P1"].fill(LETTER, SHOWN)
    assert read_prompts(frame="chatml")["P2"].fill(YES).endswith("<|im_start|>assistant\n")
    assert read_prompts(frame="chatml")["P1"].frame == CHATML


def test_prompts_of_ones_own_and_bad_ones(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text('old: {system: "Before {year}.", forms: {value: Name it.}, frame: "{system} {user}"}')
    assert read_prompts(path)["old"].fill(VALUE) == "Before 2018. Name it. Who is it?"
    with pytest.raises(InputError, match="no form 'yes_no'"):
        read_prompts(path)["old"].fill(YES)
    for text in (
        "old: {system: no year, forms: {value: x}}",
        'old: {system: "{year}", forms: {song: x}}',
        'old: {system: "{year}", forms: {}}',
        'old: {system: "{year}", forms: {value: x}, frame: "{system}"}',
        'old: {system: "{yaer}", forms: {value: x}}',
        "old: 3",
        "[1, 2",
        "",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"The prompt 'old'|holds no prompts"):
            read_prompts(path)


@given(st.integers(1, 41), st.integers(0, 1000))
def test_the_letters_of_the_old_answer_are_balanced(n, seed):
    items = [RewindItem(str(k), "counterfactual", "When?", 2018, "2021", "2020", LETTER.options) for k in range(n)]
    shown = lettered([*items, YES], seed)
    places = Counter(order.index("2020") for order in shown.values())
    assert len(shown) == n
    assert max(places.values()) - min(places.get(k, 0) for k in range(4)) <= 1
    assert all(sorted(order) == sorted(LETTER.options) for order in shown.values())
    assert shown == lettered(items, seed)


@pytest.mark.parametrize(
    ("item", "answer", "outcome"),
    [
        (YES, "Yes.", "then"),
        (YES, "**no**, it is not", "now"),
        (YES, "I think the answer is yes", "then"),
        (YES, "It may be yes or no", "na"),
        (YES, "Nobody knows", "na"),
        (LETTER, "A", "now"),
        (LETTER, "(C) 2020", "then"),
        (LETTER, "B. 2019", "other"),
        (LETTER, "A good answer is C", "na"),
        (LETTER, "The answer is C", "then"),
        (LETTER, "2020", "na"),
        (VALUE, "Ada.", "then"),
        (VALUE, "It is North Ada now", "now"),
        (VALUE, "Ada, later North Ada", "then"),
        (VALUE, "Bert", "other"),
        (VALUE, "I don't know.", "na"),
        (VALUE, "", "na"),
        (SAME, "Rome", "then"),
        (SAME, "Paris", "other"),
    ],
)
def test_answers_are_read_by_rule(item, answer, outcome):
    assert read_answer(item, answer, SHOWN) == outcome


# --- the measurement ----------------------------------------------------------------------------------------------------------------


def facts(n=10):
    history = (TimedValue(("Oldtown",), date(2000, 1, 1), date(2016, 5, 1)), TimedValue(("Newtown",), date(2016, 5, 1)))
    changed = [RewindItem(f"c{k}", "factual", f"Place {k}?", 2016, "Newtown", "Oldtown", history=history) for k in range(n)]
    return [*changed, *(RewindItem(f"u{k}", "factual", f"Thing {k}?", 2016, "Rome", "Rome") for k in range(4))]


DATED = RewindPrompt("dated", "", {"value": ""}, "[{year_minus_1}] {user}")
NOTHING = RewindPrompt("none", "", {"value": ""}, "{user}")


def traveller(text, *, reach=10, placebo_breaks=0, unknown=0):
    """Answers as of the year in brackets for the first `reach` places, wrongly under a placebo for some, and never knows some."""
    year, number = re.match(r"\[(\d+)\]", text), int(re.search(r"(\d+)\?", text)[1])
    if "Thing" in text:
        return "Rome"
    if number < unknown:
        return "Elsewhere"
    if year and int(year[1]) >= 2020:
        return "Oldtown" if number < unknown + placebo_breaks else "Newtown"
    return "Oldtown" if year and int(year[1]) < 2016 and number < reach else "Newtown"


def rates(tiny_tokenizer, **script):
    model = Scripted(tiny_tokenizer, lambda text: traveller(text, **script))
    found = measure_rewind(model, facts(), [DATED], without=NOTHING, this_year=2024)
    return found, found.summary["rates"][0]


def test_a_model_that_travels_in_time(tiny_tokenizer):
    found, row = rates(tiny_tokenizer)
    assert (row["success"]["estimate"], row["then"], row["known"]["estimate"], row["placebo_change"]["estimate"]) == (1, 1, 1, 0)
    assert row["corrected"]["estimate"] == 1.0
    assert row["in_time"]["fresh"]["estimate"] == 1.0
    assert found.summary["retention"][0] == found.summary["retention"][1] | {"subset": "all"}
    assert found.summary["retention"][0]["right"]["estimate"] == 1.0
    assert found.table["answer"].to_list() == ["Oldtown"] * 10 + ["Rome"] * 4


def test_known_items_placebo_and_correction_are_told_apart(tiny_tokenizer):
    _, row = rates(tiny_tokenizer, reach=7, placebo_breaks=1, unknown=3)
    assert row["n"] == 10
    assert (row["then"], row["now"], row["other"], row["na"]) == (0.4, 0.3, 0.3, 0.0)
    assert row["success"]["estimate"] == 0.7  # three of these are nonsense
    assert row["known"]["estimate"] == 0.7
    assert row["success_known"]["estimate"] == row["strict_known"]["estimate"] == pytest.approx(4 / 7)
    assert row["placebo_change"]["estimate"] == pytest.approx(1 / 7)
    assert row["corrected"]["estimate"] == pytest.approx(3 / 7)
    assert row["in_time"]["anachronism"]["estimate"] == 0.3


def test_a_model_that_is_deaf_to_prompts(tiny_tokenizer):
    model = Scripted(tiny_tokenizer, lambda text: "Newtown" if "Place" in text else "Rome")
    row = measure_rewind(model, facts(), [DATED], without=NOTHING, this_year=2024).summary["rates"][0]
    assert (row["success"]["estimate"], row["now"], row["in_time"]["anachronism"]["estimate"]) == (0.0, 1.0, 1.0)
    assert row["corrected"]["estimate"] == 0.0


def test_the_prompts_are_asked_with_the_declared_the_placebo_and_no_year(tiny_tokenizer):
    model = Scripted(tiny_tokenizer, lambda text: "x")
    other = RewindPrompt("other", "It is {year}.", {"value": "Name it in {year_minus_1}."}, "{system} {user}")
    measure_rewind(model, facts(1), [other, DATED], this_year=2024)
    asked = [text for text in model.seen if "Place 0" in text]
    assert asked[1:3] == ["It is 2016. Name it in 2015. Place 0?", "It is 2025. Name it in 2024. Place 0?"]
    assert asked[3:] == ["[2015] Place 0?", "[2024] Place 0?"]
    assert "20" not in asked[0]
    with pytest.raises(InputError, match="frame of 'dated' names a year"):
        measure_rewind(model, facts(1), [DATED, other], this_year=2024)


def test_the_default_prompts_are_the_two_of_the_paper(tiny_tokenizer):
    found = measure_rewind(Scripted(tiny_tokenizer, lambda text: "Yes"), [YES], this_year=2024)
    assert found.table["prompt"].to_list() == ["P1", "P2"]


def test_answers_end_at_the_stop(tiny_tokenizer):
    model = Scripted(tiny_tokenizer, lambda text: "\n Oldtown\nand so on")
    kept, whole = (
        measure_rewind(model, facts(1), [DATED], without=NOTHING, this_year=2024, stop=stop).table["answer"][0] for stop in ("\n", "")
    )
    assert (kept, whole) == ("Oldtown", "Oldtown\nand so on")


def embed(texts):
    """Two axes: chirps and messages; nothing else has a direction."""
    return np.array([[text.count("chirp"), text.count("message")] for text in texts], dtype=float)


def test_definitions_succeed_when_they_move_towards_the_old_meaning(tiny_tokenizer):
    words = [RewindItem(name, "semantic", name, 2006, "a message", "a chirp") for name in ("moved", "half", "stayed", "blank")]

    def answer(text):
        name = next(word.question for word in words if word.question in text)
        old, early = "a chirp", "2005" in text
        return {
            "moved": old if early else "a message",
            "half": "chirp message message" if early else "a message",
            "stayed": "a message",
            "blank": "?" if early else "a message",
        }[name]

    model = Scripted(tiny_tokenizer, answer)
    found = measure_rewind(model, words, list(read_prompts().values())[:1], this_year=2024, embedder=embed)
    assert found.table["outcome"].to_list() == ["then", "other", "now", None]
    row = found.summary["rates"][0]
    assert (row["n"], row["undefined"]) == (3, 1)
    assert row["success"]["estimate"] == pytest.approx(2 / 3)


def test_the_ratio_is_that_of_cosines():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 5)) + 1
    found = then_ratios(lambda texts: vectors, WORD, ["x", "y"])
    for k, value in enumerate(found):
        cos = [vectors[2 + k] @ v / np.linalg.norm(vectors[2 + k]) / np.linalg.norm(v) for v in vectors[:2]]
        assert value == pytest.approx(cos[0] / sum(cos))
    assert then_ratios(lambda texts: np.array([[1.0, 0], [0, 1], [-1, -1]]), WORD, ["x"]) == [None]
    for bad in (np.ones((2, 3)), np.full((3, 2), np.nan)):
        with pytest.raises(InputError, match="embedder gave"):
            then_ratios(lambda texts, bad=bad: bad, WORD, ["x"])


def test_mean_states_embed(tiny_model, tiny_tokenizer):
    vectors = mean_state_embedder(tiny_model, 1)(["the word", "", "the word"])
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(vectors[0], vectors[2], rtol=1e-5)
    states = tiny_model.hidden_states([tiny_tokenizer.encode("the word")], [1])[0][1]
    np.testing.assert_allclose(vectors[0], states.mean(0), rtol=1e-4)


outcome = st.sampled_from([*OUTCOMES, None])


@given(st.lists(st.tuples(outcome, outcome, outcome, st.booleans()), min_size=1, max_size=12))
def test_shares_add_up_and_success_is_never_below_the_strict_one(triples):
    rows = [
        {
            "id": str(k),
            "subset": "factual",
            "form": "value",
            "year": 2016,
            "retention": retention,
            "prompt": "P",
            "outcome": now,
            "plain": plain,
        }
        | {"placebo": placebo, "then": "x", "freshness": None, "success": None if now is None else now != "now"}
        | {"known": None if plain is None else plain == ("then" if retention else "now")}
        for k, (now, plain, placebo, retention) in enumerate(triples)
    ]
    schema = {
        "outcome": pl.String,
        "plain": pl.String,
        "placebo": pl.String,
        "freshness": pl.String,
        "success": pl.Boolean,
        "known": pl.Boolean,
    }
    summary = rewind_summary(pl.DataFrame(rows, schema_overrides=schema))
    for row in summary["rates"]:
        assert row["n"] + row["undefined"] == sum(not retention for *_, retention in triples)
        if row["n"]:
            assert sum(row[name] for name in OUTCOMES) == pytest.approx(1.0)
            assert row["success"]["estimate"] >= row["then"] - 1e-12
            if row["success_known"]:
                assert row["success_known"]["estimate"] >= row["strict_known"]["estimate"]
    json.dumps(summary, allow_nan=False)


def test_what_is_said_is_counted(tiny_tokenizer):
    items = [RewindItem("a", "factual", "Is a?", 2016, "No", "Yes"), RewindItem("b", "factual", "Is b?", 2016, "Yes", "No")]
    model = Scripted(tiny_tokenizer, lambda text: "No" if "2015" in text else "Yes")
    prompts = [RewindPrompt("P", "Before {year}.", {"yes_no": "In {year_minus_1}."})]
    found = measure_rewind(model, items, prompts, this_year=2024).summary
    assert found["bias"] == [{"prompt": "P", "n": 2, "outcome": 1.0, "plain": 0.0, "placebo": 0.0}]
    assert found["rates"][0]["success"]["estimate"] == 0.5  # who always says No is right by half


def test_bad_calls_are_refused(tiny_tokenizer, tiny_model):
    model = Scripted(tiny_tokenizer, lambda text: "x")
    for items, prompts, options, message in (
        ([], [DATED], {}, "0 items"),
        ([VALUE, VALUE], [DATED], {}, "1 different ids"),
        ([VALUE], [], {}, "prompts are"),
        ([VALUE], [DATED, DATED], {}, "distinct names"),
        ([VALUE], [RewindPrompt("none", "", {"value": ""})], {}, "none of them 'none'"),
        ([VALUE], [DATED], {"this_year": 2017}, "a year after 2017"),
        ([WORD], [RewindPrompt("P", "{year}", {"definition": ""})], {}, "no embedder"),
        ([YES], [RewindPrompt("P", "{year}", {"value": ""})], {}, "no form 'yes_no'"),
    ):
        with pytest.raises(InputError, match=message):
            measure_rewind(model, items, prompts, **({"this_year": 2024} | options))
    model.capabilities = frozenset({"logprobs"})
    with pytest.raises(CapabilityError):
        measure_rewind(model, [VALUE], [DATED], this_year=2024)
