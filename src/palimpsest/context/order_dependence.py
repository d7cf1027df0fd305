"""How much the answer to a question depends on the order of its options: plainly asked, and asked as a set (system 049).

McIlroy-Young et al., NeurIPS 2024, arXiv 2406.06581, ask in the given and in the reversed order; here every prompt is asked in several
orders drawn by a seed. An answer is the option whose text is likeliest behind the prompt. Four ways to read a prompt:

    plain             causal mask, positions counted on
    set               pieces hidden from each other, at shared positions: the method
    mask only         hidden from each other, positions counted on
    positions only    shared positions, causal mask
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from palimpsest.context.set_decoding import choice_logprobs
from palimpsest.context.set_prompting import SetPrompt
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress

WAYS = {"plain": (False, False), "set": (True, True), "mask only": (True, False), "positions only": (False, True)}  # apart, parallel


def measure_order_dependence(
    model: LanguageModel,
    prompts: Sequence[SetPrompt],
    choices: Sequence[Sequence[str]],
    right: Sequence[int] | None = None,
    *,
    ways: Sequence[str] = ("plain", "set"),
    orders: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Asks every prompt in several orders of its pieces.

    Args:
        model: a transformers model behind its door.
        prompts: at least one.
        choices: for each prompt its options, at least two, in an order that stays.
        right: for each prompt the number of the right option, if accuracy is wanted.
        ways: how to read a prompt, of `WAYS`.
        orders: the most orders, the given one among them; a prompt with fewer is asked in all that it has.
        seed: of the orders.
        progress: called with (prompts done, prompts in all) over all ways and orders.

    Returns:
        One row a prompt, way and order: prompt, way, order, logprobs, chosen, correct (None without `right`). The summary has by way
        the share of prompts whose answer changes, the greatest difference of a log-probability between two orders, and the mean
        accuracy.

    Raises:
        InputError: an unknown way, fewer than two options, or as `choice_logprobs`.

    Example:
        >>> prompt = SetPrompt(["The sea is", [" dry,", " wet,"], " that is to say"])
        >>> measure_order_dependence(model, [prompt], [[" dry", " wet"]]).summary["ways"]["set"]["changed"]      # doctest: +SKIP
        0.0
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown or not ways:
        raise InputError(f"The ways to read a prompt are {list(ways)}.", f"Choose from {', '.join(WAYS)}.")
    if any(len(texts) < 2 for texts in choices):
        raise InputError("A prompt has fewer than two options to choose from.", "Give at least two choices each.")
    if right is not None and (len(right) != len(choices) or any(not 0 <= r < len(c) for r, c in zip(right, choices, strict=True))):
        raise InputError(f"The right options {list(right)} are not one of each prompt's.", "Give one number a prompt, counted from 0.")
    numbers, asked = [], []
    for number, prompt in enumerate(prompts):
        for order, shuffled in enumerate(prompt.orders(orders, seed + number)):
            numbers.append((number, order))
            asked.append(shuffled)
    rows = []
    for done, way in enumerate(ways):
        apart, parallel = WAYS[way]
        found = choice_logprobs(
            model,
            asked,
            [choices[number] for number, _ in numbers],
            apart=apart,
            parallel=parallel,
            progress=_shifted(progress, done * len(asked), len(ways) * len(asked)),
        )
        for (number, order), logprobs in zip(numbers, found, strict=True):
            chosen = int(np.argmax(logprobs))
            rows.append({
                "prompt": number, "way": way, "order": order, "logprobs": logprobs.tolist(), "chosen": chosen,
                "correct": None if right is None else chosen == right[number],
            })  # fmt: skip
    table = pl.DataFrame(rows, schema_overrides={"correct": pl.Boolean})
    summary = {"prompts": len(prompts), "ways": {way: _summary(table.filter(pl.col("way") == way)) for way in ways}}
    provenance = {"model": model.describe(), "orders": orders, "seed": seed, **environment()}
    return Measurement("order-dependence", table, summary, provenance)


def _summary(table: pl.DataFrame) -> dict[str, float | None]:
    """The figures of one way."""
    by_prompt = table.group_by("prompt", maintain_order=True)
    spans = [np.ptp(np.array(own["logprobs"].to_list()), axis=0).max() for _, own in by_prompt]
    changed = by_prompt.agg(pl.col("chosen").n_unique() > 1)["chosen"].mean()
    accuracy = table["correct"].cast(pl.Float64).mean()
    return {"changed": _number(changed), "greatest_difference": float(max(spans)), "accuracy": _number(accuracy)}


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)
