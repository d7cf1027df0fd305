"""The short way to a sampler's log-probs against transformers' warpers, on logits made to be difficult."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from palimpsest.errors import InputError
from palimpsest.models.base import GREEDY, Sampler
from palimpsest.models.sampler_scores import sampler_logprobs, warpers
from palimpsest.models.token_scores import NonFiniteLogitsError, token_scores


def by_warpers(x: torch.Tensor, target: torch.Tensor, sampler: Sampler) -> np.ndarray:
    for warp in warpers(sampler):
        x = warp(None, x)
    return x.double().log_softmax(-1).gather(-1, target[:, None])[:, 0].numpy()


def check(x: torch.Tensor, target: torch.Tensor, samplers: list[Sampler]) -> None:
    found = sampler_logprobs(x, target, samplers, x.argmax(-1) == target)
    for sampler, values in zip(samplers, found, strict=True):
        expected = by_warpers(x, target, sampler)
        np.testing.assert_array_equal(np.isneginf(values), np.isneginf(expected), err_msg=str(sampler))
        finite = np.isfinite(expected)
        np.testing.assert_allclose(values.numpy()[finite], expected[finite], atol=2e-6, err_msg=str(sampler))


cuts = st.builds(
    Sampler,
    temperature=st.sampled_from([0.5, 0.7, 1.0, 1.7]),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(2, 40),
    levels=st.integers(1, 30),
    masked=st.booleans(),
    samplers=st.lists(cuts, min_size=1, max_size=3, unique=True),
)
def test_ties_everywhere(seed, vocab, levels, masked, samplers):
    """Few distinct logits: ties at the k-th logit and at the border of the nucleus are the rule."""
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.integers(0, levels, (12, vocab)) / 4, dtype=torch.float32)
    if masked:
        x[:, rng.random(vocab) < 0.3] = -torch.inf
        x[:, 0] = 0.0
    check(x, torch.tensor(rng.integers(0, vocab, 12)), samplers)


@pytest.mark.parametrize("sharpness", [0.01, 1.0, 3.0, 10.0])
def test_a_large_vocabulary(sharpness):
    """Nuclei from one token to nearly all of 5000, so that the candidates suffice for some rows and not for others."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 5000, generator=generator) * sharpness
    rank = torch.arange(96) % 48 * 3
    target = x.argsort(-1, descending=True).gather(-1, rank[:, None])[:, 0]
    check(
        x,
        target,
        [Sampler(1.0, top_p=0.9), Sampler(0.8, 40), Sampler(1.2, 50, 0.8), Sampler(1.0, top_p=0.05), Sampler(1.0, 4999), Sampler(0.6)],
    )


def test_a_top_k_that_cuts_nothing_beside_a_nucleus():
    """The nucleus reaches beyond the candidates, as it would without top-k."""
    x = torch.randn(8, 5000, generator=torch.Generator().manual_seed(2))
    target = x.argsort(-1, descending=True)[:, 1000]
    check(x, target, [Sampler(1.0, 5000, 0.9), Sampler(1.0, 9000, 0.9), Sampler(1.0, None, 0.9)])


def test_ties_at_the_kth_logit_all_stay():
    x = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    for token, share in ((0, np.exp(3)), (2, np.exp(2)), (3, np.exp(2))):
        (found,) = sampler_logprobs(x, torch.tensor([token]), [Sampler(1.0, top_k=2)], torch.tensor([token == 0]))
        assert found.item() == pytest.approx(np.log(share / (np.exp(3) + 2 * np.exp(2))))
    (cut,) = sampler_logprobs(x, torch.tensor([1]), [Sampler(1.0, top_k=2)], torch.tensor([False]))
    assert cut.item() == -np.inf


def test_greedy_takes_the_lowest_id_among_ties():
    x = torch.tensor([[1.0, 5.0, 5.0], [5.0, 1.0, 5.0]])
    scores = token_scores(x, torch.tensor([2, 0]), samplers=[GREEDY])
    assert scores.greedy_hits.tolist() == [False, True]
    assert scores.sampled[GREEDY].tolist() == [-np.inf, 0.0]


def test_a_uniform_distribution_has_no_variance():
    scores = token_scores(torch.full((3, 50_000), 7.0), torch.arange(3), moments=True)
    assert scores.var is not None
    assert scores.mean is not None
    assert torch.allclose(scores.mean, torch.full((3,), -np.log(50_000), dtype=torch.float32))
    assert (scores.var >= 0).all()
    assert (scores.var < 1e-6).all()


def test_moments_pass_over_masked_ids():
    x = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    scores = token_scores(x, torch.tensor([2]), moments=True)
    kept = token_scores(x[:, [0, 1, 3]], torch.tensor([2]), moments=True)
    assert scores.logprobs.item() == -np.inf
    torch.testing.assert_close(scores.mean, kept.mean)
    torch.testing.assert_close(scores.var, kept.var)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_bad_logit_is_found_wherever_it_stands(bad):
    x = torch.zeros(300, 20_000)
    x[257, 19_999] = bad
    with pytest.raises(NonFiniteLogitsError) as caught:
        token_scores(x, torch.zeros(300, dtype=torch.long))
    assert caught.value.index == 257
    with pytest.raises(NonFiniteLogitsError):
        token_scores(torch.full((1, 5), -torch.inf), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("options", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_samplers(options):
    with pytest.raises(InputError):
        Sampler(**options)
