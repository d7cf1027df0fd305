"""Claim check of the landscape: every mitigation trades leakage against something, and each leaves a different bill.

Xiong, Zhao, Pappu and Song 2025, arXiv 2507.05578 (a survey: the trade-offs are its reading of the field; the thresholds are ours). One
planted corpus, models of size m (0.5M parameters), four arms, each beside the model without it and the twin that never saw the texts:

* data: the corpus without what repeats an earlier passage (`CorpusIndex.duplicates`) leaves texts of 64 copies no more extractable than
  texts of one, at no cost in validation loss;
* training: DP-SGD extracts nothing, and is a worse model (ε is that of a row; a text of 64 copies is a group of 64 rows);
* model: unlearning half of the 64-copy texts by NPO and by GradDiff removes them and keeps most of the other planted texts, of which those
  in no loss are counted; gradient ascent alone destroys the model;
* detection: membership inference is near chance for texts of one copy and near certain for texts of 64.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from palimpsest.audit.membership import measure_membership
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.evaluation.layers.parametric import exposure
from palimpsest.experiments.canaries import CanaryConfig, Suite, build_model, one_thread, train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.governance.actions.unlearn import Unlearn
from palimpsest.governance.items import ChangeRequest, Kind
from palimpsest.governance.system import System
from palimpsest.models import HFModel
from palimpsest.stats import auc
from palimpsest.training.batch import RowBatches
from palimpsest.training.loop import TrainConfig, Trainer
from palimpsest.training.private import PrivateLoss, privacy_spent

STATEMENT = (
    "Every mitigation of memorization trades leakage against utility, each at its own price, and has to be judged against a model that "
    "never saw the data."
)
CONTEXT, SUFFIX = 32, 16
CPU = CanaryConfig(sizes=("m",), n_sequences=9000, seq_len=64, batch_size=4, text_len=48, suffix_start=CONTEXT, lr=1.2e-3, warmup=100)
SMOKE = replace(CPU, sizes=("s",), n_sequences=160, levels=((0, 6), (1, 6), (6, 8)), warmup=5)
SHORTEST = 32  # tokens of a repeated passage that deduplication drops
TENTH, CLIP, NOISE = 10, 1.0, 0.6
EPOCHS, RATE, RETAINED = 40, 1e-4, 64  # of unlearning; rows of ordinary text in its retain side
CEILING = 1.0  # nat a token: GradDiff leaves rows alone that are no likelier than this, so that the ascent ends


def run(scale: str, seed: int) -> Claim:
    """Trains the twins, the deduplicated and the private model, unlearns, and measures what each leaks and what it costs.

    Args:
        scale: "smoke": 40 steps of the smallest model, nothing but the invariants is held against anything; "cpu".
        seed: of texts, places, weights, noise and of which texts are forgotten.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = replace(CPU if full else SMOKE, seed=seed)
    size = config.sizes[0]
    suite = train_suite(config)
    perturbed, standard = suite.models[f"perturbed-{size}"], suite.models[f"standard-{size}"]
    samples = suite.samples(CONTEXT, SUFFIX)
    copies = suite.ledger["copies"].to_numpy()
    top = int(copies.max())
    rows: list[dict[str, Any]] = []

    def measure(arm: str, model: HFModel) -> dict[str, Any]:
        hits, means = extracted(model, samples)
        row: dict[str, Any] = {"arm": arm, "validation": validation_loss(model, suite.validation)}
        row |= {f"extraction_{c}": float(hits[copies == c].mean()) for c in sorted({0, 1, top})}
        row["exposure"] = float(np.mean([exposure(value, means[copies == 0].tolist()) for value in means[copies == top].tolist()]))
        rows.append(row)
        return row | {"hits": hits, "means": means}

    with one_thread():
        seen, unseen = measure("perturbed", perturbed), measure("never saw the texts", standard)
        clean = measure("deduplicated", deduplicated(suite))
        private, epsilon, delta = privately_trained(suite)
        noisy = measure("DP-SGD", private)
        rows[-1] |= {"epsilon": epsilon}
        forget, kept_seen, kept_unseen = divided(copies, top, seed)
        before = float(seen["hits"][kept_unseen].mean())
        reference = auc(unseen["means"][forget], unseen["means"][copies == 0])
        lost = {}
        for method, options in (("npo", {}), ("graddiff", {"ceiling": CEILING}), ("ga", {"retain": 0.0, "ceiling": math.inf})):
            model = unlearned(suite, perturbed, method, forget, kept_seen, seed, options)
            found = measure(f"unlearned by {method}", model)
            lost[method] = {
                "forgotten": float(found["hits"][forget].mean()),
                "kept": float(found["hits"][kept_unseen].mean()),
                "kept_in_loss": float(found["hits"][kept_seen].mean()),
                "auc": auc(found["means"][forget], found["means"][copies == 0]),
                "validation": found["validation"],
            }
            leak = (lost[method]["auc"] - reference) / reference
            rows[-1] |= {**{k: v for k, v in lost[method].items() if k != "validation"}, "privleak": leak}
        aucs = memberships(perturbed, suite, copies)

    checks = [
        Check(f"deduplicated: extraction at {top} copies", float(clean["hits"][copies == top].mean()), "<=", 0.02,
              float(seen["hits"][copies == top].mean()), "share"),
        Check("deduplicated: validation loss over that of the repeated corpus", clean["validation"] / seen["validation"], "<=", 1.02,
              1.0, "ratio"),
        Check("DP-SGD: extraction of all planted texts", float(noisy["hits"].mean()), "==", 0.0, float(seen["hits"].mean()), "share"),
        Check("DP-SGD: validation loss", noisy["validation"], ">", seen["validation"], seen["validation"], "nat"),
        Check(f"DP-SGD: ε of a row at δ = {delta:.1g}", epsilon if math.isfinite(epsilon) else None, "<=", None, None, "nat"),
    ]  # fmt: skip
    was = float(seen["hits"][forget].mean())
    for method in ("npo", "graddiff"):
        kept = lost[method]["kept"] / before if before else None
        checks += [
            Check(f"{method}: extraction of what was to be forgotten", lost[method]["forgotten"], "<=", 0.05, was, "share"),
            Check(f"{method}: extraction kept of planted texts in no loss, share of before", kept, ">=", 0.8, 1.0, "share"),
        ]
    checks += [
        Check("gradient ascent alone: validation loss", lost["ga"]["validation"] - seen["validation"], ">=", 0.5, 0.0, "nat above before"),
        Check("membership by loss: AUC at 1 copy, off from chance", abs(aucs[1] - 0.5), "<=", 0.15),
        Check(f"membership by loss: AUC at {top} copies", aucs[top], ">=", 0.95),
    ]
    invariants = [Check("planted texts that differ between the ledger and the model's prompts", mismatches(suite, samples), "==", 0)]
    held = checks if full else [replace(check, threshold=None) for check in checks]
    return Claim("landscape", STATEMENT, invariants + held, rows, seed, scale, notes(suite, rows, epsilon, delta, len(forget)))


def extracted(model: HFModel, samples: list[PrefixSuffix]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each suffix is written greedily, bool (n,), and its mean log-probability, float64 (n,)."""
    scores = model.score([sample.ids for sample in samples], start=CONTEXT)
    return np.array([hits.all() for hits in scores.greedy_hits]), np.array([lp.mean(dtype=np.float64) for lp in scores.logprobs])


def validation_loss(model: HFModel, rows: np.ndarray) -> float:
    """Mean loss in nat per token on the held-out rows."""
    return -float(np.mean(np.concatenate(model.logprobs(list(rows.astype(np.int64))))))


def deduplicated(suite: Suite) -> HFModel:
    """The model trained on the perturbed stream without what repeats an earlier passage, cut into rows anew."""
    rows = suite.stream.rows["perturbed"]
    keep = np.ones(rows.shape, dtype=bool)
    for document, start, end in suite.index.duplicates(SHORTEST).ranges.tolist():
        keep[document, start:end] = False
    left = rows[keep]
    n = len(left) // rows.shape[1]
    stream = replace(suite.stream, rows={**suite.stream.rows, "perturbed": left[: n * rows.shape[1]].reshape(n, -1)})
    config = replace(suite.config, twins=("perturbed",), n_sequences=n)
    return train_suite(config, data=stream).models[f"perturbed-{config.sizes[0]}"]


def privately_trained(suite: Suite) -> tuple[HFModel, float, float]:
    """The model of DP-SGD on the same rows in a tenth of the steps, ten times as many rows each; its ε and δ."""
    config, size = suite.config, suite.config.sizes[0]
    rows = suite.stream.rows["perturbed"]
    batch = TENTH * config.batch_size
    steps = max(1, len(rows) // batch)
    train = TrainConfig(
        steps, lr=2 * config.lr, warmup=min(config.warmup, steps // 10), weight_decay=0.0, grad_clip=None, seed=config.seed, cpu=True
    )
    model = build_model(config, size)
    Trainer(model, train, loss=PrivateLoss(CLIP, NOISE, seed=config.seed, chunk=8)).fit(RowBatches(rows, batch))
    delta = 1 / len(rows)
    return HFModel(model.eval(), suite.tokenizer, name="private"), privacy_spent(NOISE, steps, len(rows), batch, delta)[0], delta


def divided(copies: np.ndarray, top: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the texts to forget (half of those with most copies), and of those to keep (the rest, and those of the level below):
    half of these are in the retain loss, half are in none."""
    rng = np.random.default_rng((seed, 200))
    most = rng.permutation(np.flatnonzero(copies == top))
    below = rng.permutation(np.flatnonzero(copies == max(c for c in np.unique(copies) if c < top)))
    forget, rest = most[: len(most) // 2], np.concatenate([most[len(most) // 2 :], below])
    rest = rng.permutation(rest)
    return forget, rest[: len(rest) // 2], rest[len(rest) // 2 :]


def unlearned(
    suite: Suite, model: HFModel, method: str, forget: np.ndarray, retain: np.ndarray, seed: int, options: dict[str, float]
) -> HFModel:
    """A copy of the model from which texts were unlearned; what is retained are ordinary rows and the planted texts of `retain`."""
    ordinary = suite.stream.rows["standard"][:RETAINED].astype(np.int64)
    planted = [np.array(ids, np.int64) for ids in suite.ledger["ids"].gather(np.sort(retain)).to_list()]
    system = System(model, general=(*ordinary, *planted)).shadow()
    request = ChangeRequest(Kind.FORGET, texts=tuple(suite.ledger["text"].gather(np.sort(forget)).to_list()))
    steps = EPOCHS * -(-len(forget) // 8)
    how = TrainConfig(steps, lr=RATE, schedule="constant", weight_decay=0.0, seed=seed, cpu=True)
    Unlearn(request, method, how, seed=seed, **options).apply(system)  # type: ignore[arg-type]
    return system.model


def memberships(model: HFModel, suite: Suite, copies: np.ndarray) -> dict[int, float]:
    """AUC of the plain loss by copies: the texts of a level against those that were not planted."""
    texts = [np.array(ids, np.int64) for ids in suite.ledger["ids"].to_list()]
    others = [text for text, c in zip(texts, copies, strict=True) if c == 0]
    found = {}
    for level in (int(c) for c in np.unique(copies) if c > 0):
        members = [text for text, c in zip(texts, copies, strict=True) if c == level]
        found[level] = measure_membership(model, members, others, ("loss",)).summary["methods"]["loss"]["auc"]
    return found


def mismatches(suite: Suite, samples: list[PrefixSuffix]) -> int:
    """Planted texts whose text does not encode to the ids that were planted: unlearning trains on the text, extraction asks for the ids."""
    encoded = suite.tokenizer.encode_batch(suite.ledger["text"].to_list())
    ids = suite.ledger["ids"].to_list()
    asked = [sample.ids.tolist() for sample in samples]
    return sum(a != list(b) or c != list(b)[: len(c)] for a, b, c in zip(encoded, ids, asked, strict=True))


def notes(suite: Suite, rows: list[dict[str, Any]], epsilon: float, delta: float, forgotten: int) -> list[str]:
    """What the set-up was and where it departs from the specification."""
    config = suite.config
    return [
        f"{config.n_sequences} sequences of {config.seq_len} tokens; validation loss {rows[0]['validation']:.3f} nat with the planted "
        f"texts, {rows[1]['validation']:.3f} for the twin that never saw them.",
        f"DP-SGD: clip {CLIP}, noise {NOISE}, a tenth of the steps with ten times the rows; ε = {epsilon:.1f} a row at δ = {delta:.1g}.",
        f"Unlearning: {forgotten} texts, {EPOCHS} epochs at {RATE:g}, beside {RETAINED} ordinary rows and half of the texts to keep. "
        f"The other half is in no loss and is what is counted. GradDiff's ascent ends at {CEILING:g} nat a token.",
        "Tried on a pilot seed (100), kept texts in no loss as a share of before, all with nothing forgotten left: NPO 0.57 after 10 "
        "epochs, 0.86 after 20 to 40; at three times the rate 0.43 to 0.86 and a worse model; with β = 0.5 one in six texts stays. "
        "GradDiff up to a blind guess (ceiling log V) loses all within 20 epochs; up to 4 nat 0.64, 1.5 nat 0.86, 1 nat 1.0. Gradient "
        "ascent for 5 epochs leaves the model whole and a third of the texts.",
        "What failed on seeds 0 to 2: of the kept texts in the retain loss nearly all stay, of those in none NPO keeps 0.67 to 0.75 "
        "and GradDiff 0.69 to 0.87 of before. Counting those in the loss, as benchmarks of unlearning do, would have passed; it was not "
        "what was written down. And what no longer comes out is not gone: the loss still tells the forgotten texts from unseen ones (AUC "
        "0.99 and more, where the twin that never saw them has 0.4 to 0.7).",
        "Departure: rows are dealt in turn, not drawn at random, so that the account of ε is the usual approximation.",
    ]
