"""`palimpsest schedule`: how requests share the memory of a serving machine, in simulated time and on a real model (090)."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from palimpsest.cli.options import Json, Seed, writable
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.measurement import Measurement
    from palimpsest.serving.length_scheduler import Predictor, Request
    from palimpsest.serving.step_cost import Measured, Roofline

app = typer.Typer(no_args_is_help=True, help="Reserve cache by the predicted length of an answer, and see what that gives.")

Out = Annotated[Path | None, typer.Option(help="A file to write the whole measurement to, as JSON.")]


@app.command()
def simulate(
    trace: Annotated[
        Path,
        typer.Argument(metavar="TRACE.jsonl", help="One object a line: prompt, output_tokens, prompt_tokens, perhaps arrival in seconds."),
    ],
    machine: Annotated[str, typer.Option(help="A data sheet: a100-40gb, a100-80gb or h100-80gb.")] = "a100-80gb",
    model: Annotated[str, typer.Option(help="A model on it: gpt-j-6b, llama-13b or llama-33b.")] = "llama-33b",
    cost: Annotated[Path | None, typer.Option(help="Steps measured by `schedule measure`, instead of a data sheet.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Cache for so many of the longest; by default what the weights leave.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer; longer ones are cut there.")] = 512,
    buckets: Annotated[int, typer.Option(min=1, help="Into which the predictor sorts lengths.")] = 10,
    train: Annotated[float, typer.Option(help="Share of the trace, at its beginning, that the predictor learns from.")] = 0.5,
    latency: Annotated[float | None, typer.Option(help="Seconds that a step may take; limits the batch.")] = None,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option(help="A PNG of what the memory holds over time.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Serve a trace four times: reserving the longest answer, the predicted one, the true one, and one drawn by lot."""
    import numpy as np

    from palimpsest.cli.measured import kept
    from palimpsest.plot.chart import png
    from palimpsest.serving.length_scheduler import LengthPredictor, oracle, worst_case
    from palimpsest.serving.simulator import compare_schedules
    from palimpsest.serving.step_cost import largest_batch

    for file in (out, plot):
        writable(file)
    requests = read_trace(trace, max_new_tokens)
    learnt = round(train * len(requests)) if 0 < train < 1 else 0
    if not 0 < learnt < len(requests):
        raise InputError(f"{train} of {len(requests)} requests are to be learnt from.", "Give a share that leaves some of both.")
    known, served = requests[:learnt], requests[learnt:]
    lengths = [request.output_tokens or 0 for request in known]
    predictor = LengthPredictor.fit([r.prompt for r in known], lengths, max_length=max_new_tokens, buckets=buckets, seed=seed)
    steps = read_cost(cost) if cost is not None else data_sheet(machine, model)
    room = cache_memory(steps, slots, max(r.prompt_tokens for r in requests) + max_new_tokens)
    limit = None
    if latency is not None:
        middle = sum(r.prompt_tokens + (r.output_tokens or 0) // 2 for r in known) // len(known)
        limit = largest_batch(steps, latency, max(1, middle))
    predictors: dict[str, Predictor] = {
        "longest": worst_case,
        "predicted": predictor,
        "true": oracle,
        "by lot": predictor.buckets.random(seed),
    }
    measured = compare_schedules(served, predictors, steps, room, max_batch=limit)
    truth = predictor.buckets.of([r.output_tokens or 0 for r in served])
    measured.summary["bucket_accuracy"] = float((predictor.predict([r.prompt for r in served]) == truth).mean())
    measured.summary["majority_share"] = float(np.bincount(truth).max() / len(truth))
    if plot is not None:
        png(measured.curves["used"], plot)
    if not kept(measured, out, as_json=as_json):
        show(Console(), measured)


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="A known name, a folder or a hub id.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Sequences that decode together; may be repeated [1, 2, 4, 8].")] = None,
    length: Annotated[list[int] | None, typer.Option(min=1, help="Cached tokens of each; may be repeated [32, 128].")] = None,
    prompt: Annotated[list[int] | None, typer.Option(min=1, help="Tokens of a prompt that is read; may be repeated [32, 96].")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each step is taken; the least counts.")] = 3,
    out: Annotated[Path | None, typer.Option(help="A file for `schedule simulate --cost`.")] = None,
    as_json: Json = False,
) -> None:
    """Time real steps of a model on this machine: what a step costs, and what each token adds."""
    from palimpsest.files import write_json
    from palimpsest.models import load_model
    from palimpsest.numbers import number, percent
    from palimpsest.serving.step_cost import measure_step_cost

    writable(out)
    door: Any = load_model(model)
    door.require("weights", "Timing steps")
    found = measure_step_cost(door, batches=batch or (1, 2, 4, 8), lengths=length or (32, 128), prompts=prompt or (32, 96), repeats=repeats)
    if out is not None:
        write_json(out, found.to_dict())
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    typer.echo(
        f"A step takes {number(1e3 * found.base)} ms, {number(1e3 * found.per_fed)} ms more for every token that is fed and "
        f"{number(1e6 * found.per_cached)} µs for every one that is attended to; the fit is off by {percent(found.error)}.\n"
        f"A cached token takes {found.bytes_per_token:,} bytes."
    )


def read_trace(file: Path, max_new_tokens: int) -> list[Request]:
    """The requests of a file, one JSON object a line.

    Raises:
        CorpusError: the file cannot be read, or a line is no JSON object.
        InputError: a field that is missing or of the wrong kind, or fewer than two requests.
    """
    from palimpsest.cli.split import read_records
    from palimpsest.serving.length_scheduler import Request

    found = []
    for number, record in enumerate(read_records(file)[1]):
        prompt, arrival = record.get("prompt", ""), record.get("arrival", 0.0)
        sizes: list[Any] = [record.get("prompt_tokens"), record.get("output_tokens")]
        whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
        timely = isinstance(arrival, int | float) and not isinstance(arrival, bool) and 0 <= arrival <= sys.float_info.max
        if not whole or not isinstance(prompt, str) or not timely:
            raise InputError(
                f"Request {number + 1} of {file} lacks prompt_tokens or output_tokens, or a field is of another kind.",
                "Give both as integers above 0, prompt as text, arrival as seconds from 0 on.",
            )
        found.append(Request(number, sizes[0], max_new_tokens, min(sizes[1], max_new_tokens), prompt, float(arrival)))
    if len(found) < 2:
        raise InputError(f"{file} has {len(found)} requests.", "Give at least two, one to learn from and one to serve.")
    return found


def data_sheet(machine: str, model: str) -> Roofline:
    """The cost of steps by name.

    Raises:
        InputError: an unknown name, or weights that leave no memory.
    """
    from palimpsest.serving.step_cost import MACHINES, MODELS, Roofline

    for name, known in ((machine, MACHINES), (model, MODELS)):
        if name not in known:
            raise InputError(f"There is no data sheet of {name!r}.", f"Choose one of {', '.join(known)}.")
    return Roofline(MACHINES[machine], MODELS[model])


def read_cost(file: Path) -> Measured:
    """What `schedule measure --out` wrote.

    Raises:
        InputError: the file cannot be read or is something else.
    """
    from palimpsest.serving.step_cost import Measured

    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        steps = tuple((int(n), int(k), float(t)) for n, k, t in value["steps"])
        times = {name: float(value[name]) for name in ("base", "per_fed", "per_cached", "error")}
        found = Measured(**times, bytes_per_token=int(value["bytes_per_token"]), steps=steps)
        if not all(0 <= time < math.inf for time in times.values()) or found.bytes_per_token < 1:
            raise ValueError("a time that is negative or not finite, or no bytes a token")
        return found
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{file} holds no measured steps: {error}.", "Write it with `palimpsest schedule measure --out`.") from error


def cache_memory(cost: Measured | Roofline, slots: int | None, longest: int) -> int:
    """Bytes of cache: room for so many of the longest requests, or what the data sheet leaves.

    Raises:
        InputError: measured steps without a number of slots.
    """
    if slots is not None:
        return slots * longest * cost.bytes_per_token
    left = getattr(cost, "cache_bytes", None)
    if left is None:
        raise InputError("Measured steps do not say how much memory there is for cache.", "Give --slots.")
    return int(left)


def show(console: Console, measured: Measurement) -> None:
    """The four schedules, and how good the predictor is."""
    from palimpsest.cli.measured import columns
    from palimpsest.numbers import number, percent

    table = columns("reserved", "tokens/s", "speed-up", "batch", "memory in use", "preempted", "computed twice", "latency p99")
    for row in measured.table.to_dicts():
        table.add_row(
            row["predictor"],
            number(row["tokens_per_second"]),
            number(row["speed_up"]),
            number(row["mean_batch"]),
            percent(row["used_share"]),
            percent(row["preempted_share"]),
            percent(row["recomputed_tokens"] / row["tokens"]),
            f"{number(row['latency_p99'])} s",
        )
    console.print(table)
    right, most = measured.summary["bucket_accuracy"], measured.summary["majority_share"]
    console.print(
        f"The predictor names the right bucket for {percent(right)}; the most frequent one holds {percent(most)}.", highlight=False
    )
