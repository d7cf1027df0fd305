"""A cache folder of its own for every test, a naive corpus that answers by looking at everything, and infini-gram on the same corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydivsufsort
import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written without waiting for the disk: hundreds of small indexes in seconds."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


class NaiveCorpus:
    """Every answer by a scan of all documents: the definition of the index's queries."""

    def __init__(self, documents: list[list[int]]) -> None:
        self.documents = documents

    def occurrences(self, query: list[int]) -> list[tuple[int, int]]:
        m = len(query)
        return [(d, i) for d, doc in enumerate(self.documents) for i in range(len(doc) - m + 1) if doc[i : i + m] == query]

    def count(self, query: list[int]) -> int:
        return len(self.occurrences(query))

    def next_tokens(self, query: list[int]) -> dict[int, int]:
        ends = ((d, i + len(query)) for d, i in self.occurrences(query))
        return dict(Counter(self.documents[d][end] for d, end in ends if end < len(self.documents[d])))

    def infgram(self, prompt: list[int], min_count: int) -> tuple[dict[int, int], int]:
        """What follows the longest suffix of the prompt that occurs `min_count` times and goes on at least once, and its length."""
        for start in range(len(prompt)):
            after = self.next_tokens(prompt[start:])
            if after and self.count(prompt[start:]) >= min_count:
                return after, len(prompt) - start
        return self.next_tokens([]), 0

    def longest(self, text: list[int], start: int) -> int:
        length = 0
        while start + length < len(text) and self.count(text[start : start + length + 1]):
            length += 1
        return length

    def maximal_spans(self, text: list[int], min_len: int) -> list[tuple[int, int]]:
        found = [(i, j) for i in range(len(text)) for j in range(i + min_len, len(text) + 1) if self.count(text[i:j])]
        return [(i, j) for i, j in found if not any(a <= i and j <= b and (a, b) != (i, j) for a, b in found)]


@pytest.fixture
def naive() -> type[NaiveCorpus]:
    return NaiveCorpus


@pytest.fixture
def infini_gram(tmp_path: Path) -> Callable[..., Any]:
    """Documents of u16 ids as an index of infini-gram; `end` is what it calls the end of a document, an id that stands in none."""
    engine = pytest.importorskip("infini_gram.engine")

    def build(docs: list[list[int]], end: int) -> Any:
        raw = np.concatenate([np.array([65535, *doc], np.uint16) for doc in docs]).tobytes()
        (tmp_path / "tokenized.0").write_bytes(raw)
        starts = np.cumsum([0] + [2 * (len(doc) + 1) for doc in docs[:-1]]).astype(np.uint64)
        (tmp_path / "offset.0").write_bytes(starts.tobytes())
        suffixes = pydivsufsort.divsufsort(np.frombuffer(raw, np.uint8).copy())
        order = suffixes[suffixes % 2 == 0].astype(np.uint64)  # its table is in the order of the little-endian bytes
        width = int(np.ceil(np.log2(len(raw)) / 8))
        (tmp_path / "table.0").write_bytes(order.view(np.uint8).reshape(-1, 8)[:, :width].tobytes())
        # Its prefetching reads before the table, and may crash there, for a context that comes first in the order of the suffixes.
        quiet = {"ds_prefetch_depth": 0, "sa_prefetch_depth": 0, "od_prefetch_depth": 0}
        return engine.InfiniGramEngine(str(tmp_path), eos_token_id=end, vocab_size=65535, token_dtype="u16", **quiet)

    return build


def runs(n: int) -> np.ndarray:
    return np.full(n, 7, np.uint16)


def periodic(n: int) -> np.ndarray:
    return np.tile(np.array([3, 1, 2, 1], np.uint16), n // 4)


def fibonacci(n: int) -> np.ndarray:
    a, b = [0], [0, 1]
    while len(b) < n:
        a, b = b, b + a
    return np.array(b[:n], np.uint16)


def copied_documents(n: int) -> np.ndarray:
    text = np.random.default_rng(1).integers(0, 5000, n // 8)
    return np.concatenate([np.concatenate([[65535], text]) for _ in range(8)]).astype(np.uint16)


def mixed(n: int) -> np.ndarray:
    """Frequent symbols, whose lists have tables, in crowds; and a copy that ends with the text."""
    rng = np.random.default_rng(2)
    half = np.concatenate([rng.integers(0, 3, n // 4), np.minimum(rng.zipf(1.3, n // 4), 900)]).astype(np.uint16)
    return np.concatenate([half, half])


REPEATING = {make.__name__: make for make in (runs, periodic, fibonacci, copied_documents, mixed)}


@pytest.fixture
def repeating() -> dict[str, Callable[[int], np.ndarray]]:
    """Makers of about n tokens that repeat themselves, u16 (n,), as sorting likes them least, by name."""
    return REPEATING


@pytest.fixture(params=REPEATING)
def repeats(request: pytest.FixtureRequest) -> Callable[[int], np.ndarray]:
    """Each maker of `repeating` in turn."""
    return REPEATING[request.param]
