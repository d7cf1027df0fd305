"""Prompts with sets: marks, tokens, positions and masks; and the guarantee, for every architecture and every order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.context.set_decoding import choice_logprobs, generate, require_sets
from palimpsest.context.set_masks import EncodedSets, additive
from palimpsest.context.set_prompting import END, SPLIT, START, SetPrompt
from palimpsest.errors import CapabilityError, ContextOverflowError, InputError, UnsupportedModelError
from palimpsest.models import HFModel
from palimpsest.models.endpoint import EndpointModel

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 96, "initializer_range": 0.3, "tie_word_embeddings": False,
}  # fmt: skip
WINDOW = 5  # tokens: less than the prompts' longest distance, so that the sliding layers do cut something off
ARCHITECTURES = {
    "llama": lambda vocab: transformers.LlamaConfig(**SHAPE, **vocab),
    "mistral": lambda vocab: transformers.MistralConfig(**SHAPE, **vocab, sliding_window=None),
    "mistral, window": lambda vocab: transformers.MistralConfig(**SHAPE, **vocab, sliding_window=WINDOW),
    "qwen2, some windows": lambda vocab: transformers.Qwen2Config(
        **SHAPE, **vocab, use_sliding_window=True, sliding_window=WINDOW, layer_types=["full_attention", "sliding_attention"]
    ),
    "qwen3": lambda vocab: transformers.Qwen3Config(**SHAPE, **vocab, head_dim=8),
    "gemma2, windows, soft caps": lambda vocab: transformers.Gemma2Config(**SHAPE, **vocab, head_dim=8, sliding_window=WINDOW),
    "gemma3, windows": lambda vocab: transformers.Gemma3TextConfig(
        **SHAPE, **vocab, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt-neox": lambda vocab: transformers.GPTNeoXConfig(
        **{name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}, **vocab
    ),
    "gpt-2": lambda vocab: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=96, initializer_range=0.3, **vocab),
}
PROMPT = SetPrompt(["In the beginning", [" fox", " lazy dog and the", "\n- sheep"], " was", [" jump", " quickly over"], "; the"])


def made(config, tokenizer, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, **options)
    return HFModel(model, tokenizer, name=type(config).__name__)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def door(request, tiny_tokenizer):
    vocab = {"vocab_size": tiny_tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return made(ARCHITECTURES[request.param](vocab), tiny_tokenizer)


def every_order(prompt):
    total = int(np.prod([len(list(itertools.permutations(pieces))) for pieces in prompt.sets]))
    orders = prompt.orders(total)
    assert len({str(order) for order in orders}) == total
    return orders


def test_the_output_is_the_same_for_every_order(door):
    choices = [" word", " eye that knows", "s"]
    orders = every_order(PROMPT)
    assert len(orders) == 12
    found = np.array(choice_logprobs(door, orders, [choices] * len(orders)))
    assert np.abs(found - found[0]).max() <= 1e-4
    plain = np.array(choice_logprobs(door, orders, [choices] * len(orders), apart=False, parallel=False))
    assert np.abs(plain - plain[0]).max() >= 0.1  # which these models would otherwise not do
    written = [generate(door, order, 6, stop_at_eos=False)[0].tolist() for order in orders]
    assert written == [written[0]] * len(orders)
    assert len(written[0]) == 6


def test_canonical_output_is_the_same_to_the_bit(door):
    orders = PROMPT.orders(4)
    found = [choice_logprobs(door, [order], [[" word", "s"]], canonical=True)[0] for order in orders]
    assert all(np.array_equal(one, found[0]) for one in found)


def test_what_is_generated_is_what_is_scored(door):
    """The decoding steps, on a cache, against one pass over the whole."""
    encoded = PROMPT.encode(door.tokenizer)
    [written] = generate(door, PROMPT, 8, stop_at_eos=False)
    whole = encoded.with_text(written)
    with torch.inference_mode():
        logits = door.model(
            input_ids=torch.from_numpy(whole.ids)[None],
            position_ids=torch.from_numpy(whole.positions)[None],
            attention_mask=additive(door.model, [whole]),
            use_cache=False,
        ).logits[0, len(encoded) - 1 : -1]
    assert logits.argmax(-1).tolist() == written.tolist()


def test_a_set_of_one_is_the_plain_prompt(door):
    prompt = SetPrompt(["In the beginning", [" was the word and the"], " eye"])
    alone = choice_logprobs(door, [prompt], [[" word", " that knows how"]])[0]
    head = [*door.tokenizer.encode("In the beginning"), *door.tokenizer.encode(" was the word and the"), *door.tokenizer.encode(" eye")]
    rows = [head + door.tokenizer.encode(tail) for tail in (" word", " that knows how")]
    told = [float(values.sum(dtype=float)) for values in door.score(rows, start=len(head)).logprobs]
    np.testing.assert_allclose(alone, told, atol=1e-4)
    assert generate(door, prompt, 6)[0].tolist() == door.generate([head], 6)[0][0].tolist()


def test_eager_attention_gives_the_same(tiny_tokenizer):
    config = ARCHITECTURES["gemma3, windows"]({"vocab_size": tiny_tokenizer.vocab_size, "eos_token_id": 1, "pad_token_id": 1})
    one, other = (made(config, tiny_tokenizer, attn_implementation=kind) for kind in ("sdpa", "eager"))
    a, b = (choice_logprobs(model, [PROMPT], [[" word", "s"]])[0] for model in (one, other))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert generate(one, PROMPT, 5)[0].tolist() == generate(other, PROMPT, 5)[0].tolist()


def test_beams_and_samples_are_free_of_the_order(door):
    orders = PROMPT.orders(3)
    for options in ({"num_beams": 3, "n": 2}, {"temperature": 1.0, "n": 3, "seed": 5}):
        found = [[row.tolist() for row in generate(door, order, 5, **options)] for order in orders]
        assert found == [found[0]] * 3
        assert len(found[0]) == options["n"]
    alone = generate(door, PROMPT, 5, temperature=1.0, n=1, seed=5)[0].tolist()
    assert alone == found[0][0]  # read by itself, and as one of three that share the reading


def test_processors_are_those_of_the_door(tiny_model):
    banned = generate(tiny_model, PROMPT, 1)[0][0]

    def ban(_, scores):
        scores[:, banned] = -torch.inf
        return scores

    assert generate(tiny_model, PROMPT, 1, processors=[ban])[0][0] != banned
    assert not tiny_model.model.base_model._forward_pre_hooks


def test_bos_stands_once_and_in_front(tiny_tokenizer, tiny_model):
    with_bos = HFModel(tiny_model.model, tiny_tokenizer, bos="always")
    prompt = SetPrompt([[" fox", " dog and the"], " was"])
    assert prompt.encode(tiny_tokenizer, 0).ids.tolist().count(0) == 1
    assert prompt.encode(tiny_tokenizer, 0).positions[:2].tolist() == [0, 1]
    found = np.array(choice_logprobs(with_bos, every_order(prompt), [["s"]] * 2))
    assert abs(found[0] - found[1]) <= 1e-4
    assert abs(found[0] - choice_logprobs(tiny_model, [prompt], [["s"]])[0]) > 1e-3
    assert generate(with_bos, prompt, 4)[0].tolist() == generate(with_bos, prompt.orders(2)[1], 4)[0].tolist()


def test_half_precision_keeps_the_promise_as_well_as_it_can(tiny_tokenizer):
    config = ARCHITECTURES["llama"]({"vocab_size": tiny_tokenizer.vocab_size})
    door = made(config, tiny_tokenizer, dtype=torch.bfloat16)
    found = np.array(choice_logprobs(door, PROMPT.orders(4), [["s", " word"]] * 4))
    assert np.isfinite(found).all()
    assert np.abs(found - found[0]).max() <= 0.2
    canonical = [choice_logprobs(door, [order], [["s"]], canonical=True)[0][0] for order in PROMPT.orders(4)]
    assert len(set(canonical)) == 1


def test_prompts_of_different_length_share_a_batch(tiny_model):
    prompts = [PROMPT, SetPrompt(["a", ["b", "cd"], "e"])]
    choices = [["x", "the word"], ["y"]]
    together = choice_logprobs(tiny_model, prompts, choices)
    for one, prompt, texts in zip(together, prompts, choices, strict=True):
        np.testing.assert_allclose(one, choice_logprobs(tiny_model, [prompt], [texts])[0], atol=1e-5)


def naive(encoded, window):
    """Whether q sees k, by the definition."""
    size = len(encoded)
    out = np.zeros((size, size), bool)
    for q, k in itertools.product(range(size), repeat=2):
        same_set = encoded.sets[q] == encoded.sets[k] != -1
        hidden = same_set and encoded.pieces[q] != encoded.pieces[k]
        far = window is not None and encoded.positions[q] - encoded.positions[k] >= window
        out[q, k] = k <= q and not hidden and not far
    return out


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.integers(0, 3), st.lists(st.integers(1, 3), min_size=1, max_size=3)), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(1, 6)),
    st.data(),
)
def test_masks_and_positions_follow_the_definition(parts, window, data):
    encoded, position = EncodedSets.empty(), 0
    expected: list[int] = []
    for part in parts:
        if isinstance(part, int):
            encoded = encoded.with_text(range(part))
            expected += range(position, position + part)
            position += part
        else:
            encoded = encoded.with_set([range(count) for count in part])
            expected += [position + i for count in part for i in range(count)]
            position += max(part)
    assert encoded.positions.tolist() == expected
    assert encoded.after == position
    whole = naive(encoded, window)
    first = data.draw(st.integers(0, len(encoded)))
    assert np.array_equal(encoded.allowed(first, window), whole[first:])
    assert whole.diagonal().all()  # no row without a key


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"a{START}b{SPLIT}c", "has no"),
        (f"a{START}b{START}c{END}{END}d", "character 14 begins inside another set"),
        (f"a{SPLIT}b", "character 1 stands outside"),
        (f"a{END}b", "character 1 stands outside"),
        (f"a{START}b{END}c{SPLIT}d", "stands outside"),
        (f"a{START}b{SPLIT}{SPLIT}c{END}d", "empty piece"),
        (f"a{START}{END}d", "empty piece"),
        (f"a{START}b{SPLIT}c{END}", "Nothing stands behind"),
        ("a", "holds no set"),
        ("", "holds no set"),
    ],
)
def test_marks_that_mean_nothing_are_refused(text, problem):
    with pytest.raises(InputError, match=problem):
        SetPrompt.parse(text)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (["a", ["b", ["c"]], "d"], "nest"),
        (["a", [], "d"], "is empty"),
        (["a", 3, "d"], "is empty"),
        (["a", {"b", f"c{SPLIT}"}, "d"], "stands inside the text"),
        (["a<|start", "_2d|>", ["b"], "d"], "stands inside the text"),
        (["a", ["b"], ""], "Nothing stands behind"),
    ],
)
def test_parts_that_mean_nothing_are_refused(parts, problem):
    with pytest.raises(InputError, match=problem):
        SetPrompt(parts)


def test_parsing_and_writing_are_inverse():
    text = f"{START}a{SPLIT}b{END}{START}c{END}\n d{START}e{SPLIT}f{SPLIT}g{END}h"
    prompt = SetPrompt.parse(text)
    assert str(prompt) == text
    assert prompt.sets == [("a", "b"), ("c",), ("e", "f", "g")]
    assert SetPrompt(["x", "y", {"b", "a"}, "z"]) == SetPrompt(["xy", ["a", "b"], "z"])
    assert hash(prompt) == hash(SetPrompt.parse(text))


def test_orders_are_different_and_drawn_by_the_seed():
    assert [str(order) for order in PROMPT.orders(5, 1)] == [str(order) for order in PROMPT.orders(5, 1)]
    assert PROMPT.orders(5, 1)[0] == PROMPT
    assert PROMPT.orders(5, 1) != PROMPT.orders(5, 2)
    wide = SetPrompt(["a", [str(i) for i in range(12)], "b"])
    assert len({str(order) for order in wide.orders(8)}) == 8
    assert len(SetPrompt(["a", ["b"], "c"]).orders(8)) == 1
    with pytest.raises(InputError, match="0 orders"):
        PROMPT.orders(0)


def test_what_cannot_be_scored_is_refused(tiny_model):
    with pytest.raises(InputError, match="no choice"):
        choice_logprobs(tiny_model, [PROMPT], [["a", ""]])
    with pytest.raises(InputError, match="1 prompts and 2 sets"):
        choice_logprobs(tiny_model, [PROMPT], [["a"], ["b"]])
    with pytest.raises(ContextOverflowError, match="at most 128"):
        choice_logprobs(tiny_model, [SetPrompt(["a", ["xyz " * 30, "zyx " * 30], "b"])], [["a"]])


def test_models_that_cannot_keep_the_promise_are_refused(tiny_tokenizer, tiny_model, server):
    vocab = {"vocab_size": tiny_tokenizer.vocab_size}
    bloom = made(transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, **vocab), tiny_tokenizer)
    with pytest.raises(UnsupportedModelError, match="no position ids"):
        require_sets(bloom)
    mixed = transformers.Qwen3NextConfig(
        **SHAPE, **vocab, head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=2, num_experts_per_tok=1,
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        require_sets(made(mixed, tiny_tokenizer))
    flash = made(ARCHITECTURES["llama"](vocab), tiny_tokenizer)
    flash.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="takes no mask"):
        generate(flash, PROMPT, 1)
    with pytest.raises(CapabilityError, match="'weights'"):
        choice_logprobs(EndpointModel(server.url, "tiny", tokenizer=tiny_tokenizer), [PROMPT], [["a"]])


def test_a_model_that_breaks_its_promise_is_found_out(tiny_tokenizer):
    """A model that takes position ids and a mask, and does not use them."""
    door = made(ARCHITECTURES["llama"]({"vocab_size": tiny_tokenizer.vocab_size}), tiny_tokenizer)
    plain = door.model.forward

    def forward(input_ids=None, attention_mask=None, position_ids=None, **options):
        return plain(input_ids=input_ids, **options)

    door.model.forward = forward
    with pytest.raises(UnsupportedModelError, match="two orders of one set differently"):
        require_sets(door)
