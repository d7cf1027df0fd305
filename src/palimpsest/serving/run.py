"""The application under uvicorn, with what the plain server lacks: patience with an end, and an ending that keeps its word.

A connection must send the head of a request in time, and must not leave more than what fits into the buffers unread for long: else it
is cut off, so that neither holds a place for ever.

The first SIGTERM or SIGINT closes the door: no new connections, no new requests. Answers under way go on for `drain_timeout` seconds;
what is left then ends with an error that says so. A second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import functools
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from palimpsest.errors import InputError, MissingDependencyError, StorageError

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingDependencyError("The server needs uvicorn.", "pip install 'palimpsest-lm[serve]'") from error

if TYPE_CHECKING:
    from fastapi import FastAPI

_LAST_WORDS = 5.0  # seconds that answers have to end once they were told to


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit on the head of a request and on unread answers.

    Args:
        head_timeout: seconds from a connection's first byte, or its opening, to the end of a request's head.
        stall_timeout: seconds that a full write buffer may stay full.
    """

    def __init__(self, *args: Any, head_timeout: float, stall_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timeout, self._stall_timeout = head_timeout, stall_timeout
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Stops the clock when a head is whole, starts it when another begins."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_clocks("_head_timer")
        elif self._head_timer is None and self.conn.our_state is h11.IDLE:
            self._await_head()

    def pause_writing(self) -> None:
        """The write buffer is full: starts the clock of the reader."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It has room again."""
        self._stop_clocks("_stall_timer")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all clocks."""
        self._stop_clocks("_head_timer", "_stall_timer")
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._head_timeout, self.transport.abort)

    def _stop_clocks(self, *names: str) -> None:
        for name in names:
            timer = getattr(self, name)
            if timer is not None:
                timer.cancel()
            setattr(self, name, None)


class DrainingServer(uvicorn.Server):
    """uvicorn's server with two-step ending.

    Args:
        app: of `create_app`.
        host, port: where to listen; port 0 takes a free one.
        drain_timeout: seconds that answers under way have to end by themselves.
        max_connections: connections open at once; more are answered 503 and closed.
        on_start: called with (host, port) when the server listens.

    Raises:
        InputError: a time or a number that is not positive.

    Example:
        >>> DrainingServer(create_app(engine), port=8000).run()     # doctest: +SKIP
    """

    def __init__(
        self,
        app: FastAPI,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        drain_timeout: float = 30.0,
        max_connections: int = 1024,
        on_start: Callable[[str, int], None] | None = None,
    ) -> None:
        if not 0 <= drain_timeout < math.inf or max_connections < 1:
            raise InputError(
                f"drain_timeout is {drain_timeout}, max_connections is {max_connections}.", "Give a finite number >= 0, and 1 or more."
            )
        self.service, self.drain_timeout, self._on_start = app.state.service, drain_timeout, on_start
        self._socket = _listen(host, port)
        limits = self.service.limits
        protocol = functools.partial(TimedProtocol, head_timeout=limits.body_timeout, stall_timeout=limits.stall_timeout)
        config = uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            access_log=False,  # the gate writes its own, without query strings
            log_level="warning",
            proxy_headers=False,  # whoever asks could call itself what it likes
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(drain_timeout + _LAST_WORDS) + 1,
            limit_concurrency=max_connections,
            backlog=min(max_connections, 2048),
        )
        super().__init__(config)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to end."""
        super().run(sockets or [self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start(*self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets answers under way end, for a while."""
        self.service.drain()
        timer = asyncio.get_running_loop().call_later(self.drain_timeout, self.service.expire)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the ending, the second ends it."""
        self.force_exit, self.should_exit = self.should_exit, True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while it serves; they are not raised again, for the ending was their answer."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port that is taken is known before anything else happens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise StorageError(f"Cannot listen on {host} port {port}: {error}.", "Choose another --host or --port.") from error
    return listener
