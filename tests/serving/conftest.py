"""A real server around a real engine on the tiny model, listening on a free port of this machine."""

from __future__ import annotations

import copy
import threading
import time
from contextlib import contextmanager

import pytest

TEMPLATE = (
    "{% for m in messages %}{% if loop.index0 and m.role == 'system' %}{{ raise_exception('The system comes first.') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


class Running:
    """A server under way.

    Attributes:
        engine, server, service: its parts.
        host, port, root, url: where it listens; `url` ends with /v1.
    """

    def __init__(self, engine, server):
        self.engine, self.server, self.service = engine, server, server.service
        self.host, self.port = server.address
        self.root = f"http://{self.host}:{self.port}"
        self.url = f"{self.root}/v1"
        self.thread = threading.Thread(target=server.run, daemon=True)
        self.thread.start()
        self.wait(lambda: server.started)

    @staticmethod
    def wait(condition, seconds=20.0):
        """Waits until a condition holds, and fails when it never does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.002)

    @contextmanager
    def paced(self, seconds):
        """Every forward pass takes at least so long: a text is still being written when the test does something to it."""
        hook = self.engine.model.model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
        try:
            yield
        finally:
            hook.remove()

    def stop(self):
        """Ends it at once."""
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def running(model, *, slots=16, waiting=256, guard=None, drain_timeout=5.0, max_connections=1024, **options):
    """Serves a model for the time of the block; `options` are those of `create_app`."""
    from palimpsest.models import HFModel
    from palimpsest.serving.engine import Engine
    from palimpsest.serving.http import create_app
    from palimpsest.serving.run import DrainingServer

    own = HFModel(copy.deepcopy(model.model), model.tokenizer, name=model.name)  # an engine has its model for itself
    engine = Engine(own, max_slots=slots, max_waiting=waiting, guard=guard)
    engine.start()
    try:
        app = create_app(engine, **{"chat_template": TEMPLATE, **options})
        started = Running(engine, DrainingServer(app, port=0, drain_timeout=drain_timeout, max_connections=max_connections))
        try:
            yield started
        finally:
            started.stop()
    finally:
        engine.shutdown(drain=False)


@pytest.fixture(scope="session")
def serve():
    """`with serve(model, …) as started:`, see `running`."""
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(module, reason="needs the extra [serve]")
    return running


@pytest.fixture(scope="module")
def served(serve, tiny_model):
    """A server without keys, with a chat template, and nothing else."""
    with serve(tiny_model) as started:
        yield started
