"""Training a model on without losing what it knew: what is trained of it, and strategies as hooks of the one training loop."""

from __future__ import annotations

from palimpsest.continual.trainable import IA3, FreezeLayers, FreezeModules, Full, Lora, Trainable, trained_on

__all__ = ["IA3", "FreezeLayers", "FreezeModules", "Full", "Lora", "Trainable", "trained_on"]
