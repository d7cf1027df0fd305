"""Recognition, recall and retention against naive loops, ties and swaps, what is studied in which order, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit import retention
from palimpsest.audit.retention import forgetting_curve, retain
from palimpsest.audit.retention_foils import CONDITIONS, gibberish, random_words, read_condition, synonym, unrelated
from palimpsest.audit.retention_probes import LONGEST, Learning, MassedBatches, batches_of, recall, recognition, rouge_n, study
from palimpsest.audit.similarity import similarities
from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError
from palimpsest.models import HFModel
from palimpsest.training.examples import Example

SEEN = [
    "the quick brown fox jumps over it",
    "a palimpsest is a page that shows",
    "in the beginning was the word",
    "sheep were counted by wizards",
]
FOILS = [
    "the slow brown dog sleeps under",
    "a book is a thing that one reads",
    "at the end there was the deed",
    "cows were weighed by a judge",
]
STREAM = [f"{n} sheep were counted, and then {n + 7} more were written down" for n in range(12)]
FAST = Learning(lr=1e-2, batch_size=2, seed=3)


@pytest.fixture(scope="module")
def studied(tiny_model):
    return study(tiny_model, SEEN, 12, FAST)


# --- recognition --------------------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_a_naive_loop(tiny_model):
    for model in (tiny_model, HFModel(tiny_model.model, tiny_model.tokenizer, bos="always")):
        found = recognition(model, SEEN, FOILS)
        for column, texts in (("seen", SEEN), ("foil", FOILS)):
            for row, text in zip(found.iter_rows(named=True), texts, strict=True):
                ids = model.tokenizer.encode(text)
                assert row[f"tokens_{column}"] == len(ids)
                offset = int(model.prepends_bos)
                with torch.no_grad():
                    log_p = model.model(torch.tensor([[0] * offset + ids])).logits[0].log_softmax(-1)
                total = sum(float(log_p[t + offset - 1, ids[t]]) for t in range(1, len(ids)))
                assert row[f"loss_{column}"] == pytest.approx(-total / (len(ids) - 1), abs=1e-5)
        assert found["recognized"].to_list() == [float(a < b) for a, b in zip(found["loss_seen"], found["loss_foil"], strict=True)]


def test_equal_texts_are_a_tie_and_a_swap_turns_the_answer(tiny_model):
    assert recognition(tiny_model, SEEN, SEEN)["recognized"].to_list() == [0.5] * 4
    forth, back = (recognition(tiny_model, *sides)["recognized"] for sides in ((SEEN, FOILS), (FOILS, SEEN)))
    assert (forth + back).to_list() == [1.0] * 4


def test_what_a_text_stands_beside_does_not_count(tiny_model):
    together = recognition(tiny_model, SEEN, FOILS)
    for n in range(4):
        alone = recognition(tiny_model, [SEEN[n]], [FOILS[n]])
        assert alone["loss_seen"][0] == pytest.approx(together["loss_seen"][n], abs=1e-4)
        assert alone["recognized"][0] == together["recognized"][n]


def test_seen_texts_are_recognised_and_the_model_is_left_alone(tiny_model, studied):
    copy, left = studied
    assert recognition(copy, SEEN, FOILS)["recognized"].to_list() == [1.0] * 4
    assert left.losses[-1] < left.losses[0]
    assert len(left.losses) == 12 * 2
    assert copy.fingerprint != tiny_model.fingerprint


# --- recall -------------------------------------------------------------------------------------------------------------------------


def test_the_cue_is_the_first_half_and_the_rest_is_as_long_as_it_was(tiny_model, monkeypatch):
    rows = [tiny_model.tokenizer.encode(text) for text in SEEN]
    alone = [tiny_model.generate([row[: len(row) // 2]], len(row) - len(row) // 2, stop_at_eos=False)[0][0] for row in rows]
    compared = []

    def kept(candidates, references):
        compared.append((candidates, references))
        return similarities(candidates, references)

    monkeypatch.setattr("palimpsest.audit.retention_probes.similarities", kept)
    recall(tiny_model, SEEN)
    decoded = [tiny_model.tokenizer.decode(ids) for ids in alone]
    halves = [tiny_model.tokenizer.decode(row[len(row) // 2 :]) for row in rows]
    wholes = [tiny_model.tokenizer.decode([*row[: len(row) // 2], *ids]) for row, ids in zip(rows, alone, strict=True)]
    assert compared[0] == ([words(text) for text in decoded], [words(text) for text in halves])
    assert compared[1] == ([words(text) for text in wholes], [words(text) for text in SEEN])


def test_what_was_studied_is_recalled(tiny_model, studied):
    copy = study(tiny_model, SEEN, 40, FAST)[0]
    after, before = recall(copy, SEEN), recall(tiny_model, SEEN)
    assert after["exact"].all()
    for name in ("rouge1", "rouge2", "rougeL"):
        assert after[f"{name}_cont"].to_list() == after[f"{name}_full"].to_list() == [1.0] * 4
    assert not before["exact"].any()
    assert (before["rouge1_full"] > before["rouge1_cont"]).all()  # the cue is given away


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6), st.integers(1, 3))
def test_rouge_against_a_count_by_hand(candidate, reference, n):
    a, b = ([tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for text in (candidate, reference))
    shared = sum(min(a.count(gram), b.count(gram)) for gram in set(a))
    precision, share = (shared / len(side) if side else 0.0 for side in (a, b))
    expected = 2 * precision * share / (precision + share) if shared else 0.0
    assert rouge_n(candidate, reference, n) == pytest.approx(expected)


# --- study and retention ------------------------------------------------------------------------------------------------------------


def test_exposures_are_epochs_or_in_a_row(tiny_model):
    examples = [Example((n, n + 1)) for n in range(5)]
    massed = MassedBatches(examples, 2, seed=1, times=3)
    spaced = MassedBatches(examples, 2, seed=1)
    order = [massed.chosen(k) for k in range(9)]
    assert order[0] == order[1] == order[2] != order[3]
    assert Counter(example for batch in order for example in batch) == dict.fromkeys(examples, 3)
    assert [spaced.chosen(k) for k in range(3)] == order[::3]
    assert massed.fingerprint != spaced.fingerprint
    long = "word " * 400
    assert len(batches_of(tiny_model, [long], FAST).chosen(0)[0].ids) == LONGEST
    seen = []
    study(tiny_model, SEEN, 3, FAST, after=lambda model, shown: seen.append((shown, model.model.training)))
    study(tiny_model, SEEN, 3, Learning(1e-3, 2, massed=True), after=lambda model, shown: seen.append((shown, model.model.training)))
    assert seen == [(1, False), (2, False), (3, False), (3, False)]


def test_being_asked_in_between_changes_nothing(tiny_model):
    ends = []
    for after in (None, lambda model, shown: recall(model, SEEN)):
        copy, _ = study(tiny_model, SEEN, 2, FAST, after=after)
        ends.append(np.concatenate([p.detach().numpy().ravel() for p in copy.model.parameters()]))
    np.testing.assert_array_equal(*ends)


@pytest.fixture(scope="module")
def retained(tiny_model):
    return retain(tiny_model, SEEN, FOILS, STREAM, exposures=6, updates=8, checkpoints=(1, 3, 99), learning=FAST)


def test_what_is_asked_and_when(tiny_model, retained):
    moments = [(row["phase"], row["exposures"], row["updates"]) for row in retained.summary["asked"]]
    assert moments == [("before", 0, 0), *(("study", n, 0) for n in range(1, 7)), *(("stream", 6, at) for at in (0, 1, 3, 8))]
    assert retained.table.height == 4 * len(moments)
    rows = dict(retained.table.group_by("phase", "exposures", "updates"))
    for exposures, moment in ((2, ("study", 2, 0)), (6, ("stream", 6, 0))):  # a longer study begins like a shorter one
        copy, _ = study(tiny_model, SEEN, exposures, FAST)
        assert rows[moment]["loss_seen"].to_list() == recognition(copy, SEEN, FOILS)["loss_seen"].to_list()
    assert rows["before", 0, 0]["loss_seen"].to_list() == recognition(tiny_model, SEEN, FOILS)["loss_seen"].to_list()
    assert rows["stream", 6, 8]["loss_seen"].mean() > rows["stream", 6, 0]["loss_seen"].mean()
    first = retained.summary["asked"][-1]
    assert first["recognized"]["estimate"] == rows["stream", 6, 8]["recognized"].mean()
    assert sum(part["pairs"] for part in retained.summary["by_length"].values()) == 4
    assert [point["x"] for point in retained.curves["retention"].series[0].points] == [0, 1, 3, 8]
    assert set(retained.summary["forgetting"]["recall"]) == {"power", "exponential"}
    json.loads(retained.to_json())
    again = retain(tiny_model, SEEN, FOILS, STREAM, exposures=6, updates=8, checkpoints=(1, 3, 99), learning=FAST)
    assert again.table.equals(retained.table)


def test_the_optimizer_is_new_unless_it_is_kept(tiny_model, retained):
    kept = retain(tiny_model, SEEN, FOILS, STREAM, exposures=6, updates=8, checkpoints=(1, 3), learning=FAST, keep_optimizer=True)
    last = [m.table.filter((m.table["phase"] == "stream") & (m.table["updates"] == 1))["loss_seen"].to_list() for m in (kept, retained)]
    assert last[0] != last[1]
    assert kept.provenance["keep_optimizer"] is True


def test_fits_find_the_law_that_made_the_figures():
    t = np.array([0, 1, 3, 10, 30, 60])
    for name, values in (("power", 0.7 * (1 + t) ** -0.4), ("exponential", 0.7 * np.exp(-0.05 * t))):
        fits = forgetting_curve(t, values)
        assert fits[name]["a"] == pytest.approx(0.7, abs=1e-3)
        assert fits[name]["rmse"] < 1e-4 < min(fit["rmse"] for other, fit in fits.items() if other != name)
    with pytest.raises(InputError, match="2 updates"):
        forgetting_curve([0, 1], [1, 0])


# --- foils --------------------------------------------------------------------------------------------------------------------------


def test_unrelated_foils_are_as_long_as_can_be(tiny_tokenizer):
    pool = [" ".join(["fox"] * n) for n in (9, 2, 5, 12)]
    seen = ["dog " * 3 + "dog", "dog " * 8 + "dog"]
    assert unrelated(seen, pool, tiny_tokenizer) == [pool[2], pool[0]]
    assert unrelated(["dog dog dog dog dog", "a dog dog dog dog"], pool[2:3] + pool[:1], tiny_tokenizer)[0] != ""
    chosen = unrelated(SEEN, FOILS, tiny_tokenizer)
    assert sorted(chosen) == sorted(FOILS)
    for pool, said in ((FOILS[:3], "3 texts"), ([*FOILS, SEEN[0]], "1 of them seen")):
        with pytest.raises(InputError, match=said):
            unrelated(SEEN, pool, tiny_tokenizer)


@given(st.text(alphabet="abcde fg", min_size=1, max_size=30), st.integers(0, 5))
def test_gibberish_keeps_letters_and_lengths(text, seed):
    mixed = gibberish(text, seed)
    assert Counter(mixed.replace(" ", "")) == Counter(text.replace(" ", ""))
    assert sorted(map(len, mixed.split())) == sorted(map(len, text.split()))
    assert sorted("".join(sorted(word)) for word in mixed.split()) == sorted("".join(sorted(word)) for word in text.split())
    assert mixed == gibberish(text, seed)


def test_word_lists_and_synonyms():
    lists = random_words(["One fox, two dogs and a THIRD fox; it is 4 o'clock."], 3, words=4, seed=2)
    assert len(lists) == 3
    for text in lists:
        assert len(set(text.split())) == 4
        assert set(text.split()) <= {"one", "fox", "two", "dogs", "and", "third", "clock"}
    with pytest.raises(InputError, match="7 words"):
        random_words(["One fox, two dogs and a THIRD fox; it is 4 o'clock."], 1, words=8)
    assert synonym("the fox and the foxes", {"fox": "vulpine"}) == "the vulpine and the foxes"
    assert {synonym("fox dog", {"fox": "f", "dog": "d"}, seed) for seed in range(9)} == {"f dog", "fox d"}
    assert synonym("nothing here", {"fox": "f"}) is None


def test_the_papers_files(tmp_path):
    folder = tmp_path / "expt3"
    folder.mkdir()
    (folder / "seen_data_1.json").write_text('{"sent": "a b", "sent_id": 1}\n\n{"sent": "c"}\n')
    (folder / "unseen_data_1.json").write_text('{"sent": "a x"}\n{"sent": "y"}\n')
    assert read_condition(tmp_path, 3, 1) == (["a b", "c"], ["a x", "y"])
    (folder / "unseen_data_1.json").write_text('{"sent": "a x"}\n')
    with pytest.raises(InputError, match="2 seen and 1 other"):
        read_condition(tmp_path, 3, 1)
    (folder / "unseen_data_1.json").write_text('{"text": "a x"}\n')
    for condition, part, said in ((3, 1, "cannot be read"), (3, 0, "cannot be read"), (7, 0, "condition is 7")):
        with pytest.raises(InputError, match=said):
            read_condition(tmp_path, condition, part)
    assert sorted(CONDITIONS) == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_remembered_is_refused(tiny_model):
    for refused, said in (
        (lambda: recognition(tiny_model, SEEN, FOILS[:2]), "4 seen texts, 2 foils"),
        (lambda: recognition(tiny_model, [], []), "0 seen texts"),
        (lambda: recognition(tiny_model, ["a"], ["b c d"]), "has 1 tokens"),
        (lambda: recall(tiny_model, []), "nothing to recall"),
        (lambda: recall(tiny_model, ["xy"]), "has 2 tokens"),
        (lambda: study(tiny_model, SEEN, 0), "exposures is 0"),
        (lambda: study(tiny_model, [], 1), "Of 0 texts"),
        (lambda: study(tiny_model, [*SEEN, SEEN[0]], 1), "Of 5 texts 4 are different"),
        (lambda: retain(tiny_model, SEEN, [*FOILS[:3], SEEN[0]], STREAM), "1 foils or texts"),
        (lambda: retain(tiny_model, SEEN, FOILS, [*STREAM, SEEN[1]]), "1 foils or texts"),
        (lambda: retain(tiny_model, SEEN, FOILS, []), "0 texts for 60 updates"),
        (lambda: retain(tiny_model, SEEN, FOILS, STREAM, updates=0), "12 texts for 0 updates"),
    ):
        with pytest.raises(InputError, match=said):
            refused()


def test_nothing_is_studied_when_the_stream_cannot_be(tiny_model, monkeypatch):
    asked = []
    monkeypatch.setattr(retention, "recognition", lambda *texts: asked.append(texts))
    with pytest.raises(InputError, match="1 tokens"):
        retain(tiny_model, SEEN, FOILS, [*STREAM, "="])
    assert not asked


def test_three_right_answers_of_three_are_no_certainty(retained):
    for row in retained.summary["asked"]:
        figure = row["exact"]
        assert figure["high"] - figure["low"] > 0.1
