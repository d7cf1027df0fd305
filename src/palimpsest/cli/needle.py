"""`palimpsest needle`: how well does a model find a fact in a long prompt, and how much does that depend on the prompt (015)?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli.options import Json
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.evaluation.needle import NeedleTest


def needle(
    model: Annotated[str, typer.Argument(help="The model: a known name, a folder, a .gguf file, a hub id or an endpoint.")],
    tests: Annotated[
        Path,
        typer.Argument(metavar="TESTS.jsonl", help="One object a line: name, needle, questions, key, perhaps wrong_prior and neutral."),
    ],
    filler: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Real texts, or folders of them, to hide the needles in.")],
    length: Annotated[list[int] | None, typer.Option(help="Tokens of the prompt; may be repeated [default: 512 and 1024].")] = None,
    depths: Annotated[int, typer.Option(min=2, help="At how many depths, evenly from the beginning to the end.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="How many places the filler starts at.")] = 1,
    before: Annotated[str, typer.Option(help="What stands in front of the context.")] = "",
    answer: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 24,
    rule: Annotated[str, typer.Option(help="When an answer is right: exact, start or contains.")] = "contains",
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of an endpoint: a folder or a tokenizer.json.")] = None,
    as_json: Json = False,
) -> None:
    """Hide facts in real text and ask for them in several wordings, at every depth and length."""
    from palimpsest.cli.audit import progress_bar
    from palimpsest.corpus.documents import read_documents
    from palimpsest.evaluation.haystack import Haystack
    from palimpsest.evaluation.needle import measure_needles
    from palimpsest.models import load_model

    asked = read_tests(tests)
    texts = [str(document.text) for path in filler for document in read_documents(path)]
    with progress_bar(Console(stderr=True)) as bar:
        job = bar.add_task("asking", total=None)
        loaded = load_model(model, tokenizer=tokenizer)
        measured = measure_needles(
            loaded,
            Haystack(loaded.tokenizer, texts, cycle=True),
            asked,
            length or [512, 1024],
            [place / (depths - 1) for place in range(depths)],
            range(seeds),
            before=before,
            answer_tokens=answer,
            rule=rule,
            progress=lambda done, total: bar.update(job, completed=done, total=total),
        )
    if as_json:
        typer.echo(measured.to_json())
        return
    show(Console(), measured.summary)


def read_tests(file: Path) -> list[NeedleTest]:
    """The tests of a file, one JSON object a line.

    Raises:
        CorpusError: the file cannot be read, or a line is no JSON object.
        InputError: an unknown or missing field, or one of the wrong kind.
    """
    from palimpsest.cli.split import read_records
    from palimpsest.evaluation.needle import NeedleTest

    kinds: dict[str, type] = {"name": str, "needle": str, "questions": list, "key": list, "wrong_prior": list, "neutral": str}
    found = []
    for number, record in enumerate(read_records(file)[1], start=1):
        bad = [field for field in record if field not in kinds] + [field for field in list(kinds)[:4] if field not in record]
        for field, kind in kinds.items():
            given: Any = record.get(field, kind())
            inside = given if isinstance(given, list) else []
            if not isinstance(given, kind) or not all(isinstance(text, str) for text in inside):
                bad.append(field)
        if bad:
            raise InputError(
                f"Test {number} of {file} has {', '.join(map(repr, bad))} too much, not at all, or of another kind.",
                "Give name and needle as text, questions and key as lists of texts; wrong_prior (a list) and neutral (a name) if you like.",
            )
        fields: dict[str, Any] = {field: tuple(value) if isinstance(value, list) else value for field, value in record.items()}
        found.append(NeedleTest(**fields))
    return found


def show(console: Console, summary: dict[str, Any]) -> None:
    """Recall by prompt, and what it depends on."""
    from palimpsest.numbers import interval, number, percent

    table = Table(box=None, header_style="bold")
    for heading in ("needle", "wording", "found", "empty answers"):
        table.add_column(heading, justify="left" if heading == "needle" else "right")
    for row in summary["by_prompt"]:
        table.add_row(row["test"], str(row["wording"] + 1), interval(row["estimate"], row["low"], row["high"]), f"{row['empty']:,}")
    console.print(table)
    spread, shuffled = summary["prompt_dependence"], summary["shuffled"]["prompt_dependence"]
    lines = [
        f"Best less worst prompt: {interval(*spread.values())}; with the prompts' names shuffled {percent(shuffled)}.",
        f"Cochran's Q over the prompts: p = {number(summary['omnibus']['p_value'])}.",
        f"Found without the needle: {percent(summary['control']['estimate'])}.",
    ]
    for pair in summary["conflicts"]:
        points = f"{100 * pair['difference']['estimate']:+.1f} points"
        lines.append(f"{pair['second']} against {pair['first']}: {points}, p = {number(pair['p_value'])}.")
    for line in lines:
        console.print(line, highlight=False)
