"""Options that several verbs share: tokenizers, how a text is written, and JSON."""

from __future__ import annotations

from typing import Annotated

import typer

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
