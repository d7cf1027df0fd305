"""`palimpsest needle`: the table, the JSON, and files that hold no tests."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.measurement import Measurement
from palimpsest.models.quiet import quiet

runner = CliRunner()
TESTS = [
    {"name": "p", "needle": "It is Arlby. ", "questions": ["\nQ:", "\nA:"], "key": ["Arlby"], "wrong_prior": ["Rome"], "neutral": "q"},
    {"name": "q", "needle": "It is Brlby. ", "questions": ["\nQ:", "\nA:"], "key": ["Brlby"]},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("needle")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tiny_model.tokenizer.save(root / "model" / "tokenizer.json")
    (root / "model" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    )
    (root / "novel.txt").write_text("It rained all day. Nobody came. " * 20)
    (root / "tests.jsonl").write_text("".join(json.dumps(test) + "\n" for test in TESTS))
    return root


def run(place, *options, tests="tests.jsonl", code=0):
    arguments = ["needle", place / "model", place / tests, place / "novel.txt", "--length", 60, "--length", 80, "--answer", 8, *options]
    answer = runner.invoke(app, list(map(str, arguments)))
    assert answer.exit_code == code, answer.output
    return answer.output


def test_the_table_says_what_was_measured(place):
    shown = run(place, "--depths", 3)
    assert "Best less worst prompt" in shown
    assert "p against q" in shown
    measured = Measurement.from_json(run(place, "--depths", 3, "--seeds", 2, "--json").splitlines()[-1])
    assert measured.table.height == 4 * 2 * 2 * 4
    assert measured.provenance["depths"] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    "record",
    [{**TESTS[1], "other": 1}, {**TESTS[1], "key": "Brlby"}, {**TESTS[1], "questions": [1]}, {"name": "q"}, {**TESTS[1], "needle": None}],
)
def test_a_test_of_another_kind_is_refused(place, record):
    (place / "bad.jsonl").write_text(json.dumps(record))
    assert "Test 1 of" in run(place, tests="bad.jsonl", code=2)
    assert "cannot be read" in run(place, tests="none.jsonl", code=2)
