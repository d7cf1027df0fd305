"""LM-Infinite: equal to a dense reference however the text is cut, vanilla while all is near, and of constant size."""

from __future__ import annotations

import pytest
import torch
from tests.context.two_distances import DenseLambda, random_ids, tiny_llama

from palimpsest.context import prefill
from palimpsest.context.lm_infinite import LMInfinite
from palimpsest.context.window import ANCHOR_SPAN
from palimpsest.errors import CannotRollbackError, InputError

N_LOCAL, N_GLOBAL = 16, 3


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def logits(model, method, ids, chunk, mask=None):
    with method(model) as session:
        return prefill(session, ids, chunk=chunk, logits="all", attention_mask=mask).logits


@pytest.mark.parametrize("tokens", [1, N_LOCAL - 1, N_LOCAL, N_LOCAL + 1, 59, 150])
@pytest.mark.parametrize("ceiling", [5, N_LOCAL, 40])
def test_equals_the_dense_reference_however_the_text_is_cut(model, tokens, ceiling):
    ids = random_ids(tokens, rows=2)
    expected = logits(model, DenseLambda(N_GLOBAL, N_LOCAL, ceiling), ids, tokens)
    for chunk in (tokens, 7, 33):
        found = logits(model, LMInfinite(N_GLOBAL, N_LOCAL, ceiling), ids, chunk)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_global", [0, 40])
def test_no_beginning_and_one_that_is_longer_than_the_window(model, n_global):
    ids = random_ids(90)
    expected = logits(model, DenseLambda(n_global, N_LOCAL, N_LOCAL), ids, 90)
    for chunk in (90, 11, 1):
        torch.testing.assert_close(logits(model, LMInfinite(n_global, N_LOCAL), ids, chunk), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "rope", [None, {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}]
)
def test_vanilla_bit_for_bit_while_everything_is_near(rope):
    model = tiny_llama(rope=rope)
    ids = random_ids(N_LOCAL, rows=2)
    with torch.no_grad():
        expected = model(ids).logits
        with LMInfinite(N_GLOBAL, N_LOCAL)(model):
            assert torch.equal(model(ids).logits, expected)
        assert torch.equal(model(ids).logits, expected)


def test_scaled_maps_scale_both_sides_of_a_far_logit():
    model = tiny_llama(rope={"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16})
    ids = random_ids(70)
    expected = logits(model, DenseLambda(N_GLOBAL, N_LOCAL, N_LOCAL), ids, 70)
    torch.testing.assert_close(logits(model, LMInfinite(N_GLOBAL, N_LOCAL), ids, 9), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [70, 9, 1])
def test_rows_with_padding_get_what_they_get_alone(model, chunk):
    ids, mask = random_ids(70, rows=3), torch.ones(3, 70, dtype=torch.long)
    mask[1, :8], mask[2, :60] = 0, 0
    for method in (LMInfinite(N_GLOBAL, N_LOCAL), LMInfinite(N_GLOBAL, N_LOCAL, middle_topk=2, middle_from_layer=1)):
        together = logits(model, method, ids, chunk, mask)
        for row, padding in enumerate((0, 8, 60)):
            alone = logits(model, method, ids[row : row + 1, padding:], chunk)
            torch.testing.assert_close(together[row, padding:], alone[0], atol=1e-5, rtol=1e-5)


def test_padding_behind_changes_nothing_before_it_and_padding_between_is_refused(model):
    ids, mask = random_ids(60, rows=2), torch.ones(2, 60, dtype=torch.long)
    mask[1, 45:] = 0
    method = LMInfinite(N_GLOBAL, N_LOCAL)
    with torch.no_grad(), method(model):
        found = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(found[1, :45], model(ids[1:, :45]).logits[0], atol=1e-5, rtol=1e-5)
        mask[1, 50] = 1
        with pytest.raises(InputError, match="padding"):
            model(ids, attention_mask=mask)


def test_position_ids_may_begin_anywhere_but_not_jump(model):
    ids = random_ids(60)
    with torch.no_grad(), LMInfinite(N_GLOBAL, N_LOCAL)(model):
        expected = model(ids).logits
        torch.testing.assert_close(model(ids, position_ids=torch.arange(7, 67)[None]).logits, expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(InputError, match="do not run on"):
            model(ids, position_ids=torch.arange(0, 120, 2)[None])


def test_the_cache_has_a_constant_size(model):
    ids = random_ids(300)
    bytes_a_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, key heads, head_dim, float32
    with LMInfinite(N_GLOBAL, N_LOCAL)(model) as session:
        cache, sizes = None, []
        for begin, end in [(0, 10), (10, 19), (19, 20), *((i, i + 1) for i in range(20, 60)), (60, 290), (290, 300)]:
            read = prefill(session, ids[:, begin:end], cache=cache, logits="none")
            cache = read.cache
            sizes.append(read.nbytes)
        positions = 2 * 2 * N_LOCAL * 4 + 2 * 2 * 8  # int32, and the free column of every head
    assert set(sizes[2:]) == {(N_LOCAL + N_GLOBAL) * bytes_a_token + positions}


def test_generates_greedily_what_the_reference_generates_also_with_beams(model):
    ids = random_ids(40, rows=2)
    for beams in (1, 3):
        options = {"max_new_tokens": 30, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
        with DenseLambda(N_GLOBAL, N_LOCAL, N_LOCAL)(model):
            expected = model.generate(ids, **options)
        with LMInfinite(N_GLOBAL, N_LOCAL)(model):
            assert torch.equal(model.generate(ids, **options), expected)


def test_all_middle_keys_are_a_window_without_end_at_the_middle_distance(model):
    ids = random_ids(60)
    method = LMInfinite(0, N_LOCAL, middle_topk=100, middle_from_layer=0, middle_distance=5)
    expected = logits(model, DenseLambda(60, N_LOCAL, 5), ids, 60)
    for chunk in (60, 13, 1):
        torch.testing.assert_close(logits(model, method, ids, chunk), expected, atol=1e-5, rtol=1e-5)


def test_few_middle_keys_lie_between_none_and_all_and_do_not_depend_on_the_cut(model):
    ids = random_ids(90)
    few = LMInfinite(N_GLOBAL, N_LOCAL, middle_topk=2, middle_from_layer=1)
    expected = logits(model, few, ids, 90)
    for chunk in (13, 1):
        torch.testing.assert_close(logits(model, few, ids, chunk), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits(model, LMInfinite(N_GLOBAL, N_LOCAL), ids, 90), atol=1e-3)


def test_the_anchor_moves_and_changes_nothing(model, monkeypatch):
    ids = random_ids(120)
    expected = logits(model, LMInfinite(N_GLOBAL, N_LOCAL), ids, 10)
    monkeypatch.setattr("palimpsest.context.window.ANCHOR_SPAN", 20)
    assert ANCHOR_SPAN > 120
    for chunk in (10, 1):
        with LMInfinite(N_GLOBAL, N_LOCAL)(model) as session:
            read = prefill(session, ids, chunk=chunk, logits="all")
            assert read.cache.layers[0].anchor > 60
        torch.testing.assert_close(read.logits, expected, atol=1e-5, rtol=1e-5)


def test_half_of_the_trained_length_by_default(model):
    ids = random_ids(80)
    torch.testing.assert_close(logits(model, LMInfinite(), ids, 80), logits(model, LMInfinite(10, 32, 32), ids, 80))


def test_what_was_given_up_cannot_be_taken_back(model):
    with LMInfinite(N_GLOBAL, N_LOCAL)(model) as session:
        read = prefill(session, random_ids(30), logits="none")
        with pytest.raises(CannotRollbackError):
            read.cache.crop(-1)


@pytest.mark.parametrize(
    "settings",
    [{"n_local": 0}, {"n_global": -1}, {"distance_ceiling": 0}, {"middle_topk": -1}, {"middle_distance": 0}, {"middle_from_layer": -1}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(InputError):
        LMInfinite(**settings)


def test_settings_that_this_model_does_not_allow(model):
    with pytest.warns(UserWarning, match="does not know the distance 65"), LMInfinite(n_local=16, distance_ceiling=65)(model):
        pass
    with pytest.raises(InputError, match="2 layers"), LMInfinite(middle_topk=1)(model):
        pass
