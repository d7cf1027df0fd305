"""Corrections against their definitions, scipy, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import stats
from palimpsest.errors import InputError

# multiples of 1/997: no small multiple of one is a level to the last bit, where rounding would decide
P_VALUES = st.lists(st.integers(0, 997).map(lambda n: n / 997), min_size=1, max_size=12)


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    rejected = set()
    for step, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        if p_values[i] * (len(p_values) - step) > alpha:
            break
        rejected.add(i)
    assert set(np.flatnonzero(stats.holm(p_values) <= alpha).tolist()) == rejected


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_benjamini_hochberg_rejects_what_the_step_up_procedure_rejects(p_values, q):
    p = np.sort(p_values)
    fits = np.flatnonzero(p * len(p) / np.arange(1, len(p) + 1) <= q)
    threshold = p[fits[-1]] if fits.size else -1.0
    assert np.array_equal(stats.benjamini_hochberg(p_values) <= q, np.array(p_values) <= threshold)


@given(P_VALUES)
def test_a_correction_is_monotone_and_never_below_what_it_corrects(p_values):
    p = np.array(p_values)
    order = np.argsort(p)
    for corrected in (stats.holm(p), stats.benjamini_hochberg(p)):
        assert (corrected >= p - 1e-15).all()
        assert (corrected <= 1).all()
        assert (np.diff(corrected[order]) >= 0).all()
    assert (stats.benjamini_hochberg(p) <= stats.holm(p) + 1e-12).all()


def test_few_are_corrected_by_holm_and_many_by_benjamini_and_hochberg():
    p = np.linspace(0.001, 0.5, 20)
    assert stats.adjusted(p)[1] == "Holm"
    assert np.array_equal(stats.adjusted(p)[0], stats.holm(p))
    corrected, name = stats.adjusted(np.append(p, 0.9))
    assert name == "Benjamini-Hochberg"
    assert np.array_equal(corrected, scipy.stats.false_discovery_control(np.append(p, 0.9)))


@pytest.mark.parametrize("bad", [[], [0.5, 1.2], [-0.1], [np.nan], [[0.1]]])
def test_what_is_no_p_value_is_refused(bad):
    for correction in (stats.holm, stats.benjamini_hochberg, stats.adjusted):
        with pytest.raises(InputError):
            correction(bad)
