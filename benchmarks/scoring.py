"""How fast `score()` is, as a share of the model's bare forward pass over the very same padded batches.

The peer is `model(input_ids, attention_mask)` under inference mode: all logits, nothing done with them. Peer and ours take turns
within one process, one batch at a time, in an order that changes with every turn; the figure is the median of the ratios of
neighbouring times, which a busy machine disturbs least.

    python benchmarks/scoring.py [--model twin --model smollm2-135m] [--turns 9] [--threads 2 | --cpu-time] [--json]
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Annotated, Any

import numpy as np
import tokenizers
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.measurement import environment
from palimpsest.models import HFModel, Sampler, load_model
from palimpsest.models.batching import batches_by_length, pad
from palimpsest.tokenizer import Tokenizer

TARGET = 0.90  # of the bare forward pass, for plain scoring with SmolLM2-135M


def twin() -> HFModel:
    """A random Llama of the size of the laboratory's large twin: 3 layers of width 192, 2048 ids."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,  # distributions as peaked as a trained model's
    )
    torch.manual_seed(0)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(topics.values(), trainer)
    return HFModel(LlamaForCausalLM(config), Tokenizer(backend), name="twin")


def workloads(model: HFModel) -> dict[str, list[np.ndarray]]:
    """One full batch of rows of one length, and rows of mixed lengths that have to be padded: English prose that every Python has."""
    prose = " ".join(topics[name] for name in sorted(topics))[:60_000]
    ids = np.asarray(model.tokenizer.encode(prose))
    rng = np.random.default_rng(0)

    def rows(lengths: np.ndarray) -> list[np.ndarray]:
        return [ids[begin : begin + length] for length, begin in zip(lengths, rng.integers(0, len(ids) - 200, len(lengths)), strict=True)]

    return {"equal lengths": rows(np.full(10, 101)), "mixed lengths": rows(rng.integers(40, 161, 10))}


def measure(model: HFModel, rows: list[np.ndarray], turns: int, now: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """One row for each way of scoring: seconds, tokens a second, and the share of the bare forward pass; `now` tells the time."""

    def clock(work: Callable[[], object]) -> float:
        began = now()
        work()
        return now() - began

    batches = [
        pad([rows[index][:-1] for index in batch], "right", model.device)[:2]  # the last id is never fed
        for batch in batches_by_length([len(row) for row in rows], model.batch_tokens)
    ]

    def bare() -> None:
        with torch.inference_mode():
            for ids, mask in batches:
                model.model(input_ids=ids, attention_mask=mask)

    ways: dict[str, Callable[[], object]] = {
        "log-prob and greedy hit": lambda: model.score(rows),
        "… and mean, variance": lambda: model.score(rows, moments=True),
        "… and top-k 40": lambda: model.score(rows, samplers=[Sampler(1.0, top_k=40)]),
        "… and top-p 0.9": lambda: model.score(rows, samplers=[Sampler(1.0, top_p=0.9)]),
    }
    for way in (bare, *ways.values()):
        way()  # once to warm up
    times: dict[str, list[float]] = {"bare": [], **{name: [] for name in ways}}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    shuffle = np.random.default_rng(1)
    for _ in range(turns):
        shuffle.shuffle(order)
        for name in order:
            first = clock(bare)
            own = clock(ways[name])
            second = clock(bare)
            times["bare"] += [first, second]
            times[name].append(own)
            ratios[name].append((first + second) / 2 / own)
    tokens = sum(len(row) - 1 for row in rows)
    bare_seconds = statistics.median(times["bare"])
    out: list[dict[str, Any]] = [{"way": "bare forward", "seconds": bare_seconds, "tokens_per_second": tokens / bare_seconds}]
    out[0] |= {"share": 1.0, "low": None, "high": None}
    for name in ways:
        low, middle, high = np.quantile(ratios[name], [0.25, 0.5, 0.75]).tolist()
        seconds = statistics.median(times[name])
        out.append({"way": name, "seconds": seconds, "tokens_per_second": tokens / seconds, "share": middle, "low": low, "high": high})
    return out


def main(
    model: Annotated[
        list[str] | None, typer.Option(help="'twin' or anything that load_model takes; by default twin and smollm2-135m.")
    ] = None,
    turns: int = typer.Option(9, help="Times that peer and ours take turns."),
    threads: int = typer.Option(min(2, os.cpu_count() or 1), help="Threads of torch."),
    cpu_time: bool = typer.Option(False, help="One thread, and processor time instead of wall time: for a machine that others use too."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Compare scoring with the bare forward pass; exit code 1 when plain scoring with SmolLM2-135M misses its target."""
    torch.set_num_threads(1 if cpu_time else threads)
    console = Console()
    results: list[dict[str, Any]] = []
    for spec in model or ["twin", "smollm2-135m"]:
        door = twin() if spec == "twin" else load_model(spec)
        if not isinstance(door, HFModel):
            raise typer.BadParameter(f"{spec} has no weights here to compare with.")
        for name, rows in workloads(door).items():
            figures = measure(door, rows, turns, time.thread_time if cpu_time else time.perf_counter)
            results += [{"model": spec, "rows": name, **figure} for figure in figures]
            if as_json:
                continue
            table = Table(title=f"{spec}, {name}", title_justify="left", box=None, header_style="bold")
            for heading in ("way", "ms", "tokens/s", "share of bare", "quartiles"):
                table.add_column(heading, justify="left" if heading == "way" else "right")
            for figure in figures:
                quartiles = "" if figure["low"] is None else f"{figure['low']:.2f}-{figure['high']:.2f}"
                speed, share = f"{figure['tokens_per_second']:,.0f}", f"{figure['share']:.3f}"
                table.add_row(figure["way"], f"{1e3 * figure['seconds']:.1f}", speed, share, quartiles)
            console.print(table)
            console.print()
    plain = [figure["share"] for figure in results if figure["model"] == "smollm2-135m" and figure["way"] == "log-prob and greedy hit"]
    passed = all(share >= TARGET for share in plain)
    if as_json:
        about = {"target": TARGET, "passed": passed, "cpu_time": cpu_time, "environment": environment()}
        typer.echo(json.dumps({**about, "results": results}, ensure_ascii=False))
    elif plain:
        console.print(
            f"plain scoring with SmolLM2-135M: {min(plain):.3f} of the bare forward pass, target {TARGET}: {'met' if passed else 'missed'}"
        )
    if not passed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
