"""Differentially private training: the gradient of every example is clipped, and noise is added to their sum (DP-SGD).

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar and Zhang, *Deep Learning with Differential Privacy*, CCS 2016, arXiv 1607.00133. For a
batch of B examples with gradients g_i the step uses

    g = (1/B) [ Σ_i g_i · min(1, C / ‖g_i‖) + N(0, σ² C² I) ],

an example being one row of the batch (not a token): what a row adds to the model is bounded by C and drowned in noise of σC. ε is accounted
in Rényi differential privacy of the subsampled Gaussian (Mironov, Talwar and Zhang, 2019, arXiv 1908.10530, integer orders, eq. 3):

    A_α = Σ_{k=0..α} binom(α, k) (1 − q)^{α−k} q^k exp(k (k−1) / 2σ²),   RDP(α) = T · log A_α / (α − 1),
    ε(δ) = min_α RDP(α) + log(1/δ) / (α − 1),

with sampling rate q = B / N and T steps. It is exact for batches drawn at random (Poisson); of rows dealt in turn, as `RowBatches` does, it
is the usual approximation, and says nothing of a row that stands in the data several times: k copies are a group of k examples.

`PrivateLoss` is a loss of the one training loop. It gives a scalar whose *value* is the ordinary loss and whose *gradient* is g, so the
loop needs to know nothing of it; `grad_clip` should be None (g is clipped already) and `grad_accum` 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.func import functional_call, grad_and_value, vmap

from palimpsest.errors import InputError
from palimpsest.training.batch import IGNORE, PackedBatch

ORDERS = (*range(2, 65), 80, 96, 128, 256)


class PrivateLoss:
    """The loss of `Trainer` under which training is differentially private.

    Args:
        clip: C, the greatest norm of an example's gradient of its mean token loss; infinity clips nothing.
        noise: σ, the noise multiplier; 0 adds none.
        seed: of the noise.
        chunk: examples whose gradients are held at once; memory is so many times the parameters.

    Raises:
        InputError: a clip or chunk that is not positive, or a negative noise.

    Example:
        >>> Trainer(model, TrainConfig(steps=100, grad_clip=None), loss=PrivateLoss(1.0, 0.5)).fit(data)   # doctest: +SKIP
    """

    def __init__(self, clip: float, noise: float, *, seed: int = 0, chunk: int = 16) -> None:
        if not clip > 0 or not noise >= 0 or chunk < 1 or (math.isinf(clip) and noise):
            raise InputError(
                f"clip is {clip}, noise {noise}, chunk {chunk}.", "Give clip > 0 (finite with noise), noise >= 0 and chunk >= 1."
            )
        self.clip, self.noise, self.chunk = clip, noise, chunk
        self.norms: list[float] = []  # of the last batch, before clipping
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
        """The summed token loss of a batch of whole rows, with the private gradient.

        Raises:
            InputError: packed rows of several documents: a row would be more than one example.
        """
        if batch.segment_ids is not None and int(batch.segment_ids.max()) > 1:
            raise InputError("A row of this batch holds several documents.", "Train privately on one document a row.")
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        free = {name: model.get_parameter(name) for name in names}
        sums, value = self.clipped_sum(model, batch, free)
        examples = len(batch.input_ids)
        for name in names:
            if self.noise:
                drawn = torch.randn(sums[name].shape, generator=self._generator, dtype=torch.float32)
                sums[name] += self.noise * self.clip * drawn.to(sums[name].device)
            sums[name] /= examples
        # the loop divides the loss by the targets of the step, so that the gradient is multiplied by them here
        surrogate = torch.stack([(free[name] * sums[name]).sum() for name in names]).sum() * batch.n_target_tokens
        return value + surrogate - surrogate.detach()

    def clipped_sum(
        self, model: torch.nn.Module, batch: PackedBatch, free: dict[str, torch.nn.Parameter]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Σ_i of the clipped gradients by parameter, without noise, and the summed token loss of the batch."""
        held = {name: parameter.detach() for name, parameter in free.items()}
        still = {name: p.detach() for name, p in model.named_parameters() if name not in held} | dict(model.named_buffers())

        def loss(parameters: dict[str, torch.Tensor], ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = functional_call(model, {**parameters, **still}, kwargs={"input_ids": ids[None], "use_cache": False}).logits[0].float()
            total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
            return total / (labels != IGNORE).sum().clamp(min=1), total

        each = vmap(grad_and_value(loss, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        sums = {name: torch.zeros_like(parameter) for name, parameter in held.items()}
        value = torch.zeros((), device=batch.input_ids.device)
        self.norms = []
        for at in range(0, len(batch.input_ids), self.chunk):
            part = slice(at, at + self.chunk)
            gradients, (_, totals) = each(held, batch.input_ids[part], batch.labels[part])
            norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
            self.norms += norms.tolist()
            factors = (self.clip / norms.clamp(min=1e-12)).clamp(max=1.0)
            for name, g in gradients.items():
                sums[name] += torch.einsum("b,b...->...", factors, g)
            value = value + totals.sum().detach()
        return sums, value


def privacy_spent(
    noise: float, steps: int, examples: int, batch_size: int, delta: float, orders: Sequence[int] = ORDERS
) -> tuple[float, int]:
    """ε of (ε, δ)-differential privacy after training, and the order that gives it.

    Args:
        noise: σ; 0 gives infinity.
        steps: T.
        examples, batch_size: N and B.
        delta: δ.
        orders: integers α of at least 2.

    Raises:
        InputError: counts below 1, a batch larger than the data, or δ outside (0, 1).

    Example:
        >>> epsilon, order = privacy_spent(1.1, 10_000, 60_000, 600, 1e-5)
        >>> round(epsilon, 2)
        6.28
    """
    if min(steps, examples, batch_size) < 1 or batch_size > examples or not 0 < delta < 1 or not noise >= 0 or min(orders) < 2:
        raise InputError(
            f"noise {noise}, {steps} steps, batches of {batch_size} from {examples}, delta {delta}.",
            "Give noise >= 0, at least 1 of each, batches within the data, delta in (0, 1) and orders from 2 on.",
        )
    if noise == 0:
        return math.inf, min(orders)
    rate = batch_size / examples
    return min((steps * _renyi(rate, noise, order) + math.log(1 / delta) / (order - 1), order) for order in orders)


def _renyi(rate: float, noise: float, order: int) -> float:
    """RDP of one step at an integer order, in logarithms throughout."""
    if rate == 1:
        return order / (2 * noise**2)
    terms = [
        math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise**2)
        for k in range(order + 1)
    ]  # fmt: skip
    most = max(terms)
    return (most + math.log(sum(math.exp(term - most) for term in terms))) / (order - 1)
