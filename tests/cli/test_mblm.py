"""`palimpsest mblm`: train, evaluate, complete and explain on a few sentences, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.models.memory_based import MemoryBasedLM

runner = CliRunner()
TEXTS = ["In the beginning was the word, and the word was written down.", "The quick brown fox jumps over the lazy dog."]


def run(*arguments: object, code: int = 0, stdin: str | None = None):
    answer = runner.invoke(app, ["mblm", *map(str, arguments)], input=stdin)
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_tokenizer) -> Path:
    """A folder with texts, a tokenizer and a model."""
    root = tmp_path_factory.mktemp("mblm")
    (root / "texts").mkdir()
    (root / "more").mkdir()
    for number, text in enumerate(TEXTS):
        (root / "texts" / f"{number}.txt").write_text(text)
    (root / "more" / "new.txt").write_text("The five boxing wizards jump quickly.")
    tiny_tokenizer.save(root / "tokenizer.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(root / "cache"))
        run("train", root / "texts", "--out", root / "model", "--tokenizer", root / "tokenizer.json", "--n", 3)
        yield root


def test_train_learns_every_token(place, tmp_path, tiny_tokenizer):
    options = ["--algorithm", "ib1", "--k", 2, "--decay", "linear", "--weights", "none", "--backoff", "stop", "--n", 2]
    card = json.loads(
        run("train", place / "texts", "--out", tmp_path / "m", "--tokenizer", place / "tokenizer.json", *options, "--json").stdout
    )
    assert card["tokens"] == sum(map(len, tiny_tokenizer.encode_batch(TEXTS)))
    assert (card["documents"], card["algorithm"], card["k"], card["decay"], card["n"]) == (2, "ib1", 2, "linear", 2)
    assert card["feature_weights"] == [1, 1]
    assert card["bytes"] == sum(path.stat().st_size for path in (tmp_path / "m").iterdir())
    tokenizer = next(path for path in (tmp_path / "m").iterdir() if path.name.startswith("tokenizer."))
    assert card["bytes_per_token"] == (card["bytes"] - tokenizer.stat().st_size) / card["tokens"]
    assert MemoryBasedLM.load(tmp_path / "m").settings["backoff"] == "stop"
    before = MemoryBasedLM.load(tmp_path / "m").memory.sources
    card = json.loads(run("train", place / "more", "--out", tmp_path / "m", "--add", "--json").stdout)
    added = MemoryBasedLM.load(tmp_path / "m")
    assert added.memory.sources == [*before, "new.txt"]
    assert card["documents"] == 3
    whole = MemoryBasedLM(2, "ib1", k=2, decay="linear", weights="none", backoff="stop").fit(
        [*TEXTS, (place / "more" / "new.txt").read_text()], tiny_tokenizer
    )
    contexts = [tiny_tokenizer.encode("The f"), [5]]
    np.testing.assert_allclose(added.probabilities(contexts), whole.probabilities(contexts))
    shown = run("train", place / "texts", "--out", tmp_path / "n", "--tokenizer", place / "tokenizer.json").stdout
    assert f"{sum(map(len, tiny_tokenizer.encode_batch(TEXTS)))} tokens of 2 documents" in shown.replace("\n", "")


def test_eval_counts_hits_and_weighs_surprise(place, tiny_tokenizer):
    found = json.loads(run("eval", place / "model", place / "texts", "--json").stdout)
    lm = MemoryBasedLM.load(place / "model")
    rows = tiny_tokenizer.encode_batch(TEXTS)
    nll = -np.concatenate([lm.logprobs(row) for row in rows]).mean()
    assert found["perplexity"] == pytest.approx(np.exp(nll))
    assert found["accuracy"] == pytest.approx(np.mean([lm.predict([row[:t]])[0] == row[t] for row in rows for t in range(len(row))]))
    assert found["tokens"] == sum(map(len, rows))
    assert f"{100 * found['accuracy']:.2f} %" in run("eval", place / "model", place / "texts").stdout


def test_eval_says_what_has_no_vote(place, tmp_path):
    run("train", place / "texts", "--out", tmp_path / "m", "--tokenizer", place / "tokenizer.json", "--backoff", "stop")
    found = json.loads(run("eval", tmp_path / "m", place / "more", "--json").stdout)
    assert found["n_zero"] > 0
    assert (found["nll"], found["perplexity"]) == (None, None)
    assert "infinite" in run("eval", tmp_path / "m", place / "more").stdout


def test_complete_goes_on_as_the_text_did(place):
    value = json.loads(run("complete", place / "model", "--prompt", "The quick brown", "--max-new-tokens", 12, "--json").stdout)
    assert TEXTS[1].startswith(value["prompt"] + value["text"])
    assert value["tokens"] == 12
    shown = run("complete", place / "model", "--prompt", "-", "--max-new-tokens", 12, stdin="The quick brown").stdout
    assert value["text"] in shown.replace("\n", "")
    options = ["--temperature", 1, "--top-k", 5, "--top-p", 0.9, "--seed", 3, "--remember", "text"]
    again = [run("complete", place / "model", "--prompt", "The", *options).stdout for _ in range(2)]
    assert again[0] == again[1]


def test_written_tokens_have_an_origin(place):
    value = json.loads(run("complete", place / "model", "--prompt", "The quick brown", "--max-new-tokens", 5, "--explain", "--json").stdout)
    assert "".join(entry["token"] for entry in value["origins"]) == value["text"]
    assert all(entry["nearest"]["source"] == "1.txt" and entry["winner"] == entry["token"] for entry in value["origins"])
    assert "1.txt:" in run("complete", place / "model", "--prompt", "The quick brown", "--explain").stdout


def test_explain(place, tiny_tokenizer):
    value = json.loads(run("explain", place / "model", "over the", "--json").stdout)
    rows = tiny_tokenizer.encode_batch(TEXTS)
    for near in value["neighbours"]:
        row = rows[near["document"]]
        window = [None] * 3 + row
        assert near["token"] == row[near["offset"]]
        assert near["window"] == window[near["offset"] : near["offset"] + 3]
    assert value["winner"] == value["votes"][0]["token"]
    shown = run("explain", place / "model", "over the").stdout
    assert "After this text wins" in shown
    assert f"{value['neighbours'][0]['source']}:{value['neighbours'][0]['offset']}" in shown
    every = json.loads(run("explain", place / "model", "the lazy cat", "--every", "--json").stdout)["origins"]
    assert "".join(entry["token"] for entry in every) == "the lazy cat"
    assert any(entry["nearest"] is None for entry in every)
    assert "no neighbour votes for it" in run("explain", place / "model", "the lazy cat", "--every").stdout


def test_what_goes_wrong(place, tmp_path):
    train = ["train", place / "texts", "--out", tmp_path / "m"]
    tokenizer = ["--tokenizer", place / "tokenizer.json"]
    cases = [
        (train, "one tokenizer"),
        ([*train, *tokenizer, "--algorithm", "knn"], "igtree, ib1, tribl2"),
        ([*train, *tokenizer, "--k", 2], "single node"),
        ([*train, "--add"], "no memory-based model"),
        (["train", place / "texts", "--out", place / "model", *tokenizer], "Give --add"),
        (["train", place / "texts", "--out", place / "model", "--add", *tokenizer], "Leave out --tokenizer"),
        (["train", place / "texts", "--out", place / "texts", *tokenizer], "holds no memory-based model"),
        (["train", place / "none", "--out", tmp_path / "m", *tokenizer], "no corpus"),
        (["eval", tmp_path / "m", place / "texts"], "no memory-based model"),
        (["complete", place / "model", "--prompt", ""], "empty"),
        (["complete", place / "model", "--prompt", "x", "--remember", "all"], "nothing, prompt, text"),
        (["explain", place / "model", ""], "empty"),
    ]
    for arguments, problem in cases:
        answer = run(*arguments, code=2)
        assert problem in answer.stderr, (arguments, answer.stderr)
        assert "Traceback" not in answer.output
    assert not (tmp_path / "m").exists()
