"""Claim check of system 049 (set-prompting): marked options have no order, at little cost in accuracy.

McIlroy-Young et al., NeurIPS 2024, arXiv 2406.06581 (there Llama, Mistral and GPT-2 up to 70 billion parameters on CommonsenseQA and MMLU),
on SmolLM2-135M and 60 questions of CommonsenseQA in the authors' own marked form, five options, in `commonsenseqa-set-prompting` of the
folder that $PALIMPSEST_DATA names. An answer is the option whose text is likeliest. Checks, as the specification has them:

* asked as a set, in 8 orders, no answer changes, and log-probabilities differ by at most 1e-3 nat; asked plainly at least 20 % change;
* accuracy is at most .10 below the mean accuracy of plain orders;
* hiding the pieces from each other alone, and shared positions alone, are not free of the order (12 questions): more than 1e-3 nat.

Reported: whether sorted pieces give the same numbers to the bit, and the cost on questions that so small a model can answer, about five
facts that stand in the prompt as a set.

    >>> claim = run("smoke", 0)
    >>> claim.passed
    True
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.context.order_dependence import measure_order_dependence
from palimpsest.context.set_decoding import choice_logprobs
from palimpsest.context.set_prompting import SetPrompt
from palimpsest.errors import InputError
from palimpsest.experiments.canaries import one_thread, twins
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models import LanguageModel, load_model

STATEMENT = "Encoding options as a set makes the output provably independent of their order, at little cost in accuracy."
MODEL, SMOKE_MODEL = "smollm2-135m", "standard-s"
QUESTIONS, ABLATED, FACTS, ORDERS, FACT_ORDERS = 60, 12, 20, 8, 4
TOLERANCE = 1e-3  # nat
NAMES = ("Anna", "Boris", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Karen", "Louis")
TOWNS = ("Rome", "Paris", "London", "Vienna", "Madrid", "Berlin", "Dublin", "Athens", "Prague", "Lisbon", "Moscow", "Cairo")
NOTES = [
    "The blank at the end of the file's prompts is left out, and stands before the options instead, as the tokenizer has it.",
    "A model of this size answers CommonsenseQA about as well as one that guesses (.2), so that there is little accuracy to lose; what the "
    "method costs where there is some is reported on the facts.",
]
Asked = tuple[list[SetPrompt], list[list[str]], list[int]]  # prompts, choices, the right ones


def run(scale: str, seed: int) -> Claim:
    """Asks plainly and as a set.

    Args:
        scale: "smoke": the laboratory's smallest model and three facts, of which only freedom from order is held against anything; "cpu".
        seed: which questions, and which orders.

    Raises:
        InputError: the scale "gpu", which this experiment does not have; at "cpu", no $PALIMPSEST_DATA with the questions.
    """
    full = decides(scale)
    asked = questions(seed, QUESTIONS) if full else facts(seed, 2, 3)
    model: LanguageModel = load_model(MODEL) if full else twins().models[SMOKE_MODEL]
    with one_thread():
        main = measure_order_dependence(model, *asked, orders=ORDERS, seed=seed)
        some = [part[:ABLATED] for part in asked]
        ablations = measure_order_dependence(model, *some, ways=("mask only", "positions only"), orders=ORDERS, seed=seed)  # type: ignore[arg-type]
        told = facts(seed, FACTS, 5) if full else asked
        known = measure_order_dependence(model, *told, orders=FACT_ORDERS, seed=seed)
        equal = [identical(model, *pair, seed) for pair in zip(some[0], some[1], strict=True)]  # type: ignore[arg-type]
    checks = judged(main, ablations)
    if not full:
        checks = [check if check.what.startswith("as a set") else replace(check, threshold=None) for check in checks]
    checks.append(Check("prompts whose log-probabilities are the same to the bit, pieces sorted", float(np.mean(equal)), unit="share"))
    ways = known.summary["ways"]
    checks.append(Check("facts, as a set: accuracy", ways["set"]["accuracy"], baseline=ways["plain"]["accuracy"], unit="share"))
    rows = [
        {"table": name, **row}
        for name, measured in (("questions", main), ("ablations", ablations), ("facts", known))
        for row in measured.table.to_dicts()
    ]
    return Claim("set-prompting", STATEMENT, checks, rows, seed, scale, list(NOTES), [curve(main)])


def judged(main: Measurement, ablations: Measurement) -> list[Check]:
    """The checks of the specification."""
    ways, parts = main.summary["ways"], ablations.summary["ways"]
    plain, method = ways["plain"], ways["set"]
    least = None if method["accuracy"] is None else plain["accuracy"] - 0.10
    checks = [
        Check("as a set: questions whose answer changes", method["changed"], "<=", 0.0, plain["changed"], "share"),
        Check("as a set: greatest difference", method["greatest_difference"], "<=", TOLERANCE, plain["greatest_difference"], "nat"),
        Check("plainly: questions whose answer changes", plain["changed"], ">=", 0.20, unit="share"),
        Check("accuracy as a set, against plain less .10", method["accuracy"], ">=", least, plain["accuracy"], "share"),
    ]
    for way, figures in parts.items():
        checks.append(Check(f"{way}: greatest difference", figures["greatest_difference"], ">", TOLERANCE, unit="nat"))
    return checks


def identical(model: LanguageModel, prompt: SetPrompt, choices: list[str], seed: int) -> bool:
    """Whether two orders, sorted, give the very same numbers."""
    found = [choice_logprobs(model, [order], [choices], canonical=True)[0] for order in prompt.orders(2, seed)]
    return all(np.array_equal(found[0], other) for other in found)


def questions(seed: int, count: int) -> Asked:
    """Questions of CommonsenseQA in the authors' form, drawn by the seed.

    Raises:
        InputError: they are not there.
    """
    folder = os.environ.get("PALIMPSEST_DATA")
    file = Path(folder or "") / "commonsenseqa-set-prompting" / "csqa_input.json"
    if not folder or not file.is_file():
        raise InputError(
            "commonsenseqa-set-prompting/csqa_input.json is not in the folder PALIMPSEST_DATA.",
            "Take csqa_input.json from the folder data of github.com/reidmcy/set-based-prompting, and let PALIMPSEST_DATA name the folder.",
        )
    items = json.loads(file.read_text(encoding="utf-8"))
    asked: Asked = ([], [], [])
    for number in np.random.default_rng((seed, 49)).permutation(len(items))[:count].tolist():
        prompt = SetPrompt.parse(items[number]["prompt"].rstrip(" "))
        options = [piece.strip().removeprefix("- ") for piece in prompt.sets[0]]
        add(asked, prompt, options, items[number]["prompt_metadata"]["label"])
    return asked


def facts(seed: int, count: int, size: int) -> Asked:
    """Questions about `size` facts that stand in the prompt as a set: who lives in which town."""
    rng = np.random.default_rng((seed, 490))
    asked: Asked = ([], [], [])
    for _ in range(count):
        names, towns = (rng.permutation(words)[:size].tolist() for words in (NAMES, TOWNS))
        pieces = [f"\n{name} lives in {town}." for name, town in zip(names, towns, strict=True)]
        who = int(rng.integers(size))
        prompt = SetPrompt(["This is known:", pieces, f"\nQuestion: In which town does {names[who]} live?\nAnswer:"])
        add(asked, prompt, towns, towns[who])
    return asked


def add(asked: Asked, prompt: SetPrompt, options: list[str], label: str) -> None:
    """Puts a question down: its options in an order of their own, with a blank in front."""
    asked[0].append(prompt)
    asked[1].append([f" {option}" for option in options])
    asked[2].append(options.index(label))


def curve(main: Measurement) -> Curve:
    """The greatest difference between two orders, question by question, in rising order."""
    series = []
    for way, name in (("plain", "asked plainly"), ("set", "asked as a set")):
        own = main.table.filter(way=way).group_by("prompt", maintain_order=True)
        spans: list[Any] = sorted(float(np.ptp(np.array(rows["logprobs"].to_list()), axis=0).max()) for _, rows in own)
        series.append(Series(name, [{"x": float(x), "y": y} for x, y in enumerate(spans, start=1)]))
    return Curve(
        "set-prompting",
        "Only as a set are the options free of their order",
        "question, in rising order",
        "greatest difference between two orders (nat)",
        series,
        y_scale="symlog",
        caption=f"Of the log-probability of an option, over {ORDERS} orders.",
    )
