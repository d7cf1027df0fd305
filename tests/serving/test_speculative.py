"""Speculative decoding against the target alone: equal greedy text, equal distributions, caches that hold what was accepted."""

from __future__ import annotations

from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from palimpsest.errors import CapabilityError, ContextOverflowError, InputError, NonFiniteError, TokenizerMismatchError
from palimpsest.models import HFModel
from palimpsest.serving.speculative import _Reader, accepted_drafts, draw, residual, speculative_generate
from palimpsest.serving.vocabtrim import trim_head
from palimpsest.tokenizer import Tokenizer

WORDS = ("<eos>", "a", "b", "c", "d", "e")
TEXTS = ("In the beginning was", "The quick brown fox", "a", "0123456789 sheep")


@pytest.fixture(scope="module")
def six_words() -> Tokenizer:
    """One word a token; id 0 ends a text."""
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, eos_id=0, pad_id=0)


def six_word_model(tokenizer: Tokenizer, seed: int) -> HFModel:
    """A random Llama of one layer over the six words, its distributions far from uniform and few enough to be enumerated."""
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=6, max_position_embeddings=64, initializer_range=0.5, eos_token_id=0, bos_token_id=None, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HFModel(LlamaForCausalLM(config), tokenizer, name=f"six-{seed}")


def greedy(model: HFModel, prefixes, n: int) -> list[list[int]]:
    return [rows[0].tolist() for rows in model.generate(prefixes, n)]


def lists(rows) -> list[list[int]]:
    return [row.tolist() for row in rows]


@pytest.mark.parametrize("gamma", [1, 5])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_greedy_text_is_the_targets(tiny_model, other_model, gamma, batch_size):
    prefixes = [tiny_model.tokenizer.encode(text) for text in TEXTS]
    trimmed = trim_head(other_model, np.arange(other_model.vocab_size), 40)
    for drafter in (other_model, tiny_model, trimmed):
        texts, _ = speculative_generate(tiny_model, drafter, prefixes, 15, gamma=gamma, batch_size=batch_size)
        assert lists(texts) == greedy(tiny_model, prefixes, 15)


def test_rows_that_accept_different_numbers_of_drafts_keep_their_own_text(tiny_model):
    """A drafter that is the target with some noise accepts now much, now little: the caches of a batch are then full of holes."""
    noisy = HFModel(deepcopy(tiny_model.model), tiny_model.tokenizer)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        noisy.model.lm_head.weight += 0.1 * torch.randn_like(noisy.model.lm_head.weight)
    prefixes = [tiny_model.tokenizer.encode(text) for text in TEXTS]
    texts, stats = speculative_generate(tiny_model, noisy, prefixes, 40, gamma=4, batch_size=4)
    assert lists(texts) == greedy(tiny_model, prefixes, 40)
    assert 0.05 < stats.acceptance < 0.95
    options = {"temperature": 0.7, "seed": 3}
    alone, _ = speculative_generate(tiny_model, noisy, prefixes, 40, batch_size=1, **options)
    together, _ = speculative_generate(tiny_model, noisy, prefixes, 40, batch_size=4, **options)
    assert lists(alone) == lists(together)


def test_a_drafter_that_is_the_target_has_everything_accepted(tiny_model):
    prefixes = [[5, 6, 7]]
    texts, stats = speculative_generate(tiny_model, tiny_model, prefixes, 40, gamma=4, stop_at_eos=False)
    assert (stats.new_tokens, stats.blocks, stats.acceptance, stats.block_efficiency) == (40, 8, 1.0, 5.0)
    assert stats.mbsu == pytest.approx(5 / 5)  # c = 1: nothing is gained
    assert len(texts[0]) == 40


def joint(model: HFModel, prefix: list[int], n: int, temperature: float, top_k: int | None) -> np.ndarray:
    """The probability of every text of `n` words, (6,) * n, by enumeration."""
    out = np.ones((len(WORDS),) * n)
    with torch.inference_mode():
        for text in product(range(len(WORDS)), repeat=n):
            logits = model.model(torch.tensor([prefix + list(text)])).logits[0, len(prefix) - 1 : -1].double() / temperature
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
            out[text] = logits.softmax(-1)[torch.arange(n), torch.tensor(text)].prod()
    return out


@pytest.mark.parametrize(("trimmed", "top_k"), [(False, 3), (True, None)])
def test_samples_are_distributed_as_the_targets(six_words, trimmed, top_k):
    """χ² of 50,000 texts of three words against their exact probabilities; trimmed, the likeliest word cannot be drafted."""
    target, drafter = six_word_model(six_words, 0), six_word_model(six_words, 1)
    temperature, prefix = 0.9, [2, 3]
    expected = joint(target, prefix, 3, temperature, top_k)
    used = drafter
    if trimmed:
        counts = -expected.sum((1, 2))  # the least likely three first words
        used = trim_head(drafter, counts - counts.min(), 3, keep=[])
        assert int(expected.sum((1, 2)).argmax()) not in used.kept.tolist()
    texts, stats = speculative_generate(
        target, used, [prefix] * 50_000, 3, gamma=2, temperature=temperature, top_k=top_k, seed=11, stop_at_eos=False, batch_size=50_000
    )
    drawn = np.zeros_like(expected)
    np.add.at(drawn, tuple(np.stack(texts).T), 1)
    assert drawn[expected == 0].sum() == 0
    often = expected * len(texts) >= 5
    observed = np.append(drawn[often], drawn[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum()) * len(texts)
    held = wanted > 0
    assert chisquare(observed[held], wanted[held]).pvalue > 0.01
    assert 0 < stats.acceptance < 1


def test_the_wrong_residual_would_be_seen(six_words):
    """The same check refuses q from the untrimmed softmax: the test above can fail."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    kept = torch.tensor([1, 4, 5])
    right, biased = q[kept] / q[kept].sum(), q[kept]
    u = torch.from_numpy(rng.random((3, 200_000)))
    n = u.shape[1]
    column = draw(torch.from_numpy(right).expand(n, 3), u[0])[:, 0]
    found = {}
    for name, used in (("right", right), ("biased", biased)):
        own, x = torch.from_numpy(used)[column], kept[column]
        accept = u[1] * own < torch.from_numpy(p)[x]
        left = residual(torch.from_numpy(p)[None], torch.from_numpy(used)[None], kept)
        token = torch.where(accept, x, draw(left.expand(n, 6), u[2])[:, 0])
        found[name] = chisquare(np.bincount(token.numpy(), minlength=6), p * n).pvalue
    assert found["right"] > 0.01
    assert found["biased"] < 1e-6


@given(st.integers(0, 10_000))
def test_residual_and_draw_against_plain_loops(seed):
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(7)[: rng.integers(1, 8)])
    p, q = rng.dirichlet(np.full(7, 0.5)), rng.dirichlet(np.full(len(kept), 0.5))
    whole = np.zeros(7)
    for place, token in enumerate(kept):
        whole[token] = q[place]
    left = np.array([max(0.0, a - b) for a, b in zip(p, whole, strict=True)])
    got = residual(torch.from_numpy(p)[None], torch.from_numpy(q)[None], torch.from_numpy(kept))[0].numpy()
    np.testing.assert_allclose(got, left if left.sum() > 0 else p, atol=1e-15)
    u, token = rng.random(), 0
    while sum(got[: token + 1]) <= u * sum(got):
        token += 1
    assert int(draw(torch.from_numpy(got)[None], torch.tensor([u]))[0, 0]) == token


def test_draw_never_takes_what_has_no_weight():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    taken = [int(draw(weights, torch.tensor([u], dtype=torch.float64))) for u in (0.0, 0.4999, 0.5, 1 - 2**-53)]
    assert taken == [1, 1, 3, 3]


def test_equal_distributions_leave_p():
    p = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    assert torch.equal(residual(p, p, torch.tensor([0, 1])), p)


def test_drafts_count_up_to_the_first_that_is_refused():
    agreed = torch.tensor([[True, False, True], [True, True, True], [False, True, True]])
    assert accepted_drafts(agreed, torch.tensor([3, 2, 3])).tolist() == [1, 2, 0]


def test_the_cache_is_taken_back_to_what_was_accepted(tiny_model):
    """What was forgotten leaves no trace, whether all rows drop it (the cache shrinks) or some do (holes)."""
    reader = _Reader(tiny_model.model, 2, 128)
    ids = torch.tensor([[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]])
    with torch.inference_mode():
        reader.feed(ids, torch.ones_like(ids, dtype=torch.bool), 1)
        reader.forget(torch.tensor([2, 4]))
        assert (reader.cache.get_seq_length(), reader.read.tolist(), reader.real.sum(1).tolist()) == (3, [3, 1], [3, 1])
        got = reader.feed(torch.tensor([[30, 31], [40, 41]]), torch.ones(2, 2, dtype=torch.bool), 2)
        for row, text in enumerate(([5, 6, 7, 30, 31], [15, 40, 41])):
            plain = tiny_model.model(torch.tensor([text])).logits[0, -2:]
            torch.testing.assert_close(got[row], plain, atol=1e-4, rtol=1e-4)
        reader.select(torch.tensor([1]))
        again = reader.feed(torch.tensor([[42]]), torch.ones(1, 1, dtype=torch.bool), 1)
        plain = tiny_model.model(torch.tensor([[15, 40, 41, 42]])).logits[0, -1:]
        torch.testing.assert_close(again[0], plain, atol=1e-4, rtol=1e-4)


def test_texts_end_where_the_target_ends_them(six_words):
    target, drafter = six_word_model(six_words, 0), six_word_model(six_words, 1)
    prefixes = [[1], [2, 3], [4, 5, 1]]
    texts, stats = speculative_generate(target, drafter, prefixes, 40, temperature=1.5, seed=2, batch_size=3)
    assert any(len(text) < 40 for text in texts)
    assert all(0 not in text for text in texts)
    assert stats.new_tokens == sum(len(text) + (len(text) < 40) for text in texts)
    on, _ = speculative_generate(target, drafter, prefixes, 40, temperature=1.5, seed=2, stop_at_eos=False)
    assert all(len(row) == 40 and row[: len(text)].tolist() == text.tolist() for row, text in zip(on, texts, strict=True))


def test_other_models(tiny_model, other_model):
    """Learned positions with the text reaching the very end of the context, a sliding window, and a recurrent state, which is refused."""
    v = tiny_model.vocab_size
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        learned = GPT2LMHeadModel(GPT2Config(vocab_size=v, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3))
        window = MistralForCausalLM(MistralConfig(vocab_size=v, sliding_window=6, initializer_range=0.3, **shape))
        state = MambaForCausalLM(MambaConfig(vocab_size=v, hidden_size=16, num_hidden_layers=1, state_size=4))
    for model, batch_size in ((learned, 3), (window, 3)):
        door = HFModel(model, tiny_model.tokenizer)
        prefixes = [[3, 4, 5, 6, 7, 8, 9], [30, 31, 32], [50]]
        texts, _ = speculative_generate(door, other_model, prefixes, 25, batch_size=batch_size)
        assert lists(texts) == greedy(door, prefixes, 25)
    with pytest.raises(CapabilityError, match="taken back"):
        speculative_generate(tiny_model, HFModel(state, tiny_model.tokenizer), [[3, 4]], 5)


def test_what_cannot_be_done_is_said(tiny_model, other_model, six_words):
    with pytest.raises(InputError, match="gamma is 0"):
        speculative_generate(tiny_model, other_model, [[3]], 5, gamma=0)
    with pytest.raises(InputError, match="batch_size"):
        speculative_generate(tiny_model, other_model, [[3]], 5, batch_size=0)
    with pytest.raises(InputError, match="temperature"):
        speculative_generate(tiny_model, other_model, [[3]], 5, temperature=-1)
    with pytest.raises(TokenizerMismatchError):
        speculative_generate(tiny_model, six_word_model(six_words, 0), [[3]], 5)
    with pytest.raises(ContextOverflowError):
        speculative_generate(tiny_model, other_model, [[3] * 100], 60)
    with pytest.raises(ValueError, match="empty"):
        speculative_generate(tiny_model, other_model, [[]], 5)


def test_nan_is_an_error(tiny_model):
    broken = HFModel(deepcopy(tiny_model.model), tiny_model.tokenizer)
    with torch.no_grad():
        broken.model.lm_head.weight[:] = torch.nan
    with pytest.raises(NonFiniteError, match="drafter"):
        speculative_generate(tiny_model, broken, [[3, 4]], 5)
    with pytest.raises(NonFiniteError, match="target"):
        speculative_generate(broken, tiny_model, [[3, 4]], 5)
