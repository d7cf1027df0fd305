"""From logits to tokens for many requests at once, each with its own bias, penalties, guard, sampler and stream of random numbers.

The order is: logits; the request's bias, and what it takes from ids that were written already (presence + frequency x times); the guard;
temperature, top-k, top-p; the draw. So nothing that a request asks for can make the guard let something through. Log-probabilities are
those of the model among what the guard admits: reported before it, they would tell what it forbids.

The draw is by inversion with the next number of the request's own generator, as in `palimpsest.models.decoding`: it is what
`HFModel.generate` draws for prefix 0 and continuation 0 of the same seed. Top-k and top-p are found among the few greatest logits;
where these may not be enough, transformers' own warpers decide.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from palimpsest.guard.memfree import GuardCounts, MemFreeProcessor
from palimpsest.models.base import Sampler
from palimpsest.models.decoding import draw_by_inversion
from palimpsest.models.sampler_scores import WIDER, surviving, warpers
from palimpsest.serving.requests import GenerationRequest, TokenLogprob

_NUCLEUS = 512  # greatest logits looked at for a nucleus without top-k


@dataclass
class Writer:
    """What is remembered of a request between its choices.

    Attributes:
        request: the request.
        prompt: its ids, BOS included.
        guarded: whether the guard watches it.
        written: the ids chosen so far.
        interventions: choices at which the model's own first choice was forbidden.
    """

    request: GenerationRequest
    prompt: list[int]
    guarded: bool
    written: list[int] = field(default_factory=list)
    interventions: int = 0

    def __post_init__(self) -> None:
        self.sampler = self.request.sampler
        self._counts: Counter[int] = Counter()
        self._random = np.random.Generator(np.random.PCG64((int(self.request.seed), 0, 0)))

    def random(self) -> float:
        """The next number of the request's stream."""
        return float(self._random.random())

    def write(self, token: int) -> None:
        """Adds a token."""
        self.written.append(token)
        self._counts[token] += 1

    def adjustment(self) -> dict[int, float]:
        """What the request adds to the logits of single ids."""
        change = {int(token): float(bias) for token, bias in self.request.logit_bias.items()}
        presence, frequency = self.request.presence_penalty, self.request.frequency_penalty
        if presence or frequency:
            for token, times in self._counts.items():
                change[token] = change.get(token, 0.0) - presence - times * frequency
        return change

    def tail(self, length: int, with_prompt: bool) -> list[int]:
        """The last ids, at most `length`."""
        own = self.written[max(0, len(self.written) - length) :]
        rest = length - len(own)
        return self.prompt[-rest:] + own if with_prompt and rest else own


@dataclass(frozen=True)
class Choice:
    """The next token of a request.

    Attributes:
        token: its id; None where there was none to choose: the logits were not finite, or the guard failed.
        logprob: what to report of it, where the request asks.
        forced: whether the guard left nothing else.
        error: with what the guard failed.
    """

    token: int | None
    logprob: TokenLogprob | None = None
    forced: bool = False
    error: Exception | None = None


class RowGuard:
    """One guard for rows of different length: each is judged by its own last n - 1 tokens.

    Args:
        processor: the guard; its source is shared, its counts are not touched.

    Attributes:
        counts: what it did, over all requests.
    """

    def __init__(self, processor: MemFreeProcessor) -> None:
        self._processor = copy.copy(processor)
        self._with_prompt = processor.include_prompt
        self._processor.include_prompt = True  # what is context is decided here, by what is given to it
        self._processor.counts = self.counts = GuardCounts()

    def __call__(self, writers: Sequence[Writer], scores: torch.Tensor) -> torch.Tensor:
        """`scores` (rows, vocabulary) with -inf for what is forbidden; the same tensor where nothing is."""
        width = self._processor.source.n - 1
        tails = [writer.tail(width, self._with_prompt) for writer in writers]
        rows = np.zeros((len(tails), width), dtype=np.int64)
        for row, tail in zip(rows, tails, strict=True):
            row[width - len(tail) :] = tail
        self._processor.start_batch([len(tail) for tail in tails], width)
        guarded: torch.Tensor = self._processor(torch.from_numpy(rows).to(scores.device), scores)
        return guarded


def choose(writers: Sequence[Writer], logits: torch.Tensor, guard: RowGuard | None = None) -> list[Choice]:
    """The next token of every request.

    Args:
        writers: the requests.
        logits: (rows, vocabulary), a row each; not changed.
        guard: watches those that are to be guarded.
    """
    scores = logits.float()
    admissible = torch.isfinite(scores.amax(dim=-1)).tolist()
    wanted = [writer.adjustment() for writer in writers]
    adjusted = scores.clone() if any(wanted) else scores
    for row, change in enumerate(wanted):
        if change:
            ids = torch.tensor(list(change), device=scores.device)
            adjusted[row, ids] += torch.tensor(list(change.values()), device=scores.device)
    watched = [row for row, writer in enumerate(writers) if writer.guarded and admissible[row]] if guard is not None else []
    forced: set[int] = set()
    failed: dict[int, Exception] = {}
    if guard is not None and watched:
        at = torch.tensor(watched, device=scores.device)
        before = adjusted[at]
        after, failures = _judged(guard, [writers[row] for row in watched], before)
        failed = {watched[place]: error for place, error in failures.items()}
        if after is not before:
            forbidden = after == -torch.inf
            first = before.argmax(dim=-1, keepdim=True)
            for row, changed in zip(watched, forbidden.gather(-1, first)[:, 0].tolist(), strict=True):
                writers[row].interventions += changed
            forced = {row for row, left in zip(watched, (~forbidden).sum(dim=-1).tolist(), strict=True) if left == 1}
            adjusted, scores = adjusted.clone(), scores.clone()
            adjusted[at] = after
            scores[at] = scores[at].masked_fill(forbidden, -torch.inf)
    for row in failed:
        admissible[row] = False
    tokens = adjusted.argmax(dim=-1).tolist()
    groups: dict[Sampler, list[int]] = {}
    for row, writer in enumerate(writers):
        if admissible[row] and writer.sampler.temperature != 0:
            groups.setdefault(writer.sampler, []).append(row)
    for sampler, rows in groups.items():
        numbers = torch.tensor([writers[row].random() for row in rows], dtype=torch.float64, device=scores.device)
        drawn = _draw(adjusted[torch.tensor(rows, device=scores.device)], sampler, numbers)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            tokens[row] = token
    choices = []
    for row, writer in enumerate(writers):
        if not admissible[row]:
            choices.append(Choice(None, error=failed.get(row)))
            continue
        top = writer.request.logprobs
        logprob = token_logprobs(scores[row : row + 1], [tokens[row]], top)[0] if top is not None else None
        choices.append(Choice(tokens[row], logprob, row in forced))
    return choices


def _judged(guard: RowGuard, writers: Sequence[Writer], scores: torch.Tensor) -> tuple[torch.Tensor, dict[int, Exception]]:
    """What the guard makes of all rows; where that fails, of one after the other, with the errors of those on which it fails."""
    try:
        return guard(writers, scores), {}
    except Exception:
        judged, failures = scores.clone(), {}
        for row, writer in enumerate(writers):
            try:
                judged[row] = guard([writer], scores[row : row + 1])[0]
            except Exception as error:
                failures[row] = error
        return judged, failures


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """What to report of tokens: each one's log-probability under its row of logits (rows, vocabulary), and the `top` likeliest ids."""
    values = logits.float().log_softmax(dim=-1)
    own = values.gather(-1, torch.tensor(list(tokens), device=values.device)[:, None])[:, 0].tolist()
    best = values.topk(min(top, values.shape[-1]), dim=-1)
    return [
        TokenLogprob(token, logprob, tuple((one, value) for one, value in zip(ids, likely, strict=True) if value > -torch.inf))
        for token, logprob, ids, likely in zip(tokens, own, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _draw(scores: torch.Tensor, sampler: Sampler, uniform: torch.Tensor) -> torch.Tensor:
    """One id a row (rows,) from softmax(`scores`) as `sampler` cuts it, where `uniform` (rows,) says."""
    vocab = scores.shape[-1]
    cuts = sampler.top_k is not None and sampler.top_k < vocab
    if not cuts and (sampler.top_p is None or sampler.top_p >= 1):
        return draw_by_inversion(scores / sampler.temperature, uniform)
    if cuts and sampler.top_k is not None:
        widths = [sampler.top_k + 1]
    else:
        widths = [min(_NUCLEUS, vocab), vocab // WIDER]
    drawn = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    unsure = torch.arange(len(scores), device=scores.device)
    for width in widths:
        if len(unsure) and width > 1:
            rest = scores[unsure]
            drawn[unsure], certain = _draw_among(rest, rest.topk(width, dim=-1), sampler, uniform[unsure])
            unsure = unsure[~certain]
    if len(unsure):
        rest = scores[unsure]
        for warp in warpers(sampler):
            rest = warp(None, rest)  # type: ignore[arg-type, assignment]
        drawn[unsure] = draw_by_inversion(rest, uniform[unsure])
    return drawn


def _draw_among(scores: torch.Tensor, best: Any, sampler: Sampler, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same among the greatest logits, `best` being what `topk` returns, and for every row whether these were enough."""
    scaled, stays, certain = surviving(scores, best.values, sampler)
    ids, order = best.indices[:, : scaled.shape[1]].sort(dim=-1)
    kept = scaled.masked_fill(~stays, -torch.inf).gather(-1, order)
    return ids.gather(-1, draw_by_inversion(kept, uniform)[:, None])[:, 0], certain
