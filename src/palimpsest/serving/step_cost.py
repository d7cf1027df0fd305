"""What one step of a batch costs: from a machine's data sheet, or fitted to times measured on this one.

A step feeds n tokens (the newest of every running sequence, and the prompts of those that just entered) and attends to K cached tokens.

* `Roofline`: max((weights + b K) / bandwidth, n f / peak) + overhead, with b bytes of cache a token and f = 2 · parameters operations a
  token: the cost by which Jin et al. (S³, NeurIPS 2023, arXiv 2306.06000) explain why generation does not use a GPU. `MACHINES`
  holds data sheets, `MODELS` sizes of models.
* `Measured`: t0 + t1 n + t2 K seconds, never negative, fitted to steps of a real model by `measure_step_cost`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache

from palimpsest.errors import InputError
from palimpsest.models.hf import HFModel


class StepCost(Protocol):
    """What the simulator asks: the time of steps, and bytes of cache a token."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of cache a token."""

    def seconds(self, fed: np.ndarray | int, cached: np.ndarray | int) -> np.ndarray:
        """Seconds of steps that feed `fed` tokens and attend to `cached` ones."""


@dataclass(frozen=True)
class Machine:
    """A data sheet: bytes of memory, bytes a second, operations a second (half precision)."""

    memory: float
    bandwidth: float
    peak: float


@dataclass(frozen=True)
class ModelSize:
    """Parameters, bytes a parameter, and bytes of cache a token (2 · layers · key and value heads · head dimension · bytes)."""

    parameters: float
    parameter_bytes: int
    bytes_per_token: int

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights."""
        return self.parameters * self.parameter_bytes


MACHINES = {
    "a100-40gb": Machine(40e9, 1.555e12, 312e12),
    "a100-80gb": Machine(80e9, 2.039e12, 312e12),
    "h100-80gb": Machine(80e9, 3.35e12, 989e12),
}
MODELS = {
    "gpt-j-6b": ModelSize(6.05e9, 2, 2 * 28 * 4096 * 2),
    "llama-13b": ModelSize(13.0e9, 2, 2 * 40 * 5120 * 2),
    "llama-33b": ModelSize(32.5e9, 2, 2 * 60 * 6656 * 2),
}


@dataclass(frozen=True)
class Roofline:
    """Steps of a model on a machine, by its data sheet.

    Attributes:
        machine, model: what runs where.
        overhead: seconds added to every step.

    Raises:
        InputError: the weights leave no memory for cache.

    Example:
        >>> cost = Roofline(MACHINES["a100-40gb"], MODELS["gpt-j-6b"])
        >>> round(1e3 * float(cost.seconds(1, 100)), 1)     # milliseconds: reading the weights
        7.8
    """

    machine: Machine
    model: ModelSize
    overhead: float = 0.0

    def __post_init__(self) -> None:
        if self.cache_bytes < self.model.bytes_per_token:
            raise InputError(
                f"{self.model.weight_bytes / 1e9:.1f} GB of weights leave no cache in {self.machine.memory / 1e9:.0f} GB.",
                "Take a larger machine or a smaller model.",
            )

    @property
    def bytes_per_token(self) -> int:
        """Bytes of cache a token."""
        return self.model.bytes_per_token

    @property
    def cache_bytes(self) -> int:
        """Memory that the weights leave."""
        return int(self.machine.memory - self.model.weight_bytes)

    def seconds(self, fed: np.ndarray | int, cached: np.ndarray | int) -> np.ndarray:
        """See `StepCost`."""
        read = (self.model.weight_bytes + self.model.bytes_per_token * np.asarray(cached, np.float64)) / self.machine.bandwidth
        computed = 2 * self.model.parameters * np.asarray(fed, np.float64) / self.machine.peak
        return np.maximum(read, computed) + self.overhead


@dataclass(frozen=True)
class Measured:
    """Steps as they were measured: seconds = base + per_fed · fed + per_cached · cached.

    Attributes:
        base, per_fed, per_cached: seconds.
        bytes_per_token: bytes of cache a token.
        error: mean relative error of the fit over the steps measured.
        steps: what was measured: (tokens fed, tokens attended to, seconds).
    """

    base: float
    per_fed: float
    per_cached: float
    bytes_per_token: int
    error: float = 0.0
    steps: tuple[tuple[int, int, float], ...] = ()

    def seconds(self, fed: np.ndarray | int, cached: np.ndarray | int) -> np.ndarray:
        """See `StepCost`."""
        return self.base + self.per_fed * np.asarray(fed, np.float64) + self.per_cached * np.asarray(cached, np.float64)

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain JSON types."""
        return asdict(self)


def fit_steps(steps: Sequence[tuple[int, int, float]], bytes_per_token: int) -> Measured:
    """Non-negative least squares over (tokens fed, tokens attended to, seconds), each step weighed by 1 / seconds.

    Raises:
        InputError: fewer than three steps, or a time that is not positive.

    Example:
        >>> fitted = fit_steps([(n, k, 1 + 0.5 * n + 0.01 * k) for n in (1, 4, 8) for k in (10, 200)], 100)
        >>> round(fitted.base, 6), round(fitted.per_fed, 6), round(fitted.per_cached, 6)
        (1.0, 0.5, 0.01)
    """
    from scipy.optimize import nnls

    table = np.asarray(steps, np.float64)
    if len(table) < 3 or not (table[:, 2] > 0).all():
        raise InputError(f"There are {len(table)} steps to fit, or one took no time.", "Measure at least three.")
    columns = np.stack([np.ones(len(table)), table[:, 0], table[:, 1]], 1)
    # relative errors: a step of one row matters to a long answer as much as one of many rows
    found, _ = nnls(columns / table[:, 2:], np.ones(len(table)))
    error = float(np.abs(columns @ found / table[:, 2] - 1).mean())
    base, per_fed, per_cached = (float(x) for x in found)
    return Measured(base, per_fed, per_cached, bytes_per_token, error, tuple((int(n), int(k), float(t)) for n, k, t in table))


@torch.inference_mode()
def measure_step_cost(
    model: HFModel,
    *,
    batches: Sequence[int] = (1, 2, 4, 8),
    lengths: Sequence[int] = (32, 128),
    prompts: Sequence[int] = (32, 96),
    repeats: int = 3,
    clock: Any = time.perf_counter,
) -> Measured:
    """Times real steps of a model on this machine and fits them.

    Decoding steps of every batch size and cached length, and readings of single prompts; the least of `repeats` is kept.

    Args:
        model: whose steps.
        batches: sequences that decode together.
        lengths: cached tokens of each of them.
        prompts: tokens of a prompt that is read alone.
        repeats: times that each step is taken.
        clock: seconds so far; `time.process_time` on a machine that is shared, with one thread.

    Raises:
        InputError: an empty list, or a length beyond the model's context.
    """
    longest = max([*lengths, *prompts], default=0) + 1
    if not batches or not lengths or not prompts or repeats < 1 or longest > model.context_length:
        raise InputError(
            f"Batches {tuple(batches)}, lengths {tuple(lengths)}, prompts {tuple(prompts)}, {repeats} repeats cannot be measured.",
            f"Give at least one of each, of at most {model.context_length - 1} tokens.",
        )
    steps: list[tuple[int, int, float]] = []
    for batch in batches:
        for length in lengths:
            ids = torch.arange(batch * length, device=model.device).view(batch, length) % model.vocab_size
            cache = DynamicCache()
            model.model(input_ids=ids, past_key_values=cache, use_cache=True)
            steps.append((batch, batch * length, _least(model, ids[:, :1], cache, repeats, clock)))
    for length in prompts:
        ids = torch.arange(length, device=model.device)[None] % model.vocab_size
        steps.append((length, length, _least(model, ids, DynamicCache(), repeats, clock)))
    return fit_steps(steps, cache_bytes_per_token(model))


@torch.inference_mode()
def cache_bytes_per_token(model: HFModel) -> int:
    """Bytes of keys and values that a token takes in all layers."""
    cache = DynamicCache()
    model.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.keys is not None)


def _least(model: HFModel, ids: torch.Tensor, cache: DynamicCache, repeats: int, clock: Any) -> float:
    """The least time of a step; the cache is as long before each."""
    found = []
    for _ in range(repeats + 1):  # the first warms up
        before = cache.get_seq_length()
        began = clock()
        int(model.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        found.append(clock() - began)
        cache.crop(before - cache.get_seq_length())
    return min(found[1:])


def largest_batch(cost: StepCost, latency: float, cached: int, limit: int = 4096) -> int:
    """The most sequences of `cached` tokens each that decode together within `latency` seconds a step.

    Raises:
        InputError: not even one does.
    """
    sizes = np.arange(1, limit + 1)
    fits = sizes[cost.seconds(sizes, sizes * cached) <= latency]
    if not len(fits):
        raise InputError(
            f"A step of one sequence takes {float(cost.seconds(1, cached)):.3g} s, {latency:g} s are allowed.", "Allow more, or cache less."
        )
    return int(fits[-1])
