"""`palimpsest generate`: write on from a prompt, or answer about a long document, with a context method on the model if wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from palimpsest.cli.options import Json, MaxNewTokens, Seed, Temperature, TopK, TopP
from palimpsest.errors import ContextOverflowError, InputError

if TYPE_CHECKING:
    from palimpsest.context.attach import ContextMethod
    from palimpsest.models.hf import HFModel
    from palimpsest.tokenizer import Tokenizer

ContextName = Annotated[str | None, typer.Option("--context", help="A context method, see `palimpsest context list`.")]
Options = Annotated[list[str] | None, typer.Option("--option", metavar="K=V", help="A setting of the method; may be repeated.")]
Chunk = Annotated[int, typer.Option(min=1, help="Tokens read in one forward pass.")]


def generate(
    model: Annotated[str, typer.Argument(help="A known name, a folder or a hub id.")],
    prompt: Annotated[str, typer.Option(help="What the text goes on from, or the question; - reads the standard input.")],
    document: Annotated[Path | None, typer.Option(help="A text file that is read before the prompt.")] = None,
    context: ContextName = None,
    option: Options = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put document and prompt into the model's chat template.")] = False,
    template: Annotated[Path | None, typer.Option(help="Another chat template, a Jinja file.")] = None,
    chunk: Chunk = 256,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write on from a prompt, keeping the context as a method says, and report the bytes and tokens a second."""
    from palimpsest.cli.study_files import read_utf8
    from palimpsest.context.catalogue import goes_beyond
    from palimpsest.context.writing import write_on
    from palimpsest.evaluation.context_reading import attached, describe
    from palimpsest.models.base import Sampler

    method = chosen_method(context, option)
    asked = typer.get_text_stream("stdin").read() if prompt == "-" else prompt
    text = read_utf8(document) if document is not None else ""
    if not asked.strip():
        raise InputError("The prompt is empty.", "Give some words.")
    door = local_model(model)
    sampler = Sampler(temperature, top_k or None, top_p)
    before, question = parts(door, text, asked, model if chat or template else None, template)
    if not goes_beyond(method) and len(before) + len(question) + max_new_tokens > door.context_length:
        raise ContextOverflowError(
            f"{len(before) + len(question)} tokens and {max_new_tokens} new ones do not fit the {door.context_length} of {door.name}.",
            "Give a context method that goes beyond them, for example --context infllm.",
        )
    shown = _Stream(door.tokenizer, silent=as_json)
    with attached(door, method) as session:
        written = write_on(
            session,
            question,
            max_new_tokens,
            document=before,
            sampler=sampler,
            seed=seed,
            stop_ids=door.stop_ids,
            chunk=chunk,
            on_token=shown,
        )
    shown.end()
    value: dict[str, Any] = {**describe(door, method), "text": door.tokenizer.decode(written.ids), **written.to_dict()}
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    Console(stderr=True).print(costs(value), style="dim", highlight=False, markup=False)


def chosen_method(name: str | None, options: list[str] | None) -> ContextMethod | None:
    """The method that --context and --option name; None without --context.

    Raises:
        InputError: options without a method, one without "=", or what `build_method` refuses.
    """
    from palimpsest.context.options import build_method

    given = pairs(options or [])
    if name is not None:
        return build_method(name, given)
    if given:
        raise InputError("There are options of a method, but no method.", "Name it with --context.")
    return None


def pairs(texts: list[str]) -> dict[str, str]:
    """`name=value` texts as a dict; a hyphen in a name stands for an underscore.

    Raises:
        InputError: a text without "=".
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InputError(f"The option {text!r} has no value.", "Give it as name=value.")
        found[key.strip().replace("-", "_")] = value.strip()
    return found


def local_model(name: str) -> HFModel:
    """A model whose weights are in this process.

    Raises:
        CapabilityError: an endpoint, or another door without weights.
    """
    from palimpsest.models import load_model
    from palimpsest.models.hf import HFModel

    with Console(stderr=True).status(f"loading {name}"):
        door = load_model(name)
    door.require("weights", "A context method")
    if not isinstance(door, HFModel):
        raise door.lacks("weights", "A context method inside of this process")
    return door


def parts(door: HFModel, document: str, prompt: str, chat: str | None, template: Path | None) -> tuple[list[int], list[int]]:
    """The ids of the document and of what is asked behind it, with BOS and the chat template where they belong."""
    from palimpsest.cli.alignment import chat_template

    tokenizer = door.tokenizer
    head, tail = "", ""
    if chat is not None:
        around = chat_template(chat, template)
        head, tail = around.prefix, around.turn
    joint = "\n\n" if document and not document.endswith("\n\n") else ""
    before = tokenizer.encode(head + document) if document else []
    question = tokenizer.encode((joint if document else head) + prompt + tail)
    first = before or question
    if door.prepends_bos and tokenizer.bos_id is not None and first[:1] != [tokenizer.bos_id]:
        first.insert(0, tokenizer.bos_id)
    return before, question


def costs(value: dict[str, Any]) -> str:
    """What reading and writing took, in one sentence."""
    from palimpsest.numbers import number

    held = value["cache_bytes"]
    speed = value["decode_tokens_per_second"]
    wrote = f"wrote {value['new_tokens']:,}" + (f" at {number(speed)} a second" if speed else "")
    return (
        f"{value['settings'] or 'Full attention'}: read {value['prompt_tokens']:,} tokens at {number(value['prefill_tokens_per_second'])} "
        f"a second, {wrote}; the cache held {held['prefill'] / 1e6:.1f} MB after reading and {held['peak'] / 1e6:.1f} MB at most."
    )


class _Stream:
    """Prints a text while its tokens come, in whole characters."""

    def __init__(self, tokenizer: Tokenizer, *, silent: bool) -> None:
        from palimpsest.serving.text_stream import TextStream

        self.text, self.silent = TextStream(tokenizer, []), silent

    def __call__(self, token: int) -> None:
        if not self.silent:
            typer.echo(self.text.push(token), nl=False)

    def end(self) -> None:
        """Prints what is left, and ends the line."""
        if not self.silent:
            typer.echo(self.text.finish())
