"""The engine against lone generation: whoever comes, goes or fails meanwhile, everyone gets what the model alone would have written."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.context import ContextMethod, PositionedLayer
from palimpsest.context.citrus import CItruS
from palimpsest.context.tova import TOVA
from palimpsest.context.windows import StreamingLLM
from palimpsest.context.writing import write_on
from palimpsest.errors import (
    AlreadyAttachedError,
    CapabilityError,
    ContextOverflowError,
    EngineStoppedError,
    InputError,
    NonFiniteError,
    PalimpsestError,
    QueueFullError,
    TokenizerMismatchError,
)
from palimpsest.guard import MemFreeProcessor, NgramSet
from palimpsest.models import HFModel, load_model
from palimpsest.serving.engine import Engine
from palimpsest.serving.prefix_cache import BLOCK
from palimpsest.serving.requests import GenerationRequest

WAIT = 60  # seconds, for what takes milliseconds
HOWS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 5},
    {"temperature": 1.2, "top_p": 0.7},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.9},
)


def prompt_of(number, length):
    return np.random.default_rng(number).integers(2, 320, length).tolist()


@pytest.fixture(scope="module")
def alone(tiny_model):
    """What the model alone writes: (prompt number, length, new tokens, how, seed) to ids."""

    @cache
    def write(number, length, count, how, seed):
        return tiny_model.generate([prompt_of(number, length)], count, seed=seed, **HOWS[how])[0][0].tolist()

    return write


class Gate:
    """Lets an engine make one step at a time, and notes who takes part in each and how much everyone has written."""

    def __init__(self, engine, monkeypatch):
        self.steps, self.written, self._open, self._done = [], Counter(), threading.Semaphore(0), threading.Semaphore(0)
        step = engine._step

        def gated():
            assert self._open.acquire(timeout=WAIT)
            members = list(engine._running)
            self.steps.append([running.stream for running in members])
            step()
            self.written |= Counter({running.stream: len(running.writer.written) for running in members})
            self._done.release()

        monkeypatch.setattr(engine, "_step", gated)

    def step(self, count=1):
        for _ in range(count):
            self._open.release()
            assert self._done.acquire(timeout=WAIT)

    def open(self):
        self._open.release(10_000)


@pytest.fixture
def engine(tiny_model):
    with Engine(tiny_model, max_slots=3, prefill_chunk=16) as engine:
        assert engine.accepting
        yield engine
    assert not engine.accepting


@settings(max_examples=6)
@given(st.data())
def test_everyone_gets_what_the_model_alone_writes(tiny_model, alone, data):
    """Random arrivals, lengths, samplers, seeds, prefixes and cancellations; what is cancelled has begun rightly."""
    slots, chunk, cached = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 40), st.sampled_from([0, 30_000, 1 << 20])))
    asked = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 3), st.integers(1, 60), st.integers(1, 20), st.integers(0, len(HOWS) - 1), st.integers(0, 2), st.booleans()
            ),
            min_size=1,
            max_size=8,
        )
    )
    pause = data.draw(st.lists(st.integers(0, 2), min_size=len(asked), max_size=len(asked)))
    with Engine(tiny_model, max_slots=slots, prefill_chunk=chunk, prefix_cache_bytes=cached) as engine:
        streams = []
        for (number, length, count, how, seed, gone), wait in zip(asked, pause, strict=True):
            stream = engine.submit(GenerationRequest(prompt_of(number, length), count, seed=seed, **HOWS[how]))
            streams.append(stream)
            for _ in range(wait):
                with contextlib.suppress(StopIteration):
                    next(streams[0])
            if gone:
                stream.cancel()
        for (number, length, count, how, seed, gone), stream in list(zip(asked, streams, strict=True))[1:]:
            found = stream.collect(WAIT)
            expected = alone(number, length, count, how, seed)
            if gone and found.finish_reason == "cancelled":
                assert list(found.token_ids) == expected[: len(found.token_ids)]
                continue
            assert list(found.token_ids) == expected
            assert found.text == tiny_model.tokenizer.decode(expected)
            assert found.finish_reason == ("length" if len(expected) == count else "stop")
        assert engine.shutdown(drain=True, timeout=WAIT)
        metrics = engine.metrics()
        assert sum(metrics.finished.values()) == len(asked)
        assert (metrics.running, metrics.waiting, metrics.errors) == (0, 0, 0)


def test_many_requests_none_lost_none_mixed_up(tiny_model, alone):
    """From eight threads, 80 requests on 5 slots."""
    asked = [(i % 7, 1 + i % 23, 1 + i % 11, i % len(HOWS), i % 3) for i in range(80)]
    found = [None] * len(asked)
    with Engine(tiny_model, max_slots=5, prefill_chunk=13) as engine:

        def client(first):
            for i in range(first, len(asked), 8):
                number, length, count, how, seed = asked[i]
                request = GenerationRequest(prompt_of(number, length), count, seed=seed, **HOWS[how])
                found[i] = engine.submit(request).collect(WAIT)

        threads = [threading.Thread(target=client, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    for one, piece in zip(asked, found, strict=True):
        assert list(piece.token_ids) == alone(*one)


def test_cancelling_frees_the_slot_before_the_next_step(tiny_model, monkeypatch):
    engine = Engine(tiny_model, max_slots=1)
    gate = Gate(engine, monkeypatch)
    with engine:
        first = engine.submit(GenerationRequest(prompt_of(0, 5), 50))
        second = engine.submit(GenerationRequest(prompt_of(1, 5), 3))
        third = engine.submit(GenerationRequest(prompt_of(2, 5), 3))
        gate.step(3)
        first.cancel()
        third.cancel()  # while it waits
        gate.step(1)  # the thread may have been waiting to make this one
        gate.step(1)
        assert gate.steps[-1] == [second]
        assert first not in gate.steps[-1]
        gate.open()
        assert first.collect(WAIT).finish_reason == "cancelled"
        assert third.collect(WAIT).token_ids == ()
        assert third.finish_reason == "cancelled"
        assert second.collect(WAIT).finish_reason == "length"
        first.cancel()  # nothing happens
    assert engine.metrics().cancelled == 2
    assert third not in [stream for step in gate.steps for stream in step]


def test_leaving_the_block_cancels(engine):
    with engine.submit(GenerationRequest(prompt_of(0, 3), 100)) as stream:
        next(stream)
    assert stream.collect(WAIT).finish_reason == "cancelled"


def test_a_long_prompt_does_not_stall_the_others(tiny_model, monkeypatch):
    """While 60 tokens are read 10 at a time, the other request writes a token in every step."""
    engine = Engine(tiny_model, max_slots=2, prefill_chunk=10)
    gate = Gate(engine, monkeypatch)
    with engine:
        writing = engine.submit(GenerationRequest(prompt_of(0, 4), 40, stop_at_eos=False))
        gate.step(2)
        reading = engine.submit(GenerationRequest(prompt_of(1, 60), 5))
        gate.step(7)
        assert gate.written[writing] == 9
        assert gate.written[reading] in (1, 2)  # the engine may have been about to make a step when it came
        gate.open()
        reading.collect(WAIT)


def test_the_queue_is_limited(tiny_model, monkeypatch):
    engine = Engine(tiny_model, max_slots=2, max_waiting=1)
    gate = Gate(engine, monkeypatch)
    with engine:
        streams = [engine.submit(GenerationRequest(prompt_of(i, 3), 4)) for i in range(3)]
        with pytest.raises(QueueFullError, match="Try again"):
            engine.submit(GenerationRequest(prompt_of(3, 3), 4))
        assert engine.metrics().rejected == 1
        gate.open()
        assert [stream.collect(WAIT).finish_reason for stream in streams] == ["length"] * 3
        engine.submit(GenerationRequest(prompt_of(3, 3), 4)).collect(WAIT)


def test_draining_finishes_everything(tiny_model):
    engine = Engine(tiny_model, max_slots=1).start()
    streams = [engine.submit(GenerationRequest(prompt_of(i, 3), 10)) for i in range(4)]
    assert engine.shutdown(drain=True, timeout=WAIT)
    assert [stream.collect(WAIT).finish_reason for stream in streams] == ["length"] * 4
    with pytest.raises(EngineStoppedError):
        engine.submit(GenerationRequest([1]))
    with pytest.raises(InputError, match="started before"):
        engine.start()


@pytest.mark.parametrize("drain", [False, True])
def test_aborting_says_so(tiny_model, monkeypatch, drain):
    """At once, or when the time to drain is over: what was written until then is delivered."""
    engine = Engine(tiny_model, max_slots=1)
    gate = Gate(engine, monkeypatch)
    engine.start()
    streams = [engine.submit(GenerationRequest(prompt_of(i, 3), 100)) for i in range(2)]
    gate.step(5)
    ending = threading.Timer(0.3, gate.step)  # the step under way is finished first
    ending.start()
    assert not engine.shutdown(drain=drain, timeout=0.05)
    found = [stream.collect(WAIT) for stream in streams]
    assert [piece.finish_reason for piece in found] == ["aborted"] * 2
    assert [len(piece.token_ids) for piece in found] == [6, 0]
    assert tiny_model.model.config._attn_implementation == "sdpa"


def test_an_engine_that_was_not_started_takes_nothing(tiny_model):
    engine = Engine(tiny_model)
    with pytest.raises(EngineStoppedError):
        engine.submit(GenerationRequest([5]))
    assert engine.shutdown()


def test_stop_strings_across_tokens(tiny_model, engine):
    """Every string in what is written ends the text before it, however tokens cut it."""
    free = engine.submit(GenerationRequest(prompt_of(4, 6), 30, temperature=1.0, seed=5)).collect(WAIT)
    assert len(free.token_ids) == 30
    for begin in range(0, len(free.text) - 4, 3):
        stop = free.text[begin : begin + 4]
        if "\ufffd" in stop:
            continue
        request = GenerationRequest(prompt_of(4, 6), 30, temperature=1.0, seed=5, stop=(stop, "never written"))
        pieces = list(engine.submit(request))
        found = "".join(piece.text for piece in pieces)
        assert found == free.text[: free.text.index(stop)]
        assert pieces[-1].finish_reason == "stop"
        ids = [token for piece in pieces for token in piece.token_ids]
        assert ids == list(free.token_ids[: len(ids)])
        assert stop in tiny_model.tokenizer.decode(ids)
        assert stop not in tiny_model.tokenizer.decode(ids[:-1])


def test_text_comes_as_it_is_written(engine):
    """More than one piece, and as many tokens as the usage says."""
    stream = engine.submit(GenerationRequest(prompt_of(1, 4), 12))
    pieces = list(stream)
    assert len(pieces) > 3
    assert sum(len(piece.token_ids) for piece in pieces) == stream.usage.completion_tokens
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert stream.finish_reason == pieces[-1].finish_reason == "length"
    assert stream.usage.prompt_tokens == 4


def test_the_text_ends_where_the_model_ends_it(tiny_model, engine):
    """EOS is not part of the answer, unless it does not end it."""
    eos = {1: 50.0}
    ended = engine.submit(GenerationRequest([7, 8], 5, logit_bias=eos)).collect(WAIT)
    assert (ended.token_ids, ended.text, ended.finish_reason) == ((), "", "stop")
    on = engine.submit(GenerationRequest([7, 8], 5, logit_bias=eos, stop_at_eos=False)).collect(WAIT)
    assert on.token_ids == (1,) * 5


def test_logprobs(tiny_model, engine):
    request = GenerationRequest(prompt_of(2, 7), 6, temperature=1.0, seed=1, logprobs=3)
    found = engine.submit(request).collect(WAIT)
    rows = [*request.prompt_ids, *found.token_ids]
    with torch.inference_mode():
        expected = tiny_model.model(torch.tensor([rows])).logits[0].log_softmax(-1)
    assert len(found.logprobs) == 6
    for position, (token, entry) in enumerate(zip(found.token_ids, found.logprobs, strict=True), start=6):
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(float(expected[position, token]), abs=1e-4)
        best = expected[position].topk(3)
        assert [one for one, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert engine.submit(GenerationRequest([5], 2, logprobs=0)).collect(WAIT).logprobs[0].top == ()
    assert engine.submit(GenerationRequest([5], 2)).collect(WAIT).logprobs is None


@pytest.mark.parametrize("count", [0, 3])
def test_echo_scores_the_prompt(tiny_model, engine, count):
    """In pieces of 16, and what cached prefixes hold is scored nevertheless."""
    ids = prompt_of(5, 50)
    engine.submit(GenerationRequest(ids, 1)).collect(WAIT)
    pieces = list(engine.submit(GenerationRequest(ids, count, echo=True, logprobs=2)))
    expected = tiny_model.score([ids]).logprobs[0]
    assert pieces[0].echo
    assert pieces[0].token_ids == tuple(ids)
    assert pieces[0].text == tiny_model.tokenizer.decode(ids)
    assert math.isnan(pieces[0].logprobs[0].logprob)
    np.testing.assert_allclose([entry.logprob for entry in pieces[0].logprobs[1:]], expected, atol=1e-4)
    assert [entry.token_id for entry in pieces[0].logprobs] == ids
    assert all(len(entry.top) == 2 for entry in pieces[0].logprobs[1:])
    assert sum(len(piece.token_ids) for piece in pieces[1:]) == count
    assert pieces[-1].finish_reason == "length"
    plain = list(engine.submit(GenerationRequest(ids, 1, echo=True)))
    assert plain[0].logprobs is None
    assert plain[0].token_ids == tuple(ids)


def test_bias_and_penalties(tiny_model, engine):
    """Against a loop over full forward passes."""
    request = GenerationRequest(prompt_of(3, 5), 12, logit_bias={40: 3.0, 41: 2.5}, presence_penalty=0.7, frequency_penalty=0.9)
    rows, written = list(request.prompt_ids), []
    for _ in range(12):
        logits = tiny_model.model(torch.tensor([rows + written])).logits[0, -1].detach().double()
        for token, bias in request.logit_bias.items():
            logits[token] += bias
        for token, times in Counter(written).items():
            logits[token] -= 0.7 + 0.9 * times
        written.append(int(logits.argmax()))
    found = engine.submit(request).collect(WAIT)
    assert list(found.token_ids) == written
    assert len(set(written)) > 3


def test_bos_stands_before_every_prompt(tiny_model, tiny_tokenizer):
    model = HFModel(tiny_model.model, tiny_tokenizer, name="bos", bos="always")
    with Engine(model) as engine:
        stream = engine.submit(GenerationRequest([9, 10], 8, echo=True, logprobs=1))
        pieces = list(stream)
    assert [entry.token_id for entry in pieces[0].logprobs] == [9, 10]
    assert not math.isnan(pieces[0].logprobs[0].logprob)
    assert [token for piece in pieces[1:] for token in piece.token_ids] == model.generate([[9, 10]], 8)[0][0].tolist()
    assert stream.usage.prompt_tokens == 3


def test_cached_prefixes_change_nothing(tiny_model):
    """What is written behind a cached prefix is what is written without; keys keep parties apart; hits are counted."""
    shared = prompt_of(8, 50)
    with Engine(tiny_model, prefill_chunk=16) as engine:
        first = engine.submit(GenerationRequest(shared, 10))
        first.collect(WAIT)
        again = engine.submit(GenerationRequest([*shared, 5, 6], 10))
        expected = tiny_model.generate([[*shared, 5, 6]], 10)[0][0].tolist()
        assert list(again.collect(WAIT).token_ids) == expected
        assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 50 // BLOCK * BLOCK)
        other = engine.submit(GenerationRequest([*shared, 5, 6], 10, prefix_key="other"))
        assert list(other.collect(WAIT).token_ids) == expected
        assert other.usage.cached_tokens == 0
        went_on = engine.submit(GenerationRequest([*shared, 5, 6, *expected, 9], 4))  # the next turn of a conversation
        went_on.collect(WAIT)
        assert went_on.usage.cached_tokens == (52 + len(expected) - 1) // BLOCK * BLOCK
        metrics = engine.metrics()
        assert metrics.cached_tokens == again.usage.cached_tokens + went_on.usage.cached_tokens
        assert 0 < metrics.prefix_bytes <= metrics.prefix_limit


def test_prompts_that_arrive_together_share_what_the_first_has_read(tiny_model):
    shared = prompt_of(9, 48)
    with Engine(tiny_model, prefill_chunk=48) as engine:
        streams = [engine.submit(GenerationRequest([*shared, number], 2)) for number in range(5, 9)]
        for stream in streams:
            stream.collect(WAIT)
    assert sorted(stream.usage.cached_tokens for stream in streams)[1:] == [48] * 3


def guarded_engine(model, ids, n, **options):
    return Engine(model, guard=MemFreeProcessor.for_model(model, NgramSet.from_documents(ids, n=n), n, **options))


@pytest.mark.parametrize("options", [{}, {"include_prompt": False}])
def test_the_guard_watches_each_request_with_its_own_prefix(tiny_model, options):
    """As HFModel.generate with the same guard; requests that opt out write what they would."""
    prompts = [prompt_of(i, 3 + 5 * i) for i in range(4)]
    free = tiny_model.generate(prompts, 15)
    documents = [[*prompt, *own[0]] for prompt, own in zip(prompts, free, strict=True)]
    guard = MemFreeProcessor.for_model(tiny_model, NgramSet.from_documents(documents, n=3), 3, **options)
    expected = tiny_model.generate(prompts, 15, processors=[guard])
    with Engine(tiny_model, guard=guard, max_slots=3) as engine:
        assert engine.guarded
        streams = [engine.submit(GenerationRequest(prompt, 15)) for prompt in prompts]
        unwatched = engine.submit(GenerationRequest(prompts[0], 15, guard=False))
        found = [list(stream.collect(WAIT).token_ids) for stream in streams]
        counts = engine.metrics().guard
        assert list(unwatched.collect(WAIT).token_ids) == free[0][0].tolist()
    assert found == [own[0].tolist() for own in expected]
    assert found != [own[0].tolist() for own in free]
    assert unwatched.usage.guard_interventions == 0
    assert sum(stream.usage.guard_interventions for stream in streams) == counts["blocked"] > 0


def test_what_the_guard_forbids_is_not_told_by_logprobs(tiny_model):
    """Not among the alternatives, not along an echoed prompt, and not with a bias that asks for it."""
    prompt = prompt_of(1, 4)
    best = tiny_model.generate([prompt], 1)[0][0].tolist()
    with guarded_engine(tiny_model, [[*prompt, *best]], 3) as engine:
        request = GenerationRequest(prompt, 1, logprobs=320, echo=True, logit_bias={best[0]: 90.0})
        echo, last = list(engine.submit(request))
    assert last.token_ids[0] != best[0]
    assert best[0] not in [token for token, _ in last.logprobs[0].top]
    assert sum(math.exp(value) for _, value in last.logprobs[0].top) == pytest.approx(1, abs=1e-4)
    assert all(entry.top == () for entry in echo.logprobs)


@pytest.mark.parametrize("how", [0, 1, 3])
def test_a_guard_that_forbids_everything_ends_the_text(tiny_model, how):
    """EOS is what is left; without one, a violation is counted and nothing breaks."""
    everything = NgramSet.from_documents([[token] for token in range(320)], n=1)
    with Engine(tiny_model, guard=MemFreeProcessor.for_model(tiny_model, everything, 1)) as engine:
        found = engine.submit(GenerationRequest([5, 6], 4, logprobs=2, **HOWS[how])).collect(WAIT)
        assert (found.token_ids, found.finish_reason) == ((), "content_filter")
        assert engine.metrics().guard["forced_eos"] == 1
    with Engine(tiny_model, guard=MemFreeProcessor.for_model(tiny_model, everything, 1, eos_id=None)) as engine:
        found = engine.submit(GenerationRequest([5, 6], 4, logprobs=2, **HOWS[how])).collect(WAIT)
        assert len(found.token_ids) == 4
        assert engine.metrics().guard["violations"] == 4


def test_one_bad_request_does_not_spoil_the_others(tiny_tokenizer, tiny_model):
    """An id whose embedding is NaN: its request fails, its neighbours and its successor in the slot do not."""
    broken = deepcopy(tiny_model.model)
    with torch.no_grad():
        broken.get_input_embeddings().weight[77] = math.nan
    model = HFModel(broken, tiny_tokenizer, name="broken")
    prompts = [[5, 6, 7], [8, 77, 9, 10], [11, 12]]
    with Engine(model, max_slots=3) as engine:
        streams = [engine.submit(GenerationRequest(prompt, 10, temperature=1.0, seed=3)) for prompt in prompts]
        found = [stream.collect(WAIT) for stream in streams]
        assert [piece.finish_reason == "error" for piece in found] == [False, True, False]
        assert isinstance(found[1].error, NonFiniteError)
        again = engine.submit(GenerationRequest(prompts[1], 1, echo=True, logprobs=1)).collect(WAIT)
        assert isinstance(again.error, NonFiniteError)
        later = [engine.submit(GenerationRequest([4], 30)).collect(WAIT) for _ in range(3)]
        assert engine.metrics().errors == 2
    for prompt, piece in zip(prompts[::2], found[::2], strict=True):
        assert list(piece.token_ids) == tiny_model.generate([prompt], 10, temperature=1.0, seed=3)[0][0].tolist()
    assert all(list(piece.token_ids) == tiny_model.generate([[4]], 30)[0][0].tolist() for piece in later)


def test_an_exception_in_the_model_ends_its_request_alone(tiny_model, engine, monkeypatch):
    forward = engine._runner._forward

    def fails_on_77(ids, *rest):
        if 77 in ids.tolist():
            raise RuntimeError("no such token")
        return forward(ids, *rest)

    monkeypatch.setattr(engine._runner, "_forward", fails_on_77)
    streams = [engine.submit(GenerationRequest(prompt, 10)) for prompt in ([5, 6], [77], [7, 8])]
    found = [stream.collect(WAIT) for stream in streams]
    assert "no such token" in str(found[1].error)
    assert [list(found[i].token_ids) for i in (0, 2)] == [own[0].tolist() for own in tiny_model.generate([[5, 6], [7, 8]], 10)]


def test_what_a_failed_request_has_read_is_not_kept(tiny_tokenizer, tiny_model):
    """A long prompt with a token whose embedding is NaN, read in pieces: none of its keys and values are left for others."""
    broken = deepcopy(tiny_model.model)
    with torch.no_grad():
        broken.get_input_embeddings().weight[77] = math.nan
    prompt = [*prompt_of(1, BLOCK), 77, *prompt_of(2, 3 * BLOCK)]
    with Engine(HFModel(broken, tiny_tokenizer, name="broken"), prefill_chunk=BLOCK) as engine:
        assert isinstance(engine.submit(GenerationRequest(prompt, 3)).collect(WAIT).error, NonFiniteError)
        assert engine.metrics().prefix_blocks == 0
        assert engine.submit(GenerationRequest(prompt[:BLOCK] + [9] * BLOCK, 3)).collect(WAIT).error is None
        assert engine.metrics().prefix_blocks == 2


def test_a_guard_that_fails_ends_its_request_alone(tiny_model, monkeypatch):
    with guarded_engine(tiny_model, [[300, 301, 302]], 3) as engine:
        judge = engine._guard.__class__.__call__

        def fails_on_77(self, writers, scores):
            if any(77 in writer.prompt for writer in writers):
                raise OSError("the index is gone")
            return judge(self, writers, scores)

        monkeypatch.setattr(engine._guard.__class__, "__call__", fails_on_77)
        prompts = [[5, 6], [77], [7, 8]]
        streams = [engine.submit(GenerationRequest(prompt, 10, temperature=1.0, seed=4)) for prompt in prompts]
        found = [stream.collect(WAIT) for stream in streams]
        assert [piece.finish_reason == "error" for piece in found] == [False, True, False]
        assert "the index is gone" in str(found[1].error)
        assert engine.accepting
    for i in (0, 2):
        assert list(found[i].token_ids) == tiny_model.generate([prompts[i]], 10, temperature=1.0, seed=4)[0][0].tolist()


def test_an_engine_that_breaks_tells_everyone(tiny_model, monkeypatch):
    engine = Engine(tiny_model, max_slots=1)

    def breaks():
        raise MemoryError("no more")

    monkeypatch.setattr(engine, "_plan", breaks)
    engine.start()
    with contextlib.suppress(EngineStoppedError):
        piece = engine.submit(GenerationRequest([5], 3)).collect(WAIT)
        assert piece.finish_reason == "error"
        assert isinstance(piece.error, PalimpsestError)
        assert "no more" in str(piece.error)
    with pytest.raises(EngineStoppedError):
        engine.submit(GenerationRequest([5], 3))


def test_bad_requests_are_told_before_they_queue(tiny_model, engine):
    with pytest.raises(InputError, match="the id 320"):
        engine.submit(GenerationRequest([5, 320]))
    with pytest.raises(InputError, match="the id 999"):
        engine.submit(GenerationRequest([5], logit_bias={999: 1.0}))
    with pytest.raises(ContextOverflowError, match="100 tokens, and 29"):
        engine.submit(GenerationRequest(prompt_of(0, 100), 29))
    engine.submit(GenerationRequest(prompt_of(0, 100), 28)).collect(WAIT)
    with pytest.raises(InputError, match="--guard"):
        engine.submit(GenerationRequest([5], guard=True))
    with pytest.raises(InputError, match="being served already"):
        Engine(tiny_model)


def test_bad_engines(tiny_model):
    for bad in ({"max_slots": 0}, {"max_waiting": -1}, {"prefill_chunk": 0}, {"prefix_cache_bytes": -1}):
        with pytest.raises(InputError, match=str(next(iter(bad.values())))):
            Engine(tiny_model, **bad)
    source = NgramSet.from_documents([[1, 2]], n=2, tokenizer_fingerprint="of another")
    with pytest.raises(TokenizerMismatchError):
        Engine(tiny_model, guard=MemFreeProcessor(source))


def test_other_doors_are_refused(server, tiny_tokenizer):
    with pytest.raises(CapabilityError, match="no weights in this process"):
        Engine(load_model(f"{server.url}#tiny", tokenizer=tiny_tokenizer))


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt_ids": []},
        {"prompt_ids": [[1]]},
        {"prompt_ids": [0.5]},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_k": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"logprobs": -1},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {"a": 1.0}},
        {"presence_penalty": math.nan},
        {"frequency_penalty": "much"},
    ],
)
def test_values_out_of_range(bad):
    with pytest.raises(InputError):
        GenerationRequest(**{"prompt_ids": [1], **bad})


@dataclass(frozen=True)
class LastTokens(ContextMethod):
    """Keeps the last `budget` tokens at their own positions."""

    budget: int = 8

    def make_layer(self, info):
        return PositionedLayer()

    def observe(self, info, q, k, v, position_ids, layer):
        if layer.length > self.budget:
            layer.keep(layer.positions.long().topk(self.budget, dim=-1).indices.sort(-1).values)


def greedy(model, prompt, count):
    """By transformers' own `generate`, without what ends the text."""
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)[0, len(prompt) :].tolist()
    return ids[: ids.index(1)] if 1 in ids else ids


def test_a_context_method_runs_every_request_on_its_own_cache(tiny_model):
    """Many requests at once are what `generate` writes for each alone; queue, cancellation and metrics are as ever."""
    prompts = [prompt_of(number, 25 - number) for number in range(4)]
    method = LastTokens()
    free = [tiny_model.generate([prompt], 20)[0][0].tolist() for prompt in prompts]
    with method(tiny_model):
        expected = [greedy(tiny_model.model, prompt, 20) for prompt in prompts]
    with Engine(tiny_model, max_slots=2, context=method, prefill_chunk=32) as engine:
        assert "LastTokens" in engine.unbatched
        streams = [engine.submit(GenerationRequest(prompt, 20)) for prompt in prompts]
        gone = engine.submit(GenerationRequest([5], 50))
        gone.cancel()
        assert gone.collect(WAIT).finish_reason == "cancelled"
        assert [list(stream.collect(WAIT).token_ids) for stream in streams] == expected
        assert not engine.metrics().batched
        assert engine.metrics().prefix_limit == 0
    assert expected != free
    assert [tiny_model.generate([prompt], 20)[0][0].tolist() for prompt in prompts] == free


@pytest.mark.parametrize("others", [[], [31], [20, 40]])
def test_where_a_prompt_is_cut_does_not_depend_on_the_others(tiny_model, others):
    """What a context method keeps does: pieces of 32 tokens, whatever else is being read."""
    prompt, method = prompt_of(9, 70), TOVA(budget=12)
    with method(tiny_model) as session:
        expected = write_on(session, prompt, 12, chunk=32, stop_ids=tiny_model.stop_ids).ids.tolist()
    with Engine(tiny_model, max_slots=4, context=method, prefill_chunk=32) as engine:
        streams = [engine.submit(GenerationRequest(prompt_of(number, length), 12)) for number, length in enumerate(others)]
        assert list(engine.submit(GenerationRequest(prompt, 12)).collect(WAIT).token_ids) == expected
        assert all(stream.collect(WAIT).finish_reason in ("stop", "length") for stream in streams)


def test_a_method_that_goes_beyond_the_trained_length_takes_longer_prompts(tiny_model):
    prompt = prompt_of(3, tiny_model.context_length + 40)
    with Engine(tiny_model, context=StreamingLLM(budget=32), prefill_chunk=32) as engine:
        assert len(engine.submit(GenerationRequest(prompt, 4, stop_at_eos=False)).collect(WAIT).token_ids) == 4
    with Engine(tiny_model, context=TOVA(budget=32)) as engine, pytest.raises(ContextOverflowError, match="at most 128"):
        engine.submit(GenerationRequest(prompt, 4))


def test_a_method_that_wants_the_question_apart_is_not_served(tiny_model):
    with pytest.raises(InputError, match="which of its tokens are the question"):
        Engine(tiny_model, context=CItruS(k=32))


def test_a_context_method_that_does_not_fit_is_told_at_the_start(tiny_model):
    with LastTokens()(tiny_model), pytest.raises(AlreadyAttachedError):
        Engine(tiny_model, context=LastTokens()).start()


def test_streams_in_an_event_loop(engine, alone):
    """Many at once, one that goes away, one whose task is cancelled while it waits."""

    async def read(number):
        async with engine.submit(GenerationRequest(prompt_of(number, 6), 12)) as stream:
            return [token async for piece in stream for token in piece.token_ids]

    async def leave():
        async with engine.submit(GenerationRequest(prompt_of(0, 6), 100)) as stream:
            async for _ in stream:
                break
        return stream

    async def main():
        found = await asyncio.gather(*(read(number) for number in range(6)))
        stream = await leave()
        left = [piece async for piece in stream]
        late = engine.submit(GenerationRequest(prompt_of(0, 6), 100))
        task = asyncio.ensure_future(anext(late))
        await asyncio.sleep(0)
        task.cancel()
        late.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return found, left

    found, left = asyncio.run(main())
    assert found == [alone(number, 6, 12, 0, 0) for number in range(6)]
    assert left[-1].finish_reason == "cancelled"


def test_metrics_count(engine):
    streams = [engine.submit(GenerationRequest(prompt_of(i, 10), 5)) for i in range(5)]
    for stream in streams:
        stream.collect(WAIT)
    metrics = engine.metrics()
    assert metrics.prompt_tokens == 50
    assert metrics.completion_tokens == sum(stream.usage.completion_tokens for stream in streams)
    assert metrics.finished == {"length": 5}
    assert metrics.queue_seconds.count == metrics.first_token_seconds.count == 5
    assert metrics.first_token_seconds.total > metrics.queue_seconds.total
    assert metrics.steps >= 5
    assert (metrics.slots, metrics.queue, metrics.batched) == (3, 256, True)
    with pytest.raises(TimeoutError):
        engine.submit(GenerationRequest([5], 100, stop=("\x00never",))).collect(1e-9)
