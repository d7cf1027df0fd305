"""Sequence to sequence: an encoder-decoder that can copy (106), and what is measured with it."""

from __future__ import annotations

from palimpsest.seq2seq.pairs import PairBatch, PairBatches, Vocabulary
from palimpsest.seq2seq.pointer import CopySeq2Seq, pair_loss

__all__ = ["CopySeq2Seq", "PairBatch", "PairBatches", "Vocabulary", "pair_loss"]
