"""All texts of one request: submitted together or not at all, read together, and ended together.

The engine writes into its own streams whatever the network does. Here one task a text takes the pieces over, into a queue that holds
at most `stream_buffer` of each: a reader who is slower than that loses the answer, and the engine never waits. Whatever ends the
request from outside (the client hangs up, time is over, the server stops, the reader is too slow) cancels the engine's streams at
once, so that their places are free before the next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from palimpsest.errors import EngineStoppedError
from palimpsest.serving.openai_errors import ApiError, internal_error

if TYPE_CHECKING:
    from starlette.types import Receive

    from palimpsest.serving.engine import Stream
    from palimpsest.serving.requests import GenerationRequest, Piece
    from palimpsest.serving.service import Service

Reason = Literal["disconnected", "slow_reader", "timeout", "shutdown"]
T = TypeVar("T")


class EndedEarly(Exception):
    """A request was ended from outside.

    Args:
        reason: by what.
    """

    def __init__(self, reason: Reason, seconds: float) -> None:
        self.reason = reason
        self._seconds = seconds
        super().__init__(reason)

    def as_api_error(self) -> ApiError:
        """What the client is told, if it still listens."""
        if self.reason == "timeout":  # to try again would do the same work again in vain
            message = f"The answer took more than {self._seconds:g} s; ask for fewer tokens."
            return ApiError(504, message, "generation_timeout", headers={"x-should-retry": "false"})
        if self.reason == "shutdown":
            return ApiError(503, "The server is shutting down; the answer is not whole.", "shutting_down", headers={"Retry-After": "10"})
        return ApiError(499, f"The request was ended: {self.reason}.", self.reason)  # nobody hears it; it is for the log


class Generation:
    """The texts of one request.

    Args:
        service: the server.
        client: who asks.
        requests: one a text.

    Raises:
        ApiError: the client has too much under way.
        QueueFullError: the waiting room has no place for all of them; none is left there.
        InputError: a request that the model cannot answer.
    """

    def __init__(self, service: Service, client: str, requests: Sequence[GenerationRequest]) -> None:
        self.service, self.client = service, client
        self.streams: list[Stream] = []
        self._began = time.perf_counter()
        self._ended: asyncio.Future[Reason] = asyncio.get_running_loop().create_future()
        self._queue: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()
        service.turnstile.take(client, len(requests))
        self._places = len(requests)
        service.running.add(self)
        try:
            for request in requests:
                self.streams.append(service.engine.submit(request))
        except BaseException:
            self.close()
            raise
        self._pumps = [asyncio.create_task(self._pump(index, stream)) for index, stream in enumerate(self.streams)]

    def end(self, reason: Reason) -> None:
        """Ends the request from outside; the first reason counts."""
        if not self._ended.done():
            self._ended.set_result(reason)
        for stream in self.streams:
            stream.cancel()

    def close(self) -> None:
        """Cancels what is not finished and gives the client's places back; once."""
        for stream in self.streams:
            stream.cancel()
        if self._places:
            self.service.turnstile.give_back(self.client, self._places)
            self._places = 0
        self.service.running.discard(self)

    async def run(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """Does `work`, which reads the pieces, until it is done or the request is ended from outside.

        Raises:
            EndedEarly: it was.
        """
        limits = self.service.limits
        task, gone = asyncio.create_task(work), asyncio.create_task(self._watch(receive))
        timer = asyncio.get_running_loop().call_later(limits.request_timeout, self.end, "timeout")
        try:
            either: list[asyncio.Future[Any]] = [task, self._ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            reason = self._ended.result()
            self.service.metrics.ended.labels(reason).inc()
            raise EndedEarly(reason, limits.request_timeout)
        finally:
            timer.cancel()
            self.close()
            for helper in (task, gone, *self._pumps):
                helper.cancel()
            await asyncio.gather(task, gone, *self._pumps, return_exceptions=True)

    async def batches(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """The pieces of all texts as they come, (number of the text, piece), in lists of those that are there at the same time.

        Raises:
            ApiError: the engine could not go on with one of the texts.
        """
        left = len(self.streams)
        seen = [self._began] * left
        while left:
            batch = []
            entries = [await self._queue.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    entries.append(self._queue.get_nowait())
            for index, piece in entries:
                if isinstance(piece, Exception):
                    raise piece
                if piece is None:
                    left -= 1
                    continue
                seen[index] = self._count(piece, seen[index])
                batch.append((index, piece))
            if batch:
                yield batch

    def _count(self, piece: Piece, before: float) -> float:
        """Counts a piece, and gives the time."""
        metrics, now = self.service.metrics, time.perf_counter()
        if piece.token_ids and not piece.echo:
            if before != self._began:
                metrics.next_token.observe((now - before) / len(piece.token_ids))
            before = now
        return before

    async def _pump(self, index: int, stream: Stream) -> None:
        try:
            async for piece in stream:
                if piece.finish_reason in ("error", "aborted"):
                    self._queue.put_nowait((index, _failure(piece)))
                    return
                if piece.finish_reason == "cancelled":  # nobody reads any more
                    return
                if self._queue.qsize() >= self.service.limits.stream_buffer * len(self.streams):
                    self.end("slow_reader")
                    return
                self._queue.put_nowait((index, piece))
            self._queue.put_nowait((index, None))
        except Exception as error:
            self._queue.put_nowait((index, error))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end("disconnected")


def _failure(piece: Piece) -> Exception:
    """What is raised for a text that the engine could not finish."""
    if piece.finish_reason == "aborted":
        return EngineStoppedError("The engine stopped before the text was finished.", "Ask again.")
    return piece.error if piece.error is not None else internal_error()
