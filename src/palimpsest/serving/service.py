"""What the HTTP server is made of: the engine and its model, who may ask, the limits, the corpus to trace in, and whether it is ending.

Ending has two steps. `drain` lets no new request in; those under way go on. `expire` ends what is still under way, each with an
error that says why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from palimpsest.errors import InputError
from palimpsest.serving.auth import KeyRing
from palimpsest.serving.chat import ChatPrompt
from palimpsest.serving.http_metrics import HttpMetrics
from palimpsest.serving.limits import Limits, Turnstile
from palimpsest.serving.openai_errors import ApiError
from palimpsest.serving.token_texts import TokenTexts

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex
    from palimpsest.serving.engine import Engine
    from palimpsest.serving.generation import Generation


@dataclass
class Service:
    """The server's parts.

    Args:
        engine: writes; it is started and shut down by whoever made it.
        name: what the model is called, by default its own name.
        keys: who may ask; an empty ring lets everybody in.
        limits: what one client may take.
        chat_template: the model's Jinja template; None: `/v1/chat/completions` says that there is none.
        index: the corpus of `/v1/trace`, which must have a tokenizer; None: `/v1/trace` says that there is none.

    Attributes:
        draining: whether new requests are refused.
        running: the requests under way.

    Raises:
        InputError: an index without a tokenizer.
    """

    engine: Engine
    name: str = ""
    keys: KeyRing = field(default_factory=KeyRing)
    limits: Limits = field(default_factory=Limits)
    chat_template: str | None = None
    index: CorpusIndex | None = None
    draining: bool = field(default=False, init=False)
    running: set[Generation] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.index is not None and self.index.tokenizer is None:
            raise InputError(f"The index {self.index.path} has no tokenizer: texts cannot be traced in it.", "Build it from texts.")
        model = self.engine.model
        self.name = self.name or model.name
        self.tokenizer = model.tokenizer
        self.texts = TokenTexts(self.tokenizer)
        self.created = int(time.time())
        self.fingerprint = f"fp_{model.fingerprint[:16]}"
        self.metrics = HttpMetrics(self.engine.metrics)
        self.turnstile = Turnstile(self.limits)
        self.chat = None if self.chat_template is None else ChatPrompt(self.chat_template, self.tokenizer, model.prepends_bos)

    def require_model(self, name: str) -> None:
        """Raises 404 unless `name` is the model's."""
        if name != self.name:
            message = f"The model {name[:200]!r} does not exist; this server has {self.name!r}."
            raise ApiError(404, message, "model_not_found", "model")

    @property
    def status(self) -> Literal["ready", "draining", "failed"]:
        """What `/healthz` says."""
        return "draining" if self.draining else "ready" if self.engine.accepting else "failed"

    def drain(self) -> None:
        """Lets no new request in."""
        self.draining = True

    def expire(self) -> None:
        """Ends the requests that are still under way."""
        self.drain()
        for generation in list(self.running):
            generation.end("shutdown")
