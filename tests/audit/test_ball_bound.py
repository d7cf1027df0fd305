"""The lower bound against the sum over the whole ball, which a vocabulary of five ids allows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from palimpsest.audit.ball_bound import ball_lower_bound
from palimpsest.audit.near_verbatim import measure_near_verbatim
from palimpsest.audit.probabilistic import suffix_logprob
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import CapabilityError, InputError
from palimpsest.models import GREEDY, Sampler

LENGTH = 4


@pytest.fixture(scope="module")
def everything():
    """All outputs of four tokens over five ids after one prefix."""
    return [PrefixSuffix(np.array([3, 1, 2, *suffix]), 3, LENGTH) for suffix in itertools.product(range(5), repeat=LENGTH)]


@pytest.mark.parametrize("scheme", [Sampler(1.0), Sampler(0.7, top_k=3), Sampler(1.2, top_p=0.8)])
@pytest.mark.parametrize("eps", [0, 1, 2, 4])
def test_wide_beams_are_exact_and_narrow_ones_lower(toy_model, everything, scheme, eps):
    probability = np.exp(suffix_logprob(toy_model, everything, scheme))
    for number in (0, 77, int(probability.argmax()), int(probability.argmin())):
        target = everything[number]
        ball = sum(q for q, other in zip(probability, everything, strict=True) if (other.suffix != target.suffix).sum() <= eps)
        exact = np.exp(ball_lower_bound(toy_model, [target], eps, scheme, width=5**LENGTH)[0])
        assert exact == pytest.approx(ball, abs=1e-6)
        for width in (1, 3, 20):
            bound = np.exp(ball_lower_bound(toy_model, [target], eps, scheme, width)[0])
            assert probability[number] * (1 - 1e-5) <= bound <= ball + 1e-6


def test_it_is_the_verbatim_probability_without_substitutions(tiny_model, known_samples):
    scheme = Sampler(1.0, top_k=40)
    bound = ball_lower_bound(tiny_model, known_samples[:8], 0, scheme)
    assert np.exp(bound) == pytest.approx(np.exp(suffix_logprob(tiny_model, known_samples[:8], scheme)), rel=1e-3, abs=1e-12)


def test_it_lies_below_what_sampling_finds(tiny_model, known_samples):
    """Greedy text with one token changed: one substitution away from the likeliest output."""
    near = [sample for sample in known_samples if sample.meta["right"] == 8][:4]
    bound = np.exp(ball_lower_bound(tiny_model, near, 2, Sampler(0.5), width=50))
    sampled = measure_near_verbatim(tiny_model, near, 2, trials=400, sampler=Sampler(0.5)).table
    assert (bound <= sampled["high"].to_numpy() + 1e-9).all()
    assert (bound >= np.exp(suffix_logprob(tiny_model, near, Sampler(0.5)))).all()


def test_what_has_no_bound_is_refused(tiny_model, narrow_door, known_samples):
    with pytest.raises(InputError, match="eps -1"):
        ball_lower_bound(tiny_model, known_samples, -1, Sampler(1.0))
    with pytest.raises(InputError, match="greedy"):
        ball_lower_bound(tiny_model, known_samples, 1, GREEDY)
    with pytest.raises(InputError, match="exceeds the context of 128"):
        ball_lower_bound(tiny_model, [PrefixSuffix(np.arange(2, 140), 130, 8)], 1, Sampler(1.0))
    with pytest.raises(CapabilityError, match="weights"):
        ball_lower_bound(narrow_door(tiny_model, {"logprobs", "text"}), known_samples, 1, Sampler(1.0))
