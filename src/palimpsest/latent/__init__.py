"""Learned memory around a backbone whose weights stay as they are."""

from __future__ import annotations

from palimpsest.latent.memory_bank import Memory, MemoryBank
from palimpsest.latent.memory_tokens import MemoryTokens

__all__ = ["Memory", "MemoryBank", "MemoryTokens"]
