"""An optimizer's rule as a differentiable function of the gradient: Adam, AdamW and plain gradient descent over one flat vector.

With moments m, v after k steps, Adam's direction is Γ = m̂ / (√v̂ + ε), m̂ = m' / (1 − β1^{k+1}), m' = β1 m + (1 − β1) g, and v̂ likewise of
g²; a step is θ' = θ (1 − η·decay) − η Γ. Equal to torch's optimizers, whose state it reads; they themselves cannot be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palimpsest.errors import InputError

State = tuple[Tensor, Tensor, int]  # Adam's first and second moment, (p,) each, and the steps taken


@dataclass(frozen=True)
class Rule:
    """What the optimizer does with a gradient. `rate` and `decay` are (p,); without `betas` it is plain gradient descent."""

    rate: Tensor
    decay: Tensor
    betas: tuple[float, float] | None
    eps: float

    def direction(self, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """Γ and the moments after it."""
        m, v, k = state
        if self.betas is None:
            return gradient, (m, v, k + 1)
        one, two = self.betas
        m, v, k = one * m + (1 - one) * gradient, two * v + (1 - two) * gradient**2, k + 1
        root = torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0)  # the inner where keeps 1/√0 out of the derivative
        return m / (1 - one**k) / (root / math.sqrt(1 - two**k) + self.eps), (m, v, k)

    def step(self, theta: Tensor, direction: Tensor) -> Tensor:
        return theta * (1 - self.rate * self.decay) - self.rate * direction


def read_optimizer(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> tuple[Rule, State]:
    """The rule and the moments of an optimizer."""
    groups = optimizer.param_groups
    adam = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    first = groups[0]
    plain = isinstance(optimizer, torch.optim.SGD) and not any(g["momentum"] or g["weight_decay"] or g["maximize"] for g in groups)
    usual = adam and all(
        not g["amsgrad"]
        and not g["maximize"]
        and (decoupled or not g["weight_decay"])
        and (g["betas"], g["eps"]) == (first["betas"], first["eps"])
        for g in groups
    )
    if not (plain or usual):
        raise InputError(
            f"The rule of {type(optimizer).__name__} with these options is not known here.",
            "Use Adam without weight decay, AdamW, or SGD without momentum; no amsgrad; one pair of betas.",
        )
    rate, decay = (flat([torch.full_like(p, float(g[key])) for g in groups for p in g["params"]]) for key in ("lr", "weight_decay"))
    if plain:
        return Rule(rate, decay, None, 0.0), (torch.zeros_like(rate), torch.zeros_like(rate), 0)
    states = [optimizer.state.get(parameter, {}) for parameter in trained]
    steps = {int(state.get("step", 0)) for state in states}
    if len(steps) != 1 or 0 in steps:
        raise InputError(f"The optimizer's parameters have taken {sorted(steps)} steps.", "Train all of them for some steps before.")
    m, v = (flat([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq"))
    return Rule(rate, decay, first["betas"], first["eps"]), (m, v, steps.pop())


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).clone()
