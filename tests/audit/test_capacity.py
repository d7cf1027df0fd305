"""The capacity of attention: exact ranks, constructed weights on examples that strain them, and what training learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.audit.capacity import (
    AssumptionError,
    AttentionMemory,
    attention,
    check_assumptions,
    construct_memorizer,
    feature_rank,
    features,
    random_heads,
)
from palimpsest.audit.capacity_training import TrainingStudy, capacity_by_training
from palimpsest.errors import InputError

seeds = st.integers(0, 2**32 - 1)


def naive_attention(e, E, W):
    theta = np.empty((len(e), len(W), E.shape[1]))
    for t in range(len(e)):
        for h in range(len(W)):
            weights = np.array(
                [np.exp(sum(E[t, j, a] * W[h, a, b] * e[t, b] for a in range(4) for b in range(4))) for j in range(E.shape[1])]
            )
            theta[t, h] = weights / weights.sum()
    return theta


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_attention_is_the_softmax_of_the_bilinear_form(seed):
    rng = np.random.default_rng(seed)
    e, E, W = rng.normal(size=(3, 4)), rng.normal(size=(3, 3, 4)), random_heads(2, 4, 2, rng)
    theta = attention(e, E, W)
    np.testing.assert_allclose(theta, naive_attention(e, E, W), rtol=1e-9)
    np.testing.assert_allclose(theta.sum(axis=2), 1)
    np.testing.assert_allclose(attention(e, E[0], W), attention(e, np.stack([E[0]] * 3), W), rtol=1e-12)
    read = features(e, E, W)
    np.testing.assert_allclose(read[2, 4:], theta[2, 1] @ E[2])


def test_saturated_heads_do_not_overflow():
    rng = np.random.default_rng(0)
    theta = attention(rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), 1e6 * random_heads(1, 4, 4, rng))
    np.testing.assert_allclose(theta.max(axis=2), 1)


@pytest.mark.parametrize("head_dim", [2, 16])
@pytest.mark.parametrize(("n", "heads"), [(2, 1), (2, 4), (4, 2), (4, 8), (8, 1), (8, 4)])
def test_ranks_of_random_heads(n, heads, head_dim):
    rng = np.random.default_rng([n, heads, head_dim])
    e = rng.normal(size=(heads * 16 + 4, 16))
    W = random_heads(heads, 16, head_dim, rng)
    assert {np.linalg.matrix_rank(w) for w in W} == {head_dim}
    assert feature_rank(e, rng.normal(size=(n, 16)), W) == heads * (n - 1) + 1
    assert feature_rank(e, rng.normal(size=(len(e), n, 16)), W) == heads * 16


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 12))
def test_the_rank_does_not_depend_on_the_order_and_never_exceeds_its_bound(seed, n, heads, examples):
    rng = np.random.default_rng(seed)
    e, E, W = rng.normal(size=(examples, 6)), rng.normal(size=(n, 6)), random_heads(heads, 6, 3, rng)
    rank = feature_rank(e, E, W)
    assert rank == feature_rank(rng.permutation(e), rng.permutation(E), rng.permutation(W))
    assert rank <= min(examples, heads * (n - 1) + 1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_constructed_weights_reproduce_every_label(seed, n, head_dim, heads, shared):
    rng = np.random.default_rng(seed)
    d = 6
    T = heads * (min(n, head_dim) - 1) + 1
    e, E, y = rng.normal(size=(T, d)), rng.normal(size=(n, d) if shared else (T, n, d)), rng.normal(size=(T, 2))
    layer = construct_memorizer(e, E, y, heads, head_dim, seed=seed)
    assert layer.keys.shape == layer.queries.shape == (heads, d, head_dim)
    np.testing.assert_allclose(layer(e, E), y, atol=1e-6)
    assert feature_rank(e, E, layer.heads) == T


@pytest.mark.parametrize("shared", [True, False])
def test_queries_of_the_smallest_rank_that_the_theorem_allows(shared):
    """All queries lie in n dimensions, any n of them independent: most of them depend on any group of n."""
    rng = np.random.default_rng(1)
    n, d, heads = 4, 9, 4
    T = heads * (n - 1) + 1
    e = rng.normal(size=(T, n)) @ rng.normal(size=(n, d))
    E, y = rng.normal(size=(n, d) if shared else (T, n, d)), rng.normal(size=T)
    assert np.linalg.matrix_rank(e) == n
    assert check_assumptions(e, E).holds
    np.testing.assert_allclose(construct_memorizer(e, E, y, heads)(e, E)[:, 0], y, atol=1e-6)


def test_earlier_heads_and_fits_stay_when_a_head_is_added():
    rng = np.random.default_rng(2)
    e, E, y = rng.normal(size=(10, 6)), rng.normal(size=(10, 4, 6)), rng.normal(size=(10, 1))
    layers = {heads: construct_memorizer(e[: 3 * heads + 1], E[: 3 * heads + 1], y[: 3 * heads + 1], heads) for heads in (1, 2, 3)}
    for heads in (1, 2):
        np.testing.assert_array_equal(layers[heads].keys, layers[3].keys[:heads])
        np.testing.assert_allclose(layers[3](e, E)[: 3 * heads + 1], layers[heads](e, E)[: 3 * heads + 1], atol=1e-6)


def test_heads_that_are_not_needed_are_zero():
    rng = np.random.default_rng(3)
    e, E, y = rng.normal(size=(5, 6)), rng.normal(size=(3, 6)), rng.normal(size=5)
    layer = construct_memorizer(e, E, y, heads=4)
    assert [bool(w.any()) for w in layer.heads] == [True, True, False, False]
    np.testing.assert_allclose(layer(e, E)[:, 0], y, atol=1e-6)


def test_the_upper_bound_holds_for_labels_of_full_rank_and_not_for_single_numbers():
    """One head and two vectors: the features have rank 2, and yet a head that is chosen for them fits eight numbers."""
    rng = np.random.default_rng(4)
    e, E, y = rng.normal(size=(8, 8)), rng.normal(size=(2, 8)), rng.uniform(0.1, 0.9, 8)
    w = np.linalg.solve(e, np.log(y / (1 - y)))  # the first vector's logit minus the second's
    W = np.linalg.lstsq(E, np.stack([w, np.zeros(8)]), rcond=None)[0]
    value = np.linalg.lstsq(E, np.array([1.0, 0.0]), rcond=None)[0]
    layer = AttentionMemory(W[None], np.eye(8)[None], value[None, :, None])
    np.testing.assert_allclose(layer(e, E)[:, 0], y, atol=1e-8)
    assert feature_rank(e, E, layer.heads) == 2


def random_examples(T=7, n=4, d=8):
    rng = np.random.default_rng(5)
    return rng.normal(size=(T, d)), rng.normal(size=(T, n, d)), rng.normal(size=T)


def test_what_the_theorem_does_not_speak_about_is_named():
    e, E, y = random_examples()
    twice = e.copy()
    twice[5] = twice[2]
    with pytest.raises(AssumptionError, match=r"\[2, 5\] have one query with different labels") as error:
        construct_memorizer(twice, E, y, 2)
    assert error.value.rows == (2, 5)
    with pytest.raises(AssumptionError, match="equal labels"):
        construct_memorizer(twice, E, np.zeros(7), 2)
    flat = E.copy()
    flat[3, 0] = flat[3, 1] + flat[3, 2]
    with pytest.raises(AssumptionError, match="context vectors of example 3") as error:
        construct_memorizer(e, flat, y, 2)
    assert error.value.rows == (3,)
    dependent = e.copy()
    dependent[6] = dependent[4] - dependent[5]
    with pytest.raises(AssumptionError, match="queries of examples 4 to 6") as error:
        construct_memorizer(dependent, E, y, 2)
    assert error.value.rows == (4, 5, 6)
    dependent = e.copy()
    dependent[1] = dependent[4] + dependent[5]
    with pytest.raises(AssumptionError, match="query of example 1 depends") as error:
        construct_memorizer(dependent, E, y, 2)
    assert error.value.rows == (1, 4, 5, 6)


def test_assumptions_are_checked_on_all_sets_or_on_some():
    e, E, _ = random_examples()
    assert check_assumptions(e, E).holds
    assert (check_assumptions(e, E).subsets, check_assumptions(e, E).exhaustive) == (35, True)
    some = check_assumptions(e, E, max_subsets=10)
    assert (some.subsets, some.exhaustive, some.holds) == (10, False, True)
    e[6] = e[4] - e[5]
    found = check_assumptions(e, E).dependent_queries
    assert found is not None
    assert {4, 5, 6} < set(found)
    E[3, 0] = E[3, 1]
    assert check_assumptions(e, E).dependent_contexts == (3,)
    assert check_assumptions(e, E[3]).dependent_contexts == tuple(range(7))
    assert check_assumptions(e[:, :4], E[0, :, :4]).few_dimensions
    assert not check_assumptions(e[:, :4], E[0, :, :4]).holds


def test_bad_input_is_refused():
    e, E, y = random_examples()
    with pytest.raises(InputError, match=r"n < d"):
        construct_memorizer(e[:, :4], E[..., :4], y, 2)
    with pytest.raises(InputError, match=r"7 examples exceed the bound 1 \* \(4 - 1\) \+ 1 = 4"):
        construct_memorizer(e, E, y, 1)
    with pytest.raises(InputError, match=r"2 \* \(2 - 1\) \+ 1 = 3"):
        construct_memorizer(e, E, y, 2, head_dim=2)
    with pytest.raises(InputError, match="heads 0"):
        construct_memorizer(e, E, y, 0)
    with pytest.raises(InputError, match=r"Labels of shape \(6,\)"):
        construct_memorizer(e, E, y[:6], 2)
    with pytest.raises(InputError, match="Labels"):
        construct_memorizer(e, E, np.full(7, np.nan), 2)
    with pytest.raises(InputError, match=r"contexts of shape \(6, 4, 8\)"):
        check_assumptions(e, E[:6])
    with pytest.raises(InputError, match="finite"):
        attention(np.full((7, 8), np.inf), E, np.zeros((1, 8, 8)))
    with pytest.raises(InputError, match=r"Heads of shape \(1, 7, 8\)"):
        attention(e, E, np.zeros((1, 7, 8)))
    with pytest.raises(InputError, match="max_subsets"):
        check_assumptions(e, E, max_subsets=0)


# --- training -----------------------------------------------------------------------------------------------------------------------

SMALL = TrainingStudy(heads=(1, 2), examples=(2, 40), n=3, d=8, head_dim=4, classes=5, steps=150, lr=3e-2)


def test_few_examples_are_learnt_and_many_are_not():
    result = capacity_by_training(SMALL)
    rows = {(row["heads"], row["examples"]): row for row in result.table.to_dicts()}
    assert set(rows) == {(1, 2), (1, 40), (2, 2), (2, 40)}
    assert rows[2, 2]["accuracy"] == 1 > rows[2, 40]["accuracy"] > 1 / 5
    assert result.summary["capacity"][2] == 2
    assert capacity_by_training(SMALL).table.equals(result.table)


def test_a_model_learns_the_same_beside_others_and_alone():
    together = capacity_by_training(replace(SMALL, steps=20, contexts="random", examples=(4, 7))).table
    alone = capacity_by_training(replace(SMALL, steps=20, contexts="random", examples=(7,))).table
    np.testing.assert_allclose(together.filter(examples=7)["loss"].to_numpy(), alone["loss"].to_numpy(), rtol=1e-4)


def test_studies_that_make_no_sense_are_refused():
    for changed in ({"heads": ()}, {"examples": (0,)}, {"classes": 1}, {"contexts": "fixed"}, {"lr": 0.0}):
        with pytest.raises(InputError, match="at least 1"):
            capacity_by_training(TrainingStudy(**changed))
