"""Batches: labels, positions and segments against a naive reference, and the order of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.training.batch import IGNORE, PackedBatch, RowBatches


def naive(row: list[int], segments: list[int]) -> tuple[list[int], list[int]]:
    labels, positions = [], []
    for t, segment in enumerate(segments):
        last = t + 1 == len(row) or segments[t + 1] != segment
        labels.append(IGNORE if last or segment == 0 else row[t + 1])
        positions.append(positions[-1] + 1 if t and segments[t - 1] == segment else 0)
    return labels, positions


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=5), min_size=1, max_size=3))
def test_labels_and_positions_restart_at_every_segment(documents: list[list[tuple[int, int]]]) -> None:
    """`documents`: per row (segment id, length); a row that repeats an id continues the segment."""
    rows = [[s for s, n in row for _ in range(n)] for row in documents]
    width = max(2, *(len(r) for r in rows))
    segments = np.array([r + [0] * (width - len(r)) for r in rows])
    ids = np.arange(segments.size).reshape(segments.shape) + 10
    expected = [naive(list(i), list(s)) for i, s in zip(ids, segments, strict=True)]
    if all(label == IGNORE for labels, _ in expected for label in labels):
        with pytest.raises(InputError, match="no target"):
            PackedBatch.from_rows(ids, segments)
        return
    batch = PackedBatch.from_rows(ids, segments)
    assert batch.labels.tolist() == [labels for labels, _ in expected]
    assert batch.position_ids.tolist() == [positions for _, positions in expected]
    assert batch.n_tokens == int((segments > 0).sum())
    assert batch.n_target_tokens == sum(label != IGNORE for labels, _ in expected for label in labels)


def test_a_plain_row_predicts_every_next_token() -> None:
    batch = PackedBatch.from_rows(np.array([[3, 4, 5]]))
    assert batch.labels.tolist() == [[4, 5, IGNORE]]
    assert batch.position_ids.tolist() == [[0, 1, 2]]
    assert batch.attention_mask() is None


def test_the_mask_is_causal_inside_segments_only() -> None:
    segments = np.array([[1, 1, 2, 2, 0]])
    mask = PackedBatch.from_rows(np.arange(5)[None], segments).attention_mask()
    assert mask is not None
    open_ = (mask[0, 0] == 0).tolist()
    for q in range(5):
        for k in range(5):
            visible = k == q or (k <= q and segments[0, q] == segments[0, k] != 0)
            assert open_[q][k] == visible


def test_packed_documents_have_the_losses_they_have_alone() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from palimpsest.training.loop import causal_lm_loss

    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    a, b = np.random.default_rng(0).integers(0, 32, (2, 7))
    packed = PackedBatch.from_rows(np.concatenate([a, b, [0]])[None], np.array([[1] * 7 + [2] * 7 + [0]]))
    alone = causal_lm_loss(model, PackedBatch.from_rows(a[None])) + causal_lm_loss(model, PackedBatch.from_rows(b[None]))
    torch.testing.assert_close(causal_lm_loss(model, packed), alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", [np.zeros((2, 1), int), np.zeros(4, int), np.zeros((0, 4), int), np.zeros((2, 3))])
def test_rows_of_a_wrong_shape_or_type_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(InputError, match="shape"):
        PackedBatch.from_rows(rows)


def test_segments_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="segment_ids"):
        PackedBatch.from_rows(np.zeros((2, 3), int), np.ones((2, 2), int))


def test_an_epoch_holds_every_row_once_and_the_last_batch_may_be_smaller() -> None:
    rows = np.arange(14).reshape(7, 2)
    data = RowBatches(rows, batch_size=3)
    assert [len(data[k].input_ids) for k in range(4)] == [3, 3, 1, 3]
    assert torch.cat([data[k].input_ids for k in range(3)]).tolist() == rows.tolist()


def test_shuffling_draws_a_new_order_each_epoch_and_the_same_one_for_the_same_seed() -> None:
    rows = np.arange(40).reshape(20, 2)
    data, again = RowBatches(rows, 5, shuffle_seed=1), RowBatches(rows, 5, shuffle_seed=1)
    epochs = [torch.cat([data[4 * e + k].input_ids for k in range(4)])[:, 0].tolist() for e in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == rows[:, 0].tolist()
    assert again[6].input_ids.tolist() == data[6].input_ids.tolist()


def test_the_fingerprint_tells_data_and_order_apart() -> None:
    rows = np.arange(12).reshape(6, 2)
    changed = rows.copy()
    changed[5, 1] += 1
    same = RowBatches(rows.astype(np.uint16), 2).fingerprint
    others = [RowBatches(changed, 2), RowBatches(rows, 3), RowBatches(rows, 2, shuffle_seed=0), RowBatches(rows.reshape(3, 4), 2)]
    assert RowBatches(rows, 2).fingerprint == same
    assert same not in [o.fingerprint for o in others]


@pytest.mark.parametrize(("rows", "size"), [(np.zeros((0, 4), int), 2), (np.zeros((2, 4), int), 0)])
def test_batches_of_nothing_are_refused(rows: np.ndarray, size: int) -> None:
    with pytest.raises(InputError):
        RowBatches(rows, size)
