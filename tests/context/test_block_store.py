"""The block store against one kept in plain Python: the same blocks, the same cache, whatever the policy and wherever blocks live."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.context.block_store import BlockStore
from palimpsest.errors import InputError

UNITS, KV_HEADS, HEADS, BLOCK, HEAD_DIM = 3, 2, 4, 4, 8
LIKE = torch.empty(UNITS, KV_HEADS, 1, HEAD_DIM)


class PlainStore:
    """What the store should do, one unit and one block at a time."""

    def __init__(self, cached_blocks, policy, decay):
        self.cached_blocks, self.policy, self.decay, self.clock = cached_blocks, policy, decay, 0
        self.blocks = [[] for _ in range(UNITS)]  # (keys, values, representative)
        self.cache = [{} for _ in range(UNITS)]  # number → worth

    def lookup(self, queries, topk):
        self.clock += 1
        found = []
        for unit, blocks in enumerate(self.blocks):
            scores = [float((queries[unit] * block[2]).sum()) for block in blocks]
            best = sorted(sorted(range(len(blocks)), key=lambda i: -scores[i])[:topk])
            cache = self.cache[unit]
            for number in best:
                if number not in cache:
                    if len(cache) == self.cached_blocks:
                        del cache[min((i for i in cache if i not in best), key=lambda i: (cache[i], i))]
                    cache[number] = 0.0
                if self.policy == "lru":
                    cache[number] = self.clock
            found.append(best)
        return found

    def credit(self, found, received):
        for unit, best in enumerate(found):
            cache = self.cache[unit]
            for number in cache:
                cache[number] *= self.decay
            for number, value in zip(best, received[unit], strict=False):
                cache[number] += float(value)


def write(store, plain, generator, units):
    keys, values = (torch.randn(len(units), KV_HEADS, BLOCK, HEAD_DIM, generator=generator) for _ in range(2))
    representatives = torch.randn(len(units), HEADS, HEAD_DIM, generator=generator)
    for part in store:
        part.append(keys, values, representatives, torch.tensor(units))
    for row, unit in enumerate(units):
        plain.blocks[unit].append((keys[row], values[row], representatives[row]))


@given(st.integers(0, 2**20), st.sampled_from(["lru", "lru-s"]), st.integers(1, 3), st.integers(0, 2))
def test_equals_a_store_in_plain_python(seed, policy, topk, spare):
    generator = torch.Generator().manual_seed(seed)
    cached = topk + spare
    store = BlockStore(LIKE, HEADS, BLOCK, cached, policy, 0.5)
    whole = BlockStore(LIKE, HEADS, BLOCK, cached, policy, 0.5, offload=None)
    plain = PlainStore(cached, policy, 0.5)
    for _ in range(12):
        units = [unit for unit in range(UNITS) if torch.rand((), generator=generator) < 0.6]
        if units:
            write((store, whole), plain, generator, units)
        queries = torch.randn(UNITS, HEADS, HEAD_DIM, generator=generator)
        found, same, expected = store.lookup(queries, topk), whole.lookup(queries, topk), plain.lookup(queries, topk)
        for unit, best in enumerate(expected):
            assert found.numbers[unit][found.held[unit]].tolist() == best
            for part, blocks in zip((0, 1), (found.keys, found.values), strict=True):
                kept = blocks[unit].view(KV_HEADS, -1, BLOCK, HEAD_DIM)[:, found.held[unit]]
                for place, number in enumerate(best):
                    assert torch.equal(kept[:, place], plain.blocks[unit][number][part])
        assert torch.equal(found.numbers, same.numbers)
        seen = found.held.repeat_interleave(BLOCK, 1)[:, None, :, None]
        assert torch.equal(found.keys * seen, same.keys * seen)
        assert torch.equal(found.values * seen, same.values * seen)
        received = torch.rand(found.numbers.shape, generator=generator)
        store.credit(received)
        if policy == "lru-s":
            plain.credit(expected, [row[held] for row, held in zip(received, found.held, strict=True)])
        for unit in range(UNITS):
            slots = [number for number in store._slots[unit].tolist() if number >= 0]
            assert len(slots) <= cached
            assert sorted(slots) == sorted(plain.cache[unit])


def test_selected_units_carry_everything_with_them():
    generator = torch.Generator().manual_seed(0)
    store, plain = BlockStore(LIKE, HEADS, BLOCK, 2), PlainStore(2, "lru", 0.1)
    for units in ([0, 1, 2], [1], [1, 2]):
        write((store,), plain, generator, units)
    queries = torch.randn(UNITS, HEADS, HEAD_DIM, generator=generator)
    before = store.lookup(queries, 2)
    chosen = torch.tensor([2, 0, 2, 1])
    store.select(chosen)
    after = store.lookup(queries[chosen], 2)
    assert store.counts.tolist() == [2, 1, 2, 3]
    assert torch.equal(after.numbers, before.numbers[chosen])
    seen = after.held.repeat_interleave(BLOCK, 1)[:, None, :, None]
    assert torch.equal(after.keys * seen, before.keys[chosen] * seen)


def test_only_representatives_and_cache_are_on_the_device():
    store, plain = BlockStore(LIKE, HEADS, BLOCK, 2), PlainStore(2, "lru", 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        write((store,), plain, generator, [0, 1, 2])
    held = UNITS * KV_HEADS * BLOCK * HEAD_DIM * 4 * 2  # bytes of the keys and values of one block of every unit
    room = store._keys.shape[2]
    assert room >= 20
    nbytes = {where: sum(part.numel() * part.element_size() for part in store.tensors(where)) for where in ("device", "all")}
    assert nbytes["device"] == 2 * held + room * UNITS * HEADS * HEAD_DIM * 4
    assert nbytes["all"] == nbytes["device"] + room * held


def test_an_empty_store_answers_with_no_block():
    found = BlockStore(LIKE, HEADS, BLOCK).lookup(torch.randn(UNITS, HEADS, HEAD_DIM), 3)
    assert found.keys.shape == (UNITS, KV_HEADS, 0, HEAD_DIM)
    assert found.held.shape == (UNITS, 0)


@pytest.mark.parametrize(
    "settings",
    [{"block": 0}, {"cached_blocks": 0}, {"policy": "fifo"}, {"decay": 1.5}, {"offload": "disk"}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(InputError):
        BlockStore(LIKE, HEADS, **{"block": BLOCK} | settings)


def test_what_does_not_fit():
    store = BlockStore(LIKE, HEADS, BLOCK, 2)
    with pytest.raises(InputError, match="3 tokens"):
        store.append(
            torch.zeros(1, KV_HEADS, 3, HEAD_DIM), torch.zeros(1, KV_HEADS, 3, HEAD_DIM), torch.zeros(1, HEADS, HEAD_DIM), torch.tensor([0])
        )
    with pytest.raises(InputError, match="topk is 3"):
        store.lookup(torch.zeros(UNITS, HEADS, HEAD_DIM), 3)
