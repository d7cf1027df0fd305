"""Function tokens: graphs, coverage, rarefaction, losses and steering against naive ones, and what the controls must see."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from palimpsest.audit.function_activation import measure_function_tokens, text_rows, untrained_twin
from palimpsest.audit.function_losses import CELLS, continues, growth, largest_cell, steps_to, transition_loss
from palimpsest.audit.function_rarefaction import frequency_control, rarefaction, rarefied
from palimpsest.audit.function_steering import steer, steering_effect
from palimpsest.audit.function_tokens import (
    Occurrences,
    bipartite,
    coverage,
    degree_slope,
    listed_tokens,
    overlap,
    random_coverage,
    split_tokens,
    states_of,
)
from palimpsest.audit.sae import SAEConfig, SparseAutoencoder, train_sae
from palimpsest.errors import CapabilityError, InputError

SAE = SAEConfig(expansion=2, k=4, epochs=4, batch_size=64, lr=3e-3)


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    rng = np.random.default_rng(0)
    words = ["the", "of", ",", "eye", "dog", "page", "word", "boxing"]
    texts = [" ".join(rng.choice(words, size=40, p=[0.3, 0.2, 0.2, 0.06, 0.06, 0.06, 0.06, 0.06])) for _ in range(24)]
    return text_rows(tiny_tokenizer, texts, 48)


@pytest.fixture(scope="module")
def coder(tiny_model, rows):
    return train_sae(states_of(tiny_model, rows, 1)[0], SAE, seed=0)


@pytest.fixture(scope="module")
def split(tiny_model, rows):
    return split_tokens(np.bincount(np.concatenate([row[1:] for row in rows]), minlength=tiny_model.vocab_size))


# --- kinds of tokens ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.floats(0.05, 0.95))
def test_function_tokens_are_as_few_as_make_up_the_share(counts, mass):
    found = split_tokens(np.array(counts), mass)
    assert found.ranked.tolist() == sorted((i for i, n in enumerate(counts) if n), key=lambda i: (-counts[i], i))
    chosen = found.ranked[: int(found.function.sum())]
    assert found.function[chosen].all()
    assert found.share >= mass - 1e-6
    assert sum(counts[i] for i in chosen[:-1]) < mass * sum(counts) + 1e-6


def test_the_list_takes_function_words_and_what_has_no_letter(tiny_tokenizer):
    ids = [tiny_tokenizer.encode(text)[0] for text in (" the", ",", "d", "7")]
    counts = np.bincount(ids, minlength=tiny_tokenizer.vocab_size)
    assert listed_tokens(counts, tiny_tokenizer).function[ids].tolist() == [True, True, False, False]


@pytest.mark.parametrize(("counts", "mass"), [([0, 0], 0.4), ([1, -1], 0.4), ([1, 2], 1.0), ([[1]], 0.4)])
def test_splits_that_make_no_sense_are_refused(counts, mass):
    with pytest.raises(InputError, match="occurrences"):
        split_tokens(np.array(counts), mass)


# --- the graph ----------------------------------------------------------------------------------------------------------------------


def test_the_graph_counts_what_is_active_where(tiny_model, rows, coder):
    graph = bipartite(tiny_model, coder, rows[:3], 1)
    expected = np.zeros(graph.shape, dtype=int)
    for row in rows[:3]:
        states = tiny_model.hidden_states([row], [1])[0][1]
        for position in range(1, len(row)):
            values, numbers = coder.encode(torch.from_numpy(states[position : position + 1]))
            for value, number in zip(values[0], numbers[0], strict=True):
                expected[row[position], number] += bool(value > 0)
    np.testing.assert_array_equal(graph.toarray(), expected)
    backwards = bipartite(tiny_model, coder, rows[:3][::-1], 1)
    parts = bipartite(tiny_model, coder, rows[:1], 1) + bipartite(tiny_model, coder, rows[1:3], 1)
    assert (backwards != graph).nnz == (parts != graph).nnz == 0


graphs = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 2), min_size=width, max_size=width), min_size=1, max_size=7)
)


@given(graphs.filter(lambda rows: any(map(any, rows))), st.randoms())
def test_coverage_is_the_union_grows_and_ends_with_all(table, random):
    graph = sparse.csr_matrix(np.array(table))
    order = list(range(len(table)))
    random.shuffle(order)
    found = coverage(graph, np.array(order))
    features = {f for row in table for f, n in enumerate(row) if n}
    met: set[int] = set()
    for k, token in enumerate(order):
        met |= {f for f, n in enumerate(table[token]) if n}
        assert found[k] == pytest.approx(len(met) / len(features))
    assert found[-1] == pytest.approx(1.0)


def test_coverage_by_lot_and_the_slope():
    graph = sparse.csr_matrix(np.kron(np.eye(4), np.ones((1, 2))))
    assert random_coverage(graph, np.arange(4), 2, draws=5) == 0.5
    wide = sparse.csr_matrix(np.array([[1] * 8, [1] * 4 + [0] * 4, [0] * 8, [1] * 2 + [0] * 6]))
    assert degree_slope(wide, np.arange(4)) == pytest.approx(-1.0)
    with pytest.raises(InputError, match="5 tokens of 4"):
        random_coverage(graph, np.arange(4), 5)
    with pytest.raises(InputError, match="No feature is active"):
        coverage(sparse.csr_matrix((3, 2)), np.arange(3))
    with pytest.raises(InputError, match="1 tokens have features"):
        degree_slope(sparse.csr_matrix(np.array([[1], [0]])), np.arange(2))


@given(st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=6), st.data())
def test_rarefaction_is_the_mean_over_all_choices(sets, data):
    m = data.draw(st.integers(1, len(sets)))
    counts = np.array([sum(f in one for one in sets) for f in range(4)])
    every = [len(set().union(*chosen)) for chosen in combinations(sets, m)]
    assert float(rarefied(len(sets), counts, m)) == pytest.approx(np.mean(every))


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=2, max_size=6))
def test_overlap_is_the_mean_over_all_pairs(sets):
    graph = sparse.csr_matrix(np.array([[sum(f in one for one in sets) for f in range(5)], [0] * 5]))
    found = overlap(graph, np.array([len(sets), 0]), at_least=2)
    shared = np.mean([len(a & b) for a, b in combinations(sets, 2)])
    assert found[0] == pytest.approx(shared / np.mean([len(one) for one in sets]))
    assert np.isnan(found[1])


def planted(function_features, content_features, rows=30, each=20, seed=0):
    """Rows of tokens 0 (function) and 1 (content) in turns; each occurrence has one feature of its kind's."""
    rng = np.random.default_rng(seed)
    tokens = np.tile([0, 1], rows * each // 2)
    features = np.where(
        tokens == 0, rng.integers(function_features, size=len(tokens)), 50 + rng.integers(content_features, size=len(tokens))
    )
    return Occurrences(tokens, np.repeat(np.arange(rows), each), np.arange(len(tokens)), features, 2, 100)


def test_the_frequency_control_sees_richer_kinds_and_nothing_where_there_is_nothing():
    function = np.array([True, False])
    richer, equal, poorer = (frequency_control(planted(*sizes), function, halves=200) for sizes in ((40, 10), (20, 20), (10, 40)))
    assert richer["low"] > 1 > poorer["high"]
    assert equal["low"] <= 1 <= equal["high"]
    assert richer["occurrences"] == 120
    for side, many in (("function", 40), ("content", 10)):
        assert richer[side] == pytest.approx(many * (1 - (1 - 1 / many) ** 120), rel=0.02)
    for one in (richer, equal, poorer):
        assert one["low"] < one["estimate"] < one["high"]
    with pytest.raises(InputError, match="0 of 600 occurrences"):
        frequency_control(planted(2, 2), np.array([False, False]))


def test_the_frequency_control_compares_equal_numbers():
    """Two kinds alike in all but number: thrice as many function occurrences have more features, and the ratio stays near 1."""
    rng = np.random.default_rng(1)
    tokens = rng.permuted(np.tile([0, 0, 0, 1], (40, 10)), axis=1).ravel()
    found = Occurrences(tokens, np.repeat(np.arange(40), 40), np.arange(1600), rng.zipf(1.5, size=1600) % 400, 2, 400)
    met = [len(np.unique(found.features[tokens == kind])) for kind in (0, 1)]
    assert met[0] > 1.5 * met[1]
    control = frequency_control(found, np.array([True, False]), halves=200)
    assert control["occurrences"] == 160
    assert 0.8 < control["estimate"] < 1.2


def test_the_curve_of_rarefaction_rises_from_one_occurrence_to_all():
    found = planted(40, 10)
    curve = rarefaction(found, np.array([True, False]))
    assert curve[0] == (1, pytest.approx(1.0))  # one feature an occurrence
    assert curve[-1] == (300, pytest.approx(len(np.unique(found.features[found.tokens == 0]))))
    assert all(a[1] < b[1] for a, b in pairwise(curve))
    with pytest.raises(InputError, match="None of 600"):
        rarefaction(found, np.array([False, False]))


# --- losses -------------------------------------------------------------------------------------------------------------------------


def test_the_cells_add_up_to_the_loss_and_are_the_naive_ones(tiny_model, rows, split):
    table = transition_loss(tiny_model, rows, split.function)
    sums, counts = dict.fromkeys(CELLS, 0.0), dict.fromkeys(CELLS, 0)
    for row, logprobs in zip(rows, tiny_model.logprobs(rows), strict=True):
        for current, following, value in zip(row[:-1], row[1:], logprobs, strict=True):
            cell = f"{'f' if split.function[current] else 'c'}→{'f' if split.function[following] else 'c'}"
            sums[cell] -= float(value)
            counts[cell] += 1
    assert table["n"].to_list() == [counts[cell] for cell in CELLS]
    np.testing.assert_allclose(table["loss"], [sums[cell] / counts[cell] for cell in CELLS])
    np.testing.assert_allclose(table["loss_share"], [sums[cell] / sum(sums.values()) for cell in CELLS])
    assert sum(row["n"] * row["loss"] for row in table.to_dicts()) == pytest.approx(sum(sums.values()), abs=1e-6)
    assert table["share"].sum() == pytest.approx(1.0)


def test_cells_that_do_not_occur_have_no_loss(tiny_model):
    function = np.zeros(tiny_model.vocab_size, dtype=bool)
    table = transition_loss(tiny_model, [np.arange(5)], function)
    assert table["loss"].to_list()[:3] == [None, None, None]
    assert largest_cell(table)["highest"] == "c→c"


def test_a_piece_goes_on_with_a_word(tiny_tokenizer):
    ids = np.array(tiny_tokenizer.encode("the boxing dog, 42x"))
    texts = [tiny_tokenizer.decode([i]) for i in ids]
    expected = [a[-1].isalnum() and b[0].isalnum() for a, b in pairwise(texts)]
    assert continues(tiny_tokenizer, tiny_tokenizer.vocab_size + 3, ids[:-1], ids[1:]).tolist() == expected
    assert True in expected
    assert False in expected


def test_losses_of_other_shapes_are_refused(tiny_model, split):
    for bad, function in (([np.array([1])], split.function), ([], split.function), ([np.array([1, 300])], split.function[:200])):
        with pytest.raises(InputError, match="kinds"):
            transition_loss(tiny_model, bad, function)


def test_growth_has_a_table_a_checkpoint_and_counts_the_features(tiny_model, other_model, rows, split):
    grown = growth({5: tiny_model, 0: other_model}, rows[:6], split, layer=1, sae=SAE)
    assert grown["step"].to_list() == [0] * 4 + [5] * 4
    later = grown.filter(pl.col("step") == 5)
    assert later.drop("step", "features").equals(transition_loss(tiny_model, rows[:6], split.function))
    states, _, _ = states_of(tiny_model, rows[:6], 1)
    assert later["features"].unique().to_list() == [len(np.unique(train_sae(states, SAE).active(states)[1]))]
    assert growth({0: tiny_model, 1: tiny_model}, rows[:2], split)["features"].null_count() == 8
    with pytest.raises(InputError, match="1 checkpoints"):
        growth({0: tiny_model}, rows, split)


def test_the_step_of_a_share_of_the_fall():
    assert steps_to([0, 10, 20], [5.0, 3.0, 0.0], 0.8) == pytest.approx(10 + 10 * 2 / 3)
    assert steps_to([0, 10, 20], [5.0, 5.5, 0.0], 0.5) == pytest.approx(10 + 10 * 3 / 5.5)
    assert steps_to([0, 10], [1.0, 1.0]) is None


# --- steering -----------------------------------------------------------------------------------------------------------------------


def test_steering_changes_one_coefficient_at_one_position(tiny_model, rows, coder):
    row, position = rows[0], 9
    state = torch.from_numpy(tiny_model.hidden_states([row], [1])[0][1][position])
    values, numbers = coder.encode(state[None])
    feature, present = numbers[0, 0].item(), values[0, 0].item()
    absent = next(f for f in range(coder.features) if f not in numbers[0].tolist())
    plain = tiny_model.model(torch.tensor(row[None])).logits[0, position].log_softmax(-1)
    for which, had, value in ((feature, present, 0.0), (absent, 0.0, 3.0)):
        target = state + (value - had) / coder.scale * coder.decoder[which]

        def replace(module, inputs, output, target=target):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, position] = target.detach()

        hook = tiny_model.model.model.layers[0].register_forward_hook(replace)
        changed = tiny_model.model(torch.tensor(row[None])).logits[0, position].log_softmax(-1)
        hook.remove()
        expected = (plain.exp() * (plain - changed)).sum().item()
        assert steer(tiny_model, coder, row, 1, which, [position], value)[0] == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert expected > 1e-6
    assert steer(tiny_model, coder, row, 1, feature, [position], present)[0] == pytest.approx(0.0, abs=1e-6)


def test_positions_are_changed_apart(tiny_model, rows, coder):
    both = steer(tiny_model, coder, rows[0], 1, 3, [4, 9], 5.0)
    alone = [steer(tiny_model, coder, rows[0], 1, 3, [place], 5.0)[0] for place in (4, 9)]
    np.testing.assert_allclose(both, alone, rtol=1e-4)


def test_the_effect_compares_a_position_of_each_kind(tiny_model, rows, coder, split):
    found = steering_effect(tiny_model, coder, rows, 1, split.function, pairs=5)
    assert found["pairs"] == 5
    assert found == steering_effect(tiny_model, coder, rows, 1, split.function, pairs=5)
    assert found["function"] > 0 < found["content"]
    with pytest.raises(InputError, match="None of 48 rows"):
        steering_effect(tiny_model, coder, rows, 1, np.ones_like(split.function))


def test_steering_that_cannot_be_is_refused(tiny_model, rows, coder):
    for layer in (0, 2):
        with pytest.raises(InputError, match="cannot be steered"):
            steer(tiny_model, coder, rows[0], layer, 0, [1])
    for feature, places in ((-1, [1]), (coder.features, [1]), (0, []), (0, [99])):
        with pytest.raises(InputError, match="Name a feature"):
            steer(tiny_model, coder, rows[0], 1, feature, places)


# --- the measurement ----------------------------------------------------------------------------------------------------------------


def test_the_measurement_has_both_models_and_every_token(tiny_model, rows, split):
    found = measure_function_tokens(tiny_model, rows, [1], sae=SAE)
    assert [(row["model"], row["layer"]) for row in found.summary["layers"]] == [("trained", 1), ("untrained", 1)]
    table = found.table.filter(pl.col("model") == "trained")
    assert table["token"].to_list() == split.ranked.tolist()
    assert table["coverage"][-1] == pytest.approx(1.0)
    assert table["coverage"].is_sorted()
    assert found.summary["tokens"] == sum(len(row) - 1 for row in rows)
    assert found.summary["layers"][0]["coverage_10"] == pytest.approx(table["coverage"][9])
    assert found.summary["most_frequent"][0] == " the"
    assert measure_function_tokens(tiny_model, rows, [1], sae=SAE).table.equals(found.table)
    for curve in found.curves.values():
        assert [series.style for series in curve.series] == ["line", "dashed"]
    assert [series.name for series in found.curves["function-tokens-rarefied"].series] == ["function, layer 1", "content, layer 1"]


def test_a_given_autoencoder_is_used_and_the_twin_may_be_left_out(tiny_model, rows):
    coder = SparseAutoencoder(32, 40, 3, seed=9)
    found = measure_function_tokens(tiny_model, rows, [1], autoencoders={1: coder}, control=False)
    assert [row["dictionary"] for row in found.summary["layers"]] == [40]


def test_the_twin_has_the_same_shape_and_other_weights(tiny_model):
    twin = untrained_twin(tiny_model, 3)
    own, other = dict(tiny_model.model.named_parameters()), dict(twin.model.named_parameters())
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in other.items()}
    assert not torch.equal(own["model.layers.0.mlp.up_proj.weight"], other["model.layers.0.mlp.up_proj.weight"])
    assert twin.fingerprint == untrained_twin(tiny_model, 3).fingerprint != untrained_twin(tiny_model, 4).fingerprint


def test_rows_are_of_one_text_each(tiny_tokenizer):
    texts = ["the word was written down and scraped off", "d", "the eye"]
    whole = [tiny_tokenizer.encode(text) for text in texts]
    assert [row.tolist() for row in text_rows(tiny_tokenizer, texts, 100)] == [ids for ids in whole if len(ids) > 1]
    cut = text_rows(tiny_tokenizer, texts, 4, most=7)
    assert all(np.array_equal(a, b) for a, b in zip(cut, text_rows(tiny_tokenizer, [*texts, None], 4, most=7), strict=True))  # not read
    assert len(whole[0]) > 7
    assert [len(row) for row in cut] == [4, 3]
    assert np.concatenate(cut).tolist() == whole[0][:7]
    for arguments in ((["d"], 4), (texts, 1)):
        with pytest.raises(InputError):
            text_rows(tiny_tokenizer, *arguments)


def test_rows_that_say_nothing_are_refused(tiny_model):
    for rows in ([], [np.array([3])]):
        with pytest.raises(InputError, match="fewer than 2 tokens"):
            measure_function_tokens(tiny_model, rows)
        with pytest.raises(InputError, match="fewer than 2 tokens"):
            states_of(tiny_model, rows, 1)


def test_text_without_a_listed_word_has_no_control_by_list(tiny_model, tiny_tokenizer):
    texts = ["xqzy" * 20 + str(k) for k in range(8)]
    found = measure_function_tokens(tiny_model, text_rows(tiny_tokenizer, texts, 60), [1], sae=SAE, control=False)
    assert found.summary["layers"][0]["control_by_list"] is None
    assert found.summary["layers"][0]["control"]["occurrences"] > 0


def test_a_door_without_weights_is_refused(tiny_model, rows, narrow_door):
    with pytest.raises(CapabilityError):
        measure_function_tokens(narrow_door(tiny_model, {"text", "logprobs"}), rows)
