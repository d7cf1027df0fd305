"""S³: buckets, predictor, decreasing first-fit, preemption; the simulator against a plain loop over iterations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.serving.length_scheduler import (
    Buckets,
    LengthPredictor,
    Request,
    RequestTooLarge,
    S3Scheduler,
    Supervisor,
    oracle,
    worst_case,
)
from palimpsest.serving.simulator import simulate
from palimpsest.serving.step_cost import MACHINES, MODELS, Measured, Roofline, fit_steps, largest_batch, measure_step_cost

COST = Measured(1.0, 0.25, 0.0625, 1)  # binary fractions: equal sums whatever their order
LONGEST = 12


@st.composite
def traces(draw, arrivals: bool = False):
    """Requests, what is predicted for each, and a memory that holds the largest."""
    n = draw(st.integers(1, 12))
    requests, guesses, at = [], {}, 0.0
    for number in range(n):
        at += draw(st.sampled_from([0.0, 0.5, 3.0, 40.0])) if arrivals else 0.0
        requests.append(Request(number, draw(st.integers(1, 8)), LONGEST, draw(st.integers(1, LONGEST)), arrival=at))
        guesses[number] = draw(st.integers(1, LONGEST))
    return requests, guesses, draw(st.integers(8 + LONGEST, 60)), draw(st.sampled_from([None, 1, 3]))


def plain(requests, guesses, memory, max_batch, swap=None):
    """Iteration by iteration, with a scan of the sorted queue: when each request started and ended, and how often it was preempted."""
    coming = sorted(requests, key=lambda r: (r.arrival, r.number))
    order = {r.number: place for place, r in enumerate(coming)}
    room = dict(guesses)
    written = dict.fromkeys(guesses, 0)
    preempted = dict.fromkeys(guesses, 0)
    waiting, running, started, ended, clock = [], [], {}, {}, 0.0
    while coming or waiting or running:
        while coming and coming[0].arrival <= clock:
            waiting.append(coming.pop(0))
        new = []
        for r in sorted(waiting, key=lambda r: (-(r.prompt_tokens + room[r.number]), order[r.number])):
            held = sum(x.prompt_tokens + room[x.number] for x in running)
            if held + r.prompt_tokens + room[r.number] <= memory and (max_batch is None or len(running) < max_batch):
                waiting.remove(r)
                running.append(r)
                new.append(r.number)
                started.setdefault(r.number, clock)
        held = sum(x.prompt_tokens + room[x.number] for x in running)
        assert held <= memory
        if not running:
            clock = coming[0].arrival
            continue
        # nothing that fits is left waiting
        assert (max_batch is not None and len(running) == max_batch) or all(
            held + r.prompt_tokens + room[r.number] > memory for r in waiting
        )
        back = [n for n in new if preempted[n] and swap is not None]
        size = {r.number: r.prompt_tokens + written[r.number] for r in running}
        fed = sum(size[r.number] if r.number in new and r.number not in back else 1 for r in running)
        clock += float(COST.seconds(fed, sum(size.values())))
        clock += sum(size[n] for n in back) / swap if swap is not None else 0.0
        out = 0
        for r in list(running):
            n = r.number
            written[n] += 1
            if written[n] == r.output_tokens:
                ended[n] = clock
                running.remove(r)
            elif written[n] == room[n]:
                preempted[n] += 1
                room[n] = min(2 * room[n], LONGEST)
                running.remove(r)
                waiting.append(r)
                out += r.prompt_tokens + written[n]
        clock += out / swap if swap is not None else 0.0
    return started, ended, preempted


@settings(max_examples=150)
@given(traces(), st.sampled_from([None, 8.0]))
def test_simulation_is_that_of_a_plain_loop(drawn, swap):
    requests, guesses, memory, max_batch = drawn
    scheduler = S3Scheduler(memory, 1, lambda rs: [guesses[r.number] for r in rs], max_batch)
    measured = simulate(requests, scheduler, COST, swap_bandwidth=swap)
    started, ended, preempted = plain(requests, guesses, memory, max_batch, swap)
    table = measured.table.sort("number")
    assert table["started"].to_list() == [started[n] for n in range(len(requests))]
    assert table["finished"].to_list() == [ended[n] for n in range(len(requests))]
    assert table["preemptions"].to_list() == [preempted[n] for n in range(len(requests))]
    assert measured.summary["seconds"] == max(ended.values())


@settings(max_examples=100)
@given(traces(arrivals=True))
def test_every_request_ends_once_with_its_own_length(drawn):
    requests, guesses, memory, max_batch = drawn
    scheduler = S3Scheduler(memory, 1, lambda rs: [guesses[r.number] for r in rs], max_batch)
    measured = simulate(requests, scheduler, COST)
    _, ended, _ = plain(requests, guesses, memory, max_batch)
    table = measured.table
    assert table["number"].to_list() == [r.number for r in requests]
    assert table["output_tokens"].to_list() == [r.output_tokens for r in requests]
    assert table["finished"].to_list() == [ended[r.number] for r in requests]
    assert (table["started"] >= table["arrival"]).all()
    assert measured.summary["peak_reserved"] <= memory
    assert measured.summary["tokens"] == sum(r.output_tokens for r in requests)
    assert scheduler.reserved == scheduler.waiting == len(scheduler.running) == 0
    assert (table["allowance"] <= LONGEST).all()
    assert (table["allowance"] >= table["output_tokens"]).all()


@settings(max_examples=50)
@given(traces(arrivals=True))
def test_a_perfect_predictor_preempts_nothing_and_a_timid_one_is_the_baseline(drawn):
    requests, _, memory, _ = drawn
    perfect = simulate(requests, S3Scheduler(memory, 1, oracle), COST).summary
    assert (perfect["preemptions"], perfect["recomputed_tokens"]) == (0, 0)
    last_bucket = Buckets(LONGEST, 4)
    always = simulate(requests, S3Scheduler(memory, 1, lambda rs: last_bucket.edges([3] * len(rs)).tolist()), COST)
    baseline = simulate(requests, S3Scheduler(memory, 1, worst_case), COST)
    assert always.table.equals(baseline.table)
    assert always.summary == baseline.summary


def test_decreasing_first_fit_by_hand():
    scheduler = S3Scheduler(100, 1, oracle)
    scheduler.submit([Request(n, 10, 90, length) for n, length in enumerate((20, 50, 20, 5, 40))])
    assert [entered.request.number for entered in scheduler.admit()] == [1, 0]  # 60, then 50 does not fit 40, 30 does
    assert (scheduler.reserved, scheduler.waiting) == (90, 3)
    assert scheduler.admit() == []
    scheduler.leave(scheduler.running[0])
    assert [entered.request.number for entered in scheduler.admit()] == [4, 3]  # 50 of 70 free, then 30 does not fit 20, 15 does


def test_the_supervisor_doubles_and_never_beyond_the_longest():
    scheduler = S3Scheduler(100, 1, lambda rs: [3 for _ in rs])
    watch = Supervisor(scheduler)
    scheduler.submit([Request(0, 10, 10, 10)])
    [running] = scheduler.admit()
    assert [watch.after_step(running, n, False) for n in (1, 2)] == ["running", "running"]
    assert (watch.after_step(running, 3, False), running.allowance, scheduler.reserved) == ("preempted", 6, 0)
    scheduler.admit()
    assert (watch.after_step(running, 6, False), running.allowance) == ("preempted", 10)
    scheduler.admit()
    with pytest.raises(InputError, match="11 tokens"):
        watch.after_step(running, 11, False)
    assert watch.after_step(running, 10, False) == "finished"  # the longest answer is an answer
    assert (watch.preemptions, running.preemptions, [r.request.number for r in watch.finished]) == (2, 2, [0])


def test_recomputation_is_paid():
    """One request of 10 + 4 tokens, preempted after 2: its prompt and what was written are read again."""
    request = Request(0, 10, 4, 4)
    measured = simulate([request], S3Scheduler(20, 1, lambda rs: [2]), COST)
    step = COST.seconds
    expected = step(10, 10) + step(1, 11) + step(12, 12) + step(1, 13)
    assert measured.summary["seconds"] == pytest.approx(float(expected))
    assert (measured.summary["preemptions"], measured.summary["recomputed_tokens"]) == (1, 11)


@given(st.integers(1, 400), st.integers(1, 20))
def test_a_length_is_never_above_the_edge_of_its_bucket(longest, count):
    if count > longest:
        with pytest.raises(InputError, match="buckets"):
            Buckets(longest, count)
        return
    buckets = Buckets(longest, count)
    lengths = np.arange(1, longest + 1)
    found = buckets.of(lengths)
    assert (buckets.edges(found) >= lengths).all()
    assert set(found) == set(range(count))
    assert (np.diff(found) >= 0).all()
    assert buckets.edges([count - 1])[0] == longest
    assert buckets.of([longest + 5]).tolist() == [count - 1]


PROMPTS = [f"Name {n} fruits." for n in range(2, 32)] + [f"Write a long story about the king of {n} lands." for n in range(2, 32)]
LENGTHS = [4] * 30 + [90] * 30


@pytest.mark.parametrize("embedder", [False, True])
def test_the_predictor_learns_what_can_be_told(embedder):
    def embed(texts):
        return np.array([[float("story" in text), float(len(text))] for text in texts])

    predictor = LengthPredictor.fit(PROMPTS, LENGTHS, max_length=100, embed=embed if embedder else None)
    asked = ["Name 3 fruits.", "Write a long story about the king of 40 lands."]
    assert predictor.allowances(asked).tolist() == [10, 90]
    assert predictor([Request(0, 4, 60, prompt=asked[1]), Request(1, 4, 60, prompt=asked[0])]) == [60, 10]
    again = LengthPredictor.fit(PROMPTS, LENGTHS, max_length=100, embed=embed if embedder else None)
    assert np.array_equal(predictor.predict(PROMPTS), again.predict(PROMPTS))


def test_the_predictor_retrains_on_what_it_saw():
    predictor = LengthPredictor.fit(PROMPTS[:30], LENGTHS[:30], max_length=100)
    assert predictor.allowances(PROMPTS[30:]).max() == 10  # it has seen short answers only
    trace = [
        Request(n, 5, 100, length, prompt, arrival=1000.0 * n) for n, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True))
    ]
    measured = simulate(trace[25:], S3Scheduler(200, 1, predictor), COST, retrain=predictor)
    assert measured.summary["retrainings"] > 0
    late = measured.table.filter(measured.table["number"] > 45)
    assert late["preemptions"].sum() == 0
    assert measured.table["preemptions"].sum() > 0
    assert predictor.allowances(PROMPTS[30:]).min() == 90


def test_costs():
    fitted = fit_steps([(n, k, 0.02 + 0.003 * n + 1e-5 * k) for n in (1, 2, 8, 64) for k in (10, 100, 1000)], 7)
    assert (fitted.base, fitted.per_fed, fitted.per_cached) == pytest.approx((0.02, 0.003, 1e-5))
    assert fitted.error < 1e-9
    a100 = Roofline(MACHINES["a100-40gb"], MODELS["gpt-j-6b"])
    weights, bandwidth, peak = 6.05e9 * 2, 1.555e12, 312e12
    assert float(a100.seconds(1, 0)) == pytest.approx(weights / bandwidth)  # bound by memory
    assert float(a100.seconds(4096, 0)) == pytest.approx(2 * 6.05e9 * 4096 / peak)  # bound by arithmetic
    # the paper's 0.4 %: one sequence uses hardly anything of the arithmetic
    assert 2 * 6.05e9 / peak / float(a100.seconds(1, 512)) < 0.006
    size = largest_batch(a100, 0.02, 600)
    assert float(a100.seconds(size, 600 * size)) <= 0.02 < float(a100.seconds(size + 1, 600 * (size + 1)))
    with pytest.raises(InputError, match="are allowed"):
        largest_batch(a100, 1e-4, 600)
    with pytest.raises(InputError, match="leave no cache"):
        Roofline(MACHINES["a100-40gb"], MODELS["llama-33b"])


def test_real_steps_are_measured(tiny_model):
    ticks = iter(np.arange(10_000.0))
    found = measure_step_cost(tiny_model, batches=(1, 3), lengths=(8, 16), prompts=(8,), repeats=2, clock=lambda: next(ticks))
    assert [step[:2] for step in found.steps] == [(1, 8), (1, 16), (3, 24), (3, 48), (8, 8)]
    assert found.base == pytest.approx(1.0)  # a clock that ticks once a step
    heads, width, layers = 2, 16, 2
    assert found.bytes_per_token == 2 * layers * heads * width * 4
    with pytest.raises(InputError, match="cannot be measured"):
        measure_step_cost(tiny_model, lengths=(128,))


def test_what_cannot_be_done_is_said():
    requests = [Request(0, 10, 20, 5)]
    with pytest.raises(RequestTooLarge, match="10 \\+ 20"):
        simulate(requests, S3Scheduler(29, 1, worst_case), COST)
    with pytest.raises(InputError, match="number twice"):
        simulate(requests * 2, S3Scheduler(40, 1, worst_case), COST)
    with pytest.raises(InputError, match="0 requests"):
        simulate([], S3Scheduler(40, 1, worst_case), COST)
    with pytest.raises(InputError, match="not known"):
        simulate([replace(requests[0], output_tokens=None)], S3Scheduler(40, 1, worst_case), COST)
    with pytest.raises(InputError, match="bytes a token"):
        simulate(requests, S3Scheduler(40, 2, worst_case), COST)
    with pytest.raises(InputError, match="no time"):
        simulate(requests, S3Scheduler(40, 1, worst_case), Measured(0.0, 0.0, 0.0, 1))
    with pytest.raises(InputError, match="gave"):
        simulate(requests, S3Scheduler(40, 1, lambda rs: [0]), COST)
    used = S3Scheduler(40, 1, worst_case)
    used.submit(requests)
    with pytest.raises(InputError, match="in use"):
        simulate(requests, used, COST)
    for wrong in ({"memory": 0}, {"bytes_per_token": 0}, {"max_batch": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            S3Scheduler(**({"memory": 40, "bytes_per_token": 1, "predictor": oracle} | wrong))
    for wrong in ({"prompt_tokens": 0}, {"max_new_tokens": 0}, {"output_tokens": 21}, {"arrival": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(requests[0], **wrong)
    with pytest.raises(InputError, match="prompts and"):
        LengthPredictor.fit(["a"], [], max_length=10)
    with pytest.raises(InputError, match="three"):
        fit_steps([(1, 1, 1.0)], 1)
    with pytest.raises(InputError, match="not known"):
        oracle([replace(requests[0], output_tokens=None)])
