"""Does the model know the file, where it does not write it out? Three tests, which need log-probabilities.

* decoy rank: log p(row | the rows before) is ranked among that of decoys (`tabular_decoys`), row by row; the mean rank has an exact null
  distribution. The specification has 49 decoys a row; the mean of 25 ranks says nearly as much with 24, for half of the work. Where
  neighbours resemble each other, truth and decoys can be told apart without memory; a control that knows only the shown rows (the
  similarity of a candidate to them) is ranked in the same way, and where it ranks the truth too high the model must rank it higher
  still: the p-value is then the greater of that of the model and of Wilcoxon's signed ranks of model and control.
* order: log p of a block of rows in the order of the file is ranked among that of shuffles of it. Only where the rows before a row tell
  none of its cells (Holm over the columns, 1 %) are the orders exchangeable; elsewhere the test is not applicable.
* twin: the same queries of a twin with perturbed values (`tabular_transform.perturbed`). Rows to the letter are compared by McNemar's exact
  test. The difference of log p(row | the rows before) is reported with its interval and without a p-value: perturbed values are a little
  less likely than real ones also to a model that never saw the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein
from scipy import stats

from palimpsest.audit.tabular_completion import write_rows
from palimpsest.audit.tabular_controls import dependence
from palimpsest.audit.tabular_decoys import Decoys
from palimpsest.audit.tabular_outcome import MEMORY, not_applicable, outcome
from palimpsest.audit.tabular_prompts import RowQueries, is_row
from palimpsest.audit.tabular_ranks import mean_rank_p, rank
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.measurement import Measurement
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.shared_prefix import score_continuations
from palimpsest.stats import bootstrap_interval, holm

LEVEL = 0.05
_INDEPENDENT = 0.01
_LEAST_BLOCK = 4  # rows: 24 orders at least


def row_logprobs(
    model: LanguageModel, queries: RowQueries, candidates: Sequence[Sequence[str]], progress: Progress | None = None
) -> list[np.ndarray]:
    """Log-probability of candidates for every query's row, each with the newline before and behind it: one float64 array a query."""
    newline = queries.table.newline
    heads = model.tokenizer.encode_batch(queries.prompts)
    tails = [model.tokenizer.encode_batch([newline + text + newline for text in texts]) for texts in candidates]
    return score_continuations(model, heads, tails, progress=progress)


def measure_decoy_rank(
    model: LanguageModel, queries: RowQueries, decoys: Decoys, count: int = 24, *, progress: Progress | None = None
) -> Measurement:
    """Decoy rank: see the module's docstring.

    Args:
        model: needs "logprobs".
        queries: which rows.
        decoys: of the same table, for the rows that the queries show.
        count: decoys a row, fewer where the table has not more.
        progress: called with (rows done, rows in all).

    Returns:
        One row a query: row, logprob, rank (1: the true row is likelier than all decoys), p_value, control_rank.

    Raises:
        CapabilityError: the door has no log-probs.
        InputError: the table gives fewer than 9 decoys.
        ContextOverflowError: shown rows and row do not fit the context.

    Example:
        >>> table = Table.read("iris.csv")                                                            # doctest: +SKIP
        >>> measure_decoy_rank(model, RowQueries.draw(table, 25), Decoys(table)).summary["p_value"]   # doctest: +SKIP
        1e-12
    """
    count = decoys.enough(list(queries.rows), count)
    rivals = [decoys.of(row, count) for row in queries.rows]
    distinct = [list(dict.fromkeys([truth, *texts])) for truth, texts in zip(queries.truths, rivals, strict=True)]
    scored = row_logprobs(model, queries, distinct, progress)
    rows = []
    for row, truth, texts, names, values in zip(queries.rows, queries.truths, rivals, distinct, scored, strict=True):
        score = dict(zip(names, values.tolist(), strict=True))
        rng = np.random.default_rng((decoys.seed, 5, row))
        place = rank(score[truth], [score[text] for text in texts], rng)
        shown = queries.table.rows[row - queries.shown : row]
        likeness = {name: float(np.mean([Levenshtein.normalized_similarity(name, line) for line in shown])) for name in names}
        control = rank(likeness[truth], [likeness[text] for text in texts], rng)
        rows.append({"row": row, "logprob": score[truth], "rank": place, "p_value": place / (count + 1), "control_rank": control})
    frame = pl.DataFrame(rows)
    ranks, controls = frame["rank"].to_numpy(), frame["control_rank"].to_numpy()
    own, control_p = mean_rank_p(ranks, count), mean_rank_p(controls, count)
    p_value = own if control_p >= LEVEL else max(own, _lower(ranks, controls))
    interval = bootstrap_interval(frame["p_value"].to_numpy(), seed=decoys.seed) if len(frame) > 1 else None
    settings = {"shown": queries.shown, "decoys": count, "seed": decoys.seed}
    swapped = [queries.table.columns[j] for j in decoys.swapped]
    return outcome("decoy-rank", MEMORY, model, queries.table, frame, p_value=p_value, settings=settings, decoys=count, swapped=swapped,
                   mean_rank=float(ranks.mean()), relative_rank=list(interval) if interval else None, first=int((ranks == 1).sum()),
                   model_p=own, control_p=control_p, excluded=queries.excluded)  # fmt: skip


def _lower(ranks: np.ndarray, controls: np.ndarray) -> float:
    """One-sided Wilcoxon: are the model's ranks lower than the control's?"""
    difference = ranks - controls
    return float(stats.wilcoxon(difference, alternative="less").pvalue) if np.any(difference) else 1.0


def measure_order(
    model: LanguageModel,
    table: Table,
    *,
    block: int = 12,
    blocks: int = 2,
    shuffles: int = 49,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Order: is the order of the file likelier than shuffles of it? See the module's docstring.

    Args:
        model: needs "logprobs".
        table: the table.
        block: rows that are shuffled, fewer where the context has no room; the row before them stays.
        blocks: how many places of the file, drawn at random.
        shuffles: orders that the true one is compared with.
        seed: of places and shuffles.
        progress: called with (blocks done, blocks in all).

    Returns:
        One row a block: row (its first), rows, rank, p_value.

    Raises:
        CapabilityError: the door has no log-probs.
        InputError: counts below 1.
        ContextOverflowError: not even 4 rows fit.
    """
    model.require("logprobs", "The order test")
    if min(block, blocks, shuffles) < 1:
        raise InputError(f"{blocks} blocks of {block} rows with {shuffles} shuffles were asked for.", "Give at least 1 of each.")
    settings = {"block": block, "blocks": blocks, "shuffles": shuffles, "seed": seed}
    told = holm([dependence(table, column, seed=seed) for column in range(len(table.columns))])
    if told.min() < _INDEPENDENT:
        names = ", ".join(table.columns[j] for j in np.flatnonzero(told < _INDEPENDENT)[:3])
        reason = f"The rows before a row tell its {names}: the order of the file is likely without memory."
        return not_applicable("order", MEMORY, model, table, reason, settings)
    lengths = np.array([len(ids) for ids in model.tokenizer.encode_batch([table.newline + row for row in table.rows])])
    size = min(block, len(table) - 1)
    while size >= _LEAST_BLOCK and int(np.convolve(lengths, np.ones(size + 1, int)).max()) + 2 > model.room:
        size -= 1
    if size < _LEAST_BLOCK:
        raise ContextOverflowError(f"{model.name} sees {model.room} tokens, fewer than {_LEAST_BLOCK + 1} rows.", "Leave out columns.")
    rng = np.random.default_rng((seed, 87))
    places = rng.permutation(np.arange(1, len(table) - size + 1))[:blocks].tolist()
    tails = []
    for place in places:
        rows = table.rows[place : place + size]
        orders = [tuple(range(size)), *(tuple(rng.permutation(size).tolist()) for _ in range(shuffles))]
        tails.append(["".join(table.newline + rows[i] for i in order) + table.newline for order in orders])
    heads = model.tokenizer.encode_batch([table.rows[place - 1] for place in places])
    scored = score_continuations(model, heads, [model.tokenizer.encode_batch(texts) for texts in tails], progress=progress)
    ranks = [
        rank(float(values[0]), values[1:], np.random.default_rng((seed, 88, place))) for place, values in zip(places, scored, strict=True)
    ]
    frame = pl.DataFrame({"row": places, "rows": [size] * len(places), "rank": ranks, "p_value": [r / (shuffles + 1) for r in ranks]})
    return outcome("order", MEMORY, model, table, frame, p_value=mean_rank_p(ranks, shuffles), settings=settings,
                   mean_rank=float(np.mean(ranks)), block=size)  # fmt: skip


def measure_twin(
    model: LanguageModel,
    queries: RowQueries,
    twin: Table,
    answers: Sequence[str],
    *,
    progress: Progress | None = None,
) -> Measurement:
    """Twin: does the model do with the table what it does not do with a perturbed twin of it? See the module's docstring.

    Args:
        model: needs "text", and "logprobs" for the difference of log-probabilities.
        queries: which rows.
        twin: as many rows of the same columns.
        answers: what `write_rows` gave for the table; the twin's rows are written here.
        progress: called with (rows done, rows in all).

    Returns:
        One row a query: row, exact, twin_exact, and with log-probs logprob, twin (each per character of its row) and difference. The
        summary holds `difference`, its mean with a bootstrap interval, None without log-probs.

    Raises:
        InputError: a twin of another size.
    """
    if len(twin) != len(queries.table):
        raise InputError(f"The twin has {len(twin)} rows, the table {len(queries.table)}.", "Make it with tabular_transform.perturbed.")
    other = RowQueries(twin, queries.shown, queries.rows, queries.excluded)
    hits = [is_row(answer, truth) for answer, truth in zip(answers, queries.truths, strict=True)]
    twin_answers = write_rows(model, other)
    twin_hits = [is_row(answer, truth) for answer, truth in zip(twin_answers, other.truths, strict=True)]
    columns: dict[str, Any] = {"row": queries.rows, "exact": hits, "twin_exact": twin_hits}
    interval = None
    if "logprobs" in model.capabilities:
        for name, asked in (("logprob", queries), ("twin", other)):
            scored = row_logprobs(model, asked, [[truth] for truth in asked.truths], progress)
            columns[name] = [float(values[0]) / (len(truth) + 1) for values, truth in zip(scored, asked.truths, strict=True)]
        columns["difference"] = [own - its for own, its in zip(columns["logprob"], columns["twin"], strict=True)]
        interval = list(bootstrap_interval(columns["difference"])) if len(hits) > 1 else None
    return outcome("twin", MEMORY, model, queries.table, pl.DataFrame(columns), hits=hits, control=("perturbed twin", twin_hits),
                   settings={"shown": queries.shown}, difference=interval, excluded=queries.excluded)  # fmt: skip
