"""A cache folder of its own for every test, and a naive corpus that answers by looking at everything."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))


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
