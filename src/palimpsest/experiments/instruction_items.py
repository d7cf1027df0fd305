"""Made-up instruction data for a laboratory model: word problems, conversions, and questions of fact, from a few templates each.

Two items of one template with other numbers or names are siblings, as in real instruction sets: near to each other in meaning and in
letters. Nothing here is hard; what matters is that a model can be tuned on some of the items and never sees the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palimpsest.audit.contrast_items import builtin_rows
from palimpsest.errors import InputError

NAMES = ("Tom", "Anna", "Peter", "Mary", "John", "Lucy", "Sam", "Ellen", "Paul", "Rose")
THINGS = ("apples", "books", "coins", "eggs", "letters", "horses", "chairs", "stones", "candles", "shirts")
PROBLEMS = (
    ("{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?", "{n} has {a} + {b} = {c} {t}."),
    ("{n} had {c} {t} and gave away {b} of them. How many {t} are left?", "{c} - {b} = {a}, so {a} {t} are left."),
    ("There are {a} boxes with {b} {t} in each. How many {t} does {n} count?", "{n} counts {a} times {b}, that is {p} {t}."),
    ("{n} finds {a} {t} in the morning and {b} in the evening. How many are that?", "That are {a} + {b} = {c} {t}."),
)
UNITS = (
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100), ("hours", "minutes", 60), ("minutes", "seconds", 60),
    ("weeks", "days", 7), ("kilograms", "grams", 1000), ("years", "months", 12), ("feet", "inches", 12), ("dozens", "pieces", 12),
    ("pounds", "ounces", 16),
)  # fmt: skip
CONVERSIONS = (
    ("Convert {a} {u} to {v}.", "{a} {u} are {p} {v}."),
    ("How many {v} are {a} {u}?", "{a} {u} make {p} {v}."),
    ("I have {a} {u}. What is that in {v}?", "That is {p} {v}."),
)
FACTS = {
    "capital": (
        ("What is the capital of {s}?", "The capital of {s} is {o}."),
        ("Name the capital city of {s}.", "{o} is the capital of {s}."),
        ("Which city is the seat of government of {s}?", "{s} is governed from {o}."),
        ("Tell me where the capital of {s} lies.", "The capital of {s} is called {o}."),
    ),
    "work": (
        ("Who wrote {s}?", "{s} was written by {o}."),
        ("Name the author of {s}.", "The author of {s} is {o}."),
        ("By whom is {s}?", "{s} is a work of {o}."),
        ("Which writer do we owe {s} to?", "We owe {s} to {o}."),
    ),
}
SHARES = (0.45, 0.3, 0.25)  # problems, conversions, facts


@dataclass(frozen=True)
class Instruction:
    """A question and its answer."""

    question: str
    answer: str

    @property
    def text(self) -> str:
        """Both as one plain text."""
        return f"{self.question} {self.answer}"


def draw_instructions(n: int, rng: np.random.Generator) -> list[Instruction]:
    """`n` distinct instructions in random order.

    Raises:
        InputError: more than the templates give.

    Example:
        >>> [first, *_] = draw_instructions(10, np.random.default_rng(0))
        >>> first.text
        'There are 54 boxes with 31 shirts in each. How many shirts does Sam count? Sam counts 54 times 31, that is 1674 shirts.'
    """
    facts = [
        Instruction(question.format(s=subject), answer.format(s=subject, o=thing))
        for kind, forms in FACTS.items()
        for subject, thing in builtin_rows()[kind]
        for question, answer in forms
    ]
    wanted = [round(share * n) for share in SHARES[:2]]
    wanted.append(n - sum(wanted))
    if n < 1 or wanted[2] > len(facts) or wanted[1] > 2000:
        raise InputError(f"{n} instructions were asked for.", f"Ask for 1 to {4 * len(facts)}.")
    found: dict[Instruction, None] = {}
    for make, count in ((_problem, wanted[0]), (_conversion, wanted[1])):
        goal = len(found) + count
        while len(found) < goal:
            found.setdefault(make(rng))
    every = [*found, *(facts[i] for i in rng.permutation(len(facts))[: wanted[2]])]
    return [every[i] for i in rng.permutation(len(every))]


def _problem(rng: np.random.Generator) -> Instruction:
    question, answer = PROBLEMS[rng.integers(len(PROBLEMS))]
    a, b = (int(number) for number in rng.integers(2, 60, size=2))
    fields = {"n": NAMES[rng.integers(len(NAMES))], "t": THINGS[rng.integers(len(THINGS))], "a": a, "b": b, "c": a + b, "p": a * b}
    return Instruction(question.format(**fields), answer.format(**fields))


def _conversion(rng: np.random.Generator) -> Instruction:
    question, answer = CONVERSIONS[rng.integers(len(CONVERSIONS))]
    u, v, factor = UNITS[rng.integers(len(UNITS))]
    a = int(rng.integers(2, 100))
    fields = {"a": a, "u": u, "v": v, "p": a * factor}
    return Instruction(question.format(**fields), answer.format(**fields))
