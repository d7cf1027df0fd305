"""Extended Mind: every layer looks up keys of a memorised text for each of its queries, and attends to them beside the context.

Klett and Ahle, *Extended Mind Transformers*, 2024, arXiv 2406.02332; normal-computing/extended-mind-transformers. `memorize` runs a text
through the model and keeps keys and values of its tokens, the keys before rotation, in a `MemoryBank`. Afterwards, in each of `layers`,
for the query q of a token and head, rotated to its position, and the memories (k_j, v_j) of its key head:

    similarity_j = cos(q, k_j);    N(q) = the topk memories of the largest similarity
    out = softmax over [ q·k_j · scale, j ∈ N(q);  logits of the local context ] · [ v_j;  v ]

With `mask_by_sim`, memories of a similarity up to `sim_threshold` are not seen. Unrotated keys stand at position 0, so that a query at
position m sees all memories from the distance m (`position="zero"`, the release). The paper's point is that this choice matters; with
`position="fixed:p"` the query is rotated to p for its memories, and their distance is p at every time, as in LM-Infinite and InfLLM.

Departures: one lookup in one dense product, exact, where the release can also ask an approximate index; the threshold's default does
nothing unless `mask_by_sim` is set, as there; documents that are memorised together may be given apart, each read from position 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from palimpsest.context.attach import ContextMethod, attach, unwrap
from palimpsest.context.layers import EMPTY
from palimpsest.context.memory_bank import MemoryBank, model_digest
from palimpsest.context.prefill import prefill
from palimpsest.context.session import LayerInfo, Session, causal
from palimpsest.context.two_branch import Branch, branch, nearest, one_softmax
from palimpsest.errors import InputError

LOGITS = 1 << 24  # numbers in the logits of one block of queries, 64 MB in float32


class MindSession(Session):
    """A session that reads from a memory bank.

    Attributes:
        bank: the memories; None for none.
    """

    bank: MemoryBank | None = None

    def use(self, bank: MemoryBank | None) -> None:
        """Reads from another bank from now on, or from none.

        Raises:
            InputError: the bank is of another model.
        """
        if bank is not None:
            bank.belongs_to(self.model)
            bank = bank.to(self.model.device, self.model.dtype)
        self.bank = bank
        self._cited: list[dict[str, Tensor]] = []

    def citations(self) -> pl.DataFrame:
        """Which memories were read, where the method was made with `cite=True`.

        Returns:
            One row for each memory that a query looked up: row (of the batch), token (its position), layer, head, memory (number in the
            bank), id (its token), document, similarity, and weight, the share of attention that it got.

        Raises:
            InputError: nothing was noted.
        """
        assert isinstance(self.method, ExtendedMind)
        if not self.method.cite:
            raise InputError("The session noted no citations.", "Use ExtendedMind(cite=True).")
        names = ("row", "token", "layer", "head", "memory", "similarity", "weight")
        none = [{name: torch.empty(0, dtype=torch.double if name in names[-2:] else torch.long) for name in names}]
        columns = {name: torch.cat([one[name] for one in self._cited or none]).cpu().numpy() for name in names}
        table = pl.DataFrame(columns, schema_overrides={"similarity": pl.Float64, "weight": pl.Float64})
        if self.bank is None:
            return table
        memory = table["memory"].to_numpy()
        extra = {name: getattr(self.bank, name).numpy()[memory] for name in ("ids", "documents")}
        return table.with_columns(id=pl.Series(extra["ids"]), document=pl.Series(extra["documents"]))

    def run(
        self, module: torch.nn.Module, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """See `Session.run`."""
        assert isinstance(self.method, ExtendedMind)
        bank = self.bank
        if bank is None or not len(bank) or info.index not in bank.keys or not self.method.reads(info):
            return super().run(module, info, q, k, v, mask, options)
        assert self.step is not None
        layer: Any = self.step.cache.layers[info.index]
        self._count(info.index, layer)
        queries, columns = q.shape[2], k.shape[2]
        if mask is None and queries > 1:
            mask = causal(queries, columns, q.device)
        length = max(1, LOGITS // (q.shape[0] * info.heads * (columns + len(bank))))
        positions = self.step.positions.expand(q.shape[0], -1)
        outs = []
        for begin in range(0, queries, length):
            part = slice(begin, begin + length)
            local = branch(q[:, :, part], k, v, info.scaling, None if mask is None else mask[:, :, part])
            memories, found = self._look_up(info, q[:, :, part], positions[:, part], bank)
            out, weights = one_softmax([memories, local])
            outs.append(out)
            if self.method.cite:
                self._note(info, positions[:, part], found, weights[0])
        return torch.cat(outs, dim=1)

    def _look_up(self, info: LayerInfo, q: Tensor, positions: Tensor, bank: MemoryBank) -> tuple[Branch, tuple[Tensor, Tensor]]:
        """The memories of every query, each with its own; their numbers and similarities, (batch, heads, time, topk)."""
        assert isinstance(self.method, ExtendedMind)
        assert info.rotary is not None
        method, rotary = self.method, info.rotary
        if method.fixed is not None:
            q = rotary.rotate(rotary.unrotate(q, positions.clamp(min=0)), torch.tensor([method.fixed], device=q.device))
        k, v = (parts[info.index].expand(q.shape[0], -1, -1, -1) for parts in (bank.keys, bank.values))
        logits = branch(q, k, v, info.scaling).logits
        # q · k / |k| ranks as the cosine does, |q| being the same for all memories.
        rank = logits * bank.inverse_norms[info.index].repeat_interleave(info.groups, 0)[:, None]
        found, index = nearest(logits, v, method.topk, rank)
        length = q.float().norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) * info.scaling
        similarity = rank.gather(-1, index) / length
        if method.mask_by_sim:
            found = Branch(found.logits.masked_fill(similarity <= method.sim_threshold, -torch.inf), found.values)
        return found, (index, similarity)

    def _note(self, info: LayerInfo, positions: Tensor, found: tuple[Tensor, Tensor], weights: Tensor) -> None:
        index, similarity = found
        row, head, time, _ = seen = (weights > 0).nonzero(as_tuple=True)
        columns = {"row": row, "token": positions[row, time].long(), "layer": torch.full_like(row, info.index), "head": head}
        values = {"memory": index[seen], "similarity": similarity[seen], "weight": weights[seen]}
        real = columns["token"] != EMPTY
        self._cited.append({name: column[real] for name, column in (columns | values).items()})


@dataclass(frozen=True)
class ExtendedMind(ContextMethod):
    """Reads from a bank of memories in every layer.

    Args:
        topk: memories for each query and head; 0 reads none.
        sim_threshold: with `mask_by_sim`, only memories of a larger cosine are seen.
        mask_by_sim: whether they are.
        layers: "all", or the numbers of the layers that read; negative ones count from the end.
        stride: tokens by which the window moves over a text that is memorised.
        window: tokens in it.
        remove_special: leave the memories of special tokens out.
        position: "zero", or "fixed:p": see above.
        cite: note which memories were read.
        bank: the file of a saved bank, read when the method is attached; `method(model, bank)` takes one from memory.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> mind = ExtendedMind(topk=10, cite=True)
        >>> bank = mind.memorize(model, tokenizer.encode(text))                             # doctest: +SKIP
        >>> with mind(model, bank) as session:                                              # doctest: +SKIP
        ...     model.generate(question, max_new_tokens=16)
        >>> session.citations().group_by("document").len()                                  # doctest: +SKIP
    """

    topk: int = 10
    sim_threshold: float = 0.25
    mask_by_sim: bool = False
    layers: str | tuple[int, ...] = "all"
    stride: int = 512
    window: int = 3072
    remove_special: bool = True
    position: str = "zero"
    cite: bool = False
    bank: str | None = None

    needs_rotary: ClassVar = True
    session: ClassVar = MindSession

    def __post_init__(self) -> None:
        if self.topk < 0 or not -1 <= self.sim_threshold <= 2:
            raise InputError(f"topk is {self.topk} and sim_threshold {self.sim_threshold}.", "Give at least 0, and a cosine.")
        if not 1 <= self.stride <= self.window:
            raise InputError(f"The stride is {self.stride} and the window {self.window}.", "Give a stride from 1 to the window.")
        if isinstance(self.layers, str) and self.layers != "all":
            raise InputError(f"layers is {self.layers!r}.", "Give 'all' or the numbers of layers.")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))  # a list, as JSON gives one, cannot be hashed
        if self.position != "zero" and not self.position.removeprefix("fixed:").isdecimal():
            raise InputError(f"position is {self.position!r}.", "Give 'zero', or 'fixed:' and a distance in tokens.")

    @property
    def fixed(self) -> int | None:
        """The distance of all memories; None where they stand at position 0."""
        return None if self.position == "zero" else int(self.position.removeprefix("fixed:"))

    def validate(self, config: Any) -> None:
        """See `ContextMethod.validate`."""
        count = config.num_hidden_layers
        if not isinstance(self.layers, str) and not all(-count <= layer < count for layer in self.layers):
            raise InputError(f"layers is {self.layers}, but the model has {count} layers.", f"Give numbers from {-count} to {count - 1}.")

    def reads(self, info: LayerInfo) -> bool:
        """Whether a layer reads memories."""
        chosen = isinstance(self.layers, str) or info.index in self.layers or info.index - info.layers in self.layers
        return chosen and self.topk > 0 and not (self.mask_by_sim and self.sim_threshold >= 1)

    def __call__(self, model: Any, bank: MemoryBank | None = None) -> AbstractContextManager[MindSession]:
        """Attaches the method for a `with` block; see `ContextMethod.__call__`.

        Raises:
            InputError: the bank is of another model.
        """
        return _attached(self, model, bank)

    def memorize(
        self, model: Any, ids: Sequence[int] | Sequence[Sequence[int]] | np.ndarray, special: Sequence[int] | None = None
    ) -> MemoryBank:
        """Reads a text, or some, into a bank.

        Args:
            model: a transformers model, or a door that has one; no method may be on it.
            ids: the tokens of a text, or of many texts, each of which is read on its own.
            special: ids of special tokens; by default those for beginning, end and padding that the model's configuration names.

        Returns:
            The bank, on the model's device.

        Raises:
            InputError: no token is left, or a window that is longer than the model's context.
        """
        transformer = unwrap(model)
        config = transformer.get_decoder().config
        texts = [np.asarray(text, np.int64) for text in (ids if len(ids) and np.ndim(ids[0]) else [ids])]
        longest = min(self.window, max((len(text) for text in texts), default=0))
        if longest > config.max_position_embeddings:
            raise InputError(
                f"The window has {longest} tokens, the model's context {config.max_position_embeddings}.", "Give a shorter one."
            )
        if special is None:
            named = [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
            special = [token for one in named if one is not None for token in (one if isinstance(one, list) else [one])]
        keys: dict[int, list[Tensor]] = {}
        values: dict[int, list[Tensor]] = {}
        kept: list[np.ndarray] = []
        with _Unrotated()(transformer) as session:
            for text in texts:
                for begin, end, new in _windows(len(text), self.stride, self.window):
                    column = text[end - new : end]
                    wanted = ~np.isin(column, special) if self.remove_special else np.ones(new, bool)
                    kept.append(column[wanted])
                    there = torch.from_numpy(text[begin:end])[None].to(transformer.device)
                    cache = prefill(session, there, end - begin, logits="none").cache
                    mask = torch.from_numpy(wanted)
                    for layer, info in session.infos.items():
                        assert info.rotary is not None
                        held: Any = cache.layers[layer]
                        zero = info.rotary.rotate(held.keys[:, :, -new:], torch.zeros(1, device=there.device))[0]
                        keys.setdefault(layer, []).append(zero[:, mask])
                        values.setdefault(layer, []).append(held.values[0, :, -new:][:, mask])
        if not sum(map(len, kept)):
            raise InputError("There is no token to memorise.", "Give at least one that is not special.")
        numbers = np.repeat(np.arange(len(texts)), [len(list(_windows(len(text), self.stride, self.window))) for text in texts])
        documents = np.repeat(numbers, [len(part) for part in kept])
        joined = [{layer: torch.cat(parts, dim=1) for layer, parts in held.items()} for held in (keys, values)]
        ids_kept = torch.from_numpy(np.concatenate(kept))
        return MemoryBank(joined[0], joined[1], ids_kept, torch.from_numpy(documents), model_digest(transformer))


@dataclass(frozen=True)
class _Unrotated(ContextMethod):
    """The model as it is, its keys kept before rotation."""

    keys: ClassVar = "pre_rope"


@contextmanager
def _attached(method: ExtendedMind, model: Any, bank: MemoryBank | None) -> Iterator[MindSession]:
    bank = MemoryBank.load(method.bank) if bank is None and method.bank is not None else bank
    with attach(model, method) as session:
        assert isinstance(session, MindSession)
        session.use(bank)
        yield session


def _windows(tokens: int, stride: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, new) of the windows over a text: of each, the last `new` tokens have not been in one before."""
    done = 0
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        yield begin, end, end - done
        done = end
        if end == tokens:
            break
