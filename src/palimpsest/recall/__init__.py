"""Recall from outside the context: where a passage stands, and what it says."""

from __future__ import annotations

from palimpsest.recall.reference import Article, Reference, ReferenceRecall

__all__ = ["Article", "Reference", "ReferenceRecall"]
