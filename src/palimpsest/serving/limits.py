"""What one client may take: requests a minute, streams at once, bytes of a body, seconds to send it.

The rate is a token bucket (a full minute's requests may come at once, then they come back one by one). A client is a key, or an
address where the server has no keys. What all clients together may take is the engine's business: its waiting room.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from palimpsest.errors import InputError
from palimpsest.serving.openai_errors import ApiError

_REMEMBERED = 10_000  # clients whose rate is known; who has not come for longest is forgotten


@dataclass(frozen=True)
class Limits:
    """The limits of the server.

    Args:
        max_body: bytes of a request's body.
        body_timeout: seconds until the body must have come.
        request_timeout: seconds that one answer may take, waiting included.
        stall_timeout: seconds that a client may leave what was sent to it unread.
        stream_buffer: pieces of one answer that may wait for a slow reader; with more the answer is cancelled.
        key_rate: requests a minute of one client; 0 for no limit.
        key_streams: texts of one client being written or waiting at once; 0 for no limit.
        max_trace: characters of a text to trace.

    Raises:
        InputError: a limit that is not positive, a rate or a number of streams below 0.
    """

    max_body: int = 1 << 20
    body_timeout: float = 15.0
    request_timeout: float = 600.0
    stall_timeout: float = 30.0
    stream_buffer: int = 512
    key_rate: int = 0
    key_streams: int = 0
    max_trace: int = 50_000

    def __post_init__(self) -> None:
        for name in ("max_body", "body_timeout", "request_timeout", "stall_timeout", "stream_buffer", "max_trace"):
            if not getattr(self, name) > 0:
                raise InputError(f"The limit {name} is {getattr(self, name)}.", "Give a number above 0.")
        for name in ("key_rate", "key_streams"):
            if getattr(self, name) < 0:
                raise InputError(f"The limit {name} is {getattr(self, name)}.", "Give a number of at least 0; 0 is no limit.")


class Turnstile:
    """Counts what every client takes, and refuses what is too much. Used on the event loop only, so nothing is locked.

    Args:
        limits: the limits.
        clock: seconds, for tests.

    Example:
        >>> turnstile = Turnstile(Limits(key_rate=1))
        >>> turnstile.pass_through("key 1")
        >>> turnstile.pass_through("key 1")
        Traceback (most recent call last):
        palimpsest.serving.openai_errors.ApiError: More than 1 requests a minute. Try again in 60 s.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: (requests left, when that was)
        self._streams: dict[str, int] = {}

    def pass_through(self, client: str) -> None:
        """Counts a request.

        Raises:
            ApiError: 429, the client has sent too many in a minute.
        """
        rate = self.limits.key_rate
        if not rate:
            return
        now = self._clock()
        left, then = self._buckets.get(client, (float(rate), now))
        left = min(rate, left + (now - then) * rate / 60)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        if left < 1:
            seconds = math.ceil((1 - left) * 60 / rate)
            raise _too_many(f"More than {rate} requests a minute. Try again in {seconds} s.", seconds)

    def take(self, client: str, streams: int) -> None:
        """Takes places for `streams` texts; they must be given back.

        Raises:
            ApiError: 429, the client has too many already; 400, it can never have so many.
        """
        most, taken = self.limits.key_streams, self._streams.get(client, 0)
        if most and streams > most:
            raise ApiError(400, f"{streams} texts were asked for at once; {most} are allowed.", "too_many_texts", "n")
        if most and taken + streams > most:
            raise _too_many(f"{taken} texts are being written for you; {most} are allowed at once. Wait for one to end.", 1)
        self._streams[client] = taken + streams

    def give_back(self, client: str, streams: int) -> None:
        """Gives the places back."""
        left = self._streams[client] - streams
        if left:
            self._streams[client] = left
        else:
            del self._streams[client]


def _too_many(message: str, seconds: int) -> ApiError:
    return ApiError(429, message, "rate_limit_exceeded", headers={"Retry-After": str(seconds)})
