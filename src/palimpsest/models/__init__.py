"""Doors to causal language models: weights in a folder or on the hub, GGUF files, completion endpoints."""

from palimpsest.models.base import GREEDY, LanguageModel, Sampler, Scores
from palimpsest.models.hf import HFModel
from palimpsest.models.load import load_model

__all__ = ["GREEDY", "HFModel", "LanguageModel", "Sampler", "Scores", "load_model"]
