"""What a model does with planted texts, by the number of copies it has seen.

The tasks of Wei et al. 2025 (Hubble), arXiv 2510.19811, on the ledger of a planted suite: loss per token (any text), verbatim
suffix match under growing prefixes (any text), a person's attributes by multiple choice under growing knowledge of the attacker
(biographies), and accuracy on planted test items. A candidate is chosen by the sum of the log-probabilities of its tokens;
candidates of one choice have the same surrounding text. Chance is 25 % in both choices: each has three wrong alternatives.

The ledger is a frame with one row a text: id, domain, copies, ids, text, suffix_start and details (JSON); see `Suite.ledger`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models.base import LanguageModel
from palimpsest.stats import wilson_interval

KNOWLEDGE = ("full text", "prefix", "name")  # what the attacker of a biography knows besides the candidates


def planted_loss(model: LanguageModel, ledger: pl.DataFrame) -> Measurement:
    """Mean loss in nat per token of every planted text, its first token aside.

    Returns:
        Table: id, domain, copies, loss. Summary: mean loss by copies.

    Raises:
        InputError: an empty ledger.
        CapabilityError: the model has no log-probs.

    Example:
        >>> planted_loss(suite.models["perturbed-m"], suite.ledger).summary   # doctest: +SKIP
    """
    rows = _require(ledger)["ids"].to_list()
    losses = [-float(lp.mean()) for lp in model.score(rows).logprobs]
    table = ledger.select("id", "domain", "copies").with_columns(loss=pl.Series(losses))
    means = table.group_by("copies").agg(pl.col("loss").mean()).sort("copies")
    return Measurement("planted-loss", table, {"loss_by_copies": _by(means, "loss")}, _provenance(model, ledger))


def suffix_match(
    model: LanguageModel, ledger: pl.DataFrame, prefix_lens: Sequence[int] = (12, 24, 36, 48), suffix_len: int = 16
) -> Measurement:
    """Whether the model continues the last k tokens before a text's `suffix_start` with exactly its next tokens.

    Greedy decoding is judged by one teacher-forced pass: it gives the suffix if and only if every suffix token is the argmax.

    Args:
        prefix_lens: values of k; a text with fewer tokens before its suffix is left out at that k.
        suffix_len: tokens that must match.

    Returns:
        Table: id, domain, copies, prefix_len, match. Summary: rate by prefix_len and copies.

    Raises:
        InputError: an empty ledger, lengths below 1, or no text that is long enough.
    """
    _require(ledger)
    if suffix_len < 1 or not prefix_lens or min(prefix_lens) < 1:
        raise InputError(f"prefix_lens {tuple(prefix_lens)} and suffix_len {suffix_len}.", "Give lengths of at least 1.")
    rows, starts, meta = [], [], []
    for text in ledger.iter_rows(named=True):
        at = text["suffix_start"]
        for k in prefix_lens:
            if k <= at and at + suffix_len <= len(text["ids"]):
                rows.append(text["ids"][at - k : at + suffix_len])
                starts.append(k)
                meta.append({"id": text["id"], "domain": text["domain"], "copies": text["copies"], "prefix_len": k})
    if not rows:
        raise InputError("No planted text is long enough for these prefixes and this suffix.", "Ask for shorter ones.")
    hits = model.score(rows, start=starts).greedy_hits
    table = pl.DataFrame(meta).with_columns(match=pl.Series([bool(h.all()) for h in hits]))
    return _rates("suffix-match", table, "match", "prefix_len", model, ledger)


def biography_choice(model: LanguageModel, ledger: pl.DataFrame, knowledge: Sequence[str] = KNOWLEDGE) -> Measurement:
    """Whether the model finds a person's true attribute among four, by what the attacker knows of the biography.

    "full text": everything but the attribute; "prefix": everything before it; "name": the name, followed by nothing but the four
    words that stand before the attribute.

    Returns:
        Table: id, domain, copies, attribute, knowledge, correct. Summary: accuracy by knowledge and copies.

    Raises:
        InputError: no biographies in the ledger, or an unknown kind of knowledge.
    """
    if not knowledge or not set(knowledge) <= set(KNOWLEDGE):
        raise InputError(f"knowledge is {tuple(knowledge)}.", f"Choose from {', '.join(KNOWLEDGE)}.")
    choices, meta = [], []
    for person in _domain(ledger, "biography"):
        text, details = person["text"], json.loads(person["details"])
        for attribute, value in details["attributes"].items():
            before, after = text.split(f" {value}", 1)
            for known in knowledge:
                prompt = details["name"] + " " + " ".join(before.split(" ")[-4:]) if known == "name" else before
                tail = after if known == "full text" else ""
                choices.append((prompt, [f" {option}" for option in (value, *details["options"][attribute])], tail, 0))
                row = {"id": person["id"], "domain": "biography", "copies": person["copies"]}
                meta.append({**row, "attribute": attribute, "knowledge": known})
    table = pl.DataFrame(meta).with_columns(correct=_choose(model, choices))
    return _rates("biography-choice", table, "correct", "knowledge", model, ledger)


def item_accuracy(model: LanguageModel, ledger: pl.DataFrame) -> Measurement:
    """Whether the model chooses the planted answer of a test item: the option with the most probable letter and text.

    Returns:
        Table: id, domain, copies, correct. Summary: accuracy by copies.

    Raises:
        InputError: no test items in the ledger.
    """
    choices, meta = [], []
    for item in _domain(ledger, "test-item"):
        details = json.loads(item["details"])
        options = [f" {letter} {option}" for letter, option in zip("ABCD", details["options"], strict=True)]
        choices.append((details["question"], options, "", details["answer"]))
        meta.append({"id": item["id"], "domain": "test-item", "copies": item["copies"]})
    table = pl.DataFrame(meta).with_columns(correct=_choose(model, choices), task=pl.lit("answer"))
    return _rates("item-accuracy", table, "correct", "task", model, ledger)


TASKS = {
    "planted-loss": planted_loss,
    "suffix-match": suffix_match,
    "biography-choice": biography_choice,
    "item-accuracy": item_accuracy,
}


def evaluate_suite(
    models: Mapping[str, LanguageModel], ledger: pl.DataFrame, tasks: Sequence[str] = tuple(TASKS)
) -> dict[str, dict[str, Measurement]]:
    """Runs tasks on several models: {task: {model: Measurement}}.

    Raises:
        InputError: no models, or an unknown task.
    """
    if not models or not tasks or not set(tasks) <= set(TASKS):
        raise InputError(f"tasks {tuple(tasks)} on {len(models)} models.", f"Give models, and tasks from {', '.join(TASKS)}.")
    return {task: {name: TASKS[task](model, ledger) for name, model in models.items()} for task in tasks}


def _choose(model: LanguageModel, choices: Sequence[tuple[str, list[str], str, int]]) -> pl.Series:
    """For each (prompt, options, tail, true position): whether the true option, with the tail, has the highest log-probability."""
    rows, starts = [], []
    for prompt, options, tail, _ in choices:
        start = len(model.tokenizer.encode(prompt))
        for option in options:
            rows.append(model.tokenizer.encode(prompt + option + tail))
            starts.append(start)
    sums = [float(lp.sum()) for lp in model.score(rows, start=starts).logprobs]
    correct, at = [], 0
    for _, options, _, true in choices:
        correct.append(int(np.argmax(sums[at : at + len(options)])) == true)
        at += len(options)
    return pl.Series(correct)


def _require(ledger: pl.DataFrame) -> pl.DataFrame:
    if ledger.is_empty():
        raise InputError("The ledger is empty.", "Give the ledger of a suite with planted texts.")
    return ledger


def _domain(ledger: pl.DataFrame, domain: str) -> list[dict[str, Any]]:
    rows = ledger.filter(pl.col("domain") == domain).to_dicts()
    if not rows:
        raise InputError(f"The ledger has no text of the domain {domain!r}.", "Give a suite into which such texts were planted.")
    return rows


def _by(frame: pl.DataFrame, value: str) -> dict[str, float]:
    return {str(copies): float(v) for copies, v in frame.select("copies", value).iter_rows()}


def _provenance(model: LanguageModel, ledger: pl.DataFrame) -> dict[str, Any]:
    return {"model": model.describe(), "texts": len(ledger), "domains": sorted(ledger["domain"].unique().to_list())}


def _rates(name: str, table: pl.DataFrame, hit: str, condition: str, model: LanguageModel, ledger: pl.DataFrame) -> Measurement:
    """A measurement whose summary and curve are rates of `hit` by `condition` and copies, with Wilson intervals."""
    grouped = table.group_by(condition, "copies", maintain_order=True).agg(pl.col(hit).sum().alias("hits"), pl.len().alias("n"))
    summary: dict[str, dict[str, float]] = {}
    series = []
    for value in table[condition].unique(maintain_order=True):
        rows = grouped.filter(pl.col(condition) == value).sort("copies")
        points: list[dict[str, float | int | None]] = []
        for copies, hits, n in rows.select("copies", "hits", "n").iter_rows():
            interval = wilson_interval(hits, n)
            points.append({"x": copies, "y": interval.estimate, "low": interval.low, "high": interval.high, "n": n})
        summary[str(value)] = {str(p["x"]): float(p["y"] or 0.0) for p in points}
        series.append(Series(f"{condition.replace('_', ' ')} {value}", points))
    curve = Curve(
        name,
        f"{name.replace('-', ' ').capitalize()} by copies",
        "copies in the training data",
        "share of texts",
        series,
        x_scale="symlog",
        y_domain=(0.0, 1.0),
        y_format="percent",
    )
    return Measurement(name, table, {f"rate_by_{condition}_and_copies": summary}, _provenance(model, ledger), {"rates": curve})
