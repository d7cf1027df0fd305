"""MemFree decoding against brute force: what is banned at one step, and what a guarded generation may not contain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import GenerationConfig, LogitsProcessorList

from palimpsest.corpus import BloomFilter, CorpusIndex
from palimpsest.errors import InputError, TokenizerMismatchError
from palimpsest.guard import MemFreeProcessor, NgramSet

DECODINGS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "n": 2, "seed": 3},
    "top-k": {"temperature": 1.3, "top_k": 7, "seed": 4},
    "nucleus": {"temperature": 0.9, "top_p": 0.8, "seed": 5},
    "beam": {"num_beams": 3, "n": 2},
}
SOURCES = ("index", "bloom", "set")
PROMPTS = [[40, 41, 42, 43, 44], [50, 51], [60], [70, 71, 72, 73, 74, 75, 76]]


def make_source(kind, docs, n, folder, fp_rate=1e-9):
    if kind == "index":
        folder.mkdir(parents=True, exist_ok=True)
        return CorpusIndex.build([np.asarray(doc) for doc in docs], None, folder / f"index-{len(list(folder.iterdir()))}")
    if kind == "bloom":
        return BloomFilter.from_documents(docs, n, fp_rate)
    return NgramSet.from_documents(docs, n)


def ngrams_of(docs, n):
    return {tuple(int(i) for i in doc[t : t + n]) for doc in docs for t in range(len(doc) - n + 1)}


def broken(output, prefix, protected, n):
    """Positions of `output` that end a protected n-gram, the prompt before it: a plain loop over tuples."""
    whole = [int(i) for i in (*prefix, *output)]
    return [t for t in range(len(prefix), len(whole)) if t - n + 1 >= 0 and tuple(whole[t - n + 1 : t + 1]) in protected]


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("kind", SOURCES)
def test_no_protected_ngram_is_ever_written(tiny_model, tmp_path, kind, decoding):
    """Three rounds: what the model wrote is protected, so that the next round must find another way, and that one too."""
    how = DECODINGS[decoding]
    for n in (2, 4):
        docs = []
        written = tiny_model.generate(PROMPTS, 14, **how)
        for _ in range(3):
            docs += [np.concatenate([prompt, out]) for prompt, outs in zip(PROMPTS, written, strict=True) for out in outs]
            protected = ngrams_of(docs, n)
            guard = MemFreeProcessor.for_model(tiny_model, make_source(kind, docs, n, tmp_path / str(n)), n)
            written = tiny_model.generate(PROMPTS, 14, processors=[guard], **how)
            for prompt, outs in zip(PROMPTS, written, strict=True):
                for out in outs:
                    assert not broken(out, prompt, protected, n)
            assert guard.counts.guarded > 0
            assert guard.counts.blocked > 0 or "temperature" in how  # a sampler may leave the text by itself
            assert guard.counts.violations == 0


@pytest.mark.parametrize("decoding", DECODINGS)
def test_index_filter_and_set_give_the_same_text(tiny_model, tmp_path, decoding):
    how = DECODINGS[decoding]
    docs = [np.concatenate([p, o]) for p, outs in zip(PROMPTS, tiny_model.generate(PROMPTS, 12, **how), strict=True) for o in outs]
    texts = []
    for kind in SOURCES:
        guard = MemFreeProcessor.for_model(tiny_model, make_source(kind, docs, 3, tmp_path), 3)
        texts.append([out.tolist() for outs in tiny_model.generate(PROMPTS, 12, processors=[guard], **how) for out in outs])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("decoding", ["greedy", "sampled", "beam"])
def test_nothing_protected_changes_nothing(tiny_model, decoding):
    how = DECODINGS[decoding]
    guard = MemFreeProcessor.for_model(tiny_model, NgramSet(np.zeros((0, 3), dtype=np.int64)))
    free = tiny_model.generate(PROMPTS, 10, **how)
    held = tiny_model.generate(PROMPTS, 10, processors=[guard], **how)
    assert [o.tolist() for outs in free for o in outs] == [o.tolist() for outs in held for o in outs]
    scores = torch.randn(2, 9)
    assert MemFreeProcessor(set())(torch.randint(0, 9, (2, 12)), scores) is scores
    assert guard.counts.guarded == guard.counts.blocked == 0
    assert guard.counts.choices > 0


@pytest.mark.parametrize("decoding", ["greedy", "beam"])
def test_rows_do_not_depend_on_each_other(tiny_model, decoding):
    how = DECODINGS[decoding]
    docs = [np.concatenate([p, o]) for p, outs in zip(PROMPTS, tiny_model.generate(PROMPTS, 10, **how), strict=True) for o in outs]
    guard = MemFreeProcessor.for_model(tiny_model, NgramSet.from_documents(docs, 3))
    together = tiny_model.generate(PROMPTS, 10, processors=[guard], **how)
    for prompt, outs in zip(PROMPTS, together, strict=True):
        alone = tiny_model.generate([prompt], 10, processors=[guard], **how)[0]
        assert [o.tolist() for o in alone] == [o.tolist() for o in outs]


@pytest.mark.parametrize("kind", SOURCES)
def test_one_grams_ban_the_vocabulary_of_the_corpus(tiny_model, tmp_path, kind):
    vocabulary = set(range(2, 300))
    guard = MemFreeProcessor.for_model(tiny_model, make_source(kind, [sorted(vocabulary)], 1, tmp_path), 1)
    for outs in tiny_model.generate(PROMPTS, 10, temperature=1.0, n=3, processors=[guard]):
        for out in outs:
            assert not vocabulary & set(out.tolist())


@pytest.mark.parametrize("kind", SOURCES)
def test_eos_is_forced_when_everything_is_banned(tiny_model, tmp_path, kind):
    """EOS is in the corpus too and yet not banned; the text ends at once, and is counted once a row."""
    guard = MemFreeProcessor.for_model(tiny_model, make_source(kind, [list(range(320))], 1, tmp_path), 1)
    written = tiny_model.generate(PROMPTS, 5, processors=[guard])
    assert all(len(out) == 0 for outs in written for out in outs)
    assert guard.counts.blocked == guard.counts.guarded == guard.counts.choices == guard.counts.forced_eos == len(PROMPTS)
    assert guard.counts.violations == 0


def test_eos_is_forced_where_it_had_been_cut_off_and_left_as_it_was_elsewhere():
    guard = MemFreeProcessor(NgramSet([[0], [1], [2]]), eos_id=3)
    out = guard(torch.tensor([[1], [1]]), torch.tensor([[1.0, 2.0, 3.0, -torch.inf], [1.0, 2.0, 3.0, 0.5]]))
    assert out[0].tolist() == [-torch.inf] * 3 + [0.0]
    assert out[1].tolist() == [-torch.inf] * 3 + [0.5]
    assert guard.counts.forced_eos == 2
    assert not guard(torch.tensor([[1]]), torch.tensor([[1.0, 2.0, 3.0, 0.5, 0.0]]))[0, 4].isinf()
    assert guard.counts.forced_eos == 2


@pytest.mark.parametrize("kind", SOURCES)
def test_without_eos_the_rarest_continuation_is_let_through_and_counted(tmp_path, kind):
    docs = [[7, 0], [7, 0], [7, 1], [7, 2], [7, 2], [7, 3], [7, 3]]
    guard = MemFreeProcessor(make_source(kind, docs, 2, tmp_path), 2)
    out = guard(torch.tensor([[7]]), torch.tensor([[0.0, 1.0, 2.0, 3.0, -torch.inf, -torch.inf, -torch.inf, -torch.inf]]))
    kept = torch.isfinite(out[0]).nonzero()[:, 0].tolist()
    assert kept == ([3] if kind == "bloom" else [1])  # a Bloom filter has no counts: the model's first choice
    assert guard.counts.violations == 1


tables = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(hnp.arrays(np.int64, st.integers(n, 9), elements=st.integers(0, 4)), min_size=1, max_size=4),
        hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.integers(0, 4)),
    )
)


@settings(deadline=None, max_examples=60)
@given(case=tables, padding=st.lists(st.integers(0, 6), min_size=3, max_size=3), eos=st.sampled_from([None, 2]), prompt=st.integers(0, 6))
def test_one_step_bans_exactly_what_brute_force_bans(case, padding, eos, prompt):
    n, docs, ids = case
    rows, time = ids.shape
    lengths = [max(0, min(prompt, time) - pad) for pad in padding[:rows]]
    padded = min(prompt, time)
    protected = ngrams_of(docs, n)
    scores = torch.linspace(0, 1, rows * 7).reshape(rows, 7)
    for source in (BloomFilter.from_documents(docs, n, 1e-9), NgramSet.from_documents(docs, n), protected):
        for include_prompt in (True, False):
            guard = MemFreeProcessor(source, n, eos_id=eos, include_prompt=include_prompt)
            guard.start_batch(lengths, padded)
            out = guard(torch.from_numpy(ids), scores)
            for row in range(rows):
                begin = padded - lengths[row] if include_prompt else padded
                context = ids[row, begin:].tolist()
                for v in range(7):
                    gram = (*context[len(context) - n + 1 :], v) if len(context) >= n - 1 else None
                    banned = gram in protected and v != eos
                    assert bool(out[row, v] == -torch.inf) == banned
                    assert banned or out[row, v] == scores[row, v]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_step_of_an_index_bans_what_a_set_bans(tmp_path_factory, data):
    n, docs, ids = data.draw(tables)
    index = CorpusIndex.build(docs, None, tmp_path_factory.mktemp("index") / "i", shards=data.draw(st.integers(1, len(docs))))
    ids = data.draw(st.sampled_from([ids, ids + 250]))  # ids that the index's own type cannot hold
    scores = torch.randn(len(ids), 300)
    exact = MemFreeProcessor(NgramSet.from_documents(docs, n))(torch.from_numpy(ids), scores)
    assert torch.equal(MemFreeProcessor(index, n)(torch.from_numpy(ids), scores), exact)


def test_padding_on_the_left_is_no_context():
    """The protected pair (0, 5) must not be seen in a prompt of one token 7 that stands after padding with id 0."""
    source = NgramSet([[0, 7, 5], [3, 7, 6]])
    scores = torch.zeros(2, 8)
    ids = torch.tensor([[0, 7], [3, 7]])
    told = MemFreeProcessor(source)
    told.start_batch([1, 2], 2)
    assert torch.isfinite(told(ids, scores)[0]).all()
    assert told(ids, scores)[1, 6] == -torch.inf
    guessed = MemFreeProcessor(source, pad_id=0)
    assert torch.equal(guessed(ids, scores), told(ids, scores))
    told.start_batch([2, 2], 2)
    assert told(ids, scores)[0, 5] == -torch.inf
    assert MemFreeProcessor(source)(ids, scores)[0, 5] == -torch.inf


def test_under_transformers_own_generate(tiny_model):
    """Without HFModel: left-padded batch, beams, pad_id known."""
    prompts = [[40, 41, 42, 43, 44], [50, 51]]
    ids = torch.tensor([prompts[0], [1, 1, 1, *prompts[1]]])
    mask = (ids != 1).long()
    for beams in (1, 3):
        config = GenerationConfig(max_new_tokens=10, num_beams=beams, do_sample=False, pad_token_id=1, eos_token_id=1)
        free = tiny_model.model.generate(ids, attention_mask=mask, generation_config=config)[:, 5:].tolist()
        docs = [prompt + [i for i in out if i != 1] for prompt, out in zip(prompts, free, strict=True)]
        guard = MemFreeProcessor.for_model(tiny_model, NgramSet.from_documents(docs, 3))
        chain = LogitsProcessorList([guard])
        held = tiny_model.model.generate(ids, attention_mask=mask, generation_config=config, logits_processor=chain)[:, 5:].tolist()
        for prompt, out in zip(prompts, held, strict=True):
            assert not broken([i for i in out if i != 1], prompt, ngrams_of(docs, 3), 3)
        assert guard.counts.blocked > 0


def test_prompt_excluded(tiny_model):
    """With include_prompt=False an n-gram that begins in the prompt may be completed, one inside the generation may not."""
    prompt = [40, 41, 42, 43, 44]
    out = tiny_model.generate([prompt], 8)[0][0]
    border = NgramSet([[*prompt[-2:], int(out[0])]])
    assert tiny_model.generate([prompt], 8, processors=[MemFreeProcessor(border)])[0][0][0] != out[0]
    kept = tiny_model.generate([prompt], 8, processors=[MemFreeProcessor(border, include_prompt=False)])[0][0]
    assert kept.tolist() == out.tolist()
    inside = ngrams_of([out], 3)
    held = tiny_model.generate([prompt], 8, processors=[MemFreeProcessor(inside, include_prompt=False)])[0][0]
    assert not ngrams_of([held], 3) & inside


def test_the_counts_are_those_of_a_plain_loop(tiny_model):
    """One greedy row, decoded by hand with a set of tuples."""
    prompt = [40, 41, 42]
    protected = ngrams_of([np.concatenate([prompt, tiny_model.generate([prompt], 12)[0][0]])], 2)
    guard = MemFreeProcessor.for_model(tiny_model, protected)
    out = tiny_model.generate([prompt], 12, processors=[guard])[0][0]
    ids, guarded, blocked = list(prompt), 0, 0
    while len(ids) < 15:
        with torch.no_grad():
            logits = tiny_model.model(torch.tensor([ids])).logits[0, -1]
        banned = [v for v in range(320) if (ids[-1], v) in protected and v != 1]
        guarded += bool(banned)
        blocked += int(logits.argmax()) in banned
        logits[banned] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == 1:
            break
    assert out.tolist() == [i for i in ids[3:] if i != 1]
    assert guard.counts.to_dict() == {
        "choices": len(ids) - 3,
        "guarded": guarded,
        "blocked": blocked,
        "forced_eos": 0,
        "violations": 0,
    }
    assert blocked > 0


def test_rows_that_have_ended_are_guarded_but_not_counted():
    guard = MemFreeProcessor(NgramSet([[2, 5]]), eos_id=1)
    guard.start_batch([1], 1)
    out = guard(torch.tensor([[4, 1, 2]]), torch.zeros(1, 6))
    assert out[0, 5] == -torch.inf
    assert guard.counts.choices == guard.counts.guarded == 0


def test_a_tokenizer_that_is_not_the_corpus_s(tiny_model, tmp_path):
    with pytest.raises(TokenizerMismatchError, match="Build the index or filter again"):
        MemFreeProcessor.for_model(tiny_model, NgramSet([[1, 2]], tokenizer_fingerprint="other"))
    index = CorpusIndex.build(["In the beginning was the word"], tiny_model.tokenizer, tmp_path / "index")
    MemFreeProcessor.for_model(tiny_model, index, 3)
    with pytest.raises(TokenizerMismatchError):
        MemFreeProcessor(index, 3, tokenizer_fingerprint="other")
    bloom = BloomFilter.from_index(index, 3)
    with pytest.raises(TokenizerMismatchError):
        MemFreeProcessor(bloom, tokenizer_fingerprint="other")
    with pytest.raises(TokenizerMismatchError, match="knows the ids 0 to 9"):
        MemFreeProcessor(NgramSet([[1, 500]]))(torch.tensor([[1]]), torch.zeros(1, 10))


def test_bad_input(tmp_path):
    grams = NgramSet([[1, 2, 3]])
    for n in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="n is"):
            MemFreeProcessor(grams, n)
    with pytest.raises(InputError, match="asked for n=4, but its NgramSet holds 3-grams"):
        MemFreeProcessor(grams, 4)
    with pytest.raises(InputError, match="holds no n-grams"):
        MemFreeProcessor("text")
    with pytest.raises(InputError, match="different lengths"):
        MemFreeProcessor({(1, 2), (1, 2, 3)})
    with pytest.raises(InputError, match="where the prompt ends"):
        MemFreeProcessor(grams, include_prompt=False)(torch.tensor([[1, 2]]), torch.zeros(1, 5))
    guard = MemFreeProcessor(grams)
    for lengths in ([], [3], [-1]):
        with pytest.raises(InputError, match="do not fit"):
            guard.start_batch(lengths, 2)
    guard.start_batch([2, 2], 2)
    with pytest.raises(InputError, match="does not belong"):
        guard(torch.tensor([[1, 2]]), torch.zeros(1, 5))
    with pytest.raises(InputError, match="does not belong"):
        guard(torch.tensor([[1], [2]]), torch.zeros(2, 5))
