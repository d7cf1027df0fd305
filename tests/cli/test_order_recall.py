"""`palimpsest order-recall`: the table, the JSON, and what is refused."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.experiments.book_sort import OrderReader
from palimpsest.measurement import Measurement

runner = CliRunner()
BOOK = "".join(f"Then w{n * 3 % 997}x went on to town {n * 3 % 89}. It was w{n}. " for n in range(300))


@pytest.fixture
def run(tmp_path, tiny_tokenizer, monkeypatch):
    """Runs the verb on a book with a reader that prefers A a little, whatever model is named."""
    (tmp_path / "book.txt").write_text(BOOK)
    monkeypatch.setattr("palimpsest.models.load_model", lambda spec, **options: OrderReader(tiny_tokenizer, prior=0.5))

    def call(*options, code=0):
        arguments = ["order-recall", "any", tmp_path / "book.txt", "--excerpt", 120, "--segment", 10, *options]
        answer = runner.invoke(app, list(map(str, arguments)))
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_the_table_says_what_was_measured(run):
    shown = run("--trials", 8)
    assert "in_context" in shown
    assert "from_memory against in_context: -100.0 points" in shown
    measured = Measurement.from_json(run("--trials", 8, "--condition", "shuffled", "--task", "last", "--json").splitlines()[-1])
    assert measured.table["condition"].unique().to_list() == ["shuffled"]
    assert measured.table.height == 8
    assert measured.provenance["books"] == ["book.txt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trials", 7), "7 trials"),
        (("--task", "middle"), "'middle'"),
        (("--condition", "guess"), "guess"),
        (("--excerpt", 9000), "None of"),
    ],
)
def test_what_cannot_be_asked_is_refused(run, options, said):
    assert said in run(*options, code=2)
