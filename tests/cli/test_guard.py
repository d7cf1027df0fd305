"""`palimpsest guard`: build, check and generate on a tiny model, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.corpus import BloomFilter, CorpusIndex
from palimpsest.models import load_model
from palimpsest.models.hf import quiet
from palimpsest.tokenizer import Tokenizer

runner = CliRunner()
TEXTS = ["In the beginning was the word, and the word was written down.", "The quick brown fox jumps over the lazy dog."]
PROMPT = "The five boxing wizards"


def run(*arguments: object, code: int = 0, stdin: str | None = None):
    answer = runner.invoke(app, ["guard", *map(str, arguments)], input=stdin)
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Path:
    """A folder with texts, a tokenizer, a model, an index, and a filter of 3-grams of the texts and of what the model writes."""
    root = tmp_path_factory.mktemp("guard")
    tokenizer = tiny_model.tokenizer
    (root / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (root / "texts" / f"{number}.txt").write_text(text)
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tokenizer.save(root / "model" / "tokenizer.json")
    (root / "model" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    )
    tokenizer = load_model(root / "model").tokenizer
    tokenizer.save(root / "tokenizer.json")
    CorpusIndex.build(root / "texts", tokenizer, root / "index")
    prefix = tokenizer.encode(PROMPT)
    docs = [[*prefix, *tiny_model.generate([prefix], 20)[0][0].tolist()], *tokenizer.encode_batch(TEXTS)]
    BloomFilter.from_documents(docs, 3, 1e-6, tokenizer_fingerprint=tokenizer.fingerprint).save(root / "own.bloom")
    return root


@pytest.mark.parametrize("source", ["texts", "index"])
def test_build_from_text_and_from_an_index(place, source):
    options = [] if source == "index" else ["--tokenizer", place / "tokenizer.json"]
    card = json.loads(run("build", place / source, "--out", place / f"{source}.bloom", "--n", 4, *options, "--json").stdout)
    bloom = BloomFilter.load(place / f"{source}.bloom")
    tokenizer = Tokenizer.from_file(place / "tokenizer.json")
    rows = tokenizer.encode_batch(TEXTS)
    assert card["ngrams"] == bloom.count == len({tuple(row[i : i + 4]) for row in rows for i in range(len(row) - 3)})
    assert card["tokenizer"] == bloom.tokenizer_fingerprint == tokenizer.fingerprint
    assert bloom.contains([row[:4] for row in rows]).all()
    assert "4-grams in" in run("build", place / source, "--out", place / "again.bloom", "--n", 4, *options).stdout


@pytest.mark.parametrize("source", ["index", "own.bloom"])
def test_check_marks_the_shared_passages(place, tiny_tokenizer, source):
    options = [] if source == "index" else ["--tokenizer", place / "tokenizer.json"]
    text = "He said: the quick brown fox jumps, and was the word and the"
    ids = tiny_tokenizer.encode(text)
    rows = [tuple(row) for row in tiny_tokenizer.encode_batch(TEXTS)]
    grams = {row[i : i + 3] for row in rows for i in range(len(row) - 2)}
    inside = {p for t in range(len(ids) - 2) if tuple(ids[t : t + 3]) in grams for p in range(t, t + 3)}
    answer = json.loads(run("check", place / source, text, "--n", 3, *options, "--json").stdout)
    assert {p for span in answer["spans"] for p in range(span["start"], span["end"])} == inside
    assert answer["protected_tokens"] == len(inside) > 0
    assert any("brown fox jumps" in span["text"] for span in answer["spans"])
    shown = run("check", place / source, "-", "--n", 3, *options, stdin=text).stdout
    assert f"{len(inside)} of {len(ids)} tokens" in shown
    assert "He said" in shown


@pytest.mark.parametrize("how", [[], ["--temperature", 1, "--top-k", 20, "--seed", 3], ["--beams", 3]], ids=["greedy", "sampled", "beam"])
def test_generate_shows_what_the_guard_stops(place, how):
    arguments = ["generate", place / "model", "--protect", place / "own.bloom", "--prompt", PROMPT, "--max-new-tokens", 20, *how]
    value = json.loads(run(*arguments, "--json").stdout)
    assert value["prompt"] == PROMPT
    assert value["guarded"]["protected_ngrams"] == 0
    assert value["counts"]["violations"] == 0
    if not how:
        assert value["free"]["protected_ngrams"] == value["free"]["tokens"] > 0  # the filter holds all that the model writes
        assert value["counts"]["blocked"] > 0
        assert value["guarded"]["text"] != value["free"]["text"]
    shown = run(*arguments).stdout
    assert "Freely" in shown
    assert "Under guard: 0 protected 3-grams" in shown


def test_check_finds_what_is_close(place, tiny_tokenizer):
    text = "He said: the quick brown cat jumps over the lazy"
    ids = tiny_tokenizer.encode(text)
    answers = [json.loads(run("check", place / "index", text, "--n", 12, "--approximate", k, "--json").stdout) for k in (0, 4)]
    assert [answer["approximate"] for answer in answers] == [0, 4]
    assert answers[0]["spans"] == []
    assert any("brown cat jumps" in span["text"] for span in answers[1]["spans"])
    shown = " ".join(run("check", place / "index", text, "--n", 12, "--approximate", 4).stdout.split())
    stand = f"{answers[1]['protected_tokens']} of {len(ids)} tokens stand in"
    assert f"{stand} 12-grams within 4 edits of a protected passage" in shown


def test_generate_keeps_a_distance(place, tiny_model):
    """What the model writes is protected; to the letter it comes out nearly the same, with edits allowed for it does not."""
    prefix = load_model(place / "model").tokenizer.encode(PROMPT)
    whole = [*prefix, *tiny_model.generate([prefix], 20)[0][0].tolist()]
    own = CorpusIndex.build([whole], load_model(place / "model").tokenizer, place / "own")
    arguments = ["generate", place / "model", "--protect", own.path, "--prompt", PROMPT, "--max-new-tokens", 20, "--n", 8, "--top-k", 0]
    value = json.loads(run(*arguments, "--approximate", 2, "--json").stdout)
    assert (value["n"], value["approximate"]) == (8, 2)
    assert value["free"]["protected_ngrams"] == value["free"]["tokens"] - 2
    assert value["guarded"]["protected_ngrams"] == value["counts"]["violations"] == 0
    shown = " ".join(run(*arguments, "--approximate", 2).stdout.split())
    assert "Under guard: 0 8-grams within 2 edits of a protected passage" in shown


def test_what_goes_wrong(place, tmp_path):
    model = place / "model"
    cases = [
        (["build", place / "none", "--out", tmp_path / "f", "--model", model], "no corpus"),
        (["build", place / "texts", "--out", tmp_path / "f"], "one tokenizer"),
        (["build", place / "texts", "--out", tmp_path / "f", "--model", model, "--n", 90], "has 90 tokens"),
        (["build", place / "texts", "--out", tmp_path / "f", "--model", model, "--fp-rate", 2], "false-positive rate"),
        (["check", place / "none.bloom", "text"], "no Bloom filter"),
        (["check", place / "own.bloom", "text"], "holds no tokenizer"),
        (["check", place / "index", "", "--n", 3], "empty"),
        (["check", place / "own.bloom", "text", "--model", model, "--n", 4], "asked for n=4"),
        (["check", place / "own.bloom", "text", "--model", model, "--approximate", 1], "holds no passages"),
        (["check", place / "index", "text", "--n", 3, "--approximate", 2], "Give n of at least 4"),
        (["generate", model, "--protect", place / "own.bloom", "--prompt", ""], "prompt is empty"),
        (["generate", place / "texts", "--protect", place / "own.bloom", "--prompt", "x"], "config.json"),
    ]
    for arguments, problem in cases:
        answer = run(*arguments, code=2)
        assert problem in answer.stderr
        assert "Traceback" not in answer.output
    assert not (tmp_path / "f").exists()
    other = CorpusIndex.build([[5, 6, 7, 8]], None, tmp_path / "ids")
    BloomFilter.from_documents([[5, 6, 7, 8]], 3, tokenizer_fingerprint="0" * 64).save(tmp_path / "other.bloom")
    assert "Give --ids" in run("check", other.path, "text", "--n", 3, code=2).stderr
    assert "does not belong" in run("check", tmp_path / "other.bloom", "text", "--model", model, code=2).stderr
    assert "tokenizer" in run("generate", model, "--protect", tmp_path / "other.bloom", "--prompt", "x", code=2).stderr
