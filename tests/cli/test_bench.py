"""`palimpsest bench context`: the table, the page, what is kept, and what is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app, bench
from palimpsest.experiments import short_context_lm
from palimpsest.models.quiet import quiet

runner = CliRunner()
FILLER = "The sea was calm. Nobody spoke of it. A boat went out, and it came back.\n" * 60


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("bench")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tiny_model.tokenizer.save(root / "model" / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (root / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    return root


@pytest.fixture(autouse=True)
def texts(monkeypatch):
    found = short_context_lm.ShortTexts("test", (FILLER,), (FILLER.split("\n"),))
    monkeypatch.setattr(short_context_lm, "short_texts", lambda: found)


def run(*options, code=0):
    answer = runner.invoke(app, ["bench", "context", *map(str, options)])
    assert answer.exit_code == code, answer.output
    return answer


def test_methods_are_compared_in_a_table_and_on_a_page(place):
    small = ("--model", place / "model", "--lengths", "140,180", "--samples", 4, "--threads", 1, "--chunk", 64, "--out", place / "out")
    chosen = ("--methods", "full snapkv:window=8", "--budget", 0.25, "--measures", "passkey stream speed")
    value = json.loads(run(*small, *chosen, "--json").stdout)
    rows = value["models"][0]["rows"]
    assert [(row["method"], row["length"]) for row in rows] == [
        ("full", 140),
        ("full", 180),
        ("snapkv:window=8", 140),
        ("snapkv:window=8", 180),
    ]
    assert rows[3]["settings"].startswith("SnapKV(budget=45, window=8")
    assert rows[3]["bytes"] < rows[1]["bytes"] / 2
    assert rows[1]["decode_tokens_per_second"] > 0
    assert "multi-needle" not in rows[0]
    html = (place / "out" / "index.html").read_text()
    assert "snapkv:window=8" in html
    assert "5 questions about one key, intervals of 95 %. Questions were not seen" in " ".join(html.split())
    assert "readings" not in html
    assert json.loads((place / "out" / "bench.json").read_text()) == value
    assert len(list((place / "out" / "cells").iterdir())) == 8
    shown = run(*small, *chosen).stdout
    assert "The page is" in shown
    assert "snapkv" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lengths", "many"), "numbers of tokens"),
        (("--methods", "no-such"), "no-such"),
        (("--methods", "h2o:size=3"), "no option 'size'"),
        (("--methods", "h2o:budget"), "has no value"),
        (("--measures", "beauty"), "Choose from passkey"),
    ],
)
def test_what_is_refused_says_what_to_do(place, options, said):
    answer = run("--model", place / "model", *options, code=2)
    assert said in " ".join(answer.output.split())


def test_lengths_and_methods_follow_the_model():
    assert bench.suite_config("smollm2-135m", None, True, 20, False, None, 256, 2, 0).lengths == (512, 1024, 4096, 8192)
    assert bench.suite_config(bench.SHORT, None, True, 20, False, None, 256, 2, 0).lengths == (256, 1024, 4096, 8192)
    made = bench.factories(bench.SHORT, None, 0.5)
    assert (made["infllm"](8192).n_local, made["lm-infinite"](8192).n_local) == (128, 128)
    assert made["full"](1024) is None
    assert repr(made["pi"](1024)) == "PI(factor=4.0)"
    assert made["streaming-llm"](1024).budget == 512
