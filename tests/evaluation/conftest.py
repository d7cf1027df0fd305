"""A tiny audit: a corpus of a few documents and what is needed to ask a tiny model for it; and a model that answers by rule."""

import re

import numpy as np
import pytest

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.evaluation.plan import AuditSettings
from palimpsest.models.base import LanguageModel, Scores

SMALL = AuditSettings(
    samples=12,
    contexts=(4, 8),
    suffix=6,
    edit_share=0.2,
    guard_n=3,
    guard_edits=1,
    guard_samples=4,
    leaks=4,
    tries=(1, 1000),
    confidences=(0.5,),
)


@pytest.fixture(scope="session")
def documents(tiny_model):
    """Twelve documents, half of them written by the model itself, so that some of it is surely extracted; the rest is prose."""
    rng = np.random.default_rng(0)
    starts = [rng.integers(2, 300, size=8) for _ in range(6)]
    own = [
        np.concatenate([start, found[0]]) for start, found in zip(starts, tiny_model.generate(starts, 24, stop_at_eos=False), strict=True)
    ]
    prose = [rng.integers(2, 300, size=40) for _ in range(6)]
    return [Document(f"doc-{number}", ids=ids) for number, ids in enumerate([*own, *prose])]


@pytest.fixture(scope="session")
def small_index(documents, tiny_tokenizer, tmp_path_factory):
    """The index of `documents`."""
    return CorpusIndex.build(documents, tiny_tokenizer, tmp_path_factory.mktemp("corpus") / "small.index")


@pytest.fixture(scope="session")
def passages(documents):
    """One passage a document, every copy count known, and six that stand nowhere."""
    rng = np.random.default_rng(1)
    known = [
        PrefixSuffix(d.ids[:14], 8, 6, {"id": d.id, "domain": "own" if number < 6 else "prose", "copies": 1 + number % 3})
        for number, d in enumerate(documents)
    ]
    return known + [
        PrefixSuffix(rng.integers(2, 300, size=14), 8, 6, {"id": f"never-{k}", "domain": "prose", "copies": 0}) for k in range(6)
    ]


@pytest.fixture(scope="session")
def settings():
    """An audit of seconds."""
    return SMALL


class Reader(LanguageModel):
    """Answers from the newest dated sentence in its prompt that names what is asked for, else from what it has learned, else not at all.

    Args:
        tokenizer: any.
        learned: subject -> answer.
        subjects: names that may be asked for.
    """

    door, capabilities, parameters, prepends_bos = "scripted", frozenset({"text", "logprobs"}), None, False
    name, context_length, fingerprint = "reader", 4096, "0" * 64

    def __init__(self, tokenizer, learned, subjects):
        self.tokenizer, self.learned, self.subjects, self.prompts = tokenizer, learned, subjects, []

    def answer(self, prompt):
        evidence, question = prompt.rsplit("Question:", 1)
        subject = next(name for name in self.subjects if name in question)
        seen = sorted(re.findall(rf"On (\d{{4}}-\d\d-\d\d): [^\n]*{subject}[^\n]* (\S+(?: [A-Z]\S+)*)\.\n", evidence))
        return seen[-1][1] if seen else self.learned.get(subject, "I do not know.")

    def generate(self, prefixes, max_new_tokens, **options):
        self.prompts += [np.asarray(ids) for ids in prefixes]
        texts = [self.answer(self.tokenizer.decode(ids)) for ids in prefixes]
        return [[np.array(self.tokenizer.encode(f" {text}\nQuestion: and so on")[:max_new_tokens])] for text in texts]

    def score(self, batch_ids, *, start=1, **options):
        rows = []
        for ids, first in zip(batch_ids, start, strict=True):
            told = self.answer(self.tokenizer.decode(ids[:first]))
            rows.append(np.full(len(ids) - first, -0.1 if told in self.tokenizer.decode(ids[first:]) else -3.0, np.float32))
        return Scores(rows, [row > -1 for row in rows])


@pytest.fixture(scope="session")
def make_reader(tiny_tokenizer):
    """Makes a `Reader` from what it has learned and the names that may be asked for."""
    return lambda learned, subjects: Reader(tiny_tokenizer, learned, subjects)
