"""Keys and values of a text, computed once, that a model can attend to later: what Extended Mind (028) reads from.

For every layer the bank holds keys and values (kv_heads, memories, head_dim), the keys at position 0, and for every memory the id of its
token and the number of its document, so that what was read can be named. On disk it is one safetensors file whose header says which model
made it; another model's queries mean something else, and `belongs_to` refuses them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palimpsest.errors import InputError, ModelNotFoundError
from palimpsest.files import write_bytes

FORMAT = "1"


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Memories of one text, or of many.

    Attributes:
        keys, values: for each layer that has memories, by its number, (kv_heads, memories, head_dim).
        ids: (memories,) int64, the tokens.
        documents: (memories,) int64, which of the texts each is of.
        model: `model_digest` of the model that made them.

    Example:
        >>> bank = ExtendedMind().memorize(model, [tokenizer.encode(text) for text in texts])        # doctest: +SKIP
        >>> bank.save("bank.safetensors"); len(MemoryBank.load("bank.safetensors")) == len(bank)      # doctest: +SKIP
        True
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    ids: Tensor
    documents: Tensor
    model: str

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def inverse_norms(self) -> dict[int, Tensor]:
        """For each layer 1 / |k|, (kv_heads, memories) float32; 0 for a key of length 0, which is similar to nothing."""
        norms = {layer: keys.float().norm(dim=-1) for layer, keys in self.keys.items()}
        return {layer: torch.where(norm > 0, 1 / norm, 0) for layer, norm in norms.items()}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> MemoryBank:
        """The bank on another device, or in another type."""
        keys, values = (
            {layer: part.to(device, dtype or part.dtype) for layer, part in parts.items()} for parts in (self.keys, self.values)
        )
        return replace(self, keys=keys, values=values)

    def select(self, memories: Tensor) -> MemoryBank:
        """The memories named, in that order: numbers, or a mask."""
        keys, values = ({layer: part[:, memories] for layer, part in parts.items()} for parts in (self.keys, self.values))
        return replace(self, keys=keys, values=values, ids=self.ids[memories], documents=self.documents[memories])

    @classmethod
    def join(cls, banks: Sequence[MemoryBank]) -> MemoryBank:
        """Many banks of one model as one; documents are numbered through.

        Raises:
            InputError: no bank, or banks of different models or layers.
        """
        if not banks:
            raise InputError("There is no bank to join.", "Give at least one.")
        if len({(bank.model, *bank.keys) for bank in banks}) > 1:
            raise InputError("The banks were made by different models, or for different layers.", "Make them again with one model.")
        keys, values = (
            {layer: torch.cat([parts[layer] for parts in held], dim=1) for layer in banks[0].keys}
            for held in ([bank.keys for bank in banks], [bank.values for bank in banks])
        )
        documents, first = [], 0
        for bank in banks:
            documents.append(bank.documents + first)
            first += int(bank.documents.max()) + 1 if len(bank) else 0
        return cls(keys, values, torch.cat([bank.ids for bank in banks]), torch.cat(documents), banks[0].model)

    def belongs_to(self, model: Any) -> None:
        """Raises if another transformers model made the bank.

        Raises:
            InputError: it did.
        """
        if model_digest(model) != self.model:
            raise InputError("The memory bank was made by another model.", "Memorize the text with this one.")

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file.

        Raises:
            StorageError: it cannot be written.
        """
        tensors = {"ids": self.ids, "documents": self.documents}
        for layer in self.keys:
            tensors |= {f"keys.{layer}": self.keys[layer], f"values.{layer}": self.values[layer]}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {"format": FORMAT, "model": self.model, "layers": json.dumps(list(self.keys))}
        write_bytes(Path(path), safetensors.torch.save(tensors, metadata=header))

    @classmethod
    def load(cls, path: str | Path) -> MemoryBank:
        """Reads what `save` wrote.

        Raises:
            ModelNotFoundError: there is no such file.
            InputError: the file holds no memory bank of this format.
        """
        if not Path(path).is_file():
            raise ModelNotFoundError(f"{path} holds no memory bank.", "Give a file that MemoryBank.save() wrote.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
                layers = json.loads(header["layers"])
                keys, values = ({layer: file.get_tensor(f"{name}.{layer}") for layer in layers} for name in ("keys", "values"))
                return cls(keys, values, file.get_tensor("ids"), file.get_tensor("documents"), header["model"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} holds no memory bank that can be read: {error}.", "Memorize the text and save it again.") from error


def model_digest(model: Any) -> str:
    """SHA-256 over the shape of a transformers model and a few numbers of each of its parameters, which every training changes."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in sorted(model.named_parameters()):
        few = parameter.detach().flatten()[:16].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {few.tolist()}\n".encode())
    return digest.hexdigest()
