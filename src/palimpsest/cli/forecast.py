"""`palimpsest forecast`: what will the large model recite, judged by a smaller one or by an early checkpoint?"""

from __future__ import annotations

import json
import math
import re
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.audit.forecast import Recommendation
    from palimpsest.evaluation.forecasting import Contender
    from palimpsest.measurement import Measurement

_TOKENS = re.compile(r"(?P<name>.+)@(?P<number>[0-9]+(\.[0-9]+)?(e[0-9]+)?)(?P<unit>[kMBT]?)")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MOST = 1e18


def forecast(
    target: Annotated[str, typer.Argument(help="The model that is forecast, NAME or NAME@TOKENS.")],
    corpus: Annotated[Path, typer.Argument(help="What it was trained on, one document a training sequence: text or an index.")],
    predictors: Annotated[
        list[str],
        typer.Option("--from", help="Who forecasts: NAME, or NAME@TOKENS it was trained on (2.1e9, 300B); may be repeated."),
    ],
    prefix: Annotated[int, typer.Option(min=1, help="Tokens of every document that are shown.")] = 32,
    suffix: Annotated[int, typer.Option(min=1, help="Tokens that are to be written next.")] = 32,
    samples: Annotated[int, typer.Option(min=0, help="Documents that are asked about, drawn at random; 0 for all.")] = 1000,
    threshold: Annotated[float, typer.Option(help="Score from which on a document counts as memorized.")] = 1.0,
    in_order: Annotated[bool, typer.Option("--in-order", help="Documents were read once, in this order: ask what was read.")] = False,
    min_recall: Annotated[float, typer.Option(help="Least share of the memorized documents that the advised predictor must find.")] = 0.5,
    budget: Annotated[float | None, typer.Option(help="Most floating-point operations that the advice may cost.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of scores and forecast.json; an earlier run in it goes on.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer of an endpoint: a folder or a tokenizer.json.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Forecast which documents TARGET has memorized, and say what the forecast costs and misses.

    Every model writes on from the beginning of every document; a document is memorized when all is right. What a predictor
    memorized is its forecast. A model that `palimpsest lab train` wrote knows its own TOKENS.
    """
    from palimpsest.audit.forecast import recommend
    from palimpsest.audit.samples import head_samples
    from palimpsest.cli.audit import progress_bar
    from palimpsest.evaluation.forecasting import run_forecast
    from palimpsest.evaluation.protocol import open_corpus
    from palimpsest.models import LanguageModel

    if not 0 < threshold <= 1 or not 0 <= min_recall <= 1:  # before minutes are spent
        raise InputError(f"The threshold is {threshold:g} and the least recall {min_recall:g}.", "Give shares, the threshold above 0.")
    if budget is not None and not 0 < budget < math.inf:
        raise InputError(f"The budget is {budget:g} operations.", "Give a number above 0, or leave --budget out.")
    goal = parse_contender(target, tokenizer)
    contenders = [parse_contender(spec, tokenizer) for spec in predictors]
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(progress_bar(Console(stderr=True)))
        task = bar.add_task("loading", total=None)

        def tell(label: str, done: float, total: float) -> None:
            bar.update(task, description=label, completed=done, total=total)

        def draw(model: LanguageModel) -> Any:
            index = open_corpus(corpus, model, folder / "index", tell)
            if index.tokenizer_fingerprint is not None:
                model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
            return head_samples(index, prefix, suffix, samples or None, seed)

        result = run_forecast(goal, contenders, draw, folder, threshold=threshold, in_order=in_order, progress=tell)
        advice = recommend(result, budget, min_recall)
        if out is not None:
            result.save(out / "forecast.json")
    if as_json:
        advised = {"predictor": advice.predictor, "reason": advice.reason}
        value = {"target": goal.name, "base_rate": result.summary["base_rate"], "predictors": result.table.to_dicts(), "advice": advised}
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    show(Console(), goal, result, advice)


def parse_contender(spec: str, tokenizer: str | None) -> Contender:
    """A model from `NAME` or `NAME@TOKENS`; a folder of the laboratory knows its own tokens.

    Raises:
        InputError: what stands after the @ is no number of tokens, or a folder's card does not say it.
    """
    from palimpsest.evaluation.forecasting import Contender
    from palimpsest.models import load_model

    name, tokens = spec, None
    if "@" in spec and not spec.startswith(("http://", "https://")):
        match = _TOKENS.fullmatch(spec)
        count = float(match["number"]) * _UNITS[match["unit"]] if match else 0.0
        if count > _MOST:  # also what no float can hold
            raise InputError(f"{spec!r} was trained on more than {_MOST:.0e} tokens.", "Write the number like 300B or 2.1e9.")
        tokens = round(count)
        if match is None or tokens < 1:
            raise InputError(f"{spec!r} does not end with a number of tokens.", "Write it like my-model@300B or runs/step-100@2.1e9.")
        name = match["name"]
    elif (Path(spec) / "card.json").is_file():
        from palimpsest.experiments.suite import read_card

        card = read_card(Path(spec))
        seen = card.get("tokens_seen") if isinstance(card, dict) else None
        if not isinstance(seen, int) or seen < 1:
            raise InputError(f"{Path(spec) / 'card.json'} does not say tokens_seen.", f"Say how many: {spec}@TOKENS.")
        tokens = seen
    return Contender(name, partial(load_model, name, tokenizer=tokenizer), tokens)


def show(console: Console, target: Contender, result: Measurement, advice: Recommendation) -> None:
    """The forecasts on the terminal."""
    from palimpsest.numbers import number, percent

    base = result.summary["base_rate"]
    rate = base["common"] if base["common"]["n"] else base["all"]
    console.print(
        f"{target.name} has memorized {percent(rate['rate'])} of {rate['n']:,} documents.", highlight=False, soft_wrap=True, markup=False
    )
    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for column in ("predictor", "memorized", "precision", "recall", "F1", "operations", "of the target's"):
        table.add_column(column, justify="left" if column == "predictor" else "right", overflow="fold")
    for row in result.table.iter_rows(named=True):
        if row["scope"] == "common":
            figures = [percent(row[name]) for name in ("precision", "recall", "f1")]
            table.add_row(
                escape(row["predictor"]), f"{row['positives']:,}", *figures, number(row["compute"]), percent(row["compute_share"])
            )
    console.print(table)
    for row in result.table.iter_rows(named=True):
        if row["scope"] == "common" and row["reason"]:
            console.print(f"{row['predictor']}: {row['reason']}.", style="dim", highlight=False, soft_wrap=True, markup=False)
    said = f"Advice: {advice.predictor}. " if advice.predictor else "No advice. "
    console.print(said + advice.reason, highlight=False, soft_wrap=True, markup=False)
