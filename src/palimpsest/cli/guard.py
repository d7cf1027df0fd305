"""`palimpsest guard`: build a filter of a protected corpus, check a text against it, and write text that cannot repeat it (001)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from palimpsest.cli.options import Beams, Json, MaxNewTokens, OwnModel, OwnTokenizer, Prompt, Seed, Temperature, TopK, TopP
from palimpsest.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from palimpsest.corpus import BloomFilter, CorpusIndex
    from palimpsest.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Stop a model from writing out what is protected.")

Source = Annotated[Path, typer.Argument(metavar="PROTECTED", help="A filter made by `guard build`, or the folder of an index.")]
Length = Annotated[int | None, typer.Option("--n", min=1, help="Tokens of a protected n-gram; the filter's own, 10 for an index.")]
Edits = Annotated[int, typer.Option(min=0, help="Tokens by which a passage may differ and is still protected; needs an index.")]


@app.command()
def build(
    corpus: Annotated[Path, typer.Argument(help="Text as for `palimpsest index build`, or the folder of an index.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    n: Annotated[int, typer.Option(min=1, help="Tokens of a protected n-gram.")] = 10,
    fp_rate: Annotated[float, typer.Option(help="The share of other n-grams that may be blocked by mistake.")] = 0.01,
    tokenizer: OwnTokenizer = None,
    model: OwnModel = None,
    as_json: Json = False,
) -> None:
    """Make a Bloom filter of every n-gram of CORPUS: about 20 bits each at 1 %."""
    from palimpsest.cli.index import choose_tokenizer, open_index
    from palimpsest.corpus import BloomFilter, read_documents

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        if is_index(corpus):
            index = open_index(corpus)
            task = bar.add_task("documents", total=index.n_documents)
            bloom = BloomFilter.from_index(index, n, fp_rate, progress=lambda done, _: bar.update(task, completed=done))
        else:
            chosen = choose_tokenizer(tokenizer, model)
            task = bar.add_task("documents", total=None)
            rows = (row for document in read_documents(corpus) for row in encode_document(document.text, chosen))
            bloom = BloomFilter.from_documents(rows, n, fp_rate, tokenizer_fingerprint=chosen.fingerprint)
    bloom.save(out)
    value = {
        "path": str(out),
        "n": bloom.n,
        "ngrams": bloom.count,
        "bytes": bloom.nbytes,
        "fp_rate": bloom.fp_rate,
        "expected_fp_rate": bloom.expected_fp_rate(),
        "tokenizer": bloom.tokenizer_fingerprint,
    }
    if as_json:
        typer.echo(json.dumps(value))
        return
    typer.echo(
        f"{out}: {bloom.count:,} {n}-grams in {bloom.nbytes:,} bytes, {100 * bloom.expected_fp_rate():.2g} % of others blocked by mistake."
    )


@app.command()
def check(
    protected: Source,
    text: Annotated[str, typer.Argument(help="A text, or - to read it from the standard input.")],
    n: Length = None,
    approximate: Edits = 0,
    tokenizer: OwnTokenizer = None,
    model: OwnModel = None,
    as_json: Json = False,
) -> None:
    """Mark what a text shares with the protected corpus, n-gram by n-gram, to the letter or with a few edits."""
    from palimpsest.guard import protected_ngrams
    from palimpsest.guard.ngrams import as_source

    source = open_protected(protected)
    own = tokenizer_of(source, tokenizer, model)
    ids = own.encode(typer.get_text_stream("stdin").read() if text == "-" else text)
    if not ids:
        raise InputError("The text to check is empty.", "Give some words.")
    length = as_source(source, n, approximate).n
    spans = merged([(end - length + 1, end + 1) for end in protected_ngrams(source, ids, 0, n, approximate=approximate).tolist()])
    pieces = own.pieces(ids)
    value = {
        "n": length,
        "approximate": approximate,
        "tokens": len(ids),
        "protected_tokens": sum(end - begin for begin, end in spans),
        "spans": [{"start": begin, "end": end, "text": "".join(pieces[begin:end])} for begin, end in spans],
    }
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    inside = {position for begin, end in spans for position in range(begin, end)}
    marked = Text.assemble(*[(piece, "bold reverse" if number in inside else "") for number, piece in enumerate(pieces)])
    console = Console()
    console.print(marked)
    console.print(f"{value['protected_tokens']} of {len(ids)} tokens stand in {what_is_protected(length, approximate)}.", style="dim")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A known name, a folder or a hub id.")],
    protect: Annotated[Path, typer.Option(metavar="PROTECTED", help="A filter made by `guard build`, or the folder of an index.")],
    prompt: Prompt,
    n: Length = None,
    approximate: Edits = 0,
    max_new_tokens: MaxNewTokens = 50,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    beams: Beams = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Continue a prompt twice, freely and under guard, and check both texts."""
    from palimpsest.guard import MemFreeProcessor, protected_ngrams
    from palimpsest.models import load_model

    source = open_protected(protect)
    door = load_model(model)
    door.require("weights", "A guard inside decoding")
    guard = MemFreeProcessor.for_model(door, source, n, approximate=approximate)
    prefix = door.tokenizer.encode(typer.get_text_stream("stdin").read() if prompt == "-" else prompt)
    if not prefix:
        raise InputError("The prompt is empty.", "Give some words.")
    value: dict[str, Any] = {"n": guard.source.n, "approximate": approximate, "prompt": door.tokenizer.decode(prefix)}
    for name, processors in (("free", ()), ("guarded", (guard,))):
        [[ids]] = door.generate(
            [prefix],
            max_new_tokens,
            temperature=temperature,
            top_k=top_k or None,
            top_p=top_p,
            num_beams=beams,
            seed=seed,
            processors=processors,
        )
        whole = [*prefix, *ids.tolist()]
        start = min(len(prefix) + approximate, len(whole))  # nearer to a prompt from the corpus the guard cannot keep that distance
        found = protected_ngrams(source, whole, start, n, approximate=approximate)
        text = door.tokenizer.decode(whole)[len(value["prompt"]) :]
        value[name] = {"text": text, "tokens": len(ids), "protected_ngrams": len(found)}
    value["counts"] = guard.counts.to_dict()
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    console = Console()
    for name, label in (("free", "Freely"), ("guarded", "Under guard")):
        count = value[name]["protected_ngrams"]
        console.print(Text(f"{label}: {count} {what_is_protected(value['n'], approximate, count)}", style="red" if count else "green"))
        console.print(Text.assemble((value["prompt"], "dim"), value[name]["text"]))
    counts = value["counts"]
    console.print(f"The first choice was blocked at {counts['blocked']} of {counts['choices']} steps.", style="dim")


def what_is_protected(n: int, approximate: int, count: int = 2) -> str:
    """What a guard stops, in words.

    Example:
        >>> what_is_protected(10, 0), what_is_protected(10, 2, 1)
        ('protected 10-grams', '10-gram within 2 edits of a protected passage')
    """
    grams = f"{n}-gram{'s' * (count != 1)}"
    return f"{grams} within {approximate} edit{'s' * (approximate != 1)} of a protected passage" if approximate else f"protected {grams}"


def is_index(path: Path) -> bool:
    """Whether an index of a corpus stands at `path`."""
    return (path / "manifest.json").is_file()


def open_protected(path: Path) -> CorpusIndex | BloomFilter:
    """The index or the filter at `path`."""
    from palimpsest.cli.index import open_index
    from palimpsest.corpus import BloomFilter

    return open_index(path) if path.is_dir() else BloomFilter.load(path)


def tokenizer_of(source: CorpusIndex | BloomFilter, tokenizer: str | None, model: str | None) -> Tokenizer:
    """The tokenizer that made the ids of `source`: an index holds it, for a filter it must be named.

    Raises:
        InputError: it is not known.
        TokenizerMismatchError: another one was named.
    """
    from palimpsest.cli.index import choose_tokenizer
    from palimpsest.cli.index_passage import require_tokenizer
    from palimpsest.corpus import CorpusIndex

    if isinstance(source, CorpusIndex):
        if tokenizer is None and model is None:
            return require_tokenizer(source)
    elif tokenizer is None and model is None:
        raise InputError("A filter holds no tokenizer.", "Give --tokenizer or --model, the one that it was built with.")
    own = choose_tokenizer(tokenizer, model)
    if source.tokenizer_fingerprint is not None:
        own.require_same(source.tokenizer_fingerprint, "what is protected")
    return own


def encode_document(text: str | None, tokenizer: Tokenizer) -> list[np.ndarray]:
    """The ids of a document as one compact row, or nothing when it is empty."""
    import numpy as np

    ids = tokenizer.encode(text or "")
    return [np.array(ids, dtype=np.int32)] if ids else []


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending spans, those that overlap or touch made one.

    Example:
        >>> merged([(0, 3), (1, 4), (6, 9)])
        [(0, 4), (6, 9)]
    """
    out: list[tuple[int, int]] = []
    for begin, end in spans:
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], end)
        else:
            out.append((begin, end))
    return out
