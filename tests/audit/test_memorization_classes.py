"""Factors and classes of passages, against naive counts on a small corpus; and the rule."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from palimpsest.audit.extraction import measure_extraction
from palimpsest.audit.memorization_classes import CLASSES, classify, measure_memorization_classes
from palimpsest.audit.memorization_factors import ALIKE, CATEGORICAL, CONTINUOUS, memorization_factors
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import CapabilityError, InputError, TokenizerMismatchError
from palimpsest.measurement import Measurement
from palimpsest.tokenizer import Tokenizer

PREFIX, SUFFIX = 10, 6


@pytest.fixture(scope="module")
def rows(tiny_model, tiny_tokenizer):
    """Sixteen rows of ids: six that the model writes itself, six random, two counters and two that repeat; with their copies."""
    rng = np.random.default_rng(3)
    starts = [rng.integers(2, 300, size=PREFIX) for _ in range(6)]
    own = [
        np.concatenate([start, rows[0]]) for start, rows in zip(starts, tiny_model.generate(starts, SUFFIX, stop_at_eos=False), strict=True)
    ]
    counters = ["".join(f"{word}{k} " for k in range(1, 30, by)) for word, by in (("", 1), ("no ", 2))]
    texts = [*counters, "word, " * 20, "tick tock " * 10]
    ruled = [np.array(tiny_tokenizer.encode(text)[: PREFIX + SUFFIX]) for text in texts]
    assert all(len(row) == PREFIX + SUFFIX for row in ruled)
    return [*own, *(rng.integers(2, 300, size=PREFIX + SUFFIX) for _ in range(6)), *ruled]


COPIES = [1, 5, 6, 7, 1, 1, 1, 5, 6, 9, 1, 1, 1, 7, 1, 1]


@pytest.fixture(scope="module")
def index(rows, tiny_tokenizer, tmp_path_factory):
    documents = [Document(f"d{i}-{k}", ids=row) for i, (row, n) in enumerate(zip(rows, COPIES, strict=True)) for k in range(n)]
    return CorpusIndex.build(documents, tiny_tokenizer, tmp_path_factory.mktemp("factors") / "index")


@pytest.fixture(scope="module")
def samples(rows):
    return [PrefixSuffix(row, PREFIX, SUFFIX, {"id": f"s{i}", "domain": "ab"[i % 2]}) for i, row in enumerate(rows)]


def letters(texts):
    """An embedder: how often each letter stands in the text."""
    return np.array([[1.0 + text.count(c) for c in "abcdefghijklmnopqrstuvwxyz0123456789 "] for text in texts])


@pytest.fixture(scope="module")
def factors(tiny_model, samples, index):
    return memorization_factors(tiny_model, samples, index, embedder=letters)


def test_corpus_factors_equal_naive_counts(factors, samples, index):
    documents = [index.document_ids(i) for i in range(index.n_documents)]
    tokens = np.concatenate(documents)
    for row, sample in zip(factors.iter_rows(named=True), samples, strict=True):
        windows = [np.lib.stride_tricks.sliding_window_view(ids, SUFFIX) for ids in documents]
        assert row["duplicates"] == sum(int((w == sample.suffix).all(axis=1).sum()) for w in windows)
        frequencies = [int((tokens == token).sum()) for token in sample.ids]
        assert row["frequency_max"] == max(frequencies)
        assert row["frequency_min"] == min(frequencies)
        assert row["frequency_mean"] == pytest.approx(np.mean(frequencies))
        assert [row[f"frequency_{q}"] for q in ("p25", "median", "p75")] == pytest.approx(np.percentile(frequencies, [25, 50, 75]))


def test_a_whole_sequence_is_at_most_as_frequent_as_its_suffix(tiny_model, samples, index, factors):
    whole = memorization_factors(tiny_model, samples, index, window="sequence")
    assert whole["duplicates"].to_list() == COPIES
    assert (whole["duplicates"] <= factors["duplicates"]).all()
    assert "snowclones" not in whole.columns


def test_a_passage_that_stands_nowhere_has_no_duplicate_and_unknown_tokens_count_nothing(tiny_model, index):
    known = set(index.unigrams[0].tolist())
    stranger = next(token for token in range(2, 320) if token not in known)
    ids = np.full(PREFIX + SUFFIX, stranger)
    row = memorization_factors(tiny_model, [PrefixSuffix(ids, PREFIX, SUFFIX)], index).to_dicts()[0]
    assert (row["duplicates"], row["frequency_max"], row["templates"]) == (0, 0, 0)


def test_model_factors_equal_the_model(tiny_model, samples, factors):
    extraction = measure_extraction(tiny_model, samples, PREFIX)
    assert factors["memorized"].to_list() == extraction.table.sort("sample")["extracted"].to_list()
    assert 6 <= factors["memorized"].sum() < len(samples)
    for row, sample, lp in zip(factors.iter_rows(named=True), samples, tiny_model.logprobs([s.ids for s in samples]), strict=True):
        lp = lp.astype(np.float64)
        assert row["perplexity_sequence"] == pytest.approx(np.exp(-lp.mean()))
        assert row["perplexity_prompt"] == pytest.approx(np.exp(-lp[: PREFIX - 1].mean()))
        assert row["perplexity_continuation"] == pytest.approx(np.exp(-lp[PREFIX - 1 :].mean()))
        assert row["text"] == tiny_model.tokenizer.decode(sample.ids)


def test_neighbours_equal_all_pairs(tiny_model, samples, factors):
    texts = factors["text"].to_list()
    prompts = [tiny_model.tokenizer.decode(sample.prefix) for sample in samples]
    unit = letters(texts) / np.linalg.norm(letters(texts), axis=1, keepdims=True)
    for i in range(len(samples)):
        others = [j for j in range(len(samples)) if j != i]
        assert factors["templates"][i] == sum(Levenshtein.normalized_similarity(prompts[i], prompts[j]) >= ALIKE for j in others)
        assert factors["snowclones"][i] == sum(unit[i] @ unit[j] >= ALIKE for j in others)
    assert factors["snowclones"].sum() > 0


def test_a_pool_is_counted_whole(tiny_model, samples, index):
    inside = memorization_factors(tiny_model, samples, index, embedder=letters)
    pooled = memorization_factors(tiny_model, samples[:3], index, pool=samples, embedder=letters)
    assert pooled["templates"].to_list() == (inside["templates"][:3] + 1).to_list()  # a pool does not know which passage is asked for
    assert pooled["snowclones"].to_list() == (inside["snowclones"][:3] + 1).to_list()


def test_the_order_of_the_samples_changes_nothing(tiny_model, samples, index, factors):
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = memorization_factors(tiny_model, [samples[i] for i in order], index, embedder=letters)
    expected = factors[order].drop("sample")
    for name in expected.columns:
        if expected[name].dtype == pl.Float64:
            assert np.allclose(shuffled[name], expected[name], rtol=1e-4)
        else:
            assert shuffled[name].to_list() == expected[name].to_list()


def test_rules_are_seen_in_the_decoded_text(factors):
    assert factors["incrementing"].to_list()[-4:] == [True, True, False, False]
    assert factors["repeating"].to_list()[-4:] == [False, False, True, True]
    assert (factors["templating"] == factors["incrementing"] | factors["repeating"]).all()
    assert set(CONTINUOUS) | set(CATEGORICAL) <= set(factors.columns)


def test_bad_input_is_refused(tiny_model, samples, index, narrow_door):
    with pytest.raises(InputError, match="no samples"):
        memorization_factors(tiny_model, [], index)
    with pytest.raises(InputError, match="'prefix'"):
        memorization_factors(tiny_model, samples, index, window="prefix")
    with pytest.raises(CapabilityError, match="logprobs"):
        memorization_factors(narrow_door(tiny_model, {"text"}), samples, index)
    for made, said in ((np.zeros((16, 2)), "zero"), (np.ones(16), r"\(16,\)"), (np.full((16, 2), np.nan), "finite")):
        with pytest.raises(InputError, match=said):
            memorization_factors(tiny_model, samples, index, embedder=lambda texts, made=made: made)
    backend = tiny_model.tokenizer.backend.__class__.from_str(tiny_model.tokenizer.backend.to_str())
    backend.add_special_tokens(["<other>"])
    with pytest.raises(TokenizerMismatchError):
        memorization_factors(narrow_door(tiny_model, tiny_model.capabilities, tokenizer=Tokenizer(backend)), samples, index)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=20), st.integers(1, 12))
def test_the_rule_is_exhaustive_and_exclusive_and_in_this_order(rows, threshold):
    frame = pl.DataFrame({"duplicates": [n for n, _ in rows], "templating": [t for _, t in rows]})
    expected = [CLASSES[0] if n >= threshold else CLASSES[1] if t else CLASSES[2] for n, t in rows]
    assert classify(frame, threshold).to_list() == expected


def test_a_threshold_below_one_and_missing_factors_are_refused():
    frame = pl.DataFrame({"duplicates": [1, None], "templating": [True, False]})
    with pytest.raises(InputError, match="duplicates"):
        classify(frame)
    with pytest.raises(InputError, match="templating"):
        classify(pl.DataFrame({"duplicates": [1]}))
    with pytest.raises(InputError, match="dup_threshold is 0"):
        classify(frame, 0)


def test_the_measurement_counts_its_table(tiny_model, samples, index):
    result = measure_memorization_classes(tiny_model, samples, index, window="sequence")
    assert result.table["class"].to_list() == classify(result.table).to_list()
    by_class = {row["class"]: row for row in result.summary["classes"]}
    assert sum(row["n"] for row in by_class.values()) == len(samples)
    assert [by_class[name]["n"] for name in CLASSES] == [5, 3, 8]
    for name, row in by_class.items():
        part = result.table.filter(pl.col("class") == name)
        assert row["memorized"] == part["memorized"].sum()
        assert row["low"] <= row["rate"] == row["memorized"] / row["n"] <= row["high"]
        assert row["median_duplicates"] == part["duplicates"].median()
    assert sum(row["share_of_memorized"] for row in by_class.values()) == pytest.approx(1.0)
    again = Measurement.from_json(result.to_json())
    assert again.summary == result.summary


def test_an_empty_class_has_no_rate(tiny_model, samples, index):
    result = measure_memorization_classes(tiny_model, samples[6:8], index, dup_threshold=100)
    recitation = result.summary["classes"][0]
    assert (recitation["n"], recitation["rate"], recitation["median_duplicates"]) == (0, None, None)
    assert result.summary["classes"][2]["share_of_memorized"] is None  # nothing is memorized at all
