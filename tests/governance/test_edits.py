"""ROME and MEMIT on random models of both styles: the equations, what stays untouched, the way back, and edits that do not take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tests.governance.conftest import GENERAL

from palimpsest.errors import ContextOverflowError, EditFailedError, InputError
from palimpsest.governance.actions import rome
from palimpsest.governance.actions.covariance import RIDGE, key_moments
from palimpsest.governance.actions.decoder import captured_keys, down_projections, feed, logits_of
from palimpsest.governance.actions.edit_target import EditSettings, contexts_of, draw_prefixes, mean_keys, value_change
from palimpsest.governance.actions.memit import MemitEdit, mean_states, spread_update
from palimpsest.governance.actions.rome import RomeEdit, rank_one
from palimpsest.governance.items import FactChange
from palimpsest.governance.mediation import mediation, untouched
from palimpsest.governance.system import System
from palimpsest.models import HFModel

# the cue ends with the subject and the values are one token, so that an edit can reach the answer in a random model
FACT = FactChange("Ada Byron", "home", "The home of Ada Byron", "the", "was")
QUICK = EditSettings(steps=15, prefixes=((3, 4),))


def built(style: str, tokenizer, layers: int = 3) -> System:
    """A random decoder of one style."""
    common = {"vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.2}
    llama = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    configs = {
        "llama": lambda: transformers.LlamaConfig(**common, **llama, num_key_value_heads=2, tie_word_embeddings=True),
        "square": lambda: transformers.LlamaConfig(**common, **{**llama, "intermediate_size": 24}, num_key_value_heads=1),
        "gpt2": lambda: transformers.GPT2Config(**common, n_embd=24, n_layer=layers, n_head=2, n_positions=64, n_inner=40),
        "neox": lambda: transformers.GPTNeoXConfig(**common, **llama),
        "opt": lambda: transformers.OPTConfig(
            **common, hidden_size=24, ffn_dim=40, num_hidden_layers=layers, num_attention_heads=2, word_embed_proj_dim=24
        ),
        "qwen": lambda: transformers.Qwen2Config(**common, **llama, num_key_value_heads=2),
        "mixtral": lambda: transformers.MixtralConfig(**common, **llama, num_key_value_heads=2, num_local_experts=2),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(configs[style]()).eval()
    if style == "gpt2":  # biases are 0 in a new model: an edit must not mistake W k + b for W k
        with torch.no_grad():
            for block in model.transformer.h:
                block.mlp.c_proj.bias.normal_(0, 0.5)
    return System.of(HFModel(model, tokenizer, name=style, bos="always" if style == "gpt2" else "never"), GENERAL * 3)


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request, tiny_tokenizer) -> System:
    return built(request.param, tiny_tokenizer)


@pytest.mark.parametrize(
    ("style", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("square", "model.layers.1.mlp.down_proj.weight"),
        ("qwen", "model.layers.1.mlp.down_proj.weight"),
        ("gpt2", "transformer.h.1.mlp.c_proj.weight"),
        ("neox", "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"),
        ("opt", "model.decoder.layers.1.fc2.weight"),
    ],
)
def test_the_down_projection_is_found_by_structure(tiny_tokenizer, style, name):
    system = built(style, tiny_tokenizer)
    places = down_projections(system.model)
    assert [place.layer for place in places] == [0, 1, 2]
    assert places[1].name == name
    assert places[1].weight.shape == (24, 24 if style == "square" else 40)
    assert places[1].weight.data_ptr() == dict(system.model.model.named_parameters())[name].data_ptr()
    fed = feed(system.model, [[5, 6, 7]])
    outputs = {}
    hook = places[1].module.register_forward_hook(lambda module, inputs, output: outputs.update(value=output))
    with torch.no_grad(), captured_keys(places) as keys:
        logits_of(system.model, fed)
    hook.remove()
    bias = getattr(places[1].module, "bias", None)
    value = keys[1] @ places[1].weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(value, outputs["value"].reshape(value.shape))


def test_experts_are_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="no layers that each end in one MLP"):
        down_projections(built("mixtral", tiny_tokenizer).model)


def test_moments_against_a_loop_over_tokens(decoder, tmp_path):
    places = down_projections(decoder.model)[1:]
    found = key_moments(decoder, places, tmp_path)
    for place in places:
        keys = []
        for row in decoder.general:
            with torch.no_grad(), captured_keys([place]) as captured:
                logits_of(decoder.model, feed(decoder.model, [row]))
            keys += [key.double() for key in captured[place.layer][0]]
        moment = sum(torch.outer(key, key) for key in keys) / len(keys)
        moment += RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
        torch.testing.assert_close(found[place.layer], moment, rtol=1e-5, atol=1e-8)


def test_moments_are_kept_for_these_weights_and_this_text(decoder, tmp_path, monkeypatch):
    places = down_projections(decoder.model)
    first = key_moments(decoder, places, tmp_path)
    calls = []
    monkeypatch.setattr("palimpsest.governance.actions.covariance.logits_of", lambda *a: calls.append(1) or logits_of(*a))
    assert all(torch.equal(value, first[layer]) for layer, value in key_moments(decoder, places, tmp_path).items())
    assert not calls
    next(tmp_path.iterdir()).write_bytes(b"damaged")
    assert all(torch.equal(value, first[layer]) for layer, value in key_moments(decoder, places, tmp_path).items())
    assert calls
    with torch.no_grad():
        next(decoder.model.model.parameters()).mul_(1.1)
    key_moments(decoder, places, tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    decoder.general = decoder.general[:5]
    key_moments(decoder, places, tmp_path)
    assert len(list(tmp_path.iterdir())) == 9
    decoder.general = ()
    with pytest.raises(InputError, match="no general text"):
        key_moments(decoder, places, tmp_path)


def test_rank_one_is_the_least_change_that_writes_the_value():
    torch.manual_seed(1)
    x = torch.randn(60, 7, dtype=torch.float64)
    moment, key, delta = x.T @ x / 60, torch.randn(7, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    update = rank_one(key, delta, moment)
    torch.testing.assert_close(update @ key, delta)
    cost = torch.trace(update @ moment @ update.T)
    for _ in range(20):  # any other change that writes the value disturbs ordinary keys more
        other = torch.randn(4, 7, dtype=torch.float64)
        other += torch.outer(delta - other @ key, key) / key.dot(key)
        torch.testing.assert_close(other @ key, delta)
        assert torch.trace(other @ moment @ other.T) > cost


def test_rome(decoder, tmp_path):
    before = decoder.shadow()
    handle = RomeEdit([FACT], 1, QUICK, tmp_path).apply(decoder)
    name = down_projections(decoder.model)[1].name
    old, new = (down_projections(system.model)[1].weight.double() for system in (before, decoder))
    # the key, one row at a time and without padding
    prefixes = draw_prefixes(before, QUICK)
    contexts = contexts_of(before, FACT, prefixes)
    naive = []
    for row, lookup in zip(contexts.rows, contexts.lookups, strict=True):
        fed = feed(before.model, [row])
        with torch.no_grad(), captured_keys(down_projections(before.model)) as keys:
            logits_of(before.model, fed)
        naive.append(keys[1][0, lookup + fed.offset].double())
    key, value = torch.stack(naive).mean(dim=0), handle.details["value"]
    torch.testing.assert_close(handle.details["key"], key, rtol=1e-4, atol=1e-6)
    assert float((new @ key - value).norm() / value.norm()) < 1e-4
    assert float((old @ key - value).norm() / value.norm()) > 1e-2
    singular = torch.linalg.svdvals(new - old)
    assert singular[1] < 1e-4 * singular[0]
    assert decoder.prefers([FACT.prompt], ["the"], ["was"])[0]
    assert untouched(before, decoder, [name]) == []
    assert mediation(before, decoder, [name], [FACT]) == pytest.approx(1)
    RomeEdit([FACT], 1, QUICK, tmp_path).revert(decoder, handle)
    assert decoder.state == before.state
    assert all(p.requires_grad for p in decoder.model.model.parameters())


@pytest.mark.parametrize(("said", "written"), [(True, 1), (False, 3)])
def test_rome_writes_again_only_what_was_displaced(decoder, tmp_path, monkeypatch, said, written):
    once = decoder.shadow()
    RomeEdit([FACT], 1, QUICK, tmp_path).apply(once)
    found = []
    monkeypatch.setattr(rome, "value_change", lambda *given: found.append(value_change(*given)) or found[-1])
    monkeypatch.setattr(System, "recalls", lambda self, prompts, values: np.full(len(prompts), said))
    RomeEdit([FACT], 1, replace(QUICK, rounds=3), tmp_path).apply(decoder)
    assert len(found) == written
    assert (decoder.state == once.state) is said


def test_the_subject_is_looked_up_at_its_last_token(decoder):
    contexts = contexts_of(decoder, FACT, [[], [9, 8]])
    text = decoder.model.tokenizer.decode(contexts.rows[1][2 : contexts.lookups[1] + 1])
    assert text == "The home of Ada Byron"
    assert decoder.model.tokenizer.decode(contexts.rows[0][: contexts.lookups[0] + 1]) == "The home of Ada Byron"
    assert decoder.model.tokenizer.decode(contexts.target) == " the"
    middle = contexts_of(decoder, replace(FACT, prompt="Does Ada Byron live in"), [[9]])
    assert decoder.model.tokenizer.decode(middle.rows[0][1 : middle.lookups[0] + 1]) == "Does Ada Byron"


def test_the_value_makes_the_target_likely_within_the_clamp(decoder):
    place = down_projections(decoder.model)[1]
    contexts = contexts_of(decoder, FACT, draw_prefixes(decoder, QUICK))
    state = decoder.state
    for clamp in (0.5, 4.0):
        settings = replace(QUICK, clamp=clamp)
        delta = value_change(decoder, FACT, contexts, place, settings)
        value = place.weight.double() @ mean_keys(decoder, contexts, [place])[1]
        assert float(delta.norm()) <= clamp * float(value.norm()) * (1 + 1e-5)
    assert decoder.state == state
    bias = getattr(place.module, "bias", None)

    def loss(change: torch.Tensor) -> float:
        """The target's loss with the change in place of the value, one context at a time."""
        total = 0.0
        for row, lookup in zip(contexts.rows, contexts.lookups, strict=True):
            fed = feed(decoder.model, [[*row, *contexts.target[:-1]]])

            def replaced(module, inputs, output, at=lookup + fed.offset):
                output = output.clone()
                output[0, at] = inputs[0][0, at] @ place.weight.T + (0 if bias is None else bias) + change.float()
                return output

            hook = place.module.register_forward_hook(replaced)
            with torch.no_grad():
                logits = logits_of(decoder.model, fed)[0, len(row) - 1 + fed.offset :].log_softmax(-1)
            hook.remove()
            total -= float(logits[torch.arange(len(contexts.target)), contexts.target].mean()) / len(contexts.rows)
        return total

    assert loss(delta) < 0.7 * loss(torch.zeros_like(delta))


def test_spread_update_is_the_formula(tmp_path):
    torch.manual_seed(2)
    x = torch.randn(50, 6, dtype=torch.float64)
    moment, keys, rest = x.T @ x / 50, torch.randn(6, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    naive = rest @ keys.T @ torch.linalg.inv(0.7 * moment + keys @ keys.T)
    torch.testing.assert_close(spread_update(keys, rest, moment, 0.7), naive)
    one = spread_update(keys[:, :1], rest[:, :1], moment, 0.0)
    torch.testing.assert_close(one, rank_one(keys[:, 0], rest[:, 0], moment))


@pytest.mark.parametrize("weight", [0.0, 0.02])
def test_memit_with_one_fact_goes_the_way_of_rome(decoder, tmp_path, weight):
    before, other = decoder.shadow(), decoder.shadow()
    rome = RomeEdit([FACT], 1, QUICK, tmp_path).apply(decoder)
    MemitEdit([FACT], [1], weight, QUICK, tmp_path).apply(other)
    old, one, two = (down_projections(system.model)[1].weight.double() for system in (before, decoder, other))
    a, b = (one - old).flatten(), (two - old).flatten()
    assert float(a @ b / (a.norm() * b.norm())) > 1 - 1e-5
    key = rome.details["key"]
    moment = key_moments(before, down_projections(before.model)[1:2], tmp_path)[1]
    scale = float(key @ torch.linalg.solve(moment, key))
    assert float(b.norm() / a.norm()) == pytest.approx(scale / (weight * len(key) + scale), rel=1e-4)


def test_memit_writes_many_facts_over_several_layers(decoder, tmp_path):
    subjects = ("Ada Byron", "Bo Lund", "Cy")
    facts = [replace(FACT, subject=name, prompt=f"The home of {name}", target="page", old="hands") for name in subjects]
    likelier = decoder.prefers([fact.prompt for fact in facts], ["page"] * 3, ["hands"] * 3)
    # three random facts in so small a model need not all take: here it is the states that count
    facts = [fact if kept else replace(fact, target="hands", old="page") for fact, kept in zip(facts, likelier, strict=True)]
    before = decoder.shadow()
    settings = replace(QUICK, clamp=8.0)
    edit = MemitEdit(facts, [0, 1], 0.0, settings, tmp_path)
    handle = edit.apply(decoder)
    # with λ = 0 the last layer makes up for whatever the layers before it left: the states are where they should be
    contexts = [contexts_of(before, fact, draw_prefixes(before, settings)) for fact in facts]
    reached = mean_states(decoder, contexts, down_projections(decoder.model)[1])
    torch.testing.assert_close(reached, handle.details["goal"], rtol=1e-3, atol=1e-3)
    names = [place.name for place in down_projections(decoder.model)[:2]]
    assert untouched(before, decoder, names) == []
    for place, other in zip(down_projections(before.model)[:2], down_projections(decoder.model)[:2], strict=True):
        singular = torch.linalg.svdvals(other.weight.double() - place.weight.double())
        assert singular[2] > 1e-4 * singular[0] > singular[3]
    edit.revert(decoder, handle)
    assert decoder.state == before.state


@pytest.mark.parametrize("kind", [RomeEdit, MemitEdit])
def test_an_edit_that_does_not_take_leaves_the_weights(decoder, tmp_path, kind):
    pair = ("the", "was") if decoder.prefers([FACT.prompt], ["was"], ["the"])[0] else ("was", "the")
    fact, before = replace(FACT, target=pair[0], old=pair[1]), decoder.state
    weak = replace(QUICK, steps=1, clamp=1e-6)
    with pytest.raises(EditFailedError, match=r"Ada Byron / home does not take: log p per token of"):
        kind([fact], **{"layer": 1} if kind is RomeEdit else {"layers": [1]}, settings=weak, cache=tmp_path).apply(decoder)
    with pytest.raises(EditFailedError, match="not what the model writes"):
        kind([replace(fact, old=None)], **{"layer": 1} if kind is RomeEdit else {"layers": [1]}, settings=weak, cache=tmp_path).apply(
            decoder
        )
    assert decoder.state == before


def test_bad_edits(decoder, tmp_path):
    with pytest.raises(InputError, match="no facts"):
        RomeEdit([])
    with pytest.raises(InputError, match="no new value"):
        MemitEdit([replace(FACT, target=None)])
    with pytest.raises(InputError, match=r"layers are \[3\]"):
        RomeEdit([FACT], 3, QUICK, tmp_path).apply(decoder)
    with pytest.raises(InputError, match="layers are"):
        MemitEdit([FACT], [1, 1], settings=QUICK, cache=tmp_path).apply(decoder)
    with pytest.raises(InputError, match="weight"):
        MemitEdit([FACT], weight=-1)
    with pytest.raises(InputError, match="settings"):
        EditSettings(steps=0)
    state = decoder.state
    long = replace(FACT, prompt="The home " + "and the house and the flat " * 10 + "of Ada Byron")
    with pytest.raises(ContextOverflowError):
        RomeEdit([long], 1, QUICK, tmp_path).apply(decoder)
    assert decoder.state == state


def test_prefixes_and_cost(decoder):
    first, again = draw_prefixes(decoder, QUICK), draw_prefixes(decoder, QUICK)
    assert first == again != draw_prefixes(decoder, replace(QUICK, seed=1))
    assert [len(prefix) for prefix in first] == [0, 5, 5, 5]
    one, two = (RomeEdit([FACT] * n, 1, QUICK).estimate_cost(decoder) for n in (1, 2))
    assert one.parameters == two.parameters == 24 * 40
    assert two.backward == 2 * one.backward
    assert one.tokens - one.backward == sum(len(row) for row in decoder.general)
    assert np.isclose(MemitEdit([FACT], [0, 1]).estimate_cost(decoder).parameters, 2 * 24 * 40)


def test_mediation_finds_an_effect_from_elsewhere(decoder, tmp_path):
    after = decoder.shadow()
    RomeEdit([FACT], 1, QUICK, tmp_path).apply(after)
    places = down_projections(decoder.model)
    assert mediation(decoder, after, [places[0].name], [FACT]) == pytest.approx(0, abs=1e-6)
    assert untouched(decoder, after, [places[0].name]) == [places[1].name]
    with pytest.raises(InputError, match="no effect"):
        mediation(decoder, decoder.shadow(), [places[0].name], [FACT])
    with pytest.raises(InputError, match="edited weights"):
        mediation(decoder, after, ["x"], [FACT])
    with pytest.raises(InputError, match="both a new and an old"):
        mediation(decoder, after, [places[0].name], [replace(FACT, old=None)])


def test_the_lookup_may_be_at_the_end_of_the_cue(decoder, tmp_path):
    fact = replace(FACT, prompt="Ada Byron lives in")
    contexts = contexts_of(decoder, fact, [[], [9, 8]], "cue")
    assert contexts.lookups == [len(row) - 1 for row in contexts.rows]
    settings = replace(QUICK, lookup="cue")
    before = decoder.shadow()
    handle = RomeEdit([fact], 2, settings, tmp_path).apply(decoder)
    place = down_projections(decoder.model)[2]
    key = mean_keys(before, contexts_of(before, fact, draw_prefixes(before, settings), "cue"), down_projections(before.model)[2:])[2]
    value = handle.details["value"]
    assert float((place.weight.double() @ key - value).norm() / value.norm()) < 1e-4
    assert decoder.prefers([fact.prompt], ["the"], ["was"])[0]
    with pytest.raises(InputError, match="lookup"):
        EditSettings(lookup="verb")
