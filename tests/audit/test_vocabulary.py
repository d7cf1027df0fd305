"""Vocabularies and memorization: codings against their definition, models against their budget, figures against naive ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit import vocabulary
from palimpsest.audit.vocabulary import VocabularySweep
from palimpsest.audit.vocabulary_coding import BYTES, END, FILLER, FIRST_LABEL, cut_of, train_coding, with_aliases
from palimpsest.audit.vocabulary_training import (
    EpochReadings,
    RedrawnBatches,
    Shape,
    equal_model,
    label_hits,
    target_loss,
    train_on,
)
from palimpsest.errors import InputError
from palimpsest.training.batch import IGNORE
from palimpsest.training.examples import Example, ExampleBatches, packed
from palimpsest.training.loop import causal_lm_loss

TEXTS = [f"what is {a} and {b} ?" for a in ("this", "that", "memory") for b in ("paper", "a page", "some ink", "naïve prose")]
SHAPE = Shape(parameters=22_000, width=16, layers=1, heads=2, epochs=2, batch_size=4, lr=3e-3)
CODINGS = {merges: train_coding(TEXTS, merges) for merges in (0, 12)}


@pytest.fixture(scope="module")
def sweep():
    return VocabularySweep(TEXTS, (12, 0), aliases=[(12, 3)], lengths=[(12, 0)], shape=SHAPE)


# --- codings ------------------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40), st.sampled_from([0, 12]), st.integers(1, 4), st.booleans())
def test_every_coding_gives_the_text_back(text, merges, aliases, stretched):
    coding = CODINGS[merges]
    if aliases > 1:
        coding = with_aliases(coding, aliases, seed=3)
    if stretched:
        coding = replace(coding, as_long_as=CODINGS[0])
    ids = coding.encode(text)
    assert coding.decode(ids) == text
    assert ids == coding.encode(text)
    assert all(i == FILLER or coding.reserved <= i < coding.vocab_size for i in ids)
    assert (FILLER in ids) <= stretched


def test_bytes_are_bytes():
    ids = np.array(CODINGS[0].encode("naïve"))
    assert len(ids) == len("naïve".encode())
    assert CODINGS[0].vocab_size == BYTES + 4
    assert train_coding(TEXTS, 0, labels=5).vocab_size == BYTES + 7


def test_aliases_change_the_names_and_nothing_else():
    plain, alias = CODINGS[12], with_aliases(CODINGS[12], 4, seed=1)
    assert alias.vocab_size == plain.reserved + 4 * (plain.vocab_size - plain.reserved)
    drawn = set()
    for text in TEXTS:
        base, other = np.array(plain.encode(text)), np.array(alias.encode(text))
        np.testing.assert_array_equal(plain.reserved + (other - alias.reserved) // 4, base)
        drawn |= set(((other - alias.reserved) % 4).tolist())
    assert drawn == {0, 1, 2, 3}
    assert alias.encode(TEXTS[0]) != with_aliases(CODINGS[12], 4, seed=2).encode(TEXTS[0])


def test_redrawn_aliases_keep_the_tokens_and_leave_ends_and_labels():
    coding = with_aliases(CODINGS[12], 4, seed=1, redraw=True)
    row = [END, *coding.encode(TEXTS[0]), FILLER, END, FIRST_LABEL + 1]
    drawn = [coding.redrawn(row, np.random.default_rng(seed)) for seed in range(20)]
    assert len({tuple(other) for other in drawn}) == 20
    for other in drawn:
        assert coding.decode(other) == TEXTS[0]
        assert [i for i in other if i < coding.reserved] == [END, FILLER, END, FIRST_LABEL + 1]
    assert coding.encode(TEXTS[0]) == coding.encode(TEXTS[0])
    assert (coding.name, with_aliases(CODINGS[12], 4).name) == ("12 merges ×4 redrawn", "12 merges ×4")


def test_batches_redraw_each_time_and_repeat_themselves():
    coding = with_aliases(CODINGS[12], 4, redraw=True)
    rows = [Example((END, *coding.encode(text), END)) for text in TEXTS[:3]]
    data, plain = RedrawnBatches(rows, 3, END, 0, coding), ExampleBatches(rows, 3, END, 0)
    first, later = data[0].input_ids, data[1].input_ids
    assert torch.equal(first, data[0].input_ids)
    assert sorted(coding.decode(row) for row in first.numpy()) == sorted(coding.decode(row) for row in later.numpy()) == sorted(TEXTS[:3])
    assert sorted(map(tuple, first.tolist())) != sorted(map(tuple, later.tolist()))
    for k in range(4):  # the order of the texts is that of the plain batches
        assert [coding.decode(row) for row in data[k].input_ids.numpy()] == [coding.decode(row) for row in plain[k].input_ids.numpy()]
        assert torch.equal(data[k].labels == IGNORE, plain[k].labels == IGNORE)
    assert data.fingerprint != plain.fingerprint
    with pytest.raises(InputError, match="no coding"):
        RedrawnBatches(rows, 3, END, 0)


def test_the_length_control_spreads_the_tokens_evenly():
    plain, long = CODINGS[12], replace(CODINGS[12], as_long_as=CODINGS[0])
    for text in TEXTS:
        base, row = plain.encode(text), long.encode(text)
        assert len(row) == len(CODINGS[0].encode(text))
        assert [i for i in row if i != FILLER] == base
        places = [k for k, i in enumerate(row) if i != FILLER]
        assert places == [k * len(row) // len(base) for k in range(len(base))]
    assert replace(CODINGS[0], as_long_as=CODINGS[12]).encode(TEXTS[0]) == CODINGS[0].encode(TEXTS[0])  # never shorter than it is


@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_at_a_space_is_one_in_every_coding(text):
    cut = cut_of(text, 0.5)
    assert text[cut] == " "
    assert abs(cut - len(text) / 2) == min(
        abs(k - len(text) / 2) for k, letter in enumerate(text) if letter == " " and 0 < k < len(text) - 1
    )
    for coding in (*CODINGS.values(), with_aliases(CODINGS[12], 2), replace(CODINGS[12], as_long_as=CODINGS[0])):
        head, tail = coding.split(text, cut)
        assert (coding.decode(head), coding.decode(tail)) == (text[:cut], text[cut:])
        assert head + tail == coding.encode(text)


def test_a_cut_within_a_token_is_refused():
    with pytest.raises(InputError, match="cannot be cut after 2 characters"):
        CODINGS[12].split("what is", 2)
    assert CODINGS[0].decode(CODINGS[0].split("what is", 2)[0]) == "wh"


def test_merges_that_the_texts_do_not_have_are_refused():
    with pytest.raises(InputError, match=r"have pairs for \d+ merges, not for 4000"):
        train_coding(TEXTS, 4000)
    for bad in ({"merges": -1}, {"merges": 0, "labels": 1}):
        with pytest.raises(InputError, match="Give 0 merges or more"):
            train_coding(TEXTS, **bad)
    with pytest.raises(InputError, match="1 aliases"):
        with_aliases(CODINGS[0], 1)


# --- models and training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [260, 1000, 5000])
def test_models_have_one_size_whatever_the_vocabulary(vocab):
    shape = Shape(parameters=500_000, width=64)
    model = equal_model(vocab, 32, shape, 0)
    assert abs(sum(p.numel() for p in model.parameters()) - 500_000) <= 200
    assert model.get_input_embeddings().weight.shape == (vocab, 64)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(equal_model(vocab, 32, shape, 0).lm_head.weight, model.lm_head.weight)


def test_budgets_that_cannot_be_met_are_refused():
    with pytest.raises(InputError, match="feed-forward units"):
        equal_model(9000, 32, Shape(parameters=500_000, width=64), 0)
    with pytest.raises(InputError, match="twice the heads"):
        equal_model(260, 32, Shape(width=60, heads=4), 0)
    with pytest.raises(InputError, match="nearest model"):
        equal_model(16, 32, Shape(parameters=1_400, width=16, heads=2, layers=1), 0)


def test_the_loss_is_that_of_every_row_alone():
    rows = [Example((5, 6, 7)), Example((8, 9)), Example((5, 6, 7, 8), 3)]
    batch = packed(rows, END)
    model = equal_model(16, 8, replace(SHAPE, parameters=6_000), 0)
    torch.testing.assert_close(target_loss(model, batch), causal_lm_loss(model, batch))  # the masks make no difference
    alone = sum(causal_lm_loss(model, packed([row], END)) for row in rows)
    torch.testing.assert_close(target_loss(model, batch), alone)


def test_label_hits_are_those_of_the_whole_logits():
    model = equal_model(20, 8, replace(SHAPE, parameters=6_000), 1)
    rng = np.random.default_rng(0)
    rows = [[*rng.integers(5, 20, size=n).tolist(), END, FIRST_LABEL + int(rng.integers(3))] for n in (2, 5, 3, 4, 2, 5)]
    expected = []
    for row in rows:
        logits = model(torch.tensor([row[:-1]])).logits[0, -1]
        expected.append(int(logits[FIRST_LABEL : FIRST_LABEL + 3].argmax()) + FIRST_LABEL == row[-1])
    assert label_hits(model, rows, 3, batch_size=4).tolist() == expected
    assert set(expected) == {True, False}


def test_training_learns_labels_by_heart_and_is_read_on_the_way():
    rows = [[10 + k, 12 + k // 2, END, FIRST_LABEL + label] for k, label in enumerate((0, 1, 1, 0, 1, 0, 0, 1))]
    data = ExampleBatches([Example(tuple(row), 3) for row in rows], 3, END, seed=0)
    shape = replace(SHAPE, parameters=6_000, epochs=60)
    readings = EpochReadings(len(data), (1, 60), lambda model: float(label_hits(model, rows, 2).mean()))
    model = train_on(equal_model(30, 8, shape, 0), data, shape, 0, [readings])
    assert label_hits(model, rows, 2).all()
    assert sorted(readings.found) == [1, 60]
    assert readings.found[1] < readings.found[60] == 1.0


# --- the sweep ----------------------------------------------------------------------------------------------------------------------


def test_labels_and_halves_are_exact_and_the_same_for_all(sweep):
    assert np.bincount(sweep.drawn_labels(0)).tolist() == [6, 6]
    assert sweep.members(0).sum() == 6
    assert (sweep.members(0) != sweep.members(1)).any()
    assert list(sweep.arms) == ["0 merges", "12 merges", "12 merges ×3", "12 merges as long as 0"]
    assert [arm.control_of for arm in sweep.arms.values()] == [None, None, "12 merges", "0 merges"]


def test_random_labels_have_a_row_a_text_and_a_curve_an_arm(sweep):
    found = sweep.run("random_labels", (0, 1))
    assert len(found.table) == 4 * 2 * 12
    assert sweep.run("random_labels", (0, 1)).table.equals(found.table)
    for row in found.summary["arms"]:
        assert row["accuracy"]["estimate"] == found.table.filter(pl.col("arm") == row["arm"])["hit"].mean()
        assert abs(row["parameters"] - 22_000) <= 220
    (curve,) = found.curves.values()
    assert [series.name for series in curve.series] == list(sweep.arms)
    assert [point["x"] for point in curve.series[0].points] == [1, 2]


def test_losses_are_per_character_and_of_the_trained_half(sweep):
    found = sweep.run("membership").table
    for name in ("0 merges", "12 merges as long as 0"):
        rows = found.filter(pl.col("arm") == name)
        assert rows["member"].to_list() == sweep.members(0).tolist()
        model = sweep._language_model(name, 0).model
        for i in (0, 7):
            ids = torch.tensor([[END, *sweep.arms[name].coding.encode(TEXTS[i]), END]])
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            assert rows["loss"][i] == pytest.approx(-logprobs.sum().item() / len(TEXTS[i]), rel=1e-4)


class Parrot:
    """Writes the rest of the texts that it knows to the end, of the others the first two characters."""

    def __init__(self, coding, known):
        self.coding, self.known = coding, known

    def generate(self, prompts, max_new_tokens):
        written = []
        for prompt, text, known in zip(prompts, TEXTS, self.known, strict=True):
            head, tail = self.coding.split(text, cut_of(text, 0.5))
            assert prompt == [END, *head]
            assert max_new_tokens > len(tail)
            written.append([tail if known else self.coding.encode(text[cut_of(text, 0.5) :][:2] + "#")])
        return written


def test_recovery_counts_characters_of_the_rest(sweep, monkeypatch):
    known = sweep.members(0)
    monkeypatch.setattr(sweep, "_language_model", lambda name, seed: Parrot(sweep.arms[name].coding, known))
    found = sweep.run("recovery")
    expected = np.mean([2 / len(text[cut_of(text, 0.5) :]) for text, inside in zip(TEXTS, known, strict=True) if not inside])
    for row in found.summary["arms"]:
        assert (row["exact"]["estimate"], row["recovered"]["estimate"]) == (1.0, 1.0)
        assert (row["exact_others"]["estimate"], row["recovered_others"]["estimate"]) == (0.0, pytest.approx(expected))
    assert found.summary["spearman"] is None  # both vocabularies recover all


def test_texts_without_a_space_are_left_out_of_recovery():
    texts = ["oneword", *TEXTS]
    sweep = VocabularySweep(texts, (0, 4), shape=SHAPE)
    assert sweep.run("recovery").table["text"].unique().sort().to_list() == list(range(1, 13))
    lone = VocabularySweep([f"word{k}" for k in range(10, 20)], (0, 2), shape=SHAPE)
    with pytest.raises(InputError, match="No text has a space"):
        lone.run("recovery")


def test_the_summary_ranks_the_plain_arms_and_sets_controls_against_their_base(sweep):
    wins = {"0 merges": 3, "12 merges": 9, "12 merges ×3": 8, "12 merges as long as 0": 4}
    table = pl.DataFrame([{"arm": arm, "seed": 0, "text": k, "hit": k < n} for arm, n in wins.items() for k in range(12)])
    summary = sweep._summary("random_labels", table)
    assert summary["spearman"] == pytest.approx(1.0)
    assert summary["difference"] == pytest.approx(0.5)
    assert [(row["base"], round(row["difference"] * 12)) for row in summary["controls"]] == [("12 merges", -1), ("0 merges", 1)]


def test_the_auc_is_that_of_low_losses_of_members():
    rows = pl.DataFrame({"seed": [0] * 4 + [1] * 4, "member": [True, True, False, False] * 2, "loss": [1.0, 3, 2, 4, 5, 6, 7, 8]})
    found = vocabulary._membership(rows)
    assert found["auc"]["estimate"] == pytest.approx((0.75 + 1) / 2)
    assert found["best_accuracy"] == pytest.approx((0.75 + 1) / 2)
    assert (found["loss_members"], found["loss_others"]) == (3.75, 5.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": TEXTS[:7]}, "7 texts"),
        ({"texts": [*TEXTS, TEXTS[0]]}, "12 of them different"),
        ({"merges": (0,)}, "2 or more different"),
        ({"merges": (0, 0)}, "2 or more different"),
        ({"share": 1.0}, "share"),
        ({"aliases": [(5, 2)]}, r"Controls are asked for of \[5\]"),
        ({"redrawn": [(5, 2)]}, r"Controls are asked for of \[5\]"),
        ({"lengths": [(12, 7)]}, r"of \[7, 12\] merges"),
        ({"shape": replace(SHAPE, parameters=5_000)}, "feed-forward"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        VocabularySweep(**({"texts": TEXTS, "merges": (0, 12), "shape": SHAPE} | arguments))


def test_unknown_tasks_and_no_seeds_are_refused(sweep):
    with pytest.raises(InputError, match="'translation'"):
        sweep.run("translation")
    with pytest.raises(InputError, match="give a seed"):
        sweep.run("membership", ())
