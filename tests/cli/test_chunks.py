"""`palimpsest chunks`: what it shows, as a table and as JSON, and what it refuses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.models.chunk_variable import HCM, HVM, TEXT_LIMIT_BITS
from palimpsest.models.lempel_ziv import LZ78, LZW

TEXT = "the cat sat on the mat, the hat and the rat.\n" * 30
runner = CliRunner()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_text("")
    return tmp_path


def run(*arguments: object, code: int = 0, stdin: str | None = None):
    answer = runner.invoke(app, ["chunks", *map(str, arguments)], input=stdin)
    assert answer.exit_code == code, answer.output
    return answer


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ([], HVM(max_iter=25, limit_bits=TEXT_LIMIT_BITS, dependent_only=True)),
        (["--all-pairs"], HVM(max_iter=25, limit_bits=TEXT_LIMIT_BITS)),
        (["--no-variables"], HCM(max_iter=25, limit_bits=TEXT_LIMIT_BITS)),
        (["--iterations", "3"], HVM(max_iter=3, limit_bits=TEXT_LIMIT_BITS, dependent_only=True)),
    ],
)
def test_json_is_the_report_and_the_codes(place, options, model):
    value = json.loads(run(place / "text.txt", "--json", *options).stdout)
    expected = json.loads(json.dumps(model.fit(TEXT).report()))
    assert {name: value[name] for name in expected} == expected
    assert value["codes"]["LZ78"] == LZ78().code_lengths(TEXT).to_dict()
    assert value["codes"]["LZW"] == LZW().code_lengths(TEXT).to_dict()
    assert list(value["codes"]) == (["HCM", "LZ78", "LZW"] if "--no-variables" in options else ["HVM", "HCM", "LZ78", "LZW"])


def test_the_table_shows_chunks_and_codes(place):
    shown = run(place / "text.txt", "--top", 5).stdout
    model = HVM(max_iter=25, limit_bits=TEXT_LIMIT_BITS, dependent_only=True).fit(TEXT)
    assert f"{len(model.report()['chunks']):,} chunks" in shown
    assert "␣" in shown
    assert f"{model.code_lengths().parse_length:,}" in shown
    assert all(name in shown for name in ("HVM", "HCM", "LZ78", "LZW", "total bits"))


def test_text_from_the_standard_input(place):
    value = json.loads(run("-", "--json", "--no-variables", stdin=TEXT).stdout)
    assert value["code"]["symbols"] == len(TEXT)


@pytest.mark.parametrize("name", ["empty.txt", "absent.txt", "-"])
def test_nothing_to_read_is_an_error(place, name):
    path = name if name == "-" else place / name
    answer = run(path, "--json", code=2, stdin="")
    assert json.loads(answer.stdout)["error"]["type"] == "CorpusError"
