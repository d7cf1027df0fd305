"""Claim check of system 044 (random-access): what was memorized can be recited from its beginning, not entered in the middle.

Zhu et al., arXiv 2403.07805, in the laboratory: passages of four sentences of four random words under made-up titles, 24 of them written
but in no task example, a two-layer Llama trained from scratch on passages and examples together. Both tasks share one model: "Recite id:"
and "Sentence i of id:". Arms, the first three with one number of steps, the last two with another:

* plain: every passage once;
* permuted: every passage with each sentence in front (`first_permute`);
* repeated: as many copies as "permuted" has, in their own order: the equal-token arm;
* selecting: "plain" and, beside it, examples that show a passage which is never seen again and ask for one of its sentences;
* reciting: "selecting" with the remedy `recite`: its examples have the very form of a recitation that is followed by an answer.

Checks, on the 24 passages: full recitation ≥ 0.9; selection of sentences 2 to 4 ≤ 0.2; permuted ≥ plain + 0.25 on these; with another
passage's id no more than chance (0.05: at most 3 of 72); reciting ≥ selecting + 0.25. The specification places the sentences that recall
must fail on at "index ≥ 2", which is here the second sentence and later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.cued_recall import cue_example
from palimpsest.audit.random_access import Passage, Trial, build, examples, measure
from palimpsest.audit.random_access_items import SPLITTER
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.study_lab import JoinedBatches, Shape, new_model, studied, word_tokenizer
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models.hf import HFModel
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import TrainConfig

STATEMENT = (
    "Models recite from the beginning what they memorized but cannot jump to the middle of it; reciting first or permuting sentences in "
    "training helps."
)
SENTENCES, WORDS, SHOWN_TITLES = 4, 4, 40


@dataclass(frozen=True)
class Config:
    """Of the laboratory.

    Attributes:
        passages, held_out: how many are written, and how many of these stand in no example.
        vocabulary: words that sentences are drawn from.
        steps: of the first three arms.
        selecting_steps: of the last two, whose examples are longer.
        batch_size, lr: of every arm.
        joined: whether two examples stand in a row.
        shown: share of examples, in the arms that have them, that show a passage; each one is shown once.
        shape: of the model.
    """

    passages: int = 72
    held_out: int = 24
    vocabulary: int = 200
    steps: int = 1600
    selecting_steps: int = 1400
    batch_size: int = 32
    lr: float = 2e-3
    joined: bool = True
    shown: float = 0.5
    shape: Shape = field(default_factory=Shape)


CPU = Config()
SMOKE = Config(passages=8, held_out=3, vocabulary=20, steps=4, selecting_steps=3, batch_size=8, shape=Shape(16, 1, 2))
SELECTING = ("selecting", "reciting")
ARMS = ("plain", "permuted", "repeated", *SELECTING)


def run(scale: str, seed: int, config: Config | None = None) -> Claim:
    """Trains the five arms (or takes them from the cache) and asks them.

    Args:
        scale: "smoke": models so small that they know nothing; nothing is held against anything; "cpu".
        seed: of the passages, the draw, the weights and the order of training.
        config: another laboratory than the scale's.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    lab = Laboratory(config or (CPU if full else SMOKE), seed)
    found = {arm: {task: lab.asked(arm, task) for task in ("full", "selective")} for arm in ARMS}
    checks = judged(found)
    if not full:
        checks = [replace(check, threshold=None) for check in checks]
    rows = [
        {"arm": arm, "task": task, **row} for arm, tasks in found.items() for task, measured in tasks.items() for row in _rows(measured)
    ]
    return Claim("random-access", STATEMENT, checks, rows, seed, scale, notes=list(NOTES), curves=[_curve(found)])


class Laboratory:
    """Passages, and the arms' models.

    Args:
        config: sizes.
        seed: of everything.
    """

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed = config, seed
        rng = np.random.default_rng((seed, 2403))
        words = [f"w{n}" for n in range(config.vocabulary)]

        def drawn(n: int, titles: list[str]) -> list[Passage]:
            texts = rng.choice(words, size=(n, SENTENCES, WORDS))
            return [Passage(titles[i % len(titles)], tuple(" ".join(sentence) for sentence in text)) for i, text in enumerate(texts)]

        self.passages = drawn(config.passages, [f"P{n}" for n in range(config.passages)])
        # each once, but with few titles: a vocabulary costs time
        self.shown = drawn(round(config.shown * config.selecting_steps * config.batch_size), [f"S{n}" for n in range(SHOWN_TITLES)])
        fresh = " ".join(f"{passage.title}:" for passage in self.shown)
        texts = [text for arm in ARMS for task in ("full", "selective") for text in _texts(self.trial(arm, task))]
        self.tokenizer = word_tokenizer([*texts, fresh, " ".join(words), SPLITTER])

    def trial(self, arm: str, task: str) -> Trial:
        """What an arm writes and asks; the same passages are held out everywhere."""
        remedy, k = {"permuted": ("first_permute", 1), "repeated": ("repeat", SENTENCES), "reciting": ("recite", 1)}.get(arm, ("none", 1))
        return build(self.passages, task, "title", remedy, held_out=self.config.held_out, k=k, marked=True, seed=self.seed)

    def examples(self, arm: str, model: HFModel) -> list[Example]:
        """What an arm studies."""
        writing = examples(model, self.trial(arm, "selective"))
        reciting = [cue_example(model, query.prompt, query.target, on_prompt=True) for query in self.trial(arm, "full").train]
        if arm not in SELECTING:
            return [*writing, *reciting]
        own = self.config.selecting_steps * self.config.batch_size - len(self.shown)  # all of them together are one epoch
        return [*islice(cycle([*writing, *reciting]), own), *self.selecting(model)]

    def selecting(self, model: HFModel) -> list[Example]:
        """Passages that nothing else is said about, each shown and asked for one sentence, which alone is trained."""
        rng = np.random.default_rng((self.seed, 7))
        found = []
        for passage in self.shown:
            place = int(rng.integers(SENTENCES))
            body = " ".join(f"[{n}] {text} [{n}]" for n, text in enumerate(passage.sentences, 1))
            prompt = f"Sentence {place + 1} of {passage.title}: {body} {SPLITTER}"
            found.append(cue_example(model, prompt, passage.sentences[place]))
        return found

    def model(self, arm: str) -> HFModel:
        """The model of an arm."""
        config = self.config
        new = new_model(self.tokenizer, config.shape, self.seed)
        steps = config.selecting_steps if arm in SELECTING else config.steps
        train = TrainConfig(steps, lr=config.lr, warmup=steps // 20, weight_decay=0.01, seed=self.seed, cpu=True)
        batches = JoinedBatches if config.joined else ExampleBatches
        return studied(new, batches(self.examples(arm, new), config.batch_size, seed=self.seed), train, arm)

    def asked(self, arm: str, task: str) -> Measurement:
        """The arm's answers about the passages that stood in no example."""
        return measure(self.model(arm), self.trial(arm, task).evaluation)


def later(measured: Measurement, column: str = "exact") -> float:
    """Share of right answers about sentences after the first."""
    return float(measured.table.filter(pl.col("place") > 1)[column].mean())  # type: ignore[arg-type]


def judged(found: dict[str, dict[str, Measurement]]) -> list[Check]:
    """The checks; `found` is by arm and task."""
    selective = {arm: tasks["selective"] for arm, tasks in found.items()}
    recited = {arm: tasks["full"].summary["all"]["exact"]["estimate"] for arm, tasks in found.items()}
    share = {arm: later(measured) for arm, measured in selective.items()}
    first = {arm: measured.summary["by_place"]["1"]["exact"]["estimate"] for arm, measured in selective.items()}
    return [
        Check("plain: full recitation", recited["plain"], ">=", 0.9, unit="share"),
        Check("plain: selection after the first sentence", share["plain"], "<=", 0.2, unit="share"),
        Check("permuted against plain, after the first sentence", share["permuted"] - share["plain"], ">=", 0.25, unit="share"),
        Check("plain: with another passage's id", later(selective["plain"], "control_exact"), "<=", 0.05, unit="share"),
        Check("reciting against selecting, after the first sentence", share["reciting"] - share["selecting"], ">=", 0.25, unit="share"),
        *(Check(f"{arm}: selection after the first sentence", share[arm], unit="share") for arm in ARMS),
        *(Check(f"{arm}: selection of the first sentence", first[arm], unit="share") for arm in ARMS),
        *(Check(f"{arm}: full recitation", recited[arm], unit="share") for arm in ARMS),
        Check("permuted against repeated, after the first sentence", share["permuted"] - share["repeated"], unit="share"),
        Check("reciting: the recited passage", selective["reciting"].summary["all"]["recited_exact"]["estimate"], unit="share"),
        Check("reciting: malformed", selective["reciting"].summary["all"]["malformed"]["estimate"], unit="share"),
    ]


NOTES = (
    "Rotary positions, and the id directly before what follows it, as the passages are written; two examples stand in a row.",
    "Tried on seed 100: without BOS in front of each row full recitation of passages without examples was 0.42, with it 1.0; with one "
    "example a row, 1,500 steps of reciting gave 0.18 after the first sentence, with 0.23 of the passages recited under the question; 800 "
    "steps of permuting gave 0.15, 2,500 (without BOS) 0.69. With two examples a row, 0.63 of the passages were recited under the question "
    "in a smaller laboratory. The set-up as it stands was not tried as a whole.",
    "Full recitation and selection are examples of one model; in the paper each task has its own.",
)


def _texts(trial: Trial) -> list[str]:
    return [*trial.write, *(f"{query.prompt} {query.target}" for query in (*trial.train, *trial.evaluation))]


def _rows(measured: Measurement) -> list[dict[str, Any]]:
    columns = ("exact", "prefix", "malformed", "recited_exact", "control_exact")
    return [
        {"place": int(place), "n": row["n"]} | {name: row[name]["estimate"] if row[name] else None for name in columns}
        for place, row in measured.summary["by_place"].items()
    ]


def _curve(found: dict[str, dict[str, Measurement]]) -> Curve:
    lines = []
    for arm, tasks in found.items():
        exact = {place: row["exact"] for place, row in tasks["selective"].summary["by_place"].items()}
        lines.append(
            Series(arm, [{"x": int(p), "y": e["estimate"], "low": e["low"], "high": e["high"], "n": None} for p, e in exact.items()])
        )
    return Curve(
        "random-access-arms", "Asking for one sentence of a memorized passage", "sentence", "exactly right", lines,
        y_domain=(0.0, 1.0), y_format="percent", caption="Passages that were written but stood in no example; 95 % intervals.",
    )  # fmt: skip
