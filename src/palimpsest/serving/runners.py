"""Two ways to run a model for many requests: all in one forward pass, or each behind a cache of its own.

`SlotRunner` is continuous batching (`serving.slots`). It serves a model whose attention is a function of queries, keys and values that
transformers lets us name, and whose layers see everything or a sliding window. Whether it says the same as the model alone is not
believed but tried: two requests of different length, read in pieces and continued, against the model's ordinary forward pass.

`CacheRunner` gives every request a cache object of transformers and runs them one after another. That is what a context method
(`palimpsest.context`) needs, whose cache layers know nothing of slots, and what every other model gets: recurrent states, chunked
or latent attention, rotary maps that change with the length. It has the same queue, limits and metrics, and no gain from a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from palimpsest.context.attach import ContextMethod
from palimpsest.errors import CapabilityError, InputError
from palimpsest.models.hf import HFModel, picking
from palimpsest.models.onednn import fast_linear
from palimpsest.models.quiet import quiet
from palimpsest.serving.slots import ATTENTION, SlotBatch, SlotStore, Work, attending

_TOLERANCE = 2e-3  # of logits, relative to the greatest: what two orders of summation in float32 may differ by
_LAYER_KINDS = {"full_attention", "sliding_attention"}


class CannotBatchError(InputError):
    """A model's requests cannot share a forward pass; the problem says why."""

    def __init__(self, model: HFModel, reason: str) -> None:
        super().__init__(f"{model.name} cannot be batched: {reason}.", "It is served one request at a time.")


class Runner(Protocol):
    """What the engine asks of either."""

    @property
    def store(self) -> SlotStore | None:
        """The slots, where there are any."""

    def session(self) -> AbstractContextManager[None]:
        """Within it, on one thread, the model is run."""

    def step(self, work: Sequence[Work]) -> list[torch.Tensor | Exception]:
        """Feeds tokens; for each work logits (wanted, vocabulary) of its last tokens, or what its request has failed of."""

    def release(self, slot: int, spoiled: bool) -> None:
        """A request has left its slot; `spoiled` when what it left there may not be finite."""


class SlotRunner:
    """All requests in one forward pass; see the module's docstring.

    Args:
        model: the door.
        slots: number of requests at the same time.

    Raises:
        CannotBatchError: this model cannot be run so.
        InputError: it is being served already.
    """

    def __init__(self, model: HFModel, slots: int) -> None:
        self.model = model
        reason = _obstacle(model)
        if reason is not None:
            raise CannotBatchError(model, reason)
        with self.session():
            shapes = self._shapes()
            self.store: SlotStore = SlotStore(shapes, max(slots, 2), model.model.dtype, model.device)
            self._try_out()
            self.store = SlotStore(shapes, slots, model.model.dtype, model.device)

    @contextmanager
    def session(self) -> Iterator[None]:
        """The model's attention goes through `serving.slots` meanwhile."""
        own = self.model.model.config._attn_implementation
        if own == ATTENTION:
            raise InputError(f"{self.model.name} is being served already.", "Shut the other engine down, or load the model again.")
        with quiet():
            self.model.model.set_attn_implementation(ATTENTION)
        try:
            with fast_linear(self.model.model):
                yield
        finally:
            with quiet():
                self.model.model.set_attn_implementation(own)

    def step(self, work: Sequence[Work]) -> list[torch.Tensor | Exception]:
        """See `Runner`."""
        self.store.reserve(max(one.end for one in work))
        for one in work:
            self.store.lengths[one.slot] = one.end
        try:
            return list(self._run(work))
        except Exception as error:
            if len(work) == 1:
                return [error]
            return [self.step([one])[0] for one in work]  # what is written twice is the same: only who is to blame fails

    def release(self, slot: int, spoiled: bool) -> None:
        """See `Runner`."""
        self.store.release(slot, spoiled)

    def _run(self, work: Sequence[Work]) -> list[torch.Tensor]:
        batch = SlotBatch(work, self.store)
        logits = self._forward(batch.ids, batch.positions, batch.chosen, batch)
        found = dict(zip([one.slot for one in batch.work], logits.split([one.wanted for one in batch.work]), strict=True))
        return [found[one.slot] for one in work]

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, chosen: torch.Tensor, seen: Any) -> torch.Tensor:
        """Logits (chosen, vocabulary) of one row of tokens."""
        if not len(chosen):  # a piece of a prompt: the head is spared all but one position
            return self._forward(ids, positions, positions.new_zeros(1), seen)[:0]
        arguments = {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False, "return_dict": True}
        with attending(seen):
            if not self.model._head_is_positionwise:
                return self.model.model(**arguments).logits[0][chosen]
            with picking(self.model.model, chosen):
                return self.model.model(**arguments).logits[0]

    def _shapes(self) -> dict[int, tuple[tuple[int, int], tuple[int, int]]]:
        """Key and value heads of every layer, as they come in one forward pass; sliding windows must be said to attention."""
        seen = _Shapes()
        ids = torch.arange(2, device=self.model.device) % self.model.vocab_size
        try:
            self._forward(ids, torch.arange(2, device=self.model.device), ids.new_zeros(1), seen)
        except (NotImplementedError, AttributeError, TypeError) as error:
            raise CannotBatchError(self.model, str(error)) from error
        config = self.model.model.config.get_text_config(decoder=True)
        layers = int(config.num_hidden_layers)
        if sorted(seen.shapes) != list(range(layers)):
            raise CannotBatchError(self.model, f"{len(seen.shapes)} of its {layers} layers have attention of their own")
        kinds = getattr(config, "layer_types", None) or []
        sliding = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
        if not set(sliding) <= seen.windowed:
            raise CannotBatchError(self.model, "its sliding windows are known to masks only")
        return seen.shapes

    def _try_out(self) -> None:
        """Two requests, of which one is read in two pieces and the other joins later, against the ordinary forward pass."""
        rng = np.random.default_rng(0)
        first, second = (rng.integers(0, self.model.vocab_size, length).tolist() for length in (9, 6))
        expected = [self.model._logits([np.array(row)], torch.arange(len(row), device=self.model.device)) for row in (first, second)]
        steps = [
            [Work(0, 0, first[:4], 4)],
            [Work(0, 4, first[4:7], 3), Work(1, 0, second[:5], 5)],
            [Work(0, 7, first[7:8]), Work(1, 5, second[5:6])],
            [Work(0, 8, first[8:9])],
        ]
        found: list[list[torch.Tensor]] = [[], []]
        for work in steps:
            for one, logits in zip(work, self._run(work), strict=True):
                found[one.slot].append(logits)
        for own, alone in zip(found, expected, strict=True):
            difference = float((torch.cat(own).float() - alone.float()).abs().max())
            scale = float(alone.float().abs().max())
            allowed = _TOLERANCE if self.model.model.dtype == torch.float32 else 5e-2
            if not difference <= allowed * max(1.0, scale):
                raise CannotBatchError(self.model, f"its logits differ by {difference:.2g} from those of the model alone")


class _Shapes:
    """Notes the shapes of keys and values that attention is given."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        self.windowed: set[int] = set()

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, window: int | None
    ) -> torch.Tensor:
        """Keeps what it sees; the values stand for the result."""
        self.shapes[int(layer)] = ((k.shape[1], k.shape[3]), (v.shape[1], v.shape[3]))
        if window is not None:
            self.windowed.add(int(layer))
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1).transpose(1, 2)


def _obstacle(model: HFModel) -> str | None:
    """Why a model's requests cannot share a forward pass, as far as it is told without running it."""
    config = model.model.config.get_text_config(decoder=True)
    if not getattr(model.model, "_supports_attention_backend", False):
        return "transformers does not let its attention be replaced"
    if "position_ids" not in model._arguments:
        return "it takes no positions"
    if not model.length_free:
        return "its rotary map changes with the length of the input"
    kinds = set(getattr(config, "layer_types", None) or _LAYER_KINDS)
    if not kinds <= _LAYER_KINDS:
        return f"it has layers of the kind {', '.join(sorted(kinds - _LAYER_KINDS))}"
    return None


class CacheRunner:
    """Every request behind a cache of its own, one after another; see the module's docstring.

    Args:
        model: the door.
        method: a context method; it is attached as long as the engine runs.

    Raises:
        CapabilityError: the model keeps nothing between calls that it would take up again.
    """

    store = None

    def __init__(self, model: HFModel, method: ContextMethod | None = None) -> None:
        self.model, self.method = model, method
        self._caches: dict[int, Any] = {}
        with torch.inference_mode():
            out = model.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True, return_dict=True)
        if getattr(out, "past_key_values", None) is None:
            raise CapabilityError(
                f"{model.name} keeps no cache of keys and values that a text could be continued from.", "Serve a transformer."
            )

    @contextmanager
    def session(self) -> Iterator[None]:
        """The context method is attached meanwhile."""
        with fast_linear(self.model.model), ExitStack() as stack:
            if self.method is not None:
                stack.enter_context(self.method(self.model))
            yield
        self._caches.clear()

    @torch.inference_mode()
    def step(self, work: Sequence[Work]) -> list[torch.Tensor | Exception]:
        """See `Runner`."""
        found: list[torch.Tensor | Exception] = []
        for one in work:
            try:
                found.append(self._run(one))
            except Exception as error:
                found.append(error)
        return found

    def _run(self, one: Work) -> torch.Tensor:
        if one.start == 0:
            self._caches.pop(one.slot, None)
        ids = torch.tensor([list(one.ids)], device=self.model.device)
        last = torch.arange(len(one.ids) - max(1, one.wanted), len(one.ids), device=self.model.device)
        arguments = {"input_ids": ids, "past_key_values": self._caches.get(one.slot), "use_cache": True, "return_dict": True}
        if self.model._head_is_positionwise:
            with picking(self.model.model, last):
                out = self.model.model(**arguments)
            logits = out.logits[0]
        else:
            out = self.model.model(**arguments)
            logits = out.logits[0][last]
        self._caches[one.slot] = out.past_key_values
        return logits[len(logits) - one.wanted :]

    def release(self, slot: int, spoiled: bool) -> None:
        """See `Runner`."""
        self._caches.pop(slot, None)
