"""A patient client for JSON over HTTP: bounded retries with growing pauses, `Retry-After` obeyed, errors that say what to do.

Worth another try: no connection, a timeout, 408, 429 and 5xx. Everything else is the caller's mistake and is said at once.
"""

from __future__ import annotations

import email.utils
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from palimpsest.errors import ContextOverflowError, EndpointError, InputError

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0  # seconds; a server that asks for more is not waited for


class RefusedRequestError(EndpointError):
    """The server understands the address, but not this request: it lacks what was asked for."""


class NotServedError(EndpointError):
    """The server has no such path or model."""


@dataclass
class JsonClient:
    """Sends JSON to `base_url` and returns JSON; safe to use from several threads.

    Args:
        base_url: address without trailing slash, e.g. "http://localhost:8000/v1".
        api_key: sent as bearer token, None for none.
        timeout: seconds that one answer may take.
        retries: further attempts after the first.
        backoff: seconds before the first retry; doubled for each further one, with up to half as much again at random so that
            several clients do not come back at once.

    Raises:
        InputError: timeout, retries or backoff out of range.
    """

    base_url: str
    api_key: str | None = None
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 0.5
    _http: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise InputError(
                f"timeout is {self.timeout}, retries {self.retries}, backoff {self.backoff}.", "Give a timeout > 0 and the others >= 0."
            )
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        self._http = httpx.Client(timeout=self.timeout, headers=headers, limits=httpx.Limits(max_connections=None))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers.

        Raises:
            EndpointError: down, refused, rate-limited to the end, or an answer that is not a JSON object.
            ContextOverflowError: the server says that the prompt is too long.
        """
        address = f"{self.base_url}{path}"
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            pause = self.backoff * 2**attempt * random.uniform(1.0, 1.5)
            try:
                answer = self._http.request(method, address, json=body)
            except httpx.TimeoutException as error:
                if last:
                    raise EndpointError(
                        f"{address} did not answer within {self.timeout:g} s, {attempt + 1} times.",
                        "Give a longer timeout, or a faster server.",
                    ) from error
            except httpx.TransportError as error:
                if last:
                    raise EndpointError(
                        f"{address} cannot be reached: {str(error) or type(error).__name__}.",
                        "Check that the server runs and the address is right.",
                    ) from error
            except httpx.InvalidURL as error:
                raise EndpointError(f"{address} is not an address: {error}.", "Give http://host:port/v1#name.") from error
            else:
                if answer.status_code not in RETRIED:
                    return _read(answer, address)
                asked = _retry_after(answer)
                if last or asked > LONGEST_PAUSE:
                    raise _refusal(answer, address, attempt + 1, asked)
                pause = max(pause, asked)
            time.sleep(min(pause, LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")


def served_models(client: JsonClient) -> list[dict[str, Any]]:
    """What `GET /models` lists; nothing where the server does not have that path."""
    try:
        entries = client.request("GET", "/models").get("data")
    except (NotServedError, RefusedRequestError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def key_from_environment(base_url: str) -> str | None:
    """$PALIMPSEST_API_KEY, else $OPENAI_API_KEY for https addresses: a key must not travel in the clear, least of all another server's."""
    own = os.environ.get("PALIMPSEST_API_KEY")
    return own or (os.environ.get("OPENAI_API_KEY") if base_url.startswith("https://") else None) or None


def only_model(base_url: str) -> str:
    """The name of the only model that a server offers.

    Raises:
        InputError: it offers none or several, or does not say.
    """
    base_url = base_url.rstrip("/")
    client = JsonClient(base_url, key_from_environment(base_url))
    try:
        names = [str(entry.get("id")) for entry in served_models(client)]
    finally:
        client.close()
    if len(names) != 1:
        offers = f"offers {', '.join(names)}" if names else "does not say which models it has"
        raise InputError(
            f"{base_url} was given without a model's name and {offers}.", "Write the name behind the address: http://host:port/v1#name."
        )
    return names[0]


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks to be left alone, 0 if it asks for nothing: a number, or a date."""
    value = answer.headers.get("Retry-After", "").strip()
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _message(answer: httpx.Response) -> str:
    """What the server says went wrong, in one short line."""
    try:
        value = answer.json()
        error = value.get("error", value)
        said = error.get("message", error) if isinstance(error, dict) else error
    except (AttributeError, ValueError):
        said = answer.text
    return " ".join(str(said).split())[:300] or "no explanation"


def _refusal(answer: httpx.Response, address: str, attempts: int, asked: float) -> EndpointError:
    tries = "once" if attempts == 1 else f"{attempts} times"
    if answer.status_code == 429:
        wish = f" and asks for {asked:.0f} s of rest" if asked else ""
        return EndpointError(
            f"{address} limits the rate: asked {tries}, it answered 429{wish} ({_message(answer)}).",
            "Lower `concurrency`, or try again later: finished work is kept.",
        )
    return EndpointError(
        f"{address} failed: asked {tries}, it answered {answer.status_code} ({_message(answer)}).",
        "Look at the server's log, or try again later.",
    )


def _read(answer: httpx.Response, address: str) -> dict[str, Any]:
    status = answer.status_code
    if status >= 300:
        said = _message(answer)
        if status in (401, 403):
            raise EndpointError(
                f"{address} refuses the key ({status}: {said}).",
                "Set PALIMPSEST_API_KEY (or, for https addresses, OPENAI_API_KEY) to a valid key.",
            )
        if status == 404:
            raise NotServedError(f"{address} has no such model or path (404: {said}).", "Check the address (…/v1) and the name after '#'.")
        if status in (400, 413, 422) and (
            "context length" in said.lower() or "context_length" in answer.text or "context size" in said.lower()
        ):
            raise ContextOverflowError(f"{address} says that the prompt is too long: {said}.", "Give shorter rows, or fewer new tokens.")
        raise RefusedRequestError(
            f"{address} refuses the request ({status}: {said}).", "Check that the server speaks the OpenAI completions protocol."
        )
    try:
        value = answer.json()
    except ValueError as error:
        raise EndpointError(
            f"{address} did not answer with JSON: {answer.text[:80]!r}.", "Check the address: …/v1 of the server."
        ) from error
    if not isinstance(value, dict):
        raise EndpointError(f"{address} answered {type(value).__name__}, not an object.", "Check the address: …/v1 of the server.")
    return value
