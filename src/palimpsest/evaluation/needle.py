"""How much does recall from the context depend on the prompt? Needles and wordings, asked in the same cells.

Machlab and Battle, *LLM In-Context Recall is Prompt Dependent* (2024, arXiv 2404.08865): a fact (the needle) stands at depth δ of a context
of L tokens and is asked for behind it; recall over L × δ differs between facts and wordings, and suffers where the fact contradicts what
the model was trained on. A *prompt* here is a needle with one wording of its question, a *cell* is (L, δ, seed of the filler). All prompts
of a cell have the same filler, so that

* **Cochran's Q** tests whether the prompts are answered equally often in the same cells, over all and within each needle (wording alone);
* **PD** = max − min of the mean recall over prompts, with a bootstrap over cells. Of k prompts that do not differ PD is above 0, too: what
  remains of it when the prompts' names are shuffled within cells is reported beside it;
* **variance components**: y = μ + prompt + depth + length + seed + rest, by the method of moments, σ²_f = (MS_f − MS_rest) / (n / levels);
* **conflict**: a needle against training data and its neutral twin of as many tokens, by McNemar's test on (cell, wording).

Departures: the paper scores by a judge from 1 to 5; here an answer is right when a key phrase stands in it, by a declared rule, and whether
it repeats the needle word for word, gives the wrong prior, and has which share of the key's words is said separately. Three needles and
one wording there; any number of both here, and a control without the needle for each prompt. Stated in the open: Q and the bootstrap take
cells for independent, though cells of one seed share much of their filler; with several seeds the components say how much that matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl

from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.evaluation.answers import is_right, normalise
from palimpsest.evaluation.haystack import Context, Haystack, Recipe
from palimpsest.evaluation.prompt_dependence import prompt_curve, prompt_dependence
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress

ATTEMPTS = 32  # starts of the filler that are tried until it holds no key


@dataclass(frozen=True)
class NeedleTest:
    """A fact that is hidden, and the ways in which it is asked for.

    Attributes:
        name: of the test.
        needle: the sentence that is hidden, with the space behind it.
        questions: wordings; each stands behind the context. Wordings at the same place of different tests are taken for the same.
        key: accepted forms of the answer.
        wrong_prior: what training data would answer, if they contradict the needle.
        neutral: name of the test whose needle is the same but for the contradiction.
    """

    name: str
    needle: str
    questions: tuple[str, ...]
    key: tuple[str, ...]
    wrong_prior: tuple[str, ...] = ()
    neutral: str = ""


def measure_needles(
    model: LanguageModel,
    haystack: Haystack,
    tests: Sequence[NeedleTest],
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    seeds: Sequence[int] = (0,),
    *,
    before: str = "",
    answer_tokens: int = 16,
    stop: str = "\n",
    rule: str = "contains",
    progress: Progress | None = None,
) -> Measurement:
    """Asks for every needle in every wording at every length, depth and seed of the filler, and once each without the needle.

    Args:
        model: needs "text"; decoding is greedy.
        haystack: of the model's tokenizer, with `cycle=True`: only then have all prompts of a cell the same filler.
        tests: at least two prompts in all.
        lengths: tokens of the whole prompt, exactly.
        depths: shares of the filler.
        seeds: of the filler.
        before: what stands in front of the context.
        answer_tokens: the most tokens of an answer; it ends at `stop`.
        rule: when an answer is right, see `palimpsest.evaluation.answers`.
        progress: called with (prompts done, prompts in all).

    Returns:
        One row a prompt and cell, and one without depth for each control: test, wording, length, depth, seed, filler_seed, reached (the
        real depth), answer, right, verbatim, prior, partial, empty. The summary is that of `prompt_dependence`.

    Raises:
        InputError: what is asked for is not a full layout, a twin is missing or longer, or no filler without a key was found.
        ContextOverflowError: a prompt with its answer does not fit the model; nothing is ever cut.

    Example:
        >>> haystack = Haystack(model.tokenizer, [novel], cycle=True)                            # doctest: +SKIP
        >>> fact = NeedleTest("town", "The capital of Hollow is Arlby. ",
        ...                   ("\\nThe capital of Hollow is", "\\nIn Hollow the capital is"), ("Arlby",))
        >>> m = measure_needles(model, haystack, [fact], [512, 1024])                            # doctest: +SKIP
        >>> m.summary["prompt_dependence"]["estimate"], m.summary["omnibus"]["p_value"]          # doctest: +SKIP
    """
    model.require("text", "Answering from the context")
    model.tokenizer.require_same(haystack.tokenizer.fingerprint, "the haystack")
    layout: dict[str, list[Any]] = {"lengths": list(lengths), "depths": list(map(float, depths)), "seeds": list(seeds)}
    _require_layout(tests, layout, haystack)
    if max(lengths) + answer_tokens > model.room:
        raise ContextOverflowError(
            f"A prompt of {max(lengths)} tokens with an answer of {answer_tokens} does not fit the {model.room} tokens of {model.name!r}.",
            "Ask for shorter contexts.",
        )
    prompts = [(test, wording) for test in tests for wording in range(len(test.questions))]
    rows: list[dict[str, Any]] = []
    contexts: list[Context] = []
    for seed in seeds:
        for length in lengths:
            asked = [(test, wording, depth) for test, wording in prompts for depth in (None, *layout["depths"])]
            made = _same_filler(haystack, [_recipe(*one, length, before) for one in asked], tests, seed * 1_000_003 + length * 1009)
            contexts += made
            rows += [
                {"test": test.name, "wording": wording, "length": length, "depth": depth, "seed": seed, "filler_seed": context.recipe.seed}
                | {"reached": context.depths[0] if context.depths else None}
                for (test, wording, depth), context in zip(asked, made, strict=True)
            ]
    written = model.generate([context.ids for context in contexts], answer_tokens, progress=progress)
    by_name = {test.name: test for test in tests}
    for row, continuations in zip(rows, written, strict=True):
        answer = model.tokenizer.decode(continuations[0]).lstrip().split(stop, 1)[0].strip()
        row |= {"answer": answer, **score_answer(answer, by_name[row["test"]], rule)}
    table = pl.DataFrame(rows, schema_overrides={"depth": pl.Float64, "reached": pl.Float64}, infer_schema_length=None)
    twins = {test.name: test.neutral for test in tests if test.neutral}
    provenance = {
        "model": model.describe(),
        "tests": [asdict(test) for test in tests],
        **layout,
        "before": before,
        "answer_tokens": answer_tokens,
        "stop": stop,
        "rule": rule,
        "decoding": "greedy",
        "environment": environment(),
    }
    return Measurement("needle", table, prompt_dependence(table, twins), plain(provenance), {"needle-prompts": prompt_curve(table)})


def score_answer(answer: str, test: NeedleTest, rule: str = "contains") -> dict[str, Any]:
    """Right by the rule; whether the needle is repeated word for word; whether the wrong prior was given and not the key; the greatest
    share of a key's words that the answer has; whether there is no word in it.

    Example:
        >>> test = NeedleTest("town", "The capital of France is Arlby. ", ("?",), ("Arlby",), wrong_prior=("Paris",))
        >>> score_answer("It is Paris.", test)
        {'right': False, 'verbatim': False, 'prior': True, 'partial': 0.0, 'empty': False}
    """
    right = is_right(answer, test.key, rule)
    given = set(normalise(answer))
    partial = max(sum(word in given for word in key) / len(key) for key in map(normalise, test.key))
    verbatim = f" {' '.join(words(test.needle))} " in f" {' '.join(words(answer))} "
    prior = bool(test.wrong_prior) and not right and is_right(answer, test.wrong_prior, "contains")
    return {"right": right, "verbatim": verbatim, "prior": prior, "partial": partial, "empty": not given}


def reconstruct(row: dict[str, Any], haystack: Haystack, tests: Sequence[NeedleTest], before: str = "") -> Context:
    """The very prompt of a row of the table, from the same haystack and tests.

    Raises:
        InputError: no test of the row's name.
    """
    found = next((test for test in tests if test.name == row["test"]), None)
    if found is None:
        raise InputError(f"No test is called {row['test']!r}.", "Give the tests of the measurement.")
    return haystack.make(replace(_recipe(found, row["wording"], row["depth"], row["length"], before), seed=row["filler_seed"]))


def _recipe(test: NeedleTest, wording: int, depth: float | None, length: int, before: str) -> Recipe:
    hidden: tuple[tuple[str, ...], tuple[float, ...]] = ((), ()) if depth is None else ((test.needle,), (depth,))
    return Recipe(*hidden, length, before, test.questions[wording])


def _same_filler(haystack: Haystack, recipes: Sequence[Recipe], tests: Sequence[NeedleTest], first: int) -> list[Context]:
    """The contexts of all recipes from one start of the filler, the first from which it holds no key and no prior of any test."""
    forbidden = [phrase for test in tests for phrase in (*test.key, *test.wrong_prior)]
    for attempt in range(ATTEMPTS):
        try:
            return [haystack.make(replace(recipe, seed=first + attempt), forbidden=forbidden) for recipe in recipes]
        except InputError as error:
            failed = error
    raise failed


def _require_layout(tests: Sequence[NeedleTest], layout: dict[str, list[Any]], haystack: Haystack) -> None:
    """Raises `InputError` unless tests, lengths, depths and seeds make a full layout and twins are alike."""
    tokens = {test.name: len(haystack.tokenizer.encode(test.needle)) for test in tests}
    if len(tokens) < len(tests) or sum(len(test.questions) for test in tests) < 2:
        raise InputError(
            f"The tests {[test.name for test in tests]} are no prompts to compare.", "Give distinct names and 2 prompts or more."
        )
    for name, values in layout.items():
        if not values or len(set(values)) < len(values):
            raise InputError(f"The {name} are {values}.", "Give each once, and one at least.")
    if not haystack.cycle:
        raise InputError("The haystack does not cycle, so prompts of a cell could have different filler.", "Make it with cycle=True.")
    for test in tests:
        twin = next((other for other in tests if other.name == test.neutral), None)
        if test.neutral and (twin is None or tokens[twin.name] != tokens[test.name] or len(twin.questions) != len(test.questions)):
            raise InputError(
                f"{test.name!r} has no twin {test.neutral!r} of {tokens[test.name]} tokens and {len(test.questions)} wordings.",
                "Give a neutral test of the same lengths.",
            )
