"""What the logits say of the token that really came: the vocabulary-sized work of scoring.

With logits x, realised id y and p = softmax(x):

* log-probability   x_y − log Σ exp x
* greedy hit        y = argmax x, the lowest id among ties
* mean of log p     μ = Σ p log p, and its variance σ² = Σ p (log p)² − μ² (the moments of Min-K%++, Zhang et al. 2024,
                    arXiv 2404.02936)
* under a sampler   see `palimpsest.models.sampler_scores`

Everything is done in float32 on a few rows at a time, so that they stay in the processor's cache while they are read several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from palimpsest.models.base import Sampler
from palimpsest.models.sampler_scores import sampler_logprobs

CHUNK = {"cpu": 1 << 20}  # logits worked on at once: what fits into a processor's cache
CHUNK_ELSEWHERE = 1 << 26


class NonFiniteLogitsError(Exception):
    """Logits without a finite maximum, at position `index` of those given."""

    def __init__(self, index: int) -> None:
        self.index = index
        super().__init__(index)


@dataclass
class TokenScores:
    """One entry a position: see the module's docstring. `mean` and `var` are None unless asked for."""

    logprobs: torch.Tensor  # (positions,) float32
    greedy_hits: torch.Tensor  # (positions,) bool
    mean: torch.Tensor | None
    var: torch.Tensor | None
    sampled: dict[Sampler, torch.Tensor]  # each (positions,) float64


def token_scores(logits: torch.Tensor, targets: torch.Tensor, *, moments: bool = False, samplers: Sequence[Sampler] = ()) -> TokenScores:
    """Scores `targets` (positions,) under `logits` (positions, vocabulary), which may be of any floating type.

    Raises:
        NonFiniteLogitsError: a position with NaN, +inf, or nothing but -inf.
    """
    count, vocab = logits.shape
    device = logits.device
    rows = max(1, CHUNK.get(device.type, CHUNK_ELSEWHERE) // vocab)
    out = TokenScores(
        torch.empty(count, device=device),
        torch.empty(count, dtype=torch.bool, device=device),
        torch.empty(count, device=device) if moments else None,
        torch.empty(count, device=device) if moments else None,
        {sampler: torch.empty(count, dtype=torch.float64, device=device) for sampler in samplers},
    )
    for begin in range(0, count, rows):
        part = slice(begin, begin + rows)
        x = logits[part].float()  # (rows, vocabulary)
        target = targets[part]
        peak = x.amax(dim=-1)  # NaN where there is one
        finite = torch.isfinite(peak)
        if not bool(finite.all()):
            raise NonFiniteLogitsError(begin + int((~finite).nonzero()[0]))
        realised = x.gather(-1, target[:, None])[:, 0]
        greatest = (realised == peak).nonzero()[:, 0]  # few: only there the slower argmax is worth its time, to settle ties
        hits = torch.zeros_like(realised, dtype=torch.bool)
        hits[greatest] = x[greatest].argmax(dim=-1) == target[greatest]  # torch takes the lowest index among ties
        out.greedy_hits[part] = hits
        for sampler, values in zip(samplers, sampler_logprobs(x, target, samplers, hits), strict=True):
            out.sampled[sampler][part] = values
        if out.mean is None or out.var is None:
            out.logprobs[part] = x.log_softmax(dim=-1).gather(-1, target[:, None])[:, 0]
            continue
        # exp(-150) is 0 in float32: the clamp changes no sum and keeps 0 * -inf away from ids that the model has masked.
        below = (x - peak[:, None]).clamp_(min=-150.0)
        weight = below.exp()
        total = weight.sum(dim=-1)
        first = weight.mul_(below).sum(dim=-1) / total
        second = weight.mul_(below).sum(dim=-1) / total
        log_total = total.log()
        out.logprobs[part] = realised - peak - log_total
        out.mean[part] = first - log_total
        out.var[part] = (second - first.square()).clamp_(min=0.0)
    return out
