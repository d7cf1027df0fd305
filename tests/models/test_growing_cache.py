"""A cache that grows in place hands transformers what its own would."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, MistralConfig, StaticCache
from transformers.cache_utils import DynamicLayer

from palimpsest.models.growing_cache import GrowingLayer, growing

STEPS = ["one", "many", "crop", "reorder", "select", "repeat"]


def chunk(rng: np.random.Generator, rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(rng.standard_normal((rows, 2, tokens, 4), dtype=np.float32)) for _ in range(2))  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.lists(st.sampled_from(["one", "many", "crop", "reorder", "select", "repeat"]), max_size=12), st.integers(0, 99)
)
def test_what_is_held_is_what_transformers_layer_holds(capacity, steps, seed):
    rng = np.random.default_rng(seed)
    ours, theirs, rows = GrowingLayer(capacity), DynamicLayer(), 2
    for step in ["many", *steps]:
        if step in ("one", "many"):
            keys, values = chunk(rng, rows, 1 if step == "one" else 3)
            got, expected = ours.update(keys, values), theirs.update(keys, values)
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
            continue
        order = torch.from_numpy(rng.integers(0, rows, rows))
        for layer in (ours, theirs):
            if step == "crop":
                layer.crop(-min(2, layer.get_seq_length()))
            elif step == "reorder":
                layer.reorder_cache(order)
            elif step == "select":
                layer.batch_select_indices(order)
            elif rows < 8:
                layer.batch_repeat_interleave(2)
        rows = len(theirs.keys)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


def test_nothing_is_moved_while_there_is_room():
    layer = GrowingLayer(8)
    layer.update(*chunk(np.random.default_rng(0), 2, 3))
    places = set()
    for _ in range(5):
        keys, values = layer.update(*chunk(np.random.default_rng(1), 2, 1))
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1
    keys, _ = layer.update(*chunk(np.random.default_rng(1), 2, 1))
    assert keys.data_ptr() not in {place[0] for place in places}
    assert layer.get_seq_length() == 9


def test_a_cache_that_keeps_windows_is_left_alone(make_model):
    window = DynamicCache(config=MistralConfig(num_hidden_layers=2, sliding_window=4))
    assert growing(window, 8) is window
    assert all(not isinstance(layer, GrowingLayer) for layer in window.layers)
    assert growing(DynamicCache(), 8) is None
    assert growing(StaticCache(config=MistralConfig(num_hidden_layers=2), max_cache_len=8), 8) is None
    plain = DynamicCache(config=make_model("llama").config)
    assert growing(plain, 8) is plain
    assert all(isinstance(layer, GrowingLayer) for layer in plain.layers)
