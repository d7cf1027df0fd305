"""The memory frame's claim: its questions and reading rows, the verdict on models that read and that do not, and the smallest run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.evaluation.temporal import Freshness
from palimpsest.experiments import memory_frame as experiment
from palimpsest.experiments.memory_frame_reading import DOCUMENTS, long_reading
from palimpsest.experiments.memory_frame_settings import Reader, ReaderConfig, three_settings
from palimpsest.experiments.memory_frame_world import CUT, WORDINGS, LabWorld, WorldConfig
from palimpsest.models.base import LanguageModel, Scores

SMALL = WorldConfig(seed=5, people=60, forget=30, unseen=30, epochs=1, width=16, heads=2)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Reader:
    return Reader(LabWorld(SMALL, tmp_path_factory.mktemp("world")), ReaderConfig(20, 1, 1, 300))


class Scripted(LanguageModel):
    """Knows what held on the day of the cut; of what stands in the evidence slot it reads the last word, if it reads at all."""

    door, capabilities, parameters, prepends_bos = "scripted", frozenset({"text"}), None, False
    name, context_length, fingerprint = "scripted", 4096, "0" * 64

    def __init__(self, reader: Reader, reads: bool) -> None:
        self.reader, self.reads, self.tokenizer = reader, reads, reader.lab.tokenizer
        self.stop = self.tokenizer.encode(".")[0]

    def generate(self, prefixes, max_new_tokens, **options):
        known = {tuple(self.tokenizer.encode(self.reader.lab.world.cue(f))): self.tokenizer.encode(f.object) for f in self.reader.asked}
        written = []
        for ids in prefixes:
            evidence, question = ids[: self.reader.slot].tolist(), ids[self.reader.slot :].tolist()
            said = evidence[: evidence.index(self.stop)]
            written.append([np.array([*(said[-1:] if self.reads and said else known[tuple(question)]), self.stop])])
        return written

    def score(self, batch_ids, **options) -> Scores:
        raise NotImplementedError


def test_one_fact_a_person_is_asked_and_a_fifth_of_them_changed(reader):
    lab = reader.lab
    assert len({fact.subject for fact in reader.asked}) == len(reader.asked) == 60
    assert all(fact.holds(CUT) for fact in reader.asked)
    changed = [fact for fact in reader.asked if lab.world.value(fact.subject, fact.relation) != fact]
    assert changed == reader.asked[:12]
    assert set(reader.asked) | set(reader.others) == set(lab.facts)
    assert not {(f.subject, f.relation) for f in reader.asked} & {(f.subject, f.relation) for f in reader.others}


def test_reading_rows_say_a_value_twice_and_are_never_about_what_is_asked(reader):
    lab = reader.lab
    rows = reader.reading()
    assert len(rows) == 300
    asked = {tuple(lab.tokenizer.encode(lab.world.cue(fact, wording))) for fact in reader.asked for wording in range(WORDINGS)}
    known = {tuple(lab.tokenizer.encode(lab.world.sentence(fact, wording))) for fact in reader.others for wording in range(WORDINGS)}
    stop = lab.tokenizer.encode(".")[0]
    other = 0
    for row in rows:
        evidence, sentence = list(row.ids[: reader.slot]), list(row.ids[reader.slot :])
        assert row.first == reader.slot
        assert 1 not in row.ids  # no word is unknown
        assert sentence[-2:] == [stop, 0]
        assert evidence[evidence.index(stop) - 1] == sentence[-3]
        assert evidence[0] == sentence[0]  # of one subject, in another wording
        assert evidence[: len(sentence) - 1] != sentence[:-1]
        assert tuple(sentence[:-3]) not in asked
        other += tuple(sentence[:-1]) not in known
    assert other > 250  # the values are not those that hold


def test_each_question_finds_its_document_and_no_document_holds_its_text(reader):
    stores = {live: reader.store(live=live) for live in (False, True)}
    for item, fact in zip(reader.items(), reader.asked, strict=True):
        for live, store in stores.items():
            found = store.search(item.question, 1)[0].doc
            assert found.text.startswith(f"{fact.subject} ")
            assert item.question not in found.text
            assert found.text.endswith(f" {(reader.lab.now(fact) if live else fact).object}.")
            assert (found.id in item.evidence_ids) == (live or item.slice == "lasting")
            assert found.published_at <= (item.asked_at if live else CUT)


@pytest.mark.parametrize("reads", [True, False])
def test_the_verdict_follows_from_what_the_model_can_do(reader, monkeypatch, reads):
    monkeypatch.setattr(Reader, "model", lambda self: Scripted(self, reads))
    part = three_settings(reader)
    figures = {check.what: check for check in part.checks}
    assert figures["facts of before the cut that still hold: accuracy in param"].ours == 1
    assert figures["changed facts: outdated in param"].ours == figures["changed facts: outdated offline"].ours == 1
    fresh = figures["changed facts: fresh online"]
    assert (fresh.ours, fresh.baseline, fresh.passed) == (float(reads), 0.0, reads)
    assert figures["questions whose evidence is shown online"].ours == 1
    assert figures["P1: online alone tells weights from store"].ours == 0
    assert figures["P1: facts whose source online and param together name"].ours == pytest.approx(1.0 if reads else 0.8)
    for row in part.rows[:6]:
        assert sum(row[kind] for kind in Freshness) == pytest.approx(1)
        assert row["n"] == (12 if row["slice"] == "changed" else 48)
    assert [row["gain"] for row in part.rows[6:]] == ["param to offline", "param to online", "offline to online"]


class ReadsLittle(Scripted):
    """Says the last word of the sentence about whom it is asked, if at most `most` sentences stand in the slot."""

    most = 2

    def generate(self, prefixes, max_new_tokens, **options):
        names = {self.tokenizer.encode(fact.subject)[0] for fact in self.reader.lab.facts}
        written = []
        for ids in prefixes:
            *sentences, question = " ".join(map(str, ids)).split(f" {self.stop} ")
            read = [list(map(int, one.split())) for one in sentences if not set(one.split()) <= {str(self.stop)}]
            (asked,) = names & set(map(int, question.split()))
            found = [one[-1] for one in read if asked in one]
            written.append([np.array([found[0] if found and len(read) <= self.most else self.stop])])
        return written


@pytest.mark.parametrize(("most", "winners"), [(8, ["reading"] * 4), (2, ["reading"] * 2 + ["retrieval"] * 2)])
def test_the_winner_is_predicted_where_reading_fails_and_where_it_does_not(reader, monkeypatch, most, winners):
    monkeypatch.setattr(Reader, "model", lambda self: ReadsLittle(self, True))
    monkeypatch.setattr(ReadsLittle, "most", most)
    part = long_reading(reader, 5)
    agreed, decided, retrieval, length = part.checks
    assert (agreed.ours, decided.ours) == (1.0, 4.0)
    assert retrieval.ours == pytest.approx(0.5, abs=0.15)
    assert [row["predicted"] for row in part.rows] == [row["measured"] for row in part.rows] == winners
    assert [row["length"] for row in part.rows] == [reader.slot * n for n in DOCUMENTS]
    assert [row["reading"] for row in part.rows] == [1.0 if n <= most else 0.0 for n in DOCUMENTS]
    assert length.ours is None if most == 8 else 2 * reader.slot < length.ours < 4 * reader.slot


def test_the_reader_is_trained_once_and_its_data_counts(reader, monkeypatch):
    first = reader.model().fingerprint
    assert replace(reader, config=replace(reader.config, reading=299)).model().fingerprint != first
    monkeypatch.setattr("palimpsest.experiments.memory_frame_world.Trainer", None)
    assert Reader(reader.lab, reader.config).model().fingerprint == first


def test_smoke_runs_and_what_holds_for_every_model_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    claim = experiment.run("smoke", 5)
    assert claim.passed
    assert sum(check.threshold is not None for check in claim.checks) == 6
    assert {row["item"] for row in claim.rows} == {"settings", "governor", "comparisons", "forgetting", "reading"}
    assert claim.checks[-1].what.startswith("P3")


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)
