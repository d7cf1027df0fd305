"""Claim check of reference recall: titles first, then a short prefix inside the chosen articles, beats one stage over everything.

Wang et al., ACL 2025, arXiv 2402.17010, on SmolLM2-135M-Instruct and the 48 articles of SQuAD's development set that XQuAD keeps (five
paragraphs each; $PALIMPSEST_DATA/xquad), 60 questions drawn by the seed; 5 beams in both stages, prefixes of 12 tokens, passages of 150.
Checks, as the specification has them:

* the right article is among the two chosen at least five times as often as by chance (2 in 48);
* the first passage holds the answer more often than that of one stage, by 5 points at least, and more often than a random passage;
* what is written without a constraint can be found in an article for less than 30 % of the questions, under the constraint for all.

BM25 over fixed passages is reported beside. The paper has Llama-2-13B, all of Wikipedia, 15 and 10 beams and prefixes of 16 tokens.

What the three seeds showed: two stages have the answer in the first passage of 3 to 7 % of the questions, one stage of 10 to 15 %, and at
the first seed the right article is chosen 4.8 times as often as by chance: the claim fails. A model of this size names the right article
for a quarter of the questions at most, and what it has not named it cannot find; among 48 articles, which are not all of Wikipedia, a
prefix of 12 tokens finds its article by itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.errors import InputError
from palimpsest.evaluation.references import BM25, FREE, METHODS, ONE, RANDOM, TWO, Question, measure_references
from palimpsest.experiments.canaries import twins
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.models import load_model
from palimpsest.recall import Article

STATEMENT = (
    "A model recalls where a passage stands: decoding constrained first to titles, then to a short prefix within the chosen documents, "
    "beats one constrained stage over everything."
)
MODEL, QUESTIONS = "smollm2-135m", 60
SETTINGS: dict[str, Any] = {"n_titles": 2, "title_beams": 5, "passage_beams": 5, "prefix_len": 12, "passage_len": 150}
SMOKE = (
    Article("1", "The Fox", "The quick brown fox jumps over the lazy dog. Then the fox sleeps in the barn until the morning comes."),
    Article("2", "The Wizards", "Five boxing wizards jump quickly. In the evening they eat bread and cheese and talk about the weather."),
    Article("3", "The Sheep", "Ninety sheep were counted before midnight, and when the last was counted the shepherd was asleep."),
)
ASKED = (
    Question("Where does the fox sleep?", "1", ("in the barn",)),
    Question("What do the wizards eat?", "2", ("bread and cheese",)),
    Question("How many sheep were counted?", "3", ("ninety",)),
)


def run(scale: str, seed: int) -> Claim:
    """Recalls references for the questions.

    Args:
        scale: "smoke": three short articles and the laboratory's smallest model; only what must hold for any model is held against
            anything; "cpu".
        seed: which questions, and the random passages.

    Raises:
        InputError: the scale "gpu", which this experiment does not have, or articles that are not at hand (at "cpu").
    """
    if not decides(scale):
        few = {**SETTINGS, "prefix_len": 4, "passage_len": 12}
        measured = measure_references(twins().models["standard-s"], SMOKE, ASKED, seed=seed, **few)
        checks = [check if "without a passage" in check.what else replace(check, threshold=None) for check in judged(measured.summary)]
        return Claim("reference-recall", STATEMENT, checks, rows_of(measured.summary), seed, scale)
    articles, every = squad()
    drawn = np.random.default_rng((seed, 90)).permutation(len(every))[:QUESTIONS]
    measured = measure_references(load_model(MODEL), articles, [every[i] for i in drawn], seed=seed, **SETTINGS)
    notes = [
        f"{pair['second']} against {pair['first']}: {100 * pair['difference']['estimate']:+.1f} points "
        f"({100 * pair['difference']['low']:+.1f} to {100 * pair['difference']['high']:+.1f}), McNemar p = {pair['p_value']:.2g}."
        for pair in measured.summary["comparisons"]
    ]
    return Claim("reference-recall", STATEMENT, judged(measured.summary), rows_of(measured.summary), seed, scale, notes)


def squad() -> tuple[list[Article], list[Question]]:
    """The 48 articles of XQuAD (English), their paragraphs joined, and the questions about them.

    Raises:
        InputError: PALIMPSEST_DATA does not say where they are.
    """
    file = Path(os.environ.get("PALIMPSEST_DATA") or "") / "xquad" / "xquad.en.json"
    if "PALIMPSEST_DATA" not in os.environ or not file.is_file():
        raise InputError("The articles are not at hand.", "Set PALIMPSEST_DATA to a folder that holds xquad/xquad.en.json.")
    articles, questions = [], []
    for entry in json.loads(file.read_text(encoding="utf-8"))["data"]:
        title = entry["title"].replace("_", " ")
        articles.append(Article(entry["title"], title, "\n".join(paragraph["context"] for paragraph in entry["paragraphs"])))
        for asked in (question for paragraph in entry["paragraphs"] for question in paragraph["qas"]):
            answers = tuple(dict.fromkeys(answer["text"] for answer in asked["answers"]))
            questions.append(Question(asked["question"].strip(), entry["title"], answers))
    return articles, questions


def judged(summary: dict[str, Any]) -> list[Check]:
    """The checks on what was recalled."""
    rate = {name: {figure: value["estimate"] for figure, value in rates.items()} for name, rates in summary["methods"].items()}
    title, chance, two = rate[TWO]["title"], summary["title_chance"], rate[TWO]["answer"]
    return [
        Check("right article among the titles chosen, over chance", title / chance, ">=", 5, unit="ratio"),
        Check("answer in the first passage, two stages less one", two - rate[ONE]["answer"], ">=", 0.05, unit="share"),
        Check("answer in the first passage, two stages less random", two - rate[RANDOM]["answer"], ">", 0, unit="share"),
        Check("written without a constraint and found in an article", rate[FREE]["located"], "<", 0.3, unit="share"),
        *(
            Check(f"{name}: share of questions without a passage", 1 - rate[name]["located"], "==", 0, unit="share")
            for name in (TWO, ONE)
        ),
        Check("right article among the titles chosen", title, baseline=chance, unit="share"),
        *(Check(f"answer in the first passage, {name}", rate[name]["answer"], unit="share") for name in (TWO, ONE, RANDOM, BM25)),
        *(Check(f"answer in the first ten passages, {name}", rate[name]["answer_k"], unit="share") for name in (TWO, ONE, BM25)),
    ]  # fmt: skip


def rows_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rates, one row a method and figure."""
    return [{"method": name, "figure": figure, **rate} for name in METHODS for figure, rate in summary["methods"][name].items()]
