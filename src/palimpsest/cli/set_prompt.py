"""`palimpsest set-prompt`: ask a model with parts of the prompt marked as a set, whose order cannot change the answer (049)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from palimpsest.cli.measured import columns
from palimpsest.cli.options import Beams, Json, MaxNewTokens, Seed, Temperature, TopK, TopP
from palimpsest.errors import CorpusError, InputError


def set_prompt(
    model: Annotated[str, typer.Argument(help="A known name, a folder or a hub id: the weights are needed.")],
    prompt: Annotated[str | None, typer.Option(help="Text with sets marked <|start_2d|>a<|split_2d|>b<|end_2d|>, or - to read it.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A file that holds the prompt instead.")] = None,
    choices: Annotated[list[str] | None, typer.Option(help="An answer to weigh, with the blank before it; may be repeated.")] = None,
    orders: Annotated[int, typer.Option(min=1, help="With choices: ask in so many orders, plainly and as a set, and compare.")] = 1,
    canonical: Annotated[bool, typer.Option(help="Sort the pieces first: the same output to the bit.")] = False,
    max_new_tokens: MaxNewTokens = 50,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    beams: Beams = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Continue a prompt, or weigh answers to it, so that the order of the marked pieces does not matter."""
    from palimpsest.context.set_decoding import choice_logprobs, generate, require_sets
    from palimpsest.context.set_prompting import SetPrompt
    from palimpsest.models import load_model

    asked = SetPrompt.parse(read_prompt(prompt, prompt_file))
    if orders > 1 and not choices:
        raise InputError(f"{orders} orders can be compared where answers are weighed.", "Give --choices at least twice.")
    door = load_model(model)
    require_sets(door)
    if not choices:
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p, "num_beams": beams, "seed": seed}
        [ids] = generate(door, asked, max_new_tokens, canonical=canonical, **options)
        text = door.tokenizer.decode(ids)
        typer.echo(json.dumps({"prompt": str(asked), "text": text, "tokens": len(ids)}, ensure_ascii=False) if as_json else text)
        return
    logprobs = choice_logprobs(door, [asked], [choices], canonical=canonical)[0].tolist()
    value: dict[str, Any] = {
        "prompt": str(asked),
        "choices": [{"text": text, "logprob": logprob} for text, logprob in zip(choices, logprobs, strict=True)],
        "chosen": max(range(len(choices)), key=logprobs.__getitem__),
        "orders": compare(door, asked, choices, orders, seed) if orders > 1 else None,
    }
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    show(Console(), value)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The marked text from where it was given.

    Raises:
        InputError: it was given twice, or not at all.
        CorpusError: the file is no text.
    """
    if (prompt is None) == (file is None):
        raise InputError("The prompt is given " + ("twice." if file else "nowhere."), "Give --prompt, or --prompt-file.")
    if file is None:
        return typer.get_text_stream("stdin").read() if prompt == "-" else str(prompt)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}.", "Save it as UTF-8.") from error


def compare(door: Any, prompt: Any, choices: list[str], orders: int, seed: int) -> dict[str, Any]:
    """What the order does when the prompt is read plainly, and when it is read as a set."""
    from palimpsest.context.order_dependence import measure_order_dependence

    measured = measure_order_dependence(door, [prompt], [choices], orders=orders, seed=seed)
    return {
        way: {
            "orders": measured.table.filter(way=way).height,
            "answers": measured.table.filter(way=way)["chosen"].n_unique(),
            "greatest_difference": figures["greatest_difference"],
        }
        for way, figures in measured.summary["ways"].items()
    }


def show(console: Console, value: dict[str, Any]) -> None:
    """The choices with the likeliest marked, and what the order does."""
    from palimpsest.numbers import number

    table = columns("choice", "log-probability")
    for index, choice in enumerate(value["choices"]):
        style = "bold" if index == value["chosen"] else ""
        table.add_row(escape(choice["text"].strip() or repr(choice["text"])), number(choice["logprob"]), style=style)
    console.print(table)
    for way, found in (value["orders"] or {}).items():
        name = "Read plainly" if way == "plain" else "Read as a set"
        answers = "one answer" if found["answers"] == 1 else f"{found['answers']} different answers"
        console.print(
            f"{name}: {answers} in {found['orders']} orders, log-probabilities up to {number(found['greatest_difference'])} nat apart.",
            highlight=False,
        )
