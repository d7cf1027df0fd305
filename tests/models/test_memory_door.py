"""A memory-based model behind the contract of all models: scoring, writing, and an audit from end to end."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import CapabilityError, InputError, ModelNotFoundError, TokenizerMismatchError
from palimpsest.evaluation.protocol import AuditSettings, run_audit
from palimpsest.models import GREEDY, Sampler, load_model
from palimpsest.models.memory_based import MemoryBasedLM
from palimpsest.models.memory_door import MemoryModel, MemoryView
from palimpsest.tokenizer import Tokenizer

SAMPLERS = (GREEDY, Sampler(), Sampler(0.7), Sampler(1.0, top_k=5), Sampler(0.8, top_k=40, top_p=0.9), Sampler(1.0, top_p=0.5))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def documents():
    """Texts in which every token depends on the two before it, mostly."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(12):
        ids = rng.integers(2, 60, 80)
        for t in range(2, len(ids)):
            ids[t] = (ids[t - 1] * 5 + ids[t - 2]) % 58 + 2 if rng.random() < 0.7 else ids[t]
        out.append(ids)
    return out


@pytest.fixture(scope="module", params=["igtree", "tribl2"])
def door(request, documents, tiny_tokenizer):
    return MemoryModel(MemoryBasedLM(3, request.param).fit(documents, tiny_tokenizer), name=request.param)


@pytest.fixture(scope="module")
def rows(documents):
    return [documents[0][:30], documents[1][5:6], documents[2][10:40] + 1, documents[3][:2], np.arange(50, 75)]


def test_scores_are_those_of_the_whole_distribution(door, rows):
    scores = door.score(rows, moments=True, samplers=SAMPLERS)
    for index, row in enumerate(rows):
        p = door.model.probabilities([row[:t] for t in range(1, len(row))])
        logp = np.log(p)
        target = np.arange(len(row) - 1), row[1:]
        np.testing.assert_allclose(scores.logprobs[index], logp[target], atol=1e-5)
        np.testing.assert_allclose(scores.logprobs[index], door.model.logprobs(row)[1:], atol=1e-5)
        np.testing.assert_array_equal(scores.greedy_hits[index], logp.astype(np.float32).argmax(1) == row[1:])
        np.testing.assert_allclose(scores.mean[index], (p * logp).sum(1), atol=1e-4)
        np.testing.assert_allclose(scores.var[index], (p * logp**2).sum(1) - (p * logp).sum(1) ** 2, atol=1e-3)
        np.testing.assert_allclose(scores.sampled[Sampler()][index], logp[target], atol=1e-5)
        for sampler in SAMPLERS:
            assert scores.sampled[sampler][index].shape == (len(row) - 1,)
    assert scores.logprobs[1].shape == (0,)
    starts = [10, 1, 30, 2, 24]
    cut = door.score(rows, start=starts)
    for index, first in enumerate(starts):
        np.testing.assert_allclose(cut.logprobs[index], scores.logprobs[index][first - 1 :], atol=1e-6)


def test_long_rows_are_scored_in_pieces(door, rows, monkeypatch):
    whole = door.score(rows, moments=True, samplers=SAMPLERS)
    monkeypatch.setattr("palimpsest.models.memory_door.CELLS", 7 * door.model.vocab_size)
    pieces = door.score(rows, moments=True, samplers=SAMPLERS)
    for one, other in ((whole.logprobs, pieces.logprobs), (whole.mean, pieces.mean), (whole.sampled[GREEDY], pieces.sampled[GREEDY])):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_greedy_continuation_is_a_row_of_hits(door, rows):
    written = door.generate(rows, 8, stop_at_eos=False)
    full = [np.concatenate([row, ids[0]]) for row, ids in zip(rows, written, strict=True)]
    hits = door.score(full, start=[len(row) for row in rows]).greedy_hits
    assert all(len(row) == 8 and row.all() for row in hits)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "n": 2}, {"temperature": 0.9, "top_k": 20, "n": 3, "seed": 5}], ids=["greedy", "beam", "sample"]
)
@pytest.mark.parametrize("remember", ["nothing", "prompt", "text"])
def test_continuations_do_not_depend_on_the_batch(documents, tiny_tokenizer, rows, options, remember):
    model = MemoryModel(MemoryBasedLM(3).fit(documents, tiny_tokenizer), remember=remember)
    together = model.generate(rows[:4], 5, **options)
    alone = model.generate(rows[:1], 5, **options)[0]
    assert [ids.tolist() for ids in together[0]] == [ids.tolist() for ids in alone]
    assert [len(copies) for copies in together] == [options.get("n", 1)] * 4


def test_beams_find_at_least_what_greedy_finds(door, rows):
    def total(ids):
        return door.score([np.concatenate([rows[0], ids])], start=len(rows[0])).logprobs[0].sum()

    beam = door.generate(rows[:1], 6, num_beams=4, n=2, stop_at_eos=False)[0]
    assert total(beam[0]) >= total(door.generate(rows[:1], 6, stop_at_eos=False)[0][0]) - 1e-5
    assert total(beam[0]) >= total(beam[1])


def test_sampling_follows_the_distribution(door, rows):
    drawn = np.array([ids[0] for ids in door.generate(rows[:1], 1, temperature=1.0, top_k=5, n=400, stop_at_eos=False)[0]])
    p = door.model.probabilities([rows[0]])[0]
    p[p < np.sort(p)[-5]] = 0
    p /= p.sum()
    share = np.bincount(drawn, minlength=len(p)) / len(drawn)
    assert (np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / len(drawn)) + 1e-9).all()


class Forbid(LogitsProcessor):
    """Bans one token."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        return scores.index_fill(-1, torch.tensor([self.token]), -torch.inf)


def test_processors_rule(door, rows):
    first = int(door.generate(rows[:1], 1)[0][0][0])
    assert int(door.generate(rows[:1], 1, processors=[Forbid(first)])[0][0][0]) != first


def test_eos_ends_a_continuation(tiny_tokenizer):
    eos = tiny_tokenizer.eos_id
    model = MemoryModel(MemoryBasedLM(2).fit([[5, 6, 7, eos], [8, 6, 7, eos]], tiny_tokenizer))
    assert model.generate([[5, 6]], 5)[0][0].tolist() == [7]
    assert model.generate([[5, 6]], 3, stop_at_eos=False)[0][0].tolist()[:2] == [7, eos]


def test_what_it_reads_it_can_remember(documents, tiny_tokenizer):
    """A prompt that repeats something new: only a model that remembers its prompt goes on with it."""
    memory = MemoryBasedLM(3).fit(documents, tiny_tokenizer)
    new = [100, 101, 102, 103, 104, 105]
    prompt = [*new, *new, *new[:2]]
    assert MemoryModel(memory).generate([prompt], 1)[0][0].tolist() != [102]
    for remember in ("prompt", "text"):
        model = MemoryModel(memory, remember=remember)
        assert model.generate([prompt, [3, 4]], 4)[0][0].tolist() == new[2:]
        assert model.fingerprint != MemoryModel(memory).fingerprint
    assert len(memory.memory) == sum(map(len, documents))  # the model itself has learnt nothing


def test_without_backoff_only_votes_count(documents, tiny_tokenizer):
    model = MemoryModel(MemoryBasedLM(3, backoff="stop").fit(documents, tiny_tokenizer))
    row = np.append(documents[0][:6], 300)
    scores = model.score([row], moments=True)
    assert np.isneginf(scores.logprobs[0][-1])
    assert np.isfinite(scores.mean[0]).all()
    assert model.generate([row], 2)[0][0].shape == (2,)


def test_transformers_sees_a_model(door, rows):
    view = MemoryView(door.model)
    logits = view(torch.tensor(rows[0])[None]).logits[0]
    np.testing.assert_allclose(logits.exp().sum(-1), 1, atol=1e-4)
    np.testing.assert_allclose(logits[:-1].gather(-1, torch.tensor(rows[0][1:])[:, None])[:, 0], door.logprobs(rows[:1])[0], atol=1e-5)
    padded = torch.tensor(np.concatenate([[0, 0, 0], rows[0]]))[None]
    mask = torch.tensor([[0, 0, 0] + [1] * len(rows[0])])
    torch.testing.assert_close(view(padded, attention_mask=mask, logits_to_keep=1).logits[0, 0], logits[-1])


def test_one_name_opens_it(documents, tiny_tokenizer, tmp_path):
    memory = MemoryBasedLM(3).fit(documents, tiny_tokenizer)
    memory.save(tmp_path / "mine")
    model = load_model(f"memory:{tmp_path / 'mine'}")
    direct = MemoryModel(memory)
    assert (model.name, model.door, model.parameters, model.prepends_bos) == ("mine", "memory", None, False)
    assert model.fingerprint == direct.fingerprint
    assert model.capabilities == {"logprobs", "text"}
    np.testing.assert_array_equal(model.score(documents[:1]).logprobs[0], direct.score(documents[:1]).logprobs[0])
    with pytest.raises(InputError, match="padding"):
        load_model(f"memory:{tmp_path / 'mine'}", bos="always")
    with pytest.raises(ModelNotFoundError, match="memory:"):
        load_model(f"memory:{tmp_path}")


def test_ids_without_a_tokenizer(documents, tiny_tokenizer, tmp_path):
    MemoryBasedLM(3).fit(documents).save(tmp_path / "ids")
    with pytest.raises(InputError, match="tokenizer="):
        load_model(f"memory:{tmp_path / 'ids'}")
    model = load_model(f"memory:{tmp_path / 'ids'}", tokenizer=tiny_tokenizer)
    assert model.model.vocab_size == tiny_tokenizer.vocab_size
    assert np.isfinite(model.logprobs([[2, 319]])[0]).all()


def test_bad_input_is_named(door, tiny_tokenizer):
    with pytest.raises(InputError, match="id 320"):
        door.score([[5, 320]])
    with pytest.raises(InputError, match="empty"):
        door.generate([[]], 3)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        door.generate([[5]], 0)
    with pytest.raises(CapabilityError, match="'weights'"):
        door.hidden_states([[5]], [0])
    with pytest.raises(InputError, match="nothing, prompt, text"):
        MemoryModel(door.model, remember="all")
    other = Tokenizer(tiny_tokenizer.backend.from_str(tiny_tokenizer.backend.to_str()))
    other.backend.add_tokens(["quagga"])
    with pytest.raises(TokenizerMismatchError):
        MemoryModel(door.model, other)


def test_an_audit_runs_on_it_and_tells_the_truth(tmp_path, documents, tiny_tokenizer):
    """A memory of half of the corpus: the audit finds that half, and nothing of what was never learnt; the guard holds."""
    docs = [Document(f"doc-{number}", ids=ids) for number, ids in enumerate(documents)]
    index = CorpusIndex.build(docs, tiny_tokenizer, tmp_path / "index")
    model = MemoryModel(MemoryBasedLM(6).fit(documents[:6], tiny_tokenizer))
    samples = [
        PrefixSuffix(ids[:14], 8, 6, {"id": str(number), "domain": "learnt" if number < 6 else "not", "copies": int(number < 6)})
        for number, ids in enumerate(documents)
    ]
    settings = AuditSettings(
        samples=12, contexts=(4, 8), suffix=6, guard_n=3, guard_samples=4, leaks=4, tries=(1, 1000), confidences=(0.5,)
    )
    card = run_audit(model, index, tmp_path / "out", samples=samples, settings=settings)
    assert [part["status"] for part in card["sections"]].count("measured") >= 4
    written = [np.array_equal(model.generate([s.prefix], 6, stop_at_eos=False)[0][0], s.suffix) for s in samples]
    assert Counter(written[:6])[True] >= 5
    assert card["tiles"][0]["value"] == pytest.approx(np.mean(written[:6]))
    assert not any(written[6:])
