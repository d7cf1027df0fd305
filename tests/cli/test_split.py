"""`palimpsest split`: files, report, and what goes wrong."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app

runner = CliRunner()
RECORDS = [
    {
        "text": f"Book {i} of author {i // 4}.",
        "author": f"author {i // 4}",
        "relation": "wrote" if i % 2 else "sold",
        "facts": [[i, "x"]],
        "no": i,
    }
    for i in range(200)
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + "\n")
    return path


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["split", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer


def parts_of(folder) -> dict[str, list[dict]]:
    names = [name for name in ("train", "dev", "test") if (folder / f"{name}.jsonl").exists()]
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in names}


def test_records_are_dealt_out_whole(file, tmp_path):
    value = json.loads(run(file, "--key", "author", "--cover", "relation", "--out", tmp_path / "out", "--json").stdout)
    parts = parts_of(tmp_path / "out")
    assert {name: len(records) for name, records in parts.items()} == value["parts"] == {"train": 160, "dev": 20, "test": 20}
    assert sorted(record["no"] for records in parts.values() for record in records) == list(range(200))
    assert [record["no"] for record in parts["train"]] == sorted(record["no"] for record in parts["train"])
    authors = {name: {record["author"] for record in records} for name, records in parts.items()}
    assert not authors["train"] & authors["test"]
    assert not authors["train"] & authors["dev"]
    assert value["groups"] == 50
    assert value["uncovered"] == []
    assert {row["what"] for row in value["overlap"]} == {"keys", "cover", "targets", "normalised targets", "5-grams"}
    assert json.loads((tmp_path / "out" / "split.json").read_text()) == value
    again = json.loads(run(file, "--key", "author", "--cover", "relation", "--out", tmp_path / "again", "--json").stdout)
    assert again == value
    assert parts_of(tmp_path / "again") == parts
    other = run(file, "--key", "author", "--out", tmp_path / "other", "--seed", 1, "--json")
    assert json.loads(other.stdout)["parts"] == value["parts"]
    assert parts_of(tmp_path / "other") != parts


def test_two_parts_several_keys_and_the_table(file, tmp_path):
    shown = run(file, "--key", "author", "--key", "facts", "--ratios", "3,1", "--out", tmp_path / "out", "--target", "relation").stdout
    assert list(parts_of(tmp_path / "out")) == ["train", "test"]
    assert "76.0%" in shown  # groups of four
    assert "keys" in shown
    value = json.loads((tmp_path / "out" / "split.json").read_text())
    assert value["target"] == ["relation"]
    assert [row["share"] for row in value["overlap"] if row["what"] == "targets"] == [1.0]
    stale = run(file, "--key", "author", "--out", tmp_path / "out")
    assert list(parts_of(tmp_path / "out")) == ["train", "dev", "test"], stale.output
    answer = run(file, "--key", "author", "--ratios", "3,1", "--out", tmp_path / "out", "--json", code=2)
    assert "dev.jsonl" in json.loads(answer.stdout)["error"]["problem"]


def test_an_impossible_split_names_the_key_and_cutting_it_is_reported(tmp_path):
    path = tmp_path / "hub.jsonl"
    path.write_text("".join(json.dumps({"tags": ["all", f"own {i}"], "meta": {"b": 1, "a": i}}) + "\n" for i in range(50)))
    error = json.loads(run(path, "--key", "tags", "--out", tmp_path / "out", "--json", code=2).stdout)["error"]
    assert error["type"] == "SplitImpossible"
    assert "'all' (50 examples)" in error["problem"]
    assert not (tmp_path / "out").exists()
    value = json.loads(run(path, "--key", "tags", "--cut-above", 0.5, "--out", tmp_path / "out", "--json").stdout)
    assert value["cut"] == {"all": 50}
    assert value["target"] == []
    assert json.loads(run(path, "--key", "meta", "--out", tmp_path / "meta", "--json").stdout)["groups"] == 50


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", ["--key", "a"], "0 examples"),
        ('{"a": 1}\nnope\n', ["--key", "a"], "line 2 is not JSON"),
        ('{"a": 1}\n[2]\n', ["--key", "a"], "line 2 is a list"),
        ('{"a": 1}\n{"b": 2}\n', ["--key", "a"], "Record 2 of .* no field 'a', but b"),
        ('{"a": 1}\n{"a": 2}\n', ["--key", "a", "--cover", "c"], "no field 'c'"),
        ('{"a": 1}\n{"a": 2}\n', ["--key", "a", "--target", "t"], "no field 't'"),
        ('{"a": 1}\n{"a": 2}\n', ["--key", "a", "--ratios", "80,x"], "--ratios is '80,x'"),
        ('{"a": 1}\n{"a": 2}\n', ["--key", "a", "--ratios", "1"], "ratios are"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path, content, options, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    answer = run(path, "--out", tmp_path / "out", *options, code=2)
    assert re.search(message, answer.stderr.replace("\n", " ")), answer.stderr
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(tmp_path):
    run(tmp_path / "absent.jsonl", "--key", "a", "--out", tmp_path / "out", code=2)
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}\n')
    assert "not UTF-8" in run(tmp_path / "latin.jsonl", "--key", "a", "--out", tmp_path / "out", code=2).stderr
