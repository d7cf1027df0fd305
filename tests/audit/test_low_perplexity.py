"""Low-perplexity spans against plain definitions, on random log-probs and on what a tiny model writes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit.low_perplexity import (
    CLASSES,
    _periodic,
    _repeats,
    classify_counts,
    low_perplexity_spans,
    measure_low_perplexity,
)
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import CapabilityError, InputError, NonFiniteError, TokenizerMismatchError
from palimpsest.models.base import Sampler

COLD = Sampler(0.3, top_p=0.95)


@given(st.lists(st.sampled_from([0.2, 0.89, 0.91, 1.0]), max_size=40), st.integers(1, 6))
def test_spans_are_the_maximal_runs_of_low_tokens(probabilities, min_len):
    low = [p >= 0.9 for p in probabilities]
    expected, start = [], 0
    while start < len(low):
        end = start
        while end < len(low) and low[end]:
            end += 1
        if end - start >= min_len:
            expected.append((start, end))
        start = end + 1
    assert low_perplexity_spans(np.log(probabilities), min_len=min_len) == expected


def test_bad_log_probs_are_refused():
    with pytest.raises(NonFiniteError, match="1 log-probs are NaN"):
        low_perplexity_spans(np.array([0.0, np.nan]))
    for wrong in ({"logprobs": np.zeros((2, 2))}, {"logprobs": np.zeros(2), "min_len": 0}, {"logprobs": np.zeros(2), "max_log2_ppl": -1}):
        with pytest.raises(InputError):
            low_perplexity_spans(**wrong)


def test_classes_have_the_cuts_as_their_greatest_counts():
    assert [CLASSES[i] for i in classify_counts(np.array([0, 1, 3, 4, 9, 10]), (3, 9))] == [
        CLASSES[i] for i in (0, 1, 1, 2, 2, 3)
    ]  # fmt: skip
    for cuts in ((0, 5), (5, 5)):
        with pytest.raises(InputError, match="ascending"):
            classify_counts(np.array([1]), cuts)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=20))
def test_a_period_is_seen_when_it_comes_twice(ids):
    expected = any(all(ids[i] == ids[i - period] for i in range(period, len(ids))) for period in range(1, 9) if 2 * period <= len(ids))
    assert _periodic(np.array(ids)) == expected


@given(st.lists(st.integers(0, 1), min_size=1, max_size=20), st.integers(2, 4))
def test_a_repeated_window_is_one_that_stood_before(ids, window):
    expected = [i + window <= len(ids) and any(ids[j : j + window] == ids[i : i + window] for j in range(i)) for i in range(len(ids))]
    assert _repeats(np.array(ids), window).tolist() == expected


@pytest.fixture(scope="module")
def prompts(tiny_model):
    rng = np.random.default_rng(0)
    return list(rng.integers(2, tiny_model.tokenizer.vocab_size, (12, 8)))


@pytest.fixture(scope="module")
def written(tiny_model, prompts):
    return tiny_model.generate(prompts, 24, temperature=COLD.temperature, top_p=COLD.top_p, seed=3, stop_at_eos=False)


@pytest.fixture(scope="module")
def measured(tiny_model, prompts, written, tmp_path_factory):
    """Measured against an index that holds half of the outputs, one of them twice."""
    docs = [rows[0] for rows in written[:6]]
    index = CorpusIndex.build([*docs, docs[0]], tiny_model.tokenizer, tmp_path_factory.mktemp("half") / "index")
    heard: list[tuple[int, int]] = []
    result = measure_low_perplexity(
        tiny_model, prompts, index, window=3, new_tokens=24, sampler=COLD, seed=3, stop_at_eos=False, max_log2_ppl=2.0, cuts=(1, 2),
        progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert heard[-1] == (24, 24)
    return result, index


def test_every_window_is_what_the_definition_says(tiny_model, prompts, written, measured):
    result, index = measured
    assert len(result.table) > 10
    expected = {}
    for p, (prompt, rows) in enumerate(zip(prompts, written, strict=True)):
        out = rows[0]
        whole = np.concatenate([prompt, out])
        values = tiny_model.score([whole], start=len(prompt), samplers=[Sampler(COLD.temperature)]).sampled[Sampler(COLD.temperature)][0]
        for start, end in low_perplexity_spans(values, 2.0, 3):
            if _periodic(out[start:end]):
                continue
            for at in range(start, end - 2):
                repeated = any(np.array_equal(whole[j : j + 3], out[at : at + 3]) for j in range(len(prompt) + at))
                if not repeated and not set(out[at : at + 3].tolist()) & {0, 1}:
                    expected[p, at] = (start, end - start, -values[at : at + 3].mean() / np.log(2), index.count(out[at : at + 3]))
    rows = {(row["prompt"], row["start"]): row for row in result.table.iter_rows(named=True)}
    assert rows.keys() == expected.keys()
    for key, (start, length, ppl, count) in expected.items():
        row = rows[key]
        assert (row["span_start"], row["span_len"], row["count"]) == (start, length, count)
        assert row["log2_ppl"] == pytest.approx(ppl, abs=1e-6)
        assert row["label"] == CLASSES[min(count, 3)]  # the cuts are 1 and 2
        assert len(row["documents"]) == len({hit.index for hit in index.documents(row["ids"], limit=99)})
        assert row["characters"] == len(row["text"])
        if key[0] < 6:
            assert row["extent"] == 24  # the whole output stands in the corpus
            assert str(key[0]) in row["documents"]
        assert (row["extent"] >= 3) == (count > 0)
    assert sum(result.summary["classes"].values()) == result.summary["windows"] == len(rows)


def test_standalone_perplexity_follows_bos(tiny_model, measured):
    row = measured[0].table.row(0, named=True)
    plain = Sampler(COLD.temperature)
    alone = tiny_model.score([[0, *row["ids"]]], samplers=[plain]).sampled[plain][0]
    assert row["standalone_log2_ppl"] == pytest.approx(-alone.mean() / np.log(2), abs=1e-5)


def test_rates_inside_and_outside_of_spans(measured, written):
    result, index = measured
    summary = result.summary
    docs = sum(len(rows[0]) for rows in written)
    assert summary["tokens"] == docs
    held = [index.matching_statistics(rows[0]) >= 3 for rows in written]
    windows = [row[:-2] for row in held]
    assert summary["matched_windows"] == pytest.approx(np.concatenate(windows).mean())
    inside = summary["matched_inside"] * summary["low_tokens"] + summary["matched_outside"] * (docs - summary["low_tokens"])
    assert inside == pytest.approx(sum(index.coverage(rows[0], 3) * len(rows[0]) for rows in written))


def test_outputs_in_the_corpus_leave_nothing_unmatched(tiny_model, prompts, written, tmp_path):
    index = CorpusIndex.build([rows[0] for rows in written], tiny_model.tokenizer, tmp_path / "index")
    how = {"window": 3, "new_tokens": 24, "sampler": COLD, "seed": 3, "stop_at_eos": False}
    result = measure_low_perplexity(tiny_model, prompts, index, max_log2_ppl=1.0, **how)
    assert result.summary["unmatched"] == 0.0
    assert result.summary["matched_windows"] == 1.0
    hot = measure_low_perplexity(tiny_model, prompts, index, **(how | {"sampler": Sampler(1e4)}))
    assert (hot.summary["windows"], hot.summary["spans"], len(hot.table)) == (0, 0, 0)
    assert hot.summary["unmatched"] is None


def test_bad_input_is_refused(tiny_model, prompts, written, tmp_path, narrow_door, toy_model):
    index = CorpusIndex.build([rows[0] for rows in written], tiny_model.tokenizer, tmp_path / "index")
    for wrong in ({"prompts": []}, {"window": 1}, {"sampler": Sampler(0)}, {"cuts": (9, 3)}):
        with pytest.raises(InputError):
            measure_low_perplexity(tiny_model, **({"prompts": prompts, "index": index} | wrong))
    with pytest.raises(CapabilityError, match="logprobs"):
        measure_low_perplexity(narrow_door(tiny_model, ["text"]), prompts, index)
    with pytest.raises(TokenizerMismatchError):
        measure_low_perplexity(toy_model, [[1, 2]], index)
