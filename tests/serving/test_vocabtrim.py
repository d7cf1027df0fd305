"""VocabTrim: what is kept, that the full set changes nothing, and that what was cut still comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from palimpsest.errors import CapabilityError, InputError, TokenizerMismatchError
from palimpsest.models import HFModel
from palimpsest.serving.speculative import speculative_generate
from palimpsest.serving.vocabtrim import bytes_read, calibrate, count_tokens, estimate_sizes, kept_ids, mbsu, trim_head
from palimpsest.tokenizer import Tokenizer

PREFIXES = [[5, 6, 7], [40, 41], [200]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_kept_ids_against_sorting(counts, data):
    k = data.draw(st.integers(0, len(counts)))
    keep = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=3))
    ranked = sorted(range(len(counts)), key=lambda v: (-counts[v], v))
    wanted = sorted({*ranked[:k], *keep})
    if wanted:
        assert kept_ids(counts, len(counts), k, keep=keep).tolist() == wanted
    else:
        with pytest.raises(InputError, match="No token"):
            kept_ids(counts, len(counts), k, keep=keep)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.floats(0.01, 1))
def test_coverage_is_the_smallest_set_that_covers(counts, coverage):
    kept = kept_ids(counts, len(counts), coverage=coverage)
    total = sum(counts)
    assert sum(counts[v] for v in kept) >= coverage * total - 1e-6
    rarest = min(counts[v] for v in kept)
    assert sum(counts[v] for v in kept) - rarest < coverage * total


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_tokens_kept_is_the_untrimmed_drafter(tiny_model, other_model, temperature):
    counts = np.random.default_rng(0).integers(0, 9, other_model.vocab_size)
    whole = trim_head(other_model, counts, other_model.vocab_size)
    runs = [
        speculative_generate(tiny_model, drafter, PREFIXES, 30, temperature=temperature, seed=4, batch_size=2)
        for drafter in (other_model, whole)
    ]
    assert [row.tolist() for row in runs[0][0]] == [row.tolist() for row in runs[1][0]]
    assert (runs[0][1].blocks, runs[0][1].accepted) == (runs[1][1].blocks, runs[1][1].accepted)


def test_the_head_is_cut_and_nothing_else(tiny_model):
    """k columns, not V; the drafter itself, and its input embedding, stay; any token can be fed."""
    before = {name: value.clone() for name, value in tiny_model.model.state_dict().items()}
    counts = np.zeros(tiny_model.vocab_size, int)
    counts[[7, 3, 300]] = 5
    trimmed = trim_head(tiny_model, counts, 3, keep=[1])
    assert trimmed.kept.tolist() == [1, 3, 7, 300]
    ids = torch.tensor([[250, 9, 300]])
    with torch.inference_mode():
        whole, cut = tiny_model.model(ids).logits, trimmed.model(ids).logits
    assert cut.shape == (1, 3, 4)
    torch.testing.assert_close(cut, whole[..., trimmed.kept])
    assert torch.equal(trimmed.model.lm_head.weight, tiny_model.model.lm_head.weight[trimmed.kept])
    assert trimmed.model.model is tiny_model.model.model
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.model.state_dict().items())
    saved = (tiny_model.vocab_size - 4) * 32 * 4
    assert trimmed.bytes_saved == saved == bytes_read(tiny_model.model) - bytes_read(trimmed.model)


def test_tied_biased_and_capped_heads(tiny_tokenizer):
    v = tiny_tokenizer.vocab_size
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tied = GPT2LMHeadModel(GPT2Config(vocab_size=v, n_positions=32, n_embd=16, n_layer=1, n_head=2))
        capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=v, head_dim=8, final_logit_softcapping=2.0, initializer_range=1.0, **shape))
        biased = GPT2LMHeadModel(GPT2Config(vocab_size=v, n_positions=32, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False))
    biased.lm_head = torch.nn.Linear(16, v, bias=True)
    for model in (tied, capped, biased):
        door = HFModel(model, tiny_tokenizer)
        trimmed = trim_head(door, np.arange(v), 10, keep=[])
        ids = torch.tensor([[4, 9, 17]])
        with torch.inference_mode():
            torch.testing.assert_close(trimmed.model(ids).logits, door.model(ids).logits[..., v - 10 :])
        assert door.model.get_input_embeddings().weight.shape[0] == trimmed.model.get_input_embeddings().weight.shape[0] == v
    assert bytes_read(tied) == sum(p.nbytes for p in tied.parameters())
    trimmed = trim_head(HFModel(tied, tiny_tokenizer), np.arange(v), 10, keep=[])
    assert bytes_read(trimmed.model) == bytes_read(tied) - (v - 10) * 16 * 4 + 16 * 4


def test_a_token_that_was_cut_is_still_written(tiny_model):
    """The target drafts for itself with half of its tokens: these are always accepted or refused rightly, the others come by refusal."""
    counts = np.arange(tiny_model.vocab_size) % 2
    trimmed = trim_head(tiny_model, counts, tiny_model.vocab_size // 2, keep=[])
    texts, stats = speculative_generate(tiny_model, trimmed, PREFIXES, 60, temperature=1.0, stop_at_eos=False, batch_size=3)
    odd = np.concatenate(texts) % 2
    assert 0.3 < odd.mean() < 0.7
    assert 0 < stats.acceptance < 1
    assert stats.drafter_bytes < bytes_read(tiny_model.model)


def test_what_ends_a_text_is_kept_by_itself(tiny_model):
    counts = np.zeros(tiny_model.vocab_size, int)
    counts[50:60] = 1
    assert 1 in trim_head(tiny_model, counts, 10).kept
    assert 1 not in trim_head(tiny_model, counts, 10, keep=[]).kept


def test_calibration_counts_what_the_model_writes(tiny_model):
    prompts = [[5, 6], [7]]
    counts = calibrate(tiny_model, prompts, 500, max_new_tokens=40, seed=1)
    assert (counts.sum(), counts.shape) == (500, (tiny_model.vocab_size,))
    assert np.array_equal(counts, calibrate(tiny_model, prompts, 500, max_new_tokens=40, seed=1))
    assert not np.array_equal(counts, calibrate(tiny_model, prompts, 500, max_new_tokens=40, seed=2))
    written = [rows[0] for rows in tiny_model.generate(prompts, 40)]
    n = sum(map(len, written))
    assert np.array_equal(calibrate(tiny_model, prompts, n, temperature=0, max_new_tokens=40), count_tokens(written, tiny_model.vocab_size))
    with pytest.raises(InputError, match="no more"):
        calibrate(tiny_model, prompts, n + 1, temperature=0, max_new_tokens=40)


def cut(logits: torch.Tensor, top_k: int | None) -> torch.Tensor:
    """All but the k greatest of each row at -inf."""
    return logits if top_k is None else logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (0.8, None), (0.8, 5)])
def test_estimates_are_those_of_plain_loops(tiny_model, other_model, temperature, top_k):
    v, gamma = tiny_model.vocab_size, 2
    rows, counts = [[1, 2, 3, 4, 5], [5, 4, 3]], np.random.default_rng(1).integers(0, 50, v)
    found = estimate_sizes(tiny_model, other_model, rows, counts, [30, v], gamma=gamma, temperature=temperature, top_k=top_k, keep=[])
    for k, estimate in zip((30, v), found, strict=True):
        kept = sorted(sorted(range(v), key=lambda token: -counts[token])[:k])
        blocks, every = [], []
        for row in rows:
            with torch.inference_mode():
                p, q = (door.model(torch.tensor([row])).logits[0].double() for door in (tiny_model, other_model))
            if temperature == 0:
                a = [float(kept[int(b[kept].argmax())] == int(x.argmax())) for x, b in zip(p, q, strict=True)]
            else:
                ps, qs = (cut(logits / temperature, top_k).softmax(-1) for logits in (p, q[:, kept]))
                a = [sum(min(float(x[token]), float(b[i])) for i, token in enumerate(kept)) for x, b in zip(ps, qs, strict=True)]
            every += a
            blocks += [1 + a[t] + a[t] * a[t + 1] for t in range(len(row) - gamma + 1)]
        assert estimate.acceptance == pytest.approx(np.mean(every), abs=1e-6)
        assert estimate.block_efficiency == pytest.approx(np.mean(blocks), abs=1e-6)
        cost = bytes_read(trim_head(other_model, counts, k, keep=[]).model) / bytes_read(tiny_model.model)
        assert estimate.mbsu == pytest.approx(mbsu(estimate.block_efficiency, gamma, cost))
        assert (estimate.k, estimate.coverage) == (k, pytest.approx(counts[kept].sum() / counts.sum()))


def test_what_cannot_be_done_is_said(tiny_model):
    v = tiny_model.vocab_size
    with pytest.raises(ValueError, match="do not belong"):
        trim_head(tiny_model, np.ones(v - 1), 5)
    with pytest.raises(ValueError, match="do not belong"):
        trim_head(tiny_model, -np.ones(v), 5)
    with pytest.raises(ValueError, match="No token"):
        trim_head(tiny_model, np.ones(v), 0, keep=[])
    with pytest.raises(InputError, match="between"):
        trim_head(tiny_model, np.ones(v), v + 1)
    with pytest.raises(InputError, match="Both"):
        trim_head(tiny_model, np.ones(v), 5, coverage=0.5)
    with pytest.raises(InputError, match="share"):
        trim_head(tiny_model, np.ones(v), coverage=1.5)
    with pytest.raises(InputError, match="all 0"):
        trim_head(tiny_model, np.zeros(v))
    with pytest.raises(InputError, match=f"keep holds {v}"):
        trim_head(tiny_model, np.ones(v), 5, keep=[v])
    with pytest.raises(InputError, match="n_tokens"):
        calibrate(tiny_model, [[3]], 0)
    with pytest.raises(InputError, match="holds the id 9"):
        count_tokens([[9]], 9)
    stranger = HFModel(tiny_model.model, Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a"))))
    with pytest.raises(TokenizerMismatchError):
        estimate_sizes(tiny_model, stranger, [[1, 2, 3, 4, 5]], np.ones(v), [3])
    with pytest.raises(InputError, match="No row"):
        estimate_sizes(tiny_model, tiny_model, [[1, 2]], np.ones(v), [3])
    quantised = HFModel(type(tiny_model.model)(tiny_model.model.config), tiny_model.tokenizer)
    quantised.model.lm_head = torch.nn.Identity()
    with pytest.raises(CapabilityError, match="Identity"):
        trim_head(quantised, np.ones(v), 5)
