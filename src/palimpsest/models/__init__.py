"""Doors to causal language models: weights in a folder or on the hub, GGUF files, completion endpoints, memory-based models.

>>> from palimpsest.models import load_model
>>> model = load_model("smollm2-135m")                              # doctest: +SKIP
>>> model.score([model.tokenizer.encode("In the beginning")])       # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.models.base import GREEDY, LanguageModel, Sampler, Scores
    from palimpsest.models.endpoint import EndpointModel
    from palimpsest.models.hf import HFModel
    from palimpsest.models.load import load_model
    from palimpsest.models.memory_based import MemoryBasedLM
    from palimpsest.models.memory_door import MemoryModel
    from palimpsest.models.ray_model import RayModel
    from palimpsest.models.registry import KNOWN, fetch
    from palimpsest.models.score_cache import ScoreCache

# Public names and where they live; imported on first use: torch and transformers take seconds, and a list of models needs neither.
_PUBLIC = {
    "EndpointModel": "palimpsest.models.endpoint",
    "GREEDY": "palimpsest.models.base",
    "HFModel": "palimpsest.models.hf",
    "KNOWN": "palimpsest.models.registry",
    "LanguageModel": "palimpsest.models.base",
    "MemoryBasedLM": "palimpsest.models.memory_based",
    "MemoryModel": "palimpsest.models.memory_door",
    "RayModel": "palimpsest.models.ray_model",
    "Sampler": "palimpsest.models.base",
    "ScoreCache": "palimpsest.models.score_cache",
    "Scores": "palimpsest.models.base",
    "fetch": "palimpsest.models.registry",
    "load_model": "palimpsest.models.load",
}

__all__ = [
    "GREEDY",
    "KNOWN",
    "EndpointModel",
    "HFModel",
    "LanguageModel",
    "MemoryBasedLM",
    "MemoryModel",
    "RayModel",
    "Sampler",
    "ScoreCache",
    "Scores",
    "fetch",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'palimpsest.models' has no attribute {name!r}")
