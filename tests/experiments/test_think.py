"""The claim check of ThinK: its smallest scale, and arms that choose channels in other ways."""

from __future__ import annotations

import pytest
import torch

from palimpsest.errors import InputError
from palimpsest.experiments import think as experiment


def test_smoke_runs_and_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    claim = experiment.run("smoke", 100)
    assert claim.passed
    assert claim.checks[0].threshold is not None
    bytes_of = {row["arm"]: row["bytes"] for row in claim.rows}
    assert bytes_of["H2O + ThinK .4"] < bytes_of["ThinK .5"] < bytes_of["ThinK .4"] < bytes_of["full"]
    assert bytes_of["random .5"] == bytes_of["least .5"] == bytes_of["ThinK .5"]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)


def test_the_arms_choose_other_channels():
    torch.manual_seed(0)
    keys, values, q = torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8), torch.randn(1, 4, 6, 8)
    positions, chosen = torch.arange(20)[None], {}
    for arm in (experiment.ThinK(), experiment.LeastChannels(), experiment.RandomChannels(seed=0), experiment.RandomChannels(seed=1)):
        layer = arm.make_layer(type("Info", (), {"index": 0}))
        layer.expect(positions)
        layer.update(keys, values)
        layer.remember_last(q, positions[:, -6:], 6)
        layer.pack(4, 8, 4, 0, 1.0)
        chosen[repr(arm)] = layer.rows["channels"].tolist()
    think, least, one, other = chosen.values()
    assert all(set(a) | set(b) == set(range(8)) for a, b in zip(think[0], least[0], strict=True))
    assert one != other
