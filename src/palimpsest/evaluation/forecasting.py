"""A forecast as a job that stays on the disk: every model scores the same sequences in pieces, and a killed run goes on.

System 006; what a score is and how forecasts are compared stands in `palimpsest.audit.forecast`. Models are opened one after the
other, so that a whole series of checkpoints needs the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest import __version__
from palimpsest.audit.forecast import forecast, memorization_scores, score_summary, training_compute
from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.errors import InputError
from palimpsest.evaluation.plan import fingerprint_samples
from palimpsest.evaluation.record import slug
from palimpsest.evaluation.steps import Job, JobProgress, Step
from palimpsest.files import sha256_json
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel

PIECE = 1024  # sequences whose scores are written at once


@dataclass(frozen=True)
class Contender:
    """A model that forecasts, or that is forecast.

    Attributes:
        name: what the tables call it.
        load: opens it.
        tokens: how many tokens it was trained on; None where that is not known, and so neither its compute.
        family: kind of predictor, "smaller models" or "checkpoints" say.
    """

    name: str
    load: Callable[[], LanguageModel]
    tokens: int | None = None
    family: str | None = None


def run_forecast(
    target: Contender,
    predictors: Sequence[Contender],
    samples: Callable[[LanguageModel], Sequence[PrefixSuffix]],
    folder: Path,
    *,
    threshold: float = 1.0,
    in_order: bool = False,
    progress: JobProgress | None = None,
) -> Measurement:
    """Scores the sequences with all models and compares the forecasts.

    Args:
        target: the model whose memorization is forecast.
        predictors: who forecasts it.
        samples: called with the opened target; gives the sequences (`head_samples`, say).
        folder: where scores are kept; a run that was killed goes on with what is there.
        threshold: see `forecast`.
        in_order: the sequences were read once, in the order of their meta "read_at": a predictor that is known to have stopped
            earlier is not asked about what it has not read.
        progress: called with (what is being done, units done, units in all), anew for every model.

    Returns:
        What `forecast` returns.

    Raises:
        InputError: names that are not different, no predictor, or `in_order` with a predictor of unknown tokens.
        TokenizerMismatchError: a predictor with another tokenizer than the target.
        StorageError: the folder cannot be written.
    """
    everyone = [target, *predictors]
    names = [contender.name for contender in everyone]
    if not predictors or len(set(names)) < len(names):
        raise InputError(f"The models are {', '.join(names)}.", "Give one predictor at least, and every model a name of its own.")
    unknown = [contender.name for contender in predictors if contender.tokens is None]
    if in_order and unknown:
        raise InputError(
            f"It is not known what {', '.join(unknown)} has read.",
            "Give the tokens that it was trained on, as NAME@TOKENS, or no --in-order.",
        )
    job = Job(folder / "scores", progress)
    asked: Sequence[PrefixSuffix] = ()
    tokenizer = None
    scores: dict[str, Measurement] = {}
    compute: dict[str, float] = {}
    for contender in everyone:
        model = contender.load()
        if contender is target:
            asked, tokenizer = require_samples(samples(model)), model.tokenizer
        assert tokenizer is not None  # the target comes first
        model.tokenizer.require_same(tokenizer.fingerprint, f"the target {target.name}")
        scores[contender.name] = _scores(job, contender.name, model, asked, read_by(asked, contender.tokens) if in_order else None)
        if contender.tokens is not None and model.parameters:
            compute[contender.name] = training_compute(model.parameters, contender.tokens)
    return forecast(
        {contender.name: scores[contender.name] for contender in predictors},
        scores[target.name],
        compute,
        threshold,
        families={contender.name: contender.family for contender in predictors if contender.family},
        target_name=target.name,
    )


def read_by(samples: Sequence[PrefixSuffix], tokens: int | None) -> np.ndarray:
    """Which sequences a model has read that stopped after `tokens` tokens of the corpus; all where it went on to the end."""
    if tokens is None:
        return np.ones(len(samples), dtype=bool)
    return np.array([sample.meta["read_at"] <= tokens for sample in samples])


def _scores(job: Job, name: str, model: LanguageModel, samples: Sequence[PrefixSuffix], seen: np.ndarray | None) -> Measurement:
    """The scores of all samples, in pieces that are kept."""
    # a sample without a number is known by its place among all, not in its piece
    numbered = [PrefixSuffix(s.ids, s.prefix_len, s.suffix_len, {"index": i, **s.meta}) for i, s in enumerate(samples)]
    steps = []
    for piece, begin in enumerate(range(0, len(numbered), PIECE)):
        part = numbered[begin : begin + PIECE]
        key: dict[str, Any] = {"version": __version__, "model": model.fingerprint, "samples": fingerprint_samples(part)}

        def run(tell: Callable[[int, int], None], part: list[PrefixSuffix] = part) -> Measurement:
            return memorization_scores(model, part, progress=tell)

        place = f"{slug(Path(name).name)}.{sha256_json(name)[:8]}.{piece:05d}"  # two paths may end alike
        steps.append(Step(place, f"scoring with {name}", len(part), key, run))
    job.run(steps)
    results = [job.results[step.name] for step in steps]
    # read back from the disk a column of nulls has no type
    kinds: Mapping[str, Any] = {"copies": pl.Int64, "logprob": pl.Float64, "score": pl.Float64}
    table = pl.concat([result.table.with_columns(pl.col(column).cast(kind) for column, kind in kinds.items()) for result in results])
    if seen is not None:
        table = table.with_columns(seen=pl.Series(seen))
    provenance = {name: value for name, value in results[0].provenance.items() if name != "step"}
    return Measurement("memorization-scores", table, score_summary(table, samples[0].suffix_len), provenance)
