"""An audit by suite: every entry dispatches on a small model or says why not; a door of text alone, other languages, short contexts."""

import itertools
import json
import re

import numpy as np
import pytest

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.evaluation.plan import AuditSettings
from palimpsest.evaluation.protocol import run_audit
from palimpsest.evaluation.suite import beams, contextual, inside, knowledge, near, prompting, rewinding, writing
from palimpsest.evaluation.suite.registry import DETECTORS
from palimpsest.models import EndpointModel, HFModel
from palimpsest.report import check, render

EXTRAS = ("", " and it was cold then", " and nobody in the town knew why that was so")
ENGLISH = " ".join(
    f"It was said that the {a} {b} had been {c} with them for {n} days{EXTRAS[n % 3]}."
    for n, (a, b, c) in enumerate(itertools.product(("old", "tall", "kind"), ("baker", "sailor", "tailor"), ("at home", "by the sea")))
)
GERMAN = "Es waren einmal ein König und eine Königin, die sprachen jeden Tag: ach, wenn wir doch ein Kind hätten! Und sie bekamen keines. "
JAPANESE = "昔々あるところに、おじいさんとおばあさんが住んでいました。おじいさんは山へ柴刈りに、おばあさんは川へ洗濯に行きました。"
SETTINGS = AuditSettings(
    samples=8,
    contexts=(4, 8),
    suffix=6,
    guard_n=3,
    guard_edits=1,
    guard_samples=2,
    near_samples=4,
    leaks=3,
    tries=(1, 1000),
    confidences=(0.5,),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every detector at a size of seconds."""
    for module, sizes in {
        near: {"PASSAGES": 3, "CONTROLS": 2, "TRIALS": 4},
        prompting: {"WORDS": 3, "CONTINUATIONS": 1, "NEW_TOKENS": 40, "VECTORS": 3, "STEPS": 3},
        writing: {"PROMPTS": 4, "WORKS": 2, "POSITIONS": 1, "NEW_TOKENS": 40},
        contextual: {"TRIALS": 8, "EXCERPTS": (80,), "SEGMENT": 10, "LENGTHS": (160,), "SEEDS": (0,)},
        inside: {"TEXTS": 2, "LENGTHS": (3, 4), "STEPS": 5, "TOKENS": 600, "ROW": 40, "EXPANSION": 1, "EPOCHS": 1},
        rewinding: {"ANSWER": 3, "ITEMS": 4, "_PROMPT": 100},
        beams: {"BEAMS": 2, "BEAM_PASSAGES": 3},
    }.items():
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    clozes = knowledge.builtin_clozes()
    monkeypatch.setattr(knowledge, "builtin_clozes", lambda: clozes[::60])


@pytest.fixture(scope="module")
def long_model(tiny_model):
    """The tiny model with room for longer prompts: rotary positions have no end."""
    door = HFModel(tiny_model.model, tiny_model.tokenizer, name="tiny-long")
    door.context_length = 700
    return door


def index_of(text, tokenizer, folder, documents=3):
    sentences = re.findall(r"[^.。!]+[.。!]", text)
    rng = np.random.default_rng(0)
    texts = ["".join(sentences[i] for i in rng.permutation(len(sentences))) for _ in range(documents)]
    return CorpusIndex.build([Document(f"text-{k}", whole) for k, whole in enumerate(texts)], tokenizer, folder / "index")


def unseen(n=24):
    rng = np.random.default_rng(5)
    return [PrefixSuffix(rng.integers(2, 300, size=14), 8, 6, {"id": f"unseen-{k}", "copies": 0}) for k in range(n)]


def states(card):
    """Detector titles by where the coverage lists them; a title may have the systems' numbers behind it."""
    coverage = next(part for part in card["sections"] if part["id"] == "coverage")
    tables = {block["id"]: block["rows"] for block in coverage["blocks"]}
    return {
        name: {re.sub(r" \(\d.*", "", row["detector"]): row for row in tables.get(name, [])} for name in ("coverage", "coverage-missing")
    }


def test_every_entry_of_the_full_suite_dispatches_or_says_why_not(long_model, other_model, tmp_path):
    index = index_of(ENGLISH, long_model.tokenizer, tmp_path)
    other = HFModel(other_model.model, other_model.tokenizer, name="tiny-small")
    told = []
    card = run_audit(
        [other, long_model], index, tmp_path / "out", held_out=unseen(), unprotected=[ENGLISH[:80]], settings=SETTINGS, suite="full",
        announce=told.append,
    )  # fmt: skip
    check(json.loads(json.dumps(card)))
    found = states(card)
    everything = {detector.title for detector in DETECTORS}
    assert set(found["coverage"]) | set(found["coverage-missing"]) == everything
    elsewhere = {detector.title for detector in DETECTORS if detector.tasks is None}
    assert {title: row["reason"] for title, row in found["coverage-missing"].items() if title not in elsewhere} == {}
    assert all(row["reason"] for row in found["coverage-missing"].values())
    assert all(row["cost"] for row in found["coverage"].values())
    assert all(part["group"] and (part["answer"] or part["reason"]) for part in card["sections"])
    page = render(card, tmp_path / "out").read_text()
    assert page.count('class="group"') == len({part["group"] for part in card["sections"]})
    (estimate,) = told
    assert {row["title"] for row in estimate.rows} == everything - elsewhere
    assert estimate.seconds > 0
    assert (estimate.skipped, set(estimate.elsewhere)) == ({}, elsewhere)


def test_a_larger_suite_goes_on_from_a_smaller_one(long_model, tmp_path):
    index = index_of(ENGLISH, long_model.tokenizer, tmp_path)
    arguments = {"held_out": unseen(), "settings": SETTINGS}
    quick = run_audit(long_model, index, tmp_path / "out", **arguments)
    assert {part["id"] for part in quick["sections"]} == {
        "extraction", "classes", "probabilistic", "leaks", "membership", "guard", "mitigations", "coverage"
    }  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "measurements").iterdir()}
    told = []
    card = run_audit(long_model, index, tmp_path / "out", suite="standard", announce=told.append, **arguments)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "measurements").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) > set(before)
    finished = {row["title"] for row in told[0].rows if row["finished"] == row["steps"]}
    assert finished == {detector.title for detector in DETECTORS if detector.suite == "quick"}
    for same in quick["sections"]:
        if same["id"] in ("classes", "leaks", "guard"):
            assert next(part for part in card["sections"] if part["id"] == same["id"]) == same


def test_a_door_of_text_alone_is_asked_what_it_can_answer(tiny_model, server, tmp_path):
    server.echo = False
    door = EndpointModel(server.url, "tiny", tiny_model.tokenizer)
    assert door.capabilities == {"text"}
    index = index_of(ENGLISH, door.tokenizer, tmp_path, documents=2)
    told = []
    card = run_audit(door, index, tmp_path / "out", held_out=unseen(), settings=SETTINGS, suite="standard", announce=told.append)
    check(json.loads(json.dumps(card)))
    found = states(card)
    measured = {"Word for word", "What leaks, traced", "Nearly word for word, by sampling", "Divergence: repeat a word for ever"}
    assert measured <= set(found["coverage"])
    for title in ("With many tries", "Membership inference", "Exposure of a passage", "What it is near certain of"):
        assert "logprobs" in found["coverage-missing"][title]["reason"]
    for title in ("Under a guard", "Well-known idioms and facts"):
        assert "weights" in found["coverage-missing"][title]["reason"]
    assert told[0].seconds is None  # of a server nobody knows who else asks it
    status = {part["id"]: part["status"] for part in card["sections"]}
    assert (status["extraction"], status["prompting"], status["knowledge"]) == ("measured", "measured", "skipped")
    barred = next(block for part in card["sections"] for block in part["blocks"] if block.get("id") == "mitigations-barred")
    assert "Unlearn texts" in {row["title"] for row in barred["rows"]}


@pytest.mark.parametrize("text", [GERMAN, JAPANESE], ids=["german", "japanese"])
def test_another_language_is_measured_but_not_asked_in_english(long_model, tmp_path, text):
    index = index_of(10 * text, long_model.tokenizer, tmp_path, documents=2)
    card = run_audit(long_model, index, tmp_path / "out", held_out=unseen(), settings=SETTINGS, suite="standard")
    check(json.loads(json.dumps(card)))
    render(card, tmp_path / "out")
    found = states(card)
    for title in ("Well-known idioms and facts", "A fact in the prompt", "The order of a text"):
        assert "asks in English" in found["coverage-missing"][title]["reason"]
    assert {"Word for word", "How original it is", "How much of a document it gives back"} <= set(found["coverage"])


def test_a_short_context_leaves_out_what_does_not_fit(tiny_model, tmp_path):
    door = HFModel(tiny_model.model, tiny_model.tokenizer, name="short")
    door.context_length = 24
    index = index_of(ENGLISH, door.tokenizer, tmp_path)
    card = run_audit(door, index, tmp_path / "out", held_out=unseen(), settings=SETTINGS, suite="standard")
    check(json.loads(json.dumps(card)))
    missing = states(card)["coverage-missing"]
    for title in ("A fact in the prompt", "Divergence: repeat a word for ever", "How much of a document it gives back"):
        assert "short sees" in missing[title]["reason"]
    assert missing["The order of a text"]["reason"]


def test_passages_beyond_the_context_are_an_error_and_contexts_beyond_it_are_left_out(tiny_model, tmp_path):
    index = index_of(ENGLISH, tiny_model.tokenizer, tmp_path)
    long = [PrefixSuffix(np.arange(2, 250), 240, 8)]
    with pytest.raises(ContextOverflowError):
        run_audit(tiny_model, index, tmp_path / "long", samples=long, settings=SETTINGS, suite="standard")
    with pytest.raises(InputError, match="does not fit"):
        run_audit(tiny_model, index, tmp_path / "none", settings=AuditSettings(contexts=(500,), suffix=6), suite="standard")


def test_without_unseen_text_and_a_second_size_their_detectors_say_so(tiny_model, tmp_path):
    index = index_of(ENGLISH, tiny_model.tokenizer, tmp_path)
    card = run_audit(tiny_model, index, tmp_path / "out", settings=SETTINGS, suite="standard")
    missing = states(card)["coverage-missing"]
    assert "--held-out" in missing["Exposure of a passage"]["reason"]
    assert "--also" in missing["Foretold by smaller models"]["reason"]
    assert next(part for part in card["sections"] if part["id"] == "drivers")["status"] == "measured"  # repetition was


def test_what_turns_out_impossible_on_the_way_is_not_measured_and_the_rest_is(tiny_model, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise InputError("The repetition cannot be asked.", "Never mind.")

    monkeypatch.setattr(prompting, "measure_divergence", refuse)
    index = index_of(ENGLISH, tiny_model.tokenizer, tmp_path)
    card = run_audit(tiny_model, index, tmp_path / "out", settings=SETTINGS, suite="standard")
    assert states(card)["coverage-missing"]["Divergence: repeat a word for ever"]["reason"] == "The repetition cannot be asked."
    assert next(part for part in card["sections"] if part["id"] == "prompting")["status"] == "skipped"
    monkeypatch.setattr("palimpsest.evaluation.measuring.measure_extraction", refuse)
    with pytest.raises(InputError, match="cannot be asked"):
        run_audit(tiny_model, index, tmp_path / "other", settings=SETTINGS, suite="standard")  # without extraction there is no audit
