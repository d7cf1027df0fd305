"""The evaluation's half of the claim of system 104 (memory-frame): item 1 of its "works when", the three settings on a made-up world.

Two hundred people are asked about, one fact each, at the end of the world's time. A fifth of these facts changed after the model's cut;
the others still hold. The model saw all of them as they were on the day of the cut. *Param* has full stops in the evidence slot; *offline*
the document of the day of the cut; *online* the document of the day of the question, as a store has it whose rows are replaced when they
change. Both stores are searched by BM25.

A model of this size does not read evidence unless it is taught to. The *reader* is trained on three kinds of rows:

* the known facts, two sentences a row, as `LabWorld.examples` writes them;
* the known facts behind an evidence slot full of full stops;
* for reading, (person, relation) pairs that are never asked: the slot says one value, drawn anew for each row, in one wording, and the
  sentence behind it says the same value in another wording. A part of these pairs is also among the known facts, with another value than
  the slot's: there the slot must win over the weights.

A question is a sentence up to its object, and a document says it in another wording, so that no document holds the text of a question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from palimpsest.corpus.facts import Fact
from palimpsest.evaluation.items import Item
from palimpsest.evaluation.prompting import Budget, Template
from palimpsest.evaluation.propositions import Source, attribute, identifiable, minimal_configurations
from palimpsest.evaluation.retrieval import Doc, Snapshot
from palimpsest.evaluation.settings import ThreeSettingRun
from palimpsest.evaluation.temporal import Freshness, history_of
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check
from palimpsest.experiments.memory_frame_governor import Part
from palimpsest.experiments.memory_frame_world import RELATIONS, WORDINGS, LabWorld
from palimpsest.models.hf import HFModel
from palimpsest.training.examples import Example

QUESTIONS, CHANGED = 200, 0.2  # at most so many facts are asked, and this share of them changed
ASKED, WRITTEN = 0, 1  # the wordings of questions and of documents
TEMPLATE = Template("{evidence} {question}", filler=".", separator="", stop=(".",))


@dataclass(frozen=True)
class ReaderConfig:
    """What the reader is trained on.

    Attributes:
        background: pairs that are not asked and that the model knows nevertheless.
        plain, slotted: how often each known sentence stands in the data, by itself and behind an empty slot.
        reading: rows from which reading is learned.
    """

    background: int = 300
    plain: int = 10
    slotted: int = 5
    reading: int = 36_000


@dataclass(frozen=True)
class Reader:
    """The questions on a laboratory's world, and the model that knows the old answers and can read new ones.

    Args:
        lab: the world.
        config: what to train on.
    """

    lab: LabWorld
    config: ReaderConfig

    @cached_property
    def asked(self) -> list[Fact]:
        """At most one fact a person, as it was on the day of the cut: first those that changed since, then those that still hold."""
        people = min(QUESTIONS, len({fact.subject for fact in self.lab.facts}))
        changed, lasting = ({f.subject: f for f in self.lab.facts if self.lasts(f) is kind} for kind in (False, True))
        first = list(changed.values())[: round(CHANGED * people)]
        taken = {fact.subject for fact in first}
        return (first + [fact for fact in lasting.values() if fact.subject not in taken])[:people]

    @cached_property
    def others(self) -> list[Fact]:
        """What held on the day of the cut and is never asked; the first `background` of them are known."""
        asked = set(self.asked)
        return [fact for fact in self.lab.facts if fact not in asked]

    def lasts(self, fact: Fact) -> bool:
        """Whether a fact still holds on the day of the questions."""
        return self.lab.now(fact) == fact

    @cached_property
    def slot(self) -> int:
        """Tokens of the evidence slot: those of the longest sentence."""
        relations = {fact.relation: fact for fact in self.lab.facts}
        texts = [self.lab.world.sentence(relations[name], wording) for name in RELATIONS for wording in range(WORDINGS)]
        return max(len(ids) for ids in self.lab.tokenizer.encode_batch(texts))

    def model(self) -> HFModel:
        """The reader."""
        known = [*self.asked, *self.others[: self.config.background]]
        plain = self.lab.examples(known) * self.config.plain
        return self.lab.trained([*plain, *self._slotted(known) * self.config.slotted, *self.reading()], 1, "reader")

    def reading(self) -> list[Example]:
        """Rows whose sentence repeats in other words what the slot says; asked for is the sentence alone."""
        world, rng = self.lab.world, np.random.default_rng((self.lab.config.seed, 105))
        values = {name: sorted({fact.object for fact in world.facts(name)}) for name in RELATIONS}
        facts = []
        for place in rng.integers(len(self.others), size=self.config.reading).tolist():
            fact = self.others[place]
            pool = values[fact.relation]
            facts.append(replace(fact, object=pool[int(rng.integers(len(pool)))]))
        wordings = [rng.permutation(WORDINGS)[:2].tolist() for _ in facts]
        evidence = self.lab.tokenizer.encode_batch([world.sentence(f, one) for f, (one, _) in zip(facts, wordings, strict=True)])
        sentences = self.lab.tokenizer.encode_batch([world.sentence(f, two) for f, (_, two) in zip(facts, wordings, strict=True)])
        return [self._row(slot, sentence) for slot, sentence in zip(evidence, sentences, strict=True)]

    def _slotted(self, facts: list[Fact]) -> list[Example]:
        texts = [self.lab.world.sentence(fact, wording) for fact in facts for wording in range(WORDINGS)]
        return [self._row([], ids) for ids in self.lab.tokenizer.encode_batch(texts)]

    def _row(self, evidence: list[int], sentence: list[int]) -> Example:
        filler = self.lab.tokenizer.encode(TEMPLATE.filler) * (self.slot - len(evidence))
        return Example((*evidence, *filler, *sentence, 0), self.slot)

    def items(self) -> list[Item]:
        """The questions, in the slices "changed" and "lasting"."""
        return [
            Item(
                id=f"{fact.relation}/{fact.subject}",
                question=self.lab.world.cue(fact, ASKED),
                golds=(self.lab.now(fact).object,),
                asked_at=self.lab.world.end,
                history=history_of(self.lab.world.history(fact.subject, fact.relation)),
                evidence_ids=frozenset({_name(self.lab.now(fact))}),
                slice="lasting" if self.lasts(fact) else "changed",
                tags=(fact.relation,),
            )
            for fact in self.asked
        ]

    def store(self, *, live: bool) -> Snapshot:
        """The documents of the asked facts as they were on the day of the cut, or as they are on the day of the questions."""
        facts = [self.lab.now(fact) if live else fact for fact in self.asked]
        return Snapshot([Doc(_name(fact), self.lab.world.sentence(fact, WRITTEN), fact.valid_from, "factworld") for fact in facts])


def three_settings(reader: Reader) -> Part:
    """Item 1, and proposition 1 on the same answers.

    Args:
        reader: the questions and their model.
    """
    run = ThreeSettingRun(
        reader.model(),
        reader.items(),
        reader.store(live=False),
        reader.store(live=True),
        template=TEMPLATE,
        budget=Budget(evidence_tokens=reader.slot, answer_tokens=2, k=1),
    )
    with one_thread():
        measured = run.run()
    answers = measured.table.select("id", "slice", "setting", "right", "freshness", "hit", "gold_logprob").to_dicts()
    rows = [_shares(answers, part, setting) for part in ("changed", "lasting") for setting in ("param", "offline", "online")]
    share = {(row["slice"], row["setting"]): row for row in rows}
    hits = float(np.mean([row["hit"] for row in answers if row["setting"] == "online"]))
    before, after = share["changed", "param"], share["changed", "online"]
    checks = [
        Check("facts of before the cut that still hold: accuracy in param", share["lasting", "param"]["right"], ">=", 0.9, unit="share"),
        Check("changed facts: outdated in param", before["outdated"], ">=", 0.8, unit="share"),
        Check("changed facts: fresh online", after["fresh"], ">=", 0.8, before["fresh"], unit="share"),
        Check("changed facts: outdated offline", share["changed", "offline"]["outdated"], unit="share"),
        Check("facts that still hold: accuracy online", share["lasting", "online"]["right"], unit="share"),
        Check("questions whose evidence is shown online", hits, unit="share"),
    ]
    gains = [{"gain": name, **pair} for name, pair in measured.summary["gains"].items()]
    return Part([*checks, *_sources(answers)], [*rows, *gains], [measured.curves["freshness-lag"]])


def _shares(answers: list[dict[str, Any]], part: str, setting: str) -> dict[str, Any]:
    """What became of the questions of a slice in a setting: right answers and the five rates of time, and how likely the gold was."""
    here = [row for row in answers if row["slice"] == part and row["setting"] == setting]
    shares = {kind.value: float(np.mean([row["freshness"] == kind for row in here])) for kind in Freshness}
    right, logprobs = float(np.mean([row["right"] for row in here])), [row["gold_logprob"] for row in here]
    known = None if None in logprobs else float(np.mean(logprobs))
    return {"slice": part, "setting": setting, "n": len(here), "right": right, **shares, "gold_logprob": known}


def _sources(answers: list[dict[str, Any]]) -> list[Check]:
    """P1: with everything on, weights and store are not told apart; with the store switched off they are. Changed facts are in the store
    alone, and what still holds is in the weights, whether or not a store has it too."""
    weights, store = Source.WEIGHTS, Source.STORE
    on, off = frozenset([weights, store]), frozenset([weights])
    asked = {setting: {row["id"]: row for row in answers if row["setting"] == setting} for setting in ("online", "param")}
    right = {c: [bool(row["right"]) for row in asked[s].values()] for c, s in ((on, "online"), (off, "param"))}
    truth = [store if row["slice"] == "changed" else weights for row in asked["online"].values()]
    found = attribute(right, [weights, store])
    named = float(np.mean([sources == (source,) for sources, source in zip(found, truth, strict=True)]))
    told = identifiable([on], [weights, store])
    return [
        Check("P1: online alone tells weights from store", float(told), "==", 0.0, unit="1 = yes"),
        Check("P1: runs that do", float(len(minimal_configurations([weights, store], [on, off])[0])), unit="runs"),
        Check("P1: facts whose source online and param together name", named, unit="share"),
    ]


def _name(fact: Fact) -> str:
    return f"{fact.relation}/{fact.subject}/{fact.valid_from.isoformat()}"
