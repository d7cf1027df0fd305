"""A certain lower bound of near-verbatim extraction: the likeliest outputs within eps substitutions of the suffix, found by beam search.

Sampling cannot see what happens less than about once in its trials. A beam search that only keeps prefixes within Hamming distance
eps of the true suffix x finds the `width` likeliest members y of that ball; they are different outputs, so that

    sum of p(y) over the beam  <=  P(dist(y, x) <= eps)

holds without any chance, however small the probability, at the cost of `width` continuations (the option named in Hayes et al.,
NAACL 2025, arXiv 2410.19482, as followed up by the same group). The exact suffix is always kept, so that the bound is at least p_z;
with a width that holds the whole ball it is exact.

One search: `width` rows (hypotheses) share the prefix's key-value cache; at every step each has one child with the true token, and,
while it has errors left, one for every other token that the decoding scheme admits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.errors import CapabilityError, InputError
from palimpsest.models import HFModel
from palimpsest.models.base import LanguageModel, Progress, Sampler
from palimpsest.models.sampler_scores import warpers


def ball_lower_bound(
    model: LanguageModel, samples: Sequence[PrefixSuffix], eps: int, sampler: Sampler, width: int = 20, progress: Progress | None = None
) -> np.ndarray:
    """Lower bound of log P(an output has at most `eps` tokens that differ from the suffix's), float64 (samples,).

    Args:
        model: needs "weights" (next-token distributions of many prefixes).
        samples: passages.
        eps: substitutions allowed.
        sampler: the decoding scheme; temperature > 0.
        width: hypotheses kept.
        progress: called with (samples done, samples in all).

    Returns:
        log-probabilities; -inf where the beam holds no output that the scheme can write.

    Raises:
        InputError: eps < 0, width < 1, greedy decoding, or a passage longer than the context.
        CapabilityError: the door has no weights, or its model keeps no key-value cache.
    """
    require_samples(samples)
    if eps < 0 or width < 1 or sampler.temperature == 0:
        raise InputError(f"eps {eps}, width {width}, {sampler}.", "Give eps >= 0, width >= 1 and a temperature above 0.")
    model.require("weights", "The lower bound of near-verbatim extraction")
    if not isinstance(model, HFModel):
        raise model.lacks("weights", "The lower bound of near-verbatim extraction")
    longest = max(len(sample.ids) for sample in samples) + int(model.prepends_bos)
    if longest > model.context_length:
        raise InputError(f"A passage of {longest} tokens exceeds the context of {model.context_length}.", "Give shorter passages.")
    out = np.empty(len(samples))
    for number, sample in enumerate(samples):
        out[number] = _search(model, sample, eps, sampler, width)
        if progress:
            progress(number + 1, len(samples))
    return out


@torch.inference_mode()
def _search(model: HFModel, sample: PrefixSuffix, eps: int, sampler: Sampler, width: int) -> float:
    bos = [model.tokenizer.bos_id] if model.prepends_bos else []
    fed = torch.tensor([[*bos, *sample.prefix.tolist()]], device=model.device)
    log_p = torch.zeros(1, dtype=torch.float64, device=model.device)  # of each hypothesis
    left = torch.full((1,), eps, device=model.device)  # substitutions it may still make
    state = model.model(input_ids=fed, use_cache=True)
    for position, truth in enumerate(sample.suffix.tolist()):
        logits = state.logits[:, -1].float()
        for warp in warpers(sampler):
            logits = warp(None, logits)
        children = log_p[:, None] + logits.double().log_softmax(dim=-1)  # (hypotheses, vocabulary)
        exact = children[0, truth].clone()  # row 0 is always the true suffix so far
        others = torch.ones_like(children, dtype=torch.bool)
        others[:, truth] = False
        children = children.masked_fill(others & (left == 0)[:, None], -torch.inf)
        children[0, truth] = torch.inf  # kept, and first, whatever it is worth
        flat, best = children.flatten().topk(min(width, children.numel()))
        parents, tokens = best // children.shape[1], best % children.shape[1]
        kept = flat > -torch.inf
        parents, tokens, log_p = parents[kept], tokens[kept], flat[kept]
        log_p[0] = exact
        left = left[parents] - (tokens != truth).long()
        if position + 1 < sample.suffix_len:
            cache = state.past_key_values
            if not hasattr(cache, "batch_select_indices"):
                raise CapabilityError(f"{model.name} keeps no key-value cache.", "Estimate by sampling: measure_near_verbatim.")
            cache.batch_select_indices(parents)
            state = model.model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
    return float(torch.logsumexp(log_p, dim=0))
