"""How many examples one multi-head attention layer learns by training, for every number of heads: the authors' study in small.

Mahdavi, Liao and Thrampoulidis, ICLR 2024, arXiv 2306.02010; the theory stands in `capacity`. Queries and contexts are uniform on [0, 1],
contexts carry sinusoidal positions, logits are divided by √d, a head has one value (V_h is (d, 1)) and a linear map reads the H values into
`classes` labels drawn at random:

    logits^(t) = b + Σ_h (θ_h^(t)ᵀ E^(t) V_h) O_h,    θ_h^(t) = softmax(E^(t) K_h Q_hᵀ e^(t) / √d).

Adam with linear warm-up and a cosine, as there. Here the query is no key of its own context to begin with (they mask it), batches are full,
steps are fewer and the learning rate is larger; the models of all T are trained side by side.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import polars as pl
import torch
import torch.nn.functional as F

from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment


@dataclass(frozen=True)
class TrainingStudy:
    """What is trained.

    Attributes:
        heads: numbers of heads H.
        examples: numbers of examples T.
        restarts: models of each, from other weights.
        n, d, head_dim: context vectors, dimensions, rank of a head.
        contexts: "shared" (one for all examples) or "random" (one each).
        classes: labels are drawn uniformly from so many.
        steps, lr: of Adam, full batches; linear warm-up over 5 % of the steps, then a cosine to 0.
        seed: of data, labels and weights.
    """

    heads: tuple[int, ...] = (1, 2, 4)
    examples: tuple[int, ...] = (8, 16, 32)
    restarts: int = 1
    n: int = 8
    d: int = 64
    head_dim: int = 64
    contexts: str = "shared"
    classes: int = 100
    steps: int = 3000
    lr: float = 1e-2
    seed: int = 0


def capacity_by_training(study: TrainingStudy) -> Measurement:
    """Trains one layer for every number of heads and examples, and says how many examples each number of heads memorized.

    Returns:
        table: one row a model: heads, examples, restart, accuracy, loss (nat), saturated (share of weights with a maximum above .9).
        summary: capacity = {heads: the largest T that some model learnt to 100 %; 0 if none did}.

    Raises:
        InputError: a number below 1, or an unknown kind of contexts.
    """
    numbers = (*study.heads, *study.examples, study.n, study.d, study.head_dim, study.steps, study.restarts, study.classes - 1)
    if not study.heads or not study.examples or min(numbers) < 1 or study.contexts not in ("shared", "random") or not study.lr > 0:
        raise InputError(f"{study}.", "Give numbers of at least 1, 2 classes, and contexts 'shared' or 'random'.")
    rows = [row for heads in study.heads for row in _trained(study, heads)]
    table = pl.DataFrame(rows).sort("heads", "examples", "restart")
    capacity = {
        heads: max((row["examples"] for row in rows if row["heads"] == heads and row["accuracy"] == 1), default=0) for heads in study.heads
    }
    return Measurement("capacity", table, {"capacity": capacity}, {"study": asdict(study), "environment": environment()})


def _trained(study: TrainingStudy, heads: int) -> list[dict[str, float | int]]:
    """The models of all T, side by side: the sum of their losses has the gradient of each."""
    generator = torch.Generator().manual_seed(study.seed)
    sizes = [size for size in study.examples for _ in range(study.restarts)]
    T, M, d = max(sizes), len(sizes), study.d
    queries = torch.rand(T, d, generator=generator)
    own = "" if study.contexts == "shared" else "t"  # the index of the example in what depends on contexts
    contexts = torch.rand((T, study.n, d) if own else (study.n, d), generator=generator) + _positions(study.n, d)
    labels = torch.randint(study.classes, (T,), generator=generator).expand(M, T)
    member = (torch.arange(T) < torch.tensor(sizes)[:, None]).float()  # (M, T)

    def normal(*shape: int, fan_in: int) -> torch.Tensor:
        made = torch.randn((study.restarts, *shape), generator=generator) / math.sqrt(fan_in)
        return made.repeat(len(study.examples), *(1 for _ in shape)).requires_grad_()

    key, query = normal(heads, d, study.head_dim, fan_in=d), normal(heads, d, study.head_dim, fan_in=d)
    value, out = normal(heads, d, fan_in=d), normal(heads, study.classes, fan_in=heads)
    bias = torch.zeros(M, study.classes, requires_grad=True)
    optimizer = torch.optim.Adam([key, query, value, out, bias], lr=study.lr)
    warmup = max(1, study.steps // 20)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        asked = torch.einsum("td,mhdr->mthr", queries, query)
        keys = torch.einsum(f"{own}nd,mhdr->m{own}hnr", contexts, key)
        theta = (torch.einsum(f"mthr,m{own}hnr->mthn", asked, keys) / math.sqrt(d)).softmax(-1)
        read = torch.einsum(f"mthn,m{own}hn->mth", theta, torch.einsum(f"{own}nd,mhd->m{own}hn", contexts, value))
        return torch.einsum("mth,mhc->mtc", read, out) + bias[:, None], theta

    def losses(logits: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(M, T)
        return (each * member).sum(1) / member.sum(1)

    for step in range(study.steps):
        share = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, study.steps - warmup)))
        optimizer.param_groups[0]["lr"] = study.lr * min(1.0, (step + 1) / warmup) * share
        optimizer.zero_grad()
        losses(forward()[0]).sum().backward()
        optimizer.step()
    with torch.no_grad():
        logits, theta = forward()
        hits = ((logits.argmax(-1) == labels) * member).sum(1)
        sharp = ((theta.amax(-1) > 0.9).float().mean(-1) * member).sum(1) / member.sum(1)
        ends = losses(logits)
    return [
        {
            "heads": heads,
            "examples": size,
            "restart": m % study.restarts,
            "accuracy": int(hits[m]) / size,
            "loss": float(ends[m]),
            "saturated": float(sharp[m]),
        }
        for m, size in enumerate(sizes)
    ]


def _positions(n: int, d: int) -> torch.Tensor:
    """Sinusoidal positions, (n, d)."""
    angle = torch.arange(n)[:, None] / 10000 ** (torch.arange(0, d, 2) / d)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :d]
