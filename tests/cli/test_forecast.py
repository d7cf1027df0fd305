"""`palimpsest forecast` as a person runs it: models in folders, a corpus in the order of training, advice, and every wrong way."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import InputError
from palimpsest.evaluation import forecasting
from palimpsest.evaluation.forecasting import Contender, run_forecast
from palimpsest.measurement import Measurement

SMALL = ["--prefix", "8", "--suffix", "4"]
LENGTH = 20  # tokens of a document


def saved(model, folder):
    model.model.save_pretrained(folder)
    own = PreTrainedTokenizerFast(tokenizer_object=model.tokenizer.backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target(tiny_model, tmp_path_factory):
    return saved(tiny_model, tmp_path_factory.mktemp("target") / "large")


@pytest.fixture(scope="module")
def predictor(other_model, tmp_path_factory):
    return saved(other_model, tmp_path_factory.mktemp("predictor") / "small")


@pytest.fixture(scope="module")
def corpus(tiny_model, other_model, tmp_path_factory):
    """Twelve documents: 0-3 both models write, or nearly (the target's text), 4-7 the other's text, 8-11 nobody's."""
    rng = np.random.default_rng(0)
    documents = []
    for number in range(12):
        start = rng.integers(2, 300, size=8)
        model = (tiny_model, other_model, None)[number // 4]
        rest = model.generate([start], LENGTH - 8, stop_at_eos=False)[0][0] if model else rng.integers(2, 300, size=LENGTH - 8)
        documents.append(Document(f"sequence-{number}", ids=np.concatenate([start, rest])))
    return CorpusIndex.build(documents, tiny_model.tokenizer, tmp_path_factory.mktemp("corpus") / "index").path


def run(*arguments):
    return CliRunner().invoke(app, ["forecast", *map(str, arguments)])


def test_the_figures_are_those_of_the_models(target, predictor, corpus, tiny_model, other_model, tmp_path):
    done = run(f"{target}@4000", corpus, "--from", f"{predictor}@1e3", *SMALL, "--json", "--out", tmp_path / "f")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["target"] == str(target)
    assert value["base_rate"]["all"] == value["base_rate"]["common"]
    assert value["base_rate"]["all"]["n"] == 12
    hits = []
    index = CorpusIndex.open(corpus)
    for model in (tiny_model, other_model):
        heads = [index.document_ids(i, 0, 12) for i in range(12)]
        written = model.generate([head[:8] for head in heads], 4, stop_at_eos=False)
        hits.append([np.array_equal(rows[0], head[8:]) for rows, head in zip(written, heads, strict=True)])
    assert sum(hits[0]) == value["base_rate"]["all"]["rate"] * 12
    assert 4 <= sum(hits[0]) < 12
    rows = {(row["predictor"], row["scope"]): row for row in value["predictors"]}
    small = rows[str(predictor), "all"]
    assert small["positives"] == sum(hits[1]) >= 4
    assert small["true_positives"] == sum(a and b for a, b in zip(*hits, strict=True))
    assert small["compute"] == 6.0 * other_model.parameters * 1000
    assert small["compute_share"] == pytest.approx(other_model.parameters * 1000 / (tiny_model.parameters * 4000))
    kept = Measurement.load(tmp_path / "f" / "forecast.json")
    assert kept.table.to_dicts() == value["predictors"]


def test_a_checkpoint_of_the_target_is_judged_on_what_it_has_read(target, predictor, corpus, tiny_model, tmp_path):
    early = saved(tiny_model, tmp_path / "early")  # the same parameters: its forecast is right wherever it may be asked
    done = run(f"{target}@240", corpus, "--from", f"{early}@100", "--from", f"{predictor}@240", *SMALL, "--in-order", "--json")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    rows = {(row["predictor"], row["scope"]): row for row in value["predictors"]}
    read = [number for number in range(12) if number * LENGTH + 12 <= 100]
    assert [rows[str(early), scope]["n"] for scope in ("seen", "common", "all")] == [len(read), len(read), 12]
    assert [rows[str(predictor), scope]["n"] for scope in ("seen", "common", "all")] == [12, len(read), 12]
    assert rows[str(early), "seen"]["precision"] == rows[str(early), "seen"]["recall"] == 1.0
    assert value["advice"]["predictor"] == str(early)


def test_the_table_and_the_advice_on_the_terminal(target, predictor, corpus):
    done = run(f"{target}@4000", corpus, "--from", predictor, *SMALL)
    assert done.exit_code == 0, done.output
    assert "of 12 documents" in done.stdout
    assert "recall" in done.stdout
    assert "No advice. The compute of no predictor is known." in done.stdout
    advised = run(f"{target}@4000", corpus, "--from", f"{predictor}@1000", "--min-recall", "0", *SMALL).stdout
    assert "The cheapest of 1 that find at least 0%" in " ".join(advised.split())


def test_text_is_indexed_and_documents_are_drawn(target, predictor, tmp_path):
    text = tmp_path / "texts"
    text.mkdir()
    for k in range(6):
        (text / f"{k}.txt").write_text(f"In the beginning was the word, and word {k} was written down. " * (k + 1))
    done = run(target, text, "--from", predictor, "--prefix", "4", "--suffix", "3", "--samples", "3", "--json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["base_rate"]["all"]["n"] <= 3
    assert (tmp_path / "out" / "index" / "manifest.json").is_file()


def test_a_killed_run_goes_on(tiny_model, other_model, corpus, tmp_path, monkeypatch):
    from palimpsest.audit.samples import head_samples

    monkeypatch.setattr(forecasting, "PIECE", 5)
    calls = []
    real = forecasting.memorization_scores

    def counted(model, samples, **options):
        if len(calls) == 4:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append((model.name, len(samples)))
        return real(model, samples, **options)

    monkeypatch.setattr(forecasting, "memorization_scores", counted)
    target, small = Contender("t", lambda: tiny_model, 100), Contender("s", lambda: other_model, 50, "smaller models")

    def draw(_):
        return head_samples(CorpusIndex.open(corpus), 8, 4)

    with pytest.raises(KeyboardInterrupt):
        run_forecast(target, [small], draw, tmp_path)
    result = run_forecast(target, [small], draw, tmp_path)
    assert calls == [("tiny-0", 5), ("tiny-0", 5), ("tiny-0", 2), ("tiny-1", 5), "killed", ("tiny-1", 5), ("tiny-1", 2)]
    undisturbed = run_forecast(target, [small], draw, tmp_path / "other")
    assert result.table.equals(undisturbed.table)
    assert result.summary == undisturbed.summary
    assert result.table["family"].unique().to_list() == ["smaller models"]
    whole = real(tiny_model, draw(None))
    pieces = pl.concat(Measurement.load(path).table for path in sorted((tmp_path / "scores").glob("t.*.json")))
    assert pieces["score"].to_list() == whole.table["score"].to_list()
    assert pieces["index"].to_list() == whole.table["index"].to_list()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda t, p, c: (t, c, "--from", f"{p}@many", *SMALL), "does not end with a number of tokens"),
        (lambda t, p, c: (t, c, "--from", f"{p}@0", *SMALL), "does not end with a number of tokens"),
        (lambda t, p, c: (t, c, "--from", f"{p}@1e400", *SMALL), "more than 1e+18 tokens"),
        (lambda t, p, c: (t, c, "--from", f"{p}@9e307T", *SMALL), "more than 1e+18 tokens"),
        (lambda t, p, c: (t, c, "--from", p, "--budget", "nan", *SMALL), "budget is nan"),
        (lambda t, p, c: (t, c, "--from", p, "--budget", "-1", *SMALL), "budget is -1"),
        (lambda t, p, c: (t, c, "--from", t, *SMALL), "a name of its own"),
        (lambda t, p, c: (t, c, "--from", p, "--in-order", *SMALL), "NAME@TOKENS"),
        (lambda t, p, c: (t, c, "--from", p, "--prefix", "90"), "No document holds 122 tokens"),
        (lambda t, p, c: (t, c, "--from", p, "--threshold", "0", *SMALL), "threshold is 0"),
        (lambda t, p, c: (t, c, "--from", p, "--min-recall", "2", *SMALL), "least recall 2"),
        (lambda t, p, c: (t, c, "--from", "no/such-model-at-all/here", *SMALL), "There is no model"),
    ],
)
def test_wrong_ways_end_with_a_remedy(target, predictor, corpus, arguments, said):
    done = run(*arguments(target, predictor, corpus), "--json")
    assert done.exit_code == 2
    assert said in json.loads(done.stdout)["error"]["problem"] + json.loads(done.stdout)["error"]["remedy"]


def test_units_of_tokens_and_the_cards_of_the_laboratory(tmp_path):
    from palimpsest.cli.forecast import parse_contender

    for spec, tokens in (("m@300B", 300 * 10**9), ("m@2.1e9", 2_100_000_000), ("m@5k", 5000), ("m@7", 7), ("m@1.5T", 15 * 10**11)):
        assert parse_contender(spec, None).tokens == tokens
    assert parse_contender("a/b", None).tokens is None
    assert parse_contender("http://host/v1#me@here", None).name == "http://host/v1#me@here"
    (tmp_path / "card.json").write_text('{"tokens_seen": 99}')
    assert parse_contender(str(tmp_path), None).tokens == 99
    assert parse_contender(f"{tmp_path}@5", None).tokens == 5
    for text in ("{}", "[]", '{"tokens_seen": null}', '{"tokens_seen": 0}'):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(InputError, match="does not say tokens_seen"):
            parse_contender(str(tmp_path), None)


def test_brackets_in_the_name_of_a_model_are_printed_as_they_are(tiny_model, other_model, corpus, tmp_path):
    target, small = saved(tiny_model, tmp_path / "large[/b]"), saved(other_model, tmp_path / "small[red][/]")
    done = run(f"{target}@4000", corpus, "--from", f"{small}@1000", "--min-recall", "0", *SMALL)
    assert done.exit_code == 0, done.output
    said = "".join(done.stdout.split())
    assert f"{target} has memorized" in done.stdout
    assert f"Advice: {small}." in done.stdout
    assert said.count("small[red][/]") >= 2
    unknown = run(f"{target}@4000", corpus, "--from", small, *SMALL)  # its compute is not known, and the line below the table says so
    assert unknown.exit_code == 0, unknown.output
