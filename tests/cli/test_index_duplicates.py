"""`palimpsest index duplicates`: the numbers of the library, and a file of what to drop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.corpus import CorpusIndex, Document

runner = CliRunner()
PASSAGE = list(range(60))
DOCS = {"a": [70, *PASSAGE, 71], "b": [72, *PASSAGE, 73], "ç": [*PASSAGE[5:59], 74, 75], "d": [76], "e": []}


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["index", "duplicates", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    CorpusIndex.build([Document(name, ids=ids) for name, ids in DOCS.items()], None, tmp_path / "index", shards=2)
    return tmp_path / "index"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_repeated_passages(index: Path, tmp_path: Path):
    value = json.loads(run(index, "--json", "--out", tmp_path / "drop.jsonl").stdout)
    tokens = sum(map(len, DOCS.values()))
    assert value == {"min_len": 50, "ranges": 2, "documents": 2, "tokens": tokens, "drop_tokens": 114, "share": 114 / tokens}
    assert rows(tmp_path / "drop.jsonl") == [
        {"document": "b", "index": 1, "start": 1, "end": 61},
        {"document": "ç", "index": 2, "start": 0, "end": 54},
    ]
    assert json.loads(run(index, "--min-len", 55, "--json").stdout)["drop_tokens"] == 60
    assert f"114 of {tokens} tokens" in run(index).stdout


def test_near_duplicates(index: Path, tmp_path: Path):
    value = json.loads(run(index, "--near", 0.8, "--json", "--out", tmp_path / "drop.jsonl").stdout)
    opened = CorpusIndex.open(index)
    found = opened.near_duplicates(0.8)
    assert [cluster.tolist() for cluster in found.clusters] == [[0, 1, 2]]
    assert value == {
        "threshold": 0.8,
        "clusters": 1,
        "documents": 5,
        "drop_documents": 2,
        "share": 2 / 5,
        "candidates": found.candidates,
        "recall": found.recall,
    }
    assert rows(tmp_path / "drop.jsonl") == [
        {"document": "b", "index": 1, "kept": "a", "kept_index": 0},
        {"document": "ç", "index": 2, "kept": "a", "kept_index": 0},
    ]
    assert "2 of 5 documents (40.00%)" in run(index, "--near", 0.8).stdout


def test_nothing_to_drop_writes_an_empty_file(index: Path, tmp_path: Path):
    run(index, "--min-len", 1000, "--out", tmp_path / "drop.jsonl")
    assert (tmp_path / "drop.jsonl").read_text() == ""


def test_wrong_options(index: Path, tmp_path: Path):
    assert "Give one of them" in run(index, "--near", 0.8, "--min-len", 50, code=2).output
    assert "no threshold" in run(index, "--near", 1.5, code=2).output
    assert "min_len of at least 1" in run(index, "--min-len", 0, code=2).output
    assert "There is no index" in run(tmp_path / "nothing", code=2).output


def test_a_name_that_is_not_unicode_is_written_as_json_escapes_it(tmp_path: Path):
    CorpusIndex.build([Document("ç", ids=PASSAGE), Document("\udce9", ids=PASSAGE)], None, tmp_path / "index")
    run(tmp_path / "index", "--out", tmp_path / "drop.jsonl")
    assert [row["document"] for row in rows(tmp_path / "drop.jsonl")] == ["\udce9"]
