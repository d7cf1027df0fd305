"""`palimpsest audit` as a person runs it: a folder of a model, a text, a report; killed and run again; and every wrong way."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.cli.audit import labels
from palimpsest.corpus import CorpusIndex
from palimpsest.tokenizer import Tokenizer

TEXT = "In the beginning was the word, and the word was written down, and what was written down was scraped off.\n"
SMALL = ["--samples", "8", "--context", "4,8", "--suffix", "6", "--guard-n", "3"]


@pytest.fixture(scope="module")
def model_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model.model.save_pretrained(folder)
    own = PreTrainedTokenizerFast(tokenizer_object=tiny_model.tokenizer.backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text(TEXT * 40)
    return path


def command(*arguments):
    return [sys.executable, "-c", "from palimpsest.cli import main; main()", "audit", *map(str, arguments)]


def run(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def card_without_times(folder: Path):
    card = json.loads((folder / "audit.json").read_text())
    return {key: value for key, value in card.items() if key not in ("created", "timing")}


@pytest.fixture(scope="module")
def undisturbed(model_folder, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "report"
    done = run(model_folder, corpus, "--out", out, *SMALL)
    assert done.exit_code == 0, done.output
    return out, done


def test_the_terminal_shows_the_verdict_and_where_the_report_is(undisturbed):
    out, done = undisturbed
    card = json.loads((out / "audit.json").read_text())
    assert card["verdict"]["headline"] in done.stdout
    assert "index.html" in done.stdout
    assert (out / "index.html").stat().st_size > 50_000
    assert any((out / "figures").glob("*.png"))


def test_json_is_the_card(undisturbed, model_folder, corpus):
    out, _ = undisturbed
    done = run(model_folder, corpus, "--out", out, *SMALL, "--json")
    assert done.exit_code == 0
    assert {k: v for k, v in json.loads(done.stdout).items() if k not in ("created", "timing")} == card_without_times(out)


def test_a_suite_says_before_what_it_costs_and_goes_on_from_a_smaller_one(undisturbed, model_folder, corpus, tmp_path):
    out = tmp_path / "report"
    shutil.copytree(undisturbed[0], out)
    done = run(model_folder, corpus, "--out", out, *SMALL, "--suite", "standard")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "The standard suite" in said
    assert "Word for word done before" in said
    assert "not measured: Exposure of a passage" in said
    card = json.loads((out / "audit.json").read_text())
    assert card["settings"]["suite"] == "standard"
    assert {"prompting", "writing", "drivers"} <= {part["id"] for part in card["sections"]}
    assert not {"prompting", "writing"} & {part["id"] for part in json.loads((undisturbed[0] / "audit.json").read_text())["sections"]}
    wrong = run(model_folder, corpus, "--out", out, "--suite", "thorough")
    assert wrong.exit_code == 2
    assert "quick, standard, full" in wrong.stderr


def test_models_of_the_same_name_are_told_apart_by_their_folders(model_folder, corpus, tmp_path):
    for place in ("first", "second", "third"):
        shutil.copytree(model_folder, tmp_path / place / "tiny")
    given = [tmp_path / place / "tiny" for place in ("first", "second", "third")]
    done = run(given[0], corpus, "--also", given[1], "--reference", given[2], "--out", tmp_path / "out", *SMALL, "--json")
    assert done.exit_code == 0, done.output
    models = [(model["name"], model["role"]) for model in json.loads(done.stdout)["models"]]
    assert models == [("first/tiny", "audited"), ("second/tiny", "audited"), ("third/tiny", "reference")]
    assert (tmp_path / "out" / "measurements" / "extraction.second-tiny.json").is_file()
    same = run(given[0], corpus, "--also", given[0], "--out", tmp_path / "same", *SMALL)
    assert same.exit_code == 2
    assert "name of its own" in same.stderr


def test_labels_take_as_much_of_the_path_as_is_needed():
    assert labels(["x/a/final", "y/a/final", "z/b/final", "gpt2"], ["final", "final", "final", "gpt2"]) == [
        "x/a/final",
        "y/a/final",
        "z/b/final",
        "gpt2",
    ]
    assert labels(["http://one:8000/v1#m", "http://two:8000/v1#m"], ["m", "m"]) == ["one:8000/v1#m", "two:8000/v1#m"]
    assert labels(["a/m", "a/m"], ["m", "m"]) == ["m", "m"]


@pytest.mark.parametrize("seen", ["index.partial", "index", "measurements/extraction.tiny.json", "measurements/open.tiny.json"])
def test_killed_at_any_moment_the_next_run_goes_on_and_says_the_same(undisturbed, model_folder, corpus, tmp_path, seen):
    out = tmp_path / "report"
    process = subprocess.Popen(command(model_folder, corpus, "--out", out, *SMALL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (out / seen).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    measured = sorted(path.name for path in out.glob("measurements/[a-z]*.json"))
    before = {name: (out / "measurements" / name).stat().st_mtime_ns for name in measured}
    done = run(model_folder, corpus, "--out", out, *SMALL)
    assert done.exit_code == 0, done.output
    assert {name: (out / "measurements" / name).stat().st_mtime_ns for name in measured} == before
    assert card_without_times(out) == card_without_times(undisturbed[0])
    assert not list(out.rglob("*.tmp"))
    assert not list(out.glob("index.partial"))


def refused(done, *words, out=None):
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit | None)  # a message, not an exception that nobody caught
    assert "error:" in done.stderr
    for word in words:
        assert word in done.stderr
    if out is not None:
        assert not (out / "audit.json").exists()
        assert not (out / "index.html").exists()


def test_a_model_without_a_corpus(tmp_path, model_folder):
    refused(run(model_folder, "--out", tmp_path / "out"), "corpus", out=tmp_path / "out")


def test_the_demonstration_takes_no_options_of_an_audit(tmp_path):
    refused(run("--samples", "5", "--guard-n", "4", "--out", tmp_path / "out"), "--samples", "--guard-n", out=tmp_path / "out")


def test_a_seed_below_nothing_and_held_out_text_that_is_not_there(tmp_path, model_folder, corpus):
    done = run(model_folder, corpus, "--out", tmp_path / "out", "--seed", "-1")
    assert done.exit_code == 2
    assert "--seed" in done.stderr
    refused(run(model_folder, corpus, "--out", tmp_path / "out", "--held-out", tmp_path / "gone"), "gone", out=tmp_path / "out")
    refused(run(model_folder, corpus, "--out", tmp_path / "out", "--general", tmp_path / "gone"), "--general", out=tmp_path / "out")
    refused(run(model_folder, corpus, "--out", tmp_path / "out", "--attacks", "loss,vibes"), "vibes", "min-k++", out=tmp_path / "out")
    refused(run(model_folder, corpus, "--out", tmp_path / "out", "--attacks", " , "), "No membership score", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_scores_of_membership_are_chosen_and_other_text_gives_two_of_them(tmp_path, model_folder, corpus):
    (tmp_path / "unseen.txt").write_text("Nothing that was read before stands here, and nobody wrote it down.\n" * 30)
    (tmp_path / "other.txt").write_text("The quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly.\n" * 30)
    texts = ["--held-out", tmp_path / "unseen.txt", "--general", tmp_path / "other.txt"]
    asked = "loss,neighbour_ngram,dc-pdd,gradnorm"
    done = run(model_folder, corpus, "--out", tmp_path / "out", *SMALL, *texts, "--attacks", asked, "--json")
    assert done.exit_code == 0, done.output
    section = next(part for part in json.loads(done.stdout)["sections"] if part["id"] == "membership")
    tables = {block["id"]: block for block in section["blocks"] if block["type"] == "table"}
    assert [row["method"] for row in tables["membership-scores"]["rows"]][:4] == asked.split(",")
    assert "blind" in tables["membership-scores"]["rows"][4]["method"]
    assert CorpusIndex.open(tmp_path / "out" / "general").count(CorpusIndex.open(tmp_path / "out" / "index").document_ids(0)[:40]) == 0


def test_a_missing_or_unknown_model(tmp_path, corpus):
    refused(run("no-such-model", corpus, "--out", tmp_path / "out"), "no-such-model", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.txt", b"", ["empty.txt"]),
        ("latin.txt", b"caf\xe9 " * 50, ["latin.txt"]),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 2000, mtime=0)[:-20], ["cut.jsonl.gz"]),
        ("no-text.jsonl", b'{"words": "one"}\n', ["no-text.jsonl", "line 1"]),
    ],
)
def test_a_corpus_that_cannot_be_read(tmp_path, model_folder, name, data, words):
    (tmp_path / name).write_bytes(data)
    refused(run(model_folder, tmp_path / name, "--out", tmp_path / "out", *SMALL), *words, out=tmp_path / "out")


def test_what_fails_before_anything_is_written_leaves_no_folder(tmp_path, model_folder):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "mine").mkdir()
    refused(run(model_folder, tmp_path / "empty.txt", "--out", tmp_path / "new"), "empty.txt")
    refused(run(model_folder, tmp_path / "empty.txt", "--out", tmp_path / "mine"), "empty.txt")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "mine").is_dir()


def test_a_corpus_that_is_not_there(tmp_path, model_folder):
    refused(run(model_folder, tmp_path / "gone.txt", "--out", tmp_path / "out"), "gone.txt", out=tmp_path / "out")


def test_prompts_that_do_not_fit(tmp_path, model_folder, corpus):
    refused(run(model_folder, corpus, "--out", tmp_path / "out", "--context", "5000"), "5000", "--context", out=tmp_path / "out")
    refused(run(model_folder, corpus, "--out", tmp_path / "out", "--context", "many"), "many", out=tmp_path / "out")


def test_an_engine_that_does_not_exist(tmp_path, model_folder, corpus):
    refused(run(model_folder, corpus, "--out", tmp_path / "out", "--engine", "abacus"), "abacus", "local", out=tmp_path / "out")


def test_a_folder_that_belongs_to_something_else(tmp_path, model_folder, corpus):
    (tmp_path / "thesis.tex").write_text("mine")
    refused(run(model_folder, corpus, "--out", tmp_path), "thesis.tex", out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_an_index_of_another_tokenizer_a_flipped_byte_and_another_version(tmp_path, model_folder, corpus, undisturbed):
    for damage, word in (("flip", "tokens"), ("version", "version"), ("tokenizer", "tokenizer")):
        index = tmp_path / damage
        shutil.copytree(undisturbed[0] / "index", index)
        manifest = json.loads((index / "manifest.json").read_text())
        if damage == "flip":
            data = bytearray((index / "tokens.0").read_bytes())
            data[len(data) // 2] ^= 1
            (index / "tokens.0").write_bytes(data)
        elif damage == "version":
            (index / "manifest.json").write_text(json.dumps({**manifest, "format": 99, "format_version": 99}))
        else:
            shutil.rmtree(index)
            other = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
            CorpusIndex.build(["a b a b"], other, index)
        refused(run(model_folder, index, "--out", tmp_path / f"out-{damage}", *SMALL), word, out=tmp_path / f"out-{damage}")


@pytest.mark.parametrize("closed", ["/proc/palimpsest-report", "/sys/palimpsest-report", "/dev/null/report"])
def test_a_place_where_nobody_can_write(model_folder, corpus, closed):
    refused(run(model_folder, corpus, "--out", closed, *SMALL), closed)


def test_nan_in_the_weights(tmp_path, tiny_model, model_folder, corpus):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    refused(run(broken, corpus, "--out", tmp_path / "out", *SMALL), "not finite", out=tmp_path / "out")
