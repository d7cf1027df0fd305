"""A sparse autoencoder of hidden states: each is written as a sum of k out of F directions, its active features.

TopK with an auxiliary loss (Gao et al., *Scaling and evaluating sparse autoencoders*, 2024, arXiv 2406.04093). For a state x, centred on
the mean and scaled so that the mean norm is √d,

    z = TopK_k(W_e x + b),     x̂ = z W_d,     loss = ‖x − x̂‖² / ‖x‖² + α ‖e − ê‖² / ‖e‖²,   e = x − x̂,

where ê is what the best d/2 (k at least) of the latents that have been silent for a while make of the error: without it most directions
die. The rows of W_d (F, d) have norm 1 after every step, W_e begins as their transpose. Exactly k latents are not zero; one with a
negative value is kept, as it takes part in the sum, but is not *active* (`active` asks for values above a threshold).

Trained by the one training loop with Adam. Activations come in as an (n, d) array; nothing here knows a language model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.training.loop import Callback, TrainConfig, Trainer


@dataclass(frozen=True)
class SAEConfig:
    """How an autoencoder is made and trained.

    Attributes:
        expansion: F / d.
        k: latents that are not zero.
        epochs, batch_size, lr: of the training.
        auxiliary: α.
        patience: steps of silence after which a latent is dead.
    """

    expansion: int = 8
    k: int = 32
    epochs: int = 4
    batch_size: int = 1024
    lr: float = 3e-4
    auxiliary: float = 1 / 32
    patience: int = 20


class SparseAutoencoder(nn.Module):
    """The autoencoder; `train_sae` makes a trained one.

    Args:
        width: d.
        features: F.
        k: latents that are not zero, at most F.
        seed: of the directions.

    Raises:
        InputError: numbers that do not fit.
    """

    centre: Tensor
    scale: Tensor
    silent: Tensor  # steps since a latent was last not zero

    def __init__(self, width: int, features: int, k: int, seed: int = 0) -> None:
        super().__init__()
        if width < 1 or not 1 <= k <= features:
            raise InputError(f"width {width}, features {features}, k {k}.", "Give a width of 1 or more and k from 1 to features.")
        self.k = k
        directions = torch.randn(features, width, generator=torch.Generator().manual_seed(seed))
        directions = directions / directions.norm(dim=1, keepdim=True)
        self.decoder = nn.Parameter(directions.clone())
        self.encoder = nn.Parameter(directions.T.contiguous().clone())
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("silent", torch.zeros(features, dtype=torch.int64))

    @property
    def features(self) -> int:
        """F."""
        return self.decoder.shape[0]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The k latents of states (n, d): their values and their numbers, each (n, k), the greatest first."""
        values, numbers = ((x - self.centre) * self.scale @ self.encoder + self.bias).topk(self.k, dim=-1)
        return values, numbers

    def decode(self, values: Tensor, numbers: Tensor) -> Tensor:
        """States (n, d) from latents."""
        codes = torch.zeros(*values.shape[:-1], self.features, dtype=values.dtype, device=values.device).scatter(-1, numbers, values)
        return codes @ self.decoder / self.scale + self.centre

    def forward(self, x: Tensor) -> Tensor:
        """x̂."""
        return self.decode(*self.encode(x))

    @torch.no_grad()
    def active(self, states: np.ndarray, threshold: float = 0.0, block: int = 4096) -> tuple[np.ndarray, np.ndarray]:
        """Which features are active where: (m,) positions, rising, and (m,) features, with values above the threshold."""
        positions, features = [], []
        for begin in range(0, len(states), block):
            values, numbers = self.encode(torch.from_numpy(np.ascontiguousarray(states[begin : begin + block], dtype=np.float32)))
            row, column = torch.nonzero(values > threshold, as_tuple=True)
            positions.append(row.numpy() + begin)
            features.append(numbers[row, column].numpy())
        return np.concatenate(positions), np.concatenate(features)

    @torch.no_grad()
    def explained_variance(self, states: np.ndarray) -> float:
        """1 − Σ‖x − x̂‖² / Σ‖x − mean‖²."""
        x = torch.from_numpy(np.ascontiguousarray(states, dtype=np.float32))
        return float(1 - (x - self(x)).double().square().sum() / (x - x.mean(0)).double().square().sum())

    def loss(self, x: Tensor, auxiliary: float, patience: int) -> Tensor:
        """Sum over states (n, d) of the loss of the docstring; counts how long each latent has been silent."""
        x = (x - self.centre) * self.scale
        before = x @ self.encoder + self.bias
        values, numbers = before.topk(self.k, dim=-1)
        codes = torch.zeros_like(before).scatter(-1, numbers, values)
        error = x - codes @ self.decoder
        total = (error.square().sum(-1) / x.square().sum(-1).clamp_min(1e-12)).sum()
        with torch.no_grad():
            self.silent += 1
            self.silent[numbers.unique()] = 0
            dead = self.silent > patience
        if auxiliary and bool(dead.any()):
            waiting = before.masked_fill(~dead, -torch.inf)
            kept, places = waiting.topk(min(int(dead.sum()), max(self.k, x.shape[1] // 2)), dim=-1)
            revived = torch.zeros_like(before).scatter(-1, places, kept) @ self.decoder
            target = error.detach()
            total = total + auxiliary * ((target - revived).square().sum(-1) / target.square().sum(-1).clamp_min(1e-12)).sum()
        return total


@dataclass(frozen=True)
class StateBatch:
    """States to be reconstructed, (n, d)."""

    states: Tensor

    @property
    def n_tokens(self) -> int:
        """States."""
        return len(self.states)

    @property
    def n_target_tokens(self) -> int:
        """States: each counts once in the mean loss."""
        return len(self.states)

    def to(self, device: torch.device | str) -> StateBatch:
        """The batch on another device."""
        return StateBatch(self.states.to(device))


@dataclass(frozen=True)
class StateBatches:
    """Batches of states in a new order each epoch; see `palimpsest.training.batch.BatchSource`."""

    states: np.ndarray
    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.states) // self.batch_size)

    def __getitem__(self, k: int) -> StateBatch:
        epoch, batch = divmod(k, len(self))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.states))
        return StateBatch(torch.from_numpy(self.states[order[batch * self.batch_size : (batch + 1) * self.batch_size]]))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the states and of how they are dealt."""
        head = f"{self.states.shape} {self.batch_size} {self.seed} ".encode()
        return hashlib.sha256(head + np.ascontiguousarray(self.states).tobytes()).hexdigest()


class UnitDirections(Callback):
    """Keeps the decoder's rows at norm 1, and takes out of their gradient what would only change it."""

    def after_backward(self, trainer: Trainer) -> None:
        """Projects the gradient."""
        decoder: Any = trainer.model.decoder
        decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder.detach()

    def after_step(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Normalises the rows."""
        decoder: Any = trainer.model.decoder
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)


def train_sae(states: np.ndarray, config: SAEConfig | None = None, seed: int = 0) -> SparseAutoencoder:
    """Trains an autoencoder of states.

    Args:
        states: (n, d), n at least 2.
        config: how.
        seed: of the directions and of the order.

    Returns:
        On the processor, wherever it was trained.

    Raises:
        InputError: another shape, states that are all equal, or a configuration that does not fit.
        NonFiniteError: states that are not finite.

    Example:
        >>> states = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
        >>> sae = train_sae(states, SAEConfig(expansion=4, k=8, epochs=30, batch_size=64, lr=3e-3))
        >>> sae.features, sae.explained_variance(states) > 0.9
        (32, True)
    """
    config = config or SAEConfig()
    states = np.ascontiguousarray(states, dtype=np.float32)
    if states.ndim != 2 or len(states) < 2 or config.expansion < 1:
        raise InputError(f"States of shape {states.shape}, expansion {config.expansion}.", "Give (n, d) with n >= 2, and 1 or more.")
    if not np.isfinite(states).all():
        raise NonFiniteError("Some states are not finite.", "Look at the model that they are of.")
    centre = states.mean(0)
    norm = float(np.linalg.norm(states - centre, axis=1).mean())
    if norm == 0:
        raise InputError(f"The {len(states)} states are all equal.", "Give states that differ.")
    width = states.shape[1]
    sae = SparseAutoencoder(width, config.expansion * width, config.k, seed)
    sae.centre.copy_(torch.from_numpy(centre))
    sae.scale.fill_(width**0.5 / norm)
    data = StateBatches(states, config.batch_size, seed)
    train = TrainConfig(config.epochs * len(data), lr=config.lr, schedule="constant", betas=(0.9, 0.999), weight_decay=0.0, seed=seed)

    def loss(model: Any, batch: StateBatch) -> Tensor:
        found: Tensor = model.loss(batch.states, config.auxiliary, config.patience)
        return found

    Trainer(sae, train, [UnitDirections()], loss=loss).fit(data)
    return sae.cpu().eval()
