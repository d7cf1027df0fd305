"""Claim check of the effects of training orders: expansions along one run tell where other orders end, without training them.

Yang et al., 2025, arXiv 2505.22042, whose models have up to 0.64 B parameters and train on WikiText-103. Here a byte-level language model
of one layer (26 thousand parameters, GELU, float64) is warmed up on one module of Python's library, and then takes ten batches of 8 × 33
bytes, each from one place of another module; Adam throughout. Six random orders are estimated and retrained. Checks, over these orders:

* the reference order is met exactly; the mean distance of the first-order estimate from the retrained end is at most a tenth of the mean
  distance of retrained and reference ends, the second order's is smaller, the zero order's larger;
* test loss (other places of two of the ten modules): Spearman's correlation of estimates with the truth >= .9, and the mean error at most
  a fifth of that of "the order does not matter";
* three batches, each put at every position: estimated and true own losses correlate by >= .9 (Pearson, the least of the three), and each is
  remembered better when it comes last than when it comes first.

Expanding the update as the paper does ("update") is reported beside expanding the gradient, and so is how much the test loss differs.

The learning rate was chosen on seeds 100 and 101 before any deciding run: with 2e-4 first order is at .063 and .038 of the distance, with
test losses .054 and .026 nat apart, as the specification asks (.02); on seed 100 it is at .091 with 3e-4, .14 with 4e-4, .18 with 5e-4, .37
with 1e-3. "Remembered better last than first" is false there in truth, not in the estimate: with β1 = .9 a batch that comes last moves the
parameters by a tenth of its gradient, one that comes first by nearly all of it. With β1 = 0 it is true for three of three batches, and
first order is at .56 of the distance. The threshold is the specification's and stays.

    >>> claim = run("smoke", 0)
    >>> claim.passed
    True
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.audit.curriculum import moved, position_effect
from palimpsest.audit.order_effects import MODES, OrderEstimator
from palimpsest.errors import InputError
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.measurement import Curve, Series
from palimpsest.stats import spearman

STATEMENT = "From one training run, Taylor expansions tell the parameters and losses that another order of the same batches would give."
WARM = "argparse"
MODULES = ("html.entities", "encodings.cp1252", "_pydecimal", "statistics", "opcode", "colorsys", "calendar", "heapq", "textwrap", "random")


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        batches: T, each of another module.
        orders: random orders that are retrained.
        rows, length: of a batch, in bytes; one byte more is read than predicted.
        width: of the model.
        warmup, warmup_lr: steps before the reference run.
        lr: of the reference run.
        positions: batches that are put at every position.
    """

    batches: int = 10
    orders: int = 6
    rows: int = 8
    length: int = 33
    width: int = 32
    warmup: int = 150
    warmup_lr: float = 1e-3
    lr: float = 2e-4
    positions: int = 3


CPU, SMOKE = Config(), Config(batches=3, orders=2, rows=2, length=9, width=8, warmup=5, positions=1)


class ByteLM(nn.Module):
    """A causal transformer of one layer over bytes, with attention written out: it has forward-mode derivatives of every order."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Parameter(torch.randn(context, width) * 0.02)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.qkv, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 256, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits, (rows, time, 256), of bytes (rows, time)."""
        time = ids.shape[1]
        x = self.embed(ids) + self.place[:time]
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf)
        x = x + self.mix(scores.softmax(-1) @ v)
        x = x + self.narrow(F.gelu(self.wide(self.norms[1](x))))
        logits: Tensor = self.head(self.norms[2](x))
        return logits


def mean_loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood of all bytes but the first of each row, in nat."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def run(scale: str, seed: int) -> Claim:
    """Trains the reference run, estimates other orders and retrains them.

    Args:
        scale: "smoke": three batches and two orders, of which only the exactness of the reference is held against anything; "cpu".
        seed: of places, weights and orders.

    Raises:
        InputError: the scale "gpu", which this experiment does not have, or a Python without the sources of its library.
    """
    full = decides(scale)
    config = CPU if full else SMOKE
    with one_thread():
        estimator, test = reference_run(config, seed)
        rows = compared(estimator, test, config, seed)
        placed = positions(estimator, test, config)
    exact = estimator.estimate(estimator.reference).parameters - estimator.retrain(estimator.reference)
    checks = [Check("greatest error for the reference order", float(exact.abs().max()), "<=", 1e-6)]
    checks += _ends(rows) + _losses(rows) + _positions(placed)
    if not full:
        checks = [checks[0], *(replace(check, threshold=None) for check in checks[1:])]
    notes = [
        f"{len(estimator.start)} parameters, {config.batches} batches, learning rate {config.lr:g} after {config.warmup} steps of warm-up.",
        "Correlations that are missing have a constant side.",
        "With Adam's β1 = .9 the last batch moves the parameters by a tenth of its gradient, the first by nearly all: where the retrained "
        "runs say that last is not remembered better, that is why. With β1 = 0 (seed 100) it was, for 3 of 3 batches.",
    ]
    return Claim("order-effects", STATEMENT, checks, rows + placed, seed, scale, notes, _curves(rows, placed))


def texts(config: Config, seed: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The batches, the test rows (other places of the first two modules), and the rows of every step of the warm-up.

    Raises:
        InputError: the sources of Python's library are not there.
    """
    rng = np.random.default_rng(seed)
    size = config.rows * config.length

    def rows(data: bytes, start: int) -> Tensor:
        return torch.tensor(list(data[start : start + size])).view(config.rows, config.length)

    batches, tests = [], []
    for name in MODULES[: config.batches]:
        data = _source(name)
        places = rng.permutation((len(data) - size) // size)[:3] * size  # disjoint: one for the batch, two for the test
        batches.append(rows(data, int(places[0])))
        tests.append([rows(data, int(place)) for place in places[1:]])
    warm = _source(WARM)
    return batches, torch.cat([*tests[0], *tests[1]]), [rows(warm, int(at)) for at in rng.integers(0, len(warm) - size, config.warmup)]


def _source(name: str) -> bytes:
    spec = find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f"The source of Python's module {name} is not there.", "Use a Python that ships its library's sources.")
    return Path(spec.origin).read_bytes()


def reference_run(config: Config, seed: int) -> tuple[OrderEstimator, Tensor]:
    """The estimator after its reference run, and the test rows."""
    batches, test, warm = texts(config, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ByteLM(config.width, config.length - 1).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.warmup_lr)
    for step in warm:
        optimizer.zero_grad()
        mean_loss(model, step).backward()
        optimizer.step()
    optimizer.param_groups[0]["lr"] = config.lr
    return OrderEstimator(model, mean_loss, batches, optimizer).fit(), test


def compared(estimator: OrderEstimator, test: Tensor, config: Config, seed: int) -> list[dict[str, Any]]:
    """One row an order and way to estimate it; in way "reference" the order does not matter."""
    rng = np.random.default_rng((seed, 1))
    orders: list[tuple[int, ...]] = []
    while len(orders) < config.orders:
        order = tuple(int(b) for b in rng.permutation(config.batches))
        if order != estimator.reference:
            orders.append(order)
    end = estimator.retrain(estimator.reference)
    rows = []
    for number, order in enumerate(orders):
        truth = estimator.retrain(order)
        true_own = [estimator.loss(truth, batch) for batch in estimator.batches]
        found = {(mode, space): estimator.estimate(order, mode, space) for space in ("gradient", "update") for mode in MODES}
        ends: dict[tuple[str, str], tuple[Tensor, float | None]] = {("reference", ""): (end, None)}
        ends |= {way: (estimate.parameters, estimate.ratio) for way, estimate in found.items()}
        for (mode, space), (parameters, ratio) in ends.items():
            rows.append({
                "kind": "order", "order": number, "mode": mode, "space": space,
                "away": float((parameters - truth).norm()),
                "test": estimator.loss(parameters, test), "true_test": estimator.loss(truth, test),
                "own": [estimator.loss(parameters, batch) for batch in estimator.batches], "true_own": true_own, "ratio": ratio,
            })  # fmt: skip
    return rows


def positions(estimator: OrderEstimator, test: Tensor, config: Config) -> list[dict[str, Any]]:
    """One row a batch and position: own loss, estimated and true. The batches are spread over the reference order."""
    rows = []
    for place in np.linspace(0, config.batches - 1, config.positions).round().astype(int):
        batch = estimator.reference[place]
        estimated = position_effect(estimator, batch, test).table["own"].to_list()
        for position, order in enumerate(moved(estimator.reference, batch)):
            true = estimator.loss(estimator.retrain(order), estimator.batches[batch])
            rows.append({"kind": "position", "batch": batch, "position": position, "own": estimated[position], "true_own": true})
    return rows


def _of(rows: list[dict[str, Any]], mode: str, space: str = "gradient") -> list[dict[str, Any]]:
    return [row for row in rows if row["mode"] == mode and row["space"] == space]


def _ends(rows: list[dict[str, Any]]) -> list[Check]:
    """Distances of ends, as shares of the distance between the orders."""
    apart = float(np.mean([row["away"] for row in _of(rows, "reference", "")]))
    away = {
        (mode, space): float(np.mean([row["away"] for row in _of(rows, mode, space)])) / apart
        for mode in MODES
        for space in ("gradient", "update")
    }
    zero, first, second = (away[mode, "gradient"] for mode in MODES)
    return [
        Check("distance of reordered and reference ends", apart),
        Check("first order: distance from the truth", first, "<=", 0.1, unit="share"),
        Check("second order: distance from the truth", second, "<", first, unit="share"),
        Check("zero order: distance from the truth", zero, ">", first, unit="share"),
        *(Check(f"{mode} order of the update: distance", away[mode, "update"], unit="share") for mode in MODES),
    ]


def _losses(rows: list[dict[str, Any]]) -> list[Check]:
    first, plain = _of(rows, "first"), _of(rows, "reference", "")
    truth = [row["true_test"] for row in first]

    def error(some: list[dict[str, Any]]) -> float:
        return float(np.mean([abs(row["test"] - row["true_test"]) for row in some]))

    def per_batch(some: list[dict[str, Any]]) -> float | None:
        """Of every batch's loss after training, less its loss after the reference run."""
        moves = [
            (np.subtract(row["own"], base["own"]), np.subtract(row["true_own"], base["own"])) for row, base in zip(some, plain, strict=True)
        ]
        return _correlation(np.concatenate([a for a, _ in moves]), np.concatenate([b for _, b in moves]))

    return [
        Check("spread of the true test loss", float(np.ptp(truth)), unit="nat"),
        Check("first order: Spearman of test losses", _correlation([row["test"] for row in first], truth), ">=", 0.9),
        Check("zero order: Spearman of test losses", _correlation([row["test"] for row in _of(rows, "zero")], truth)),
        Check("first order: error of the test loss", error(first) / error(plain), "<=", 0.2, baseline=1.0, unit="share"),
        Check("first order: Spearman of the batches' losses", per_batch(first), baseline=per_batch(_of(rows, "zero"))),
    ]


def _correlation(a: Any, b: Any) -> float | None:
    return spearman(a, b) if np.ptp(a) > 0 and np.ptp(b) > 0 else None


def _positions(rows: list[dict[str, Any]]) -> list[Check]:
    curves = [[row for row in rows if row["batch"] == batch] for batch in dict.fromkeys(row["batch"] for row in rows)]
    own, true = ([[row[name] for row in curve] for curve in curves] for name in ("own", "true_own"))
    return [
        Check(
            "positions: least Pearson correlation", min(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(own, true, strict=True)), ">=", 0.9
        ),
        Check("batches remembered better last than first", sum(a[-1] < a[0] for a in own), "==", len(own), unit="batches"),
        Check("… in truth", sum(a[-1] < a[0] for a in true), unit="batches"),
    ]


def _curves(rows: list[dict[str, Any]], placed: list[dict[str, Any]]) -> list[Curve]:
    scatter = [
        Series(f"{mode} order", [{"x": row["true_test"], "y": row["test"]} for row in _of(rows, mode)], style="points") for mode in MODES
    ]
    ends = sorted(row["true_test"] for row in _of(rows, "first"))[:: max(1, len(_of(rows, "first")) - 1)]
    scatter.append(Series("exact", [{"x": x, "y": x} for x in ends], style="dashed"))
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in placed):
        for name, label, style in (("own", "estimated", "line"), ("true_own", "retrained", "points")):
            points = [{"x": row["position"], "y": row[name]} for row in placed if row["batch"] == batch]
            lines.append(Series(f"batch {batch}, {label}", points, style=style))
    return [
        Curve("order-effects-test", "Test losses of other orders, estimated and retrained", "retrained (nat)", "estimated (nat)", scatter),
        Curve("order-effects-positions", "A batch is remembered by its place", "position", "own loss after training (nat)", lines),
    ]
