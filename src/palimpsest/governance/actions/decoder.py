"""Where a transformers decoder keeps what it knows of subjects: the down-projections of its MLPs, found by structure.

A layer's MLP ends in a matrix W (d × m) from its m hidden units to the d units of the residual stream: `mlp.down_proj` in a Llama,
`mlp.c_proj` in a GPT-2, whose Conv1D stores the transpose. It is looked for as the last linear map onto d units in the parts of a layer
that are not attention; nothing depends on the names of one architecture. Keys are its inputs (m), values its outputs without bias (d).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from palimpsest.errors import InputError
from palimpsest.models.batching import check_rows, pad
from palimpsest.models.hf import HFModel


@dataclass(frozen=True)
class DownProjection:
    """The matrix that ends an MLP.

    Attributes:
        layer: number of the layer, from 0.
        name: of its weight among the model's parameters.
        module: the linear map.
        block: the whole decoder layer.
    """

    layer: int
    name: str
    module: torch.nn.Module
    block: torch.nn.Module

    @property
    def weight(self) -> torch.Tensor:
        """W as (d, m), a view of the parameter whichever way it is stored."""
        stored: Any = self.module.weight
        return stored.detach().T if isinstance(self.module, Conv1D) else stored.detach()

    def add(self, update: torch.Tensor) -> None:
        """W ← W + update (d, m), summed in double precision."""
        with torch.no_grad():
            self.weight.copy_((self.weight.double() + update).to(self.weight.dtype))


def down_projections(model: HFModel) -> list[DownProjection]:
    """The down-projection of every layer, first to last.

    Raises:
        InputError: the model is built otherwise (a mixture of experts, say).
    """
    config = model.model.config.get_text_config()
    count, width = int(config.num_hidden_layers), int(config.hidden_size)
    for prefix, blocks in model.model.named_modules():
        if isinstance(blocks, torch.nn.ModuleList) and len(blocks) == count:
            found = [_last_onto(block, width) for block in blocks]
            if all(name is not None for name in found):
                return [
                    DownProjection(i, f"{prefix}.{i}.{name}.weight", block.get_submodule(str(name)), block)
                    for i, (block, name) in enumerate(zip(blocks, found, strict=True))
                ]
    raise InputError(
        f"{model.name} has no layers that each end in one MLP onto {width} units.", "Edit a decoder built as a Llama or a GPT-2 is."
    )


def _last_onto(block: torch.nn.Module, width: int) -> str | None:
    """Name, within a decoder layer, of the last linear map onto `width` units that is not part of attention."""
    maps = [
        (name, module)
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and "attn" not in name.lower() and "attention" not in name.lower()
    ]
    if not 2 <= len(maps) <= 3:  # up and down, or gate, up and down; more are experts
        return None
    onto = [name for name, module in maps if _out_of(module) == width]
    return onto[-1] if onto and onto[-1] == maps[-1][0] else None


def _out_of(module: torch.nn.Module) -> int:
    stored: Any = module.weight
    return int(stored.shape[1] if isinstance(module, Conv1D) else stored.shape[0])


def require_layers(places: Sequence[DownProjection], layers: Sequence[int]) -> None:
    """Raises `InputError` unless all `layers` exist, ascending."""
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(places):
        raise InputError(f"The layers are {list(layers)}.", f"Give ascending numbers from 0 to {len(places) - 1}.")


@dataclass(frozen=True)
class Fed:
    """Rows as they go into a model, BOS in front where the door puts it, padded on the right.

    Attributes:
        inputs: what the model's forward takes.
        offset: where position 0 of a row without BOS stands.
        lengths: of the rows, BOS included.
    """

    inputs: dict[str, torch.Tensor]
    offset: int
    lengths: list[int]


def feed(model: HFModel, rows: Sequence[Sequence[int] | np.ndarray]) -> Fed:
    """Pads rows of ids for one forward pass.

    Raises:
        InputError, ContextOverflowError: see `check_rows`.
    """
    rows = check_rows(rows, model.vocab_size, model.context_length, int(model.prepends_bos))
    bos = [model.tokenizer.bos_id] if model.prepends_bos else []
    fed = [np.array([*bos, *row], dtype=np.int64) for row in rows]
    ids, mask, positions = pad(fed, "right", model.device)
    return Fed({"input_ids": ids, "attention_mask": mask, "position_ids": positions}, len(bos), [len(row) for row in fed])


def logits_of(model: HFModel, fed: Fed) -> torch.Tensor:
    """Logits (rows, time, vocabulary) in fp32; gradients flow where they are on."""
    return model.model(**fed.inputs, use_cache=False, return_dict=True).logits.float()


@contextmanager
def captured_keys(places: Sequence[DownProjection]) -> Iterator[dict[int, torch.Tensor]]:
    """Within the block, every forward pass leaves the inputs (rows, time, m) of these projections under their layer's number."""
    found: dict[int, torch.Tensor] = {}

    def watch(place: DownProjection) -> Any:
        def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found[place.layer] = inputs[0].detach()

        return place.module.register_forward_pre_hook(keep)

    hooks = [watch(place) for place in places]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def captured_states(place: DownProjection) -> Iterator[dict[str, torch.Tensor]]:
    """Within the block, every forward pass leaves the residual stream after this layer (rows, time, d) under "state"."""
    found: dict[str, torch.Tensor] = {}

    def keep(_: torch.nn.Module, inputs: Any, output: Any) -> None:
        found["state"] = (output[0] if isinstance(output, tuple) else output).detach()

    hook = place.block.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


@contextmanager
def added_value(place: DownProjection, delta: torch.Tensor, positions: Sequence[int]) -> Iterator[None]:
    """Within the block, `delta` (d,) is added to the projection's output at one position of every row."""
    rows = torch.arange(len(positions), device=delta.device)
    where = torch.tensor(list(positions), device=delta.device)

    def add(_: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        moved = torch.zeros_like(output)
        moved[rows, where] = 1.0
        return output + moved * delta.to(output.dtype)

    hook = place.module.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
