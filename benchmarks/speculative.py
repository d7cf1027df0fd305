"""How fast speculative decoding is, beside transformers' own assisted generation and beside the target alone, in the same run.

    python benchmarks/speculative.py [--model twins | --model smollm2-135m --layers 6] [--gamma 4] [--new-tokens 64] [--rounds 5] [--json]

`twins`: the shipped models of 1.5 and 0.1 million parameters, of one vocabulary; there the loop itself is most of the time. Any other
model drafts with its own first layers, which were never trained to: few drafts are accepted, so the target alone is faster, and what
is compared is the work of a block. All arms are greedy, write the same prompts one by one and take turns; transformers drafts a fixed
number of tokens a block as we do. The figures are medians of the ratios of neighbouring times, in processor time on one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from palimpsest.experiments.canaries import twins
from palimpsest.experiments.planted_texts import base_text
from palimpsest.measurement import environment
from palimpsest.models import HFModel, load_model
from palimpsest.serving.speculative import speculative_generate
from palimpsest.serving.vocabtrim import count_tokens, trim_head

PROMPT = 24  # tokens


def first_layers(model: HFModel, layers: int) -> HFModel:
    """The same model with its first layers alone; weights are shared."""
    small = copy.copy(model.model)
    small._modules = dict(model.model._modules)
    small.config = copy.deepcopy(model.model.config)
    small.config.num_hidden_layers = layers
    small.model = copy.copy(model.model.model)
    small.model._modules = dict(model.model.model._modules)
    small.model.layers = model.model.model.layers[:layers]
    small.model.config = small.config
    return HFModel(small, model.tokenizer, name=f"{model.name}, {layers} layers")


def assisted(target: HFModel, drafter: HFModel, prompts: list[np.ndarray], gamma: int, new: int) -> list[np.ndarray]:
    """transformers' assisted generation, greedy, with γ drafts a block whatever is accepted."""
    drafter.model.generation_config = GenerationConfig(
        num_assistant_tokens=gamma, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0, pad_token_id=0
    )
    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    config.eos_token_id = None
    target.model.generation_config = config
    generate: Any = target.model.generate
    out = []
    for row in prompts:
        ids = torch.from_numpy(row)[None]
        mask = torch.ones_like(ids)
        out.append(generate(ids, attention_mask=mask, assistant_model=drafter.model, generation_config=config)[0, len(row) :].numpy())
    return out


def measure(target: HFModel, drafter: HFModel, prompts: list[np.ndarray], gamma: int, new: int, rounds: int) -> dict[str, Any]:
    """Seconds of every arm in turns, and whether all write the same."""
    counts = count_tokens(target.tokenizer.encode_batch(base_text().train[:400]), drafter.vocab_size)
    trimmed = trim_head(drafter, counts, coverage=0.95)
    arms: dict[str, Callable[[], Any]] = {
        "target alone": lambda: [target.generate([row], new, stop_at_eos=False)[0][0] for row in prompts],
        "transformers, assisted": lambda: assisted(target, drafter, prompts, gamma, new),
        "ours": lambda: speculative_generate(target, drafter, prompts, new, gamma=gamma, stop_at_eos=False),
        "ours, trimmed head": lambda: speculative_generate(target, trimmed, prompts, new, gamma=gamma, stop_at_eos=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    found: dict[str, Any] = {}
    for turn in range(rounds + 1):  # the first warms up
        names = list(arms)[turn % len(arms) :] + list(arms)[: turn % len(arms)]
        for name in names:
            began = time.process_time()
            found[name] = arms[name]()
            if turn:
                seconds[name].append(time.process_time() - began)
    texts = {name: value[0] if name.startswith("ours") else value for name, value in found.items()}
    same = {name: all(np.array_equal(a, b) for a, b in zip(texts["target alone"], rows, strict=True)) for name, rows in texts.items()}
    ratios = {
        f"{peer} over {name}": statistics.median([a / b for a, b in zip(seconds[peer], seconds[name], strict=True)])
        for peer in ("transformers, assisted", "target alone")
        for name in ("ours", "ours, trimmed head")
    }
    stats = {name: found[name][1].to_dict() for name in ("ours", "ours, trimmed head")}
    return {
        "ratios": ratios,
        "ms_per_token": {name: 1000 * statistics.median(values) / (new * len(prompts)) for name, values in seconds.items()},
        "same_text": same,
        "block_efficiency": {name: value["block_efficiency"] for name, value in stats.items()},
        "mbsu": {name: value["mbsu"] for name, value in stats.items()},
        "kept": len(trimmed.kept),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark and prints it."""
    parser = argparse.ArgumentParser(description="Speculative decoding beside transformers' own.")
    parser.add_argument("--model", default="twins", help="twins, or a name or folder for load_model")
    parser.add_argument("--layers", type=int, default=6, help="layers of the drafter, when the model drafts for itself")
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    if options.model == "twins":
        models = twins().models
        target, drafter = models["standard-l"], models["standard-s"]
    else:
        door = load_model(options.model)
        assert isinstance(door, HFModel)
        target, drafter = door, first_layers(door, options.layers)
    rows = [ids for ids in target.tokenizer.encode_batch(base_text().held_out[:400]) if len(ids) >= PROMPT]
    prompts = [np.array(ids[:PROMPT]) for ids in rows[: options.prompts]]
    result = measure(target, drafter, prompts, options.gamma, options.new_tokens, options.rounds)
    result = {"target": target.name, "drafter": drafter.name, **vars(options), **result, "environment": environment()}
    if options.json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return result
    print(f"{target.name} with {drafter.name}, γ = {options.gamma}, {options.new_tokens} tokens, head cut to {result['kept']} tokens")
    for name, value in result["ms_per_token"].items():
        told = f"   {result['block_efficiency'][name]:.2f} tokens a call" if name in result["block_efficiency"] else ""
        print(f"{name:26}{value:8.2f} ms/token   {'same text' if result['same_text'][name] else 'OTHER TEXT'}{told}")
    for name, value in result["ratios"].items():
        print(f"{name:52}{value:6.2f}")
    return result


if __name__ == "__main__":
    main()
