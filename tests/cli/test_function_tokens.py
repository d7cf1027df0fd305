"""`palimpsest function-tokens`: the tables, the JSON, and what is refused."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.measurement import Measurement

runner = CliRunner()


@pytest.fixture
def run(tmp_path, tiny_model, monkeypatch):
    """Runs the verb on a text with the tiny model, whatever model is named."""
    (tmp_path / "text.txt").write_text("the eye, the word of the page, the dog of the word. " * 30)
    monkeypatch.setattr("palimpsest.models.load_model", lambda spec, **options: tiny_model)

    def call(*options, code=0):
        small = ["--expansion", 1, "--k", 2, "--epochs", 1, "--length", 40]
        answer = runner.invoke(app, list(map(str, ["function-tokens", "any", tmp_path / "text.txt", *small, *options])))
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_the_tables_have_both_models_and_four_cells(run, tmp_path):
    shown = run("--layers", "1", "--out", tmp_path / "found.json")
    for part in ("trained, 1", "untrained, 1", "f→c", "function tokens make up"):
        assert part in shown
    assert len(Measurement.load(tmp_path / "found.json").summary["losses"]) == 4


def test_json_is_the_measurement(run):
    found = Measurement.from_json(run("--layers", "1,2", "--no-control", "--tokens", 200, "--json").splitlines()[-1])
    assert [row["layer"] for row in found.summary["layers"]] == [1, 2]
    assert found.summary["tokens"] <= 200


@pytest.mark.parametrize(
    ("options", "message"), [(("--layers", "deep"), "no list"), (("--layers", "7"), "Layer 7"), (("--mass", 2), "mass 2")]
)
def test_what_cannot_be_done_is_refused(run, options, message):
    assert message in run(*options, code=2)
