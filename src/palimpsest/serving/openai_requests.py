"""From requests of the OpenAI API to requests of the engine: prompts become token ids, defaults are those of OpenAI.

n texts for each prompt are n requests of the engine, in OpenAI's order of choices: all texts of the first prompt, then those of the
second. The first text of a prompt has the request's own seed, the others seeds derived from it, so that the same request gives the
same texts. A request without a seed gets a random one.

Tokenizing a long prompt takes a while: both functions belong into a worker thread.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.models.base import COLDEST
from palimpsest.models.hf import UNLIMITED_CONTEXT
from palimpsest.serving.openai_errors import ApiError, from_library
from palimpsest.serving.openai_schema import ChatRequest, CompletionRequest, SamplingRequest
from palimpsest.serving.requests import GenerationRequest

if TYPE_CHECKING:
    from palimpsest.serving.service import Service

_DEFAULT_TOKENS = 16  # of a completion, as at OpenAI
_UNBOUNDED = 4096  # tokens of a chat's answer when neither the request nor the model's context says where to stop
_SMALLEST_NUCLEUS = 1e-9  # top_p = 0 is allowed by OpenAI and leaves the likeliest token


def completion_requests(service: Service, body: CompletionRequest, client: str) -> list[GenerationRequest]:
    """The engine's requests for a completion.

    Raises:
        ApiError: fields that do not go together.
        InputError: an empty prompt, or what the engine refuses.
    """
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            400, "'best_of' is not supported unless it is 'n': no texts are thrown away here.", "unsupported_parameter", "best_of"
        )
    tokens = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if not tokens and not body.echo:
        raise ApiError(400, "'max_tokens' is 0: nothing would be written. Give at least 1, or 'echo'.", "invalid_value", "max_tokens")
    prompt = body.prompt
    if isinstance(prompt, str):
        rows = [service.tokenizer.encode(prompt)]
    elif isinstance(prompt[0], str):
        rows = service.tokenizer.encode_batch([text for text in prompt if isinstance(text, str)])
    elif isinstance(prompt[0], int):
        rows = [[token for token in prompt if isinstance(token, int)]]
    else:
        rows = [row for row in prompt if isinstance(row, list)]
    return _requests(service, body, rows, [tokens] * len(rows), body.logprobs, client, echo=bool(body.echo))


def chat_requests(service: Service, body: ChatRequest, client: str) -> list[GenerationRequest]:
    """The engine's requests for an answer in a conversation.

    Raises:
        ApiError: fields that do not go together, or a model without a chat template.
        InputError: messages that the template refuses, or what the engine refuses.
    """
    if service.chat is None:
        raise ApiError(
            400,
            f"{service.name} has no chat template, so it cannot be talked to in messages. Use /v1/completions, or have the server "
            "started with --chat-template FILE.",
            "no_chat_template",
            "messages",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "'top_logprobs' needs 'logprobs' to be true.", "invalid_value", "top_logprobs")
    newer, older = body.max_completion_tokens, body.max_tokens
    if newer is not None and older is not None and newer != older:
        raise ApiError(400, "'max_tokens' and 'max_completion_tokens' differ: give one of them.", "invalid_value", "max_tokens")
    ids = service.chat.ids(body.messages)
    most = service.engine.context_length
    room = most - len(ids) - int(service.engine.model.prepends_bos)
    tokens = newer or older or (min(room, _UNBOUNDED) if most >= UNLIMITED_CONTEXT else max(room, 1))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _requests(service, body, [ids], [tokens], logprobs, client)


def _requests(
    service: Service,
    body: SamplingRequest,
    rows: list[list[int]],
    tokens: list[int],
    logprobs: int | None,
    client: str,
    echo: bool = False,
) -> list[GenerationRequest]:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "'stream_options' needs 'stream' to be true.", "invalid_value", "stream_options")
    if not all(rows):
        raise InputError("A prompt is empty.", "Give at least one token.")
    texts, room = len(rows) * (body.n or 1), service.engine.max_slots + service.engine.max_waiting
    if texts > room:
        raise ApiError(400, f"{texts} texts were asked for at once; this server holds {room}.", "too_many_texts", "n")
    seed = secrets.randbits(63) if body.seed is None else body.seed % (1 << 64)
    top_p = None if body.top_p is None else max(body.top_p, _SMALLEST_NUCLEUS)
    temperature = 1.0 if body.temperature is None else body.temperature
    if temperature < COLDEST:  # clients send 1e-8 and mean greedy
        temperature = 0.0
    stop = () if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    requests = []
    for row, most in zip(rows, tokens, strict=True):
        for number in range(body.n or 1):
            request = GenerationRequest(
                tuple(row),
                max_new_tokens=most,
                temperature=temperature,
                top_p=top_p,
                top_k=body.top_k,
                seed=_derived(seed, number),
                stop=stop,
                logprobs=logprobs,
                echo=echo,
                logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
                presence_penalty=body.presence_penalty or 0.0,
                frequency_penalty=body.frequency_penalty or 0.0,
                prefix_key=client,  # how fast an answer comes must not tell what others asked
            )
            requests.append(request)
        try:
            service.engine.check(requests[-1])
        except ContextOverflowError as error:
            raise from_library(error, "messages" if isinstance(body, ChatRequest) else "prompt") from error
    return requests


def _derived(seed: int, number: int) -> int:
    """The seed of the `number`-th text of a prompt, below 2^63."""
    return seed % (1 << 63) if not number else int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
