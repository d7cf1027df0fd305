"""Checkpoints: whole or absent, verified, and all that the next step depends on."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.errors import IndexCorruptError, InputError
from palimpsest.training import checkpoint


def trained(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_generators_go_on_where_they_were() -> None:
    random.gauss(0, 1)  # leaves a second value behind
    np.random.standard_normal()
    state = checkpoint.rng_state()
    draws = [(random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), float(torch.rand(1))) for _ in range(3)]
    checkpoint.set_rng_state(state)
    assert draws == [
        (random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), float(torch.rand(1))) for _ in range(3)
    ]


def test_a_round_trip_restores_model_and_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoint.save(tmp_path, 3, model, optimizer, {"note": "x"}, keep=2)
    other, fresh = torch.nn.Linear(4, 3), None
    fresh = torch.optim.AdamW(other.parameters(), lr=0.5)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    path, state = found
    assert (state["step"], state["note"]) == (3, "x")
    checkpoint.load(path, state, other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    a, b = optimizer.state_dict(), fresh.state_dict()
    assert a["param_groups"] == [{**g, "betas": tuple(g["betas"])} for g in b["param_groups"]]
    for i in a["state"]:
        for key in a["state"][i]:
            assert torch.equal(a["state"][i][key], b["state"][i][key])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained()
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, model, optimizer, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "rng-0.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_an_error_line(
    tmp_path: Path, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = trained()
    checkpoint.save(tmp_path, 1, model, optimizer, {}, keep=2)
    newest = checkpoint.save(tmp_path, 2, model, optimizer, {}, keep=2)
    data = (newest / file).read_bytes()
    if how == "gone":
        (newest / file).unlink()
    else:
        (newest / file).write_bytes(data[: len(data) // 2] if how == "cut" else data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(IndexCorruptError):
        checkpoint.verify(newest)
    with caplog.at_level(logging.ERROR):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    assert "step-00000002" in caplog.text


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {}, keep=2)
    path.rename(tmp_path / "step-00000002.tmp")  # what a kill before the rename leaves
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 2, model, optimizer, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002"]


def test_another_model_or_number_of_ranks_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {}, keep=2)
    state = checkpoint.verify(path)
    with pytest.raises(InputError, match="does not fit"):
        checkpoint.load(path, state, torch.nn.Linear(5, 3), optimizer)
    with pytest.raises(InputError, match="rank 1"):
        checkpoint.load(path, state, model, optimizer, rank=1)
