"""`palimpsest serve`: a model behind an OpenAI-compatible server, guarded, traced, with a longer context, within limits."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.context import ContextMethod
    from palimpsest.serving.engine import Engine
    from palimpsest.serving.service import Service

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Annotated[str, typer.Argument(help="The model: a known name, a folder, a .gguf file or a hub id.")],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model; its own name by default.")] = None,
    api_key: Annotated[list[str] | None, typer.Option(help="A key that opens the server; the process list shows it.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file of such keys, one a line.")] = None,
    guard: Annotated[Path | None, typer.Option(metavar="PROTECTED", help="What must not be written: an index, or a filter.")] = None,
    guard_n: Annotated[int | None, typer.Option(min=1, help="Tokens of a protected n-gram; the filter's own, 10 for an index.")] = None,
    guard_edits: Annotated[int, typer.Option(min=0, help="Edits by which a passage may differ and is still protected.")] = 0,
    trace_index: Annotated[Path | None, typer.Option(help="The index of a corpus for /v1/trace.")] = None,
    context: Annotated[str | None, typer.Option(metavar="METHOD", help="A context method, such as h2o:budget=256.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="A Jinja chat template; by default the model's own.")] = None,
    max_streams: Annotated[int, typer.Option(min=1, help="Texts written at the same time.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=0, help="Texts that may wait for a place.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 1 << 20,
    key_rate: Annotated[int, typer.Option(min=0, help="Requests a minute of one key, or address; 0 for no limit.")] = 0,
    key_streams: Annotated[int, typer.Option(min=0, help="Texts at the same time of one key, or address; 0 for no limit.")] = 0,
    request_timeout: Annotated[float, typer.Option(help="Seconds that an answer may take.")] = 600.0,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that answers under way have when the server is told to end.")] = 30.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line a request on the standard error output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say that the server listens as one JSON object.")] = False,
) -> None:
    """Serve MODEL to OpenAI's clients until SIGTERM or Ctrl-C; a second one ends at once."""
    from palimpsest.serving.http import create_app
    from palimpsest.serving.run import DrainingServer

    keys, limits = key_ring(api_key or [], api_key_file), make_limits(max_body, key_rate, key_streams, request_timeout)
    engine = make_engine(model, max_streams, max_waiting, guard, guard_n, guard_edits, context)
    corpus = open_corpus(trace_index)
    app = create_app(engine, name=name or "", keys=keys, limits=limits, chat_template=read_template(model, chat_template), index=corpus)

    def started(host: str, port: int) -> None:
        listening(app.state.service, host, port, as_json=as_json)

    server = DrainingServer(app, host, port, drain_timeout=drain_timeout, on_start=started)
    with request_log(quiet), engine:
        server.run()


def key_ring(given: list[str], file: Path | None) -> Any:
    """The keys of both options."""
    from palimpsest.serving.auth import KeyRing, read_keys

    return KeyRing([*given, *(read_keys(file) if file is not None else [])])


def make_limits(max_body: int, key_rate: int, key_streams: int, request_timeout: float) -> Any:
    """The limits of one client."""
    from palimpsest.serving.limits import Limits

    return Limits(max_body=max_body, key_rate=key_rate, key_streams=key_streams, request_timeout=request_timeout)


def make_engine(
    model: str, max_streams: int, max_waiting: int, guard: Path | None, n: int | None, edits: int, context: str | None
) -> Engine:
    """The model under the engine, with its guard and its context method."""
    from palimpsest.cli.guard import open_protected
    from palimpsest.guard import MemFreeProcessor
    from palimpsest.models import load_model
    from palimpsest.models.hf import HFModel
    from palimpsest.serving.engine import Engine

    if guard is None and (n is not None or edits):
        raise InputError("--guard-n and --guard-edits need a guard.", "Give --guard PROTECTED.")
    door = load_model(model)
    door.require("weights", "Serving")
    assert isinstance(door, HFModel)
    watch = None if guard is None else MemFreeProcessor.for_model(door, open_protected(guard), n, approximate=edits)
    method = None if context is None else read_method(context)
    return Engine(door, max_slots=max_streams, max_waiting=max_waiting, guard=watch, context=method)


def read_method(text: str) -> ContextMethod:
    """A context method by its name in the catalogue, with options behind a colon.

    Raises:
        InputError: an option without a value, and what `build_method` refuses.

    Example:
        >>> read_method("h2o:budget=256")
        H2O(budget=256, recent=None)
    """
    from palimpsest.cli.generate import pairs
    from palimpsest.context.options import build_method

    name, _, rest = text.partition(":")
    return build_method(name.strip(), pairs(rest.split(",") if rest else []))


@contextmanager
def request_log(quiet: bool) -> Iterator[None]:
    """One line a request on the standard error output, unless it is to be quiet: then only what went wrong."""
    logger, handler = logging.getLogger("palimpsest.serving"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def open_corpus(path: Path | None) -> Any:
    """The index to trace in, or None."""
    from palimpsest.cli.index_passage import open_index, require_tokenizer

    if path is None:
        return None
    index = open_index(path)
    require_tokenizer(index)
    return index


def read_template(model: str, file: Path | None) -> str | None:
    """The chat template of a file, or the model's own, or None."""
    from palimpsest.cli.study_files import read_utf8
    from palimpsest.models.chat_template import find_chat_template

    return read_utf8(file) if file is not None else find_chat_template(model)


def listening(service: Service, host: str, port: int, *, as_json: bool) -> None:
    """Says where the server is, once it listens."""
    url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    value = {
        "url": url,
        "model": service.name,
        "fingerprint": service.engine.model.fingerprint,
        "keys": len(service.keys),
        "guard": service.engine.guarded,
        "chat": service.chat is not None,
        "trace": service.index is not None,
    }
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
    else:
        typer.echo(f"{service.name} at {url}")
        typer.echo("  " + ", ".join(f"{name}: {'yes' if value[name] else 'no'}" for name in ("guard", "chat", "trace", "keys")))
    if not len(service.keys) and host not in LOOPBACK:
        typer.echo("warning: there is no API key, so everybody who reaches this address may ask; see --api-key-file.", err=True)
