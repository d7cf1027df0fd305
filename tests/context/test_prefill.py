"""Chunked prefill: the result of one pass, and a peak that does not grow with the text."""

from __future__ import annotations

import pytest
import torch

from palimpsest.context import prefill
from palimpsest.errors import InputError

from .conftest import Stored, Unrotated, Window, greedy, logits


@pytest.mark.parametrize("chunk", [7, 100])
def test_chunks_give_what_one_pass_gives(model, ids, chunk):
    plain = logits(model, ids)
    text = greedy(model, ids)
    read = prefill(model, ids, chunk, logits="all")
    torch.testing.assert_close(read.logits, plain, atol=1e-4, rtol=1e-4)
    for method in (Stored(), Unrotated()):
        with method(model) as session:
            read = prefill(session, ids, chunk, logits="all")
            torch.testing.assert_close(read.logits, plain, atol=1e-4, rtol=1e-4)
            last = prefill(session, ids, chunk).logits
            torch.testing.assert_close(last, plain[:, -1:], atol=1e-4, rtol=1e-4)
            read = prefill(session, ids[:, :-1], chunk, logits="none")
            assert torch.equal(greedy(model, ids, past_key_values=read.cache), text)
    assert prefill(model, ids, chunk, logits="none").logits is None


def test_one_token_at_a_time_gives_what_one_pass_gives(llama, ids):
    for method in (Stored(), Unrotated(), Window(1000)):
        with method(llama) as session:
            read = prefill(session, ids[:, :16], 1, logits="all")
        torch.testing.assert_close(read.logits, logits(llama, ids[:, :16]), atol=1e-4, rtol=1e-4)


def test_padding_in_chunks(llama, ids):
    mask = torch.ones_like(ids)
    mask[1, :15] = 0
    alone = logits(llama, ids[1:, 15:])[:, -1:]
    for method in (Stored(), Window(1000)):
        with method(llama) as session:
            read = prefill(session, ids, 6, attention_mask=mask)
        torch.testing.assert_close(read.logits[1:], alone, atol=1e-4, rtol=1e-4)


def test_the_peak_is_bounded_by_budget_and_chunk(llama):
    entry = 2 * 2 * (2 * 8 * 4 + 4)  # batch, key-value heads, keys and values of 8 float32, one int32 position
    peaks = {}
    for length in (120, 240):
        text = torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(length))
        with Window(16)(llama) as session:
            read = prefill(session, text, 8)
            peaks[length] = read.peak_bytes
            assert read.nbytes == session.nbytes() == 3 * 17 * entry
        plain = prefill(llama, text, 8)
        assert plain.nbytes == plain.peak_bytes == 3 * length * 2 * 2 * 2 * 8 * 4
    assert peaks[120] == peaks[240] == (2 * 17 + 24) * entry  # two layers at rest with one spare column, one reading a chunk


def test_misuse_is_refused(llama, ids):
    for options in ({"chunk": 0}, {"logits": "first"}, {"attention_mask": torch.ones(2, 3)}):
        with pytest.raises(InputError):
            prefill(llama, ids, **options)
    with pytest.raises(InputError, match="at least one token"):
        prefill(llama, ids[:, :0])
