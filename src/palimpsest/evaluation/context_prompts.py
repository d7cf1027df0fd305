"""Questions about a long context in three parts: what is read, what is asked behind it, and the answer.

A method that drops a part of what was read must do so before it knows the question, or it answers an easier one; so context and question
are apart here, and a benchmark decides when the question is seen. Two tasks, both of invented numbers that stand in real text:

* **pass key** (Mohtashami and Jaggi, *Landmark Attention*, NeurIPS 2023, arXiv 2305.16300): one number of five digits, said twice, at a
  given depth of the filler;
* **named keys** (as the multi-key needles of Hsieh et al., *RULER*, COLM 2024, arXiv 2404.06654): k sentences of one form, "The pass key
  of Anna is 48213.", at random depths; one of them is asked for, or each in turn of the same context.

Lengths are exact: `length` counts context and question with the words that lead to the answer, not the answer. The digits of a key are what
is asked of the model, as a tokenizer cuts them behind a space. Departures: the filler is real text instead of one sentence repeated, and
the wording is short, so that a model with a window of 256 tokens can be asked, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from palimpsest.audit.alignment import ChatTemplate
from palimpsest.errors import InputError
from palimpsest.evaluation.haystack import Haystack, Recipe
from palimpsest.tokenizer import Tokenizer

DIGITS = 5
NAMES = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "James", "Karen", "Louis", "Maria", "Nina", "Oscar",
    "Paula",
)  # fmt: skip
HEAD = "Some pass keys are hidden in the following text. Find them and remember them.\n\n"


@dataclass(frozen=True)
class KeyPrompt:
    """The wording of key tasks; `{key}` is the number, `{name}` whose it is.

    Attributes:
        head: what stands before the context.
        needle, question: the one key.
        named_needle, named_question: one of several.
        tail: what stands behind the question and before the words that lead to the answer.
        lead, named_lead: these words.
        after: what stands behind the answer, where a text goes on.
    """

    head: str = ""
    needle: str = "The pass key is {key}. Remember it. {key} is the pass key. "
    question: str = "\nWhat is the pass key?"
    named_needle: str = "The pass key of {name} is {key}. "
    named_question: str = "\nWhat is the pass key of {name}?"
    tail: str = " "
    lead: str = "The pass key is "
    named_lead: str = "The pass key of {name} is "
    after: str = "."

    @classmethod
    def chat(cls, template: ChatTemplate) -> KeyPrompt:
        """The same task as a user's turn, the answer being begun in the assistant's.

        Example:
            >>> KeyPrompt.chat(ChatTemplate("<user>", "<model>", "<end>")).tail
            '<model>'
        """
        return cls(head=template.prefix + HEAD, tail=template.turn, after="." + template.end)


@dataclass(frozen=True)
class Question:
    """A question and its answer, both in ids.

    Attributes:
        ids: what follows the context, int64; the words that lead to the answer are its end.
        answer: int64.
        depth: where in the filler the answer really stands.
        span: where in the context its sentence stands, (start, end) in tokens.
    """

    ids: np.ndarray
    answer: np.ndarray
    depth: float
    span: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class KeySample:
    """A context and what is asked about it.

    Attributes:
        id: unique in a run; two programs that were given the same samples join their results on it.
        context: int64 (length − tokens of the longest question,).
        questions: at least one.
        length: tokens of context and longest question.
        keys: how many keys stand in the context.
        depth: what was asked for, None where depths were drawn.
        seed: of the sample.
    """

    id: str
    context: np.ndarray
    questions: tuple[Question, ...]
    length: int
    keys: int
    depth: float | None
    seed: int


def passkey_samples(
    haystack: Haystack, length: int, depths: Sequence[float], n: int, *, seed: int = 0, prompt: KeyPrompt | None = None
) -> list[KeySample]:
    """Contexts with one key, `n` for each depth.

    Args:
        haystack: of the model's tokenizer.
        length: tokens of context and question.
        depths: shares of the filler, 0 to 1.
        n: samples a depth.
        seed: of keys and filler.
        prompt: the wording, by default a plain text's.

    Raises:
        InputError: no depth, n < 1, or a length with no room.

    Example:
        >>> haystack = Haystack(tokenizer, [book], cycle=True)           # doctest: +SKIP
        >>> sample = passkey_samples(haystack, 1024, [0.5], 1)[0]        # doctest: +SKIP
        >>> len(sample.context) + len(sample.questions[0].ids)           # doctest: +SKIP
        1024
    """
    if n < 1 or not depths:
        raise InputError(f"{n} samples at {len(depths)} depths were asked for.", "Ask for at least one of each.")
    prompt = prompt or KeyPrompt()
    samples = []
    for place, depth in enumerate(depths):
        for number in range(n):
            rng = np.random.default_rng((seed, 1, length, place, number))
            key = draw_keys(rng, 1)[0]
            asked = _asked(haystack.tokenizer, prompt.question, prompt.tail + prompt.lead, key)
            recipe = Recipe((prompt.needle.format(key=key),), (float(depth),), length - len(asked.ids), prompt.head)
            made = haystack.make(replace(recipe, seed=int(rng.integers(1 << 31))))
            name = f"passkey/{length}/{depth:g}/{seed}/{number}"
            questions = (replace(asked, depth=made.depths[0], span=made.spans[0]),)
            samples.append(KeySample(name, made.ids, questions, length, 1, float(depth), seed))
    return samples


def named_key_samples(
    haystack: Haystack, length: int, keys: int, n: int, *, every: bool = False, seed: int = 0, prompt: KeyPrompt | None = None
) -> list[KeySample]:
    """Contexts with `keys` named keys at random depths, of which one is asked for, or each in turn.

    Args:
        haystack: of the model's tokenizer.
        length: tokens of context and longest question.
        keys: sentences of the same form, 1 to 16.
        n: samples.
        every: ask for each key, in an order of its own; False: for one, drawn.
        seed: of keys, names, depths and filler.
        prompt: the wording.

    Raises:
        InputError: keys or n out of range, or a length with no room.
    """
    if n < 1 or not 1 <= keys <= len(NAMES):
        raise InputError(f"{n} samples of {keys} keys were asked for.", f"Ask for at least one sample, of 1 to {len(NAMES)} keys.")
    prompt = prompt or KeyPrompt()
    samples = []
    for number in range(n):
        rng = np.random.default_rng((seed, 2, length, keys, number))
        names = [NAMES[i] for i in rng.permutation(len(NAMES))[:keys]]
        numbers = draw_keys(rng, keys)
        depths = np.sort(rng.random(keys))
        chosen = rng.permutation(keys) if every else rng.permutation(keys)[:1]
        asked = []
        for i in chosen:
            lead = (prompt.tail + prompt.named_lead).format(name=names[i])
            asked.append(_asked(haystack.tokenizer, prompt.named_question.format(name=names[i]), lead, numbers[i]))
        needles = tuple(prompt.named_needle.format(name=name, key=key) for name, key in zip(names, numbers, strict=True))
        room = length - max(len(question.ids) for question in asked)
        made = haystack.make(Recipe(needles, tuple(depths.tolist()), room, prompt.head, seed=int(rng.integers(1 << 31))))
        questions = tuple(
            replace(question, depth=made.depths[i], span=made.spans[i]) for question, i in zip(asked, chosen.tolist(), strict=True)
        )
        kind = "every" if every else "one"
        samples.append(KeySample(f"named-{kind}/{length}/{keys}/{seed}/{number}", made.ids, questions, length, keys, None, seed))
    return samples


def draw_keys(rng: np.random.Generator, n: int) -> list[str]:
    """`n` different numbers of five digits, as texts."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[str(rng.integers(10 ** (DIGITS - 1), 10**DIGITS))] = None
    return list(found)


def _asked(tokenizer: Tokenizer, question: str, lead: str, key: str) -> Question:
    """The question and its answer; the two are encoded together, so that the answer's ids are those that a text would have.

    Raises:
        InputError: the tokenizer joins the answer with what stands before it, so that no id begins it.
    """
    ids = tokenizer.encode(question + lead)
    whole = tokenizer.encode(question + lead + key)
    if whole[: len(ids)] != ids:  # a vocabulary with " 4" as one id: the space belongs to the answer
        ids = tokenizer.encode((question + lead).rstrip(" "))
    if whole[: len(ids)] != ids or len(whole) == len(ids):
        raise InputError(f"The tokenizer joins {key!r} with the words before it.", "Give another wording.")
    return Question(np.array(ids, np.int64), np.array(whole[len(ids) :], np.int64), 0.0)
