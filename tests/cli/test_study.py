"""`palimpsest study`: what is read, what is shown, that the model stays as it is, and what is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.cli.study_files import read_facts, read_passages, read_texts
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement

runner = CliRunner()
PASSAGES = [{"title": f"T{n}", "sentences": [f"a{n} b.", f"c{n} d."], "questions": [["Who?", f"e{n}"]]} for n in range(5)]
FACTS = [{"subject": f"Ada{n}", "object": name} for n, name in enumerate(("Oslo", "Rome", "Bergen", "Turin", "Lima", "York"))]
SEEN = ["the quick brown fox jumps", "a palimpsest is a page", "and the word was written"]
STREAM = [f"sheep were counted {n} times by the five wizards" for n in range(12)]


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_model):
    """Runs the verb; files are written first."""
    monkeypatch.setattr("palimpsest.models.load_model", lambda name: tiny_model)
    before = tiny_model.fingerprint

    def call(command, files, *options, code=0):
        paths = []
        for number, lines in enumerate(files):
            paths.append(tmp_path / f"{number}.txt")
            paths[-1].write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
        answer = runner.invoke(app, ["study", command, "tiny", *map(str, (*paths, *options))])
        assert answer.exit_code == code, answer.output
        vars(tiny_model).pop("fingerprint", None)
        assert tiny_model.fingerprint == before
        return answer.output

    return call


def measured(text):
    return Measurement.from_json(text.splitlines()[-1])


def test_random_access(run, tmp_path):
    options = ("--held-out", 2, "--epochs", 1, "--lr", 0.01)
    shown = run("random-access", [PASSAGES], *options)
    assert [line.split()[0] for line in shown.splitlines()[-4:]] == ["place", "all", "1", "2"]
    found = measured(run("random-access", [PASSAGES], *options, "--task", "grounded_qa", "--id", "context", "--remedy", "recite", "--json"))
    assert found.table["gold"].str.starts_with("e").all()
    assert found.summary["all"]["control_exact"] is None
    run("random-access", [PASSAGES], *options, "--out", tmp_path / "m.json")
    assert Measurement.load(tmp_path / "m.json").table.height == 4


def test_rote(run):
    options = ("--prompt", "{s} was born in", "--rote-epochs", 1, "--lr", 0.001)
    assert "chance is 16.7%" in run("rote", [FACTS], *options)
    found = measured(run("rote", [FACTS], *options, "--unseen", "The home of {s} is", "--loss", "s-o", "--taught", 0.34, "--json"))
    assert list(found.summary["kinds"]) == ["taught", "unseen", "key"]
    assert found.summary["facts"] == 4
    assert found.summary["memorized"] == 0


def test_retention(run):
    options = ("--exposures", 2, "--updates", 3, "--lr", 0.001, "--batch-size", 2)
    shown = run("retention", [SEEN, STREAM], *options)
    assert [line.split()[:3] for line in shown.splitlines()[-6:]] == [
        ["before", "0", "0"], ["study", "1", "0"], ["study", "2", "0"], ["stream", "2", "0"], ["stream", "2", "1"], ["stream", "2", "3"],
    ]  # fmt: skip
    found = measured(run("retention", [SEEN, STREAM], *options, "--massed", "--keep-optimizer", "--json"))
    assert found.provenance["keep_optimizer"]
    assert [row["exposures"] for row in found.summary["asked"] if row["phase"] == "study"] == [2]


def test_foils_are_read(run, tmp_path):
    (tmp_path / "foils.txt").write_text("\n".join(SEEN))
    assert "3 foils or texts of the stream are studied" in run("retention", [SEEN, STREAM], "--foils", tmp_path / "foils.txt", code=2)


@pytest.mark.parametrize(
    ("command", "files", "options", "said"),
    [
        ("random-access", [PASSAGES], ("--task", "half"), "'half'"),
        ("random-access", [PASSAGES], ("--held-out", 1), "1 of 5 passages"),
        ("random-access", [[{"title": "T"}]], (), "Line 1 of"),
        ("rote", [FACTS], ("--prompt", "was born in"), "{s}"),
        ("rote", [FACTS], ("--prompt", "{s} is", "--taught", 1.0), "6 of 6 usable facts"),
        ("rote", [FACTS], ("--prompt", "{s} is", "--rote-epochs", 1, "--loss", "half"), "'half'"),
        ("rote", [[FACTS[0]]], ("--prompt", "{s} is"), "'Oslo'"),
        ("retention", [SEEN, SEEN], (), "3 of them seen"),
        ("retention", [[], STREAM], (), "holds no text"),
        ("retention", [SEEN, STREAM[:3]], (), "All 3 texts"),
    ],
)
def test_what_cannot_be_studied_is_refused(run, command, files, options, said):
    assert said in " ".join(run(command, files, *options, code=2).split())


def test_files(tmp_path):
    path = tmp_path / "x"
    path.write_text("\n".join(map(json.dumps, [*FACTS[:2], {**FACTS[2], "distractors": ["Lund"]}])))
    assert [fact.distractors for fact in read_facts(path)] == [("Rome", "Bergen"), ("Oslo", "Bergen"), ("Lund",)]
    path.write_text(json.dumps(PASSAGES[0]) + "\n\n")
    [passage] = read_passages(path)
    path.write_text(json.dumps({**PASSAGES[0], "title": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_passages(path)[0].title == "a\u2028b"
    assert (passage.title, passage.sentences, passage.questions) == ("T0", ("a0 b.", "c0 d."), (("Who?", "e0"),))
    for bad in ('{"title": "T", "sentences": "a"}', '{"title": "", "sentences": ["a"]}', '{"title": "T", "sentences": [1]}', "[]", "{"):
        path.write_text(bad)
        with pytest.raises(InputError, match="Line 1 of"):
            read_passages(path)
    for reader in (read_passages, read_facts, read_texts):
        with pytest.raises(InputError, match="cannot be read"):
            reader(tmp_path / "none")
        path.write_text("\n")
        with pytest.raises(InputError, match="holds no"):
            reader(path)
