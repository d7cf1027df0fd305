"""The tree of blocks against a dictionary of prefixes, its limit, and what it forgets first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.serving.prefix_cache import BLOCK, PrefixCache
from palimpsest.serving.slots import SlotStore

SHAPES = {0: ((2, 3), (2, 5)), 1: ((1, 4), (1, 4))}  # keys and values of different width, layers of different shape


def make_store(slots=2):
    return SlotStore(SHAPES, slots, torch.float32, torch.device("cpu"))


def fill(store, slot, ids):
    """Keys and values that tell every prefix from every other."""
    store.reserve(len(ids))
    for position in range(len(ids)):
        mark = float(hash(tuple(ids[: position + 1])) % 10007)
        for layer in SHAPES:
            for tensor in store.layer(layer):
                tensor[slot, :, position] = mark + layer
    store.lengths[slot] = len(ids)


def held(store, slot, count):
    return torch.cat([tensor[slot, :, :count].flatten() for layer in SHAPES for tensor in store.layer(layer)])


def tokens(*blocks):
    """Blocks of equal ids, each named by a number; the last id of all is one that is never cached."""
    return [block for block in blocks for _ in range(BLOCK)] + [99]


prompts = st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=12)


@settings(max_examples=60)
@given(prompts, st.lists(st.sampled_from([None, "a"]), min_size=12, max_size=12))
def test_what_is_found_is_the_longest_known_prefix(asked, keys):
    """Without a limit: as many whole blocks as any earlier prompt of the same key shares, and their very keys and values."""
    cache, store = PrefixCache(1 << 40), make_store()
    known = set()
    for blocks, key in zip(asked, keys, strict=False):
        ids = tokens(*blocks)
        expected = 0
        while expected < len(blocks) and (key, tuple(blocks[: expected + 1])) in known:
            expected += 1
        assert cache.match(key, ids) == expected * BLOCK
        fill(store, 0, ids)
        store.release(1, spoiled=False)
        assert cache.load(key, ids, store, 1, 0) == expected * BLOCK
        assert torch.equal(held(store, 1, expected * BLOCK), held(store, 0, expected * BLOCK))
        cache.keep(key, ids, store, 0)
        known |= {(key, tuple(blocks[:end])) for end in range(1, len(blocks) + 1)}
        assert cache.blocks == len(known)
        assert cache.bytes == len(known) * BLOCK * store.token_bytes


@settings(max_examples=60)
@given(prompts, st.integers(0, 6))
def test_the_limit_holds(asked, room):
    store = make_store()
    cache = PrefixCache(room * BLOCK * store.token_bytes)
    for blocks in asked:
        ids = tokens(*blocks)
        fill(store, 0, ids)
        cache.keep(None, ids, store, 0)
        assert cache.bytes <= cache.limit
        assert cache.match(None, ids) == min(len(blocks), room) * BLOCK  # the newest prompt is never driven out by itself


def test_the_prompt_used_longest_ago_is_forgotten_from_its_end():
    store = make_store()
    cache = PrefixCache(4 * BLOCK * store.token_bytes)
    for blocks in ((1, 2), (3, 4)):
        fill(store, 0, tokens(*blocks))
        cache.keep(None, tokens(*blocks), store, 0)
    cache.load(None, tokens(1, 2), store, 1, 0)
    fill(store, 0, tokens(5))
    cache.keep(None, tokens(5), store, 0)
    assert [cache.match(None, tokens(*blocks)) // BLOCK for blocks in ((1, 2), (3, 4), (5,))] == [2, 1, 1]


def test_the_last_token_is_never_cached():
    """Its logits are wanted: a prompt that is known whole still has something to feed."""
    cache, store = PrefixCache(1 << 20), make_store()
    ids = tokens(1, 2)[:-1]
    fill(store, 0, ids)
    cache.keep(None, ids, store, 0)
    assert cache.match(None, ids) == BLOCK


def test_loading_begins_where_the_slot_ends():
    cache, store = PrefixCache(1 << 20), make_store()
    ids = tokens(1, 2)
    fill(store, 0, ids)
    cache.keep(None, ids, store, 0)
    assert cache.load(None, ids, store, 1, BLOCK) == 2 * BLOCK
    assert not held(store, 1, BLOCK).any()
    assert cache.load(None, tokens(7), store, 1, BLOCK) == BLOCK


def test_a_prompt_is_forgotten_up_to_where_another_goes_on():
    cache, store = PrefixCache(1 << 20), make_store()
    for blocks in ((1, 2, 3), (1, 4)):
        fill(store, 0, tokens(*blocks))
        cache.keep("a", tokens(*blocks), store, 0)
    cache.forget(None, tokens(1, 2, 3))
    assert cache.blocks == 4
    cache.forget("a", tokens(1, 2, 3))
    assert [cache.match("a", tokens(*blocks)) // BLOCK for blocks in ((1, 2, 3), (1, 4))] == [1, 2]
    cache.forget("a", tokens(1, 4))
    assert (cache.blocks, cache.bytes, cache._roots, cache._leaves) == (0, 0, {}, set())


def test_a_negative_limit_is_refused():
    with pytest.raises(InputError, match="-1"):
        PrefixCache(-1)
