"""From the engine's pieces to answers of the OpenAI API, whole or as a stream of chunks.

A text's pieces go through the same code either way: `_Text` gathers what has been written, and the two subclasses of `Answers` say
what a piece looks like in their API. With `echo` the engine's first piece is the prompt.
"""

from __future__ import annotations

import codecs
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from palimpsest.serving.openai_answers import (
    AssistantMessage,
    CachedTokens,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    Extension,
    FinishReason,
    GuardReport,
    TopLogprob,
    Usage,
)

if TYPE_CHECKING:
    from palimpsest.serving.generation import Generation
    from palimpsest.serving.requests import Piece, TokenLogprob
    from palimpsest.serving.service import Service


class _Text:
    """One text so far: its pieces, and how many characters of it stand before the next token."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.reason: FinishReason | None = None
        self.offset = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, piece: Piece) -> None:
        self.parts.append(piece.text)
        self.logprobs.extend(piece.logprobs or ())
        self.reason = _reason(piece)


class Answers(ABC):
    """The answer to one request.

    Args:
        service: the server.
        generation: the texts that are being written.
        n: texts for each prompt.
        usage_chunk: whether a stream ends with a chunk that says what was used.
    """

    prefix: str

    def __init__(self, service: Service, generation: Generation, n: int, usage_chunk: bool = False) -> None:
        self.service, self.generation, self.n, self.usage_chunk = service, generation, n, usage_chunk
        self.texts = [_Text() for _ in generation.streams]
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    async def whole(self) -> bytes:
        """The whole answer as JSON, once all texts are written."""
        async for batch in self.generation.batches():
            for index, piece in batch:
                self.texts[index].add(piece)
        return self._answer().model_dump_json().encode()

    async def chunks(self) -> AsyncIterator[list[str]]:
        """The chunks of a stream as JSON, in lists of those that can be sent together."""
        opening = [chunk for index in range(len(self.texts)) for chunk in self._opening(index)]
        if opening:
            yield [self._dump(chunk) for chunk in opening]
        async for batch in self.generation.batches():
            chunks = []
            for index, piece in batch:
                chunks += self._chunks(index, piece)
            if chunks:
                yield [self._dump(chunk) for chunk in chunks]
        if self.usage_chunk:
            yield [self._dump(self._last())]

    def usage(self) -> Usage:
        """What all texts together have used; a prompt with n texts counts once."""
        used = [stream.usage for stream in self.generation.streams]
        prompt = sum(one.prompt_tokens for one in used[:: self.n])
        cached = sum(one.cached_tokens for one in used[:: self.n])
        written = sum(one.completion_tokens for one in used)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=written,
            total_tokens=prompt + written,
            prompt_tokens_details=CachedTokens(cached_tokens=cached),
        )

    def extension(self) -> Extension:
        """What the guard did, if there is one."""
        if not self.service.engine.guarded:
            return Extension(guard=None)
        return Extension(guard=GuardReport(interventions=sum(stream.usage.guard_interventions for stream in self.generation.streams)))

    def _at_end(self, reason: FinishReason | None) -> dict[str, Any]:
        """What the chunk that ends a text says beside it: what the guard has done up to now."""
        return {} if reason is None else {"palimpsest": self.extension()}

    def _dump(self, chunk: BaseModel) -> str:
        if self.usage_chunk and "usage" not in chunk.model_fields_set:
            chunk.usage = None  # type: ignore[attr-defined]
        return chunk.model_dump_json(exclude_unset=True)

    @abstractmethod
    def _answer(self) -> BaseModel: ...

    @abstractmethod
    def _opening(self, index: int) -> list[BaseModel]: ...

    @abstractmethod
    def _chunks(self, index: int, piece: Piece) -> list[BaseModel]: ...

    @abstractmethod
    def _last(self) -> BaseModel: ...


class CompletionAnswers(Answers):
    """Answers of `/v1/completions`."""

    prefix = "cmpl"

    def _answer(self) -> Completion:
        choices = [
            CompletionChoice(
                index=index, text="".join(text.parts), logprobs=self._logprobs(text, text.logprobs, index), finish_reason=text.reason
            )
            for index, text in enumerate(self.texts)
        ]
        return Completion(**self.head, object="text_completion", choices=choices, usage=self.usage(), palimpsest=self.extension())

    def _opening(self, index: int) -> list[BaseModel]:
        return []

    def _chunks(self, index: int, piece: Piece) -> list[BaseModel]:
        reason = _reason(piece)
        if not piece.text and reason is None and not piece.logprobs:
            return []
        logprobs = self._logprobs(self.texts[index], list(piece.logprobs or ()), index)
        choice = CompletionChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=reason)
        return [Completion(**self.head, object="text_completion", choices=[choice], **self._at_end(reason))]

    def _last(self) -> BaseModel:
        return Completion(**self.head, object="text_completion", choices=[], usage=self.usage())

    def _logprobs(self, text: _Text, entries: list[TokenLogprob], index: int) -> CompletionLogprobs | None:
        wanted = self.generation.streams[index].request.logprobs
        if wanted is None:
            return None
        texts = self.service.texts
        offsets = []
        for entry in entries:
            offsets.append(text.offset)
            raw = texts.raw(entry.token_id)
            text.offset += len(texts.text(entry.token_id)) if raw is None else len(text.decoder.decode(raw))
        return CompletionLogprobs(
            tokens=[texts.text(entry.token_id) for entry in entries],
            token_logprobs=[None if math.isnan(entry.logprob) else entry.logprob for entry in entries],
            top_logprobs=[{texts.text(token): value for token, value in reversed(entry.top)} or None for entry in entries]
            if wanted
            else None,
            text_offset=offsets,
        )


class ChatAnswers(Answers):
    """Answers of `/v1/chat/completions`."""

    prefix = "chatcmpl"

    def _answer(self) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content="".join(text.parts)),
                logprobs=self._logprobs(text.logprobs, index),
                finish_reason=text.reason or "stop",
            )
            for index, text in enumerate(self.texts)
        ]
        return ChatCompletion(**self.head, choices=choices, usage=self.usage(), palimpsest=self.extension())

    def _opening(self, index: int) -> list[BaseModel]:
        return [self._chunk(index, Delta(role="assistant", content=""), None, None)]

    def _chunks(self, index: int, piece: Piece) -> list[BaseModel]:
        reason, out = _reason(piece), []
        if piece.text or piece.logprobs:
            out.append(self._chunk(index, Delta(content=piece.text), self._logprobs(list(piece.logprobs or ()), index), None))
        if reason is not None:
            out.append(self._chunk(index, Delta(), None, reason))
        return out

    def _last(self) -> BaseModel:
        return ChatChunk(**self.head, object="chat.completion.chunk", choices=[], usage=self.usage())

    def _chunk(self, index: int, delta: Delta, logprobs: ChatLogprobs | None, reason: FinishReason | None) -> BaseModel:
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return ChatChunk(**self.head, object="chat.completion.chunk", choices=[choice], **self._at_end(reason))

    def _logprobs(self, entries: list[TokenLogprob], index: int) -> ChatLogprobs | None:
        if self.generation.streams[index].request.logprobs is None:
            return None
        content = [
            ChatLogprob(**self._token(entry.token_id, entry.logprob), top_logprobs=[TopLogprob(**self._token(*top)) for top in entry.top])
            for entry in entries
        ]
        return ChatLogprobs(content=content, refusal=None)

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self.service.texts.raw(token)
        return {"token": self.service.texts.text(token), "logprob": logprob, "bytes": None if raw is None else list(raw)}


def _reason(piece: Piece) -> FinishReason | None:
    """OpenAI's name of how a text ended; texts that failed do not come here."""
    reason = piece.finish_reason
    return reason if reason in ("stop", "length", "content_filter") else None
