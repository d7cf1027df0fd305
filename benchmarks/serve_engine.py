"""How much the server's engine gains by writing sixteen texts at once, and how that compares with transformers.

Every client sends a prompt of English prose, waits for its whole text of `--tokens` tokens, and sends the next. Measured are new tokens
a second, prompts included in the time:

* **sixteen at once**, the engine with sixteen clients;
* **one at a time**, the same engine with one client: the ratio of the two is the gain of continuous batching (target: 3);
* **generate, one at a time**: transformers' own `generate`;
* **generate_batch**: transformers' own continuous batching, all requests at once, where it runs.

All greedy, in one process, in turns. `--check N` sends N requests from sixteen clients and compares every answer with the text of its
prompt alone: none may be lost and none mixed up. Where two texts part, the two tokens must be as good as equally likely.

    python benchmarks/serve_engine.py [--model smollm2-135m] [--turns 3] [--threads 2 | --cpu-time] [--check 1000] [--json]
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

from palimpsest.measurement import environment
from palimpsest.models import HFModel, load_model
from palimpsest.models.quiet import quiet
from palimpsest.serving.engine import Engine
from palimpsest.serving.requests import GenerationRequest

TARGET = 3.0  # sixteen at once over one at a time
CLIENTS = 16
PROMPT = (20, 61)  # tokens, from and below
MARGIN = 1e-3  # of logits: nearer ones may change places when they are summed in another order


def prompts_of(model: HFModel, count: int) -> list[list[int]]:
    """So many pieces of English prose that every Python has, of different length."""
    ids = model.tokenizer.encode(" ".join(topics[name] for name in sorted(topics))[:80_000])
    rng = np.random.default_rng(0)
    lengths = rng.integers(*PROMPT, count)
    begins = rng.integers(0, len(ids) - PROMPT[1], count)
    return [ids[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]


def ask(engine: Engine, prompts: Sequence[list[int]], tokens: int, clients: int, *, stop_at_eos: bool = False) -> list[list[int]]:
    """The answers to all prompts by so many clients; every client waits for one answer before it asks again."""
    found: list[list[int]] = [[] for _ in prompts]

    def client(first: int) -> None:
        for number in range(first, len(prompts), clients):
            piece = engine.submit(GenerationRequest(prompts[number], tokens, stop_at_eos=stop_at_eos)).collect()  # type: ignore[arg-type]
            if piece.error is not None:
                raise piece.error
            found[number] = list(piece.token_ids)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def ways_of(model: HFModel, engine: Engine, prompts: list[list[int]], tokens: int) -> dict[str, tuple[Callable[[], object], int]]:
    """What is measured: a function, and the tokens that it writes."""
    few = prompts[: max(2, len(prompts) // 8)]
    exactly = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    @torch.inference_mode()
    def generate() -> None:
        for prompt in few:
            ids = torch.tensor([prompt])
            model.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **exactly)  # type: ignore[operator]

    return {
        f"engine, {CLIENTS} at once": (lambda: ask(engine, prompts, tokens, CLIENTS), len(prompts) * tokens),
        "engine, one at a time": (lambda: ask(engine, few, tokens, 1), len(few) * tokens),
        f"transformers {transformers.__version__} generate, one at a time": (generate, len(few) * tokens),
    }


def generate_batch_seconds(model: HFModel, prompts: list[list[int]], tokens: int, now: Callable[[], float]) -> tuple[float, int]:
    """Seconds of transformers' own continuous batching, and the tokens that it wrote."""
    config = transformers.GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    began = now()
    with quiet():
        results = model.model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)  # type: ignore[operator]
    return now() - began, sum(len(result.generated_tokens) for result in results.values())


def measure(
    model: HFModel, requests: int, tokens: int, turns: int, now: Callable[[], float]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tokens a second of every way, and what the engine says of itself; `now` tells the time."""
    prompts = prompts_of(model, requests)
    speeds: dict[str, list[float]] = {}
    with Engine(model, max_slots=CLIENTS, prefix_cache_bytes=0) as engine:
        ways = ways_of(model, engine, prompts, tokens)
        ask(engine, prompts[:2], 2, 2)
        for turn in range(turns):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                way, written = ways[name]
                began = now()
                way()
                speeds.setdefault(name, []).append(written / (now() - began))
        metrics = engine.metrics()
    peer = f"transformers {transformers.__version__} generate_batch"
    failure = None
    try:
        for _ in range(turns):
            seconds, written = generate_batch_seconds(model, prompts, tokens, now)
            speeds.setdefault(peer, []).append(written / seconds)
    except Exception as error:
        failure = f"{peer} does not run here: {type(error).__name__}: {error}"
    best = statistics.median(speeds[f"engine, {CLIENTS} at once"])
    rows = [
        {
            "way": name,
            "tokens_per_second": statistics.median(own),
            "low": min(own),
            "high": max(own),
            "engine_is_times": best / statistics.median(own),
        }
        for name, own in speeds.items()
    ]
    steps = metrics.step_seconds
    return rows, {"steps": metrics.steps, "step_ms": 1e3 * (steps.mean or 0.0), "generate_batch": failure}


def check(model: HFModel, count: int, tokens: int) -> dict[str, int]:
    """Answers of `count` requests from sixteen clients against the text of each prompt alone.

    Returns:
        How many were asked, answered, equal, and how many parted only where two tokens were as likely.
    """
    pool = prompts_of(model, min(count, 50))
    alone = [rows[0].tolist() for rows in model.generate(pool, tokens)]
    order = np.random.default_rng(1).integers(0, len(pool), count)
    with Engine(model, max_slots=CLIENTS) as engine:
        found = ask(engine, [pool[number] for number in order], tokens, CLIENTS, stop_at_eos=True)
        finished = sum(engine.metrics().finished.values())
    equal = [own == alone[number] for own, number in zip(found, order, strict=True)]
    parted = {(int(number), tuple(own)) for own, number, same in zip(found, order, equal, strict=True) if not same}
    excused = {case for case in parted if _as_likely(model, pool[case[0]], alone[case[0]], list(case[1]))}
    ties = sum((int(number), tuple(own)) in excused for own, number in zip(found, order, strict=True))
    return {"asked": count, "answered": finished, "equal": sum(equal), "parted_at_a_tie": ties, "wrong": count - sum(equal) - ties}


@torch.inference_mode()
def _as_likely(model: HFModel, prompt: list[int], alone: list[int], found: list[int]) -> bool:
    """Whether two texts of one prompt part where their tokens have nearly the same logit."""
    at = next((i for i, (one, other) in enumerate(zip(alone, found, strict=False)) if one != other), None)
    if at is None:
        return False
    logits = model.model(torch.tensor([[*prompt, *alone[:at]]])).logits[0, -1]
    return bool((logits[alone[at]] - logits[found[at]]).abs() < MARGIN)


def main(
    model: str = typer.Option("smollm2-135m", help="Anything that load_model takes."),
    requests: int = typer.Option(32, help="Requests of one turn."),
    tokens: int = typer.Option(32, help="Tokens that each writes."),
    turns: int = typer.Option(3, help="Times that all take turns."),
    threads: int = typer.Option(min(2, os.cpu_count() or 1), help="Threads of torch."),
    cpu_time: bool = typer.Option(False, help="One thread, and processor time instead of wall time: for a machine that others use too."),
    checked: Annotated[int, typer.Option("--check", help="Compare so many answers with lone generation instead.")] = 0,
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Compare the engine with itself one at a time and with transformers; exit code 1 when it misses its target."""
    threads = 1 if cpu_time else threads
    torch.set_num_threads(threads)
    door = load_model(model)
    if not isinstance(door, HFModel):
        raise typer.BadParameter(f"{model} has no weights here.")
    console = Console()
    if checked:
        result = check(door, checked, tokens)
        console.print_json(json.dumps(result)) if as_json else console.print(result)
        raise typer.Exit(int(result["answered"] != result["asked"] or result["wrong"] > 0))
    rows, about = measure(door, requests, tokens, turns, time.process_time if cpu_time else time.perf_counter)
    gain = next(row["engine_is_times"] for row in rows if row["way"] == "engine, one at a time")
    if as_json:
        console.print_json(json.dumps({"rows": rows, **about, "gain": gain, "target": TARGET, "threads": threads, **environment()}))
    else:
        table = Table(title=f"{model}, {requests} requests of {tokens} tokens, {threads} threads", title_justify="left", box=None)
        for heading in ("way", "tokens/s", "lowest-highest", "engine is times"):
            table.add_column(heading, justify="left" if heading == "way" else "right")
        for row in rows:
            spread = f"{row['low']:.1f}-{row['high']:.1f}"
            table.add_row(row["way"], f"{row['tokens_per_second']:.1f}", spread, f"{row['engine_is_times']:.2f}")
        console.print(table)
        if about["generate_batch"]:
            console.print(about["generate_batch"])
    raise typer.Exit(int(gain < TARGET))


if __name__ == "__main__":
    typer.run(main)
