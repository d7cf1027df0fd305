"""The guard's approximate mode against brute force: what is banned at one step, and what a generation may not come close to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rapidfuzz.distance import Levenshtein

from palimpsest.corpus import BloomFilter, CorpusIndex
from palimpsest.errors import InputError
from palimpsest.guard import MemFreeProcessor, NgramSet, measure_guard_cost, protected_ngrams
from palimpsest.guard.approximate import NearPassages
from palimpsest.guard.ngrams import IndexNgrams, as_source

DECODINGS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "n": 2, "seed": 3},
    "nucleus": {"temperature": 0.9, "top_p": 0.8, "seed": 5},
    "beam": {"num_beams": 3, "n": 2},
}
PROMPTS = [[40, 41, 42, 43, 44, 45, 46, 47], [50, 51], [60], [70, 71, 72, 73, 74, 75]]
VOCABULARY = 7  # two ids more than the corpora below have: there is always a way out
corpora = st.lists(hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 4)), min_size=1, max_size=4)
sizes = st.integers(0, 2).flatmap(lambda k: st.tuples(st.integers(k + 2, 7), st.just(k)))
oracle = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build(docs, **options) -> CorpusIndex:
    with tempfile.TemporaryDirectory() as folder:
        return CorpusIndex.build([np.asarray(doc) for doc in docs], None, Path(folder) / "index", **options)


def nearest(docs, window) -> int:
    """Edits between `window` and the passage of `docs` that is nearest, the empty one included."""
    return min(Levenshtein.distance(window, list(doc[s:e])) for doc in docs for s in range(len(doc) + 1) for e in range(s, len(doc) + 1))


def banned_by_hand(docs, context, n, k) -> set[int]:
    """The definition in the module's docstring, window by window."""
    context = list(context[-(n - 1) :])
    edits = k - (n - 1 - len(context))
    if edits < 0:
        return set()
    places = [(doc, e) for doc in docs for e in range(len(doc))]
    return {int(doc[e]) for doc, e in places if any(Levenshtein.distance(context, list(doc[s:e])) <= edits for s in range(e + 1))}


def too_close(docs, prefix, output, n, k) -> list[int]:
    """The generated positions that end n tokens within min(k, j - 1) edits of a passage, the prompt before them."""
    whole = [int(i) for i in (*prefix, *output)]
    return [t for t in range(max(len(prefix), n - 1), len(whole)) if nearest(docs, whole[t - n + 1 : t + 1]) <= min(k, t - len(prefix))]


@oracle
@given(
    docs=corpora,
    size=sizes,
    ids=hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.integers(0, VOCABULARY - 1)),
    padding=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    prompt=st.integers(1, 9),
    eos=st.sampled_from([None, 2]),
    shards=st.integers(1, 2),
)
def test_one_step_bans_exactly_what_brute_force_bans(docs, size, ids, padding, prompt, eos, shards):
    n, k = size
    index = build(docs, shards=min(shards, len(docs)))
    rows, time = ids.shape
    padded = min(prompt, time)
    lengths = [max(0, padded - pad) for pad in padding[:rows]]
    scores = torch.linspace(0, 1, rows * VOCABULARY).reshape(rows, VOCABULARY)
    for include_prompt in (True, False):
        guard = MemFreeProcessor(index, n, approximate=k, eos_id=eos, include_prompt=include_prompt)
        guard.start_batch(lengths, padded)
        out = guard(torch.from_numpy(ids), scores)
        for row in range(rows):
            begin = padded - lengths[row] if include_prompt else padded
            expected = banned_by_hand(docs, ids[row, begin:].tolist(), n, k) - {eos}
            assert {v for v in range(VOCABULARY) if out[row, v] == -torch.inf} == expected
            assert all(out[row, v] == scores[row, v] for v in range(VOCABULARY) if v not in expected)


@oracle
@given(docs=corpora, size=sizes, include_prompt=st.booleans(), seed=st.integers(0, 1 << 16), data=st.data())
def test_nothing_that_is_written_comes_close(docs, size, include_prompt, seed, data):
    """An adversary that loves the corpus: it takes the token that leads to the nearest window, among those that are left."""
    n, k = size
    guard = MemFreeProcessor(build(docs), n, approximate=k, include_prompt=include_prompt)
    doc = data.draw(st.sampled_from(docs))
    prompt = doc[data.draw(st.integers(0, len(doc))) :][: data.draw(st.integers(0, 8))].tolist() or [6]
    rng = np.random.default_rng(seed)
    text = list(prompt)
    guard.start_batch([len(prompt)], len(prompt))
    for _ in range(10):
        wishes = torch.tensor(rng.normal(size=(1, VOCABULARY)), dtype=torch.float32)
        left = guard(torch.tensor([text]), wishes)[0]
        allowed = [v for v in range(VOCABULARY) if left[v] > -torch.inf]
        text.append(min(allowed, key=lambda v: (nearest(docs, [*text[-n + 1 :], v]), -float(left[v]))))
    assert guard.counts.violations == 0
    written = text[len(prompt) :]
    assert not too_close(docs, prompt if include_prompt else [], written, n, k)
    if not include_prompt or len(prompt) < n - k:  # then no window of n tokens is within k edits at all
        own = written if not include_prompt else text
        assert all(nearest(docs, own[t - n : t]) > k for t in range(n, len(own) + 1))


@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_model_that_is_held_back(tiny_model, decoding):
    """Three rounds: what the model wrote is protected, with all that is near, so that the next round must find another way."""
    how = DECODINGS[decoding]
    n, k = 6, 2
    docs = []
    written = tiny_model.generate(PROMPTS, 12, **how)
    for _ in range(3):
        docs += [np.concatenate([prompt, out]) for prompt, outs in zip(PROMPTS, written, strict=True) for out in outs]
        index = build(docs)
        guard = MemFreeProcessor.for_model(tiny_model, index, n, approximate=k)
        written = tiny_model.generate(PROMPTS, 12, processors=[guard], **how)
        for prompt, outs in zip(PROMPTS, written, strict=True):
            for out in outs:
                assert not too_close(docs, prompt, out, n, k)
                assert not len(protected_ngrams(index, [*prompt, *out], min(len(prompt) + k, len(prompt) + len(out)), n, approximate=k))
        assert guard.counts.guarded > 0
        assert guard.counts.violations == 0
    verbatim = tiny_model.generate(PROMPTS, 12, processors=[MemFreeProcessor.for_model(tiny_model, index, n)], **how)
    assert any(too_close(docs, prompt, out, n, k) for prompt, outs in zip(PROMPTS, verbatim, strict=True) for out in outs)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_without_edits_it_is_memfree(tiny_model, decoding):
    how = DECODINGS[decoding]
    docs = [np.concatenate([p, o]) for p, outs in zip(PROMPTS, tiny_model.generate(PROMPTS, 12, **how), strict=True) for o in outs]
    index = build(docs)
    assert isinstance(as_source(index, 3), IndexNgrams)
    texts, counts = [], []
    for near in (False, True):
        guard = MemFreeProcessor.for_model(tiny_model, index, 3)
        if near:
            guard.source = NearPassages(index, 3, 0)
        texts.append([out.tolist() for outs in tiny_model.generate(PROMPTS, 12, processors=[guard], **how) for out in outs])
        counts.append(guard.counts)
    assert texts[0] == texts[1]
    assert counts[0] == counts[1]
    assert counts[0].guarded > 0


@oracle
@given(corpora, st.integers(2, 5), hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.integers(0, 4)))
def test_one_step_without_edits_is_memfree(docs, n, ids):
    index = build(docs)
    scores = torch.randn(len(ids), 5)
    exact, near = MemFreeProcessor(index, n), MemFreeProcessor(index, n)
    near.source = NearPassages(index, n, 0)
    assert torch.equal(exact(torch.from_numpy(ids), scores), near(torch.from_numpy(ids), scores))
    assert exact.counts == near.counts


def test_nothing_near_changes_nothing(tiny_model):
    index = build([[300, 301, 302], [303]])
    guard = MemFreeProcessor.for_model(tiny_model, index, 8, approximate=2)
    for how in DECODINGS.values():
        free = tiny_model.generate(PROMPTS, 10, **how)
        held = tiny_model.generate(PROMPTS, 10, processors=[guard], **how)
        assert [o.tolist() for outs in free for o in outs] == [o.tolist() for outs in held for o in outs]
    scores = torch.randn(2, 9)
    guard.start_batch([12, 12], 12)
    assert guard(torch.randint(0, 9, (2, 12)), scores) is scores
    assert guard.counts.guarded == 0


def test_where_everything_is_banned():
    docs = [[1, 2, 3, v] for v in range(5)] + [[1, 2, 3, 4]]
    ids = torch.tensor([[1, 2, 9]])
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    guard = MemFreeProcessor(build(docs), 4, approximate=1, eos_id=3)
    assert torch.isfinite(guard(ids, scores)[0]).nonzero()[:, 0].tolist() == [3]
    assert (guard.counts.forced_eos, guard.counts.violations) == (1, 0)
    guard = MemFreeProcessor(build(docs), 4, approximate=1)
    assert torch.isfinite(guard(ids, scores)[0]).nonzero()[:, 0].tolist() == [0]  # as often as others; the lowest id
    assert (guard.counts.forced_eos, guard.counts.violations) == (0, 1)


@oracle
@given(corpora, sizes, st.lists(st.integers(0, 6), min_size=1, max_size=12), st.data())
def test_the_check_of_a_text(docs, size, text, data):
    n, k = size
    start = data.draw(st.integers(0, len(text)))
    found = protected_ngrams(build(docs), text, start, n, approximate=k)
    assert found.tolist() == [t for t in range(max(start, n - 1), len(text)) if nearest(docs, text[t - n + 1 : t + 1]) <= k]


def test_the_price_is_that_of_a_plain_loop(tiny_model):
    n, k = 5, 1
    texts = ["In the beginning was the word, and the fox.", "The quick brown fox jumps over the lazy dog; sheep were counted."]
    rows = [tiny_model.tokenizer.encode(text) for text in texts]
    docs = [np.delete(row, range(3, len(row), 6)) for row in rows]  # the texts with every sixth token left out
    measured = measure_guard_cost(tiny_model, build(docs), texts, n, approximate=k)
    for row, found in zip(rows, measured.table.iter_rows(named=True), strict=True):
        with torch.no_grad():
            probs = tiny_model.model(torch.tensor([row])).logits[0].double().softmax(-1).numpy()
        banned = [sorted(banned_by_hand(docs, row[:t], n, k)) for t in range(1, len(row))]
        assert found["blocked"] == sum(row[t] in banned[t - 1] for t in range(1, len(row))) > 0
        assert found["banned_mass"] == pytest.approx(sum(probs[t - 1, banned[t - 1]].sum() for t in range(1, len(row))), rel=1e-4)
    assert measured.provenance["approximate"] == k


def test_bad_input():
    index = build([[1, 2, 3, 4]])
    for k in (-1, 1.5, True):
        with pytest.raises(InputError, match="approximate is"):
            MemFreeProcessor(index, 10, approximate=k)
    with pytest.raises(InputError, match="With 3 edits allowed, 3 tokens of context"):
        MemFreeProcessor(index, 4, approximate=3)
    for source in (NgramSet([[1, 2, 3]]), BloomFilter.from_documents([[1, 2, 3]], 3), {(1, 2, 3)}):
        with pytest.raises(InputError, match="holds no passages"):
            MemFreeProcessor(source, approximate=1)
    assert as_source(index, approximate=2).n == 10
    assert as_source(index, approximate=5).n == 18
