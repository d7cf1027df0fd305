"""Continuations behind a prefix that is read once: token by token what whole rows give, through a cache too."""

import numpy as np
import pytest

from palimpsest.models import HFModel, ScoreCache
from palimpsest.models.shared_prefix import continuation_logprobs, score_continuations


@pytest.fixture(scope="module")
def asked():
    """Two prefixes; the continuations of the first begin alike, those of the second do not."""
    rng = np.random.default_rng(0)
    begun = rng.integers(2, 320, 3)
    alike = [np.concatenate([begun, rng.integers(2, 320, size)]) for size in (1, 5, 9)]
    return [rng.integers(2, 320, size) for size in (40, 1)], [alike, [rng.integers(2, 320, size) for size in (1, 2, 9, 30)]]


def whole_rows(model, heads, tails):
    return [
        [model.score([np.concatenate([head, row])], start=len(head)).logprobs[0] for row in rows]
        for head, rows in zip(heads, tails, strict=True)
    ]


def test_every_token_is_scored_as_in_a_whole_row(architecture_model, asked):
    heads, tails = asked
    tails = [[row[:20] for row in rows] for rows in tails]
    found = continuation_logprobs(architecture_model, heads, tails)
    for ours, theirs in zip(found, whole_rows(architecture_model, heads, tails), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=2e-4)
    sums = score_continuations(architecture_model, heads, tails)
    for own, total in zip(found, sums, strict=True):
        np.testing.assert_allclose([row.sum() for row in own], total, atol=1e-6)


def test_a_cache_does_not_stand_in_the_way(tiny_model, asked):
    tiny_model.score([[2, 3]])  # it has tried out its head
    passes = []
    hook = tiny_model.model.register_forward_pre_hook(lambda _, args, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True)
    try:
        through = continuation_logprobs(ScoreCache(tiny_model), *asked)
        fed = sum(passes)
        passes.clear()
        plain = continuation_logprobs(tiny_model, *asked)
    finally:
        hook.remove()
    assert fed == sum(passes)
    for ours, theirs in zip(through, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_model_elsewhere_scores_whole_rows(tiny_model, tiny_tokenizer, asked):
    class Elsewhere(HFModel):
        in_process = False
        calls = 0

        def score(self, *args, **options):
            self.calls += 1
            return super().score(*args, **options)

    door = Elsewhere(tiny_model.model, tiny_tokenizer)
    found = continuation_logprobs(door, *asked)
    assert door.calls == 2  # one for every prefix
    for ours, theirs in zip(found, whole_rows(tiny_model, *asked), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
