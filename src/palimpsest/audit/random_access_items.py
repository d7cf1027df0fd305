"""What random access is measured with (system 044): passages that are written under an id, examples of a task, and questions.

See `random_access` for the paper, the tasks and the remedies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from palimpsest.errors import InputError

TASKS = ("full", "selective", "grounded_qa")
IDS = ("title", "rare", "num")
ID_TYPES = (*IDS, *(f"wrong_{kind}" for kind in IDS), "none", "context")
REMEDIES = ("none", "recite", "first_permute", "random_permute", "repeat")
SPLITTER = "Answer:"


@dataclass(frozen=True)
class Passage:
    """A passage to be memorized.

    Attributes:
        title: no two passages may have the same.
        sentences: at least one.
        questions: (question, answer) pairs about it.
    """

    title: str
    sentences: tuple[str, ...]
    questions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Query:
    """What is asked about a passage.

    Attributes:
        prompt: ends with the id.
        golds: right answers.
        passage: which one, by its number.
        place: the sentence's or the question's number in its passage, from 1.
        recited: what has to be recited before the answer (any of these); none when nothing has to.
        control: the prompt with the id of another passage; None where there is no id.
    """

    prompt: str
    golds: tuple[str, ...]
    passage: int
    place: int
    recited: tuple[str, ...] = ()
    control: str | None = None

    @property
    def target(self) -> str:
        """What a model is trained to write."""
        return f"{self.recited[0]} {SPLITTER} {self.golds[0]}" if self.recited else self.golds[0]


class Trial(NamedTuple):
    """What is written, what is trained as a task, and what is asked: texts and queries."""

    write: list[str]
    train: list[Query]
    evaluation: list[Query]


def build(
    passages: Sequence[Passage],
    task: str = "selective",
    id_type: str = "title",
    remedy: str = "none",
    *,
    held_out: int = 40,
    k: int = 1,
    marked: bool | None = None,
    seed: int = 0,
) -> Trial:
    """Makes what is written, the task's examples and the questions from passages.

    Args:
        passages: all are written; `held_out` of them, drawn by the seed, stand in no example.
        task: "full", "selective" or "grounded_qa".
        id_type: of `ID_TYPES`; for "none" and "context" passages are written under their titles.
        remedy: of `REMEDIES`.
        held_out: passages that are asked about.
        k: orders of "random_permute", copies of "repeat".
        marked: whether sentences stand between markers; by default in the selective task alone.
        seed: of the draw, the made-up ids, the wrong ids and the orders. The same passages are held out for every task, id and remedy.

    Raises:
        InputError: an unknown task, id or remedy; fewer than two passages on either side; titles that are not different; a passage without
            sentences, with a marker in it, or, in grounded_qa, without questions; "Answer:" in a passage that is recited.

    Example:
        >>> texts = [Passage(f"P{n}", (f"a{n} b{n}.", f"c{n} d{n}.")) for n in range(4)]
        >>> trial = build(texts, held_out=2)
        >>> len(trial.write), len(trial.train), len(trial.evaluation)
        (4, 4, 4)
        >>> query = next(query for query in trial.train + trial.evaluation if query.passage == 0 and query.place == 2)
        >>> query.prompt, query.golds, trial.write[0]
        ('Sentence 2 of P0:', ('c0 d0.',), 'P0: [1] a0 b0. [1] [2] c0 d0. [2]')
    """
    marked = task == "selective" if marked is None else marked
    _check(passages, task, id_type, remedy, held_out, k, marked)
    rng = np.random.default_rng((seed, 44))
    chosen = np.sort(rng.permutation(len(passages))[:held_out])
    asked = set(chosen.tolist())
    sides = [[n for n in range(len(passages)) if n not in asked], chosen.tolist()]
    kind = id_type.removeprefix("wrong_") if id_type.removeprefix("wrong_") in IDS else "title"
    ids = _ids(passages, kind, rng)
    others = {n: ids[other] for side in sides for n, other in _deranged(side, rng)}
    bodies = [_bodies(passage, remedy, k, marked, rng) for passage in passages]
    written = [f"{ids[n]}: {body}" for n, copies in enumerate(bodies) for body in copies]

    def queries(side: list[int]) -> list[Query]:
        found = []
        for n in side:
            shown = {"none": "", "context": bodies[n][0]}.get(id_type, others[n] if id_type.startswith("wrong_") else ids[n])
            recited = (bodies[n][0],) if remedy == "recite" else ()
            for place, (question, golds) in enumerate(_questions(passages[n], task, bodies[n]), 1):
                control = _prompt(task, question, others[n]) if id_type in IDS else None
                found.append(Query(_prompt(task, question, shown), golds, n, place, recited if task != "full" else (), control))
        return found

    return Trial(written, *(queries(side) for side in sides))


def random_letters(passages: Sequence[Passage], seed: int = 0) -> list[Passage]:
    """The passages with every letter of their sentences replaced by a random one, without questions: content of equal length that no
    model has seen.

    Example:
        >>> [changed] = random_letters([Passage("P", ("To be.",))])
        >>> changed.title, len(changed.sentences[0]), changed.sentences[0][2], changed.sentences[0][-1]
        ('P', 6, ' ', '.')
    """
    rng = np.random.default_rng((seed, 26))

    def changed(text: str) -> str:
        return "".join(chr(ord("a") + int(rng.integers(26))) if letter.isalpha() else letter for letter in text)

    return [Passage(passage.title, tuple(changed(sentence) for sentence in passage.sentences)) for passage in passages]


def _check(passages: Sequence[Passage], task: str, id_type: str, remedy: str, held_out: int, k: int, marked: bool) -> None:
    for value, known, what in ((task, TASKS, "task"), (id_type, ID_TYPES, "id"), (remedy, REMEDIES, "remedy")):
        if value not in known:
            raise InputError(f"The {what} {value!r} is unknown.", f"Choose one of {', '.join(known)}.")
    if not 2 <= held_out <= len(passages) - 2:
        raise InputError(f"{held_out} of {len(passages)} passages are held out.", "Hold out two at least, and leave two.")
    if k < 1:
        raise InputError(f"k is {k}.", "Give 1 or more.")
    titles = Counter(passage.title for passage in passages)
    if max(titles.values()) > 1:
        raise InputError(f"The title {titles.most_common(1)[0][0]!r} stands twice.", "Give every passage its own.")
    for passage in passages:
        body = " ".join(passage.sentences)
        if not passage.sentences or not all(sentence.strip() for sentence in passage.sentences):
            raise InputError(f"The passage {passage.title!r} has no sentence, or an empty one.", "Leave it out.")
        if marked and any(f"[{n}]" in body for n in range(1, len(passage.sentences) + 1)):
            raise InputError(f"A marker stands in the passage {passage.title!r}.", "Remove [1], [2], … from its sentences.")
        if remedy == "recite" and SPLITTER in body:
            raise InputError(f"{SPLITTER!r} stands in the passage {passage.title!r}.", "It parts recitation and answer: remove it.")
        if task == "grounded_qa" and not passage.questions:
            raise InputError(f"The passage {passage.title!r} has no questions.", "Give some, or choose another task.")


def _ids(passages: Sequence[Passage], kind: str, rng: np.random.Generator) -> list[str]:
    """One id a passage, all different."""
    if kind == "title":
        return [passage.title for passage in passages]
    found: dict[str, None] = {}
    while len(found) < len(passages):
        letters = rng.choice(list("bcdfghjklmnpqrstvwxz"), size=6)
        found["".join(letters) if kind == "rare" else str(rng.integers(10_000, 100_000 + 10 * len(passages)))] = None
    return list(found)


def _deranged(side: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Every passage with another one of its side."""
    order = rng.permutation(len(side)).tolist()
    return [(side[a], side[b]) for a, b in zip(order, [*order[1:], order[0]], strict=True)]


def _bodies(passage: Passage, remedy: str, k: int, marked: bool, rng: np.random.Generator) -> list[str]:
    """The copies of a passage that are written, the first in its own order unless all begin differently."""
    places = list(range(len(passage.sentences)))
    orders = [places]
    if remedy == "first_permute":
        orders = [[first, *(n for n in places if n != first)] for first in places]
    elif remedy == "random_permute":
        orders += [rng.permutation(len(places)).tolist() for _ in range(k)]
    elif remedy == "repeat":
        orders *= k
    pieces = [f"[{n}] {text} [{n}]" if marked else text for n, text in enumerate(passage.sentences, 1)]
    return [" ".join(pieces[n] for n in order) for order in orders]


def _questions(passage: Passage, task: str, bodies: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    if task == "full":
        return [("", tuple(dict.fromkeys(bodies)))]
    if task == "selective":
        return [(str(n), (sentence,)) for n, sentence in enumerate(passage.sentences, 1)]
    return [(question, (answer,)) for question, answer in passage.questions]


def _prompt(task: str, question: str, shown: str) -> str:
    """The id directly precedes what follows it, as where the passage was written."""
    if task == "grounded_qa":
        return f"{question} See {shown}:" if shown else question
    before = "Recite" if task == "full" else f"Sentence {question} of"
    return f"{before} {shown}:" if shown else f"{before.removesuffix(' of')}:"
