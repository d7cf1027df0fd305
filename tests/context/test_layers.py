"""PositionedLayer against a plain list of entries, under every way in which tokens come, go and move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.context.layers import EMPTY, STEP, PositionedLayer
from palimpsest.errors import CannotRollbackError, InputError

BATCH, HEADS, DIM = 2, 2, 4


def feed(layer, count, padded_rows=()):
    """Appends `count` tokens whose key, value and position all say which token they are."""
    at = torch.arange(layer.seen, layer.seen + count).expand(BATCH, count).clone()
    for row in padded_rows:
        at[row] = EMPTY
    token = torch.arange(layer.seen, layer.seen + count).float()[None, None, :, None].expand(BATCH, HEADS, count, DIM)
    layer.expect(at, bool(padded_rows))
    return layer.update(token.clone(), -token)


def held(layer):
    """For every row and head the sorted positions that it holds, after checking that keys and values belong to them."""
    out = []
    for b in range(layer.positions.shape[0]):
        for h in range(HEADS):
            there = layer.positions[b, h] >= 0
            at = layer.positions[b, h][there]
            assert torch.equal(layer.keys[b, h][there][:, 0], at.float())
            assert torch.equal(layer.values[b, h][there][:, 0], -at.float())
            out.append(sorted(at.tolist()))
    return out


@settings(max_examples=40)
@given(st.lists(st.one_of(st.integers(1, 5), st.just("drop"), st.just("keep"), st.just("crop")), max_size=30), st.randoms())
def test_entries_come_and_go_as_in_a_list(moves, random):
    layer = PositionedLayer()
    feed(layer, 6)
    layer.add_slot("score", torch.zeros(BATCH, HEADS, 1), 0.5)
    layer.slots["score"][:, :, : layer.length] = layer.positions.float()
    expected = [list(range(6)) for _ in range(BATCH * HEADS)]
    cropable = 6
    for move in moves:
        if move == "drop" and layer.free is None and layer.length > 1:
            gone = [[random.randrange(layer.length) for _ in range(HEADS)] for _ in range(BATCH)]
            for i in range(BATCH * HEADS):
                position = int(layer.positions[i // HEADS, i % HEADS, gone[i // HEADS][i % HEADS]])
                if position >= 0:
                    expected[i].remove(position)
            layer.give_up(torch.tensor(gone))
            cropable = 0
        elif move == "keep" and layer.length > 2:
            columns = torch.stack([torch.randperm(layer.length)[:-1].sort().values for _ in range(BATCH * HEADS)])
            columns = columns.view(BATCH, HEADS, -1)
            expected = [
                sorted(p for p in layer.positions[i // HEADS, i % HEADS][columns[i // HEADS, i % HEADS]].tolist() if p >= 0)
                for i in range(BATCH * HEADS)
            ]
            layer.keep(columns)
            cropable = 0
        elif move == "crop":
            if cropable < 2:
                with pytest.raises(CannotRollbackError, match="taken back"):
                    layer.crop(-cropable - 1)
            else:
                layer.crop(-2)
                expected = [entries[:-2] for entries in expected]
                cropable -= 2
        elif isinstance(move, int):
            begin, filled = layer.seen, layer.free is not None and move == 1
            keys, _ = feed(layer, move)
            expected = [entries + list(range(begin, begin + move)) for entries in expected]
            cropable = 0 if filled else cropable + move
            if move > 1:
                assert torch.equal(keys[0, 0, -move:, 0], torch.arange(begin, begin + move).float())
        assert held(layer) == [sorted(entries) for entries in expected]
        score = layer.slot("score")[layer.positions >= 0]
        at = layer.positions[layer.positions >= 0].float()
        assert ((score == at) | (score == 0.5)).all()
        if not layer.has_empty and layer.free is None:
            assert layer.valid() is None
            assert (layer.positions >= 0).all()


def test_the_steady_state_writes_in_place():
    layer = PositionedLayer()
    feed(layer, 8)
    layer.keep(torch.arange(2, 8).expand(BATCH, HEADS, 6))
    feed(layer, 1)
    where = layer.slots["keys"].data_ptr()
    size = layer.nbytes()
    for _ in range(3 * STEP):
        layer.give_up(layer.positions.argmin(-1))
        feed(layer, 1)
    assert layer.slots["keys"].data_ptr() == where
    assert layer.nbytes() == size
    assert layer.get_seq_length() == 9 + 3 * STEP
    assert held(layer)[0] == list(range(layer.seen - 7, layer.seen))


@pytest.mark.parametrize(("before", "step"), [(4, 16), (40 * 16, 40), (20 * STEP, STEP)])
def test_growing_by_single_tokens_copies_once_in_a_step(before, step):
    """A sixteenth of what is held, within bounds."""
    layer = PositionedLayer()
    feed(layer, before)
    places = set()
    for _ in range(step):
        feed(layer, 1)
        places.add(layer.slots["keys"].data_ptr())
    assert len(places) == 1
    assert layer.slots["keys"].shape[2] == before + step


def test_padding_is_empty_and_every_tensor_moves_with_the_batch():
    layer = PositionedLayer()
    feed(layer, 3, padded_rows=[1])
    layer.rows["sums"] = torch.tensor([1.0, 2.0])
    feed(layer, 2)
    assert held(layer) == [[0, 1, 2, 3, 4]] * 2 + [[3, 4]] * 2
    assert layer.lengths.tolist() == [[5, 5], [2, 2]]
    assert torch.equal(layer.valid()[1, 0], torch.tensor([False, False, False, True, True]))
    layer.reorder_cache(torch.tensor([1, 0]))
    assert held(layer) == [[3, 4]] * 2 + [[0, 1, 2, 3, 4]] * 2
    assert layer.rows["sums"].tolist() == [2.0, 1.0]
    layer.give_up(torch.zeros(BATCH, HEADS, dtype=torch.long))
    layer.batch_repeat_interleave(2)
    assert layer.free.shape == (4, HEADS)
    assert layer.rows["sums"].tolist() == [2.0, 2.0, 1.0, 1.0]
    layer.batch_select_indices(torch.tensor([3]))
    assert held(layer) == [[1, 2, 3, 4]] * 2
    layer.offload()
    layer.prefetch()
    layer.reset()
    assert (layer.get_seq_length(), layer.keys, layer.nbytes()) == (0, None, 0)


def test_heads_may_keep_different_numbers():
    layer = PositionedLayer()
    feed(layer, 5)
    columns = torch.tensor([[0, 2, 4], [1, 0, 0]]).expand(BATCH, HEADS, 3)
    layer.keep(columns, valid=torch.tensor([[True, True, True], [True, False, False]]).expand(BATCH, HEADS, 3))
    assert layer.lengths.tolist() == [[3, 1], [3, 1]]
    assert held(layer) == [[0, 2, 4], [1]] * 2


def test_bytes_are_those_of_the_tensors():
    layer = PositionedLayer()
    feed(layer, 5)
    assert layer.nbytes() == BATCH * HEADS * 5 * (2 * DIM * 4 + 4)
    layer.rows["more"] = torch.zeros(BATCH, 3, dtype=torch.float64)
    assert layer.nbytes() == BATCH * HEADS * 5 * (2 * DIM * 4 + 4) + BATCH * 3 * 8


def test_misuse_is_refused():
    layer = PositionedLayer()
    with pytest.raises(InputError, match="outside of its session"):
        layer.update(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
    feed(layer, 3)
    with pytest.raises(InputError, match="asks for a length"):
        layer.crop(2)
    with pytest.raises(InputError, match="cannot be replaced"):
        layer.keys = torch.zeros(1)
    with pytest.raises(CannotRollbackError):
        layer.crop(-4)
