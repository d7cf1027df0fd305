"""`palimpsest index delete`, `append` and `compact` on a small corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.corpus import CorpusIndex

runner = CliRunner()


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["index", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture
def index(tmp_path: Path, tiny_tokenizer, monkeypatch) -> Path:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for name, text in {"a": "the quick brown fox", "b": "the lazy dog", "c": "five boxing wizards"}.items():
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    CorpusIndex.build(tmp_path / "texts", tiny_tokenizer, tmp_path / "index")
    return tmp_path / "index"


def test_delete_append_and_compact(index: Path, tmp_path: Path, tiny_tokenizer):
    before = CorpusIndex.open(index)
    left = json.loads(run("delete", index, "a.txt", "--number", 2, "--json").stdout)
    assert left["documents"] == 1
    assert left["tokens"] == before.document_ids(1).size
    assert run("count", index, "fox").stdout == "0\n"

    (tmp_path / "more.txt").write_text("the fox again")
    more = json.loads(run("append", index, tmp_path / "more.txt", "--json").stdout)
    assert (more["documents"], more["shards"]) == (2, 2)
    assert run("count", index, "fox").stdout != "0\n"

    elsewhere = json.loads(run("compact", index, "--out", tmp_path / "other", "--json").stdout)
    assert (elsewhere["shards"], elsewhere["fingerprint"]) == (1, more["fingerprint"])
    assert "2 documents" in run("compact", index).stdout
    assert b"a.txt" not in (index / "meta.0").read_bytes()
    expected = CorpusIndex.build(["the lazy dog", "the fox again"], tiny_tokenizer, tmp_path / "expected")
    assert CorpusIndex.open(index, verify=True).fingerprint == expected.fingerprint


def test_what_is_wrong_is_said(index: Path, tmp_path: Path):
    assert "No document is given" in run("delete", index, code=2).output
    assert "No document is named 'z.txt'" in run("delete", index, "z.txt", code=2).output
    assert "There is no document 9" in run("delete", index, "--number", 9, code=2).output
    assert "There is no corpus" in run("append", index, tmp_path / "nothing", code=2).stderr
    assert CorpusIndex.open(index, verify=True).n_documents == 3
