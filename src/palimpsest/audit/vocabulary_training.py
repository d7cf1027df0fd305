"""Models of equal size over vocabularies of different size, and how they are trained on whole texts.

The parameters of a Llama with tied embeddings, width d, L layers and feed-forward width f over V ids are

    V d + L (4 d² + 3 d f + 2 d) + d,

so that f takes what V leaves of the budget. Positions are rotary and cost nothing, whatever the length. A batch is so many *texts*, in an
order that depends on seed and epoch alone: every vocabulary sees the same texts at the same step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.audit.vocabulary_coding import END, FIRST_LABEL, Coding
from palimpsest.errors import InputError
from palimpsest.training.batch import IGNORE, PackedBatch
from palimpsest.training.loop import Callback, TrainConfig, Trainer


@dataclass(frozen=True)
class Shape:
    """What all models share.

    Attributes:
        parameters: the budget.
        width, layers, heads: of the transformer.
        epochs, batch_size, lr: of the training; batch_size counts texts.
    """

    parameters: int = 600_000
    width: int = 64
    layers: int = 2
    heads: int = 4
    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3


def equal_model(vocab_size: int, length: int, shape: Shape, seed: int) -> LlamaForCausalLM:
    """An untrained model within 1 % of the budget.

    Args:
        vocab_size: ids.
        length: the most tokens of a row.
        shape: budget, width and depth.
        seed: of the weights.

    Raises:
        InputError: the embeddings leave less than one feed-forward unit, or a width that the heads do not divide.

    Example:
        >>> [sum(p.numel() for p in equal_model(v, 64, Shape(), 0).parameters()) for v in (260, 4260)]
        [600000, 599872]
    """
    d, layers = shape.width, shape.layers
    rest = shape.parameters - vocab_size * d - layers * (4 * d * d + 2 * d) - d
    hidden = round(rest / (3 * d * layers))
    if hidden < 1 or d % (2 * shape.heads):
        raise InputError(
            f"{shape.parameters:,} leave {hidden} feed-forward units beside {vocab_size:,} ids of width {d}; heads: {shape.heads}.",
            "Raise the budget or lower the width, which twice the heads must divide.",
        )
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    if abs(found - shape.parameters) > 0.01 * shape.parameters:
        raise InputError(f"The nearest model has {found:,} parameters, not {shape.parameters:,}.", "Raise the budget or lower the width.")
    return model


@dataclass(frozen=True)
class TextBatches:
    """Batches of whole texts, padded on the right; see `palimpsest.training.batch.BatchSource`.

    Args:
        rows: ids of a text each, at least 2.
        first: the first position of each row whose id is asked for.
        batch_size: texts a batch.
        seed: of the order, which is drawn anew each epoch.
        redraw: a coding that gives the rows other aliases each epoch; None: they stay.
    """

    rows: Sequence[Sequence[int]]
    first: Sequence[int]
    batch_size: int
    seed: int
    redraw: Coding | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, k: int) -> PackedBatch:
        epoch, batch = divmod(k, len(self))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        rows = [self.rows[i] for i in chosen]
        if self.redraw is not None:
            rng = np.random.default_rng((self.seed, k, 1))
            rows = [self.redraw.redrawn(row, rng) for row in rows]
        return padded(list(zip(rows, (self.first[i] for i in chosen), strict=True)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows and of how they are dealt."""
        redraw = None if self.redraw is None else (self.redraw.aliases, self.redraw.reserved)
        content = ([list(row) for row in self.rows], list(self.first), self.batch_size, self.seed, redraw)
        return hashlib.sha256(repr(content).encode()).hexdigest()


def padded(rows: Sequence[tuple[Sequence[int], int]]) -> PackedBatch:
    """One batch. Padding stands behind every target, where a causal model does not see it: no mask is needed."""
    width = max(len(row) for row, _ in rows)
    ids, labels = np.full((len(rows), width), END, dtype=np.int64), np.full((len(rows), width), IGNORE, dtype=np.int64)
    for place, (row, first) in enumerate(rows):
        ids[place, : len(row)] = row
        labels[place, first - 1 : len(row) - 1] = row[first:]
    positions = np.broadcast_to(np.arange(width), ids.shape).copy()
    return PackedBatch(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(positions))


def target_loss(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Sum of the losses at the targets; the head is applied there alone, as labels are one position of a text."""
    picked, targets = _at_targets(model, batch)
    return F.cross_entropy(picked.float(), targets, reduction="sum")


def _at_targets(model: Any, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    chosen = batch.labels != IGNORE
    return model.lm_head(hidden[chosen]), batch.labels[chosen]


@torch.no_grad()
def label_hits(model: LlamaForCausalLM, rows: Sequence[Sequence[int]], labels: int, batch_size: int = 128) -> np.ndarray:
    """For rows that end with a label, whether it is the likeliest of the labels, (rows,) bool."""
    hits = np.zeros(len(rows), dtype=bool)
    order = np.argsort([len(row) for row in rows], kind="stable")
    for begin in range(0, len(rows), batch_size):
        chosen = order[begin : begin + batch_size]
        logits, targets = _at_targets(model, padded([(rows[i], len(rows[i]) - 1) for i in chosen]))
        hits[chosen] = (logits[:, FIRST_LABEL : FIRST_LABEL + labels].argmax(-1) + FIRST_LABEL == targets).numpy()
    return hits


class EpochReadings(Callback):
    """Calls a function of the model after some epochs.

    Args:
        steps_per_epoch: of the data.
        epochs: after which; 1 is the first.
        read: model -> figure, kept in `found` by epoch.
    """

    def __init__(self, steps_per_epoch: int, epochs: Sequence[int], read: Callable[[Any], float]) -> None:
        self.steps_per_epoch, self.epochs, self.read = steps_per_epoch, frozenset(epochs), read
        self.found: dict[int, float] = {}

    def after_step(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Reads, where this step ends one of the epochs."""
        epoch, rest = divmod(trainer.step, self.steps_per_epoch)
        if rest == 0 and epoch in self.epochs:
            self.found[epoch] = self.read(trainer.model)


def train_on(model: LlamaForCausalLM, data: TextBatches, shape: Shape, seed: int, callbacks: Sequence[Callback] = ()) -> LlamaForCausalLM:
    """Trains for the shape's epochs with a linear rise over the first twentieth, then a cosine. Returns the model, for evaluation."""
    steps = shape.epochs * len(data)
    config = TrainConfig(steps, lr=shape.lr, warmup=steps // 20, weight_decay=0.0, seed=seed, cpu=True)
    Trainer(model, config, callbacks, loss=target_loss).fit(data)
    return model.eval()
