"""Claim check of the contrast of memorized and not memorized items: do they differ in text, confidence and hidden state?

Li, Zhao and Wen 2024, arXiv 2403.00510, on SmolLM2-135M: 300 of the 366 idioms that come with the library, drawn by the seed, and all
150 capitals, 90 element symbols and 60 authors, each asked for in two templates; beside the idioms a control, whose last word is drawn
from the idioms' last words of the same number of letters. Checks, as the specification has them:

* (i) 5 to 95 % of the idioms and of the facts are memorized;
* (ii) over all items the memorized answers have fewer letters: Cliff's δ < 0, p < 0.05;
* (iii) the more words of an idiom are given, the more often its rest is written: Spearman > 0;
* (iv) a linear probe on the middle layer at the last prompt token has an AUC of at least 0.65 in cross-validation, and within 0.07 of
  0.5 with shuffled labels;
* (v) the answers of memorized facts are more alike in the two templates (cosine at the middle layer over the answer): Cliff's δ > 0.

All items together mix kinds that differ in both sides of each comparison (a symbol has two letters, whatever is memorized), so the same
figures within each kind are reported beside. What the three seeds showed, all checks passed:

* (ii) is the kinds' doing for the most part: δ is −0.32 to −0.34 over all items, but within each kind p is above 0.05 (idioms −0.09 to
  −0.16, and 0 at equal prompt length). Longer prompts go with memorized idioms (δ 0.5); for capitals and symbols it is the reverse;
* (v) is the same figure at every seed, because nothing in it is drawn: δ 0.31, p 0.08. The sign depends on the layer: 0.55 at layer 8,
  −0.32 at 22, −0.53 at the last. In late layers the answers of memorized facts are *less* alike;
* (iv) holds within idioms and capitals too (0.79 to 0.86), for symbols it is weak (0.56 to 0.67).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from palimpsest.audit.contrast import measure_contrast
from palimpsest.audit.contrast_blocks import block_in_block_out
from palimpsest.audit.contrast_items import IDIOM, builtin_clozes
from palimpsest.audit.contrast_readings import Cloze, Readings, encode_cloze, read_clozes
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.models import LanguageModel, load_model

STATEMENT = (
    "Memorized and not memorized items differ measurably in prompt and answer length, in confidence and in the separation of their "
    "hidden states."
)
MODEL = "smollm2-135m"
IDIOMS, SMOKE_IDIOMS, SMOKE_FACTS = 300, 24, 12


def run(scale: str, seed: int) -> Claim:
    """Reads the clozes, compares the groups, and has the idioms continued from every number of words.

    Args:
        scale: "smoke": 24 idioms and 12 facts, nothing is held against anything; "cpu".
        seed: which idioms are drawn, the control's words, matching, folds and shuffled labels.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    rng = np.random.default_rng((seed, 100))
    clozes = builtin_clozes()
    idioms = np.flatnonzero([cloze.category == IDIOM for cloze in clozes])
    facts = np.arange(len(idioms), len(clozes))
    drawn = np.sort(rng.permutation(idioms)[: IDIOMS if full else SMOKE_IDIOMS])
    if full:
        chosen = np.concatenate([drawn, facts])
        model, every = _read_all()
        items, readings = [clozes[i] for i in chosen], every.take(chosen)
    else:
        model = load_model(MODEL)
        items = [clozes[i] for i in [*drawn, *facts[: 2 * SMOKE_FACTS]]]
        readings = read_clozes(model, items)
    measured = measure_contrast(model, items, readings=readings, seed=seed)
    blocks = block_in_block_out(model, [clozes[i].text for i in drawn])
    control = recited(model, random_last_words([clozes[i] for i in drawn], rng))
    middle = readings.layers[len(readings.layers) // 2]
    checks = judged(measured.summary, blocks.summary, control, middle)
    if not full:
        checks = [replace(check, threshold=None) for check in checks]
    rows = [{"table": "rates", "scope": scope, **rate} for scope, rate in measured.summary["rates"].items()]
    for name in ("tests", "layers", "concepts"):
        rows += [{"table": name, **row} for row in measured.summary.get(name, [])]
    rows += [{"table": "margin", "scope": scope, **row} for scope, row in measured.summary.get("margin", {}).items()]
    notes = [
        "The idioms are a list of our own: the one that the specification names carries no licence.",
        "Of the two clozes of a fact the first is tested; both serve check (v). Parts of speech are not compared: the items carry none.",
    ]
    return Claim("rome", STATEMENT, checks, rows, seed, scale, notes, list(blocks.curves.values()))


@cache
def _read_all() -> tuple[LanguageModel, Readings]:
    """The readings of all clozes, which the seeds share: they depend on nothing that is drawn."""
    model = load_model(MODEL)
    return model, read_clozes(model, builtin_clozes())


def random_last_words(idioms: list[Cloze], rng: np.random.Generator) -> list[Cloze]:
    """The idioms with another idiom's last word of the same number of letters; one whose length no other word has is left out.

    Example:
        >>> made = random_last_words([Cloze("break the", "ice"), Cloze("walk the", "dog")], np.random.default_rng(0))
        >>> [cloze.text for cloze in made]
        ['break the dog', 'walk the ice']
    """
    answers = sorted({cloze.answer for cloze in idioms})
    made = []
    for cloze in idioms:
        others = [word for word in answers if len(word) == len(cloze.answer) and word != cloze.answer]
        if others:
            made.append(replace(cloze, answer=others[int(rng.integers(len(others)))]))
    return made


def recited(model: LanguageModel, items: list[Cloze]) -> float | None:
    """Share of clozes whose every answer token is the argmax; None without any."""
    if not items:
        return None
    encoded = [encode_cloze(model.tokenizer, item) for item in items]
    scores = model.score([ids for ids, _ in encoded], start=[cut for _, cut in encoded])
    return float(np.mean([hits.all() for hits in scores.greedy_hits]))


def judged(contrast: dict[str, Any], blocks: dict[str, Any], control: float | None, middle: int) -> list[Check]:
    """The checks; a figure that is missing because a group is too small fails its check."""
    rates = contrast["rates"]
    facts = [rate for scope, rate in rates.items() if scope not in ("all", IDIOM)]
    shares = {"idioms": rates[IDIOM]["rate"], "facts": sum(rate["memorized"] for rate in facts) / sum(rate["n"] for rate in facts)}
    tests = {(row["scope"], row["factor"]): row for row in contrast.get("tests", [])}
    layers = {(row["scope"], row["layer"], row["place"]): row for row in contrast.get("layers", [])}
    concepts = {row["layer"]: row for row in contrast.get("concepts", [])}
    letters, probe, alike = tests.get(("all", "answer_letters"), {}), layers.get(("all", middle, "prompt"), {}), concepts.get(middle, {})
    shuffled = probe.get("shuffled_auc")
    held = [check for name, share in shares.items() for check in (
        Check(f"share of {name} memorized", share, ">=", 0.05, unit="share"),
        Check(f"share of {name} memorized", share, "<=", 0.95, unit="share"),
    )]  # fmt: skip
    held += [
        Check("Cliff's δ of the answer's letters, memorized against not", letters.get("delta"), "<", 0),
        Check("its p (Mann–Whitney)", letters.get("p"), "<", 0.05),
        Check("Spearman of words given and the rest being written, idioms", blocks["spearman_emitted"], ">", 0),
        Check(f"AUC of the probe, layer {middle}, last prompt token", probe.get("auc"), ">=", 0.65, baseline=shuffled),
        Check("distance of its AUC from 0.5 with shuffled labels", None if shuffled is None else abs(shuffled - 0.5), "<=", 0.07),
        Check(f"Cliff's δ of the cosine between templates, layer {middle}, memorized facts against not", alike.get("delta"), ">", 0),
        Check("share of the control (random last words) recited", control, unit="share"),
        Check("p of the cosine between templates", alike.get("p")),
        Check("Spearman of words given and the mean log-probability of the rest", blocks["spearman_logprob_mean"]),
        Check("Cliff's δ of the prompt's tokens", tests.get(("all", "prompt_tokens"), {}).get("delta")),
        Check("Cliff's δ of the largest log-probability", tests.get(("all", "max_logprob"), {}).get("delta")),
    ]
    for scope in rates:
        if scope != "all":
            held.append(Check(f"Cliff's δ of the answer's letters, {scope}", tests.get((scope, "answer_letters"), {}).get("delta")))
            held.append(Check(f"Cliff's δ of the prompt's tokens, {scope}", tests.get((scope, "prompt_tokens"), {}).get("delta")))
            held.append(Check(f"AUC of the probe, {scope}", layers.get((scope, middle, "prompt"), {}).get("auc")))
    return held
