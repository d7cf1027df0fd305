"""The context methods of the library on the axes of a survey, by name, with a recommendation (system 013).

Wang et al., "Beyond the Limits: A Survey of Techniques to Extend the Context Length in Large Language Models", IJCAI 2024,
arXiv 2402.02244. The survey orders methods by the phase in which they act and by what they change (positions, attention, memory,
input). Its executable form here is one `Method` record for each, with what a user has to know to choose: is the result that of full
attention, must the question be known, at which positions do keys stand, how many keys a decoded token reads, and how many a head
holds, both as functions of the length T and the budget B.

`methods()` lists them, `make(name, …)` makes one, `recommend(…)` ranks them for a model, a length and a number of bytes.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, fields
from typing import Any

from palimpsest.context.attach import ContextMethod
from palimpsest.context.records import METHODS, Method
from palimpsest.errors import InputError

__all__ = ["Method", "Recommendation", "make", "method", "methods", "recommend"]


@dataclass(frozen=True)
class Recommendation:
    """One line of `recommend`.

    Attributes:
        name: the method's.
        options: what to give to `make` besides the name.
        cache_bytes: what the cache of one text of that length will hold, all layers together.
        fits: whether that is within the bytes that were given.
        score: higher is better; only the order means something.
        reasons: why it stands where it stands.
    """

    name: str
    options: dict[str, Any]
    cache_bytes: int
    fits: bool
    score: float
    reasons: tuple[str, ...]


def methods(family: str | None = None, phase: str | None = None) -> list[Method]:
    """The records, of one family or phase if given.

    Raises:
        InputError: nothing has that family or phase.
    """
    found = [m for m in METHODS if family in (None, m.family.partition(":")[0], m.family) and phase in (None, m.phase)]
    if not found:
        known = sorted({m.family for m in METHODS} | {m.phase for m in METHODS})
        raise InputError(f"No context method has family {family!r} and phase {phase!r}.", f"There are: {', '.join(known)}.")
    return found


def method(name: str) -> Method:
    """The record of a name.

    Raises:
        InputError: an unknown name; close ones are listed.
    """
    known = {m.name: m for m in METHODS}
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or sorted(known)
        raise InputError(f"There is no context method {name!r}.", f"Did you mean {', '.join(close)}?")
    return known[name]


def make(name: str, **options: Any) -> ContextMethod:
    """A context method by its name.

    Args:
        name: as in the catalogue.
        options: its hyper-parameters.

    Raises:
        InputError: an unknown name or option, or an option that is missing or wrong.

    Example:
        >>> make("h2o", budget=256)
        H2O(budget=256, recent=None)
    """
    made = _class(method(name))
    known = [field.name for field in fields(made)]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=3, cutoff=0.4) or known
            raise InputError(f"{name} has no option {option!r}.", f"Did you mean {', '.join(close)}?" if known else "It has none.")
    try:
        return made(**options)
    except TypeError as error:
        raise InputError(f"{name} cannot be made: {error}.", f"Its options are {', '.join(known)}.") from error


def goes_beyond(method: ContextMethod | None) -> bool:
    """Whether a method, or one that is composed with it, is made for texts longer than the model was trained on.

    Example:
        >>> goes_beyond(make("h2o", budget=256)), goes_beyond(make("streaming-llm", budget=256)), goes_beyond(None)
        (False, True, False)
    """
    if method is None:
        return False
    inner = [value for value in vars(method).values() if isinstance(value, ContextMethod)]
    own = any(record.beyond_trained and type(method) is _class(record) for record in METHODS)
    return own or any(goes_beyond(other) for other in inner)


def recommend(
    config: Any, length: int, budget_bytes: int, can_train: bool = False, *, batch: int = 1, question_known: bool = False
) -> list[Recommendation]:
    """The methods that suit a model and a length of text, the best first, with reasons.

    A rule, not a measurement: what is exact and fits comes first; if the text is longer than the model was trained for, positions have
    to be scaled or kept within the trained length; if full attention does not fit in the bytes, the cache has to be cut, by what the
    question asks for where it is known. `evaluation.context_bench` measures.

    Args:
        config: the model's configuration.
        length: tokens of the text.
        budget_bytes: for the cache of all rows.
        can_train: whether the model may be trained on.
        batch: rows at a time.
        question_known: whether the question stands at the end of the text while it is read.

    Raises:
        InputError: a length, batch or budget below 1.
    """
    if min(length, budget_bytes, batch) < 1:
        raise InputError(f"length is {length}, budget_bytes {budget_bytes}, batch {batch}.", "Give at least 1 of each.")
    config = config.get_text_config(decoder=True)
    entry = _entry_bytes(config) * batch
    trained = int(config.max_position_embeddings)
    ranked = []
    for record in METHODS:
        if record.needs_training and not can_train:
            continue
        state = record.state(config) * batch
        affordable = max(1, (budget_bytes - state) // entry)
        budget = min(length, affordable) if record.has_budget else length
        if record.has_budget and record.smallest > budget:
            continue
        options = record.suggest(length, trained, budget)
        held = int(record.held(length, budget) * entry) + state
        score, reasons = _judge(record, length, trained, held <= budget_bytes, budget, question_known)
        ranked.append(Recommendation(record.name, options, held, held <= budget_bytes, score, tuple(reasons)))
    return sorted(ranked, key=lambda line: (-line.score, line.name))


def _judge(record: Method, length: int, trained: int, fits: bool, budget: int, question_known: bool) -> tuple[float, list[str]]:
    reasons, score = [], 0.0
    rules: list[tuple[bool, float, str]] = [
        (fits, 0.0, "its cache fits in the bytes given"),
        (not fits, -100.0, "its cache does not fit in the bytes given"),
        (record.exact and length <= trained, 30.0, "the result is that of full attention"),
        (length > trained and record.beyond_trained, 20.0, f"it is made for texts beyond the trained {trained:,} tokens"),
        (
            length > trained and not record.beyond_trained,
            -50.0,
            f"the model was trained on {trained:,} tokens: compose it with a scaling",
        ),
        (length <= trained and record.family.startswith("position"), -10.0, "no change of positions is needed at this length"),
        (record.has_budget and budget >= length, -5.0, "nothing has to be given up at this budget"),
        (record.needs_question and question_known, 8.0, "the question is known, and chooses what stays"),
        (record.needs_question and not question_known, -4.0, "it chooses best when the question stands at the end"),
        (record.needs_training, -3.0, "the model has to be trained on"),
    ]
    for applies, points, reason in rules:
        if applies:
            score += points
            reasons.append(reason)
    return score + record.standing, reasons


def _entry_bytes(config: Any) -> int:
    """Bytes of one token's keys, values and positions in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = getattr(config, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 4)
    return int(config.num_hidden_layers * heads * (2 * head_dim * itemsize + 4))


def _class(record: Method) -> type[Any]:
    module, _, name = record.entry_point.partition(":")
    return getattr(importlib.import_module(module), name)
