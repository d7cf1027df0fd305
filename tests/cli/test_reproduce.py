"""`palimpsest reproduce`: verdicts, exit codes, files; the experiment itself is a stand-in with known figures."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.experiments.claim import Check, Claim

runner = CliRunner()


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    """Puts an experiment in the place of `rome` whose figure is 1 - seed / 10 against a threshold of 0.85; lists what was run."""
    ran: list[tuple[str, int]] = []

    def run(scale: str, seed: int) -> Claim:
        ran.append((scale, seed))
        checks = [Check("share", 1 - seed / 10, ">=", 0.85, baseline=0.5, unit="share"), Check("a figure", None)]
        return Claim("rome", "Shares are large.", checks, notes=["a note"], environment={})

    module = types.ModuleType("palimpsest.experiments.rome")
    module.run = run
    monkeypatch.setitem(sys.modules, "palimpsest.experiments.rome", module)
    return ran


def test_a_claim_that_holds_ends_with_0_and_is_written(calls, tmp_path: Path):
    answer = runner.invoke(app, ["reproduce", "rome", "--scale", "smoke", "--seeds", "0,1", "--out", str(tmp_path)], catch_exceptions=False)
    assert answer.exit_code == 0
    assert calls == [("smoke", 0), ("smoke", 1)]
    assert ">= 0.85" in answer.stdout
    assert "0.9 vs 0.5" in answer.stdout
    assert "a note" in answer.stdout
    assert "holds" in answer.stdout
    assert json.loads((tmp_path / "rome.smoke.json").read_text())["passed"] is True


def test_a_claim_that_fails_for_one_seed_ends_with_1(calls, tmp_path: Path):
    answer = runner.invoke(app, ["reproduce", "rome", "--seeds", "0,2", "--out", str(tmp_path)])
    assert answer.exit_code == 1
    assert "fails" in answer.stdout
    assert "1 of 2" in answer.stdout
    assert json.loads((tmp_path / "rome.cpu.json").read_text())["passed"] is False


def test_json_holds_every_run(calls, tmp_path: Path):
    answer = runner.invoke(app, ["reproduce", "100", "--seeds", "2", "--out", str(tmp_path), "--json"])
    assert answer.exit_code == 1
    value = json.loads(answer.stdout)
    assert value["passed"] is False
    assert value["results"][0]["runs"][0]["checks"][0]["ours"] == pytest.approx(0.8)


def test_merge_runs_nothing_and_ends_as_the_whole_would(calls, tmp_path: Path):
    for seed in "012":
        runner.invoke(app, ["reproduce", "rome", "--seeds", seed, "--out", str(tmp_path / seed)])
    calls.clear()
    sources = [part for seed in "012" for part in ("--merge", str(tmp_path / seed))]
    answer = runner.invoke(app, ["reproduce", "rome", *sources, "--out", str(tmp_path / "all")])
    assert answer.exit_code == 1
    assert calls == []
    assert "2 of 3" in answer.stdout
    assert [run["seed"] for run in json.loads((tmp_path / "all" / "rome.cpu.json").read_text())["runs"]] == [0, 1, 2]


@pytest.mark.parametrize("seeds", ["", "a", "0,,1", "-1", "1.5", "1,1", "0 1"])
def test_bad_seeds_are_refused_before_anything_runs(calls, tmp_path: Path, seeds):
    answer = runner.invoke(app, ["reproduce", "rome", f"--seeds={seeds}", "--out", str(tmp_path)])
    assert answer.exit_code == 2
    assert "--seeds" in answer.stderr
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no-such-system"], "no system"), (["rome", "recursive-summary"], "no experiment"), (["rome", "--scale", "huge"], "scale")],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(calls, tmp_path: Path, arguments, message):
    answer = runner.invoke(app, ["reproduce", *arguments, "--out", str(tmp_path)])
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(calls, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    answer = runner.invoke(app, ["reproduce", "rome", "--seeds", "0", "--out", str(tmp_path / "file")])
    assert answer.exit_code == 2
    assert "choose another path" in answer.stderr
