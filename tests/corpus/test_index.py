"""Every query of the index against a scan of all documents."""

from __future__ import annotations

import pickle
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError

SYMBOLS = {"u8": [0, 1, 254], "u16": [0, 1, 65534], "u32": [0, 70_000, (1 << 32) - 2]}  # 0, and the last before the separator
documents = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=3, max_size=8).filter(any)
oracle = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build(docs, **options) -> CorpusIndex:
    """An index in a folder of its own; the mapped files live on after the folder is gone."""
    with tempfile.TemporaryDirectory() as folder:
        index = CorpusIndex.build(docs, None, Path(folder) / "index", **options)
        assert index.tokenizer is None
        return index


@given(
    documents,
    st.lists(st.integers(0, 2), min_size=1, max_size=14),
    st.sampled_from(sorted(SYMBOLS)),
    st.integers(1, 3),
    st.sampled_from(["divsufsort", "sais"]),
)
@oracle
def test_every_query_against_a_scan(naive, docs: list[list[int]], text: list[int], dtype: str, shards: int, builder: str) -> None:
    symbols = SYMBOLS[dtype]
    docs = [[symbols[s] for s in doc] for doc in docs]
    text = [symbols[s] for s in text]
    corpus = naive(docs)
    index = build(docs, token_dtype=dtype, shards=shards, builder=builder)
    assert (index.n_tokens, index.n_documents) == (sum(map(len, docs)), len(docs))
    assert [index.document_ids(i).tolist() for i in range(len(docs))] == docs
    assert index.longest_document == max(map(len, docs))

    queries = [text[i:j] for i in range(len(text)) for j in range(i + 1, min(i + 5, len(text)) + 1)]
    assert index.count_batch(queries).tolist() == [corpus.count(query) for query in queries]
    for query in queries[:12]:
        assert index.count(query) == corpus.count(query) == sum(r.count for r in index.find(query))
        ids, counts = index.next_tokens(query)
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == corpus.next_tokens(query)
        assert ids.tolist() == sorted(ids.tolist())
        hits = index.documents(query, limit=2, context=3)
        assert [hit.index for hit in hits] == sorted({d for d, _ in corpus.occurrences(query)})[:2]
        for hit in hits:
            doc = docs[hit.index]
            assert hit.offset == min(i for d, i in corpus.occurrences(query) if d == hit.index)
            assert hit.before.tolist() == doc[max(0, hit.offset - 3) : hit.offset]
            assert hit.match.tolist() == query
            assert hit.after.tolist() == doc[hit.offset + len(query) : hit.offset + len(query) + 3]
    longest = [corpus.longest(text, i) for i in range(len(text))]
    assert index.matching_statistics(text).tolist() == longest
    for start in range(len(text)):
        length, ranges = index.longest_match(text, start)
        assert length == longest[start]
        assert sum(r.count for r in ranges) == (corpus.count(text[start : start + length]) if length else 0)
    for min_len in (1, 3):
        spans = index.trace(text, min_len=min_len, max_docs=2)
        assert [(span.start, span.end) for span in spans] == corpus.maximal_spans(text, min_len)
        assert [span.count for span in spans] == [corpus.count(text[span.start : span.end]) for span in spans]
        inside = {t for i in range(len(text) - min_len + 1) if corpus.count(text[i : i + min_len]) for t in range(i, i + min_len)}
        assert index.coverage(text, min_len) == pytest.approx(len(inside) / len(text))


@given(documents, st.integers(1, 3), st.integers(0, 3))
@oracle
def test_the_guards_batch_is_exact(naive, docs: list[list[int]], shards: int, m: int) -> None:
    index = build(docs, token_dtype="u16", shards=shards)
    corpus = naive(docs)
    rows = np.stack(np.meshgrid(*[np.arange(-1, 3)] * m), -1).reshape(-1, m) if m else np.empty((2, 0), np.int64)
    offsets, ids = index.next_tokens_batch(rows)
    assert offsets[-1] == ids.size
    for row, start, end in zip(rows.tolist(), offsets[:-1], offsets[1:], strict=True):
        assert ids[start:end].tolist() == (sorted(corpus.next_tokens(row)) if -1 not in row else [])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusIndex, list[list[int]]]:
    """A corpus with long repeats, of which documents share whole passages."""
    rng = np.random.default_rng(3)
    passages = [rng.integers(0, 400, rng.integers(20, 200)).tolist() for _ in range(40)]
    docs = [list(chain.from_iterable(passages[i] for i in rng.integers(0, 40, rng.integers(0, 6)))) for _ in range(300)]
    return CorpusIndex.build(docs, None, tmp_path_factory.mktemp("shared") / "index", token_dtype="u16", shards=2), docs


def test_counts_are_conserved(shared) -> None:
    index, docs = shared
    _, counts = index.unigrams
    assert counts.sum() == index.n_tokens == sum(map(len, docs))
    rng = np.random.default_rng(4)
    for _ in range(200):
        doc = docs[rng.integers(len(docs))]
        if len(doc) < 12:
            continue
        start = int(rng.integers(len(doc) - 11))
        query = doc[start : start + int(rng.integers(1, 11))]
        _, after = index.next_tokens(query)
        ends = sum(doc[-len(query) :] == query for doc in docs)
        assert after.sum() + ends == index.count(query)
        assert index.count([*query, doc[start + len(query)]]) <= index.count(query)
        assert index.count(query) >= 1


def test_long_copies_cost_few_searches_and_are_exact(shared, naive) -> None:
    index, docs = shared
    rng = np.random.default_rng(6)
    for _ in range(20):
        text: list[int] = []
        for _ in range(int(rng.integers(1, 6))):  # pieces of documents, broken tokens in between
            doc = docs[rng.integers(len(docs))]
            start = int(rng.integers(len(doc) + 1))
            text += [*doc[start : start + int(rng.integers(1, 200))], *rng.integers(0, 500, rng.integers(0, 3)).tolist()]
        if text:
            assert index.matching_statistics(text).tolist() == [index.longest_match(text, i)[0] for i in range(len(text))]


def test_another_process_maps_the_same_files(shared) -> None:
    index, docs = shared
    data = pickle.dumps(index)
    assert len(data) < 20_000
    assert pickle.loads(data).count(docs[0][:1]) == index.count(docs[0][:1])


def test_many_queries_in_threads_are_those_one_by_one(shared) -> None:
    index, docs = shared
    text = np.concatenate([np.array(doc, np.int64) for doc in docs])
    queries = np.lib.stride_tricks.sliding_window_view(text, 4)[:6000]
    assert index.count_batch(queries).tolist() == [index.count(query) for query in queries]
    assert index.count_batch(list(queries)).tolist() == index.count_batch(queries).tolist()
    long = index.matching_statistics(text[:6000])
    assert long.tolist() == [index.longest_match(text[:6000], i)[0] for i in range(6000)]
    assert (np.diff(long) >= -1).all()


def test_contexts_whose_continuations_outgrow_the_first_buffers(shared) -> None:
    index, docs = shared
    offsets, ids = index.next_tokens_batch(np.arange(400)[:, None])
    for token in range(0, 400, 37):
        assert ids[offsets[token] : offsets[token + 1]].tolist() == index.next_tokens([token])[0].tolist()
    every = index.next_tokens_batch(np.empty((1, 0), np.int64))[1]
    assert every.tolist() == sorted({t for doc in docs for t in doc})


def test_locating_all_and_a_uniform_sample(shared, naive) -> None:
    index, docs = shared
    query = docs[next(i for i, doc in enumerate(docs) if len(doc) > 30)][5:6]
    everything = index.locate(query)
    assert len(everything) == everything.total == naive(docs).count(query)
    assert not everything.sampled
    texts = [np.fromfile(index.path / f"tokens.{shard}", "<u2") for shard in range(2)]
    assert all(texts[s][p] == query[0] for s, p in zip(everything.shard, everything.position, strict=True))
    assert sorted(zip(everything.shard, everything.position, strict=True)) == list(zip(everything.shard, everything.position, strict=True))

    total = everything.total
    assert total > 20
    seen = np.zeros(total)
    rank = {pair: i for i, pair in enumerate(zip(everything.shard.tolist(), everything.position.tolist(), strict=True))}
    for seed in range(400):
        sample = index.locate(index.find(query), limit=5, seed=seed)
        assert sample.sampled
        assert len(sample) == 5
        assert sample.total == total
        for pair in zip(sample.shard.tolist(), sample.position.tolist(), strict=True):
            seen[rank[pair]] += 1
    expected = 400 * 5 / total
    assert ((seen - expected) ** 2 / expected).sum() < total + 5 * np.sqrt(2 * total)  # χ² with `total` degrees of freedom
    assert index.locate(query, limit=5, seed=1).position.tolist() == index.locate(query, limit=5, seed=1).position.tolist()


def test_rare_spans_are_kept_and_their_documents_named(shared) -> None:
    index, docs = shared
    source = next(i for i, doc in enumerate(docs) if len(doc) > 60)
    text = [*docs[source][10:40], 399, 0, 399, 0, *docs[source][5:20]]
    spans = index.trace(text, min_len=8, max_docs=300)
    assert any(span.start == 0 and span.end >= 30 for span in spans)
    assert all(source in [hit.index for hit in span.hits] for span in spans if span.end - span.start < 20 or span.start == 0)
    tokens, counts = index.unigrams
    logs = dict(zip(tokens.tolist(), np.log(counts / index.n_tokens).tolist(), strict=True))
    for span in spans:
        assert span.score == pytest.approx(sum(logs[t] for t in text[span.start : span.end]))
    kept = index.trace(text, min_len=8, max_spans=1)
    assert [(k.start, k.end) for k in kept] == [(s.start, s.end) for s in [min(spans, key=lambda span: span.score)]]


def test_foreign_ids_are_refused(shared) -> None:
    index, _ = shared
    for wrong, says in (
        ([1, 65535], "separator"),
        ([70_000], "no token"),
        ([-1], "no token"),
        ([], "at least one"),
        ([[1]], "one row"),
        ([0.5], "float"),
    ):
        for ask in (
            index.count,
            index.find,
            index.matching_statistics,
            index.longest_match,
            index.trace,
            lambda ids: index.coverage(ids, 2),
        ):
            with pytest.raises(InputError, match=says):
                ask(wrong)
    with pytest.raises(InputError, match="separator"):
        index.count_batch([[1], [65535]])
    with pytest.raises(InputError, match="separator"):
        index.next_tokens([65535])
    with pytest.raises(InputError, match="shape"):
        index.next_tokens_batch(np.array([1, 2]))
    with pytest.raises(InputError, match="document"):
        index.document_ids(300)
    with pytest.raises(InputError, match="start"):
        index.longest_match([1, 2], 2)
    with pytest.raises(InputError, match="min_len"):
        index.trace([1], min_len=0)
    with pytest.raises(InputError, match="0-grams"):
        index.coverage([1], 0)
    assert index.count_batch([]).size == 0


def test_tokens_that_never_occur(shared) -> None:
    index, _ = shared
    assert index.count([5000]) == 0
    assert index.next_tokens([5000])[0].size == 0
    assert index.matching_statistics([5000, 5001]).tolist() == [0, 0]
    assert index.longest_match([5000]) == (0, index.find([5000]))
    assert index.trace([5000] * 20) == []
    assert index.documents([5000]) == []
    assert len(index.locate([5000])) == 0


def test_ram_and_mapped_answers_are_the_same(shared) -> None:
    index, docs = shared
    ram = CorpusIndex.open(index.path, mode="ram")
    text = docs[0] + docs[1]
    assert ram.matching_statistics(text).tolist() == index.matching_statistics(text).tolist()
    assert ram.count(text[:3]) == index.count(text[:3])
    with pytest.raises(InputError, match="mode"):
        CorpusIndex.open(index.path, mode="disk")  # type: ignore[arg-type]


def test_counts_are_infini_grams(shared, infini_gram) -> None:
    _, docs = shared
    peer = infini_gram(docs, end=60_000)
    index = build(docs, token_dtype="u16", shards=3)
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(500):
        doc = docs[rng.integers(len(docs))]
        if len(doc) < 10:
            continue
        start = int(rng.integers(len(doc) - 9))
        query = doc[start : start + int(rng.integers(1, 8))]
        if rng.random() < 0.3:
            query = [*query[:-1], int(rng.integers(400))]
        assert index.count(query) == peer.count(query)["count"]
        ids, counts = index.next_tokens(query)
        theirs = {token: entry["cont_cnt"] for token, entry in peer.ntd(query, max_support=10**6)["result_by_token_id"].items()}
        theirs.pop(60_000, None)  # the end of a document, which it counts as a token
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == theirs
        found += index.count(query)
    assert found > 1000


@pytest.mark.parametrize(("shards", "limit"), [(1, 1), (1, 3), (3, 7), (2, 1000)])
def test_the_first_documents_of_a_passage_that_occurs_more_often_than_is_looked_at_at_once(tmp_path, monkeypatch, shards, limit):
    monkeypatch.setattr("palimpsest.corpus.shard_answers._STRIP", 16)
    rng = np.random.default_rng(shards)
    docs = [rng.integers(0, 3, rng.integers(0, 60)).tolist() for _ in range(60)]
    index = CorpusIndex.build(docs, None, tmp_path / "index", shards=shards)
    for query in ([0], [1, 0], [2, 2, 1]):
        expected = {}
        for number, doc in enumerate(docs):
            places = [i for i in range(len(doc) - len(query) + 1) if doc[i : i + len(query)] == query]
            if places:
                expected[number] = places[0]
        found = index.documents(query, limit=limit, context=0)
        assert [(hit.index, hit.offset) for hit in found] == list(expected.items())[:limit]
        assert all(hit.match.tolist() == query for hit in found)
    assert index.documents([0], limit=0) == []


def test_a_passage_of_many_thousand_occurrences_loses_no_document(tmp_path):
    index = CorpusIndex.build([[9, 1, 7], *([[1] * 3000] * 20), [1, 5]], None, tmp_path / "index")
    assert [(hit.index, hit.offset) for hit in index.documents([1], limit=50)] == [(0, 1), *((n, 0) for n in range(1, 22))]
    assert [(hit.index, hit.offset) for hit in index.documents([1], limit=1)] == [(0, 1)]
    (span,) = index.trace([1] * 8, min_len=8, max_docs=50)
    assert [(hit.index, hit.offset) for hit in span.hits] == [(n, 0) for n in range(1, 21)]
