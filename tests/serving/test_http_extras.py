"""What OpenAI's API does not have: traces, the guard in the answers, metrics, and where the server is."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.traced_text import trace_text
from palimpsest.guard import MemFreeProcessor, NgramSet, protected_ngrams

TEXTS = ["In the beginning was the word, and the word was written down.", "The quick brown fox jumps over the lazy dog."]
TEXT = "He said: the quick brown fox jumps over it, and the word was written up."


@pytest.fixture(scope="module")
def index(tiny_tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("corpus")
    (place / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (place / "texts" / f"{number}.txt").write_text(text)
    return CorpusIndex.build(place / "texts", tiny_tokenizer, place / "index")


def test_a_trace_is_that_of_the_library(serve, tiny_model, index):
    with serve(tiny_model, index=index) as started:
        for options in ({}, {"min_len": 3, "max_docs": 1, "context": 2}, {"min_len": 3, "rarest": True, "whole_words": True}):
            answer = httpx.post(f"{started.url}/trace", json={"text": TEXT, **options}, timeout=120).json()
            how = {"min_len": 8, "max_docs": 10, "context": 30, **options}
            if how.pop("rarest", False):
                how["max_spans"] = -(-len(index.tokenizer.encode(TEXT)) // 20)
            expected = trace_text(index, index.tokenizer, index.tokenizer.encode(TEXT), **how)
            assert (answer.pop("corpus"), answer.pop("min_len")) == (index.fingerprint, how["min_len"])
            assert answer == json.loads(json.dumps(expected.to_dict()))
            assert answer["spans"]
        assert "palimpsest_traced_tokens_total 0.0" not in httpx.get(f"{started.root}/metrics").text


def test_what_cannot_be_traced_is_said(serve, served, tiny_model, index):
    from palimpsest.serving.limits import Limits

    answer = httpx.post(f"{served.url}/trace", json={"text": TEXT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_corpus")
    with serve(tiny_model, index=index, limits=Limits(max_trace=50)) as started:
        for body, param in (
            ({"text": "a" * 51}, "text"),
            ({"text": ""}, "text"),
            ({"text": TEXT[:9], "min_len": 0}, "min_len"),
            ({}, "text"),
            ({"text": "\ud800"}, "text"),
        ):
            answer = httpx.post(f"{started.url}/trace", content=json.dumps(body), headers={"Content-Type": "application/json"}, timeout=120)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
        assert httpx.post(f"{started.url}/trace", json={"text": "a" * 50}, timeout=120).json()["spans"] == []


def test_an_index_without_a_tokenizer_is_refused(serve, tiny_model, tmp_path):
    from palimpsest.errors import InputError

    bare = CorpusIndex.build([[1, 2, 3]], None, tmp_path / "index")
    with pytest.raises(InputError, match="no tokenizer"), serve(tiny_model, index=bare):
        pass


@pytest.fixture(scope="module")
def guarded(serve, tiny_model):
    """A server whose guard protects what the model writes freely behind "The quick"."""
    prefix = tiny_model.tokenizer.encode("The quick")
    free = [*prefix, *tiny_model.generate([prefix], 40)[0][0].tolist()]
    source = NgramSet.from_documents([free], 4)
    with serve(tiny_model, guard=MemFreeProcessor.for_model(tiny_model, source)) as started:
        started.free, started.source = free[len(prefix) :], source
        yield started


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_what_the_guard_did_stands_in_the_answer(guarded, tiny_model, path):
    tokenizer = tiny_model.tokenizer
    body = {"model": "tiny-0", "temperature": 0, "max_tokens": 40, "n": 2}
    body |= {"prompt": "The quick"} if path == "completions" else {"messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{guarded.url}/{path}", json=body)
    told = answer.json()["palimpsest"]["guard"]["interventions"]
    assert answer.headers["X-Palimpsest-Guard"] == f"interventions={told}"
    if path == "completions":
        assert told >= 2  # at least once in each text
        for choice in answer.json()["choices"]:
            assert choice["text"] != tokenizer.decode(guarded.free)
        ids = httpx.post(f"{guarded.url}/completions", json={**body, "logprobs": 0}).json()["choices"][0]["logprobs"]["tokens"]
        assert len(ids) <= 40
    with httpx.stream("POST", f"{guarded.url}/{path}", json={**body, "stream": True}) as stream:
        assert stream.headers["X-Palimpsest-Guard"] == "on"
        chunks = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    ends = [chunk["palimpsest"]["guard"]["interventions"] for chunk in chunks if "palimpsest" in chunk]
    assert len(ends) == 2
    assert ends[-1] == told


def test_the_guarded_text_has_nothing_protected_in_it(guarded, tiny_model):
    from palimpsest.serving.requests import GenerationRequest

    prefix = tiny_model.tokenizer.encode("The quick")
    answer = httpx.post(f"{guarded.url}/completions", json={"model": "tiny-0", "prompt": prefix, "temperature": 0, "max_tokens": 40}).json()
    piece = guarded.engine.submit(GenerationRequest(prefix, max_new_tokens=40)).collect()
    assert answer["choices"][0]["text"] == piece.text
    assert not len(protected_ngrams(guarded.source, [*prefix, *piece.token_ids], len(prefix)))
    assert len(protected_ngrams(guarded.source, [*prefix, *guarded.free], len(prefix))) > 30


def test_a_text_that_the_guard_ends_says_so(serve, tiny_model):
    everything = NgramSet([[token] for token in range(tiny_model.vocab_size)])
    with serve(tiny_model, guard=MemFreeProcessor.for_model(tiny_model, everything)) as started:
        body = {"model": "tiny-0", "prompt": "The quick"}
        [choice] = httpx.post(f"{started.url}/completions", json=body).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("", "content_filter")
        chat = {"model": "tiny-0", "messages": [{"role": "user", "content": "a"}]}
        [choice] = httpx.post(f"{started.url}/chat/completions", json=chat).json()["choices"]
        assert choice["finish_reason"] == "content_filter"


def test_the_guard_cannot_be_sent_away(guarded):
    for body in ({"guard": False}, {"palimpsest": {"guard": False}}):
        answer = httpx.post(f"{guarded.url}/completions", json={"model": "tiny-0", "prompt": "The quick", **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter")
    long = httpx.post(f"{guarded.url}/completions", json={"model": "tiny-0", "prompt": "The quick", "x" * 100_000: 1})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "unknown_parameter")
    assert len(long.content) < 1_000


def test_metrics_can_be_read_by_prometheus(serve, tiny_model):
    parser = pytest.importorskip("prometheus_client.parser")
    with serve(tiny_model) as started, serve(tiny_model) as other:
        body = {"model": "tiny-0", "prompt": ["The quick", "brown fox"], "max_tokens": 7, "temperature": 0}
        httpx.post(f"{started.url}/completions", json=body)
        httpx.post(f"{started.url}/completions", json={**body, "wobble": 1})
        httpx.request("WOBBLE", f"{started.root}/any/path/somebody/makes/up")
        families = list(parser.text_string_to_metric_families(httpx.get(f"{started.root}/metrics").text))
        nothing = list(parser.text_string_to_metric_families(httpx.get(f"{other.root}/metrics").text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))

    def value(name, where=families, **labels):
        return sum(s.value for family in where for s in family.samples if s.name == name and labels.items() <= s.labels.items())

    written = value("palimpsest_engine_completion_tokens_total")
    assert 0 < written <= 14
    assert value("palimpsest_engine_prompt_tokens_total") == sum(map(len, tiny_model.tokenizer.encode_batch(body["prompt"])))
    assert value("palimpsest_http_requests_total", route="/v1/completions", status="200") == 1
    assert value("palimpsest_http_requests_total", route="/v1/completions", status="400") == 1
    assert value("palimpsest_http_requests_total", route="other", method="other", status="404") == 1
    assert value("palimpsest_engine_finished_total") == 2
    assert value("palimpsest_engine_first_token_seconds_count") == value("palimpsest_engine_first_token_seconds_bucket", le="+Inf") == 2
    assert value("palimpsest_engine_slots") == 16
    assert value("palimpsest_http_requests_in_flight") == 1  # the one that asks
    assert value("palimpsest_engine_completion_tokens_total", nothing) == value("palimpsest_engine_finished_total", nothing) == 0


def test_the_door_to_an_endpoint_scores_and_writes_through_the_server(served, tiny_model):
    from palimpsest.models import EndpointModel

    rows = [tiny_model.tokenizer.encode(text) for text in (TEXT, "The quick brown fox € jumps", "a word")]
    door = EndpointModel(served.url, "tiny-0", tiny_model.tokenizer)
    assert door.capabilities == {"text", "logprobs"}
    theirs, own = door.score(rows), tiny_model.score(rows)
    for a, b in zip(theirs.logprobs, own.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for a, b in zip(theirs.greedy_hits, own.greedy_hits, strict=True):
        assert a.tolist() == b.tolist()


def test_health_and_paths_that_are_not_there(served):
    assert httpx.get(f"{served.root}/healthz").json() == {"status": "ready"}
    for method, path, status in (("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405)):
        answer = httpx.request(method, f"{served.root}{path}")
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.request("POST", f"{served.root}/v1/models").headers["Allow"] == "GET"
    answer = httpx.options(f"{served.url}/models", headers={"Origin": "http://elsewhere", "Access-Control-Request-Method": "GET"})
    assert "access-control-allow-origin" not in answer.headers


def test_an_engine_that_has_stopped_is_not_healthy(serve, tiny_model):
    with serve(tiny_model) as started:
        started.engine.shutdown(drain=False)
        health = httpx.get(f"{started.root}/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        answer = httpx.post(f"{started.url}/completions", json={"model": "tiny-0", "prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
