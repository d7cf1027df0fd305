"""Claim check of function tokens: a few frequent tokens meet most features, and most of the loss is on content after them.

Zhang, Lin and Li, 2025, arXiv 2510.08203, who look at Gemma-2-9B with public autoencoders of 2^20 features, and at models that are trained
for it. Here the laboratory's largest model reads novels (2,048 ids, three layers of width 192); autoencoders of 8 · 192
features are trained on its states at 40,000 tokens of held-out chapters. Checks:

* at every layer C(10) >= .5 and C(100) >= .8, and ten content tokens drawn by lot (20 occurrences or more) cover at most half of C(10);
* the mean loss is highest from function to content, whose share of the loss exceeds its share of the positions;
* in training, the loss of function targets has made 80 % of its fall earlier than that of content after function tokens.

Reported beside: as many occurrences of content tokens (is it more than frequency?), the untrained twin, features alive at checkpoints, and
what taking out the strongest feature does at function and at content positions.

    >>> claim = run("smoke", 0)
    >>> claim.passed
    True
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.function_activation import measure_function_tokens, text_rows
from palimpsest.audit.function_losses import growth, steps_to
from palimpsest.audit.function_steering import steering_effect
from palimpsest.audit.function_tokens import split_tokens, states_of
from palimpsest.audit.sae import SAEConfig, train_sae
from palimpsest.experiments.canaries import CanaryConfig, build_model, one_thread
from palimpsest.experiments.checkpoints import steps_at, train_checkpoints
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.lab_data import base_rows
from palimpsest.experiments.planted_texts import base_text, train_tokenizer
from palimpsest.measurement import Curve, Series
from palimpsest.models import HFModel

STATEMENT = (
    "A few very frequent tokens activate most of the features of a model, and the loss is dominated by predicting content after them."
)
SHARES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0)


@dataclass(frozen=True)
class Config:
    """What is trained and read.

    Attributes:
        lab: the model's training.
        size: of the model.
        layers: that are read.
        tokens: of held-out text.
        length: of a row.
        sae: the autoencoders'.
        shares: moments of the training.
        alive: at which of these autoencoders are trained.
        grown_tokens: of held-out text for them.
    """

    lab: CanaryConfig
    size: str = "l"
    layers: tuple[int, ...] = (1, 2, 3)
    tokens: int = 40_000
    length: int = 96
    sae: SAEConfig = field(default_factory=SAEConfig)
    shares: tuple[float, ...] = SHARES
    alive: tuple[float, ...] = (0.02, 0.08, 0.3, 1.0)
    grown_tokens: int = 20_000


CPU = Config(CanaryConfig(sizes=("l",), twins=("standard",), n_sequences=6000, vocab_size=2048))
SMOKE = Config(
    CanaryConfig(sizes=("s",), twins=("standard",), n_sequences=64, seq_len=32, warmup=4),
    size="s", layers=(1,), tokens=8000, length=64, sae=SAEConfig(expansion=2, k=4, epochs=2), shares=(0.5, 1.0), alive=(1.0,),
    grown_tokens=1000,
)  # fmt: skip


def run(scale: str, seed: int) -> Claim:
    """Trains the model (or takes it from the cache), reads its states and its losses.

    Args:
        scale: "smoke": a few steps of a small model, whose figures are held against nothing but the sum of the cells; "cpu".
        seed: of the model, the text and the autoencoders.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = CPU if full else SMOKE
    lab = replace(config.lab, seed=seed)
    with one_thread():
        found = explore(replace(config, lab=lab), seed)
    checks = verdict(found["measured"].summary, found["grown"])
    checks += reported(found)
    if not full:
        checks = [check if check.what.startswith("sum") else replace(check, threshold=None) for check in checks]
    rows = [{"kind": "layer", **row} for row in found["measured"].summary["layers"]]
    rows += [{"kind": "losses", **row} for row in found["measured"].summary["losses"]]
    rows += [{"kind": "checkpoint", **row} for row in found["grown"].to_dicts()]
    notes = [
        f"Held-out text: {found['measured'].summary['tokens']:,} tokens; the most frequent: {found['measured'].summary['most_frequent']}.",
        "The specification names SmolLM2-135M; the model that is read here is the laboratory's, as its training must be followed too.",
    ]
    curves = [*found["measured"].curves.values(), _curve(found["grown"])]
    return Claim("function-tokens", STATEMENT, checks, rows, seed, scale, notes, curves)


def explore(config: Config, seed: int) -> dict[str, Any]:
    """The measurement, the table of the checkpoints, and the effect of steering."""
    tokenizer = train_tokenizer(config.lab.vocab_size)
    moments = train_checkpoints(config.lab, base_rows(config.lab, tokenizer), tokenizer, config.size, config.shares)
    steps = steps_at(config.lab, config.shares)
    model = moments[1.0]
    paragraphs = base_text().held_out
    order = np.random.default_rng((seed, 97)).permutation(len(paragraphs))
    rows = text_rows(tokenizer, [paragraphs[i] for i in order], config.length, config.tokens)
    measured = measure_function_tokens(model, rows, config.layers, sae=config.sae, seed=seed)

    counts = np.bincount(np.concatenate([row[1:] for row in rows]), minlength=model.vocab_size)
    split = split_tokens(counts)
    start = HFModel(build_model(config.lab, config.size), tokenizer, name=f"{config.size} at 0 %")
    models = {0: start} | {steps[share]: found for share, found in moments.items()}
    short = rows[: int(np.searchsorted(np.cumsum([len(row) for row in rows]), config.grown_tokens)) + 1]
    losses = growth(models, rows, split)
    middle = config.layers[len(config.layers) // 2]
    alive = {
        steps[share]: int(
            growth({0: start, steps[share]: moments[share]}, short, split, layer=middle, sae=config.sae, seed=seed)["features"][-1]
        )
        for share in config.alive
    }
    grown = losses.with_columns(pl.col("step").replace_strict(alive, default=None, return_dtype=pl.Int64).alias("features"))
    steered = None
    if middle < len(model.model.model.layers):
        states, _, _ = states_of(model, short, middle)
        steered = steering_effect(model, train_sae(states, config.sae, seed), short, middle, split.function, seed=seed)
    return {"measured": measured, "grown": grown, "steered": steered}


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


def reported(found: dict[str, Any]) -> list[Check]:
    """What is held against nothing."""
    checks = []
    for row in found["measured"].summary["layers"]:
        name = f"{row['model']}, layer {row['layer']}"
        control = row["control"]
        checks.append(Check(f"features, function over content occurrences, {name}", control["estimate"], baseline=1.0, unit="ratio"))
        checks.append(Check(f"… its lower bound, {name}", control["low"], unit="ratio"))
        checks.append(
            Check(f"overlap of contexts, function, {name}", row["overlap_function"], baseline=row["overlap_content"], unit="share")
        )
        checks.append(Check(f"explained variance, {name}", row["explained_variance"], unit="share"))
    alive = found["grown"].drop_nulls("features").unique("step").sort("step")
    checks += [Check(f"features alive after {step} steps", count) for step, count in alive.select("step", "features").iter_rows()]
    if found["steered"]:
        steered = found["steered"]
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
