"""Files are whole or absent: atomic writes, remedies for refusals, canonical JSON, hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import files
from palimpsest.errors import StorageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def test_a_write_makes_its_folders_and_leaves_no_temporary_file(tmp_path: Path):
    target = tmp_path / "a" / "b" / "c.txt"
    files.write_text(target, "palimpsest ✎\n")
    assert target.read_bytes() == "palimpsest ✎\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["c.txt"]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def half() -> None:
        with files.atomic_path(target) as temporary:
            temporary.write_text("new, but only ha")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys\nfrom palimpsest.files import atomic_path\n"
        f"with atomic_path({str(target)!r}) as temporary:\n"
        "    temporary.write_text('new, but only ha')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_a_new_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path):
    (tmp_path / "ordinary").write_text("")
    files.write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_refusal_of_the_system_becomes_a_storage_error_with_a_remedy(tmp_path: Path, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError) as caught:
        files.write_text(tmp_path / "x.txt", "text")
    assert str(tmp_path / "x.txt") in caught.value.problem
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_no_refusal_passes_through():
    def read() -> None:
        with files.storage_errors("x"):
            raise FileNotFoundError(errno.ENOENT, "No such file")

    with pytest.raises(FileNotFoundError):
        read()


def test_a_file_where_a_folder_is_needed_and_the_reverse(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "file" / "x.txt", tmp_path / "file" / "deep" / "x.txt", tmp_path / "folder"):
        with pytest.raises(StorageError, match="choose another path"):
            files.write_text(target, "text")


@given(JSON)
def test_canonical_json_reads_back_and_ignores_the_order_of_keys(value):
    text = files.canonical_json(value)
    assert json.loads(text) == value
    assert files.canonical_json(json.loads(text)) == text


def test_equal_values_have_equal_hashes_and_others_not():
    assert files.sha256_json({"a": 1, "b": [2]}) == files.sha256_json({"b": [2], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [-float("inf")]}])
def test_json_has_no_word_for_nan(tmp_path: Path, value):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", value)
    with pytest.raises(ValueError):
        files.canonical_json(value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_the_hash_of_a_file_does_not_depend_on_the_chunk(tmp_path: Path, size):
    data = bytes(range(256))[:size]
    (tmp_path / "x").write_bytes(data)
    assert files.sha256_file(tmp_path / "x", chunk=8) == hashlib.sha256(data).hexdigest()


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "own"))
    assert files.cache_dir("models", "m") == tmp_path / "own" / "models" / "m"
    monkeypatch.delenv("PALIMPSEST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_dir() == tmp_path / "xdg" / "palimpsest"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_dir() == Path.home() / ".cache" / "palimpsest"
    assert not (tmp_path / "own").exists()


def test_space_is_asked_of_the_disk_that_will_hold_the_folder(tmp_path: Path):
    files.require_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(StorageError, match="MB free"):
        files.require_space(tmp_path / "not" / "there" / "yet", 1 << 60)
