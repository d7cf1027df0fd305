"""The Bloom filter against the set that it stands for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palimpsest.corpus import bloom_hash, bloom_size
from palimpsest.corpus.bloom import MAGIC, BloomFilter
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError, StorageError, TokenizerMismatchError

PRIME = (1 << 61) - 1
small_docs = st.lists(hnp.arrays(np.int64, st.integers(0, 12), elements=st.integers(0, 3)), min_size=1, max_size=6)


def ngrams_of(docs, n):
    return {tuple(int(i) for i in doc[t : t + n]) for doc in docs for t in range(len(doc) - n + 1)}


def random_filter(n=10, size=60_000, fp_rate=0.01, seed=0):
    ids = np.random.default_rng(seed).integers(0, 50_000, size)
    return ids, BloomFilter.from_documents([ids], n, fp_rate)


@settings(deadline=None)
@given(docs=small_docs, n=st.integers(1, 5))
def test_holds_every_ngram_of_every_document_and_none_across_a_border(docs, n):
    """With a tiny rate the filter is the set itself, over all n-grams of a four-letter alphabet (64 for n = 3)."""
    expected = ngrams_of(docs, n)
    if not expected:
        with pytest.raises(InputError, match="None of the"):
            BloomFilter.from_documents(docs, n)
        return
    bloom = BloomFilter.from_documents(docs, n, fp_rate=1e-9)
    everything = np.array(np.meshgrid(*[range(4)] * n)).reshape(n, -1).T
    found = bloom.contains(everything)
    assert {tuple(row) for row in everything[found].tolist()} == expected
    assert bloom.count == len(expected)


@settings(deadline=None)
@given(docs=small_docs, n=st.integers(1, 4))
def test_the_three_ways_to_ask_agree(docs, n):
    """contains, contains_next and next_tokens_batch are one set, false positives included (rate 0.5)."""
    docs = [*docs, np.arange(n) % 4]
    bloom = BloomFilter.from_documents(docs, n, fp_rate=0.5)
    contexts = np.array(np.meshgrid(*[range(4)] * (n - 1))).reshape(n - 1, -1).T if n > 1 else np.zeros((1, 0), dtype=np.int64)
    candidates = np.tile(np.arange(6), (len(contexts), 1))
    table = bloom.contains_next(contexts, candidates)
    whole = np.concatenate([np.repeat(contexts, 6, axis=0), candidates.reshape(-1, 1)], axis=1)
    assert np.array_equal(bloom.contains(whole).reshape(-1, 6), table)
    offsets, ids = bloom.next_tokens_batch(contexts, 6)
    for row in range(len(contexts)):
        assert np.array_equal(ids[offsets[row] : offsets[row + 1]], np.flatnonzero(table[row]))


@pytest.mark.parametrize("vocab_size", [1, 511, 512, 513, 2000])
def test_the_scan_finds_what_every_single_look_up_finds(vocab_size):
    """Groups of 512 ids, the last one cut; ids at both ends of a group; ids beyond the vocabulary stay out."""
    ends = [0, 1, 510, 511, 512, 513, 1023, 1024, 1999, 2000, 2600]
    docs = [[7, 8, last] for last in ends] + [[9, 8, int(t)] for t in np.random.default_rng(0).integers(0, 2000, 300)]
    bloom = BloomFilter.from_documents(docs, 3, 0.2)
    contexts = np.array([[7, 8], [9, 8], [8, 9]])
    offsets, ids = bloom.next_tokens_batch(contexts, vocab_size)
    for row in range(3):
        whole = np.concatenate([np.tile(contexts[row], (vocab_size, 1)), np.arange(vocab_size)[:, None]], axis=1)
        assert ids[offsets[row] : offsets[row + 1]].tolist() == np.flatnonzero(bloom.contains(whole)).tolist()
    assert {t for t in ends if t < vocab_size} <= set(ids[: offsets[1]].tolist())


@pytest.mark.parametrize("fp_rate", [0.2, 0.01, 0.001])
@pytest.mark.parametrize("size", [3_000, 60_000])
def test_the_rate_is_at_most_what_was_asked_for(size, fp_rate):
    ids, bloom = random_filter(size=size, fp_rate=fp_rate)
    grams = np.lib.stride_tricks.sliding_window_view(ids, 10)
    assert bloom.contains(grams).all()
    rng = np.random.default_rng(1)
    known = grams[rng.integers(0, len(grams), 4_000)]
    neighbours = (known[:, -1:] & ~511) + rng.integers(0, 512, (4_000, 100))  # of the group of an n-gram that is there
    others = neighbours != known[:, -1:]
    rate = bloom.contains_next(known[:, :-1], neighbours)[others].mean()
    assert rate <= fp_rate
    assert rate == pytest.approx(bloom.expected_fp_rate(), rel=0.25, abs=2e-5)
    assert bloom.expected_fp_rate() <= fp_rate
    assert rate >= fp_rate / 8, "far below the asked rate: the filter is larger than it need be"
    foreign = rng.integers(0, 50_000, (400_000, 10))
    assert bloom.contains(foreign).mean() <= fp_rate * bloom_size.GROUP_RATE * 1.2 + 1e-5
    far = (known[:, -1:] + 512 * rng.integers(1, 90, (4_000, 100))) % 49_152  # same context, another group
    assert bloom.contains_next(known[:, :-1], far).mean() <= fp_rate * bloom_size.GROUP_RATE * 1.5 + 1e-4


def test_twenty_bits_an_ngram_for_one_percent():
    _, bloom = random_filter(size=400_000)
    assert 8 * bloom.nbytes / 400_000 < 20


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12))
def test_the_hash_is_the_polynomial_modulo_the_prime(ids):
    value = 0
    for token in ids:
        value = (value * int(bloom_hash._BASE) + token) % PRIME
    hashes = bloom_hash.hash_contexts(np.array([ids]))
    assert int(hashes[0]) == value * int(bloom_hash._BASE) % PRIME


@settings(deadline=None)
@given(a=st.integers(0, PRIME - 1), b=st.integers(0, PRIME - 1))
def test_multiplication_modulo_the_prime(a, b):
    assert int(bloom_hash._multiply(np.uint64(a), np.uint64(b))) == a * b % PRIME


def test_the_occupancy_moments_are_those_of_thrown_balls():
    rng = np.random.default_rng(0)
    filled = np.array([len(np.unique(rng.integers(0, 512, 300))) for _ in range(4_000)]) / 512
    for k in (1, 4, 7):
        assert bloom_size._occupancy_moments(300)[300, k] == pytest.approx((filled**k).mean(), rel=0.01)


def test_adding_in_parts_gives_the_same_bits():
    ids, whole = random_filter(size=5_000)
    parts = BloomFilter(10, whole.capacity, 0.01)
    parts.add_documents([ids])
    assert np.array_equal(parts.bits, whole.bits)
    parts.add_documents([ids[:100]])  # known n-grams
    assert parts.count == whole.count
    assert np.array_equal(parts.bits, whole.bits)


def test_merging_is_the_union():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 1000, 2_000), rng.integers(0, 1000, 2_000)
    both = BloomFilter.from_documents([first, second], 4)
    a, b = BloomFilter(4, both.capacity), BloomFilter(4, both.capacity)
    a.add_documents([first])
    b.add_documents([second])
    a.merge(b)
    assert np.array_equal(a.bits, both.bits)
    with pytest.raises(InputError, match="more than the capacity"):
        a.merge(both)
    with pytest.raises(InputError, match="cannot take one of n=5"):
        a.merge(BloomFilter(5, both.capacity))
    with pytest.raises(TokenizerMismatchError):
        a.merge(BloomFilter(4, both.capacity, tokenizer_fingerprint="x"))


@pytest.mark.parametrize("mode", ["mmap", "ram"])
def test_a_saved_filter_is_the_same_filter(tmp_path, mode):
    ids, bloom = random_filter(n=5, size=3_000)
    bloom.tokenizer_fingerprint = "abc"
    bloom.save(tmp_path / "f.bloom")
    again = BloomFilter.load(tmp_path / "f.bloom", mode=mode)
    for name in ("n", "capacity", "fp_rate", "probes", "count", "tokenizer_fingerprint"):
        assert getattr(again, name) == getattr(bloom, name)
    assert np.array_equal(again.bits, bloom.bits)
    queries = np.random.default_rng(1).integers(0, 50_000, (5_000, 5))
    assert np.array_equal(again.contains(queries), bloom.contains(queries))
    if mode == "mmap":
        with pytest.raises(InputError, match="memory-mapped"):
            again.add_documents([ids])
        with pytest.raises(InputError, match="memory-mapped"):
            again.merge(BloomFilter(5, bloom.capacity, tokenizer_fingerprint="abc"))
    else:
        again.add_documents([[1, 2, 3, 4, 5]])
        assert again.contains([[1, 2, 3, 4, 5]]).all()


def test_another_process_reads_the_same_hash(tmp_path):
    """The hash may depend on nothing but the ids: not on the process, its hash seed or its thread count."""
    _, bloom = random_filter(n=3, size=2_000)
    bloom.save(tmp_path / "f.bloom")
    code = "from palimpsest.corpus.bloom import BloomFilter; import numpy as np; f = BloomFilter.load('f.bloom');"
    code += "print(f.contains(np.random.default_rng(0).integers(0, 50_000, (3_000, 3))).sum(), f.contains_next([[1, 2]], [[3]])[0, 0])"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    queries = np.random.default_rng(0).integers(0, 50_000, (3_000, 3))
    assert shown.split() == [str(bloom.contains(queries).sum()), str(bloom.contains_next([[1, 2]], [[3]])[0, 0])]


def _rewrite_header(path, **changes):
    import hashlib

    data = path.read_bytes()
    length = int.from_bytes(data[8:16], "little")
    text = json.dumps({**json.loads(data[48 : 48 + length]), **changes}, sort_keys=True).encode()
    head = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    path.write_bytes(head + bytes(-len(head) % 4096) + data[4096:])


def test_a_flipped_byte_anywhere_is_found(tmp_path):
    path = tmp_path / "f.bloom"
    random_filter(n=5, size=3_000)[1].save(path)
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[8:16], "little")
    for position in (0, 9, 20, 60, 47 + length, 4096, 5000, len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(IndexCorruptError):
            BloomFilter.load(path)
    for size in (0, 10, 48, 100, 4096, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(IndexCorruptError):
            BloomFilter.load(path)
    path.write_bytes(data + b"x")
    with pytest.raises(IndexCorruptError, match="size"):
        BloomFilter.load(path)


def test_unverified_loading_skips_only_the_bits(tmp_path):
    path = tmp_path / "f.bloom"
    random_filter(n=5, size=3_000)[1].save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    BloomFilter.load(path, verify=False)
    with pytest.raises(IndexCorruptError, match="hash"):
        BloomFilter.load(path)


def test_another_version_is_named(tmp_path):
    path = tmp_path / "f.bloom"
    random_filter(n=5, size=3_000)[1].save(path)
    _rewrite_header(path, version=2)
    with pytest.raises(IndexVersionError, match="format version 2, this program reads 1"):
        BloomFilter.load(path)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="no Bloom filter"):
        BloomFilter.load(tmp_path / "none.bloom")
    random_filter(n=5, size=3_000)[1].save(tmp_path / "f.bloom")
    with pytest.raises(InputError, match="mode"):
        BloomFilter.load(tmp_path / "f.bloom", mode="disk")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        random_filter(n=5, size=3_000)[1].save(tmp_path / "file" / "f.bloom")


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 10, 0.01),
        (-1, 10, 0.01),
        (2.5, 10, 0.01),
        (True, 10, 0.01),
        (3, 0, 0.01),
        (3, 10, 0.0),
        (3, 10, 0.6),
        (3, 10, float("nan")),
        (3, 10, 1e-30),
    ],
)
def test_bad_sizes(arguments):
    with pytest.raises(InputError):
        BloomFilter(*arguments)


@pytest.mark.parametrize("document", [[[1, 2], [3, 4]], [0.5, 1.0], ["a", "b"], [-1, 2, 3], [2**40, 1, 2]])
def test_bad_documents(document):
    with pytest.raises(InputError, match="document"):
        BloomFilter(2, 10).add_documents([document])


def test_bad_questions():
    bloom = BloomFilter.from_documents([[1, 2, 3, 4]], 3)
    for bad in ([[1, 2]], [1, 2, 3], [[1.0, 2.0, 3.0]], [[-1, 2, 3]]):
        with pytest.raises(InputError):
            bloom.contains(bad)
    with pytest.raises(InputError, match="one row of candidates"):
        bloom.contains_next([[1, 2], [2, 3]], [[3]])
    with pytest.raises(InputError):
        bloom.next_tokens_batch([[1, 2, 3]], 10)
    assert bloom.contains(np.zeros((0, 3), dtype=np.int64)).tolist() == []
    assert bloom.contains_next([], []).shape == (0, 0)


def test_more_than_the_capacity_is_refused():
    bloom = BloomFilter(2, 5)
    with pytest.raises(InputError, match="sized for 5 n-grams and now holds"):
        bloom.add_documents([np.arange(100)])
