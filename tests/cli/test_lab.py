"""`palimpsest lab`: a small suite is trained, shown, and not written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app

runner = CliRunner()


def call(*arguments: str):
    return runner.invoke(app, ["lab", *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("lab") / "suite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("palimpsest.experiments.canaries.DEMONSTRATION", small())
        answer = call("train", "--out", str(out), "--size", "s", "--json")
    assert answer.exit_code == 0, answer.output
    return out, answer.stdout


def small():
    from dataclasses import replace

    from palimpsest.experiments.canaries import DEMONSTRATION

    return replace(DEMONSTRATION, n_sequences=64, levels=((0, 2), (1, 2)), warmup=2)


def test_training_writes_a_suite_and_says_what_is_in_it(trained):
    out, printed = trained
    told = json.loads(printed)
    assert [m["name"] for m in told["models"]] == ["standard-s", "perturbed-s"]
    assert told["planted"] == {d: {"0": 2, "1": 2} for d in ("biography", "book", "password", "test-item")}
    assert (out / "perturbed-s" / "model.safetensors").is_file()
    assert json.loads(call("show", str(out), "--json").stdout) == told


def test_the_table_names_models_and_planted_texts(trained):
    answer = call("show", str(trained[0]))
    assert answer.exit_code == 0
    for word in ("standard-s", "perturbed-s", "biography", "test-item"):
        assert word in answer.stdout


def test_the_shipped_twins_are_shown_by_default():
    told = json.loads(call("show", "--json").stdout)
    assert len(told["models"]) == 6
    assert told["planted"]["password"]["256"] == 2


def test_a_folder_that_is_there_is_refused_before_training(trained):
    answer = call("train", "--out", str(trained[0]))
    assert answer.exit_code == 2
    assert "there already" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--size", "xl"], "sizes"), (["--sequences", "10"], "copies"), (["--sequences", "90000"], "novels")]
)
def test_what_cannot_be_trained_is_refused(tmp_path, arguments, message):
    answer = call("train", "--out", str(tmp_path / "x"), *arguments)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_suite_is_refused(tmp_path):
    answer = call("show", str(tmp_path))
    assert answer.exit_code == 2
    assert "suite.json" in answer.stderr
