"""Answers as server-sent events: one `data:` line a chunk, `data: [DONE]` at the end, and what happens when the end comes early.

Form: the HTML standard's event streams (https://html.spec.whatwg.org/multipage/server-sent-events.html), as OpenAI uses them. An error
that comes after the first chunk can no longer be a status: it is sent as a last chunk `{"error": …}`, on which OpenAI's clients raise,
and `[DONE]` does not follow. A client that has gone, or that reads too slowly, gets nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from palimpsest.serving.generation import EndedEarly, Generation
from palimpsest.serving.openai_errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
_LAST_WORDS = 1.0  # seconds that a client has to take the last event when its answer ends early


def event(data: str) -> bytes:
    """One event. JSON has no line breaks of its own, so it is one line."""
    return b"data: " + data.encode() + b"\n\n"


class EventStream(StreamingResponse):
    """A streamed answer.

    Args:
        generation: the texts that are being written; ended with the answer.
        chunks: the answer's chunks as JSON, in lists of those to be sent together.
        explain: makes an `ApiError` of what went wrong, and logs it where that is called for.
        headers: of the answer.
    """

    def __init__(
        self,
        generation: Generation,
        chunks: AsyncIterator[list[str]],
        explain: Callable[[Exception], ApiError],
        headers: dict[str, str],
    ) -> None:
        super().__init__((), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}, media_type="text/event-stream")
        self._generation, self._chunks, self._explain = generation, chunks, explain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer while the client reads it."""
        started = False

        async def write() -> None:
            nonlocal started
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            started = True
            async for chunks in self._chunks:
                await send({"type": "http.response.body", "body": b"".join(map(event, chunks)), "more_body": True})
            await send({"type": "http.response.body", "body": DONE, "more_body": False})

        try:
            await self._generation.run(write(), receive)
        except Exception as error:
            if isinstance(error, EndedEarly) and error.reason in ("disconnected", "slow_reader"):
                return  # the connection is gone, or is closed for having been left unread
            refused = self._explain(error)
            if not started:
                raise refused from None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await send({"type": "http.response.body", "body": event(refused.body().decode()), "more_body": False})
