"""`palimpsest alignment`: the table, the JSON, templates, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.cli.alignment import chat_template
from palimpsest.measurement import Measurement
from palimpsest.models import minilm
from palimpsest.models.quiet import quiet

runner = CliRunner()
CHAT = "{% for m in messages %}the {{ m.role }}: {{ m.content }}{% endfor %}."


class Letters:
    """An embedder that counts letters, in the place of the real one."""

    def __init__(self, folder=None, progress=None):
        self.folder = folder

    def __call__(self, texts):
        vectors = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]) + 0.01
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def run(tmp_path, tiny_model, monkeypatch):
    """Runs the verb on a saved model, with or without a chat template."""
    monkeypatch.setattr(minilm, "MiniLM", Letters)
    with quiet():
        tiny_model.model.save_pretrained(tmp_path / "model")
    tiny_model.tokenizer.save(tmp_path / "model" / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "items.jsonl").write_text('{"text": "Who  jumps? The fox."}\n{"text": "What is lazy? The dog."}\n')
    (tmp_path / "held.jsonl").write_text('{"text": "Who writes? A hand."}\n')
    (tmp_path / "chat.jinja").write_text(CHAT)

    def call(*options, code=0, held="held.jsonl"):
        arguments = ["alignment", tmp_path / "model", tmp_path / "items.jsonl", tmp_path / held, "--samples", 4, "--tokens", 5, *options]
        answer = runner.invoke(app, list(map(str, arguments)))
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_the_table_says_what_was_measured(run, tmp_path):
    shown = run("--template", tmp_path / "chat.jinja", "--out", tmp_path / "m.json")
    assert "by letters, similarity 0.90" in shown
    assert "of 4 samples were empty" in shown
    saved = Measurement.load(tmp_path / "m.json")
    assert saved.provenance["prefix"] == "the user: "
    assert saved.table["nearest_text"].is_in(["Who jumps? The fox.", "What is lazy? The dog."]).all()
    printed = Measurement.from_json(run("--template", tmp_path / "chat.jinja", "--json").splitlines()[-1])
    assert printed.table.equals(saved.table)


def test_the_template_is_the_models_own(run, tmp_path):
    assert "has no chat template" in run(code=2)
    (tmp_path / "model" / "chat_template.jinja").write_text(CHAT)
    measured = Measurement.from_json(run("--json").splitlines()[-1])
    assert measured.provenance["prefix"] == "the user: "


def test_what_cannot_be_measured_is_refused(run, tmp_path):
    template = ("--template", tmp_path / "chat.jinja")
    assert "held out as well" in run(*template, code=2, held="items.jsonl")
    (tmp_path / "bad.jinja").write_text("{{ nothing }}")
    assert "no user's turn" in run("--template", tmp_path / "bad.jinja", code=2)
    (tmp_path / "bad.jinja").write_bytes(b"\x80")
    assert "cannot be read" in run("--template", tmp_path / "bad.jinja", code=2)


def test_a_gguf_files_template_is_that_of_the_converted_model(run, tmp_path, monkeypatch):
    (tmp_path / "model" / "chat_template.jinja").write_text(CHAT)
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("palimpsest.models.gguf.gguf_folder", lambda path: {"some.gguf": tmp_path / "model"}[path.name])
    assert chat_template(str(tmp_path / "some.gguf"), None).prefix == "the user: "
