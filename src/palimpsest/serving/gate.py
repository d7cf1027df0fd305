"""The gate in front of the routes, an ASGI middleware: who asks, whether the server takes requests, and the whole body within limits.

Everything that can be refused without the body is refused before it is read: a wrong key, a draining server, a rate, a length that is
announced and too great. The body is then read at once, cut off when it grows beyond the limit (also when no length was announced) or
does not come in time, and handed on whole. A refused body is not read to its end: the connection is closed.

It also writes the log's one line a request, counts, and answers what nobody else has caught. Neither prompts nor keys are logged, and
of an unexpected error only its kind and where it was raised, for its message may hold values.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from typing import TYPE_CHECKING, Any

from palimpsest.serving.auth import bearer
from palimpsest.serving.openai_errors import ApiError, internal_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from palimpsest.serving.service import Service

logger = logging.getLogger("palimpsest.serving")
OPEN = frozenset({"/healthz", "/openapi.json"})  # without a key; everything else needs one when there are keys
NOT_DRAINED = frozenset({"/healthz", "/metrics", "/openapi.json"})  # answered as long as the server lives


class Gate:
    """The middleware.

    Args:
        app: what is behind it.
        service: what the server is made of.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        scope["palimpsest.visit"] = visit
        metrics = self.service.metrics
        metrics.in_flight.inc()
        try:
            body = await self._admit(scope, receive, visit)
            await self.app(scope, _replay(body, receive), visit.send)
        except ApiError as error:
            await visit.refuse(error)
        except Exception as error:
            logger.error("request %s failed: %s\n%s", visit.id, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
            if visit.status:  # a half-sent answer can only be broken off
                raise ConnectionAbortedError(f"request {visit.id} failed") from None
            await visit.refuse(internal_error())
        finally:
            metrics.in_flight.dec()
            seconds = time.perf_counter() - visit.began
            route = getattr(scope.get("route"), "path", "other")
            metrics.requests.labels(route, visit.method, str(visit.status or 499)).inc()
            metrics.seconds.labels(route).observe(seconds)
            logger.info(
                "%s %s %s %s %.0f ms, %s",
                visit.id,
                visit.method,
                route,
                visit.status or "no answer",
                1000 * seconds,
                visit.client or "no key",
            )

    async def _admit(self, scope: Scope, receive: Receive, visit: _Visit) -> bytes:
        """The request's body, or an `ApiError`."""
        service, path = self.service, scope["path"]
        address = scope["client"][0] if scope.get("client") else "local"
        visit.client = address
        if len(service.keys) and path not in OPEN:
            visit.client = ""
            token = bearer(scope["headers"])
            if token is None:
                raise _unauthorized("No API key was given. Send it in the header Authorization: Bearer KEY.")
            number = service.keys.number(token)
            if number is None:
                raise _unauthorized("The API key is wrong.")
            visit.client = f"key {number}"
        if path not in NOT_DRAINED:
            if service.draining:
                raise ApiError(503, "The server is shutting down.", "shutting_down", headers={"Retry-After": "10"})
            service.turnstile.pass_through(visit.client)
        try:
            async with asyncio.timeout(service.limits.body_timeout):
                return await self._read(scope, receive)
        except TimeoutError:
            message = f"The body did not come within {service.limits.body_timeout:g} s."
            raise ApiError(408, message, "request_timeout", headers={"Connection": "close"}) from None

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most = self.service.limits.max_body
        too_large = ApiError(413, f"The body is larger than {most:,} bytes.", "request_too_large", headers={"Connection": "close"})
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > most:
            raise too_large
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(499, "The client went before its body had come.", "client_disconnected")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise too_large
        return bytes(body)


class _Visit:
    """One request on its way through: its number, its client, and what was answered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.id = f"req_{uuid.uuid4().hex}"
        self.method = scope["method"] if scope["method"] in _METHODS else "other"
        self.began = time.perf_counter()
        self.client = ""
        self.status = 0
        self._send = send

    async def send(self, message: Message) -> None:
        """Passes a message on, with the request's number in the headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", self.id.encode())]}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answers with an error, unless an answer is under way."""
        if self.status:
            return
        body = error.body()
        headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"})


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, then what else comes: the client's going."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
