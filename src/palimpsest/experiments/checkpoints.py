"""A model of the laboratory at several moments of one training run.

`train_suite` keeps the end of a run alone. Forecasts compare the end with what stood there before it, on the same data, in the same
order, from the same weights: the run is one, and its parameters are written down after given shares of its steps. Kept in the cache
like a suite, under the hash of everything that decides them; the state after the last step is the model that `train_suite` trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from palimpsest.errors import IndexCorruptError, InputError
from palimpsest.experiments.canaries import VERSION, CanaryConfig, build_model, one_thread
from palimpsest.experiments.lab_data import SIZES, Stream
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.models import HFModel
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.batch import RowBatches
from palimpsest.training.loop import Callback, Trainer


class KeepParameters(Callback):
    """Writes the parameters of the model after some of the steps.

    Args:
        places: step -> file (.safetensors).
    """

    def __init__(self, places: dict[int, Path]) -> None:
        self.places = places

    def after_step(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Writes, where this step is one of them."""
        place = self.places.get(trainer.step)
        if place is not None:
            # tied tensors are one storage, which safetensors refuses to write twice: parameters() names each once
            tensors = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
            with atomic_path(place) as file:
                save_file(tensors, file)


def steps_at(config: CanaryConfig, shares: Sequence[float]) -> dict[float, int]:
    """The step after which each share of the run is over.

    Raises:
        InputError: a share outside (0, 1], or two that end with the same step.
    """
    steps = {share: round(share * config.steps) for share in shares}
    if not steps or len(set(steps.values())) < len(steps) or not all(0 < share <= 1 and steps[share] for share in steps):
        raise InputError(f"The shares {list(shares)} of {config.steps} steps give no moments.", "Give different shares in (0, 1].")
    return steps


def train_checkpoints(
    config: CanaryConfig, rows: np.ndarray, tokenizer: Tokenizer, size: str, shares: Sequence[float] = (1.0,), *, cache: Path | None = None
) -> dict[float, HFModel]:
    """Trains one model on given rows and opens it at several moments, or takes them from the cache.

    Args:
        config: how to train; its `n_sequences` must be the number of rows.
        rows: (n_sequences, seq_len) ids in the order of training, `stream(config).rows["perturbed"]` say.
        tokenizer: of the ids.
        size: "s", "m" or "l".
        shares: of the run, in (0, 1]; 1 is the finished model.
        cache: where parameters are kept; by default `cache_dir("lab", "checkpoints")`.

    Returns:
        Share -> model, named "l at 50 %"; the finished one "l".

    Raises:
        InputError: shares that give no moments, or another number of rows than the configuration says.
        IndexCorruptError: a cached file that does not hold this model's parameters.
        StorageError: the cache cannot be written.

    Example:
        >>> early = train_checkpoints(config, data.rows["perturbed"], data.tokenizer, "l", (0.25, 1.0))[0.25]   # doctest: +SKIP
    """
    if rows.shape != (config.n_sequences, config.seq_len):
        raise InputError(f"The rows are {rows.shape}.", f"The configuration asks for {(config.n_sequences, config.seq_len)}.")
    batches = RowBatches(rows, config.batch_size)
    key = {"version": VERSION, "size": SIZES[size], "train": config.training(size).hash, "data": batches.fingerprint}
    folder = (cache or cache_dir("lab", "checkpoints")) / sha256_json(key)[:20]
    steps = steps_at(config, shares)
    places = {step: folder / f"step-{step:08d}.safetensors" for step in steps.values()}
    if not all(place.is_file() for place in places.values()):
        with one_thread():
            Trainer(build_model(config, size), config.training(size), [KeepParameters(places)]).fit(batches)
    return {
        share: HFModel(_opened(config, size, places[step]), tokenizer, name=size if share == 1 else f"{size} at {100 * share:.0f} %")
        for share, step in steps.items()
    }


def _opened(config: CanaryConfig, size: str, place: Path) -> LlamaForCausalLM:
    """The model of `size` with the parameters of a file that `KeepParameters` wrote."""
    model = build_model(config, size).eval()
    try:
        tensors = load_file(place)
    except (SafetensorError, OSError) as error:
        raise IndexCorruptError(f"{place} cannot be read: {error}.", "Delete its folder: the model is trained again.") from error
    wanted = dict(model.named_parameters())
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: parameter.shape for name, parameter in wanted.items()}:
        raise IndexCorruptError(f"{place} holds other parameters than a model of size {size} has.", "Delete its folder.")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    return model


def seen_by(data: Stream, config: CanaryConfig, share: float) -> dict[str, int]:
    """How many copies of every planted text the run has read when `share` of its steps are over: text's id -> copies."""
    (step,) = steps_at(config, (share,)).values()
    seen = data.planted.insertions.filter(data.planted.insertions["step"] < step)["id"].value_counts()
    counts = dict(seen.iter_rows())
    return {name: counts.get(name, 0) for name in data.ledger["id"]}
