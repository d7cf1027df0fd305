"""`palimpsest index`: every command on a small corpus, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.corpus import CorpusIndex

runner = CliRunner()
TEXTS = {"a.txt": "the fox and the hound met the fox again", "b.txt": "fox tales: and the fox slept"}


def run(*arguments: object, code: int = 0):
    answer = runner.invoke(app, ["index", *map(str, arguments)])
    assert answer.exit_code == code, answer.output
    return answer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny_tokenizer) -> Path:
    """A folder with two texts and the tokenizer beside it."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "texts").mkdir()
    for name, text in TEXTS.items():
        (root / "texts" / name).write_text(text)
    tiny_tokenizer.save(root / "tokenizer.json")
    return root


@pytest.fixture(scope="module")
def index(corpus: Path) -> Path:
    """The index of that folder, built by the command."""
    built = json.loads(run("build", corpus / "texts", "--tokenizer", corpus / "tokenizer.json", "--out", corpus / "index", "--json").stdout)
    assert built["documents"] == 2
    return corpus / "index"


def test_build_and_info_agree_with_the_library(index: Path, tiny_tokenizer):
    card = json.loads(run("info", index, "--json").stdout)
    opened = CorpusIndex.open(index)
    assert card["tokens"] == opened.n_tokens == sum(len(tiny_tokenizer.encode(text)) for text in TEXTS.values())
    assert card["tokenizer"] == tiny_tokenizer.fingerprint
    assert card["bytes"] == sum((index / name).stat().st_size for name in opened.manifest["files"])
    assert opened.fingerprint in run("info", index).stdout


def test_build_says_what_memory_it_was_given_and_took(corpus: Path, tmp_path: Path):
    command = ["build", corpus / "texts", "--tokenizer", corpus / "tokenizer.json", "--out", tmp_path / "index", "--memory", "1GB"]
    answer = json.loads(run(*command, "--json").stdout)
    assert answer["memory_bound"] == 10**9 == CorpusIndex.open(tmp_path / "index").manifest["memory"]
    assert 0 <= answer["build_memory"] < answer["peak_memory"]
    assert answer["built"] == "now"
    again = json.loads(run(*command[:-1], "2GB", "--json").stdout)
    assert (again["built"], again["memory_bound_then"], "memory_bound" in again) == ("earlier", 10**9, False)
    assert "1,000,000,000" in run(*command).stdout
    assert "at least 268 MB" in run(*command[:-1], "9MB", code=2).output


def test_build_takes_no_memory_where_the_kernel_counts_its_peak_short(corpus: Path, tmp_path: Path, monkeypatch):
    readings = iter([(8192, 8192), (4096, 4096)])  # before and after: a peak below what there was
    monkeypatch.setattr("palimpsest.corpus.memory.resident_memory", lambda: next(readings))
    command = ["build", corpus / "texts", "--tokenizer", corpus / "tokenizer.json", "--out", tmp_path / "index", "--json"]
    answer = json.loads(run(*command).stdout)
    assert (answer["build_memory"], answer["peak_memory"]) == (0, 8192)


@pytest.mark.parametrize("text", ["fox", "and the fox", "the", "hound", "cat", "tales: and"])
def test_count_is_what_one_counts_by_hand_at_the_beginning_and_after_a_space(index: Path, tiny_tokenizer, text):
    def occurrences(needle: list[int]) -> int:
        rows = [tiny_tokenizer.encode(document) for document in TEXTS.values()]
        return sum(row[i : i + len(needle)] == needle for row in rows for i in range(len(row)))

    forms = {tuple(tiny_tokenizer.encode(text)), tuple(tiny_tokenizer.encode(" " + text))}
    expected = sum(occurrences(list(form)) for form in forms)
    assert int(run("count", index, text).stdout) == expected
    answer = json.loads(run("count", index, text, "--json").stdout)
    assert answer["count"] == expected
    assert {tuple(part["ids"]) for part in answer["parts"]} == forms


def test_count_takes_ids(index: Path, tiny_tokenizer):
    ids = tiny_tokenizer.encode(" hound")
    assert run("count", index, "--ids", ", ".join(map(str, ids))).stdout == "1\n"


def test_find_shows_the_passage_in_its_document(index: Path):
    documents = json.loads(run("find", index, "hound", "--json").stdout)["documents"]
    assert [document["document"] for document in documents] == ["a.txt"]
    assert documents[0]["before"] + documents[0]["match"] + documents[0]["after"] == TEXTS["a.txt"]
    assert "hound" in run("find", index, "hound").stdout
    assert "No document" in run("find", index, "unicorn").stdout


def test_find_names_a_document_once_and_keeps_to_the_limit(index: Path):
    assert [d["index"] for d in json.loads(run("find", index, "fox", "--json").stdout)["documents"]] == [0, 1]
    assert len(json.loads(run("find", index, "fox", "--limit", 1, "--json").stdout)["documents"]) == 1


def test_next_is_what_the_library_says_in_order_of_frequency(index: Path, tiny_tokenizer):
    opened = CorpusIndex.open(index)
    part, spaced = json.loads(run("next", index, "the", "--json").stdout)["parts"]
    assert (part["as"], spaced["as"]) == ("as given", "after a space")
    for answer, text in ((part, "the"), (spaced, " the")):
        dist = opened.ntd(tiny_tokenizer.encode(text))
        assert (answer["total"], answer["eod_count"], answer["suffix_len"]) == (dist.total, dist.eod_count, len(answer["ids"]))
        assert {row["id"]: row["count"] for row in answer["next"]} == dict(zip(dist.ids.tolist(), dist.counts.tolist(), strict=True))
        counts = [row["count"] for row in answer["next"]]
        assert counts == sorted(counts, reverse=True)
        assert sum(row["prob"] for row in answer["next"]) == pytest.approx(1)
        assert all(row["text"] == tiny_tokenizer.decode([row["id"]]) for row in answer["next"])
    assert part["total"] + spaced["total"] >= 4
    top = json.loads(run("next", index, "the", "--limit", 1, "--json").stdout)["parts"][1]
    assert (top["next"], top["distinct"]) == (spaced["next"][:1], len(spaced["next"]))
    shown = run("next", index, "the").stdout
    assert repr(spaced["next"][0]["text"]) in shown
    assert f"followed {spaced['total']} times" in shown


def test_next_with_infgram_backs_off_to_what_the_corpus_continues(index: Path, tiny_tokenizer):
    ids = tiny_tokenizer.encode("zebra the fox")
    exact = json.loads(run("next", index, "zebra the fox", "--json").stdout)["parts"]
    assert all(part["total"] == 0 and part["next"] == [] for part in exact)
    assert "followed 0 times" in run("next", index, "zebra the fox").stdout
    (part,) = json.loads(run("next", index, "zebra the fox", "--infgram", "--json").stdout)["parts"]  # both readings end alike
    dist = CorpusIndex.open(index).infgram_ntd(ids)
    assert 0 < part["suffix_len"] == dist.suffix_len < len(ids)
    assert [row["id"] for row in part["next"]] == [int(i) for i in dist.ids[(-dist.counts).argsort(kind="stable")]][:10]
    often = json.loads(run("next", index, "zebra the fox", "--infgram", "--min-count", 1000, "--json").stdout)["parts"]
    assert [part["suffix_len"] for part in often] == [0]
    assert "--infgram" in run("next", index, "the", "--min-count", 2, code=2).stderr


def test_next_by_ids_and_from_a_sample(tmp_path: Path):
    CorpusIndex.build([[1, 2] * 50, [1, 3] * 50], None, tmp_path / "index")
    assert "50" in run("next", tmp_path / "index", "--ids", "1").stdout
    (part,) = json.loads(run("next", tmp_path / "index", "--ids", "1", "--max-support", 9, "--json").stdout)["parts"]
    assert (part["as"], part["approx"], part["total"], part["next"][0]["text"]) == ("ids", True, 100, None)
    assert sum(row["count"] for row in part["next"]) == 100
    assert "≈" in run("next", tmp_path / "index", "--ids", "1", "--max-support", 9).stdout


def test_verify_finds_a_flipped_byte(corpus: Path, tmp_path: Path):
    out = tmp_path / "index"
    run("build", corpus / "texts", "--tokenizer", corpus / "tokenizer.json", "--out", out)
    assert json.loads(run("verify", out, "--json").stdout)["whole"] is True
    file = next(path for path in sorted(out.iterdir()) if path.name.startswith("tokens."))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    answer = run("verify", out, code=2)
    assert file.name in answer.stderr
    assert "Traceback" not in answer.output


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "one tokenizer"), (["--tokenizer", "x", "--model", "y"], "one tokenizer"), (["--tokenizer", "no-such-thing"], "no-such-thing")],
)
def test_build_needs_exactly_one_tokenizer_that_exists(corpus: Path, tmp_path: Path, options, message):
    answer = run("build", corpus / "texts", "--out", tmp_path / "index", *options, code=2)
    assert message in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["fox", "--ids", "1"], ["--ids", "1,x"], ["--ids", ""], ["--ids", "-1"], [""], ["  "], ["--ids", "99999999"]],
)
def test_a_passage_that_is_none_is_refused(index: Path, arguments):
    for command in ("count", "find", "next", "near"):
        assert "error: " in run(command, index, *arguments, code=2).stderr


def test_an_index_of_ids_says_that_it_has_no_tokenizer(tmp_path: Path):
    CorpusIndex.build([[1, 2, 3, 1, 2]], None, tmp_path / "index")
    assert "--ids" in run("count", tmp_path / "index", "fox", code=2).stderr
    assert run("count", tmp_path / "index", "--ids", "1,2").stdout == "2\n"
    assert json.loads(run("find", tmp_path / "index", "--ids", "3", "--json").stdout)["documents"][0]["match"] == " 3 "


@pytest.mark.parametrize("command", ["info", "verify", "count", "find", "next", "near"])
def test_a_folder_that_is_no_index_is_an_error_with_a_remedy(tmp_path: Path, command):
    arguments = [] if command in ("info", "verify") else ["text"]
    answer = run(command, tmp_path, *arguments, code=2)
    assert answer.stderr.startswith("error: ")
    assert "Traceback" not in answer.output


def test_an_empty_corpus_leaves_nothing(corpus: Path, tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    answer = run("build", tmp_path / "empty.txt", "--tokenizer", corpus / "tokenizer.json", "--out", tmp_path / "index", code=2)
    assert "error: " in answer.stderr
    assert not (tmp_path / "index").exists()


def test_near_finds_what_was_changed_and_counts_the_changes(index: Path):
    answer = json.loads(run("near", index, "the fox and a hound met", "--edits", 2, "--json").stdout)
    best = answer["passages"][0]
    assert (best["document"], best["distance"], answer["complete"]) == ("a.txt", 1, True)
    assert "the hound met" in best["match"]
    assert "1 edits: a.txt" in run("near", index, "the fox and a hound met", "--edits", 2).stdout
    assert "No passage" in run("near", index, "something else altogether, entirely", "--edits", 1).stdout


def test_near_refuses_a_passage_that_anything_would_match(index: Path):
    assert "40 may differ" in run("near", index, "fox", "--edits", 40, code=2).stderr


def test_export_and_build_from_infini_gram(index: Path, tmp_path: Path):
    answer = json.loads(run("export", index, "--out", tmp_path / "theirs", "--json").stdout)
    assert answer["shards"] == 1
    run("build", tmp_path / "theirs", "--out", tmp_path / "back")
    back, first = CorpusIndex.open(tmp_path / "back"), CorpusIndex.open(index)
    assert (back.n_tokens, back.document(1)) == (first.n_tokens, first.document(1))
    assert "there already" in run("export", index, "--out", tmp_path / "theirs", code=2).stderr
