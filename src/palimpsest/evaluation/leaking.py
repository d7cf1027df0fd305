"""The section on leaks: what is written, the documents that it is from, and what is nearly some passage of the corpus."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block, percent
from palimpsest.evaluation.guarding import common_runs
from palimpsest.evaluation.nearest import GREEDY
from palimpsest.evaluation.record import AuditRecord
from palimpsest.measurement import Measurement


def leaks(record: AuditRecord) -> dict[str, Any]:
    """Leaked passages with highlighted spans and the documents that they are from."""
    result = record.result("leaks", record.largest)
    chances = record.of("probabilistic", record.largest)
    needed = dict(chances.table.select("id", "n_for_0.5").iter_rows()) if chances and "n_for_0.5" in chances.table.columns else {}
    items = []
    for row in result.table.iter_rows(named=True):
        facts = [
            blocks.fact("Right before the first error", f"{row['matched']} tokens"),
            blocks.fact("Found in the corpus", row["traced"], "percent"),
            blocks.fact("Nearest passage", _nearest(row["near_distance"], row["near_document"], result.provenance["share"])),
        ]
        if row["id"] in needed:
            tries = needed[row["id"]]
            facts.append(
                blocks.fact("Tries for an even chance", tries, "int") if tries else blocks.fact("Tries for an even chance", "never")
            )
        spans = [{key: span[key] for key in ("start", "end", "count", "documents")} for span in json.loads(row["spans"])]
        fields = {key: row[key] for key in ("id", "copies", "domain", "prefix_text", "output_text", "true_text")}
        items.append({**fields, "model": record.largest.name, "spans": _apart(spans), "facts": facts})
    exact, n = result.summary["exact"], result.summary["passages"]
    answer = (
        f"Of the {n} passages shown here, {exact} come out to the letter. Marked text stands word for word in the corpus; choose a mark "
        "to see where."
    )
    caption = "Dimmed: what the model was shown. Then what it wrote, greedily."
    shown = {"type": "passages", "id": "leaks", "title": "Leaked passages", "caption": caption, "items": items}
    nearest = record.result("nearest", record.largest)
    greedy = nearest.summary["schemes"][GREEDY]
    near = {key: percent(value) for key, value in greedy["any"].items()}
    answer += (
        f" Of {greedy['n']} generations to prompts drawn at random, {near['estimate']} ({near['low']} to {near['high']}) lie within "
        f"{percent(nearest.summary['share'])} token edits of some passage of the corpus: {percent(greedy['exact']['estimate'])} are the "
        f"passage that was asked for, to the letter, and {percent(greedy['other']['estimate'])} are another one."
    )
    return blocks.section("", "", "", answer, [shown, _near_rates(nearest), _near_texts(nearest, record.plan.settings.leaks)])


def _nearest(distance: int | None, document: str | None, share: float) -> str:
    """The nearest passage of the corpus in words."""
    if distance is None:
        return f"none within {percent(share)}"
    return f"{blocks.edits(distance) if distance else 'the same'}, {document}"


def _near_rates(nearest: Measurement) -> Block:
    rows = []
    for scheme, rates in nearest.summary["schemes"].items():
        cells = {kind: [rates[kind][key] for key in ("estimate", "low", "high")] for kind in ("exact", "own", "any", "other")}
        rows.append({"scheme": scheme, "n": rates["n"], **cells})
    share = percent(nearest.summary["share"])
    columns = [("scheme", "Decoding", "text"), ("n", "Generations", "int"), ("exact", "The passage itself", "interval"),
               ("own", f"Within {share} edits of it", "interval"), ("any", "… of any passage", "interval"),
               ("other", "… of another only", "interval")]  # fmt: skip
    caption = (
        "Prompts of passages drawn at random, one generation each, looked for in the whole corpus. An edit inserts, deletes or replaces "
        "one token."
    )
    return blocks.table("near-rates", "How near the generations come to the corpus", columns, rows, caption)


def _near_texts(nearest: Measurement, shown: int) -> Block:
    """Leaks that are not the passage asked for, to the letter: nearly that, or another one; beside what stands in the corpus."""
    rows = nearest.table.filter(pl.col("distance").is_not_null() & (pl.col("own_distance") > 0)).sort("distance", "id", "scheme")
    rows = rows.unique("output_text", keep="first", maintain_order=True)
    items = []
    for row in rows.head(shown).iter_rows(named=True):
        written, stands = row["output_text"], row["corpus_text"]
        more = [blocks.fact("Passages as near", row["passages"], "int")] if row["passages"] > 1 else []
        columns = [
            {"label": f"Written ({row['scheme']})", "text": written, "spans": common_runs(written, stands),
             "facts": [blocks.fact("Edits", row["distance"], "int")]},
            {"label": f"In the corpus: {row['document']}", "text": stands, "spans": common_runs(stands, written),
             "facts": [blocks.fact("Begins at token", row["offset"], "int"), *more]},
        ]  # fmt: skip
        items.append({"id": row["id"], "prefix_text": row["prefix_text"], "columns": columns})
    caption = (
        "What extraction does not count: another passage than the one that was asked for, or nearly the same. Marked: what both have, "
        "letter for letter but for case."
    )
    return {"type": "comparison", "id": "near-texts", "title": "Leaks that were not asked for", "caption": caption, "items": items}


def _apart(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans without overlap: where two do, the later one begins where the earlier one ends."""
    made: list[dict[str, Any]] = []
    for span in spans:
        start = max(span["start"], made[-1]["end"] if made else 0)
        if start < span["end"]:
            made.append({**span, "start": start})
    return made
