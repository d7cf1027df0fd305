"""Every eviction against its definition written out with lists, on one attention layer: outputs and what is held, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from palimpsest.context.ada_kv import AdaKV
from palimpsest.context.expected_attention import ExpectedAttention
from palimpsest.context.h2o import H2O
from palimpsest.context.key_scores import KeyDiff, Knorm, Random
from palimpsest.context.layer_budgets import ChunkKV, PyramidKV
from palimpsest.context.rotary import RotaryMap
from palimpsest.context.session import LayerInfo, attend_dense
from palimpsest.context.snapkv import SnapKV
from palimpsest.context.tova import TOVA
from palimpsest.context.windows import SlidingWindow, StreamingLLM
from palimpsest.errors import InputError

HEADS, KV, DIM = 4, 2, 8
ROTARY = RotaryMap.of_base(100.0, DIM)
INFO = LayerInfo(2, 3, HEADS, KV, DIM, DIM**-0.5, None, ROTARY)


def tensors(length, seed):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(1, heads, length, DIM, generator=g) * scale for heads, scale in ((HEADS, 2.0), (KV, 1.0), (KV, 1.0)))


def drive(method, q, k, v, chunks):
    """Runs one layer as a session would; after every chunk the outputs and what each head holds."""
    layer, begin, steps = method.make_layer(INFO), 0, []
    for count in chunks:
        at = torch.arange(begin, begin + count)[None]
        part = slice(begin, begin + count)
        queries, keys = ROTARY.rotate(q[:, :, part], at), ROTARY.rotate(k[:, :, part], at)
        layer.expect(at)
        all_keys, all_values = layer.update(keys, v[:, :, part])
        out = method.attend(INFO, queries, all_keys, all_values, None, at, layer)
        if out is None:
            out = attend_dense(INFO, queries, all_keys, all_values, layer)
        method.observe(INFO, queries, all_keys, all_values, at, layer)
        there = layer.whole()["positions"] if isinstance(method, AdaKV) else layer.positions
        assert torch.equal((there >= 0).sum(-1), layer.lengths)
        steps.append((out, [sorted(p for p in there[0, h].tolist() if p >= 0) for h in range(KV)]))
        begin += count
    return steps, layer


def naive(method, q, k, v, chunks):
    """The same by the definitions: lists of positions, one softmax per query."""
    held, sums = [[] for _ in range(KV)], [{} for _ in range(KV)]
    begin, steps = 0, []

    def row(head, i, keys, compact):
        # In the compact form keys stand at their index among those held, the query behind them.
        where = torch.arange(len(keys)) if compact else torch.tensor(keys)
        at = torch.tensor([len(keys) - 1 if compact else i])
        query = ROTARY.rotate(q[:, head : head + 1, i : i + 1], at)[0, 0, 0]
        rotated = ROTARY.rotate(k[:, head // 2 : head // 2 + 1, keys], where)[0, 0]
        return (rotated @ query * DIM**-0.5).softmax(0)

    compact = isinstance(method, StreamingLLM)
    for count in chunks:
        outs = torch.zeros(1, count, HEADS, DIM)
        for i in range(begin, begin + count):
            for head in range(HEADS):
                keys = held[head // 2] + list(range(begin, i + 1))
                p = row(head, i, keys, compact)
                outs[0, i - begin, head] = p @ v[0, head // 2, keys]
                for j, value in zip(keys, p.tolist(), strict=True):
                    sums[head // 2][j] = sums[head // 2].get(j, 0.0) + value / 2
        begin += count
        there = [held[h] + list(range(begin - count, begin)) for h in range(KV)]
        if isinstance(method, AdaKV):
            held = shared(method, there, begin, count, row)
        else:
            held = [chosen(method, h, there[h], begin, count, sums, row, k) for h in range(KV)]
        if isinstance(method, TOVA):
            assert held[0] == held[1]
        steps.append((outs, [sorted(keys) for keys in held]))
    return steps


def chosen(method, h, there, end, count, sums, row, k):
    slack = method.window if isinstance(method, SnapKV) and count == 1 else 1
    budget = method.entries(INFO)
    if len(there) - budget < slack:
        return there
    if isinstance(method, StreamingLLM):
        window = method.budget - method.sinks
        return there[: method.sinks] + there[-window:]
    if isinstance(method, SlidingWindow):
        return there[-method.budget :]
    recent, worth = 0, {}
    if isinstance(method, H2O):
        recent, worth = method.budget // 2, sums[h]
    elif isinstance(method, TOVA):
        rows = torch.stack([row(head, end - 1, there, False) for head in range(HEADS)]).mean(0)
        worth = dict(zip(there, rows.tolist(), strict=True))
    elif isinstance(method, Knorm):
        worth = {j: -float(k[0, h, j].norm()) for j in there}
    elif isinstance(method, KeyDiff):
        rotated = ROTARY.rotate(k[:, h : h + 1, there], torch.tensor(there))[0, 0]
        unit = rotated / rotated.norm(dim=-1, keepdim=True)
        worth = dict(zip(there, (-torch.cosine_similarity(unit, unit.mean(0)[None])).tolist(), strict=True))
    elif isinstance(method, SnapKV):
        recent, worth = method.window, votes(method, h, there, end, row)
        if isinstance(method, ChunkKV):
            pieces = {j: [worth[n] for n in there if n // method.chunk == j // method.chunk] for j in there}
            worth = {j: sum(pieces[j]) / len(pieces[j]) - 1e-9 * j for j in there}
    last = [j for j in there if j >= end - recent]
    others = sorted((j for j in there if j < end - recent), key=lambda j: -worth[j])
    return sorted(last + others[: budget - len(last)])


def votes(method, h, there, end, row):
    found = torch.zeros(len(there))
    queries = range(max(0, end - method.window), end)
    for i in queries:
        seen = [n for n, j in enumerate(there) if j <= i]
        for head in (2 * h, 2 * h + 1):
            found[seen] += row(head, i, [there[n] for n in seen], False) / 2 / len(queries)
    found[[n for n, j in enumerate(there) if j >= end - method.window]] = 0
    half = method.kernel // 2
    padded = torch.cat([torch.zeros(half), found, torch.zeros(half)])
    return dict(zip(there, padded.unfold(0, method.kernel, 1).mean(-1).tolist(), strict=True))


def shared(method, there, end, count, row):
    """AdaKV: windows first, then each head's best, then the best of all heads."""
    if sum(map(len, there)) - KV * method.budget < KV * (method.window if count == 1 else 1):
        return there
    worth = [votes(method, h, there[h], end, row) for h in range(KV)]
    ranked = [sorted(there[h], key=lambda j, h=h: (j < end - method.window, -worth[h][j])) for h in range(KV)]
    least = max(int(method.floor * method.budget), method.window)
    kept = [keys[:least] for keys in ranked]
    rest = sorted(((worth[h][j], h, j) for h in range(KV) for j in ranked[h][least:]), reverse=True)
    for _, h, j in rest[: KV * method.budget - KV * least]:
        kept[h] = [*kept[h], j]
    return [sorted(keys) for keys in kept]


@pytest.mark.parametrize(
    "method",
    [
        SlidingWindow(6),
        StreamingLLM(7, sinks=2),
        StreamingLLM(6, sinks=0),
        H2O(6),
        TOVA(6),
        Knorm(6),
        KeyDiff(6),
        SnapKV(8, window=3, kernel=3),
        PyramidKV(8, window=3, kernel=1, beta=2.0),
        ChunkKV(9, window=3, kernel=3, chunk=2),
        AdaKV(8, window=3, kernel=3, floor=0.5),
        AdaKV(20, window=2, kernel=1, floor=0.0),
    ],
    ids=repr,
)
@settings(max_examples=8)
@example(chunks=[6, 1, 2, 1, 1, 3], seed=0)  # a chunk comes while a place is free
@given(chunks=st.lists(st.sampled_from([1, 1, 1, 2, 5, 9]), min_size=2, max_size=10), seed=st.integers(0, 1 << 30))
def test_equals_its_definition(method, chunks, seed):
    q, k, v = tensors(sum(chunks), seed)
    steps, layer = drive(method, q, k, v, chunks)
    for (out, held), (expected, kept) in zip(steps, naive(method, q, k, v, chunks), strict=True):
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-3)
        assert held == kept
    assert layer.get_seq_length() == sum(chunks)


def test_heads_that_share_a_budget_differ_and_take_the_bytes_of_what_they_hold():
    q, k, v = tensors(200, 5)
    k[:, 0] *= 0.01  # this head attends to everything alike
    _, layer = drive(AdaKV(32, window=4, floor=0.1), q, k, v, [100, 100])
    lengths = layer.lengths[0].tolist()
    assert sum(lengths) == 64
    assert max(lengths) >= 40
    pages = sum(-(-n // 16) for n in lengths)
    entry = 2 * DIM * 4 + 4
    ring = (HEADS * DIM * 4 + 8) * 4
    assert layer.nbytes() == pages * (16 * entry + 8) + ring
    before = layer.whole()
    layer.reorder_cache(torch.tensor([0, 0]))
    for name, tensor in layer.whole().items():
        assert torch.equal(tensor, before[name].repeat(2, *[1] * (tensor.dim() - 1)))


def test_expected_attention_is_its_formula():
    method = ExpectedAttention(8, future=7, sinks=2)
    q, k, v = tensors(20, 9)
    at = torch.arange(20)[None]
    layer = method.make_layer(INFO)
    queries, keys = ROTARY.rotate(q, at), ROTARY.rotate(k, at)
    layer.expect(at)
    layer.update(keys, v)
    method.note(INFO, queries[:, :, :12], keys, v, at[:, :12], layer)
    method.note(INFO, queries[:, :, 12:], keys, v, at[:, 12:], layer)
    found = method.priority(INFO, queries, keys, v, at, layer)[0]
    turns = torch.stack([ROTARY.rotate(torch.eye(DIM)[None, None], torch.full((DIM,), t))[0, 0].T for t in range(20, 27)]).mean(0)
    for h in range(KV):
        share = torch.zeros(20)
        for head in (2 * h, 2 * h + 1):
            seen = q[0, head, 2:]
            mean, covariance = turns @ seen.mean(0), turns @ torch.cov(seen.T, correction=0) @ turns.T
            logits = [(j @ mean) * DIM**-0.5 + (j @ covariance @ j) / DIM / 2 for j in keys[0, h]]
            share += torch.stack(logits).softmax(0) / 2
        expected = (share + 0.02) * v[0, h].norm(dim=-1)
        torch.testing.assert_close(found[h, 2:], expected[2:], atol=1e-4, rtol=1e-3)
        assert found[h, :2].tolist() == [float("inf")] * 2


def test_pyramid_budgets_fall_at_the_same_total():
    for layers in (1, 2, 3, 30):
        method = PyramidKV(100, window=10)
        budgets = [method.entries(replace(INFO, index=i, layers=layers)) for i in range(layers)]
        assert sum(budgets) == 100 * layers
        assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == pytest.approx(10 + 90 / 20, abs=1)


def test_h2o_conserves_attention_while_nothing_goes():
    q, k, v = tensors(30, 0)
    _, layer = drive(H2O(100), q, k, v, [10, 1, 1, 18])
    assert layer.slot("score").sum().item() * INFO.groups == pytest.approx(30 * HEADS, abs=1e-3)


def test_streaming_sinks_stand_before_the_window_after_thousands_of_tokens():
    method = StreamingLLM(12, sinks=4)
    q, k, v = tensors(40, 3)
    many = 4000
    chunks = [20, *[1] * 20]
    steps, layer = drive(method, q, k, v, chunks)
    layer.seen, ahead = many, many - 40  # as if the window had moved on: all keys but the sinks are turned by as much
    window = layer.positions >= 4
    keys = layer.slot("keys")
    keys.copy_(torch.where(window[..., None], ROTARY.shift(keys, torch.full_like(layer.positions, ahead)), keys))
    layer.slot("positions").add_(window * ahead)
    at = torch.tensor([[many]])
    layer.expect(at)
    q1, k1 = torch.randn(1, HEADS, 1, DIM), torch.randn(1, KV, 1, DIM)
    all_keys, _ = layer.update(ROTARY.rotate(k1, at), torch.randn(1, KV, 1, DIM))
    layer.turn_sinks(ROTARY, at)
    order = layer.positions[0, 0].argsort()
    dense = ROTARY.rotate(torch.cat([k[:, :, :4], k[:, :, 32:40], k1], dim=2), torch.arange(13))
    logits = ROTARY.rotate(q1, torch.tensor([12])).view(1, KV, 2, DIM) @ dense.transpose(-1, -2)
    mine = ROTARY.rotate(q1, at).view(1, KV, 2, DIM) @ all_keys[:, :, order].transpose(-1, -2)
    torch.testing.assert_close(mine, logits, atol=5e-3, rtol=1e-3)
    assert len(steps) == 21


def test_random_depends_on_seed_layer_head_and_position_alone():
    q, k, v = tensors(60, 1)
    whole, _ = drive(Random(10), q, k, v, [60])
    pieces, _ = drive(Random(10), k.repeat(1, 2, 1, 1), q[:, :KV], v, [7, *[1] * 20, 33])
    assert whole[-1][1] == pieces[-1][1]
    assert whole[-1][1][0] != whole[-1][1][1]
    assert drive(Random(10, seed=1), q, k, v, [60])[0][-1][1] != whole[-1][1]
    scores = Random(10).score(INFO, torch.zeros(1, KV, 100_000, DIM), torch.arange(100_000).expand(1, KV, -1))
    assert scores.min() >= 0
    assert scores.max() < 1
    assert scores.mean().item() == pytest.approx(0.5, abs=0.005)
    assert abs(torch.corrcoef(torch.stack([scores[0, 0, :-1], scores[0, 0, 1:]]))[0, 1]) < 0.01


def test_budgets_that_mean_nothing_are_refused():
    for make in (
        lambda: H2O(0),
        lambda: H2O(4, recent=5),
        lambda: StreamingLLM(4, sinks=4),
        lambda: StreamingLLM(4, sinks=-1),
        lambda: SnapKV(64),
        lambda: SnapKV(65, kernel=4),
        lambda: Knorm(4, recent=5),
        lambda: KeyDiff(4, recent=-1),
        lambda: TOVA(2.5),
        lambda: PyramidKV(80, beta=1.0),
        lambda: ChunkKV(80, chunk=0),
        lambda: AdaKV(80, floor=1.5),
        lambda: ExpectedAttention(4),
        lambda: ExpectedAttention(8, future=0),
    ):
        with pytest.raises(InputError):
            make()


def test_the_queries_of_single_tokens_stay_until_they_vote():
    method, (q, k, v) = SnapKV(24, window=8), tensors(40, seed=7)
    _, layer = drive(method, q, k, v, [30])
    method.finish(INFO, layer)
    for step in range(30, 36):
        at = torch.tensor([[step]])
        layer.expect(at)
        keys, values = layer.update(ROTARY.rotate(k[:, :, at[0]], at), v[:, :, at[0]])
        method.observe(INFO, ROTARY.rotate(q[:, :, at[0]], at), keys, values, at, layer)
        method.finish(INFO, layer)
    assert sorted(layer.rows["query_positions"][0].tolist()) == list(range(30, 36))


@pytest.mark.parametrize("method", [SnapKV(24, window=8), PyramidKV(24, window=8), AdaKV(24, window=8)], ids=repr)
def test_the_queries_of_a_text_are_let_go_when_it_has_been_read(method):
    """Nothing is held of them; only its own queries rank the text behind it, and no room is held for what may come."""
    q, k, v = tensors(64, seed=5)
    held = []
    for noise in (0.0, 1.0):
        asked = q.clone()
        asked[:, :, :12] += noise * torch.randn(1, HEADS, 12, DIM, generator=torch.Generator().manual_seed(6))
        _, layer = drive(method, asked, k, v, [12])
        method.finish(INFO, layer)
        assert not layer.rows
        at = torch.arange(12, 40)[None]
        layer.expect(at)
        keys, values = layer.update(ROTARY.rotate(k[:, :, 12:40], at), v[:, :, 12:40])
        method.observe(INFO, ROTARY.rotate(q[:, :, at[0]], at), keys, values, at, layer)
        there = layer.whole()["positions"] if isinstance(method, AdaKV) else layer.positions
        held.append(there.tolist())
        assert isinstance(method, AdaKV) or layer.slots["keys"].shape[2] == method.entries(INFO) + 1
    assert held[0] == held[1]
