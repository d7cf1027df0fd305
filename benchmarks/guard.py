"""What MemFree decoding, verbatim and approximate, costs per token: SmolLM2-135M, batch 8, with and without the guard, in the same run.

    python benchmarks/guard.py [--json] [--corpus TEXT] [--rounds 6]

Each round generates the same prompts without a guard, with an exact guard on the suffix-array index, with one on a Bloom filter, and in
the approximate mode (10 tokens within 2 edits, 20 within 4), in an order that rotates from round to round; greedy and sampled. Half of
the prompts are passages of the protected corpus (there the guard finds contexts and bans tokens), half are not. Two figures a guard:

* `added`: the median over rounds of time with / time without - 1, of the whole generation; the noise of the machine is in it;
* `inside`: the time spent in the guard itself over the rest of the same generation; that is what the 3 % are held against when
  `added` is drowned in noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.corpus import BloomFilter, CorpusIndex, read_documents
from palimpsest.experiments.planted_texts import base_text, train_tokenizer
from palimpsest.guard import GuardCounts, MemFreeProcessor
from palimpsest.measurement import environment
from palimpsest.models import HFModel, load_model

DECODINGS: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": {"temperature": 1.0, "top_k": 40}}
APPROXIMATE = ((10, 2), (20, 4))  # tokens of a window, and edits
PROMPT = 64  # tokens
ELSEWHERE = (
    "The committee met on Tuesday to discuss the budget of the new railway station, and its chairman opened the meeting with a short "
    "report on the state of the works. The contractors had promised to finish the platforms before the winter, he said, but the roof "
    "of the main hall was still waiting for its steel, and nobody could tell the members when the first train would arrive there."
)


def random_model() -> HFModel:
    """A model of SmolLM2-135M's shape with random weights, for a machine that cannot fetch it."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return HFModel(LlamaForCausalLM(config), train_tokenizer(1024), name="random-135m")


def passages(documents: list[list[int]], count: int) -> list[np.ndarray]:
    """Openings of `count` documents, spread over the corpus."""
    long = [doc for doc in documents if len(doc) > 2 * PROMPT]
    return [np.array(long[i * len(long) // count][:PROMPT]) for i in range(count)]


def measure(
    model: HFModel, index: CorpusIndex, bloom: BloomFilter, prompts: list[np.ndarray], new: int, rounds: int
) -> list[dict[str, Any]]:
    """One record a decoding scheme and guard."""
    records = []
    for decoding, how in DECODINGS.items():
        guards = {"index": MemFreeProcessor.for_model(model, index), "bloom": MemFreeProcessor.for_model(model, bloom)}
        guards |= {f"{n} ± {k}": MemFreeProcessor.for_model(model, index, n, approximate=k) for n, k in APPROXIMATE}
        seconds: dict[str, list[float]] = {name: [] for name in ("none", *guards)}
        inside: dict[str, list[float]] = {name: [] for name in guards}
        arms = list(seconds)
        for round_number in range(rounds + 1):  # the first round warms up and is not counted
            turn = round_number % len(arms)
            for name in arms[turn:] + arms[:turn]:
                guard = guards.get(name)
                before = guard.seconds if guard else 0.0
                began = time.perf_counter()
                model.generate(prompts, new, stop_at_eos=False, seed=round_number, processors=[guard] if guard else [], **how)
                elapsed = time.perf_counter() - began
                if round_number:
                    seconds[name].append(elapsed)
                    if guard:
                        spent = guard.seconds - before
                        inside[name].append(spent / (elapsed - spent))
                elif guard:
                    guard.seconds, guard.counts = 0.0, GuardCounts()
        for name, guard in guards.items():
            ratios = [with_ / without - 1 for with_, without in zip(seconds[name], seconds["none"], strict=True)]
            records.append(
                {
                    "decoding": decoding,
                    "guard": name,
                    "ms_per_token_without": 1000 * statistics.median(seconds["none"]) / new,
                    "ms_per_token_with": 1000 * statistics.median(seconds[name]) / new,
                    "added": statistics.median(ratios),
                    "added_lowest": min(ratios),
                    "added_highest": max(ratios),
                    "inside": statistics.median(inside[name]),
                    "us_per_row_and_step": 1e6 * guard.seconds / guard.counts.choices,
                    "guarded_share": guard.counts.guarded / guard.counts.choices,
                    "blocked_share": guard.counts.blocked / guard.counts.choices,
                }
            )
    return records


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark and prints it."""
    parser = argparse.ArgumentParser(description="What MemFree decoding costs per token.")
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder for load_model")
    parser.add_argument("--random", action="store_true", help="a model of the same size with random weights instead")
    parser.add_argument("--corpus", type=Path, help="the protected text; by default the laboratory's novels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    door = random_model() if options.random else load_model(options.model)
    assert isinstance(door, HFModel)
    texts = [d.text or "" for d in read_documents(options.corpus)] if options.corpus else base_text().train
    documents = [ids for ids in door.tokenizer.encode_batch(texts) if ids]
    with tempfile.TemporaryDirectory() as folder:
        index = CorpusIndex.build(documents, door.tokenizer, Path(folder) / "index")
        bloom = BloomFilter.from_index(index, 10)
        half = options.batch // 2
        outside = np.array(door.tokenizer.encode(ELSEWHERE)[:PROMPT])
        prompts = passages(documents, options.batch - half) + [outside[i:] for i in range(half)]
        records = measure(door, index, bloom, prompts, options.new_tokens, options.rounds)
    result = {
        "model": door.name,
        "batch": options.batch,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "corpus_tokens": index.n_tokens,
        "bloom_bytes": bloom.nbytes,
        "records": records,
        "environment": environment(),
    }
    if options.json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return result
    print(f"{door.name}, batch {options.batch}, {index.n_tokens:,} protected tokens, 10-grams, filter {bloom.nbytes / 1e6:.1f} MB")
    print(f"{'':17}{'ms/token':>10}{'guarded':>10}{'added':>9}{'(range)':>18}{'inside':>9}{'µs/row/step':>13}{'blocked':>9}")
    for r in records:
        times = f"{r['ms_per_token_without']:10.1f}{r['ms_per_token_with']:10.1f}{100 * r['added']:8.1f}%"
        spread = f"{100 * r['added_lowest']:.1f} … {100 * r['added_highest']:.1f} %"
        guard = f"{100 * r['inside']:8.2f}%{r['us_per_row_and_step']:13.1f}{100 * r['blocked_share']:8.1f}%"
        print(f"{r['decoding']:9}{r['guard']:8}{times}{spread:>18}{guard}")
    return result


if __name__ == "__main__":
    main()
