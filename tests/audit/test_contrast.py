"""Memorized against not memorized clozes: the one pass against generation and plain forward passes, the statistics against counting."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palimpsest.audit import Cloze, block_in_block_out, measure_contrast
from palimpsest.audit.contrast import text_factors
from palimpsest.audit.contrast_groups import comparable, compare_groups, concept_cosines, independence, matched, separation
from palimpsest.audit.contrast_items import TEMPLATES, builtin_clozes, builtin_rows, fact_clozes
from palimpsest.audit.contrast_readings import encode_cloze, goes_on, read_clozes, read_items
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import CapabilityError, ContextOverflowError, InputError, TokenizerMismatchError
from palimpsest.measurement import Measurement
from palimpsest.stats import benjamini_hochberg

WORDS = ["beginning", "word", "written", "down", "scraped", "page", "still", "shows", "what", "there", "eye", "read", "hands", "fox", "dog"]


@pytest.fixture(scope="module")
def clozes(tiny_model):
    """Clozes of which some are what the random model writes, whole words or not, and the others are not; two of each concept."""
    rng = np.random.default_rng(0)
    tokenizer = tiny_model.tokenizer
    prompts = [" ".join(rng.choice(WORDS, size=rng.integers(2, 6))) for _ in range(400)]
    written = tiny_model.generate([tokenizer.encode(prompt) for prompt in prompts], 3, stop_at_eos=False)
    made = []
    for number, (prompt, [ids]) in enumerate(zip(prompts, written, strict=True)):
        for count in (1, 2, 3):
            text = tokenizer.decode(ids[:count])
            whole = tokenizer.encode(f"{prompt} {text.strip()}")
            if text[:1] == " " and text.strip() and whole == [*tokenizer.encode(prompt), *ids[:count].tolist()]:
                made.append(Cloze(prompt, text, "ab"[number % 2], concept=f"c{len(made) // 2}"))
    made = made[:24]
    others = [Cloze(prompt, str(rng.choice(WORDS)), "ab"[i % 2], f"d{i // 2}", "NV"[i % 2]) for i, prompt in enumerate(prompts[:40])]
    return [*made, *others]


@pytest.fixture(scope="module")
def readings(tiny_model, clozes):
    return read_clozes(tiny_model, clozes, layers=[0, 1, 2])


def test_memorized_is_what_generation_writes(tiny_model, clozes, readings):
    tokenizer = tiny_model.tokenizer
    for item, memorized, tokens in zip(clozes, readings.memorized, readings.answer_tokens, strict=True):
        ids, cut = encode_cloze(tokenizer, item)
        new = tiny_model.generate([ids[:cut]], int(tokens) + 1, stop_at_eos=False)[0][0]
        same = new[:-1].tolist() == ids[cut:].tolist()
        assert memorized == (same and not goes_on(tokenizer, int(ids[-1]), int(new[-1])))
    assert 3 <= readings.memorized.sum() <= len(clozes) - 3


def test_probabilities_and_states_are_those_of_single_passes(tiny_model, clozes, readings):
    for number in range(0, len(clozes), 7):
        ids, cut = encode_cloze(tiny_model.tokenizer, clozes[number])
        scores = tiny_model.score([ids], start=cut, moments=True)
        np.testing.assert_allclose(readings.logprobs[number], scores.logprobs[0], atol=1e-4)
        assert readings.entropy[number] == pytest.approx(-float(scores.mean[0][0]), abs=1e-4)
        assert readings.first_hit[number] == scores.greedy_hits[0][0]
        vocabulary = [np.append(ids[:cut], token) for token in range(tiny_model.vocab_size)]
        first = np.sort([row[0] for row in tiny_model.score(vocabulary, start=cut).logprobs])[::-1]
        assert readings.max_logprob[number] == pytest.approx(first[0], abs=1e-4)
        assert readings.margin[number] == pytest.approx(first[0] - first[1], abs=1e-4)
        for layer, states in tiny_model.hidden_states([ids], [0, 1, 2])[0].items():
            for place, vector in enumerate((states[cut - 1], states[cut:].mean(axis=0))):
                np.testing.assert_allclose(readings.vectors[number, place, layer], vector, atol=1e-4)
                expected = [vector.mean(), vector.var(), np.linalg.norm(vector)]
                np.testing.assert_allclose(readings.moments[number, place, layer], expected, rtol=1e-3, atol=1e-4)


def test_bos_and_batches_change_what_they_should(tiny_model, clozes):
    from palimpsest.models import HFModel

    small = HFModel(tiny_model.model, tiny_model.tokenizer, batch_tokens=1)
    one, many = read_clozes(small, clozes[:9]), read_clozes(tiny_model, clozes[:9])
    np.testing.assert_allclose(one.vectors, many.vectors, atol=1e-4)
    with_bos = HFModel(tiny_model.model, tiny_model.tokenizer, bos="always")
    found = read_clozes(with_bos, clozes[:9], layers=[2])
    for number, item in enumerate(clozes[:9]):
        ids, cut = encode_cloze(tiny_model.tokenizer, item)
        np.testing.assert_allclose(found.logprobs[number], with_bos.score([ids], start=cut).logprobs[0], atol=1e-4)
        np.testing.assert_allclose(found.vectors[number, 0, 0], with_bos.hidden_states([ids], [2])[0][2][cut - 1], atol=1e-4)


def test_readings_of_some_are_some_of_the_readings(tiny_model, clozes, readings):
    numbers = np.array([5, 2, 30])
    taken = readings.take(numbers)
    assert taken.memorized.tolist() == readings.memorized[numbers].tolist()
    assert all((a == readings.logprobs[i]).all() for a, i in zip(taken.logprobs, numbers, strict=True))
    chosen = [clozes[i] for i in numbers]
    assert measure_contrast(tiny_model, chosen, readings=taken).table["logprob"].to_list() == pytest.approx(
        [float(readings.logprobs[i].astype(float).sum()) for i in numbers]
    )
    with pytest.raises(InputError, match="3 items for 2"):
        measure_contrast(tiny_model, chosen[:2], readings=taken)


def test_a_word_that_goes_on_is_not_complete(tiny_tokenizer):
    last = tiny_tokenizer.encode("the")[-1]
    ids = {tiny_tokenizer.decode([i]): i for i in range(tiny_tokenizer.vocab_size)}
    assert goes_on(tiny_tokenizer, last, ids["s"])
    assert goes_on(tiny_tokenizer, last, ids["7"])
    assert not goes_on(tiny_tokenizer, last, ids[","])
    assert not goes_on(tiny_tokenizer, last, ids[" the"])


def test_the_measurement_is_whole_and_repeats(tiny_model, clozes):
    found = measure_contrast(tiny_model, clozes, layers=[1, 2], seed=3)
    assert Measurement.from_json(found.to_json()).summary == json.loads(found.to_json())["summary"]
    assert found.summary == measure_contrast(tiny_model, clozes, layers=[1, 2], seed=3).summary
    assert found.summary["comparable"]
    tests = found.summary["tests"]
    assert all(entry["adjusted"] >= entry["p"] for entry in tests)
    assert {entry["scope"] for entry in tests} <= {"all", "a", "b"}
    assert found.table["tested"].sum() == len({item.concept for item in clozes}) == found.summary["rates"]["all"]["n"]
    own = found.table.filter(found.table["tested"])
    entry = next(entry for entry in tests if entry["scope"] == "all" and entry["factor"] == "answer_letters")
    letters = np.array([len(answer) for answer in own["answer"]], float)
    expected = compare_groups(letters, own["memorized"].to_numpy())
    assert {name: entry[name] for name in expected} == expected
    assert sum(side["n"] for side in found.summary["margin"].values()) == len(own)
    assert found.summary["labels"]["pos"] is None or found.summary["labels"]["pos"]["degrees"] == 1
    layers = {(row["layer"], row["place"]) for row in found.summary["layers"] if row["scope"] == "all"}
    assert layers == {(1, "prompt"), (1, "answer"), (2, "prompt"), (2, "answer")}


def test_one_group_is_not_comparable(tiny_model, clozes, readings):
    wrong = [replace(item, concept=None) for item, hit in zip(clozes, readings.memorized, strict=True) if not hit][:8]
    found = measure_contrast(tiny_model, wrong)
    assert not found.summary["comparable"]
    assert "0 of 8" in found.summary["reason"]
    assert "tests" not in found.summary
    json.loads(found.to_json())


def test_frequency_is_the_index_count(tiny_model, clozes, readings, tmp_path):
    index = CorpusIndex.build([item.text for item in clozes], tiny_model.tokenizer, tmp_path / "index")
    found = text_factors(tiny_model, clozes, readings, index)
    counts = []
    for item in clozes:
        ids, cut = encode_cloze(tiny_model.tokenizer, item)
        counts.append(index.count(ids[cut:]))
    np.testing.assert_allclose(found["answer_frequency"], np.log1p(counts))
    with pytest.raises(TokenizerMismatchError):
        measure_contrast(_with_tokenizer(tiny_model), clozes, index=index)


def _with_tokenizer(model):
    from palimpsest.models import HFModel
    from palimpsest.tokenizer import Tokenizer

    content = json.loads(model.tokenizer.backend.to_str())
    content["normalizer"] = {"type": "Lowercase"}
    return HFModel(model.model, Tokenizer(type(model.tokenizer.backend).from_str(json.dumps(content))))


def test_blocks_are_what_generation_writes(tiny_model, clozes, readings):
    phrases = [item.text for item, hit in zip(clozes, readings.memorized, strict=True) if hit][:6] + [item.text for item in clozes[-6:]]
    found = block_in_block_out(tiny_model, phrases)
    assert len(found.table) == sum(len(phrase.split()) - 1 for phrase in phrases)
    for row in found.table.iter_rows(named=True):
        parts = phrases[row["phrase"]].split()
        prefix = tiny_model.tokenizer.encode(" ".join(parts[: row["given"]]))
        rest = tiny_model.tokenizer.encode(" ".join(parts))[len(prefix) :]
        new = tiny_model.generate([prefix], len(rest), stop_at_eos=False)[0][0]
        assert row["emitted"] == (new.tolist() == rest)
        assert row["left"] == len(parts) - row["given"]
        assert row["logprob"] == pytest.approx(float(tiny_model.score([[*prefix, *rest]], start=len(prefix)).logprobs[0].sum()), abs=1e-3)
    assert sum(row["n"] for row in found.summary["given"]) == len(found.table)
    assert found.table["emitted"].any()
    with pytest.raises(InputError, match="fewer than two words"):
        block_in_block_out(tiny_model, ["word"])
    with pytest.raises(InputError, match="no list"):
        block_in_block_out(tiny_model, "kick the bucket")


FLOATS = st.floats(-3, 3).map(lambda value: round(value, 1))


@given(st.lists(st.tuples(FLOATS, st.booleans()), min_size=1, max_size=30))
def test_groups_against_counting(pairs):
    values, labels = np.array([value for value, _ in pairs]), np.array([label for _, label in pairs])
    found = compare_groups(values, labels)
    if min(labels.sum(), (~labels).sum()) < 2:
        assert found is None
        assert not comparable(labels)
        return
    wins = [np.sign(a - b) for a in values[labels] for b in values[~labels]]
    assert found["delta"] == pytest.approx(np.mean(wins))
    assert 0 <= found["p"] <= 1
    assert compare_groups(values, ~labels)["delta"] == pytest.approx(-found["delta"])


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=40), st.integers(0, 5))
def test_matching_leaves_equal_lengths(pairs, seed):
    labels, lengths = np.array([label for label, _ in pairs]), np.array([length for _, length in pairs])
    kept = matched(labels, lengths, seed)
    assert len(set(kept.tolist())) == len(kept)
    for length in range(1, 5):
        here = labels[kept][lengths[kept] == length]
        assert here.sum() == (~here).sum() == min((labels & (lengths == length)).sum(), (~labels & (lengths == length)).sum())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=40))
def test_independence_against_the_formula(pairs):
    names, labels = [name for name, _ in pairs], np.array([label for _, label in pairs])
    found = independence(names, labels)
    kinds = sorted(set(names))
    if len(kinds) < 2 or labels.all() or not labels.any():
        assert found is None
        return
    total = 0.0
    for kind in kinds:
        for side in (True, False):
            expected = names.count(kind) * (labels == side).sum() / len(names)
            total += (sum(n == kind and label == side for n, label in pairs) - expected) ** 2 / expected
    assert found["statistic"] == pytest.approx(total)
    assert found["degrees"] == len(kinds) - 1
    assert 0 <= found["v"] <= 1 + 1e-9


@settings(max_examples=40)
@given(
    hnp.arrays(np.float64, (7, 3), elements=st.integers(1, 5).map(float)),
    st.lists(st.sampled_from(["x", "y", None]), min_size=7, max_size=7),
)
def test_cosines_against_all_pairs(vectors, concepts):
    memorized = np.array([True, True, False, False, True, False, True])
    names, cosines, labels = concept_cosines(vectors, memorized, concepts)
    for name, cosine, label in zip(names, cosines, labels, strict=True):
        own = [i for i, concept in enumerate(concepts) if concept == name]
        pairs = [
            vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j]) for k, i in enumerate(own) for j in own[:k]
        ]
        assert cosine == pytest.approx(np.mean(pairs))
        assert label == (True if memorized[own].all() else None if memorized[own].any() else False)
    assert set(names) == {name for name in ("x", "y") if concepts.count(name) > 1}
    with pytest.raises(InputError, match="are zero"):
        concept_cosines(np.zeros((7, 3)), memorized, concepts)


def test_the_probe_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.random(120) < 0.3
    vectors = rng.normal(size=(120, 20))
    nothing = separation(vectors, labels, 0)
    vectors[:, 3] += 3 * labels
    found = separation(vectors, labels, 0)
    assert found["auc"] > 0.9 > nothing["auc"]
    assert abs(found["shuffled_auc"] - 0.5) < 0.12
    assert found == separation(vectors, labels, 0)
    assert found["silhouette"] > nothing["silhouette"]
    assert separation(vectors, np.zeros(120, dtype=bool), 0) is None


def test_shuffled_labels_are_rarely_a_discovery():
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(30, 80)).round(1)
    labels = np.arange(80) < 25
    quiet = 0
    for _ in range(50):
        shuffled = rng.permutation(labels)
        quiet += bool(benjamini_hochberg([compare_groups(factor, shuffled)["p"] for factor in factors]).min() > 0.05)
    assert quiet >= 45


def test_bad_figures_and_doors(tiny_model, clozes, narrow_door):
    with pytest.raises(InputError, match="not finite"):
        compare_groups(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(CapabilityError):
        read_clozes(narrow_door(tiny_model, ["logprobs", "text"]), clozes)
    with pytest.raises(InputError, match="no clozes"):
        read_clozes(tiny_model, [])
    with pytest.raises(InputError, match="0 to 2"):
        read_clozes(tiny_model, clozes, layers=[3])
    with pytest.raises(ContextOverflowError):
        read_clozes(tiny_model, [Cloze("word " * 200, "fox")])
    with pytest.raises(InputError, match="lacks a side"):
        Cloze("kick the", " ")


def test_items_are_read_and_their_faults_named(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"prompt": "kick the ", "answer": " bucket", "more": 1}\n\n{"prompt": "a", "answer": "b", "concept": "c", "pos": null}\n'
    )
    assert read_items(path) == [Cloze("kick the", "bucket"), Cloze("a", "b", concept="c")]
    for text, fault in (
        ("", "holds no cloze"),
        ('{"prompt": "a"}', "Line 1"),
        ("[1]", "Line 1"),
        ('{"prompt": 1, "answer": "b"}', "no text"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=fault):
            read_items(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_items(tmp_path / "none")


def test_the_built_in_clozes_are_sound():
    rows = builtin_rows()
    assert {kind: len(own) for kind, own in rows.items()} == {"idiom": 366, "capital": 150, "element": 90, "work": 60}
    assert all(len({row[0] for row in own}) == len(own) for own in rows.values())
    items = builtin_clozes()
    assert len({(item.prompt, item.answer) for item in items}) == len(items) == 966
    assert len(fact_clozes("capital", rows["capital"])) == 300
    assert all("{}" in form for forms in TEMPLATES.values() for form in forms)
