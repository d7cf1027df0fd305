"""`palimpsest set-prompt`: continuing and weighing, in any order, and prompts that cannot be read."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.context.set_decoding import choice_logprobs
from palimpsest.context.set_prompting import SetPrompt

runner = CliRunner()
PROMPT = "The eye<|start_2d|> fox<|split_2d|> dog and the<|split_2d|> word<|end_2d|> was"
OTHER = "The eye<|start_2d|> word<|split_2d|> fox<|split_2d|> dog and the<|end_2d|> was"


@pytest.fixture
def run(tiny_model, monkeypatch):
    monkeypatch.setattr("palimpsest.models.load_model", lambda spec: tiny_model)

    def call(*arguments, code=0, **options):
        answer = runner.invoke(app, ["set-prompt", "any", *map(str, arguments)], **options)
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_a_prompt_is_continued_the_same_in_any_order(run, tmp_path):
    (tmp_path / "prompt.txt").write_text(OTHER)
    one = json.loads(run("--prompt", PROMPT, "--max-new-tokens", 8, "--json"))
    other = json.loads(run("--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", 8, "--json"))
    assert one["text"] == other["text"]
    assert one["tokens"] == 8
    assert other["prompt"] == OTHER
    assert run("--prompt", "-", "--max-new-tokens", 8, "--canonical", input=PROMPT).rstrip("\n") == one["text"].rstrip("\n")


def test_choices_are_weighed(run, tiny_model):
    options = ("--choices", " page", "--choices", "s", "--orders", 4)
    found = json.loads(run("--prompt", PROMPT, *options, "--json"))
    own = choice_logprobs(tiny_model, [SetPrompt.parse(PROMPT)], [[" page", "s"]])[0].tolist()
    assert [choice["logprob"] for choice in found["choices"]] == own
    assert found["chosen"] == own.index(max(own))
    assert found["orders"]["set"] | {"greatest_difference": 0.0} == {"orders": 4, "answers": 1, "greatest_difference": 0.0}
    assert found["orders"]["set"]["greatest_difference"] < 1e-4 < found["orders"]["plain"]["greatest_difference"]
    shown = run("--prompt", PROMPT, *options)
    assert "Read as a set: one answer in 4 orders" in shown
    assert "page" in shown
    bracketed = run("--prompt", PROMPT, "--choices", "[/page]", "--choices", "[s] t")
    assert "[/page]" in bracketed
    assert "[s] t" in bracketed


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--prompt", "no mark"), "holds no set"),
        (("--prompt", PROMPT + "<|end_2d|>"), "stands outside"),
        ((), "given nowhere"),
        (("--prompt", PROMPT, "--prompt-file", "x"), "given twice"),
        (("--prompt-file", "/nowhere/at/all"), "cannot be used"),
        (("--prompt", PROMPT, "--orders", 3), "answers are weighed"),
        (("--prompt", PROMPT, "--choices", ""), "without a token"),
        (("--prompt", PROMPT, "--choices", "s", "--orders", 3), "fewer than two"),
    ],
)
def test_what_cannot_be_asked_is_refused(run, arguments, problem):
    assert problem in run(*arguments, code=2)
