"""CItruS against a naive reader of a single row, its sizes, its kinds of cache, batches of different lengths, and in a pair with ThinK."""

from __future__ import annotations

import pytest
import torch

from palimpsest.context import prefill
from palimpsest.context.citrus import CACHES, CItruS
from palimpsest.context.citrus_session import CitrusSession
from palimpsest.context.think import ThinK
from palimpsest.errors import InputError, UnsupportedModelError

from .conftest import greedy, logits, make_model


class Naive:
    """A Llama of one row whose layers' states are plain tensors; keys are rotated to their index whenever they are read."""

    def __init__(self, model):
        self.model, self.config = model.model, model.config
        self.head = model.lm_head
        self.dim = self.config.hidden_size // self.config.num_attention_heads

    def rotated(self, x, index):
        freq = 1 / self.config.rope_parameters["rope_theta"] ** (torch.arange(0, self.dim, 2) / self.dim)
        angle = torch.cat([index[:, None] * freq] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()

    def run(self, ids, cache):
        """Logits, the states with those of the new tokens, and for every layer the mean attention of the new tokens to the old states."""
        x, after, scores = self.model.embed_tokens(ids), [], []
        for layer, (keys, values) in zip(self.model.layers, cache, strict=True):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (p(h).view(len(ids), -1, self.dim).transpose(0, 1) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
            old = keys.shape[1]
            keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
            index = torch.arange(keys.shape[1])
            group = len(q) // len(keys)
            p = self.rotated(q, index[old:]) @ self.rotated(keys, index).repeat_interleave(group, 0).transpose(1, 2) / self.dim**0.5
            p = p.masked_fill(index[None, :] > index[old:, None], -torch.inf).softmax(-1)
            out = (p @ values.repeat_interleave(group, 0)).transpose(0, 1).reshape(len(ids), -1)
            x = x + attention.o_proj(out)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            after.append((keys, values))
            scores.append(p[:, :, :old].mean((0, 1)))
        return self.head(self.model.norm(x)), after, scores

    def read(self, document, instruction, k, chunk, kind):
        """The published loop, step 0 on two chunks at once."""
        empty = [(torch.zeros(self.config.num_key_value_heads, 0, self.dim),) * 2 for _ in self.model.layers]
        chunks = document.split(chunk)
        _, cache, _ = self.run(chunks[0], empty)
        own = cache
        for part in chunks[1:]:
            _, after, scores = self.run(part, cache)
            asked = self.run(instruction, own if kind == "individual" else cache)[2]
            kept = [best(s, k) for s in (asked if kind == "shared" else scores)]
            newest = [(a[:, -len(part) :], b[:, -len(part) :]) for a, b in after]
            own = joined(own, [best(s, k) for s in asked], newest) if kind == "individual" else own
            cache = joined(cache, kept, newest)
        final = own if kind == "individual" else cache
        kept = [best(s, k) for s in self.run(instruction, final)[2]]
        final = [tuple(x[:, chosen] for x in states) for states, chosen in zip(final, kept, strict=True)]
        return self.run(instruction, final)


def joined(states, kept, newest):
    return [
        tuple(torch.cat([x[:, chosen], y], 1) for x, y in zip(old, new, strict=True))
        for old, new, chosen in zip(states, newest, kept, strict=True)
    ]


def best(scores, k):
    return scores.topk(min(k, len(scores))).indices.sort().values


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 97, (1, 45), generator=generator), torch.randint(3, 97, (1, 5), generator=generator)


def answered(session, count=8):
    return session.generate(max_new_tokens=count, do_sample=False, pad_token_id=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize(("k", "chunk", "length"), [(6, 8, 45), (12, 8, 40), (6, 8, 8), (6, 20, 45)])
def test_it_reads_as_the_naive_reader_does(llama, texts, kind, k, chunk, length):
    document, instruction = texts[0][:, :length], texts[1]
    expected, states, _ = Naive(llama).read(document[0], instruction[0], k, chunk, kind)
    with CItruS(k, chunk, kind).read(llama, document, instruction) as session:
        keys = session.layer(2).values[0]
        torch.testing.assert_close(keys, states[2][1][:, :-1], atol=1e-4, rtol=1e-4)  # the last token has not been read yet
        found = session.logprobs(torch.tensor([[7]]))
        torch.testing.assert_close(found[0, 0], expected[-1].log_softmax(-1)[7], atol=1e-4, rtol=1e-4)
        text = answered(session)[0]
        written, ids = [], instruction[0, -1:]
        states = [tuple(x[:, :-1] for x in state) for state in states]
        for _ in range(8):
            out, states, _ = Naive(llama).run(ids, states)
            ids = out[-1:].argmax(-1)
            written += ids.tolist()
        assert text.tolist() == written


@pytest.mark.parametrize("kind", CACHES)
def test_with_room_for_all_it_is_full_attention(llama, texts, kind):
    document, instruction = texts
    with CItruS(100, 8, kind).read(llama, document, instruction) as session:
        text = answered(session)
    assert torch.equal(text, greedy(llama, torch.cat(texts, 1), count=8)[:, -8:])


def test_with_room_for_all_streams_are_full_attention(model, ids):
    plain = logits(model, ids)
    with CItruS(100, 8, "standard")(model):
        torch.testing.assert_close(logits(model, ids), plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(model, ids), plain)


def test_one_pass_and_one_pass_a_chunk_are_the_same_and_the_cache_stays_small(llama, ids):
    with CItruS(6, 8, "standard")(llama) as session:
        once = logits(llama, ids)
        positions = session.layer(1).positions.clone()
        read = prefill(session, ids, chunk=8, logits="all")
        torch.testing.assert_close(once, read.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(session.layer(1).positions, positions)
        for end in (4, 8, 10, 16, 23, 40):
            prefill(session, ids[:, :end], chunk=8)
            last = (end - 1) % 8 + 1
            assert session.layer(0).length == min(end, min(end - last, 6) + last)
        prefill(session, ids, chunk=40)
        assert positions.shape[2] == 6 + 8
        for row in positions.flatten(0, 1).tolist():
            assert row == sorted(row)
            assert row[-8:] == list(range(32, 40))
        assert (positions[:, :1] == positions).all()  # all heads of a layer keep the same


def test_individual_with_the_next_chunk_as_instruction_selects_as_standard_does(llama, texts):
    document = texts[0][:, :16]
    chosen = {}
    for kind in ("standard", "individual"):
        with CItruS(5, 8, kind)(llama) as session:
            session.read(document, document[:, 8:])
            chosen[kind] = session.layer(2).positions[0, 0, :5].tolist()
    assert chosen["standard"] == chosen["individual"]


def test_individual_reads_the_document_as_standard_does(llama, texts, monkeypatch):
    run, seen = CitrusSession._run, {"standard": [], "individual": [], "shared": []}

    def noted(self, cache, ids, mask, mode, logits=1):
        out = run(self, cache, ids, mask, mode, logits=ids.shape[1])
        if mode == "chunk":
            seen[self.rules.cache].append(out)
        return out

    monkeypatch.setattr(CitrusSession, "_run", noted)
    for kind in seen:
        with CItruS(6, 8, kind)(llama) as session:
            session.read(*texts)
    standard, individual, shared = (torch.cat(outs, 1) for outs in seen.values())
    assert standard.shape[1] == 45
    torch.testing.assert_close(individual, standard, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(shared, standard, atol=1e-2)


@pytest.mark.parametrize("kind", CACHES)
def test_rows_of_different_length_are_read_as_each_alone(llama, kind):
    generator = torch.Generator().manual_seed(4)
    lengths, asked = (45, 20, 5, 33), (5, 3, 5, 1)
    documents = [torch.randint(3, 97, (1, n), generator=generator) for n in lengths]
    questions = [torch.randint(3, 97, (1, n), generator=generator) for n in asked]
    document, document_mask = padded(documents)
    question, question_mask = padded(questions)
    method = CItruS(6, 8, kind)
    masks = {"document_mask": document_mask, "instruction_mask": question_mask}
    answer = torch.tensor([[7, 9, 11]])
    with method.read(llama, document, question, **masks) as session:
        scores = session.logprobs(answer.expand(4, -1))
        together = answered(session)
    for row in range(4):
        with method.read(llama, documents[row], questions[row]) as session:
            torch.testing.assert_close(session.logprobs(answer)[0], scores[row], atol=1e-4, rtol=1e-4)
            assert torch.equal(answered(session)[0], together[row])


def padded(rows):
    width = max(row.shape[1] for row in rows)
    ids = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    return ids, torch.cat([torch.nn.functional.pad(torch.ones_like(row), (width - row.shape[1], 0)) for row in rows])


def test_a_padded_batch_gives_what_its_rows_give_alone(llama, ids):
    short, method = ids[1:, 12:], CItruS(6, 8, "standard")
    both, mask = padded([ids[:1], short])
    with method(llama):
        together = greedy(llama, both, attention_mask=mask)
        alone = [greedy(llama, row)[0, -12:] for row in (ids[:1], short)]
    assert torch.equal(together[:, -12:], torch.stack(alone))


def test_a_second_turn_goes_back_to_keys_before_rotation(llama, ids):
    method = CItruS(6, 8, "standard")
    with method(llama) as session:
        cache = llama(ids).past_key_values
        for token in ids[:, :3].split(1, 1):
            llama(token, past_key_values=cache)
        assert session.layer(0).settled
        turned = logits(llama, ids[:, :8], past_key_values=cache)
        cache = llama(ids).past_key_values
        for layer in cache.layers:
            layer.mode = "append"
        llama(ids[:, :3], past_key_values=cache)
        for layer in cache.layers:
            layer.mode = "stream"
        torch.testing.assert_close(logits(llama, ids[:, :8], past_key_values=cache), turned, atol=1e-4, rtol=1e-4)


def test_individual_needs_two_caches_while_it_reads(llama, texts):
    sizes = {}
    for kind in CACHES:
        with CItruS(6, 8, kind).read(llama, *texts) as session:
            sizes[kind] = session.peak_bytes
            # 3 layers of 2 heads, k + instruction − 1 columns with their positions, and a count
            assert session.nbytes() == 3 * 2 * (6 + 4) * (2 * 8 * 4 + 4) + 3 * 8
            assert session.nbytes() == sum(layer.nbytes() for layer in session.cache.layers)
    assert sizes["individual"] > 1.7 * sizes["standard"]


def test_what_was_read_can_be_packed(llama, texts):
    pair = CItruS(12, 8, "individual") | ThinK(ratio=0.5, window=4, recent=4)
    assert pair == ThinK(ratio=0.5, window=4, recent=4, after=CItruS(12, 8, "individual"))
    with pair(llama) as session:
        session.read(*texts)
        assert session.layer(0).rows["packed_keys"].shape == (1, 2, 12, 4)
        fewer, packed = session.nbytes(), session.logprobs(torch.tensor([[7, 9]]))
        answered(session)
    with CItruS(12, 8, "individual").read(llama, *texts) as session:
        assert fewer < session.nbytes()
        plain = session.logprobs(torch.tensor([[7, 9]]))
    assert not torch.allclose(packed, plain, atol=1e-3)
    with (CItruS(12, 8, "individual") | ThinK(ratio=0.5, window=4, recent=100))(llama) as session:  # all whole: as without
        session.read(*texts)
        torch.testing.assert_close(session.logprobs(torch.tensor([[7, 9]])), plain, atol=1e-4, rtol=1e-4)


def test_misuse_is_refused_with_a_reason(llama, texts, ids):
    for wrong in ({"k": 0}, {"chunk": 0}, {"cache": "double"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            CItruS(**wrong)
    with pytest.raises(InputError, match="the model's window 256"), CItruS(chunk=300)(llama):
        pass
    with CItruS(6, 8)(llama) as session:
        with pytest.raises(InputError, match="no instruction"):
            llama(ids)
        with pytest.raises(InputError, match="has read nothing"):
            session.generate()
        with pytest.raises(InputError, match="instruction is empty"):
            session.read(texts[0], torch.empty(1, 0, dtype=torch.long))
        with pytest.raises(InputError, match="2 documents and 1 instructions"):
            session.read(ids, texts[1])
        session.read(*texts)
        with pytest.raises(InputError, match="num_beams"):
            session.generate(num_beams=2)
    with CItruS(6, 8)(make_model("gemma3")) as session, pytest.raises(UnsupportedModelError, match="2 layers of 3"):
        session.read(*texts)
