"""Random access: can a model begin anywhere in what it has memorized, or only at the start of it?

Zhu, Liu, Pang, Jiang, Kan and Lin, ACL 2024, arXiv 2403.07805. Passages are *written* into the weights under an id ("id: passage"), some of
them also with examples of a task, all tokens trained. Asked is about passages that were written but never stood in a task example:

* ``full``: "Recite id:" -> the passage, sequential access;
* ``selective``: "Sentence i of id:" -> its i-th sentence. In the written passages every sentence stands between its markers, [i] … [i];
* ``grounded_qa``: "question See id:" -> the answer.

The id is a title, a made-up rare word, a number, that of another passage (``wrong_…``), none at all, or the passage itself
(``context``, the upper bound). Four remedies beside ``none``:

* ``recite``: every answer of a task is the whole passage, "Answer:", and only then the answer;
* ``first_permute``: instead of one copy a passage is written once with each of its sentences in front;
* ``random_permute``: k random orders of the sentences are written beside the passage;
* ``repeat`` (ours): k copies in its own order, what the permutations have to be compared with at an equal number of written tokens.

Markers move with their sentences. A full recitation is right when it gives one of the orders that were written. The control (ours) is the
same question with the id of another passage; the headline is the difference. Where the paper's repository splits an answer at "Answer:",
it drops what has the marker not once; here that is "malformed", and wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from palimpsest.audit.cued_recall import cue_example, text_example, write
from palimpsest.audit.random_access_items import SPLITTER, Passage, Query, Trial, build, random_letters
from palimpsest.audit.similarity import similarities
from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models import LanguageModel
from palimpsest.models.hf import HFModel
from palimpsest.stats import clustered_interval, rate_interval
from palimpsest.training.examples import Example

__all__ = ["Passage", "Query", "Trial", "build", "examples", "measure", "random_letters"]


def examples(model: HFModel, trial: Trial) -> list[Example]:
    """What a model is to study: passages and task examples, the loss on all tokens, as in the paper."""
    found = [text_example(model, text) for text in trial.write]
    return found + [cue_example(model, query.prompt, query.target, on_prompt=True) for query in trial.train]


def measure(model: LanguageModel, queries: Sequence[Query], *, control: bool = True) -> Measurement:
    """Asks a model, and compares what it writes with what is right.

    Args:
        model: any door that writes text.
        queries: of `build`.
        control: ask with the id of another passage too, where there is one.

    Returns:
        One row a query: exact (the same words), prefix (begins with them), bleu, f1 (words), malformed; for recitations also
        recited_exact; control_exact, by the question's own golds. Summary: the same with intervals, over all and by place; the
        difference to the control. Intervals resample passages.

    Raises:
        InputError: no queries, or all about one passage.
        ContextOverflowError: a passage does not fit the model's window.
    """
    if len({query.passage for query in queries}) < 2:
        raise InputError(f"There are {len(queries)} questions about fewer than two passages.", "Hold out more passages.")
    longest = [query.target if query.recited else max(query.golds, key=len) for query in queries]
    written = write(model, [query.prompt for query in queries], longest)
    rows = [_scored(query, text) for query, text in zip(queries, written, strict=True)]
    controlled = [n for n, query in enumerate(queries) if query.control is not None] if control else []
    if controlled:
        again = write(model, [queries[n].control or "" for n in controlled], [longest[n] for n in controlled])
        for n, text in zip(controlled, again, strict=True):
            rows[n]["control_exact"] = _scored(queries[n], text)["exact"]
    table = pl.DataFrame(rows, infer_schema_length=None)
    summary = {"all": _summary(table), "by_place": {str(place): _summary(part) for (place,), part in sorted(table.group_by("place"))}}
    provenance = {"model": model.fingerprint, "tokenizer": model.tokenizer.fingerprint, "environment": environment()}
    return Measurement("random-access", table, summary, provenance, {"places": _curve(summary["by_place"])})


def _scored(query: Query, text: str) -> dict[str, Any]:
    """A row of the table."""
    parts = text.split(SPLITTER)
    malformed = bool(query.recited) and len(parts) != 2
    answer = "" if malformed else parts[-1].strip() if query.recited else text
    given = answer.split()
    golds = [gold.split() for gold in query.golds]
    same = similarities([given] * len(golds), golds)
    row = {"passage": query.passage, "place": query.place, "answer": answer, "gold": query.golds[0], "malformed": malformed}
    row |= {"exact": given in golds, "prefix": any(given[: len(gold)] == gold for gold in golds), "bleu": float(same.bleu.max())}
    row["f1"] = max(_word_f1(answer, gold) for gold in query.golds)
    row["recited_exact"] = parts[0].split() in [text.split() for text in query.recited] if query.recited else None
    row["control_exact"] = None
    return row


def _word_f1(answer: str, gold: str) -> float:
    given, target = Counter(words(answer)), Counter(words(gold))
    shared = (given & target).total()
    return 2 * shared / (given.total() + target.total()) if shared else 0.0


def _summary(table: pl.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {"n": table.height}
    for name in ("exact", "prefix", "malformed", "recited_exact", "control_exact"):
        values = table[name].drop_nulls()
        owners = table.filter(pl.col(name).is_not_null())["passage"].to_numpy()
        found[name] = rate_interval(values.to_numpy(), owners)._asdict() if len(values) else None
    for name in ("bleu", "f1"):
        found[name] = clustered_interval(table[name].to_numpy(), table["passage"].to_numpy())._asdict()
    pairs = table.filter(pl.col("control_exact").is_not_null())
    found["beyond_control"] = None
    if pairs.height:
        gain = pairs["exact"].cast(pl.Int64) - pairs["control_exact"].cast(pl.Int64)
        found["beyond_control"] = clustered_interval(gain.to_numpy(), pairs["passage"].to_numpy())._asdict()
    return found


def _curve(by_place: dict[str, Any]) -> Curve:
    def points(name: str) -> list[dict[str, float | int | None]]:
        return [
            {"x": int(place), "y": row[name]["estimate"], "low": row[name]["low"], "high": row[name]["high"], "n": row["n"]}
            for place, row in by_place.items()
            if row[name] is not None
        ]

    series = [Series("its own id", points("exact"))]
    if points("control_exact"):
        series.append(Series("another passage's id", points("control_exact"), style="dashed"))
    return Curve(
        "random-access-places", "What can be asked for of a memorized passage", "place in the passage", "exactly right", series,
        y_domain=(0.0, 1.0), y_format="percent", caption="Wilson 95 % intervals over passages that stood in no example of the task.",
    )  # fmt: skip
