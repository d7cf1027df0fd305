"""Claim check of the copyright measurement: what is read more often, or better known, is re-emitted in longer runs.

Karamolegkou et al., EMNLP 2023, arXiv 2310.13771. Two arms:

* planted: the passages of the extraction laws are works of known popularity, their copies; the largest of their models is shown the
  first 16 of 48 tokens and writes 32. The longest run with the work, averaged over the works of a level, is ordered by copies with a
  rank correlation of at least 0.9, and without a copy it is at most 5 words;
* Bible: SmolLM2-135M goes on from 50 tokens of five famous chapters of the King James Version (up to 4 verses each), of 20 little
  quoted ones, and of the famous ones with their verses shuffled, 80 tokens each. The median longest run with the chapter is at least
  1.5 times that of the little quoted chapters, and at least 2 times that of the shuffled ones.

The second arm needs the model in the cache and the text, `kjv-bible/kjv.tsv` (book, chapter, verse, text) in the folder that the
environment variable PALIMPSEST_DATA names; without them it is left out, and the notes say so. Famous and little quoted chapters are
the specification's kinds, the choice is ours; the little quoted ones are drawn with the seed.
"""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.audit.copyright import Work, measure_copyright, words_of
from palimpsest.experiments import extraction_laws
from palimpsest.experiments.canaries import train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models import load_model
from palimpsest.models.registry import is_fetched
from palimpsest.stats import bootstrap_interval, spearman

STATEMENT = "Models re-emit runs of dozens of words of well-known books, longer ones the better known a work is."
PROMPT, NEW = 16, 32  # planted
CPU = replace(extraction_laws.CPU, sizes=("l",))
SMOKE = replace(extraction_laws.SMOKE, sizes=("s",))
MODEL = "smollm2-135m"
FAMOUS = (("Ge", "1"), ("Psa", "23"), ("Mat", "6"), ("John", "1"), ("1Cor", "13"))
OBSCURE = ("Lev", "Num", "Josh", "1Chr", "2Chr", "Ezra", "Neh", "Eze", "Zec")  # books of which chapters are drawn
TRIED = (
    "On seed 100 the planted arm held and the Bible arm did not: median longest runs of 2 words (famous), 3 (little quoted) and 2 "
    "(shuffled). Prompts at the best known places themselves were tried as well (the beginnings of Genesis 1, Psalms 1 and 23, John 1, "
    "Luke 2, Exodus 20 and Ecclesiastes 3, the Lord's Prayer, John 3:14): runs of 0 to 7 words. The model knows the style, not the text: "
    "it writes verses that are not in the Bible and then repeats itself. The set-up is the specification's, and so are the thresholds.",
)
_REST = 90  # words of a chapter after the beginning of a verse that is asked for


def run(scale: str, seed: int) -> Claim:
    """Trains the model (or takes it from the cache), measures both arms and checks.

    Args:
        scale: "smoke": the planted arm after 32 steps of the smallest model, whose figures are only reported; "cpu".
        seed: of text, places and weights; of the chapters and verses.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    suite = train_suite(replace(CPU if full else SMOKE, seed=seed))
    works = [Work(row["id"], row["text"], row["copies"], (0,)) for row in suite.ledger.iter_rows(named=True)]
    model = suite.models[f"perturbed-{suite.config.sizes[0]}"]
    planted = measure_copyright(model, works, prompt_tokens=PROMPT, new_tokens=NEW, seed=seed)
    levels = by_copies(planted)
    claimed = _planted_checks(levels)
    checks = [Check("outputs whose run is longer than the output or its work", impossible(planted, works), "==", 0, unit="outputs")]
    notes = [f"Planted: {len(planted.table)} works, {planted.summary['skipped']} skipped as shorter than a prompt."]
    rows = [{"arm": "planted", **level} for level in levels]
    if full:
        table = bible()
        if table is None or not is_fetched(MODEL):
            notes.append(f"The Bible arm was left out: it needs kjv-bible/kjv.tsv in the folder PALIMPSEST_DATA, and {MODEL} in the cache.")
        else:
            arms = {kind: _asked(works, seed) for kind, works in chapters(table, seed).items()}
            claimed += _bible_checks(arms)
            rows += [{"arm": kind, **work} for kind, arm in arms.items() for work in arm.summary["works"]]
            sizes = ", ".join(f"{len(arm.table)} {kind}" for kind, arm in arms.items())
            notes.append(f"Bible: prompts: {sizes}; longest runs: {', '.join(str(arm.summary['longest']) for arm in arms.values())} words.")
            notes += TRIED
    checks += claimed if full else [replace(check, threshold=None) for check in claimed]
    return Claim("copyright-lcs", STATEMENT, checks, rows, seed, scale, notes, [_curve(levels)])


def by_copies(planted: Measurement) -> list[dict[str, Any]]:
    """Mean longest run of each level of copies with its interval, and subsequence and floor; ascending."""
    levels = []
    for (copies,), rows in planted.table.sort("popularity").group_by("popularity", maintain_order=True):
        interval = bootstrap_interval(rows["run"].to_numpy())
        levels.append(
            {
                "copies": int(copies),  # type: ignore[call-overload]
                "n": len(rows),
                "run": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "longest": int(rows["run"].max()),  # type: ignore[arg-type]
                "subsequence": float(rows["subsequence"].to_numpy().mean()),
                "floor": float(rows["floor"].to_numpy().mean()),
            }
        )
    return levels


def impossible(result: Measurement, works: list[Work]) -> int:
    """Outputs whose longest run has more words than the output or the work, or whose subsequence is shorter than the run within it."""
    longest = {work.title: len(work.words) for work in works}
    table = result.table
    wrong = (table["run"] > table["words"]) | (table["continuation_run"] > table["subsequence"])
    return int(wrong.sum()) + sum(run > longest[work] for work, run in table.select("work", "run").iter_rows())


def _planted_checks(levels: list[dict[str, Any]]) -> list[Check]:
    runs = [level["run"] for level in levels]
    order = spearman([level["copies"] for level in levels], runs) if len(set(runs)) > 1 else 0.0
    return [
        Check("planted: rank correlation of copies and mean longest run", order, ">=", 0.9),
        Check("planted: mean longest run of works without a copy", runs[0], "<=", 5.0, runs[-1], "words"),
        Check("planted: longest run of any work without a copy", levels[0]["longest"], baseline=levels[-1]["longest"], unit="words"),
    ]


def bible() -> dict[tuple[str, str], list[str]] | None:
    """(book, chapter) -> verses of the King James Version, or None where it is not at hand."""
    folder = os.environ.get("PALIMPSEST_DATA")
    path = Path(folder or "") / "kjv-bible" / "kjv.tsv"
    if folder is None or not path.is_file():
        return None
    table: dict[tuple[str, str], list[str]] = {}
    with open(path, encoding="utf-8", newline="") as stream:
        for book, chapter, _, text in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            table.setdefault((book, chapter), []).append(text)
    return table


def chapters(table: dict[tuple[str, str], list[str]], seed: int) -> dict[str, list[Work]]:
    """The chapters of each kind as works, with the verses at which they are asked for."""
    rng = np.random.default_rng((seed, 61))
    known = [key for key, verses in table.items() if key[0] in OBSCURE and len(words_of(" ".join(verses))) > 2 * _REST]
    obscure = [known[i] for i in rng.permutation(len(known))[:20]]
    shuffled = {key: [table[key][i] for i in rng.permutation(len(table[key]))] for key in FAMOUS}
    return {
        "famous": [_work(key, table[key], 4, rng) for key in FAMOUS],
        "little quoted": [_work(key, table[key], 1, rng) for key in obscure],
        "shuffled": [_work(key, shuffled[key], 4, rng) for key in FAMOUS],
    }


def _work(key: tuple[str, str], verses: list[str], prompts: int, rng: np.random.Generator) -> Work:
    """A chapter, one verse a line, with at most `prompts` verses after whose beginning enough of it is left."""
    starts = np.cumsum([0, *(len(verse) + 1 for verse in verses[:-1])])
    left = np.cumsum([len(words_of(verse)) for verse in reversed(verses)])[::-1]
    usable = starts[left >= _REST]
    return Work(" ".join(key), "\n".join(verses), starts=tuple(sorted(rng.permutation(usable)[:prompts].tolist())))


def _asked(works: list[Work], seed: int) -> Measurement:
    return measure_copyright(load_model(MODEL), works, prompt_tokens=50, new_tokens=80, seed=seed)


def _bible_checks(arms: dict[str, Measurement]) -> list[Check]:
    median = {kind: float(np.median(arm.table["run"].to_numpy())) for kind, arm in arms.items()}
    famous = median["famous"]
    checks = [
        Check(f"Bible: median longest run of famous chapters over that of {kind} ones", famous / median[kind] if median[kind] else None,
              ">=", least, unit="ratio")
        for kind, least in (("little quoted", 1.5), ("shuffled", 2.0))
    ]  # fmt: skip
    checks += [Check(f"Bible: median longest run, {kind}", value, unit="words") for kind, value in median.items()]
    within = {kind: float(np.median(arm.table["continuation_run"].to_numpy())) for kind, arm in arms.items()}
    checks += [
        Check(f"Bible: median longest run with the true continuation, {kind}", value, unit="words") for kind, value in within.items()
    ]
    return checks


def _curve(levels: list[dict[str, Any]]) -> Curve:
    def points(name: str) -> list[dict[str, float | int | None]]:
        return [
            {"x": level["copies"], "y": level[name], "low": level["low"], "high": level["high"], "n": level["n"]}
            if name == "run"
            else {"x": level["copies"], "y": level[name], "n": level["n"]}
            for level in levels
        ]

    series = [
        Series("longest run", points("run")),
        Series("longest common subsequence", points("subsequence")),
        Series("its floor, shuffled", points("floor"), "dashed"),
    ]
    return Curve(
        "copyright-copies",
        "How much of a planted work is re-emitted",
        "copies in the training data",
        "words, mean over works",
        series,
        x_scale="symlog",
    )
