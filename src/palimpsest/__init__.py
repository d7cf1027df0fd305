"""Palimpsest: what a language model remembers, where it has it from, and what to do about it.

>>> import palimpsest
>>> model = palimpsest.load_model("smollm2-135m")                      # doctest: +SKIP
>>> index = palimpsest.CorpusIndex.build("corpus/", model.tokenizer, "corpus.index")  # doctest: +SKIP
>>> palimpsest.run_audit(model, index, "report/")                      # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex
    from palimpsest.evaluation.protocol import run_audit
    from palimpsest.evaluation.tables import run_table_audit
    from palimpsest.measurement import Measurement
    from palimpsest.models import LanguageModel, Sampler, load_model

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that `import palimpsest` costs nothing.
_PUBLIC = {
    "CorpusIndex": "palimpsest.corpus",
    "LanguageModel": "palimpsest.models",
    "Measurement": "palimpsest.measurement",
    "Sampler": "palimpsest.models",
    "load_model": "palimpsest.models",
    "run_audit": "palimpsest.evaluation.protocol",
    "run_table_audit": "palimpsest.evaluation.tables",
}

__all__ = ["CorpusIndex", "LanguageModel", "Measurement", "Sampler", "__version__", "load_model", "run_audit", "run_table_audit"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")
