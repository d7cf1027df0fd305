"""The embedded demonstration: an audit of six twin models of which we know the last copy of every planted text.

The package ships the twins of the laboratory (067): *standard* ones, trained on novels, and *perturbed* ones, trained on the same
novels in the same order with books, biographies, passwords and test items planted in them 1 to 256 times. The audit is the ordinary
one; what is special is that its answers can be held against the truth, and that every model has a twin that never saw the texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.membership_passes import METHODS
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.evaluation.plan import AuditSettings
from palimpsest.evaluation.protocol import claim_folder, run_audit
from palimpsest.evaluation.steps import JobProgress
from palimpsest.evaluation.suite.planning import Estimate
from palimpsest.experiments.canaries import Suite, one_thread, twins
from palimpsest.experiments.planted_texts import base_text
from palimpsest.models import LanguageModel

SETTINGS = AuditSettings(contexts=(24, 36, 42, 48), suffix=16, guard_n=10, guard_samples=24, leaks=12, attacks=METHODS)
GENERAL = 4000  # paragraphs of the novels in which nothing is planted
TITLE = "What three small models remember of texts that were planted in their training data"


def demonstrate(
    out: str | Path,
    *,
    seed: int = 0,
    suite: str = "quick",
    announce: Callable[[Estimate], None] | None = None,
    progress: JobProgress | None = None,
) -> dict[str, Any]:
    """Audits the shipped twins; writes the same files as any audit.

    Args:
        out: the folder of the results; an earlier run in it is continued.
        seed: of every random choice of the audit (the twins are what they are).
        suite, announce: see `run_audit`.
        progress: called with (what is being done, units done, units in all).

    Returns:
        The evaluation card.

    Raises:
        IndexCorruptError: a shipped file has changed.
        StorageError: `out` cannot be written.
    """
    if progress:
        progress("opening the twins", 0, 1)
    folder = claim_folder(out)
    shipped = twins()
    audited: list[LanguageModel] = [shipped.models[f"perturbed-{size}"] for size in shipped.config.sizes]
    settings = replace(SETTINGS, seed=seed)
    with one_thread():  # these models are so small that a second thread costs more than it gives
        return run_audit(
            audited,
            shipped.index,
            folder,
            references={f"perturbed-{size}": shipped.models[f"standard-{size}"] for size in shipped.config.sizes},
            samples=shipped.samples(max(settings.contexts), settings.suffix),
            protected=planted_index(shipped, folder / "index"),
            unprotected=ordinary_text(),
            general=general_index(shipped, folder / "general"),
            settings=settings,
            corpus_name="novels with planted texts",
            title=TITLE,
            demonstration=True,
            suite=suite,
            announce=announce,
            progress=progress,
        )


def planted_index(suite: Suite, folder: Path) -> CorpusIndex:
    """The index of the planted texts alone: what the guard protects."""
    planted = suite.ledger.filter(pl.col("copies") >= 1)
    documents = (Document(row["id"], ids=np.array(row["ids"], dtype=np.int64)) for row in planted.iter_rows(named=True))
    return CorpusIndex.build(documents, suite.tokenizer, folder)


def general_index(suite: Suite, folder: Path) -> CorpusIndex:
    """The index of novels alone: it knows how their language goes, and holds none of the passages, planted or not."""
    rows = suite.tokenizer.encode_batch(base_text().train[:GENERAL])
    documents = (Document(str(number), ids=np.array(row, dtype=np.int64)) for number, row in enumerate(rows) if row)
    return CorpusIndex.build(documents, suite.tokenizer, folder)


def ordinary_text(words: int = 4000) -> tuple[str, ...]:
    """Paragraphs of chapters that no twin was trained on, about `words` in all: text that a guard should leave alone."""
    chosen: list[str] = []
    for paragraph in base_text().held_out:
        if words <= 0:
            break
        if len(paragraph.split()) >= 20:  # a line of dialogue is shorter than the guard's n-grams
            chosen.append(paragraph)
            words -= len(paragraph.split())
    return tuple(chosen)
