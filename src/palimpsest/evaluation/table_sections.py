"""From the tests of a table to the sections of its report: each asks one question, answers it and shows what was asked and written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from palimpsest.audit.tabular import TO_THE_LETTER
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block
from palimpsest.measurement import Measurement
from palimpsest.stats import Interval

_TONES = {"none": "good", "low": "warn", "moderate": "warn", "high": "bad"}
_SHOWN = 4  # examples of a test
_COLUMNS = [("test", "Test", "text"), ("asked", "Asked", "int"), ("rate", "Right", "interval"),
            ("control", "Best guess without a model", "text"),
            ("floor", "right", "interval"), ("p", "p-value", "text"), ("adjusted", "Holm", "text"), ("note", "", "text")]  # fmt: skip

Results = dict[str, Measurement]


def tiles(results: Results, level: str) -> list[dict[str, Any]]:
    """The key figures: one for each kind of test that was made."""
    made = []
    for name, label in (("row-completion", "rows to the letter"), ("feature-completion", "cells right")):
        result = _measured(results, name)
        if result is not None:
            summary = result.summary
            rate = Interval(summary["rate"], summary["low"], summary["high"])
            note = f"{summary['control_hits']} of {summary['n']} without a model"
            made.append(blocks.tile(label, rate, note=note, tone=_TONES[level] if name == "row-completion" else "neutral"))
    header = _measured(results, "header")
    if header is not None:
        note = f"of {header.summary['characters']}; {header.summary['rows_to_the_letter']} whole rows"
        made.append(blocks.tile("characters of the file's beginning", header.summary["agreed"], "int", note=note))
    ranked = _measured(results, "decoy-rank")
    if ranked is not None and ranked.summary["relative_rank"] is not None:
        note = "0 % is always first, 50 % is chance"
        made.append(blocks.tile("place of the true row among decoys", Interval(*ranked.summary["relative_rank"]), note=note))
    return made


def all_sections(results: Results, whole: Measurement) -> list[dict[str, Any]]:
    """Every section of the report; one of which nothing could be measured is there with the reason."""
    kinds = (
        ("letter", "To the letter", "Shown a part of the file, does the model write what follows?", TO_THE_LETTER, _letter),
        ("likelihood", "Known, if not written", "Does the model find the true rows likelier than rows that could as well be true?",
         ("decoy-rank", "order", "nearness"), _likelihood),
        ("knowledge", "What the model knows of it", "Does it know names, values and rows when it is asked by the name of the table?",
         ("feature-names", "feature-values", "dataset-name", "sampling"), _knowledge),
    )  # fmt: skip
    sections = []
    for name, title, question, tests, maker in kinds:
        here = {test: results[test] for test in tests if test in results}
        if not here:
            continue
        if all(result.summary["status"] != "measured" for result in here.values()):
            sections.append(blocks.skipped(name, title, question, _reasons(here)))
            continue
        answer, made = maker(here, whole)
        sections.append(blocks.section(name, title, question, answer, made))
    return sections


def _reasons(here: Results) -> str:
    """Why none of some tests was made: each reason once, behind the tests that it is of where there are several."""
    tests: dict[str, list[str]] = {}
    for test, result in here.items():
        tests.setdefault(str(result.summary["reason"]), []).append(test.replace("-", " "))
    if len(tests) == 1:
        return next(iter(tests))
    return " ".join(f"{', '.join(names).capitalize()}: {reason}" for reason, names in tests.items())


def _measured(results: Results, name: str) -> Measurement | None:
    result = results.get(name)
    return result if result is not None and result.summary["status"] == "measured" else None


def _table(name: str, title: str, here: Results, whole: Measurement, caption: str) -> Block:
    rows = []
    for test, result in here.items():
        summary = result.summary
        row: dict[str, Any] = {"test": test.replace("-", " "), "asked": summary["n"] or None, "p": _p(summary["p_value"])}
        row |= {"adjusted": _p(whole.summary["adjusted"].get(test)), "note": summary["reason"] or _note(test, summary)}
        if "rate" in summary:
            row["rate"] = [summary["rate"], summary["low"], summary["high"]]
        if "control" in summary:
            row |= {"control": summary["control"], "floor": blocks.wilson(summary["control_hits"], summary["n"])}
        rows.append(row)
    return blocks.table(name, title, [column for column in _COLUMNS if any(column[0] in row for row in rows)], rows, caption)


def _p(value: float | None) -> str | None:
    return None if value is None else f"{value:.2g}"


def _note(test: str, summary: dict[str, Any]) -> str:
    """What a test has to say besides its rate."""
    notes = {
        "header": lambda: f"{summary['agreed']} characters, {summary['rows_to_the_letter']} whole rows",
        "row-completion": lambda: f"mean edit similarity {summary['similarity']:.2f}",
        "feature-completion": lambda: f"column {summary['column']}",
        "first-token": lambda: f"first {summary['characters']} characters",
        "twin": lambda: (
            "" if summary["difference"] is None else f"{summary['difference'][0]:+.3f} nat a character over the twin "
            f"({summary['difference'][1]:+.3f} to {summary['difference'][2]:+.3f})"
        ),
        "nearness": lambda: f"mean rank {summary['mean_rank']:.1f} of {summary['decoys'] + 1}",
        "decoy-rank": lambda: f"mean rank {summary['mean_rank']:.1f} of {summary['decoys'] + 1}, first {summary['first']} times",
        "order": lambda: f"mean rank {summary['mean_rank']:.1f}, {summary['block']} rows",
        "feature-names": lambda: f"{summary['anywhere']} named anywhere",
        "feature-values": lambda: f"{summary['distance']:g} edits from a real row; {summary['rivals']:g} is usual for shuffled columns",
        "sampling": lambda: f"{summary['invalid']} were no rows; {100 * summary['known']:.0f} % of the values occur in the table",
    }  # fmt: skip
    return notes[test]() if test in notes else ""


def _letter(here: Results, whole: Measurement) -> tuple[str, list[Block]]:
    found = [test.replace("-", " ") for test in here if test in whole.summary["found"]]
    answer = f"More often than its control: {', '.join(found)}." if found else "No test gives more than a guess without a language model."
    caption = (
        "The control is the best of several guesses on the same queries; p-values are exact and one-sided, Holm's over all tests of memory."
    )
    made = [_table("tabular-letter", "Tests of what is written", here, whole, caption)]
    items = []
    header = _measured(here, "header")
    if header is not None:
        row = max(header.table.to_dicts(), key=lambda row: row["agreed"])
        column = _written(row["answer"] or " ", row["agreed"], "header")
        items.append({"id": "header", "prefix_text": row["before"], "true_text": row["truth"], "columns": [column]})
    rows = _measured(here, "row-completion")
    for row in rows.table.sort("similarity", descending=True).head(_SHOWN).to_dicts() if rows is not None else []:
        agreed = _agreed(row["answer"], row["truth"])
        facts = [blocks.fact("Edit similarity", row["similarity"], "percent")]
        column = {**_written(row["answer"] or " ", agreed, "row"), "facts": facts}
        items.append(
            {
                "id": f"row {row['row'] + 1}",
                "prefix_text": row["before"] + "\n",
                "true_text": row["truth"],
                "columns": [column],
            }
        )
    if items:
        text = "Marked: what agrees with the file from the beginning. The nearest answers of those that were asked for."
        made.append({"type": "comparison", "id": "tabular-written", "title": "What was written", "caption": text, "items": items})
    return answer, made


def _written(text: str, agreed: int, label: str) -> dict[str, Any]:
    spans = [{"start": 0, "end": agreed, "kind": "verbatim"}] if agreed else []
    return {"label": f"The model's {label}", "text": text, "spans": spans, "facts": [blocks.fact("Agreeing characters", agreed, "int")]}


def _agreed(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _likelihood(here: Results, whole: Measurement) -> tuple[str, list[Block]]:
    ranked = _measured(here, "decoy-rank")
    answer = "Log-probabilities were not to be had; only what was written could be ranked."
    made: list[Block] = []
    if ranked is not None:
        summary = ranked.summary
        answer = (
            f"The true row is the likeliest of {summary['decoys'] + 1} for {blocks.count_of(summary['first'], summary['n'])}; "
            f"p = {summary['p_value']:.2g} before correction."
        )
        if summary["control_p"] < 0.05:
            answer += (
                " Rows of this table resemble those before them: a guess by likeness alone ranks them too, and the p-value is that of the "
                "model beyond it."
            )
        made.append(blocks.curve(replace(whole.curves["tabular-ranks"])))
    caption = "Ranks among decoys (decoy rank, nearness) or shuffles (order); their mean has an exact distribution for a table never seen."
    made.append(_table("tabular-likelihood", "Tests by rank", here, whole, caption))
    return answer, made


def _knowledge(here: Results, whole: Measurement) -> tuple[str, list[Block]]:
    names, samples = _measured(here, "feature-names"), _measured(here, "sampling")
    said = []
    if names is not None:
        said.append(f"The model names {blocks.count_of(names.summary['hits'], names.summary['n'])} of the columns that were asked for.")
    if samples is not None:
        said.append(
            f"Of the rows that it draws by itself, {blocks.count_of(samples.summary['hits'], samples.summary['n'])} are in the table."
        )
    caption = "These do not enter the verdict: what is known of a subject need not be memory of a file."
    made = [_table("tabular-knowledge", "Tests of knowledge", here, whole, caption)]
    values = _measured(here, "feature-values")
    if values is not None:
        rows = values.table.select("sample", "nearest", "distance").to_dicts()
        columns = [("sample", "The model's row", "text"), ("nearest", "Nearest row of the table", "text"), ("distance", "Edits", "float")]
        made.append(blocks.table("tabular-values", "Rows that the model gives when asked for one", columns, rows))
    return " ".join(said) or "See the table.", made
