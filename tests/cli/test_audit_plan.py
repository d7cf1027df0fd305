"""`palimpsest audit --plan` as a person runs it."""

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.stats import half_width, samples_for_half_width, samples_to_see


def run(*arguments):
    return CliRunner().invoke(app, ["audit", "--plan", *arguments])


def test_the_plan_is_that_of_the_statistics():
    done = run("--rate", "0.02,0.5,0", "--half-width", "0.01,0.05", "--confidence", "0.9", "--samples", "123", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert [row["rate"] for row in plan["rates"]] == [0.02, 0.5, 0.0]
    for row in plan["rates"]:
        assert row["samples"] == [samples_for_half_width(row["rate"], width, 0.9) for width in (0.01, 0.05)]
        assert row["half_width"] == pytest.approx(half_width(row["rate"], 123, 0.9))
    assert plan["rates"][0]["to_see_one"] == samples_to_see(0.02, 0.9)
    assert plan["rates"][2]["to_see_one"] is None


def test_the_terminal_shows_a_table():
    done = run()
    assert done.exit_code == 0, done.output
    assert f"{samples_for_half_width(0.5, 0.05):,}" in done.stdout
    assert f"{samples_to_see(0.01):,}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "1.2"], "1.2"),
        (["--rate", "many"], "many"),
        (["--half-width", ""], "empty"),
        (["--half-width", "0.7"], "0.7"),
        (["--confidence", "1"], "confidence"),
        (["--samples", "0"], "0 samples"),
        (["tiny"], "does not take model"),
        (["--guard-n", "4"], "guard-n"),
    ],
)
def test_wrong_plans_are_refused(arguments, says):
    done = run(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr


def test_what_belongs_to_the_plan_is_refused_without_it():
    done = CliRunner().invoke(app, ["audit", "--rate", "0.1", "--json"])
    assert done.exit_code == 2
    assert "--plan" in json.loads(done.stdout)["error"]["problem"]
