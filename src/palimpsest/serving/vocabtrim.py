"""VocabTrim: the drafter's output layer keeps only the tokens that the target samples most (system 095).

Goel, Agrawal, Gagrani, Park, Zao, Zhang, Liu, Yang, Yuan, Lu, Lott and Lee, "VocabTrim: Vocabulary Pruning for Efficient Speculative
Decoding in LLMs", ICML 2025 workshop, arXiv 2506.22694. Nothing is trained.

Let c(v) be how often token v occurs in calibration data. The kept vocabulary is V' = top-k of c, and the special tokens; the drafter's
head W (V, d) becomes W' = W[V', :] (k, d), the bias likewise. The drafter proposes from q = softmax(W' h / T) on V', and the drawn row is
mapped back to its token by a table of k ids; the head's other rows are never read, which masking the full logits would not save. The
input embedding stays whole: any token that the target emits can be fed. What verifies is the target with its whole vocabulary, so its
distribution is untouched: a token outside V' still comes out, by rejection (`palimpsest.serving.speculative`).

Calibration data come from three sources, which the paper finds to rank so: the target's own samples (`calibrate(target, …)`), the
drafter's (`calibrate(drafter, …)`), raw text (`count_tokens`).

Memory-bound speed-up: a decoding step costs the bytes of weights it reads. With τ tokens a target call and c = drafter's bytes /
target's bytes, MBSU = τ / (γ c + 1); trimming takes (V - k) d bytes off the drafter's. Dense models are assumed: of a mixture of experts
fewer bytes are read than `bytes_read` says.

Decisions that the paper leaves open: ties of c go to the lower id, and so does what is beyond the tokens that were seen (in a BPE
vocabulary the lower ids are the more frequent merges). V' is kept in ascending order, so that k = V is the untrimmed drafter to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from palimpsest.errors import CapabilityError, InputError, TokenizerMismatchError
from palimpsest.models.base import Sampler
from palimpsest.models.batching import check_rows
from palimpsest.models.hf import HFModel
from palimpsest.models.sampler_scores import warpers


@dataclass(frozen=True, eq=False)
class TrimmedDrafter:
    """A drafter with a smaller head; what `trim_head` makes.

    Attributes:
        door: the untrimmed drafter, whose body and input embedding are shared and left as they are.
        model: the same body with the trimmed head: its logits are (batch, time, k).
        kept: (k,) int64, ascending: the token of every column of the logits.
    """

    door: HFModel
    model: PreTrainedModel
    kept: torch.Tensor

    @property
    def bytes_saved(self) -> int:
        """Bytes of head that a drafting step no longer reads."""
        return _head_bytes(self.door.model) - _head_bytes(self.model)


def count_tokens(rows: Iterable[Sequence[int] | np.ndarray], vocab_size: int) -> np.ndarray:
    """How often every token occurs in rows of ids: (vocab_size,) int64.

    Raises:
        InputError: an id outside the vocabulary.

    Example:
        >>> count_tokens([[1, 2, 2], [0]], 4).tolist()
        [1, 1, 2, 0]
    """
    arrays = [np.asarray(row, np.int64) for row in rows]
    ids = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise InputError(f"A row holds the id {wrong}, the vocabulary has {vocab_size}.", "Encode the text with the target's tokenizer.")
    return np.bincount(ids, minlength=vocab_size)


def calibrate(
    model: HFModel,
    prompts: Sequence[Sequence[int] | np.ndarray],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> np.ndarray:
    """How often `model` writes every token when it continues `prompts`: (vocabulary,) int64 that sums to `n_tokens`.

    Args:
        model: the target (best, says the paper) or the drafter.
        prompts: rows of ids, other than those that will be served or tested on.
        n_tokens: tokens counted; the prompts are continued in rounds until there are as many.
        temperature, top_k, top_p: as in serving; 0 is greedy, which has one round.
        max_new_tokens: of one continuation.
        seed: of the sampling.

    Raises:
        InputError: n_tokens < 1, or the model ends its texts before there are so many.

    Example:
        >>> counts = calibrate(target, prompts, 20_000)     # doctest: +SKIP
        >>> drafter = trim_head(drafter, counts, coverage=0.99)     # doctest: +SKIP
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}.", "Give at least 1; the frequent tokens show after some ten thousand.")
    counts, missing, rounds = np.zeros(model.vocab_size, np.int64), n_tokens, 0
    while missing:
        # a round that yields nothing new would be repeated for ever
        copies = max(1, min(64, -(-missing // (len(prompts) * max_new_tokens)))) if temperature else 1
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        written = model.generate(prompts, max_new_tokens, n=copies, seed=seed + 7919 * rounds, **options)
        ids = np.concatenate([ids for many in written for ids in many])[:missing]
        if not len(ids) or (temperature == 0 and len(ids) < missing):
            raise InputError(
                f"{model.name} wrote {n_tokens - missing + len(ids)} of {n_tokens} tokens and no more.",
                "Give more prompts, fewer tokens, or a temperature above 0.",
            )
        counts += count_tokens([ids], model.vocab_size)
        missing, rounds = missing - len(ids), rounds + 1
    return counts


def trim_head(
    drafter: HFModel,
    counts: np.ndarray | Sequence[int],
    k: int | None = None,
    *,
    coverage: float | None = None,
    keep: Sequence[int] | None = None,
) -> TrimmedDrafter:
    """Cuts the drafter's head down to the most frequent tokens; the drafter itself stays as it is.

    Args:
        drafter: a model with a linear head.
        counts: (vocabulary,) how often the target writes each token, see `calibrate`.
        k: tokens kept, besides `keep`.
        coverage: instead of k, the share of the counts that the kept tokens make up; 0.99 when neither is given.
        keep: ids kept whatever their count; by default those that end the drafter's texts, without which it could never propose to end.

    Returns:
        A drafter for `speculative_generate`.

    Raises:
        InputError: counts of another vocabulary or negative, k or coverage out of range or both, an id outside, or nothing kept.
        CapabilityError: the model has no linear head of its own.

    Example:
        >>> trimmed = trim_head(drafter, counts, 4096)     # doctest: +SKIP
        >>> trimmed.kept.shape     # doctest: +SKIP
        torch.Size([4097])
    """
    head = _head(drafter.model)
    vocab = head.weight.shape[0]
    kept = torch.from_numpy(kept_ids(counts, vocab, k, coverage=coverage, keep=drafter.stop_ids if keep is None else keep))
    small = nn.Linear(head.in_features, len(kept), bias=head.bias is not None, device="meta")
    rows = kept.to(head.weight.device)
    # copies: where head and input embedding are one matrix, the embedding must keep all its rows
    small.weight = nn.Parameter(head.weight.detach()[rows].clone(), requires_grad=False)
    if head.bias is not None:
        small.bias = nn.Parameter(head.bias.detach()[rows].clone(), requires_grad=False)
    name = next((name for name, module in drafter.model.named_children() if module is head), None)
    if name is None:
        raise CapabilityError(
            f"The head of {type(drafter.model).__name__} is not a direct part of it.", "Give the language model inside it as the drafter."
        )
    model = copy.copy(drafter.model)
    model._modules = dict(drafter.model._modules)
    setattr(model, name, small)
    return TrimmedDrafter(drafter, model.eval(), kept)


def kept_ids(
    counts: np.ndarray | Sequence[int],
    vocab_size: int,
    k: int | None = None,
    *,
    coverage: float | None = None,
    keep: Sequence[int] = (),
) -> np.ndarray:
    """The kept vocabulary V', ascending int64; arguments and errors as of `trim_head`.

    Example:
        >>> kept_ids([5, 0, 9, 9], 4, 2, keep=[1]).tolist()
        [1, 2, 3]
    """
    counts = np.asarray(counts)
    if counts.shape != (vocab_size,) or not np.issubdtype(counts.dtype, np.number) or counts.min(initial=0) < 0:
        raise InputError(
            f"Counts of shape {counts.shape} and type {counts.dtype} do not belong to a vocabulary of {vocab_size}.",
            "Give one number >= 0 a token, counted with the same tokenizer.",
        )
    if k is not None and coverage is not None:
        raise InputError(f"Both k = {k} and coverage = {coverage} are given.", "Give one of them.")
    ranked = np.argsort(-counts.astype(np.float64), kind="stable")
    if k is None:
        wanted = 0.99 if coverage is None else coverage
        if not 0 < wanted <= 1:
            raise InputError(f"coverage is {wanted}.", "Give a share above 0, at most 1.")
        total = counts.sum()
        if total <= 0:
            raise InputError("The counts are all 0.", "Calibrate on some text first.")
        k = int(np.searchsorted(np.cumsum(counts[ranked]), wanted * total - 1e-9 * total) + 1)
    if not 0 <= k <= vocab_size:
        raise InputError(f"k is {k}, the vocabulary has {vocab_size} tokens.", "Give a number between.")
    outside = [int(i) for i in keep if not 0 <= i < vocab_size]
    if outside:
        raise InputError(f"keep holds {outside[0]}, the vocabulary ends at {vocab_size - 1}.", "Give ids of the drafter's vocabulary.")
    kept = np.union1d(ranked[:k], np.asarray(list(keep), np.int64)).astype(np.int64)
    if not len(kept):
        raise InputError("No token would be kept.", "Give k of at least 1, or ids to keep.")
    return kept


def bytes_read(model: PreTrainedModel) -> int:
    """Bytes of weights that one decoding step reads: all parameters, but of an input embedding that is not also the head one row."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    total = sum(parameter.nbytes for parameter in model.parameters())
    if head is not None and embedding.weight.data_ptr() == head.weight.data_ptr():
        return total
    return total - embedding.weight.nbytes + embedding.weight[0].nbytes


def mbsu(block_efficiency: float, gamma: int, cost: float) -> float:
    """Memory-bound speed-up τ / (γ c + 1) over the target alone.

    Example:
        >>> round(mbsu(3.0, 4, 0.125), 2)
        2.0
    """
    return block_efficiency / (gamma * cost + 1)


@dataclass(frozen=True)
class SizeEstimate:
    """What a kept vocabulary is expected to give.

    Attributes:
        k: tokens kept, special ones included.
        coverage: share of the calibration counts that they make up.
        acceptance: mean probability that a drafted token is accepted.
        block_efficiency: estimated tokens a target call, τ.
        mbsu: estimated memory-bound speed-up.
    """

    k: int
    coverage: float
    acceptance: float
    block_efficiency: float
    mbsu: float

    def to_dict(self) -> dict[str, float]:
        """The estimate as plain JSON types."""
        return asdict(self)


@torch.inference_mode()
def estimate_sizes(
    target: HFModel,
    drafter: HFModel,
    rows: Sequence[Sequence[int] | np.ndarray],
    counts: np.ndarray | Sequence[int],
    sizes: Sequence[int],
    *,
    gamma: int = 4,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    keep: Sequence[int] | None = None,
) -> list[SizeEstimate]:
    """For every k the speed-up to be expected, from one pass of each model over texts of the target's own kind.

    At a position with target p and trimmed drafter q a drafted token is accepted with probability a = Σ_v min(p, q) (greedy: whether both
    have the same argmax). A block that begins there yields 1 + Σ_{j≤γ} Π_{i≤j} a_i tokens; τ is the mean over all positions. The text
    being the target's rather than the drafter's, this is an estimate: `speculative_generate` measures.

    Args:
        target, drafter: with one tokenizer.
        rows: texts of at least γ + 1 ids, written by the target on prompts held out from the calibration.
        counts: calibration counts.
        sizes: the k to be looked at.
        gamma: drafted tokens a block.
        temperature, top_k, top_p: of the serving; temperature 0 is greedy.
        keep: as in `trim_head`.

    Returns:
        One estimate a size, in the order given. The best k is `max(estimates, key=lambda e: e.mbsu).k`.

    Raises:
        InputError: no text long enough, no size, gamma < 1, or what `kept_ids` refuses.
        TokenizerMismatchError: the models have different tokenizers.
    """
    same_tokenizer(target, drafter)
    if gamma < 1 or not sizes:
        raise InputError(f"gamma is {gamma} and there are {len(sizes)} sizes.", "Give at least 1 of each.")
    usable = check_rows(rows, target.vocab_size, min(target.context_length, drafter.context_length))
    usable = [row for row in usable if len(row) > gamma]
    if not usable:
        raise InputError(f"No row has more than gamma = {gamma} tokens.", "Give longer texts.")
    vocab = min(target.vocab_size, drafter.vocab_size)
    special = drafter.stop_ids if keep is None else keep
    sets = [torch.from_numpy(kept_ids(counts, drafter.vocab_size, k, keep=special)) for k in sizes]
    sampler, accepted, tokens = Sampler(temperature, top_k, top_p), [0.0 for _ in sizes], [0.0 for _ in sizes]
    positions = starts = 0
    for row in usable:
        fed = torch.from_numpy(row)[None]
        logits, proposed = (door.model(input_ids=fed.to(door.device)).logits[0].float().cpu() for door in (target, drafter))
        p = logits.argmax(-1) if sampler.temperature == 0 else _softmax(logits, sampler)
        for place, kept in enumerate(sets):
            ids = kept[kept < vocab]
            if sampler.temperature == 0:
                a = (ids[proposed[:, ids].argmax(-1)] == p).double()
            else:
                a = torch.minimum(p[:, ids], _softmax(proposed[:, ids], sampler)).sum(-1)
            accepted[place] += float(a.sum())
            tokens[place] += float((1 + a.unfold(0, gamma, 1).cumprod(-1).sum(-1)).sum())
        positions, starts = positions + len(row), starts + len(row) - gamma + 1
    whole, full = bytes_read(target.model), bytes_read(drafter.model)
    row_bytes = _head_bytes(drafter.model) / drafter.vocab_size
    tied = full == sum(parameter.nbytes for parameter in drafter.model.parameters())
    found = []
    for kept, a, t in zip(sets, accepted, tokens, strict=True):
        # a tied matrix that is no longer the head is still read for one row of input
        read = full - (drafter.vocab_size - len(kept)) * row_bytes + (_embedding_row(drafter.model) if tied else 0)
        share = float(np.asarray(counts)[kept.numpy()].sum() / max(1, np.asarray(counts).sum()))
        found.append(SizeEstimate(len(kept), share, a / positions, t / starts, mbsu(t / starts, gamma, read / whole)))
    return found


def same_tokenizer(target: HFModel, drafter: HFModel) -> None:
    """Raises `TokenizerMismatchError` unless both models have one tokenizer, and `CapabilityError` where one has no weights."""
    for model, role in ((target, "a target"), (drafter, "a drafter")):
        model.require("weights", role)
    mine, other = target.tokenizer.fingerprint, drafter.tokenizer.fingerprint
    if mine != other:
        raise TokenizerMismatchError(
            f"The target uses the tokenizer {mine[:12]}, the drafter {other[:12]}.", "Give a drafter with the target's tokenizer."
        )
    if drafter.vocab_size < target.vocab_size:
        raise InputError(
            f"The drafter's input embedding has {drafter.vocab_size} rows, the target can write {target.vocab_size} ids.",
            "Enlarge it with drafter.model.resize_token_embeddings.",
        )


def _softmax(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """Probabilities (rows, vocabulary) float64 under a decoding scheme of temperature > 0."""
    for warp in warpers(sampler):
        logits = warp(None, logits)  # type: ignore[arg-type, assignment]
    return logits.double().softmax(dim=-1)


def _head(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or type(head.weight) is not nn.Parameter or not head.weight.is_floating_point():
        raise CapabilityError(
            f"The head of {type(model).__name__} is {type(head).__name__}, not a linear layer of floating-point weights.",
            "Give a drafter with a plain linear head; load a quantised one in its full precision.",
        )
    return head


def _head_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in _head(model).parameters())


def _embedding_row(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight[0].nbytes)
