"""What is in the weights: one measurement a file, each a function `measure_*` that returns a `Measurement`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.audit.alignment import measure_alignment
    from palimpsest.audit.alignment_forgetting import audit_alignment
    from palimpsest.audit.approximate import measure_approximate
    from palimpsest.audit.contrast import measure_contrast
    from palimpsest.audit.contrast_blocks import block_in_block_out
    from palimpsest.audit.contrast_readings import Cloze
    from palimpsest.audit.copyright import measure_copyright
    from palimpsest.audit.discourse import measure_discourse
    from palimpsest.audit.extraction import measure_extraction
    from palimpsest.audit.forecast import memorization_scores
    from palimpsest.audit.function_activation import measure_function_tokens
    from palimpsest.audit.laws import size_law
    from palimpsest.audit.low_perplexity import measure_low_perplexity
    from palimpsest.audit.membership import measure_membership
    from palimpsest.audit.memorization_classes import measure_memorization_classes
    from palimpsest.audit.near_verbatim import measure_near_verbatim
    from palimpsest.audit.probabilistic import measure_probabilistic
    from palimpsest.audit.samples import PrefixSuffix, benchmark_samples, corpus_samples, head_samples, stratified_samples
    from palimpsest.audit.tabular import TabularAudit
    from palimpsest.audit.tabular_learning import measure_few_shot
    from palimpsest.audit.tabular_series import measure_time_series
    from palimpsest.audit.tabular_table import Table
    from palimpsest.audit.vocabulary import VocabularySweep

_HOMES = {
    "Cloze": "contrast_readings",
    "PrefixSuffix": "samples",
    "Table": "tabular_table",
    "TabularAudit": "tabular",
    "VocabularySweep": "vocabulary",
    "audit_alignment": "alignment_forgetting",
    "benchmark_samples": "samples",
    "block_in_block_out": "contrast_blocks",
    "corpus_samples": "samples",
    "head_samples": "samples",
    "measure_alignment": "alignment",
    "measure_approximate": "approximate",
    "measure_contrast": "contrast",
    "measure_copyright": "copyright",
    "measure_discourse": "discourse",
    "measure_extraction": "extraction",
    "measure_few_shot": "tabular_learning",
    "measure_function_tokens": "function_activation",
    "measure_low_perplexity": "low_perplexity",
    "measure_membership": "membership",
    "measure_memorization_classes": "memorization_classes",
    "measure_near_verbatim": "near_verbatim",
    "measure_probabilistic": "probabilistic",
    "measure_time_series": "tabular_series",
    "memorization_scores": "forecast",
    "size_law": "laws",
    "stratified_samples": "samples",
}

__all__ = [
    "Cloze",
    "PrefixSuffix",
    "Table",
    "TabularAudit",
    "VocabularySweep",
    "audit_alignment",
    "benchmark_samples",
    "block_in_block_out",
    "corpus_samples",
    "head_samples",
    "measure_alignment",
    "measure_approximate",
    "measure_contrast",
    "measure_copyright",
    "measure_discourse",
    "measure_extraction",
    "measure_few_shot",
    "measure_function_tokens",
    "measure_low_perplexity",
    "measure_membership",
    "measure_memorization_classes",
    "measure_near_verbatim",
    "measure_probabilistic",
    "measure_time_series",
    "memorization_scores",
    "size_law",
    "stratified_samples",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: samples should not cost the import of scikit-learn."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
