"""Copyright traps: making, planting, removing, detecting, against naive oracles."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit.traps import BUCKETS, Trap, TrapFactory, TrapSet, _quotas, _Similar, as_planted
from palimpsest.audit.traps_detection import combined, detect, owner_ranks
from palimpsest.audit.traps_injection import COPIES, Manifest, context_of, inject, remove
from palimpsest.errors import ContextOverflowError, CorpusError, InputError, TokenizerMismatchError
from palimpsest.models.base import Scores

WIDE = ((1.0, 1e9),)
TEXT = "In the beginning was the word, and the word was written down, and what was written down was scraped off. "


def traps_of(n: int, lengths=(3,), bucket=(1.0, 11.0)) -> TrapSet:
    return TrapSet([Trap(f"t{length}-{i}", f"q{i}z of{i} x{length}", length, bucket, 5.0) for length in lengths for i in range(n)])


@pytest.fixture(scope="module")
def made(tiny_model) -> TrapSet:
    return TrapFactory(tiny_model, temperatures=(0.5, 1.0), cell=1e9, max_jaccard=0.5, batch=64).make(8, (6, 9), WIDE, seed=3)


@pytest.fixture(scope="module")
def planted(made):
    return inject([TEXT * (2 + i) for i in range(9)], made, (1, 3), siblings=1, min_words=5, seed=1)


def test_traps_have_their_length_their_tokens_and_their_perplexity(made, tiny_model):
    tokenizer = tiny_model.tokenizer
    assert Counter(trap.length for trap in made.traps) == {6: 8, 9: 8}
    assert len({trap.id for trap in made.traps}) == 16
    for trap in made.traps:
        ids = as_planted(tokenizer, trap.text)
        assert len(ids) == trap.length
        assert trap.text == trap.text.strip()
        # the same tokens inside any document
        assert tokenizer.encode(f"down {trap.text} and")[len(tokenizer.encode("down")) :][: trap.length] == ids.tolist()
        lp = tiny_model.score([ids]).logprobs[0]
        assert trap.perplexity == pytest.approx(float(np.exp(-lp.astype(float).mean())), rel=1e-5)
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids.tolist())
    sets = [set(as_planted(tokenizer, trap.text).tolist()) for trap in made.traps]
    assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)) <= 0.5
    samples = made.provenance["samples"]
    assert samples["drawn"] >= 16 + samples["other tokens when encoded again"]


def test_making_follows_the_seed(made, tiny_model):
    factory = TrapFactory(tiny_model, temperatures=(0.5, 1.0), cell=1e9, max_jaccard=0.5, batch=64)
    assert factory.make(8, (6, 9), WIDE, seed=3).traps == made.traps
    assert factory.make(8, (6, 9), WIDE, seed=4).traps != made.traps


def test_a_set_survives_its_file(made, tmp_path):
    made.save(tmp_path / "traps.json")
    assert TrapSet.load(tmp_path / "traps.json").traps == made.traps
    (tmp_path / "bad.json").write_text('{"traps": [{"id": 1}], "provenance": {}}')
    with pytest.raises(CorpusError, match="not a set of traps"):
        TrapSet.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CorpusError, match="not JSON"):
        TrapSet.load(tmp_path / "bad.json")
    with pytest.raises(CorpusError, match="cannot be read"):
        TrapSet.load(tmp_path / "none.json")


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_cells_get_equally_many(n, cells, seed):
    quotas = _quotas(1, 1 + cells, 1.0, n, np.random.default_rng(seed))
    assert len(quotas) == cells
    assert quotas.sum() == n
    assert quotas.max() - quotas.min() <= 1


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=12), st.floats(0, 1))
def test_similarity_is_jaccards(rows, limit):
    like, kept = _Similar(), []
    for row in rows:
        naive = any(len(set(row) & other) / len(set(row) | other) > limit for other in kept)
        assert like.exceeds(np.array(row), limit) == naive
        like.add(np.array(row))
        kept.append(set(row))


def test_the_papers_buckets():
    assert BUCKETS[0] == (1, 11)
    assert BUCKETS[-1] == (91, 101)
    assert len(BUCKETS) == 10
    assert COPIES == (1, 10, 100, 1000)


@pytest.mark.parametrize(
    ("arguments", "settings", "match"),
    [
        ((0, 5), {}, "n 0"),
        ((1, 1), {}, r"lengths \[1\]"),
        ((1, 5, [(1, 11), (5, 20)]), {}, "buckets"),
        ((1, 5, [(0.5, 2)]), {}, "buckets"),
        ((1, 5), {"temperatures": (0.0,)}, "temperatures"),
        ((1, 5), {"batch": 0}, "batch 0"),
        ((1, 5, [(1, float("inf"))]), {}, "too many cells"),
        ((1, 5, [(1, 2e4)]), {"cell": 1.0}, "too many cells"),
        ((1, 5, [(1.0, 1.0001)]), {"max_rounds": 1, "batch": 4}, "missing"),
    ],
)
def test_what_cannot_be_made_says_why(tiny_model, arguments, settings, match):
    with pytest.raises(InputError, match=match):
        TrapFactory(tiny_model, **settings).make(*arguments)


def test_a_tokenizer_that_joins_words_across_spaces_is_refused():
    import tokenizers
    from tokenizers import models

    from palimpsest.tokenizer import Tokenizer

    joined = tokenizers.Tokenizer(models.BPE({"a": 0, " ": 1, "b": 2, "a ": 3, "a b": 4}, [("a", " "), ("a ", "b")]))
    with pytest.raises(InputError, match="no tokens of its own"):
        as_planted(Tokenizer(joined), "b")


# Spaces in a row, at the ends, line breaks and characters of several bytes: all must come back.
TEXTS = st.lists(st.text("ab é\n漢", min_size=0, max_size=40), min_size=4, max_size=8)


@given(TEXTS, st.integers(0, 50))
def test_removing_the_spans_restores_the_text_byte_for_byte(texts, seed):
    words = [text.count(" ") + 1 for text in texts]
    fits = sum(count >= 2 for count in words)
    traps = traps_of(8)
    if fits < 4:
        with pytest.raises(InputError, match="4 traps are to be planted"):
            inject(texts, traps, (1, 2), min_words=2, seed=seed)
        return
    new, manifest = inject(texts, traps, (1, 2), min_words=2, seed=seed)
    assert [text.encode() for text in remove(new, manifest)] == [text.encode() for text in texts]
    hosts = {planting.document for planting in manifest.plantings}
    assert len(hosts) == 4
    for i, (old, text) in enumerate(zip(texts, new, strict=True)):
        assert i in hosts or old == text
    for planting in manifest.plantings:
        text, trap = new[planting.document], planting.trap.text
        assert len(text) == len(texts[planting.document]) + planting.copies * (len(trap) + 1)
        for start, end in planting.spans:
            assert text[start:end] == f"{trap} "
            assert start == 0 or text[start - 1] == " "  # never inside a word
        assert len(set(planting.spans)) == planting.copies
        # distinct words of the old text stand behind the copies
        before = [start - i * (len(trap) + 1) for i, (start, _) in enumerate(planting.spans)]
        assert len(set(before)) == planting.copies
        for copy, place in enumerate(before):
            assert context_of(new, planting, copy) == texts[planting.document][:place].removesuffix(" ")


def test_every_place_can_be_filled():
    new, manifest = inject(["one two"], TrapSet(traps_of(2).traps), (2,), min_words=2, seed=0)
    trap = manifest.plantings[0].trap.text
    assert new == [f"{trap} one {trap} two"]


@given(st.integers(1, 2), st.integers(0, 50))
def test_fuzzy_copies_differ_in_as_many_words_and_are_removed_too(fuzzy, seed):
    documents = [f"{i} the word\nwas  written down and scraped off" for i in range(4)]
    new, manifest = inject(documents, traps_of(8), (1, 5), min_words=5, fuzzy=fuzzy, seed=seed)
    assert remove(new, manifest) == documents
    for planting in manifest.plantings:
        words = planting.trap.text.split(" ")
        assert len(planting.variants) == planting.copies
        for (start, end), variant in zip(planting.spans, planting.variants, strict=True):
            assert new[planting.document][start:end] == f"{variant} "
            other = variant.split(" ")
            assert len(other) == len(words)
            changed = [new_word for old, new_word in zip(words, other, strict=True) if old != new_word]
            assert len(changed) == fuzzy
            assert set(changed) <= set(documents[planting.document].split())


def test_a_trap_keeps_a_word_of_its_own():
    with pytest.raises(InputError, match="3 words, of which 3 are to be replaced"):
        inject(["a b c d"], traps_of(2), (1,), min_words=1, fuzzy=3)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_cells_are_balanced_and_groups_disjoint(siblings, groups, seed):
    traps = traps_of((1 + siblings) * 3 * groups, lengths=(3, 5))
    documents = [f"{i} " + "word " * 9 for i in range(6 * groups + 2)]
    new, manifest = inject(documents, traps, (1, 2, 4), siblings=siblings, min_words=5, seed=seed)
    assert Counter((p.trap.length, p.copies) for p in manifest.plantings) == {(n, c): groups for n in (3, 5) for c in (1, 2, 4)}
    used = [trap.id for planting in manifest.plantings for trap in (planting.trap, *planting.siblings)]
    assert sorted(used) == sorted(trap.id for trap in traps.traps)
    assert all(sibling.length == p.trap.length for p in manifest.plantings for sibling in p.siblings)
    assert (new, manifest) == inject(documents, traps, (1, 2, 4), siblings=siblings, min_words=5, seed=seed)


def test_which_trap_of_a_group_is_planted_is_drawn_by_lot():
    traps = traps_of(2)
    first = [inject(["a b"], traps, (1,), min_words=1, seed=seed)[1].plantings[0].trap.id for seed in range(200)]
    assert 60 < Counter(first)["t3-0"] < 140


@pytest.mark.parametrize(
    ("documents", "n", "settings", "match"),
    [
        (["a b c"], 4, {"copies": (1,)}, "2 traps are to be planted, but only 1 of 1"),
        (["a b c"], 2, {"copies": (9,)}, "room for 3 copies, 9"),
        (["a b c"] * 9, 3, {"copies": (1,)}, "cannot be shared out equally"),
        (["a b c"] * 9, 2, {"copies": (1, 2)}, "cannot be shared out equally"),
        (["a b c"] * 9, 2, {"copies": (1, 1)}, "copies"),
        (["a b c"] * 9, 2, {"copies": (0,)}, "copies"),
        (["a b c"] * 9, 2, {"copies": (1,), "siblings": 0}, "siblings 0"),
        (["a b c"] * 9, 2, {"copies": (1,), "fuzzy": -1}, "fuzzy -1"),
        (["a b c"] * 9, 0, {"copies": (1,)}, "no trap"),
    ],
)
def test_what_cannot_be_planted_says_why(documents, n, settings, match):
    with pytest.raises(InputError, match=match):
        inject(documents, traps_of(n), min_words=1, **settings)


def test_a_changed_document_is_not_restored(planted):
    documents, manifest = planted
    planting = manifest.plantings[0]
    changed = list(documents)
    changed[planting.document] = "X" + changed[planting.document]
    with pytest.raises(InputError, match=f"where the manifest has {planting.trap.id}"):
        remove(changed, manifest)
    with pytest.raises(InputError, match="speaks of document"):
        remove(documents[:0], manifest)


@pytest.mark.parametrize("fuzzy", [0, 1])
def test_a_manifest_survives_its_file(tmp_path, fuzzy):
    manifest = inject([TEXT] * 4, traps_of(8), (1, 3), min_words=5, fuzzy=fuzzy)[1]
    manifest.save(tmp_path / "manifest.json")
    read = Manifest.load(tmp_path / "manifest.json")
    assert read.plantings == manifest.plantings
    assert read.seed == manifest.seed
    value = json.loads((tmp_path / "manifest.json").read_text()) | {"format": "other"}
    (tmp_path / "other.json").write_text(json.dumps(value))
    with pytest.raises(CorpusError, match="format is 'other'"):
        Manifest.load(tmp_path / "other.json")


class Planted:
    """A door that gives the traps it has seen, in whatever context, a higher probability than `inner` does."""

    def __init__(self, inner, seen):
        self.inner, self.seen = inner, [list(as_planted(inner.tokenizer, text)) for text in seen]

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def score(self, rows, *, start=1, progress=None):
        scores = self.inner.score(rows, start=start, progress=progress)
        known = [any(list(row)[-len(ids) :] == ids for ids in self.seen) for row in rows]
        lps = [lp * 0.5 if hit else lp for lp, hit in zip(scores.logprobs, known, strict=True)]
        return Scores(lps, scores.greedy_hits)


def test_a_planted_member_is_found_and_nobody_else_is_accused(planted, tiny_model):
    _, manifest = planted
    guilty = Planted(tiny_model, [planting.trap.text for planting in manifest.plantings])
    found = detect(guilty, manifest, reference=tiny_model)
    assert {row["auc"] for row in found.summary["cells"] if row["method"] == "ratio"} == {1.0}
    assert found.summary["owner"]["p"] == pytest.approx(2.0 ** -len(manifest.plantings))
    assert found.table.filter(~pl.col("member"))["ratio"].to_list() == [1.0] * 8
    # the same scores on both sides: chance, and every tie counts against the owner
    innocent = detect(tiny_model, manifest, reference=tiny_model)
    assert {row["auc"] for row in innocent.summary["cells"] if row["method"] == "ratio"} == {0.5}
    assert innocent.summary["owner"]["p"] == 1.0
    assert innocent.summary["owner"]["score"] == "ratio"


def test_scores_are_those_of_single_passes(planted, tiny_model, other_model):
    _, manifest = planted
    table = detect(tiny_model, manifest, reference=other_model).table
    texts = {trap.id: trap.text for planting in manifest.plantings for trap in (planting.trap, *planting.siblings)}
    for row in table.iter_rows(named=True):
        ids = as_planted(tiny_model.tokenizer, texts[row["id"]])
        lp, theirs = (model.score([ids]).logprobs[0].astype(float) for model in (tiny_model, other_model))
        assert row["perplexity"] == pytest.approx(np.exp(-lp.mean()), rel=1e-4)
        assert row["ratio"] == pytest.approx(np.exp(theirs.mean() - lp.mean()), rel=1e-4)
        assert row["min-k"] == pytest.approx(np.sort(lp)[: int(np.ceil(0.2 * len(lp) - 1e-9))].mean(), abs=1e-4)
        assert row["context"] == 0
        assert (row["p"] is not None) == row["member"]
    assert table.group_by("group").agg(pl.col("member").sum(), pl.len()).select("member", "len").unique().rows() == [(1, 2)]


def test_without_a_reference_perplexities_are_ranked(planted, tiny_model):
    _, manifest = planted
    found = detect(tiny_model, manifest)
    assert "ratio" not in found.table.columns
    assert found.summary["owner"]["score"] == "perplexity"
    for group in found.table.partition_by("group"):
        member = group.filter(pl.col("member"))
        assert member["p"][0] == (group["perplexity"] <= member["perplexity"][0]).sum() / 2


def test_context_stands_before_member_and_sibling_and_is_not_scored(planted, tiny_model):
    documents, manifest = planted
    table = detect(tiny_model, manifest, documents=documents, context_tokens=7, seed=2).table
    for group, planting in zip(table.partition_by("group", maintain_order=True), manifest.plantings, strict=True):
        assert group["context"].n_unique() == 1
        shown = group["context"][0]
        possible = []
        for copy in range(planting.copies):
            before = tiny_model.tokenizer.encode(context_of(documents, planting, copy))[-7:]
            if len(before) == shown:
                ids = np.concatenate([np.array(before, np.int64), as_planted(tiny_model.tokenizer, planting.trap.text)])
                lp = tiny_model.score([ids], start=max(1, shown)).logprobs[0].astype(float)
                possible.append(float(np.exp(-lp.mean())))
        assert any(group["perplexity"][0] == pytest.approx(value, rel=1e-4) for value in possible)
    assert table["context"].max() == 7
    assert table.equals(detect(tiny_model, manifest, documents=documents, context_tokens=7, seed=2).table)


def test_another_tokenizer_is_compared_by_character_only(planted, tiny_model):
    from palimpsest.experiments.planted_texts import EOS
    from palimpsest.tokenizer import Tokenizer

    backend = type(tiny_model.tokenizer.backend).from_str(tiny_model.tokenizer.backend.to_str())
    backend.add_special_tokens([EOS])
    other = Planted(tiny_model, [])
    other.tokenizer, other.name = Tokenizer(backend, bos_id=0, eos_id=1), "other"
    _, manifest = planted
    with pytest.raises(TokenizerMismatchError):
        detect(tiny_model, manifest, reference=other)
    assert detect(tiny_model, manifest, reference=other, unit="character").table["ratio"].to_list() == [1.0] * 16


def test_what_cannot_be_detected_says_why(planted, tiny_model):
    documents, manifest = planted
    with pytest.raises(InputError, match="without documents"):
        detect(tiny_model, manifest, context_tokens=5)
    with pytest.raises(InputError, match="unit 'word'"):
        detect(tiny_model, manifest, unit="word")
    with pytest.raises(InputError, match="0 plantings"):
        detect(tiny_model, replace(manifest, plantings=[]))
    with pytest.raises(ContextOverflowError):
        detect(tiny_model, manifest, documents=documents, context_tokens=125)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_the_combined_p_is_the_share_of_all_outcomes(sizes, data):
    ranks = [data.draw(st.integers(1, size)) for size in sizes]
    outcomes = list(itertools.product(*(range(1, size + 1) for size in sizes)))
    share = sum(sum(outcome) <= sum(ranks) for outcome in outcomes) / len(outcomes)
    found = combined(np.array(ranks), np.array(sizes))
    assert found["p"] == pytest.approx(share)
    assert found["groups"] == len(sizes)
    # valid: never more often below a level than the level says
    if len(outcomes) <= 64:
        ps = np.array([combined(np.array(outcome), np.array(sizes))["p"] for outcome in outcomes])
        assert all((ps <= level + 1e-12).mean() <= level + 1e-9 for level in np.unique(ps))


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5))
def test_ranks_count_ties_against_the_owner(groups):
    scores = np.array([float(value) for group in groups for value in group])
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    ranks, sizes = owner_ranks(scores, numbers)
    assert ranks.tolist() == [sum(value <= group[0] for value in group) for group in groups]
    assert sizes.tolist() == [len(group) for group in groups]
