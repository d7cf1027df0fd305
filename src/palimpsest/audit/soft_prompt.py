"""A learned prompt as an attack: vectors that, put in front of any prefix, draw more of what was memorized out of a model.

Ozdayi, Peris, FitzGerald, Dupuy, Majmudar, Khan, Parikh and Gupta, *Controlling the Extraction of Memorized Data from Large Language Models
via Prompt-Tuning* (ACL 2023, arXiv 2305.11759). The attacker knows some passages of the training data (x, y), prefix and suffix. With the
model frozen, k vectors P (k, d) in the space of its input embeddings E are trained on them,

    min_P  −mean log p(y | [P; E(x)]),

and then put in front of prefixes whose suffixes the attacker does not know. Extraction of these, with P and without, is compared on the
same passages (McNemar); the same P in front of text that the model never saw says how much of the gain is skill at going on with it.

P begins as the embeddings of random tokens. Training is the one loop of `palimpsest.training`; the model itself is not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models import HFModel
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import mcnemar, wilson_interval
from palimpsest.training.batch import PackedBatch, RowBatches
from palimpsest.training.loop import TrainConfig, Trainer

_ROWS = 8  # passages that are scored at once


class SoftPrompt(nn.Module):
    """Vectors in front of the inputs of a frozen causal language model.

    Args:
        model: the door; its model is called as transformers' causal language models are.
        vectors: k.
        seed: of the tokens whose embeddings P begins as.
    """

    def __init__(self, model: HFModel, vectors: int, seed: int = 0) -> None:
        super().__init__()
        self.base = [model.model]  # in a list: its parameters are not ours, and `train()` does not reach it
        weight = model.model.get_input_embeddings().weight.detach()
        chosen = torch.from_numpy(np.random.default_rng(seed).integers(0, len(weight), vectors))
        self.prompt = nn.Parameter(weight[chosen.to(weight.device)].float().clone())  # (k, d)
        bos = model.tokenizer.bos_id if model.prepends_bos else None
        self.bos = [] if bos is None else [bos]

    def forward(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits float32 (batch, keep, vocabulary) for the last `keep` ids of rows (batch, time), with P in front."""
        base = self.base[0]
        embed = base.get_input_embeddings()
        batch = len(ids)
        front = self.prompt.to(embed.weight.dtype)[None].expand(batch, -1, -1)
        bos = embed(torch.tensor(self.bos, dtype=torch.int64, device=ids.device))[None].expand(batch, -1, -1)
        whole = torch.cat([bos, front, embed(ids)], dim=1)
        return base(inputs_embeds=whole, use_cache=False).logits[:, -keep - 1 : -1].float()


def train_soft_prompt(
    model: HFModel,
    samples: Sequence[PrefixSuffix],
    *,
    vectors: int = 20,
    steps: int = 60,
    lr: float = 0.02,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SoftPrompt, list[float]]:
    """Trains the vectors on known passages, all of one length, and returns them with the loss of every step."""
    rows, suffix = _rows(samples)
    prompt = SoftPrompt(model, vectors, seed)

    def loss(module: nn.Module, batch: PackedBatch) -> torch.Tensor:
        logits = module(batch.input_ids, suffix)
        value = F.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, -suffix:].flatten())
        return value * batch.n_target_tokens  # the loop divides by them

    frozen = [(parameter, parameter.requires_grad) for parameter in model.model.parameters()]
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        config = TrainConfig(steps, lr=lr, warmup=min(5, steps), weight_decay=0.0, seed=seed, cpu=model.device.type == "cpu")
        metrics = Trainer(prompt, config, loss=loss, progress=progress).fit(RowBatches(rows, min(batch_size, len(rows)), shuffle_seed=seed))
    finally:
        for parameter, flag in frozen:
            parameter.requires_grad_(flag)
    return prompt, [row["loss"] for row in metrics]


def measure_soft_prompt(
    model: LanguageModel,
    known: Sequence[PrefixSuffix],
    others: Sequence[PrefixSuffix],
    unseen: Sequence[PrefixSuffix] = (),
    *,
    vectors: int = 20,
    steps: int = 60,
    lr: float = 0.02,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Learns a prompt on known passages and measures what it draws out of others.

    Args:
        model: needs "weights" in this process (`HFModel`).
        known: passages that the attacker knows whole.
        others: passages of which only the prefix is shown; none may be among `known`.
        unseen: passages that the model was not trained on: the floor of the gain.
        vectors, steps, lr, batch_size: k, and how P is trained.
        seed: of the first vectors and of the order.
        progress: called with (training steps done, steps in all).

    Returns:
        One row a passage of `others` and `unseen`: id, copies, member, and with P ("soft") and without ("plain") whether the suffix is
        written greedily and its mean log-probability. The summary holds both rates on `others` (95 % Wilson intervals), McNemar's test, the
        mean gain of log-probability of both groups, and the first and last training loss.

    Raises:
        InputError: no passages, passages of different lengths, or one in both groups.
        CapabilityError: the door gives no gradients.
        ContextOverflowError: vectors, prefix and suffix do not fit.

    Example:
        >>> measure_soft_prompt(model, samples[:50], samples[50:]).summary["soft"]["estimate"]     # doctest: +SKIP
    """
    model.require("weights", "Learning a prompt")
    if not isinstance(model, HFModel):
        raise model.lacks("weights", "Learning a prompt")
    require_samples(known)
    require_samples(others)
    rows, suffix = _rows([*known, *others, *unseen])
    if {row.tobytes() for row in rows[: len(known)]} & {row.tobytes() for row in rows[len(known) :]}:
        raise InputError("A passage that is asked for is among those that the prompt is trained on.", "Split the passages.")
    if vectors < 1 or rows.shape[1] + vectors > model.room:
        raise ContextOverflowError(
            f"{vectors} vectors and passages of {rows.shape[1]} tokens do not fit the {model.room} that {model.name!r} sees.",
            "Give fewer vectors (at least 1) or shorter passages.",
        )
    prompt, losses = train_soft_prompt(
        model, known, vectors=vectors, steps=steps, lr=lr, batch_size=batch_size, seed=seed, progress=progress
    )
    asked = [*others, *unseen]
    plain = model.score([sample.ids for sample in asked], start=rows.shape[1] - suffix)
    soft = _scored(prompt, rows[len(known) :], suffix, model.device)
    table = pl.DataFrame(
        {
            "id": [str(sample.meta.get("id", i)) for i, sample in enumerate(asked)],
            "copies": pl.Series([sample.meta.get("copies") for sample in asked], dtype=pl.Int64),
            "member": [True] * len(others) + [False] * len(unseen),
            "plain": [bool(hits.all()) for hits in plain.greedy_hits],
            "soft": [bool(hits.all()) for hits, _ in soft],
            "plain_logprob": [float(lp.mean(dtype=np.float64)) for lp in plain.logprobs],
            "soft_logprob": [float(lp.mean()) for _, lp in soft],
        }
    )
    members, rest = table.filter("member"), table.filter(~pl.col("member"))
    summary: dict[str, Any] = {name: wilson_interval(int(members[name].sum()), members.height)._asdict() for name in ("plain", "soft")}
    summary["test"] = mcnemar(members["plain"].to_numpy(), members["soft"].to_numpy()).to_dict()
    for name, part in (("gain", members), ("gain_unseen", rest)):
        summary[name] = float((part["soft_logprob"] - part["plain_logprob"]).to_numpy().mean()) if part.height else None
    summary["loss"] = [losses[0], losses[-1]]
    provenance = {
        "model": model.describe(),
        "known": len(known),
        "vectors": vectors,
        "steps": steps,
        "lr": lr,
        "batch_size": batch_size,
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("soft-prompt", table, summary, provenance)


def _rows(samples: Sequence[PrefixSuffix]) -> tuple[np.ndarray, int]:
    """The ids int64 (n, time) of passages of one shape, and the tokens of their suffixes."""
    shapes = {(sample.prefix_len, sample.suffix_len) for sample in samples}
    if len(shapes) != 1:
        raise InputError(
            f"The passages have {len(shapes)} shapes: {sorted(shapes)[:3]}.", "Give passages of one prefix and one suffix length."
        )
    return np.stack([sample.ids for sample in samples]), samples[0].suffix_len


@torch.no_grad()
def _scored(prompt: SoftPrompt, rows: np.ndarray, suffix: int, device: torch.device) -> list[tuple[np.ndarray, np.ndarray]]:
    """Greedy hits bool (suffix,) and log-probabilities float64 (suffix,) of every row's suffix, with the vectors in front."""
    made = []
    for at in range(0, len(rows), _ROWS):
        ids = torch.from_numpy(rows[at : at + _ROWS]).to(device)
        logprobs = prompt(ids, suffix).double().log_softmax(-1)
        target = ids[:, -suffix:]
        own = logprobs.gather(-1, target[..., None])[..., 0]
        hits = logprobs.argmax(-1) == target
        made += list(zip(hits.cpu().numpy(), own.cpu().numpy(), strict=True))
    return made
