"""`palimpsest govern`: a whole life of two changes on a tiny model, and what goes wrong on the way."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.governance.conftest import GENERAL, change
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.governance.items import ChangeRequest, FactChange, Kind
from palimpsest.governance.record import session_place
from palimpsest.governance.system import System
from palimpsest.models import load_model
from palimpsest.models.quiet import quiet

runner = CliRunner(env={"COLUMNS": "160"})


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["govern", *map(str, arguments)])
    assert answer.exit_code == code, answer.output + answer.stderr
    return answer


def ask(*arguments: object, code: int = 0) -> dict:
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Path:
    """A folder with a model, general text, thresholds and requests."""
    root = tmp_path_factory.mktemp("govern")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tiny_model.tokenizer.save(root / "model" / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (root / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    (root / "general.txt").write_text("\n".join(GENERAL))
    (root / "policy.toml").write_text("min_sample = 20\nstages = [0.25, 1.0]\n")
    fact = change(System.of(copy.copy(tiny_model), GENERAL))
    request = ChangeRequest(Kind.UPDATE, (fact,), attributed=True, owner="desk")
    (root / "request.json").write_text(json.dumps(request.to_dict()))
    nowhere = FactChange("Ada", "home", "Adam lives in", "Rome", "Paris")
    (root / "bad.json").write_text(json.dumps(ChangeRequest(Kind.UPDATE, (nowhere,), attributed=True).to_dict()))
    (root / "loose.json").write_text(json.dumps(replace(request, facts=(replace(fact, neighbours=()),)).to_dict()))
    return root


@pytest.fixture
def governed(place, tmp_path) -> Path:
    run(
        "init",
        tmp_path / "g",
        "--model",
        place / "model",
        "--general",
        place / "general.txt",
        "--policy",
        place / "policy.toml",
        "--actor",
        "me",
    )
    return tmp_path / "g"


def observations(path: Path, n: int, right: bool, share: float = 0.25) -> Path:
    names = [name for name in (f"s{k}" for k in range(400)) if session_place(name) < share][:n]
    path.write_text("".join(json.dumps({"session": name, "right": right, "right_before": True}) + "\n" for name in names))
    return path


def test_a_whole_life(governed, place, tmp_path):
    first = ask("log", governed)["entries"][0]
    assert (first["event"], first["actor"]) == ("init", "me")
    proposed = ask("propose", governed, place / "request.json")
    item = proposed["item"]
    assert (proposed["rule"], proposed["actions"]) == ("attributed", ["store"])
    assert ask("admit", governed, item)["admitted"]
    assert ask("rollout", governed, item)["share"] == 0.25
    watched = ask("monitor", governed, item, observations(tmp_path / "o.jsonl", 25, right=True))
    assert (watched["state"], watched["breach"]) == ("canary", None)
    full = ask("rollout", governed, item)
    assert full["state"] == "full"
    exported = ask("export", governed, tmp_path / "served")
    assert exported["version"] == full["version"]
    assert exported["store_rows"] == 1
    assert load_model(tmp_path / "served").fingerprint == load_model(place / "model").fingerprint  # the store changed, not the weights
    back = ask("rollback", governed, item, "--reason", "tried it")
    assert back["state"] == "rolled_back"
    log = ask("log", governed, "--item", item)
    assert log["verified"] == 7
    assert [entry["seq"] for entry in log["entries"]] == list(range(1, 7))
    assert ask("log", governed)["head"] == ask("log", governed, "--head", first["hash"])["head"]
    assert json.loads(run("log", governed, "--certificate", 2).stdout)["entry"]["seq"] == 2


def test_words_for_people(governed, place, tmp_path):
    item = ask("propose", governed, place / "request.json")["item"]
    assert "admitted" in run("admit", governed, item).stdout
    assert "state: canary" in run("rollout", governed, item).stdout
    shown = run("monitor", governed, item, observations(tmp_path / "o.jsonl", 60, right=False), code=1).stdout
    assert "breach of harm" in shown
    assert "rolled back" in shown
    shown = run("log", governed).stdout
    assert "chain whole" in shown
    assert "canary → rolled_back" in shown


def test_rejected_changes_end_with_1(governed, place):
    item = ask("propose", governed, place / "bad.json")["item"]
    result = ask("admit", governed, item, code=1)
    assert "answers 'Adam lives in' with None" in result["error"]
    item = ask("propose", governed, place / "loose.json")["item"]
    assert "nothing to measure" in run("admit", governed, item, code=1).stdout
    assert ask("log", governed)["entries"][-1]["to"] == "rejected"


def test_a_rollback_whose_weights_are_missing(governed, place, tmp_path):
    item = ask("propose", governed, place / "request.json")["item"]
    ask("admit", governed, item)
    ask("rollout", governed, item)
    ask("monitor", governed, item, observations(tmp_path / "o.jsonl", 25, right=True))
    parent = ask("rollout", governed, item)["parent"]
    (governed / "versions" / f"{parent}.json").rename(tmp_path / "backup")
    failed = run("rollback", governed, item, code=2)
    assert f"no whole version {parent[:12]}" in failed.stderr
    log = ask("log", governed)
    assert log["entries"][-1]["event"] == "rollback failed"
    (tmp_path / "backup").rename(governed / "versions" / f"{parent}.json")
    assert ask("rollback", governed, item)["state"] == "rolled_back"


def test_a_broken_log_is_named_by_its_seq(governed, place):
    run("propose", governed, place / "request.json")
    path = governed / "ledger.jsonl"
    data = bytearray(path.read_bytes())
    data[len(data) - 40] ^= 1
    path.write_bytes(data)
    for command in (("log", governed), ("propose", governed, place / "bad.json"), ("rollback", governed, "update-1")):
        failed = run(*command, "--json", code=2)
        error = json.loads(failed.stdout)["error"]
        assert error["type"] == "LedgerBrokenError"
        assert "seq 1" in error["problem"]
    assert path.read_bytes() == bytes(data)


def test_bad_input(governed, place, tmp_path):
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "one.txt").write_text("one line\n")
    for command, problem in (
        (("log", tmp_path / "none"), "no governed memory"),
        (("admit", tmp_path / "none", "x"), "no governed memory"),
        (("propose", governed, tmp_path / "no.json"), "not JSON"),
        (("propose", governed, tmp_path / "list.json"), "holds a list"),
        (("propose", governed, tmp_path / "gone.json"), "cannot be read"),
        (("rollout", governed, "x"), "no item 'x'"),
        (("init", governed, "--model", place / "model", "--general", place / "general.txt"), "already holds"),
        (("init", tmp_path / "n", "--model", place / "model", "--general", tmp_path / "one.txt"), "1 pieces"),
        (("init", tmp_path / "n", "--model", tmp_path / "nomodel", "--general", place / "general.txt"), "no model"),
        (("log", governed, "--certificate", 9), "no entry 9"),
        (("log", governed, "--head", "ab" * 32), "cut off"),
        (("export", governed, governed), "is there already"),
    ):
        assert problem in run(*command, code=2).stderr
    item = ask("propose", governed, place / "request.json")["item"]
    assert "proposed and cannot become rolled_back" in run("rollback", governed, item, code=2).stderr
    assert "proposed and cannot become full" in run("rollout", governed, item, code=2).stderr


def test_what_the_damage_of_the_version_in_force_still_allows(governed, place, tmp_path):
    item = ask("propose", governed, place / "request.json")["item"]
    ask("admit", governed, item)
    ask("rollout", governed, item)
    ask("monitor", governed, item, observations(tmp_path / "o.jsonl", 25, right=True))
    live = ask("rollout", governed, item)["version"]
    (governed / "versions" / f"{live}.json").unlink()
    assert "no whole version" in run("export", governed, tmp_path / "served", code=2).stderr
    assert ask("rollback", governed, item)["state"] == "rolled_back"


def test_brackets_in_words_are_shown(governed, place):
    item = ask("propose", governed, place / "request.json", "--actor", "[/x] me")["item"]
    ask("admit", governed, item)
    ask("rollout", governed, item, "--actor", "[red]bob")
    ask("rollback", governed, item, "--reason", "[bold]no[/nope]")
    shown = run("log", governed).stdout
    assert "[/x] me" in shown
    assert "[red]bob" in shown


def test_separators_of_unicode_are_no_ends_of_lines(governed, place, tmp_path):
    request = json.loads((place / "request.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({**request, "owner": "a\u2028b\u0085c"}, ensure_ascii=False))
    item = ask("propose", governed, tmp_path / "r.json")["item"]
    ask("admit", governed, item)
    ask("rollout", governed, item)
    name = next(name for name in (f"s\u2028{k}" for k in range(400)) if session_place(name) < 0.25)
    row = {"session": name, "right": True, "right_before": True}
    (tmp_path / "o.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert ask("monitor", governed, item, tmp_path / "o.jsonl")["n"] == 1
    (tmp_path / "o.jsonl").write_text(json.dumps(row) + "\n\n" + "[" * 100_000)
    assert "Line 3 of" in run("monitor", governed, item, tmp_path / "o.jsonl", code=2).stderr


def test_files_that_are_not_whole(governed, place, tmp_path, monkeypatch):
    settings = (governed / "settings.json").read_text()
    (governed / "settings.json").write_text('{"model": 5, "general": "x"}')
    assert "not what `init` wrote" in run("export", governed, tmp_path / "served", code=2).stderr
    (governed / "settings.json").write_text(settings)
    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", lambda *_: 1 / 0)
        assert runner.invoke(app, ["govern", "export", str(governed), str(tmp_path / "served")]).exit_code
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    (governed / "ledger.jsonl").unlink()
    assert "missing or empty" in run("log", governed, code=2).stderr


def test_init_writes_the_log_last(place, tmp_path, monkeypatch):
    arguments = ["init", tmp_path / "n", "--model", place / "model", "--general", place / "general.txt"]
    with monkeypatch.context() as patch:
        patch.setattr("palimpsest.governance.ledger.Ledger.append", lambda *_: 1 / 0)
        assert runner.invoke(app, ["govern", *map(str, arguments)]).exit_code
    assert (tmp_path / "n" / "settings.json").is_file()
    run(*arguments)
