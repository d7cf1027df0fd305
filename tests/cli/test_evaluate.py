"""`palimpsest evaluate` as a person runs it: a plan, a folder of a model, a card; and every wrong plan."""

import json

import pytest
import tokenizers
import yaml
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.errors import InputError
from palimpsest.evaluation.card import load_card
from palimpsest.evaluation.protocol_plan import load_plan, read_docs, read_items
from palimpsest.measurement import Measurement
from palimpsest.taxonomy import MemoryKind

WEIGHTS = {"location": "weights", "persistence": "permanent", "write_path": "pretrain", "access_path": "forward"}
SMALL = {"text": "{evidence}\n{question}", "filler": "."}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model.model.save_pretrained(folder)
    backend = tokenizers.Tokenizer.from_str(tiny_model.tokenizer.backend.to_str())
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write(tmp_path, model):
    """Writes a plan with a world, changed as asked for; None leaves a field out."""

    def make(**changes):
        value = {
            "model": model,
            "world": {"seed": 1, "people": 20, "relation": "residence", "cut": "2012-01-01", "asked_at": "2024-01-01"},
            "template": SMALL,
            "budget": {"evidence_tokens": 40, "answer_tokens": 4, "k": 2},
            "memory": [WEIGHTS],
            "data": {"name": "a world", "licence": "CC0"},
            "limits": ["tiny"],
            **changes,
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({key: entry for key, entry in value.items() if entry is not None}))
        return path

    return make


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_a_plan_becomes_a_card(write, tmp_path):
    done = run(write(), "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    for part in ("param", "offline", "online", "fresh", "rescued", "20 items"):
        assert part in done.stdout
    card = load_card(tmp_path / "out" / "card.json")
    assert card.data.name == "a world"
    assert (tmp_path / "out" / "card.md").read_text().startswith("# tiny on a world")
    measured = Measurement.load(tmp_path / "out" / "measurement.json")
    assert measured.table.height == 60
    again = run(write(), "--out", tmp_path / "again", "--json")
    assert load_card(json.loads(again.stdout)).results == card.results


def test_items_and_documents_come_from_files(write, tmp_path):
    item = {
        "id": "q1",
        "question": "Who?",
        "golds": ["Ann"],
        "asked_at": "2020-01-01",
        "evidence_ids": ["d1"],
        "history": [
            {"golds": ["Bob"], "valid_from": "2000-01-01", "valid_to": "2010-01-01"},
            {"golds": ["Ann"], "valid_from": "2010-01-01"},
        ],
    }
    items = [item, {**item, "id": "q2", "question": "Who else?"}]
    docs = [{"id": "d1", "text": "Ann did it.", "published_at": "2015-01-01", "source": "press"}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "docs.jsonl").write_text("\n\n".join(map(json.dumps, docs)) + "\n")
    read = read_items(tmp_path / "items.jsonl")
    assert [value.golds for value in read[0].history] == [("Bob",), ("Ann",)]
    assert read[0].evidence_ids == {"d1"}
    assert read_docs(tmp_path / "docs.jsonl")[0].source == "press"
    plan = write(world=None, items="items.jsonl", snapshot="docs.jsonl", missing={"online": "no live store"})
    done = run(plan, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    card = load_card(json.loads(done.stdout))
    assert card.settings.online.reason == "no live store"
    assert card.data.item_ids == ["q1", "q2"]
    (tmp_path / "items.jsonl").write_text('{"id": "q1"}\n')
    assert "line 1" in run(plan).stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limits": []}, "limits"),
        ({"data": None}, "data: Field required"),
        ({"wordl": {}}, "wordl"),
        ({"template": {"txt": "x"}}, "unknown: txt"),
        ({"template": {"text": "no slots"}}, "slots"),
        ({"budget": {"k": 0}}, "k is 0"),
        ({"memory": [{**WEIGHTS, "where": "here"}]}, "unknown: where"),
        ({"memory": [{**WEIGHTS, "location": "cloud"}]}, "location"),
        ({"items": "x.jsonl"}, "not both"),
        ({"budget": {"evidence_tokens": 10**12}}, "1,000,000,000,000 tokens of evidence"),
        ({"world": None}, "needs items and snapshot"),
        ({"world": None, "items": "a", "snapshot": "b"}, "missing.online"),
        ({"world": None, "items": "a", "snapshot": "b", "live": "c"}, "cannot be read"),
    ],
)
def test_wrong_plans_are_refused(write, changes, says):
    done = run(write(**changes), "--json")
    assert done.exit_code == 2
    assert says in json.loads(done.stdout)["error"]["problem"]


def test_what_is_no_plan_is_refused(tmp_path):
    for text, says in (
        ("- a\n- b\n", "holds a list"),
        ("{", "cannot be read"),
        (None, "cannot be read"),
        ("model: 2020-99-99", "cannot be read"),
        (f"model: {'9' * 5000}", "cannot be read"),
        ("[" * 5000, "cannot be read"),
    ):
        path = tmp_path / "plan.json"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(InputError, match=says):
            load_plan(path)


ITEM = {"id": "q", "question": "Where?", "golds": ["Paris"], "asked_at": "2020-01-01"}
DOC = {"id": "d", "text": "In Paris.", "published_at": "2015-01-01"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"golds": "Paris"}, "golds of 'q' is 'Paris', not a list"),
        ({"evidence_ids": "doc"}, "evidence_ids of 'q' is 'doc', not a list"),
        ({"tags": "easy"}, "tags of 'q' is 'easy', not a list"),
        ({"golds": [1]}, "an entry of golds of 'q' is 1, not text"),
        ({"golds": None}, "not a list"),
        ({"golds": {"a": "b"}}, "not a list"),
        ({"id": 5}, "is 5, not text"),
        ({"question": ["Where?"]}, "not text"),
        ({"source": None}, "not text"),
        ({"slice": 3}, "not text"),
        ({"question": "Where \ud800?"}, "no character"),
        ({"kind_hint": "magic"}, "magic"),
        ({"history": [{"golds": "Paris", "valid_from": "2000-01-01"}]}, "golds of a value is 'Paris', not a list"),
    ],
)
def test_wrong_fields_of_an_item_are_refused_with_their_line(tmp_path, changes, says):
    (tmp_path / "items.jsonl").write_text(json.dumps({**ITEM, **changes}))
    with pytest.raises(InputError, match="line 1") as caught:
        read_items(tmp_path / "items.jsonl")
    assert says in str(caught.value)


@pytest.mark.parametrize("changes", [{"id": 5}, {"text": None}, {"text": "\udfff"}, {"source": ["press"]}])
def test_wrong_fields_of_a_document_are_refused_with_their_line(tmp_path, changes):
    (tmp_path / "docs.jsonl").write_text(json.dumps({**DOC, **changes}))
    with pytest.raises(InputError, match=r"line 1: .* of the document"):
        read_docs(tmp_path / "docs.jsonl")


@pytest.mark.parametrize(
    ("line", "says"),
    [("5", "holds a int"), ("null", "holds a NoneType"), ('"abc"', "holds a str"), ("[" * 100_000, "recursion"), ("{}", "no 'asked_at'")],
)
def test_a_line_that_is_no_object_is_refused(tmp_path, line, says):
    (tmp_path / "items.jsonl").write_text(line)
    with pytest.raises(InputError, match=f"line 1: .*{says}"):
        read_items(tmp_path / "items.jsonl")


def test_a_line_of_json_may_hold_what_unicode_calls_a_line_end(tmp_path):
    question = "Where\u2028is\x85it?"
    (tmp_path / "items.jsonl").write_text("\r\n".join([json.dumps({**ITEM, "question": question}, ensure_ascii=False)] * 2), newline="")
    assert [item.question for item in read_items(tmp_path / "items.jsonl")] == [question] * 2


def test_the_kind_that_an_item_hints_at_is_one(tmp_path):
    (tmp_path / "items.jsonl").write_text(json.dumps({**ITEM, "kind_hint": "parametric"}))
    assert read_items(tmp_path / "items.jsonl")[0].kind_hint is MemoryKind.PARAMETRIC
