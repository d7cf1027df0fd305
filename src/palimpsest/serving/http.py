"""The server's routes: an OpenAI-compatible API over the engine, and what is this project's own.

    POST /v1/completions         continue prompts
    POST /v1/chat/completions    answer in a conversation
    GET  /v1/models, /v1/models/NAME
    POST /v1/trace               which passages of a text stand in the corpus, and in which documents
    GET  /metrics                for Prometheus
    GET  /healthz                whether requests are taken
    GET  /openapi.json           the schema of all that

`create_app` makes the application for any ASGI server; `palimpsest.serving.run` serves it as it is meant to be served. The engine is
started and shut down by whoever made it. There is no CORS: a browser's page from elsewhere cannot ask.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Annotated, Any

from palimpsest.errors import MissingDependencyError, PalimpsestError

try:
    import anyio
    from fastapi import FastAPI, Path, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.openapi.utils import get_openapi
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingDependencyError("The server needs fastapi.", "pip install 'palimpsest-lm[serve]'") from error

from palimpsest.serving.answers import Answers, ChatAnswers, CompletionAnswers
from palimpsest.serving.gate import OPEN, Gate
from palimpsest.serving.generation import EndedEarly, Generation
from palimpsest.serving.openai_answers import ChatCompletion, Completion, ErrorAnswer, Health, ModelCard, ModelList, TracedTextOut
from palimpsest.serving.openai_errors import ApiError, from_library, from_validation, internal_error, overloaded
from palimpsest.serving.openai_requests import chat_requests, completion_requests
from palimpsest.serving.openai_schema import ChatRequest, CompletionRequest, SamplingRequest, TraceRequest
from palimpsest.serving.service import Service
from palimpsest.serving.sse import EventStream

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex
    from palimpsest.serving.auth import KeyRing
    from palimpsest.serving.engine import Engine
    from palimpsest.serving.limits import Limits
    from palimpsest.serving.requests import GenerationRequest

logger = logging.getLogger("palimpsest.serving")
_TRACING, _WAITING = 2, 32  # texts traced at once, and texts that may wait for it

_SAID = {
    400: "The request is malformed, or asks for what this server or model cannot do.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "The client asks too often, or for too much at once.",
    500: "The server failed.",
    503: "The server is busy or shutting down.",
    504: "The answer took too long.",
}
_STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "With `stream`: chunks as server-sent events."}}}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    every = (400, 401, 408, 413, 429, 500, 503, *statuses)  # the gate's own, which any request may meet
    return {status: {"model": ErrorAnswer, "description": _SAID[status]} for status in sorted(every)}


def create_app(
    engine: Engine,
    *,
    name: str = "",
    keys: KeyRing | None = None,
    limits: Limits | None = None,
    chat_template: str | None = None,
    index: CorpusIndex | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        engine: what writes, started.
        name, keys, limits, chat_template, index: see `Service`.

    Returns:
        the application; its `state.service` is the `Service`.

    Raises:
        MissingDependencyError: the extra [serve] is not installed.
        InputError: an index without a tokenizer.

    Example:
        >>> app = create_app(engine, keys=KeyRing(["a-long-random-string"]))        # doctest: +SKIP
        >>> uvicorn.run(app)                                                        # doctest: +SKIP
    """
    from palimpsest.serving.auth import KeyRing
    from palimpsest.serving.limits import Limits

    service = Service(engine, name, keys or KeyRing(), limits or Limits(), chat_template, index)
    # without redirects of /v1/models/ to /v1/models: their address would be made of the client's Host header, and of plain HTTP
    app = FastAPI(title="Palimpsest", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.add_middleware(Gate, service=service)
    app.add_exception_handler(ApiError, lambda _, error: _answer_error(error))
    app.add_exception_handler(PalimpsestError, lambda _, error: _answer_error(_explain(error)))
    app.add_exception_handler(EndedEarly, lambda _, error: _answer_error(_explain(error)))
    app.add_exception_handler(RequestValidationError, lambda _, error: _answer_error(from_validation(error.errors())))  # type: ignore[attr-defined]
    app.add_exception_handler(HTTPException, lambda _, error: _answer_error(_from_framework(error)))
    _add_generation(app, service)
    _add_models(app, service)
    _add_trace(app, service)
    _add_watching(app, service)
    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    async def respond(kind: type[Answers], body: SamplingRequest, requests: list[GenerationRequest], request: Request) -> Response:
        generation = Generation(service, request.scope["palimpsest.visit"].client, requests)
        options = body.stream_options
        answers = kind(service, generation, body.n or 1, bool(options and options.include_usage))
        if body.stream:
            headers = {} if not service.engine.guarded else {"X-Palimpsest-Guard": "on"}
            return EventStream(generation, answers.chunks(), _explain, headers)
        content = await generation.run(answers.whole(), request.receive)
        guard = answers.extension().guard
        headers = {} if guard is None else {"X-Palimpsest-Guard": f"interventions={guard.interventions}"}
        return Response(content, media_type="application/json", headers=headers)

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: {"content": _STREAM}, **_errors(404, 504)},
        operation_id="create_completion",
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues prompts."""
        service.require_model(body.model)
        client = request.scope["palimpsest.visit"].client
        return await respond(CompletionAnswers, body, await run_in_threadpool(completion_requests, service, body, client), request)

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": _STREAM}, **_errors(404, 504)},
        operation_id="create_chat_completion",
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers in a conversation."""
        service.require_model(body.model)
        client = request.scope["palimpsest.visit"].client
        return await respond(ChatAnswers, body, await run_in_threadpool(chat_requests, service, body, client), request)


def _add_models(app: FastAPI, service: Service) -> None:
    model = service.engine.model
    card = ModelCard(
        id=service.name,
        created=service.created,
        max_model_len=service.engine.context_length,
        palimpsest={
            "fingerprint": model.fingerprint,
            "tokenizer": service.tokenizer.fingerprint,
            "parameters": model.parameters,
            "guard": service.engine.guarded,
            "chat": service.chat is not None,
            "trace": service.index is not None,
        },
    )

    @app.get("/v1/models", responses=_errors(), operation_id="list_models")
    async def models() -> ModelList:
        """The models that the server has: one."""
        return ModelList(data=[card])

    @app.get("/v1/models/{name:path}", responses=_errors(404), operation_id="retrieve_model")
    async def one_model(name: Annotated[str, Path(description="The model's name.")]) -> ModelCard:
        """The model of a name."""
        service.require_model(name)
        return card


def _add_trace(app: FastAPI, service: Service) -> None:
    limiter = anyio.CapacityLimiter(_TRACING)

    @app.post("/v1/trace", responses=_errors(), operation_id="trace")
    async def trace(body: TraceRequest) -> TracedTextOut:
        """Which passages of a text stand word for word in the corpus, and in which documents."""
        if service.index is None:
            raise ApiError(400, "This server has no corpus to trace texts in. Have it started with --trace-index INDEX.", "no_corpus")
        most = service.limits.max_trace
        if len(body.text) > most:
            raise ApiError(
                400, f"The text has {len(body.text):,} characters; at most {most:,} are traced.", "string_above_max_length", "text"
            )
        if limiter.statistics().tasks_waiting >= _WAITING:
            raise overloaded("Too many texts are waiting to be traced.")
        return await anyio.to_thread.run_sync(_trace, service, service.index, body, limiter=limiter)


def _trace(service: Service, index: CorpusIndex, body: TraceRequest) -> TracedTextOut:
    from palimpsest.corpus.traced_text import rarest, trace_text

    tokenizer = index.tokenizer
    assert tokenizer is not None  # the service has looked
    ids = tokenizer.encode(body.text)
    traced = trace_text(
        index,
        tokenizer,
        ids,
        min_len=body.min_len,
        max_docs=body.max_docs,
        context=body.context,
        max_spans=rarest(len(ids)) if body.rarest else None,
        whole_words=body.whole_words,
    )
    service.metrics.traced_tokens.inc(len(ids))
    return TracedTextOut(corpus=index.fingerprint, min_len=body.min_len, **traced.to_dict())


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get(
        "/healthz", responses={500: _errors()[500], 503: {"model": Health, "description": "No requests are taken."}}, operation_id="health"
    )
    async def health(response: Response) -> Health:
        """Whether requests are taken."""
        if service.status != "ready":
            response.status_code = 503
        return Health(status=service.status)

    text = {"text/plain": {"schema": {"type": "string"}}}
    refused: dict[int | str, dict[str, Any]] = {status: _errors()[status] for status in (401, 500)}

    @app.get("/metrics", response_class=Response, responses={200: {"content": text}, **refused}, operation_id="metrics")
    async def metrics() -> Response:
        """Counters, gauges and histograms in Prometheus's text format."""
        content = await run_in_threadpool(service.metrics.text)
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


def _explain(error: Exception) -> ApiError:
    """What the client is told of an error; what it was not to blame for is logged, without the values in its message."""
    if isinstance(error, ApiError):
        return error
    told = error.as_api_error() if isinstance(error, EndedEarly) else internal_error()
    if isinstance(error, PalimpsestError):
        told = from_library(error)
    if told.status == 500:
        logger.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return told


def _from_framework(error: Any) -> ApiError:
    """What the framework refuses: unknown paths, wrong methods, bodies that it cannot read."""
    if error.status_code == 404:
        return ApiError(404, "There is no such path.", "unknown_url")
    if error.status_code == 405:
        return ApiError(405, "This path does not take that method.", "method_not_allowed", headers=error.headers)
    return ApiError(error.status_code, "The body could not be read as JSON.", "invalid_json")


def _answer_error(error: Any) -> Response:
    return Response(error.body(), error.status, error.headers, "application/json")


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """The schema: the framework's, without the 422 that is never sent here, and with the key where one is needed."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if len(service.keys) and path not in OPEN:
                    operation["security"] = [{"key": []}]
        schemas = schema["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema
