"""The passage that `palimpsest index` is asked about: its index, and text or ids as rows of ids.

A passage given as text is looked for twice where that makes a difference: as it begins a line and as it follows a space, for most
tokenizers give the first word another id after a space.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palimpsest.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.corpus import CorpusIndex
    from palimpsest.tokenizer import Tokenizer

Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="The index folder.")]
Passage = Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The passage.")]
Ids = Annotated[str | None, typer.Option("--ids", help="The passage as token ids, separated by commas, instead of text.")]


def open_index(path: Path) -> CorpusIndex:
    """Opens the index at `path`."""
    from palimpsest.corpus import CorpusIndex

    return CorpusIndex.open(path)


def require_tokenizer(index: CorpusIndex) -> Tokenizer:
    """The tokenizer of the index, or an `InputError` when it was built from ids."""
    if index.tokenizer is None:
        raise InputError(f"The index {index.path} was built from token ids: it has no tokenizer for text.", "Give --ids.")
    return index.tokenizer


def read_queries(index: CorpusIndex, text: str | None, ids: str | None) -> dict[str, list[int]]:
    """The rows of ids to look for, by what they stand for.

    Raises:
        InputError: not exactly one of the two is given, or it is empty or malformed.
    """
    if (text is None) == (ids is None):
        raise InputError("A passage is needed.", 'Give it as text, "in the beginning", or as --ids 12,7,99.')
    if ids is not None:
        parts = [part.strip() for part in ids.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise InputError(f"--ids is {ids!r}.", "Give whole numbers >= 0 separated by commas.")
        return {"ids": [int(part) for part in parts]}
    tokenizer = require_tokenizer(index)
    queries = {"as given": tokenizer.encode(text or ""), "after a space": tokenizer.encode(f" {text}")}
    if not (text or "").strip() or not queries["as given"]:
        raise InputError("The passage is empty.", "Give some words.")
    if queries["after a space"] == queries["as given"]:
        del queries["after a space"]
    return queries


def as_text(index: CorpusIndex, ids: np.ndarray) -> str:
    """Ids as text, or as numbers when the index has no tokenizer."""
    return index.tokenizer.decode(ids.tolist()) if index.tokenizer else f" {' '.join(map(str, ids.tolist()))} "
