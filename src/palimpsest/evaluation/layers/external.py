"""The external layer: was the right thing found, was it read, and does the answer rest on what it cites?

Correctness and attribution are kept apart. An answer falls into one of four cells: right or wrong, supported or not. It is **supported**
when a document that it cites holds an accepted form of the answer that was asked for and either is declared evidence or passes
leave-one-out, Δ = log p(answer | all) − log p(answer | all but the cited ones) > 0: no judge. Then

* **lucky** = P(right and unsupported): right, but not because of what it cites;
* **unfaithful** = P(supported and wrong): the evidence was cited and not followed;
* citation precision = share of cited documents that hold the answer and are evidence, recall = share of evidence that is cited.

`measure_following` is the counterfactual: the right value in the evidence is replaced by another one of its kind; an answer that switches
to it follows the evidence, one that stays comes from somewhere else.

`measure_retrieval` has the ranks: Hit@k, reciprocal rank (MRR) and nDCG@k with binary relevance (Järvelin and Kekäläinen, TOIS 2002).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.evaluation.answers import is_right, mention
from palimpsest.evaluation.items import Item, require_items
from palimpsest.evaluation.prompting import Budget, PromptMaker, Template
from palimpsest.evaluation.retrieval import Doc, Passage, Retriever
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models import LanguageModel
from palimpsest.stats import bootstrap_interval, wilson_interval


@dataclass(frozen=True)
class Cited:
    """An answer and what it cites.

    Attributes:
        item: what was asked.
        answer: what was answered.
        passages: what was shown.
        cited: ids of the documents that the answer names; by `cited_in` read from it, or given.

    Raises:
        InputError: a citation of something that was not shown, or an item without golds.
    """

    item: Item
    answer: str
    passages: tuple[Passage, ...]
    cited: tuple[str, ...]

    def __post_init__(self) -> None:
        shown = {passage.doc.id for passage in self.passages}
        unknown = [name for name in self.cited if name not in shown]
        if unknown or not self.item.golds:
            raise InputError(
                f"The answer to {self.item.id!r} cites {unknown}, which were not shown, or nothing can be right.",
                "Cite what was shown, and ask what can be answered.",
            )


def cited_in(answer: str, shown: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """An answer without its citations, and the documents that it cites as [1], [2], … in the order shown; other numbers are ignored.

    Example:
        >>> cited_in("Rome [2][7].", ["a", "b"])
        ('Rome.', ('b',))
    """
    numbers = [int(number) for number in re.findall(r"\[(\d+)\]", answer)]
    bare = re.sub(r"\s*\[\d+\]", "", answer).strip()
    return bare, tuple(dict.fromkeys(shown[n - 1] for n in numbers if 1 <= n <= len(shown)))


def measure_attribution(
    records: Sequence[Cited],
    *,
    rule: str = "exact",
    model: LanguageModel | None = None,
    template: Template | None = None,
    budget: Budget | None = None,
) -> Measurement:
    """Whether answers are right, and whether they rest on what they cite.

    Args:
        records: one an item.
        rule: when an answer is right.
        model, template, budget: for leave-one-out, which decides for cited documents that hold the answer and are no declared evidence;
            without a model such documents do not support. The model needs "logprobs".

    Returns:
        One row an answer: id, right, supported, cell, delta (None where leave-one-out was not asked), cited, precision and recall (None
        without citations, or evidence). The summary has the four cells, lucky and unfaithful, and mean precision and recall, with
        intervals.

    Raises:
        InputError: no records, or two of one item.

    Example:
        >>> m = measure_attribution(records)            # doctest: +SKIP
        >>> m.summary["lucky"]["estimate"]             # doctest: +SKIP
    """
    require_items([record.item for record in records])
    rows = []
    for record in records:
        item, cited = record.item, set(record.cited)
        holding = {p.doc.id for p in record.passages if p.doc.id in cited and mention(p.doc.text, item.golds, "contains") is not None}
        delta = None
        supported = bool(holding & item.evidence_ids)
        if holding and not supported and model is not None:
            delta = leave_out(model, record, template or Template(), budget or Budget())
            supported = delta > 0
        right = is_right(record.answer, item.golds, rule)
        rows.append(
            {
                "id": item.id,
                "right": right,
                "supported": supported,
                "cell": f"{'right' if right else 'wrong'}, {'supported' if supported else 'unsupported'}",
                "delta": delta,
                "cited": len(cited),
                "precision": len(holding & item.evidence_ids) / len(cited) if cited else None,
                "recall": len(cited & item.evidence_ids) / len(item.evidence_ids) if item.evidence_ids else None,
            }
        )
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("delta", "precision", "recall").cast(pl.Float64))
    cells = {cell: _rate(table["cell"] == cell) for cell in (f"{r}, {s}" for r in ("right", "wrong") for s in ("supported", "unsupported"))}
    summary = {
        "n": table.height,
        "cells": cells,
        "lucky": cells["right, unsupported"],
        "unfaithful": cells["wrong, supported"],
        "precision": _mean(table["precision"]),
        "recall": _mean(table["recall"]),
        "left_out": int(table["delta"].is_not_null().sum()),
    }
    provenance = {"rule": rule, "model": model.describe() if model is not None else None, "environment": environment()}
    return Measurement("attribution", table, dict(plain(summary)), provenance)


def leave_out(model: LanguageModel, record: Cited, template: Template, budget: Budget) -> float:
    """Δ = log p(answer | all shown) − log p(answer | all but the cited ones), with prompts of the same length.

    Raises:
        CapabilityError: the door has no log-probs.
        InputError: an answer without tokens.
    """
    model.require("logprobs", "Leave-one-out")
    maker = PromptMaker(model.tokenizer, template, budget, model.room)
    kept = [passage for passage in record.passages if passage.doc.id not in record.cited]
    answer = model.tokenizer.encode(template.answer_prefix + record.answer)
    if not record.answer.strip() or not answer:
        raise InputError(f"The answer to {record.item.id!r} is empty.", "Leave refusals out.")
    prompts = [maker.make(record.item.question, passages).ids for passages in (record.passages, kept)]
    scores = model.score([np.concatenate([ids, answer]) for ids in prompts], start=[len(ids) for ids in prompts])
    both, without = (float(logprobs.sum(dtype=np.float64)) for logprobs in scores.logprobs)
    return both - without


def measure_following(
    model: LanguageModel,
    items: Sequence[Item],
    docs: Mapping[str, Doc],
    swaps: Mapping[str, str],
    *,
    template: Template | None = None,
    budget: Budget | None = None,
) -> Measurement:
    """Whether answers follow the evidence when it is changed.

    Args:
        model: needs "text".
        items: with golds and declared evidence.
        docs: the evidence by id.
        swaps: by item, the false value of the same kind that is put in the place of the golds.
        template, budget: of the prompts.

    Returns:
        One row an item: id, answer and right with the true evidence, swapped_answer, follows (gives the false value), stays (still gives
        the true one). The summary has the rates, and the follow rate among items that were right with the true evidence (None where none
        was).

    Raises:
        InputError: no items, an item without golds, evidence or swap, evidence that does not hold the gold, or does not fit the slot.

    Example:
        >>> m = measure_following(model, items, docs, {"q1": "Bern"})   # doctest: +SKIP
        >>> m.summary["follows"]["estimate"]                            # doctest: +SKIP
    """
    model.require("text", "Answering from evidence")
    template, budget = template or Template(), budget or Budget()
    maker = PromptMaker(model.tokenizer, template, budget, model.room)
    prompts = []
    for item in require_items(items):
        missing = item.evidence_ids - docs.keys()
        if not item.golds or not item.evidence_ids or missing or item.id not in swaps:
            raise InputError(f"{item.id!r} lacks golds, evidence or a swap.", "Give all three for every item.")
        true = [docs[name] for name in sorted(item.evidence_ids)]
        false = [Doc(doc.id, swap(doc.text, item.golds, swaps[item.id]), doc.published_at, doc.source) for doc in true]
        if all(one.text == two.text for one, two in zip(true, false, strict=True)):
            raise InputError(f"The evidence of {item.id!r} does not hold {item.golds[0]!r}.", "Declare the documents that hold the answer.")
        for evidence in (true, false):
            prompt = maker.make(item.question, [Passage(doc, 0.0) for doc in evidence])
            if prompt.dropped:
                raise InputError(f"The evidence of {item.id!r} does not fit {budget.evidence_tokens} tokens.", "Give a larger budget.")
            prompts.append(prompt.ids)
    sampler = template.sampler
    written = model.generate(prompts, budget.answer_tokens, temperature=sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p)
    answers = [template.cut(model.tokenizer.decode(continuations[0])) for continuations in written]
    rows = []
    for item, answer, swapped in zip(items, answers[::2], answers[1::2], strict=True):
        rows.append(
            {
                "id": item.id,
                "answer": answer,
                "right": is_right(answer, item.golds, template.rule),
                "swapped_answer": swapped,
                "follows": is_right(swapped, [swaps[item.id]], template.rule),
                "stays": is_right(swapped, item.golds, template.rule),
            }
        )
    table = pl.DataFrame(rows)
    reads = table.filter(pl.col("right"))
    summary = {
        "n": table.height,
        **{name: _rate(table[name]) for name in ("right", "follows", "stays")},
        "follows_if_right": _rate(reads["follows"]) if reads.height else None,
    }
    provenance = {"model": model.describe(), "template": template.hash, "environment": environment()}
    return Measurement("following", table, dict(plain(summary)), provenance)


def swap(text: str, golds: Sequence[str], false: str) -> str:
    """A text with every form of a value replaced by another value, the longest form first; whole words only, without regard to case.

    Example:
        >>> swap("Rome, the city of Rome; Romeo", ["Rome"], "Bern")
        'Bern, the city of Bern; Romeo'
    """
    for form in sorted(golds, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", lambda _: false, text, flags=re.IGNORECASE)
    return text


def measure_retrieval(retriever: Retriever, items: Sequence[Item], k: int = 10, *, seed: int = 0) -> Measurement:
    """How high the evidence ranks.

    Args:
        retriever: is asked as of the day of each item.
        items: those without declared evidence are left out.
        k: documents that are asked for.
        seed: of the bootstraps.

    Returns:
        One row an item: id, rank of the first evidence (None beyond k), reciprocal (0 beyond k), ndcg, found (share of the evidence). The
        summary has Hit@1, Hit@k, MRR, nDCG@k and recall with intervals.

    Raises:
        InputError: fewer than 2 items with evidence, or k < 1.

    Example:
        >>> m = measure_retrieval(snapshot, items)    # doctest: +SKIP
        >>> m.summary["MRR"]["estimate"]             # doctest: +SKIP
    """
    asked = [item for item in require_items(items) if item.evidence_ids]
    if len(asked) < 2 or k < 1:
        raise InputError(f"{len(asked)} items declare evidence, k is {k}.", "Give at least 2 such items and k >= 1.")
    gain = 1 / np.log2(np.arange(2, k + 2))
    rows = []
    for item in asked:
        found = [passage.doc.id in item.evidence_ids for passage in retriever.search(item.question, k, item.asked_at)[:k]]
        hits = np.flatnonzero(found)
        ideal = gain[: min(k, len(item.evidence_ids))].sum()
        rows.append(
            {
                "id": item.id,
                "rank": int(hits[0]) + 1 if hits.size else None,
                "reciprocal": 1 / (int(hits[0]) + 1) if hits.size else 0.0,
                "ndcg": float(gain[hits].sum() / ideal),
                "found": hits.size / len(item.evidence_ids),
            }
        )
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("rank").cast(pl.Int64))
    means = {"MRR": "reciprocal", f"nDCG@{k}": "ndcg", f"recall@{k}": "found"}
    summary: dict[str, Any] = {
        "n": table.height,
        "Hit@1": _rate((table["rank"] == 1).fill_null(False)),
        f"Hit@{k}": _rate(table["rank"].is_not_null()),
        **{name: bootstrap_interval(table[column].to_numpy(), seed=seed)._asdict() for name, column in means.items()},
    }
    return Measurement("retrieval", table, summary, {"k": k, "retriever": type(retriever).__name__, "environment": environment()})


def _rate(flags: pl.Series) -> dict[str, float]:
    return wilson_interval(int(flags.sum()), len(flags))._asdict()


def _mean(values: pl.Series) -> dict[str, float] | None:
    """The mean of what is known, with an interval where there are 2 values or more."""
    known = values.drop_nulls().to_numpy()
    return bootstrap_interval(known)._asdict() if len(known) > 1 else None
