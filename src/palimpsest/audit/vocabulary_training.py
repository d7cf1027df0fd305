"""Models of equal size over vocabularies of different size, and how they are trained on whole texts.

The parameters of a Llama with tied embeddings, width d, L layers and feed-forward width f over V ids are

    V d + L (4 d² + 3 d f + 2 d) + d,

so that f takes what V leaves of the budget. Positions are rotary and cost nothing, whatever the length. A batch is so many *texts*, in an
order that depends on seed and epoch alone: every vocabulary sees the same texts at the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.audit.vocabulary_coding import END, FIRST_LABEL, Coding
from palimpsest.errors import InputError
from palimpsest.files import sha256_json
from palimpsest.training.batch import IGNORE, PackedBatch
from palimpsest.training.examples import Example, ExampleBatches, packed
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
class RedrawnBatches(ExampleBatches):
    """Batches whose rows are given other aliases each epoch by a coding.

    Args:
        coding: of the rows.

    Raises:
        InputError: as for `ExampleBatches`, or no coding.
    """

    coding: Coding | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coding is None:
            raise InputError("There is no coding to draw aliases of.", "Give coding=, or take ExampleBatches.")

    def __getitem__(self, k: int) -> PackedBatch:
        assert self.coding is not None  # __post_init__ has asked for it
        rng = np.random.default_rng((self.seed, k, 1))
        rows = [replace(example, ids=tuple(self.coding.redrawn(example.ids, rng))) for example in self.chosen(k)]
        return packed(rows, self.pad_id)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the examples, of how they are dealt, and of the aliases."""
        assert self.coding is not None  # __post_init__ has asked for it
        return sha256_json([super().fingerprint, self.coding.aliases, self.coding.reserved])


def target_loss(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Sum of the losses at the targets; the head is applied there alone, as labels are one position of a text.

    Padding stands behind every target, where a causal model does not see it: no mask is needed.
    """
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
        examples = [Example(tuple(rows[i]), len(rows[i]) - 1) for i in chosen]
        logits, targets = _at_targets(model, packed(examples, END).to(model.device))
        hits[chosen] = (logits[:, FIRST_LABEL : FIRST_LABEL + labels].argmax(-1) + FIRST_LABEL == targets).cpu().numpy()
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


def train_on(
    model: LlamaForCausalLM, data: ExampleBatches, shape: Shape, seed: int, callbacks: Sequence[Callback] = ()
) -> LlamaForCausalLM:
    """Trains for the shape's epochs with a linear rise over the first twentieth, then a cosine. Returns the model, for evaluation."""
    steps = shape.epochs * len(data)
    config = TrainConfig(steps, lr=shape.lr, warmup=steps // 20, weight_decay=0.0, seed=seed)
    Trainer(model, config, callbacks, loss=target_loss).fit(data)
    return model.eval()
