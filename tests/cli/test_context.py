"""`palimpsest context`: every method with its options, and a ranking with reasons."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.cli.context import size
from palimpsest.context.catalogue import methods
from palimpsest.errors import InputError
from palimpsest.models.quiet import quiet

runner = CliRunner()


def run(*arguments, code=0):
    answer = runner.invoke(app, ["context", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer.output


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("context")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    return root / "model"


def test_every_method_is_listed_with_its_options():
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert set(rows) == {record.name for record in methods()}
    assert rows["streaming-llm"]["options"] == {"budget": "", "sinks": 4}
    assert rows["full"]["exact"] is True
    only = json.loads(run("list", "--family", "cache", "--json"))
    assert 0 < len(only) < len(rows)
    assert all(row["family"].startswith("cache") for row in only)
    shown = run("list")
    assert "h2o" in shown
    assert "There are:" in run("list", "--family", "nothing", code=2)


def test_a_recommendation_has_reasons_and_fits(place):
    rows = json.loads(run("recommend", place, "--length", 100, "--memory", "40KB", "--top", 20, "--json"))
    assert rows[0]["fits"] is True
    assert rows[0]["cache_bytes"] <= 40_000
    assert all(row["reasons"] for row in rows)
    roomy = json.loads(run("recommend", place, "--length", 100, "--memory", "1GB", "--json"))
    assert roomy[0]["name"] == "full"
    shown = run("recommend", place, "--length", 100, "--memory", "1GB", "--top", 1)
    assert "the result is that of full attention" in " ".join(shown.split())


def test_sizes_are_read_and_others_refused(place):
    assert [size(text) for text in ("10", "1 KB", "1.5MB", "2gib")] == [10, 1000, 1_500_000, 2**31]
    for text in ("", "MB", "-1MB", "3 parsecs", "0", "9" * 400):
        with pytest.raises(InputError, match="not a size"):
            size(text)
    assert "not a size" in run("recommend", place, "--length", 100, "--memory", "much", code=2)
