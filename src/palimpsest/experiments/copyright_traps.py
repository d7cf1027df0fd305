"""Claim check of copyright traps: long traps planted often are detected, traps planted once are not (Meeus et al., arXiv 2402.09363).

Three models of half a million parameters (see `canaries`): the *reference*, trained on a half of the novels, makes the traps; the
*target* is trained on the novels with traps in 144 documents of at least 800 words; the *clean* model on the same documents without
them. Traps of 8 and 24 tokens are planted 1, 8 and 32 times, 24 traps each, three siblings kept back for every one. Checks, as the
specification has them:

* AUC of the ratio at 24 tokens and 32 copies at least 0.9; AUC at one copy at most 0.65, or its interval holds 0.5;
* at 24 tokens the AUC rises with the copies (Spearman's rho is 1);
* the ratio is at least as good as the perplexity alone in 5 of the 6 cells;
* the owner's p-value is below 0.01 in the top cell for the target, and for the clean model the p-values of all traps are uniform
  (Kolmogorov-Smirnov p > 0.05, each rank spread at random over its step, which makes it exactly uniform under the null).

Departures: the novels that are shipped stand in for the Bible and the other half of them for program documentation; the buckets of
perplexity are three, each four times as high as it begins, from 25 to 1,600, for a model of this size finds its own text surprising.

Tried before any deciding run, seeds 100 to 102, learning rate 3e-3: with one bucket, [100, 400), all checks held but that of the ratio
against the perplexity (4 and 6 of 6 cells; 3 with 5e-3), which has little to correct where all traps are alike. With three it held in all
cells, but a trap planted once was betrayed, too (AUC .56 to .69), so the rate is the laboratory's own, 1.2e-3. A run with it on
seed 101, which ended after that was settled, has .66 at 8 tokens and .54 at 24.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from palimpsest.audit.traps import TrapFactory
from palimpsest.audit.traps_detection import detect
from palimpsest.audit.traps_injection import Manifest, inject, remove
from palimpsest.experiments.canaries import train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.lab_data import CanaryConfig, Stream, validation_rows
from palimpsest.experiments.planted_texts import EOS_ID, base_text, train_tokenizer
from palimpsest.experiments.planting import Ledger
from palimpsest.measurement import Measurement
from palimpsest.models import HFModel
from palimpsest.stats import spearman
from palimpsest.tokenizer import Tokenizer

STATEMENT = (
    "Long, surprising sequences planted many times in a document betray that a model was trained on it, where document-level membership "
    "tests fail."
)
LENGTHS, COPIES, SIBLINGS = (8, 24), (1, 8, 32), 3
BUCKETS, CELL, MIN_WORDS = ((25.0, 100.0), (100.0, 400.0), (400.0, 1600.0)), 75.0, 800
CPU = CanaryConfig(sizes=("m",), n_sequences=9000)
SMOKE = replace(CPU, sizes=("s",), n_sequences=128)


def run(scale: str, seed: int) -> Claim:
    """Trains the three models (or takes them from the cache), plants, detects and checks.

    Args:
        scale: "smoke": 32 steps of the smallest model; only what holds whatever a model has learnt is held against anything; "cpu".
        seed: of documents, traps, places and weights.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = replace(CPU if full else SMOKE, seed=seed)
    tokenizer = train_tokenizer(config.vocab_size)
    documents = cut_documents(seed)
    rng = np.random.default_rng((seed, 70))
    half = sorted(rng.permutation(len(documents))[: len(documents) // 2].tolist())
    plain = replace(config, twins=("standard",))
    # other weights than the twins': a reference that began where the target began would know too well how it thinks
    maker = replace(plain, seed=seed + 1000)
    reference = _only(train_suite(maker, data=_stream(maker, tokenizer, {"standard": [documents[i] for i in half]})).models)
    buckets, cell = (BUCKETS, CELL) if full else (((1.0, 1e6),), 1e6)
    each = (24 if full else 2) // len(buckets) * len(COPIES) * (1 + SIBLINGS)
    traps = TrapFactory(reference, cell=cell).make(each, LENGTHS, buckets, seed)
    planted, manifest = inject(documents, traps, COPIES, siblings=SIBLINGS, min_words=MIN_WORDS, seed=seed)
    hosts = {planting.document for planting in manifest.plantings}
    order = sorted(range(len(documents)), key=lambda i: i not in hosts)  # no copy may fall behind the end of the run
    data = _stream(config, tokenizer, {"standard": [documents[i] for i in order], "perturbed": [planted[i] for i in order]})
    models = train_suite(config, data=data).models
    found = {name: detect(models[f"{name}-{config.sizes[0]}"], manifest, reference=reference, seed=seed) for name in config.twins}
    checks = _guaranteed(documents, planted, manifest, found["perturbed"])
    claimed = _claimed(found["perturbed"], found["standard"], seed)
    checks += claimed if full else [replace(check, threshold=None) for check in claimed]
    rows = [{"model": name, **row} for name, result in found.items() for row in result.summary["levels"]]
    rows += [{"model": name, "method": "owner's p", **row} for name, result in found.items() for row in result.summary["owner"]["levels"]]
    curves = list(found["perturbed"].curves.values())
    return Claim("copyright-traps", STATEMENT, checks, rows, seed, scale, [_note(traps.provenance, data)], curves)


def cut_documents(seed: int) -> list[str]:
    """The novels' training paragraphs in documents of at least `MIN_WORDS` words (the rest goes to the last one), in random order."""
    documents: list[list[str]] = [[]]
    words = 0
    for paragraph in base_text().train:
        if words >= MIN_WORDS:
            documents.append([])
            words = 0
        documents[-1].append(paragraph)
        words += paragraph.count(" ") + 1
    if words < MIN_WORDS and len(documents) > 1:
        last = documents.pop()
        documents[-1] += last
    texts = [" ".join(document) for document in documents]
    return [texts[i] for i in np.random.default_rng((seed, 71)).permutation(len(texts))]


def _stream(config: CanaryConfig, tokenizer: Tokenizer, texts: dict[str, list[str]]) -> Stream:
    """Rows for each twin: documents one after the other, EOS after each, in rows that are shuffled alike; the end is dropped."""
    rows = {}
    order = np.random.default_rng((config.seed, 72)).permutation(config.n_sequences)
    for twin, documents in texts.items():
        ids = np.concatenate([np.array([*row, EOS_ID], dtype=np.uint16) for row in tokenizer.encode_batch(documents)])
        epochs = -(-config.n_sequences * config.seq_len // len(ids))  # half of the novels is a little short of one run
        ids = np.tile(ids, epochs)[: config.n_sequences * config.seq_len]
        rows[twin] = ids.reshape(config.n_sequences, config.seq_len)[order]
    nothing = pl.DataFrame(schema={"id": pl.String, "ids": pl.List(pl.Int64)})
    return Stream(tokenizer, rows, validation_rows(config, tokenizer, nothing), Ledger(nothing, nothing, EOS_ID), nothing)


def _only(models: dict[str, HFModel]) -> HFModel:
    (model,) = models.values()
    return model


def _guaranteed(documents: list[str], planted: list[str], manifest: Manifest, result: Measurement) -> list[Check]:
    """What holds for every model."""
    restored = sum(a != b for a, b in zip(remove(planted, manifest), documents, strict=True))
    sizes = [row["n"] for row in result.summary["cells"]]
    return [
        Check("documents that are not restored byte for byte", restored, "==", 0, unit="documents"),
        Check("traps in the smallest less those in the largest cell", max(sizes) - min(sizes), "==", 0, unit="traps"),
    ]


def _claimed(target: Measurement, clean: Measurement, seed: int) -> list[Check]:
    """The paper's findings, and the owner's test."""
    area = {(row["length"], row["copies"], row["method"]): row for row in target.summary["levels"]}
    owner = {(row["length"], row["copies"]): row for row in target.summary["owner"]["levels"]}
    long, often = LENGTHS[-1], COPIES[-1]
    rising = [area[long, copies, "ratio"]["auc"] for copies in COPIES]
    better = sum(area[*cell, "ratio"]["auc"] >= area[*cell, "perplexity"]["auc"] for cell in owner)
    top = area[long, often, "ratio"]
    checks = [Check(f"AUC of the ratio, {long} tokens, {often} copies", top["auc"], ">=", 0.9, unit="AUC")]
    for length in LENGTHS:
        once = area[length, 1, "ratio"]
        figure = 0.5 if once["low_ci"] <= 0.5 <= once["high_ci"] else once["auc"]
        checks.append(Check(f"AUC of the ratio, {length} tokens, 1 copy (0.5 where its interval holds it)", figure, "<=", 0.65, unit="AUC"))
    rho = float(spearman(list(COPIES), rising)) if len(set(rising)) > 1 else None
    spread = np.random.default_rng((seed, 73))
    ranks = clean.table.filter(pl.col("member"))["p"].to_numpy() * (1 + SIBLINGS)
    uniform = stats.kstest((ranks - spread.random(len(ranks))) / (1 + SIBLINGS), "uniform").pvalue
    return [
        *checks,
        Check(f"Spearman's rho of AUC and copies, {long} tokens", rho, "==", 1.0),
        Check("cells in which the ratio is at least as good as the perplexity", better, ">=", 5, unit="of 6 cells"),
        Check(f"owner's p-value, {long} tokens, {often} copies", owner[long, often]["p"], "<", 0.01),
        Check("clean model: Kolmogorov-Smirnov p of the owner's p-values", float(uniform), ">", 0.05),
        Check("clean model: owner's p-value of all traps", clean.summary["owner"]["p"]),
        Check("target: owner's p-value of all traps", target.summary["owner"]["p"]),
    ]


def _note(made: dict[str, Any], data: Stream) -> str:
    rows = {name: int(matrix.size) for name, matrix in data.rows.items()}
    return f"Samples of the reference: {json.dumps(made['samples'])}. Tokens trained on: {json.dumps(rows)}."
