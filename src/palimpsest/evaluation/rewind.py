"""Can a prompt take a model back in time? Answers under a declared end of knowledge, and what else the prompt changes.

Gao et al., *Can Prompts Rewind Time for LLMs?* (EMNLP 2025, arXiv 2510.02340; code at gxx27/time_unlearn). Items (`rewind_items`) are asked
without a prompt and with each; the paper's *success* is that the answer is not the one of today, whatever else it is. For definitions,
with r(o) = cos(o, then) / (cos(o, then) + cos(o, now)) of sentence embeddings, success is r(with) > r(without).

That rule takes nonsense and refusals for forgetting. So each answer is one of *then* (strict success), *now*, *other* and *na* (a refusal
or nothing that can be read), whose shares sum to 1, and beside the paper's figure stand (ours):

* `known`: the items that the model answers with *now* when no prompt is there; the others it cannot be seen to forget;
* placebo: the same prompt with a year that is still to come must change nothing; `placebo_change` of the known items is false forgetting;
* `corrected` = success on known items − placebo change, paired by item;
* retention: items whose answer did not change and that are right without the prompt should stay right under it;
* `said_no`: of yes-or-no answers, because a prompt that asks to reject what is later pushes towards No.

A definition is *then* when r > ½ and it is a success, *now* when it is no success, *other* between; where a denominator is not positive the
item is left out and counted. With a fact's history an answer is also placed in time (`temporal.freshness`): its *anachronism* is the same
quantity as *now*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.evaluation.answers import RefusalRules
from palimpsest.evaluation.rewind_items import RewindItem, RewindPrompt, lettered, read_answer, read_prompts, require_items
from palimpsest.evaluation.temporal import five_rates, freshness, rates_to_dict
from palimpsest.files import sha256_json
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress
from palimpsest.models.hf import HFModel
from palimpsest.stats import bootstrap_interval, wilson_interval

Embedder = Callable[[Sequence[str]], np.ndarray]
OUTCOMES = ("then", "now", "other", "na")


def measure_rewind(
    model: LanguageModel,
    items: Sequence[RewindItem],
    prompts: Sequence[RewindPrompt] | None = None,
    *,
    this_year: int,
    without: RewindPrompt | None = None,
    embedder: Embedder | None = None,
    max_new_tokens: int = 256,
    stop: str = "\n",
    refusals: RefusalRules | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Asks every item without a prompt, with every prompt, and with every prompt's placebo.

    Args:
        model: needs "text"; decoding is greedy.
        items: questions, those whose answer did not change included.
        prompts: what declares the end of knowledge, each with another name; by default P1 and P2.
        this_year: the placebo ends the model's knowledge with this year: it must not be before any item's year.
        without: what is asked without a prompt; by default the first prompt's frame and forms with no system text.
        embedder: texts -> (n, d) for definitions; needed where there are semantic items.
        max_new_tokens: of an answer.
        stop: an answer ends before this, once it has begun; "" for nothing.
        refusals: what counts as a refusal.
        seed: of the options' order.
        progress: called with (answers, answers in all).

    Returns:
        One row an item and prompt: id, subset, form, year, retention, prompt, answer, plain_answer, placebo_answer, and the same as
        outcomes (then, now, other, na; None where undefined): outcome, plain, placebo; success (the paper's), known, and freshness where
        the item has a history. The summary has these by prompt and subset, see `rewind_summary`.

    Raises:
        CapabilityError: the door writes no text.
        InputError: no items or prompts, names or ids that repeat, a year after this one, or semantic items without an embedder.
        ContextOverflowError: a prompt and its answer do not fit.

    Example:
        >>> measured = measure_rewind(model, read_rewind_items(), this_year=2026, embedder=embed)           # doctest: +SKIP
        >>> measured.summary["rates"][0]["success"]["estimate"]                                            # doctest: +SKIP
        0.86
    """
    model.require("text", "Answering")
    require_items(items)
    prompts = list(read_prompts().values()) if prompts is None else prompts
    names = [prompt.name for prompt in prompts]
    if not prompts or len(set(names)) < len(names) or "none" in names:
        raise InputError(f"The prompts are {names}.", "Give one or more with distinct names, none of them 'none'.")
    late = [item.id for item in items if item.year > this_year]
    if late:
        raise InputError(f"{len(late)} items have a year after {this_year}, {late[0]!r} among them.", "Give the present year.")
    if embedder is None and any(item.form == "definition" for item in items):
        raise InputError("There are semantic items and no embedder.", "Give embedder=, texts -> (n, d), or leave these items out.")
    shown = lettered(items, seed)
    bare = without or prompts[0].without()
    texts = [bare.fill(item, shown.get(item.id, ())) for item in items]
    for prompt in prompts:
        for year in (None, this_year + 1):
            texts += [prompt.fill(item, shown.get(item.id, ()), year) for item in items]
    written = model.generate([model.tokenizer.encode(text) for text in texts], max_new_tokens, progress=progress)
    answers = [_ended(model.tokenizer.decode(one[0]), stop) for one in written]
    count = len(items)
    plain_answers = answers[:count]
    rows: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        begin = count * (1 + 2 * number)
        triples = list(zip(answers[begin : begin + count], plain_answers, answers[begin + count : begin + 2 * count], strict=True))
        for item, three, outcomes in zip(items, triples, _outcomes(items, triples, shown, embedder, refusals), strict=True):
            rows.append(_row(item, prompt.name, three, outcomes, refusals))
    table = pl.DataFrame(rows, infer_schema_length=None)
    provenance = {
        "model": model.describe(),
        "items": sha256_json([[item.id, item.question, item.year, item.now, item.then, list(item.options)] for item in items]),
        "prompts": [asdict(prompt) for prompt in (bare, *prompts)],
        "this_year": this_year,
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("rewind", table, plain(rewind_summary(table, seed=seed)), plain(provenance))


def _ended(answer: str, stop: str) -> str:
    text = answer.strip()
    return text.split(stop, 1)[0].strip() if stop else text


def _outcomes(
    items: Sequence[RewindItem],
    triples: Sequence[tuple[str, str, str]],
    shown: dict[str, tuple[str, ...]],
    embedder: Embedder | None,
    refusals: RefusalRules | None,
) -> list[tuple[str | None, str | None, str | None]]:
    """Of every item the outcomes with the prompt, without it and with the placebo."""
    found: list[tuple[str | None, str | None, str | None]] = []
    for item, (given, bare, placebo) in zip(items, triples, strict=True):
        if item.form == "definition":
            assert embedder is not None  # measure_rewind has asked for it
            with_, plain_, other = then_ratios(embedder, item, [given, bare, placebo])
            base = None if plain_ is None else "then" if plain_ > 0.5 else "now"
            found.append((_meaning(with_, plain_), base, _meaning(other, plain_)))
        else:
            options = shown.get(item.id, ())
            readings = [read_answer(item, answer, options, refusals) for answer in (given, bare, placebo)]
            found.append((readings[0], readings[1], readings[2]))
    return found


def _meaning(ratio: float | None, plain_ratio: float | None) -> str | None:
    """The outcome of a definition from r with and without a prompt."""
    if ratio is None or plain_ratio is None:
        return None
    if ratio <= plain_ratio:
        return "now"
    return "then" if ratio > 0.5 else "other"


def then_ratios(embedder: Embedder, item: RewindItem, answers: Sequence[str]) -> list[float | None]:
    """r of answers to a semantic item; None where the denominator is not positive.

    Raises:
        InputError: embeddings of another shape, or that are not finite.
    """
    vectors = np.asarray(embedder([item.then, item.now, *answers]), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(answers) + 2 or not np.isfinite(vectors).all():
        raise InputError(f"The embedder gave {vectors.shape} for {len(answers) + 2} texts.", "Let it give one finite row for each.")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    then, now = unit[2:] @ unit[0], unit[2:] @ unit[1]
    return [float(t / (t + n)) if t + n > 0 else None for t, n in zip(then, now, strict=True)]


def mean_state_embedder(model: HFModel, layer: int) -> Embedder:
    """Texts as the mean hidden state after a layer: an embedder where no other is at hand, and a coarse one."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        ids = [model.tokenizer.encode(text or " ") for text in texts]
        return np.stack([states[layer].mean(0) for states in model.hidden_states(ids, [layer])])

    return embed


def _row(
    item: RewindItem,
    prompt: str,
    answers: tuple[str, str, str],
    outcomes: tuple[str | None, str | None, str | None],
    refusals: RefusalRules | None,
) -> dict[str, Any]:
    outcome, base, placebo = outcomes
    row: dict[str, Any] = {"id": item.id, "subset": item.subset, "form": item.form, "year": item.year, "retention": item.retention}
    row |= {"prompt": prompt, "answer": answers[0], "plain_answer": answers[1], "placebo_answer": answers[2]}
    row |= {"outcome": outcome, "plain": base, "placebo": placebo, "then": item.then}
    placed = None
    if item.history and item.form == "value":
        placed = freshness(answers[0], item.history, date(item.year - 1, 12, 31), rule="contains", refusals=refusals).value
    known = None if base is None else base == ("then" if item.retention else "now")
    return row | {"success": None if outcome is None else outcome != "now", "known": known, "freshness": placed}


def rewind_summary(table: pl.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """The figures of a table of `measure_rewind` by prompt and subset, "all" first, as plain JSON types.

    `rates` has prompt, subset, n, undefined, the shares of the outcomes, success, known (share), and on known items success_known,
    strict_known, placebo_change and corrected; `retention` the share of known unchanged items that stay right; `bias` what was said.
    Figures of no items are None.
    """
    rates, retention, bias = [], [], []
    for prompt in table["prompt"].unique(maintain_order=True):
        own = table.filter(pl.col("prompt") == prompt)
        for subset in ("all", *own["subset"].unique(maintain_order=True)):
            rows = own if subset == "all" else own.filter(pl.col("subset") == subset)
            changed = rows.filter(~pl.col("retention"))
            if len(changed):
                rates.append({"prompt": prompt, "subset": subset, **_rates(changed, seed)})
            kept = rows.filter(pl.col("retention") & pl.col("known").fill_null(False))
            if rows["retention"].any():
                right = None if not len(kept) else wilson_interval(int((kept["outcome"] == "then").sum()), len(kept))._asdict()
                retention.append({"prompt": prompt, "subset": subset, "n": len(kept), "right": right})
        answered = own.filter((pl.col("form") == "yes_no") & (pl.col("outcome") != "na"))
        if len(answered):
            bias.append(
                {"prompt": prompt, "n": len(answered), **{name: _said_no(answered, name) for name in ("outcome", "plain", "placebo")}}
            )
    return {"rates": rates, "retention": retention, "bias": bias}


def _rates(rows: pl.DataFrame, seed: int) -> dict[str, Any]:
    defined = rows.drop_nulls("outcome")
    found: dict[str, Any] = {"n": len(defined), "undefined": len(rows) - len(defined)}
    if not len(defined):
        return found | dict.fromkeys(("success", *OUTCOMES, "known", "success_known", "strict_known", "placebo_change", "corrected"))
    for name in OUTCOMES:
        found[name] = float((defined["outcome"] == name).mean())  # type: ignore[arg-type]
    found["success"] = _share(defined["success"])
    found["known"] = _share(defined["known"])
    known = defined.filter(pl.col("known")).drop_nulls("placebo")
    moved = known["placebo"] != "now"
    found["success_known"] = _share(known["success"])
    found["strict_known"] = _share(known["outcome"] == "then")
    found["placebo_change"] = _share(moved)
    effect = known["success"].to_numpy().astype(np.float64) - moved.to_numpy().astype(np.float64)
    found["corrected"] = bootstrap_interval(effect, seed=seed)._asdict() if len(effect) >= 2 else None
    placed = defined.drop_nulls("freshness")
    found["in_time"] = rates_to_dict(five_rates(placed["freshness"].to_list())) if len(placed) else None
    return found


def _share(flags: pl.Series) -> dict[str, float] | None:
    return wilson_interval(int(flags.sum()), len(flags))._asdict() if len(flags) else None


def _said_no(rows: pl.DataFrame, column: str) -> float | None:
    """Share of "No" among the yes-or-no answers of a column that can be read."""
    read = rows.filter(pl.col(column).is_in(["then", "now"]))
    if not len(read):
        return None
    no = [(then == "No") == (outcome == "then") for then, outcome in zip(read["then"], read[column], strict=True)]
    return float(np.mean(no))
