"""Claim check of the long-context recipe: from 256 tokens to 1,024 by another rotary base and a little more training.

Xiong et al., NAACL 2024. The model of `short_context_lm` with base θ = 1,000, small enough to matter at this size, is continued at 1,024
tokens, 8,192 a step, on the same text with a tenth of first-sentence rows, in three arms of equal data: *plain*, *PI* (positions divided
by 4) and *ABF* (θ = 50,000); a fourth, *curriculum*, is ABF that trains on 256 tokens and switches to 1,024 after 80 % of the steps. Held
against thresholds, at 1,024 tokens:

* loss of held-out text at positions 768-1,023: ABF at most PI's, and at most plain's;
* first sentences said exactly: ABF at least 0.1 above plain;
* the curriculum's loss over all positions within 1.5 % of ABF's, with at least 30 % fewer operations, counted;
* the context law fitted to ABF's loss at 32 … 1,024 explains at least 95 % of its variance.

The specification's 400 steps are 200 here (its quick mode), so that four arms take a quarter of an hour on one core; learning rate 1e-3,
half the base model's, was taken from that and not searched. That the curriculum cannot save 30 % at this size is arithmetic: attention
over 1,024 tokens is a quarter of the operations of this model (causal, as computed), so that 80 % of the steps at 256 save 15 %.

    >>> run("smoke", 0).slug
    'long-context-recipe'
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from palimpsest.evaluation.context_bench import stream_nll
from palimpsest.evaluation.first_sentence import first_sentence, first_sentence_row
from palimpsest.evaluation.haystack import Haystack
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.short_context_lm import (
    SMOKE,
    ShortLMConfig,
    build,
    held_out_haystack,
    held_out_rows,
    short_texts,
    stream,
    trained,
)
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models.hf import HFModel
from palimpsest.stats import bootstrap_interval
from palimpsest.training.long_context import GrowingRows, LengthCurriculum, LongContextRecipe, extend, fit_context_law, flops, set_rotary

STATEMENT = "Raising the rotary base and training a little on long rows extends a short model better than plain training or interpolation."
VERSION = 1  # part of every hash: raise it when the same configuration would give other weights


@dataclass(frozen=True)
class Config:
    """What is continued, and what is asked.

    Attributes:
        lm: the short model; long: the length it is taken to.
        steps, rows: of the continued training, rows of the long length.
        lr, base, switch: learning rate; the raised base; share of the steps after which the curriculum goes over.
        probes: share of the training tokens that are rows of the probe; probe_tokens: of that source.
        texts: held-out rows; asked: first sentences.
    """

    lm: ShortLMConfig
    long: int = 1024
    steps: int = 200
    rows: int = 8
    lr: float = 1e-3
    base: float = 50_000.0
    switch: float = 0.8
    probes: float = 0.1
    probe_tokens: int = 1 << 19
    texts: int = 32
    asked: int = 40


CPU = Config(ShortLMConfig(theta=1000.0))
TRIAL = Config(replace(SMOKE, theta=1000.0, vocab_size=1024), long=128, steps=4, rows=2, texts=4, asked=2, probe_tokens=1 << 11)


def run(scale: str, seed: int) -> Claim:
    """Continues the short model in four ways, and compares them at the long length.

    Args:
        scale: "smoke": a model that knows nothing, four steps, only the operations are held against anything; "cpu".
        seed: of the model, of its continued training, and of what is asked.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = CPU if full else TRIAL
    config = replace(config, lm=replace(config.lm, seed=seed))
    models = {name: continued(config, recipe) for name, recipe in recipes(config).items()}
    tokenizer = models["ABF"].tokenizer
    texts = held_out_rows(tokenizer, config.texts, config.long)
    filler = held_out_haystack(tokenizer)
    edges = [0, *(config.long // share for share in (32, 16, 8, 4, 2)), 3 * config.long // 4]
    streams, said, rows = {}, {}, []
    for name, model in models.items():
        streams[name] = stream_nll(model, tokenizer, None, texts, chunk=config.long, edges=edges, batch=8)
        said[name] = first_sentence(model, tokenizer, None, filler, [config.lm.length, config.long], config.asked, chunk=config.long)
        rows += [{"kind": "loss", "arm": name, **bucket} for bucket in streams[name].summary["buckets"]]
        rows += [{"kind": "first sentence", "arm": name, **one} for one in said[name].summary["by_length"]]
    checks = compared(config, streams, said) + curriculum(config, streams)
    law = context_law(models["ABF"], texts, config.long)
    rows.append({"kind": "law", "arm": "ABF", **law})
    checks.append(Check("context law of ABF: variance explained", law["r_squared"], ">=", 0.95, unit="share"))
    if not full:
        checks = [check if "operations" in check.what else replace(check, threshold=None) for check in checks]
    notes = [
        f"Text: {short_texts().source}. {config.steps} steps of {config.rows * config.long:,} tokens (the specification's quick mode).",
        f"Context law of ABF: α = {law['alpha']:.3g}, β = {law['beta']:.3g}, γ = {law['gamma']:.3g}; intervals in the table.",
    ]
    series = [Series(name, measured.curves["stream"].series[0].points) for name, measured in streams.items()]
    curve = Curve("long-context-recipe", "Loss by position after continued training", "position", "nat per token", series, "log")
    return Claim("long-context-recipe", STATEMENT, checks, rows, seed, scale, notes, [curve])


def recipes(config: Config) -> dict[str, LongContextRecipe]:
    """The arms. All see the same number of tokens a step."""
    long = LengthCurriculum(((0.0, config.long),))
    grown = LengthCurriculum(((0.0, config.lm.length), (config.switch, config.long)))
    plain = LongContextRecipe(
        long,
        config.steps,
        config.rows * config.long,
        base=None,
        lr=config.lr,
        warmup=min(20, config.steps),
        mix=(("text", 1 - config.probes), ("first sentences", config.probes)),
        precision=config.lm.precision,
        seed=config.lm.seed,
    )
    raised = replace(plain, base=config.base)
    interpolated = replace(plain, factor=float(config.long // config.lm.length))
    return {"plain": plain, "PI": interpolated, "ABF": raised, "curriculum": replace(raised, curriculum=grown)}


def continued(config: Config, recipe: LongContextRecipe, cache: Path | None = None) -> HFModel:
    """The short model after a recipe, trained at first use on one thread, and kept."""
    base = trained(config.lm, cache)
    streams = {"text": stream(base.tokenizer, short_texts().train), "first sentences": probe_stream(config, base)}
    data = GrowingRows(streams, recipe)
    key = sha256_json([VERSION, base.fingerprint, recipe.training.hash, data.fingerprint])[:20]
    file = (cache or cache_dir("lab", "long-context")) / f"{key}.safetensors"
    model = build(config.lm)
    if file.is_file():
        set_rotary(model, base=recipe.base, factor=recipe.factor, length=recipe.target)
        model.load_state_dict(load_file(file))
    else:
        model.load_state_dict(base.model.state_dict())
        with one_thread():
            extend(model, recipe, streams)
        with atomic_path(file) as temporary:
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    return HFModel(model.eval(), base.tokenizer, name="continued LM")


def probe_stream(config: Config, base: HFModel) -> np.ndarray:
    """Rows of the probe one after the other, of lengths that fit a row of either length."""
    filler = Haystack(base.tokenizer, short_texts().train[:200], cycle=True)
    rng = np.random.default_rng((config.lm.seed, 71))
    rows: list[np.ndarray] = []
    while sum(map(len, rows)) < config.probe_tokens:
        rows.append(first_sentence_row(filler, int(rng.integers(config.lm.length // 2 + 20, config.lm.length + 1)), rng))
        rows.append(first_sentence_row(filler, int(rng.integers(config.long // 3, config.long // 2)), rng))
    return np.concatenate(rows)


def compared(config: Config, streams: dict[str, Measurement], said: dict[str, Measurement]) -> list[Check]:
    """ABF against the other two: loss at the end, first sentences."""
    last = {name: _losses(measured, 3 * config.long // 4) for name, measured in streams.items()}
    exact = {name: float(measured.summary["by_length"][-1]["exact"]) for name, measured in said.items()}
    checks = []
    for other in ("PI", "plain"):
        gain = bootstrap_interval(last["ABF"] - last[other])
        checks.append(Check(f"loss at the end: ABF less {other}", gain.estimate, "<=", 0.0, unit="nat"))
        checks.append(Check(f"… upper end of its interval, {other}", gain.high, unit="nat"))
    checks.append(Check("first sentences said: ABF less plain", exact["ABF"] - exact["plain"], ">=", 0.1, unit="share"))
    checks += [Check(f"first sentences said: {name}", share, unit="share") for name, share in exact.items()]
    return checks


def curriculum(config: Config, streams: dict[str, Measurement]) -> list[Check]:
    """What switching late costs and saves."""
    model, arms = build(config.lm), recipes(config)
    spent = {name: flops(model, arms[name]) for name in ("ABF", "curriculum")}
    loss = {}
    for name in ("ABF", "curriculum"):
        nll, tokens = (streams[name].table[column].to_numpy() for column in ("nll", "tokens"))
        loss[name] = float(nll @ tokens / tokens.sum())
    return [
        Check("curriculum: loss, by that of always long", loss["curriculum"] / loss["ABF"], "<=", 1.015, unit="ratio"),
        Check("curriculum: operations saved", 1 - spent["curriculum"] / spent["ABF"], ">=", 0.3, unit="share"),
    ]


def context_law(model: HFModel, texts: np.ndarray, longest: int) -> dict[str, Any]:
    """The law of the loss of a text's last tokens against the length of what is read: equal tokens at every length, at most 16 of them."""
    lengths = [longest >> shift for shift in range(5, -1, -1)]
    scored = min(16, lengths[0] // 2)
    losses = []
    for length in lengths:
        part = texts[:, -length:]
        with torch.no_grad():
            logits = torch.cat([model.model(torch.from_numpy(part[i : i + 8])).logits[:, -scored - 1 : -1] for i in range(0, len(part), 8)])
        target = torch.from_numpy(part[:, -scored:])
        losses.append(float(torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), target.flatten())))
    law = fit_context_law(lengths, losses)
    return {**vars(law), "lengths": lengths, "losses": losses}


def _losses(measured: Measurement, start: int) -> np.ndarray:
    return measured.table.filter(start=start).sort("row")["nll"].to_numpy()
