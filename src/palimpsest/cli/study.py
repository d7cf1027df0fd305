"""`palimpsest study`: let a copy of a model study something, and ask what it can do with it (005, 044, 047)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.measured import kept
from palimpsest.cli.options import Json, writable
from palimpsest.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False)

Model = Annotated[str, typer.Argument(help="The model, with its weights; it stays as it is, a copy studies.")]
Rate = Annotated[float, typer.Option("--lr", help="Learning rate.")]
Batch = Annotated[int, typer.Option(min=1, help="Examples a step.")]
Seed = Annotated[int, typer.Option(min=0, help="Of draws and of the order of training.")]
Out = Annotated[Path | None, typer.Option(callback=writable, help="Write the measurement to this file.")]


@app.command("random-access")
def random_access(
    model: Model,
    passages: Annotated[Path, typer.Argument(help='JSON lines {"title", "sentences", "questions"}.')],
    task: Annotated[str, typer.Option(help="full, selective or grounded_qa.")] = "selective",
    id_type: Annotated[str, typer.Option("--id", help="title, rare, num, wrong_title, wrong_rare, wrong_num, none or context.")] = "title",
    remedy: Annotated[str, typer.Option(help="none, recite, first_permute, random_permute or repeat.")] = "none",
    k: Annotated[int, typer.Option(min=1, help="Orders of random_permute, copies of repeat.")] = 1,
    held_out: Annotated[int | None, typer.Option(help="Passages that are asked about [default: a tenth, two at least].")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Over passages and examples.")] = 100,
    lr: Rate = 3e-5,
    batch_size: Batch = 4,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Write passages into a copy of MODEL, and ask for parts of those that stood in no example of the task."""
    from palimpsest.audit.cued_recall import copy_of, study, trainable
    from palimpsest.audit.random_access import build, examples, measure
    from palimpsest.cli.audit import progress_bar
    from palimpsest.cli.study_files import read_passages
    from palimpsest.training.examples import ExampleBatches
    from palimpsest.training.loop import TrainConfig

    texts = read_passages(passages)
    chosen = max(2, len(texts) // 10) if held_out is None else held_out
    trial = build(texts, task, id_type, remedy, held_out=chosen, k=k, seed=seed)
    student = copy_of(trainable(_load(model), "Studying"))
    data = ExampleBatches(examples(student, trial), batch_size, student.tokenizer.pad_id or 0, seed)
    steps = epochs * len(data)
    config = TrainConfig(steps, lr=lr, warmup=steps // 20, weight_decay=0.0, seed=seed)
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("studying", total=steps)
        study(student, data, config, progress=lambda done, total: bar.update(job, completed=done))
    measured = measure(student, trial.evaluation)
    if not kept(measured, out, as_json=as_json):
        rows = [("all", measured.summary["all"]), *measured.summary["by_place"].items()]
        _show(("place", "exact", "begins right", "another's id", "malformed"), [
            (place, *(_interval(row[name]) for name in ("exact", "prefix", "control_exact", "malformed"))) for place, row in rows
        ])  # fmt: skip


@app.command()
def rote(
    model: Model,
    facts: Annotated[Path, typer.Argument(help='JSON lines {"subject", "object", "distractors"} of one relation.')],
    prompt: Annotated[list[str], typer.Option(help='What phase 2 teaches, like "{s} was born in"; may be repeated.')],
    unseen: Annotated[list[str] | None, typer.Option(help="Other prompts to ask with; may be repeated.")] = None,
    taught: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the facts that phase 2 teaches.")] = 0.5,
    key: Annotated[str, typer.Option(help="What stands between subject and object in phase 1.")] = "[X]",
    rote_epochs: Annotated[int, typer.Option(min=1, help="Of phase 1.")] = 50,
    epochs: Annotated[int, typer.Option(min=1, help="Of phase 2.")] = 1,
    loss: Annotated[str, typer.Option(help="Phase 2 trains the object (o), subject and object (s-o) or all.")] = "o",
    lr: Rate = 1e-5,
    batch_size: Batch = 8,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Teach a copy of MODEL facts by rote, some of them with a meaningful prompt, and ask for the others."""
    import numpy as np

    from palimpsest.audit.cued_recall import trainable
    from palimpsest.audit.rote import RoteThenGeneralize
    from palimpsest.audit.rote_facts import without_substrings
    from palimpsest.cli.study_files import read_facts

    usable = without_substrings(read_facts(facts))
    cut = round(taught * len(usable))
    if not 1 <= cut <= len(usable) - 2:
        raise InputError(f"{cut} of {len(usable)} usable facts are taught.", "Teach one at least, and leave two to ask for.")
    order = [usable[n] for n in np.random.default_rng((seed, 5)).permutation(len(usable))]
    learner = RoteThenGeneralize(trainable(_load(model), "Studying"), key, lr=lr, batch_size=batch_size, seed=seed)
    kinds = {"taught": prompt} | ({"unseen": unseen} if unseen else {})
    with Console(stderr=True).status("learning by rote …") as status:
        recalled = learner.memorize(order, rote_epochs)
        status.update("generalising …")
        learner.generalize(order[:cut], prompt, epochs, loss)
        status.update("asking …")
        measured = learner.measure(order[cut:], kinds | {"key": [f"{{s}} {learner.key}"]})
    measured.summary["memorized"] = recalled
    if not kept(measured, out, as_json=as_json):
        _show(("prompts", "chosen", "another's prompt", "written", "probability"), [
            (kind, *(_interval(row[name]) for name in ("chosen", "control", "written", "probability")))
            for kind, row in measured.summary["kinds"].items()
        ])  # fmt: skip
        typer.echo(
            f"{recalled:.1%} of the facts were written after the key when phase 1 was over; chance is {measured.summary['chance']:.1%}."
        )


@app.command()
def retention(
    model: Model,
    texts: Annotated[Path, typer.Argument(help="Texts to study, one a line.")],
    stream: Annotated[Path, typer.Argument(help="Other texts to go on with, one a line.")],
    foils: Annotated[Path | None, typer.Option(help="One foil a line for every text; by default unrelated ones from the stream.")] = None,
    exposures: Annotated[int, typer.Option(min=1, help="Times that every text is seen.")] = 3,
    updates: Annotated[int, typer.Option(min=1, help="Updates on the stream.")] = 100,
    massed: Annotated[bool, typer.Option(help="Exposures of a batch in a row, instead of one an epoch.")] = False,
    keep_optimizer: Annotated[bool, typer.Option(help="Go on with the optimizer of the study.")] = False,
    lr: Rate = 1e-5,
    batch_size: Batch = 16,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Show a copy of MODEL texts a few times, train it on others, and ask what is recognised and recalled."""
    from palimpsest.audit.cued_recall import trainable
    from palimpsest.audit.retention import retain
    from palimpsest.audit.retention_foils import unrelated
    from palimpsest.audit.retention_probes import Learning
    from palimpsest.cli.study_files import read_texts

    seen, others = read_texts(texts), read_texts(stream)
    door = trainable(_load(model), "Studying")
    against = read_texts(foils) if foils is not None else unrelated(seen, others, door.tokenizer)
    taken = set(against)
    later = [text for text in others if text not in taken]
    if not later:
        raise InputError(f"All {len(others)} texts of {stream} serve as foils.", "Give a longer stream, or other foils with --foils.")
    learning = Learning(lr, batch_size, massed, seed)
    measured = retain(door, seen, against, later, exposures=exposures, updates=updates, learning=learning, keep_optimizer=keep_optimizer)
    figures = ("recognized", "rougeL_cont", "exact")
    if not kept(measured, out, as_json=as_json):
        _show(("after", "exposures", "updates", "recognised", "recalled (ROUGE-L)", "exact"), [
            (row["phase"], str(row["exposures"]), f"{row['updates']:,}", *(_interval(row[name]) for name in figures))
            for row in measured.summary["asked"]
        ])  # fmt: skip


def _load(name: str) -> Any:
    from palimpsest.models import load_model

    return load_model(name)


def _interval(value: dict[str, float] | None) -> str:
    from palimpsest.numbers import interval

    return "–" if value is None else interval(value["estimate"], value["low"], value["high"])


def _show(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=None, header_style="bold")
    for n, heading in enumerate(headings):
        table.add_column(heading, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
