"""Reversible embeddings: what the table holds, its controls, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.evaluation.reversible import measure_reversible, random_rows
from palimpsest.latent import MemoryTokens
from palimpsest.measurement import Measurement

TEXTS = ["In the beginning was the word", "A palimpsest is a page", "The quick brown fox jumps"]


@pytest.fixture(scope="module")
def measured(tiny_model):
    return measure_reversible(tiny_model, TEXTS, (4, 1), random=2, seed=3, n_tokens=4, lr=0.1, max_steps=250)


def test_the_table_says_what_happened(measured, tiny_model):
    table = measured.table
    assert table.select("kind", "length", "sample").rows() == [
        (kind, length, i) for length in (1, 4) for kind, n in (("text", 3), ("random", 2)) for i in range(n)
    ]
    assert table.filter("exact").height >= 3
    for row in table.iter_rows(named=True):
        assert (row["text"] == row["output"]) >= row["exact"]
        assert row["exact"] == (row["accuracy"] == 1)
        assert row["exact"] <= (row["prefix"] == row["length"])
        assert 0 <= row["prefix"] <= row["length"]
    short = table.filter((table["kind"] == "text") & (table["length"] == 4))
    assert short["text"].to_list() == [tiny_model.tokenizer.decode(tiny_model.tokenizer.encode(text)[:4]) for text in TEXTS]


def test_the_bits_are_the_code_length_behind_the_untrained_vector(measured, tiny_model):
    import torch

    tokens = MemoryTokens(tiny_model)
    row = measured.table.filter((measured.table["kind"] == "text") & (measured.table["length"] == 4)).row(0, named=True)
    ids = tiny_model.tokenizer.encode(TEXTS[0])[:4]
    fed = torch.cat([tokens.initial(4), tiny_model.model.get_input_embeddings()(torch.tensor(ids))])[None]
    logprobs = tiny_model.model(inputs_embeds=fed).logits[0, 3:].log_softmax(-1).detach()
    expected = -sum(float(logprobs[i, t]) for i, t in enumerate([*ids, 1])) / math.log(2)
    assert row["bits"] == pytest.approx(expected, abs=1e-3)
    held = measured.table.filter("exact")
    assert (held["bits"] <= 16 * 4 * 32).all()  # more cannot stand in a vector of half precision


def test_the_controls_do_not_give_the_text(measured):
    assert not measured.table["untrained"].any()
    assert not measured.table["swapped"].any()


def test_the_summary_follows_from_the_table(measured):
    for level in measured.summary["levels"]:
        rows = measured.table.filter((measured.table["kind"] == level["kind"]) & (measured.table["length"] == level["length"]))
        assert level["n"] == rows.height
        assert level["exact"]["estimate"] == pytest.approx(rows["exact"].sum() / rows.height)
        assert level["exact"]["low"] < level["exact"]["high"]
        assert level["steps"] == pytest.approx(float(rows["steps"].to_numpy().mean()))
    reached = [level["length"] for level in measured.summary["levels"] if level["kind"] == "text" and level["exact"]["estimate"] >= 0.5]
    assert measured.summary["reach"] == max(reached, default=None)
    assert [series.name for series in measured.curves["reversible"].series] == ["texts", "random tokens"]


def test_the_same_seed_gives_the_same_table(measured, tiny_model):
    again = measure_reversible(tiny_model, TEXTS, (1, 4), random=2, seed=3, n_tokens=4, lr=0.1, max_steps=250)
    assert again.table.equals(measured.table)
    assert Measurement.from_json(measured.to_json()).table.height == measured.table.height


def test_one_text_has_no_other_to_swap_with(tiny_model):
    heard = []
    alone = measure_reversible(tiny_model, TEXTS[:1], (2,), random=0, max_steps=1, progress=lambda *done: heard.append(done))
    assert alone.table["swapped"].to_list() == [None]
    assert alone.summary["reach"] is None
    assert heard == [(1, 1)]


def test_random_rows_are_ordinary_and_seeded(tiny_model):
    rows = random_rows(tiny_model, 40, 50, seed=1)
    ids = np.concatenate(rows)
    assert ids.min() >= 2
    assert len(set(ids.tolist())) > 300  # 0 and 1 are special, all others are drawn from
    assert np.array_equal(np.concatenate(random_rows(tiny_model, 40, 50, seed=1)), ids)
    assert not np.array_equal(np.concatenate(random_rows(tiny_model, 40, 50, seed=2)), ids)


@pytest.mark.parametrize(
    ("texts", "lengths", "options", "says"),
    [
        ([], (4,), {}, "0 texts"),
        ("ab", (4,), {}, "list of texts"),
        (TEXTS, (), {}, "lengths"),
        (TEXTS, (0, 4), {}, "1 or more"),
        (["a"], (4,), {}, "Text 0 has 1 tokens"),
        (TEXTS, (4,), {"random": -1}, "random is -1"),
        (TEXTS, (4,), {"optimizer": "newton"}, "newton"),
    ],
)
def test_bad_input_is_refused(tiny_model, texts, lengths, options, says):
    with pytest.raises(InputError, match=says):
        measure_reversible(tiny_model, texts, lengths, **options)
