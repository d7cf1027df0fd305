"""The catalogue: every record leads to a method that is what the record says; unknown names; recommendations that can differ."""

from __future__ import annotations

import importlib

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.context import ContextMethod, make, method, methods, recommend
from palimpsest.context.options import build_method
from palimpsest.context.prefill import prefill
from palimpsest.errors import InputError

CONFIG = LlamaConfig(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, max_position_embeddings=1024, dtype="float32"
)
ENTRY = 3 * 2 * (2 * 16 * 4 + 4)


@pytest.mark.parametrize("record", methods(), ids=lambda record: record.name)
def test_every_record_leads_to_its_method(record):
    module, _, name = record.entry_point.partition(":")
    made = getattr(importlib.import_module(module), name)
    assert issubclass(made, ContextMethod)
    assert record.phase in {"inference", "finetune", "pretrain"}
    assert record.family.partition(":")[0] in {"position", "attention", "cache", "input"}
    assert record.positions in {"original", "compact", "scaled"}
    assert record.source
    built = make(record.name, **record.suggest(4096, 1024, 512))
    assert isinstance(built, made)
    assert hasattr(built, "budget") == record.has_budget
    assert 0 < record.held(4096, 512) <= 4096
    assert 0 < record.read(4096, 512) <= 4096
    if record.has_budget:
        assert record.held(4096, 512) == record.held(8192, 512) == 512
        make(record.name, **record.suggest(4096, 1024, record.smallest))


def test_names_are_unique_and_unknown_ones_are_answered_with_close_ones():
    names = [record.name for record in methods()]
    assert len(set(names)) == len(names)
    assert method("h2o").title.startswith("H2O")
    with pytest.raises(InputError, match=r"no context method 'streaming'.*streaming-llm"):
        make("streaming", budget=4)
    with pytest.raises(InputError, match="full"):
        method("zzzz")
    with pytest.raises(InputError, match=r"no option 'budgett'.*budget"):
        make("h2o", budgett=4)
    with pytest.raises(InputError, match="options are budget, recent"):
        make("h2o")
    with pytest.raises(InputError, match="at least 1"):
        make("h2o", budget=0)


def test_lists_by_family_and_phase():
    assert {record.name for record in methods("position", "finetune")} == {"abf"}
    assert {"h2o", "tova", "snapkv"} <= {record.name for record in methods("cache")}
    with pytest.raises(InputError, match="cache: token eviction"):
        methods("no such family")


def test_what_fits_and_is_exact_comes_first():
    best = recommend(CONFIG, 1000, 1000 * ENTRY)[0]
    assert (best.name, best.fits, best.cache_bytes) == ("full", True, 1000 * ENTRY)
    assert "full attention" in " ".join(best.reasons)


def test_a_small_budget_asks_for_eviction_and_a_known_question_for_snapkv():
    ranked = recommend(CONFIG, 1000, 100 * ENTRY)
    assert ranked[0].options["budget"] == 100
    assert ranked[0].cache_bytes == 100 * ENTRY
    assert not next(line for line in ranked if line.name == "full").fits
    assert recommend(CONFIG, 1000, 100 * ENTRY, question_known=True)[0].name == "snapkv"
    assert recommend(CONFIG, 1000, 200 * ENTRY, batch=2)[0].options["budget"] == 100


def test_a_text_beyond_the_trained_length_asks_for_other_positions():
    ranked = recommend(CONFIG, 4096, 5000 * ENTRY)
    assert ranked[0].name == "yarn"
    assert ranked[0].options == {"factor": 4.0}
    assert recommend(CONFIG, 4096, 100 * ENTRY)[0].name == "streaming-llm"
    assert "abf" not in {line.name for line in ranked}
    assert "abf" in {line.name for line in recommend(CONFIG, 4096, 5000 * ENTRY, can_train=True)}


def test_what_is_kept_of_queries_counts_against_the_bytes():
    """Expected Attention's moments: the rule says as many bytes as its layers hold besides entries."""
    state = method("expected-attention").state(CONFIG)
    model = LlamaForCausalLM(CONFIG).eval()
    with make("expected-attention", budget=50)(model) as session:
        cache = prefill(session, torch.arange(60)[None]).cache
    assert state == sum(tensor.nbytes for layer in cache.layers for name, tensor in layer.rows.items() if name.startswith("query"))
    line = next(line for line in recommend(CONFIG, 1000, state + 100 * ENTRY) if line.name == "expected-attention")
    assert (line.options["budget"], line.cache_bytes) == (100, state + 100 * ENTRY)


def test_numbers_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="length is 0"):
        recommend(CONFIG, 0, 100)


@pytest.mark.parametrize("words", [{}, {"bank": "none"}])
def test_a_method_that_would_do_nothing_is_refused(words: dict[str, str]) -> None:
    with pytest.raises(InputError, match="does nothing without bank"):
        build_method("extended-mind", words)
