"""What memory tokens leave behind: vectors, and for each text what is known of it but the text itself; on disk as safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from palimpsest.errors import InputError, ModelNotFoundError
from palimpsest.files import sha256_file, storage_errors, write_bytes, write_json

FORMAT = 1


@dataclass(frozen=True)
class Memory:
    """What is known of one trained memory.

    Attributes:
        length: tokens of the text, L.
        sha256: of its ids as little-endian int64: the text can be checked, not read off.
        steps: optimizer steps taken.
        losses: mean cross-entropy (nat) before each step, and at the end: steps + 1 figures.
        accuracy: share of the L + 1 positions whose argmax was right at the end, teacher-forced.
        exact: whether greedy decoding from the vectors gives the text and EOS.
    """

    length: int
    sha256: str
    steps: int
    losses: list[float]
    accuracy: float
    exact: bool


@dataclass(frozen=True)
class MemoryBank:
    """Trained memories of many texts; `bank[i]` are the vectors of text i, (n_tokens, hidden).

    Attributes:
        vectors: (texts, n_tokens, hidden) float32.
        memories: one `Memory` a text.
        model, tokenizer: fingerprints of what they were trained with.
        settings: how.

    Example:
        >>> bank.save("memories"); MemoryBank.load("memories")[0].shape   # doctest: +SKIP
        (1, 576)
    """

    vectors: np.ndarray
    memories: list[Memory]
    model: str
    tokenizer: str
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.memories)

    def __getitem__(self, text: int) -> np.ndarray:
        return self.vectors[text]

    def save(self, folder: str | Path) -> None:
        """Writes `memories.safetensors` and `memories.json` into `folder`.

        Raises:
            StorageError: it cannot be written.
        """
        folder = Path(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "memories.safetensors", safetensors.numpy.save({"vectors": self.vectors}))
        record = {
            "format": FORMAT,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "settings": self.settings,
            "sha256": sha256_file(folder / "memories.safetensors"),
            "memories": [asdict(memory) for memory in self.memories],
        }
        write_json(folder / "memories.json", record)

    @classmethod
    def load(cls, folder: str | Path) -> MemoryBank:
        """Reads what `save` wrote.

        Raises:
            ModelNotFoundError: no memories stand there.
            InputError: the files do not belong together, or are of another format.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "memories.json").read_text(encoding="utf-8"))
            if record["format"] != FORMAT or sha256_file(folder / "memories.safetensors") != record["sha256"]:
                raise ValueError("the format is another one, or the vectors are not those that the record names")
            vectors = safetensors.numpy.load_file(folder / "memories.safetensors")["vectors"]
            memories = [Memory(**memory) for memory in record["memories"]]
            if vectors.ndim != 3 or len(vectors) != len(memories):
                raise ValueError(f"vectors of shape {vectors.shape} for {len(memories)} texts")
            return cls(vectors, memories, record["model"], record["tokenizer"], record["settings"])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFoundError(f"{folder} holds no memories.", "Give a folder that MemoryBank.save() wrote.") from error
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(f"{folder} holds no memories that can be read: {error}.", "Train and save them again.") from error
