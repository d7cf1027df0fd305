"""The laboratory of system 099: a made-up world in which facts are dated and what follows from them is told as it is today.

Documents are single sentences. A fact of a relation that changes (where one lives, whom one works for) stands with a year in front, "[as
of 2009] …", in up to ten years of every value's time. What is true today stands without a year, in three wordings, and once with a year
from today on. What follows from two facts (the country one lives in, where one works) is told in these present forms alone; and where it
was another one at the cut-off that will be asked for, once as a plan. A model *without years* reads the same sentences with the marks
taken off.

Years to come stand in front of what is still true then, as in texts that say until when they hold: a year that was never read would be no
placebo but an unknown word.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from palimpsest.corpus.facts import Fact
from palimpsest.corpus.factworld import FactWorld
from palimpsest.evaluation.rewind_items import RewindItem
from palimpsest.evaluation.temporal import history_of
from palimpsest.experiments.memory_frame_world import EOS, UNKNOWN, LabWorld
from palimpsest.models import HFModel
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.examples import Example

DIRECT, FOLLOWING = ("residence", "employer"), ("country_of_residence", "workplace")
TODAY, LAST = 2025, 2030
YEARS, PRESENT = 10, 3
PLAN = "The plan was: "


@dataclass(frozen=True)
class DatedWorld(LabWorld):
    """The world, its documents, its questions and the models that read it; trained and kept as `LabWorld` says."""

    @cached_property
    def world(self) -> FactWorld:
        """Most of what may change does."""
        return FactWorld(self.config.seed, self.config.people, changing=0.8)

    @cached_property
    def cuts(self) -> dict[tuple[str, str], tuple[int, Fact, Fact]]:
        """For (subject, relation): the first year that must not be known, what held on the last day before, and what holds today.

        Where a value changed, the year is drawn from those at whose beginning another value held than today's.
        """
        rng = np.random.default_rng((self.config.seed, 99))
        found = {}
        for relation in (*DIRECT, *FOLLOWING):
            for subject in self.world.entities["person"]:
                now = self.world.value(subject, relation)
                if now is None:
                    continue
                at = {year: self.world.value(subject, relation, date(year - 1, 12, 31)) for year in range(2002, TODAY)}
                other = {year: then for year, then in at.items() if then is not None and then.object != now.object}
                same = {year: then for year, then in at.items() if then is not None and not other}
                years = sorted(other or same)
                if years:
                    year = years[int(rng.integers(len(years)))]
                    found[subject, relation] = (year, (other or same)[year], now)
        return found

    def documents(self, *, dated: bool = True) -> list[str]:
        """All sentences; without years when not `dated`."""
        rng = np.random.default_rng((self.config.seed, 1))
        texts = []

        def mark(year: int) -> str:
            return f"[as of {year}] " if dated else ""

        def present(fact: Fact) -> list[str]:
            """What is true today, without a year in several wordings, and with a year from today on."""
            without = [self.world.sentence(fact, wording) for wording in range(PRESENT)]
            return [*without, mark(int(rng.integers(TODAY, LAST + 1))) + self.world.sentence(fact)]

        for relation in DIRECT:
            for fact in self.world.facts(relation):
                # a year means its last day, as in the prompt; the last year of a value that still holds lies ahead
                years = [year for year in range(2001, LAST + 1) if fact.holds(date(year, 12, 31))]
                for year in rng.choice(years, size=min(YEARS, len(years)), replace=False).tolist() if years else []:
                    texts.append(mark(year) + self.world.sentence(fact))
                if fact.valid_to is None:
                    texts += present(fact)
        for (_, relation), (_, then, now) in self.cuts.items():
            if relation in FOLLOWING:
                texts += present(now)
                if then.object != now.object:
                    texts.append(PLAN + self.world.sentence(then))
        return texts

    def items(self) -> list[RewindItem]:
        """One question a subject and relation: the sentence up to its object. Unchanged ones test retention."""
        made = []
        for (subject, relation), (year, then, now) in self.cuts.items():
            history = history_of(self.world.history(subject, relation)) if relation in DIRECT else ()
            subset = "factual" if relation in DIRECT else "counterfactual"
            cue = self.world.cue(now, 0)
            made.append(RewindItem(f"{relation} of {subject}", subset, cue, year, now.object, then.object, history=history))
        return made

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """One word a token, one name a token; years and marks are words."""
        words: dict[str, int] = {EOS: 0, UNKNOWN: 1}
        splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
        every = [*self.documents(), *(f"[as of {year}]" for year in range(2000, LAST + 1))]
        for text in every:
            for word, _ in splitter.pre_tokenize_str(text):
                words.setdefault(word, len(words))
        backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
        backend.pre_tokenizer = splitter
        facts = [fact for relation in (*DIRECT, *FOLLOWING) for fact in self.world.facts(relation)]
        names = dict.fromkeys(name for fact in facts for name in (fact.subject, fact.object))
        backend.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
        return Tokenizer(backend, eos_id=0, pad_id=0)

    def reader(self, *, dated: bool) -> HFModel:
        """The model that read the documents, EOS in front and behind of each; EOS is its BOS when it is asked."""
        rows = [Example((0, *ids, 0)) for ids in self.tokenizer.encode_batch(self.documents(dated=dated))]
        trained = self.trained(rows, self.config.epochs, "dated" if dated else "undated")
        begun = Tokenizer(self.tokenizer.backend, bos_id=0, eos_id=0, pad_id=0)
        return HFModel(trained.model, begun, name=trained.name, bos="always")
