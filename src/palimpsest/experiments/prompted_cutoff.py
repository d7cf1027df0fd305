"""Claim check of prompted cut-offs: a declared year takes a model back on what was dated, and hardly on what follows from it.

Gao et al., EMNLP 2025, arXiv 2510.02340, who ask large chat models. Here a model of two layers and width 128 reads a made-up world
(`prompted_cutoff_world`): facts with the years in which they held, in front of the sentence ("[as of 2009]"), today's facts also without;
what follows from them as it is today alone, without a year, and the plan that came to nothing once. The prompt is the same mark.
Checks, on the items that are known without a prompt:

* strict success (the value of then) is .8 or more for dated facts, .4 or less for consequences, and .4 or more apart;
* a year that is still to come changes .1 of the answers or less;
* a model that read the same sentences without their years has .2 or less on the facts: the prompt alone is not the cause.

Where SmolLM2-135M-Instruct can be had, its figures on forty items of our own are reported.

    >>> claim = run("smoke", 0)
    >>> claim.passed
    True
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from palimpsest.errors import ModelNotFoundError
from palimpsest.evaluation.rewind import mean_state_embedder, measure_rewind
from palimpsest.evaluation.rewind_items import RewindPrompt, read_prompts, read_rewind_items
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.memory_frame_world import WorldConfig
from palimpsest.experiments.prompted_cutoff_world import TODAY, DatedWorld
from palimpsest.models import HFModel, load_model

STATEMENT = "A prompt that declares an earlier knowledge cut-off suppresses direct facts from after it, but rarely their consequences."
REAL = "smollm2-135m"
CPU = WorldConfig(people=50, epochs=26, batch_size=16)
SMOKE = WorldConfig(people=30, epochs=1, width=16, heads=2)
DECLARED = RewindPrompt("as of", "", {"value": ""}, "[as of {year_minus_1}] {user}")
NOTHING = RewindPrompt("none", "", {"value": ""}, "{user}")


def run(scale: str, seed: int) -> Claim:
    """Trains a model with and one without years, and asks both.

    Args:
        scale: "smoke": a model that knows next to nothing, held against nothing but what holds for any; "cpu".
        seed: of the world, its documents and the weights.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    world = DatedWorld(replace(CPU if full else SMOKE, seed=seed))
    with one_thread():
        summaries = {name: asked(world, world.reader(dated=dated), seed) for name, dated in (("dated", True), ("undated", False))}
    checks = verdict(summaries)
    notes = [
        "A question is a sentence up to its object; the years in which a fact is asked for need not be those in which it was read.",
        "Tried on seed 100: three years of every value in two wordings, 120 people, 20 epochs: .74 for dated facts, .13 for consequences; "
        "a year to come changed none of the facts and .28 of the consequences, in front of which no year had ever stood. Ten years of "
        "every value in one wording, years to come in front of both, 50 people, 26 epochs: .91, .02 and 0.",
        f"{len(world.items())} items, {sum(item.retention for item in world.items())} of them unchanged.",
    ]
    rows = [{"model": name, **row} for name, summary in summaries.items() for row in summary["rates"]]
    if full:
        try:
            rows += [{"model": REAL, **row} for row in real_model()]
        except ModelNotFoundError as error:
            notes.append(f"{REAL} was left out: {error.problem}")
    if not full:
        checks = [check if check.what.startswith("shares") else replace(check, threshold=None) for check in checks]
    return Claim("prompted-cutoff", STATEMENT, checks, rows, seed, scale, notes)


def asked(world: DatedWorld, model: HFModel, seed: int) -> dict[str, Any]:
    """What a model answers with and without a declared year."""
    items = world.items()
    return measure_rewind(model, items, [DECLARED], without=NOTHING, this_year=TODAY, max_new_tokens=3, stop=".", seed=seed).summary


def real_model() -> list[dict[str, Any]]:
    """The rates of the real model, with its own mean states after two thirds of its layers as embeddings."""
    model = load_model(REAL)
    assert isinstance(model, HFModel)
    layer = int(model.model.config.num_hidden_layers) * 2 // 3
    prompts = list(read_prompts(frame="chatml").values())
    found = measure_rewind(
        model, read_rewind_items(), prompts, this_year=2026, embedder=mean_state_embedder(model, layer), max_new_tokens=32
    )
    rates: list[dict[str, Any]] = found.summary["rates"]
    return rates


def verdict(summaries: dict[str, dict[str, Any]]) -> list[Check]:
    """The checks, from the summaries of the model that read years and of the one that did not."""
    facts, consequences = (_rates(summaries["dated"], subset) for subset in ("factual", "counterfactual"))
    direct, indirect = (_estimate(rates, "strict_known") for rates in (facts, consequences))
    gap = None if direct is None or indirect is None else direct - indirect
    undated = _rates(summaries["undated"], "factual")
    kept = summaries["dated"]["retention"][0]["right"]
    everything = _rates(summaries["dated"], "all")
    off = max(abs(sum(rates[name] for name in ("then", "now", "other", "na")) - 1) for rates in (facts, consequences, undated))
    return [
        Check("dated facts: strict success on known items", direct, ">=", 0.8, unit="share"),
        Check("consequences: strict success on known items", indirect, "<=", 0.4, unit="share"),
        Check("gap between them", gap, ">=", 0.4, unit="share"),
        Check("answers that a year to come changes", _estimate(everything, "placebo_change"), "<=", 0.1, unit="share"),
        Check("facts without years: strict success on known items", _estimate(undated, "strict_known"), "<=", 0.2, unit="share"),
        Check("shares of the outcomes, less 1", off, "<=", 1e-9),
        Check("dated facts: the paper's success", _estimate(facts, "success"), unit="share"),
        Check("consequences: the paper's success", _estimate(consequences, "success"), unit="share"),
        Check("dated facts: known", _estimate(facts, "known"), unit="share"),
        Check("consequences: known", _estimate(consequences, "known"), unit="share"),
        Check("facts without years: known", _estimate(undated, "known"), unit="share"),
        Check("unchanged facts that stay right", None if kept is None else kept["estimate"], unit="share"),
    ]


def _rates(summary: dict[str, Any], subset: str) -> dict[str, Any]:
    return next(row for row in summary["rates"] if row["subset"] == subset)


def _estimate(rates: dict[str, Any], name: str) -> float | None:
    found = rates[name]
    return None if found is None else float(found["estimate"])
