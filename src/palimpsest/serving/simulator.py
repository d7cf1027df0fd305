"""A serving machine in simulated time: requests, a scheduler, the cost of steps (090).

Iteration-level batching (Yu et al., Orca, OSDI 2022) under the scheduler of S³ (Jin et al., NeurIPS 2023, arXiv 2306.06000). In every
iteration the requests that fit enter; those that entered read their prompts (and what they had written before they were
preempted: the recomputation is paid), all others feed their newest token; each then has one token more. Who has ended leaves, who
has filled its reservation is preempted. With `swap_bandwidth` a preempted cache is moved out and in again instead, its bytes at that rate,
while everything waits.

Between two events (an end, a filled reservation, an arrival) the batch does not change, so the iterations up to the next are taken
at once: with m requests running and K cached tokens, iteration j costs cost(m, K + j m), summed as one array. The number of events,
not of tokens, is what a simulation takes.

Everything follows from the trace, the scheduler and the cost; nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.serving.length_scheduler import LengthPredictor, Predictor, Request, Reservation, S3Scheduler, Supervisor
from palimpsest.serving.step_cost import StepCost


def simulate(
    trace: Sequence[Request],
    scheduler: S3Scheduler,
    cost: StepCost,
    *,
    retrain: LengthPredictor | None = None,
    swap_bandwidth: float | None = None,
) -> Measurement:
    """Serves a trace in simulated time.

    Args:
        trace: requests with known lengths, each number once.
        scheduler: a new one.
        cost: seconds of a step; its bytes a token must be the scheduler's.
        retrain: the predictor that learns in idle time, if the scheduler's should.
        swap_bandwidth: bytes a second at which preempted caches move out and in; None computes them anew.

    Returns:
        One row a request in `table`: number, prompt_tokens, output_tokens, allowance, preemptions, arrival, started, finished. In
        `summary` requests, tokens, seconds, tokens_per_second, iterations, mean_batch, reserved_share and used_share of the memory (means
        over time), peak_reserved, capacity, preemptions, preempted_share (of the requests), recomputed_tokens, latency_mean and
        latency_p99 (seconds from arrival to end), retrainings. Curve "memory": reserved and used over time.

    Raises:
        InputError: no request, a number twice, a length that is not known, a scheduler that was used or is of other bytes a token,
            a cost of 0.
        RequestTooLarge: a request that does not fit the memory.

    Example:
        >>> from palimpsest.serving.length_scheduler import worst_case
        >>> from palimpsest.serving.step_cost import Measured
        >>> trace = [Request(number, 10, 50, 5) for number in range(4)]
        >>> measured = simulate(trace, S3Scheduler(120, 1, worst_case), Measured(1.0, 0.0, 0.0, 1))
        >>> measured.summary["seconds"], measured.summary["mean_batch"]
        (10.0, 2.0)
    """
    if not trace or len({request.number for request in trace}) < len(trace):
        raise InputError(f"The trace has {len(trace)} requests, or a number twice.", "Give at least one, each with its own number.")
    if any(request.output_tokens is None for request in trace):
        raise InputError("The trace holds a request whose length is not known.", "Simulation needs output_tokens for all.")
    if scheduler.running or scheduler.waiting:
        raise InputError("The scheduler is in use.", "Make a new one for every simulation.")
    if scheduler.bytes_per_token != cost.bytes_per_token:
        raise InputError(
            f"The scheduler counts {scheduler.bytes_per_token} bytes a token, the cost {cost.bytes_per_token}.", "Make them equal."
        )
    if not float(cost.seconds(1, 1)) > 0:
        raise InputError("A step of one token takes no time at this cost.", "Give a cost that is positive.")
    machine = _Machine(trace, scheduler, cost, Supervisor(scheduler, retrain), swap_bandwidth)
    machine.run()
    return machine.measured()


class _Machine:
    """The state of a simulation."""

    def __init__(
        self,
        trace: Sequence[Request],
        scheduler: S3Scheduler,
        cost: StepCost,
        supervisor: Supervisor,
        swap_bandwidth: float | None,
    ) -> None:
        self.coming = sorted(trace, key=lambda request: (request.arrival, request.number))
        self.trace, self.scheduler, self.cost, self.supervisor, self.swap = trace, scheduler, cost, supervisor, swap_bandwidth
        self.clock, self.arrived = 0.0, 0
        self.started: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.sizes: list[tuple[float, int, float]] = []  # seconds, reserved tokens, used tokens (mean) of each stretch
        self.iterations = self.fed = self.recomputed = self.retrainings = 0

    def run(self) -> None:
        """Until every request has ended."""
        while self.arrived < len(self.coming) or self.scheduler.waiting or self.scheduler.running:
            self._arrive()
            entered = self.scheduler.admit()
            assert self.scheduler.reserved <= self.scheduler.capacity
            if not self.scheduler.running:  # nothing waits: whatever waits fits an empty memory
                self.retrainings += self.supervisor.idle() > 0
                self._pass(self.coming[self.arrived].arrival - self.clock, 0.0)
                self.clock = self.coming[self.arrived].arrival
                continue
            if entered:
                self._first(entered)
            else:
                self._stretch()

    def _arrive(self) -> None:
        """Queues what has come by now."""
        first = self.arrived
        while self.arrived < len(self.coming) and self.coming[self.arrived].arrival <= self.clock:
            self.arrived += 1
        if self.arrived > first:
            self.scheduler.submit(self.coming[first : self.arrived])

    def _first(self, entered: list[Reservation]) -> None:
        """The iteration in which requests enter."""
        moved = 0
        for reservation in entered:
            self.started.setdefault(reservation.request.number, self.clock)
            if self.swap is not None and reservation.preemptions:
                moved += reservation.cached
            elif reservation.preemptions:
                # the newest token was never fed; all before it, prompt included, are read a second time
                self.recomputed += reservation.cached - 1
        new = {id(reservation) for reservation in entered}
        fed = sum(
            reservation.cached if id(reservation) in new and not (self.swap is not None and reservation.preemptions) else 1
            for reservation in self.scheduler.running
        )
        cached = sum(reservation.cached for reservation in self.scheduler.running)
        seconds = float(self.cost.seconds(fed, cached)) + self._moving(moved)
        self._after(1, seconds, cached)

    def _stretch(self) -> None:
        """Iterations up to the next event."""
        running = self.scheduler.running
        left = min(min(_length(r) - r.written, r.allowance - r.written) for r in running)
        cached = sum(reservation.cached for reservation in running)
        times = self.cost.seconds(len(running), cached + len(running) * np.arange(left))
        ends = np.cumsum(times)
        if self.arrived < len(self.coming):  # a newcomer enters at the first iteration that begins after it has come
            left = min(left, int(np.searchsorted(ends, self.coming[self.arrived].arrival - self.clock, side="left")) + 1)
        self._after(left, float(ends[left - 1]), cached + len(running) * (left - 1) / 2)

    def _after(self, iterations: int, seconds: float, used: float) -> None:
        """Time passes, everyone has written; who has ended or is full is dealt with."""
        self._pass(seconds, used)
        self.clock += seconds
        self.iterations += iterations
        self.fed += iterations * len(self.scheduler.running)
        moved = 0
        for reservation in list(self.scheduler.running):
            written = reservation.written + iterations
            fate = self.supervisor.after_step(reservation, written, written >= _length(reservation))
            if fate == "finished":
                self.ended[reservation.request.number] = self.clock
            elif fate == "preempted":
                moved += reservation.cached
        if self.swap is not None and moved:
            seconds = self._moving(moved)
            self._pass(seconds, 0.0)
            self.clock += seconds

    def _moving(self, tokens: int) -> float:
        return tokens * self.scheduler.bytes_per_token / self.swap if self.swap is not None else 0.0

    def _pass(self, seconds: float, used: float) -> None:
        self.sizes.append((seconds, self.scheduler.reserved, used))

    def measured(self) -> Measurement:
        """What came of it."""
        seconds, reserved, used = (np.array(column, np.float64) for column in zip(*self.sizes, strict=True))
        total, capacity = float(seconds.sum()), self.scheduler.capacity
        by_number = {reservation.request.number: reservation for reservation in self.supervisor.finished}
        rows = [
            {
                "number": request.number,
                "prompt_tokens": request.prompt_tokens,
                "output_tokens": by_number[request.number].written,
                "allowance": by_number[request.number].allowance,
                "preemptions": by_number[request.number].preemptions,
                "arrival": request.arrival,
                "started": self.started[request.number],
                "finished": self.ended[request.number],
            }
            for request in self.trace
        ]
        table = pl.DataFrame(rows)
        tokens, latency = int(table["output_tokens"].sum()), (table["finished"] - table["arrival"]).to_numpy()
        summary: dict[str, Any] = {
            "requests": len(rows),
            "tokens": tokens,
            "seconds": total,
            "tokens_per_second": tokens / total,
            "iterations": self.iterations,
            "mean_batch": self.fed / self.iterations,
            "reserved_share": float((seconds * reserved).sum() / total / capacity),
            "used_share": float((seconds * used).sum() / total / capacity),
            "peak_reserved": int(reserved.max()),
            "capacity": capacity,
            "preemptions": self.supervisor.preemptions,
            "preempted_share": float((table["preemptions"].to_numpy() > 0).mean()),
            "recomputed_tokens": self.recomputed,
            "latency_mean": float(latency.mean()),
            "latency_p99": float(np.quantile(latency, 0.99)),
            "retrainings": self.retrainings,
        }
        provenance = {"memory": self.scheduler.memory, "bytes_per_token": self.scheduler.bytes_per_token, "cost": repr(self.cost)}
        return Measurement("serving-simulation", table, summary, provenance, {"memory": _memory_curve(seconds, reserved, used, capacity)})


def _length(reservation: Reservation) -> int:
    return int(reservation.request.output_tokens or 0)


def _memory_curve(seconds: np.ndarray, reserved: np.ndarray, used: np.ndarray, capacity: int, points: int = 200) -> Curve:
    """Shares of the memory over time, as means over at most `points` stretches of equal time."""
    ends = np.cumsum(seconds)
    edges = np.linspace(0, ends[-1], min(points, len(ends)) + 1)
    series = []
    for name, values, style in (("reserved", reserved, "line"), ("used", used, "dashed")):
        area = np.concatenate([[0.0], np.cumsum(seconds * values)])
        at = np.interp(edges, np.concatenate([[0.0], ends]), area)
        means = np.diff(at) / np.diff(edges) / capacity
        middles = (edges[1:] + edges[:-1]) / 2
        series.append(Series(name, [{"x": float(x), "y": float(y)} for x, y in zip(middles, means, strict=True)], style))
    return Curve(
        "serving_memory", "What is reserved of the cache's memory, and what of it is used", "seconds", "share of the memory", series,
        y_domain=(0.0, 1.0), y_format="percent",
    )  # fmt: skip


def compare_schedules(
    trace: Sequence[Request],
    predictors: Mapping[str, Predictor],
    cost: StepCost,
    memory: int,
    *,
    max_batch: int | None = None,
    swap_bandwidth: float | None = None,
) -> Measurement:
    """Serves one trace under several predictors.

    Args:
        trace: as for `simulate`.
        predictors: by name; the first is what the others are compared with.
        cost: seconds of a step.
        memory: bytes of cache.
        max_batch: see `S3Scheduler`.
        swap_bandwidth: see `simulate`.

    Returns:
        One row a predictor: its name, `speed_up` over the first, and the summary of `simulate`. In `summary` the speed-ups by name. Curve
        "used": what of the memory holds tokens, over time.

    Raises:
        InputError: no predictor, or what `simulate` refuses.
    """
    if not predictors:
        raise InputError("There is no predictor.", "Give at least one.")
    runs = {
        name: simulate(trace, S3Scheduler(memory, cost.bytes_per_token, predictor, max_batch), cost, swap_bandwidth=swap_bandwidth)
        for name, predictor in predictors.items()
    }
    first = next(iter(runs.values())).summary["tokens_per_second"]
    table = pl.DataFrame([{"predictor": name, "speed_up": r.summary["tokens_per_second"] / first, **r.summary} for name, r in runs.items()])
    curve = Curve(
        "serving_used",
        "What of the cache's memory holds tokens",
        "seconds",
        "share of the memory",
        [Series(name, run.curves["memory"].series[1].points) for name, run in runs.items()],
        y_format="percent",
        caption="Iteration-level batching of one trace; every line ends when the last request has been answered.",
    )
    provenance = {**next(iter(runs.values())).provenance, "max_batch": max_batch, "swap_bandwidth": swap_bandwidth}
    speed_ups = dict(zip(table["predictor"].to_list(), table["speed_up"].to_list(), strict=True))
    return Measurement("schedules", table, {"speed_up": speed_ups}, provenance, {"used": curve})
