"""Memory tokens: equal to the paper's added token, independent of the batch, exact where the argmax is right, and never in the weights."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from palimpsest.errors import CapabilityError, ContextOverflowError, InputError, ModelNotFoundError, NonFiniteError
from palimpsest.latent import MemoryBank, MemoryTokens
from palimpsest.latent.memory_tokens import MARGIN
from palimpsest.models import EndpointModel, HFModel
from palimpsest.tokenizer import Tokenizer

EOS = 1
ROWS = [[40, 41, 42, 43, 44], [90, 7], [200, 201, 202, 203], [60]]


@pytest.fixture
def model(tiny_model):
    return HFModel(copy.deepcopy(tiny_model.model), tiny_model.tokenizer, name="tiny")


@pytest.fixture
def tokens(model):
    return MemoryTokens(model)


def added_token(model, row, start, steps, lr):
    """The published procedure: a token is added to the vocabulary, its row alone is trained by SGD; the losses before each step."""
    llama = copy.deepcopy(model.model)
    size = llama.config.vocab_size
    llama.resize_token_embeddings(size + 1, mean_resizing=False)
    table = llama.get_input_embeddings().weight
    llama.requires_grad_(False)
    table.data[size] = start
    table.requires_grad_(True)
    ids = torch.tensor([[size, *row]])
    labels = torch.tensor([*row, EOS])
    losses = []
    optimizer = torch.optim.SGD([table], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = llama(ids).logits[0, :, :size]  # without the added token, which must not be written
        loss = torch.nn.functional.cross_entropy(logits, labels)
        losses.append(float(loss.detach()))
        loss.backward()
        table.grad[:size] = 0
        optimizer.step()
    return losses, table.detach()[size].numpy()


def test_equals_the_added_token_of_the_paper(tokens):
    bank = tokens.encode([ROWS[0]], optimizer="sgd", lr=0.5, max_steps=20)
    losses, vector = added_token(tokens.model, ROWS[0], tokens.initial()[0], 20, 0.5)
    assert bank.memories[0].steps == 20
    np.testing.assert_allclose(bank.memories[0].losses[:20], losses, atol=1e-4)
    np.testing.assert_allclose(bank[0][0], vector, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_text_does_not_depend_on_its_batch(tokens, optimizer):
    together = tokens.encode(ROWS, optimizer=optimizer, lr=0.1, max_steps=20, n_tokens=2)
    for i, row in enumerate(ROWS):
        alone = tokens.encode([row], optimizer=optimizer, lr=0.1, max_steps=20, n_tokens=2)
        assert alone.memories[0].steps == together.memories[i].steps
        np.testing.assert_allclose(alone.memories[0].losses, together.memories[i].losses, atol=1e-4)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-2)


def test_what_is_right_teacher_forced_is_written_back(tokens):
    bank = tokens.encode(ROWS, n_tokens=4, lr=0.1, max_steps=400)
    held = [i for i, memory in enumerate(bank.memories) if memory.accuracy == 1]
    assert len(held) >= 2
    assert len({bank.memories[i].steps for i in held}) > 1  # each stops for itself
    for i, memory in enumerate(bank.memories):
        written = tokens.decode(bank[i], 12)
        assert memory.exact == (written.tolist() == ROWS[i]) == (i in held)
        assert memory.length == len(ROWS[i])
        assert len(memory.losses) == memory.steps + 1
    assert all(bank.memories[i].steps < 400 for i in held)


def test_decoding_agrees_with_the_teacher_forced_pass(tokens):
    """Each written id is the argmax of a pass over the vector and all ids before it."""
    vectors = np.random.default_rng(0).normal(size=(3, 2, 32)).astype(np.float32)
    embed = tokens.model.model.get_input_embeddings()
    for vector, written in zip(vectors, tokens.decode_batch(vectors, 10), strict=True):
        fed = torch.cat([torch.from_numpy(vector), embed(torch.from_numpy(written))])[None]
        best = tokens.model.model(inputs_embeds=fed).logits[0, 1:].argmax(-1).tolist()
        expected = written.tolist() + ([EOS] if len(written) < 10 else [])
        assert best[: len(expected)] == expected


def test_what_stands_before(tokens):
    """The same as vectors of its embeddings in front, of which only the others are trained."""
    model = tokens.model
    behind = MemoryTokens(model, [30, 31])
    bank = behind.encode([ROWS[3]], n_tokens=2, lr=0.1, max_steps=200)
    assert bank.settings["before"] == [30, 31]
    assert bank.memories[0].exact
    front = model.model.get_input_embeddings()(torch.tensor([30, 31])).detach().numpy()
    whole = np.concatenate([front, bank[0]])
    assert tokens.decode(whole, 2).tolist() == behind.decode(bank[0], 2).tolist() == ROWS[3]
    start = np.concatenate([front, tokens.initial(2).numpy()])
    ids = torch.from_numpy(np.concatenate([start, model.model.get_input_embeddings()(torch.tensor(ROWS[3])).detach().numpy()]))[None]
    logprobs = model.model(inputs_embeds=ids).logits[0, 3:].log_softmax(-1).detach()
    expected = -(float(logprobs[0, ROWS[3][0]]) + float(logprobs[1, EOS])) / 2
    assert bank.memories[0].losses[0] == pytest.approx(expected, abs=1e-4)
    assert MemoryTokens(model, "ab").before.tolist() == model.tokenizer.encode("ab")
    with pytest.raises(InputError, match="999"):
        MemoryTokens(model, [999])
    with pytest.raises(ContextOverflowError):
        behind.encode([[5] * 126])


def test_many_vectors_are_decoded_in_parts(tokens, monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(7, 1, 32)).astype(np.float32)
    together = tokens.decode_batch(vectors, 6)
    monkeypatch.setattr(tokens.model, "batch_tokens", 14)  # two rows of seven
    sizes = []
    greedy = tokens._greedy
    monkeypatch.setattr(tokens, "_greedy", lambda part, new: sizes.append(len(part)) or greedy(part, new))
    assert [row.tolist() for row in tokens.decode_batch(vectors, 6)] == [row.tolist() for row in together]
    assert sizes == [2, 2, 2, 1]


def test_ties_go_to_the_lowest_id_and_eos_ends(tokens, model):
    vector = np.ones((1, 32), np.float32)
    model.model.lm_head.weight.data.zero_()
    assert tokens.decode(vector, 3).tolist() == [0, 0, 0]
    model.model.lm_head.weight.data[EOS] = 0
    model.model.lm_head.weight.data[0] = -torch.sign(model.model.model(inputs_embeds=torch.ones(1, 1, 32)).last_hidden_state[0, 0])
    assert tokens.decode(vector, 3).tolist() == []  # EOS is now the lowest of the best


def test_the_model_is_left_as_it_was(model):
    parameters = list(model.model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    before, asked = HFModel(model.model, model.tokenizer).fingerprint, [parameter.requires_grad for parameter in parameters]
    tokens = MemoryTokens(model)
    tokens.encode(ROWS, max_steps=3)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens.encode(ROWS, max_steps=3, progress=interrupt)
    assert [parameter.requires_grad for parameter in parameters] == asked
    assert all(parameter.grad is None for parameter in parameters)
    assert HFModel(model.model, model.tokenizer).fingerprint == before


def test_no_step_gives_the_start(tokens):
    bank = tokens.encode(["ab"], max_steps=0, n_tokens=3, init="token", seed=5)
    np.testing.assert_array_equal(bank[0], tokens.initial(3, "token", 5).numpy())
    table = tokens.model.model.get_input_embeddings().weight.detach().numpy()
    assert all(any(np.array_equal(vector, row) for row in table) for vector in bank[0])
    assert not np.array_equal(bank[0], tokens.initial(3, "token", 6).numpy())
    np.testing.assert_allclose(tokens.initial().numpy()[0], table.mean(0), atol=1e-6)


def test_vectors_are_float32_whatever_the_model(tiny_model):
    half = HFModel(copy.deepcopy(tiny_model.model).to(torch.bfloat16), tiny_model.tokenizer)
    bank = MemoryTokens(half).encode([ROWS[3]], n_tokens=4, lr=0.1, max_steps=200)
    assert bank.vectors.dtype == np.float32
    assert bank.memories[0].losses[-1] < bank.memories[0].losses[0]
    assert not np.array_equal(bank.vectors, torch.from_numpy(bank.vectors).to(torch.bfloat16).float().numpy())


def test_a_bank_comes_back_from_its_folder(tokens, tmp_path):
    bank = tokens.encode(["ab", "the word"], max_steps=2)
    bank.save(tmp_path / "bank")
    again = MemoryBank.load(tmp_path / "bank")
    np.testing.assert_array_equal(again.vectors, bank.vectors)
    assert (again.memories, again.settings, again.model, len(again)) == (bank.memories, bank.settings, tokens.model.fingerprint, 2)
    assert "the word" not in (tmp_path / "bank" / "memories.json").read_text()
    with pytest.raises(ModelNotFoundError, match="no memories"):
        MemoryBank.load(tmp_path)
    record = json.loads((tmp_path / "bank" / "memories.json").read_text())
    for change in ({"format": 9}, {"sha256": "0"}, {"memories": record["memories"][:1]}):
        (tmp_path / "bank" / "memories.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(InputError, match="can be read"):
            MemoryBank.load(tmp_path / "bank")


@pytest.mark.parametrize(
    ("texts", "options", "error", "says"),
    [
        ([], {}, InputError, "texts is"),
        ("ab", {}, InputError, "texts is"),
        ([""], {}, InputError, "empty"),
        ([[5, EOS, 6]], {}, InputError, "EOS"),
        ([[5, 320]], {}, InputError, "320"),
        ([[5] * 127], {"n_tokens": 2}, ContextOverflowError, "127 tokens"),
        (["ab"], {"n_tokens": 0}, InputError, "n_tokens is 0"),
        (["ab"], {"max_steps": -1}, InputError, "max_steps"),
        (["ab"], {"lr": 0.0}, InputError, "lr"),
        (["ab"], {"lr": float("nan")}, InputError, "lr"),
        (["ab"], {"optimizer": "lbfgs"}, InputError, "lbfgs"),
        (["ab"], {"init": "zero"}, InputError, "zero"),
        (["ab"], {"optimizer": "sgd", "lr": 1e38}, NonFiniteError, "lower lr"),
    ],
)
def test_bad_input_is_refused(tokens, texts, options, error, says):
    with pytest.raises(error, match=says):
        tokens.encode(texts, **options)


def test_a_text_that_just_fits(tokens):
    assert tokens.encode([[5] * 127], max_steps=1).memories[0].length == 127


def test_bad_vectors_are_refused(tokens):
    for vectors, new in ((np.ones((1, 31)), 3), (np.ones(32), 3), (np.full((1, 32), np.nan), 3), (np.ones((1, 32)), 0)):
        with pytest.raises(InputError, match="Vectors of shape"):
            tokens.decode(vectors, new)
    with pytest.raises(ContextOverflowError):
        tokens.decode(np.ones((1, 32)), 129)


def test_a_door_without_weights_or_end_is_refused(tiny_model, server):
    with pytest.raises(CapabilityError, match="input vector"):
        MemoryTokens(EndpointModel.from_url(server.url + "#tiny", tiny_model.tokenizer))
    with pytest.raises(InputError, match="no EOS"):
        MemoryTokens(HFModel(tiny_model.model, Tokenizer(tiny_model.tokenizer.backend)))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_text_that_stops_stays_where_it_was_right(tokens, monkeypatch, optimizer):
    """The vectors that are given back are those that were looked at last, to the bit, whatever the other texts go on to do."""
    seen, losses = {}, tokens._losses

    def watched(rows, vectors):
        seen.update({tuple(row): vector.detach().clone() for row, vector in zip(rows, vectors, strict=True)})
        return losses(rows, vectors)

    monkeypatch.setattr(tokens, "_losses", watched)
    bank = tokens.encode(ROWS, n_tokens=4, lr=0.1 if optimizer == "adam" else 2.0, optimizer=optimizer, max_steps=300)
    assert len({memory.steps for memory in bank.memories}) > 1
    for row, vector in zip(ROWS, bank.vectors, strict=True):
        np.testing.assert_array_equal(vector, seen[tuple(row)].numpy())


def test_the_right_token_is_ahead_when_training_stops(tokens):
    bank = tokens.encode(ROWS, n_tokens=4, lr=0.1, max_steps=400)
    embed = tokens.model.model.get_input_embeddings()
    for i, memory in enumerate(bank.memories):
        if memory.steps < 400:
            fed = torch.cat([torch.from_numpy(bank[i]), embed(torch.tensor(ROWS[i])).detach()])[None]
            logits = tokens.model.model(inputs_embeds=fed).logits[0, 3:].detach()
            for line, token in zip(logits, [*ROWS[i], EOS], strict=True):
                others = torch.cat([line[:token], line[token + 1 :]])
                assert line[token] - others.max() > MARGIN - 1e-3
