"""`palimpsest speculate`: the target's own text, a trimmed drafter, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.models.hf import quiet

runner = CliRunner()
PROMPT = "The five boxing wizards"


def run(*arguments: object, code: int = 0, stdin: str | None = None):
    answer = runner.invoke(app, ["speculate", *map(str, arguments)], input=stdin)
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, other_model) -> Path:
    """A target, a drafter, and a text to calibrate on."""
    root = tmp_path_factory.mktemp("speculate")
    for name, model in (("target", tiny_model), ("drafter", other_model)):
        with quiet():
            model.model.save_pretrained(root / name)
        model.tokenizer.save(root / name / "tokenizer.json")
        (root / name / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
        )
    (root / "short.txt").write_text("In the beginning")
    (root / "text.txt").write_text("In the beginning was the word, and the word was written down. " * 12)
    return root


def test_the_text_is_the_targets(place, tiny_model):
    pair = (place / "target", "--drafter", place / "drafter", "--max-new-tokens", 20)
    value = json.loads(run(*pair, "--prompt", PROMPT, "--compare", "--json").stdout)
    [[ids]] = tiny_model.generate([tiny_model.tokenizer.encode(PROMPT)], 20)
    assert value["text"] == value["target_alone"]["text"] == tiny_model.tokenizer.decode(ids)
    assert (value["kept"], value["new_tokens"]) == (tiny_model.vocab_size, 20)
    shown = run(*pair, "--prompt", "-", stdin=PROMPT).stdout
    assert "calls of the target" in shown
    assert f"keeps {tiny_model.vocab_size} of {tiny_model.vocab_size}" in shown


@pytest.mark.parametrize("source", ["target", "drafter", "text"])
def test_a_trimmed_drafter_changes_the_speed_alone(place, tiny_model, source):
    options = ("--trim", 50, "--calibration", place / "text.txt", "--source", source, "--calibration-tokens", 300)
    pair = (place / "target", "--drafter", place / "drafter", "--prompt", PROMPT, "--max-new-tokens", 20)
    extra = ("--temperature", 0.8) if source == "target" else ()
    value = json.loads(run(*pair, *options, *extra, "--json").stdout)
    assert 50 <= value["kept"] <= 51
    plain = json.loads(run(*pair, *extra, "--json").stdout)
    assert value["drafter_bytes"] < plain["drafter_bytes"]


def test_the_number_of_tokens_can_be_found(place):
    options = ("--trim", "auto", "--calibration", place / "text.txt", "--calibration-tokens", 300, "--temperature", 1)
    value = json.loads(run(place / "target", "--drafter", place / "drafter", "--prompt", PROMPT, *options, "--json").stdout)
    assert 64 <= value["kept"] <= 320


def test_what_goes_wrong_is_said(place):
    pair = (place / "target", "--drafter", place / "drafter", "--prompt", PROMPT)
    assert "belong together" in run(*pair, "--trim", 5, code=2).output
    assert "longer or more" in run(*pair, "--trim", 5, "--calibration", place / "short.txt", code=2).output
    assert "Choose target" in run(*pair, "--trim", 5, "--calibration", place / "text.txt", "--source", "web", code=2).output
    assert "number of tokens" in run(*pair, "--trim", "few", "--calibration", place / "text.txt", code=2).output
    assert "empty" in run(*pair[:3], "--prompt", "", code=2).output
