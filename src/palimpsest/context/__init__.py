"""Longer, cheaper, fairer context for models as they are: cache methods, position encodings, order-free prompts."""
