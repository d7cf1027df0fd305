"""Choosing for many rows at once against the plain way: transformers' warpers, then the cumulative distribution of the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.guard import MemFreeProcessor, NgramSet
from palimpsest.models.base import Sampler
from palimpsest.models.sampler_scores import warpers
from palimpsest.serving.choosing import RowGuard, Writer, choose
from palimpsest.serving.requests import GenerationRequest

VOCAB = 20_000  # beyond both widths that are looked at first
SAMPLERS = [(1.0, None, None), (0.6, 40, None), (1.0, None, 0.9), (1.3, None, 0.97), (0.8, 3000, 0.5), (1.0, 30_000, 0.8), (1.0, 1, None)]


def plainly(row, sampler, uniform):
    """One row, one step after the other."""
    for warp in warpers(sampler):
        row = warp(None, row)
    cumulative = np.cumsum(row[0].double().softmax(-1).numpy())
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


@pytest.mark.parametrize("scale", [0.5, 2.5, 6.0])  # nuclei of most of the vocabulary, of some hundreds, of a few
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SAMPLERS)
def test_draws_are_those_of_the_whole_distribution(scale, temperature, top_k, top_p):
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(int(10 * scale))) * scale
    logits[5, 7] = logits[5, 9] = logits[5].max() + 1  # a tie
    asked = [GenerationRequest([1], temperature=temperature, top_k=top_k, top_p=top_p, seed=seed) for seed in range(6)]
    found = [choice.token for choice in choose([Writer(request, [1], False) for request in asked], logits)]
    sampler = Sampler(temperature, top_k, top_p)
    expected = [plainly(logits[i : i + 1], sampler, Writer(request, [1], False).random()) for i, request in enumerate(asked)]
    assert found == expected


def test_rows_of_every_kind_at_once_and_the_logits_stay():
    """Greedy beside sampled, biased beside not finite: each row is its own."""
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    logits[3, 4] = torch.nan
    before = logits.clone()
    kinds = [{}, {"temperature": 1.0, "seed": 4}, {"logit_bias": {9: 50.0}}, {}, {"temperature": 0.5, "top_k": 2, "logprobs": 2}]
    requests = [GenerationRequest([1], **kind) for kind in kinds]
    together = choose([Writer(request, [1], False) for request in requests], logits)
    alone = [choose([Writer(request, [1], False)], logits[i : i + 1])[0] for i, request in enumerate(requests)]
    assert together == alone
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))
    assert together[0].token == int(logits[0].argmax())
    assert together[2].token == 9
    assert together[3].token is None


def test_the_guard_has_the_last_word():
    """A bias does not outweigh it, and each row is judged by its own last tokens."""
    guard = RowGuard(MemFreeProcessor(NgramSet.from_documents([[1, 2, 3], [4, 5, 6]], n=3)))
    logits = torch.zeros(3, 10)
    requests = [GenerationRequest(prompt, logit_bias={3: 9.0, 6: 8.0}) for prompt in ([1, 2], [7, 8, 4], [2])]
    writers = [Writer(request, list(request.prompt_ids), True) for request in requests]
    writers[1].write(5)
    assert [choice.token for choice in choose(writers, logits, guard)] == [6, 3, 3]
    assert [writer.interventions for writer in writers] == [1, 0, 0]
    assert (guard.counts.choices, guard.counts.guarded, guard.counts.blocked) == (3, 2, 1)
