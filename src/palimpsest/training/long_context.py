"""A recipe that makes a short model a long one: another rotary base, and a little more training at a growing length.

Xiong et al., *Effective Long-Context Scaling of Foundation Models*, NAACL 2024, arXiv 2309.16039. In parts:

* **ABF**: the base of the rotary frequencies goes from 10,000 to 500,000, inv_freq_i = base^(−2i/d), all else equal: attention to distant
  tokens decays less. Compared with PI, positions divided by s (Chen et al., 2023, arXiv 2306.15595). Both by `set_rotary`;
* **continued training** at the target length on the same number of tokens a step (`GrowingRows`: half the rows where rows are twice as
  long), AdamW, cosine; a **mix** of sources by weight, long documents not being what matters most but good ones;
* a **curriculum** of lengths: begin short, switch late. `flops` counts what that saves, 6 N + 6 L d T a token (backward included, causal);
* the **context law** L(c) = (α / c)^β + γ of validation loss against context (`fit_context_law`);
* **self-instruction**: questions and answers that the model writes about pieces of long documents and that it answers alike when asked
  again; the loss is taken on the long prompt too (`long_instructions`).

Departures: rows are cut from running text, so documents in one row see each other; the paper's sizes (400 B tokens, 32,768 a row, 2,000
warm-up steps, 2e-5) are those of a 7 B model and no defaults here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import optimize, stats
from transformers import PreTrainedModel

from palimpsest.errors import InputError, UnsupportedModelError
from palimpsest.files import sha256_json
from palimpsest.training.batch import PackedBatch
from palimpsest.training.loop import TrainConfig, Trainer


@dataclass(frozen=True)
class LengthCurriculum:
    """Which length is trained on when.

    Args:
        stages: (share of the steps at which it begins, tokens), the first at 0, both ascending.

    Raises:
        InputError: no stage, a first one that begins late, or a share or length that does not ascend.

    Example:
        >>> LengthCurriculum(((0.0, 256), (0.8, 1024))).at(79, 100), LengthCurriculum(((0.0, 256), (0.8, 1024))).at(80, 100)
        (256, 1024)
    """

    stages: tuple[tuple[float, int], ...]

    def __post_init__(self) -> None:
        shares, lengths = [share for share, _ in self.stages], [length for _, length in self.stages]
        rising = all(a < b for values in (shares, lengths) for a, b in pairwise(values))
        if not self.stages or shares[0] != 0 or shares[-1] >= 1 or lengths[0] < 2 or not rising:
            raise InputError(f"The curriculum is {self.stages}.", "Begin at share 0, and let shares (below 1) and lengths (from 2) rise.")

    def at(self, step: int, steps: int) -> int:
        """The length of step `step` = 0, 1, … of `steps`."""
        return max(length for share, length in self.stages if step >= round(share * steps))


@dataclass(frozen=True)
class LongContextRecipe:
    """How a model is continued.

    Attributes:
        curriculum: lengths; the last is the target.
        steps, step_tokens: of the training; every step has so many tokens, whatever its length.
        base: of the rotary frequencies, None keeps the model's.
        factor: positions are divided by it (PI); 1 keeps them.
        lr, warmup: of the training.
        mix: (source, weight); None takes all sources by their size.
        precision, seed: of the training.

    Raises:
        InputError: tokens a step that a length does not divide, or a factor below 1.
    """

    curriculum: LengthCurriculum
    steps: int
    step_tokens: int
    base: float | None = 500_000.0
    factor: float = 1.0
    lr: float = 2e-5
    warmup: int = 0
    mix: tuple[tuple[str, float], ...] | None = None
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for _, length in self.curriculum.stages:
            if self.step_tokens < length or self.step_tokens % length:
                raise InputError(f"A step of {self.step_tokens} tokens has no whole rows of {length}.", "Give a multiple of every length.")
        if not self.factor >= 1:
            raise InputError(f"factor is {self.factor}.", "Give at least 1, the target length by the old one.")

    @property
    def target(self) -> int:
        """The length at the end."""
        return self.curriculum.stages[-1][1]

    @property
    def training(self) -> TrainConfig:
        """For `training.loop`."""
        return TrainConfig(self.steps, lr=self.lr, warmup=self.warmup, precision=self.precision, seed=self.seed, cpu=True)


def set_rotary(model: PreTrainedModel, *, base: float | None = None, factor: float = 1.0, length: int | None = None) -> None:
    """Changes the rotary positions of a model for good, in its configuration and in place; what `save_pretrained` writes has them too.

    Args:
        model: with plain rotary positions.
        base: of the frequencies, base^(−2i/d); None keeps the model's.
        factor: of position interpolation; 1 for none.
        length: the longest text from now on.

    Raises:
        UnsupportedModelError: positions that are not rotary, or already scaled.
        InputError: a base of at most 1 or a factor below 1.
    """
    decoder: Any = model.get_decoder()
    config = decoder.config
    rotary, own = getattr(decoder, "rotary_emb", None), dict(getattr(config, "rope_parameters", None) or {})
    if rotary is None or own.get("rope_type") != "default":
        raise UnsupportedModelError(
            f"{type(model).__name__} has positions of the kind {own.get('rope_type')!r}.", "Give a model with plain rotary positions."
        )
    if (base is not None and not base > 1) or not factor >= 1:
        raise InputError(f"base is {base}, factor {factor}.", "Give a base above 1 and a factor of at least 1.")
    if base is not None:
        own["rope_theta"] = float(base)
    if factor > 1:
        own |= {"rope_type": "linear", "factor": float(factor)}
    config.rope_parameters = own
    if length is not None:
        config.max_position_embeddings = length
    decoder.rotary_emb = type(rotary)(config).to(rotary.inv_freq.device)


@dataclass(frozen=True)
class GrowingRows:
    """Batch k of a recipe: rows as long as the curriculum says, cut at random from streams of text; see `training.batch.BatchSource`.

    Args:
        streams: source → ids, (tokens,).
        recipe: lengths, tokens a step, mix and seed.

    Raises:
        InputError: no source, one that the mix does not name or names in vain, a weight of 0 in all, or a text shorter than a row.
    """

    streams: Mapping[str, np.ndarray]
    recipe: LongContextRecipe

    def __post_init__(self) -> None:
        weights = dict(self.recipe.mix or {name: len(ids) for name, ids in self.streams.items()})
        if not self.streams or set(weights) != set(self.streams) or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise InputError(
                f"The sources are {sorted(self.streams)}, the mix {weights}.", "Give every source a weight, not all of them 0."
            )
        short = [name for name, ids in self.streams.items() if len(ids) < self.recipe.target]
        if short:
            raise InputError(f"{short[0]} has fewer than {self.recipe.target} tokens.", "Give longer texts.")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the batches."""
        texts = {name: sha256_json(ids.tolist()) for name, ids in self.streams.items()}
        return sha256_json([texts, repr(self.recipe)])

    def __getitem__(self, k: int) -> PackedBatch:
        recipe, rng = self.recipe, np.random.default_rng((self.recipe.seed, 70, k))
        length = recipe.curriculum.at(min(k, recipe.steps - 1), recipe.steps)
        names = sorted(self.streams)
        weights = np.array([dict(recipe.mix)[name] if recipe.mix else len(self.streams[name]) for name in names], float)
        chosen = rng.choice(len(names), recipe.step_tokens // length, p=weights / weights.sum())
        rows = []
        for source in chosen.tolist():
            ids = self.streams[names[source]]
            start = int(rng.integers(len(ids) - length + 1))
            rows.append(ids[start : start + length])
        return PackedBatch.from_rows(np.stack(rows))


def extend(
    model: PreTrainedModel, recipe: LongContextRecipe, streams: Mapping[str, np.ndarray], progress: Any = None
) -> list[dict[str, Any]]:
    """Carries a recipe out: rotary positions first, then training; the model is changed in place.

    Returns:
        What `Trainer.fit` returns.
    """
    data = GrowingRows(streams, recipe)
    set_rotary(model, base=recipe.base, factor=recipe.factor, length=recipe.target)
    return Trainer(model, recipe.training, progress=progress).fit(data)


def flops(model: PreTrainedModel, recipe: LongContextRecipe) -> float:
    """Floating-point operations of a recipe: 6 a parameter and token, and 6 L d T a token for causal attention over T of them.

    The input embedding is looked up, not multiplied, and left out where it is not tied to the head.
    """
    config = model.get_decoder().config
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    parameters = sum(p.numel() for p in model.parameters())
    if head is not None and head.weight is not embedding.weight:
        parameters -= embedding.weight.numel()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    lengths = [recipe.curriculum.at(step, recipe.steps) for step in range(recipe.steps)]
    return float(sum(recipe.step_tokens * (6 * parameters + 6 * config.num_hidden_layers * width * length) for length in lengths))


@dataclass(frozen=True)
class ContextLaw:
    """L(c) = (α / c)^β + γ.

    Attributes:
        alpha, beta, gamma: of the law; intervals: 95 % of each, from the fit's covariance.
        r_squared: share of the variance of the losses that it explains.
    """

    alpha: float
    beta: float
    gamma: float
    intervals: dict[str, tuple[float, float]]
    r_squared: float

    def loss(self, length: float) -> float:
        """The loss at a context."""
        return (self.alpha / length) ** self.beta + self.gamma


def fit_context_law(lengths: Sequence[float], losses: Sequence[float]) -> ContextLaw:
    """Fits the context law by least squares, in log α, log β and γ.

    Raises:
        InputError: fewer than four lengths, lengths that are not positive, losses that are not finite, or no law that could be found.

    Example:
        >>> law = fit_context_law([32, 64, 128, 256, 512], [(20 / c) ** 0.5 + 2 for c in (32, 64, 128, 256, 512)])
        >>> round(law.alpha, 2), round(law.beta, 3), round(law.gamma, 3)
        (20.0, 0.5, 2.0)
    """
    x, y = np.asarray(lengths, float), np.asarray(losses, float)
    if len(x) != len(y) or len(set(x.tolist())) < 4 or not (x > 0).all() or not np.isfinite(y).all():
        raise InputError(f"{len(x)} lengths and {len(y)} losses.", "Give a finite loss for each of at least four positive lengths.")
    if np.ptp(y) == 0:
        raise InputError("All losses are equal.", "Measure at lengths where context matters.")

    def residual(p: np.ndarray) -> np.ndarray:
        return np.exp(np.exp(p[1]) * (p[0] - np.log(x))) + p[2] - y

    best: Any = None
    for beta in (0.2, 0.5, 1.0, 2.0):
        gamma = float(y.min() - 0.1 * np.ptp(y))
        start = [math.log(x.min()) + math.log(max(y.max() - gamma, 1e-9)) / beta, math.log(beta), gamma]
        found = optimize.least_squares(residual, start, x_scale="jac", max_nfev=5000)
        if best is None or found.cost < best.cost:
            best = found
    spread = len(x) - 3
    variance = 2 * best.cost / spread
    covariance = variance * np.linalg.pinv(best.jac.T @ best.jac)
    half = stats.t.ppf(0.975, spread) * np.sqrt(np.clip(np.diag(covariance), 0, None))
    low, high = best.x - half, best.x + half
    with np.errstate(over="ignore"):
        intervals = {
            "alpha": (float(np.exp(low[0])), float(np.exp(high[0]))),
            "beta": (float(np.exp(low[1])), float(np.exp(high[1]))),
            "gamma": (float(low[2]), float(high[2])),
        }
    r_squared = 1 - 2 * best.cost / float(((y - y.mean()) ** 2).sum())
    return ContextLaw(float(np.exp(best.x[0])), float(np.exp(best.x[1])), float(best.x[2]), intervals, float(r_squared))
