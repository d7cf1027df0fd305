"""Next-token and ∞-gram distributions against a scan of all documents, against each other, and against infini-gram."""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex, NextTokenDist
from palimpsest.errors import InputError

SYMBOLS = {"u8": [0, 1, 253, 254], "u16": [0, 1, 7, 65534], "u32": [0, 70_000, 70_001, (1 << 32) - 2]}  # 0 … the last before the separator
rows = st.lists(st.integers(0, 3), max_size=10)  # empty documents and documents of one token among them
repeats = st.builds(lambda unit, times: unit * times, st.lists(st.integers(0, 1), max_size=3), st.integers(0, 6))
documents = st.lists(rows | repeats, min_size=3, max_size=8).filter(any)
texts = (rows | repeats).filter(bool)
oracle = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build(docs, **options) -> CorpusIndex:
    """An index in a folder of its own; the mapped files live on after the folder is gone."""
    with tempfile.TemporaryDirectory() as folder:
        return CorpusIndex.build(docs, None, Path(folder) / "index", **options)


def as_dict(dist: NextTokenDist) -> dict[int, int]:
    assert dist.ids.tolist() == sorted(dist.ids.tolist())
    assert dist.counts.sum() == dist.total
    assert (dist.counts > 0).all()
    assert dist.probs.sum() == pytest.approx(1) or dist.total == 0
    return dict(zip(dist.ids.tolist(), dist.counts.tolist(), strict=True))


@given(documents, texts, st.sampled_from(sorted(SYMBOLS)), st.integers(1, 3), st.integers(1, 5))
@oracle
def test_every_distribution_against_a_scan(naive, docs: list[list[int]], text: list[int], dtype: str, shards: int, min_count: int) -> None:
    symbols = SYMBOLS[dtype]
    docs = [[symbols[s] for s in doc] for doc in docs]
    text = [symbols[s] for s in text]
    corpus = naive(docs)
    index = build(docs, token_dtype=dtype, shards=shards)
    for t in range(len(text) + 1):
        prompt = text[:t]
        for context in (prompt, prompt[-1:]):
            dist = index.ntd(context)
            assert as_dict(dist) == corpus.next_tokens(context)
            assert (dist.total + dist.eod_count, dist.suffix_len, dist.approx) == (len(corpus.occurrences(context)), len(context), False)
        after, suffix_len = corpus.infgram(prompt, min_count)
        dist = index.infgram_ntd(prompt, min_count)
        assert as_dict(dist) == after
        assert (dist.total, dist.suffix_len) == (sum(after.values()), suffix_len)
        assert dist.total + dist.eod_count == len(corpus.occurrences(prompt[t - suffix_len :]))
        for token in {*symbols, 200}:
            assert index.infgram_prob(prompt, token, min_count) == (after.get(token, 0), dist.total, suffix_len)


@given(documents, texts, st.integers(1, 3))
@oracle
def test_one_pass_is_every_position_by_itself(docs: list[list[int]], text: list[int], shards: int) -> None:
    index = build(docs, token_dtype="u8", shards=shards)
    alone = [index.infgram_prob(text[:t], text[t]) for t in range(len(text))]
    assert np.stack(index.sequence_infgram(text), 1).tolist() == [list(answer) for answer in alone]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, CorpusIndex], list[list[int]]]:
    """A corpus of passages that documents share, with ids up to the last, as one shard and as three."""
    rng = np.random.default_rng(8)
    ids = np.array([*range(300), 65534])
    passages = [rng.choice(ids, rng.integers(1, 150)).tolist() for _ in range(40)]
    passages += [[7] * 60, [8, 9] * 40, [0] * 5, [65534] * 5]
    docs = [list(chain.from_iterable(passages[i] for i in rng.integers(0, 44, rng.integers(0, 6)))) for _ in range(300)]
    folder = tmp_path_factory.mktemp("shared")
    return {s: CorpusIndex.build(docs, None, folder / str(s), token_dtype="u16", shards=s) for s in (1, 3)}, docs


def prompts(docs: list[list[int]], number: int, seed: int) -> list[list[int]]:
    """Passages of documents: as they stand, up to a document's end, with a broken token, or of random ids."""
    rng = np.random.default_rng(seed)
    long = [doc for doc in docs if len(doc) > 1]
    out = []
    for i in range(number):
        doc = long[rng.integers(len(long))]
        end = len(doc) if i % 3 == 0 else int(rng.integers(1, len(doc) + 1))
        prompt = doc[max(0, end - int(rng.integers(1, 60))) : end]
        if i % 4 == 0:
            prompt[int(rng.integers(len(prompt)))] = int(rng.choice([0, 7, 299, 65534]))
        if i % 7 == 0:
            prompt = rng.choice([0, 7, 8, 9, 65534], 4).tolist()
        out.append(prompt)
    return out


def test_shards_do_not_show(shared) -> None:
    indexes, docs = shared
    for prompt in prompts(docs, 200, seed=1):
        for min_count in (1, 2, 9):
            one, three = (index.infgram_ntd(prompt, min_count) for index in indexes.values())
            assert as_dict(one) == as_dict(three)
            assert (one.suffix_len, one.eod_count) == (three.suffix_len, three.eod_count)
            token = int(one.ids[-1])
            assert indexes[1].infgram_prob(prompt, token, min_count) == indexes[3].infgram_prob(prompt, token, min_count)
        assert as_dict(indexes[1].ntd(prompt)) == as_dict(indexes[3].ntd(prompt))
    text = list(chain.from_iterable(docs[:40]))
    for one, three in zip(indexes[1].sequence_infgram(text), indexes[3].sequence_infgram(text), strict=True):
        assert one.tolist() == three.tolist()


def test_a_suffix_may_reach_its_count_over_several_shards() -> None:
    index = build([[1, 2, 3], [1, 2, 4], [1, 2], [2, 5, 5]], token_dtype="u8", shards=4)
    for min_count, suffix_len in ((1, 2), (3, 2), (4, 1), (5, 0)):
        assert index.infgram_ntd([9, 1, 2], min_count).suffix_len == suffix_len
    assert index.infgram_prob([9, 1, 2], 4, min_count=3) == (1, 2, 2)  # two of three go on


def test_a_suffix_that_only_ends_documents_is_not_used() -> None:
    index = build([[4, 5, 6], [5, 6], [3, 6, 7], [8, 4, 5, 6]], token_dtype="u8")
    assert index.count([4, 5, 6]) == 2
    assert index.infgram_prob([4, 5, 6], 7) == (1, 1, 1)  # [5, 6] does not go on either
    dist = index.infgram_ntd([4, 5, 6])
    assert (dist.ids.tolist(), dist.total, dist.eod_count) == ([7], 1, 3)
    assert as_dict(index.ntd([4, 5, 6])) == {}
    assert index.ntd([4, 5, 6]).eod_count == 2
    assert index.infgram_ntd([7]).suffix_len == 0
    assert index.infgram_ntd([7]).eod_count == index.n_documents


def test_a_long_text_in_threads_is_every_position_by_itself(shared) -> None:
    indexes, docs = shared
    rng = np.random.default_rng(2)
    text = np.array(list(chain.from_iterable(docs[:60])))[:6000]
    text[rng.random(text.size) < 0.02] = 299
    assert text.size == 6000
    for index in indexes.values():
        count, total, suffix_len = index.sequence_infgram(text)
        assert suffix_len.max() > 50
        for t in [0, 1, *rng.integers(0, text.size, 400).tolist(), text.size - 1]:
            assert index.infgram_prob(text[max(0, t - 300) : t], text[t]) == (count[t], total[t], suffix_len[t]) or suffix_len[t] >= 300


def test_a_sample_is_unbiased_and_close(shared) -> None:
    indexes, docs = shared
    context = [docs[next(i for i, doc in enumerate(docs) if len(doc) > 30)][5]]
    for shards, index in indexes.items():
        exact = index.ntd(context)
        assert exact.total > 60
        size = exact.total // 3
        true = np.zeros(65535)
        true[exact.ids] = exact.counts
        mean = np.zeros(65535)
        stretch = -(-exact.total // size)
        for seed in range(300):
            dist = index.ntd(context, max_support=size, seed=seed)
            assert dist.approx
            assert (dist.total, dist.eod_count) == (exact.total, exact.eod_count)
            assert set(as_dict(dist)) <= set(exact.ids.tolist())
            estimate = np.zeros(65535)
            estimate[dist.ids] = dist.counts
            assert np.abs(estimate - true).max() < 2 * stretch * shards
            mean += estimate / 300
        assert np.abs(mean - true).max() < 5 * stretch / np.sqrt(300) * shards  # five standard errors, and more
        again = index.ntd(context, max_support=size, seed=7)
        assert as_dict(again) == as_dict(index.ntd(context, max_support=size, seed=7))
        assert any(as_dict(again) != as_dict(index.ntd(context, max_support=size, seed=seed)) for seed in range(5))
        assert as_dict(index.ntd(context, max_support=1, seed=3)).keys() <= as_dict(exact).keys()
        for enough in (exact.total, exact.total + 1):
            assert not index.ntd(context, max_support=enough).approx
            assert as_dict(index.infgram_ntd(context, max_support=enough)) == as_dict(exact)


def test_infini_gram_agrees_but_for_the_ends_of_documents(shared, infini_gram) -> None:
    """Infini-gram counts the end of a document as a token, in the total and in what makes a suffix known.

    An empty document stands last, for infini-gram 2.6.0 errs on a context that ends both the last document and another one: first and
    last token of its stretch are then the same end, and it takes all between for that too.
    """
    _, docs = shared
    docs, end = [*docs, []], 60_000
    index = build(docs, token_dtype="u16", shards=3)
    peer = infini_gram(docs, end)
    backed_off = 0
    for i, prompt in enumerate([[], *prompts(docs, 250, seed=3)]):
        ours = index.infgram_ntd(prompt)
        theirs = peer.infgram_ntd(prompt, max_support=10**9)
        if theirs["suffix_len"] != ours.suffix_len:  # theirs is longer: it ends a document wherever it stands
            assert list(theirs["result_by_token_id"]) == [end]
            backed_off += 1
            theirs = peer.ntd(prompt[len(prompt) - ours.suffix_len :], max_support=10**9)
        counts = {token: entry["cont_cnt"] for token, entry in theirs["result_by_token_id"].items()}
        assert (counts.pop(end, 0), counts) == (ours.eod_count, as_dict(ours))
        token = int(ours.ids[i % ours.ids.size]) if i % 2 else 299
        count, total, suffix_len = index.infgram_prob(prompt, token)
        fraction = peer.prob(prompt[len(prompt) - suffix_len :], token)
        assert (fraction["cont_cnt"], fraction["prompt_cnt"]) == (count, total + ours.eod_count)
    assert backed_off >= 5


def test_what_is_wrong_is_refused(shared) -> None:
    index = shared[0][1]
    for wrong, says in (([1, 65535], "separator"), ([70_000], "no token"), ([-1], "no token"), ([[1]], "one row"), ([0.5], "float")):
        for ask in (index.ntd, index.infgram_ntd, index.sequence_infgram, lambda ids: index.infgram_prob(ids, 1)):
            with pytest.raises(InputError, match=says):
                ask(wrong)
    for token, says in ((65535, "separator"), (-1, "no token"), (0.5, "integer"), (None, "integer")):
        with pytest.raises(InputError, match=says):
            index.infgram_prob([1], token)
    for number in (0, -1, 1.5):
        with pytest.raises(InputError, match="min_count"):
            index.infgram_ntd([1], min_count=number)
        with pytest.raises(InputError, match="min_count"):
            index.infgram_prob([1], 1, min_count=number)
        with pytest.raises(InputError, match="max_support"):
            index.ntd([1], max_support=number)
    with pytest.raises(InputError, match="at least one"):
        index.sequence_infgram([])
    with pytest.raises(ValueError, match="read-only"):
        index.ntd([]).counts[0] = 1
