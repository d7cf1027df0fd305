"""Facts and prompts of rote learning (system 005), what they must fulfil, and examples that ask for some of their tokens; see `rote`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from palimpsest.errors import InputError
from palimpsest.training.batch import IGNORE, PackedBatch
from palimpsest.training.examples import Example, ExampleBatches

SUBJECT = "{s}"


@dataclass(frozen=True)
class RoteFact:
    """A fact of one relation.

    Attributes:
        subject, object: the pair.
        distractors: other objects of the kind, which the choice is made among; not the object, and no two alike.
    """

    subject: str
    object: str
    distractors: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartlyAsked(Example):
    """An example that does not ask for some of the positions after `first`."""

    skipped: tuple[int, ...] = ()


class PartlyAskedBatches(ExampleBatches):
    """Batches of them."""

    def __getitem__(self, k: int) -> PackedBatch:
        batch = super().__getitem__(k)
        labels = batch.labels.clone()
        for row, example in enumerate(self.chosen(k)):
            if isinstance(example, PartlyAsked):
                labels[row, [position - 1 for position in example.skipped]] = IGNORE
        return replace(batch, labels=labels)


def checked(facts: Sequence[RoteFact]) -> list[RoteFact]:
    """The facts, when every subject has one object, which is none of its distractors, and these are different.

    Raises:
        InputError: otherwise.
    """
    objects: dict[str, str] = {}
    for fact in facts:
        if objects.setdefault(fact.subject, fact.object) != fact.object:
            raise InputError(f"{fact.subject!r} has two objects: {objects[fact.subject]!r} and {fact.object!r}.", "Keep one of them.")
        if fact.object in fact.distractors or len(set(fact.distractors)) < len(fact.distractors):
            raise InputError(f"The distractors of {fact.subject!r} hold its object, or one of them twice.", "Give different ones.")
    if not objects:
        raise InputError("There are no facts.", "Give at least one.")
    return list(facts)


def checked_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts, when each has its {s} once.

    Raises:
        InputError: otherwise, or when there are none.
    """
    bad = [prompt for prompt in prompts if prompt.count(SUBJECT) != 1]
    if bad or not prompts:
        raise InputError(f"Of {len(prompts)} prompts these do not have {SUBJECT} once: {bad}.", 'Write them as "{s} was born in".')
    return list(prompts)


def without_substrings(facts: Sequence[RoteFact]) -> list[RoteFact]:
    """The facts without those whose object stands inside another one's, or has another one's inside: neither could be told apart.

    Example:
        >>> [fact.object for fact in without_substrings([RoteFact("a", "York"), RoteFact("b", "New York"), RoteFact("c", "Rome")])]
        ['Rome']
    """
    objects = sorted({fact.object for fact in facts})
    touching = {name for a in objects for b in objects if a != b and a in b for name in (a, b)}
    return [fact for fact in facts if fact.object not in touching]


def filled(prompt: str, fact: RoteFact) -> str:
    """A prompt about the fact's subject."""
    return prompt.replace(SUBJECT, fact.subject)
