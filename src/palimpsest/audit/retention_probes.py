"""Studying texts, recognising and recalling them: the probes of system 047; see `retention` for the paper and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.cued_recall import Studied, copy_of, leading
from palimpsest.audit.cued_recall import study as train
from palimpsest.audit.similarity import similarities
from palimpsest.bleu import ngrams
from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError
from palimpsest.files import sha256_json
from palimpsest.models import LanguageModel
from palimpsest.models.hf import HFModel
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import Callback, TrainConfig, Trainer

LONGEST = 128  # tokens of a text, the rest is left out, as in the paper
SCORES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class MassedBatches(ExampleBatches):
    """Every batch `times` times in a row."""

    times: int = 1

    def chosen(self, k: int) -> list[Example]:
        """The examples of batch k."""
        return super().chosen(k // self.times)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the examples and of how they are dealt."""
        return sha256_json([super().fingerprint, self.times])


@dataclass(frozen=True)
class Learning:
    """How texts are studied.

    Attributes:
        lr: constant.
        batch_size: texts an update.
        massed: show a batch its exposures in a row instead of one an epoch.
        seed: of the order.
    """

    lr: float = 1e-5
    batch_size: int = 16
    massed: bool = False
    seed: int = 0


class AfterUpdates(Callback):
    """Does something after some of the updates, with the model in evaluation mode.

    Args:
        steps: after which.
        do: called with the step.
    """

    def __init__(self, steps: Sequence[int], do: Callable[[int], None]) -> None:
        self.steps, self.do = frozenset(steps), do

    def after_step(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Calls, where this step is one of them."""
        if trainer.step in self.steps:
            trainer.model.eval()
            self.do(trainer.step)
            trainer.model.train()


def study(
    model: HFModel,
    texts: Sequence[str],
    exposures: int,
    learning: Learning | None = None,
    *,
    after: Callable[[HFModel, int], None] | None = None,
) -> tuple[HFModel, Studied]:
    """A copy of a model that has seen every text `exposures` times, and what its training left.

    Args:
        model: what begins; stays as it is.
        texts: what is studied.
        exposures: how many times.
        learning: how.
        after: called with the copy and the exposures so far after each of them; when they are massed, after the last alone.

    Raises:
        InputError: no texts, a text twice or with fewer than 4 tokens, or fewer than one exposure.
    """
    learning = learning or Learning()
    if exposures < 1:
        raise InputError(f"exposures is {exposures}.", "Give 1 or more.")
    copy = copy_of(model)
    data = batches_of(copy, texts, learning, exposures if learning.massed else 1)
    ends = {shown * len(data): shown for shown in ((exposures,) if learning.massed else range(1, exposures + 1))}
    asking = [] if after is None else [AfterUpdates(list(ends), lambda step: after(copy, ends[step]))]
    return copy, train(copy, data, config_of(exposures * len(data), learning), callbacks=asking)


def batches_of(model: HFModel, texts: Sequence[str], learning: Learning, times: int = 1) -> MassedBatches:
    """Texts to train on, cut to `LONGEST` tokens, each batch `times` times in a row.

    Raises:
        InputError: no texts, a text twice, or one of fewer than 4 tokens.
    """
    if not texts or len(set(texts)) < len(texts):
        raise InputError(f"Of {len(texts)} texts {len(set(texts))} are different.", "Give some, each once.")
    found = [Example((*leading(model), *_ids(model, text, 4).tolist())) for text in texts]
    pad = model.tokenizer.pad_id
    return MassedBatches(found, learning.batch_size, 0 if pad is None else pad, learning.seed, times)


def config_of(steps: int, learning: Learning) -> TrainConfig:
    """Adam at a constant rate, without decay."""
    return TrainConfig(steps, lr=learning.lr, schedule="constant", betas=(0.9, 0.999), weight_decay=0.0, seed=learning.seed)


def recognition(model: LanguageModel, seen: Sequence[str], foils: Sequence[str]) -> pl.DataFrame:
    """One row a pair: mean losses of both (nat a token), their lengths in tokens, and credit for the choice (1, ½ for a tie, 0).

    Raises:
        InputError: no pairs, lists of different length, or a text of fewer than two tokens.

    Example:
        >>> recognition(model, ["a seen text"], ["another text"])["recognized"].mean()      # doctest: +SKIP
    """
    if not seen or len(seen) != len(foils):
        raise InputError(f"{len(seen)} seen texts, {len(foils)} foils.", "Give one foil for every seen text.")
    rows = [_ids(model, text, 2) for text in (*seen, *foils)]
    losses = np.array([-float(values.mean(dtype=np.float64)) for values in model.score(rows).logprobs])
    own, other = losses[: len(seen)], losses[len(seen) :]
    lengths = np.array([len(row) for row in rows])
    credit = np.where(np.array(seen) == np.array(foils), 0.5, np.where(own == other, 0.5, own < other))
    return pl.DataFrame({
        "loss_seen": own, "loss_foil": other, "tokens_seen": lengths[: len(seen)], "tokens_foil": lengths[len(seen) :],
        "recognized": credit.astype(np.float64),
    })  # fmt: skip


def recall(model: LanguageModel, seen: Sequence[str]) -> pl.DataFrame:
    """One row a text: ROUGE-1, -2 and -L (F1, words) of its continuation and of the whole, and whether it is exact, token for token.

    Raises:
        InputError: no texts, or one of fewer than 4 tokens.
    """
    if not seen:
        raise InputError("There is nothing to recall.", "Give at least one text.")
    rows = [_ids(model, text, 4) for text in seen]
    cuts = [len(row) // 2 for row in rows]
    room = max(len(row) - cut for row, cut in zip(rows, cuts, strict=True))  # greedy text that is cut is what a smaller room gives
    texts = model.generate([row[:cut] for row, cut in zip(rows, cuts, strict=True)], room, stop_at_eos=False)
    written = [text[0][: len(row) - cut] for text, row, cut in zip(texts, rows, cuts, strict=True)]
    found: dict[str, list[Any]] = {"exact": [np.array_equal(w, r[c:]) for w, r, c in zip(written, rows, cuts, strict=True)]}
    whole = [np.concatenate([row[:cut], text]) for row, cut, text in zip(rows, cuts, written, strict=True)]
    for part, ours, true in (
        ("cont", written, [row[cut:] for row, cut in zip(rows, cuts, strict=True)]),
        ("full", whole, rows),
    ):
        candidates, references = ([words(model.tokenizer.decode(ids)) for ids in side] for side in (ours, true))
        for n in (1, 2):
            found[f"rouge{n}_{part}"] = [rouge_n(ours, true, n) for ours, true in zip(candidates, references, strict=True)]
        found[f"rougeL_{part}"] = similarities(candidates, references).rouge_l.tolist()
    return pl.DataFrame(found)


def rouge_n(candidate: Sequence[str], reference: Sequence[str], n: int) -> float:
    """F1 of the n-grams of two texts, each counted as often as it stands in both; 0 when either has none.

    Example:
        >>> round(rouge_n("the cat sat".split(), "the cat ran off".split(), 1), 3)
        0.571
    """
    ours, true = ngrams(candidate, n), ngrams(reference, n)
    shared = (ours & true).total()
    return 2 * shared / (ours.total() + true.total()) if shared else 0.0


def _ids(model: LanguageModel, text: str, least: int) -> np.ndarray:
    ids = model.tokenizer.encode(text)[:LONGEST]
    if len(ids) < least:
        raise InputError(f"The text {text!r} has {len(ids)} tokens.", f"Give texts of {least} at least.")
    return np.array(ids, dtype=np.int64)
