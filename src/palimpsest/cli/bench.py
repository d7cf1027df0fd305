"""`palimpsest bench context`: context methods on one model under one protocol, as a table, figures and one page (013)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from palimpsest.cli.options import Json, Seed
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.evaluation.context_prompts import KeyPrompt
    from palimpsest.evaluation.context_suite import ContextReport, Factory, SuiteConfig
    from palimpsest.evaluation.haystack import Haystack
    from palimpsest.models.hf import HFModel

app = typer.Typer(no_args_is_help=True, help="Compare methods on one model under one protocol.")

SHORT = "short-context"  # the language model of 256 tokens, trained at first use
METHODS = ("full", "streaming-llm", "h2o", "tova", "snapkv")
SHORT_METHODS = ("full", "pi", "ntk", "yarn", "self-extend", "streaming-llm", "lm-infinite", "infllm")
LENGTHS, SHORT_LENGTHS = (512, 1024), (256, 1024)
LONG = (4096, 8192)


@app.callback()
def bench() -> None:
    """Compare methods on one model under one protocol."""


@app.command()
def context(
    model: Annotated[list[str] | None, typer.Option(help=f"A model, or {SHORT}; may be repeated [default: smollm2-135m].")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names of `palimpsest context list`, with settings like snapkv:window=32; separated by spaces.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Tokens of context and question, separated by commas.")] = None,
    long: Annotated[bool, typer.Option("--long", help="Longer contexts too: 4,096 and 8,192 tokens.")] = False,
    budget: Annotated[float, typer.Option(min=0.001, max=1.0, help="Share of the length that a cache may keep.")] = 0.5,
    samples: Annotated[int, typer.Option(min=1, help="Questions of each kind and length.")] = 20,
    query_aware: Annotated[bool, typer.Option("--query-aware", help="Show the question while the context is read.")] = False,
    measures: Annotated[str | None, typer.Option(help="Some of passkey, multi-needle, multi-question, stream, speed.")] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens read in one forward pass.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Of the measurement of speed.")] = 2,
    peers: Annotated[Path | None, typer.Option(metavar="PYTHON", help="An interpreter that has kvpress, to compare with.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for the page, the figures, and what is finished already.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure what context methods lose, find and cost: keys by depth and length, loss by position, bytes, tokens a second."""
    from palimpsest.evaluation.context_suite import run_suite
    from palimpsest.experiments.short_context_lm import held_out_haystack, held_out_rows
    from palimpsest.measurement import plain

    reports: list[tuple[ContextReport, SuiteConfig]] = []
    compared: list[dict[str, Any]] = []
    with Console(stderr=True).status("loading") as status:
        for name in model or ["smollm2-135m"]:
            config = suite_config(name, lengths, long, samples, query_aware, measures, chunk, threads, seed)
            chosen = factories(name, methods, budget)
            door = opened(name, seed)
            filler = held_out_haystack(door.tokenizer)
            rows = held_out_rows(door.tokenizer, config.rows, config.lengths[-1])
            prompt = wording(name)
            report = run_suite(door, chosen, filler, rows, config, prompt=prompt, out=out, progress=status.update)
            reports.append((report, config))
            if peers is not None and name != SHORT:
                compared += peer_rows(door, name, peers, filler, prompt, config, budget, status.update)
    value = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "budget": budget,
        "models": [{"model": report.model, "settings": vars(config), "rows": report.rows} for report, config in reports],
        "peers": compared,
    }
    value = plain(value)
    if out is not None:
        page(value, reports, compared, out)
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    show(Console(), value)
    if out is not None:
        typer.echo(f"The page is {out / 'index.html'}.")


def suite_config(
    name: str, lengths: str | None, long: bool, samples: int, query_aware: bool, measures: str | None, chunk: int, threads: int, seed: int
) -> SuiteConfig:
    """How much is asked of a model.

    Raises:
        InputError: lengths that are no numbers.
    """
    from palimpsest.evaluation.context_suite import MEASURES, SuiteConfig

    short = name == SHORT
    found: tuple[int, ...] = SHORT_LENGTHS if short else LENGTHS
    if lengths is not None:
        try:
            found = tuple(sorted({int(part) for part in lengths.replace(",", " ").split()}))
        except ValueError as error:
            raise InputError(f"--lengths is {lengths!r}.", "Give numbers of tokens, such as 512,1024.") from error
    if long:
        found = tuple(sorted({*found, *LONG}))
    chosen = tuple(measures.replace(",", " ").split()) if measures else MEASURES
    return SuiteConfig(
        lengths=found,
        per_depth=max(1, samples // 5),
        needles=samples,
        contexts=max(1, samples // 4),
        query_aware=query_aware,
        chunk=chunk,
        threads=threads,
        seed=seed,
        measures=chosen,
    )


def factories(model: str, methods: str | None, budget: float) -> dict[str, Factory]:
    """For each method that is named, how it is made at a length."""
    names = methods.split() if methods else list(SHORT_METHODS if model == SHORT else METHODS)
    return {name: factory(name, budget, 256 if model == SHORT else None) for name in names}


def factory(text: str, budget: float, trained: int | None) -> Factory:
    """A method at a length: what is named in the text, with a budget of a share of the length, and what the catalogue suggests.

    Raises:
        InputError: an unknown method or setting.
    """
    from palimpsest.cli.generate import pairs
    from palimpsest.context.catalogue import method as record_of
    from palimpsest.context.options import build_method

    name, _, settings = text.partition(":")
    given = pairs(settings.split(",") if settings else [])
    if name == "full" and not given:
        return lambda length: None
    record = record_of(name)

    def make(length: int) -> Any:
        suggested = record.suggest(length, trained or length, max(1, round(budget * length)))
        return build_method(name, {**{key: str(value) for key, value in suggested.items()}, **given})

    make(512)  # a setting that is wrong is told before the first measurement
    return make


def opened(name: str, seed: int) -> HFModel:
    """The model, trained first if it is the short one and not kept yet."""
    from palimpsest.cli.audit import progress_bar
    from palimpsest.cli.generate import local_model

    if name != SHORT:
        return local_model(name)
    from palimpsest.experiments.short_context_lm import WITH_KEYS, trained

    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("training the model of 256 tokens", total=None)
        return trained(replace(WITH_KEYS, seed=seed), progress=lambda done, total: bar.update(job, completed=done, total=total))


def wording(name: str) -> KeyPrompt:
    """A chat model is asked in its own template, any other in plain text."""
    from palimpsest.cli.alignment import chat_template
    from palimpsest.evaluation.context_prompts import KeyPrompt

    if name == SHORT:
        return KeyPrompt()
    try:
        return KeyPrompt.chat(chat_template(name, None))
    except InputError:
        return KeyPrompt()


def peer_rows(
    door: HFModel, name: str, python: Path, filler: Haystack, prompt: KeyPrompt, config: SuiteConfig, budget: float, tell: Any
) -> list[dict[str, Any]]:
    """kvpress and this library on the same pass keys of the longest length."""
    from palimpsest.evaluation.context_prompts import passkey_samples
    from palimpsest.experiments.peers.kvpress_peer import compare
    from palimpsest.models.registry import KNOWN

    length = config.lengths[-1]
    samples = passkey_samples(filler, length, config.depths, config.per_depth, seed=config.seed, prompt=prompt)
    folder = KNOWN[name].folder if name in KNOWN else Path(name)
    found, _ = compare(
        door,
        python,
        folder,
        samples,
        keep=max(1, round(budget * length)),
        threads=config.threads,
        new_tokens=config.new_tokens,
        report=lambda method: tell(f"{name} · kvpress · {method}"),
    )
    return [{"model": name, "length": length, **vars(row)} for row in found]


COLUMNS = (
    ("method", "Method", "text"),
    ("length", "Tokens", "int"),
    ("passkey", "One key", "interval"),
    ("multi-needle", "One of four", "interval"),
    ("multi-question", "Each of four", "interval"),
    ("nll", "Loss at the end (nat)", "float"),
    ("megabytes", "Cache (MB)", "float"),
    ("peak_megabytes", "At most (MB)", "float"),
    ("prefill_tokens_per_second", "Read (tokens/s)", "float"),
    ("decode_tokens_per_second", "Written (tokens/s)", "float"),
    ("not_measured", "Not measured", "text"),
)
PEERS = (
    ("method", "Method", "text"),
    ("n", "Questions", "int"),
    ("ours", "Found", "percent"),
    ("theirs", "kvpress", "percent"),
    ("p_value", "p", "float"),
    ("budget", "Kept", "int"),
    ("keep", "kvpress", "float"),
    ("our_bytes", "Bytes", "int"),
    ("their_bytes", "kvpress", "int"),
    ("our_answering", "Answering", "int"),
    ("their_answering", "kvpress", "int"),
    ("our_peak", "Peak bytes", "int"),
    ("their_peak", "kvpress", "int"),
    ("our_decode", "Tokens/s", "float"),
    ("their_decode", "kvpress", "float"),
)


def shown_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a report as the tables show it."""
    found = {key: row.get(key) for key, _, _ in COLUMNS}
    for name in ("bytes", "peak_bytes"):
        found[f"{name.removesuffix('bytes')}megabytes"] = row[name] / 1e6 if name in row else None
    reasons = "; ".join(f"{name}: {reason}" for name, reason in row["reasons"].items())
    return found | {"not_measured": reasons or None}


def show(console: Console, value: dict[str, Any]) -> None:
    """The tables on the terminal."""
    from palimpsest.cli.measured import columns
    from palimpsest.numbers import interval, number, percent

    def cell(given: Any, kind: str) -> str:
        if given is None:
            return "–"
        if isinstance(given, list):
            return interval(*given) if kind == "interval" else number(given[0])
        kinds: dict[str, Callable[[Any], str]] = {"text": escape, "int": lambda n: f"{n:,.0f}", "percent": percent, "float": number}
        return kinds[kind](given)

    for part in value["models"]:
        rows = [shown_row(row) for row in part["rows"]]
        used = [column for column in COLUMNS if any(row[column[0]] is not None for row in rows)]
        table = columns(*(label for _, label, _ in used))
        for row in rows:
            table.add_row(*(cell(row[key], kind) for key, _, kind in used))
        console.print(part["model"], style="bold")
        console.print(table)
    if value["peers"]:
        table = columns(*(label for _, label, _ in PEERS))
        for row in value["peers"]:
            table.add_row(*(cell(row[key], kind) for key, _, kind in PEERS))
        console.print("Beside kvpress, on the same ids and bytes", style="bold")
        console.print(table)


def page(value: dict[str, Any], reports: list[Any], compared: list[dict[str, Any]], out: Path) -> None:
    """The page, and `bench.json` beside it."""
    from palimpsest.files import write_json
    from palimpsest.report import render_bench

    sections = []
    for number, (report, config) in enumerate(reports):
        listed = [{"key": key, "label": label, "format": kind} for key, label, kind in COLUMNS]
        kinds = {
            "passkey": f"{config.per_depth * len(config.depths)} questions about one key",
            "multi-needle": f"{config.needles} questions about one of {config.keys} keys",
            "multi-question": f"{config.contexts} reading{'s' * (config.contexts != 1)} for {config.keys} questions each",
        }
        seen = "Questions were seen while the context was read." if config.query_aware else "Questions were not seen while it was read."
        caption = ", ".join([*(kinds[one] for one in kinds if one in config.measures), "intervals of 95 %"]) + f". {seen}"
        rows = [shown_row(row) for row in value["models"][number]["rows"]]
        table = {"type": "table", "id": f"t-{number}", "title": "All methods", "caption": caption, "columns": listed, "rows": rows}
        curves = [{"type": "curve", **curve.to_dict()} for curve in report.curves]
        question = "What does each method find, lose and cost?"
        sections.append({"id": f"m-{number}", "title": report.model, "question": question, "blocks": [table, *curves]})
    if compared:
        listed = [{"key": key, "label": label, "format": kind} for key, label, kind in PEERS]
        table = {"type": "table", "id": "t-peers", "title": "kvpress 0.5.5", "columns": listed, "rows": value["peers"]}
        asked = "The same token ids and bytes: who finds more, and how fast?"
        sections.append({"id": "peers", "title": "Beside kvpress", "question": asked, "blocks": [table]})
    best = [row for part in value["models"] for row in part["rows"] if "passkey" in row]
    best = sorted(best, key=lambda row: (-row["length"], -row["passkey"][0], row["bytes"]))[:4]
    tiles = [
        {
            "label": f"{row['method']} at {row['length']:,}",
            "value": row["passkey"],
            "format": "percent",
            "note": f"{row['bytes'] / 1e6:,.1f} MB",
        }
        for row in best
    ]
    names = ", ".join(part["model"] for part in value["models"])
    byline = f"{names} · budget {value['budget']:.0%} of the context · {value['created'][:10]}"
    render_bench("Context methods", byline, tiles, sections, out, data=value)
    write_json(out / "bench.json", value)
