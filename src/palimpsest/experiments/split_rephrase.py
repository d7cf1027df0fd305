"""Claim check of split and rephrase: a model that is tested on facts it was told looks good, and collapses on others; copying helps.

Aharoni & Goldberg, ACL 2018, arXiv 1805.01035. Complex sentences of two or three facts of a made-up world (15 relations, 6 wordings), each
with three rewritings in simple sentences, are split 80/10/10 in two ways: at random, and so that no fact stands in two parts. On either
split a plain model and one that copies are trained, and write for the test sentences by beam search (5 hypotheses, summed log-probability,
as OpenNMT-py does). BLEU is the paper's: of each output against all rewritings, unsmoothed, averaged.

Where WikiSplit is in the folder `wiki-split` of $PALIMPSEST_DATA, both models are also trained on the shorter sentences of its tuning part
and asked about some of its test part: only reported. The paper has 20 epochs of SGD, and d = 128, 256 and 512; here d = 128, and Adam takes
few epochs. On seed 100 each model was given the learning rate and dropout that served it, the plain one on the random split and the copying
one on the leak-free split (`TRIED`); the chosen set-up was not run as a whole before seeds 0, 1 and 2 were.

    >>> claim = run("smoke", 0)
    >>> [check.ours for check in claim.checks if "leak-free split" in check.what][:1]
    [0.0]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus import FactWorld, Split, given_split, leak_free_split, leakage_report
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.seq2seq import CopySeq2Seq, PairBatches, Vocabulary, pair_loss
from palimpsest.seq2seq import split_rephrase as task
from palimpsest.training.loop import TrainConfig, Trainer

STATEMENT = (
    "Most target sentences of the old test set stand in its training set; on a split without shared facts a plain model collapses and "
    "a copy mechanism helps."
)
MODELS = {"plain": "none", "copy": "soft"}
LEARNING = {"plain": (8e-3, 0.1), "copy": (3e-3, 0.3)}  # learning rate and dropout
RATIOS = (80, 10, 10)
TRIED = (
    "Tried on seed 100, plain model on the random split, BLEU by mean / by summed log-probability: learning rate 3e-3, dropout 0.3, "
    "6 epochs of batches of 64: 11 / not run; 4e-3, 0.1, 5 epochs of batches of 32: 29 / not run; 8e-3, 0.1, 5 epochs: 65 / not run; "
    "8e-3, 0.1, 4 epochs: 66 / 63; 8e-3, 0.3, 4 epochs: 38 / 20, of 1.3 sentences where 2.5 are asked for.",
    "Tried on seed 100, copying model on the leak-free split: 3e-3, 0.3, 6 epochs of batches of 64: 91 / not run; 8e-3, 0.1, 4 epochs of "
    "batches of 32: 61 / 52, names learnt by heart stand in for what should be copied; 3e-3, 0.3, 3 epochs: 82 / 79.",
)


@dataclass(frozen=True)
class Config:
    """What is made and how it is learnt.

    Attributes:
        people: size of the world.
        examples: complex sentences, each with three rewritings.
        d, epochs, batch_size, warmup: of every model; the learning rate falls along a cosine to a twentieth.
        wiki_longest: tokens of the longest complex sentence of WikiSplit that is used; 0 leaves it out.
        wiki_epochs, wiki_asked: epochs, and test sentences.
        wiki_min_count: how often a word must come to be in the vocabulary there.
    """

    people: int = 60
    examples: int = 2000
    d: int = 128
    epochs: int = 4
    batch_size: int = 32
    warmup: int = 20
    wiki_longest: int = 25
    wiki_epochs: int = 6
    wiki_asked: int = 100
    wiki_min_count: int = 4


CPU, SMOKE = Config(), Config(people=20, examples=60, d=16, epochs=1, wiki_longest=0)


def run(scale: str, seed: int) -> Claim:
    """Makes the examples, splits them in both ways, trains four models and scores what they write.

    Args:
        scale: "smoke": 60 complex sentences and a few steps, only the leak-free split is held against anything; "cpu".
        seed: of the world, the sentences, the splits and the models.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = CPU if full else SMOKE
    world = FactWorld(seed, config.people)
    examples = task.compose(world, config.examples, seed=seed)
    names = task.entity_words_of(world)
    rows: list[dict[str, Any]] = []
    leaks: dict[str, list[float]] = {}
    with one_thread():
        for name, split in splits(examples, seed).items():
            leaks[name] = [row["share"] for row in _leakage(split) if row["what"] == "targets"]
            rows.append(_row(name, "source copy", split["test"], task.source_copy(split["test"]), names))
            for model in MODELS:
                rows.append(_row(name, model, split["test"], outputs(trained(split["train"], model, config, seed), split["test"]), names))
        rows += wiki_split(config, seed)
    checks = _claimed(rows, leaks)
    if not full:
        checks = [check if check.relation == "==" else replace(check, threshold=None) for check in checks]
    return Claim("split-rephrase", STATEMENT, checks, rows, seed, scale, _notes(config, rows))


def splits(examples: list[task.Example], seed: int) -> dict[str, Split]:
    """The same examples dealt out at random, and without a fact in two parts; train has a fact of every relation where it can."""

    def facts(one: task.Example) -> frozenset[tuple[str, str, str]]:
        return one.triples

    def relations(one: task.Example) -> set[str]:
        return {relation for _, relation, _ in one.triples}

    free = leak_free_split(examples, facts, relations, RATIOS, seed)
    parts = np.repeat(list(free.parts), [indices.size for indices in free.parts.values()])  # parts of the same sizes
    np.random.default_rng(seed).shuffle(parts)
    return {"random": given_split(examples, parts.tolist(), facts, relations), "leak-free": free}


def trained(examples: Sequence[task.Example], model: str, config: Config, seed: int, min_count: int = 1) -> CopySeq2Seq:
    """A model that has learnt from every pair of a complex sentence and one of its rewritings."""
    sources, targets = task.pairs(examples)
    lr, dropout = LEARNING[model]
    made = CopySeq2Seq(Vocabulary.of([*sources, *targets], min_count), config.d, copy=MODELS[model], dropout=dropout, seed=seed)
    data = PairBatches(made.vocab, sources, targets, config.batch_size, seed, copying=model != "plain")
    steps = config.epochs * len(data)
    how = TrainConfig(
        steps,
        lr=lr,
        warmup=min(config.warmup, steps),
        lr_floor=0.05,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        grad_clip=2.0,
        seed=seed,
        cpu=True,
    )
    Trainer(made, how, loss=pair_loss).fit(data)
    return made


def outputs(model: CopySeq2Seq, examples: Sequence[task.Example]) -> list[list[str]]:
    """What a model writes for each complex sentence."""
    return model.write([one.sentence for one in examples], beam=5, max_len=60, power=0.0)


def wiki_split(config: Config, seed: int) -> list[dict[str, Any]]:
    """The rows of WikiSplit; none where it is not to be had or not asked for."""
    folder = os.environ.get("PALIMPSEST_DATA")
    files = [Path(folder or "") / "wiki-split" / name for name in ("tune.tsv", "test.tsv")]
    if folder is None or not config.wiki_longest or not all(file.is_file() for file in files):
        return []
    learnt, asked = ([one for one in task.read_wiki_split(file) if len(one.sentence) <= config.wiki_longest] for file in files)
    asked = asked[: config.wiki_asked]
    rows = [_row("WikiSplit", "source copy", asked, task.source_copy(asked), None)]
    for model in MODELS:
        made = trained(learnt, model, replace(config, epochs=config.wiki_epochs), seed, config.wiki_min_count)
        rows.append(_row("WikiSplit", model, asked, outputs(made, asked), None))
    return rows


def _leakage(split: Split) -> list[dict[str, Any]]:
    overlap: list[dict[str, Any]] = leakage_report(split, lambda one: one.simple).summary["overlap"]
    return overlap


def _row(
    split: str, model: str, examples: list[task.Example], written: Sequence[Sequence[str]], names: frozenset[str] | None
) -> dict[str, Any]:
    return {"split": split, "model": model, "n": len(examples)} | task.measure_rewriting(examples, written, names).summary


def _claimed(rows: list[dict[str, Any]], leaks: dict[str, list[float]]) -> list[Check]:
    """The thresholds are the specification's."""
    cell = {(row["split"], row["model"]): row for row in rows}

    def bleu(split: str, model: str) -> float:
        return float(cell[split, model]["bleu"])

    plain, copy = bleu("leak-free", "plain"), bleu("leak-free", "copy")
    gaps = {model: bleu("random", model) - bleu("leak-free", model) for model in MODELS}
    invented = {model: cell["leak-free", model]["hallucination"] for model in MODELS}
    points = "BLEU points"
    return [
        Check("simple sentences of dev or test that train has, the lower, random split", min(leaks["random"]), ">=", 0.8, unit="share"),
        Check(
            "simple sentences of dev or test that train has, the higher, leak-free split", max(leaks["leak-free"]), "==", 0, unit="share"
        ),
        Check("plain model: BLEU on the random less on the leak-free split", gaps["plain"], ">=", 25, unit=points),
        Check("leak-free split: BLEU of the copying less of the plain model", copy - plain, ">=", 8, unit=points),
        Check("gap of the copying model between the splits as a share of the plain one's", _ratio(gaps), "<", 0.5, unit="share"),
        Check(
            "leak-free split: entities in outputs that sources have not, plain less copying",
            _less(invented["plain"], invented["copy"]),
            ">",
            0,
            unit="share",
        ),
        *(
            Check(f"BLEU, {row['split']}, {row['model']}", row["bleu"], baseline=cell[row["split"], "source copy"]["bleu"], unit=points)
            for row in rows
            if row["model"] in MODELS
        ),
    ]


def _ratio(gaps: dict[str, float]) -> float | None:
    """None where the plain model has no gap, of which there is no half."""
    return gaps["copy"] / gaps["plain"] if gaps["plain"] > 0 else None


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _notes(config: Config, rows: list[dict[str, Any]]) -> list[str]:
    wiki = any(row["split"] == "WikiSplit" for row in rows)
    return [
        f"{config.examples:,} complex sentences with three rewritings each; d = {config.d}, {config.epochs} epochs of batches of "
        f"{config.batch_size}; learning rate and dropout were chosen on seed 100, {LEARNING['plain']} for the plain model and "
        f"{LEARNING['copy']} for the copying one.",
        f"WikiSplit: sentences of up to {config.wiki_longest} tokens; {config.wiki_epochs} epochs of its tuning part, {config.wiki_asked} "
        f"test sentences, one rewriting each."
        if wiki
        else "The WikiSplit arm was left out: it needs wiki-split/tune.tsv and test.tsv in the folder PALIMPSEST_DATA.",
        *TRIED,
    ]
