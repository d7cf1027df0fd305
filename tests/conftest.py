"""What many tests share: a tiny byte-level tokenizer, a tiny random Llama behind the ordinary door, and a completions server around it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower on more, and workers share the cores

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hypothesis
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from palimpsest.tokenizer import Tokenizer

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")

PROSE = """In the beginning was the word, and the word was written down, and what was written down was scraped off and written again.
A palimpsest is a page that still shows what stood there before; the eye that knows how to look can read both hands at once.
The quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly; 0123456789 sheep were counted.
"""


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 320 ids: every text can be encoded and decoded; ids 0 and 1 are BOS and EOS (also padding)."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([PROSE], trainer)
    return Tokenizer(backend, bos_id=0, eos_id=1, pad_id=1)


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Tokenizer):
    """A random two-layer Llama (hidden 32, context 128) with `tiny_tokenizer`, as an `HFModel`."""
    return make_tiny_model(tiny_tokenizer, seed=0)


@pytest.fixture(scope="session")
def other_model(tiny_tokenizer: Tokenizer):
    """Another random Llama, half as wide, with the same tokenizer."""
    return make_tiny_model(tiny_tokenizer, seed=1, hidden=16)


def make_tiny_model(tokenizer: Tokenizer, seed: int, hidden: int = 32):
    """A random Llama of two layers; its logits are scaled up so that its distributions are far from uniform."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from palimpsest.models import HFModel

    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    return HFModel(model, tokenizer, name=f"tiny-{seed}")


class Server:
    """A completions server around a real tiny model; attributes say how it behaves.

    Attributes:
        model: the `HFModel` behind it.
        ids, echo: whether it takes token ids, and whether it scores prompts.
        script: answers to give before the honest ones: (status, headers, body) or a callable on the handler.
        log: (path, body, headers) of every request.
        busy, busiest: requests under way, and the most there ever were.
    """

    def __init__(self, model):
        self.name, self.model, self.ids, self.echo, self.bos = "tiny", model, True, True, False
        self.script, self.log, self.delay = [], [], 0.0
        self.busy, self.busiest, self.lock = 0, 0, threading.Lock()
        self.change = None  # applied to every honest answer
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                server.serve(self, None)

            def do_POST(self):
                server.serve(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, handler, body):
        with self.lock:
            self.log.append((handler.path, body, dict(handler.headers)))
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            scripted = self.script.pop(0) if self.script and body is not None else None
        try:
            if scripted is not None:
                status, headers, content = scripted
            else:
                time.sleep(self.delay)
                status, headers, content = 200, {}, self.answer(handler.path, body)
                if isinstance(content, tuple):
                    status, content = content
            with self.lock:
                self.busy -= 1
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # the client had no patience left
            pass

    def answer(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": self.name, "max_model_len": 100}]}
        if path != "/v1/completions" or body["model"] != self.name:
            return 404, {"error": {"message": f"The model {body['model']} does not exist."}}
        tokenizer = self.model.tokenizer
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.ids:
            return 400, {"error": {"message": "prompt must be a string"}}
        if body.get("echo") and not self.echo:
            return 422, {"detail": "echo is not supported"}
        ids = prompt if isinstance(prompt, list) else [tokenizer.bos_id] * self.bos + tokenizer.encode(prompt)
        if len(ids) + body["max_tokens"] > 100:
            return 400, {"error": {"message": "This model's maximum context length is 100 tokens.", "code": "context_length_exceeded"}}
        options = {key: body[key] for key in ("temperature", "top_p", "top_k", "seed") if key in body}
        new = self.model.generate([ids], body["max_tokens"], **options)[0][0].tolist()
        choice = {"text": tokenizer.decode(new)}
        if body.get("echo"):
            whole = [*ids, *new]
            logprobs, tops = self.score(whole)
            choice["logprobs"] = {
                "tokens": [tokenizer.decode([token]) for token in whole],
                "token_logprobs": [None, *logprobs],
                "top_logprobs": [None, *({"a": top} for top in tops)],
            }
        result = {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(new)}}
        return self.change(result) if self.change else result

    def score(self, ids):
        import torch

        scores = self.model.score([ids])
        every = self.model.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).detach()
        own = scores.logprobs[0].astype(float).tolist()
        best = every.amax(-1).double().tolist()
        return own, [value if hit else max(value, top) for value, hit, top in zip(own, scores.greedy_hits[0], best, strict=True)]


@pytest.fixture
def server(tiny_model):
    """An honest server."""
    server = Server(tiny_model)
    yield server
    server.http.shutdown()
    server.http.server_close()
