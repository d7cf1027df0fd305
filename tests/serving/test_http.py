"""The server driven by OpenAI's own client: answers, streams, log-probs, errors, and sixteen texts at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

openai = pytest.importorskip("openai", reason="needs the package openai")

PROMPT = "In the beginning was"
KEYS = ["a-key-for-the-tests-0001", "a-key-for-the-tests-0002"]


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=served.url, api_key="any", max_retries=0)


def lone(model, prompt, tokens, **how):
    """What the model writes behind a prompt when nothing else is going on."""
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    return model.tokenizer.decode(model.generate([ids], tokens, **how)[0][0])


def test_the_models(client, served, tiny_model):
    [card] = client.models.list().data
    assert (card.id, card.object, card.owned_by) == ("tiny-0", "model", "palimpsest")
    assert client.models.retrieve("tiny-0") == card
    assert card.palimpsest["fingerprint"] == tiny_model.fingerprint
    assert card.max_model_len == 128


def test_a_completion_is_what_the_model_writes(client, tiny_model):
    answer = client.completions.create(model="tiny-0", prompt=PROMPT, temperature=0)
    [choice] = answer.choices
    assert choice.text == lone(tiny_model, PROMPT, 16)  # OpenAI's default length
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("length", 0, None)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.system_fingerprint == f"fp_{tiny_model.fingerprint[:16]}"
    prompt = len(tiny_model.tokenizer.encode(PROMPT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (prompt, 16, prompt + 16)
    assert answer.palimpsest == {"guard": None}
    assert answer._request_id.startswith("req_")


@pytest.mark.parametrize("form", ["texts", "ids", "rows"])
def test_prompts_in_every_form(client, tiny_model, form):
    texts = [PROMPT] if form == "ids" else [PROMPT, "The quick brown", "A palimpsest"]
    rows = tiny_model.tokenizer.encode_batch(texts)
    prompt = {"texts": texts, "ids": rows[0], "rows": rows}[form]
    answer = client.completions.create(model="tiny-0", prompt=prompt, temperature=0, max_tokens=8)
    assert [choice.text for choice in answer.choices] == [lone(tiny_model, row, 8) for row in rows]
    assert [choice.index for choice in answer.choices] == list(range(len(rows)))
    assert answer.usage.prompt_tokens == sum(map(len, rows))


def test_a_seed_gives_the_same_texts_and_n_different_ones(client, tiny_model):
    ask = {"model": "tiny-0", "prompt": [PROMPT, "The quick"], "temperature": 1.0, "top_p": 0.9, "seed": 7, "n": 3, "max_tokens": 12}
    first, again = (client.completions.create(**ask) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 3
    assert texts[0] == lone(tiny_model, PROMPT, 12, temperature=1.0, top_p=0.9, seed=7)
    assert first.usage.completion_tokens == sum(12 for _ in range(6))
    assert first.usage.prompt_tokens == sum(len(tiny_model.tokenizer.encode(text)) for text in ask["prompt"])  # once for all n
    other = client.completions.create(**{**ask, "seed": 8})
    assert texts[0] != other.choices[0].text
    free = [client.completions.create(**{**ask, "seed": None}).choices[0].text for _ in range(2)]
    assert free[0] != free[1]


def test_the_nucleus_of_nothing_is_the_likeliest_token(client, tiny_model):
    answer = client.completions.create(model="tiny-0", prompt=PROMPT, temperature=1, top_p=0, max_tokens=8)
    assert answer.choices[0].text == lone(tiny_model, PROMPT, 8)


@pytest.mark.parametrize("temperature", [1e-8, 1e-300])
def test_a_temperature_next_to_nothing_is_greedy(client, tiny_model, temperature):
    answer = client.completions.create(model="tiny-0", prompt=PROMPT, temperature=temperature, max_tokens=8)
    assert answer.choices[0].text == lone(tiny_model, PROMPT, 8)


def test_nobody_is_sent_elsewhere(served):
    """A redirect would be to the host that the client names, over plain HTTP, with its key and prompt."""
    for answer in (httpx.post(f"{served.url}/completions/", json={}), httpx.get(f"{served.root}/healthz/")):
        assert answer.status_code == 404


def test_top_k_is_taken_from_the_extra_body(client, tiny_model):
    answer = client.completions.create(model="tiny-0", prompt=PROMPT, temperature=1.5, max_tokens=8, extra_body={"top_k": 1})
    assert answer.choices[0].text == lone(tiny_model, PROMPT, 8)


def test_a_stop_string_ends_the_text_in_front_of_it(client, tiny_model):
    whole = lone(tiny_model, PROMPT, 30)
    stop = whole[6:9]
    for given in (stop, ["never to be written", stop]):
        answer = client.completions.create(model="tiny-0", prompt=PROMPT, temperature=0, max_tokens=30, stop=given)
        assert answer.choices[0].text == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        streamed = client.completions.create(model="tiny-0", prompt=PROMPT, temperature=0, max_tokens=30, stop=given, stream=True)
        chunks = [chunk.choices[0] for chunk in streamed]
        assert "".join(chunk.text for chunk in chunks) == answer.choices[0].text
        assert chunks[-1].finish_reason == "stop"


def test_logit_bias_forbids_and_forces(client, tiny_model):
    [first] = tiny_model.generate([tiny_model.tokenizer.encode(PROMPT)], 1)[0][0].tolist()
    ask = {"model": "tiny-0", "prompt": PROMPT, "temperature": 0}
    banned = client.completions.create(**ask, max_tokens=1, logit_bias={str(first): -100}, logprobs=0)
    assert banned.choices[0].logprobs.tokens != [tiny_model.tokenizer.decode([first])]
    forced = client.completions.create(**ask, max_tokens=5, logit_bias={"42": 100})
    assert forced.choices[0].text == tiny_model.tokenizer.decode([42] * 5)


def test_logprobs_of_a_completion_with_its_prompt(client, tiny_model):
    answer = client.completions.create(model="tiny-0", prompt=PROMPT, temperature=0, max_tokens=6, logprobs=3, echo=True)
    [choice] = answer.choices
    ids = tiny_model.tokenizer.encode(PROMPT)
    whole = [*ids, *tiny_model.generate([ids], 6)[0][0].tolist()]
    assert choice.text == PROMPT + lone(tiny_model, PROMPT, 6)
    given = choice.logprobs
    assert len(given.tokens) == len(given.top_logprobs) == len(given.text_offset) == len(whole)
    assert given.token_logprobs[0] is None
    assert given.top_logprobs[0] is None
    expected = tiny_model.score([whole]).logprobs[0]
    np.testing.assert_allclose(given.token_logprobs[1:], expected, atol=1e-4)
    for top, own in zip(given.top_logprobs[1:], given.token_logprobs[1:], strict=True):
        assert 1 <= len(top) <= 3
        assert max(top.values()) >= own - 1e-6
    assert "".join(given.tokens[: len(ids)]) == PROMPT
    assert given.text_offset[: len(ids)] == np.cumsum([0, *map(len, given.tokens[: len(ids) - 1])]).tolist()
    assert client.completions.create(model="tiny-0", prompt=PROMPT, max_tokens=0, echo=True).choices[0].text == PROMPT


def test_a_streamed_completion_is_the_whole_one_in_pieces(client, tiny_model):
    ask = {"model": "tiny-0", "prompt": [PROMPT, "The quick"], "temperature": 0, "max_tokens": 20, "logprobs": 1, "n": 2}
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 20
    for expected in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == expected.index]
        assert "".join(choice.text for choice in mine) == expected.text
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["length"]
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            streamed = [value for choice in mine for value in getattr(choice.logprobs, name)]
            if name in ("tokens", "text_offset"):
                assert streamed == getattr(expected.logprobs, name)
            elif name == "token_logprobs":
                np.testing.assert_allclose(streamed, expected.logprobs.token_logprobs, atol=1e-4)


def test_a_chat_is_the_template_and_the_model(client, tiny_model, served):
    chat = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    rendered = "system: Be short.\nuser: Hello\nassistant:"
    ask = {"model": "tiny-0", "messages": chat, "temperature": 0}
    answer = client.chat.completions.create(**ask, max_completion_tokens=10, logprobs=True, top_logprobs=2)
    [choice] = answer.choices
    assert choice.message.content == lone(tiny_model, rendered, 10)
    assert (choice.message.role, choice.message.refusal, choice.finish_reason) == ("assistant", None, "length")
    ids = tiny_model.generate([tiny_model.tokenizer.encode(rendered)], 10)[0][0].tolist()
    content = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode(errors="replace") == choice.message.content
    assert len(content) == len(ids) == answer.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.top_logprobs[0].logprob >= token.logprob - 1e-6 for token in content)
    assert answer.usage.prompt_tokens == len(tiny_model.tokenizer.encode(rendered))
    unbounded = client.chat.completions.create(**ask)  # as far as the context goes
    assert unbounded.usage.total_tokens == 128 or unbounded.choices[0].finish_reason == "stop"


def test_a_streamed_chat(client, tiny_model):
    chat = [{"role": "user", "content": "Hello"}]
    ask = {"model": "tiny-0", "messages": chat, "temperature": 0, "max_tokens": 10, "n": 2}
    chunks = list(client.chat.completions.create(**ask, stream=True))
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert all(choice.delta.role is None for choice in mine[1:])
        assert "".join(choice.delta.content or "" for choice in mine) == lone(tiny_model, "user: Hello\nassistant:", 10)
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["length"] == [mine[-1].finish_reason]
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)
    with client.chat.completions.stream(model="tiny-0", messages=chat, temperature=0, max_tokens=10) as stream:  # the client's helper
        said = "".join(event.delta for event in stream if event.type == "content.delta")
    assert said == lone(tiny_model, "user: Hello\nassistant:", 10)


def test_sixteen_streams_at_once_are_not_mixed_up(client, tiny_model):
    words = "beginning word written scraped palimpsest page shows quick brown fox jumps lazy five boxing wizards sheep"
    prompts = [f"{number} {word} and the" for number, word in enumerate(words.split())]
    expected = [lone(tiny_model, prompt, 40) for prompt in prompts]
    assert len(set(expected)) == 16

    def ask(prompt):
        chunks = client.completions.create(model="tiny-0", prompt=prompt, temperature=0, max_tokens=40, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, prompts)) == expected


REFUSED = {
    "best_of": ({"best_of": 3}, "best_of"),
    "suffix": ({"suffix": "end"}, "suffix"),
    "unknown": ({"wobble": 1}, "wobble"),
    "quoted": ({"max_tokens": "5"}, "max_tokens"),
    "zero": ({"max_tokens": 0}, "max_tokens"),
    "hot": ({"temperature": 2.5}, "temperature"),
    "many": ({"n": 129}, "n"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "empty stop": ({"stop": ""}, "stop"),
    "no prompt": ({"prompt": []}, "prompt"),
    "mixed prompt": ({"prompt": ["a", 1]}, "prompt"),
    "half a pair": ({"prompt": "\ud800"}, "prompt"),
    "bias": ({"logit_bias": {"word": 1}}, "logit_bias.word"),
    "great bias": ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    "logprobs": ({"logprobs": 6}, "logprobs"),
    "stream options": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "too long": ({"prompt": "word " * 200}, "prompt"),
    "too much": ({"max_tokens": 1000}, "prompt"),
    "no such id": ({"prompt": [1, 5000]}, None),
    "no such biased id": ({"logit_bias": {"5000": 1}}, None),
    "nothing": ({"prompt": ""}, None),
}


@pytest.mark.parametrize(("change", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_completion_refuses(client, change, param):
    body = {"model": "tiny-0", "prompt": PROMPT, **change}
    answer = httpx.post(f"{client.base_url}completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(error["message"]) < 400  # values of any length are not repeated


CHAT_REFUSED = {
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "json": ({"response_format": {"type": "json_object"}}, "response_format.type"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    "tool's answer": ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "x"}]}, None),
    "nobody": ({"messages": []}, "messages"),
    "no messages": ({"messages": None}, "messages"),
    "top_logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "two lengths": ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    "template": ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, None),
    "too long": ({"messages": [{"role": "user", "content": "word " * 200}]}, "messages"),
}


@pytest.mark.parametrize(("change", "param"), CHAT_REFUSED.values(), ids=CHAT_REFUSED.keys())
def test_what_a_chat_refuses(client, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny-0", "messages": [{"role": "user", "content": "a"}], **change})
    assert caught.value.type == "invalid_request_error"
    assert param is None or caught.value.param == param


def test_fields_that_ask_for_nothing_are_accepted(client):
    client.chat.completions.create(
        model="tiny-0",
        messages=[{"role": "user", "content": "a", "name": "Anna"}],
        max_tokens=1,
        user="anna",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        tool_choice="none",
        stop=[],
        logit_bias={},
        prompt_cache_key="x",
    )


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-9", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")


@pytest.mark.parametrize("body", [b"{", b"[1]", b"", b"\xff{}", b"[" * 50_000, b'{"model": NaN}', b"null"])
def test_bodies_that_are_no_request(served, body):
    for path in ("completions", "chat/completions", "trace"):
        answer = httpx.post(f"{served.url}/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_keys_open_the_server(serve, tiny_model, caplog):
    from palimpsest.serving.auth import KeyRing

    caplog.set_level("DEBUG")
    with serve(tiny_model, keys=KeyRing(KEYS)) as started:
        for key in KEYS:
            openai.OpenAI(base_url=started.url, api_key=key).models.list()
        wrong = openai.OpenAI(base_url=started.url, api_key="a-key-for-the-tests-0003", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            wrong.completions.create(model="tiny-0", prompt="a secret prompt")
        assert caught.value.code == "invalid_api_key"
        assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
        assert httpx.get(f"{started.root}/metrics").status_code == 401
        assert httpx.get(f"{started.root}/healthz").json() == {"status": "ready"}
        openai.OpenAI(base_url=started.url, api_key=KEYS[1]).completions.create(model="tiny-0", prompt="a secret prompt", max_tokens=1)
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("palimpsest"))
    assert "key 2" in logged
    assert "secret" not in logged
    assert not any(key in logged for key in [*KEYS, "a-key-for-the-tests-0003"])


def test_the_rate_of_a_key_is_limited(serve, tiny_model):
    from palimpsest.serving.auth import KeyRing
    from palimpsest.serving.limits import Limits

    with serve(tiny_model, keys=KeyRing(KEYS), limits=Limits(key_rate=2, key_streams=2)) as started:
        first, second = (openai.OpenAI(base_url=started.url, api_key=key, max_retries=0) for key in KEYS)
        for _ in range(2):
            first.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            first.models.list()
        assert int(caught.value.response.headers["Retry-After"]) in (29, 30)
        with pytest.raises(openai.BadRequestError, match="2 are allowed"):
            second.completions.create(model="tiny-0", prompt="a", n=3)
        assert len(second.completions.create(model="tiny-0", prompt="a", n=2).choices) == 2


def test_without_a_template_a_chat_says_what_to_do(serve, tiny_model):
    with serve(tiny_model, chat_template=None, name="mine") as started:
        client = openai.OpenAI(base_url=started.url, api_key="any", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="--chat-template") as caught:
            client.chat.completions.create(model="mine", messages=[{"role": "user", "content": "a"}])
        assert caught.value.code == "no_chat_template"
        assert client.completions.create(model="mine", prompt="a", max_tokens=1).model == "mine"
