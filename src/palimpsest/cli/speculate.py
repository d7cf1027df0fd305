"""`palimpsest speculate`: continue a prompt with a drafter's help, the drafter's head cut to what the target writes (095)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from palimpsest.cli.options import Json, MaxNewTokens, Prompt, Seed, Temperature, TopK, TopP
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.models.hf import HFModel
    from palimpsest.serving.vocabtrim import TrimmedDrafter

WINDOW = 32  # tokens of text from which a calibration continues
WINDOWS = 64  # so many are taken, evenly over the texts


def speculate(
    target: Annotated[str, typer.Argument(help="The model whose text it is: a known name, a folder or a hub id.")],
    drafter: Annotated[str, typer.Option(help="A smaller model with the same tokenizer.")],
    prompt: Prompt,
    trim: Annotated[str | None, typer.Option(help="Keep so many tokens in the drafter's head; auto for the best number.")] = None,
    calibration: Annotated[list[Path] | None, typer.Option(help="Texts like those to come; --trim counts what continues them.")] = None,
    source: Annotated[str, typer.Option(help="What is counted: target, drafter (what they write), or text.")] = "target",
    calibration_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are counted.")] = 20_000,
    gamma: Annotated[int, typer.Option(min=1, help="Tokens drafted at a time.")] = 4,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    seed: Seed = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Also let the target write alone, and take the times of both.")] = False,
    as_json: Json = False,
) -> None:
    """Write exactly what the target would, several tokens a call of it."""
    from palimpsest.models import load_model
    from palimpsest.numbers import number, percent
    from palimpsest.serving.speculative import speculative_generate
    from palimpsest.serving.vocabtrim import same_tokenizer

    if (trim is None) != (not calibration):
        raise InputError("--trim and --calibration belong together.", "Give both, or neither for the whole head.")
    doors: Any = (load_model(target), load_model(drafter))
    same_tokenizer(*doors)
    whole, small = doors
    prefix = whole.tokenizer.encode(typer.get_text_stream("stdin").read() if prompt == "-" else prompt)
    if not prefix:
        raise InputError("The prompt is empty.", "Give some words.")
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p}
    used = small if trim is None else trimmed(whole, small, trim, calibration or [], source, calibration_tokens, gamma, seed, options)
    [ids], stats = speculative_generate(whole, used, [prefix], max_new_tokens, gamma=gamma, seed=seed, **options)
    value: dict[str, Any] = {
        "prompt": whole.tokenizer.decode(prefix),
        "text": whole.tokenizer.decode(ids),
        "kept": len(used.kept) if trim is not None else small.vocab_size,
        "vocabulary": small.vocab_size,
        **stats.to_dict(),
    }
    if compare:
        began = time.perf_counter()
        [[alone]] = whole.generate([prefix], max_new_tokens, seed=seed, **options)
        value["target_alone"] = {"text": whole.tokenizer.decode(alone), "seconds": time.perf_counter() - began}
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    console = Console()
    console.print(value["prompt"], style="dim", end="", highlight=False, markup=False)
    console.print(value["text"], highlight=False, markup=False)
    lines = [
        f"{stats.new_tokens:,} tokens in {stats.blocks:,} calls of the target, {number(stats.block_efficiency)} each; "
        f"{percent(stats.acceptance)} of the drafts accepted.",
        f"The drafter's head keeps {value['kept']:,} of {value['vocabulary']:,} tokens; "
        f"it reads {percent(stats.cost)} of the target's bytes.",
        f"Where memory is what limits: {number(stats.mbsu)} times the target alone.",
    ]
    if compare:
        lines.append(f"Here: {number(stats.seconds)} s, the target alone {number(value['target_alone']['seconds'])} s.")
    for line in lines:
        console.print(line, style="dim", highlight=False)


def trimmed(
    target: HFModel,
    drafter: HFModel,
    trim: str,
    texts: list[Path],
    source: str,
    n_tokens: int,
    gamma: int,
    seed: int,
    options: dict[str, Any],
) -> TrimmedDrafter:
    """The drafter with its head cut to `trim` tokens; "auto" tries sizes on what the target writes after windows that are not counted.

    Raises:
        InputError: an unknown source or size, or too little text.
    """
    import numpy as np

    from palimpsest.corpus.documents import read_documents
    from palimpsest.serving.vocabtrim import calibrate, count_tokens, estimate_sizes, trim_head

    if source not in ("target", "drafter", "text"):
        raise InputError(f"The source is {source!r}.", "Choose target, drafter or text.")
    if trim != "auto" and not trim.isdecimal():
        raise InputError(f"--trim is {trim!r}.", "Give a number of tokens, or auto.")
    rows = target.tokenizer.encode_batch([str(document.text) for path in texts for document in read_documents(path)])
    windows = [row[at : at + WINDOW] for row in rows for at in range(0, len(row) - WINDOW + 1, WINDOW)]
    if len(windows) < 2:
        raise InputError(f"The texts have {len(windows)} windows of {WINDOW} tokens.", "Give longer or more texts.")
    chosen = [windows[i] for i in np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).round().astype(int)]
    counted, held_out = (chosen[0::2], chosen[1::2]) if trim == "auto" else (chosen, [])
    room = min(target.context_length, drafter.context_length) - WINDOW - 1
    if source == "text":
        counts = count_tokens([[i for row in rows for i in row][:n_tokens]], drafter.vocab_size)
    else:
        counts = calibrate(
            target if source == "target" else drafter, counted, n_tokens, max_new_tokens=min(128, room), seed=seed, **options
        )
        counts = np.pad(counts, (0, drafter.vocab_size - len(counts)))
    if trim != "auto":
        return trim_head(drafter, counts, int(trim))
    written = target.generate(held_out, min(64, room), seed=seed + 1, **options)
    longer = [[*row, *texts[0].tolist()] for row, texts in zip(held_out, written, strict=True)]
    sizes = [size for size in (2**power for power in range(6, 30)) if size < drafter.vocab_size] + [drafter.vocab_size]
    found = estimate_sizes(target, drafter, longer, counts, sizes, gamma=gamma, **options)
    return trim_head(drafter, counts, sizes[max(range(len(found)), key=lambda i: found[i].mbsu)])
