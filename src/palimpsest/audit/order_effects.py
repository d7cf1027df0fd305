"""What training in another order would have given, estimated from one run: Taylor expansions along the reference path.

Yang et al., 2025, arXiv 2505.22042 (FUT). A reference run takes the batches B_0 … B_{T−1} from θ_0 to θ_T by
θ_{t+1} = θ_t − η Γ(θ_t, B_t), with Adam's Γ = m̂ / (√v̂ + ε). The same batches in the order l_0 … l_{T−1} lead from γ_0 = θ_0 along γ_t,
and with δ_t = γ_t − θ_t

    γ_{t+1} = γ_t − η [f(θ_t, B_{l_t}) + ∇f δ_t + ½ ∇²f[δ_t, δ_t]],

of which the mode "zero" keeps one term, "first" (FUT) two and "second" (FUT++) three. Derivatives are taken in forward mode along δ_t:
Hessian-vector products, never a Hessian. Two readings of f:

* space "update": f = Γ, the paper's formula. Which moments enter Γ(θ_t, B_{l_t}) is not said where we could read it; here the reference
  run's, so that most of every first moment belongs to the reference order. Coordinates with v = 0, where Γ has no derivative, are constant.
* space "gradient" (ours, the default): f = g, the gradient; Adam's own moments are then run along the *estimated* path.

`project` keeps the terms of all T² pairs: Qᵀf (k) and Qᵀ∇f Q (k, k) with orthonormal random Q (p, k). An estimate from them reads

    f(θ_t, B_t) + Q [Qᵀf(θ_t, B_{l_t}) − Qᵀf(θ_t, B_t) + Qᵀ∇f Q Qᵀδ_t],

with the reference's own f in full, unlike in the paper: Adam divides by coordinate, which has no meaning among k projections. Of a change
that lies in no few dimensions, k random ones keep about the share k/p: what is saved in storage is lost in the estimate.

The learning rate is constant and dropout is off. Large steps leave the region where the expansion holds: look at `Estimate.distances`, and
at `Estimate.ratio`, which a second-order estimate has. What the estimates are for stands in `curriculum`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from palimpsest.audit.optimizer_rule import State, flat, read_optimizer
from palimpsest.errors import InputError, NonFiniteError

MODES, SPACES = ("zero", "first", "second"), ("gradient", "update")
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Estimate:
    """Where another order would have ended.

    Attributes:
        parameters: γ_T, (p,): the optimizer's parameters, flat and in its order.
        distances: ‖δ_t‖ before each step, (T,), and ‖δ_T‖.
        ratio: the greatest size of a second-order term as a share of the first-order term beside it; None below the second order.
    """

    parameters: Tensor
    distances: tuple[float, ...]
    ratio: float | None

    @property
    def trusted(self) -> bool | None:
        """Whether no second-order term exceeds half of the first-order term; None where that is not known."""
        return None if self.ratio is None else self.ratio <= 0.5


@dataclass(frozen=True)
class Projection:
    """Terms of all pairs of a point t of the `reference` run and a batch b, compressed: Q (p, k), values (T, T, k), slopes (T, T, k, k);
    and the reference's own f(θ_t, B_t), (T, p)."""

    space: str
    reference: tuple[int, ...]
    basis: Tensor
    own: Tensor
    values: Tensor
    slopes: Tensor


class OrderEstimator:
    """Trains once, and estimates the outcome of any other order of the same batches.

    Args:
        model: stays as it is. Its operations need forward-mode derivatives (transformers: attn_implementation="eager").
        loss: mean loss of a batch, (model, batch) -> scalar.
        batches: T of them.
        optimizer: torch.optim.Adam (no weight decay), AdamW, or SGD (no momentum) over what is trained of `model`; only read.
            Adam must have taken steps: its first one is the gradient's sign, which has no derivative.

    Raises:
        InputError: another optimizer, one without state, one whose parameters are not the model's, or fewer than 2 batches.

    Example:
        >>> model = nn.Linear(2, 1).double()
        >>> data = [(x, x.sum(1, keepdim=True)) for x in torch.randn(3, 4, 2, dtype=torch.float64)]
        >>> def loss(model, batch):
        ...     return ((model(batch[0]) - batch[1]) ** 2).mean()
        >>> estimator = OrderEstimator(model, loss, data, torch.optim.SGD(model.parameters(), lr=0.1)).fit()
        >>> bool((estimator.estimate([2, 0, 1]).parameters - estimator.retrain([2, 0, 1])).abs().max() < 1e-9)
        True
    """

    def __init__(self, model: nn.Module, loss: Loss, batches: Sequence[Any], optimizer: torch.optim.Optimizer) -> None:
        if len(batches) < 2:
            raise InputError(f"{len(batches)} batches have no order.", "Give at least 2.")
        self.batches = list(batches)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        if not trained or any(id(parameter) not in names for parameter in trained):
            raise InputError("The optimizer's parameters are not the model's.", "Make it with parameters of this model.")
        self._names = [f"model.{names[id(parameter)]}" for parameter in trained]
        self._shapes = [parameter.shape for parameter in trained]
        self._rule, self._state = read_optimizer(optimizer, trained)
        self.start = flat(trained)
        self._loss = _Loss(copy.deepcopy(model).eval(), loss)
        self.reference: tuple[int, ...] = ()
        self._path: list[tuple[Tensor, State]] = []  # θ_t and the moments before step t, t = 0 … T

    def fit(self, reference: Sequence[int] | None = None) -> OrderEstimator:
        """Trains in the reference order (by default as given), and keeps the path. Returns itself.

        Raises:
            InputError: not a permutation of the batches.
            NonFiniteError: training diverged.
        """
        self.reference = self._order(range(len(self.batches)) if reference is None else reference)
        self._path = self._train(self.reference)
        return self

    def retrain(self, order: Sequence[int]) -> Tensor:
        """Where training in this order does end, (p,): what an estimate saves."""
        return self._train(self._order(order))[-1][0]

    def estimate(
        self, order: Sequence[int], mode: str = "first", space: str = "gradient", projection: Projection | None = None
    ) -> Estimate:
        """Where training in this order would end.

        Args:
            order: the batches' numbers.
            mode: "zero", "first" or "second" order.
            space: what is expanded, "gradient" or "update".
            projection: of `project`; then the model is not called. Without it every term is computed anew.

        Raises:
            InputError: not a permutation, an unknown mode or space, no `fit` before, or a projection of the other space or in second order.
            NonFiniteError: the estimate left the numbers.
        """
        order = self._order(order)
        if mode not in MODES or space not in SPACES:
            raise InputError(f"mode {mode!r}, space {space!r}.", f"Choose of {', '.join(MODES)} and of {', '.join(SPACES)}.")
        if not self._path:
            raise InputError("There is no reference run yet.", "Call fit() first.")
        if projection is not None and (mode == "second" or (projection.space, projection.reference) != (space, self.reference)):
            raise InputError(
                f"Terms of space {projection.space!r} and reference {projection.reference} for mode {mode!r} in space {space!r}.",
                "Project in this space after the last fit(), and estimate to first order.",
            )
        gamma, state = self.start, self._state
        distances, ratio = [], 0.0
        for t, batch in enumerate(order):
            theta = self._path[t][0]
            delta = gamma - theta
            distances.append(float(delta.norm()))
            if projection is None:
                value, first, second = _taylor(self._expanded(t, batch, space), theta, delta, mode)
                value = value + first + second
                if mode == "second" and float(first.norm()) > 0:
                    ratio = max(ratio, float(second.norm() / first.norm()))
            else:
                change = projection.values[t, batch] - projection.values[t, self.reference[t]]
                if mode == "first":
                    change = change + projection.slopes[t, batch] @ (projection.basis.T @ delta)
                value = projection.own[t] + projection.basis @ change
            if space == "gradient":
                value, state = self._rule.direction(value, state)
            gamma = self._rule.step(gamma, value)
        if not torch.isfinite(gamma).all():
            raise NonFiniteError("The estimated parameters are not finite.", "Lower the learning rate, or estimate to first order.")
        distances.append(float((gamma - self._path[-1][0]).norm()))
        return Estimate(gamma, tuple(distances), ratio if mode == "second" else None)

    def project(self, k: int, space: str = "gradient", seed: int = 0) -> Projection:
        """The terms of all T² pairs in k random dimensions: T² · k Hessian-vector products, once.

        Raises:
            InputError: k outside 1 … p, an unknown space, or no `fit` before.
        """
        p, T = len(self.start), len(self.batches)
        if not 1 <= k <= p or space not in SPACES or not self._path:
            raise InputError(
                f"k {k} of {p} dimensions, space {space!r}, {len(self._path)} points.", "Give 1 to p, a space, and call fit()."
            )
        noise = torch.randn(p, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(self.start)
        basis, _ = torch.linalg.qr(noise)
        own, values, slopes = (self.start.new_empty(shape) for shape in ((T, p), (T, T, k), (T, T, k, k)))
        for t in range(T):
            for b in range(T):
                f, theta = self._expanded(t, b, space), self._path[t][0]
                value = f(theta)
                values[t, b] = basis.T @ value
                if b == self.reference[t]:
                    own[t] = value
                for column in range(k):
                    slopes[t, b, :, column] = basis.T @ jvp(f, (theta,), (basis[:, column],))[1]
        return Projection(space, self.reference, basis, own, values, slopes)

    def model_at(self, parameters: Tensor) -> nn.Module:
        """The estimator's own copy of the model with these parameters; the next call changes it."""
        with torch.no_grad():
            for name, value in self._split(parameters).items():
                self._loss.get_parameter(name).copy_(value)
        return self._loss.model

    def loss(self, parameters: Tensor, batch: Any) -> float:
        """Loss of a batch under these parameters."""
        with torch.no_grad():
            return float(self._loss_at(parameters, batch))

    def _order(self, order: Sequence[int]) -> tuple[int, ...]:
        if sorted(order) != list(range(len(self.batches))):
            raise InputError(f"{list(order)} is not an order of {len(self.batches)} batches.", "Name every batch from 0 on exactly once.")
        return tuple(int(b) for b in order)

    def _train(self, order: Sequence[int]) -> list[tuple[Tensor, State]]:
        theta, state = self.start, self._state
        path = [(theta, state)]
        for batch in order:
            direction, state = self._rule.direction(self._gradient(theta, batch), state)
            theta = self._rule.step(theta, direction)
            path.append((theta, state))
        if not torch.isfinite(theta).all():
            raise NonFiniteError("Training left the numbers.", "Lower the learning rate.")
        return path

    def _gradient(self, theta: Tensor, batch: int) -> Tensor:
        return grad(self._loss_at)(theta, self.batches[batch])

    def _expanded(self, t: int, batch: int, space: str) -> Callable[[Tensor], Tensor]:
        """f of the docstring, as a function of the parameters."""
        state = self._path[t][1]
        return lambda x: self._gradient(x, batch) if space == "gradient" else self._rule.direction(self._gradient(x, batch), state)[0]

    def _loss_at(self, theta: Tensor, batch: Any) -> Tensor:
        return functional_call(self._loss, self._split(theta), (batch,))

    def _split(self, theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([shape.numel() for shape in self._shapes])
        return {name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}


class _Loss(nn.Module):
    """The loss as a module, so that its model's parameters can be exchanged in a call."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._of = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self._of(self.model, batch)


def _taylor(f: Callable[[Tensor], Tensor], theta: Tensor, delta: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of order 0, 1 and 2 of f(theta + delta); those that `mode` leaves out are 0."""
    nothing = torch.zeros_like(theta)
    if mode == "zero":
        return f(theta), nothing, nothing
    if mode == "first":
        return *_slope(f, theta, delta), nothing

    def along(x: Tensor) -> tuple[Tensor, Tensor]:
        return _slope(f, x, delta)

    (value, slope), (_, bend) = _slope(along, theta, delta)
    return value, slope, bend / 2


def _slope(f: Callable[[Tensor], Any], x: Tensor, direction: Tensor) -> Any:
    """f(x) and its derivative along `direction`, each of the form of f(x)."""
    return jvp(f, (x,), (direction,))
