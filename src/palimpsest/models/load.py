"""`load_model`: one name in, one door out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers

from palimpsest.errors import InputError, ModelNotFoundError
from palimpsest.models.base import LanguageModel
from palimpsest.models.hf import HFModel, quiet
from palimpsest.tokenizer import Tokenizer


def load_model(
    spec: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    batch_tokens: int | None = None,
    bos: str = "auto",
) -> LanguageModel:
    """Opens the door to a causal language model."""
    folder = Path(spec)
    if folder.is_dir():
        return load_folder(folder, tokenizer=tokenizer, batch_tokens=batch_tokens, bos=bos)
    raise ModelNotFoundError(f"There is no model {os.fspath(spec)!r}.", "Give a folder written by save_pretrained().")


def load_folder(
    folder: Path, *, tokenizer: Tokenizer | str | os.PathLike[str] | None = None, batch_tokens: int | None = None, bos: str = "auto"
) -> HFModel:
    """Loads a folder written by transformers' `save_pretrained`."""
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"The folder {folder} holds no config.json.", "Give a folder written by save_pretrained().")
    with quiet():
        own = read_tokenizer(tokenizer if tokenizer is not None else folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32 if not torch.cuda.is_available() else "auto"
        )
    if torch.cuda.is_available():
        model = model.to("cuda")
    return HFModel(model, own, name=folder.name, batch_tokens=batch_tokens, bos=bos)


def read_tokenizer(source: Tokenizer | str | os.PathLike[str]) -> Tokenizer:
    """A `Tokenizer` from itself, a `tokenizer.json`, or whatever transformers' `AutoTokenizer` can open."""
    if isinstance(source, Tokenizer):
        return source
    if Path(source).is_file():
        return Tokenizer.from_file(source)
    try:
        fast: Any = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:
        raise InputError(f"{os.fspath(source)} holds no tokenizer that can be read: {error}.", "Give tokenizer=… .") from error
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"The tokenizer of {os.fspath(source)} has no tokenizer.json.", "Convert it to a fast tokenizer first.")
    bos_id = fast.bos_token_id
    adds_bos = bos_id is not None and backend.encode("a", add_special_tokens=True).ids[:1] == [bos_id]
    return Tokenizer(backend, bos_id=bos_id, eos_id=fast.eos_token_id, pad_id=fast.pad_token_id, adds_bos=adds_bos)
