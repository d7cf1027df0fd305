"""The claim check of the landscape at its smallest scale, and the figures it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import landscape


@pytest.fixture(scope="module")
def claim(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(landscape, "EPOCHS", 2)
        return landscape.run("smoke", 0)


def test_smoke_holds_the_invariant_and_reports_every_arm(claim):
    assert claim.passed
    assert [check.ours for check in claim.checks if check.threshold is not None] == [0]
    assert [row["arm"] for row in claim.rows] == [
        "perturbed", "never saw the texts", "deduplicated", "DP-SGD", "unlearned by npo", "unlearned by graddiff", "unlearned by ga"
    ]  # fmt: skip
    assert all(np.isfinite(row["validation"]) for row in claim.rows)
    private = claim.rows[3]
    assert private["validation"] > claim.rows[0]["validation"]  # a tenth of the steps, and noise
    assert 0 < private["epsilon"] < np.inf
    claim.to_dict()


def test_the_texts_are_divided_without_overlap_and_by_seed():
    copies = np.repeat([0, 1, 48, 64], [4, 4, 8, 10])
    forget, seen, unseen = landscape.divided(copies, 64, 0)
    assert len(forget) == 5
    assert (copies[forget] == 64).all()
    assert set(copies[np.concatenate([seen, unseen])]) == {48, 64}
    assert len({*forget, *seen, *unseen}) == 5 + 13
    assert abs(len(seen) - len(unseen)) <= 1
    assert forget.tolist() != landscape.divided(copies, 64, 1)[0].tolist()


def test_there_is_no_gpu_scale():
    with pytest.raises(InputError, match="no scale"):
        landscape.run("gpu", 0)
