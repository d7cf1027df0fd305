"""Does a larger subword vocabulary make a model memorize more? One corpus, many vocabularies, models of one size.

Kharitonov, Baroni and Hupkes, *How BPE Affects Memorization in Transformers* (2021, arXiv 2110.02782; no code was released). Every arm
has a byte-pair encoding of the same texts with another number of merges, a model with the same number of parameters
(`vocabulary_training`), and the same texts in the same order. Three tasks:

* ``random_labels``  each text has a label by lot, equally many of each, that stands behind its end and is all that is asked for. How many
  are right after so many epochs? Nothing but memory helps.
* ``membership``     half of the texts are trained on. How well does the loss tell them from the others?
* ``recovery``       the same models are given the first part of a text, cut at the same character in every arm (a space, so that no
  vocabulary has a token across it), and write on greedily. How much of the rest comes back, in characters? The others are the control.

Two controls change one thing alone (`vocabulary_coding`): *aliases* make the vocabulary r times as large at the same length, and *length*
spreads a coding's tokens over the length that a smaller vocabulary needs. The paper's conjecture is that length decides.

Losses are compared per character, Σ nll / characters, never per token. Departures: the paper also has masked and sequence-to-sequence
models, here causal ones alone; the knob that equalises the parameters, the length control and the control by held-out texts are ours.

    from palimpsest.audit.vocabulary import VocabularySweep
    VocabularySweep(texts, merges=(0, 500, 4000)).run("random_labels", seeds=(0, 1)).summary["spearman"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.vocabulary_coding import END, FIRST_LABEL, Coding, cut_of, train_coding, with_aliases
from palimpsest.audit.vocabulary_training import EpochReadings, RedrawnBatches, Shape, equal_model, label_hits, train_on
from palimpsest.errors import InputError
from palimpsest.files import sha256_json
from palimpsest.measurement import Curve, Measurement, Series, environment, plain
from palimpsest.models.hf import HFModel
from palimpsest.stats import auc_interval, clustered_interval, rate_interval, roc_curve, spearman
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.examples import Example, ExampleBatches

TASKS = ("random_labels", "membership", "recovery")
FIGURE = {"random_labels": "accuracy", "membership": "auc", "recovery": "recovered"}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Arm:
    """A coding and the arm that it is a control of, by name."""

    coding: Coding
    control_of: str | None = None


class VocabularySweep:
    """Models of one size over vocabularies of different size.

    Args:
        texts: at least 8, all different; the vocabularies are learnt from them.
        merges: of the plain arms, 2 at least; 0 is bytes.
        aliases: (merges, r) of alias controls whose aliases stay.
        redrawn: (merges, r) of those whose aliases are drawn anew each epoch.
        lengths: (merges, other merges) of length controls: the first as long as the second.
        labels: of the task "random_labels".
        shape: size and training of the models.
        share: of a text's characters that are its prompt in the task "recovery".
        progress: called with a few words whenever a model is to be trained.

    Attributes:
        arms: name -> `Arm`, the plain ones first.

    Raises:
        InputError: too few texts or equal ones, merges that repeat or that the texts do not support, a control of an arm that is
            not there, or a budget that the largest vocabulary exceeds.

    Example:
        >>> texts = [f"what is {a} and {b} ?" for a in ("this", "that", "memory") for b in ("paper", "a page", "ink")]
        >>> shape = Shape(parameters=20_000, width=16, layers=1, heads=2, epochs=1)
        >>> sweep = VocabularySweep(texts, (0, 8), shape=shape)
        >>> [row["tokens"] for row in sweep.run("random_labels").summary["arms"]]
        [24.3, 15.0]
    """

    def __init__(
        self,
        texts: Sequence[str],
        merges: Sequence[int] = (0, 500, 1000, 5000),
        *,
        aliases: Sequence[tuple[int, int]] = (),
        redrawn: Sequence[tuple[int, int]] = (),
        lengths: Sequence[tuple[int, int]] = (),
        labels: int = 2,
        shape: Shape | None = None,
        share: float = 0.5,
        progress: Tell | None = None,
    ) -> None:
        self.texts, self.labels, self.shape, self.share = list(texts), labels, shape or Shape(), share
        self._tell = progress or (lambda words: None)
        if len(self.texts) < 8 or len(set(self.texts)) < len(self.texts) or not all(text.strip() for text in self.texts):
            raise InputError(
                f"There are {len(self.texts)} texts, {len(set(self.texts))} of them different.",
                "Give 8 or more, all different and not empty.",
            )
        if len(set(merges)) < max(2, len(merges)) or not 0 < share < 1:
            raise InputError(
                f"merges is {tuple(merges)}, share is {share}.", "Give 2 or more different numbers, and a share between 0 and 1."
            )
        missing = {m for pair in lengths for m in pair} | {m for m, _ in (*aliases, *redrawn)}
        if not missing <= set(merges):
            raise InputError(f"Controls are asked for of {sorted(missing)} merges.", f"Name some of {tuple(merges)}.")
        codings = {m: train_coding(self.texts, m, labels) for m in sorted(merges)}
        arms = [Arm(coding) for coding in codings.values()]
        arms += [Arm(with_aliases(codings[m], r), codings[m].name) for m, r in aliases]
        arms += [Arm(with_aliases(codings[m], r, redraw=True), codings[m].name) for m, r in redrawn]
        arms += [Arm(replace(codings[m], as_long_as=codings[other]), codings[other].name) for m, other in lengths]
        self.arms = {arm.coding.name: arm for arm in arms}
        self._encoded = {name: [arm.coding.encode(text) for text in self.texts] for name, arm in self.arms.items()}
        self._trained: dict[tuple[str, int], HFModel] = {}
        self._sizes = {name: sum(p.numel() for p in self._model(name, 0).parameters()) for name in self.arms}

    def run(self, task: str, seeds: Sequence[int] = (0,)) -> Measurement:
        """Trains and asks every arm for every seed; models of "membership" are those of "recovery".

        Args:
            task: "random_labels", "membership" or "recovery".
            seeds: of weights, order, labels and halves.

        Returns:
            One row an arm, seed and text: arm, seed, text, tokens, and hit (random_labels), member and loss (nat per character),
            or member, exact and recovered (share of the characters of the rest). The summary has by arm the figure of the task with its
            interval, `spearman` of the plain arms' figures with their vocabularies (None where they do not differ), `difference` of the
            largest and the smallest vocabulary, and `controls` with each control's difference to its base.

        Raises:
            InputError: an unknown task, no seeds, or texts without a space to cut at.
        """
        if task not in TASKS or not seeds:
            raise InputError(f"task {task!r}, seeds {tuple(seeds)}.", f"Choose one of {', '.join(TASKS)}, and give a seed.")
        rows: list[dict[str, Any]] = []
        curves: dict[str, dict[int, list[float]]] = {}
        for name in self.arms:
            for seed in seeds:
                if task == "random_labels":
                    hits, readings = self._random_labels(name, seed)
                    found: dict[str, Any] = {"hit": hits}
                    for epoch, value in readings.items():
                        curves.setdefault(name, {}).setdefault(epoch, []).append(value)
                elif task == "membership":
                    found = {"member": self.members(seed), "loss": self._losses(name, seed)}
                else:
                    found = self._recovered(name, seed)
                tokens = [len(row) for row in self._encoded[name]]
                columns = {"text": np.arange(len(self.texts)), "tokens": tokens} | found
                rows += [
                    {"arm": name, "seed": seed} | dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
                ]
        table = pl.DataFrame([row for row in rows if row.get("exact", 0) is not None], infer_schema_length=None)  # None: no space to cut at
        drawn = {task: _curve({name: {e: float(np.mean(v)) for e, v in c.items()} for name, c in curves.items()})} if curves else {}
        provenance = {"task": task, "texts": sha256_json(self.texts), "seeds": list(seeds), "labels": self.labels, "share": self.share}
        provenance |= {"shape": asdict(self.shape), "environment": environment()}
        return Measurement(f"vocabulary_{task}", table, self._summary(task, table), plain(provenance), drawn)

    def members(self, seed: int) -> np.ndarray:
        """Which half of the texts is trained on in "membership" and "recovery", (texts,) bool; the same in every arm."""
        order = np.random.default_rng((seed, 1)).permutation(len(self.texts))
        return order < len(self.texts) // 2

    def drawn_labels(self, seed: int) -> np.ndarray:
        """The labels of the texts, (texts,), as many of each as can be; the same in every arm."""
        return np.random.default_rng((seed, 2)).permutation(np.arange(len(self.texts)) % self.labels)

    def _model(self, name: str, seed: int) -> Any:
        longest = max(len(row) for row in self._encoded[name])  # a prompt may be followed by as many tokens as the longest rest
        return equal_model(self.arms[name].coding.vocab_size, 2 * longest + 2, self.shape, seed)

    def _batches(self, name: str, examples: list[Example], seed: int) -> ExampleBatches:
        """The same texts at the same step in every arm: the order follows from seed and epoch alone."""
        coding, size = self.arms[name].coding, self.shape.batch_size
        return RedrawnBatches(examples, size, END, seed, coding) if coding.redraw else ExampleBatches(examples, size, END, seed)

    def _random_labels(self, name: str, seed: int) -> tuple[np.ndarray, dict[int, float]]:
        self._tell(f"{name}: random labels, seed {seed}")
        labels = (FIRST_LABEL + self.drawn_labels(seed)).tolist()
        rows = [[*ids, END, label] for ids, label in zip(self._encoded[name], labels, strict=True)]
        data = self._batches(name, [Example(tuple(row), len(row) - 1) for row in rows], seed)
        every = max(1, self.shape.epochs // 4)  # a reading costs a third of an epoch
        epochs = range(self.shape.epochs, 0, -every)
        readings = EpochReadings(len(data), epochs, lambda model: float(label_hits(model, rows, self.labels).mean()))
        model = train_on(self._model(name, seed), data, self.shape, seed, [readings])
        return label_hits(model, rows, self.labels), readings.found

    def _language_model(self, name: str, seed: int) -> HFModel:
        """The model of an arm that was trained on the members, END in front and behind."""
        if (name, seed) not in self._trained:
            self._tell(f"{name}: language model, seed {seed}")
            rows = [Example((END, *self._encoded[name][i], END)) for i in np.flatnonzero(self.members(seed))]
            data = self._batches(name, rows, seed)
            coding = self.arms[name].coding
            tokenizer = Tokenizer(coding.backend, eos_id=END, pad_id=END)  # of the base tokens: ids of the model are decoded by the coding
            self._trained[name, seed] = HFModel(train_on(self._model(name, seed), data, self.shape, seed), tokenizer, name=name)
        return self._trained[name, seed]

    def _losses(self, name: str, seed: int) -> np.ndarray:
        """Negative log-likelihood of every text with its end, in nat per character."""
        rows = [[END, *ids, END] for ids in self._encoded[name]]
        sums = np.array([-values.sum(dtype=np.float64) for values in self._language_model(name, seed).logprobs(rows)])
        return sums / np.array([len(text) for text in self.texts])

    def _recovered(self, name: str, seed: int) -> dict[str, Any]:
        """What comes back of every text; `exact` and `recovered` are None for a text that has no space to cut at."""
        coding, model = self.arms[name].coding, self._language_model(name, seed)
        cuts = [cut_of(text, self.share) for text in self.texts]
        asked = [i for i, cut in enumerate(cuts) if cut is not None]
        if not asked:
            raise InputError("No text has a space to cut at.", "Give texts of several words.")
        parts = [coding.split(self.texts[i], cuts[i] or 0) for i in asked]
        new = model.generate([[END, *head] for head, _ in parts], max(len(tail) for _, tail in parts) + 1)
        exact: list[bool | None] = [None] * len(self.texts)
        share: list[float | None] = [None] * len(self.texts)
        for i, (written,) in zip(asked, new, strict=True):
            rest, given = self.texts[i][cuts[i] :], coding.decode(written)
            same = next((k for k, (a, b) in enumerate(zip(rest, given, strict=False)) if a != b), min(len(rest), len(given)))
            exact[i], share[i] = rest == given, same / len(rest)
        return {"member": self.members(seed), "exact": exact, "recovered": share}

    def _summary(self, task: str, table: pl.DataFrame) -> dict[str, Any]:
        arms = []
        for name, arm in self.arms.items():
            rows = table.filter(pl.col("arm") == name)
            tokens = float(np.mean([len(row) for row in self._encoded[name]]))
            entry = {"arm": name, "merges": arm.coding.merges, "vocabulary": arm.coding.vocab_size, "parameters": self._sizes[name]}
            entry |= {"tokens": round(tokens, 1), "control_of": arm.control_of}
            arms.append(entry | _FIGURES[task](rows))
        figure = {entry["arm"]: entry[FIGURE[task]]["estimate"] for entry in arms}
        own = [entry for entry in arms if entry["control_of"] is None]
        values = [figure[entry["arm"]] for entry in own]
        return {
            "figure": FIGURE[task],
            "arms": arms,
            "spearman": spearman([entry["vocabulary"] for entry in own], values) if np.ptp(values) > 0 else None,
            "difference": values[-1] - values[0],
            "controls": [
                {"arm": entry["arm"], "base": entry["control_of"], "difference": figure[entry["arm"]] - figure[entry["control_of"]]}
                for entry in arms
                if entry["control_of"]
            ],
        }


def _accuracy(rows: pl.DataFrame) -> dict[str, Any]:
    return {"accuracy": rate_interval(rows["hit"].to_numpy(), rows["text"].to_numpy())._asdict()}


def _membership(rows: pl.DataFrame) -> dict[str, Any]:
    """AUC with the ends of its interval and the best threshold's accuracy, means over the seeds, which share their texts."""
    areas, best = [], []
    for _, part in rows.group_by("seed", maintain_order=True):
        inside, outside = _sides(part)
        areas.append(auc_interval(inside, outside))
        curve = roc_curve(inside, outside)
        best.append(float(np.max(curve.tpr + 1 - curve.fpr) / 2))
    inside, outside = _sides(rows)
    return {
        "auc": dict(zip(("estimate", "low", "high"), np.mean(areas, axis=0).tolist(), strict=True)),
        "best_accuracy": float(np.mean(best)),
        "loss_members": float(-inside.mean()),
        "loss_others": float(-outside.mean()),
    }


def _sides(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Scores, −loss, of members and of the others."""
    return tuple(-rows.filter(pl.col("member") == inside)["loss"].to_numpy() for inside in (True, False))  # type: ignore[return-value]


def _recovery(rows: pl.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, inside in (("", True), ("_others", False)):
        part = rows.filter(pl.col("member") == inside)
        clusters = part["text"].to_numpy()
        found[f"recovered{side}"] = clustered_interval(part["recovered"].to_numpy(), clusters)._asdict()
        found[f"exact{side}"] = rate_interval(part["exact"].to_numpy(), clusters)._asdict()
    return found


_FIGURES: dict[str, Callable[[pl.DataFrame], dict[str, Any]]] = {
    "random_labels": _accuracy,
    "membership": _membership,
    "recovery": _recovery,
}


def _curve(readings: dict[str, dict[int, float]]) -> Curve:
    series = [Series(name, [{"x": epoch, "y": value} for epoch, value in found.items()]) for name, found in readings.items()]
    return Curve(
        "vocabulary-random-labels", "Random labels are learnt sooner in larger vocabularies", "epochs", "labels right", series,
        y_domain=(0.0, 1.0), y_format="percent", caption="Models of one size; × is a control with aliases, “as long as” one of length.",
    )  # fmt: skip
