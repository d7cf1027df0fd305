"""Corpora: reading documents, indexing their tokens, and finding where any passage stands in them."""

from __future__ import annotations

from palimpsest.corpus.bloom import BloomFilter
from palimpsest.corpus.documents import Document, read_documents
from palimpsest.corpus.duplicates import Duplicates
from palimpsest.corpus.facts import Fact
from palimpsest.corpus.factworld import FactWorld
from palimpsest.corpus.index import CorpusIndex
from palimpsest.corpus.infgram import NextTokenDist
from palimpsest.corpus.infini_layout import InfiniGramFolder
from palimpsest.corpus.near import NearMatch, NearMatches
from palimpsest.corpus.near_duplicates import NearDuplicates
from palimpsest.corpus.occurrences import Positions, SaRange
from palimpsest.corpus.shard import Hit
from palimpsest.corpus.splits import Split, given_split, leak_free_split, leakage_report
from palimpsest.corpus.trace import Span

__all__ = [
    "BloomFilter",
    "CorpusIndex",
    "Document",
    "Duplicates",
    "Fact",
    "FactWorld",
    "Hit",
    "InfiniGramFolder",
    "NearDuplicates",
    "NearMatch",
    "NearMatches",
    "NextTokenDist",
    "Positions",
    "SaRange",
    "Span",
    "Split",
    "given_split",
    "leak_free_split",
    "leakage_report",
    "read_documents",
]
