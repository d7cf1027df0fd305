"""DP-SGD: its gradient with nothing clipped and no noise, the clip, the noise, and the account."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.errors import InputError
from palimpsest.training.batch import PackedBatch, RowBatches
from palimpsest.training.loop import TrainConfig, Trainer, causal_lm_loss
from palimpsest.training.private import PrivateLoss, privacy_spent

ROWS = np.random.default_rng(0).integers(0, 16, (10, 9))


@pytest.fixture
def model():
    shape = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    return LlamaForCausalLM(shape).train()


def gradient(model, loss, batch):
    model.zero_grad()
    value = loss(model, batch)
    (value / batch.n_target_tokens).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, float(value.detach())


def test_without_clip_and_noise_it_is_the_gradient_of_sgd(model):
    batch = RowBatches(ROWS, 10)[0]
    ours, value = gradient(model, PrivateLoss(math.inf, 0.0, chunk=4), batch)
    theirs, plain = gradient(model, causal_lm_loss, batch)
    assert value == pytest.approx(plain, rel=1e-6)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, atol=1e-6, rtol=1e-5)


def test_every_example_is_clipped_by_its_own_norm(model):
    """The oracle takes one row at a time through ordinary backward passes."""
    batch = RowBatches(ROWS, 10)[0]
    alone = [gradient(model, causal_lm_loss, RowBatches(ROWS[i : i + 1], 1)[0])[0] for i in range(10)]
    norms = [math.sqrt(sum(float(g.square().sum()) for g in one.values())) for one in alone]
    clip = float(np.median(norms))
    loss = PrivateLoss(clip, 0.0, chunk=3)
    ours, _ = gradient(model, loss, batch)
    assert loss.norms == pytest.approx(norms, rel=1e-4)
    for name, found in ours.items():
        expected = sum(one[name] * min(1, clip / norm) for one, norm in zip(alone, norms, strict=True)) / 10
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    whole = math.sqrt(sum(float(g.square().sum()) for g in ours.values()))
    assert whole <= clip * (1 + 1e-5)


def test_noise_has_the_stated_size_and_a_seed(model):
    batch = RowBatches(ROWS, 10)[0]
    still, _ = gradient(model, PrivateLoss(0.5, 0.0), batch)
    noisy, _ = gradient(model, PrivateLoss(0.5, 2.0, seed=1), batch)
    drawn = torch.cat([(noisy[name] - still[name]).flatten() for name in still]).numpy()
    assert drawn.std() == pytest.approx(2.0 * 0.5 / 10, rel=0.1)
    assert stats.kstest(drawn / (2.0 * 0.5 / 10), "norm").pvalue > 1e-3
    again, _ = gradient(model, PrivateLoss(0.5, 2.0, seed=1), batch)
    assert all(torch.equal(again[name], noisy[name]) for name in noisy)


def test_the_training_loop_takes_it(model):
    before = [parameter.clone() for parameter in model.parameters()]
    metrics = Trainer(model, TrainConfig(steps=3, lr=1e-2, grad_clip=None, cpu=True), loss=PrivateLoss(1.0, 0.1)).fit(RowBatches(ROWS, 5))
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert 2 < metrics[0]["loss"] < 3.5  # about log 16: the value is the ordinary loss
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_packed_rows_and_wrong_settings_are_refused(model):
    packed = PackedBatch.from_rows(ROWS[:2], np.tile([1] * 4 + [2] * 5, (2, 1)))
    with pytest.raises(InputError, match="several documents"):
        PrivateLoss(1.0, 0.0)(model, packed)
    for wrong in ((0.0, 1.0), (1.0, -1.0), (math.inf, 1.0)):
        with pytest.raises(InputError, match="clip"):
            PrivateLoss(*wrong)


@pytest.mark.parametrize(("rate", "noise", "order"), [(0.01, 1.1, 4), (0.2, 0.8, 3), (1.0, 2.0, 5)])
def test_renyi_of_a_step_is_the_integral_that_it_stands_for(rate, noise, order):
    """A_α = E_{x ~ N(0, σ²)} [((1 − q) + q N(x; 1, σ²) / N(x; 0, σ²))^α], integrated numerically."""
    zero, one = stats.norm(0, noise), stats.norm(1, noise)
    value, _ = integrate.quad(lambda x: zero.pdf(x) * ((1 - rate) + rate * one.pdf(x) / zero.pdf(x)) ** order, -15, 25, limit=400)
    examples = 1000
    epsilon, best = privacy_spent(noise, 1, examples, round(rate * examples), 1e-5, orders=[order])
    assert best == order
    assert epsilon == pytest.approx((math.log(value) + math.log(1e5)) / (order - 1), rel=1e-6)


def test_the_account_is_that_of_the_published_example_and_monotone():
    """60 epochs of MNIST at noise 1.1 and batches of 256 are quoted as 2.92 with fractional orders; integers alone are a little above."""
    steps = 60 * 60_000 // 256
    assert 2.92 <= privacy_spent(1.1, steps, 60_000, 256, 1e-5)[0] <= 3.1
    values = [privacy_spent(noise, 1000, 10_000, 100, 1e-5)[0] for noise in (0.5, 1.0, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)
    assert privacy_spent(0, 10, 100, 10, 1e-5)[0] == math.inf
    with pytest.raises(InputError, match="delta"):
        privacy_spent(1.0, 10, 100, 10, 0)
    with pytest.raises(InputError, match="batches"):
        privacy_spent(1.0, 10, 10, 100, 1e-5)
