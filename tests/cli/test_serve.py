"""`palimpsest serve`: the verb from its start to SIGTERM, asked by OpenAI's client, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app, serve
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError
from palimpsest.models import load_model
from palimpsest.models.hf import quiet

for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason="needs the extra [serve]")
openai = pytest.importorskip("openai", reason="needs the package openai")

runner = CliRunner()
KEY = "a-key-for-the-verb-0001"
TEXT = "In the beginning was the word, and the word was written down."


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    """A folder with a model, the index of a text, and a file of keys."""
    root = tmp_path_factory.mktemp("serve")
    with quiet():
        tiny_model.model.save_pretrained(root / "model")
    tiny_model.tokenizer.save(root / "model" / "tokenizer.json")
    (root / "model" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    )
    (root / "model" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    (root / "text.txt").write_text(TEXT)
    CorpusIndex.build(root / "text.txt", load_model(root / "model").tokenizer, root / "index")
    (root / "keys").write_text(f"# of the test\n{KEY}\n")
    return root


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_model_is_served_until_it_is_told_to_end(place):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only")
    port, seen = free_port(), {}
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=60)

    def ask():
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    seen["models"] = [card.id for card in client.models.list()]
                    break
                except openai.APIConnectionError:
                    time.sleep(0.05)
            seen["text"] = client.completions.create(model="mine", prompt="In the beginning was", max_tokens=8, temperature=0)
            seen["chat"] = client.chat.completions.create(model="mine", messages=[{"role": "user", "content": "Hello"}], max_tokens=2)
            seen["trace"] = client.post("/trace", body={"text": f"He said: {TEXT}"}, cast_to=dict)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    asking = threading.Thread(target=ask)
    signal.signal(signal.SIGTERM, lambda *_: seen.setdefault("ended early", True))  # should the verb fail before it listens
    try:
        asking.start()
        options = ["--port", port, "--name", "mine", "--api-key-file", place / "keys", "--guard", place / "index", "--guard-n", 4]
        answer = runner.invoke(app, ["serve", *map(str, [place / "model", *options, "--trace-index", place / "index", "--json"])])
        asking.join(120)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert answer.exit_code == 0, answer.output
    started = json.loads(answer.stdout.splitlines()[0])
    assert started["url"] == f"http://127.0.0.1:{port}/v1"
    assert (started["model"], started["keys"], started["guard"], started["chat"], started["trace"]) == ("mine", 1, True, True, True)
    assert seen["models"] == ["mine"]
    assert seen["text"].usage.completion_tokens == 8
    assert seen["text"].palimpsest["guard"]["interventions"] >= 0
    assert seen["chat"].choices[0].message.content
    assert seen["trace"]["covered"] > 0.5
    assert "key 1" in answer.stderr
    assert KEY not in answer.output


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--guard-n", "3"], "need a guard"),
        (["--api-key", "short"], "Key number 1"),
        (["--api-key-file", "no-such-file"], "cannot be read"),
        (["--request-timeout", "0"], "request_timeout is 0"),
        (["--drain-timeout", "-1"], "drain_timeout is -1"),
        (["--drain-timeout", "inf"], "drain_timeout is inf"),
        (["--context", "yarn:factor=much"], "a number"),
        (["--context", "no-such-method:budget=4"], "no-such-method"),
        (["--context", "h2o:budget"], "'budget' has no value"),
        (["--context", "h2o:budget=many"], "budget"),
        (["--trace-index", "no-such-index"], "no-such-index"),
        (["--host", "no.such.host.invalid"], "Cannot listen"),
    ],
)
def test_what_it_refuses(place, options, problem):
    answer = runner.invoke(app, ["serve", str(place / "model"), "--port", "0", *options])
    assert answer.exit_code == 2, answer.output
    assert problem in " ".join(answer.stderr.split())


def test_a_method_is_named_with_its_options():
    from palimpsest.context import make

    assert serve.read_method("h2o:budget=64, recent=32") == make("h2o", budget=64, recent=32)
    assert serve.read_method("self-extend:neighbours=16,group=4") == make("self-extend", neighbours=16, group=4)
    with pytest.raises(InputError, match="no option 'budge'"):
        serve.read_method("h2o:budge=4")
