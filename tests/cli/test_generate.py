"""`palimpsest generate`: the text of the model's own decoding, under a method and without, and what is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.models.quiet import quiet

runner = CliRunner()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("generate")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tiny_model.tokenizer.save(root / "model" / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (root / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    (root / "template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[end]")
    (root / "book.txt").write_text("It rained all day. Nobody came. " * 3)
    return root


def run(place, *options, prompt="The sea was calm.", code=0, stdin=None):
    arguments = ["generate", place / "model", "--prompt", prompt, "--max-new-tokens", 6, *options]
    answer = runner.invoke(app, list(map(str, arguments)), input=stdin)
    assert answer.exit_code == code, answer.output
    return answer


def test_the_text_is_that_of_the_model_with_and_without_a_method_that_keeps_all(place, tiny_model):
    ids = tiny_model.tokenizer.encode("The sea was calm.")
    [[expected]] = tiny_model.generate([ids], 6)
    plain = json.loads(run(place, "--json").stdout)
    assert plain["text"] == tiny_model.tokenizer.decode(expected)
    assert plain["method"] == "Full"
    assert plain["prompt_tokens"] == len(ids)
    assert plain["cache_bytes"]["prefill"] == len(ids) * 512
    kept = json.loads(run(place, "--context", "h2o", "--option", "budget=100", "--json").stdout)
    assert kept["text"] == plain["text"]
    assert kept["budget"] == 100
    assert kept["settings"].startswith("H2O(budget=100")
    few = json.loads(run(place, "--context", "h2o", "--option", "budget=8", "--chunk", 4, "--json").stdout)
    assert few["cache_bytes"]["prefill"] < plain["cache_bytes"]["prefill"]


def test_text_and_costs_are_shown(place, tiny_model):
    shown = run(place, "--temperature", 1, "--seed", 4)
    ids = tiny_model.tokenizer.encode("The sea was calm.")
    [[expected]] = tiny_model.generate([ids], 6, temperature=1.0, seed=4)
    assert tiny_model.tokenizer.decode(expected) in shown.stdout
    assert "Full attention: read" in shown.stderr
    assert "MB at most" in shown.stderr


def test_a_document_stands_before_the_prompt_inside_of_the_template(place, tiny_model):
    encode = tiny_model.tokenizer.encode
    book = (place / "book.txt").read_text()
    [[expected]] = tiny_model.generate([encode("[user]" + book) + encode("\n\nWho came?[assistant]")], 6)
    options = ("--document", place / "book.txt", "--template", place / "template.jinja", "--json")
    assert json.loads(run(place, *options, prompt="-", stdin="Who came?").stdout)["text"] == tiny_model.tokenizer.decode(expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--context", "no-such"), "no-such"),
        (("--context", "h2o", "--option", "budget"), "has no value"),
        (("--option", "budget=4"), "Name it with --context"),
        (("--context", "h2o", "--option", "budget=x"), "an integer"),
        (("--max-new-tokens", 500), "--context infllm"),
        (("--max-new-tokens", 500, "--context", "full"), "--context infllm"),
        (("--max-new-tokens", 500, "--context", "h2o", "--option", "budget=20"), "goes beyond"),
        (("--chat",), "no chat template"),
        (("--document", "none.txt"), "none.txt"),
    ],
)
def test_what_is_refused_says_what_to_do(place, options, said):
    answer = run(place, *options, code=2)
    assert said in " ".join(answer.output.split())
    empty = runner.invoke(app, ["generate", str(place / "model"), "--prompt", " "])
    assert empty.exit_code == 2
    assert "The prompt is empty" in empty.output
