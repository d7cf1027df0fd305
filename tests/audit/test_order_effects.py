"""Estimated orders against retrained ones, derivatives against finite differences and closed forms, and what must be exact."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from palimpsest.audit.curriculum import moved, position_effect, search_curriculum, usual_orders
from palimpsest.audit.order_effects import OrderEstimator, _taylor
from palimpsest.errors import InputError, NonFiniteError

T = 5


def network(seed=0):
    """A smooth network of 41 parameters in float64, with a dropout that must not act."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).double()


def squared(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def batches(n=T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 6, 3, generator=generator, dtype=torch.float64)
    return [(x, torch.sin(2 * x.sum(1, keepdim=True)) + k) for k, x in enumerate(inputs)]


def steps(model, optimizer, data):
    """What torch does, without dropout."""
    model.eval()
    for batch in data:
        optimizer.zero_grad()
        squared(model, batch).backward()
        optimizer.step()


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def warmed(kind=torch.optim.Adam, seed=0, **options):
    model = network(seed)
    optimizer = kind(model.parameters(), **({"lr": 0.01} | options))
    steps(model, optimizer, batches(10, seed + 100))
    return model, optimizer


@pytest.fixture(scope="module")
def adam():
    model, optimizer = warmed()
    return OrderEstimator(model, squared, batches(), optimizer).fit()


OTHER = (3, 0, 4, 2, 1)
KINDS = [(torch.optim.Adam, {}), (torch.optim.AdamW, {"weight_decay": 0.3}), (torch.optim.SGD, {"lr": 0.05})]


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=["Adam", "AdamW", "SGD"])
def test_retraining_is_torchs_own(kind, options):
    model, optimizer = warmed(kind, **options)
    estimator = OrderEstimator(model, squared, batches(), optimizer).fit()
    steps(model, optimizer, [batches()[b] for b in OTHER])
    torch.testing.assert_close(estimator.retrain(OTHER), vector(model), rtol=0, atol=1e-12)


def test_groups_of_parameters_and_frozen_ones_are_kept_apart():
    model = network()
    optimizer = torch.optim.AdamW([{"params": [model[0].weight], "lr": 0.02}, {"params": [model[3].bias], "weight_decay": 0.0}], lr=0.01)
    steps(model, optimizer, batches(4, 9))
    estimator = OrderEstimator(model, squared, batches(), optimizer).fit()
    steps(model, optimizer, [batches()[b] for b in OTHER])
    end = torch.cat([model[0].weight.detach().reshape(-1), model[3].bias.detach()])
    torch.testing.assert_close(estimator.retrain(OTHER), end, rtol=0, atol=1e-12)
    there = estimator.model_at(estimator.retrain(OTHER))
    torch.testing.assert_close(vector(there), vector(model), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["zero", "first", "second"])
@pytest.mark.parametrize("space", ["gradient", "update"])
def test_the_reference_order_is_exact(adam, mode, space):
    estimate = adam.estimate(range(T), mode, space)
    torch.testing.assert_close(estimate.parameters, adam.retrain(range(T)), rtol=0, atol=1e-12)
    assert max(estimate.distances) < 1e-12


def test_another_reference_order_is_exact_too():
    model, optimizer = warmed()
    estimator = OrderEstimator(model, squared, batches(), optimizer).fit(OTHER)
    torch.testing.assert_close(estimator.estimate(OTHER).parameters, estimator.retrain(OTHER), rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(4)))
def test_first_order_is_exact_for_quadratic_losses_and_gradient_descent(seed, order):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2).double()
    data = [(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)) for _ in range(4)]
    estimator = OrderEstimator(model, squared, data, torch.optim.SGD(model.parameters(), lr=0.1)).fit()
    truth = estimator.retrain(order)
    torch.testing.assert_close(estimator.estimate(order, "first").parameters, truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(estimator.estimate(order, "first", "update").parameters, truth, rtol=0, atol=1e-9)
    if tuple(order) != tuple(range(4)):
        assert (estimator.estimate(order, "zero").parameters - truth).abs().max() > 1e-9


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=["Adam", "AdamW", "SGD"])
def test_every_order_of_the_expansion_comes_nearer(kind, options):
    model, optimizer = warmed(kind, **({"lr": 2e-3} | options if kind is not torch.optim.SGD else {"lr": 0.01}))
    estimator = OrderEstimator(model, squared, batches(), optimizer).fit()
    orders = [OTHER, (4, 3, 2, 1, 0), (1, 0, 2, 4, 3)]
    away = {
        mode: np.mean([float((estimator.estimate(order, mode).parameters - estimator.retrain(order)).norm()) for order in orders])
        for mode in ("zero", "first", "second")
    }
    assert away["second"] < away["first"] < away["zero"]


def test_terms_are_the_derivatives(adam):
    """Against central differences of the gradient."""
    theta, delta = adam.start, torch.randn(len(adam.start), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = adam._expanded(0, 2, "gradient")
    value, first, second = _taylor(f, theta, delta, "second")
    h = 1e-4
    torch.testing.assert_close(value, f(theta))
    torch.testing.assert_close(first, (f(theta + h * delta) - f(theta - h * delta)) / (2 * h), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second, (f(theta + h * delta) - 2 * f(theta) + f(theta - h * delta)) / (2 * h * h), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(_taylor(f, theta, delta, "first")[1], first)


def test_the_slope_of_an_update_is_the_papers_closed_form():
    """∇Γ = D H, D = (1−β1)/((1−β1^k)(√v̂+ε)) − m̂ (1−β2) g / ((1−β2^k) √v̂ (√v̂+ε)²)."""
    model, optimizer = warmed()
    estimator = OrderEstimator(model, squared, batches(), optimizer).fit()
    one, two, eps = 0.9, 0.999, 1e-8
    m, v = (torch.cat([optimizer.state[p][name].reshape(-1) for p in model.parameters()]) for name in ("exp_avg", "exp_avg_sq"))
    delta = torch.randn(len(m), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    g, hvp, _ = _taylor(estimator._expanded(0, 1, "gradient"), estimator.start, delta, "first")
    k = 11  # ten steps were taken before
    m_hat, v_hat = (one * m + (1 - one) * g) / (1 - one**k), (two * v + (1 - two) * g**2) / (1 - two**k)
    root = v_hat.sqrt()
    D = (1 - one) / ((1 - one**k) * (root + eps)) - m_hat * (1 - two) * g / ((1 - two**k) * root * (root + eps) ** 2)
    value, slope, _ = _taylor(estimator._expanded(0, 1, "update"), estimator.start, delta, "first")
    torch.testing.assert_close(value, m_hat / (root + eps))
    torch.testing.assert_close(slope, D * hvp)


@pytest.mark.parametrize("space", ["gradient", "update"])
@pytest.mark.parametrize("mode", ["zero", "first", "second"])
def test_rows_that_no_batch_uses_stay_and_stay_finite(space, mode):
    """Embeddings of tokens that never came have v = 0, where the root has no derivative."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6)).double()

    def loss(model, ids):
        return nn.functional.cross_entropy(model(ids[:-1]), ids[1:])

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, torch.tensor([0, 1, 2, 3, 0])).backward()
        optimizer.step()
    data = [torch.tensor(row) for row in ([0, 1, 2], [2, 3, 1], [1, 1, 0])]
    estimator = OrderEstimator(model, loss, data, optimizer).fit()
    end = estimator.estimate([2, 0, 1], mode, space).parameters
    torch.testing.assert_close(end[16:24], estimator.start[16:24], rtol=0, atol=0)  # rows 4 and 5
    assert torch.isfinite(end).all()


@pytest.mark.parametrize("space", ["gradient", "update"])
def test_a_projection_on_all_dimensions_changes_nothing_and_a_small_one_keeps_the_reference(adam, space):
    p = len(adam.start)
    whole, part = adam.project(p, space), adam.project(4, space)
    assert part.slopes.shape == (T, T, 4, 4)
    for mode in ("zero", "first"):
        torch.testing.assert_close(
            adam.estimate(OTHER, mode, space, whole).parameters, adam.estimate(OTHER, mode, space).parameters, rtol=0, atol=1e-9
        )
    torch.testing.assert_close(adam.estimate(range(T), "first", space, part).parameters, adam.retrain(range(T)), rtol=0, atol=1e-12)
    torch.testing.assert_close(part.basis.T @ part.basis, torch.eye(4, dtype=torch.float64))


def test_estimates_from_a_projection_do_not_call_the_model(monkeypatch):
    model, optimizer = warmed()
    estimator = OrderEstimator(model, squared, batches(), optimizer).fit(OTHER)
    part = estimator.project(3)
    monkeypatch.setattr(estimator, "_gradient", None)
    assert estimator.estimate(range(T), "first", projection=part).distances[-1] > 0


def test_neither_model_nor_optimizer_is_changed():
    model, optimizer = warmed()
    before, state = vector(model), copy.deepcopy(optimizer.state_dict())
    model.train()
    estimator = OrderEstimator(model, squared, batches(), optimizer).fit()
    end = estimator.estimate(OTHER, "second").parameters
    estimator.project(2)
    estimator.model_at(end)
    position_effect(estimator, 1, batches(1, 7)[0])
    assert torch.equal(vector(model), before)
    assert model.training
    after = optimizer.state_dict()
    assert all(torch.equal(after["state"][k][name], value) for k, entry in state["state"].items() for name, value in entry.items())


def test_trust_is_lost_where_the_second_order_is_large():
    models = network(), network()
    small, large = (
        OrderEstimator(model, squared, batches(), torch.optim.SGD(model.parameters(), lr=lr)).fit()
        for model, lr in zip(models, (1e-4, 0.3), strict=True)
    )
    assert small.estimate(OTHER, "second").trusted is True
    assert small.estimate(OTHER, "first").trusted is None
    assert large.estimate(OTHER, "second").trusted is False


# --- uses ---------------------------------------------------------------------------------------------------------------------------


def test_the_curve_of_positions_is_that_of_the_estimates(adam):
    test = batches(1, 7)[0]
    rows = position_effect(adam, 1, test).table.to_dicts()
    for row, order in zip(rows, [(1, 0, 2, 3, 4), (0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (0, 2, 3, 1, 4), (0, 2, 3, 4, 1)], strict=True):
        end = adam.model_at(adam.estimate(order).parameters)
        assert row["own"] == pytest.approx(squared(end, adam.batches[1]).item())
        assert row["test"] == pytest.approx(squared(end, test).item())


def test_the_search_ranks_by_estimates_and_climbs(adam):
    test = batches(1, 7)[0]

    def metric(model):
        return float(squared(model, test).detach())

    proposals = usual_orders(adam, random=2)
    assert proposals["easy to hard"] == tuple(sorted(range(T), key=lambda b: adam.loss(adam.start, adam.batches[b])))
    assert proposals["hard to easy"] == proposals["easy to hard"][::-1]
    ranked = search_curriculum(adam, proposals, metric)
    assert {name for name, *_ in ranked} == set(proposals)
    assert [value for *_, value in ranked] == sorted(metric(adam.model_at(adam.estimate(order).parameters)) for order in proposals.values())
    climbed = search_curriculum(adam, proposals, metric, swaps=6)
    found = next(entry for entry in climbed if entry[0] == "climbed")
    assert sorted(found[1]) == list(range(T))
    assert climbed[0][2] == found[2] <= ranked[0][2]
    assert found[2] == pytest.approx(metric(adam.model_at(adam.estimate(found[1]).parameters)))


# --- bad input ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 4, 5], []])
def test_what_is_no_order_is_refused(adam, order):
    for call in (adam.estimate, adam.retrain):
        with pytest.raises(InputError, match="not an order of 5 batches"):
            call(order)


def test_optimizers_that_cannot_be_followed_are_refused():
    model, data = network(), batches()
    with pytest.raises(InputError, match=r"have taken \[0\] steps"):
        OrderEstimator(model, squared, data, torch.optim.Adam(model.parameters()))
    for optimizer in (
        torch.optim.RMSprop(model.parameters()),
        torch.optim.Adam(model.parameters(), amsgrad=True),
        torch.optim.Adam(model.parameters(), weight_decay=0.1),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    ):
        with pytest.raises(InputError, match="not known here"):
            OrderEstimator(model, squared, data, optimizer)
    with pytest.raises(InputError, match="not the model's"):
        OrderEstimator(model, squared, data, torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(InputError, match="1 batches"):
        OrderEstimator(model, squared, data[:1], torch.optim.SGD(model.parameters(), lr=0.1))


def test_questions_that_have_no_answer_are_refused(adam):
    model = network()
    fresh = OrderEstimator(model, squared, batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(InputError, match=r"fit\(\)"):
        fresh.estimate(OTHER)
    with pytest.raises(InputError, match="0 points"):
        fresh.project(2)
    with pytest.raises(InputError, match="mode 'third'"):
        adam.estimate(OTHER, "third")
    with pytest.raises(InputError, match="k 42 of 41"):
        adam.project(42)
    part = adam.project(1)
    with pytest.raises(InputError, match="first order"):
        adam.estimate(OTHER, "second", projection=part)
    with pytest.raises(InputError, match="'gradient'"):
        adam.estimate(OTHER, space="update", projection=part)
    with pytest.raises(InputError, match=r"reference \(0, 1, 2, 3, 4\)"):
        fresh.fit(OTHER).estimate(OTHER, projection=part)
    with pytest.raises(InputError, match="no batch 9"):
        moved(range(5), 9)
    with pytest.raises(InputError, match="0 proposals"):
        search_curriculum(adam, {}, lambda model: 0.0)
    wild = OrderEstimator(model, squared, batches(), torch.optim.SGD(model.parameters(), lr=1e200))
    with pytest.raises(NonFiniteError, match="learning rate"):
        wild.fit()
