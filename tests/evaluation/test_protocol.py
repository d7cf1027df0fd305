"""The audit: true figures in its card, sections that say why they were skipped, resumption, and refusals."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import tokenizers
from rapidfuzz.distance import Levenshtein

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import InputError, StorageError, TokenizerMismatchError
from palimpsest.evaluation.classes import _predictors, predictability
from palimpsest.evaluation.guarding import common_runs
from palimpsest.evaluation.leaks import measure_leaks
from palimpsest.evaluation.nearest import measure_nearest, nearest_passages
from palimpsest.evaluation.plan import AuditSettings, membership_split
from palimpsest.evaluation.protocol import run_audit
from palimpsest.evaluation.verdict import LEVELS, level_of
from palimpsest.measurement import Measurement
from palimpsest.models import EndpointModel
from palimpsest.report import check, render
from palimpsest.tokenizer import Tokenizer

TIMES = ("created", "timing")


@pytest.fixture(scope="module")
def arguments(tiny_model, other_model, small_index, passages, settings):
    return {
        "models": tiny_model,
        "corpus": small_index,
        "references": {tiny_model.name: other_model},
        "samples": passages,
        "unprotected": ["Something else, which nobody protects, and which goes on for a while."],
        "settings": settings,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit") / "out"


@pytest.fixture(scope="module")
def card(arguments, folder):
    return run_audit(**arguments, out=folder)


def untimed(card):
    return {key: value for key, value in json.loads(json.dumps(card)).items() if key not in TIMES}


def section(card, name):
    return next(part for part in card["sections"] if part["id"] == name)


def test_the_card_is_what_the_report_needs(card, folder):
    check(json.loads((folder / "audit.json").read_text()))
    page = render(card, folder).read_text()
    assert card["verdict"]["headline"] in page
    assert [part["status"] for part in card["sections"]] == ["measured"] * 8


def test_what_the_model_wrote_itself_is_extracted_and_what_it_never_wrote_is_not(card, tiny_model, passages):
    truth = {}
    for sample in passages:
        written = tiny_model.generate([sample.prefix], sample.suffix_len, stop_at_eos=False)[0][0]
        truth.setdefault(sample.meta["domain"], []).append((sample.meta["copies"] >= 1, np.array_equal(written, sample.suffix)))
    planted = [hit for hits in truth.values() for known, hit in hits if known]
    assert card["tiles"][0]["value"] == pytest.approx(np.mean(planted))
    assert card["tiles"][0]["value"] == pytest.approx(0.5)  # all six of its own, none of the six random ones
    assert card["verdict"]["level"] == "high"
    kinds = next(block for block in section(card, "extraction")["blocks"] if block.get("id") == "extraction-kinds")
    assert {row["kind"]: row["rate"][0] for row in kinds["rows"]} == {"all passages": 0.5, "own": 1.0, "prose": 0.0}


def test_passages_are_sorted_by_why_they_are_remembered(card, passages, small_index):
    """Every document stands once, and six passages stand nowhere: nothing is recited, and what the model wrote is recollected."""
    part = section(card, "classes")
    table = next(block for block in part["blocks"] if block.get("id") == "classes-table")
    rows = {row["class"]: row for row in table["rows"]}
    planted = [sample for sample in passages if sample.meta["copies"]]
    assert sum(row["n"] for row in rows.values()) == len(planted) == 12
    assert (small_index.count_batch([sample.suffix for sample in planted]) == 1).all()
    assert (rows["recitation"]["n"], rows["recitation"]["rate"]) == (0, None)
    assert sum(row["rate"][0] * row["n"] for row in rows.values() if row["n"]) == pytest.approx(6)
    assert sum(row["share"][0] for row in rows.values()) == pytest.approx(1)
    assert "Of the 6 passages" in part["answer"]
    examples = next(block for block in part["blocks"] if block.get("id") == "classes-examples")
    assert {row["duplicates"] for row in examples["rows"]} == {1}
    assert "takes a class" in next(block for block in part["blocks"] if block["type"] == "text")["paragraphs"][0]


def test_factors_foretell_where_classes_have_passages_of_both_kinds():
    rng = np.random.default_rng(0)
    n = 400
    many = np.arange(n) % 2 == 0
    prompt = rng.lognormal(2, 0.5, n)
    table = pl.DataFrame(
        {
            "class": np.where(many, "recitation", "recollection"),
            "duplicates": np.where(many, rng.integers(6, 20, n), 1),
            "templating": False,
            "perplexity_prompt": prompt,
            "perplexity_continuation": rng.lognormal(2, 0.5, n),
            "code_length": rng.normal(4, 0.3, n),
            "memorized": np.where(many, prompt < np.median(prompt), rng.random(n) < 0.3),
        }
    )
    found = predictability(table)
    assert found["classes"] == ["recitation", "recollection"]
    assert "perplexity_continuation" not in found["features"]
    assert found["log_loss"]["taxonomy"] < found["log_loss"]["baseline"]
    assert found["likelihood_ratio"]["p"] < 1e-6
    slopes = {(row["class"], row["factor"]): row for row in found["coefficients"]}
    assert slopes["recitation", "perplexity_prompt"]["z"] < -3
    shown = _predictors(found)[0]
    assert {row["factor"] for row in shown["rows"]} >= {"perplexity of the prompt", "copies in the corpus"}
    infinite = table.with_columns(code_length=pl.when(pl.int_range(pl.len()) == 3).then(np.inf).otherwise("code_length"))
    assert "code_length" not in predictability(infinite)["features"]
    alone = predictability(table.filter((pl.col("class") == "recitation") | ~pl.col("memorized")))
    assert (alone["classes"], "log_loss" in alone) == (["recitation"], False)
    assert "Log-loss" in shown["caption"]
    assert "Log-loss" not in _predictors(alone)[0]["caption"]
    assert "takes a class" in predictability(table.filter(~pl.col("memorized")))["reason"]


def test_under_guard_nothing_comes_out_to_the_letter(card, folder):
    free, held = (Measurement.load(folder / "measurements" / f"{name}.tiny-0.json").table for name in ("open", "guarded"))
    plainly = pl.col("transform") == "identity"
    assert free.filter(plainly)["verbatim"].all()
    assert not held["verbatim"].any()
    assert {tile["label"]: tile["value"] for tile in card["tiles"]}["to the letter under guard"] == 0


def test_leaks_name_the_documents(card):
    items = section(card, "leaks")["blocks"][0]["items"]
    leaked = [item for item in items if item["domain"] == "own"]
    assert leaked
    for item in leaked:
        number = item["id"].removeprefix("doc-")
        assert {source["document"] for span in item["spans"] for source in span["documents"]} == {f"doc-{number}"}
        assert item["output_text"] == item["true_text"]


def test_the_second_run_reads_everything_and_says_the_same(card, arguments, folder):
    stamps = {path.name: path.stat().st_mtime_ns for path in (folder / "measurements").iterdir()}
    again = run_audit(**arguments, out=folder)
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "measurements").iterdir()} == stamps
    assert untimed(again) == untimed(card)


def test_other_settings_are_measured_again(card, arguments, folder, tmp_path):
    fewer = replace(arguments["settings"], guard_n=4)
    fresh = run_audit(**{**arguments, "settings": fewer}, out=tmp_path / "fresh")
    reused = run_audit(**{**arguments, "settings": fewer}, out=folder)
    assert untimed(reused) == untimed(fresh)


def test_without_text_that_was_not_trained_on_membership_is_skipped_with_the_reason(arguments, tmp_path):
    planted = [sample for sample in arguments["samples"] if sample.meta["copies"]]
    card = run_audit(**{**arguments, "samples": planted, "references": {}}, out=tmp_path / "out")
    skipped = section(card, "membership")
    assert skipped["status"] == "skipped"
    assert "--held-out" in skipped["reason"]
    assert any("reference" in limit for limit in card["limits"])
    check(json.loads(json.dumps(card)))


def test_held_out_text_makes_the_non_members(arguments, passages, tiny_model, tmp_path):
    unseen = [PrefixSuffix(np.arange(20 + k, 34 + k), 8, 6, {"id": f"u{k}"}) for k in range(8)]
    planted = [sample for sample in passages if sample.meta["copies"]]
    card = run_audit(**{**arguments, "samples": planted}, held_out=unseen, out=tmp_path / "out")
    measured = Measurement.load(tmp_path / "out" / "measurements" / "membership.tiny-0.json")
    assert measured.summary["nonmembers"] == 8
    assert section(card, "membership")["status"] == "measured"


def test_a_door_without_logprobs_is_audited_by_its_text(arguments, tiny_model, tmp_path):
    class TextOnly(type(tiny_model)):
        pass

    door = TextOnly(tiny_model.model, tiny_model.tokenizer, name="text-only")
    door.capabilities = frozenset({"text"})
    card = run_audit(**{**arguments, "models": door, "references": {}}, out=tmp_path / "out")
    status = {part["id"]: part["status"] for part in card["sections"]}
    assert status == {
        "extraction": "measured",
        "classes": "skipped",
        "probabilistic": "skipped",
        "leaks": "measured",
        "membership": "skipped",
        "guard": "skipped",
        "mitigations": "measured",
        "coverage": "measured",
    }
    assert card["tiles"][0]["value"] == pytest.approx(0.5)
    assert "logprobs" in section(card, "probabilistic")["reason"]
    check(json.loads(json.dumps(card)))


@pytest.mark.parametrize("echo", [True, False], ids=["log-probs", "text"])
def test_an_endpoint_is_audited_by_what_it_gives(arguments, server, tiny_tokenizer, tmp_path, echo):
    server.echo = echo
    door = EndpointModel(server.url, server.name, tiny_tokenizer, backoff=0.001)
    card = run_audit(**{**arguments, "models": door, "references": {}}, out=tmp_path / "out")
    status = {part["id"]: part["status"] for part in card["sections"]}
    scored = "measured" if echo else "skipped"
    assert status == {
        "extraction": "measured",
        "classes": scored,
        "probabilistic": scored,
        "leaks": "measured",
        "membership": scored,
        "guard": "skipped",
        "mitigations": "measured",
        "coverage": "measured",
    }
    assert (card["tiles"][0]["value"] > 0) is echo  # what a random model writes is broken bytes: ids come out, as text it does not
    said = " ".join(card["limits"])
    assert ("measured under T=1" in said) is echo  # a server does not give what a cut needs
    check(json.loads(json.dumps(card)))


def test_what_was_not_done_as_asked_is_said(tiny_model, tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text("In the beginning was the word, and the word was written down. " * 20)
    asked = AuditSettings(samples=500, contexts=(4, 5000), suffix=6, guard_n=50, guard_samples=2, leaks=2, tries=(1,), confidences=(0.5,))
    said = " ".join(run_audit(tiny_model, text, tmp_path / "out", settings=asked)["limits"])
    assert "Prompts of 5000 tokens" in said
    assert "500 passages were asked for" in said
    assert "50-grams" in said


def test_suffixes_that_leave_no_room_in_another_style_skip_the_guard(tiny_model, tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text("In the beginning was the word, and the word was written down. " * 40)
    asked = AuditSettings(samples=2, contexts=(4,), suffix=tiny_model.room - 8, guard_samples=2, leaks=2, tries=(1,), confidences=(0.5,))
    card = run_audit(tiny_model, text, tmp_path / "out", settings=asked)
    assert section(card, "guard")["status"] == "skipped"
    assert "--suffix" in section(card, "guard")["reason"]
    assert section(card, "extraction")["status"] == "measured"


def test_text_is_indexed_and_passages_are_drawn(tiny_model, tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text("In the beginning was the word, and the word was written down. " * 20)
    small = AuditSettings(samples=5, contexts=(4, 8, 5000), suffix=6, guard_samples=2, leaks=2, tries=(1, 10), confidences=(0.5,))
    card = run_audit(tiny_model, text, tmp_path / "out", settings=small)
    assert card["corpus"]["name"] == "corpus.txt"
    assert card["settings"]["contexts"] == [4, 8]  # no document and no model has room for 5,000
    assert CorpusIndex.open(tmp_path / "out" / "index").n_documents == 1


@pytest.mark.parametrize(
    ("excess", "level"), [(0.0, "none"), (-0.2, "none"), (0.001, "low"), (0.01, "moderate"), (0.1, "high"), (1.0, "high")]
)
def test_levels_of_the_verdict(excess, level):
    assert level_of(excess) == level
    assert {name for _, name in LEVELS} | {"none"} == {"none", "low", "moderate", "high"}


def test_common_runs_are_runs_of_the_truth():
    text, truth = "and the WORD WAS WRITTEN DOWN again, and more", "and then the word was written down, too"
    for span in common_runs(text, truth, shortest=5):
        assert text[span["start"] : span["end"]].lower() in truth
    assert any(span["end"] - span["start"] > 20 for span in common_runs(text, truth))
    assert common_runs("İstanbul and the rest of it", "İstanbul and the rest of it")[0]["end"] == 27  # lower() makes it longer


def test_refusals(arguments, tiny_model, small_index, passages, settings, tmp_path):
    with pytest.raises(InputError, match="no model"):
        run_audit([], small_index, tmp_path / "a")
    with pytest.raises(InputError, match="name of its own"):
        run_audit([tiny_model, tiny_model], small_index, tmp_path / "a")
    with pytest.raises(InputError, match="references"):
        run_audit(tiny_model, small_index, tmp_path / "a", references={"nobody": tiny_model})
    with pytest.raises(InputError, match="does not fit"):
        run_audit(tiny_model, small_index, tmp_path / "a", settings=replace(settings, contexts=(1000,)))
    for wrong in ({"guard_n": 0}, {"guard_edits": -1}, {"near_samples": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(settings, **wrong)
    with pytest.raises(InputError, match="share of edits"):
        replace(settings, edit_share=0.5)
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match=r"thesis\.tex"):
        run_audit(tiny_model, small_index, busy)
    with pytest.raises(StorageError, match="is a file"):
        run_audit(tiny_model, small_index, busy / "thesis.tex")
    stranger = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
    foreign = CorpusIndex.build(["a a a"], stranger, tmp_path / "foreign")
    with pytest.raises(TokenizerMismatchError):
        run_audit(tiny_model, foreign, tmp_path / "b", samples=passages, settings=settings)


def test_leaks_that_are_too_short_to_trace_have_no_spans(tiny_model, small_index, passages):
    result = measure_leaks(tiny_model, passages[:2], small_index, min_len=50)
    assert result.table["spans"].to_list() == ["[]", "[]"]
    assert result.table["traced"].to_list() == [0.0, 0.0]


def test_members_are_what_has_copies(passages):
    class Plan:
        samples = passages
        held_out = ()

    members, others = membership_split(Plan)
    assert {sample.meta["copies"] for sample in others} == {0}
    assert len(members) + len(others) == len(passages)


def test_the_generations_are_looked_for_in_the_whole_corpus(card, folder, documents, passages, tiny_model):
    """Against every window of every document; one prompt is of a passage, but the model writes another."""
    nearest = Measurement.load(folder / "measurements" / "nearest.tiny-0.json")
    rows = nearest.table.filter(pl.col("scheme") == "greedy").to_dicts()
    planted = {sample.meta["id"]: sample for sample in passages if sample.meta["copies"]}
    assert {row["id"] for row in rows} == set(planted)
    for row in rows:
        sample = planted[row["id"]]
        written = tiny_model.generate([sample.prefix], 6, stop_at_eos=False)[0][0].tolist()
        assert row["own_distance"] == Levenshtein.distance(written, sample.suffix.tolist())
        found = {
            Levenshtein.distance(written, list(d.ids[s:e])) for d in documents for s in range(len(d.ids)) for e in range(s, len(d.ids) + 1)
        }
        assert row["edits_allowed"] == 1
        assert row["distance"] == (min(found) if min(found) <= 1 else None)
    greedy = nearest.summary["schemes"]["greedy"]
    assert greedy["exact"]["estimate"] == 0.5
    assert nearest.summary["complete"]
    table = next(block for block in section(card, "leaks")["blocks"] if block.get("id") == "near-rates")
    assert [row["scheme"] for row in table["rows"]] == ["greedy", "T=1, top-k 40"]
    assert table["rows"][0]["any"][0] == card["tiles"][1]["value"] == greedy["any"]["estimate"]
    facts = [fact for item in section(card, "leaks")["blocks"][0]["items"] for fact in item["facts"] if fact["label"] == "Nearest passage"]
    assert any(fact["value"].startswith("the same, doc-") for fact in facts)


def test_another_passage_than_the_one_asked_for_is_found(tiny_model, tmp_path):
    """The corpus holds what the model writes, with one token changed, in a document that no prompt is from."""
    prompts = [np.arange(20 + 9 * i, 28 + 9 * i) for i in range(3)]
    written = [out[0] for out in tiny_model.generate(prompts, 20, stop_at_eos=False)]
    other = written[0].copy()
    other[7] = (other[7] + 1) % 300
    index = CorpusIndex.build([Document("other", ids=other), Document("same", ids=written[1])], tiny_model.tokenizer, tmp_path / "index")
    samples = [PrefixSuffix(np.concatenate([prompt, np.arange(100, 120)]), 8, 20, {"id": f"p{i}"}) for i, prompt in enumerate(prompts)]
    result = measure_nearest(tiny_model, samples, index)
    columns = ["id", "distance", "document", "offset", "passages"]
    assert result.table.select(columns).rows() == [("p0", 1, "other", 0, 1), ("p1", 0, "same", 0, 1), ("p2", None, None, None, 0)]
    assert result.table["corpus_text"].to_list()[1] == result.table["output_text"].to_list()[1]
    rates = result.summary["schemes"]["greedy"]
    hits = {kind: round(3 * rates[kind]["estimate"]) for kind in ("exact", "own", "any", "other")}
    assert hits == {"exact": 0, "own": 0, "any": 2, "other": 2}
    for share in (-0.1, 0.5):
        with pytest.raises(InputError, match="share of edits"):
            measure_nearest(tiny_model, samples, index, share=share)


def test_what_ended_early_is_near_to_nothing(tiny_model, tmp_path):
    index = CorpusIndex.build([np.arange(20, 60)], None, tmp_path / "index")
    assert nearest_passages(index, np.arange(30, 38), 10, 1).matches == []
    (match,) = nearest_passages(index, np.arange(30, 39), 10, 1).matches
    assert match.distance == 0
    assert nearest_passages(index, np.empty(0, np.int64), 10, 1).complete


def test_the_approximate_guard_stands_beside_the_verbatim_one(card, folder):
    table = next(block for block in section(card, "guard")["blocks"] if block.get("id") == "guard-rates")
    assert [row["guard"] for row in table["rows"][:3]] == ["none", "MemFree, n = 3", "n = 6, 1 edit"]
    held, near = (Measurement.load(folder / "measurements" / f"{name}.tiny-0.json") for name in ("guarded", "approximate"))
    assert near.summary["counts"]["guarded"] > 0
    assert near.provenance["guard_options"] == {"n": 6, "approximate": 1}
    assert "approximate" not in held.provenance["guard_options"]
    prices = next(block for block in section(card, "guard")["blocks"] if block.get("id") == "guard-price")
    assert [row["guard"] for row in prices["rows"]] == ["MemFree, n = 3", "n = 6, 1 edit"]


def test_without_edits_there_is_no_approximate_guard(arguments, tmp_path):
    plain = replace(arguments["settings"], guard_edits=0)
    card = run_audit(**{**arguments, "settings": plain}, out=tmp_path / "out")
    table = next(block for block in section(card, "guard")["blocks"] if block.get("id") == "guard-rates")
    assert {row["guard"] for row in table["rows"]} == {"none", "MemFree, n = 3"}
    assert not (tmp_path / "out" / "measurements" / "approximate.tiny-0.json").exists()
    check(json.loads(json.dumps(card)))
