"""Longer, cheaper, fairer context for models as they are: cache methods, position encodings, order-free prompts."""

from palimpsest.context.attach import ContextMethod, LayerInfo, Session, attach
from palimpsest.context.catalogue import Method, Recommendation, make, method, methods, recommend
from palimpsest.context.compose import compose
from palimpsest.context.layers import PositionedLayer
from palimpsest.context.prefill import Prefilled, prefill
from palimpsest.context.rotary import RotaryMap, abf
from palimpsest.context.scoring import attention_stats

__all__ = [
    "ContextMethod",
    "LayerInfo",
    "Method",
    "PositionedLayer",
    "Prefilled",
    "Recommendation",
    "RotaryMap",
    "Session",
    "abf",
    "attach",
    "attention_stats",
    "compose",
    "make",
    "method",
    "methods",
    "prefill",
    "recommend",
]
