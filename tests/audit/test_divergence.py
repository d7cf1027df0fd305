"""Divergence: where a continuation leaves the repetition, and what of the rest stands in the corpus."""

import numpy as np
import pytest

from palimpsest.audit.divergence import frequent_words, measure_divergence
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import CapabilityError, InputError

WORD, SECRET = 40, np.arange(50, 80)


class Repeater:
    """Behind at least two of the same token it writes that token `after` times more and then `secret`; else tokens that stand nowhere."""

    name, door, parameters, prepends_bos, context_length, fingerprint = "repeater", "scripted", None, False, 4096, "0" * 64

    def __init__(self, like, after=3):
        self.tokenizer, self.after, self.capabilities = like.tokenizer, after, frozenset({"text"})
        self.describe, self.require, self.lacks = (getattr(type(like), name).__get__(self) for name in ("describe", "require", "lacks"))

    def generate(self, prefixes, max_new_tokens, *, n=1, progress=None, **how):
        made = []
        for row in prefixes:
            repeated = len(row) > 1 and (row == row[0]).all()
            ids = np.concatenate([np.full(self.after, row[0]), SECRET, np.full(200, 200)]) if repeated else np.full(200, 201)
            made.append([ids[:max_new_tokens]] * n)
        return made


@pytest.fixture(scope="module")
def index(tiny_tokenizer, tmp_path_factory):
    documents = [Document("secret", ids=SECRET), Document("words", ids=np.array([WORD] * 5 + [41] * 9))]
    return CorpusIndex.build(documents, tiny_tokenizer, tmp_path_factory.mktemp("divergence") / "index")


def test_what_a_repetition_falls_into_is_found_and_the_control_is_clean(tiny_model, index):
    measured = measure_divergence(Repeater(tiny_model), [WORD, 41], index, repeats=5, new_tokens=64, n=2, long=30)
    rows = {state: measured.table.filter(measured.table["state"] == state) for state in ("repeated", "once")}
    assert rows["repeated"]["diverged_at"].to_list() == [3] * 4
    assert rows["repeated"]["longest"].to_list() == [30] * 4
    assert rows["repeated"]["verbatim"].to_list() == pytest.approx([30 / 61] * 4)
    assert rows["repeated"]["extracted"].all()
    assert not rows["once"]["extracted"].any()
    assert measured.summary["repeated"]["extracted"]["estimate"] == 1
    assert measured.summary["test"]["difference"]["estimate"] == 1


def test_who_never_leaves_the_repetition_has_diverged_nowhere(tiny_model, index):
    measured = measure_divergence(Repeater(tiny_model, after=500), [WORD], index, repeats=5, new_tokens=16, n=2)
    row = measured.table.row(0, named=True)
    assert (row["diverged_at"], row["tokens"], row["longest"], row["text"]) == (None, 0, 0, "")
    assert measured.summary["repeated"]["diverged"]["estimate"] == 0


def test_words_come_before_other_letters_each_by_their_counts(tiny_model, tiny_tokenizer, tmp_path):
    index = CorpusIndex.build([Document("one", "the word and the word and the fox, 1 2 3 and the")], tiny_tokenizer, tmp_path / "index")
    found = frequent_words(index, tiny_model, 10_000).tolist()
    texts = [tiny_tokenizer.decode([token]) for token in found]
    assert all(text.strip().isalpha() for text in texts)
    whole = [text.startswith(" ") and len(text) > 2 for text in texts]
    assert any(whole)
    assert whole == sorted(whole, reverse=True)
    for kind in (True, False):
        counts = [index.count([token]) for token, is_word in zip(found, whole, strict=True) if is_word is kind]
        assert counts == sorted(counts, reverse=True)
    assert frequent_words(index, tiny_model, 2).tolist() == found[:2]


def test_a_real_model_and_wrong_arguments(tiny_model, index):
    assert measure_divergence(tiny_model, [WORD], index, repeats=4, new_tokens=8, n=2).table.height == 4
    for wrong in ({"repeats": 1}, {"n": 0}, {"new_tokens": 0}):
        with pytest.raises(InputError, match="repeats"):
            measure_divergence(tiny_model, [WORD], index, **wrong)
    for few, n in (([], 2), ([WORD], 1)):
        with pytest.raises(InputError, match=f"{len(few)} tokens"):
            measure_divergence(tiny_model, few, index, n=n)
    mute = Repeater(tiny_model)
    mute.capabilities = frozenset({"logprobs"})
    with pytest.raises(CapabilityError, match="text"):
        measure_divergence(mute, [WORD], index)
