"""infini-gram's folder: what is written is what the package reads, and what is read is what was written."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from palimpsest.corpus import CorpusIndex, Document, InfiniGramFolder
from palimpsest.errors import CorpusError, IndexCorruptError, InputError, StorageError


def corpus(top: int) -> list[Document]:
    rng = np.random.default_rng(0)
    ids = np.array([0, 1, 255, 256, 257, 511, 4096, 65000])
    ids = ids[ids <= top]
    rows = [rng.choice(ids, n) for n in (40, 1, 0, 300, 7)] + [np.tile([0, 1, 0], 20)]
    return [Document(f"doc-{i}", ids=row, metadata={"n": i}) for i, row in enumerate(rows)]


@pytest.mark.parametrize(("dtype", "top"), [("u8", 1), ("u16", 65000), ("u32", 65000)])
@pytest.mark.parametrize("shards", [1, 3])
def test_there_and_back(tmp_path, dtype, top, shards):
    index = CorpusIndex.build(corpus(top), None, tmp_path / "ours", token_dtype=dtype, shards=shards)
    index.export_infini_gram(tmp_path / "theirs")
    folder = InfiniGramFolder(tmp_path / "theirs")
    assert (folder.token_dtype, folder.shards) == (dtype, shards)
    back = CorpusIndex.build(folder, None, tmp_path / "back", token_dtype=dtype, shards=shards)
    assert back.fingerprint == index.fingerprint
    assert [back.document(i) for i in range(back.n_documents)] == [index.document(i) for i in range(index.n_documents)]


def test_the_table_is_in_the_order_of_the_bytes(tmp_path):
    index = CorpusIndex.build(corpus(65000), None, tmp_path / "ours", token_dtype="u16")
    index.export_infini_gram(tmp_path / "theirs")
    raw = (tmp_path / "theirs" / "tokenized.0").read_bytes()
    width = (tmp_path / "theirs" / "table.0").stat().st_size // (len(raw) // 2)
    table = np.fromfile(tmp_path / "theirs" / "table.0", np.uint8).reshape(-1, width)
    pointers = [int.from_bytes(row.tobytes(), "little") for row in table]
    assert sorted(pointers) == list(range(0, len(raw), 2))
    assert all(raw[a:] < raw[b:] for a, b in pairwise(pointers))


def test_infini_gram_counts_the_same(tmp_path):
    engine = pytest.importorskip("infini_gram.engine")
    documents = [*corpus(65000), Document("last", ids=np.zeros(0, np.int64))]  # see benchmarks/corpus_peer.py: an empty one stands last
    index = CorpusIndex.build(documents, None, tmp_path / "ours", token_dtype="u16", shards=2)
    index.export_infini_gram(tmp_path / "theirs")
    off = {"ds_prefetch_depth": 0, "sa_prefetch_depth": 0, "od_prefetch_depth": 0}
    theirs = engine.InfiniGramEngine(str(tmp_path / "theirs"), eos_token_id=65500, vocab_size=65535, token_dtype="u16", **off)
    rng = np.random.default_rng(1)
    for _ in range(300):
        row = documents[int(rng.choice([0, 3, 5]))].ids
        start = int(rng.integers(0, len(row) - 4))
        query = row[start : start + int(rng.integers(1, 5))].tolist()
        assert theirs.count(query)["count"] == index.count(query) > 0
    assert theirs.count([65000, 65000, 65000, 65000, 65000, 65000])["count"] == index.count([65000] * 6)


def test_what_is_damaged_is_named(tmp_path):
    index = CorpusIndex.build(corpus(65000), None, tmp_path / "ours", token_dtype="u16")

    def damaged(name: str, change) -> InfiniGramFolder:
        folder = tmp_path / f"theirs-{name}-{len(list(tmp_path.iterdir()))}"
        index.export_infini_gram(folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return InfiniGramFolder(folder, "u16")

    changes = [
        ("tokenized.0", lambda b: b[:-1]),
        ("tokenized.0", lambda b: b[2:]),
        ("tokenized.0", lambda b: b""),
        ("offset.0", lambda b: b[:-3]),
        ("offset.0", lambda b: b[:8] + b[:8] + b[16:]),
        ("metadata.0", lambda b: b[:-10]),
        ("metadata.0", lambda b: b + b"{}\n"),
        ("metadata.0", lambda b: b[: b.index(b"\n") + 1]),
    ]
    for name, change in changes:
        with pytest.raises(IndexCorruptError, match=name.split(".")[0]):
            list(damaged(name, change))
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "tokenized.0").write_bytes(b"\xff\xff\x01\x00")
    (tmp_path / "short" / "table.0").write_bytes(bytes(3))
    with pytest.raises(IndexCorruptError, match="table"):
        InfiniGramFolder(tmp_path / "short")


@pytest.mark.parametrize("lost", ["tokenized.0", "tokenized.1", "tokenized.2", "offset.1"])
def test_a_shard_that_is_missing_is_an_error_and_not_a_smaller_corpus(tmp_path, lost):
    index = CorpusIndex.build([[1, 2, 3]] * 6, None, tmp_path / "ours", token_dtype="u16", shards=3)
    index.export_infini_gram(tmp_path / "theirs")
    (tmp_path / "theirs" / lost).unlink()
    with pytest.raises((IndexCorruptError, CorpusError), match=rf"{lost}"):
        list(InfiniGramFolder(tmp_path / "theirs", "u16"))


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_shard_that_is_cut_within_a_document_is_an_error(tmp_path, shard):
    index = CorpusIndex.build([[1, 2, 3]] * 6, None, tmp_path / "ours", token_dtype="u16", shards=3)
    index.export_infini_gram(tmp_path / "theirs")
    tokens = tmp_path / "theirs" / f"tokenized.{shard}"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(IndexCorruptError, match=rf"table\.{shard}"):
        list(InfiniGramFolder(tmp_path / "theirs", "u16"))


def test_metadata_that_is_not_utf8_is_named_and_a_document_without_a_path_has_its_place_for_a_name(tmp_path):
    index = CorpusIndex.build([Document("a", ids=[1]), Document("b", ids=[2])], None, tmp_path / "ours")
    index.export_infini_gram(tmp_path / "theirs")
    metadata = tmp_path / "theirs" / "metadata.0"
    whole = metadata.read_bytes()
    metadata.write_bytes(whole.replace(b'"b"', b'"\xe9"'))
    with pytest.raises(IndexCorruptError, match=r"metadata\.0, line 2"):
        list(InfiniGramFolder(tmp_path / "theirs"))
    metadata.write_bytes(whole.replace(b'"b"', b"null"))
    assert [document.id for document in InfiniGramFolder(tmp_path / "theirs")] == ["a", "tokenized.0:1"]


def test_a_name_that_is_not_unicode_goes_out_and_comes_back(tmp_path):
    index = CorpusIndex.build([Document("\udce9.txt", ids=[1]), Document("é", ids=[2])], None, tmp_path / "ours")
    index.export_infini_gram(tmp_path / "theirs")
    assert [document.id for document in InfiniGramFolder(tmp_path / "theirs")] == ["\udce9.txt", "é"]
    assert '"é"' in (tmp_path / "theirs" / "metadata.0").read_text("utf-8")


def test_what_is_no_such_folder(tmp_path):
    with pytest.raises(CorpusError, match="no infini-gram index"):
        InfiniGramFolder(tmp_path)
    (tmp_path / "tokenized.0").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="token_dtype"):
        InfiniGramFolder(tmp_path)
    with pytest.raises(InputError, match="u64"):
        InfiniGramFolder(tmp_path, "u64")
    index = CorpusIndex.build([[1, 2]], None, tmp_path / "index")
    with pytest.raises(StorageError, match="there already"):
        index.export_infini_gram(tmp_path)
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["n_tokens"] == 2
