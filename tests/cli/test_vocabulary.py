"""`palimpsest vocabulary`: the table, the JSON, and what is refused."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.measurement import Measurement

runner = CliRunner()


@pytest.fixture
def run(tmp_path):
    """Runs the verb on twelve short texts, one of them twice."""
    lines = [f"what is {a} and {b} ?" for a in ("this", "that", "memory") for b in ("paper", "a page", "ink", "prose")]
    (tmp_path / "texts.txt").write_text("\n".join([*lines, lines[0], ""]))

    def call(*options, code=0):
        arguments = ["vocabulary", tmp_path / "texts.txt", "--merges", "0,8", "--parameters", 80_000, "--epochs", 1, *options]
        answer = runner.invoke(app, list(map(str, arguments)))
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_the_table_has_a_row_a_vocabulary(run, tmp_path):
    shown = run("--aliases", 2, "--out", tmp_path / "found.json")
    assert "8 merges ×2" in shown
    assert "Largest less smallest" in shown
    found = Measurement.load(tmp_path / "found.json")
    assert [row["vocabulary"] for row in found.summary["arms"]] == [260, 268, 532]
    assert len(found.table) == 3 * 12


def test_json_is_the_measurement(run):
    found = Measurement.from_json(run("--task", "membership", "--seeds", 2, "--json").splitlines()[-1])
    assert found.summary["figure"] == "auc"
    assert found.table["seed"].unique().sort().to_list() == [0, 1]
    alone = Measurement.from_json(run("--task", "membership", "--json").splitlines()[-1])
    for both, one in zip(found.summary["arms"], alone.summary["arms"], strict=True):
        assert both["auc"]["low"] <= both["auc"]["estimate"] <= both["auc"]["high"]
        assert both["auc"]["high"] - both["auc"]["low"] > 0.5 * (one["auc"]["high"] - one["auc"]["low"]) > 0  # a text twice is one text


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--merges", "few"), "0,500,4000"), (("--merges", "0,9000"), "fewer merges"), (("--task", "poetry"), "'poetry'")],
)
def test_what_cannot_be_done_is_refused(run, options, message):
    assert message in run(*options, code=2)


def test_a_file_that_is_no_text_and_an_out_that_takes_none_are_refused(tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x80\x81")
    assert "cannot be read" in runner.invoke(app, ["vocabulary", str(bad)]).output
    for out in (bad / "m.json", tmp_path):
        answer = runner.invoke(app, ["vocabulary", str(tmp_path / "none"), "--out", str(out)])
        assert answer.exit_code == 2
        assert "Cannot write" in answer.output  # before the texts are read
