"""What estimates of other training orders are for: choosing one, and seeing what becomes of a batch by its place.

Yang et al., 2025, arXiv 2505.22042, on top of `order_effects`. *Curriculum*: proposals (easy to hard, hard to easy, at random, the
user's) are ranked by what each is estimated to give, and exchanges of two batches climb from the best of them. *Memorization and
generalization*: one batch is put at every position, the others keep their order; its own loss after training is what was memorized of it,
the loss of a batch that is never trained on what was learnt in general. Nothing is trained for either beyond the reference run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from torch import nn

from palimpsest.audit.order_effects import OrderEstimator
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment


def position_effect(estimator: OrderEstimator, batch: int, test: Any, mode: str = "first") -> Measurement:
    """What becomes of a batch by its place in the order, the others staying in the reference's.

    Args:
        estimator: after `fit`.
        batch: its number.
        test: a batch that is not trained on.
        mode: of the estimates.

    Returns:
        one row a position: position, own (loss of the batch after training) and test (loss of the other one).

    Raises:
        InputError: there is no such batch, or no `fit` before.
    """
    rows = []
    for position, order in enumerate(moved(estimator.reference, batch)):
        end = estimator.estimate(order, mode).parameters
        rows.append({"position": position, "own": estimator.loss(end, estimator.batches[batch]), "test": estimator.loss(end, test)})
    lines = [Series(name, [{"x": row["position"], "y": row[name]} for row in rows]) for name in ("own", "test")]
    curve = Curve("position-effect", "Where a batch stands decides what is left of it", "position", "loss after training", lines)
    summary = {name: {"first": rows[0][name], "last": rows[-1][name]} for name in ("own", "test")}
    provenance = {"batch": batch, "mode": mode, "reference": list(estimator.reference), "environment": environment()}
    return Measurement("order-effects", pl.DataFrame(rows), summary, provenance, {"position": curve})


def moved(order: Sequence[int], batch: int) -> list[tuple[int, ...]]:
    """The orders with `batch` at position 0, 1, …, and the rest as it was.

    Raises:
        InputError: the order has no such batch.

    Example:
        >>> moved([0, 1, 2], 1)
        [(1, 0, 2), (0, 1, 2), (0, 2, 1)]
    """
    if batch not in order:
        raise InputError(
            f"There is no batch {batch!r} in the order {list(order)}.", "Name one of it; a reference order is there after fit()."
        )
    rest = [b for b in order if b != batch]
    return [(*rest[:position], batch, *rest[position:]) for position in range(len(order))]


def usual_orders(estimator: OrderEstimator, random: int = 3, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Proposals by name: "easy to hard" by the batches' loss at the start, "hard to easy", and `random` ones."""
    losses = [estimator.loss(estimator.start, batch) for batch in estimator.batches]
    easy = tuple(int(b) for b in np.argsort(losses, kind="stable"))
    rng = np.random.default_rng(seed)
    drawn = {f"random {k}": tuple(int(b) for b in rng.permutation(len(losses))) for k in range(random)}
    return {"easy to hard": easy, "hard to easy": easy[::-1], **drawn}


def search_curriculum(
    estimator: OrderEstimator,
    proposals: Mapping[str, Sequence[int]],
    metric: Callable[[nn.Module], float],
    swaps: int = 0,
    mode: str = "first",
    seed: int = 0,
) -> list[tuple[str, tuple[int, ...], float]]:
    """Orders by what they are estimated to give: (name, order, value), the lowest value first.

    Args:
        estimator: after `fit`.
        proposals: orders by name.
        metric: of the model with the estimated parameters; lower is better.
        swaps: exchanges of two batches tried from the best proposal on, each kept if it is better; their end is named "climbed".
        mode, seed: of the estimates, and of the exchanges.

    Raises:
        InputError: no proposal, one that is no order of the batches, or a negative number of swaps.
    """
    if not proposals or swaps < 0:
        raise InputError(f"{len(proposals)} proposals, {swaps} swaps.", "Give at least one proposal, and no negative number.")

    def judged(order: Sequence[int]) -> float:
        return float(metric(estimator.model_at(estimator.estimate(order, mode).parameters)))

    ranked = [(name, tuple(order), judged(order)) for name, order in proposals.items()]
    _, best, value = min(ranked, key=lambda one: one[2])
    rng = np.random.default_rng(seed)
    for _ in range(swaps):
        i, j = rng.choice(len(best), 2, replace=False)
        other = list(best)
        other[i], other[j] = other[j], other[i]
        if (reached := judged(other)) < value:
            best, value = tuple(other), reached
    return sorted([*ranked, ("climbed", best, value)] if swaps else ranked, key=lambda one: one[2])
