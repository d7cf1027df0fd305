"""`palimpsest systems`: the table, its filters, one card, and JSON."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.catalogue import SYSTEMS, State, find, state
from palimpsest.cli import app

runner = CliRunner()


def listed(*options: str) -> list[dict]:
    answer = runner.invoke(app, ["systems", "--json", *options], catch_exceptions=False)
    assert answer.exit_code == 0
    return json.loads(answer.stdout)


def test_the_table_names_every_system_with_its_state():
    answer = runner.invoke(app, ["systems"])
    assert answer.exit_code == 0
    lines = [line for line in answer.stdout.splitlines() if line[:3].isdigit() and line[3:5] == "  "]
    assert [line.split()[1] for line in lines] == [system.slug for system in SYSTEMS]
    assert all(state(system) in line for system, line in zip(SYSTEMS, lines, strict=True))
    assert "119 systems: " in answer.stdout


def test_json_holds_every_card():
    cards = listed()
    assert [card["slug"] for card in cards] == [system.slug for system in SYSTEMS]
    assert cards[0]["memory"]["controllability"]["revert"] == "none"
    assert cards[0]["memory_kind"] == "parametric"


def test_filters_keep_what_fits_and_nothing_else():
    assert {card["slug"] for card in listed("--kind", "survey")} == {s.slug for s in SYSTEMS if "survey" in s.kinds}
    assert {card["slug"] for card in listed("--memory", "external")} == {s.slug for s in SYSTEMS if s.memory_kind == "external"}
    assert {card["slug"] for card in listed("--family", "mixers")} == {s.slug for s in SYSTEMS if s.family == "mixers"}
    audit = [listed("--family", name) for name in ("audit", "audit-extraction", "audit-probes")]
    assert len(audit[0]) == len(audit[1]) + len(audit[2]) == 28
    both = listed("--kind", "benchmark", "--memory", "contextual")
    assert {card["slug"] for card in both} == {s.slug for s in SYSTEMS if "benchmark" in s.kinds and s.memory_kind == "contextual"}
    assert sum(len(listed("--state", name)) for name in State) == len(SYSTEMS)
    assert listed("--state", "claim-shown") == listed("--state", "claim shown")


@pytest.mark.parametrize("option", ["--state", "--family", "--kind", "--memory"])
def test_an_unknown_filter_lists_what_is_known(option):
    answer = runner.invoke(app, ["systems", option, "nonsense"])
    assert answer.exit_code == 2
    assert "Choose one of" in answer.stderr
    assert option in answer.stderr


@pytest.mark.parametrize("query", ["rome", "100"])
def test_a_card_shows_source_claim_and_home(query):
    answer = runner.invoke(app, ["systems", query])
    assert answer.exit_code == 0
    assert "https://arxiv.org/abs/2403.00510" in answer.stdout
    assert find("rome").lives_in[0] in answer.stdout


def test_a_card_as_json_says_what_is_missing_and_what_was_found():
    card = json.loads(runner.invoke(app, ["systems", "rome", "--json"]).stdout)
    assert card["number"] == 100
    assert (card["state"] == "planned") == bool(card["missing"])
    assert "result" in card


def test_an_unknown_system_is_an_error_with_a_suggestion():
    answer = runner.invoke(app, ["systems", "memfreee", "--json"])
    assert answer.exit_code == 2
    assert "memfree" in json.loads(answer.stdout)["error"]["remedy"]
