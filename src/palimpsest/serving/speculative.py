"""Speculative decoding: a small drafter proposes γ tokens, the target checks them in one pass, and the text is exactly the target's.

Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023, arXiv 2211.17192; Chen et al., 2023,
arXiv 2302.01318. It carries system 095 (`palimpsest.serving.vocabtrim`), whose drafters have a smaller vocabulary.

With p the target's and q the drafter's distribution at a position, both behind temperature, top-k and top-p, a drafted x is accepted with
probability min(1, p(x) / q(x)); the first that is not is replaced by a draw from norm(max(0, p - q)); when all are accepted one more
token is drawn from p. So every token is distributed as p, whatever q is, and q may be zero where p is not: what the drafter cannot
propose still comes out by rejection. Greedy: accepted while both argmaxes agree.

One block: the drafter runs γ times, the target once on γ + 1 tokens. Then both key-value caches are taken back to what was accepted.
Rows of a batch accept different numbers: the cache is cropped by what all rows drop, and the slots that only some rows drop are
masked for these, holes that nothing attends to; positions are counted a row. A row that has ended leaves the batch. Sampled
text depends on (seed, number of the row) and not on the batch: each row has its own stream of uniform numbers, 2 γ + 1 a block
(drafts, acceptances, the last draw), used by inversion.

Where p and q agree to rounding, max(0, p - q) may vanish when its draw is due; p is drawn from then.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from palimpsest.errors import CapabilityError, InputError, NonFiniteError
from palimpsest.models.base import Progress, Sampler
from palimpsest.models.batching import check_rows
from palimpsest.models.decoding import Decoding
from palimpsest.models.hf import HFModel
from palimpsest.models.sampler_scores import warpers
from palimpsest.serving.vocabtrim import TrimmedDrafter, bytes_read, mbsu, same_tokenizer


@dataclass
class SpeculativeStats:
    """What a run of `speculative_generate` did, over all its rows.

    Attributes:
        gamma: drafted tokens a block, at most.
        new_tokens: tokens written, those that end a text among them.
        blocks: calls of the target, counted a row (the reading of the prefixes does not count).
        drafted: tokens that the drafter proposed and that might have been used.
        accepted: of these, accepted.
        target_bytes, drafter_bytes: weights that one decoding step of each reads.
        seconds, draft_seconds, verify_seconds: wall time in all, in the drafter, in the target with its check.
    """

    gamma: int
    target_bytes: int
    drafter_bytes: int
    new_tokens: int = 0
    blocks: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    @property
    def block_efficiency(self) -> float:
        """τ, tokens a call of the target."""
        return self.new_tokens / self.blocks if self.blocks else 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were accepted; None where none was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def cost(self) -> float:
        """c, the drafter's bytes over the target's."""
        return self.drafter_bytes / self.target_bytes

    @property
    def mbsu(self) -> float:
        """Memory-bound speed-up τ / (γ c + 1) over the target alone."""
        return mbsu(self.block_efficiency, self.gamma, self.cost)

    def to_dict(self) -> dict[str, Any]:
        """Counts and figures as plain JSON types."""
        figures = {name: getattr(self, name) for name in ("block_efficiency", "acceptance", "cost", "mbsu")}
        return {**vars(self), **figures}


@torch.inference_mode()
def speculative_generate(
    target: HFModel,
    drafter: HFModel | TrimmedDrafter,
    prefixes: Sequence[Sequence[int] | np.ndarray],
    max_new_tokens: int,
    *,
    gamma: int = 4,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_at_eos: bool = True,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> tuple[list[np.ndarray], SpeculativeStats]:
    """Continues every prefix as the target would, with a drafter's help.

    Args:
        target: whose text it is.
        drafter: a smaller model with the same tokenizer, or one whose head was trimmed.
        prefixes: rows of ids, without BOS.
        max_new_tokens: the most tokens written a row.
        gamma: tokens drafted a block.
        temperature, top_k, top_p: see `Sampler`; temperature 0 is greedy.
        seed: of the sampling; equal seeds give equal text on one machine.
        stop_at_eos: whether a text ends where the target ends it (what ends it is not returned).
        batch_size: rows at once; rows of models with a sliding window go one by one.
        progress: called with (rows done, rows in all).

    Returns:
        For each prefix its continuation, int64 without the prefix, and the statistics.

    Raises:
        InputError: numbers out of range, or bad rows.
        TokenizerMismatchError: the models have different tokenizers.
        ContextOverflowError: a row that does not fit the context of both.
        CapabilityError: no weights, or a model whose state cannot be taken back (recurrent layers).
        NonFiniteError: a model returned NaN.

    Example:
        >>> texts, stats = speculative_generate(target, drafter, [target.tokenizer.encode("Once")], 64)     # doctest: +SKIP
        >>> stats.block_efficiency     # doctest: +SKIP
        2.7
    """
    began = time.perf_counter()
    whole = drafter.door if isinstance(drafter, TrimmedDrafter) else drafter
    decoding = Decoding(Sampler(temperature, top_k, top_p), max_new_tokens, seed=seed)
    for name, value in (("gamma", gamma), ("batch_size", batch_size)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} is {value!r}.", "Give an integer of at least 1.")
    same_tokenizer(target, whole)
    context = min(target.context_length, whole.context_length)
    rows = check_rows(prefixes, target.vocab_size, context, max_new_tokens + int(target.prepends_bos), "Prefix")
    if target.prepends_bos:
        rows = [np.concatenate([[target.tokenizer.bos_id], row]) for row in rows]
    slides = [_slides(model) for model in (target.model, drafter.model)]
    width = 1 if any(slides) else batch_size
    stats = SpeculativeStats(gamma, bytes_read(target.model), bytes_read(drafter.model))
    stops = np.asarray(target.stop_ids if stop_at_eos else [], np.int64)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    out: list[np.ndarray] = [np.empty(0, np.int64)] * len(rows)
    for start in range(0, len(order), width):
        numbers = order[start : start + width]
        batch = _Batch(target, drafter, [rows[i] for i in numbers], numbers, decoding, gamma, stops, stats, context)
        for number, ids in zip(numbers, batch.run(), strict=True):
            out[number] = ids
        if progress:
            progress(min(start + width, len(rows)), len(rows))
    stats.seconds = time.perf_counter() - began
    return out, stats


class _Batch:
    """Rows that are continued together; row r of every array is the row `self.alive[r]` of the batch."""

    def __init__(
        self,
        target: HFModel,
        drafter: HFModel | TrimmedDrafter,
        rows: list[np.ndarray],
        numbers: list[int],
        decoding: Decoding,
        gamma: int,
        stops: np.ndarray,
        stats: SpeculativeStats,
        context: int,
    ) -> None:
        self.rows, self.sampler, self.gamma, self.stops, self.stats = rows, decoding.sampler, gamma, stops, stats
        self.sampling = decoding.sampler.temperature != 0
        self.streams = [np.random.Generator(np.random.PCG64((decoding.seed, number))) for number in numbers] if self.sampling else []
        self.target = _Reader(target.model, len(rows), context)
        self.drafter = _Reader(drafter.model, len(rows), context)
        self.device = target.model.device
        # where the drafter's columns are all ids in order there is nothing to map, and none beyond the target's vocabulary is drafted
        self.kept = drafter.kept.to(self.device) if isinstance(drafter, TrimmedDrafter) else torch.arange(target.vocab_size)
        self.kept = self.kept[self.kept < target.vocab_size].to(self.device)
        self.written = np.zeros((len(rows), decoding.max_new_tokens), np.int64)
        self.lengths = np.zeros(len(rows), np.int64)
        self.alive = np.arange(len(rows))

    def run(self) -> list[np.ndarray]:
        """The continuations."""
        longest = max(len(row) for row in self.rows) - 1
        if longest:
            ids, real = np.zeros((len(self.rows), longest), np.int64), np.zeros((len(self.rows), longest), bool)
            for index, row in enumerate(self.rows):
                if len(row) > 1:
                    ids[index, longest + 1 - len(row) :], real[index, longest + 1 - len(row) :] = row[:-1], True
            for reader in (self.target, self.drafter):
                reader.feed(torch.from_numpy(ids), torch.from_numpy(real), 1)
        last = torch.tensor([[row[-1]] for row in self.rows])
        pending, fresh = last, torch.ones_like(last, dtype=torch.bool)  # what the drafter has not read: the last token, or two
        while len(self.alive):
            last, pending, fresh = self._block(last, pending, fresh)
        return [row[:length] for row, length in zip(self.written, self.lengths, strict=True)]

    def _block(self, last: torch.Tensor, pending: torch.Tensor, fresh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Drafts, checks and writes once; `last` (rows, 1) the token that the target reads next, `pending`, `fresh` the drafter's."""
        room = self.written.shape[1] - self.lengths[self.alive] - 1
        usable = torch.from_numpy(np.minimum(self.gamma, room)).to(self.device)  # drafts of each row that may be taken
        width = int(usable.max())
        uniform = None
        if self.sampling:
            numbers = np.stack([self.streams[row].random(2 * self.gamma + 1) for row in self.alive])
            uniform = torch.from_numpy(numbers).to(self.device)
        at = time.perf_counter()
        drafts, q = self._draft(pending, fresh, width, uniform)
        self.stats.draft_seconds += time.perf_counter() - at
        at = time.perf_counter()
        fed = torch.cat([last.to(self.device), drafts], 1)
        logits = self.target.feed(fed, torch.ones_like(fed, dtype=torch.bool), width + 1)
        accepted, following = self._check(logits, drafts, q, usable, uniform)
        self.stats.verify_seconds += time.perf_counter() - at
        self.target.forget(width - accepted)
        if width:
            self.drafter.forget((width - 1 - accepted).clamp(min=0))
        going = self._write(drafts, accepted, following, usable)
        if len(going) < len(self.alive):
            self.alive = self.alive[going]
            chosen = torch.from_numpy(going).to(self.device)
            drafts, accepted, following = drafts[chosen], accepted[chosen], following[chosen]
            if len(going):
                self.target.select(chosen)
                self.drafter.select(chosen)
        behind = accepted == width  # the last draft was never read by the drafter that made it
        if width and bool(behind.any()):
            pending = torch.cat([drafts[:, -1:], following], 1)
            return following, pending, torch.stack([behind, torch.ones_like(behind)], 1)
        return following, following, torch.ones_like(following, dtype=torch.bool)

    def _draft(
        self, pending: torch.Tensor, fresh: torch.Tensor, width: int, uniform: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Drafted ids (rows, width) and, when sampling, what they were drawn from, (rows, width, kept) float64."""
        drafts, distributions = [], []
        for step in range(width):
            logits = self.drafter.feed(pending, fresh, 1)[:, -1, : len(self.kept)]
            _require_finite(logits, "The drafter's")
            if uniform is None:
                chosen = logits.argmax(-1, keepdim=True)
            else:
                distributions.append(_distribution(logits, self.sampler))
                chosen = draw(distributions[-1], uniform[:, step])
            drafts.append(self.kept[chosen])
            pending, fresh = drafts[-1], torch.ones_like(chosen, dtype=torch.bool)
        ids = torch.cat(drafts, 1) if drafts else torch.empty(len(self.alive), 0, dtype=torch.int64, device=self.device)
        return ids, torch.stack(distributions, 1) if distributions else None

    def _check(
        self,
        logits: torch.Tensor,
        drafts: torch.Tensor,
        q: torch.Tensor | None,
        usable: torch.Tensor,
        uniform: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How many drafts of each row are accepted, (rows,), and the token behind them, (rows, 1)."""
        _require_finite(logits, "The target's")
        if uniform is None:
            best = logits.argmax(-1)
            accepted = accepted_drafts(best[:, :-1] == drafts, usable)
            return accepted, best.gather(1, accepted[:, None])
        p = _distribution(logits.flatten(0, 1), self.sampler).view(logits.shape)
        width = drafts.shape[1]
        agreed = torch.empty(drafts.shape, dtype=torch.bool, device=drafts.device)
        if q is not None:
            columns = torch.searchsorted(self.kept, drafts)
            own = q.gather(-1, columns[..., None])[..., 0]
            agreed = uniform[:, self.gamma : self.gamma + width] * own < p[:, :-1].gather(-1, drafts[..., None])[..., 0]
        accepted = accepted_drafts(agreed, usable)
        rows = torch.arange(len(p), device=p.device)
        following = p[rows, accepted]
        if q is not None:
            refused = accepted < usable
            there = residual(following, q[rows, accepted.clamp(max=width - 1)], self.kept)
            following = torch.where(refused[:, None], there, following)
        return accepted, draw(following, uniform[:, -1])

    def _write(self, drafts: torch.Tensor, accepted: torch.Tensor, following: torch.Tensor, usable: torch.Tensor) -> np.ndarray:
        """Appends what a block gave, up to what ends a text; returns the rows that go on."""
        found = torch.cat([drafts, following], 1).cpu().numpy()
        count = accepted.cpu().numpy() + 1
        place = np.arange(found.shape[1])[None]
        found = np.where(place == count[:, None] - 1, following.cpu().numpy(), found)
        ends = np.isin(found, self.stops) & (place < count[:, None])
        ended = ends.any(1)
        kept = np.where(ended, ends.argmax(1), count)
        index = self.lengths[self.alive][:, None] + place
        rows, columns = np.nonzero(place < kept[:, None])
        self.written[self.alive[rows], index[rows, columns]] = found[rows, columns]
        self.lengths[self.alive] += kept
        self.stats.blocks += len(count)
        self.stats.new_tokens += int((kept + ended).sum())
        self.stats.drafted += int(usable.sum())
        self.stats.accepted += int(np.minimum(kept + ended, count - 1).sum())
        return np.flatnonzero(~ended & (self.lengths[self.alive] < self.written.shape[1]))


class _Reader:
    """A model with the cache of what it has read of some rows.

    Attributes:
        real: (rows, slots) bool, whether a slot of the cache belongs to a row.
        read: (rows,) tokens read, which is where the next one stands.
    """

    def __init__(self, model: PreTrainedModel, rows: int, context: int) -> None:
        self.model, self.context = model, context
        self.cache = DynamicCache()  # without a configuration: layers that keep everything, also where the mask slides
        self.real = torch.ones(rows, 0, dtype=torch.bool, device=model.device)
        self.read = torch.zeros(rows, dtype=torch.int64, device=model.device)
        arguments = inspect.signature(model.forward).parameters
        self.positions, self.cuts = "position_ids" in arguments, "logits_to_keep" in arguments

    def feed(self, ids: torch.Tensor, real: torch.Tensor, want: int) -> torch.Tensor:
        """Reads `ids` (rows, width), of which those that are `real` count; float32 logits (rows, want, vocabulary) at the last ones."""
        ids, real = ids.to(self.model.device), real.to(self.model.device)
        self.real = torch.cat([self.real, real], 1)
        options: dict[str, Any] = {"logits_to_keep": want} if self.cuts else {}
        if self.positions:  # drafts beyond a row's end are never used and may stand anywhere
            options["position_ids"] = (self.read[:, None] + real.cumsum(1) - 1).clamp(0, self.context - 1)
        self.read = self.read + real.sum(1)
        found = self.model(input_ids=ids, attention_mask=self.real.long(), past_key_values=self.cache, use_cache=True, **options)
        return found.logits[:, -want:].float()

    def forget(self, slots: torch.Tensor) -> None:
        """Takes the cache back: the last `slots` (rows,) of each row are gone."""
        slots = slots.to(self.real.device)
        common = int(slots.min())
        if common:
            self.cache.crop(-common)
            self.real = self.real[:, :-common]
        rest = slots - common
        place = torch.arange(self.real.shape[1], device=self.real.device)
        self.real = self.real & (place[None] < self.real.shape[1] - rest[:, None])
        self.read = self.read - slots

    def select(self, rows: torch.Tensor) -> None:
        """Keeps some rows."""
        rows = rows.to(self.real.device)
        self.cache.batch_select_indices(rows)
        self.real, self.read = self.real[rows], self.read[rows]


def accepted_drafts(agreed: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """How many drafts stand before the first that is not `agreed` (rows, width), at most `usable` (rows,)."""
    return torch.minimum(agreed.long().cumprod(1).sum(1), usable)


def residual(p: torch.Tensor, q: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """max(0, p - q), not normalised, (rows, vocabulary); q (rows, kept) is of the ids `kept`. p where nothing would be left."""
    left = p.index_add(1, kept, q, alpha=-1).clamp(min=0)
    return torch.where(left.sum(1, keepdim=True) > 0, left, p)


def draw(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One column a row, (rows, 1), drawn by inversion from `weights` (rows, columns) float64 with `uniform` (rows,) in [0, 1)."""
    cumulative = weights.cumsum(-1)
    # right: the first column whose cumulative weight exceeds the number, never one of weight 0
    found = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    return found.clamp_(max=weights.shape[-1] - 1)


def _distribution(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """Probabilities (rows, vocabulary) float64 behind temperature, top-k and top-p."""
    for warp in warpers(sampler):
        logits = warp(None, logits)  # type: ignore[arg-type, assignment]
    return logits.double().softmax(dim=-1)


def _require_finite(logits: torch.Tensor, whose: str) -> None:
    if not bool(torch.isfinite(logits.amax(-1)).all()):
        raise NonFiniteError(f"{whose} logits are not finite.", "Check the weights for NaN, or load the model in float32.")


def _slides(model: PreTrainedModel) -> bool:
    """Whether some layer attends to a window only.

    Raises:
        CapabilityError: some layer's state cannot be taken back.
    """
    layers = DynamicCache(config=model.config).layers
    bad = next((layer for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)), None)
    if bad is not None or getattr(model, "_is_stateful", False):
        raise CapabilityError(
            f"{type(model).__name__} keeps a {type(bad).__name__ if bad else 'recurrent state'}, which cannot be taken back.",
            "Give a model that attends to a plain key-value cache.",
        )
    return any(type(layer) is DynamicSlidingWindowLayer for layer in layers)
