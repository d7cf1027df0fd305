"""The requests of the OpenAI API that the server takes, as pydantic models.

The fields are those of OpenAI's reference for `/v1/completions` and `/v1/chat/completions`. Requests are read strictly, as OpenAI
reads them: no number in quotes, no field that is not known. A field that stands for something that this server does not do (tools,
JSON answers, sound) may be null and nothing else, so that nobody takes its silence for obedience. Fields that ask for nothing
(`user`, `metadata`) are accepted and not used. One field is this server's own: `top_k`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

LONGEST_LIST = 2048  # prompts in one request, as at OpenAI


def _encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text and cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("lone_surrogate", "the text holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopText = Annotated[str, StringConstraints(min_length=1), AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasedId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
NotSupported = Annotated[None, Field(default=None, description="Not supported: null or absent.")]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class StreamOptions(_Request):
    """How a stream is sent."""

    include_usage: bool | None = None
    """Whether a last chunk without choices says what was used."""
    include_obfuscation: Literal[False] | None = None


class TextFormat(_Request):
    """The only form of answers: text."""

    type: Literal["text"]


class SamplingRequest(_Request):
    """What both kinds of requests say of the sampling."""

    model: Text
    """The name of the model, as `/v1/models` has it."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 always takes the likeliest token; 1 when absent."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Not at OpenAI: sample from the so many likeliest tokens."""
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    """Texts for each prompt."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """The same seed gives the same texts."""
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    """Where the text ends; the stop string is not part of it."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[BiasedId, Bias] | None = None
    """Added to the logits of token ids."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    user: Text | None = None
    """Accepted and not used."""


class CompletionRequest(SamplingRequest):
    """A request to `/v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=LONGEST_LIST)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=LONGEST_LIST)]
    )
    """A text, texts, token ids, or lists of token ids."""
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    """The most tokens written, 16 when absent; 0 only with `echo`."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """Log-probs of the tokens written and of so many likeliest ones."""
    echo: bool | None = None
    """Whether the text begins with the prompt."""
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """Not supported unless it is `n`."""
    suffix: NotSupported


class TextPart(_Request):
    """A part of a message: text."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Request):
    """A message of a conversation."""

    role: Literal["developer", "system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = None
    """Accepted and not used."""
    refusal: NotSupported
    tool_calls: NotSupported
    function_call: NotSupported
    audio: NotSupported


class ChatRequest(SamplingRequest):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """The older name of `max_completion_tokens`."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """The most tokens written; as many as the context has room for when absent."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Log-probs of so many likeliest tokens; needs `logprobs`."""
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tool_choice: Literal["none"] | None = None
    function_call: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    """Accepted and not used: there are no tools."""
    store: Literal[False] | None = None
    """Nothing is stored."""
    metadata: dict[str, Text] | None = None
    """Accepted and not used."""
    service_tier: Literal["auto", "default"] | None = None
    """Accepted and not used."""
    safety_identifier: Text | None = None
    """Accepted and not used."""
    prompt_cache_key: Text | None = None
    """Accepted and not used: prompts that begin alike share what was computed."""
    tools: NotSupported
    functions: NotSupported
    audio: NotSupported
    prediction: NotSupported
    reasoning_effort: NotSupported
    verbosity: NotSupported
    web_search_options: NotSupported


class TraceRequest(_Request):
    """A request to `/v1/trace`."""

    text: Annotated[str, StringConstraints(min_length=1), AfterValidator(_encodable)]
    min_len: Annotated[int, Field(ge=1, le=1 << 20)] = 8
    """Shorter passages, in tokens, are left out."""
    max_docs: Annotated[int, Field(ge=0, le=100)] = 10
    """Documents named for each passage."""
    context: Annotated[int, Field(ge=0, le=500)] = 30
    """Tokens shown before and after a passage in its document."""
    rarest: bool = False
    """Only the rarest passages, one for every 20 tokens of text."""
    whole_words: bool = False
    """Passages begin and end between words."""
