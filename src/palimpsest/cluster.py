"""Ray, and nothing else: how Palimpsest gets hold of a cluster, and how what fails there reaches the reader.

The scheduler, the queues and the calls between machines are Ray's (Moritz et al., *Ray: A Distributed Framework for Emerging AI
Applications*, OSDI 2018, arXiv 1712.05889). Two kinds of failure are kept apart. A process or a machine that dies is the cluster's
failure: Ray does that piece of work again, `RETRIES` times. An error that the work itself raises is an answer: it is raised here as
the error that it is, at once, and nothing is tried again.

Ray is imported on first use. Its usage statistics are off, and no dashboard is started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from palimpsest.errors import ClusterError, InputError, MissingDependencyError, PalimpsestError

ENGINES = ("local", "ray")
RETRIES = 3  # times that a piece of work is done again after the process or the machine that did it died
_ANSWER = 10.0  # seconds that the head of a cluster may take to answer
_T = TypeVar("_T")


def require_engine(engine: str) -> None:
    """Raises `InputError` unless `engine` is one of `ENGINES`."""
    if engine not in ENGINES:
        raise InputError(f"The engine {engine!r} is unknown.", f"Choose one of: {', '.join(ENGINES)}.")


def connect() -> Any:
    """The module `ray`, connected to a cluster.

    To the one that this process is connected to already; else to that of RAY_ADDRESS; else to one that was started on this machine
    (`ray start`); else to a new one of this machine alone, which ends with the process.

    Raises:
        MissingDependencyError: ray is not installed.
        ClusterError: no cluster answers at RAY_ADDRESS.

    Example:
        >>> ray = connect()                   # doctest: +SKIP
        >>> ray.cluster_resources()["CPU"]    # doctest: +SKIP
        2.0
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "The engine 'ray' needs the package ray, which is not installed.", "pip install 'palimpsest-lm[ray]', on every machine."
        ) from error
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            _require_answer(address)
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"No Ray cluster can be reached{f' at {address}' if address else ''}: {first_line(error)}",
                "Start one with `ray start --head`, or unset RAY_ADDRESS to use this machine alone.",
            ) from error
    return ray


def _require_answer(address: str) -> None:
    """Raises `OSError` when nobody listens at host:port: Ray itself would try for minutes. Other forms are left to Ray."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()


def machines(ray: Any) -> list[dict[str, float]]:
    """What every living machine of the cluster with at least one processor core offers: "CPU", "memory" (bytes), perhaps "GPU".

    Raises:
        ClusterError: there is none.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not alive:
        raise ClusterError("No machine of the Ray cluster offers a processor core.", "Start one with `ray start --address=…`.")
    return alive


@contextlib.contextmanager
def cluster_errors(ray: Any) -> Iterator[None]:
    """Turns what Ray raises into the `PalimpsestError` that the work raised, or into a `ClusterError`."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PalimpsestError):
            raise error.cause from error
        raise ClusterError(
            f"A piece of work failed on the cluster: {first_line(error.cause or error)}", "Run it with the engine 'local' to see more."
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"The cluster lost a piece of work {RETRIES + 1} times, or for good: {first_line(error)}",
            "Look at `ray status` and at the memory of the machines, then run the same command again: finished work is kept.",
        ) from error


@contextlib.contextmanager
def notices_aside() -> Iterator[None]:
    """What Ray says of dead workers, which it prints among the results of a command, goes to the standard error instead."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def in_order(ray: Any, submit: Callable[[_T], Any], items: Iterable[_T], ahead: int) -> Iterator[tuple[_T, Any]]:
    """Every item with the result of the task that `submit(item)` starts, or None where it starts none, in the order of the items, while
    at most `ahead` are under way."""
    waiting: deque[tuple[_T, Any]] = deque()
    try:
        for item in items:
            waiting.append((item, submit(item)))
            if len(waiting) >= ahead:
                yield _first(ray, waiting)
        while waiting:
            yield _first(ray, waiting)
    finally:
        cancel(ray, (reference for _, reference in waiting if reference is not None))


def _first(ray: Any, waiting: deque[tuple[_T, Any]]) -> tuple[_T, Any]:
    item, reference = waiting.popleft()
    with cluster_errors(ray):
        return item, None if reference is None else ray.get(reference)


def as_finished(ray: Any, references: Iterable[Any]) -> Iterator[Any]:
    """The results of tasks in the order in which they finish; those that are left over when the reader stops are cancelled."""
    waiting = list(references)
    try:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            with cluster_errors(ray):
                result = ray.get(done[0])
            yield result
    finally:
        cancel(ray, waiting)


def cancel(ray: Any, references: Iterable[Any]) -> None:
    """Stops tasks that nobody waits for any more."""
    for reference in references:
        ray.cancel(reference, force=True)


def first_line(error: BaseException) -> str:
    """What an error says, without the traceback that Ray puts into it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else line + "."
