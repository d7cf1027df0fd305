"""`palimpsest traps`: make, inject and detect from end to end, and what goes wrong."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from palimpsest.audit.traps_injection import Manifest, remove
from palimpsest.cli import app

runner = CliRunner()
TEXTS = [f"{i} " + "In the beginning was the word, and the word was written down. " * 3 for i in range(6)]


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["traps", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """A folder with a model, its traps, documents and what `inject` made of them."""
    path = tmp_path_factory.mktemp("traps")
    tiny_model.model.save_pretrained(path / "model")
    fast = PreTrainedTokenizerFast(tokenizer_object=tiny_model.tokenizer.backend, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(path / "model")
    (path / "texts.jsonl").write_text("".join(json.dumps({"name": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    options = (
        "--traps",
        8,
        "--length",
        "6",
        "--temperatures",
        "0.5,1",
        "--buckets",
        "1-1e9",
        "--cell",
        1e9,
        "--max-jaccard",
        0.6,
        "--batch",
        32,
        "--json",
    )
    value = json.loads(run("make", path / "model", "--out", path / "traps.json", *options).stdout)
    assert value["traps"] == 8
    plant = ("--out", path / "out", "--copies", "1,4", "--min-words", 5, "--json")
    value = json.loads(run("inject", path / "texts.jsonl", path / "traps.json", *plant).stdout)
    assert value | {"out": ""} == {"out": "", "documents": 6, "planted": 4, "copies": 10, "seed": 0}
    return path


def test_documents_keep_their_fields_and_can_be_restored(folder):
    records = [json.loads(line) for line in (folder / "out" / "documents.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == list(range(6))
    manifest = Manifest.load(folder / "out" / "manifest.json")
    new = [record["text"] for record in records]
    assert sum(a != b for a, b in zip(new, TEXTS, strict=True)) == 4
    assert remove(new, manifest) == TEXTS


def test_detect_with_reference_and_context(folder):
    manifest = folder / "out" / "manifest.json"
    value = json.loads(run("detect", folder / "model", manifest, "--reference", folder / "model", "--json").stdout)
    assert value["owner"]["p"] == 1.0  # every ratio is one, and ties count against the owner
    assert {row["auc"] for row in value["levels"] if row["method"] == "ratio"} == {0.5}
    context = ("--documents", folder / "out" / "documents.jsonl", "--context-tokens", 4, "--out", folder / "found.json")
    shown = run("detect", folder / "model", manifest, *context).stdout
    assert "perplexity" in shown
    assert "with probability" in " ".join(shown.split())
    assert json.loads((folder / "found.json").read_text())["name"] == "traps"


def test_the_messages_without_json(folder, tmp_path):
    options = ("--traps", 1, "--length", "5", "--buckets", "1-1e9", "--cell", 1e9, "--batch", 16)
    assert "1 traps, of" in run("make", folder / "model", "--out", tmp_path / "one.json", *options).stdout
    shown = run("inject", folder / "texts.jsonl", folder / "traps.json", "--out", tmp_path / "out", "--copies", "1", "--min-words", 5)
    assert "4 traps planted, 4 copies in all, in 6 documents" in shown.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("make", "m", "--out", "x", "--length", "a"), "--length is 'a'"),
        (("make", "m", "--out", "x", "--temperatures", "1,b"), "--temperatures is '1,b'"),
        (("make", "m", "--out", "x", "--buckets", "7"), "--buckets holds '7'"),
        (("inject", "{}/none.jsonl", "{}/traps.json", "--out", "{}/o"), "none.jsonl cannot be read"),
        (("inject", "{}/texts.jsonl", "{}/traps.json", "--out", "{}/o", "--copies", "1,10"), "4000 words"),
        (("inject", "{}/texts.jsonl", "{}/texts.jsonl", "--out", "{}/o"), "not JSON"),
        (("detect", "{}/model", "{}/traps.json"), "not a manifest"),
        (("detect", "{}/model", "{}/out/manifest.json", "--context-tokens", "3"), "without documents"),
    ],
)
def test_errors_say_what_is_wrong(folder, arguments, says):
    answer = run(*(str(argument).format(folder) for argument in arguments), "--json", code=2)
    assert says in json.loads(answer.stdout.splitlines()[-1])["error"]["problem"]


def test_a_text_must_be_a_string(folder, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": 1}\n')
    answer = run("inject", tmp_path / "bad.jsonl", folder / "traps.json", "--out", tmp_path, "--json", code=2)
    assert "is a int" in json.loads(answer.stdout)["error"]["problem"]
