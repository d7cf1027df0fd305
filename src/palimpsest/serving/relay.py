"""RelayAttention: requests that begin alike read the keys and values of what they share once, not once each (system 116).

Zhu, Wang, Zhang, Lau, ACL 2024, arXiv 2402.14808. A batch of B requests begins with one system prompt of S tokens. Its keys and values
stand in memory once, (1, Hkv, S, d), and are read once a step, against the queries of all requests at once; every request's own context
is attended to as usual, at positions from S on; the two attentions are joined by their sums of exponentials (`serving.lse`). What comes
out is attention over the whole, exactly, up to rounding.

The paper shares one prompt. Here a prefix may continue another (system → user → branch), each stored once, and every row of a batch names
the last prefix that it continues; `serving.shared_prefixes` keeps them. The cache of transformers holds the contexts alone, so that beam
search and selection move nothing else. As in the authors' release windows are refused, which would have to know the distance to the
prefix; so are models whose positions cannot be given (ALiBi) or change with the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from palimpsest.context.attach import ContextMethod, attach
from palimpsest.context.prefill import prefill
from palimpsest.context.session import LayerInfo, Session, causal
from palimpsest.errors import InputError, UnsupportedModelError
from palimpsest.models.batching import check_rows
from palimpsest.serving.lse import attention_lse, merge

_CHUNK = 512  # tokens of a prefix that are read in one forward pass


def relay_attention(
    q: Tensor, k_sys: Tensor, v_sys: Tensor, k_ctx: Tensor, v_ctx: Tensor, ctx_len: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention of a batch over a shared prefix and each row's own context.

    Args:
        q: queries of the last T tokens of every context, (B, H, T, d).
        k_sys, v_sys: of the prefix, (1, Hkv, S, d); S may be 0.
        k_ctx, v_ctx: of the contexts, (B, Hkv, C, d), row b in its first ctx_len[b] columns.
        ctx_len: (B,) integer, each at least T; None: C each.
        scale: of the logits; by default 1/√d.

    Returns:
        (B, H, T, d).

    Raises:
        InputError: shapes or lengths that do not fit each other.
    """
    count, columns = q.shape[2], k_ctx.shape[2]
    lengths = torch.full((len(q),), columns, device=q.device) if ctx_len is None else ctx_len.to(q.device)
    if lengths.shape != (len(q),) or int(lengths.min()) < count or int(lengths.max()) > columns:
        raise InputError(
            f"The contexts are {lengths.tolist()} tokens long, of {columns} columns and with {count} queries.",
            "Give every row a length from the number of queries to that of the columns.",
        )
    ends = lengths[:, None] - count + 1 + torch.arange(count, device=q.device)  # columns that each query sees
    mask = torch.arange(columns, device=q.device) < ends[:, None, :, None]
    parts = [attention_lse(q, k_sys, v_sys, scale=scale), attention_lse(q, k_ctx, v_ctx, mask, scale)]
    return merge(*zip(*parts, strict=True))[0]


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """A text that requests begin with, and its keys and values in every layer; made by `RelaySession.read`.

    Attributes:
        ids: its own token ids.
        parent: the prefix that it continues, if any.
        layers: for every layer keys and values, (1, Hkv, len(ids), d) each.
        model: whose they are.
    """

    ids: tuple[int, ...]
    parent: SharedPrefix | None
    layers: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    model: PreTrainedModel = field(repr=False)

    @property
    def chain(self) -> list[SharedPrefix]:
        """The prefixes from the first to this one."""
        return [*(self.parent.chain if self.parent else []), self]

    @property
    def end(self) -> int:
        """Tokens up to here, those of its parents included: the position of the token that follows."""
        return len(self.ids) + (self.parent.end if self.parent else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of its own keys and values."""
        return sum(tensor.numel() * tensor.element_size() for pair in self.layers for tensor in pair)


class RelaySession(Session):
    """A session in which rows continue prefixes.

    Attributes:
        rows: the last prefix of every row (None: the row has none), or of every group of as many neighbouring rows as fit, such as the
            beams of a prompt; one serves a batch of any size. A door sorts the rows that it is given: there, one for all. `nbytes()` and
            `peak_bytes` count the contexts alone.
    """

    def __init__(self, model: PreTrainedModel, decoder: torch.nn.Module, method: ContextMethod, infos: dict[int, LayerInfo]) -> None:
        super().__init__(model, decoder, method, infos)
        self.rows: list[SharedPrefix | None] = []
        self._levels: list[list[tuple[SharedPrefix, Tensor | None]]] = []
        self._mask: Tensor | None = None
        changing = hasattr(decoder, "rotary_emb") and any(info.rotary is None for info in infos.values())
        if changing or "position_ids" not in self._arguments:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot read a prefix apart: its positions change with the length, or cannot be given.",
                "Use a model with rotary positions of a fixed base, or with learned ones.",
            )

    def follow(self, rows: Sequence[SharedPrefix | None]) -> None:
        """Says what the rows of the next forward passes continue; a cache goes on only with the prefixes that it began with.

        Raises:
            InputError: a prefix of another model.
        """
        if any(prefix is not None and prefix.model is not self.model for prefix in rows):
            raise InputError("A prefix was read by another model.", "Add it to a SharedPrefixCache of this one.")
        self.rows = list(rows)

    def read(self, ids: Sequence[int], behind: SharedPrefix | None = None) -> SharedPrefix:
        """Reads a text into a prefix; what the rows continue, and the cache in use, stay as they are.

        Args:
            ids: token ids, at least one, with the BOS that the model expects.
            behind: the prefix that the text continues.

        Raises:
            InputError: no ids, ids outside of the vocabulary, or a prefix of another model.
            ContextOverflowError: the model's context ends before the prefix does.
        """
        context = int(getattr(self.decoder.config, "max_position_embeddings", None) or 1 << 30)
        embeddings: Any = self.model.get_input_embeddings()
        [row] = check_rows([ids], int(embeddings.weight.shape[0]), context, behind.end if behind else 0, "Prefix")
        kept = self.rows, self.cache, self.peak_bytes
        self.follow([behind])
        try:
            cache: Any = prefill(self, torch.from_numpy(row)[None].to(self.model.device), _CHUNK, logits="none").cache
        finally:
            self.rows, self.cache, self.peak_bytes = kept
        layers = tuple((layer.keys.contiguous(), layer.values.contiguous()) for layer in cache.layers)
        return SharedPrefix(tuple(row.tolist()), behind, layers, self.model)

    def before_forward(
        self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As in every session; positions are moved behind the prefixes."""
        kwargs = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        inputs = kwargs.get("input_ids")
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        self._levels = []
        if self.rows and inputs is not None:
            batch, count = inputs.shape[:2]
            if batch % len(self.rows):
                raise InputError(
                    f"{batch} rows cannot continue {len(self.rows)} prefixes.", "Give session.follow one prefix, or one for each row."
                )
            rows = [prefix for prefix in self.rows for _ in range(batch // len(self.rows))]
            positions, cache = kwargs.get("position_ids"), kwargs.get("past_key_values")
            if positions is None:
                held = 0 if cache is None else cache.get_seq_length()
                positions = torch.arange(held, held + count, device=inputs.device)[None]
            begin = torch.tensor([0 if prefix is None else prefix.end for prefix in rows], device=inputs.device)
            kwargs["position_ids"] = positions + begin[:, None]
            self._levels = _levels(rows, inputs.device)
        args, kwargs = super().before_forward(decoder, (), kwargs)
        self._mask = self._visible(inputs)
        return args, kwargs

    def _visible(self, inputs: Tensor | None) -> Tensor | None:
        """What each query sees of the contexts, (batch or 1, 1, queries, columns) bool; None: everything."""
        assert self.step is not None
        assert inputs is not None
        count = inputs.shape[1]
        columns = self.step.cache.get_seq_length() + count
        padding = self.step.pad_mask
        if padding is not None and bool(padding.all()):
            padding = None
        if count == 1:
            return None if padding is None else padding[:, None, None]
        visible = causal(count, columns, inputs.device)
        return visible if padding is None else visible & padding[:, None, None]

    def run(
        self, module: torch.nn.Module, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """The attention of one layer: over the contexts, over the prefixes level by level, and all joined."""
        if not self._levels:
            return super().run(module, info, q, k, v, mask, options)
        assert self.step is not None
        layer: Any = self.step.cache.layers[info.index]
        self._count(info.index, layer)
        parts = [attention_lse(q, k, v, self._mask, info.scaling)]
        for level in self._levels:
            parts.append(_attend(q, level, info))
        return merge(*zip(*parts, strict=True))[0].transpose(1, 2)


@dataclass(frozen=True)
class RelayAttention(ContextMethod):
    """Lets every row of a batch continue one prompt that is stored and read once.

    Args:
        system_ids: the prompt, with the BOS that the model expects. Without any, `session.follow` says what the rows continue.

    Example:
        >>> with RelayAttention(tuple(system_ids))(model):                    # doctest: +SKIP
        ...     model.generate(questions, attention_mask=mask, max_new_tokens=64)
    """

    system_ids: tuple[int, ...] = ()
    session: ClassVar[type[Session]] = RelaySession

    def validate(self, config: Any) -> None:
        """Raises `UnsupportedModelError` for windows and for ALiBi."""
        types = getattr(config, "layer_types", None)
        window = "sliding_attention" in types if types is not None else getattr(config, "sliding_window", None) is not None
        if window or getattr(config, "alibi", False):
            raise UnsupportedModelError(
                f"A shared prefix cannot be read apart by {type(config).__name__}: it has {'windows' if window else 'ALiBi'}.",
                "Use a model with full attention and rotary or learned positions.",
            )

    def __call__(self, model: Any) -> AbstractContextManager[RelaySession]:  # type: ignore[override]
        """Reads the prompt and attaches the method; every row of what follows continues the prompt.

        Raises:
            InputError: behind a door that puts a BOS before every row: it would stand behind the prompt.
        """
        if getattr(model, "prepends_bos", False):
            raise InputError("The door puts a BOS before every row, which would stand behind the prompt.", "Attach to its `.model`.")
        return self._attached(model)

    @contextmanager
    def _attached(self, model: Any) -> Iterator[RelaySession]:
        with attach(model, self) as session:
            assert isinstance(session, RelaySession)
            if self.system_ids:
                session.follow([session.read(self.system_ids)])
            yield session


def _levels(rows: Sequence[SharedPrefix | None], device: torch.device) -> list[list[tuple[SharedPrefix, Tensor | None]]]:
    """For every depth of the tree its prefixes, each with the numbers of the rows that continue it; None where all do."""
    levels: list[dict[SharedPrefix, list[int]]] = []
    for row, last in enumerate(rows):
        for depth, prefix in enumerate(last.chain if last else []):
            if depth == len(levels):
                levels.append({})
            levels[depth].setdefault(prefix, []).append(row)
    return [
        [(prefix, None if len(members) == len(rows) else torch.tensor(members, device=device)) for prefix, members in level.items()]
        for level in levels
    ]


def _attend(q: Tensor, level: list[tuple[SharedPrefix, Tensor | None]], info: LayerInfo) -> tuple[Tensor, Tensor]:
    """Attention and lse over the prefixes of one depth; a row that continues none of them attends to nothing."""
    if level[0][1] is None:
        return attention_lse(q, *level[0][0].layers[info.index], scale=info.scaling)
    out, lse = attention_lse(q, q[:, : info.kv_heads, :0], q[:, : info.kv_heads, :0])
    for prefix, members in level:
        assert members is not None
        found = attention_lse(q[members], *prefix.layers[info.index], scale=info.scaling)
        out[members], lse[members] = found
    return out, lse
