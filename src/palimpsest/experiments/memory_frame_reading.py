"""Proposition 4 in the claim of system 104 (memory-frame): retrieval with a small window against reading all, predicted and measured.

On the reader of item 1 and pairs that it was not taught, each with a value drawn here. A store holds two documents of every pair, one of
them outdated; a retriever that knows no dates shows one of the two by lot. Reading everything means 1, 2, 4 or 8 documents in the slot, one
of them the right one at a place by lot, the others of other people. From half of the questions `break_even` predicts who wins at each
length; on the other half it is measured. The proposition asks that the predicted winner is the measured one at 80 % of the lengths at
least, where the intervals do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from palimpsest.corpus.facts import Fact
from palimpsest.evaluation.propositions import break_even, prediction_agreement
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check
from palimpsest.experiments.memory_frame_governor import Part
from palimpsest.experiments.memory_frame_settings import ASKED, TEMPLATE, WRITTEN, Reader
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval, wilson_interval

DOCUMENTS = (1, 2, 4, 8)  # in the slot of one who reads everything
QUESTIONS = 400  # at most so many, half for the prediction


@dataclass(frozen=True)
class Answers:
    """Whether each question was answered right, bool (questions,) each.

    Attributes:
        short, none: with the right document alone, with the outdated one alone.
        hit: whether the retriever showed the right one.
        reading: by number of documents.
    """

    short: np.ndarray
    none: np.ndarray
    hit: np.ndarray
    reading: dict[int, np.ndarray]


def long_reading(reader: Reader, seed: int) -> Part:
    """The proposition, on one reader.

    Args:
        reader: of item 1; the model is trained, or taken from the cache.
        seed: of values, lots and places.
    """
    model = reader.model()
    with one_thread():
        answers = ask(reader, model, seed)
    half = len(answers.hit) // 2
    lengths = {n: n * reader.slot for n in DOCUMENTS}
    reading = {lengths[n]: float(right[:half].mean()) for n, right in answers.reading.items()}
    predicted = break_even(
        float(answers.hit[:half].mean()), float(answers.short[:half].mean()), float(answers.none[:half].mean()), reading, reader.slot
    )
    retrieval = _share(np.where(answers.hit, answers.short, answers.none)[half:])
    measured = {lengths[n]: _share(right[half:]) for n, right in answers.reading.items()}
    agreement = prediction_agreement(predicted, retrieval, measured)
    rows = [
        {**row, "documents": n, "reading": measured[lengths[n]].estimate, "retrieval": retrieval.estimate}
        for n, row in zip(DOCUMENTS, agreement["by_length"], strict=True)
    ]
    return Part(
        [
            Check("P4: lengths at which the predicted winner is the measured one", agreement["share"], ">=", 0.8, unit="share"),
            Check("P4: lengths at which the intervals do not overlap", float(agreement["decided"]), unit="lengths"),
            Check("P4: retrieval, measured accuracy", retrieval.estimate, baseline=predicted.retrieval, unit="share"),
            Check("P4: length from which on retrieval is predicted to win", predicted.length, unit="tokens"),
        ],
        rows,
    )


def ask(reader: Reader, model: LanguageModel, seed: int) -> Answers:
    """Asks every question with each of its evidences."""
    world, rng = reader.lab.world, np.random.default_rng((seed, 6))
    pairs = reader.others[reader.config.background :][:QUESTIONS]
    values = {name: sorted({fact.object for fact in world.facts(name)}) for name in {fact.relation for fact in pairs}}
    drawn = [rng.choice(values[fact.relation], size=2, replace=False).tolist() for fact in pairs]
    new, old = ([replace(fact, object=pair[k]) for fact, pair in zip(pairs, drawn, strict=True)] for k in (0, 1))

    def right(evidence: list[list[Fact]], documents: int) -> np.ndarray:
        encode = reader.lab.tokenizer.encode
        room, filler = documents * reader.slot, encode(TEMPLATE.filler)
        rows = []
        for fact, shown in zip(pairs, evidence, strict=True):
            slot = [token for one in shown for token in encode(world.sentence(one, WRITTEN))]
            rows.append([*slot, *filler * (room - len(slot)), *encode(world.cue(fact, ASKED))])
        said = model.generate(rows, 1)
        return np.array([one[0].tolist() == encode(fact.object)[:1] for one, fact in zip(said, new, strict=True)])

    reading = {}
    for documents in DOCUMENTS:
        shown = []
        for number, fact in enumerate(new):
            apart = [k for k in rng.permutation(len(new))[: 2 * documents + 1].tolist() if new[k].subject != fact.subject]
            others = [new[k] for k in apart[: documents - 1]]
            others.insert(int(rng.integers(documents)), new[number])
            shown.append(others)
        reading[documents] = right(shown, documents)
    hit = rng.random(len(pairs)) < 0.5
    return Answers(right([[fact] for fact in new], 1), right([[fact] for fact in old], 1), hit, reading)


def _share(right: np.ndarray) -> Interval:
    return wilson_interval(int(right.sum()), len(right))
