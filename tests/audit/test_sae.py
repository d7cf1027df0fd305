"""The sparse autoencoder against its formulas, and what training must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.audit.sae import SAEConfig, SparseAutoencoder, StateBatches, train_sae
from palimpsest.errors import InputError, NonFiniteError


def states(n=512, width=8, seed=0):
    """Sums of two of twelve directions with positive coefficients, off the origin."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(12, width))
    codes = np.zeros((n, 12))
    for row in codes:
        row[rng.choice(12, size=2, replace=False)] = rng.uniform(1, 2, size=2)
    return (codes @ directions + 3).astype(np.float32)


def test_exactly_k_latents_are_kept_and_they_are_the_greatest():
    sae = SparseAutoencoder(8, 32, 5, seed=1)
    x = torch.from_numpy(states(20))
    values, numbers = sae.encode(x)
    assert values.shape == numbers.shape == (20, 5)
    every = ((x - sae.centre) * sae.scale @ sae.encoder + sae.bias).detach().numpy()
    for row, kept in zip(every, numbers.numpy(), strict=True):
        assert set(kept) == set(np.argsort(-row)[:5])
    codes = torch.zeros(20, 32).scatter(1, numbers, values)
    assert ((codes != 0).sum(1) == 5).all()
    torch.testing.assert_close(sae(x), codes @ sae.decoder / sae.scale + sae.centre)


def test_the_loss_is_its_formula():
    sae = SparseAutoencoder(6, 18, 2, seed=0)
    sae.centre.fill_(0.5)
    sae.scale.fill_(2.0)
    sae.silent[3:15] = 100  # dead
    x = torch.from_numpy(states(7, 6))
    found = sae.loss(x, auxiliary=0.25, patience=20)
    expected = 0.0
    for row in x:
        y = (row - 0.5) * 2
        before = y @ sae.encoder + sae.bias
        kept = torch.argsort(before, descending=True)[:2]
        error = y - before[kept] @ sae.decoder[kept]
        used = {int(i) for r in x for i in torch.argsort((r - 0.5) * 2 @ sae.encoder + sae.bias, descending=True)[:2]}
        dead = [i for i in range(3, 15) if i not in used]
        best = sorted(dead, key=lambda i: -before[i].item())[: max(2, 6 // 2)]
        again = error - before[best] @ sae.decoder[best]
        expected += error.square().sum() / y.square().sum() + 0.25 * again.square().sum() / error.square().sum()
    torch.testing.assert_close(found, expected)
    assert sae.silent.max() == 101
    assert set(torch.nonzero(sae.silent == 0).flatten().tolist()) == used


@pytest.mark.parametrize("expansion", [1, 3])
def test_as_many_latents_as_dimensions_rebuild_the_states(expansion):
    x = states(400)
    sae = train_sae(x, SAEConfig(expansion=expansion, k=8, epochs=60, batch_size=100, lr=1e-2))
    assert sae.explained_variance(x) > 0.99


def test_training_finds_sparse_structure_and_keeps_unit_directions():
    x = states(300)
    config = SAEConfig(expansion=4, k=2, epochs=40, batch_size=100, lr=3e-3)
    sae = train_sae(x, config, seed=3)
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(32))
    assert sae.explained_variance(x) > SparseAutoencoder(8, 32, 2, seed=3).explained_variance(x) + 0.5
    assert sae.explained_variance(x) > 0.8
    again = train_sae(x, config, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(train_sae(x, config, seed=4).decoder, sae.decoder)


def test_only_the_auxiliary_loss_reaches_dead_latents():
    x = torch.from_numpy(states(40))
    moved = {}
    for auxiliary in (0.0, 0.5):
        sae = SparseAutoencoder(8, 64, 2, seed=0)
        with torch.no_grad():
            sae.bias[:50] = -100.0  # never among the greatest
        sae.silent[:50] = 30
        sae.loss(x, auxiliary, patience=20).backward()
        moved[auxiliary] = int((sae.encoder.grad[:, :50].abs().sum(0) > 0).sum())
    assert moved[0.0] == 0
    assert moved[0.5] >= 4


def test_active_features_are_those_above_the_threshold():
    sae = SparseAutoencoder(8, 16, 4, seed=0)
    x = states(50)
    values, numbers = sae.encode(torch.from_numpy(x))
    for threshold in (0.0, 1.5):
        positions, features = sae.active(x, threshold, block=7)
        expected = {(i, int(f)) for i in range(50) for v, f in zip(values[i], numbers[i], strict=True) if v > threshold}
        assert set(zip(positions.tolist(), features.tolist(), strict=True)) == expected
        assert (np.diff(positions) >= 0).all()
        assert len(positions) == len(expected)


def test_batches_are_dealt_anew_each_epoch():
    data = StateBatches(states(10), 4, seed=0)
    first = np.concatenate([data[k].states.numpy() for k in range(3)])
    assert sorted(map(tuple, first)) == sorted(map(tuple, data.states))
    assert not np.array_equal(first, np.concatenate([data[k].states.numpy() for k in range(3, 6)]))
    assert data.fingerprint != StateBatches(states(10), 4, seed=1).fingerprint


def test_bad_states_are_refused():
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        train_sae(np.ones(5, np.float32))
    with pytest.raises(InputError, match="all equal"):
        train_sae(np.ones((5, 4), np.float32), SAEConfig(k=2))
    with pytest.raises(NonFiniteError):
        train_sae(np.full((5, 4), np.nan, np.float32))
    with pytest.raises(InputError, match="k 64"):
        train_sae(states(20, 4), SAEConfig(k=64))
