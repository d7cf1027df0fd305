"""Claim check of discourse and memorization: what is memorized reads well, and a guard lowers it at a price.

De Wynter et al., Natural Language Processing Journal 2023, arXiv 2304.08637, on the planted models of the extraction laws (s, m, l) and
an infinity-gram model, the fully memorizing extreme. 75 prompts of 16 tokens from planted passages that were trained on ("corpus"), 75
from held-out rows ("outside"); 64 tokens are written greedily, also past EOS. Checks, as the specification has them:

* the infinity-gram model has at least 95 % memorized text on corpus prompts, and there the trained models are in the order l > m > s;
* over corpus prompts and all four models, the memorized share and an automatic quality score are correlated above 0, the lower end of
  the bootstrap interval included: the mean log-probability of the output under SmolLM2-135M, less what of it is repetition (both as
  ranks, halved);
* MemFree decoding with 10-grams of the training stream lowers the memorized share of l on corpus prompts by at least 50 %; what that
  costs in quality is reported.

Labels that need human readers are not claimed. The correlation within models is reported beside the pooled one, and at three seeds it
is slightly below 0: what the pooled figure shows is that models which memorize more write better, not that their memorized outputs are
the better ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from palimpsest.audit.annotators import degeneration, drift_annotator, pii_annotator
from palimpsest.audit.discourse import correlations, judged, measure_discourse, paired_effect
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError
from palimpsest.experiments import extraction_laws
from palimpsest.experiments.canaries import train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.suite import Suite
from palimpsest.guard import MemFreeProcessor, protected_ngrams
from palimpsest.models import LanguageModel, load_model
from palimpsest.models.registry import is_fetched

STATEMENT = (
    "Outputs with more memorized text tend to be of better quality, and a mitigation that lowers memorization lowers quality with it."
)
PROMPT, NEW, MIN_LEN, GUARD = 16, 64, 8, 10
INFGRAM = "infinity-gram"
CPU = extraction_laws.CPU
SMOKE = replace(extraction_laws.SMOKE, sizes=("s",))
MODEL = "smollm2-135m"


def run(scale: str, seed: int) -> Claim:
    """Trains the models (or takes them from the cache), has them write and relates what they wrote to its quality.

    Args:
        scale: "smoke": 32 steps of the smallest model, without SmolLM2; only the figures of the infinity-gram model and the guard are
            held against anything; "cpu".
        seed: of text, places, weights and prompts.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    suite = train_suite(replace(CPU if full else SMOKE, seed=seed))
    prompts, corpus = draw_prompts(suite, 75 if full else 6, seed)
    models = [suite.models[f"perturbed-{size}"] for size in suite.config.sizes]
    annotators = {
        "pii": pii_annotator(suite.index, suite.tokenizer),
        "repetition": degeneration,
        "drift": drift_annotator(suite.index),
    }
    mitigations = {"memfree": lambda model: [MemFreeProcessor.for_model(model, suite.index, GUARD, eos_id=None)]}
    measured = measure_discourse(
        models, prompts, suite.index, annotators, mitigations, new_tokens=NEW, min_len=MIN_LEN, seed=seed, stop_at_eos=False
    )
    written = [continue_greedily(suite.index, prompt, NEW) for prompt in prompts]
    table = pl.concat([measured.table, judged(INFGRAM, "none", prompts, written, suite.index, suite.tokenizer, annotators, MIN_LEN)])
    table = table.with_columns(corpus=pl.col("prompt") < corpus)
    labels = ["pii", "repetition", "drift"]
    notes = [
        f"{corpus} prompts from planted passages, {len(prompts) - corpus} from held-out rows; MemFree with {GUARD}-grams, EOS not exempt."
    ]
    if full and is_fetched(MODEL):
        table = with_quality(table, load_model(MODEL))
        labels.append("quality")
    else:
        notes.append(f"No quality score: it needs the scale cpu, and {MODEL} in the cache.")
    own = table.filter(pl.col("corpus"))
    related = correlations(own.filter(pl.col("mitigation") == "none"), labels, seed)
    largest = own.filter(pl.col("model") == models[-1].name)
    effects = {figure: paired_effect(largest, "memfree", figure, seed) for figure in ("memorized", *labels)}
    share = {name: _mean(own, name) for name in [*(model.name for model in models), INFGRAM]}
    guaranteed = [
        Check("infinity-gram: memorized share on corpus prompts", share[INFGRAM], ">=", 0.95, unit="share"),
        Check("10-grams of the corpus in what was written under guard", protected(table, suite.index, prompts), "==", 0, unit="10-grams"),
    ]
    claimed = _claimed(share, [model.name for model in models], related, effects)
    checks = guaranteed + (claimed if full else [replace(check, threshold=None) for check in claimed])
    means = [pl.col(name).cast(pl.Float64).mean() for name in ("memorized", "longest", *labels)]
    rows = table.group_by("model", "mitigation", "corpus", maintain_order=True).agg(pl.len().alias("n"), *means).to_dicts()
    rows += [{"correlation": entry.pop("label"), **entry} for entry in related]
    return Claim("discourse-memorization", STATEMENT, checks, rows, seed, scale, notes)


def draw_prompts(suite: Suite, each: int, seed: int) -> tuple[list[np.ndarray], int]:
    """Beginnings of `each` planted passages that were trained on, then of as many held-out rows; and how many are the former."""
    rng = np.random.default_rng((seed, 70))
    planted = suite.ledger.filter(pl.col("copies") > 0)["ids"].to_list()
    first = [np.array(planted[i][:PROMPT]) for i in rng.permutation(len(planted))[:each]]
    rest = suite.validation[rng.permutation(len(suite.validation))[:each], :PROMPT].astype(np.int64)
    return [*first, *rest], len(first)


def continue_greedily(index: CorpusIndex, prompt: Sequence[int] | np.ndarray, new_tokens: int) -> np.ndarray:
    """The infinity-gram model's greedy text: after the longest suffix that the corpus continues, its most frequent next token.

    Liu et al., COLM 2024, arXiv 2401.17377. Ties go to the lowest id.

    Example:
        >>> import pathlib, tempfile
        >>> index = CorpusIndex.build([[1, 2, 3, 4], [2, 3, 5], [2, 3, 5]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
        >>> continue_greedily(index, [1, 2], 2).tolist(), continue_greedily(index, [9, 2], 2).tolist()
        ([3, 4], [3, 5])
    """
    text = [int(token) for token in prompt]
    for _ in range(new_tokens):
        following = index.infgram_ntd(text)
        text.append(int(following.ids[np.argmax(following.counts)]))
    return np.array(text[len(prompt) :], np.int64)


def with_quality(table: pl.DataFrame, judge: LanguageModel) -> pl.DataFrame:
    """The table with `judge_logprob`, the mean log-probability of an output under `judge` (nat a token), and `quality`: the mean of the
    ranks, scaled to [0, 1], of that and of not repeating itself."""
    rows = [np.array(ids, np.int64) for ids in judge.tokenizer.encode_batch(table["text"].to_list())]
    short = sum(row.size < 2 for row in rows)
    if short:
        raise InputError(f"{short} outputs are too short for {judge.name} to judge.", "Have longer outputs written.")
    values = np.array([found.mean() for found in judge.logprobs(rows)], np.float64)
    ranks = [stats.rankdata(side) / len(rows) for side in (values, -table["repetition"].to_numpy())]
    return table.with_columns(judge_logprob=pl.Series(values), quality=pl.Series((ranks[0] + ranks[1]) / 2))


def protected(table: pl.DataFrame, index: CorpusIndex, prompts: list[np.ndarray]) -> int:
    """10-grams of the corpus that end at a generated token, in all that was written under guard."""
    rows = table.filter(pl.col("mitigation") == "memfree").select("prompt", "ids").iter_rows()
    return sum(len(protected_ngrams(index, np.concatenate([prompts[p], ids]).astype(np.int64), PROMPT, GUARD)) for p, ids in rows)


def _mean(own: pl.DataFrame, name: str) -> float:
    return float(own.filter((pl.col("model") == name) & (pl.col("mitigation") == "none"))["memorized"].to_numpy().mean())


def _claimed(share: dict[str, float], models: list[str], related: list[dict[str, Any]], effects: dict[str, dict[str, Any]]) -> list[Check]:
    gaps = [share[larger] - share[smaller] for smaller, larger in pairwise(models)]
    by = {(entry["label"], entry["scope"]): entry for entry in related}
    pooled, within = by.get(("quality", "pooled"), {}), by.get(("quality", "within models"), {})
    memorized, quality = effects["memorized"], effects.get("quality", {})
    return [
        Check("least gain in memorized share from one size to the next, corpus prompts", min(gaps, default=None), ">", 0, unit="share"),
        Check("lower end of the correlation of memorized share and quality, corpus prompts", pooled.get("low"), ">", 0),
        Check("relative fall of the memorized share of the largest model under MemFree",
              1 - memorized["after"] / memorized["before"] if memorized["before"] else None, ">=", 0.5, unit="share"),
        Check("correlation of memorized share and quality, corpus prompts", pooled.get("r")),
        Check("the same within models", within.get("r")),
        Check("lower end of the same within models", within.get("low")),
        Check("quality of the largest model under MemFree (rank, 0 to 1)", quality.get("after"), baseline=quality.get("before")),
        *(Check(f"memorized share, {name}", value, unit="share") for name, value in share.items()),
    ]  # fmt: skip
