"""The command line: `palimpsest VERB …`, one file per verb, nothing here but the list of verbs and how errors are shown.

A verb's module is imported only when the verb is used, so that `palimpsest --help` answers at once. A verb is either a function
(one command) or a `typer.Typer` (a group of commands). An error of the library ends with exit code 2 and a message on stderr
that says what to do; with `--json` the same is also one JSON object on stdout. Ctrl-C ends with 130: finished work is kept.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from palimpsest.errors import InputError, PalimpsestError, StorageError

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer brings a click of its own
INTERRUPTED = "interrupted: finished work is kept; run the same command again to continue."

# verb: (module, function or Typer app in it, one line of help)
VERBS: dict[str, tuple[str, str, str]] = {
    "audit": ("palimpsest.cli.audit", "audit", "Audit a model for what it remembers of a corpus; without arguments, the demonstration."),
    "evaluate": ("palimpsest.cli.evaluate", "evaluate", "Ask the same questions without a store, with a frozen and with a live one."),
    "needle": ("palimpsest.cli.needle", "needle", "How well a fact in a long prompt is found, and how much that depends on the prompt."),
    "order-recall": ("palimpsest.cli.order_recall", "order_recall", "Which segment of a book came first, with the text and from memory."),
    "set-prompt": ("palimpsest.cli.set_prompt", "set_prompt", "Ask a model so that the order of marked parts of the prompt cannot matter."),
    "rewind": ("palimpsest.cli.rewind", "rewind", "Whether prompts that declare an earlier end of knowledge take a model back."),
    "card": ("palimpsest.cli.card", "app", "Check, show and compare evaluation cards."),
    "report": ("palimpsest.cli.report", "report", "Render an audit.json as one self-contained HTML page."),
    "index": ("palimpsest.cli.index", "app", "Build, check and query the index of a corpus."),
    "split": ("palimpsest.cli.split", "split", "Split examples so that no key stands in two parts."),
    "trace": ("palimpsest.cli.trace", "trace", "What of a text stands word for word in a corpus, and in which documents."),
    "contrast": ("palimpsest.cli.contrast", "contrast", "How the clozes that a model has memorized differ from those it has not."),
    "vocabulary": ("palimpsest.cli.vocabulary", "vocabulary", "How much more is memorized of texts when the vocabulary is larger."),
    "function-tokens": (
        "palimpsest.cli.function_tokens",
        "function_tokens",
        "Which tokens activate a model's features, and where its loss is.",
    ),
    "memory-tokens": ("palimpsest.cli.memory_tokens", "app", "Write texts into input vectors of a frozen model and read them back."),
    "reference": (
        "palimpsest.cli.reference",
        "reference",
        "Have a model recall which passage of a corpus answers a question.",
    ),
    "alignment": ("palimpsest.cli.alignment", "alignment", "How much of its instruction data a model gives away behind its chat template."),
    "study": ("palimpsest.cli.study", "app", "Let a copy of a model study texts or facts, and ask what it can do with them."),
    "traps": ("palimpsest.cli.traps", "app", "Make copyright traps, plant them in documents, ask a model whether it knows them."),
    "forecast": ("palimpsest.cli.forecast", "forecast", "Forecast what a model memorizes from a smaller model or an early checkpoint."),
    "generate": ("palimpsest.cli.generate", "generate", "Write on from a prompt or a long document, under a context method if wanted."),
    "context": ("palimpsest.cli.context", "app", "Methods that give a frozen model a longer or a cheaper context."),
    "bench": ("palimpsest.cli.bench", "app", "Compare methods on one model under one protocol."),
    "guard": ("palimpsest.cli.guard", "app", "Stop a model from writing out what is protected."),
    "serve": ("palimpsest.cli.serve", "serve", "Serve a model to OpenAI's clients: guarded, traced, within limits."),
    "govern": ("palimpsest.cli.govern", "app", "Change a model's memory under thresholds, with a log and a way back."),
    "speculate": ("palimpsest.cli.speculate", "speculate", "Write exactly what a model would, with a smaller model drafting for it."),
    "schedule": ("palimpsest.cli.schedule", "app", "Reserve cache by the predicted length of answers, simulated and measured."),
    "chunks": ("palimpsest.cli.chunks", "chunks", "Learn the chunks and variables of a text."),
    "mblm": ("palimpsest.cli.mblm", "app", "Train and ask a memory-based language model."),
    "models": ("palimpsest.cli.models", "app", "Fetch and inspect models."),
    "lab": ("palimpsest.cli.lab", "app", "Train the planted twin models: the laboratory."),
    "systems": ("palimpsest.cli.systems", "systems", "The catalogue of 119 published systems and how far each is."),
    "reproduce": ("palimpsest.cli.reproduce", "reproduce", "Check the claims of systems and write the results."),
}


class VerbGroup(TyperGroup):
    """A command group that knows its verbs by name and imports one when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # what the help page and the suggestions after a typing error need: names and one line each, nothing imported
        self.commands = {name: TyperCommand(name, help=line) for name, (_, _, line) in VERBS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that is to be run, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name else command, rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remembers whether the answer, and so an error, is wanted as JSON."""
        ctx.obj = {"json": "--json" in args}
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb; errors of the library become a message and exit code 2."""
        try:
            return super().invoke(ctx)
        except PalimpsestError as error:
            show_error(error, as_json=ctx.obj["json"])
            raise typer.Exit(2) from error
        except USAGE_ERROR as error:
            if ctx.obj["json"]:
                typer.echo(as_json_error("UsageError", error.format_message(), f"See {ctx.info_name} {ctx.invoked_subcommand} --help."))
            raise
        except UnicodeDecodeError as error:  # of the standard input: files are read with an error of their own
            garbled = InputError(f"The input is not UTF-8: {error.reason} at byte {error.start}.", "Convert it, for example with iconv.")
            show_error(garbled, as_json=ctx.obj["json"])
            raise typer.Exit(2) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.filename is None:
                raise
            name = os.fsdecode(error.filename)
            refused = StorageError(f"{name} cannot be used: {error.strerror}.", "Check the path, and that you may read and write there.")
            show_error(refused, as_json=ctx.obj["json"])
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from error


def load_verb(name: str) -> Any:
    """The command of a verb, imported from its module."""
    module, attribute, line = VERBS[name]
    verb = getattr(import_module(module), attribute)
    if isinstance(verb, typer.Typer):
        group = typer.main.get_group(verb)
        group.help = group.help or line
        return group
    app = typer.Typer(add_completion=False)
    app.command(name)(verb)
    return typer.main.get_command(app)


def show_error(error: PalimpsestError, *, as_json: bool) -> None:
    """Prints `error: problem remedy` on stderr and, if asked for, the error as JSON on stdout."""
    if as_json:
        typer.echo(as_json_error(type(error).__name__, error.problem, error.remedy))
    typer.echo(f"error: {error}", err=True)


def as_json_error(kind: str, problem: str, remedy: str) -> str:
    """An error as the one JSON object that a program reads."""
    return json.dumps({"error": {"type": kind, "problem": problem, "remedy": remedy}}, ensure_ascii=False)


app = typer.Typer(cls=VerbGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def print_version(wanted: bool) -> None:
    """Prints the version and exits."""
    if wanted:
        from palimpsest import __version__

        typer.echo(f"palimpsest {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", callback=print_version, is_eager=True),
) -> None:
    """Measure what a language model remembers, trace it to its source, guard what it gives away."""


def main() -> None:
    """Entry point of the command `palimpsest`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a corpus holds any character; a narrow terminal must not end the run
            stream.reconfigure(errors="replace")
    app(prog_name="palimpsest")


if __name__ == "__main__":
    main()
