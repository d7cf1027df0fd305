"""What relay attention gains over copies of a shared prompt's cache, and over no prefix cache: one model, all arms in the same run.

    python benchmarks/relay.py [--model smollm2-135m] [--random] [--shared 256 1024 2048] [--requests 8] [--steps 16] [--json]

For every length of the shared prompt: bytes of keys and values, copies over shared; the time of a decoding step, copies over relay
(steps in turn; the copies grow in place and need no mask, which is the best that transformers can do); the same of one layer's attention
alone, against PyTorch's attention over copies that are there already; and, with --again, the time to the first token when the prompts
are read as a whole, over relay's. Times are of the processor, on one thread, so that other programs do not add to them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.experiments.planted_texts import train_tokenizer
from palimpsest.experiments.relay_attention import Setting, attention_alone, measure, texts
from palimpsest.measurement import environment
from palimpsest.models import HFModel, load_model
from palimpsest.models.onednn import fast_linear


def random_model() -> HFModel:
    """A model of SmolLM2-135M's shape with random weights, for a machine that cannot fetch it."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return HFModel(LlamaForCausalLM(config), train_tokenizer(1024), name="random-135m")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark and prints it."""
    parser = argparse.ArgumentParser(description="What reading a shared prompt once gains.")
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder for load_model")
    parser.add_argument("--random", action="store_true", help="a model of the same size with random weights instead")
    parser.add_argument("--shared", type=int, nargs="+", default=[256, 1024, 2048], help="tokens of the shared prompt")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--context", type=int, default=16, help="tokens of each request's own context")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="also read the whole prompts without any prefix cache")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # the time of the processor is that of the clock then
    door = random_model() if options.random else load_model(options.model)
    assert isinstance(door, HFModel)
    setting = Setting(options.requests, tuple(options.shared), options.context, options.steps)
    prompts, contexts = texts(door.tokenizer, setting, seed=100)
    records = []
    with torch.inference_mode(), fast_linear(door.model):
        for prompt in prompts:
            row = measure(door.model, prompt, contexts, options.steps, read_again=options.again)
            records.append(row | attention_alone(door.model.config, options.requests, len(prompt), options.context + options.steps))
    result = {"model": door.name, "records": records, "environment": environment()}
    if options.json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return result
    print(f"{door.name}, {options.requests} requests, {options.context} + {options.steps} tokens each, one thread")
    print(f"{'shared':>8}{'bytes':>8}{'step, copies':>15}{'relay':>10}{'gain':>7}{'attention alone':>18}{'first token, again':>21}")
    for row in records:
        again = f"{row['first_again_ms'] / row['first_relay_ms']:.1f}" if options.again else ""
        alone = row["attention_copies_ms"] / row["attention_relay_ms"]
        times = f"{row['step_copies_ms']:12.0f} ms{row['step_relay_ms']:7.0f} ms{1 / row['step_ratio']:7.2f}"
        print(f"{row['shared']:8}{row['bytes_copied'] / row['bytes_shared']:8.1f}{times}{alone:18.2f}{again:>21}")
    return result


if __name__ == "__main__":
    main()
