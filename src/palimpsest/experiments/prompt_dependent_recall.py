"""Claim check of prompt-dependent recall: the same cells, twelve prompts, and very different recall.

Machlab and Battle 2024, arXiv 2404.08865, on SmolLM2-135M-Instruct with an answer prefix: 4 needles × 3 wordings, 3 lengths × 5 depths,
the shipped novels as filler. Two needles contradict training data (the capital of France; what to do in San Francisco, after the paper's)
and have a neutral twin each, which differs in a name of as many tokens. Checked:

* Cochran's Q over the twelve prompts has p < 0.01, and PD, the spread of their mean recall, is at least 0.15;
* with the prompts' names shuffled within the cells p > 0.05 in at least 90 % of 100 shuffles;
* the contradicting needles are found no more often than the neutral ones;
* a reader that takes the sentence with most words of the question finds every needle in every cell;
* without the needle at most 2 % are right.

The thresholds are those of the specification, written down before any run. The wordings were chosen on seed 100 at 256 tokens: one that
ended in "Answer:" was dropped, since the model answered it with nothing, which is no recall that depends on a prompt. Answers may take 24
tokens, so that one that repeats the question's words can reach the key.

The claim failed in all three seeds, by the third check alone, which averages over wordings: asked plainly, the contradicting capital is
found in .33 to .53 of the cells and its twin in .93 to 1; asked "according to the text", it is the other way round, .73 to .80 against .07
to .27, and so, less strongly, for the other pair. Seed 0 ran on a processor in float32, seeds 1 and 2 on a GPU in the precision of the
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from palimpsest.corpus.word_ngrams import words
from palimpsest.evaluation.haystack import Haystack, sentences
from palimpsest.evaluation.needle import NeedleTest, measure_needles
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.planted_texts import base_text, train_tokenizer
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel, load_model
from palimpsest.tokenizer import Tokenizer

STATEMENT = (
    "How well a fact in a long prompt is recalled depends on the wording and content of the prompt, and suffers when the fact contradicts "
    "training data."
)
MODEL = "smollm2-135m"
LENGTHS, DEPTHS = (256, 512, 1024), (0.0, 0.25, 0.5, 0.75, 1.0)
BEFORE = "Read the text and answer the question behind it.\n\n"
CAPITAL = (
    "\n\nQuestion: What is the capital of {0}?\nAnswer: The capital of {0} is",
    "\n\nQuestion: According to the text above, which town is the capital of {0}?\nAnswer: According to the text, it is",
    "\n\nThe text says that the capital of {0} is",
)
THING = (
    "\n\nQuestion: What is the best thing to do in {0}?\nAnswer: The best thing to do in {0} is",
    "\n\nQuestion: According to the text above, what is the best thing to do in {0}?\nAnswer: According to the text, it is",
    "\n\nThe text says that the best thing to do in {0} is",
)


def _test(name: str, needle: str, place: str, questions: Sequence[str], key: tuple[str, ...], **options: Any) -> NeedleTest:
    return NeedleTest(name, needle.format(place), tuple(question.format(place) for question in questions), key, **options)


TOWN, LUNCH = "The capital of {0} is the town of Arlby. ", "The best thing to do in {0} is to eat a sandwich in Dolores Park. "
TESTS = (
    _test("capital-neutral", TOWN, "Hollow", CAPITAL, ("Arlby",)),
    _test("capital-conflict", TOWN, "France", CAPITAL, ("Arlby",), wrong_prior=("Paris",), neutral="capital-neutral"),
    _test("thing-neutral", LUNCH, "Orlin", THING, ("sandwich",)),
    _test("thing-conflict", LUNCH, "San Francisco", THING, ("sandwich",), wrong_prior=("Golden Gate", "Alcatraz"), neutral="thing-neutral"),
)


class LexicalReader(LanguageModel):
    """Answers with the sentence of the context that shares the greatest share of words with the question: who can look up needs no more."""

    name, door, capabilities, parameters, prepends_bos = "lexical reader", "scripted", frozenset({"text"}), None, False
    context_length, fingerprint = 1 << 20, "0" * 64

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def score(self, batch_ids: Any, **options: Any) -> Any:
        """It has no log-probs."""
        raise self.lacks("logprobs", "Scoring")

    def generate(self, prefixes: Any, max_new_tokens: int, **options: Any) -> list[list[np.ndarray]]:
        """The sentence, cut at `max_new_tokens`."""
        return [[np.array(self.tokenizer.encode(self.read(self.tokenizer.decode(ids)))[:max_new_tokens], np.int64)] for ids in prefixes]

    def read(self, prompt: str) -> str:
        """The sentence before the last blank line whose words agree best with those behind it (Jaccard)."""
        context, _, question = prompt.rpartition("\n\n")
        asked = set(words(question))
        candidates = [(set(words(sentence)), sentence) for sentence in sentences(context)]
        return max(candidates, key=lambda pair: len(pair[0] & asked) / max(1, len(pair[0] | asked)))[1].strip()


def run(scale: str, seed: int) -> Claim:
    """Asks the model (fetched when it is not at hand) and the lexical reader.

    Args:
        scale: "smoke": the lexical reader alone, with a small tokenizer of its own; "cpu".
        seed: of the filler.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    if not decides(scale):
        alone = [replace(test, neutral="") for test in TESTS]  # the twins are as long as each other in the model's tokens only
        oracle = measure(LexicalReader(train_tokenizer(1024)), seed, (256,), (0.0, 0.5, 1.0), alone)
        return _claim(None, oracle, seed, scale)
    model = load_model(MODEL)
    return _claim(measure(model, seed), measure(LexicalReader(model.tokenizer), seed), seed, scale)


def measure(
    model: LanguageModel,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    tests: Sequence[NeedleTest] = TESTS,
) -> Measurement:
    """The experiment's needles in the shipped novels; the lexical reader may answer with a whole sentence."""
    haystack = Haystack(model.tokenizer, base_text().held_out, cycle=True)
    answer_tokens = 64 if isinstance(model, LexicalReader) else 24
    return measure_needles(model, haystack, tests, lengths, depths, (seed,), before=BEFORE, answer_tokens=answer_tokens)


def claimed_checks(measured: Measurement) -> list[Check]:
    """The checks on a model's answers."""
    found = measured.summary
    return [
        Check("p of Cochran's Q over the prompts", found["omnibus"]["p_value"], "<", 0.01, unit="p"),
        Check(
            "greatest less least mean recall of a prompt",
            found["prompt_dependence"]["estimate"],
            ">=",
            0.15,
            found["shuffled"]["prompt_dependence"],
            "share",
        ),
        Check("share of 100 shuffles of the prompts with p > 0.05", found["shuffled"]["not_significant"], ">=", 0.9, unit="share"),
        Check("recall of the contradicting needles less that of the neutral", conflict(measured), "<=", 0, unit="share"),
        Check("recall without the needle", found["control"]["estimate"], "<=", 0.02, unit="share"),
    ]


def conflict(measured: Measurement) -> float:
    """Mean recall of the needles that contradict training data less that of their neutral twins."""
    return float(np.mean([pair["difference"]["estimate"] for pair in measured.summary["conflicts"]]))


def _claim(measured: Measurement | None, oracle: Measurement, seed: int, scale: str) -> Claim:
    asked = oracle.table.drop_nulls("depth")
    guessed = oracle.summary["control"]["estimate"]
    checks = [
        Check("lexical reader: cells in which a needle is missed", asked.height - int(asked["right"].sum()), "==", 0, unit="cells"),
        Check("lexical reader: recall without the needle", guessed, "<=", 0.02, unit="share"),
    ]
    if measured is None:
        return Claim("prompt-dependent-recall", STATEMENT, checks, oracle.summary["by_prompt"], seed, scale)
    found = measured.summary
    parts = ", ".join(f"{name} {part:.3f}" for name, part in found["components"].items() if part is not None)
    within = ", ".join(f"{test} {one['p_value']:.2g}" for test, one in found["omnibus_by_test"].items())
    prior = ", ".join(f"{pair['second']} {pair['prior']['estimate']:.2f}" for pair in found["conflicts"])
    notes = [
        f"Variance components: {parts}.",
        f"p of Cochran's Q over the wordings of one needle: {within}.",
        f"Share of the answers that give the wrong prior: {prior}.",
        f"Answers that are empty: {sum(row['empty'] for row in found['by_prompt'])} of {sum(row['n'] for row in found['by_prompt'])}.",
        "McNemar, contradicting against neutral: " + ", ".join(f"{p['second']} p = {p['p_value']:.2g}" for p in found["conflicts"]) + ".",
    ]
    curves = list(measured.curves.values())
    return Claim("prompt-dependent-recall", STATEMENT, [*checks, *claimed_checks(measured)], found["by_prompt"], seed, scale, notes, curves)
