"""Claim check of function tokens: a few frequent tokens meet most features, and most of the loss is on content after them.

Zhang, Lin and Li, 2025, arXiv 2510.08203, who look at Gemma-2-9B with public autoencoders of 2^20 features, and at models that are trained
for it. Here autoencoders of 4,608 features are trained on the states of SmolLM2-135M after its layers 8, 15 and 24 at 40,000 tokens, half
of the Bible ($PALIMPSEST_DATA/kjv-bible; without it, of the laboratory's novels) and half of Python's documentation; and the laboratory's
largest model is followed through its training. Checks:

* at every layer C(10) >= .5 and C(100) >= .8, and ten content tokens drawn by lot (20 occurrences or more) cover at most half of C(10);
* the mean loss is highest from function to content, whose share of the loss exceeds its share of the positions;
* in training, the loss of function targets has made 80 % of its fall earlier than that of content after function tokens.

The share of ten random content tokens fails: they cover .60 to .62 of C(10) at the deepest layer (in the laboratory's model, with 1,536
features, .69 to .70). At equal numbers of occurrences function tokens have no more features than content tokens, and the untrained twin's
C(10) is as high: what the coverage shows is frequency.

Reported beside: as many occurrences of content tokens (is it more than frequency?), the untrained twin, features alive at checkpoints, and
what taking out the strongest feature does at function and at content positions. Minutes with a GPU, half an hour without one.

    >>> claim = run("smoke", 0)
    >>> claim.passed
    True
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.function_activation import measure_function_tokens, text_rows
from palimpsest.audit.function_losses import growth, steps_to
from palimpsest.audit.function_steering import steering_effect
from palimpsest.audit.function_tokens import TokenSplit, split_tokens, states_of
from palimpsest.audit.sae import SAEConfig, train_sae
from palimpsest.experiments.canaries import CanaryConfig, build_model, one_thread
from palimpsest.experiments.checkpoints import steps_at, train_checkpoints
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.lab_data import base_rows
from palimpsest.experiments.planted_texts import base_text, train_tokenizer
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models import HFModel, load_model

STATEMENT = (
    "A few very frequent tokens activate most of the features of a model, and the loss is dominated by predicting content after them."
)
REAL = "smollm2-135m"
SHARES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0)


@dataclass(frozen=True)
class Config:
    """What is trained and read.

    Attributes:
        lab: the training of the model that is followed.
        size: of it.
        shares: moments of the training.
        alive: at which of these an autoencoder of its middle layer is trained.
        grown_tokens: of held-out text for the checkpoints.
        model: whose features are counted; None: the followed one's.
        layers: that are read.
        tokens, length: of text, and of a row.
        sae: the autoencoders'.
    """

    lab: CanaryConfig
    size: str = "l"
    shares: tuple[float, ...] = SHARES
    alive: tuple[float, ...] = (0.02, 0.08, 0.3, 1.0)
    grown_tokens: int = 20_000
    model: str | None = REAL
    layers: tuple[int, ...] = (8, 15, 24)
    tokens: int = 40_000
    length: int = 128
    sae: SAEConfig = field(default_factory=SAEConfig)


CPU = Config(CanaryConfig(sizes=("l",), twins=("standard",), n_sequences=6000, vocab_size=2048))
SMOKE = Config(
    CanaryConfig(sizes=("s",), twins=("standard",), n_sequences=64, seq_len=32, warmup=4),
    size="s", shares=(0.5, 1.0), alive=(1.0,), grown_tokens=1000, model=None, layers=(1,), tokens=8000, length=64,
    sae=SAEConfig(expansion=2, k=4, epochs=2),
)  # fmt: skip


def run(scale: str, seed: int) -> Claim:
    """Reads the states of one model and follows the training of another (or takes it from the cache).

    Args:
        scale: "smoke": a few steps of a small model, whose figures are held against nothing but the sum of the cells; "cpu".
        seed: of the text, the autoencoders and the followed model.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
        ModelNotFoundError: SmolLM2 cannot be had.
    """
    full = decides(scale)
    config = CPU if full else SMOKE
    config = replace(config, lab=replace(config.lab, seed=seed))
    with one_thread():
        moments, grown = followed(config, seed)
        door = moments[1.0] if config.model is None else load_model(config.model)
        assert isinstance(door, HFModel)
        source, texts = documents(seed)
        rows = [row for part in texts for row in text_rows(door.tokenizer, part, config.length, config.tokens // len(texts))]
        measured = measure_function_tokens(door, rows, config.layers, sae=config.sae, seed=seed)
        steered = _steered(door, rows, config, seed)
    checks = verdict(measured.summary, grown) + reported(measured, grown, steered)
    if not full:
        checks = [check if check.what.startswith("sum") else replace(check, threshold=None) for check in checks]
    found = [{"kind": "layer", **row} for row in measured.summary["layers"]]
    found += [{"kind": "losses", **row} for row in measured.summary["losses"]]
    found += [{"kind": "losses by list", **row} for row in measured.summary["losses_by_list"]]
    found += [{"kind": "checkpoint", **row} for row in grown.to_dicts()]
    notes = [
        f"{measured.summary['tokens']:,} tokens of {source}; the most frequent: {measured.summary['most_frequent']}.",
        f"Of the occurrences of function tokens, {measured.summary['agreement_with_list']:.0%} are of tokens on the fixed list.",
        f"Steering: {steered}.",
    ]
    curves = [*measured.curves.values(), _curve(grown)]
    return Claim("function-tokens", STATEMENT, checks, found, seed, scale, notes, curves)


def documents(seed: int) -> tuple[str, tuple[list[str], list[str]]]:
    """What the texts are, and prose and documentation, each in an order drawn by the seed."""
    file = Path(os.environ.get("PALIMPSEST_DATA") or "") / "kjv-bible" / "kjv.tsv"
    source, prose = "the laboratory's novels and Python's documentation", base_text().held_out
    if os.environ.get("PALIMPSEST_DATA") and file.is_file():
        chapters: dict[tuple[str, str], list[str]] = {}
        with open(file, encoding="utf-8", newline="") as stream:
            for book, chapter, _, verse in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
                chapters.setdefault((book, chapter), []).append(verse)
        source, prose = "the Bible and Python's documentation", [" ".join(verses) for verses in chapters.values()]
    rng = np.random.default_rng((seed, 97))
    help_texts = [topics.topics[name] for name in sorted(topics.topics)]
    first, second = ([part[i] for i in rng.permutation(len(part)).tolist()] for part in (prose, help_texts))
    return source, (first, second)


def followed(config: Config, seed: int) -> tuple[dict[float, HFModel], pl.DataFrame]:
    """The laboratory's model at its moments, and the table of its losses on held-out chapters."""
    tokenizer = train_tokenizer(config.lab.vocab_size)
    moments = train_checkpoints(config.lab, base_rows(config.lab, tokenizer), tokenizer, config.size, config.shares)
    steps = steps_at(config.lab, config.shares)
    paragraphs = base_text().held_out
    order = np.random.default_rng((seed, 98)).permutation(len(paragraphs))
    rows = text_rows(tokenizer, [paragraphs[i] for i in order], config.lab.seq_len, config.grown_tokens)
    split = _split(rows, moments[1.0].vocab_size)
    start = HFModel(build_model(config.lab, config.size), tokenizer, name=f"{config.size} at 0 %")
    grown = growth({0: start} | {steps[share]: found for share, found in moments.items()}, rows, split)
    middle = max(1, int(start.model.config.num_hidden_layers) // 2)
    alive = {}
    for share in config.alive:
        states, _, _ = states_of(moments[share], rows, middle)
        alive[steps[share]] = len(np.unique(train_sae(states, config.sae, seed).active(states)[1]))
    counted = pl.col("step").replace_strict(alive, default=None, return_dtype=pl.Int64).alias("features")
    return moments, grown.with_columns(counted)


def _split(rows: list[np.ndarray], vocabulary: int) -> TokenSplit:
    return split_tokens(np.bincount(np.concatenate([row[1:] for row in rows]), minlength=vocabulary))


def _steered(door: HFModel, rows: list[np.ndarray], config: Config, seed: int) -> dict[str, Any]:
    """The effect of the strongest feature of the middle one of the layers, by an autoencoder of its own."""
    layer = config.layers[len(config.layers) // 2]
    states, _, _ = states_of(door, rows, layer)
    return steering_effect(door, train_sae(states, config.sae, seed), rows, layer, _split(rows, door.vocab_size).function, seed=seed)


def verdict(summary: dict[str, Any], grown: pl.DataFrame) -> list[Check]:
    """What is held against the thresholds."""
    trained = [row for row in summary["layers"] if row["model"] == "trained"]
    fresh = [row for row in summary["layers"] if row["model"] == "untrained"]
    checks = [
        Check(
            f"least C({k}) of a layer",
            min(row[f"coverage_{k}"] for row in trained),
            ">=",
            least,
            min(row[f"coverage_{k}"] for row in fresh),
        )
        for k, least in ((10, 0.5), (100, 0.8))
    ]
    lots = [row["coverage_random_10"] / row["coverage_10"] for row in trained if row["coverage_random_10"] is not None]
    drawn = max(lots) if len(lots) == len(trained) else None
    early, late = (steps_to(*_falls(grown, cells)) for cells in (("f→f", "c→f"), ("f→c",)))
    total = sum(row["n"] * row["loss"] for row in summary["losses"] if row["n"])
    shares = sum(row["loss_share"] for row in summary["losses"])
    return [
        *checks,
        Check("ten random content tokens, as a share of C(10)", drawn, "<=", 0.5, unit="share"),
        Check("the highest mean loss is of f→c", float(summary["highest"] == "f→c"), "==", 1.0),
        Check("f→c: share of the loss less share of the positions", summary["excess"], ">", 0.0, unit="share"),
        Check("steps to 80 % of the fall, function targets", early, "<", late if late is not None else 0.0, baseline=late, unit="steps"),
        Check("sum of the cells' shares of the loss, less 1", abs(shares - 1) if total > 0 else None, "<=", 1e-6),
    ]


def _falls(grown: pl.DataFrame, cells: tuple[str, ...]) -> tuple[list[int], list[float]]:
    """Steps, and the mean loss of some cells together."""
    part = grown.filter(pl.col("cell").is_in(cells) & (pl.col("n") > 0)).group_by("step").agg(
        ((pl.col("n") * pl.col("loss")).sum() / pl.col("n").sum()).alias("loss")
    ).sort("step")  # fmt: skip
    return part["step"].to_list(), part["loss"].to_list()


def reported(measured: Measurement, grown: pl.DataFrame, steered: dict[str, Any]) -> list[Check]:
    """What is held against nothing."""
    checks = []
    for row in measured.summary["layers"]:
        name = f"{row['model']}, layer {row['layer']}"
        control = row["control"]
        checks.append(Check(f"features, function over content occurrences, {name}", control["estimate"], baseline=1.0, unit="ratio"))
        checks.append(Check(f"… its lower bound, {name}", control["low"], unit="ratio"))
        checks.append(
            Check(f"overlap of contexts, function, {name}", row["overlap_function"], baseline=row["overlap_content"], unit="share")
        )
        checks.append(Check(f"explained variance, {name}", row["explained_variance"], unit="share"))
    alive = grown.drop_nulls("features").unique("step").sort("step")
    checks += [Check(f"features alive after {step} steps", count) for step, count in alive.select("step", "features").iter_rows()]
    checks.append(
        Check("KL without the strongest feature, function positions", steered["function"], baseline=steered["content"], unit="nat")
    )
    return checks


def _curve(grown: pl.DataFrame) -> Curve:
    names = {"→ function": ("f→f", "c→f"), "function → content": ("f→c",), "content → content": ("c→c",)}
    series = []
    for name, cells in names.items():
        steps, losses = _falls(grown, cells)
        series.append(Series(name, [{"x": step, "y": loss} for step, loss in zip(steps, losses, strict=True)]))
    return Curve("function-tokens-losses", "Function targets are learnt first", "steps", "mean loss (nat)", series, x_scale="symlog")
