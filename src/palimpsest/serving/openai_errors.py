"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, their status codes, and what they are made of.

An error of the library keeps its problem and its remedy as the message. What the server did not expect is answered with 500 and
nothing of what it was about: values, and so prompts, stay out of answers and logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.errors import CapabilityError, ContextOverflowError, EngineStoppedError, InputError, PalimpsestError, QueueFullError
from palimpsest.serving.openai_answers import ErrorAnswer, ErrorDetail

# code of an error of pydantic: what to say of it; others are said in pydantic's words
_SAID = {
    "missing": "is missing",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "none_required": "is not supported by this server: leave it out",
    "finite_number": "must be a finite number",
}
_NAME = 200  # characters of a field's name that are given back
_WHOLE = {
    "prompt": "must be a text, a list of texts, a list of token ids or a list of lists of token ids, and not empty",
    "stop": "must be a text or a list of at most 4 texts, none of them empty",
}


class ApiError(Exception):
    """An error that the client is told.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        code: the short name by which programs know it.
        param: the field of the request that it is about.
        headers: of the answer, such as Retry-After.

    Attributes:
        kind: OpenAI's type of the error, which follows from the status.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, dict(headers or {})
        self.kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        super().__init__(message)

    def body(self) -> bytes:
        """The JSON of the answer."""
        return (
            ErrorAnswer(error=ErrorDetail(message=self.message, type=self.kind, param=self.param, code=self.code))
            .model_dump_json()
            .encode()
        )


def overloaded(message: str) -> ApiError:
    """503 for a server that has no room now."""
    return ApiError(503, message, "server_overloaded", headers={"Retry-After": "1"})


def from_library(error: PalimpsestError, param: str | None = None) -> ApiError:
    """An error of the library as the client is told it.

    Args:
        error: what was raised.
        param: the field that held what the error is about.
    """
    if isinstance(error, QueueFullError):
        return overloaded(f"The server is busy. {error}")
    if isinstance(error, EngineStoppedError):
        return ApiError(503, "The server is shutting down.", "shutting_down", headers={"Retry-After": "10"})
    if isinstance(error, ContextOverflowError):
        return ApiError(400, str(error), "context_length_exceeded", param)
    if isinstance(error, InputError | CapabilityError):
        return ApiError(400, str(error), "invalid_value", param)
    return internal_error()


def internal_error() -> ApiError:
    """500, for whatever was not expected."""
    return ApiError(500, "The server failed to answer this request; its log says why.", "internal_error")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """What is wrong with a request's body, from the errors of pydantic: the one that got the farthest into the body.

    Args:
        errors: each with "type", "loc" (beginning with "body", "query" or "path") and "msg".
    """
    error = max(errors, key=lambda error: len(_path(error["loc"])))
    where = error["loc"][0] if error["loc"] else "body"
    path = _path(error["loc"])
    if error["type"] == "json_invalid":
        return ApiError(400, "The body is not JSON: we could not parse it.", "invalid_json")
    if not path:
        return ApiError(400, f"The {where} is missing, or not a JSON object of type application/json.", "invalid_json")
    name = path[0] + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[1:])
    if len(name) > _NAME:
        name = name[:_NAME] + "…"
    if error["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {name}", "unknown_parameter", name)
    if error["type"] == "none_required":
        return ApiError(400, f"{name!r} {_SAID['none_required']}.", "unsupported_parameter", name)
    if error["type"] == "missing":
        return ApiError(400, f"You must provide the parameter {name!r}.", "missing_required_parameter", name)
    if path[0] in _WHOLE and error["type"] != "lone_surrogate":
        return ApiError(400, f"{path[0]!r} {_WHOLE[path[0]]}.", "invalid_type", path[0])
    return ApiError(400, f"Invalid value for {name!r}: {_SAID.get(error['type'], _lower(error['msg']))}.", "invalid_value", name)


def _path(loc: Sequence[Any]) -> list[Any]:
    """Where in the body, without the names that pydantic gives to the branches of a union."""
    branches = {"str", "int", "float", "bool", "none", "constrained-str", "[key]"}
    return [part for part in loc[1:] if isinstance(part, int) or (part not in branches and "[" not in part and "(" not in part)]


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
