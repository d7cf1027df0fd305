"""(n, p)-extraction: the arithmetic against exact fractions, the probabilities against transformers and against real samples."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.audit.near_verbatim import measure_near_verbatim
from palimpsest.audit.probabilistic import measure_probabilistic, n_for, p_for, suffix_logprob
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import CapabilityError, InputError
from palimpsest.models import GREEDY, Sampler
from palimpsest.stats import clopper_pearson

PREFIX, SUFFIX = 24, 8


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 60), st.integers(2, 60), st.sampled_from([0.1, 0.5, 0.9, 0.99]))
def test_n_for_is_the_smallest_whole_number_by_exact_arithmetic(numerator, denominator, p):
    p_z = Fraction(min(numerator, denominator), denominator)
    n = int(n_for(p, math.log(p_z)))
    assert 1 - (1 - p_z) ** n >= Fraction(p) - Fraction(1, 10**12)
    assert n == 1 or 1 - (1 - p_z) ** (n - 1) < Fraction(p)


@settings(deadline=None, max_examples=200)
@given(st.floats(-600, -1e-9), st.sampled_from([0.1, 0.5, 0.99]))
def test_p_for_undoes_n_for(log_p, p):
    n = n_for(p, log_p)
    assert p_for(n, log_p) >= p - 1e-9
    if n > 1:
        assert p_for(max(1.0, n * (1 - 1e-9) - 1), log_p) <= p + 1e-9


def test_tiny_probabilities_neither_overflow_nor_vanish():
    log_p = np.log(1e-300)
    assert n_for(0.5, log_p) == pytest.approx(math.log(2) * 1e300, rel=1e-9)
    assert p_for(1e300, log_p) == pytest.approx(-math.expm1(-1), rel=1e-9)
    assert p_for(1, log_p) == pytest.approx(1e-300, rel=1e-9)
    assert n_for(0.5, -5000.0) == np.inf == n_for(0.5, -np.inf)
    assert p_for(1e300, -np.inf) == 0
    assert n_for(0.99, 0.0) == 1
    assert p_for(1, 0.0) == 1
    around = np.array([-37.0001, -36.9999])  # the two forms meet
    assert np.diff(np.log(n_for(0.5, around)))[0] == pytest.approx(-0.0002, abs=1e-9)


def test_monotone_in_n_and_antitone_in_p():
    log_p = -np.linspace(0.001, 40, 500)
    for p in (0.1, 0.5, 0.9):
        assert (np.diff(n_for(p, log_p)) >= 0).all()
        assert (n_for(p, log_p) <= n_for(p + 0.05, log_p)).all()
    assert (p_for(10, log_p) <= p_for(11, log_p)).all()


@pytest.mark.parametrize("call", [lambda: n_for(0.0, -1), lambda: n_for(1.0, -1), lambda: n_for(0.5, np.nan), lambda: n_for(0.5, 0.1)])
def test_impossible_probabilities_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_zero_samples_are_refused():
    with pytest.raises(InputError, match="0"):
        p_for(0, -1.0)


def test_without_truncation_it_is_the_product_of_the_models_probabilities(tiny_model, known_samples):
    log_p = suffix_logprob(tiny_model, known_samples, Sampler(1.0))
    plain = [lp.astype(np.float64).sum() for lp in tiny_model.score([s.ids for s in known_samples], start=PREFIX).logprobs]
    assert log_p == pytest.approx(np.array(plain), abs=1e-4)


@pytest.mark.parametrize("scheme", [Sampler(1.0, top_k=1), GREEDY])
def test_top_k_of_one_is_the_greedy_indicator(tiny_model, known_samples, scheme):
    log_p = suffix_logprob(tiny_model, known_samples, scheme)
    extracted = np.array([s.meta["right"] == SUFFIX for s in known_samples])
    assert (log_p[extracted] == 0).all()
    assert (log_p[~extracted] == -np.inf).all()


@pytest.mark.parametrize("scheme", [Sampler(0.7, top_k=20), Sampler(1.3, top_p=0.8), Sampler(0.9, top_k=30, top_p=0.7)])
def test_the_processed_distribution_is_the_one_that_transformers_samples_from(tiny_model, known_samples, scheme):
    """Greedy text of the scheme's own warpers: `generate(output_scores=True)` gives the logits that transformers would sample from."""
    prefixes = torch.tensor(np.stack([s.prefix for s in known_samples[:6]]))
    torch.manual_seed(0)
    out = tiny_model.model.generate(
        prefixes,
        attention_mask=torch.ones_like(prefixes),
        do_sample=True,
        temperature=scheme.temperature,
        top_k=scheme.top_k or 0,
        top_p=scheme.top_p or 1.0,
        min_new_tokens=SUFFIX,
        max_new_tokens=SUFFIX,
        eos_token_id=None,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    written = out.sequences[:, PREFIX:]
    steps = torch.stack([step.double().log_softmax(-1) for step in out.scores], dim=1)  # (rows, time, vocabulary)
    expected = steps.gather(-1, written[..., None])[..., 0].sum(-1).numpy()
    samples = [PrefixSuffix(row.numpy(), PREFIX, SUFFIX) for row in out.sequences]
    assert suffix_logprob(tiny_model, samples, scheme) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scheme", [Sampler(1.0), Sampler(0.5, top_k=3), Sampler(1.5, top_p=0.6)])
def test_probabilities_of_all_suffixes_add_up_to_one(toy_model, scheme):
    samples = [PrefixSuffix(np.array([3, 1, 2, a, b]), 3, 2) for a in range(5) for b in range(5)]
    assert np.exp(suffix_logprob(toy_model, samples, scheme)).sum() == pytest.approx(1, abs=1e-6)


def test_probabilities_are_the_frequencies_of_real_samples(toy_model):
    model, scheme = toy_model, Sampler(0.8, top_k=4)
    samples = [PrefixSuffix(np.array([3, 1, 2, a, b]), 3, 2) for a in range(5) for b in range(5)]
    expected = np.exp(suffix_logprob(model, samples, scheme))
    drawn = model.generate([np.array([3, 1, 2])], 2, temperature=0.8, top_k=4, n=4000, seed=1, stop_at_eos=False)[0]
    seen = np.bincount([5 * row[0] + row[1] for row in drawn], minlength=25) / 4000
    assert (np.abs(seen - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9).all()
    assert (seen[expected == 0] == 0).all()


def test_measurement_groups_rates_and_greedy_line(tiny_model, known_samples):
    result = measure_probabilistic(tiny_model, known_samples, n=(1, 100, 10**6), p=(0.5, 0.9), sampler=Sampler(1.0, top_k=40))
    log_p = suffix_logprob(tiny_model, known_samples)
    extracted = np.array([s.meta["right"] == SUFFIX for s in known_samples])
    assert result.table["greedy"].to_list() == extracted.tolist()
    assert np.exp(result.table["log_p"].fill_null(-np.inf).to_numpy()) == pytest.approx(np.exp(log_p))
    rates = {(row["n"], row["p"]): row["rate"] for row in result.summary["overall"]["rates"]}
    for (n, p), rate in rates.items():
        assert rate == np.mean(p_for(n, log_p) >= p - 1e-12)
    assert rates[1, 0.5] <= rates[100, 0.5] <= rates[10**6, 0.5]
    assert rates[100, 0.9] <= rates[100, 0.5]
    groups = result.summary["by_copies"]
    assert [group["copies"] for group in groups] == [0, 1, 4, 16, 64]
    assert sum(group["n_samples"] for group in groups) == 40
    assert groups[-1]["greedy"]["rate"] == 1
    assert result.summary["planted"]["n_samples"] == 32
    # from the crossing on, and not before, sampling extracts as many passages as greedy decoding
    crossing = result.summary["overall"]["crossing_n"]
    assert np.sum(p_for(crossing, log_p) >= 0.5 - 1e-12) >= extracted.sum() > np.sum(p_for(crossing - 1, log_p) >= 0.5 - 1e-12)
    assert set(result.curves) == {"probabilistic-n", "probabilistic-n-copies", "probabilistic-copies"}
    assert result.provenance["sampler"] == {"temperature": 1.0, "top_k": 40, "top_p": None}
    assert result.to_json()


def test_greedy_as_a_scheme_extracts_the_same_at_every_n(tiny_model, known_samples):
    result = measure_probabilistic(tiny_model, known_samples, n=(1, 1000), sampler=GREEDY)
    greedy = result.summary["overall"]["greedy"]["rate"]
    assert {row["rate"] for row in result.summary["overall"]["rates"]} == {greedy}
    assert result.table.filter(~result.table["greedy"])["log_p"].null_count() == result.table.height - result.table["greedy"].sum()
    assert result.summary["by_copies"][0]["median_n"] is None


def test_without_copies_there_is_one_curve(tiny_model, known_samples):
    bare = [PrefixSuffix(s.ids, s.prefix_len, s.suffix_len) for s in known_samples]
    result = measure_probabilistic(tiny_model, bare)
    assert result.summary["by_copies"] == []
    assert set(result.curves) == {"probabilistic-n"}


def test_bad_questions_are_refused(tiny_model, narrow_door, known_samples):
    with pytest.raises(InputError, match="no samples"):
        measure_probabilistic(tiny_model, [])
    with pytest.raises(InputError, match="n is"):
        measure_probabilistic(tiny_model, known_samples, n=(0,))
    with pytest.raises(InputError, match="p is"):
        measure_probabilistic(tiny_model, known_samples, p=(1.0,))
    with pytest.raises(CapabilityError, match="logprobs"):
        measure_probabilistic(narrow_door(tiny_model, {"text"}), known_samples)


def test_near_verbatim_probability_is_the_sum_over_the_ball(toy_model):
    model, scheme = toy_model, Sampler(1.0)
    everything = [PrefixSuffix(np.array([3, 1, 2, a, b]), 3, 2) for a in range(5) for b in range(5)]
    probability = np.exp(suffix_logprob(model, everything, scheme))
    target = PrefixSuffix(np.array([3, 1, 2, 4, 0]), 3, 2, {"copies": 1})
    for eps in (0, 1, 2):
        ball = min(1.0, sum(q for q, s in zip(probability, everything, strict=True) if (s.suffix != target.suffix).sum() <= eps))
        result = measure_near_verbatim(model, [target], eps, trials=3000, sampler=scheme, seed=3)
        row = result.table.row(0, named=True)
        assert abs(row["probability"] - ball) <= 4 * math.sqrt(ball * (1 - ball) / 3000) + 1e-5
        assert (row["low"], row["high"]) == clopper_pearson(row["hits"], 3000)[1:]
    rates = {(rate["n"], rate["p"]): (rate["rate"], rate["certain"]) for rate in result.summary["rates"]}
    assert rates[1, 0.99] == (1.0, 1.0)  # eps = 2 is everything, and 3000 of 3000 prove more than 0.99


def test_edit_distance_forgives_a_shift_and_hamming_does_not(tiny_model, known_samples):
    """A suffix that the model writes one token late is near by edit distance only."""
    greedy = [rows[0] for rows in tiny_model.generate([s.prefix for s in known_samples[:5]], SUFFIX + 1, stop_at_eos=False)]
    late = [PrefixSuffix(np.concatenate([s.prefix, g[1:]]), PREFIX, SUFFIX) for s, g in zip(known_samples[:5], greedy, strict=True)]
    edit = measure_near_verbatim(tiny_model, late, 2, "edit", trials=1, sampler=GREEDY)
    hamming = measure_near_verbatim(tiny_model, late, 2, "hamming", trials=1, sampler=GREEDY)
    assert edit.table["hits"].to_list() == [1] * 5
    assert hamming.table["hits"].sum() < 5


@pytest.mark.parametrize("arguments", [{"eps": -1}, {"eps": 1, "distance": "vibes"}, {"eps": 1, "trials": 0}])
def test_near_verbatim_refuses_impossible_questions(tiny_model, known_samples, arguments):
    with pytest.raises(InputError):
        measure_near_verbatim(tiny_model, known_samples, **arguments)
