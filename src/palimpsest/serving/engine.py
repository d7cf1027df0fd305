"""The engine of the server: many requests on one model, which join and leave at every step.

One thread owns the model. Before every step it lets go of requests that were cancelled, gives free slots to those that waited longest,
and makes a batch: the newest token of everyone who is writing, and up to `prefill_chunk` tokens of prompts that are still being read, in
the order in which they came. So a long prompt delays the others by one piece of it, not by itself. After the step every request's next
token is chosen (`serving.choosing`), turned to text (`serving.text_stream`) and given to its `Stream`.

What the model computes for a request does not depend on the others beyond rounding: greedy text is that of the model alone, sampled
text depends on the request's seed. A request that fails (logits that are not finite, an exception in the model) ends with an error;
the others go on.

With a context method (`palimpsest.context`) requests do not share a forward pass: the layers of its cache know nothing of slots. Every
request has a cache of its own, and within a step they are run one after the other (`serving.runners.CacheRunner`), as are those of
models that cannot be batched; `Engine.unbatched` says why. Cached prefixes need slots, too.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from types import TracebackType

import torch

from palimpsest.context.attach import ContextMethod
from palimpsest.context.catalogue import goes_beyond
from palimpsest.errors import (
    CapabilityError,
    ContextOverflowError,
    EngineStoppedError,
    InputError,
    NonFiniteError,
    PalimpsestError,
    QueueFullError,
)
from palimpsest.guard.memfree import MemFreeProcessor
from palimpsest.models.base import LanguageModel
from palimpsest.models.hf import UNLIMITED_CONTEXT, HFModel
from palimpsest.serving.choosing import Choice, RowGuard, Writer, choose, token_logprobs
from palimpsest.serving.metrics import EngineMetrics, Histogram
from palimpsest.serving.prefix_cache import BLOCK, PrefixCache
from palimpsest.serving.requests import FinishReason, GenerationRequest, Piece, TokenLogprob, Usage
from palimpsest.serving.runners import CacheRunner, CannotBatchError, Runner, SlotRunner
from palimpsest.serving.slots import Work
from palimpsest.serving.streams import Stream
from palimpsest.serving.text_stream import TextStream

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
    """A request that has a slot."""

    stream: Stream
    arrived: float
    slot: int
    writer: Writer
    text: TextStream
    fed: int = 0  # tokens that the slot holds
    cached: int = 0
    held: list[tuple[int, TokenLogprob | None]] = field(default_factory=list)  # tokens that no piece has had yet
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    begun: bool = False  # whether the prompt has been read

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are not fed yet."""
        return max(0, len(self.writer.prompt) - self.fed)

    @property
    def scores_prompt(self) -> bool:
        return self.stream.request.echo and self.stream.request.logprobs is not None

    def usage(self) -> Usage:
        return Usage(len(self.writer.prompt), self.cached, len(self.writer.written), self.writer.interventions)


class Engine:
    """Continues prompts for many clients at once; see the module's docstring.

    Args:
        model: the door to a transformers model in this process. Others may go on using it meanwhile.
        max_slots: requests at the same time.
        max_waiting: requests that may wait for a slot.
        guard: watches all requests that do not say otherwise.
        context: a context method of `palimpsest.context`.
        prefix_cache_bytes: what keys and values of earlier prompts may take; 0 keeps none.
        prefill_chunk: tokens of prompts that are read in one step; by default 64 on a processor, where more would stall the others for
            longer than it saves, and 512 elsewhere.

    Attributes:
        context_length: tokens of a prompt and its continuation; the model's own, or no limit under a method that goes beyond it.
        unbatched: why requests do not share a forward pass; None where they do.

    Raises:
        CapabilityError: the door has no weights in this process.
        InputError: a number out of range, or a context method that wants document and question apart.
        TokenizerMismatchError: guard and model use different tokenizers.

    Example:
        >>> with Engine(model) as engine:                                     # doctest: +SKIP
        ...     stream = engine.submit(GenerationRequest(tokenizer.encode("In the beginning"), max_new_tokens=8))
        ...     print(stream.collect().text)
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_slots: int = 16,
        max_waiting: int = 256,
        guard: MemFreeProcessor | None = None,
        context: ContextMethod | None = None,
        prefix_cache_bytes: int = 1 << 28,
        prefill_chunk: int | None = None,
    ) -> None:
        if not isinstance(model, HFModel) or not model.in_process:
            raise CapabilityError(
                f"The door {model.door!r} to {model.name!r} has no weights in this process.",
                "Serve a model that is loaded from its weights (a folder, a hub id or a GGUF file).",
            )
        if prefill_chunk is None:
            prefill_chunk = 64 if model.device.type == "cpu" else 512
        for name, value, least in (("max_slots", max_slots, 1), ("max_waiting", max_waiting, 0), ("prefill_chunk", prefill_chunk, 1)):
            if value < least:
                raise InputError(f"{name} is {value}.", f"Give an integer of at least {least}.")
        if context is not None and hasattr(context.session, "read"):
            raise InputError(
                f"{context!r} reads a document for a question, and a request does not say which of its tokens are the question.",
                "Use it with `palimpsest generate --document`, or serve another method.",
            )
        if guard is not None and guard.source.tokenizer_fingerprint is not None:
            model.tokenizer.require_same(guard.source.tokenizer_fingerprint, "the guard's n-grams")
        self.model, self.max_slots, self.max_waiting, self.prefill_chunk = model, max_slots, max_waiting, prefill_chunk
        self.context_length = UNLIMITED_CONTEXT if goes_beyond(context) else model.context_length
        self._guard = RowGuard(guard) if guard is not None else None
        self.unbatched: str | None = None
        self._runner: Runner = self._make_runner(context)
        self._prefixes = PrefixCache(prefix_cache_bytes if self._runner.store is not None else 0)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Stream, float]] = deque()
        self._running: list[_Running] = []  # in the order in which they came
        self._free = set(range(max_slots))
        self._thread: threading.Thread | None = None
        self._accepts = self._stopping = self._aborting = False
        self._failure: BaseException | None = None
        self._finished: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._step_seconds, self._queue_seconds, self._first_token_seconds = Histogram(), Histogram(), Histogram()

    def _make_runner(self, context: ContextMethod | None) -> Runner:
        if context is not None:
            self.unbatched = f"the context method {context!r} keeps a cache of its own for every request"
            return CacheRunner(self.model, context)
        try:
            return SlotRunner(self.model, self.max_slots)
        except CannotBatchError as error:
            self.unbatched = error.problem
            _log.warning("%s Its requests are run one after another.", error.problem)
            return CacheRunner(self.model)

    @property
    def guarded(self) -> bool:
        """Whether there is a guard."""
        return self._guard is not None

    @property
    def accepting(self) -> bool:
        """Whether requests are taken: started, not shutting down, not failed."""
        return self._accepts

    def start(self) -> Engine:
        """Starts the thread that owns the model.

        Raises:
            InputError: the engine has been started before, or another one serves this model.
        """
        with self._changed:
            if self._thread is not None:
                raise InputError("This engine has been started before.", "Make a new one.")
            self._thread = threading.Thread(target=self._run, name="palimpsest-engine", daemon=True)
            self._thread.start()
            self._changed.wait_for(lambda: self._accepts or self._failure is not None)
        if self._failure is not None:
            raise self._failure
        return self

    def check(self, request: GenerationRequest) -> None:
        """Raises what `submit` would raise because of the request alone.

        Raises:
            InputError: ids outside the vocabulary, or a guard that is not there.
            ContextOverflowError: prompt and continuation do not fit the model's context.
        """
        vocab = self.model.vocab_size
        wrong = [token for token in (*request.prompt_ids, *request.logit_bias) if not 0 <= token < vocab]
        if wrong:
            raise InputError(
                f"The request holds the id {wrong[0]}, but the model knows the ids 0 to {vocab - 1}.",
                "Encode the text with this model's own tokenizer.",
            )
        if request.guard and self._guard is None:
            raise InputError("The request asks for a guard, but the engine has none.", "Start the server with --guard INDEX.")
        tokens = len(request.prompt_ids) + int(self.model.prepends_bos)
        if tokens + request.max_new_tokens > self.context_length:
            raise ContextOverflowError(
                f"The prompt has {tokens} tokens, and {request.max_new_tokens} are to be written, but the model sees at most "
                f"{self.context_length}.",
                "Give a shorter prompt or a smaller max_new_tokens.",
            )

    def submit(self, request: GenerationRequest) -> Stream:
        """Queues a request.

        Raises:
            InputError, ContextOverflowError: see `check`.
            QueueFullError: as many requests wait as may wait.
            EngineStoppedError: the engine has not been started, or is shutting down.
        """
        self.check(request)
        with self._changed:
            if not self._accepts:
                raise EngineStoppedError("The engine takes no requests.", "Start it, or start another one if it has been shut down.")
            if len(self._waiting) >= self.max_waiting + len(self._free):
                self._totals["rejected"] += 1
                raise QueueFullError(f"{len(self._waiting)} requests are waiting.", "Try again later.")
            stream = Stream(request, self._wake)
            self._waiting.append((stream, time.perf_counter()))
            self._changed.notify_all()
        return stream

    def metrics(self) -> EngineMetrics:
        """What the engine is doing and has done."""
        with self._changed:
            return EngineMetrics(
                running=len(self._running),
                waiting=len(self._waiting),
                slots=self.max_slots,
                queue=self.max_waiting,
                batched=self.unbatched is None,
                finished=dict(self._finished),
                rejected=self._totals["rejected"],
                prompt_tokens=self._totals["prompt"],
                cached_tokens=self._totals["cached"],
                completion_tokens=self._totals["completion"],
                steps=self._totals["steps"],
                step_seconds=self._step_seconds.read(),
                queue_seconds=self._queue_seconds.read(),
                first_token_seconds=self._first_token_seconds.read(),
                prefix_bytes=self._prefixes.bytes,
                prefix_blocks=self._prefixes.blocks,
                prefix_limit=self._prefixes.limit,
                guard=self._guard.counts.to_dict() if self._guard is not None else {},
            )

    def shutdown(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Takes no more requests and ends: the thread stops, and the model is as it was before.

        Args:
            drain: whether those that run or wait are finished first; else they end as "aborted".
            timeout: seconds after which those that are left are aborted.

        Returns:
            Whether all were finished.
        """
        with self._changed:
            self._accepts, self._stopping, self._aborting = False, True, not drain
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
            with self._changed:
                self._aborting = True
                self._changed.notify_all()
            self._thread.join()
        return self._finished["aborted"] == 0

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown(drain=False)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        """The thread."""
        try:
            with self._runner.session(), torch.inference_mode():
                with self._changed:
                    self._accepts = True
                    self._changed.notify_all()
                while self._prepare():
                    began = time.perf_counter()
                    self._step()
                    with self._changed:
                        self._totals["steps"] += 1
                        self._step_seconds.add(time.perf_counter() - began)
        except BaseException as error:
            with self._changed:
                if self._accepts or self._stopping:  # what goes wrong before is the caller's affair
                    _log.exception("The engine has failed.")
                self._accepts, self._failure = False, error
                self._end_all("error", PalimpsestError(f"The engine has failed: {error!r}.", "Start the server again."))
                self._changed.notify_all()

    def _prepare(self) -> bool:
        """Waits until there is work, lets go and lets in; False when there will be no more."""
        with self._changed:
            while True:
                if self._aborting:
                    self._end_all("aborted")
                for running in [one for one in self._running if one.stream.cancelled]:
                    self._end(running, "cancelled")
                for stream, arrived in [entry for entry in self._waiting if entry[0].cancelled]:
                    self._waiting.remove((stream, arrived))
                    self._end_waiting(stream, "cancelled")
                while self._waiting and self._free:
                    self._admit(*self._waiting.popleft())
                if self._running:
                    return True
                if self._stopping:
                    return False
                self._changed.wait()

    def _admit(self, stream: Stream, arrived: float) -> None:
        slot = min(self._free)
        self._free.remove(slot)
        request = stream.request
        bos = [self.model.tokenizer.bos_id] if self.model.prepends_bos and self.model.tokenizer.bos_id is not None else []
        prompt = [*bos, *request.prompt_ids]
        writer = Writer(request, prompt, self._guard is not None and request.guard is not False)
        self._running.append(_Running(stream, arrived, slot, writer, TextStream(self.model.tokenizer, prompt, request.stop)))
        self._totals["prompt"] += len(prompt)
        self._queue_seconds.add(time.perf_counter() - arrived)

    def _step(self) -> None:
        """One forward pass over everything that runs, and what follows from it."""
        batch = self._plan()
        results = self._runner.step([work for _, work in batch])
        ready: list[tuple[_Running, torch.Tensor]] = []
        for (running, work), logits in zip(batch, results, strict=True):
            if isinstance(logits, Exception):
                self._fail(running, logits)
                continue
            running.fed = work.end
            if not running.begun:
                if running.scores_prompt and not self._score_prompt(running, work, logits):
                    continue
                self._keep_prefix(running)
                if running.unread:
                    continue
                self._begin(running)
                if running.stream.request.max_new_tokens == 0:
                    self._end(running, "length")
                    continue
            ready.append((running, logits[-1]))
        if ready:
            choices = choose([running.writer for running, _ in ready], torch.stack([logits for _, logits in ready]), self._guard)
            for (running, _), choice in zip(ready, choices, strict=True):
                self._go_on(running, choice)

    def _plan(self) -> list[tuple[_Running, Work]]:
        """Who feeds what in this step."""
        batch = []
        budget = self.prefill_chunk
        for running in self._running:
            prompt = running.writer.prompt
            if not running.unread:
                batch.append((running, Work(running.slot, running.fed, running.writer.written[-1:])))
            elif budget:
                self._load_prefix(running)
                count = min(running.unread, self.prefill_chunk)
                if self._runner.store is not None:
                    count = min(count, budget)
                elif count > budget:  # what a context method keeps depends on where a prompt is cut, and so must not on the others
                    continue
                budget -= count
                end = running.fed + count
                wanted = count if running.scores_prompt else int(end == len(prompt))
                batch.append((running, Work(running.slot, running.fed, prompt[running.fed : end], wanted)))
        return batch

    def _load_prefix(self, running: _Running) -> None:
        """Fills the slot with what is known of the prompt from here on, unless every position is to be scored."""
        store = self._runner.store
        if store is None or running.scores_prompt or running.fed % BLOCK or not self._prefixes.blocks:
            return
        key, prompt = running.stream.request.prefix_key, running.writer.prompt
        known = self._prefixes.match(key, prompt)
        if known > running.fed:
            store.reserve(known)
            self._prefixes.load(key, prompt, store, running.slot, running.fed)
            with self._changed:
                self._totals["cached"] += known - running.fed
            running.cached += known - running.fed
            running.fed = known

    def _keep_prefix(self, running: _Running) -> None:
        """Remembers the keys and values that the slot holds."""
        store = self._runner.store
        if store is not None:
            ids = [*running.writer.prompt, *running.writer.written][: running.fed]
            self._prefixes.keep(running.stream.request.prefix_key, ids, store, running.slot)

    def _score_prompt(self, running: _Running, work: Work, logits: torch.Tensor) -> bool:
        """Reports the log-probabilities of the prompt's tokens that this work predicts; False where the request has failed."""
        targets = running.writer.prompt[work.start + 1 : work.end + 1]
        rows = logits[: len(targets)]
        if not bool(torch.isfinite(rows.amax(dim=-1)).all()):
            self._fail(running, _not_finite(self.model.name))
            return False
        # Alternatives along a prompt would tell what the guard forbids behind it.
        top = 0 if running.writer.guarded else running.stream.request.logprobs or 0
        if targets:
            running.prompt_logprobs += token_logprobs(rows, targets, top)
        return True

    def _begin(self, running: _Running) -> None:
        """The prompt has been read."""
        running.begun = True
        request = running.stream.request
        if request.echo:
            entries = running.prompt_logprobs
            if running.scores_prompt and len(entries) < len(request.prompt_ids):  # nothing precedes the first id
                entries = [TokenLogprob(request.prompt_ids[0], math.nan), *entries]
            text = self.model.tokenizer.decode(request.prompt_ids)
            logprobs = tuple(entries) if running.scores_prompt else None
            running.stream.put(Piece(request.prompt_ids, text, logprobs, echo=True), running.usage())

    def _go_on(self, running: _Running, choice: Choice) -> None:
        """What a chosen token means for its request."""
        request, token = running.stream.request, choice.token
        if token is None:
            self._fail(running, choice.error or _not_finite(self.model.name))
            return
        ends = request.stop_at_eos and token in self.model.stop_ids
        with self._changed:
            if not running.writer.written:
                self._first_token_seconds.add(time.perf_counter() - running.arrived)
            self._totals["completion"] += not ends
        if ends:
            self._end(running, "content_filter" if choice.forced else "stop")
            return
        running.writer.write(token)
        running.held.append((token, choice.logprob))
        text = running.text.push(token)
        if running.text.stopped:
            self._end(running, "stop", text)
        elif len(running.writer.written) == request.max_new_tokens:
            self._end(running, "length", text)
        elif text or not running.text.waiting:
            self._send(running, text)

    def _send(self, running: _Running, text: str, reason: FinishReason | None = None, error: PalimpsestError | None = None) -> None:
        tokens = tuple(token for token, _ in running.held)
        logprobs = tuple(entry for _, entry in running.held if entry is not None)
        wanted = running.stream.request.logprobs is not None
        running.held = []
        running.stream.put(Piece(tokens, text, logprobs if wanted else None, reason, error), running.usage())

    def _fail(self, running: _Running, error: Exception) -> None:
        """Ends one request with an error."""
        if not isinstance(error, PalimpsestError):
            _log.error("A request has failed.", exc_info=error)
            error = PalimpsestError(f"The model, or the guard, has failed: {error!r}.", "Try another prompt, or report it.")
        self._end(running, "error", error=error)

    def _end(self, running: _Running, reason: FinishReason, text: str = "", error: PalimpsestError | None = None) -> None:
        """Frees the slot and gives out what is left."""
        with self._changed:
            if reason == "error":  # what it has read may be why, and is not to be read by others
                self._prefixes.forget(running.stream.request.prefix_key, running.writer.prompt)
            else:
                self._keep_prefix(running)
            self._runner.release(running.slot, spoiled=reason == "error")
            self._running.remove(running)
            self._free.add(running.slot)
            self._finished[reason] += 1
        self._send(running, text + running.text.finish(), reason, error)

    def _end_all(self, reason: FinishReason, error: PalimpsestError | None = None) -> None:
        for running in list(self._running):
            self._end(running, reason, error=error)
        while self._waiting:
            self._end_waiting(self._waiting.popleft()[0], reason, error)

    def _end_waiting(self, stream: Stream, reason: FinishReason, error: PalimpsestError | None = None) -> None:
        self._finished[reason] += 1
        stream.put(Piece((), "", () if stream.request.logprobs is not None else None, reason, error), Usage())


def _not_finite(name: str) -> NonFiniteError:
    return NonFiniteError(f"{name} returned logits that are not finite.", "Check the weights for NaN, or load the model in float32.")
