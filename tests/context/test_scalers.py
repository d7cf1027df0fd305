"""Position scaling against the formulas and against transformers' own; Self-Extend against a dense matrix of relative positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from palimpsest.context import RotaryMap, compose
from palimpsest.context.h2o import H2O
from palimpsest.context.scalers import ABF, PI, DynamicNTK, NTKAware, YaRN
from palimpsest.context.self_extend import SelfExtend
from palimpsest.context.session import LayerInfo
from palimpsest.errors import InputError, UnsupportedModelError

from .conftest import GROUPED, logits

PLAIN = RotaryMap.of_base(10_000.0, 8, trained_length=64)


def scaled_llama(llama, **settings):
    """The same weights, with transformers' own scaling of the trained 64 positions."""
    config = LlamaConfig(**{**GROUPED, "max_position_embeddings": 64}, rope_parameters={"rope_theta": 10_000.0, **settings})
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(llama.state_dict())
    return model


@pytest.fixture(scope="module")
def text():
    return torch.randint(3, 97, (2, 100), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", [PI(1), NTKAware(1), YaRN(1)], ids=repr)
def test_a_factor_of_one_is_the_models_own_map(method):
    assert method.rotary(PLAIN) is PLAIN


@settings(max_examples=20)
@given(st.floats(1, 50), st.lists(st.integers(0, 3000), min_size=1, max_size=5))
def test_pi_is_rotation_at_divided_positions(factor, where):
    x, at = torch.randn(1, 2, len(where), 8), torch.tensor(where)
    torch.testing.assert_close(PI(factor).rotary(PLAIN).rotate(x, at), PLAIN.rotate(x, at / factor), atol=1e-3, rtol=1e-3)


def test_ntk_leaves_the_fastest_pair_and_interpolates_the_slowest():
    found = NTKAware(4.0).rotary(PLAIN).inv_freq
    assert found[0] == PLAIN.inv_freq[0]
    assert found[-1].item() == pytest.approx(PLAIN.inv_freq[-1].item() / 4, rel=1e-5)
    base = 10_000 * 4 ** (8 / 6)
    assert found.tolist() == pytest.approx([base ** (-2 * i / 8) for i in range(4)], rel=1e-5)


@pytest.mark.parametrize("factor", [1.5, 4.0, 32.0])
@pytest.mark.parametrize("options", [{}, {"beta_fast": 8.0, "beta_slow": 2.0}, {"attention_factor": 1.25}])
def test_yarn_is_that_of_transformers(factor, options):
    for dim, length in ((8, 64), (64, 2048)):
        settings = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length, "rope_theta": 10_000.0, **options}
        config = LlamaConfig(hidden_size=4 * dim, num_attention_heads=4, max_position_embeddings=length, rope_parameters=settings)
        frequencies, scaling = ROPE_INIT_FUNCTIONS["yarn"](config, None)
        mine = YaRN(factor, **options).rotary(RotaryMap.of_base(10_000.0, dim, length))
        assert torch.equal(mine.inv_freq, frequencies)
        assert mine.scaling == pytest.approx(scaling)


def test_whole_models_equal_transformers_scaled_models(llama, text):
    short = scaled_llama(llama, rope_type="default")
    for method, scaling in (
        (YaRN(4.0), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        (PI(4.0), {"rope_type": "linear", "factor": 4.0}),
        (ABF(77_000.0), {"rope_type": "default", "rope_theta": 77_000.0}),
        (DynamicNTK(2.0), {"rope_type": "dynamic", "factor": 2.0}),
    ):
        theirs = logits(scaled_llama(llama, **scaling), text)
        with method(short):
            torch.testing.assert_close(short(text).logits, theirs, atol=2e-4, rtol=1e-3)


def test_dynamic_ntk_follows_each_rows_length(llama, text):
    short = scaled_llama(llama, rope_type="default")
    method = DynamicNTK(2.0)
    info = LayerInfo(0, 1, 4, 2, 8, 8**-0.5, None, replace(PLAIN, trained_length=64))
    moved = method.map_at(info.rotary, torch.tensor([40, 64, 128]))
    assert torch.equal(moved.inv_freq[0, 0, 0], PLAIN.inv_freq)
    assert torch.equal(moved.inv_freq[1, 0, 0], PLAIN.inv_freq)
    base = 10_000 * (2 * 128 / 64 - 1) ** (8 / 6)
    assert moved.inv_freq[2, 0, 0].tolist() == pytest.approx([base ** (-2 * i / 8) for i in range(4)], rel=1e-5)
    plain = logits(short, text[:, :64])
    with method(short):
        torch.testing.assert_close(short(text[:, :64]).logits, plain, atol=1e-5, rtol=1e-5)


def test_scaling_composes_with_eviction_and_not_with_itself(llama, text):
    short = scaled_llama(llama, rope_type="default")
    with compose(YaRN(4.0), H2O(1000))(short):
        both = short(text).logits
    with YaRN(4.0)(short):
        torch.testing.assert_close(both, short(text).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(UnsupportedModelError, match="scaled already"), compose(PI(2.0), YaRN(2.0))(short):
        pass
    with pytest.raises(InputError, match="both have their own attend"):
        compose(DynamicNTK(), H2O(16))


def relative(query, key, group, near):
    return query - key if query - key < near else query // group - key // group + near - near // group


@pytest.mark.parametrize(("group", "near"), [(1, 4), (3, 8), (4, 5), (2, 100)])
@pytest.mark.parametrize("chunks", [[30], [7, 7, 1, 1, 14]])
def test_self_extend_equals_a_dense_matrix_of_relative_positions(group, near, chunks):
    g = torch.Generator().manual_seed(group)
    q, k, v = (torch.randn(1, heads, 30, 8, generator=g) for heads in (4, 2, 2))
    method = SelfExtend(group, near)
    info = LayerInfo(0, 1, 4, 2, 8, 8**-0.5, None, PLAIN)
    layer, outs, begin = method.make_layer(info), [], 0
    for count in chunks:
        at = torch.arange(begin, begin + count)[None]
        layer.expect(at)
        keys, values = layer.update(k[:, :, begin : begin + count], v[:, :, begin : begin + count])
        outs.append(method.attend(info, q[:, :, begin : begin + count], keys, values, None, at, layer))
        begin += count
    expected = torch.zeros(1, 30, 4, 8)
    for i in range(30):
        for head in range(4):
            turned = torch.stack(
                [PLAIN.rotate(q[:, head : head + 1, i : i + 1], torch.tensor([relative(i, j, group, near)]))[0, 0, 0] for j in range(i + 1)]
            )
            p = ((turned * k[0, head // 2, : i + 1]).sum(-1) * 8**-0.5).softmax(0)
            expected[0, i, head] = p @ v[0, head // 2, : i + 1]
    torch.testing.assert_close(torch.cat(outs, dim=1), expected, atol=1e-4, rtol=1e-3)


def test_self_extend_within_the_neighbourhood_is_the_model(llama, ids):
    with SelfExtend(4, 64)(llama):
        inside = llama(ids).logits
    torch.testing.assert_close(inside, logits(llama, ids), atol=1e-4, rtol=1e-4)


def test_values_that_mean_nothing_are_refused():
    for make in (
        lambda: PI(0.5),
        lambda: NTKAware(float("nan")),
        lambda: YaRN(2.0, beta_fast=1.0, beta_slow=2.0),
        lambda: DynamicNTK(trained_length=0),
        lambda: ABF(0.0),
        lambda: SelfExtend(0, 4),
    ):
        with pytest.raises(InputError):
            make()
