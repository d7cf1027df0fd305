"""Extended Mind: equal to dense attention over memory and context, vanilla without memories, and true to what it cites."""

from __future__ import annotations

import json

import pytest
import torch
from tests.context.two_distances import random_ids, tiny_llama

from palimpsest.context.extended_mind import ExtendedMind
from palimpsest.context.memory_bank import MemoryBank
from palimpsest.errors import InputError, ModelNotFoundError

TEXT = random_ids(23, seed=7)[0].tolist()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def bank(model):
    return ExtendedMind().memorize(model, TEXT)


def logits(model, method, bank, ids, **options):
    with torch.no_grad(), method(model, bank):
        return model(ids, **options).logits


def captured(model, ids):
    """Every layer's q, k before rotation, and v, of a plain forward pass: lists of (1, heads, time, 8)."""
    found = []

    def note(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        projected = (module.q_proj(hidden), module.k_proj(hidden), module.v_proj(hidden))
        found.append([part.view(1, hidden.shape[1], -1, 8).transpose(1, 2) for part in projected])

    hooks = [layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in model.model.layers]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


def rotated(model, x, positions):
    cos, sin = model.model.rotary_emb(x, positions[None])
    half = torch.cat((-x[..., 4:], x[..., :4]), -1)
    return x * cos[:, None] + half * sin[:, None]


def test_the_bank_holds_keys_before_rotation(model, bank):
    for layer, (_, k, v) in enumerate(captured(model, torch.tensor([TEXT]))):
        torch.testing.assert_close(bank.keys[layer], k[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(bank.values[layer], v[0], atol=1e-6, rtol=1e-6)
    assert bank.ids.tolist() == TEXT
    assert not bank.documents.any()


@pytest.mark.parametrize("position", ["zero", "fixed:9"])
def test_with_room_for_all_memories_it_is_dense_attention_over_memory_and_context(model, bank, position):
    ids, positions = random_ids(12, seed=3), torch.arange(12)
    method = ExtendedMind(topk=100, layers=(0,), position=position)
    q, k, v = captured(model, ids)[0]
    k, v, old_k, old_v = (part.repeat_interleave(2, 1) for part in (k, v, bank.keys[0][None], bank.values[0][None]))
    near, far = rotated(model, q, positions), rotated(model, q, positions if position == "zero" else torch.full((12,), 9))
    local = (near @ rotated(model, k, positions).transpose(-1, -2)).masked_fill(~torch.ones(12, 12).tril().bool(), -torch.inf)
    weights = (torch.cat([far @ old_k.transpose(-1, -2), local], -1) * 8**-0.5).softmax(-1)
    expected = (weights @ torch.cat([old_v, v], 2)).transpose(1, 2).flatten(2)
    out = []
    hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda module, args: out.append(args[0]))
    logits(model, method, bank, ids)
    hook.remove()
    torch.testing.assert_close(out[0], expected, atol=1e-5, rtol=1e-5)


def test_each_query_and_head_reads_the_most_similar_memories_and_says_so(model, bank):
    ids, positions = random_ids(12, seed=3), torch.arange(12)
    with torch.no_grad(), ExtendedMind(topk=3, layers=(0,), cite=True)(model, bank) as session:
        model(ids)
        table = session.citations()
    q = rotated(model, captured(model, ids)[0][0], positions)
    keys = bank.keys[0].repeat_interleave(2, 0)[None]
    cosine = torch.nn.functional.cosine_similarity(q[:, :, :, None], keys[:, :, None], dim=-1)[0]  # (heads, time, memories)
    for (head, token), part in table.group_by("head", "token"):
        best = cosine[head, token].topk(3)
        assert set(part["memory"]) == set(best.indices.tolist())
        torch.testing.assert_close(torch.tensor(sorted(part["similarity"], reverse=True)).float(), best.values, atol=1e-5, rtol=1e-5)
        assert 0 < part["weight"].sum() < 1
    assert table.height == 4 * 12 * 3
    assert (table["id"].to_numpy() == bank.ids.numpy()[table["memory"].to_numpy()]).all()


def test_citations_replayed_give_the_same_attention(model, bank):
    """Only the memories that one token's head cited are left in the bank: that head's attention to them is what it was."""
    ids = random_ids(12, seed=3)
    method = ExtendedMind(topk=3, layers=(0,), cite=True)
    with torch.no_grad(), method(model, bank) as session:
        model(ids)
        first = session.citations().filter(head=2, token=11).sort("memory")
        memories = torch.tensor(first["memory"].to_list())
        session.use(bank.select(memories))
        model(ids)
        again = session.citations().filter(head=2, token=11).sort("memory")
    assert again["weight"].to_list() == pytest.approx(first["weight"].to_list(), abs=1e-5)
    assert again["id"].to_list() == first["id"].to_list()


def test_without_memories_it_is_vanilla_bit_for_bit(model, bank):
    ids = random_ids(12)
    with torch.no_grad():
        expected = model(ids).logits
    assert torch.equal(logits(model, ExtendedMind(), None, ids), expected)
    for method in (ExtendedMind(topk=0), ExtendedMind(layers=()), ExtendedMind(mask_by_sim=True, sim_threshold=1.1)):
        assert torch.equal(logits(model, method, bank, ids), expected)
    assert torch.equal(logits(model, ExtendedMind(), bank.select(torch.tensor([], dtype=torch.long)), ids), expected)
    assert not torch.allclose(logits(model, ExtendedMind(), bank, ids), expected, atol=1e-3)


def test_the_threshold_hides_memories(model, bank):
    ids = random_ids(12)
    with torch.no_grad(), ExtendedMind(topk=8, mask_by_sim=True, sim_threshold=0.3, cite=True)(model, bank) as session:
        model(ids)
        table = session.citations()
    assert table["similarity"].min() > 0.3
    assert 0 < table.height < 2 * 4 * 12 * 8


def test_the_order_of_memories_does_not_matter(model, bank):
    ids, shuffled = random_ids(12), torch.randperm(len(bank), generator=torch.Generator().manual_seed(1))
    expected = logits(model, ExtendedMind(topk=4), bank, ids)
    torch.testing.assert_close(logits(model, ExtendedMind(topk=4), bank.select(shuffled), ids), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["zero", "fixed:9"])
def test_rows_with_padding_and_decoding_step_by_step(model, bank, position, monkeypatch):
    monkeypatch.setattr("palimpsest.context.extended_mind.LOGITS", 1000)  # in blocks of a few queries
    method, ids, mask = ExtendedMind(topk=3, position=position), random_ids(16, rows=2), torch.ones(2, 16, dtype=torch.long)
    mask[1, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = logits(model, method, bank, ids, attention_mask=mask, position_ids=positions)
    alone = logits(model, method, bank, ids[1:, 5:])
    torch.testing.assert_close(together[1, 5:], alone[0], atol=1e-5, rtol=1e-5)
    with torch.no_grad(), method(model, bank) as session:
        out, cache = [], None
        for token in ids[1:, 5:].T[:, None]:
            step = session.model(token, past_key_values=cache, use_cache=True)
            out, cache = [*out, step.logits], step.past_key_values
    torch.testing.assert_close(torch.cat(out, 1), alone, atol=1e-5, rtol=1e-5)


def test_layers_are_named_from_both_ends(model, bank):
    ids = random_ids(12)
    assert torch.equal(logits(model, ExtendedMind(layers=[-1]), bank, ids), logits(model, ExtendedMind(layers=(1,)), bank, ids))
    assert ExtendedMind(**json.loads(json.dumps({"layers": [0, 1]}))) == ExtendedMind(layers=(0, 1))


def test_long_texts_go_through_a_window(model):
    mind = ExtendedMind(stride=5, window=9)
    bank = mind.memorize(model, TEXT)
    assert bank.ids.tolist() == TEXT
    for begin, end, new in ((0, 9, 9), (5, 14, 5), (10, 19, 5), (15, 23, 4)):
        k = captured(model, torch.tensor([TEXT[begin:end]]))[1][1][0]
        torch.testing.assert_close(bank.keys[1][:, end - new : end], k[:, -new:], atol=1e-6, rtol=1e-6)


def test_documents_are_read_apart_and_special_tokens_left_out(model):
    mind = ExtendedMind()
    first, second = mind.memorize(model, [1, *TEXT[:5]], special=[1]), mind.memorize(model, TEXT[5:])
    together = mind.memorize(model, [[1, *TEXT[:5]], TEXT[5:]], special=[1])
    joined = MemoryBank.join([first, second])
    for layer in (0, 1):
        torch.testing.assert_close(together.keys[layer], joined.keys[layer])
    assert together.ids.tolist() == joined.ids.tolist() == TEXT
    assert together.documents.tolist() == joined.documents.tolist() == [0] * 5 + [1] * 18
    assert ExtendedMind(remove_special=False).memorize(model, [1, 2], special=[1]).ids.tolist() == [1, 2]


def test_saved_banks_come_back_and_can_be_named(model, bank, tmp_path):
    file = tmp_path / "bank.safetensors"
    bank.save(file)
    loaded = MemoryBank.load(file)
    assert loaded.ids.tolist() == TEXT
    assert loaded.model == bank.model
    assert all(torch.equal(loaded.keys[layer], bank.keys[layer]) for layer in bank.keys)
    ids = random_ids(12)
    assert torch.equal(logits(model, ExtendedMind(bank=str(file)), None, ids), logits(model, ExtendedMind(), bank, ids))


def test_banks_of_other_models_and_files_that_are_none(model, bank, tmp_path):
    with pytest.raises(InputError, match="another model"), ExtendedMind()(tiny_llama(seed=1), bank):
        pass
    with pytest.raises(InputError, match="different models"):
        MemoryBank.join([bank, ExtendedMind().memorize(tiny_llama(seed=1), TEXT)])
    with pytest.raises(ModelNotFoundError):
        MemoryBank.load(tmp_path / "none")
    (tmp_path / "text").write_text("no bank")
    with pytest.raises(InputError, match="no memory bank"):
        MemoryBank.load(tmp_path / "text")


@pytest.mark.parametrize(
    "settings",
    [{"topk": -1}, {"sim_threshold": 3.0}, {"stride": 0}, {"stride": 9, "window": 8}, {"layers": "last"}, {"position": "fixed:x"}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(InputError):
        ExtendedMind(**settings)


def test_what_does_not_fit_the_model(model):
    with pytest.raises(InputError, match="2 layers"), ExtendedMind(layers=(2,))(model):
        pass
    with pytest.raises(InputError, match="no token"):
        ExtendedMind().memorize(model, [])
    with pytest.raises(InputError, match="context 64"):
        ExtendedMind().memorize(model, [2] * 65)
    with ExtendedMind()(model) as session, pytest.raises(InputError, match="cite=True"):
        session.citations()
