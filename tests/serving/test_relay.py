"""Prefixes that are stored once: the same logits and texts as reading everything again, in every family; bytes, beams, trees, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from palimpsest.errors import AlreadyAttachedError, CapabilityError, ContextOverflowError, InputError, UnsupportedModelError
from palimpsest.models import HFModel
from palimpsest.serving import relay
from palimpsest.serving.relay import RelayAttention, relay_attention
from palimpsest.serving.shared_prefixes import SharedPrefixCache

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "yarn": lambda: transformers.LlamaConfig(
        **GROUPED,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10_000.0},
    ),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None),
    "gemma3, no windows": lambda: transformers.Gemma3TextConfig(**GROUPED, head_dim=8, layer_types=["full_attention"] * 2),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES, rotary_pct=0.25),
    "gpt-2": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, bos_token_id=1, eos_token_id=None
    ),
}


def made(config, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, **options).eval()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return made(CONFIGS[request.param]())


@pytest.fixture(scope="module")
def llama():
    return made(CONFIGS["llama"]())


def drawn(count, seed):
    return torch.randint(3, 97, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


SYSTEM, USER, BRANCH = drawn(19, 1), drawn(7, 2), drawn(1, 3)
CONTEXTS = [drawn(6, 4), drawn(2, 5), drawn(9, 6), drawn(4, 7)]


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def whole_logits(model, rows, behind):
    """Of every context token, everything read anew, row by row."""
    return [model(torch.tensor([head + row])).logits[0, len(head) :] for head, row in zip(behind, rows, strict=True)]


def written(model, inputs, count=10, **options):
    out = model.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=0, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def test_one_prompt_gives_the_logits_and_texts_of_reading_it_every_time(model):
    inputs = padded(CONTEXTS)
    wanted = whole_logits(model, CONTEXTS, [SYSTEM] * 4)
    plain = written(model, padded([SYSTEM + row for row in CONTEXTS]))
    before = whole_logits(model, [SYSTEM], [[]])
    with RelayAttention(tuple(SYSTEM))(model) as session:
        position_ids = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        found = model(**inputs, position_ids=position_ids).logits
        texts = written(model, inputs)
        assert session.nbytes() == session.peak_bytes
    for row, logits in enumerate(wanted):
        torch.testing.assert_close(found[row, -len(logits) :], logits, atol=1e-4, rtol=1e-4)
    assert texts == plain
    assert torch.equal(whole_logits(model, [SYSTEM], [[]])[0], before[0])


def test_prefixes_behind_prefixes_and_rows_without_any(model):
    prefixes = SharedPrefixCache(model)
    system = prefixes.add(SYSTEM)
    user = prefixes.add(USER, behind=system)
    branch = prefixes.add(BRANCH, behind=user)
    other = prefixes.add(USER)
    heads = {system: SYSTEM, user: SYSTEM + USER, branch: SYSTEM + USER + BRANCH, other: USER, None: []}
    for rows in (
        [branch, system, None, user],
        [other, user, user, user],
        [None, None, None, branch],
        [system] * 4,
        [user, other, None, other],
    ):
        behind = [heads[row] for row in rows]
        plain = written(model, padded([head + row for head, row in zip(behind, CONTEXTS, strict=True)]))
        wanted = whole_logits(model, CONTEXTS, behind)
        with prefixes.relay(rows):
            assert written(model, padded(CONTEXTS)) == plain
            for row, logits in enumerate(wanted):  # without a mask, in two steps on one cache
                prefixes._session.follow([rows[row]])
                first = model(torch.tensor([CONTEXTS[row][:1]]))
                second = model(torch.tensor([CONTEXTS[row][1:]]), past_key_values=first.past_key_values)
                torch.testing.assert_close(torch.cat([first.logits, second.logits], 1)[0], logits, atol=1e-4, rtol=1e-4)


def test_every_prefix_is_stored_once(model):
    prefixes = SharedPrefixCache(model)
    user = prefixes.add(USER, behind=prefixes.add(SYSTEM))
    config = model.get_decoder().config
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * 4 * config.num_hidden_layers * kv_heads * head_dim
    assert prefixes.nbytes == token * (len(SYSTEM) + len(USER))
    assert user.nbytes == token * len(USER)
    assert user.end == len(SYSTEM) + len(USER)
    assert all(keys.shape == (1, kv_heads, len(USER), head_dim) for keys, _ in user.layers)
    with prefixes.relay([user]) as session:
        model(torch.tensor([CONTEXTS[0]] * 8))
        assert session.nbytes() == 8 * token * len(CONTEXTS[0])
    assert prefixes.add(SYSTEM) is user.parent
    assert len(prefixes) == 2


def test_beams_move_contexts_only(model):
    prefixes = SharedPrefixCache(model)
    system = prefixes.add(SYSTEM)
    user = prefixes.add(USER, behind=system)
    tensors = [tensor for prefix in prefixes for pair in prefix.layers for tensor in pair]
    before = [(tensor.data_ptr(), tensor._version, tensor.clone()) for tensor in tensors]
    options = {"num_beams": 3, "num_return_sequences": 2}
    plain = written(model, padded([SYSTEM + CONTEXTS[0], SYSTEM + USER + CONTEXTS[1]]), **options)
    with prefixes.relay([system, user]):
        assert written(model, padded(CONTEXTS[:2]), **options) == plain
    for tensor, (pointer, version, values) in zip(tensors, before, strict=True):
        assert (tensor.data_ptr(), tensor._version) == (pointer, version)
        assert torch.equal(tensor, values)


def test_a_long_prefix_is_read_in_chunks(llama, monkeypatch):
    wanted = SharedPrefixCache(llama).add(SYSTEM)
    monkeypatch.setattr(relay, "_CHUNK", 5)
    for one, other in zip(SharedPrefixCache(llama).add(SYSTEM).layers, wanted.layers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_prefixes_may_be_added_while_others_are_continued(llama):
    prefixes = SharedPrefixCache(llama)
    system = prefixes.add(SYSTEM)
    with prefixes.relay([system]) as session:
        first = llama(torch.tensor([CONTEXTS[0]]))
        peak = session.peak_bytes
        user = prefixes.add(USER, behind=system)
        assert (session.rows, session.peak_bytes) == ([system], peak)
        again = llama(torch.tensor([CONTEXTS[1]]), past_key_values=first.past_key_values).logits[0]
    [wanted] = whole_logits(llama, [CONTEXTS[1]], [SYSTEM + CONTEXTS[0]])
    torch.testing.assert_close(again, wanted, atol=1e-4, rtol=1e-4)
    fresh = SharedPrefixCache(llama).add(SYSTEM + USER)
    for (keys, values), (all_keys, all_values) in zip(user.layers, fresh.layers, strict=True):
        torch.testing.assert_close(keys, all_keys[:, :, len(SYSTEM) :], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, all_values[:, :, len(SYSTEM) :], atol=1e-4, rtol=1e-4)


def test_the_longest_prefix_of_a_prompt_is_found(llama):
    prefixes = SharedPrefixCache(llama)
    assert prefixes.longest([*SYSTEM, 5]) is None
    system = prefixes.add(SYSTEM)
    user = prefixes.add(USER, behind=system)
    assert prefixes.longest([*SYSTEM, 5]) is system
    assert prefixes.longest(SYSTEM) is None  # nothing would be left to feed
    assert prefixes.longest([*SYSTEM, *USER]) is system
    assert prefixes.longest([*SYSTEM, *USER, 5]) is user
    prefixes.drop(system)
    assert (len(prefixes), prefixes.nbytes) == (0, 0)
    with pytest.raises(InputError, match="not in this cache"):
        prefixes.drop(user)
    with pytest.raises(InputError, match="not in this cache"):
        prefixes.add(BRANCH, behind=user)


def test_behind_a_door(tiny_model, tiny_tokenizer):
    system = tiny_tokenizer.encode("In the beginning was the word")
    rows = [tiny_tokenizer.encode(text) for text in (" and the", " fox jumps over the lazy dog")]
    plain = tiny_model.generate([system + row for row in rows], 8)
    told = tiny_model.score([system + row for row in rows], start=len(system) + 1).logprobs
    with RelayAttention(tuple(system))(tiny_model):
        assert [[ids.tolist() for ids in own] for own in tiny_model.generate(rows, 8)] == [[ids.tolist() for ids in own] for own in plain]
        for one, other in zip(tiny_model.score(rows).logprobs, told, strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="BOS"):
        RelayAttention(tuple(system))(HFModel(tiny_model.model, tiny_tokenizer, bos="always"))


def test_half_precision(llama):
    half = made(CONFIGS["llama"](), dtype=torch.bfloat16)
    [wanted] = whole_logits(half, CONTEXTS[:1], [SYSTEM])
    with RelayAttention(tuple(SYSTEM))(half):
        found = half(torch.tensor(CONTEXTS[:1])).logits[0]
    assert found.dtype == torch.bfloat16
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() <= 0.05 * scale


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shared", [0, 11])
def test_the_function_for_one_layer(count, shared):
    generator = torch.Generator().manual_seed(count)
    q = torch.randn(3, 4, count, 8, generator=generator)
    k_sys, v_sys = torch.randn(2, 1, 2, shared, 8, generator=generator)
    k_ctx, v_ctx = torch.randn(2, 3, 2, 6, 8, generator=generator)
    lengths = torch.tensor([6, 3, 5])
    found = relay_attention(q, k_sys, v_sys, k_ctx, v_ctx, lengths, scale=0.2)
    for row, query in itertools.product(range(3), range(count)):
        end = int(lengths[row]) - count + query + 1
        k, v = (torch.cat([s[0], c[row, :, :end]], 1).repeat_interleave(2, 0) for s, c in ((k_sys, k_ctx), (v_sys, v_ctx)))
        weights = (torch.einsum("hd,hsd->hs", q[row, :, query], k) * 0.2).softmax(-1)
        torch.testing.assert_close(found[row, :, query], torch.einsum("hs,hsd->hd", weights, v), atol=1e-5, rtol=1e-5)
    even = relay_attention(q, k_sys, v_sys, k_ctx, v_ctx)
    torch.testing.assert_close(even, relay_attention(q, k_sys, v_sys, k_ctx, v_ctx, torch.tensor([6, 6, 6])))
    for bad in (torch.tensor([6, 7, 6]), torch.tensor([6, 0, 6]), torch.tensor([6, 6])):
        with pytest.raises(InputError, match="columns"):
            relay_attention(q, k_sys, v_sys, k_ctx, v_ctx, bad)


REFUSED = {
    "windows": lambda: transformers.MistralConfig(**GROUPED, sliding_window=8),
    "some windows": lambda: transformers.Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "changing base": lambda: transformers.LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    ),
    "alibi": lambda: transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=97),
    "falcon's alibi": lambda: transformers.FalconConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=97, alibi=True
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_cannot_be_split_are_refused(kind):
    model = made(REFUSED[kind]())
    with pytest.raises(UnsupportedModelError):
        SharedPrefixCache(model)
    assert model(torch.tensor([SYSTEM])).logits.isfinite().all()


def test_what_does_not_fit_is_refused(llama):
    prefixes = SharedPrefixCache(llama)
    system = prefixes.add(SYSTEM)
    with prefixes.relay([system, None]), pytest.raises(InputError, match="3 rows cannot continue 2 prefixes"):
        llama(torch.tensor([[5]] * 3))
    stranger = SharedPrefixCache(made(CONFIGS["llama"]())).add(SYSTEM)
    with pytest.raises(InputError, match="another model"), prefixes.relay([stranger]):
        pass
    with prefixes.relay([system]), pytest.raises(AlreadyAttachedError), prefixes.relay([system]):
        pass
    with pytest.raises(InputError, match="empty"):
        prefixes.add([])
    with pytest.raises(InputError, match="the id 97"):
        prefixes.add([97])
    with pytest.raises(ContextOverflowError):
        prefixes.add([5] * 120, behind=system)
    assert list(prefixes) == [system]
    assert prefixes._session is None
    with pytest.raises(CapabilityError):
        SharedPrefixCache(object())
