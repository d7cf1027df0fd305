"""One tokenizer interface for models and indexes: text to token ids and back, with a fingerprint that both must share.

It wraps a `tokenizers.Tokenizer` (what every fast transformers tokenizer holds inside), so that an index can be built and read
without loading a model, and so that two parts can prove that they speak of the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from palimpsest.errors import InputError, ModelNotFoundError, TokenizerMismatchError
from palimpsest.files import write_text


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
        backend: the `tokenizers.Tokenizer` that does the work.
        bos_id, eos_id, pad_id: ids of the special tokens, None where there is none.
        adds_bos: whether the model expects `bos_id` before every text (its own convention, not applied by `encode`).

    Example:
        >>> tokenizer = Tokenizer.from_file("tokenizer.json")        # doctest: +SKIP
        >>> tokenizer.decode(tokenizer.encode("In the beginning"))    # doctest: +SKIP
        'In the beginning'
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    adds_bos: bool = False

    def __post_init__(self) -> None:
        if self.backend.truncation or self.backend.padding:  # settings of some batch, not of the vocabulary: they would cut documents
            backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
            backend.no_truncation()
            backend.no_padding()
            object.__setattr__(self, "backend", backend)

    @classmethod
    def from_file(cls, path: str | Path, **special: int | bool | None) -> Tokenizer:
        """Reads a `tokenizer.json`."""
        path = Path(path)
        if not path.is_file():
            raise ModelNotFoundError(f"There is no tokenizer file {path}.", "Give the path of a tokenizer.json.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise InputError(f"{path} is not a tokenizer.json: {error}.", "Save it with tokenizer.save_pretrained().") from error
        return cls(backend, **special)  # type: ignore[arg-type]

    def save(self, path: str | Path) -> None:
        """Writes the `tokenizer.json`, atomically."""
        write_text(path, self.backend.to_str(pretty=False))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens.

        Raises:
            InputError: the text holds half of a surrogate pair, as Python makes of bytes that are not UTF-8.
        """
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise InputError(f"The text {text[:40]!r} is not Unicode text.", "Give text in UTF-8.") from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, in parallel, without special tokens."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; special tokens are kept."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text that each token adds: `"".join(pieces(ids)) == decode(ids)`.

        A token that only completes a multi-byte character carries the whole character; the tokens before it carry "".
        """
        ids = [int(i) for i in ids]
        pieces: list[str] = []
        start = 0  # decode from `start` on; moved up whenever the text so far is whole
        done = ""
        for end in range(1, len(ids) + 1):
            text = self.decode(ids[start:end])
            if text.endswith("\ufffd") and end < len(ids):
                pieces.append("")
                continue
            pieces.append(text[len(done) :])
            if end - start >= 16:  # keep the window short: one token of left context suffices for spacing rules
                start = end - 1
                done = self.decode(ids[start:end])
            else:
                done = text
        return pieces

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides how text becomes ids and back.

        Padding, truncation and the post-processor do not count: `encode` uses none of them, and transformers changes them when it
        saves and loads a tokenizer.
        """
        content = json.loads(self.backend.to_str())
        for setting in ("padding", "truncation", "post_processor"):
            content.pop(setting, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def require_same(self, fingerprint: str, whose: str) -> None:
        """Raises `TokenizerMismatchError` unless `fingerprint` is this tokenizer's."""
        if fingerprint != self.fingerprint:
            raise TokenizerMismatchError(
                f"The tokenizer {self.fingerprint[:12]} does not belong to {whose}, which uses {fingerprint[:12]}.",
                "Build the index again with this model's tokenizer, or give the model that the index was built for.",
            )
