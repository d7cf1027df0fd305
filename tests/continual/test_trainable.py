"""What is trained of a model: just that changes, and adapters merge into what they were beside the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.continual import IA3, FreezeLayers, FreezeModules, Full, Lora, trained_on
from palimpsest.errors import InputError
from palimpsest.models import HFModel
from palimpsest.training.batch import RowBatches
from palimpsest.training.loop import TrainConfig

pytest.importorskip("peft", reason="peft is not installed: pip install 'palimpsest-lm[train]'")

DATA = RowBatches(np.random.default_rng(0).integers(2, 300, (8, 20)), 4)
TRAIN = TrainConfig(3, lr=1e-2, cpu=True, seed=1)
CHOICES = {
    Full(): lambda name: True,
    FreezeLayers(first=1): lambda name: ".layers.0." not in name,
    FreezeLayers(last=1): lambda name: ".layers.1." not in name,
    FreezeModules("attention"): lambda name: "self_attn" not in name,
    FreezeModules("mlp"): lambda name: ".mlp." not in name,
    Lora(rank=2): lambda name: "_proj" in name,
    IA3(): lambda name: any(part in name for part in ("k_proj", "v_proj", "down_proj")),
}


@pytest.mark.parametrize("how", CHOICES, ids=str)
def test_just_what_was_chosen_changes(tiny_model, how):
    before = {name: value.detach().clone() for name, value in tiny_model.model.named_parameters()}
    old = tiny_model.fingerprint
    trained = trained_on(tiny_model, DATA, TRAIN, how, "trained")
    changed = {name for name, value in trained.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if CHOICES[how](name)}
    assert all(value.requires_grad for value in trained.model.parameters())
    assert not trained.model.training
    assert (trained.name, tiny_model.fingerprint) == ("trained", old)
    assert trained.fingerprint != old
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.model.named_parameters())


@pytest.mark.parametrize("how", [Lora(rank=2, alpha=8), IA3()], ids=str)
def test_an_adapter_changes_nothing_at_first_and_merges_into_what_it_was(tiny_model, how):
    from copy import deepcopy

    rows = [np.random.default_rng(1).integers(2, 300, 30)]
    expected = tiny_model.logprobs(rows)[0]
    adapted = how.prepare(deepcopy(tiny_model.model)).eval()
    np.testing.assert_allclose(HFModel(adapted, tiny_model.tokenizer).logprobs(rows)[0], expected, atol=1e-5)
    trainable = [value for value in adapted.parameters() if value.requires_grad]
    assert 0 < sum(value.numel() for value in trainable) < sum(value.numel() for value in tiny_model.model.parameters())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for value in trainable:
            value.add_(torch.randn(value.shape, generator=generator) / 10)
    beside = HFModel(adapted, tiny_model.tokenizer).logprobs(rows)[0]
    assert np.abs(beside - expected).max() > 1e-2
    np.testing.assert_allclose(HFModel(how.merged(adapted), tiny_model.tokenizer).logprobs(rows)[0], beside, atol=1e-4)


def test_bad_input(tiny_model):
    for wrong in (lambda: FreezeLayers(), lambda: FreezeLayers(first=-1, last=2)):
        with pytest.raises(InputError, match="Give a positive number of layers"):
            wrong()
    with pytest.raises(InputError, match="2 of 2 layers would be frozen"):
        FreezeLayers(first=1, last=1).prepare(tiny_model.model)
    with pytest.raises(InputError, match="kind is 'head'"):
        FreezeModules("head")
    with pytest.raises(InputError, match="rank is 0"):
        Lora(rank=0)
    with pytest.raises(InputError, match="no list of layers"):
        FreezeModules("mlp").prepare(torch.nn.Linear(2, 2))
    bare = torch.nn.Module()
    bare.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(InputError, match="Layer 0 has no module that is known as mlp"):
        FreezeModules("mlp").prepare(bare)
