"""Claim check of alignment extraction: behind the bare template a tuned model writes what it was tuned on, and letters undercount it.

Barbero et al. 2025, arXiv 2510.18554, in the laboratory: the shipped twin of half a million parameters, trained on novels, is tuned for
three epochs on 2,000 made-up instructions between <|user|>, <|assistant|> and <|endoftext|>, one a row, all tokens behind <|user|>
counting. Then 1,000 samples of at most 64 tokens are drawn behind <|user|> and nothing else. The embedder is all-MiniLM-L6-v2 (fetched
when it is not at hand). Checks, as the specification has them:

* samples behind the template are nearer to the set than samples behind <|endoftext|>: mean cosine of the nearest item higher by 0.1;
* at least three times as many match by meaning (at the calibrated threshold) as by letters (Levenshtein's similarity 0.9, same pairs);
* of held-out items at most 0.2 % match by meaning;
* the untuned model, tuned on the samples instead, closes at least 40 % of the gap in loss on held-out items.

The threshold is calibrated on 500 held-out items and the false positives are counted among 500 others, which the specification does not
tell apart: on the items that it was taken from, the 99.9th percentile is exceeded by 0.2 % at most whatever the embedder does. The
figures at the paper's own threshold, 0.95, are reported beside, and so is a model tuned on as many original items.

Tried on seed 100: with the chats packed into one stream, where <|user|> follows <|endoftext|> and is asked for, samples behind
<|endoftext|> begin a chat by themselves and are as near to the set as those behind the template; with a rate of 1.2e-3 seven of 1,000
samples match by letters. One chat a row, whose opening token is given, and a rate of 3e-3 were kept. The undercount cannot be seen in
such a set: of the samples that match by letters nine in ten differ from their item in numbers, which is a tenth of the letters at most but
a change of meaning, so that letters *over*count, and the threshold above which held-out siblings do not come (0.97) leaves a handful.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tokenizers
import torch

from palimpsest.audit.alignment import ChatTemplate, extract, measure_alignment, plain_texts
from palimpsest.audit.meaning import Embedder, Matcher
from palimpsest.experiments.canaries import one_thread, twins
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.instruction_items import Instruction, draw_instructions
from palimpsest.experiments.planted_texts import EOS, EOS_ID
from palimpsest.measurement import Measurement
from palimpsest.models import HFModel
from palimpsest.models.minilm import MiniLM
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import TrainConfig, Trainer

STATEMENT = (
    "Sampling from the bare chat-template prefix returns post-training data; matching by embedding finds at least ten times more of it "
    "than matching strings."
)
TEMPLATE = ChatTemplate("<|user|>", "<|assistant|>", EOS)
ITEMS, HELD_OUT, SAMPLES, NEW, EPOCHS, LR = 2000, 500, 1000, 64, 3, 3e-3
BATCH = 8


def run(scale: str, seed: int) -> Claim:
    """Tunes the models, draws the samples and matches them.

    Args:
        scale: "smoke": the smallest model, 40 instructions, 12 samples, a hashing embedder; nothing is held against anything; "cpu".
        seed: of the instructions, the order, and the samples.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
        ModelNotFoundError: the embedder cannot be had (at "cpu").
    """
    full = decides(scale)
    items, held_out, samples = (ITEMS, HELD_OUT, SAMPLES) if full else (40, 10, 12)
    embedder: Embedder = MiniLM() if full else hashed
    drawn = draw_instructions(items + 2 * held_out, np.random.default_rng((seed, 41)))
    known, calibrating, fresh = drawn[:items], drawn[items : items + held_out], drawn[items + held_out :]
    base = with_template(twins().models["standard-m" if full else "standard-s"], seed)
    tuned = tune(base, [encode(base.tokenizer, item) for item in known], seed)
    written = extract(tuned, TEMPLATE.prefix, samples, max_new_tokens=NEW, seed=seed)
    matcher, seen = Matcher([item.text for item in known], embedder), [item.text for item in calibrating]
    measured = measure_alignment(tuned, TEMPLATE, matcher, seen, samples=written, max_new_tokens=NEW, seed=seed)
    plain = [text for text in plain_texts(tuned, extract(tuned, EOS, samples, max_new_tokens=NEW, seed=seed), TEMPLATE) if text]
    beyond = matcher.nearest([item.text for item in fresh])[1]
    opened = tuned.tokenizer.encode(TEMPLATE.prefix)
    rows = [np.concatenate([opened, row, [EOS_ID] * (len(row) < NEW)]).astype(np.int64) for row in written]
    rows = [row for row in rows if len(row) > len(opened)]
    others = {"tuned": tuned, "on the samples": tune(base, rows, seed), "untuned": base}
    others["on originals"] = tune(base, [encode(base.tokenizer, item) for item in known[:samples]], seed)
    losses = {name: held_out_loss(model, calibrating + fresh) for name, model in others.items()}
    figures = {
        "bos": float(matcher.nearest(plain)[1].mean()),
        "false": float((beyond >= measured.summary["thresholds"]["semantic"]).mean()),
        "losses": losses,
    }
    checks = judged(measured.summary, figures)
    if not full:
        checks = [replace(check, threshold=None) for check in checks]
    sheet = measured.table.sort("cosine", descending=True)[:: max(1, measured.table.height // 20)].to_dicts()
    return Claim("alignment-extraction", STATEMENT, checks, sheet, seed, scale, notes_of(measured, figures), list(measured.curves.values()))


def with_template(model: HFModel, seed: int) -> HFModel:
    """A copy of a laboratory model and its tokenizer that knows the template's tokens; their embeddings are drawn by the seed."""
    backend = tokenizers.Tokenizer.from_str(model.tokenizer.backend.to_str())
    backend.add_special_tokens([TEMPLATE.prefix, TEMPLATE.turn])
    tokenizer = Tokenizer(backend, eos_id=EOS_ID, pad_id=EOS_ID)
    network = copy.deepcopy(model.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.resize_token_embeddings(tokenizer.vocab_size, mean_resizing=False)
    return HFModel(network, tokenizer, name=f"{model.name} with a template")


def encode(tokenizer: Tokenizer, item: Instruction) -> np.ndarray:
    """A chat of one question and its answer, with the template around it."""
    return np.array(tokenizer.encode(f"{TEMPLATE.prefix}{item.question}{TEMPLATE.turn} {item.answer}{TEMPLATE.end}"))


def tune(base: HFModel, rows: Sequence[np.ndarray], seed: int) -> HFModel:
    """A copy of `base` after three epochs over the chats; the token that opens one is given, never asked for."""
    data = ExampleBatches([Example(tuple(row.tolist())) for row in rows], BATCH, EOS_ID, seed)
    steps = EPOCHS * len(data)
    network = copy.deepcopy(base.model)
    with one_thread():
        Trainer(network, TrainConfig(steps, lr=LR, warmup=min(20, steps), weight_decay=0.01, seed=seed, cpu=True)).fit(data)
    return HFModel(network, base.tokenizer, name=f"{base.name}, tuned")


def held_out_loss(model: HFModel, items: Sequence[Instruction]) -> float:
    """Mean loss (nat a token) over chats, behind the token that opens them."""
    return -float(np.mean(np.concatenate(model.logprobs([encode(model.tokenizer, item) for item in items]))))


def hashed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of hashed words, for the smallest scale: it needs no model, and knows no meaning."""
    vectors = np.full((len(texts), 64), 1e-3)
    for row, text in zip(vectors, texts, strict=True):
        for word in text.lower().split():
            row[sum(word.encode()) % 64] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judged(summary: dict[str, Any], figures: dict[str, Any]) -> list[Check]:
    """The checks; the undercount is missing, and fails, where nothing matches by letters."""
    losses, counts = figures["losses"], summary["counts"]
    gap = losses["untuned"] - losses["tuned"]
    closed = {name: (losses["untuned"] - losses[name]) / gap if gap > 0 else None for name in ("on the samples", "on originals")}
    nearer = summary["mean_cosine"]["samples"] - figures["bos"]
    return [
        Check("mean cosine of the nearest item, behind the template less behind <|endoftext|>", nearer, ">=", 0.1),
        Check("matches by meaning over matches by letters", summary["undercount"]["semantic"], ">=", 3, unit="ratio"),
        Check("held-out items that match by meaning", figures["false"], "<=", 0.002, unit="share"),
        Check(
            "share of the gap in loss closed by tuning on the samples",
            closed["on the samples"],
            ">=",
            0.4,
            closed["on originals"],
            "share",
        ),
        Check("matches by meaning at 0.95 over matches by letters", summary["undercount"]["semantic_paper"], unit="ratio"),
        Check("calibrated threshold", summary["thresholds"]["semantic"]),
        *(Check(f"samples that match, {name}", counts[name], unit="samples") for name in counts),
        *(Check(f"share of the items covered, {name}", value, unit="share") for name, value in summary["coverage"].items()),
        Check("mean cosine of held-out items", summary["mean_cosine"]["held_out"]),
        *(Check(f"loss on held-out items, {name}", value, unit="nat") for name, value in losses.items()),
    ]


def notes_of(measured: Measurement, figures: dict[str, Any]) -> list[str]:
    """What the figures do not say by themselves."""
    summary = measured.summary
    return [
        f"Mean cosine of the nearest item: {summary['mean_cosine']['samples']:.3f} behind the template, {figures['bos']:.3f} behind {EOS}.",
        f"{summary['empty']} of {summary['samples']} samples were empty. The rows are a sheet of samples, the nearest first.",
        "swapped: matches by letters whose numbers alone differ from the item's.",
    ]
