"""The parametric layer: what the weights know without any evidence, and what they give away.

`measure_closed_book` asks for facts by several cues each: the greedy answer, and the rank of the right value among others of its kind by
mean log-probability a token. Its control are facts that the model cannot know (never seen, made the same way); the headline is the
difference to them. A fact counts as known under its *worst* cue.

What an edit of the weights changed is measured in `palimpsest.evaluation.layers.edits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit import measure_extraction, measure_membership
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import Fact, FactWorld
from palimpsest.errors import InputError
from palimpsest.evaluation.answers import is_right, token_f1
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models import LanguageModel, ScoreCache
from palimpsest.stats import clustered_interval, rate_difference, wilson_interval


@dataclass(frozen=True)
class Cued:
    """A fact and the ways to ask for it.

    Attributes:
        id: its name.
        cues: texts that the value completes, without the space before it.
        golds: accepted forms; the first one is scored.
        distractors: other values of the same kind.

    Raises:
        InputError: no cue or gold, or a distractor that is a gold.
    """

    id: str
    cues: tuple[str, ...]
    golds: tuple[str, ...]
    distractors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cues or not self.golds or set(self.golds) & set(self.distractors):
            raise InputError(
                f"{self.id!r} has {len(self.cues)} cues, golds {self.golds}.", "Give a cue, a gold, and distractors that are none of them."
            )


def world_cues(world: FactWorld, facts: Sequence[Fact], templates: Sequence[int] = (0, 1, 2), distractors: int = 20) -> list[Cued]:
    """Facts of a made-up world as cues: one a wording, with type-matched distractors."""
    return [
        Cued(
            f"{fact.relation}/{fact.subject}",
            tuple(world.cue(fact, template) for template in templates),
            (fact.object,),
            tuple(world.distractors(fact, distractors)),
        )
        for fact in facts
    ]


def target_logprobs(model: LanguageModel, cues: Sequence[str], targets: Sequence[str], *, mean: bool = False) -> np.ndarray:
    """log p(" " + target | cue) of every pair, float64 (n,); with `mean` divided by the target's tokens.

    Cue and target are encoded apart, so that no token spans the join and every target has at least one token.

    Raises:
        InputError: a cue or target without tokens.
        CapabilityError, ContextOverflowError: as the model says.
    """
    encode = model.tokenizer.encode
    pairs = [(encode(cue), encode(f" {target}")) for cue, target in zip(cues, targets, strict=True)]
    for (head, tail), cue, target in zip(pairs, cues, targets, strict=True):
        if not head or not tail:
            raise InputError(f"The cue {cue!r} or the target {target!r} has no tokens.", "Give texts that this tokenizer knows.")
    scores = model.score([head + tail for head, tail in pairs], start=[len(head) for head, _ in pairs])
    reduce = np.mean if mean else np.sum
    return np.array([reduce(row, dtype=np.float64) for row in scores.logprobs])


def measure_closed_book(
    model: LanguageModel,
    facts: Sequence[Cued],
    controls: Sequence[Cued],
    *,
    rule: str = "start",
    answer_tokens: int = 16,
    stop: str = "\n",
    seed: int = 0,
) -> Measurement:
    """What a model knows of facts by heart, against facts that it cannot know.

    Args:
        model: needs "logprobs" and "text".
        facts: at least 2, all with equally many cues and distractors.
        controls: at least 2 of the same form that the model never saw.
        rule: when an answer is right; "start" takes what begins with a gold.
        answer_tokens, stop: an answer has at most so many tokens and ends at `stop`.
        seed: of the bootstraps.

    Returns:
        One row a fact and cue: id, control, cue (its number), answer, right, f1, rank (1 is best, ties in the middle), candidates, logprob
        (mean a token of the gold). The summary has, for facts and controls, the share right by cue, under the worst cue and on average,
        F1, the share ranked first and the mean reciprocal rank; and the difference of the two under the worst cue.

    Raises:
        InputError: too few facts, or facts of different form.
        CapabilityError: the door cannot score or write.

    Example:
        >>> m = measure_closed_book(model, world_cues(world, learned), world_cues(other, unknown))   # doctest: +SKIP
        >>> m.summary["difference"]["low"] > 0                                                      # doctest: +SKIP
    """
    model.require("logprobs", "Ranking answers")
    model.require("text", "Answering")
    every = [*facts, *controls]
    forms = {(len(fact.cues), len(fact.distractors)) for fact in every}
    if min(len(facts), len(controls)) < 2 or len(forms) != 1:
        raise InputError(
            f"{len(facts)} facts and {len(controls)} controls with these numbers of cues and distractors: {sorted(forms)}.",
            "Give at least 2 on each side, all with equally many cues and distractors.",
        )
    cues = [(fact, number, cue) for fact in every for number, cue in enumerate(fact.cues)]
    asked = [(cue, value) for fact, _, cue in cues for value in (fact.golds[0], *fact.distractors)]
    scores = target_logprobs(model, [cue for cue, _ in asked], [value for _, value in asked], mean=True).reshape(len(cues), -1)
    written = model.generate([model.tokenizer.encode(cue) for _, _, cue in cues], answer_tokens)
    rows = []
    for (fact, number, _), own, continuations, place in zip(cues, scores, written, range(len(cues)), strict=True):
        answer = model.tokenizer.decode(continuations[0]).lstrip().split(stop, 1)[0].strip()
        rows.append(
            {
                "id": fact.id,
                "control": place >= len(facts) * len(fact.cues),
                "cue": number,
                "answer": answer,
                "right": is_right(answer, fact.golds, rule),
                "f1": token_f1(answer, fact.golds),
                "rank": 1.0 + float((own[1:] > own[0]).sum()) + 0.5 * float((own[1:] == own[0]).sum()),
                "candidates": len(own),
                "logprob": float(own[0]),
            }
        )
    table = pl.DataFrame(rows)
    parts = {name: table.filter(pl.col("control") == control) for name, control in (("facts", False), ("controls", True))}
    known, guessed = _worst(parts["facts"]), _worst(parts["controls"])
    difference = rate_difference((int(guessed.sum()), len(guessed)), (int(known.sum()), len(known)))
    summary = {**{name: _closed_book(part, seed) for name, part in parts.items()}, "difference": difference._asdict(), "rule": rule}
    provenance = {"model": model.describe(), "decoding": "greedy", "seed": seed, "environment": environment()}
    return Measurement("closed-book", table, dict(plain(summary)), provenance)


def _worst(rows: pl.DataFrame) -> np.ndarray:
    return rows.group_by("id", maintain_order=True).agg(pl.col("right").all())["right"].to_numpy()


def _closed_book(rows: pl.DataFrame, seed: int) -> dict[str, Any]:
    worst, source = _worst(rows), rows["id"].to_numpy()
    by_cue = [(int(cue), part["right"].to_numpy()) for (cue,), part in rows.group_by("cue", maintain_order=True)]
    figures = {
        "right": rows["right"].cast(pl.Float64),
        "f1": rows["f1"],
        "first": (rows["rank"] == 1).cast(pl.Float64),
        "reciprocal_rank": 1 / rows["rank"],
    }
    return {
        "n": len(worst),
        "worst_cue": wilson_interval(int(worst.sum()), len(worst))._asdict(),
        "by_cue": [{"cue": cue, **wilson_interval(int(right.sum()), len(right))._asdict()} for cue, right in by_cue],
        **{name: clustered_interval(values.to_numpy(), source, seed=seed)._asdict() for name, values in figures.items()},
        "chance_first": 1 / int(rows["candidates"][0]),
    }


def measure_privacy(
    model: LanguageModel, members: Sequence[PrefixSuffix], nonmembers: Sequence[PrefixSuffix], *, seed: int = 0
) -> dict[str, Measurement]:
    """The privacy of the weights: extraction of members against non-members, and membership inference (`palimpsest.audit`).

    Args:
        model: needs "logprobs".
        members, nonmembers: passages of the same kind; each is asked for at its whole prefix.
        seed: of the membership bootstrap.

    Returns:
        "extraction" of members, "extraction_control" of non-members, and "membership", each as its own measurement says.

    Raises:
        InputError, CapabilityError: as these measurements say.
    """
    shortest = min(sample.prefix_len for sample in (*members, *nonmembers))
    door = model if isinstance(model, ScoreCache) else ScoreCache(model)
    if "logprobs" in door.capabilities:
        door.expect([sample.ids for sample in (*members, *nonmembers)], moments="weights" in door.capabilities)
    return {
        "extraction": measure_extraction(door, members, context=shortest),
        "extraction_control": measure_extraction(door, nonmembers, context=shortest),
        "membership": measure_membership(door, members, nonmembers, seed=seed),
    }


def exposure(canary: float, references: Sequence[float]) -> float:
    """How exposed a canary is: log2 |R| − log2 rank among the references and itself, from log-probabilities; of equal ones it is the last.

    Carlini et al., *The Secret Sharer*, USENIX Security 2019, arXiv 1802.08232.

    Raises:
        InputError: no references, or NaN.

    Example:
        >>> exposure(-1.0, [-5.0] * 1023)
        10.0
    """
    values = np.asarray(references, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any() or math.isnan(canary):
        raise InputError(f"{values.size} references, or NaN among them.", "Give log-probabilities of texts that were never trained on.")
    rank = 1 + int((values >= canary).sum())
    return math.log2(values.size + 1) - math.log2(rank)
