"""Reading a document for an instruction, chunk by chunk, and answering (033); see `citrus` for the method."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

from palimpsest.context.session import Session, layer_bytes
from palimpsest.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from palimpsest.context.citrus import CItruS


class CitrusSession(Session):
    """A session that reads a document for an instruction, and answers it.

    Attributes:
        ids: (batch, tokens so far), what was read and the instruction, 0 for padding; None before `read`.
        mask: (batch, tokens so far), 0 for padding.
    """

    ids: Tensor | None = None
    mask: Tensor | None = None

    @property
    def rules(self) -> CItruS:
        """The method, also where another one stands around it."""
        method: Any = self.method
        return getattr(method, "after", None) or method

    def nbytes(self) -> int:
        """Bytes of the cache, and of the context cache beside an instruction cache while a document is read."""
        caches: Any = self._caches or [self.cache]
        return sum(_bytes(cache) for cache in caches)

    @torch.no_grad()
    def read(
        self,
        document_ids: Tensor,
        instruction_ids: Tensor,
        *,
        document_mask: Tensor | None = None,
        instruction_mask: Tensor | None = None,
    ) -> None:
        """Reads documents, selecting for instructions; the session is then about to answer.

        Args:
            document_ids: (batch, tokens); each row is cut into chunks from its own first token.
            instruction_ids: (batch, tokens), padded on the left where lengths differ.
            document_mask, instruction_mask: of the same shapes, 0 for padding; None: no padding.

        Raises:
            InputError: an empty document or instruction, batches that differ, or an instruction that ends in padding.
            UnsupportedModelError: a model some of whose layers have windows of their own.
        """
        document, mask = _checked(document_ids, document_mask, "document")
        order = (mask == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(mask.sum(1).amax())]
        document, mask = document.gather(1, order), mask.gather(1, order)
        instruction, asked = _checked(instruction_ids, instruction_mask, "instruction")
        if len(document) != len(instruction) or not asked[:, -1].all():
            raise InputError(
                f"There are {len(document)} documents and {len(instruction)} instructions, or one of these ends in padding.",
                "Give one instruction a document, padded on the left.",
            )
        config: Any = self.decoder.config
        if len(self.infos) != config.num_hidden_layers:
            raise UnsupportedModelError(
                f"{len(self.infos)} layers of {config.num_hidden_layers} have full attention.",
                "Use a model without sliding windows: what an instruction wrote could not be taken back from them.",
            )
        rules, chunk = self.rules, self.rules.chunk
        context = cache = DynamicCache(config=config)
        self._caches, self.ids, self.mask = [context], None, None
        for begin in range(0, document.shape[1], chunk):
            part = (document[:, begin : begin + chunk], mask[:, begin : begin + chunk])
            if begin and rules.cache != "standard":
                if rules.cache == "individual" and cache is context:
                    cache = copy.deepcopy(context)
                    self._caches.append(cache)
                self._peek(cache, instruction, asked)
            self._run(context, *part, "chunk")
            if cache is not context:
                for own, source in zip(_layers(cache), _layers(context), strict=True):
                    own.take_over(source, part[1].bool())
        self._caches = [cache]
        self._peek(cache, instruction, asked)
        for layer in _layers(cache):
            layer.reduce()
        if instruction.shape[1] > 1:
            self._run(cache, instruction[:, :-1], asked[:, :-1], "append")
        self.ids, self.mask = torch.cat([document, instruction], 1), torch.cat([mask, asked], 1)
        for index, info in self.infos.items():
            layer = _layers(cache)[index]
            layer.mode = "append"
            self.method.finish(info, layer)

    @torch.no_grad()
    def generate(self, **options: Any) -> Tensor:
        """What the model writes after the instruction, (batch, new tokens); options are those of transformers' `generate`.

        Raises:
            InputError: nothing has been read, or more than one beam is asked for.
        """
        ids, mask, cache = self._ready()
        if options.get("num_beams", 1) != 1:
            raise InputError(f"num_beams is {options['num_beams']}.", "The cache has been read for one continuation a row: give 1.")
        model: Any = self.model
        whole = model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        new: Tensor = whole[:, ids.shape[1] :]
        self.ids, self.mask = whole, torch.cat([mask, torch.ones_like(new)], 1)
        return new

    @torch.no_grad()
    def logprobs(self, answer_ids: Tensor) -> Tensor:
        """Log-probability of every token of answers (batch, tokens) to the instruction, in nat; they are taken back afterwards."""
        ids, _, cache = self._ready()
        fed = torch.cat([ids[:, -1:], answer_ids[:, :-1]], 1)
        out = self._run(cache, fed, torch.ones_like(fed), "append", logits=fed.shape[1])
        for layer in _layers(cache):
            layer.crop(-fed.shape[1])
        return out.log_softmax(-1).gather(-1, answer_ids[:, :, None]).squeeze(-1)

    def _ready(self) -> tuple[Tensor, Tensor, Cache]:
        if self.ids is None or self.mask is None or not self._caches:
            raise InputError("The session has read nothing yet.", "Call read(document_ids, instruction_ids) first.")
        return self.ids, self.mask, self._caches[0]

    # Passes over a cache

    _caches: list[Cache] = []  # noqa: RUF012 replaced, never changed: those that are there, the context cache first
    _aside = 0  # bytes of those that are not being run

    def _count(self, index: int, layer: CacheLayerMixin) -> None:
        super()._count(index, layer)
        self.peak_bytes = max(self.peak_bytes, self._total + self._aside)

    def _run(self, cache: Cache, ids: Tensor, mask: Tensor, mode: str, logits: int = 1) -> Tensor:
        """One forward pass in which the cache's layers are in a mode; the logits of the last tokens."""
        self._aside = sum(_bytes(other) for other in self._caches if other is not cache)
        self._adopt(cache)
        for layer in _layers(cache):
            layer.mode = mode
        seen = cache.get_seq_length()
        before = torch.ones(len(ids), seen, dtype=mask.dtype, device=mask.device)
        positions = torch.arange(seen, seen + ids.shape[1], device=ids.device).expand(ids.shape)
        self.reading = True
        try:
            out = self.model(
                ids,
                attention_mask=torch.cat([before, mask], 1),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=logits,
            )
        finally:
            self.reading = False
        return out.logits.float()

    def _peek(self, cache: Cache, ids: Tensor, mask: Tensor) -> None:
        """Lets an instruction select, and takes it back."""
        self._run(cache, ids, mask, "peek")
        for layer in _layers(cache):
            layer.crop(-ids.shape[1])


def _layers(cache: Cache) -> list[Any]:
    """The layers of a cache that the session has adopted, each a `CitrusLayer`."""
    return list(cache.layers)


def _bytes(cache: Cache | None) -> int:
    return 0 if cache is None else sum(layer_bytes(layer) for layer in _layers(cache))


def _checked(ids: Tensor, mask: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """Ids and a mask of them."""
    mask = torch.ones_like(ids) if mask is None else mask.to(ids)
    if ids.dim() != 2 or mask.shape != ids.shape or not mask.any(-1).all():
        raise InputError(
            f"The {name} ids have the shape {tuple(ids.shape)}, their mask {tuple(mask.shape)}; or one {name} is empty.",
            "Give (batch, tokens), with a token or more in every row.",
        )
    return ids, mask
