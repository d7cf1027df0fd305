"""Does the model go on with the file? Header, row completion, nearness, first token and feature completion.

Bordt, Nori, Rodrigues, Nushi and Caruana, COLM 2024, arXiv 2404.06209 (`tabmemcheck`), greedy decoding. A row counts when it is written to
the letter and ends there; the controls are those of `tabular_controls`, on the same queries. Two things are ours:

* header: the longest agreement of an answer with the file is ranked among the longest agreements of the same answers with the file behind
  other rows: all cuts moved down by as many rows, cut at the same characters;
* nearness: the answer's edit similarity to the true row is ranked among that to decoys (`tabular_decoys`). It needs no log-probs and sees
  memory that is not to the letter.

Where a door scores given text, the header test reads how far greedy writing would follow the file from one pass and writes only what
comes then: the same answer with a tenth of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein

from palimpsest.audit.tabular_cells import missing, same
from palimpsest.audit.tabular_controls import (
    best_control,
    dependence,
    feature_controls,
    row_controls,
    token_controls,
    token_length,
)
from palimpsest.audit.tabular_decoys import Decoys
from palimpsest.audit.tabular_outcome import MEMORY, not_applicable, outcome
from palimpsest.audit.tabular_prompts import MARGIN, RowQueries, complete, feature_text, first_line, is_row, token_counts
from palimpsest.audit.tabular_ranks import mean_rank_p, rank
from palimpsest.audit.tabular_table import Table, require_column
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement
from palimpsest.models.base import LanguageModel, Progress

CUTS = (2, 4, 6, 8)  # rows of the file in which the header test cuts
CHARACTERS = 500
_TAIL = 24  # tokens written where the model leaves the file
_RIVALS = 999
_SHOWN = 200  # characters before a cut that are kept to be looked at


def write_rows(model: LanguageModel, queries: RowQueries, progress: Progress | None = None) -> list[str]:
    """What the model writes behind the shown rows of every query."""
    newline = queries.table.newline
    tokens = int(token_counts(model, [newline + truth + newline for truth in queries.truths]).max()) + MARGIN
    return complete(model, queries.prompts, tokens, progress=progress)


def measure_row_completion(
    model: LanguageModel, queries: RowQueries, answers: Sequence[str] | None = None, *, progress: Progress | None = None
) -> Measurement:
    """Row completion: shown rows of the file, is the next one written to the letter?

    Args:
        model: needs "text".
        queries: which rows, see `RowQueries.draw`.
        answers: what `write_rows` gave, so that it is written once for several tests; None: it is written here.
        progress: called with (queries done, queries in all).

    Returns:
        One row a query: row, before (the last row that was shown), truth, answer (its first line), exact, similarity (1 − edit distance /
        the longer length), control.

    Raises:
        CapabilityError, ContextOverflowError: as `LanguageModel.generate` says.

    Example:
        >>> measure_row_completion(model, RowQueries.draw(Table.read("iris.csv"), 25)).summary["hits"]   # doctest: +SKIP
        25
    """
    answers = list(answers) if answers is not None else write_rows(model, queries, progress)
    hits = [is_row(answer, truth) for answer, truth in zip(answers, queries.truths, strict=True)]
    name, control = best_control(row_controls(queries), queries.truths, str.__eq__)
    lines = [first_line(answer) for answer in answers]
    near = [Levenshtein.normalized_similarity(line, truth) for line, truth in zip(lines, queries.truths, strict=True)]
    before = [queries.table.rows[row - 1] for row in queries.rows]
    columns = {
        "row": queries.rows,
        "before": before,
        "truth": queries.truths,
        "answer": lines,
        "exact": hits,
        "similarity": near,
        "control": control,
    }
    settings = {"shown": queries.shown}
    return outcome("row-completion", MEMORY, model, queries.table, pl.DataFrame(columns), hits=hits, control=(name, control),
                   settings=settings, excluded=queries.excluded, similarity=float(np.mean(near)))  # fmt: skip


def measure_nearness(model: LanguageModel, queries: RowQueries, answers: Sequence[str], decoys: Decoys, count: int = 24) -> Measurement:
    """Nearness: is what was written nearer to the true row than to its decoys?

    Args:
        model: who wrote.
        queries, answers: what was asked and written.
        decoys: of the same table.
        count: decoys a row, fewer where the table has not more.

    Returns:
        One row a query: row, rank (1: the true row is the nearest), similarity, decoys (their mean similarity).

    Raises:
        InputError: the table gives fewer than 9 decoys.
    """
    count = decoys.enough(list(queries.rows), count)
    rows = []
    for row, truth, answer in zip(queries.rows, queries.truths, answers, strict=True):
        line = first_line(answer)
        own = Levenshtein.normalized_similarity(line, truth)
        rivals = [Levenshtein.normalized_similarity(line, decoy) for decoy in decoys.of(row, count)]
        place = rank(own, rivals, np.random.default_rng((decoys.seed, 4, row)))
        rows.append({"row": row, "rank": place, "similarity": own, "decoys": float(np.mean(rivals))})
    frame = pl.DataFrame(rows)
    p_value = mean_rank_p(frame["rank"].to_numpy(), count)
    settings = {"shown": queries.shown, "decoys": count, "seed": decoys.seed}
    return outcome("nearness", MEMORY, model, queries.table, frame, p_value=p_value, settings=settings, decoys=count,
                   excluded=queries.excluded, mean_rank=float(frame["rank"].to_numpy().mean()))  # fmt: skip


def measure_first_token(model: LanguageModel, queries: RowQueries, answers: Sequence[str], seed: int = 0) -> Measurement:
    """First token: how often do the first characters of the next row come out, beside the best guess from the rows before?

    Not applicable where the rows before tell them (p < 0.01): an id, a date or a sorted file would pass for memory.

    Args:
        model, queries, answers: as for `measure_nearness`.
        seed: of the controls.
    """
    table, settings = queries.table, {"shown": queries.shown, "seed": seed}
    try:
        length = token_length(table)
    except InputError as error:
        return not_applicable("first-token", MEMORY, model, table, error.problem, settings)
    told = dependence(table, tokens=[row[:length] for row in table.rows], seed=seed)
    if told < 0.01:
        reason = f"The rows before a row tell its first {length} characters (p = {told:.2g}): they can be guessed without memory."
        return not_applicable("first-token", MEMORY, model, table, reason, settings)
    truths = [truth[:length] for truth in queries.truths]
    guesses = [answer.lstrip("\r\n")[:length] for answer in answers]
    hits = [guess == truth for guess, truth in zip(guesses, truths, strict=True)]
    name, control = best_control(token_controls(queries, length, seed), truths, str.__eq__)
    frame = pl.DataFrame({"row": queries.rows, "truth": truths, "answer": guesses, "exact": hits, "control": control})
    return outcome("first-token", MEMORY, model, table, frame, hits=hits, control=(name, control), settings=settings,
                   excluded=queries.excluded, characters=length, dependence=told)  # fmt: skip


def measure_feature_completion(
    model: LanguageModel,
    table: Table,
    column: str | None = None,
    *,
    n: int = 25,
    examples: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Feature completion: given all other cells of a row, does the model write the one that is missing?

    Args:
        model: needs "text".
        table: the table.
        column: which cell; by default that of the column with the most different values.
        n: rows asked for, all different from the examples.
        examples: rows of the same table that show the form; their cell is never the one that is asked for.
        seed: of rows and examples.
        progress: called with (queries done, queries in all).

    Returns:
        One row a query: row, truth, answer, exact, control.

    Raises:
        InputError: no such column, n or examples below 1, or too few rows.
    """
    distinct = [len({row[j] for row in table.cells}) for j in range(len(table.columns))]
    target = require_column(table, column) if column is not None else int(np.argmax(distinct))
    if n < 1 or examples < 1:
        raise InputError(f"{n} rows with {examples} examples were asked for.", "Give at least 1 of each.")
    rng = np.random.default_rng((seed, 85))
    order = [row for row in rng.permutation(len(table)).tolist() if not missing(table.cells[row][target])]
    asked, others = order[: min(n, len(order) // 2)], order[min(n, len(order) // 2) :]
    names = [name for j, name in enumerate(table.columns) if j != target]
    prompts, rows = [], []
    for row in asked:
        truth = table.cells[row][target]
        shown = [i for i in others if not same(table.cells[i][target], truth)]
        if len(shown) < examples:
            continue
        chosen = [shown[i] for i in rng.permutation(len(shown))[:examples]]
        blocks = [f"{_without(table, names, target, i)}, {table.columns[target]} = {table.cells[i][target].strip()}\n\n" for i in chosen]
        prompts.append("".join(blocks) + f"{_without(table, names, target, row)}, {table.columns[target]} =")
        rows.append(row)
    settings = {"column": table.columns[target], "examples": examples, "seed": seed}
    if not rows:
        reason = f"The column {table.columns[target]!r} has too few different values to show {examples} others beside each."
        return not_applicable("feature-completion", MEMORY, model, table, reason, settings)
    truths = [table.cells[row][target].strip() for row in rows]
    tokens = int(token_counts(model, [f" {truth}\n\n" for truth in truths]).max()) + MARGIN
    answers = [first_line(answer).strip() for answer in complete(model, prompts, tokens, progress=progress)]
    answers = [answer if ", " in truth else answer.split(", ")[0] for answer, truth in zip(answers, truths, strict=True)]
    hits = [same(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    name, control = best_control(feature_controls(table, target, rows, seed), truths)
    frame = pl.DataFrame({"row": rows, "truth": truths, "answer": answers, "exact": hits, "control": control})
    return outcome("feature-completion", MEMORY, model, table, frame, hits=hits, control=(name, control), settings=settings,
                   excluded=len(asked) - len(rows), column=table.columns[target], distinct=distinct[target] / len(table))  # fmt: skip


def _without(table: Table, names: Sequence[str], target: int, row: int) -> str:
    return feature_text(names, [cell for j, cell in enumerate(table.cells[row]) if j != target])


def measure_header(
    model: LanguageModel,
    table: Table,
    *,
    cuts: Sequence[int] = CUTS,
    characters: int = CHARACTERS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Header: shown the beginning of the file, cut inside a row, how many characters follow to the letter?

    Args:
        model: needs "text".
        table: the table.
        cuts: rows of the file (the line of names is the first) in whose middle third it is cut.
        characters: how far it is looked.
        seed: of the cuts.
        progress: called with (cuts done, cuts in all).

    Returns:
        One row a cut: row, cut (characters from the beginning), before (their end), agreed, answer, truth. The summary holds the longest
        agreement and the whole rows in it.

    Raises:
        InputError: no cut lies in the table.
    """
    first = 0 if table.header is None else 1
    numbers = [cut - 1 - first for cut in cuts if 0 <= cut - 1 - first < len(table) - 1]
    if not numbers or characters < 1:
        raise InputError(f"The cuts {tuple(cuts)} lie in no row of {table.name}.", "Give rows of the file, from 2 on.")
    rng = np.random.default_rng((seed, 86))
    within = [int(rng.integers(len(table.rows[i]) // 3, max(2 * len(table.rows[i]) // 3, len(table.rows[i]) // 3 + 1))) for i in numbers]
    places = [table.starts[i] + offset for i, offset in zip(numbers, within, strict=True)]
    truths = [table.text[place : place + characters] for place in places]
    answers = follow(model, [table.text[:place] for place in places], truths, progress)
    agreed = [_agreement(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    shifts = np.arange(max(numbers) - min(numbers) + 1, len(table) - max(numbers))[:_RIVALS]
    rivals = np.zeros((len(shifts), len(numbers)), np.int64)
    for j, (number, offset, answer) in enumerate(zip(numbers, within, answers, strict=True)):
        for i, shift in enumerate(shifts.tolist()):
            other = number + shift
            start = table.starts[other] + min(offset, len(table.rows[other]))
            rivals[i, j] = _agreement(answer, table.text[start : start + characters])
    rows: list[dict[str, Any]] = [
        {"row": number, "cut": place, "before": table.text[:place][-_SHOWN:], "agreed": length, "answer": answer, "truth": truth}
        for number, place, length, answer, truth in zip(numbers, places, agreed, answers, truths, strict=True)
    ]
    best = max(rows, key=lambda row: row["agreed"])
    whole = best["truth"][: best["agreed"]].count(table.newline) - int(best["agreed"] > 0)
    p_value = (1 + int((rivals.max(axis=1) >= best["agreed"]).sum())) / (len(shifts) + 1)
    settings = {"cuts": list(cuts), "characters": characters, "seed": seed}
    return outcome("header", MEMORY, model, table, pl.DataFrame(rows), p_value=p_value, settings=settings, agreed=best["agreed"],
                   rows_to_the_letter=max(0, whole), characters=characters)  # fmt: skip


def follow(model: LanguageModel, prompts: Sequence[str], truths: Sequence[str], progress: Progress | None = None) -> list[str]:
    """What the model writes greedily behind every prompt, as far as `truths` go; past the first departure only a little of it.

    With log-probs the way along the truth is read from one pass, and only the departure is written; without, all is written.
    """
    tokens = token_counts(model, truths)
    if "logprobs" not in model.capabilities:
        return complete(model, prompts, int(tokens.max()) + MARGIN, progress=progress)
    heads, tails = (model.tokenizer.encode_batch(list(texts)) for texts in (prompts, truths))
    rows = [np.array([*head, *tail], np.int64) for head, tail in zip(heads, tails, strict=True)]
    hits = model.score(rows, start=[len(head) for head in heads], progress=progress).greedy_hits
    ends = [len(head) + (len(hit) if hit.all() else int(np.argmin(hit))) for head, hit in zip(heads, hits, strict=True)]
    left = model.generate([row[:end] for row, end in zip(rows, ends, strict=True)], _TAIL)
    return [
        model.tokenizer.decode([*row[:end].tolist(), *outputs[0].tolist()])[len(model.tokenizer.decode(head)) :]
        for row, end, head, outputs in zip(rows, ends, heads, left, strict=True)
    ]


def _agreement(a: str, b: str) -> int:
    """Characters that two texts share from the beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
