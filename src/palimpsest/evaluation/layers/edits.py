"""What an edit of the weights changed: as it should, and as it should not.

`measure_edits` compares a model before and after edits (Meng et al., ROME, NeurIPS 2022, arXiv 2202.05262, for the figures):

* **ES**, efficacy: share of edits whose new value is likelier than the old one on the edit's own prompt, after the edit;
* **PS**, generalisation: the same on paraphrases;
* **NS**, locality: share of neighbours, same relation but not edited, whose true value is likelier than the edit's new one;
* **portability**: share of one-hop consequences whose new value is likelier than what followed before (Yao et al., EMNLP 2023, arXiv
  2305.13172);
* **drawdown**: relative rise of the perplexity of general text, and what becomes of a general probe set;
* **S**: harmonic mean of ES, PS and NS.

The same figures before the edits are the control: an edit that was likely anyway is no success. Locality on facts that have nothing to do
with the edit is too easy: take neighbours of the same relation, and of the same subject.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.evaluation.layers.parametric import target_logprobs
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models import LanguageModel
from palimpsest.stats import Comparison, Interval, bootstrap_interval, mcnemar, paired_permutation, rate_interval


@dataclass(frozen=True)
class Contest:
    """A prompt and two values: which one does the model find likelier?"""

    prompt: str
    wanted: str
    rival: str


@dataclass(frozen=True)
class Edit:
    """A fact that was changed, and what else should or should not have changed.

    Attributes:
        id: its name.
        prompt: what the edit was made on; `new` is wanted, `old` was there.
        new, old: values.
        paraphrases: prompts of the same meaning.
        neighbours: prompts of the same relation and other subjects with the value that is true there; these should not change.
        consequences: what follows from the edit in one step: wanted is what follows now, rival what followed before.
    """

    id: str
    prompt: str
    new: str
    old: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    consequences: tuple[Contest, ...] = ()

    def contests(self) -> dict[str, list[Contest]]:
        """The contests of every figure."""
        return {
            "ES": [Contest(self.prompt, self.new, self.old)],
            "PS": [Contest(prompt, self.new, self.old) for prompt in self.paraphrases],
            "NS": [Contest(prompt, true, self.new) for prompt, true in self.neighbours],
            "portability": list(self.consequences),
        }


def measure_edits(
    before: LanguageModel,
    after: LanguageModel,
    edits: Sequence[Edit],
    general_text: Sequence[str],
    probes: Sequence[Contest] = (),
    *,
    seed: int = 0,
) -> Measurement:
    """What edits changed, as they should and as they should not.

    Args:
        before, after: the model without and with the edits; both need "logprobs" and share a tokenizer.
        edits: at least 2.
        general_text: texts whose perplexity should not rise.
        probes: contests that have nothing to do with the edits, whose outcomes should not change.
        seed: of the bootstraps.

    Returns:
        One row an edit and contest: id, figure, number, before, after (whether the wanted value wins). The summary has every figure before
        and after with an interval (over edits, when an edit has several contests), their change, S, and the drawdown.

    Raises:
        InputError: fewer than 2 edits, or no general text.
        CapabilityError, TokenizerMismatchError: as the models say.

    Example:
        >>> m = measure_edits(model, edited, edits, texts)   # doctest: +SKIP
        >>> m.summary["after"]["NS"]["low"] >= 0.95          # doctest: +SKIP
    """
    for model in (before, after):
        model.require("logprobs", "Comparing values")
    before.tokenizer.require_same(after.tokenizer.fingerprint, f"the edited model {after.name}")
    if len({edit.id for edit in edits}) < max(2, len(edits)) or not general_text:
        raise InputError(f"{len(edits)} edits and {len(general_text)} texts.", "Give 2 edits or more, with distinct ids, and general text.")
    named = [(edit.id, figure, n, c) for edit in edits for figure, found in edit.contests().items() for n, c in enumerate(found)]
    named += [(f"probe {n}", "probe", 0, contest) for n, contest in enumerate(probes)]
    contests = [contest for *_, contest in named]
    table = pl.DataFrame(
        {
            "id": [name for name, *_ in named],
            "figure": [figure for _, figure, *_ in named],
            "number": [number for _, _, number, _ in named],
            "before": _wins(before, contests),
            "after": _wins(after, contests),
        }
    )
    summary: dict[str, Any] = {"before": {}, "after": {}, "change": {}, "n": len(edits)}
    for (figure,), rows in table.group_by("figure", maintain_order=True):
        for side in ("before", "after"):
            summary[side][figure] = _share(rows, side, seed)._asdict()
        summary["change"][figure] = _change(rows, seed).to_dict()
    parts = [summary["after"][name]["estimate"] for name in ("ES", "PS", "NS") if name in summary["after"]]
    summary["S"] = 0.0 if min(parts) == 0 else len(parts) / sum(1 / part for part in parts)
    summary["S_of"] = [name for name in ("ES", "PS", "NS") if name in summary["after"]]
    summary["drawdown"] = drawdown(before, after, general_text, seed=seed)
    provenance = {"before": before.describe(), "after": after.describe(), "seed": seed, "environment": environment()}
    return Measurement("edits", table, dict(plain(summary)), provenance)


def drawdown(before: LanguageModel, after: LanguageModel, texts: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """The relative rise of perplexity on texts, PPL after / PPL before − 1, with a bootstrap over texts.

    Raises:
        InputError: fewer than 2 texts of at least 2 tokens each.
    """
    rows = [ids for ids in before.tokenizer.encode_batch(list(texts)) if len(ids) >= 2]
    if len(rows) < 2:
        raise InputError(f"{len(rows)} texts have 2 tokens or more.", "Give at least 2 such texts.")
    one, two = (np.array([float(lp.sum(dtype=np.float64)) for lp in model.logprobs(rows)]) for model in (before, after))
    tokens = np.array([len(ids) - 1 for ids in rows], np.float64)

    def rise(lost: np.ndarray, counted: np.ndarray, axis: int) -> np.ndarray:
        return np.expm1(np.sum(lost, axis=axis) / np.sum(counted, axis=axis))

    interval = bootstrap_interval(one - two, tokens, statistic=rise, paired=True, seed=seed)
    perplexities = [math.exp(-float(total.sum() / tokens.sum())) for total in (one, two)]
    return {"perplexity_before": perplexities[0], "perplexity_after": perplexities[1], "rise": interval._asdict(), "texts": len(rows)}


def _wins(model: LanguageModel, contests: Sequence[Contest]) -> list[bool]:
    prompts = [contest.prompt for contest in contests]
    wanted = target_logprobs(model, prompts, [contest.wanted for contest in contests])
    rival = target_logprobs(model, prompts, [contest.rival for contest in contests])
    return (wanted > rival).tolist()


def _change(rows: pl.DataFrame, seed: int) -> Comparison:
    """After against before: by edit, when an edit has several contests, for these are not independent."""
    if rows["id"].is_unique().all():
        return mcnemar(rows["before"].to_numpy(), rows["after"].to_numpy())
    means = rows.group_by("id", maintain_order=True).agg(pl.col("before", "after").cast(pl.Float64).mean())
    return paired_permutation(means["before"].to_numpy(), means["after"].to_numpy(), seed=seed)


def _share(rows: pl.DataFrame, side: str, seed: int) -> Interval:
    return rate_interval(rows[side].to_numpy(), rows["id"].to_numpy(), seed=seed)
