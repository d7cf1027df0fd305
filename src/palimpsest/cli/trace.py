"""`palimpsest trace`: the passages of a text, given or written by a model, that stand verbatim in a corpus, and where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from palimpsest.cli.options import Json, MaxNewTokens, Seed, Temperature, TopP
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex
    from palimpsest.corpus.traced_text import TracedText

_STYLES = ("black on bright_white", "black on bright_yellow", "bold black on orange1")  # from common to rare
_LONGEST = 160  # characters of a passage that the terminal lists
_AROUND = 40  # characters of a document that the terminal shows on either side of a passage
_SHOWN = 12  # passages and documents that the terminal lists; the page and the JSON have all


def trace(
    text: Annotated[str | None, typer.Argument(help="A text, or - to read it from the standard input.")] = None,
    index: Annotated[Path | None, typer.Option(help="The folder of the corpus's index.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of TEXT: a model that writes it.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the model goes on from, or - for the standard input.")] = None,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    seed: Seed = 0,
    min_len: Annotated[int, typer.Option(min=1, help="Shorter passages, in tokens, are left out.")] = 8,
    max_docs: Annotated[int, typer.Option(min=0, help="Documents named for each passage.")] = 10,
    context: Annotated[int, typer.Option(min=0, help="Tokens shown before and after a passage in its document.")] = 30,
    rarest: Annotated[bool, typer.Option("--rarest", help="Only the rarest passages, one for every 20 tokens of text.")] = False,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="Passages begin and end between words.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Mark what of a text stands word for word in a corpus, and name the documents."""
    from palimpsest.cli.index_passage import open_index, require_tokenizer
    from palimpsest.corpus import traced_text

    if index is None:
        raise InputError("There is no corpus to trace the text in.", "Give --index, a folder that `palimpsest index build` wrote.")
    if (text is None) == (model is None) or (model is None) != (prompt is None):
        raise InputError("One text is needed.", "Give TEXT (- reads the standard input), or --model and --prompt.")
    opened = open_index(index)
    tokenizer = require_tokenizer(opened)
    value: dict[str, Any] = {"index": str(index), "corpus": opened.fingerprint, "min_len": min_len}
    if model is not None:
        before, ids, card = _written(model, _read(prompt), opened, max_new_tokens, temperature, top_p, seed)
        value |= {"prompt": before, "model": card}
    else:
        ids = tokenizer.encode(_read(text))
        if not ids:
            raise InputError("The text to trace is empty.", "Give some words.")
    traced = traced_text.trace_text(
        opened,
        tokenizer,
        ids,
        min_len=min_len,
        max_docs=max_docs,
        context=context,
        max_spans=traced_text.rarest(len(ids)) if rarest else None,
        whole_words=whole_words,
    )
    value |= traced.to_dict()
    if html is not None:
        from palimpsest.report import render_trace

        byline = f"{opened.n_documents:,} documents of {index.name}" + (f" · written by {value['model']['name']}" if model else "")
        render_trace(value, html, "What this text has from the corpus", byline)
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    _show(traced, value.get("prompt", ""), min_len)
    if html is not None:
        typer.echo(f"The page is {html}.")


def _read(text: str | None) -> str:
    return typer.get_text_stream("stdin").read() if text == "-" else text or ""


def _written(
    name: str, prompt: str, index: CorpusIndex, max_new_tokens: int, temperature: float, top_p: float | None, seed: int
) -> tuple[str, list[int], dict[str, Any]]:
    """What a model goes on with: the prompt as text, the new ids, and the model's card."""
    from palimpsest.models import load_model

    with Console(stderr=True).status(f"{name}: writing"):
        door = load_model(name)
        door.require("text", "Tracing what a model writes")
        if index.tokenizer_fingerprint is not None:
            door.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
        prefix = door.tokenizer.encode(prompt)
        if not prefix:
            raise InputError("The prompt is empty.", "Give some words.")
        [[ids]] = door.generate([prefix], max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    return door.tokenizer.decode(prefix), ids.tolist(), door.describe()


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _one_line(text: str) -> str:
    """Text with its control characters visible and its line breaks as spaces."""
    from palimpsest.report.highlight import visible

    return " ".join(visible(text).split())


def _show(traced: TracedText, prompt: str, min_len: int) -> None:
    """The text with its passages marked, the passages, and the documents nearest to the text."""
    from palimpsest.report.highlight import pieces, visible
    from palimpsest.report.trace_page import LEVELS, level

    console = Console()
    spans = [{"start": span.start, "end": span.end} for span in traced.spans]
    marked = Text(visible(prompt), "dim")
    begins, ends = ({passage[side] for passage in traced.passages} if not console.is_terminal else set() for side in (0, 1))
    place = 0  # in a file, where no colour shows them, passages stand in brackets
    for piece in pieces(visible(traced.text), spans):
        marked.append("[" if place in begins else "")
        marked.append(piece.text, _STYLES[level(max(traced.spans[i].bits for i in piece.spans))] if piece.spans else "")
        place += len(piece.text)
        marked.append("]" if place in ends else "")
    console.print(marked)
    console.print()
    if not traced.spans:
        console.print(f"No passage of {min_len} tokens or more stands in the corpus.")
        return
    names = (f"below {LEVELS[1]} bits", f"{LEVELS[1]} to {LEVELS[2]}", f"{LEVELS[2]} and more: the rarest")
    console.print(Text.assemble(*[part for name, style in zip(names, _STYLES, strict=True) for part in ((f" {name} ", style), " ")]))
    console.print(
        f"{100 * traced.covered:.0f} % of {traced.tokens} tokens stand in the corpus: {_several(len(traced.spans), 'passage')}, "
        f"{_several(len(traced.documents), 'document')}."
    )
    console.print()
    for span in sorted(traced.spans, key=lambda span: -span.bits)[:_SHOWN]:
        passage = _one_line(traced.text[span.start : span.end])
        passage = f"{passage[:_LONGEST]} …" if len(passage) > _LONGEST else passage
        console.print(Text.assemble((f"{span.bits:5.0f} bits  {span.count:,} × ", "dim"), (passage, "bold")))
        for source in span.documents[:1]:
            before, after = (_one_line(source[name]) for name in ("before", "after"))
            around = Text.assemble((f"… {before[-_AROUND:]}", "dim"), " ▪▪▪ ", (f"{after[:_AROUND]} …", "dim"))
            console.print(Text.assemble("            ", (visible(source["document"]), "cyan"), "  ", around))
    if len(traced.spans) > _SHOWN:
        console.print(f"… and {len(traced.spans) - _SHOWN} more: see --html or --json.", style="dim")
    if traced.documents:
        console.print()
        console.print("Documents nearest to the whole text:", style="bold")
        for document in traced.documents[:_SHOWN]:
            held = _several(len(document["spans"]), "passage")
            console.print(Text(f"{document['score']:7.1f}  {visible(document['document'])} ({held})"))
