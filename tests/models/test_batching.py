"""Batches by length, and padding that no position id counts."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given

from palimpsest.models.batching import batches_by_length, pad


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200), st.none() | st.integers(1, 7), st.booleans())
def test_every_row_once_and_within_the_budget(lengths, batch_tokens, max_rows, equal):
    batches = list(batches_by_length(lengths, batch_tokens, max_rows, equal=equal))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * width <= batch_tokens
        assert max_rows is None or len(batch) <= max_rows
        assert not equal or {lengths[row] for row in batch} == {width}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(["left", "right"]))
def test_padding_is_masked_and_not_counted(lengths, side):
    rows = [np.arange(1, length + 1) for length in lengths]
    ids, mask, positions = pad(rows, side, torch.device("cpu"))
    for row, (own_ids, own_mask, own_positions) in zip(rows, zip(ids, mask, positions, strict=True), strict=True):
        real = own_mask.bool()
        assert own_ids[real].tolist() == row.tolist()
        assert own_positions[real].tolist() == list(range(len(row)))
        assert own_positions[~real].eq(0).all()
        assert bool(own_mask[-1 if side == "left" else 0])
