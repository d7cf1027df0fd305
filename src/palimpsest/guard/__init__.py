"""Decode-time guards: what a model may write out."""

from __future__ import annotations

from palimpsest.guard.check import protected_ngrams
from palimpsest.guard.cost import measure_guard_cost
from palimpsest.guard.memfree import GuardCounts, MemFreeProcessor
from palimpsest.guard.ngrams import NgramSet

__all__ = ["GuardCounts", "MemFreeProcessor", "NgramSet", "measure_guard_cost", "protected_ngrams"]
