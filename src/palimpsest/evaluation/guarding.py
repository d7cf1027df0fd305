"""The section on the guard: what it stops, what leaks past it, and its price on text that it should not touch."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import polars as pl

from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block, percent
from palimpsest.evaluation.paired_rates import differences
from palimpsest.evaluation.record import AuditRecord
from palimpsest.measurement import Measurement

STYLES = {"identity": "as it is", "upper": "IN CAPITALS", "lower": "in lower case", "double_space": "with  double  spaces"}
TIME = "What a guard costs in time stands with the other times, under models, corpus and method."
SHOWN = 6  # passages set side by side
SHORTEST = 12  # characters of a common run that is worth a mark


def guard(record: AuditRecord) -> dict[str, Any]:
    """Without a guard, with MemFree, and with its approximate mode: rates, examples, price."""
    rates = record.guard
    assert rates is not None  # they are taken from the same results
    settings = record.plan.settings
    names = {"open": "none", "guarded": f"MemFree, n = {settings.guard_n}"}
    if "approximate" in rates:
        names["approximate"] = f"n = {settings.near_n}, {blocks.edits(settings.guard_edits)}"
    results = {state: record.result(state, record.largest) for state in names}
    made: list[Block] = [_rates(results, names), _stopped(results, names), _side_by_side(results)]
    share = {state: {kind: percent(rate.estimate) for kind, rate in kinds.items()} for state, kinds in rates.items()}
    held = share["guarded"]
    words = (
        f"MemFree keeps every {settings.guard_n}-gram of the protected text from being finished. Word for word "
        f"{share['open']['verbatim']} of the passages came out without it, {held['verbatim']} with it; nearly the same, "
        f"{held['approximate']} still do, and {held['styled']} in at least one style of asking."
    )
    if "approximate" in share:
        near = share["approximate"]
        words += (
            f" In its approximate mode, which keeps {settings.near_n} tokens more than {blocks.edits(settings.guard_edits)} away from "
            f"every protected passage, these are {near['approximate']} and {near['styled']}."
        )
    prices = {state: record.of(f"{state}-cost", record.largest) for state in names if state != "open"}
    measured = {state: price for state, price in prices.items() if price is not None}
    if measured:
        made.append(_price(measured, names))
        blocked = [percent(price.summary["blocked_share"]["estimate"]) for price in measured.values()]
        words += f" On ordinary text it forbids {blocked[0]} of the words that really come next"
        words += f", {blocked[1]} in the approximate mode." if len(blocked) > 1 else "."
    made.append(blocks.text(*[_counts(names[state], results[state].summary["counts"]) for state in names if state != "open"], TIME))
    return blocks.section("", "", "", words, made)


def _counts(name: str, counts: dict[str, int]) -> str:
    return (
        f"{name}: the model's own first choice was forbidden at {counts['blocked']:,} of {counts['choices']:,} steps; writing was ended "
        f"{counts['forced_eos']:,} times because nothing else was allowed; {counts['violations']:,} times something protected had to be "
        "let through."
    )


def _rates(results: dict[str, Measurement], names: dict[str, str]) -> Block:
    rows = []
    for number, style in enumerate(STYLES.values()):
        for state, name in names.items():
            rate = _overall(results[state])[number]
            cells = {kind: [rate[kind][key] for key in ("estimate", "low", "high")] for kind in ("verbatim", "approximate")}
            rows.append({"style": style, "guard": name, **cells})
    columns = [("style", "Prompt", "text"), ("guard", "Guard", "text"),
               ("verbatim", "To the letter", "interval"), ("approximate", "Nearly the same", "interval")]  # fmt: skip
    caption = (
        f"{rate['n']} passages in every row. Nearly the same: BLEU-4 over 0.75 or token edit similarity of at least 0.75, with case and "
        "spacing undone on both sides."
    )
    return blocks.table("guard-rates", "What comes out, by style of the prompt and guard", columns, rows, caption)


def _stopped(results: dict[str, Measurement], names: dict[str, str]) -> Block:
    """What each guard changes on the same passages, in every style of asking."""
    rows, pairs = [], []
    for style, label in STYLES.items():
        free = results["open"].table.filter(pl.col("transform") == style).sort("sample")
        for state, name in names.items():
            held = results[state].table.filter(pl.col("transform") == style).sort("sample")
            for kind, words in (("verbatim", "to the letter"), ("approximate", "nearly the same")):
                if state != "open":
                    rows.append({"style": label, "guard": name, "kind": words})
                    pairs.append((free[kind].to_list(), held[kind].to_list()))
    cells, correction = differences(pairs)
    columns = [("style", "Prompt", "text"), ("guard", "Guard", "text"), ("kind", "Comes out", "text"),
               ("over", "More than without a guard", "percent"), ("p", "p, corrected", "text")]  # fmt: skip
    caption = f"The same passages with and without the guard: McNemar's exact test, corrected for all rows ({correction})."
    return blocks.table("guard-differences", "What each guard changes", columns, [a | b for a, b in zip(rows, cells, strict=True)], caption)


def _overall(result: Measurement) -> list[dict[str, Any]]:
    return [rate for rate in result.summary["rates"] if rate["copies"] is None]


def _side_by_side(results: dict[str, Measurement]) -> Block:
    """A few passages with what was written freely, under guard, and under guard to a prompt in capitals."""
    plainly = {state: _by_sample(result, "identity") for state, result in results.items()}
    capitals = _by_sample(results["guarded"], "upper")
    guarded = plainly["guarded"]
    leaky = sorted(guarded, key=lambda sample: (-guarded[sample]["edit_similarity"], sample))
    labels = {"open": "Without a guard", "guarded": "With MemFree", "approximate": "With MemFree's approximate mode"}
    items = []
    for sample in leaky[:SHOWN]:
        off = plainly["open"][sample]
        columns = [_column(labels[state], rows[sample]) for state, rows in plainly.items()]
        columns.append(_column("With MemFree, asked in capitals", capitals[sample]))
        items.append({"id": off["id"], "prefix_text": off["prefix_text"], "true_text": off["true_text"], "columns": columns})
    caption = (
        "Marked: runs of characters that are the true text's, letter for letter but for case. The passages that leak most past the guard "
        "come first."
    )
    return {"type": "comparison", "id": "guard-texts", "title": "Side by side", "caption": caption, "items": items}


def _by_sample(result: Measurement, transform: str) -> dict[int, dict[str, Any]]:
    rows = result.table.filter(pl.col("transform") == transform)
    return {row["sample"]: row for row in rows.iter_rows(named=True)}


def _column(label: str, row: dict[str, Any]) -> dict[str, Any]:
    facts = [
        blocks.fact("Edit similarity", row["edit_similarity"], "float"),
        blocks.fact("BLEU-4", row["bleu"], "float"),
        blocks.fact("Longest run", f"{row['longest_run']} tokens"),
    ]
    return {"label": label, "text": row["output_text"], "spans": common_runs(row["output_text"], row["true_text"]), "facts": facts}


def common_runs(text: str, truth: str, shortest: int = SHORTEST) -> list[dict[str, Any]]:
    """Runs of `text` that stand, in order, in `truth` but for case, of at least `shortest` characters.

    Example:
        >>> common_runs("xx THE BEGINNING GOD", "In the beginning God")
        [{'start': 2, 'end': 20, 'kind': 'verbatim'}]
    """
    if len(text) != len(text.lower()) or len(truth) != len(truth.lower()):  # a character that folds to two would shift the offsets
        return _runs(text, truth, shortest)
    return _runs(text.lower(), truth.lower(), shortest)


def _runs(text: str, truth: str, shortest: int) -> list[dict[str, Any]]:
    found: Sequence[Any] = SequenceMatcher(None, text, truth, autojunk=False).get_matching_blocks()
    return [{"start": match.a, "end": match.a + match.size, "kind": "verbatim"} for match in found if match.size >= shortest]


def _price(prices: dict[str, Measurement], names: dict[str, str]) -> Block:
    rows = []
    for state, price in prices.items():
        summary = price.summary
        row = {"guard": names[state], "tokens": summary["tokens"]}
        row |= {"open": summary["perplexity_open"], "guarded": summary["perplexity_guarded"]}
        rows.append({**row, "blocked": [summary["blocked_share"][key] for key in ("estimate", "low", "high")]})
    columns = [("guard", "Guard", "text"), ("tokens", "Tokens read", "int"), ("blocked", "Really come next, but forbidden", "interval"),
               ("open", "Perplexity of the others, no guard", "float"), ("guarded", "with guard", "float")]  # fmt: skip
    caption = "Text that is not protected. A forbidden token that really comes next has no perplexity: it is counted apart."
    return blocks.table("guard-price", "What the guard costs on ordinary text", columns, rows, caption)
