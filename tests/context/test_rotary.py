"""RotaryMap: the model's own rotation bit for bit, its inverse, shifts, partial heads, and ABF."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.context.rotary import RotaryMap, abf, rotary_maps
from palimpsest.errors import InputError

from .conftest import make_model

positions = st.lists(st.integers(0, 5000), min_size=1, max_size=6)


@given(positions, st.sampled_from([4, 8]), st.floats(0.5, 2))
def test_rotation_is_that_of_complex_numbers(where, rotary_dim, scaling):
    m = RotaryMap(RotaryMap.of_base(10_000.0, rotary_dim).inv_freq, scaling)
    x = torch.randn(2, 3, len(where), 8)
    turned = m.rotate(x, torch.tensor(where))
    half = rotary_dim // 2
    pairs = torch.complex(x[..., :half], x[..., half:rotary_dim]) * scaling
    pairs = pairs * torch.polar(torch.ones(len(where), half), torch.tensor(where)[:, None].float() * m.inv_freq)
    torch.testing.assert_close(turned[..., :half], pairs.real, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned[..., half:rotary_dim], pairs.imag, atol=1e-5, rtol=1e-5)
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])


@given(positions, st.floats(0.5, 2))
def test_unrotate_takes_rotate_back(where, scaling):
    m = RotaryMap(RotaryMap.of_base(500.0, 8).inv_freq, scaling)
    x = torch.randn(1, 2, len(where), 8)
    torch.testing.assert_close(m.unrotate(m.rotate(x, torch.tensor(where)), torch.tensor(where)), x, atol=1e-5, rtol=1e-4)


@given(positions, st.integers(-400, 400))
def test_shift_goes_on_from_where_keys_are(where, delta):
    m = RotaryMap(RotaryMap.of_base(10_000.0, 8).inv_freq, 1.5)
    x, at = torch.randn(1, 2, len(where), 8), torch.tensor(where)
    shifted = m.shift(m.rotate(x, at), torch.full_like(at, delta))
    torch.testing.assert_close(shifted, m.rotate(x, at + delta), atol=2e-3, rtol=2e-3)  # float32 angles of up to 5,400


def test_positions_may_differ_by_row_and_by_head():
    m = RotaryMap.of_base(10_000.0, 8)
    x = torch.randn(2, 3, 4, 8)
    rows = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 10]])
    heads = torch.randint(0, 50, (2, 3, 4))
    by_row, by_head = m.rotate(x, rows), m.rotate(x, heads)
    for b in range(2):
        torch.testing.assert_close(by_row[b : b + 1], m.rotate(x[b : b + 1], rows[b]))
        for h in range(3):
            torch.testing.assert_close(by_head[b : b + 1, h : h + 1], m.rotate(x[b : b + 1, h : h + 1], heads[b, h]))


def test_a_models_own_map_rotates_bit_for_bit_as_the_model_does(model):
    decoder = model.get_decoder()
    apply = sys.modules[type(decoder).__module__].apply_rotary_pos_emb
    for layer_type, m in rotary_maps(decoder).items():
        q, at = torch.randn(2, 4, 9, 8), torch.arange(18).view(2, 9)
        cos, sin = decoder.rotary_emb(q, at, *([] if layer_type is None else [layer_type]))
        theirs, _ = apply(q, q, cos, sin)
        assert torch.equal(m.rotate(q, at), theirs)


def test_gemma_has_one_map_for_each_type_of_layer():
    maps = rotary_maps(make_model("gemma3").get_decoder())
    assert {name: m.base for name, m in maps.items()} == {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}


def test_a_position_rule_is_applied_before_the_angle():
    m = RotaryMap(RotaryMap.of_base(10_000.0, 8).inv_freq, position_rule=lambda p: p // 4)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(m.rotate(x, torch.arange(8)), RotaryMap.of_base(10_000.0, 8).rotate(x, torch.arange(8) // 4))
    with pytest.raises(InputError, match="position rule"):
        m.shift(x, torch.arange(8))


def test_abf_changes_the_base_alone():
    m = RotaryMap.of_base(10_000.0, 8, trained_length=64)
    assert abf(m, 10_000.0) is m
    wide = abf(m, 500_000.0)
    assert wide.inv_freq.tolist() == pytest.approx([500_000.0 ** (-2 * i / 8) for i in range(4)], rel=1e-6)
    assert (wide.base, wide.trained_length) == (500_000.0, 64)
    with pytest.raises(InputError, match="not of one base"):
        abf(RotaryMap(m.inv_freq))
    with pytest.raises(InputError, match=r"base of the frequencies is -1"):
        abf(m, -1.0)
    with pytest.raises(InputError, match="rotary_dim is 7"):
        RotaryMap.of_base(10_000.0, 7)
