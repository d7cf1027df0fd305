"""The log-probability of the realised token under a decoding scheme: temperature, then top-k, then top-p, as transformers cuts.

A token y that survives has log p = z_y − log Σ_{kept} exp z with z = x / temperature. Which tokens survive is decided by transformers'
own warpers; sorting the whole vocabulary for each position, as they do, would cost as much as the model itself. So the few
greatest logits are taken once for all schemes, and the cut is found among them in float64. Where that cannot be certain to
agree with the warpers (ties at the cut, a cumulative probability within rounding of the border, a nucleus larger than the few),
the warpers themselves are applied to that row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from palimpsest.models.base import Sampler

NUCLEUS = 128  # greatest logits looked at for a nucleus without top-k
WIDER = 16  # where these do not suffice, one in so many of the vocabulary; to look at more takes longer than the warpers
ROUNDING = 4e-6  # what float32 softmax and cumulative sum may be off by


def sampler_logprobs(x: torch.Tensor, target: torch.Tensor, samplers: Sequence[Sampler], hits: torch.Tensor) -> list[torch.Tensor]:
    """For each sampler the log-probability (rows,) float64 of `target` (rows,) under logits `x` (rows, vocabulary) float32.

    -inf where the scheme cuts the token away. `hits` (rows,) says where `target` is what greedy decoding takes.
    """
    vocab = x.shape[-1]
    widths = [_candidates(sampler, vocab, NUCLEUS) for sampler in samplers]
    best = x.topk(max(widths), dim=-1).values if any(widths) else x[:, :0]  # sorted, greatest first
    realised = x.gather(-1, target[:, None])[:, 0]
    out = []
    for sampler, width in zip(samplers, widths, strict=True):
        if sampler.temperature == 0:
            out.append(torch.zeros(len(x), dtype=torch.float64, device=x.device).masked_fill_(~hits, -torch.inf))
            continue
        if width == 0:
            scaled = x.double() if sampler.temperature == 1 else (x / sampler.temperature).double()
            out.append(scaled.gather(-1, target[:, None])[:, 0] - scaled.logsumexp(dim=-1))
            continue
        values, certain = _cut(x, realised, best[:, :width], sampler)
        unsure = (~certain).nonzero()[:, 0]
        wider = _candidates(sampler, vocab, vocab // WIDER)
        if wider > width and len(unsure):
            rest = x[unsure]
            values[unsure], certain = _cut(rest, realised[unsure], rest.topk(wider, dim=-1).values, sampler)
            unsure = unsure[~certain]
        if len(unsure):
            values[unsure] = _warped(x[unsure], target[unsure], sampler)
        out.append(values)
    return out


def warpers(sampler: Sampler) -> list[TemperatureLogitsWarper | TopKLogitsWarper | TopPLogitsWarper]:
    """The transformers processors that make up `sampler` (of temperature > 0), in transformers' order."""
    chain: list[TemperatureLogitsWarper | TopKLogitsWarper | TopPLogitsWarper] = []
    if sampler.temperature != 1:
        chain.append(TemperatureLogitsWarper(float(sampler.temperature)))
    if sampler.top_k is not None:
        chain.append(TopKLogitsWarper(int(sampler.top_k)))
    if sampler.top_p is not None and sampler.top_p < 1:
        chain.append(TopPLogitsWarper(float(sampler.top_p)))
    return chain


def _candidates(sampler: Sampler, vocab: int, nucleus: int) -> int:
    """How many of the greatest logits `_cut` needs: one more than top_k, to see a tie; 0 where nothing is cut."""
    if sampler.temperature == 0:
        return 0
    if sampler.top_k is not None and sampler.top_k < vocab:
        return sampler.top_k + 1
    return min(nucleus, vocab) if sampler.top_p is not None and sampler.top_p < 1 else 0


def _warped(x: torch.Tensor, target: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """The plain way: through the warpers, then log-softmax."""
    for warp in warpers(sampler):
        x = warp(None, x)  # type: ignore[arg-type, assignment]
    processed = x.double()
    return processed.gather(-1, target[:, None])[:, 0] - processed.logsumexp(dim=-1)


def _cut(x: torch.Tensor, realised: torch.Tensor, best: torch.Tensor, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs (rows,) float64 and whether each is certain; `best` (rows, candidates) holds the greatest logits in order."""
    own = realised / sampler.temperature
    scaled, stays, certain = surviving(x, best, sampler)
    lowest = scaled.gather(-1, stays.sum(dim=-1, keepdim=True) - 1)[:, 0]
    log_kept = scaled.double().masked_fill(~stays, -torch.inf).logsumexp(dim=-1)
    return torch.where(own >= lowest, own.double() - log_kept, -torch.inf), certain


def surviving(x: torch.Tensor, best: torch.Tensor, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which of the greatest logits a sampler that cuts leaves to be chosen from.

    Args:
        x: logits (rows, vocabulary) float32.
        best: the greatest of them in order, (rows, candidates); with top-k one candidate more than k, or the whole vocabulary.
        sampler: of temperature > 0, with top-k, top-p or both.

    Returns:
        The candidates divided by the temperature (rows, candidates, without the one that only shows a tie), which of them stay, and
        for every row whether this is certain: else the warpers must decide.
    """
    scaled = best / sampler.temperature
    vocab = x.shape[-1]
    cuts = sampler.top_k is not None and sampler.top_k < vocab
    if cuts:
        certain = scaled[:, -1] < scaled[:, -2]  # no tie at the k-th logit
        scaled = scaled[:, :-1]
        kept = scaled.double()
        log_total = kept.logsumexp(dim=-1)
        beyond = torch.zeros_like(log_total)
    else:
        kept = scaled.double()
        log_total = (x / sampler.temperature).logsumexp(dim=-1).double() if scaled.shape[-1] < vocab else kept.logsumexp(dim=-1)
        beyond = (1 - (kept - log_total[:, None]).exp().sum(dim=-1)).clamp_(min=0.0)
        certain = torch.ones_like(log_total, dtype=torch.bool)
    if sampler.top_p is None or sampler.top_p >= 1:
        return scaled, torch.ones_like(scaled, dtype=torch.bool), certain
    # A token stays if the tokens from it downwards weigh more than 1 - top_p together.
    weight = (kept - log_total[:, None]).exp()
    downwards = weight.flip(-1).cumsum(-1).flip(-1) + beyond[:, None]  # (rows, candidates), falling
    border = 1 - sampler.top_p
    stays = downwards > border
    stays[:, 0] = True
    certain &= ((downwards - border).abs() > ROUNDING).all(dim=-1)
    if not cuts and scaled.shape[-1] < vocab:
        certain &= beyond < border - ROUNDING  # else the nucleus reaches beyond the candidates
    last = stays.sum(dim=-1, keepdim=True) - 1
    lowest = scaled.gather(-1, last)[:, 0]
    following = scaled.gather(-1, (last + 1).clamp_(max=scaled.shape[-1] - 1))[:, 0]
    certain &= (following < lowest) | (last[:, 0] == scaled.shape[-1] - 1)  # no tie at the border of the nucleus
    return scaled, stays, certain
