"""Linear layers through oneDNN say what torch's own say, and only for as long as they are asked to."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from palimpsest.models import onednn
from palimpsest.models.onednn import fast_linear

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")), reason="torch has no oneDNN here"
)

LINEAR = onednn._linear


@pytest.fixture
def faster(monkeypatch):
    monkeypatch.setattr(onednn, "prefers_onednn", lambda: True)


@pytest.mark.parametrize("shape", [(1, 12), (5, 12), (2, 3, 12), (0, 12), (1, 0, 12), (300, 12)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_same_as_torch(faster, shape, bias):
    module = torch.nn.Linear(12, 31, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = module(x)
        with fast_linear(module) as used:
            assert used
            found = module(x)
            transposed = module(torch.randn(12, 4).t())
        assert transposed.shape == (4, 31)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(module)


def test_hooks_and_gradients_go_on(faster):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2).double())
    seen = []
    module[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with fast_linear(module):
        with torch.inference_mode():
            module[0](torch.ones(3, 4))
            assert module[1](torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float64
        module[0](torch.ones(3, 4)).sum().backward()
    assert seen == [(3, 4)] * 2
    assert module[0].weight.grad is not None


def test_a_copy_made_meanwhile_has_its_own_weights(faster):
    module = torch.nn.Sequential(torch.nn.Linear(4, 2))
    with fast_linear(module), torch.inference_mode():
        copied = deepcopy(module).double()
        copied[0].bias += 1
        x = torch.ones(3, 4)
        torch.testing.assert_close(copied(x.double()), module(x).double() + 1, rtol=1e-5, atol=1e-5)


def test_a_model_scores_the_same(monkeypatch, tiny_model):
    rows = [[5, 6, 7, 8], [9, 10]]
    monkeypatch.setattr(onednn, "prefers_onednn", lambda: False)
    expected = tiny_model.score(rows).logprobs
    monkeypatch.setattr(onednn, "prefers_onednn", lambda: True)
    used = []
    monkeypatch.setattr(onednn, "_linear", lambda *args: used.append(1) or LINEAR(*args))
    found = tiny_model.score(rows).logprobs
    assert used
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(own), torch.from_numpy(other), rtol=1e-4, atol=1e-5)


def test_it_is_only_used_where_it_is_faster(monkeypatch):
    monkeypatch.setattr(onednn, "prefers_onednn", lambda: False)
    module = torch.nn.Linear(3, 3)
    with fast_linear(module) as used:
        assert not used
        assert "forward" not in vars(module)


@pytest.mark.parametrize(("maker", "used"), [("GenuineIntel", False), ("AuthenticAMD", torch.backends.mkl.is_available())])
def test_the_maker_of_the_processor_decides(monkeypatch, maker, used):
    monkeypatch.setattr(onednn, "_maker", lambda: maker)
    onednn.prefers_onednn.cache_clear()
    try:
        assert onednn.prefers_onednn() is used
    finally:
        onednn.prefers_onednn.cache_clear()
