"""`palimpsest card` as a person runs it."""

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.evaluation.card import load_card, schema

HASH = "0" * 64
RATE = {"estimate": 0.5, "low": 0.4, "high": 0.6}
CARD = {
    "format": "palimpsest-card/1",
    "created": "2026-01-02T03:04:05Z",
    "identity": {"name": "tiny", "door": "hf", "fingerprint": HASH, "tokenizer": HASH, "adapters": []},
    "memory": [{"location": "weights", "persistence": "permanent", "write_path": "pretrain", "access_path": "forward"}],
    "data": {
        "name": "d", "hash": HASH, "size": 2, "item_ids": ["a", "b"], "asked": ["2020-01-01", "2020-01-02"],
        "cutoff": None, "licence": "CC0",
    },
    "settings": {"param": {"run": True}, "offline": {"run": False, "reason": "no store"}, "online": {"run": False, "reason": "no store"}},
    "prompting": {
        "template": "{evidence}{question}", "filler": "x", "separator": "", "stop": [], "sampler": "greedy", "rule": "exact",
        "refusals": HASH,
    },
    "budgets": {"evidence_tokens": 10, "answer_tokens": 2, "k": 1},
    "results": [{"layer": "protocol", "metric": "accuracy/param", "value": RATE, "n": 2}],
    "temporal": {}, "refusals": {}, "leaks": {"policy": "raise", "counts": {"time": 0}, "excluded": []}, "snapshot": None, "live": None,
    "raters": [], "compute": {"seconds": 1.0, "device": "cpu", "packages": {}}, "seeds": [0], "limits": ["small"], "governed": False,
}  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, ["card", *map(str, arguments)])


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(CARD))
    return path


def changed(path, **parts):
    other = path.with_name("other.json")
    other.write_text(json.dumps(CARD | parts))
    return other


def test_a_complete_card_is_said_to_be_one(card):
    done = run("validate", card)
    assert done.exit_code == 0, done.output
    assert "complete" in done.stdout
    assert json.loads(run("validate", card, "--json").stdout) == {"card": str(card), "valid": True, "problems": []}


def test_all_problems_are_printed(card):
    other = changed(card, seeds=[], limits=None)
    done = run("validate", other)
    assert done.exit_code == 2
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["seeds", "limits"]
    assert len(json.loads(run("validate", other, "--json").stdout)["problems"]) == 2
    assert run("show", other).exit_code == 2


def test_a_card_is_shown(card):
    assert "# tiny on d" in run("show", card).stdout
    assert load_card(json.loads(run("show", card, "--json").stdout)) == load_card(card)


def test_cards_are_compared(card):
    better = changed(card, identity=CARD["identity"] | {"name": "large", "fingerprint": "1" * 64},
                     results=[CARD["results"][0] | {"value": {"estimate": 0.8, "low": 0.7, "high": 0.9}}])  # fmt: skip
    done = run("diff", card, better)
    assert done.exit_code == 0, done.output
    assert "+0.300 ± 0.141" in done.stdout
    assert json.loads(run("diff", card, better, "--json").stdout)["rows"][0]["separate"] is True
    unlike = changed(card, budgets=CARD["budgets"] | {"k": 3})
    refused = run("diff", card, unlike)
    assert refused.exit_code == 2
    assert "budgets.k is 1 and 3" in refused.stderr
    assert "NOT COMPARABLE" in run("diff", card, unlike, "--force").stdout


def test_the_schema_is_printed():
    assert json.loads(run("schema").stdout) == json.loads(run("schema", "--json").stdout) == schema()


def test_what_is_no_card_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, says in (("list.json", "holds a list"), *((name, "cannot be read") for name in ("text.json", "deep.json", "none.json"))):
        done = run("validate", tmp_path / name)
        assert done.exit_code == 2
        assert says in done.stderr
    for done in (run("show", tmp_path / "deep.json"), run("diff", *[tmp_path / "deep.json"] * 2)):
        assert done.exit_code == 2
        assert "cannot be read" in done.stderr
