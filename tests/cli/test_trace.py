"""`palimpsest trace`: a text, a text that a model writes, the page, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.models import load_model
from palimpsest.models.quiet import quiet

runner = CliRunner()
TEXTS = {
    "a.txt": "In the beginning was the word, and the word was <written> down.",
    "b.txt": "The quick brown fox jumps over the lazy dog.",
}
QUOTE = "He said: the quick brown fox jumps overmuch."
PROMPT = "The five boxing wizards"


def run(*arguments: object, code: int = 0, stdin: str | None = None):
    answer = runner.invoke(app, ["trace", *map(str, arguments)], input=stdin)
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Path:
    """A folder with a model, and an index of two texts and of what the model writes."""
    root = tmp_path_factory.mktemp("trace")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tiny_model.tokenizer.save(root / "model" / "tokenizer.json")
    (root / "model" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    )
    model = load_model(root / "model")
    written = model.generate([model.tokenizer.encode(PROMPT)], 16)[0][0]  # as ids: the text of a random model has other ones
    documents = [Document(name, text) for name, text in TEXTS.items()]
    CorpusIndex.build([*documents, Document("c.txt", ids=written)], model.tokenizer, root / "index")
    return root


@pytest.mark.parametrize("stdin", [False, True])
def test_a_quotation_is_found_with_its_document(place, stdin):
    arguments = ["-" if stdin else QUOTE, "--index", place / "index", "--min-len", 6]
    value = json.loads(run(*arguments, "--json", stdin=QUOTE if stdin else None).stdout)
    assert value["text"] == QUOTE
    assert [QUOTE[s["start"] : s["end"]] for s in value["spans"]] == [" quick brown fox jumps over"]
    assert [d["document"] for d in value["documents"]] == ["b.txt"]
    assert value["spans"][0]["documents"][0]["before"] == "The"
    shown = run(*arguments, stdin=QUOTE if stdin else None).stdout
    assert "b.txt" in shown
    assert "1 passage, 1 document." in shown
    assert "He said: the[ quick brown fox jumps over]much." in shown
    words = json.loads(run(*arguments, "--whole-words", "--json", stdin=QUOTE if stdin else None).stdout)["spans"]
    assert [QUOTE[s["start"] : s["end"]] for s in words] == [" quick brown fox jumps"]


def test_what_a_model_writes_is_traced(place):
    value = json.loads(
        run("--model", place / "model", "--prompt", PROMPT, "--index", place / "index", "--max-new-tokens", 16, "--json").stdout
    )
    assert value["prompt"] == PROMPT
    assert value["covered"] == 1.0
    assert value["documents"][0]["document"] == "c.txt"
    assert value["model"]["name"]


def test_the_page_holds_all_and_escapes_it(place, tmp_path):
    page = tmp_path / "trace.html"
    assert str(page) in run("and the word was <written> down", "--index", place / "index", "--html", page).stdout.replace("\n", "")
    html = page.read_text()
    assert "&lt;written&gt;" in html
    assert "<written>" not in html
    assert "a.txt" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_nothing_found_is_said(place):
    assert "No passage of 8 tokens" in run("0123456789", "--index", place / "index").stdout
    assert json.loads(run("0123456789", "--index", place / "index", "--json", "--rarest").stdout)["spans"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["words"], "--index"),
        (["--index", "INDEX"], "One text is needed"),
        (["words", "--index", "INDEX", "--model", "MODEL", "--prompt", "x"], "One text is needed"),
        (["--index", "INDEX", "--model", "MODEL"], "One text is needed"),
        (["words", "--index", "INDEX", "--prompt", "x"], "One text is needed"),
        (["", "--index", "INDEX"], "empty"),
        (["--index", "INDEX", "--model", "MODEL", "--prompt", ""], "empty"),
        (["words", "--index", "nowhere"], "nowhere"),
    ],
)
def test_what_goes_wrong_says_what_to_do(place, arguments, says):
    names = {"INDEX": place / "index", "MODEL": place / "model"}
    answer = run(*(names.get(a, a) for a in arguments), code=2)
    assert answer.stderr.startswith("error: ")
    assert says in answer.stderr
