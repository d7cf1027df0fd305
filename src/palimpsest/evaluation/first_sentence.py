"""Whether a model can say the first sentence of a long text: what perplexity hides.

The probe of Xiong et al., NAACL 2024, arXiv 2309.16039, section 4: at length c, the model returns the first sentence of its prompt. The
sentence here is drawn from a small grammar, "The red fox saw the old king.", so that nothing but the prompt can tell it; behind it stands
real text, then the question. It is asked by `context_bench.ask`: the question hidden while the text is read, and the answer exact or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.context.attach import ContextMethod
from palimpsest.errors import InputError
from palimpsest.evaluation.context_bench import CHUNK, ask
from palimpsest.evaluation.context_prompts import KeySample, Question
from palimpsest.evaluation.haystack import Haystack, Recipe
from palimpsest.measurement import Measurement
from palimpsest.tokenizer import Tokenizer

ADJECTIVES = ("red", "old", "small", "great", "young", "white", "poor", "wise")
NOUNS = ("king", "man", "woman", "dog", "servant", "child", "priest", "stranger")
VERBS = ("saw", "loved", "took", "found", "called", "heard", "left", "sent")
QUESTION = "\nThe first sentence was:"


def draw_sentence(rng: np.random.Generator) -> str:
    """One of 32,768 sentences.

    Example:
        >>> draw_sentence(np.random.default_rng(0))
        'The poor child called the small woman.'
    """
    picked = [words[int(rng.integers(8))] for words in (ADJECTIVES, NOUNS, VERBS, ADJECTIVES, NOUNS)]
    return "The {} {} {} the {} {}.".format(*picked)


def first_sentence_samples(haystack: Haystack, length: int, n: int, *, seed: int = 0) -> list[KeySample]:
    """`n` texts of `length` tokens, question included, that begin with a sentence of the grammar.

    Raises:
        InputError: n < 1, or a length with no room.
    """
    if n < 1:
        raise InputError(f"{n} texts were asked for.", "Ask for at least one.")
    samples = []
    for number in range(n):
        rng = np.random.default_rng((seed, 3, length, number))
        sentence = draw_sentence(rng)
        asked = haystack.tokenizer.encode(QUESTION)
        recipe = Recipe((sentence + "\n",), (0.0,), length - len(asked), seed=int(rng.integers(1 << 31)))
        made = haystack.make(recipe)
        answer = np.array(haystack.tokenizer.encode(" " + sentence), np.int64)
        question = Question(np.array(asked, np.int64), answer, 0.0, made.spans[0])
        samples.append(KeySample(f"first/{length}/{seed}/{number}", made.ids, (question,), length, 1, 0.0, seed))
    return samples


def first_sentence_row(haystack: Haystack, length: int, rng: np.random.Generator) -> np.ndarray:
    """A text to train on, (length,) ids: a first sentence, real text, the question and the sentence again."""
    sentence = draw_sentence(rng)
    recipe = Recipe((sentence + "\n",), (0.0,), length, after=f"{QUESTION} {sentence}", seed=int(rng.integers(1 << 31)))
    return haystack.make(recipe).ids


def first_sentence(
    model: Any,
    tokenizer: Tokenizer,
    method: ContextMethod | None,
    haystack: Haystack,
    lengths: Sequence[int],
    n: int = 20,
    *,
    chunk: int = CHUNK,
    seed: int = 0,
) -> Measurement:
    """Asks for the first sentence of texts of several lengths.

    Args:
        model, tokenizer, method, chunk: as in `context_bench.stream_nll`.
        haystack: filler, of this tokenizer.
        lengths: tokens of text and question; n: texts of each.
        seed: of sentences and filler.

    Returns:
        See `context_bench.ask`; the summary has also `by_length`, the share of exact answers.

    Raises:
        InputError: no length.

    Example:
        >>> m = first_sentence(model, model.tokenizer, None, haystack, [256, 1024])       # doctest: +SKIP
        >>> m.summary["by_length"]                                                        # doctest: +SKIP
    """
    tokenizer.require_same(haystack.tokenizer.fingerprint, "the haystack")
    samples = [sample for length in lengths for sample in first_sentence_samples(haystack, length, n, seed=seed)]
    measured = ask(model, tokenizer, method, samples, name="first-sentence", chunk=chunk, seed=seed)
    shares = measured.table.group_by("length").agg(pl.col("exact").mean(), pl.col("logprob").mean()).sort("length")
    measured.summary["by_length"] = shares.to_dicts()
    measured.curves.clear()  # every sentence stands at depth 0
    return measured
