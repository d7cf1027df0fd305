"""The endpoint door against a real HTTP server (the fixture `server`): honest, stingy, flaky, slow, rude and broken ones."""

from __future__ import annotations

import dataclasses
import json
import time
from email.utils import formatdate

import numpy as np
import pytest
from transformers import LogitsProcessor

from palimpsest.errors import CapabilityError, ContextOverflowError, EndpointError, InputError, NonFiniteError
from palimpsest.models import GREEDY, EndpointModel, Sampler, load_model
from palimpsest.models.echo import Echo
from palimpsest.models.json_client import JsonClient

NAME = "tiny"  # what the server calls its model


@pytest.fixture
def door(server, tiny_tokenizer):
    """Opens the door to the server, impatiently."""

    def open_door(**options):
        return EndpointModel(
            server.url, options.pop("name", NAME), options.pop("tokenizer", tiny_tokenizer), **{"backoff": 0.001, **options}
        )

    return open_door


@pytest.fixture
def rows(tiny_tokenizer):
    """Rows of ids that their text becomes again."""
    texts = ["In the beginning was the word, and the word was written", "A palimpsest", "é漢 😀 was counted, 0123", "the fox"]
    return [np.array(tiny_tokenizer.encode(text)) for text in texts]


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_scores_are_those_of_the_model_behind(server, door, tiny_model, rows, ids):
    server.ids = ids
    model = door()
    assert model.capabilities == {"text", "logprobs"}
    assert model.sends_ids is ids
    assert model.without_logprobs is None
    expected = tiny_model.score(rows, samplers=[GREEDY, Sampler()])
    found = model.score(rows, samplers=[GREEDY, Sampler()])
    for index in range(len(rows)):
        np.testing.assert_allclose(found.logprobs[index], expected.logprobs[index], atol=1e-5)
        np.testing.assert_array_equal(found.greedy_hits[index], expected.greedy_hits[index])
        np.testing.assert_array_equal(found.sampled[GREEDY][index], expected.sampled[GREEDY][index])
        np.testing.assert_allclose(found.sampled[Sampler()][index], expected.sampled[Sampler()][index], atol=1e-5)
    cut = model.score(rows, start=[3, 1, 2, 2])
    np.testing.assert_array_equal(cut.logprobs[0], found.logprobs[0][2:])


def test_hits_are_hits(door, tiny_model, rows):
    greedy = np.concatenate([rows[0], tiny_model.generate(rows[:1], 8, stop_at_eos=False)[0][0]])
    hits = door().score([greedy], start=len(rows[0])).greedy_hits[0]
    assert hits.all()


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_text_is_that_of_the_model_behind(server, door, tiny_model, rows, ids):
    server.ids = ids
    model = door()
    for prefix, found in zip(rows, model.generate(rows, 8), strict=True):
        expected = tiny_model.tokenizer.decode(tiny_model.generate([prefix], 8)[0][0])
        assert found[0].dtype == np.int64
        assert len(found[0]) <= 8
        assert expected.startswith(model.tokenizer.decode(found[0])[:3])


def test_sampling_sends_its_settings(server, door, rows):
    model = door()
    server.log.clear()
    out = model.generate(rows[:2], 5, temperature=0.8, top_p=0.9, top_k=7, n=3, seed=4)
    assert [len(copies) for copies in out] == [3, 3]
    bodies = [body for _, body, _ in server.log]
    assert len(bodies) == 6
    assert {(body["temperature"], body["top_p"], body["top_k"], body["max_tokens"], body["n"]) for body in bodies} == {(0.8, 0.9, 7, 5, 1)}
    assert len({body["seed"] for body in bodies}) == 6
    again = model.generate(rows[:2], 5, temperature=0.8, top_p=0.9, top_k=7, n=3, seed=4)
    assert [[ids.tolist() for ids in copies] for copies in again] == [[ids.tolist() for ids in copies] for copies in out]
    server.log.clear()
    assert len(model.generate(rows[:1], 5, n=3)[0]) == 3
    assert len(server.log) == 1  # greedy continuations are all equal
    assert "top_k" not in server.log[0][1]


def test_a_server_without_echo_is_text_only_and_says_why(server, door, rows):
    server.echo = False
    model = door()
    assert model.capabilities == {"text"}
    assert "echo is not supported" in model.without_logprobs
    with pytest.raises(CapabilityError, match="echo is not supported"):
        model.score(rows)
    assert isinstance(model.generate(rows[:1], 3)[0][0], np.ndarray)
    assert isinstance(server.log[-1][1]["prompt"], str)


def test_another_tokenizer_takes_the_logprobs_away(server, door, tiny_tokenizer):
    import tokenizers

    content = json.loads(tiny_tokenizer.backend.to_str())
    content["model"]["merges"] = content["model"]["merges"][:5]
    other = dataclasses.replace(tiny_tokenizer, backend=tokenizers.Tokenizer.from_str(json.dumps(content)))
    server.ids = False
    model = door(tokenizer=other)
    assert model.capabilities == {"text"}
    assert "tokens where the tokenizer given here has" in model.without_logprobs
    swapped = json.loads(tiny_tokenizer.backend.to_str())
    vocab = swapped["model"]["vocab"]
    spelled = {index: token for token, index in vocab.items()}
    first, second = (spelled[index] for index in tiny_tokenizer.encode("In the beginning was")[:2])
    vocab[first], vocab[second] = vocab[second], vocab[first]
    server.ids = True
    same_lengths = dataclasses.replace(tiny_tokenizer, backend=tokenizers.Tokenizer.from_str(json.dumps(swapped)))
    assert not door(tokenizer=same_lengths).sends_ids  # as text, both cut it alike; as ids, it would be another text


def test_a_row_that_the_server_reads_otherwise(server, door, rows):
    """Ids that the probe did not hold may still mean something else over there."""
    model = door()

    def other_word(result):
        result["choices"][0]["logprobs"]["tokens"][2] = " another"
        return result

    server.change = other_word
    with pytest.raises(EndpointError, match="reads row 0 as other text"):
        model.score(rows[:1])


def test_logprobs_are_dropped_silently_by_some_servers(server, door):
    server.change = lambda result: {**result, "choices": [{"text": result["choices"][0]["text"]}]}
    assert "sends no log-probs" in door().without_logprobs


def test_holes_in_logprobs(server, door, rows):
    model = door()

    def hole(result):
        scored = result["choices"][0]["logprobs"]
        scored["token_logprobs"][3] = None
        return result

    server.change = hole
    with pytest.raises(NonFiniteError, match="row 0, position 3"):
        model.score(rows[:1])
    assert "no log-prob for some tokens" in door().without_logprobs


def test_characters_that_the_server_spells_out_are_read_as_characters():
    def read(*tokens):
        return Echo(list(tokens), np.zeros(len(tokens)), np.zeros(len(tokens))).text

    assert read("a ", "bytes:\\xe2", "bytes:\\x82\\xac", " b") == "a € b"
    assert read("bytes:\\xe2", " b") == "\ufffd b"
    assert read("bytes:", "\\xe2") == "bytes:\\xe2"  # a text about bytes, cut between tokens
    assert read("bytes:\\xe2", "\ud800") == "\ufffd" + "\ufffd" * 3


def test_bos(server, door, tiny_model, tiny_tokenizer, rows):
    from palimpsest.models import HFModel

    expected = HFModel(tiny_model.model, tiny_tokenizer, bos="always").score(rows).logprobs
    by_ids = door(bos="always")
    assert by_ids.prepends_bos
    server.ids, server.bos = False, True  # text goes there, and the server puts BOS in front
    by_text = door()
    assert by_text.prepends_bos
    for model in (by_text,):
        for found, wanted in zip(model.score(rows).logprobs, expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(InputError, match="puts BOS in front"):
        door(bos="never")
    server.ids, server.bos = True, False
    for found, wanted in zip(by_ids.score(rows).logprobs, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(InputError, match="no BOS id"):
        door(bos="always", tokenizer=dataclasses.replace(tiny_tokenizer, bos_id=None))


def test_rows_that_no_text_has(server, door):
    server.ids = False
    model = door()
    odd = model.tokenizer.encode("t") + model.tokenizer.encode("h") + model.tokenizer.encode("e") + model.tokenizer.encode(" fox")
    assert odd != model.tokenizer.encode("the fox")
    with pytest.raises(InputError, match=r"Row 0 has .* tokens here, but the server cuts"):
        model.score([odd])


def test_what_a_server_cannot_do(door, rows):
    model = door()
    for call in (
        lambda: model.score(rows, moments=True),
        lambda: model.score(rows, samplers=[Sampler(1.0, top_k=5)]),
        lambda: model.hidden_states(rows, [0]),
        lambda: model.generate(rows, 2, processors=[LogitsProcessor()]),
        lambda: model.generate(rows, 2, num_beams=2),
        lambda: model.generate(rows, 2, stop_at_eos=False),
    ):
        with pytest.raises(CapabilityError, match="door 'endpoint' to 'tiny'"):
            call()


def test_bad_input_never_leaves_the_house(server, door, rows):
    model = door()
    server.log.clear()
    for call, error in (
        (lambda: model.score([]), InputError),
        (lambda: model.score([[5, 9999]]), InputError),
        (lambda: model.score(rows, start=0), InputError),
        (lambda: model.score([[5] * 101]), ContextOverflowError),
        (lambda: model.generate([[5] * 90], 20), ContextOverflowError),
        (lambda: model.generate(rows, 0), InputError),
        (lambda: model.generate(rows, 2, temperature=-1), InputError),
        (lambda: model.generate(rows, 2, n=0), InputError),
    ):
        with pytest.raises(error):
            call()
    assert server.log == []
    for options in ({"concurrency": 0}, {"timeout": 0}, {"retries": -1}, {"bos": "maybe"}):
        with pytest.raises(InputError):
            door(**options)


def test_the_server_knows_its_context_better(server, door):
    model = door()
    assert model.context_length == 100
    model.context_length = 1 << 30
    with pytest.raises(ContextOverflowError, match="maximum context length"):
        model.generate([[5] * 99], 20)


def test_flaky_answers_are_asked_for_again(server, door, rows, tiny_model):
    model = door()
    server.script = [(503, {}, {"error": {"message": "loading"}}), (500, {}, b"oops"), (429, {"Retry-After": "0.01"}, {})]
    np.testing.assert_allclose(model.score(rows[:1]).logprobs[0], tiny_model.score(rows[:1]).logprobs[0], atol=1e-5)
    assert server.script == []


def test_pauses_grow_and_retry_after_is_obeyed(server, door, rows, monkeypatch):
    model = door(backoff=0.1)
    pauses: list[float] = []
    monkeypatch.setattr("palimpsest.models.json_client.time.sleep", pauses.append)
    server.script = [
        (503, {}, {}),
        (503, {}, {}),
        (429, {"Retry-After": "7"}, {}),
        (429, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}, {}),
    ]
    model.score(rows[:1])
    pauses = [pause for pause in pauses if pause]  # the server of this test sleeps too, for 0 s
    assert 0.1 <= pauses[0] <= 0.15
    assert 0.2 <= pauses[1] <= 0.3
    assert pauses[2] == 7
    assert 25 < pauses[3] <= 30


def test_patience_ends(server, door, rows):
    model = door(retries=2)
    server.script = [(429, {}, {"error": {"message": "quota"}})] * 3
    with pytest.raises(EndpointError, match=r"limits the rate: asked 3 times.*quota.*concurrency"):
        model.score(rows[:1])
    server.script = [(502, {}, b"<html>bad gateway</html>")] * 3
    with pytest.raises(EndpointError, match=r"answered 502 .*bad gateway"):
        model.score(rows[:1])
    server.script = [(429, {"Retry-After": "3600"}, {})]
    with pytest.raises(EndpointError, match="3600 s of rest"):
        model.score(rows[:1])
    assert server.script == []


def test_a_slow_server(server, door, rows):
    model = door()
    model.client = JsonClient(server.url, timeout=0.15, retries=1, backoff=0.001)
    server.delay = 0.6
    with pytest.raises(EndpointError, match=r"did not answer within 0\.15 s, 2 times"):
        model.score(rows[:1])


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (401, {"error": {"message": "bad key"}}, "refuses the key.*bad key.*PALIMPSEST_API_KEY"),
        (404, {"error": {"message": "no such model"}}, "no such model or path"),
        (400, {"error": "temperature too hot"}, "refuses the request.*temperature too hot"),
        (200, b"<html>hello</html>", "did not answer with JSON.*hello"),
        (200, b'{"choices": [{"te', "did not answer with JSON"),
        (200, [1, 2], "answered list"),
        (200, {"choices": []}, "list of one choice"),
        (200, {"choices": "none"}, "list of one choice"),
        (200, {"choices": [{"no": "text"}]}, "without text"),
    ],
)
def test_rude_and_broken_answers(server, door, rows, status, content, says):
    model = door()
    server.script = [(status, {}, content)]
    with pytest.raises(EndpointError, match=says):
        model.generate(rows[:1], 2)


@pytest.mark.parametrize(
    "scored",
    [{"tokens": ["a"], "token_logprobs": [1, 2], "top_logprobs": []}, {"tokens": ["a"], "token_logprobs": ["x"], "top_logprobs": [None]}],
)
def test_broken_logprobs(server, door, rows, scored):
    model = door()
    server.script = [(200, {}, {"choices": [{"text": "", "logprobs": scored}]})]
    with pytest.raises(EndpointError, match="log-probs that are not"):
        model.score(rows[:1])


def test_a_wrong_name_and_a_closed_door(server, door, tiny_tokenizer):
    with pytest.raises(EndpointError, match="other does not exist"):
        door(name="other")
    server.script = [(401, {}, {"error": {"message": "who are you"}})] * 2
    with pytest.raises(EndpointError, match="who are you"):
        door()


def test_keys(server, door, monkeypatch, tiny_tokenizer):
    for name in ("PALIMPSEST_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def sent():
        server.log.clear()
        door()
        return server.log[-1][2].get("Authorization")

    assert sent() is None
    monkeypatch.setenv("OPENAI_API_KEY", "sk-open")
    assert sent() is None  # not over plain http
    monkeypatch.setenv("PALIMPSEST_API_KEY", "own")
    assert sent() == "Bearer own"


def test_at_most_so_many_at_once(server, door, rows):
    model = door(concurrency=3)
    server.delay = 0.03
    calls: list[tuple[int, int]] = []
    model.score(rows * 4, progress=lambda *call: calls.append(call))
    assert 2 <= server.busiest <= 3
    assert calls == [(done, 16) for done in range(1, 17)]


def test_the_first_error_stops_the_rest(server, door, rows):
    model = door(concurrency=1)
    server.log.clear()
    server.script = [(400, {}, {"error": "no"})]
    with pytest.raises(EndpointError):
        model.score(rows * 10)
    assert len(server.log) < 5


def test_urls(server, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save(tmp_path / "tokenizer.json")
    model = load_model(f"{server.url}#{NAME}", tokenizer=tmp_path / "tokenizer.json")
    assert isinstance(model, EndpointModel)
    about = model.describe()
    assert (about["name"], about["door"], about["parameters"]) == (NAME, "endpoint", None)
    assert load_model(server.url + "/", tokenizer=tiny_tokenizer).fingerprint == model.fingerprint  # its only model
    server.answer = lambda path, body: {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(InputError, match="offers a, b"):
        load_model(server.url, tokenizer=tiny_tokenizer)
