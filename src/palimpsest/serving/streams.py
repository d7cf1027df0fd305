"""The answer to one request, as it is being written: read by any thread or any event loop, cancelled by whoever reads it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from palimpsest.serving.requests import FinishReason, GenerationRequest, Piece, Usage


class Stream:
    """Pieces of one answer, in order; iteration ends behind the piece that has a finish reason.

    It can be read by `for piece in stream` in a thread or `async for piece in stream` in an event loop, by one reader. As a context
    manager it cancels what is not finished when the block is left.

    Attributes:
        request: what was asked.
        finish_reason: of the answer; None while it is being written.
        usage: tokens so far.

    Example:
        >>> with engine.submit(GenerationRequest([1, 2, 3])) as stream:    # doctest: +SKIP
        ...     for piece in stream:
        ...         print(piece.text, end="")
    """

    def __init__(self, request: GenerationRequest, wake: Callable[[], None]) -> None:
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.usage = Usage()
        self.cancelled = False
        self._wake = wake
        self._pieces: deque[Piece] = deque()
        self._ended = False  # whether the last piece has been read
        self._changed = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def cancel(self) -> None:
        """Nobody will read on: the engine frees the slot before its next step. Does nothing where the answer is finished."""
        self.cancelled = True
        self._wake()

    def put(self, piece: Piece, usage: Usage) -> None:
        """Adds a piece; the engine does it."""
        with self._changed:
            self._pieces.append(piece)
            self.usage = usage
            self.finish_reason = piece.finish_reason
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(_awake, future)

    def collect(self, timeout: float | None = None) -> Piece:
        """All that is left of the answer, as one piece; an echoed prompt stands in front of it.

        Args:
            timeout: seconds to wait for each part of it.

        Raises:
            TimeoutError: nothing came for so long.
        """
        pieces = []
        while (piece := self._next(timeout)) is not None:
            pieces.append(piece)
        return merge(pieces)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        piece = self._next(None)
        if piece is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        while True:
            with self._changed:
                if self._pieces or self._ended:
                    piece = self._take()
                    break
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiters.append((loop, future))
            await future
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.finish_reason is None:
            self.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__(kind, error, trace)

    def _next(self, timeout: float | None) -> Piece | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._pieces or self._ended, timeout):
                raise TimeoutError(f"No piece came for {timeout} seconds.")
            return self._take()

    def _take(self) -> Piece | None:
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        self._ended = piece.finish_reason is not None
        return piece


def merge(pieces: list[Piece]) -> Piece:
    """One piece that says what `pieces` say, at least one, one after the other."""
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return replace(
        pieces[-1],
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        text="".join(piece.text for piece in pieces),
        logprobs=tuple(entry for part in logprobs for entry in part) if logprobs else None,
        echo=any(piece.echo for piece in pieces),
    )


def _awake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
