"""The scheduler of S³ over a real model: answers are written in ragged batches, under a limit of cache (090).

`serve` runs `palimpsest.serving.length_scheduler` against a transformers model as `palimpsest.serving.simulator` runs it against a
cost: what fits enters, its prompts are read, everyone writes one token, who has ended leaves, who has filled its reservation is
preempted and comes back with what it has written. Decoding is greedy, so that two schedules can be compared token by token.

`RaggedBatch` is the model with the cache of what runs. The rows of a step are exactly the sequences that run: projections, MLPs
and head, nearly all of the work, see no padding. Keys and values of shorter rows stand behind masked columns in one tensor (rows, heads,
longest, d), which is where a server with slots or pages saves more; the limit is counted in tokens of the rows, as in the paper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import DynamicCache

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.measurement import Measurement
from palimpsest.models.batching import check_rows, pad
from palimpsest.models.hf import HFModel
from palimpsest.serving.length_scheduler import LengthPredictor, Request, Reservation, S3Scheduler, Supervisor


class RaggedBatch:
    """A model and the cache of the sequences that run.

    Args:
        model: whose cache is a plain one of keys and values, of layers that keep everything.

    Attributes:
        rows: sequences in the batch.
    """

    def __init__(self, model: HFModel) -> None:
        self.model, self.rows = model, 0
        self._cache = DynamicCache()
        self._real = torch.zeros(0, 0, dtype=torch.bool, device=model.device)

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> torch.Tensor:
        """Feeds one token a row; logits (rows, vocabulary)."""
        fed = torch.tensor(list(ids), device=self.model.device)[:, None]
        positions = self._real.sum(1, keepdim=True)
        self._real = torch.cat([self._real, torch.ones_like(fed, dtype=torch.bool)], 1)
        return self._run(fed, self._real, positions, self._cache)

    @torch.inference_mode()
    def join(self, texts: Sequence[np.ndarray]) -> torch.Tensor:
        """Reads new rows, which stand behind the others from now on; logits (new rows, vocabulary) of their last tokens."""
        ids, mask, positions = pad(texts, "left", self.model.device)
        new = DynamicCache()
        logits = self._run(ids, mask.bool(), positions, new)
        width = max(self._real.shape[1], ids.shape[1])
        layers: Any = new.layers
        held: Any = self._cache.layers
        for number, layer in enumerate(layers):
            if self.rows:
                old = held[number]
                layer.keys = torch.cat([_widened(old.keys, width), _widened(layer.keys, width)])
                layer.values = torch.cat([_widened(old.values, width), _widened(layer.values, width)])
        parts = [*([self._real] if self.rows else []), mask.bool()]
        self._real = torch.cat([torch.nn.functional.pad(part, (width - part.shape[1], 0)) for part in parts])
        self._cache, self.rows = new, self.rows + len(texts)
        return logits

    def leave(self, rows: Sequence[int]) -> None:
        """Takes rows out; the others keep their order."""
        stay = torch.tensor([row for row in range(self.rows) if row not in set(rows)], dtype=torch.int64, device=self.model.device)
        self.rows, self._real = len(stay), self._real[stay]
        if not self.rows:
            self._cache, self._real = DynamicCache(), self._real[:, :0]
            return
        unused = int(self._real.any(0).long().argmax())  # columns that only the longest rows had
        self._real = self._real[:, unused:]
        layers: Any = self._cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[stay, :, unused:], layer.values[stay, :, unused:]

    def _run(self, ids: torch.Tensor, real: torch.Tensor, positions: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        found = self.model.model(
            input_ids=ids, attention_mask=real.long(), position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return found.logits[:, -1]


def _widened(values: torch.Tensor, width: int) -> torch.Tensor:
    """(rows, heads, time, d) with zeros in front up to `width`: masked values must be finite."""
    return torch.nn.functional.pad(values, (0, 0, width - values.shape[2], 0))


def serve(
    model: HFModel,
    requests: Sequence[Request],
    prompts: Sequence[Sequence[int] | np.ndarray],
    scheduler: S3Scheduler,
    *,
    retrain: LengthPredictor | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[np.ndarray], Measurement]:
    """Answers all requests, which wait from the beginning, greedily.

    Args:
        model: who answers.
        requests: one a prompt; with `output_tokens` an answer has exactly so many tokens, else it ends where the model ends it.
        prompts: ids of every prompt, without BOS; `prompt_tokens` of a request is their number.
        scheduler: a new one, of this model's bytes a token (`palimpsest.serving.step_cost.cache_bytes_per_token`).
        retrain: a predictor that notes the true lengths; it learns from them when all is done.
        clock: seconds so far.

    Returns:
        The answers, int64 without what ends them, in the order of the requests; and one row a request in `table` (number,
        prompt_tokens, output_tokens, allowance, preemptions, finished), with requests, tokens, seconds, tokens_per_second, iterations,
        mean_batch, preemptions, recomputed_tokens, peak_cached and capacity (tokens) in `summary`.

    Raises:
        InputError: not one prompt a request, other lengths than the requests say, a request that arrives later, a scheduler in use.
        ContextOverflowError: a prompt and its longest answer do not fit the model.
        RequestTooLarge: a request that does not fit the memory.
        NonFiniteError: the model returned NaN.
    """
    rows = check_rows(prompts, model.vocab_size, model.context_length, int(model.prepends_bos), "Prompt")
    if model.prepends_bos:
        rows = [np.concatenate([[model.tokenizer.bos_id], row]) for row in rows]
    if [len(row) for row in prompts] != [request.prompt_tokens for request in requests]:
        raise InputError(f"{len(prompts)} prompts do not have the tokens that {len(requests)} requests say.", "Give one prompt a request.")
    if scheduler.running or scheduler.waiting or any(request.arrival for request in requests):
        raise InputError(
            "The scheduler is in use, or a request arrives later.", "Make a new scheduler, and let all wait from the beginning."
        )
    for row, request in zip(rows, requests, strict=True):
        check_rows([row], model.vocab_size, model.context_length, request.max_new_tokens, "Prompt")
    return _Server(model, requests, rows, scheduler, Supervisor(scheduler, retrain), clock).run()


class _Server:
    """The state of `serve`; row r of the batch is `self.order[r]`."""

    def __init__(
        self,
        model: HFModel,
        requests: Sequence[Request],
        rows: list[np.ndarray],
        scheduler: S3Scheduler,
        supervisor: Supervisor,
        clock: Callable[[], float],
    ) -> None:
        self.model, self.requests, self.scheduler, self.supervisor, self.clock = model, requests, scheduler, supervisor, clock
        self.prompts = {request.number: row for request, row in zip(requests, rows, strict=True)}
        self.written: dict[int, list[int]] = {request.number: [] for request in requests}
        self.ended: dict[int, float] = {}
        self.batch, self.order = RaggedBatch(model), list[Reservation]()
        self.iterations = self.fed = self.recomputed = self.peak = 0

    def run(self) -> tuple[list[np.ndarray], Measurement]:
        """Serves until nothing waits or runs."""
        self.scheduler.submit(self.requests)
        began = self.clock()
        while self.scheduler.waiting or self.order:
            self._iteration(began)
        seconds = self.clock() - began
        self.supervisor.idle()
        return [np.array(self.written[request.number], np.int64) for request in self.requests], self._measured(seconds)

    def _iteration(self, began: float) -> None:
        entered = self.scheduler.admit()
        logits = [self.batch.step([self.written[r.request.number][-1] for r in self.order])] if self.order else []
        if entered:
            texts = [np.concatenate([self.prompts[r.request.number], self.written[r.request.number]]).astype(np.int64) for r in entered]
            self.recomputed += sum(reservation.cached - 1 for reservation in entered if reservation.preemptions)
            logits.append(self.batch.join(texts))
            self.order += entered
        self.peak = max(self.peak, sum(reservation.cached for reservation in self.order))
        found = torch.cat(logits)
        if not bool(torch.isfinite(found.amax(-1)).all()):
            raise NonFiniteError(f"{self.model.name} returned logits that are not finite.", "Load the model in float32.")
        self.iterations += 1
        self.fed += len(self.order)
        gone = []
        for row, (reservation, token) in enumerate(zip(self.order, found.argmax(-1).tolist(), strict=True)):
            number, wanted = reservation.request.number, reservation.request.output_tokens
            ends = token in self.model.stop_ids if wanted is None else reservation.written + 1 == wanted
            # what ends a text takes a step and is no part of it
            if wanted is not None or not ends:
                self.written[number].append(token)
            fate = self.supervisor.after_step(reservation, reservation.written + 1, ends)
            if fate == "finished":
                self.ended[number] = self.clock() - began
            if fate != "running":
                gone.append(row)
        if gone:
            self.batch.leave(gone)
            self.order = [reservation for row, reservation in enumerate(self.order) if row not in set(gone)]

    def _measured(self, seconds: float) -> Measurement:
        by_number = {reservation.request.number: reservation for reservation in self.supervisor.finished}
        rows = [
            {
                "number": request.number,
                "prompt_tokens": request.prompt_tokens,
                "output_tokens": by_number[request.number].written,
                "allowance": by_number[request.number].allowance,
                "preemptions": by_number[request.number].preemptions,
                "finished": self.ended[request.number],
            }
            for request in self.requests
        ]
        table = pl.DataFrame(rows)
        tokens = int(table["output_tokens"].sum())
        summary = {
            "requests": len(rows),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else None,
            "iterations": self.iterations,
            "mean_batch": self.fed / self.iterations,
            "preemptions": self.supervisor.preemptions,
            "recomputed_tokens": self.recomputed,
            "peak_cached": self.peak,
            "capacity": self.scheduler.capacity,
        }
        provenance = {"model": self.model.describe(), "memory": self.scheduler.memory, "bytes_per_token": self.scheduler.bytes_per_token}
        return Measurement("length-serving", table, summary, provenance)
