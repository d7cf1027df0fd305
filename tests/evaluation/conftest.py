"""A tiny audit: a corpus of a few documents and what is needed to ask a tiny model for it."""

import numpy as np
import pytest

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.evaluation.plan import AuditSettings

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
