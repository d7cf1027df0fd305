"""`palimpsest mblm`: train a memory-based language model, evaluate it, let it write, and ask where every token comes from (057)."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest.cli.options import Beams, Json, MaxNewTokens, OwnModel, OwnTokenizer, Prompt, Seed, Temperature, TopK, TopP
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.models.memory_door import MemoryModel

app = typer.Typer(no_args_is_help=True, help="Train and ask a memory-based language model.")

Folder = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a model made by `mblm train`.")]


@app.command()
def train(
    corpus: Annotated[Path, typer.Argument(help="A text file, a folder, or .jsonl[.gz|.zst] or .parquet with a column `text`.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    tokenizer: OwnTokenizer = None,
    model: OwnModel = None,
    n: Annotated[int, typer.Option(min=0, help="Tokens of a context.")] = 4,
    algorithm: Annotated[str, typer.Option(help="igtree, ib1 or tribl2.")] = "igtree",
    k: Annotated[int, typer.Option(min=1, help="Distances that ib1 and tribl2 look at.")] = 1,
    weights: Annotated[str, typer.Option(help="gr (gain ratio), ig (information gain) or none.")] = "gr",
    decay: Annotated[str, typer.Option(help="How votes fall with the distance: none, inverse, linear or exponential.")] = "none",
    backoff: Annotated[str, typer.Option(help="interpolate, or stop: what no neighbour votes for is impossible.")] = "interpolate",
    add: Annotated[bool, typer.Option("--add", help="Learn CORPUS in addition to what the model at OUT knows.")] = False,
    as_json: Json = False,
) -> None:
    """Learn CORPUS: every token of it, with the tokens before it."""
    from palimpsest.cli.index import choose_tokenizer
    from palimpsest.models.memory_based import MemoryBasedLM
    from palimpsest.models.memory_files import is_memory, refuse_foreign

    began = time.perf_counter()
    with Console(stderr=True).status(f"learning {corpus}"):
        if add:
            if tokenizer is not None or model is not None:
                raise InputError("--add takes the tokenizer of the model that is there.", "Leave out --tokenizer and --model.")
            learner = MemoryBasedLM.load(out)
            learner.partial_fit(corpus)
        else:
            refuse_foreign(out)  # before minutes are spent
            if is_memory(out):
                raise InputError(f"{out} holds a model already.", "Give --add to learn in addition, or another folder.")
            settings: dict[str, Any] = {"algorithm": algorithm, "k": k, "weights": weights, "decay": decay, "backoff": backoff}
            learner = MemoryBasedLM(n, **settings)
            learner.fit(corpus, choose_tokenizer(tokenizer, model))
        learner.save(out)
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    memory = sum(size for name, size in sizes.items() if not name.startswith("tokenizer."))
    value = {
        "path": str(out),
        **learner.settings,
        "documents": len(learner.memory.sources),
        "tokens": len(learner.memory),
        "bytes": sum(sizes.values()),
        "bytes_per_token": memory / len(learner.memory),
        "feature_weights": learner.memory.weights.tolist(),
        "seconds": time.perf_counter() - began,
    }
    if as_json:
        typer.echo(json.dumps(value))
        return
    typer.echo(
        f"{out}: {value['tokens']:,} tokens of {value['documents']:,} documents in {value['bytes']:,} bytes "
        f"({value['bytes_per_token']:.1f} a token without the tokenizer), {value['seconds']:.1f} s."
    )


@app.command("eval")
def evaluate(
    model: Folder,
    corpus: Annotated[Path, typer.Argument(help="Text as for `mblm train`.")],
    tokenizer: OwnTokenizer = None,
    as_json: Json = False,
) -> None:
    """How well the model foretells CORPUS: the share of tokens that win the vote, and the perplexity."""
    lm = open_model(model, tokenizer).model
    lm.predict([[0]])  # loops are compiled at their first use
    began = time.perf_counter()
    with Console(stderr=True).status(f"reading {corpus}"):
        found = lm.evaluate(corpus)
    seconds = time.perf_counter() - began
    finite = found["n_zero"] == 0
    value = {
        **found,
        "nll": found["nll"] if finite else None,
        "perplexity": 2.718281828459045 ** found["nll"] if finite else None,
        "tokens_per_second": found["tokens"] / seconds,
    }
    if as_json:
        typer.echo(json.dumps(value))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    rows = {
        "tokens": f"{found['tokens']:,}",
        "won the vote": f"{100 * found['accuracy']:.2f} %",
        "perplexity": f"{value['perplexity']:.2f}" if finite else "infinite",
        "tokens without a vote": f"{found['n_zero']:,}",
        "features that agree, on average": f"{found['depth']:.2f} of {lm.n}",
        "tokens a second": f"{value['tokens_per_second']:,.0f}",
    }
    for name, shown in rows.items():
        table.add_row(name, shown)
    Console().print(table)


@app.command()
def complete(
    model: Folder,
    prompt: Prompt,
    max_new_tokens: MaxNewTokens = 50,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    beams: Beams = 1,
    seed: Seed = 0,
    remember: Annotated[str, typer.Option(help="What is remembered while writing: nothing, prompt, or text.")] = "nothing",
    explain_tokens: Annotated[bool, typer.Option("--explain", help="Say of every written token where it comes from.")] = False,
    tokenizer: OwnTokenizer = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt."""
    door = open_model(model, tokenizer, remember)
    prefix = read_text(door, prompt)
    [[ids]] = door.generate([prefix], max_new_tokens, temperature=temperature, top_k=top_k or None, top_p=top_p, num_beams=beams, seed=seed)
    whole = [*prefix, *ids.tolist()]
    known = door.tokenizer.decode(prefix)
    value: dict[str, Any] = {"prompt": known, "text": door.tokenizer.decode(whole)[len(known) :], "tokens": len(ids)}
    if explain_tokens:
        value["origins"] = [origin(door, whole, t) for t in range(len(prefix), len(whole))]
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    console = Console()
    console.print(Text.assemble((known, "dim"), value["text"]))
    if explain_tokens:
        show_origins(console, value["origins"])


@app.command()
def explain(
    model: Folder,
    text: Annotated[str, typer.Argument(help="A text, or - to read it from the standard input.")],
    top: Annotated[int, typer.Option(min=1, help="At most so many training positions.")] = 10,
    every: Annotated[bool, typer.Option("--every", help="Not the token after the text, but every token of it.")] = False,
    tokenizer: OwnTokenizer = None,
    as_json: Json = False,
) -> None:
    """Which training positions vote for the token after TEXT, or with --every, where each token of TEXT comes from."""
    door = open_model(model, tokenizer)
    ids = read_text(door, text)
    console = Console()
    if every:
        origins = [origin(door, ids, t) for t in range(len(ids))]
        if as_json:
            typer.echo(json.dumps({"origins": origins}, ensure_ascii=False))
        else:
            show_origins(console, origins)
        return
    decode = door.tokenizer.decode
    _, tokens, votes = door.model.distribution([ids])
    winner = int(door.model.predict([ids])[0])
    near = door.model.explain(ids, top)
    value: dict[str, Any] = {
        "winner": decode([winner]),
        "votes": [{"token": decode([int(tokens[i])]), "votes": float(votes[i])} for i in (-votes).argsort(kind="stable")[:top].tolist()],
        "neighbours": [
            {**asdict(one), "text": decode([i for i in one.window if i is not None]), "next": decode([one.token])} for one in near
        ],
    }
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    shares = ", ".join(f"{entry['token']!r} {entry['votes'] / votes.sum():.0%}" for entry in value["votes"])
    console.print(Text(f"After this text wins {value['winner']!r}. Votes: {shares}"))
    table = Table(box=None, header_style="bold")
    for heading in ("distance", "agree", "context", "next", "where"):
        table.add_column(heading, justify="right" if heading == "distance" else "left")
    for one in near:
        context = decode([i for i in one.window if i is not None])
        agree = ",".join(map(str, one.matched)) or "–"
        table.add_row(
            f"{one.distance:.3f}", agree, Text(repr(context)), Text(repr(decode([one.token]))), Text(f"{one.source}:{one.offset}")
        )
    console.print(table)


def open_model(path: Path, tokenizer: str | None = None, remember: str = "nothing") -> MemoryModel:
    """The model at `path` behind its door."""
    from palimpsest.models.load import read_tokenizer
    from palimpsest.models.memory_door import MemoryModel

    return MemoryModel.open(path, read_tokenizer(tokenizer) if tokenizer is not None else None, remember=remember)


def read_text(door: MemoryModel, text: str) -> list[int]:
    """The ids of a text, of the standard input for "-".

    Raises:
        InputError: it is empty.
    """
    ids = door.tokenizer.encode(typer.get_text_stream("stdin").read() if text == "-" else text)
    if not ids:
        raise InputError("The text is empty.", "Give some words.")
    return ids


def origin(door: MemoryModel, ids: list[int], t: int) -> dict[str, Any]:
    """Of the token at position `t`: its probability, what wins the vote there, and the nearest training position that votes for it."""
    lm, decode = door.model, door.tokenizer.decode
    context = ids[max(0, t - lm.n) : t]
    _, tokens, votes = lm.distribution([context])
    near = lm.explain(context, 1, token=ids[t])
    return {
        "token": decode([ids[t]]),
        "probability": float(lm.probabilities([context])[0, ids[t]]),
        "winner": decode([int(lm.predict([context])[0])]),
        "votes": float(votes[tokens == ids[t]].sum()),
        "nearest": {key: getattr(near[0], key) for key in ("source", "offset", "matched", "distance")} if near else None,
    }


def show_origins(console: Console, origins: list[dict[str, Any]]) -> None:
    """Prints one line a token."""
    table = Table(box=None, header_style="bold")
    for heading in ("token", "p", "wins", "votes", "agree", "nearest"):
        table.add_column(heading, justify="right" if heading in ("p", "votes") else "left")
    for entry in origins:
        near = entry["nearest"]
        place = (
            ["–", "no neighbour votes for it"]
            if near is None
            else [",".join(map(str, near["matched"])) or "–", f"{near['source']}:{near['offset']}"]
        )
        table.add_row(
            Text(repr(entry["token"])),
            f"{entry['probability']:.3g}",
            Text(repr(entry["winner"])),
            f"{entry['votes']:,.4g}",
            place[0],
            Text(place[1]),
        )
    console.print(table)
