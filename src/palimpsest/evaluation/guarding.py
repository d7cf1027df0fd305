"""The section on the guard: what it stops, what leaks past it, and its price on text that it should not touch."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import polars as pl

from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block, percent
from palimpsest.evaluation.record import AuditRecord
from palimpsest.measurement import Measurement

STYLES = {"identity": "as it is", "upper": "IN CAPITALS", "lower": "in lower case", "double_space": "with  double  spaces"}
SHOWN = 6  # passages set side by side
SHORTEST = 12  # characters of a common run that is worth a mark


def guard(record: AuditRecord) -> dict[str, Any]:
    """Guard on and off: rates, examples, price."""
    free, held = record.result("open", record.largest), record.result("guarded", record.largest)
    rates = record.guard
    assert rates is not None  # they are taken from the same results
    n = record.plan.settings.guard_n
    made: list[Block] = [_rates(free, held), _side_by_side(free, held)]
    counts = held.summary["counts"]
    words = (
        f"MemFree keeps every {n}-gram of the protected text from being finished. Word for word {percent(rates['off'].estimate)} of the "
        f"passages came out without it, {percent(rates['on'].estimate)} with it; nearly the same, {percent(rates['approximate'].estimate)} "
        f"still do, and {percent(rates['styled'].estimate)} in at least one style of asking."
    )
    price = record.of("cost", record.largest)
    if price is not None:
        made.append(_price(price))
        blocked = price.summary["blocked_share"]["estimate"]
        words += f" On ordinary text it forbids {percent(blocked)} of the words that really come next."
    made.append(
        blocks.text(
            f"The model's own first choice was forbidden at {counts['blocked']:,} of {counts['choices']:,} steps; writing was ended "
            f"{counts['forced_eos']:,} times because nothing else was allowed; {counts['violations']:,} times a protected n-gram had to be "
            "let through. What the guard costs in time stands with the other times, under models, corpus and method."
        )
    )
    return blocks.section("", "", "", words, made)


def _rates(free: Measurement, held: Measurement) -> Block:
    rows = []
    for off, on in zip(_overall(free), _overall(held), strict=True):
        row = {"style": STYLES[off["transform"]], "n": off["n"]}
        for state, rate in (("off", off), ("on", on)):
            for kind in ("verbatim", "approximate"):
                row[f"{kind}_{state}"] = [rate[kind][key] for key in ("estimate", "low", "high")]
        rows.append(row)
    columns = [("style", "Prompt", "text"), ("n", "Passages", "int"), ("verbatim_off", "To the letter, no guard", "interval"),
               ("verbatim_on", "with guard", "interval"), ("approximate_off", "Nearly the same, no guard", "interval"),
               ("approximate_on", "with guard", "interval")]  # fmt: skip
    caption = "Nearly the same: BLEU-4 over 0.75 or token edit similarity of at least 0.75, with case and spacing undone on both sides."
    return blocks.table("guard-rates", "What comes out, by style of the prompt", columns, rows, caption)


def _overall(result: Measurement) -> list[dict[str, Any]]:
    return [rate for rate in result.summary["rates"] if rate["copies"] is None]


def _side_by_side(free: Measurement, held: Measurement) -> Block:
    """A few passages with what was written freely, under guard, and under guard to a prompt in capitals."""
    plainly, guarded = (_by_sample(result, "identity") for result in (free, held))
    capitals = _by_sample(held, "upper")
    leaky = sorted(guarded, key=lambda sample: (-guarded[sample]["edit_similarity"], sample))
    items = []
    for sample in leaky[:SHOWN]:
        off, on, loud = plainly[sample], guarded[sample], capitals[sample]
        columns = [
            _column("Without a guard", off),
            _column("With MemFree", on),
            _column("With MemFree, asked in capitals", loud),
        ]
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


def _price(price: Measurement) -> Block:
    summary = price.summary
    row = {
        "tokens": summary["tokens"],
        "blocked": [summary["blocked_share"][key] for key in ("estimate", "low", "high")],
        "open": summary["perplexity_open"],
        "guarded": summary["perplexity_guarded"],
    }
    columns = [("tokens", "Tokens read", "int"), ("blocked", "Really come next, but forbidden", "interval"),
               ("open", "Perplexity of the others, no guard", "float"), ("guarded", "with guard", "float")]  # fmt: skip
    caption = "Text that is not protected. A forbidden token that really comes next has no perplexity: it is counted apart."
    return blocks.table("guard-price", "What the guard costs on ordinary text", columns, [row], caption)
