"""`palimpsest audit MODEL CORPUS`: what does this model remember of this text, or of this table? Without arguments, the demonstration."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from palimpsest.cli.audit_costs import show_estimate
from palimpsest.cli.audit_plan import show_plan
from palimpsest.cli.audit_table import ROWS, is_table, refuse_options, show_tests
from palimpsest.cluster import notices_aside, require_engine
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.evaluation.suite.planning import Estimate

DEMONSTRATION = ("out", "seed", "suite", "engine", "as_json")  # the options that the demonstration knows
SUITES = ("quick", "standard", "full")  # as in palimpsest.evaluation.suite, which would load much before an option is refused
PLANNING = {"rate", "half_width", "confidence"}


def audit(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help="A known name, a folder, a hub id, a .gguf file or http://host/v1#name.")] = None,
    corpus: Annotated[Path | None, typer.Argument(help="Text (a file or a folder), an index, or a table (.csv, .tsv, .parquet).")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report; an earlier audit in it is continued.")] = Path("report"),
    suite: Annotated[
        str, typer.Option(help="What is asked: quick, standard (also prompts that attack, free writing, context …) or full.")
    ] = "quick",
    samples: Annotated[int, typer.Option(help="Passages drawn from the corpus; rows asked for of a table (25 by default).")] = 200,
    context: Annotated[str, typer.Option(help="Tokens of prompt, a list: each is asked for the same suffixes.")] = "25,50,100,200",
    suffix: Annotated[int, typer.Option(help="Tokens that count as the leak.")] = 50,
    also: Annotated[list[str] | None, typer.Option(help="A further model, another size of the family say; may be repeated.")] = None,
    reference: Annotated[str | None, typer.Option(help="A model of the same tokenizer that never saw the corpus: the floor.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="Text of the same kind that the model was not trained on (for membership).")] = None,
    general: Annotated[
        Path | None, typer.Option(help="Text or index of the same language that holds neither corpus nor held-out text (for membership).")
    ] = None,
    attacks: Annotated[
        str | None, typer.Option(help="Scores of membership, a list; by default all that a pass or two a text give.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of probabilistic extraction.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Top-k of probabilistic extraction; 0 for none.")] = 40,
    top_p: Annotated[float | None, typer.Option(help="Top-p of probabilistic extraction.")] = None,
    guard_n: Annotated[int, typer.Option(help="Length of the n-grams that the guard protects.")] = 10,
    guard_edits: Annotated[int, typer.Option(help="Token edits that the approximate guard allows for; 0 leaves it out.")] = 2,
    edit_share: Annotated[float, typer.Option(help="Share of tokens that may differ from a passage that counts as nearly the same.")] = 0.1,
    table: Annotated[
        bool | None, typer.Option("--table/--text", help="Take CORPUS for a table, or not; by default its ending says.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of a table whose cells are asked for.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of an endpoint: a folder or a tokenizer.json.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer of an endpoint may take.")] = 60.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to an endpoint that are under way at once.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    engine: Annotated[str, typer.Option(help="Where the work is done: local, or ray (a cluster; all machines see the files).")] = "local",
    plan: Annotated[bool, typer.Option("--plan", help="Only say how many samples are needed; no model and no corpus.")] = False,
    rate: Annotated[str, typer.Option(help="With --plan: expected rates, a list.")] = "0.01,0.05,0.1,0.5",
    half_width: Annotated[str, typer.Option(help="With --plan: wanted half-widths of the interval, a list.")] = "0.01,0.02,0.05,0.1",
    confidence: Annotated[float, typer.Option(help="With --plan: confidence of the interval.")] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation card instead of a table.")] = False,
) -> None:
    """Audit a model for what it remembers of a corpus, or of a table, and write a report.

    Without MODEL and CORPUS the embedded demonstration runs: six twin models whose training data is known to the last copy.
    A killed audit goes on where it was when the same command is run again; so does one with a larger suite.
    """
    options = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    if plan:
        show_plan(options, samples, rate, half_width, confidence, as_json)
        return
    if options & PLANNING:
        raise InputError(f"--{sorted(options & PLANNING)[0].replace('_', '-')} belongs to --plan.", "Add --plan, or leave it out.")
    require_engine(engine)
    if (model is None) != (corpus is None):
        raise InputError("A model was given without a corpus.", "Give both, or neither for the demonstration.")
    if model is None:
        unknown = options.difference(DEMONSTRATION)
        if unknown:
            raise InputError(
                f"The demonstration does not take {', '.join('--' + name.replace('_', '-') for name in sorted(unknown))}.",
                "Give a model and a corpus, or leave it out.",
            )
        if engine != "local":
            raise InputError("The demonstration runs on one machine.", "Give a model and a corpus, or leave --engine out.")
    as_table = corpus is not None and (is_table(corpus) if table is None else table)
    if as_table:
        refuse_options(options)
    elif column is not None:
        raise InputError("--column was given, but the corpus is no table.", "Leave it out, or give --table.")
    contexts = parse_contexts(context)
    if suite not in SUITES:
        raise InputError(f"There is no suite {suite!r}.", f"Choose one of {', '.join(SUITES)}.")
    began = time.perf_counter()
    console = Console(stderr=True)
    with notices_aside(), progress_bar(console) as bar:
        task = bar.add_task("loading", total=None)

        def announce(estimate: Estimate) -> None:
            show_estimate(bar.console, estimate)

        def tell(label: str, done: float, total: float) -> None:
            bar.update(task, description=label, completed=done, total=total)

        if model is None or corpus is None:
            from palimpsest.experiments.demonstration import demonstrate

            card = demonstrate(out, seed=seed, suite=suite, announce=announce, progress=tell)
        elif as_table:
            from palimpsest.evaluation.tables import run_table_audit
            from palimpsest.models import load_model

            opened = load_model(model, engine=engine, tokenizer=tokenizer, timeout=timeout, concurrency=concurrency)
            rows = samples if "samples" in options else ROWS
            card = run_table_audit(opened, corpus, out, n=rows, column=column, seed=seed, progress=tell)
        else:
            from palimpsest.evaluation.plan import AuditSettings
            from palimpsest.evaluation.protocol import run_audit
            from palimpsest.experiments.demonstration import ordinary_text
            from palimpsest.models import Sampler, load_model

            for given_text, option in ((held_out, "--held-out"), (general, "--general")):
                if given_text is not None and not given_text.exists():
                    raise InputError(f"There is no {given_text}.", f"Give a file or a folder for {option}.")
            settings = AuditSettings(
                samples=samples,
                contexts=contexts,
                suffix=suffix,
                sampler=Sampler(temperature=temperature, top_k=top_k or None, top_p=top_p),
                guard_n=guard_n,
                guard_edits=guard_edits,
                edit_share=edit_share,
                attacks=tuple(name.strip() for name in attacks.split(",") if name.strip()) if attacks is not None else None,
                seed=seed,
            )
            door: dict[str, Any] = {"timeout": timeout, "concurrency": concurrency}
            given = [model, *(also or []), *([reference] if reference else [])]
            door |= {"engine": engine, "share": 1 / len(given), "tokenizer": tokenizer}
            loaded = [load_model(name, **door) for name in given]
            for one, label in zip(loaded, labels(given, [one.name for one in loaded]), strict=True):
                one.name = label
            models = loaded[: 1 + len(also or [])]
            references = {models[0].name: loaded[-1]} if reference else {}
            card = run_audit(
                models,
                corpus,
                out,
                references=references,
                held_out=held_out,
                general=general,
                unprotected=ordinary_text(),
                settings=settings,
                suite=suite,
                announce=announce,
                progress=tell,
                engine=engine,
            )
        bar.update(task, description="rendering the report")
        from palimpsest.report import render

        page = render(card, out)
    if as_json:
        typer.echo(json.dumps(card, ensure_ascii=False))
        return
    show(Console(), card, page, time.perf_counter() - began)


def labels(given: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names of models; where several have the same one, with as much of what they were given by as tells them apart.

    Example:
        >>> labels(["runs/a/final", "runs/b/final", "gpt2"], ["final", "final", "gpt2"])
        ['a/final', 'b/final', 'gpt2']
    """
    made = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [i for i, other in enumerate(names) if other == name]
        parts = [str(Path(given[i]).resolve() if Path(given[i]).exists() else given[i]).split("/") for i in alike]
        for length in range(2, max(map(len, parts)) + 1):
            longer = ["/".join(part[-length:]) for part in parts]
            if len(set(longer)) == len(alike):
                for i, label in zip(alike, longer, strict=True):
                    made[i] = label
                break
    return made


def parse_contexts(text: str) -> tuple[int, ...]:
    """`"25,50"` as `(25, 50)`.

    Raises:
        InputError: something that is no list of integers of at least 1.
    """
    try:
        contexts = tuple(sorted({int(part) for part in text.replace(" ", ",").split(",") if part}))
    except ValueError as error:
        raise InputError(f"--context {text!r} is no list of integers.", "Write it like 25,50,100.") from error
    if not contexts or contexts[0] < 1:
        raise InputError(f"--context {text!r} has no length of at least 1.", "Write it like 25,50,100.")
    return contexts


def progress_bar(console: Console) -> Progress:
    """The bar of a long job: what is being done, how far it is, how long it took and what is left."""
    return Progress(
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        transient=True,
    )


COLOURS = {"none": "green", "low": "green", "moderate": "yellow", "high": "red"}


def show(console: Console, card: dict[str, Any], page: Path, seconds: float) -> None:
    """The verdict and the key figures on the terminal."""
    verdict = card["verdict"]
    colour = COLOURS.get(verdict["level"], "white")
    console.print(f"\n[bold {colour}]{verdict['headline']}[/]")
    for sentence in verdict["sentences"]:
        console.print(f"  {sentence}", highlight=False, markup=False)  # it holds the names of models and files
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for name in ("measured", "value", "95 % interval", ""):
        table.add_column(name, justify="right" if name == "value" else "left")
    for tile in card["tiles"]:
        table.add_row(tile["label"], figure(tile["value"], tile["format"]), interval(tile), f"[dim]{escape(tile.get('note') or '')}[/]")
    console.print()
    console.print(table)
    if "tests" in card:
        show_tests(console, card)
    console.print(f"\nReport: [bold]{escape(str(page))}[/]  ({seconds:.0f} s)", soft_wrap=True)


def figure(value: Any, form: str) -> str:
    """A figure as a person would write it."""
    if value is None:
        return "–"
    if form == "percent":
        return f"{100 * value:.1f} %"
    if form == "int":
        return f"{value:,.0f}"
    if form == "float":
        return f"{value:.2f}"
    return str(value)


def interval(tile: dict[str, Any]) -> str:
    """The interval of a tile, or nothing."""
    if tile.get("low") is None or tile.get("high") is None:
        return ""
    return f"{figure(tile['low'], tile['format'])} – {figure(tile['high'], tile['format'])}"
