"""`palimpsest memory-tokens`: what is written is read back, and what does not belong together is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.measurement import Measurement

runner = CliRunner()


@pytest.fixture
def run(tmp_path, tiny_model, other_model, monkeypatch):
    """Runs a command with the tiny model (or another one, named so), on texts of one to four tokens."""
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in ("the", "fox and dog")))
    monkeypatch.setattr("palimpsest.models.load_model", lambda spec: other_model if spec == "other" else tiny_model)

    def call(*arguments, code=0):
        answer = runner.invoke(app, ["memory-tokens", *map(str, arguments)])
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_what_was_written_is_read_back(run, tmp_path):
    texts, out = tmp_path / "texts.jsonl", tmp_path / "bank"
    options = ("--before", "page", "--vectors", 4, "--lr", 0.1, "--steps", 400)
    written = json.loads(run("write", "any", texts, "--out", out, *options, "--json").splitlines()[-1])
    assert written["texts"][0]["exact"]
    assert written["n_tokens"] == 4
    assert "given back" in run("write", "any", texts, "--out", out, *options)
    assert run("read", "any", out, "--number", 1).strip() == "the"
    both = json.loads(run("read", "any", out, "--json"))["texts"]
    assert [entry["number"] for entry in both] == [1, 2]
    assert both[0] == {"number": 1, "exact": True, "text": "the"}
    assert "holds 2 texts" in run("read", "any", out, "--number", 3, code=2)
    assert "another model" in run("read", "other", out, code=2)


def test_measure(run, tmp_path):
    arguments = ("measure", "any", tmp_path / "texts.jsonl", "--length", 1, "--random", 1, "--steps", 5)
    shown = run(*arguments)
    assert "bits to carry" in shown
    assert "Given back by the untrained vector: 0" in shown
    measured = Measurement.from_json(run(*arguments, "--json").splitlines()[-1])
    assert measured.table["kind"].to_list() == ["text", "text", "random"]


def test_what_cannot_be_done_is_refused(run, tmp_path):
    assert "holds no memories" in run("read", "any", tmp_path, code=2)
    assert "newton" in run("measure", "any", tmp_path / "texts.jsonl", "--length", 1, "--optimizer", "newton", code=2)
    assert "greatest length" in run("measure", "any", tmp_path / "texts.jsonl", "--length", 99, code=2)


def test_a_folder_that_cannot_be_written_is_found_out_before_the_work(run, tmp_path, monkeypatch):
    def load(spec):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("palimpsest.models.load_model", load)
    assert "Cannot write" in run("write", "any", tmp_path / "texts.jsonl", "--out", tmp_path / "texts.jsonl", code=2)
