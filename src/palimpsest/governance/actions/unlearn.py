"""Unlearning by training: four losses that push facts out of the weights, each beside what must be kept.

f are the facts to forget (their old values), r the general text to retain; ℓ is the mean loss per target token.

* *ga*, gradient ascent with KL (Jang et al., ACL 2023, arXiv 2210.01504; the KL to the model before as in Yao et al., arXiv 2310.10683):
  −ℓ(f) + λ KL(π_ref ‖ π_θ)(r). The ascent has no bound: it is stopped by `ceiling`, at the loss of a blind guess by default.
* *graddiff* (Liu et al., 2022): −ℓ(f) + λ ℓ(r), with the same ceiling.
* *npo*, preference loss with negatives alone (Zhang et al., COLM 2024, arXiv 2404.05868): (2/β) E log(1 + (π_θ(f)/π_ref(f))^β) + λ ℓ(r),
  π of a whole value. As β → 0 its gradient becomes gradient ascent's; for greater β it fades where the value is forgotten.
* *rmu* (Li et al., ICML 2024, arXiv 2403.03218): the hidden states h after one layer are pushed towards c·u, u a random unit vector, on f,
  and held where they were on r: MSE(h_θ(f), c u) + λ MSE(h_θ(r), h_ref(r)); only the down-projections of that layer and the two before it
  learn.

All are losses of the one training loop: a batch holds forget rows and retain rows, marked (`ForgetBatch`).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from palimpsest.errors import InputError
from palimpsest.governance.actions.base import Action, Cost, Handle, keep_weights
from palimpsest.governance.actions.decoder import captured_states, down_projections, require_layers
from palimpsest.governance.actions.training import TUNED, general_examples, pad_id_of, training, value_examples
from palimpsest.governance.items import ChangeRequest
from palimpsest.governance.system import System
from palimpsest.taxonomy import Quadruple
from palimpsest.training.batch import IGNORE, PackedBatch
from palimpsest.training.examples import ExampleBatches, packed
from palimpsest.training.loop import TrainConfig, Trainer

METHODS = ("ga", "graddiff", "npo", "rmu")
Loss = Callable[[torch.nn.Module, PackedBatch], torch.Tensor]


@dataclass(frozen=True)
class ForgetBatch(PackedBatch):
    """A batch whose rows are to be forgotten or retained.

    Attributes:
        forget: (batch,) bool.
    """

    forget: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def to(self, device: torch.device | str) -> ForgetBatch:
        """The batch on another device."""
        return marked(super().to(device), self.forget.to(device))


@dataclass(frozen=True)
class ForgetRetain:
    """Batches of both: as many rows of each in every batch; see `palimpsest.training.batch.BatchSource`.

    Args:
        forget, retain: batches of each.
    """

    forget: ExampleBatches
    retain: ExampleBatches

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of both."""
        return hashlib.sha256(f"{self.forget.fingerprint} {self.retain.fingerprint}".encode()).hexdigest()

    def __getitem__(self, k: int) -> ForgetBatch:
        lost, kept = self.forget.chosen(k), self.retain.chosen(k)
        marks = torch.tensor([True] * len(lost) + [False] * len(kept))
        return marked(packed([*lost, *kept], self.forget.pad_id), marks)


def marked(batch: PackedBatch, forget: torch.Tensor) -> ForgetBatch:
    """A batch with its rows marked."""
    return ForgetBatch(**{part.name: getattr(batch, part.name) for part in fields(PackedBatch)}, forget=forget)


class Unlearn(Action):
    """Pushes facts out of the weights.

    Args:
        request: to forget; facts with old values.
        method: "ga", "graddiff", "npo" or "rmu".
        config: how; by default 20 epochs at 1e-4.
        batch_size: rows of each side a step.
        retain: λ.
        beta: of npo.
        ceiling: of ga and graddiff: forget rows whose loss is above it are left alone; None: log of the vocabulary's size.
        layer: of rmu; by default at half of the depth.
        scale: c of rmu, in norms of the states before.
        seed: of u.

    Raises:
        InputError: an unknown method, or a setting out of range.

    Example:
        >>> handle = Unlearn(request, "npo").apply(system)        # doctest: +SKIP
    """

    name = "unlearn"
    memory: ClassVar[Quadruple] = TUNED

    def __init__(
        self,
        request: ChangeRequest,
        method: str = "npo",
        config: TrainConfig | None = None,
        *,
        batch_size: int = 8,
        retain: float = 1.0,
        beta: float = 0.1,
        ceiling: float | None = None,
        layer: int | None = None,
        scale: float = 3.0,
        seed: int = 0,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"There is no method {method!r} of unlearning.", f"Choose one of {', '.join(METHODS)}.")
        if not retain >= 0 or not beta > 0 or not scale > 0 or (ceiling is not None and not ceiling > 0):
            raise InputError(f"retain is {retain}, beta {beta}, scale {scale}, ceiling {ceiling}.", "Give retain >= 0 and the others > 0.")
        self.request, self.method, self.config, self.batch_size = request, method, config, batch_size
        self.retain, self.beta, self.ceiling, self.layer, self.scale, self.seed = retain, beta, ceiling, layer, scale, seed

    def _data(self, system: System) -> ForgetRetain:
        pad = pad_id_of(system.model)
        forget = ExampleBatches(value_examples(system, self.request, old=True), self.batch_size, pad)
        return ForgetRetain(forget, ExampleBatches(general_examples(system), self.batch_size, pad))

    def _config(self, data: ForgetRetain) -> TrainConfig:
        steps = 20 * len(data.forget)
        return self.config or TrainConfig(steps, lr=1e-4, schedule="constant", weight_decay=0.0, seed=self.seed)

    def _apply(self, system: System, handle: Handle) -> None:
        data = self._data(system)
        model, reference = system.model.model, copy.deepcopy(system.model.model).eval()
        for parameter in reference.parameters():
            parameter.requires_grad_(False)
        keep_weights(system, handle)
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            with training(system.model):
                metrics = Trainer(model, self._config(data), loss=self._loss(system, reference)).fit(data)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        handle.details["report"] = {"method": self.method, "steps": len(metrics), "loss": [metrics[0]["loss"], metrics[-1]["loss"]]}

    def _loss(self, system: System, reference: torch.nn.Module) -> Loss:
        ceiling = self.ceiling if self.ceiling is not None else math.log(system.model.vocab_size)
        if self.method == "ga":
            return lambda model, batch: ascent_kl(model, batch, reference, self.retain, ceiling)
        if self.method == "graddiff":
            return lambda model, batch: gradient_difference(model, batch, self.retain, ceiling)
        if self.method == "npo":
            return lambda model, batch: negative_preference(model, batch, reference, self.retain, self.beta)
        return self._steering(system, reference)

    def _steering(self, system: System, reference: torch.nn.Module) -> Loss:
        """rmu's loss; sets which weights learn."""
        places = down_projections(system.model)
        layer = len(places) // 2 if self.layer is None else self.layer
        require_layers(places, [layer])
        learning = {place.name for place in places[max(0, layer - 2) : layer + 1]}
        for name, parameter in system.model.model.named_parameters():
            parameter.requires_grad_(name in learning)
        there = replace(places[layer], block=reference.get_submodule(_name_of(system.model.model, places[layer].block)))
        u = torch.rand(places[layer].weight.shape[0], generator=torch.Generator().manual_seed(self.seed))
        u = (u / u.norm()).to(system.model.device)
        return lambda model, batch: steering(model, batch, reference, (places[layer], there), u, self.scale, self.retain)

    def estimate_cost(self, system: System) -> Cost:
        """All steps, forwards and backwards; the reference's passes come on top."""
        data = self._data(system)
        steps = self._config(data).steps
        tokens = sum(data[k].n_tokens for k in range(min(steps, len(data.forget))))
        total = round(tokens * steps / min(steps, len(data.forget)))
        both = 1 if self.method == "graddiff" else 2
        return Cost(both * total, total, sum(p.numel() for p in system.model.model.parameters()))


# --- the losses: each times the number of targets, since the loop divides by it ---------------------------------------------------------


def ascent_kl(model: torch.nn.Module, batch: PackedBatch, reference: torch.nn.Module, retain: float, ceiling: float) -> torch.Tensor:
    """−ℓ(f) + λ KL(π_ref ‖ π_θ)(r), per token, times the number of targets."""
    forget = _forget(batch)
    logits = _logits(model, batch)
    asked = (batch.labels != IGNORE) & ~forget[:, None]
    with torch.no_grad():
        before = F.log_softmax(_logits(reference, batch)[asked], dim=-1)
    kl = F.kl_div(F.log_softmax(logits[asked], dim=-1), before, log_target=True, reduction="batchmean")
    return (_ascent(logits, batch, forget, ceiling) + retain * kl) * batch.n_target_tokens


def gradient_difference(model: torch.nn.Module, batch: PackedBatch, retain: float, ceiling: float) -> torch.Tensor:
    """−ℓ(f) + λ ℓ(r), per token, times the number of targets."""
    forget = _forget(batch)
    logits = _logits(model, batch)
    kept = _row_losses(logits, batch)[~forget].sum() / _row_targets(batch)[~forget].sum()
    return (_ascent(logits, batch, forget, ceiling) + retain * kept) * batch.n_target_tokens


def negative_preference(model: torch.nn.Module, batch: PackedBatch, reference: torch.nn.Module, retain: float, beta: float) -> torch.Tensor:
    """(2/β) mean log(1 + (π_θ/π_ref)^β) over forget rows + λ ℓ(r), times the number of targets."""
    forget = _forget(batch)
    losses = _row_losses(_logits(model, batch), batch)
    with torch.no_grad():
        before = _row_losses(_logits(reference, batch), batch)
    ratio = before[forget] - losses[forget]  # log π_θ − log π_ref of whole values
    preference = (2 / beta) * F.softplus(beta * ratio).mean()
    kept = losses[~forget].sum() / _row_targets(batch)[~forget].sum()
    return (preference + retain * kept) * batch.n_target_tokens


def steering(
    model: torch.nn.Module,
    batch: PackedBatch,
    reference: torch.nn.Module,
    places: tuple[Any, Any],
    u: torch.Tensor,
    scale: float,
    retain: float,
) -> torch.Tensor:
    """MSE(h_θ(f), c u) + λ MSE(h_θ(r), h_ref(r)) over tokens that are not padding, times the number of targets."""
    forget = _forget(batch)
    here, there = places
    states: dict[str, torch.Tensor] = {}
    hook = here.block.register_forward_hook(lambda _, inputs, output: states.update(h=output[0] if isinstance(output, tuple) else output))
    try:
        _logits(model, batch)
    finally:
        hook.remove()
    with torch.no_grad(), captured_states(there) as before:
        _logits(reference, batch)
    real = torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.segment_ids is None else batch.segment_ids > 0
    lost, kept = real & forget[:, None], real & ~forget[:, None]
    size = before["state"][lost].norm(dim=-1).mean()
    push = F.mse_loss(states["h"][lost], (scale * size * u).expand(int(lost.sum()), -1))
    hold = F.mse_loss(states["h"][kept], before["state"][kept])
    return (push + retain * hold) * batch.n_target_tokens


def _forget(batch: PackedBatch) -> torch.Tensor:
    if not isinstance(batch, ForgetBatch) or not batch.forget.any() or batch.forget.all():
        raise InputError("The batch does not hold rows to forget beside rows to retain.", "Train on ForgetRetain.")
    return batch.forget


def _logits(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    mask = batch.attention_mask()
    return model(**inputs, **({} if mask is None else {"attention_mask": mask})).logits.float()


def _row_losses(logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """(batch,) the summed loss of every row's targets."""
    flat = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(batch.labels.shape).sum(dim=1)


def _row_targets(batch: PackedBatch) -> torch.Tensor:
    return (batch.labels != IGNORE).sum(dim=1)


def _ascent(logits: torch.Tensor, batch: PackedBatch, forget: torch.Tensor, ceiling: float) -> torch.Tensor:
    """−ℓ(f), no steeper than to the ceiling: a row that lies above it adds a constant."""
    mean = _row_losses(logits, batch)[forget] / _row_targets(batch)[forget]
    return -torch.clamp(mean, max=ceiling).mean()


def _name_of(model: torch.nn.Module, module: torch.nn.Module) -> str:
    return next(name for name, other in model.named_modules() if other is module)
