"""The server on a bad network: bodies too large and too slow, clients that go, that do not read, that come all at once; and its end."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from palimpsest.serving.requests import GenerationRequest

openai = pytest.importorskip("openai", reason="needs the package openai")

LONG = {"model": "tiny-0", "prompt": "In the beginning", "max_tokens": 100, "temperature": 0}


@pytest.fixture
def limits():
    """Makes limits; the module needs no extra, but pydantic."""
    from palimpsest.serving.limits import Limits

    return Limits


def connect(started, *, receive=None):
    made = socket.socket()
    if receive is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    made.settimeout(20)
    made.connect((started.host, started.port))
    return made


def head(path="/v1/completions", *lines):
    fields = [f"POST {path} HTTP/1.1", "Host: here", "Content-Type: application/json", *lines]
    return ("\r\n".join(fields) + "\r\n\r\n").encode()


def post(started, body, path="/v1/completions", **options):
    """A connection on which a request has been sent."""
    data = json.dumps(body).encode()
    made = connect(started, **options)
    made.sendall(head(path, f"Content-Length: {len(data)}") + data)
    return made


def read_all(made):
    """What comes until the server closes."""
    parts = []
    while part := made.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_until(made, mark):
    """What comes until something is in it."""
    read = b""
    while mark not in read:
        part = made.recv(65536)
        assert part, read
        read += part
    return read


def works(started, model):
    """Whether the server answers as ever."""
    answer = httpx.post(f"{started.url}/completions", json={**LONG, "max_tokens": 5}, timeout=20)
    ids = model.tokenizer.encode(LONG["prompt"])
    return answer.json()["choices"][0]["text"] == model.tokenizer.decode(model.generate([ids], 5)[0][0])


def steps_after_cancel(started, hang_up):
    """How many steps the engine makes from the moment at which the first text is cancelled until its place is free."""
    started.wait(lambda: started.service.running and started.engine.metrics().running)
    [generation] = started.service.running
    [stream] = generation.streams
    cancel, at = stream.cancel, []

    def watched():
        at.append(started.engine.metrics().steps)
        cancel()

    stream.cancel = watched
    hang_up()
    started.wait(lambda: not started.engine.metrics().running)
    return started.engine.metrics().steps - at[0]


def test_a_body_that_is_announced_too_large_is_refused_unread(serve, tiny_model, limits):
    with serve(tiny_model, limits=limits(max_body=1000)) as started:
        made = connect(started)
        made.sendall(head("/v1/completions", "Content-Length: 1001"))  # and nothing of the body
        answer = read_all(made)
        assert b" 413 " in answer.splitlines()[0]
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert (error["code"], error["type"]) == ("request_too_large", "invalid_request_error")
        made = connect(started)
        made.sendall(head("/v1/completions", "Content-Length: 99999999999999999999", "Expect: 100-continue"))
        assert b" 413 " in read_all(made).splitlines()[0]
        assert works(started, tiny_model)


def test_a_body_of_unknown_length_is_cut_off_when_it_grows_too_large(serve, tiny_model, limits):
    with serve(tiny_model, limits=limits(max_body=100_000)) as started:
        made, sent = connect(started), 0
        made.sendall(head("/v1/completions", "Transfer-Encoding: chunked"))
        try:
            for _ in range(2000):
                made.sendall(b"1000\r\n" + b"a" * 4096 + b"\r\n")
                sent += 4096
            answer = read_all(made)
        except OSError:  # the server has closed what it does not read
            answer = b""
        assert sent < 2000 * 4096 or b" 413 " in answer.splitlines()[0]
        started.wait(lambda: httpx.get(f"{started.root}/metrics").text.count('status="413"'))
        assert works(started, tiny_model)


def test_a_body_that_does_not_come_is_given_up(serve, tiny_model, limits):
    with serve(tiny_model, limits=limits(body_timeout=0.2)) as started:
        made = connect(started)
        made.sendall(head("/v1/completions", "Content-Length: 100") + b'{"model')
        answer = read_all(made)
        assert b" 408 " in answer.splitlines()[0]
        assert b"request_timeout" in answer
        made = connect(started)
        made.sendall(b"POST /v1/completions HTTP/1.1\r\nHost:")
        assert read_all(made) == b""  # not even a whole head
        made = connect(started)
        assert read_all(made) == b""
        kept = httpx.Client(timeout=20)  # an idle connection that has been used may wait longer
        for _ in range(2):
            assert kept.get(f"{started.root}/healthz").status_code == 200
            time.sleep(0.3)
        assert works(started, tiny_model)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_place_within_a_step(serve, tiny_model, stream):
    with serve(tiny_model) as started, started.paced(0.02):
        made = post(started, {**LONG, "stream": stream})
        if stream:
            read_until(made, b'"text"')
        assert steps_after_cancel(started, made.close) <= 1
        assert started.engine.metrics().finished["cancelled"] == 1
        assert started.engine.metrics().completion_tokens < 50
        started.wait(lambda: not started.service.running)
        assert not started.service.turnstile._streams
        assert 'ended_early_total{reason="disconnected"} 1.0' in httpx.get(f"{started.root}/metrics").text


def test_a_client_that_goes_while_it_waits_leaves_the_waiting_room(serve, tiny_model):
    with serve(tiny_model, slots=1) as started, started.paced(0.02):
        first, second = post(started, {**LONG, "stream": True}), post(started, {**LONG, "n": 3})
        started.wait(lambda: started.engine.metrics().waiting == 3)
        second.close()
        started.wait(lambda: started.engine.metrics().waiting == 0)
        assert started.engine.metrics().running == 1
        first.close()


@pytest.mark.parametrize(
    ("reason", "change"),
    [("slow_reader", {"stream_buffer": 2, "stall_timeout": 60}), ("disconnected", {"stream_buffer": 10_000, "stall_timeout": 0.2})],
)
def test_who_does_not_read_loses_the_answer_and_stalls_nobody(serve, tiny_model, limits, reason, change):
    chat = {
        "model": "tiny-0",
        "messages": [{"role": "user", "content": "a"}],
        "n": 12,
        "stream": True,
        "logprobs": True,
        "top_logprobs": 20,
    }
    with serve(tiny_model, limits=limits(**change)) as started:
        started.server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made = post(started, chat, "/v1/chat/completions", receive=4096)
        started.wait(lambda: started.service.running)
        assert works(started, tiny_model)  # while the other answer is being left unread
        started.wait(lambda: f'ended_early_total{{reason="{reason}"}} 1.0' in httpx.get(f"{started.root}/metrics").text)
        started.wait(lambda: not started.engine.metrics().running)
        assert not started.service.turnstile._streams
        mine = made.getsockname()
        if reason == "slow_reader":
            assert b"[DONE]" not in read_all(made)  # closed behind what fits into the buffers
        started.wait(lambda: mine not in [one.client for one in started.server.server_state.connections])
        made.close()


def test_a_flood_is_answered_with_a_place_or_with_a_time(serve, tiny_model):
    ids = tiny_model.tokenizer.encode(LONG["prompt"])
    expected = tiny_model.tokenizer.decode(tiny_model.generate([ids], 30)[0][0])
    with serve(tiny_model, slots=2, waiting=3) as started:
        many = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=60))
        with many as client, started.paced(0.005), ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(lambda _: client.post(f"{started.url}/completions", json={**LONG, "max_tokens": 30}), range(60)))
        assert {answer.status_code for answer in answers} == {200, 503}
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == expected
            else:
                assert answer.json()["error"]["code"] == "server_overloaded"
                assert int(answer.headers["Retry-After"]) >= 1
        assert not started.service.running
        assert not started.service.turnstile._streams
        many = httpx.post(f"{started.url}/completions", json={**LONG, "n": 6})  # more than there is room for at all
        assert (many.status_code, many.json()["error"]["code"]) == (400, "too_many_texts")
        assert works(started, tiny_model)


def test_texts_are_queued_together_or_not_at_all(serve, tiny_model):
    with serve(tiny_model, slots=1, waiting=3) as started, started.paced(0.02):
        first = post(started, {**LONG, "stream": True})
        started.wait(lambda: started.engine.metrics().running == 1)
        second = post(started, {**LONG, "n": 2})
        started.wait(lambda: started.engine.metrics().waiting == 2)
        answer = httpx.post(f"{started.url}/completions", json={**LONG, "n": 3}, timeout=20)
        assert answer.status_code == 503
        started.wait(lambda: started.engine.metrics().waiting == 2)
        first.close()
        second.close()


def test_too_many_connections_are_turned_away(serve, tiny_model):
    with serve(tiny_model, max_connections=5) as started:
        made = [connect(started) for _ in range(4)]
        started.wait(lambda: len(started.server.server_state.connections) == 4)
        assert httpx.get(f"{started.root}/healthz").status_code == 503
        for one in made:
            one.close()
        started.wait(lambda: not started.server.server_state.connections)
        assert works(started, tiny_model)


def test_a_clients_texts_at_once_are_limited(serve, tiny_model, limits):
    with serve(tiny_model, limits=limits(key_streams=2)) as started, started.paced(0.02):
        made = post(started, {**LONG, "n": 2, "stream": True})
        started.wait(lambda: started.engine.metrics().running == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            openai.OpenAI(base_url=started.url, api_key="any", max_retries=0).completions.create(**LONG)
        assert caught.value.response.headers["Retry-After"] == "1"
        made.close()
        started.wait(lambda: not started.service.running)
        assert works(started, tiny_model)


def test_an_answer_that_takes_too_long_is_ended(serve, tiny_model, limits):
    with serve(tiny_model, limits=limits(request_timeout=0.2)) as started, started.paced(0.02):
        whole = httpx.post(f"{started.url}/completions", json=LONG)
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "generation_timeout")
        assert whole.headers["x-should-retry"] == "false"
        client = openai.OpenAI(base_url=started.url, api_key="any", max_retries=0)
        with pytest.raises(openai.APIError, match=r"took more than 0\.2 s"):
            for _ in client.completions.create(**LONG, stream=True):
                pass
        started.wait(lambda: not started.engine.metrics().running)


def test_the_first_signal_lets_answers_end(serve, tiny_model):
    ids = tiny_model.tokenizer.encode(LONG["prompt"])
    expected = tiny_model.tokenizer.decode(tiny_model.generate([ids], 100)[0][0])
    with serve(tiny_model, drain_timeout=20) as started, started.paced(0.01):
        made = post(started, {**LONG, "stream": True})
        read = read_until(made, b'"text"')
        started.server.handle_exit(signal.SIGTERM, None)
        started.wait(lambda: started.service.draining)
        with pytest.raises(OSError):
            connect(started)
        read += read_all(made)
        started.thread.join(20)
        assert not started.thread.is_alive()
    events = [line[6:] for line in read.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1].strip() == b"[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_when_patience_ends_the_answer_says_so(serve, tiny_model, stream):
    with serve(tiny_model, drain_timeout=0.2) as started, started.paced(0.05):
        made = post(started, {**LONG, "stream": stream})
        started.wait(lambda: started.engine.metrics().running)
        started.server.handle_exit(signal.SIGTERM, None)
        read = read_all(made)
        started.thread.join(20)
        assert not started.thread.is_alive()
        started.wait(lambda: not started.engine.metrics().running)
    if stream:
        last = [line for line in read.split(b"\n") if line.startswith(b"data: ")][-1]
        error = json.loads(last[6:])["error"]
        assert read.endswith(b"0\r\n\r\n")  # a whole answer in HTTP's sense
    else:
        assert b" 503 " in read.splitlines()[0]
        error = json.loads(read.partition(b"\r\n\r\n")[2])["error"]
    assert (error["code"], error["type"]) == ("shutting_down", "server_error")


def test_the_second_signal_ends_at_once(serve, tiny_model):
    with serve(tiny_model, drain_timeout=60) as started, started.paced(0.05):
        made = post(started, {**LONG, "stream": True})
        read_until(made, b'"text"')
        began = time.monotonic()
        started.server.handle_exit(signal.SIGINT, None)
        started.wait(lambda: started.service.draining)
        assert started.thread.is_alive()
        started.server.handle_exit(signal.SIGTERM, None)
        started.thread.join(20)
        assert not started.thread.is_alive()
        assert time.monotonic() - began < 4  # the text alone would take five seconds
        assert b"[DONE]" not in read_all(made)


def test_a_draining_server_says_so(serve, tiny_model):
    with serve(tiny_model) as started:
        started.service.drain()
        health = httpx.get(f"{started.root}/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        answer = httpx.post(f"{started.url}/completions", json=LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert httpx.get(f"{started.root}/metrics").status_code == 200


def test_a_port_that_is_taken_is_said(serve, tiny_model, served):
    from palimpsest.errors import StorageError
    from palimpsest.serving.run import DrainingServer

    with pytest.raises(StorageError, match="Cannot listen"):
        DrainingServer(served.server.config.app, served.host, served.port)


def test_an_error_nobody_expected_is_500_and_keeps_its_values(served, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(GenerationRequest, "__post_init__", lambda self: 1 / int(self.prompt_ids == ("a secret",)))
    answer = httpx.post(f"{served.url}/completions", json={**LONG, "prompt": "a secret prompt"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "ZeroDivisionError" in logged
    assert "__post_init__" not in answer.text
    assert "secret prompt" not in logged
    assert "division" not in logged
