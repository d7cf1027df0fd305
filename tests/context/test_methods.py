"""What every context method owes: it leaves no trace, and it works with padding, beams, caches of the caller, turns and bounds."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from palimpsest.context import prefill
from palimpsest.context.catalogue import make, methods

from .conftest import logits

BUDGET = 12
OPTIONS = {
    "snapkv": {"budget": 16, "window": 4, "kernel": 3},
    "pyramidkv": {"budget": 16, "window": 4, "kernel": 3, "beta": 4.0},
    "chunkkv": {"budget": 16, "window": 4, "kernel": 3, "chunk": 3},
    "adakv": {"budget": 16, "window": 4, "kernel": 3},
    "expected-attention": {"future": 16, "sinks": 2},
    "dynamic-ntk": {"trained_length": 16},
    "yarn": {"factor": 4.0, "trained_length": 64},
    "attendre": {"budget": 12, "chunk": 4},
    "citrus": {"k": 6, "chunk": 8, "cache": "standard"},
    "think": {"ratio": 0.5, "window": 4, "recent": 4},
    "self-extend": {"group": 3, "neighbours": 8},
    "lm-infinite": {"n_global": 3, "n_local": 16},
    "infllm": {"n_init": 3, "n_local": 16, "block": 4, "topk": 2, "repr_topk": 2, "exec_block": 8, "cached_blocks": 4},
}
BOUNDED = [m.name for m in methods() if m.has_budget]
RANKED = [m.name for m in methods() if m.has_budget and m.name != "attendre"]  # whose layers are of a chunk: test_attention_eviction.py


def built(name, budget=None):
    record = next(m for m in methods() if m.name == name)
    options = dict(OPTIONS.get(name, {}))
    if record.has_budget:
        options["budget"] = budget or options.get("budget", BUDGET)
    return make(name, **options)


@pytest.fixture(params=[m.name for m in methods()])
def method(request):
    return built(request.param)


def scored(model, ids, count=8, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def test_the_model_is_bit_for_bit_as_before(llama, method, ids):
    plain = logits(llama, ids)
    with method(llama):
        sequences, scores = scored(llama, ids)
    assert scores.isfinite().all()
    assert torch.equal(sequences[:, :40], ids)
    assert torch.equal(logits(llama, ids), plain)


def test_a_padded_row_gives_what_it_gives_alone(llama, method, ids):
    short = ids[1:, :30]  # its padding is given up before the text ends
    batch = torch.cat([ids[:1], torch.cat([torch.zeros(1, 10, dtype=torch.long), short], dim=1)])
    mask = torch.ones_like(batch)
    mask[1, :10] = 0
    with method(llama) as session:
        _, together = scored(llama, batch, mask=mask)
        if hasattr(method, "budget"):
            assert all(int(session.layer(i).lengths.min()) >= method.budget // 2 for i in range(3))
        for row, alone in enumerate((ids[:1], short)):
            torch.testing.assert_close(together[row], scored(llama, alone)[1][0], atol=2e-4, rtol=1e-3)


def test_beams_of_a_batch_are_those_of_its_rows(llama, method, ids):
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    with method(llama):
        together = llama.generate(ids, attention_mask=torch.ones_like(ids), **options)
        for row in range(2):
            alone = llama.generate(ids[row : row + 1], attention_mask=torch.ones(1, 40, dtype=torch.long), **options)
            assert torch.equal(together[row], alone[0])


def test_a_second_turn_on_the_callers_cache_goes_on_where_the_first_ended(llama, method, ids):
    more = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache()
    with method(llama) as session:
        first, _ = scored(llama, ids, past_key_values=cache)
        second, scores = scored(llama, torch.cat([first, more], dim=1), past_key_values=cache)
        assert session.cache is cache
        assert cache.get_seq_length() == second.shape[1] - 1
        own = DynamicCache()  # the same tokens in the same forward passes, by hand
        blocks = [ids, *first[:, 40:-1].split(1, dim=1), torch.cat([first[:, -1:], more], dim=1), *second[:, -8:-1].split(1, dim=1)]
        outs = [llama(block, past_key_values=own).logits[:, -1] for block in blocks]
    torch.testing.assert_close(torch.stack(outs[-8:], dim=1), scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_budget_of_the_whole_text_is_full_attention(llama, name, ids):
    sequences, plain = scored(llama, ids)
    with built(name, budget=1000)(llama) as session:
        mine, scores = scored(llama, ids)
        torch.testing.assert_close(scores, plain, atol=1e-4, rtol=1e-4)
        assert torch.equal(mine, sequences)
        chunked = prefill(session, ids, 7, logits="all").logits
    torch.testing.assert_close(chunked, logits(llama, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RANKED)
def test_the_cache_is_bounded_in_prefill_and_in_decoding(llama, name):
    method, peaks = built(name), {}
    slack = getattr(method, "window", method.interval) - 1
    for length in (70, 110):
        text = torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(length))
        with method(llama) as session:
            read = prefill(session, text[:, :-1], 8)
            # Mean over the heads of a layer: AdaKV shares one budget between them.
            means = [session.layer(i).lengths.double().mean(1) for i in range(3)]
            wanted = [method.entries(session.infos[i]) for i in range(3)]
            assert [mean.tolist() for mean in means] == [[budget, budget] for budget in wanted]
            assert sum(wanted) == 3 * method.budget
            peaks[length] = read.peak_bytes
            for _ in range(9):
                llama(text[:, -1:], past_key_values=read.cache)
                for i, budget in enumerate(wanted):
                    lengths = session.layer(i).lengths.double().mean(1)
                    assert ((budget <= lengths) & (lengths <= budget + slack)).all()
            assert read.cache.get_seq_length() == length + 8
    # Pages of heads that share a budget are filled more or less well.
    assert peaks[110] == pytest.approx(peaks[70], rel=0.2 if name == "adakv" else 0)
