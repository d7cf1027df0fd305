"""Right, wrong and refused, by declared rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.evaluation.answers import RULES, RefusalRules, is_right, mention, normalise, refused, token_f1

WORDS = st.lists(st.sampled_from(["rome", "the", "new", "york", "not", "paris"]), max_size=6)


@pytest.mark.parametrize(
    ("answer", "gold", "rules"),
    [
        ("The Hague.", "hague", {"exact", "start", "contains"}),
        ("New York is large", "New York", {"start", "contains"}),
        ("It is New York", "New York", {"contains"}),
        ("New Yorker", "New York", set()),
        ("York New", "New York", set()),
        ("", "New York", set()),
        ("Ｒｏｍｅ", "ROME", {"exact", "start", "contains"}),
        ("The", "the", {"exact", "start", "contains"}),
    ],
)
def test_the_rules_differ_in_what_may_stand_around_a_gold(answer, gold, rules):
    assert {rule for rule in RULES if is_right(answer, [gold], rule)} == rules


@given(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3))
def test_mentions_are_found_like_words_in_a_padded_text(answer, golds):
    text, targets = " ".join(answer), [" ".join(gold) for gold in golds]
    padded = f" {' '.join(normalise(text))} "
    contained = [padded.find(f" {' '.join(normalise(gold))} ") for gold in targets]
    assert is_right(text, targets, "contains") == (max(contained) >= 0)
    assert is_right(text, targets, "start") == (0 in contained)
    assert is_right(text, targets, "exact") == (normalise(text) in map(normalise, targets))
    found = mention(text, targets, "contains")
    if found:
        first = min(place for place in contained if place >= 0)
        assert found[0] == padded[: first + 1].count(" ") - 1


def test_f1_is_that_of_squad():
    assert token_f1("in the city of Rome", ["Rome"]) == pytest.approx(2 * (1 / 4) * 1 / (1 / 4 + 1))
    assert token_f1("Rome Rome", ["Rome"]) == pytest.approx(2 / 3)
    assert token_f1("Bern", ["Rome", "Bern"]) == 1
    assert token_f1("", ["Rome"]) == token_f1("Bern", ["Rome"]) == 0


@pytest.mark.parametrize(
    "text",
    ["", "  ", ".", "unknown", "Unknown.", "N/A", "I don't know.", "I don’t know where he lives", "I cannot answer that.",
     "Sorry, no idea.", "I'm not sure", "There is no information on this.", "It is not known.",
     "The answer cannot be determined from the text.",
     "Not mentioned in the passage", "We do not recall."],
)  # fmt: skip
def test_refusals(text):
    assert refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "Rome",
        "The Unknown Soldier",
        "None of the Above Ltd",
        "I know: Rome",
        "Sorrento",
        "He is not known to me but it is Rome",
        "Know Town",
    ],
)
def test_answers_that_only_look_like_refusals(text):
    assert not refused(text)


def test_the_rules_of_refusal_are_declared():
    rules = RefusalRules(options=("pass",), patterns=(r"^no comment",))
    assert refused("Pass!", rules)
    assert refused("No comment today", rules)
    assert not refused("unknown", rules)
    assert not refused("Unknown", golds=["The Unknown"])
    assert refused("unknown", golds=["Rome"])
    with pytest.raises(InputError, match="no regular expression"):
        RefusalRules(patterns=("(",))


@pytest.mark.parametrize("bad", [([], "exact"), ([""], "exact"), (["rome", "…"], "start"), (["rome"], "fuzzy")])
def test_nothing_to_compare_with_is_refused(bad):
    with pytest.raises(InputError):
        is_right("rome", *bad)
    with pytest.raises(InputError, match="no golds"):
        token_f1("rome", [])
