"""Answers questions about contexts with NVIDIA's kvpress, in kvpress's own environment: `python kvpress_run.py JOB.json OUT.json`.

A stand-alone script that imports nothing of palimpsest. kvpress 0.5.5 needs transformers below 5.3, so it has a virtual environment:

    python -m venv peer && peer/bin/pip install torch==2.13.0 kvpress==0.5.5 "transformers<5.3"

The job is {"model": folder, "threads": 1, "new_tokens": 16, "methods": [{"name", "keep"}], "samples": [{"id", "context", "questions":
[{"ids", "answer"}]}]}, all token ids. `keep` is the number of context tokens that a press keeps, or for "think" the share of key channels
that goes. What is done with a press is what kvpress's own pipeline does: the context in one forward pass with the press on, then the
question behind it with the position ids of an uncompressed text (or of the compressed one where keys are rotated anew), then tokens one
by one. An answer is scored by teacher forcing: `exact` when every token is the likeliest, `logprob` summed.

The output is {"versions", "rows"}; a row has id, question, method, keep, exact, logprob, bytes (of keys and values after the context was
read), peak_bytes (before it was compressed: the whole context), answering_bytes (with question and answer behind it), prefill_seconds,
decode_tokens_per_second.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

OBSERVED = "h2o"  # needs the attention weights themselves


def press_for(name: str, keep: float, tokens: int) -> Any:
    """The press that leaves `keep` of `tokens` entries; None for "full"."""
    kvpress: Any = import_module("kvpress")
    ratio = max(0.0, 1 - (keep + 0.5) / tokens)  # kvpress keeps int(tokens * (1 - ratio))
    if name == "full":
        return None
    if name == "streaming-llm":  # as in its paper, positions in the cache: the press says to wrap it
        return kvpress.KeyRerotationPress(press=kvpress.StreamingLLMPress(compression_ratio=ratio, n_sink=4))
    if name == "think":
        return kvpress.ThinKPress(key_channel_compression_ratio=keep, window_size=32)
    presses = {"h2o": "ObservedAttentionPress", "tova": "TOVAPress", "snapkv": "SnapKVPress", "knorm": "KnormPress"}
    if name not in presses:
        raise SystemExit(f"There is no press for {name!r}: choose one of full, streaming-llm, think, {', '.join(presses)}.")
    return getattr(kvpress, presses[name])(compression_ratio=ratio)


def nbytes(cache: Any) -> int:
    """Bytes of keys and values."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@torch.no_grad()
def answer(model: Any, method: dict[str, Any], sample: dict[str, Any], new_tokens: int) -> list[dict[str, Any]]:
    """One row a question about one context."""
    context = torch.tensor([sample["context"]])
    length = context.shape[1]
    press = press_for(method["name"], method["keep"], length)
    rows = []
    for number, question in enumerate(sample["questions"]):
        cache = DynamicCache()
        began = time.perf_counter()
        if press is None:
            model.model(input_ids=context, past_key_values=cache)
        else:
            with press(model):
                model.model(input_ids=context, past_key_values=cache)
        read = time.perf_counter() - began
        held = nbytes(cache)
        layers: Any = cache.layers
        entry = sum(2 * layer.keys.shape[1] * layer.keys.shape[3] * layer.keys.element_size() for layer in layers)
        start = cache.get_seq_length() if type(press).__name__ == "KeyRerotationPress" else length
        asked = torch.tensor([question["ids"]])
        positions = torch.arange(start, start + asked.shape[1])[None]
        out = model(input_ids=asked, past_key_values=cache, position_ids=positions, logits_to_keep=1)
        total, exact, place = 0.0, True, start + asked.shape[1]
        for token in question["answer"]:
            scores = out.logits[0, -1].float().log_softmax(-1)
            total += float(scores[token])
            exact = exact and int(scores.argmax()) == token
            out = model(input_ids=torch.tensor([[token]]), past_key_values=cache, position_ids=torch.tensor([[place]]))
            place += 1
        answering = nbytes(cache)
        began = time.perf_counter()
        for _ in range(new_tokens):
            token = out.logits[0, -1].argmax().view(1, 1)
            out = model(input_ids=token, past_key_values=cache, position_ids=torch.tensor([[place]]))
            place += 1
        speed = new_tokens / (time.perf_counter() - began) if new_tokens else None
        rows.append({
            "id": sample["id"], "question": number, "method": method["name"], "keep": method["keep"], "exact": exact, "logprob": total,
            "bytes": held, "peak_bytes": entry * length, "answering_bytes": answering, "prefill_seconds": read,
            "decode_tokens_per_second": speed,
        })  # fmt: skip
    return rows


def main() -> None:
    """Reads the job, runs it, writes the rows."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(int(job["threads"]))
    rows: list[dict[str, Any]] = []
    for method in job["methods"]:
        attention = "eager" if method["name"] == OBSERVED else "sdpa"
        loaded: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation=attention)
        model = loaded.eval()
        for done, sample in enumerate(job["samples"], start=1):
            rows += answer(model, method, sample, int(job["new_tokens"]))
            print(f"{method['name']} {done}/{len(job['samples'])}", file=sys.stderr, flush=True)
    versions = {name: metadata.version(name) for name in ("kvpress", "transformers", "torch")}
    Path(sys.argv[2]).write_text(json.dumps({"versions": versions, "rows": rows}), encoding="utf-8")


if __name__ == "__main__":
    main()
