"""Readers: what they yield, in which order, and how they refuse what cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard

from palimpsest.corpus import CorpusIndex, Document, read_documents
from palimpsest.corpus.documents import as_documents
from palimpsest.errors import CorpusError, InputError

RECORDS = [
    {"id": "a", "text": "one\r\ntwo", "year": 1611},
    {"text": "κόσμος", "tags": ["x", "y"]},
    {"id": 7, "text": ""},
]
EXPECTED = [("a", "one\r\ntwo", {"year": 1611}), ("{name}:2", "κόσμος", {"tags": ["x", "y"]}), ("7", "", {})]


def jsonl(records: list[dict], ascii: bool = True) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=ascii) + "\n" for record in records).encode()


def listed(path: Path) -> list[tuple[str, str | None, dict]]:
    return [(doc.id, doc.text, doc.metadata) for doc in read_documents(path)]


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst"])
@pytest.mark.parametrize("ascii", [True, False])
def test_json_lines_in_every_packing(tmp_path: Path, name: str, ascii: bool) -> None:
    data = jsonl(RECORDS, ascii)
    pack = {"c.jsonl": bytes, "c.jsonl.gz": gzip.compress, "c.jsonl.zst": zstandard.compress}[name]
    (tmp_path / name).write_bytes(pack(data))
    assert listed(tmp_path / name) == [(i.format(name=name), text, metadata) for i, text, metadata in EXPECTED]


def test_archives_of_several_members_and_lines_longer_than_a_block(tmp_path: Path) -> None:
    long = "wisdom " * 400_000  # 2.8 MB: more than two blocks
    parts = [jsonl([{"text": long}]), jsonl([{"text": "b"}, {"text": "c"}]).rstrip(b"\n")]
    (tmp_path / "c.jsonl.gz").write_bytes(b"".join(gzip.compress(part) for part in parts))
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(zstandard.compress(part) for part in parts))
    for name in ("c.jsonl.gz", "c.jsonl.zst"):
        assert [doc.text for doc in read_documents(tmp_path / name)] == [long, "b", "c"]


def test_parquet_in_row_order(tmp_path: Path) -> None:
    n = 20_000  # more than two slices
    frame = pl.DataFrame({"text": [f"text {i}" for i in range(n)], "id": [f"d{i}" for i in range(n)], "score": np.arange(n) / 2})
    frame.write_parquet(tmp_path / "c.parquet", row_group_size=3000)
    documents = list(read_documents(tmp_path / "c.parquet"))
    assert [doc.id for doc in documents] == frame["id"].to_list()
    assert documents[12_345].text == "text 12345"
    assert documents[12_345].metadata == {"score": 6172.5}


def test_a_folder_is_read_recursively_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name, text in {"b.txt": "B", "a/z.md": "Z", "a/b/c.txt": "C", ".hidden.txt": "H", ".git/x.txt": "X", "notes.pdf": "P"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "a/y.jsonl").write_bytes(jsonl([{"text": "Y"}]))
    assert [(i, text) for i, text, _ in listed(tmp_path)] == [("a/b/c.txt", "C"), ("a/y.jsonl:1", "Y"), ("a/z.md", "Z"), ("b.txt", "B")]


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfBeginning")
    assert listed(tmp_path / "a.txt") == [("a.txt", "Beginning", {})]


def test_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": "b"}')
    assert [i for i, _, _ in listed(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:3"]


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(CorpusError) as caught:
        list(read_documents(path))
    for part in (path.name, *parts):
        assert part in str(caught.value)
    assert caught.value.remedy


def test_undecodable_bytes_name_file_and_offset(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("né".encode() * 1000 + b"\xff!")
    refused(tmp_path / "a.txt", "offset 3000", "0xff", "UTF-8")
    first = jsonl([{"text": "fine"}])
    (tmp_path / "b.jsonl").write_bytes(first + b'{"text": "\xe9"}\n')
    refused(tmp_path / "b.jsonl", f"offset {len(first) + 10}", "0xe9")


@pytest.mark.parametrize("keep", [0.3, 0.9, -5])
def test_truncated_archives_are_refused(tmp_path: Path, keep: float) -> None:
    rng = np.random.default_rng(0)
    data = jsonl([{"text": " ".join(map(str, rng.integers(0, 1 << 30, 2000)))} for _ in range(20)])
    for name, packed in {"c.jsonl.gz": gzip.compress(data), "c.jsonl.zst": zstandard.compress(data)}.items():
        cut = int(len(packed) * keep) if keep > 0 else int(keep)
        (tmp_path / name).write_bytes(packed[:cut])
        refused(tmp_path / name, "truncated")


def test_what_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    for name, kind in {"a.jsonl.gz": "gzip", "a.jsonl.zst": "Zstandard"}.items():
        (tmp_path / name).write_bytes(b'{"text": "plain"}\n' * 10)
        refused(tmp_path / name, kind)


def test_a_flipped_byte_in_an_archive_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(jsonl([{"text": "abc " * 1000}])))
    packed[-6] ^= 1  # in the checksum
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    refused(tmp_path / "a.jsonl.gz", "damaged")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"id": 1}', "fields ['id']"),
        (b'{"text": 5}', "is a int"),
        (b'["text"]', "is a list"),
        (b'{"text": "cut', "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_without_text_names_the_line(tmp_path: Path, line: bytes, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    refused(tmp_path / "a.jsonl", "line 2", says)


def test_few_long_texts_of_a_parquet_file_are_held_at_once(tmp_path: Path, monkeypatch) -> None:
    texts = ["a" * (1 + number % 5 * 400) for number in range(300)]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "a.parquet", row_group_size=70)
    monkeypatch.setattr("palimpsest.corpus.documents._ROWS_SIZE", 4000)
    asked = []
    scanned = pl.LazyFrame.slice
    monkeypatch.setattr(pl.LazyFrame, "slice", lambda frame, row, rows: (asked.append((row, rows)), scanned(frame, row, rows))[1])
    assert [d.text for d in read_documents(tmp_path / "a.parquet")] == texts
    assert asked[0] == (0, 64)
    assert max(sum(map(len, texts[row : row + rows])) for row, rows in asked[1:]) < 3 * 4000


def test_parquet_without_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"body": ["a"], "n": [1]}).write_parquet(path)
    refused(path, "text", "missing", "body, n")
    pl.DataFrame({"text": [1]}).write_parquet(path)
    refused(path, "Int64")
    pl.DataFrame({"text": ["a", None]}).write_parquet(path)
    refused(path, "row 2")
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "Parquet")


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no corpus")
    (tmp_path / "a.pdf").write_text("x")
    refused(tmp_path / "a.pdf", ".jsonl.zst")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no corpus file")
    CorpusIndex.build([[1, 2]], None, tmp_path / "index")
    refused(tmp_path / "index", "is an index")


def test_what_counts_as_documents(tmp_path: Path) -> None:
    given = [Document("x", text="t"), "plain", [1, 2], np.array([3], np.uint16), [], (4,)]
    got = list(as_documents(given))
    assert [doc.id for doc in got] == ["x", "1", "2", "3", "4", "5"]
    assert [doc.text for doc in got] == ["t", "plain", None, None, None, None]
    assert [doc.ids.tolist() for doc in got[2:] if doc.ids is not None] == [[1, 2], [3], [], [4]]
    (tmp_path / "a.txt").write_text("words")
    assert [doc.text for doc in as_documents(str(tmp_path / "a.txt"))] == ["words"]
    for wrong in ([[1.5]], [[[1, 2]]], [None], [["a"]], [[[1], [2, 3]]], [b"bytes"], 5):
        with pytest.raises(InputError):
            list(as_documents(wrong))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="neither"):
        Document("empty")
    with pytest.raises(InputError, match="float64"):
        Document("floats", ids=np.array([1.0]))
    with pytest.raises(InputError, match="bytes"):
        Document("bytes", text=b"abc")  # type: ignore[arg-type]
