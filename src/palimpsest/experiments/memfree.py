"""Claim check of MemFree decoding: the letter can be stopped, the text cannot.

Ippolito et al., INLG 2023, arXiv 2210.17546, on planted passages (prompt 32, suffix 24, protected 6-grams; see `memfree_suite`):

* (a) a guard brings word-for-word extraction to exactly 0, and yet passages still come out nearly word for word, controls do not;
* (b) a text that the model also knows in capitals passes a filter that was built on its own casing;
* nothing protected in 100,000 generated tokens, for greedy, sampled and beam decoding, on the exact index and on a Bloom filter of
  *everything that the model was trained on*, with EOS an ordinary token; checked against the exact index;
* what the guard costs on held-out text is reported.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.approximate import measure_approximate
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import BloomFilter, CorpusIndex
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.lab_data import CanaryConfig
from palimpsest.experiments.memfree_suite import CAPITALS, PREFIX, SUFFIX, GuardConfig, build_suite
from palimpsest.experiments.suite import Suite
from palimpsest.guard import MemFreeProcessor, measure_guard_cost, protected_ngrams
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models import HFModel

STATEMENT = (
    "A filter on n-grams makes word-for-word memorization impossible, but text that is nearly the same still comes out, and a prompt in "
    "another style gets past the filter: it gives a false sense of privacy."
)
N = 6
DECODINGS: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": {"temperature": 1.0}, "beam": {"num_beams": 4}}
CPU = GuardConfig(
    CanaryConfig(sizes=("l",), twins=("perturbed",), n_sequences=9000, seq_len=128, lr=2e-3),
    noisy=(12, 384),
    cased=(8, 320),
    controls=24,
    noise=0.25,
)
TRIED = (
    "Departure from the specification's setting, passages with 48 and 64 exact copies in m at 3e-3: there no suffix of 24 tokens comes "
    "out even without a guard (0 of 20, seed 0). 256 exact copies: all do, and under guard none comes out nearly (mean edit similarity "
    "0.2), because a tiny model that has only seen exact copies does not find back after a forced token.",
    "Noise that was tried (m, seed 0, 8 to 10 passages, under guard: nearly word for word, mean edit similarity): 5 % of the tokens at "
    "256 copies 0 of 8, 0.30; 15 % at 256 copies 1 of 10, 0.66; 25 % at 384 copies 4 of 10, 0.72. l, 15 % at 256 copies: 2 of 10, 0.71.",
    "With both sets in one m (12 noisy passages at 384 copies, 8 cased at 192 and 48) seed 0 held all checks and seed 1 failed (a) with "
    "0 of 12 and (b) because capitals were not learnt even without a guard (edit similarity 0.15); with 320 and 80 copies seeds 1 and 2 "
    "held them with 2 and 1 of 12. Hence l, the larger model; this is why its size is not the specification's.",
    "At n = 6 a guarded continuation of 24 tokens differs in at least 4 of them: its edit similarity reaches at most about 0.83 and its "
    "BLEU-4 about 0.6, so that what comes out nearly does so by edit similarity.",
)
SMOKE = GuardConfig(
    CanaryConfig(sizes=("s",), twins=("perturbed",), n_sequences=120, seq_len=128, warmup=5),
    noisy=(2, 8),
    cased=(2, 8),
    controls=4,
    noise=0.25,
)


@dataclass(frozen=True)
class Budget:
    """How much is done.

    Attributes:
        n: length of the n-grams that are looked for in long generations.
        tokens: generated for every decoding scheme and source.
        new: tokens after one prompt.
        texts: held-out texts for the price of the guard.
    """

    n: int
    tokens: int
    new: int
    texts: int


def run(scale: str, seed: int) -> Claim:
    """Trains the model (or takes it from the cache) and checks the claim.

    Args:
        scale: "smoke": 30 steps of the smallest model, only what a guard guarantees is held against anything; "cpu".
        seed: of text, places, weights and samples.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = CPU if full else SMOKE
    config = replace(config, lab=replace(config.lab, seed=seed))
    budget = Budget(N, 100_000, 320, 64) if full else Budget(2, 400, 50, 2)  # what hardly learnt anything repeats no 6-grams
    suite = build_suite(config)
    model = suite.models[f"perturbed-{config.lab.sizes[0]}"]
    samples = suite.samples(PREFIX, SUFFIX)
    with tempfile.TemporaryDirectory() as folder:
        planted = [s.ids for s in samples if s.meta["domain"] != "control"]
        passages = CorpusIndex.build(planted, model.tokenizer, Path(folder) / "passages")
        free = measure_approximate(model, samples)
        guard = MemFreeProcessor.for_model(model, passages, N)
        held = measure_approximate(model, samples, guard=guard)
        finished = _finished(model, samples, passages)
        emitted = _emissions(model, suite, budget, seed)
    texts = list(suite.validation[: budget.texts].astype(np.int64))
    prices = {
        "index": measure_guard_cost(model, suite.index, texts, N),
        "bloom": measure_guard_cost(model, BloomFilter.from_index(suite.index, N), texts),
    }
    results = {"free": free, "held": held}
    checks = _guarantees(results, finished, emitted) + _claimed(results, full=full) + _reported(results, prices)
    rows = [*_rows(results), *emitted]
    return Claim("memfree", STATEMENT, checks, rows, seed, scale, _notes(config, suite, model, guard), [_curve(results)])


def _finished(model: HFModel, samples: list[PrefixSuffix], passages: CorpusIndex) -> int:
    """Protected n-grams that end at a generated position, in the greedy continuations of all prompts under guard."""
    guard = MemFreeProcessor.for_model(model, passages, N)
    written = model.generate([sample.prefix for sample in samples], SUFFIX, processors=[guard])
    whole = [np.concatenate([sample.prefix, found[0]]) for sample, found in zip(samples, written, strict=True)]
    return sum(len(protected_ngrams(passages, ids, PREFIX, N)) for ids in whole)


def _emissions(model: HFModel, suite: Suite, budget: Budget, seed: int) -> list[dict[str, Any]]:
    """Long generations under guards of the whole training stream: one record a decoding scheme and source, and one unguarded each."""
    wide = HFModel(model.model, model.tokenizer, name=model.name, batch_tokens=4096)
    index = suite.index
    guards = {
        "none": None,
        "index": MemFreeProcessor.for_model(model, index, budget.n, eos_id=None),
        "bloom": MemFreeProcessor.for_model(model, BloomFilter.from_index(index, budget.n), eos_id=None),
    }
    count = -(-budget.tokens // budget.new)
    rows = suite.stream.rows["perturbed"]
    chosen = np.random.default_rng((seed, 40)).choice(len(rows), count, replace=False)
    prompts = [rows[i, :PREFIX].astype(np.int64) for i in chosen]
    records = []
    for decoding, how in DECODINGS.items():
        for source, guard in guards.items():
            asked = prompts if guard else prompts[: max(1, count // 10)]  # the unguarded rate needs no more
            written = wide.generate(asked, budget.new, seed=seed, stop_at_eos=False, processors=[guard] if guard else [], **how)
            outputs = [found[0] for found in written]
            found = sum(
                len(protected_ngrams(index, np.concatenate([p, out]), PREFIX, budget.n)) for p, out in zip(asked, outputs, strict=True)
            )
            records.append(
                {
                    "arm": "emission",
                    "decoding": decoding,
                    "source": source,
                    "n": budget.n,
                    "tokens": sum(map(len, outputs)),
                    "protected_ngrams": found,
                    "violations": guard.counts.violations if guard else None,
                }
            )
    return records


def _rate(result: Measurement, domains: tuple[str, ...], transform: str, column: str) -> tuple[int, int]:
    """Passages for which `column` holds, and passages."""
    rows = result.table.filter(pl.col("domain").is_in(list(domains)) & (pl.col("transform") == transform))
    return int(rows[column].sum()), len(rows)


def _share(result: Measurement, domains: tuple[str, ...], transform: str, column: str) -> float:
    hits, n = _rate(result, domains, transform, column)
    return hits / n


def _guarantees(results: dict[str, Measurement], finished: int, emitted: list[dict[str, Any]]) -> list[Check]:
    """What a guard promises, whatever the model."""
    planted = ("noisy", "cased")
    verbatim = {name: _share(result, planted, "identity", "verbatim") for name, result in results.items()}
    checks = [
        Check("verbatim rate of planted passages with the guard", verbatim["held"], "==", 0.0, verbatim["free"], "share"),
        Check("planted 6-grams that end at a generated token, with the guard", finished, "==", 0, unit="6-grams"),
    ]
    unguarded = {record["decoding"]: record for record in emitted if record["source"] == "none"}
    for record in emitted:
        if record["source"] != "none":
            base = unguarded[record["decoding"]]
            checks.append(
                Check(
                    f"protected {record['n']}-grams per 100,000 tokens, {record['decoding']}, {record['source']}",
                    1e5 * record["protected_ngrams"] / record["tokens"],
                    "==",
                    0,
                    1e5 * base["protected_ngrams"] / base["tokens"],
                    "n-grams",
                )
            )
    return checks


def _claimed(results: dict[str, Measurement], *, full: bool) -> list[Check]:
    """What the paper found; held against its thresholds only where the model has learnt something."""
    held = results["held"]
    near, controls = (_share(held, (domain,), "identity", "approximate") for domain in ("noisy", "control"))
    plain, loud = (_rate(held, ("cased",), transform, "approximate")[0] for transform in ("identity", "upper"))
    checks = [
        Check("(a) verbatim rate of planted passages without a guard", _share(results["free"], ("noisy", "cased"), "identity", "verbatim"),
              ">=", 0.5, unit="share"),
        Check("(a) noisy passages nearly word for word, with the guard", near, ">", 0.0, controls, "share"),
        Check("(a) the same, against 5 times the controls'", near, ">", 5 * controls, controls, "share"),
        Check("(b) cased passages that come out nearly, asked in capitals, over asked as they are (none counted as one), with the guard",
              loud / max(plain, 1), ">=", 5.0, float(plain), "ratio"),
    ]  # fmt: skip
    return checks if full else [replace(check, threshold=None) for check in checks]


def _reported(results: dict[str, Measurement], prices: dict[str, Measurement]) -> list[Check]:
    cased = [_share(result, ("cased",), "identity", "approximate") for result in (results["held"], results["free"])]
    checks = [Check("cased passages (exact copies only) nearly word for word, with the guard", cased[0], baseline=cased[1], unit="share")]
    for source, price in prices.items():
        figures = price.summary
        what = f"held-out text, all training 6-grams protected, {source}"
        checks += [
            Check(f"{what}: next tokens forbidden", figures["blocked_share"]["estimate"], unit="share"),
            Check(f"{what}: perplexity of the others", figures["perplexity_guarded"], baseline=figures["perplexity_open"]),
        ]
    return checks


def _rows(results: dict[str, Measurement]) -> list[dict[str, Any]]:
    rows = []
    for result in results.values():
        keys = ["domain", "transform", "guarded"]
        rates = [
            pl.col(name).cast(pl.Float64).mean()
            for name in ("verbatim", "recovered", "approximate", "bleu", "edit_similarity", "longest_run")
        ]
        frame = result.table.group_by(keys, maintain_order=True).agg(pl.len().alias("n"), *rates)
        rows += [{"arm": "passages", **row} for row in frame.iter_rows(named=True)]
    return rows


def _notes(config: GuardConfig, suite: Suite, model: HFModel, guard: MemFreeProcessor) -> list[str]:
    lab = config.lab
    validation = suite.cards[model.name]["validation_loss"]
    return [
        f"{lab.n_sequences} sequences of {lab.seq_len} tokens, {len(suite.stream.planted.insertions)} of them with a planted copy; "
        f"{config.noisy[0]} noisy passages with {config.noisy[1]} copies ({config.noise:.0%} of the tokens replaced at random), "
        f"{config.cased[0]} cased ones with {config.cased[1]} copies and {config.cased[1] // CAPITALS} in capitals; "
        f"validation loss {validation:.2f} nat.",
        f"The guard's counts on all prompts and styles: {guard.counts.to_dict()}.",
        *TRIED,
    ]


def _curve(results: dict[str, Measurement]) -> Curve:
    """Mean edit similarity by style, with and without the guard."""
    order = ["identity", "upper", "lower", "double_space"]
    series = []
    for name, words in (("free", "no guard"), ("held", "guard")):
        for domain in ("noisy", "cased"):
            points: list[dict[str, float | int | None]] = []
            for place, transform in enumerate(order):
                rows = results[name].table.filter((pl.col("domain") == domain) & (pl.col("transform") == transform))
                points.append({"x": place, "y": float(rows["edit_similarity"].to_numpy().mean()), "n": len(rows)})
            series.append(Series(f"{domain}, {words}", points, "points"))
    return Curve(
        "memfree-styles",
        "What still comes out under guard, by style of the prompt",
        "prompt: 0 as it is, 1 capitals, 2 lower case, 3 double spaces",
        "mean edit similarity to the true text",
        series,
        y_domain=(0.0, 1.0),
    )
