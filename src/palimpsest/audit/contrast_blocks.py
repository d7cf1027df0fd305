"""Block in, block out: a phrase that is stored as a block also comes out as one.

A question of Li, Zhao and Wen, *Memorization Insights from Text, Probability, and Hidden State in Large Language Models* (2024, arXiv
2403.00510, third version), whose exact definition was not at hand. Here: of a phrase of m words the first k are given, and

    emitted(k) = greedy decoding writes all of the words k + 1 to m,      logprob(k) = log P(words k + 1 to m | words 1 to k).

Both come for every k from one teacher-forced pass over the phrase: greedy decoding writes the rest if and only if each of its tokens is
the argmax. With more words given less is left to be written, so that `emitted` cannot fall within a phrase; the mean log-probability a
token can, and the summary has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.contrast_readings import Cloze, encode_cloze
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import spearman, wilson_interval


def block_in_block_out(model: LanguageModel, phrases: Sequence[str], progress: Progress | None = None) -> Measurement:
    """Given the first words of a phrase, is the whole rest written?

    Args:
        model: needs "logprobs".
        phrases: texts of at least two words.
        progress: called with (phrases done, phrases in all).

    Returns:
        One row a phrase and number of words given: phrase, given, left (words), emitted (greedy decoding writes the rest), logprob (of
        the rest), logprob_mean (a token). The summary has the share emitted by words given and by words left, and the Spearman
        correlations of words given with `emitted` and with `logprob_mean` (None where one side is constant).

    Raises:
        InputError: no phrases, or one with a single word.
        CapabilityError: the door has no log-probs.

    Example:
        >>> block_in_block_out(model, ["kick the bucket"]).table["given"].to_list()    # doctest: +SKIP
        [1, 2]
    """
    model.require("logprobs", "Block in, block out")
    if isinstance(phrases, str) or not phrases:
        raise InputError("There is no list of phrases.", "Give at least one: [phrase].")
    split = [phrase.split() for phrase in phrases]
    short = [phrase for phrase, parts in zip(phrases, split, strict=True) if len(parts) < 2]
    if short:
        raise InputError(f"The phrase {short[0]!r} has fewer than two words.", "Give phrases of which a part can be shown.")
    cuts = [
        [(k, encode_cloze(model.tokenizer, Cloze(" ".join(parts[:k]), " ".join(parts[k:])))) for k in range(1, len(parts))]
        for parts in split
    ]
    scores = model.score([own[0][1][0] for own in cuts], progress=progress)
    rows = []
    for number, (own, parts) in enumerate(zip(cuts, split, strict=True)):
        logprobs, hits = np.asarray(scores.logprobs[number], dtype=np.float64), scores.greedy_hits[number]
        for given, (_, cut) in own:
            rest = logprobs[cut - 1 :]
            emitted = bool(hits[cut - 1 :].all())
            rows.append((number, given, len(parts) - given, emitted, float(rest.sum()), float(rest.mean())))
    names = ("phrase", "given", "left", "emitted", "logprob", "logprob_mean")
    table = pl.DataFrame(rows, schema=names, orient="row")
    summary: dict[str, Any] = {
        "given": _emitted(table, "given"),
        "left": _emitted(table, "left"),
        "spearman_emitted": _correlation(table, "emitted"),
        "spearman_logprob_mean": _correlation(table, "logprob_mean"),
    }
    points = [{"x": row["given"], "y": row["emitted"], "low": row["low"], "high": row["high"], "n": row["n"]} for row in summary["given"]]
    curve = Curve(
        "block-in-block-out", "The whole rest is written after so many words", "words given", "phrases", [Series(model.name, points)],
        y_domain=(0.0, 1.0), y_format="percent",
    )  # fmt: skip
    return Measurement("block-in-block-out", table, summary, {"model": model.describe(), "environment": environment()}, {curve.id: curve})


def _emitted(table: pl.DataFrame, by: str) -> list[dict[str, Any]]:
    made = []
    for row in table.group_by(by).agg(pl.len().alias("n"), pl.col("emitted").sum()).sort(by).iter_rows(named=True):
        share = wilson_interval(row["emitted"], row["n"])
        made.append({by: row[by], "n": row["n"], "emitted": share.estimate, "low": share.low, "high": share.high})
    return made


def _correlation(table: pl.DataFrame, column: str) -> float | None:
    x, y = table["given"].to_numpy().astype(float), table[column].to_numpy().astype(float)
    return spearman(x, y) if len(x) > 1 and np.ptp(x) and np.ptp(y) else None
