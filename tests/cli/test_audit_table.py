"""`palimpsest audit MODEL table.csv` as a person runs it: a report, its card, an endpoint without log-probs, and every wrong way."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from palimpsest.audit.tabular import not_applicable
from palimpsest.audit.tabular_table import Table
from palimpsest.cli import app
from palimpsest.cli.audit import show
from palimpsest.cli.audit_table import is_table
from palimpsest.errors import InputError
from palimpsest.evaluation.table_sections import all_sections
from palimpsest.evaluation.tables import HEADLINES, run_table_audit
from palimpsest.measurement import Measurement


@pytest.fixture(scope="module")
def model_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model.model.save_pretrained(folder)
    own = PreTrainedTokenizerFast(tokenizer_object=tiny_model.tokenizer.backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    own.save_pretrained(folder)
    return folder


def write_table(path, n=40):
    rng = np.random.default_rng(0)
    rows = [f"{rng.integers(100, 999)},{rng.integers(10, 99)},{'xy'[rng.integers(2)]}" for _ in range(n)]
    path.write_text("\n".join(["a,b,c", *rows, ""]))
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


@pytest.fixture(scope="module")
def report(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    table = write_table(folder / "secret.csv")
    done = run(model_folder, table, "--out", folder / "report", "--samples", "4")
    assert done.exit_code == 0, done.output
    return table, folder / "report", done


def test_a_table_becomes_a_report(report):
    _, out, done = report
    card = json.loads((out / "audit.json").read_text())
    assert card["verdict"]["headline"] in HEADLINES.values()
    assert card["verdict"]["headline"] in done.stdout
    assert "row completion" in done.stdout
    assert "secret" in card["title"]
    assert [test["test"] for test in card["tests"]][:2] == ["header", "row-completion"]
    page = (out / "index.html").read_text()
    assert "To the letter" in page
    assert "decoy rank" in page
    assert any((out / "figures").glob("tabular-ranks.svg"))
    sections = {section["id"]: section for section in card["sections"]}
    assert sections["letter"]["status"] == "measured"
    few_shot = next(test for test in card["tests"] if test["test"] == "sampling")
    assert few_shot["status"] == "not applicable"  # blocks of other tables do not fit either, and the card says so
    assert any(limit.startswith("Sampling was not measured") for limit in card["limits"])


def test_run_again_it_reads_what_was_measured_and_json_is_the_card(report, model_folder):
    table, out, _ = report
    before = {path.name: path.stat().st_mtime_ns for path in (out / "measurements").glob("*.json")}
    assert len(before) == 12
    done = run(model_folder, table, "--out", out, "--samples", "4", "--json")
    assert done.exit_code == 0, done.output
    assert {path.name: path.stat().st_mtime_ns for path in (out / "measurements").glob("*.json")} == before
    said, kept = json.loads(done.stdout), json.loads((out / "audit.json").read_text())
    assert said == kept


def test_an_endpoint_without_logprobs_is_asked_for_text_alone(tmp_path, server, model_folder):
    server.echo = False
    table = write_table(tmp_path / "t.csv", 20)
    done = run(f"{server.url}#tiny", table, "--out", tmp_path / "out", "--samples", "2", "--tokenizer", model_folder, "--json")
    assert done.exit_code == 0, done.output
    tests = {test["test"]: test for test in json.loads(done.stdout)["tests"]}
    assert tests["row-completion"]["status"] == "measured"
    assert "logprobs" in tests["decoy-rank"]["reason"]
    assert "logprobs" in tests["order"]["reason"]


def test_parquet_is_a_table_unless_it_holds_texts(tmp_path, model_folder):
    frame = pl.read_csv(write_table(tmp_path / "t.csv"))
    frame.write_parquet(tmp_path / "t.parquet")
    done = run(model_folder, tmp_path / "t.parquet", "--out", tmp_path / "out", "--samples", "3", "--json")
    assert done.exit_code == 0, done.output
    assert any("Parquet" in limit for limit in json.loads(done.stdout)["limits"])
    pl.DataFrame({"text": ["In the beginning"] * 20, "n": list(range(20))}).write_parquet(tmp_path / "texts.parquet")
    (tmp_path / "damaged.parquet").write_text("no parquet")
    found = [is_table(tmp_path / name) for name in ("t.parquet", "t.csv", "gone.tsv", "texts.parquet", "damaged.parquet", "t.txt")]
    assert found == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a,b\n1,2\n", ["bad.csv", "1 rows"]),
        (b"a\n" + b"1\n" * 30, ["bad.csv", "one column"]),
        (b"a,b\n" + b"1,2\n" * 20 + b"1,2,3\n", ["bad.csv", "line 22", "3 cells"]),
        (b"a,b\n" + b"caf\xe9,2\n" * 20, ["bad.csv", "UTF-8"]),
        (b"", ["bad.csv", "empty"]),
        (b"a,b\n" + b"1,2\n" * 20, ["bad"]),
    ],
)
def test_tables_that_cannot_be_tested(tmp_path, model_folder, text, words):
    (tmp_path / "bad.csv").write_bytes(text)
    done = run(model_folder, tmp_path / "bad.csv", "--out", tmp_path / "out")
    if text.endswith(b"1,2\n" * 20):  # equal rows: some tests can be made, and the others say why not
        assert done.exit_code == 0, done.output
        return
    assert done.exit_code == 2, done.output
    assert "error:" in done.stderr
    assert not (tmp_path / "out").exists()
    for word in words:
        assert word in done.stderr


def test_options_that_mean_nothing_here(tmp_path, model_folder):
    table = write_table(tmp_path / "t.csv")
    done = run(model_folder, table, "--out", tmp_path / "out", "--context", "20", "--guard-n", "4")
    assert done.exit_code == 2
    assert "--context, --guard-n" in done.stderr
    (tmp_path / "t.txt").write_text("words " * 100)
    assert "--column" in run(model_folder, tmp_path / "t.txt", "--out", tmp_path / "out", "--column", "a").stderr
    assert "no column 'q'" in run(model_folder, table, "--out", tmp_path / "out", "--column", "q").stderr
    assert "gone.csv" in run(model_folder, tmp_path / "gone.csv", "--out", tmp_path / "out").stderr
    assert "--table" in run("--table", "--out", tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()


def test_some_tests_alone(tmp_path, tiny_model):
    card = run_table_audit(tiny_model, write_table(tmp_path / "t.csv"), tmp_path / "out", n=3, tests=["header", "row-completion"])
    assert [section["id"] for section in card["sections"]] == ["letter"]
    assert set(card["timing"]) == {"header", "row-completion"}


def text_only(model):
    """The same model behind a door without log-probabilities."""
    made = copy.copy(model)
    made.capabilities = frozenset({"text"})
    return made


def test_an_audit_without_a_test_that_can_be_made_leaves_nothing(tmp_path, tiny_model):
    table = write_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"No test of t could be made .*logprobs"):
        run_table_audit(text_only(tiny_model), table, tmp_path / "out", n=3, tests=["decoy-rank", "order"])
    assert not (tmp_path / "out").exists()
    run_table_audit(tiny_model, table, tmp_path / "out", n=3, tests=["row-completion"])
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(InputError, match="No test of t could be made"):
        run_table_audit(text_only(tiny_model), table, tmp_path / "out", n=3, tests=["decoy-rank"])
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


def test_a_section_without_results_says_which_reason_is_of_which_test(tiny_model):
    table = Table.parse("a,b\n" + "".join(f"{i},{i % 3}\n" for i in range(12)), name="t")
    reasons = {"feature-names": "Too few columns.", "dataset-name": "No name.", "sampling": "Too few columns."}
    results = {test: not_applicable(test, "knowledge", tiny_model, table, reason, {}) for test, reason in reasons.items()}
    whole = Measurement("tabular", pl.DataFrame(), {"found": [], "adjusted": {}}, {})
    [section] = all_sections(results, whole)
    assert section["reason"] == "Feature names, sampling: Too few columns. Dataset name: No name."
    [alone] = all_sections({"sampling": results["sampling"]}, whole)
    assert alone["reason"] == "Too few columns."


def test_brackets_in_names_are_printed_as_they_are():
    out = io.StringIO()
    tile = {"label": "rows", "value": 1, "format": "int", "note": "of [/b]"}
    card = {"verdict": {"level": "none", "headline": "Nothing.", "sentences": ["Shown 3 rows of t[/b], it writes on."]}, "tiles": [tile]}
    show(Console(file=out, width=200), card, Path("out[/i]/index.html"), 1.0)
    for said in ("rows of t[/b], it", "of [/b]", "out[/i]/index.html"):
        assert said in out.getvalue()
