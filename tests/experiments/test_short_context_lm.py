"""The model of 256 tokens: its rows, what it is never shown, and that it is a function of its configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from palimpsest.errors import InputError
from palimpsest.evaluation.haystack import Recipe
from palimpsest.experiments import short_context_lm
from palimpsest.experiments.planted_texts import base_text
from palimpsest.experiments.short_context_lm import (
    SMOKE,
    ShortBatches,
    ShortLMConfig,
    _texts,
    build,
    held_out_haystack,
    held_out_rows,
    tokenizer,
    trained,
    within_length,
)


@pytest.fixture(autouse=True)
def novels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A part of the shipped text, whatever the machine has, and a cache of the test's own."""
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    base = base_text()
    texts = short_context_lm.ShortTexts("novels", tuple(base.train[:600]), (tuple(base.held_out[:200]),))
    monkeypatch.setattr(short_context_lm, "short_texts", lambda: texts)


def test_the_model_is_as_large_as_said() -> None:
    config = ShortLMConfig()
    model = build(config)
    assert sum(p.numel() for p in model.parameters()) == 2_098_304
    assert model.config.max_position_embeddings == config.length == 256
    exponent = torch.arange(0, 32, 2) / 32
    assert torch.allclose(build(replace(SMOKE, width=64, theta=1000.0)).model.rotary_emb.inv_freq, 1000.0**-exponent)


def test_training_is_a_function_of_the_configuration_and_is_kept(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    model = trained(SMOKE, tmp_path / "a", progress=lambda *at: steps.append(at))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    again = trained(SMOKE, tmp_path / "b")
    assert model.fingerprint == again.fingerprint
    kept = trained(SMOKE, tmp_path / "a", progress=lambda *at: pytest.fail("trained again"))
    assert kept.fingerprint == model.fingerprint
    assert kept.context_length == SMOKE.length
    assert trained(replace(SMOKE, seed=1), tmp_path / "a").fingerprint != model.fingerprint
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 2
    assert len(list((tmp_path / "a").glob("tokenizer-*.json"))) == 1


def test_a_first_stage_of_short_rows_with_keys_comes_before(tmp_path: Path) -> None:
    config = replace(SMOKE, vocab_size=1024, length=256, rows=8, first_steps=2, passkey_share=0.5, answers_only=True, init=0.06)
    (short, first), (whole, second) = config.stages
    assert (short.length, short.passkey_share, first.steps) == (128, 0.875, 2)
    assert (whole, second.steps) == (config, 3)
    batch = ShortBatches(short, tokenizer(config, tmp_path))[0]
    assert batch.input_ids.shape == (8, 128)
    assert torch.equal(batch.labels[0, :-1], batch.input_ids[0, 1:])  # a row of text
    for row, labels in zip(batch.input_ids[1:], batch.labels[1:], strict=True):
        text, asked = (tokenizer(config, tmp_path).decode([i for i in ids if i != -100]) for ids in (row.tolist(), labels.tolist()))
        assert asked == "".join(part.removesuffix(".")[-5:] for part in text[text.index("\nWhat is the pass") :].strip().split("\n"))
    steps: list[tuple[int, int]] = []
    model = trained(config, tmp_path, progress=lambda *at: steps.append(at))
    assert steps == [(i, 5) for i in range(1, 6)]
    assert trained(config, tmp_path, progress=lambda *at: pytest.fail("trained again")).fingerprint == model.fingerprint
    assert trained(replace(config, first_steps=0), tmp_path).fingerprint != model.fingerprint


def test_weights_begin_as_wide_as_said() -> None:
    for init in (0.02, 0.06):
        assert abs(build(replace(ShortLMConfig(), init=init)).lm_head.weight.std().item() / init - 1) < 0.01


def test_tokens_within_the_trained_length_are_those_of_the_row() -> None:
    rows = np.arange(80).reshape(2, 40)
    near = within_length(rows, 24, 8)
    assert near.shape == (2, 8)
    assert np.array_equal(near[:, 4:], rows[:, 24:28])
    for start in (3, 37):
        with pytest.raises(InputError, match=f"start is {start}"):
            within_length(rows, start, 8)


def test_rows_hold_the_keys_that_are_asked_for_and_end_with_the_answers() -> None:
    config = replace(SMOKE, vocab_size=1024, length=256, passkey_share=0.5)
    own = tokenizer(config)
    batches = ShortBatches(config, own)
    seen = set()
    for k in range(12):
        batch = batches[k]
        assert batch.input_ids.shape == (4, 256)
        assert torch.equal(batch.input_ids, batches[k].input_ids)
        for row in batch.input_ids[2:]:
            text = own.decode(row.tolist())
            questions = text[text.index("\nWhat is the pass key") :].strip().split("\n")
            seen.add(len(questions))
            for question in questions:
                name = question.split("key of ")[1].split("?")[0] if " of " in question else None
                key = question.removesuffix(".")[-5:]
                needle = f"The pass key of {name} is {key}. " if name else f"The pass key is {key}. Remember it. {key} is the pass key. "
                assert needle in text[: text.index("\nWhat is")]
    assert seen == {1, 2, 3, 4}


def test_what_is_held_out_is_not_trained_on() -> None:
    texts = _texts("")
    assert texts.source == "the laboratory's novels"
    train = set(texts.train)
    assert sum(text in train for part in texts.held_out for text in part if len(text) > 100) <= 1  # a letter that is quoted twice
    own = tokenizer(SMOKE)
    rows = held_out_rows(own, 6, 40)
    assert rows.shape == (6, 40)
    assert len({row.tobytes() for row in rows}) == 6
    text = own.decode(held_out_haystack(own).make(Recipe((), (), 400)).ids)
    assert text.strip() in "\n".join(base_text().held_out[:200])
    with pytest.raises(InputError, match="rows of"):
        held_out_rows(own, 10, 10**7)


def test_the_data_folder_is_used_where_it_is_whole(tmp_path: Path) -> None:
    assert _texts(str(tmp_path)).source == "the laboratory's novels"
    folder = tmp_path / "data"
    (folder / "wikitext-2").mkdir(parents=True)
    (folder / "kjv-bible").mkdir()
    for part in ("valid", "test"):
        articles = "".join(f" = {part} {i} = \n \n It is text . \n \n = = Part = = \n \n More of it . \n" for i in range(3))
        (folder / "wikitext-2" / f"{part}.txt").write_text(" \n" + articles, encoding="utf-8")
    verses = "".join(f"Ge\t{i}\t{j}\tVerse {i}, {j}.\n" for i in range(100) for j in range(2))
    (folder / "kjv-bible" / "kjv.tsv").write_text(verses, encoding="utf-8")
    texts = _texts(str(folder))
    assert texts.source == "WikiText-2 and the King James Bible"
    assert len(texts.train) == 3 + 5
    assert [len(part) for part in texts.held_out] == [3, 95]
    assert any(text.startswith(" = valid 0 = ") and "= = Part = =" in text for text in texts.train)
    assert not any("test" in text for text in texts.train)
    assert "Verse 4, 0.\nVerse 4, 1." in texts.train
    assert "Verse 5, 0.\nVerse 5, 1." in texts.held_out[1]


@pytest.mark.parametrize("wrong", [{"theta": 1.0}, {"passkey_share": 1.5}, {"length": 1}, {"rows": 0}, {"init": 0.0}, {"first_steps": -1}])
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        ShortLMConfig(**wrong)  # type: ignore[arg-type]


def test_rows_longer_than_the_text_and_a_vocabulary_below_the_bytes_are_refused() -> None:
    own = tokenizer(SMOKE)
    with pytest.raises(InputError, match="A byte-level"):
        tokenizer(replace(SMOKE, vocab_size=256))
    with pytest.raises(InputError, match="shorter rows"):
        ShortBatches(replace(SMOKE, length=10**8), own)[0]


def test_held_out_rows_come_from_the_sources_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = short_context_lm.ShortTexts("test", ("a",), (("b" * 50,), ("c" * 50,)))
    monkeypatch.setattr(short_context_lm, "short_texts", lambda: texts)
    own = tokenizer(SMOKE)
    rows = held_out_rows(own, 3, 10)
    assert [set(own.decode(np.array(row))) for row in rows] == [{"b"}, {"c"}, {"b", *"<|endoftext|>"}]
