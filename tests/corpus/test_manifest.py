"""Damage of every kind is noticed at the next opening and named; an untouched index is not hashed again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from palimpsest.corpus import CorpusIndex, Document
from palimpsest.corpus import manifest as layout
from palimpsest.errors import CorpusError, IndexCorruptError, IndexVersionError, PalimpsestError
from palimpsest.files import sha256_json
from palimpsest.tokenizer import Tokenizer


@pytest.fixture
def index(tmp_path: Path) -> CorpusIndex:
    import tokenizers

    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    rng = np.random.default_rng(0)
    docs = [Document(f"d{i}", ids=rng.integers(0, 2, 30)) for i in range(6)]
    built = CorpusIndex.build(docs, tokenizer, tmp_path / "index", shards=2)
    time.sleep(0.05)  # older than a tick of the file system's clock
    CorpusIndex.open(built.path)
    return built


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def names(index: CorpusIndex) -> list[str]:
    return sorted(index.manifest["files"])


def test_a_large_index_is_noted_when_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are then older than a tick of the clock; a small one is hashed again sooner than that."""
    monkeypatch.setattr(layout, "_SOON", 0)
    built = CorpusIndex.build([[1, 2, 3]], None, tmp_path / "index")
    monkeypatch.setattr(layout, "verify_files", lambda *given: pytest.fail("hashed again"))
    assert CorpusIndex.open(built.path).n_documents == 1


def test_the_manifest_lists_every_file(index: CorpusIndex) -> None:
    assert sorted(path.name for path in index.path.iterdir()) == sorted([*names(index), "manifest.json"])
    assert len(names(index)) == 13


def test_a_flipped_byte_in_any_file_is_found_and_named(index: CorpusIndex) -> None:
    rng = np.random.default_rng(1)
    for name in names(index):
        path = index.path / name
        offset = int(rng.integers(path.stat().st_size))
        flip(path, offset)
        with pytest.raises(IndexCorruptError, match=name) as caught:
            CorpusIndex.open(index.path)
        assert "build it again" in caught.value.remedy
        with pytest.raises(IndexCorruptError, match=name):
            index.verify()
        assert CorpusIndex.open(index.path, verify=False).n_documents == 6  # asked for no check of the content
        flip(path, offset)
        CorpusIndex.open(index.path)


def test_a_flipped_byte_behind_a_restored_time_stamp_is_found(index: CorpusIndex) -> None:
    path = index.path / "sa.1"
    before = path.stat()
    flip(path, 0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IndexCorruptError, match=r"sa\.1"):
        CorpusIndex.open(index.path)


def test_a_flip_while_the_other_files_are_hashed_is_found(index: CorpusIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = layout.sha256_file

    def slow(path: Path) -> str:
        found = digest(path)
        if path.name == "sa.1":
            flip(path, 0)
            time.sleep(0.05)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(layout, "sha256_file", slow)
        CorpusIndex.open(index.path, verify=True)
    with pytest.raises(IndexCorruptError, match=r"sa\.1"):
        CorpusIndex.open(index.path)


def test_a_flip_right_after_the_build_is_found(tmp_path: Path) -> None:
    for i in range(5):
        built = CorpusIndex.build([[1, 2, 3]], None, tmp_path / str(i))
        flip(built.path / "buckets.0", 3)
        with pytest.raises(IndexCorruptError, match=r"buckets\.0"):
            CorpusIndex.open(built.path)


def test_any_flipped_byte_of_the_manifest_is_found(index: CorpusIndex) -> None:
    path = index.path / "manifest.json"
    for offset in range(path.stat().st_size):
        flip(path, offset)
        with pytest.raises((IndexCorruptError, IndexVersionError)):
            CorpusIndex.open(index.path, verify=False)
        flip(path, offset)
    CorpusIndex.open(index.path)


def test_cut_and_missing_files_are_found_and_named(index: CorpusIndex) -> None:
    for name in names(index):
        path = index.path / name
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        with pytest.raises(IndexCorruptError, match=f"{name}.*bytes instead of {len(data)}"):
            CorpusIndex.open(index.path, verify=False)
        path.unlink()
        with pytest.raises(IndexCorruptError, match=f"{name}.*missing"):
            CorpusIndex.open(index.path)
        path.write_bytes(data)
    CorpusIndex.open(index.path)
    (index.path / "manifest.json").unlink()
    with pytest.raises(IndexCorruptError, match=r"manifest\.json.*missing"):
        CorpusIndex.open(index.path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": "palimpsest-index"}', "\x80"])
def test_what_is_no_manifest(index: CorpusIndex, text: str) -> None:
    (index.path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(IndexCorruptError, match=r"manifest\.json"):
        CorpusIndex.open(index.path)


def test_another_version_is_refused(index: CorpusIndex) -> None:
    path = index.path / "manifest.json"
    body = json.loads(path.read_text())
    del body["checksum"]
    body["version"] = layout.VERSION + 1
    path.write_text(json.dumps({**body, "checksum": sha256_json(body)}))
    with pytest.raises(IndexVersionError, match=f"version {layout.VERSION + 1}") as caught:
        CorpusIndex.open(index.path)
    assert "again" in caught.value.remedy


def test_no_index_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CorpusError, match="no index") as caught:
            CorpusIndex.open(path)
        assert not isinstance(caught.value, IndexCorruptError)
        assert isinstance(caught.value, PalimpsestError)


def test_an_untouched_index_is_hashed_once(index: CorpusIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = layout.sha256_file
    monkeypatch.setattr(layout, "sha256_file", lambda path: hashed.append(path.name) or digest(path))
    CorpusIndex.open(index.path)
    assert hashed == []
    CorpusIndex.open(index.path, verify=True)
    assert sorted(hashed) == names(index)
    hashed.clear()
    os.utime(index.path / "tokens.0")
    time.sleep(0.05)
    CorpusIndex.open(index.path)
    assert sorted(hashed) == names(index)
    hashed.clear()
    CorpusIndex.open(index.path)
    assert hashed == []
    monkeypatch.setenv("PALIMPSEST_CACHE", str(index.path / "tokens.0"))  # no place for notes: every opening hashes
    CorpusIndex.open(index.path)
    CorpusIndex.open(index.path)
    assert len(hashed) == 2 * len(names(index))


def test_a_moved_index_is_whole(index: CorpusIndex, tmp_path: Path) -> None:
    index.path.rename(tmp_path / "elsewhere")
    assert CorpusIndex.open(tmp_path / "elsewhere").fingerprint == index.fingerprint
