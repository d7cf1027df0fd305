"""`palimpsest rewind`: the table, the JSON, and what is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.measurement import Measurement

runner = CliRunner()
ITEMS = [
    {"id": "a", "subset": "factual", "question": "Is it?", "year": 2018, "now": "No", "then": "Yes"},
    {"id": "b", "subset": "factual", "question": "Is it old?", "year": 2018, "now": "Yes", "then": "Yes"},
    {"id": "w", "subset": "semantic", "question": "eye", "year": 2018, "now": "the dog", "then": "the page"},
]


@pytest.fixture
def run(tmp_path, tiny_model, monkeypatch):
    """Runs the verb on three items with the tiny model, whatever model is named."""
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    (tmp_path / "prompts.yaml").write_text('old: {system: "{year}.", forms: {yes_no: "", definition: ""}, frame: "{system} {user}"}')
    monkeypatch.setattr("palimpsest.models.load_model", lambda spec, **options: tiny_model)

    def call(*options, code=0):
        arguments = ["rewind", "any", tmp_path / "items.jsonl", "--prompts", tmp_path / "prompts.yaml", "--max-new-tokens", 4, *options]
        answer = runner.invoke(app, list(map(str, arguments)))
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_the_table_says_what_was_measured(run, tmp_path):
    shown = run("--this-year", 2026, "--out", tmp_path / "found.json")
    for part in ("old, factual", "old, semantic", "placebo", "stay right"):
        assert part in shown
    assert Measurement.load(tmp_path / "found.json").table["id"].to_list() == ["a", "b", "w"]


def test_json_is_the_measurement_of_the_subsets_asked_for(run):
    found = Measurement.from_json(run("--subset", "semantic", "--json").splitlines()[-1])
    assert found.table["subset"].to_list() == ["semantic"]
    assert found.provenance["this_year"] >= 2026


@pytest.mark.parametrize(
    ("options", "message"), [(("--subset", "poetic"), "poetic is unknown"), (("--this-year", 2000), "a year after 2000")]
)
def test_what_cannot_be_done_is_refused(run, options, message):
    assert message in run(*options, code=2)
