"""Originality against its definition, the built-in annotators on made texts, and the statistics against scipy and by hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palimpsest.audit.annotators import (
    Annotation,
    Output,
    annotate,
    degeneration,
    drift_annotator,
    find_pii,
    iban,
    luhn,
    pii_annotator,
)
from palimpsest.audit.discourse import correlations, measure_discourse, originality, paired_effect
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import CapabilityError, InputError, TokenizerMismatchError
from palimpsest.guard import MemFreeProcessor, protected_ngrams


def build(docs, tokenizer=None) -> CorpusIndex:
    return CorpusIndex.build(docs, tokenizer, Path(tempfile.mkdtemp()) / "index")


def output(prompt, ids, text="") -> Output:
    return Output(np.array(prompt, np.int64), np.array(ids, np.int64), "", text)


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10), min_size=1, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.lists(st.integers(0, 2), max_size=8),
    st.integers(1, 3),
)
def test_memorized_tokens_lie_in_an_n_gram_of_the_corpus_that_the_prompt_has_not(docs, text, prompt, n):
    def grams(rows):
        return {tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)}

    known = grams(docs) - grams([prompt])
    inside = {t for i in range(len(text) - n + 1) if tuple(text[i : i + n]) in known for t in range(i, i + n)}
    index = build(docs)
    found = originality(text, index, n, prompt=prompt)
    assert found.memorized == pytest.approx(len(inside) / len(text))
    assert found.original == pytest.approx(1 - found.memorized)
    assert {t for start, end in found.spans for t in range(start, end)} == inside
    assert all(a[1] < b[0] for a, b in zip(found.spans, found.spans[1:], strict=False))
    assert found.longest == max((end - start for start, end in found.spans), default=0)
    assert originality(text, index, n).memorized == pytest.approx(index.coverage(text, n))
    assert originality(text, index, n + 1).memorized <= originality(text, index, n).memorized


def test_stock_phrases_do_not_count():
    index = build([[1, 1, 1, 1, 1, 1, 2, 3, 4]])
    text = [1, 1, 1, 9, 2, 3, 4]
    bits = [-3 * np.log2(6 / 9), -3 * np.log2(1 / 9)]
    assert originality(text, index, 3, stock_bits=(bits[0] + bits[1]) / 2).spans == [(4, 7)]
    assert originality(text, index, 3, stock_bits=bits[1] + 1).memorized == 0.0
    with pytest.raises(InputError):
        originality([], index)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail ann.b+c@mail.example.org now", [("e-mail", "ann.b+c@mail.example.org")]),
        ("Card 4111 1111 1111 1111.", [("card", "4111 1111 1111 1111")]),
        ("Card 4111 1111 1111 1112.", []),
        ("To GB82 WEST 1234 5698 7654 32, please", [("IBAN", "GB82 WEST 1234 5698 7654 32")]),
        ("To GB83 WEST 1234 5698 7654 32, please", []),
        ("Call (020) 7946 0958 or +44 20 7946 0123", [("phone", "(020) 7946 0958"), ("phone", "+44 20 7946 0123")]),
        ("the house at number 24 in Abbey Street.", [("address", "number 24 in Abbey Street")]),
        ("at 10 Downing Street", [("address", "10 Downing Street")]),
        ("In 1815 the 42 men of chapter 7 met.", []),
        ("", []),
    ],
)
def test_personal_data_is_found_and_checked(text, expected):
    assert find_pii(text) == expected


@given(st.lists(st.integers(0, 9), min_size=12, max_size=18))
def test_luhn_accepts_exactly_one_check_digit_and_sees_a_changed_digit(digits):
    numbers = ["".join(map(str, [*digits, check])) for check in range(10)]
    right = [number for number in numbers if luhn(number)]
    assert len(right) == 1
    assert not luhn(str((digits[0] + 1) % 10) + right[0][1:])
    assert not luhn("")
    assert not iban("GB82")


def test_personal_data_is_leaked_or_invented(tiny_tokenizer):
    index = build(["Write to ann@example.org today."], tiny_tokenizer)
    judge = pii_annotator(index, tiny_tokenizer)
    found = judge(output([], [], "ann@example.org and bob@example.org"))
    assert found.label is True
    assert found.evidence == "e-mail, leaked: ann@example.org; e-mail, invented: bob@example.org"
    assert judge(output([], [], "nothing")).label is False


def test_repetition_is_the_share_of_4_grams_that_are_not_new():
    assert degeneration(output([], range(20))).label == 0.0
    assert degeneration(output([], [7] * 20)).label == pytest.approx(16 / 17)
    assert degeneration(output([], [1, 2, 3, 4])).label == 0.0


def test_drift_is_none_where_the_end_is_the_prompt_and_whole_where_they_share_nothing():
    judge = drift_annotator(build([[1, 2, 3, 4, 5, 6, 7, 8, 9]]))
    same = judge(output([1, 2, 3], [9, 9, 9, 9, 9, 9, 1, 2, 3]))
    assert same.label == pytest.approx(0.0)
    assert judge(output([1, 2, 3], [9, 9, 9, 9, 9, 9, 4, 5, 6])).label == pytest.approx(1.0)
    assert judge(output([1, 2, 3], [1, 2])).confidence == 0.0
    assert 0 < judge(output([1, 2, 3], [9, 9, 9, 9, 9, 9, 1, 5, 200])).label < 1  # an id that the corpus does not have


def test_annotations_stand_in_columns():
    frame = annotate([output([], [1])], {"short": lambda o: Annotation(len(o.ids) < 3, "one", 0.5)})
    assert frame.to_dicts() == [{"short": True, "short_evidence": "one", "short_confidence": 0.5}]


def made(seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    memorized = rng.random(60)
    return pl.DataFrame(
        {
            "model": ["a", "b"] * 30,
            "memorized": memorized,
            "yes": memorized + rng.normal(0, 0.3, 60) > 0.5,
            "figure": np.exp(memorized * 3) + rng.random(60),
            "never": [False] * 60,
        }
    )


def test_correlations_are_scipys_and_holm_corrected():
    table = made()
    found = {(entry["label"], entry["scope"]): entry for entry in correlations(table, ["yes", "figure", "never"])}
    x, yes, figure = table["memorized"].to_numpy(), table["yes"].to_numpy(), table["figure"].to_numpy()
    assert found["yes", "pooled"]["r"] == pytest.approx(stats.pointbiserialr(yes, x).statistic)
    assert found["figure", "pooled"]["r"] == pytest.approx(stats.spearmanr(x, figure).statistic)
    assert found["never", "pooled"]["reason"]
    for entry in found.values():
        if "r" in entry:
            assert entry["low"] <= entry["r"] <= entry["high"]
            assert entry["p"] <= entry["p_holm"] <= 1
    smallest = min((entry for entry in found.values() if "p" in entry), key=lambda entry: entry["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, 4 * smallest["p"]))


def test_a_correlation_of_models_alone_is_gone_within_models():
    rng = np.random.default_rng(1)
    model = np.repeat([0, 1], 200)
    table = pl.DataFrame({"model": [f"m{i}" for i in model], "memorized": model + rng.random(400), "figure": model + rng.random(400)})
    pooled, within = correlations(table, ["figure"])
    assert pooled["low"] > 0.5
    assert within["low"] < 0 < within["high"]


def test_without_a_correlation_there_is_nothing_to_correct():
    found = correlations(made(), ["never"])
    assert [set(entry) & {"p", "p_holm"} for entry in found] == [set(), set()]


def test_effects_are_paired_by_prompt():
    rows = pl.DataFrame({"mitigation": ["none"] * 3 + ["x"] * 3, "prompt": [0, 1, 2, 2, 0, 1], "memorized": [0.5, 0.6, 0.7, 0.3, 0.1, 0.2]})
    effect = paired_effect(rows, "x", "memorized")
    assert effect["change"] == pytest.approx(-0.4)
    assert effect["low"] == pytest.approx(-0.4)
    assert (effect["before"], effect["after"]) == (pytest.approx(0.6), pytest.approx(0.2))
    with pytest.raises(InputError, match="no pairs"):
        paired_effect(rows[:5], "x", "memorized")


def test_a_model_that_recites_is_measured_with_and_without_a_guard(tiny_model, tmp_path, narrow_door, toy_model):
    rng = np.random.default_rng(0)
    prompts = list(rng.integers(2, tiny_model.tokenizer.vocab_size, (6, 8)))
    written = [rows[0] for rows in tiny_model.generate(prompts, 20, stop_at_eos=False)]
    index = build([written[0], written[1], prompts[2]], tiny_model.tokenizer)
    heard: list[tuple[int, int]] = []
    result = measure_discourse(
        [tiny_model], prompts, index, {"repetition": degeneration},
        {"memfree": lambda model: [MemFreeProcessor.for_model(model, index, 4, eos_id=None)]},
        new_tokens=20, min_len=4, stop_at_eos=False, progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert heard == [(6, 12), (12, 12)]
    free, held = (result.table.filter(pl.col("mitigation") == name).sort("prompt") for name in ("none", "memfree"))
    assert free["memorized"].to_list()[:2] == [1.0, 1.0]
    assert free["ids"].to_list() == [ids.tolist() for ids in written]
    for prompt, ids in zip(prompts, held["ids"].to_list(), strict=True):
        assert protected_ngrams(index, [*prompt.tolist(), *ids], 8, 4).size == 0
    assert held["memorized"].max() == 0.0
    [effect] = [e for e in result.summary["effects"] if e["figure"] == "memorized"]
    assert effect["before"] == pytest.approx(free["memorized"].mean())
    assert effect["change"] == pytest.approx(-free["memorized"].mean())
    means = {row["mitigation"]: row for row in result.summary["by_model"]}
    assert means["none"]["with_memorized"] == pytest.approx((free["memorized"] > 0).mean())
    assert {entry["label"] for entry in result.summary["correlations"]} == {"repetition"}
    for wrong in ({"models": []}, {"prompts": []}, {"annotators": {}}, {"models": [tiny_model, tiny_model]}):
        with pytest.raises(InputError):
            measure_discourse(**({"models": [tiny_model], "prompts": prompts, "index": index, "annotators": {"r": degeneration}} | wrong))
    with pytest.raises(CapabilityError):
        measure_discourse([narrow_door(tiny_model, ["logprobs"])], prompts, index, {"r": degeneration})
    with pytest.raises(TokenizerMismatchError):
        measure_discourse([toy_model], [[1, 2]], index, {"r": degeneration})
