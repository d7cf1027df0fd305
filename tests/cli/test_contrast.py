"""`palimpsest contrast`: items of one's own, JSON and table, and what goes wrong."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.cli import contrast as verb
from palimpsest.measurement import Measurement

runner = CliRunner()
ITEMS = [{"prompt": f"the quick brown {word}", "answer": "fox", "category": "a", "concept": word} for word in ("eye", "page", "word")]


@pytest.fixture
def items(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setattr("palimpsest.models.load_model", lambda name: tiny_model)
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, ITEMS)))
    return path


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["contrast", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer


def test_a_group_that_is_missing_is_said(items, tmp_path):
    value = json.loads(run("tiny", items, "--json", "--out", tmp_path / "contrast.json").stdout)
    assert not value["comparable"]
    assert value["rates"]["all"]["n"] == 3
    assert Measurement.load(tmp_path / "contrast.json").table["prompt"].to_list() == [item["prompt"] for item in ITEMS]
    assert "not comparable" in run("tiny", items).stdout


def test_both_groups_are_shown(items, monkeypatch, tiny_model):
    from palimpsest.audit import contrast

    def half(*arguments, **options):
        readings = read(*arguments, **options)
        readings.memorized[: len(readings.memorized) // 2] = True
        return readings

    read = contrast.read_clozes
    monkeypatch.setattr(contrast, "read_clozes", half)
    more = [{"prompt": f"{item['prompt']} {word}", "answer": word} for item in ITEMS for word in ("dog", "lazy", "page", "down")]
    twice = [{**item, "concept": f"c{number // 2}"} for number, item in enumerate(more)]
    items.write_text("\n".join(map(json.dumps, twice)))
    value = json.loads(run("tiny", items, "--json", "--layers", "1,2").stdout)
    assert value["comparable"]
    assert {row["layer"] for row in value["layers"]} == {1, 2}
    shown = run("tiny", items).stdout
    assert "answer letters" in shown
    assert "last prompt token" in shown


@pytest.mark.parametrize(
    ("arguments", "problem"), [(["--layers", "a"], "no list of layers"), (["--layers", "9"], "0 to 2"), (["--index", "none"], "none")]
)
def test_faults_are_named(items, arguments, problem):
    answer = run("tiny", items, "--json", *arguments, code=2)
    assert problem in json.loads(answer.stdout)["error"]["problem"]


def test_layers_are_parsed():
    assert verb.parse_layers("0, 15,30") == (0, 15, 30)
    assert verb.parse_layers(None) is None
