"""The answers of the OpenAI API that the server gives, as pydantic models, and those of its own routes.

Every answer is built from these models, so that the schema at `/openapi.json` is what is sent. `palimpsest` in a completion is this
server's own: what OpenAI's answers have no place for.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class CachedTokens(_Answer):
    """Of the prompt's tokens, those that another prompt's beginning had been computed for."""

    cached_tokens: int


class Usage(_Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class GuardReport(_Answer):
    """What the guard did."""

    interventions: int
    """Tokens that would have been another one without the guard."""


class Extension(_Answer):
    """What OpenAI's answers have no place for."""

    guard: GuardReport | None
    """Null when the server has no guard."""


FinishReason = Literal["stop", "length", "content_filter"]


class CompletionLogprobs(_Answer):
    """Log-probs of a completion: parallel lists, one entry a token. The first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(_Answer):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(_Answer):
    """An answer of `/v1/completions`; a chunk of a stream has the same form."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    palimpsest: Extension | None = None


class TopLogprob(_Answer):
    """A likely token and its log-prob."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token written, its log-prob, and the likeliest tokens in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    """Log-probs of a message, one entry a token."""

    content: list[ChatLogprob]
    refusal: None = None


class AssistantMessage(_Answer):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Answer):
    """One answer of the model."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    """An answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    palimpsest: Extension


class Delta(_Answer):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Answer):
    """What a chunk adds to one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(_Answer):
    """A chunk of a streamed answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    palimpsest: Extension | None = None


class ModelCard(_Answer):
    """A model that the server has."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "palimpsest"
    max_model_len: int
    palimpsest: dict[str, Any]


class ModelList(_Answer):
    """The models that the server has: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(_Answer):
    """Whether the server takes requests."""

    status: Literal["ready", "draining", "failed"]


class TracedSpanOut(_Answer):
    """A passage of the text that stands in the corpus; see `palimpsest.corpus.traced_text.TracedSpan`."""

    start: int
    end: int
    tokens: tuple[int, int]
    count: int
    bits: float
    documents: list[dict[str, Any]]


class TracedTextOut(_Answer):
    """A text and what of it stands in the corpus; see `palimpsest.corpus.traced_text.TracedText`."""

    corpus: str
    """The fingerprint of the corpus."""
    min_len: int
    text: str
    tokens: int
    spans: list[TracedSpanOut]
    passages: list[tuple[int, int]]
    documents: list[dict[str, Any]]
    covered: float


class ErrorDetail(_Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    """An error, in OpenAI's form."""

    error: ErrorDetail
