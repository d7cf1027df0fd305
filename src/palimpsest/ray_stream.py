"""Batches through Ray Data to actors that live on: a dataset, `map_batches` over it, and the answers in order.

The dataset, its blocks, the order of the answers, how many are under way, and what is done again after a process died are Ray Data's
(Luan et al., *The Streaming Batch Model for Efficient and Fault-Tolerant Heterogeneous Execution*, 2025, arXiv 2501.12407). The actors
are not: a pool that `map_batches` starts itself lives for one execution, and an audit, which has a dozen, would load its model in each.
So the mapped function is a task that reserves nothing, hands its batch to an actor of the caller's, and waits for the answer.

Which actor: the task asks all of them whether they are free. An actor does one thing after the other, so the first to answer has nothing
to do. As many tasks are under way as there are actors.

A batch is an Arrow table, and so is the answer. An error that the work itself raises is an answer too, a table with the column `error`:
nothing is tried again, and it is raised where the answers are read. This file imports nothing that takes long, for every process that
runs the mapped function imports it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from palimpsest.cluster import cluster_errors
from palimpsest.errors import MissingDependencyError, PalimpsestError


def require_data() -> Any:
    """The module `ray.data`.

    Raises:
        MissingDependencyError: what it needs besides ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            "Batches go through Ray Data, which needs pyarrow and pandas.", "pip install 'palimpsest-lm[ray]', on every machine."
        ) from error
    return ray.data


def stream(ray: Any, actors: Sequence[Any], method: str, arguments: tuple[Any, ...], batches: Sequence[Any]) -> Iterator[Any]:
    """What the actors answer to the batches, in order: tables, of which a very large one may come in pieces.

    Args:
        ray: the module, connected to a cluster.
        actors: handles of actors that have a method `free`, which does nothing, and `method`, which is called with the `arguments` and
            a batch and returns a table.
        batches: tables of at least one line.

    Raises:
        PalimpsestError: what the work raised, for the first batch for which it did; `ClusterError` when a batch was lost for good.
    """
    data = require_data()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it tells of every execution, and of errors that are raised here anyway
    dataset = data.from_arrow([batch.append_column("part", [[part] * len(batch)]) for part, batch in enumerate(batches)]).map_batches(
        ask_a_free_one,
        batch_size=None,  # every table is a block, and every block a batch
        batch_format="pyarrow",
        fn_kwargs={"actors": list(actors), "method": method, "arguments": arguments},
        concurrency=min(len(actors), len(batches)),
        num_cpus=0,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    answers = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    while True:
        with cluster_errors(ray):
            answer = next(answers, None)
        if answer is None:
            return
        if "error" in answer.column_names:
            raise pickle.loads(answer["error"][0].as_py())
        yield answer


def ask_a_free_one(batch: Any, actors: list[Any], method: str, arguments: tuple[Any, ...]) -> Any:
    """The mapped function: what an actor that has nothing else to do answers to one batch."""
    import ray

    first = batch["part"][0].as_py() % len(actors)  # of several free ones another for every batch
    turn = actors[first:] + actors[:first]
    try:
        with cluster_errors(ray):
            asked = [actor.free.remote() for actor in turn]
            free = ray.wait(asked, num_returns=1)[0][0]
            return ray.get(getattr(turn[asked.index(free)], method).remote(*arguments, batch))
    except PalimpsestError as error:
        return table({"error": [pickle.dumps(error)]})


# --- arrays and Arrow -------------------------------------------------------------------------------------------------------------


def lists(rows: Sequence[np.ndarray]) -> Any:
    """Arrays of one type, at least one, as an Arrow column of lists."""
    return nested(np.concatenate(rows), [len(row) for row in rows])


def numbers(column: Any) -> list[np.ndarray]:
    """A column of lists as arrays of their own."""
    return [row for chunk in _chunks(column) for row in _split(chunk)]


def nested_numbers(column: Any) -> list[list[np.ndarray]]:
    """A column of lists of lists as lists of arrays."""
    out = []
    for chunk in _chunks(column):
        inner, ends = _split(chunk.values), chunk.offsets.to_pylist()
        out += [inner[begin:end] for begin, end in pairwise(ends)]
    return out


def _chunks(column: Any) -> list[Any]:
    return column.chunks if hasattr(column, "chunks") else [column]


def _split(column: Any) -> list[np.ndarray]:
    ends = column.offsets.to_numpy()
    flat = column.values.to_numpy(zero_copy_only=False)
    return [flat[begin:end].copy() for begin, end in pairwise(ends)]


def nested(values: Any, lengths: Sequence[int]) -> Any:
    """Values, an array or an Arrow column, as a column of lists of these lengths."""
    import pyarrow

    return pyarrow.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), pyarrow.array(values))


def table(columns: dict[str, Any]) -> Any:
    """An Arrow table."""
    import pyarrow

    return pyarrow.table(columns)
