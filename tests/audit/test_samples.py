"""Passages drawn from a corpus: where they come from, how often they stand there, and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from palimpsest.audit.samples import PrefixSuffix, benchmark_samples, corpus_samples, head_samples, stratified_samples
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError

BENCHMARK = Path(os.environ.get("PALIMPSEST_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "pile-extraction"


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    passage = rng.integers(0, 200, 40)  # stands in six documents
    rows = [rng.integers(0, 200, n) for n in (90, 60, 7, 150, 30, 80)]
    return [np.concatenate([row, passage]) for row in rows] + [rng.integers(0, 200, 3)]


@pytest.fixture(scope="module")
def index(documents, tmp_path_factory):
    return CorpusIndex.build(documents, None, tmp_path_factory.mktemp("index") / "corpus")


def occurrences(documents, ids):
    needle = tuple(ids.tolist())
    return sum(tuple(d[i : i + len(needle)].tolist()) == needle for d in documents for i in range(len(d) - len(needle) + 1))


def test_passages_stand_where_they_say_and_as_often(index, documents):
    samples = corpus_samples(index, 60, prefix_len=10, suffix_len=6, seed=1)
    assert len(samples) == 60
    for sample in samples:
        document = documents[_number(index, sample)]
        begin = sample.meta["position"]
        assert document[begin : begin + 16].tolist() == sample.ids.tolist()
        assert sample.meta["copies"] == occurrences(documents, sample.ids)
        assert sample.meta["suffix_copies"] == occurrences(documents, sample.suffix)
        assert (sample.prefix_len, sample.suffix_len) == (10, 6)
    assert {1, 6} <= {sample.meta["copies"] for sample in samples}


def _number(index, sample):
    names = [index.document(i)[0] for i in range(index.n_documents)]
    return names.index(sample.meta["document"])


def test_draws_are_seeded_and_no_suffix_comes_twice(index):
    first, again, other = (corpus_samples(index, 80, 4, 4, seed=seed) for seed in (1, 1, 2))
    assert [s.ids.tolist() for s in first] == [s.ids.tolist() for s in again]
    assert [s.ids.tolist() for s in first] != [s.ids.tolist() for s in other]
    assert len({s.suffix.tobytes() for s in first}) == 80
    assert len({s.meta["id"] for s in first}) == 80


def test_places_are_drawn_uniformly_inside_documents(index, documents):
    """Every place where a passage fits is equally likely: documents are hit in proportion to their number of places."""
    length = 20
    seen = Counter(corpus_samples(index, 1, length - 5, 5, seed=seed)[0].meta["document"] for seed in range(600))
    places = np.array([max(0, len(d) - length + 1) for d in documents])
    share = np.array([seen.get(str(index.document(i)[0]), 0) for i in range(len(documents))]) / 600
    expected = places / places.sum()
    assert (np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / 600) + 1e-9).all()
    assert share[-1] == 0  # three tokens hold no passage


def test_a_small_corpus_gives_what_it_has(tmp_path):
    index = CorpusIndex.build([[1, 2, 3, 4], [1, 2, 3, 4]], None, tmp_path / "small")
    samples = corpus_samples(index, 10, 1, 2)
    assert sorted(s.ids.tolist() for s in samples) == [[1, 2, 3], [2, 3, 4]]
    assert [s.meta["copies"] for s in samples] == [2, 2]


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_draws_of_nothing_are_refused(index, arguments):
    with pytest.raises(InputError):
        corpus_samples(index, *arguments)


def test_passages_longer_than_every_document_are_refused(index):
    with pytest.raises(InputError, match="longest of 7 has 190"):
        corpus_samples(index, 5, 190, 1)


def test_strata_hold_the_counts_they_name(index, documents):
    samples = stratified_samples(index, (12, 20), per_bucket=7, suffix_len=8)
    assert {s.meta["length"] for s in samples} == {12, 20}
    for sample in samples:
        assert len(sample.ids) == sample.meta["length"]
        assert sample.suffix_len == 8
        assert sample.meta["copies"] == occurrences(documents, sample.ids)
        assert 2 ** (sample.meta["bucket"] / 4) <= sample.meta["copies"] < 2 ** ((sample.meta["bucket"] + 1) / 4)
    assert Counter((s.meta["length"], s.meta["copies"]) for s in samples) == {(12, 1): 7, (12, 6): 7, (20, 1): 7, (20, 6): 7}
    assert len({s.suffix.tobytes() for s in samples if s.meta["length"] == 12}) == 14


def test_strata_are_filled_as_far_as_the_corpus_goes(index):
    samples = stratified_samples(index, (38,), per_bucket=1000, suffix_len=5)
    repeated = [s for s in samples if s.meta["copies"] == 6]
    assert len(repeated) == 3  # a passage of 40 holds three windows of 38
    assert stratified_samples(index, (38,), 1000, suffix_len=5)[0].ids.tolist() == samples[0].ids.tolist()


@pytest.mark.parametrize("arguments", [{"lengths": ()}, {"lengths": (8,)}, {"per_bucket": 0}, {"candidates": 0}, {"lengths": (500,)}])
def test_impossible_strata_are_refused(index, arguments):
    with pytest.raises(InputError):
        stratified_samples(index, **({"lengths": (12,), "suffix_len": 8} | arguments))


def write_arrays(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"val_{name}.npy", array)


def test_benchmark_arrays_become_samples(tmp_path):
    rng = np.random.default_rng(0)
    pre, prefix, suffix = (rng.integers(0, 50_000, (6, n)).astype(np.uint16) for n in (10, 5, 4))
    suffix[3] = suffix[1]
    write_arrays(tmp_path, preprefix=pre, prefix=prefix, suffix=suffix)
    samples = benchmark_samples(tmp_path)
    assert [s.meta["id"] for s in samples] == ["val:0", "val:1", "val:2", "val:4", "val:5"]
    assert samples[3].ids.tolist() == [*pre[4].tolist(), *prefix[4].tolist(), *suffix[4].tolist()]
    assert samples[3].with_context(5).prefix.tolist() == prefix[4].tolist()
    (tmp_path / "val_preprefix.npy").unlink()
    assert benchmark_samples(tmp_path)[0].prefix_len == 5


def test_benchmark_arrays_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"val_prefix\.npy cannot be read"):
        benchmark_samples(tmp_path)
    write_arrays(tmp_path, prefix=np.zeros((3, 5), int), suffix=np.zeros((2, 5), int))
    with pytest.raises(InputError, match="shapes"):
        benchmark_samples(tmp_path)
    write_arrays(tmp_path, suffix=np.zeros((3, 5)))
    with pytest.raises(InputError, match="shapes"):
        benchmark_samples(tmp_path)
    (tmp_path / "val_suffix.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(InputError, match=r"val_suffix\.npy cannot be read"):
        benchmark_samples(tmp_path)


@pytest.mark.skipif(not BENCHMARK.is_dir(), reason="the extraction benchmark is not on this machine")
def test_the_published_benchmark_is_read():
    samples = benchmark_samples(BENCHMARK)
    assert len(samples) == 974  # of 1,000 rows, 26 repeat a suffix
    assert {(s.prefix_len, s.suffix_len) for s in samples} == {(150, 50)}
    assert max(s.ids.max() for s in samples) < 50_257


def test_a_passage_must_be_cut_in_two():
    with pytest.raises(InputError, match="does not cut 5 ids"):
        PrefixSuffix(np.arange(5), 5, 0)
    with pytest.raises(InputError, match="type float64"):
        PrefixSuffix(np.arange(5.0), 2, 3)
    with pytest.raises(InputError, match="context of 4 tokens"):
        PrefixSuffix(np.arange(5), 3, 2).with_context(4)


def test_everything_that_the_package_names_can_be_imported():
    import palimpsest.audit as package

    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="measure_vibes"):
        package.measure_vibes  # noqa: B018


def test_heads_are_the_beginnings_of_the_documents_in_their_order(index, documents):
    samples = head_samples(index, 10, 6)
    long = [i for i, document in enumerate(documents) if len(document) >= 16]
    assert [s.meta["index"] for s in samples] == long
    for sample in samples:
        number = sample.meta["index"]
        assert sample.ids.tolist() == documents[number][:16].tolist()
        assert sample.meta["read_at"] == sum(len(d) for d in documents[:number]) + 16
        assert sample.meta["copies"] == occurrences(documents, sample.ids)
        assert (sample.prefix_len, sample.suffix_len) == (10, 6)


def test_heads_can_be_drawn_and_equal_suffixes_count_once(tmp_path):
    rows = [np.arange(k, k + 20) for k in (50, 0, 100)] + [np.concatenate([np.arange(3), np.arange(3, 20)])]
    index = CorpusIndex.build(rows, None, tmp_path / "heads")
    assert [s.meta["index"] for s in head_samples(index, 4, 4)] == [0, 1, 2]
    drawn = [[s.meta["index"] for s in head_samples(index, 4, 4, n=2, seed=seed)] for seed in range(20)]
    assert all(row == sorted(row) and len(row) == 2 for row in drawn)
    assert len({tuple(row) for row in drawn}) == 3
    assert drawn[3] == [s.meta["index"] for s in head_samples(index, 4, 4, n=2, seed=3)]
    with pytest.raises(InputError, match="holds 21 tokens; the longest of 4 has 20"):
        head_samples(index, 20, 1)
    with pytest.raises(InputError, match="n 0"):
        head_samples(index, 4, 4, n=0)
