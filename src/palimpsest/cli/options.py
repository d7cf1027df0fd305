"""Options that several verbs share: tokenizers, how a text is written, and JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from palimpsest.errors import StorageError


def writable(out: Path | None) -> Path | None:
    """The path of a file that is to be written when the work is done; that it can be is found out before the work.

    Raises:
        StorageError: a folder stands there, or where its folder should be there is a file or nothing may be written.
    """
    if out is None:
        return None
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise StorageError(f"Cannot write {out}: it is a folder, or {above} takes no file.", "Choose another file.")
    return out


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Memory = Annotated[str | None, typer.Option(help="What the build may take, such as 2GB; by default half of what is free.")]
OwnTokenizer = Annotated[str | None, typer.Option("--tokenizer", help="A tokenizer.json, or a folder or hub id that holds one.")]
OwnModel = Annotated[str | None, typer.Option("--model", help="The model whose tokenizer is to be used.")]
Prompt = Annotated[str, typer.Option(help="What the text begins with, or - to read it from the standard input.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="The most tokens written.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample from the so many likeliest tokens; 0 for all.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the nucleus of this probability.")]
Beams = Annotated[int, typer.Option(min=1, help="Beam search with so many beams.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sampling.")]
