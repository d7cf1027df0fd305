"""When two evaluation cards may be compared, and their difference (system 104, section E, and proposition 2).

Two results of different models may be set side by side only when nothing else differed. `COMPARED` are the fields of a card that must
agree; each of them is needed: without it there are two runs of *one* model that compare as equal and give different results. Which
settings were run is not among them, because the stores say it: a card without an offline or online run has no store of that name.
`minimal_card_fields` looks for such pairs of witnesses among cards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.errors import NotComparable
from palimpsest.evaluation.card import EvaluationCard

COMPARED = (
    "data.hash",
    "data.item_ids",
    "snapshot",
    "live",
    "prompting.template",
    "prompting.filler",
    "prompting.separator",
    "prompting.stop",
    "prompting.sampler",
    "prompting.rule",
    "prompting.refusals",
    "budgets.evidence_tokens",
    "budgets.answer_tokens",
    "budgets.k",
    "seeds",
)


@dataclass(frozen=True)
class Reason:
    """Why two cards may not be compared: a field, and what each says."""

    field: str
    first: Any
    second: Any

    def __str__(self) -> str:
        def short(value: Any) -> str:
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}…"

        return f"{self.field} is {short(self.first)} and {short(self.second)}"


def comparable(first: EvaluationCard, second: EvaluationCard, fields: Sequence[str] = COMPARED) -> list[Reason]:
    """Why two cards may not be compared; empty when they may.

    Args:
        first, second: cards.
        fields: that must agree.
    """
    reasons = []
    for field in fields:
        one, two = _value(first, field), _value(second, field)
        if one != two:
            reasons.append(Reason(field, one, two))
    return reasons


@dataclass(frozen=True)
class Row:
    """A figure of both cards; `separate` says that their difference is larger than its 95 % margin, the intervals taken as independent."""

    layer: str
    metric: str
    first: float
    second: float
    difference: float
    margin: float

    @property
    def separate(self) -> bool:
        """Whether 0 lies outside difference ± margin."""
        return abs(self.difference) > self.margin


@dataclass(frozen=True)
class CardDiff:
    """The figures that two cards share.

    Attributes:
        rows: second minus first.
        only_first, only_second: figures that the other has not.
        stamp: why the cards should not be compared, where that was forced; else empty.
    """

    rows: tuple[Row, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    stamp: str

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain JSON types."""
        rows = [{**vars(row), "separate": row.separate} for row in self.rows]
        return {"rows": rows, "only_first": list(self.only_first), "only_second": list(self.only_second), "stamp": self.stamp}


def diff(first: EvaluationCard, second: EvaluationCard, *, force: bool = False) -> CardDiff:
    """What differs between two cards' results.

    The cards hold no items, so that the runs cannot be paired: the margin is the root of the summed squares of the half-widths, and is too
    wide where both were asked the same items. Compare the runs' tables (`palimpsest.evaluation.gains`) when you have them.

    Args:
        first, second: cards.
        force: compare what should not be compared; the result is stamped.

    Raises:
        NotComparable: the cards differ in more than the model, and it is not forced.
    """
    reasons = comparable(first, second)
    if reasons and not force:
        names = f"{first.identity.name!r} and {second.identity.name!r}"
        raise NotComparable(
            f"The cards of {names} differ in more than the model: {'; '.join(map(str, reasons))}.",
            "Run both alike, or force the comparison: it will be stamped.",
        )
    one, two = ({(r.layer, r.metric): r.value for r in card.results} for card in (first, second))
    rows = tuple(
        Row(
            *key,
            one[key].estimate,
            two[key].estimate,
            two[key].estimate - one[key].estimate,
            math.hypot(one[key].high - one[key].low, two[key].high - two[key].low) / 2,
        )
        for key in one
        if key in two
    )
    only = [tuple("/".join(key) for key in mine if key not in theirs) for mine, theirs in ((one, two), (two, one))]
    stamp = f"NOT COMPARABLE: {'; '.join(map(str, reasons))}" if reasons else ""
    return CardDiff(rows, only[0], only[1], stamp)


def minimal_card_fields(cards: Sequence[EvaluationCard], fields: Sequence[str] = COMPARED) -> dict[str, tuple[int, int]]:
    """The fields that cards show to be needed, each with the numbers of two witnesses.

    Witnesses are runs of one model that differ in one field alone and in their results: without that field they would compare as equal,
    although what was measured is not the same.

    Args:
        cards: of one model or several; deterministic runs, or the witnesses show chance.
        fields: that are looked at.

    Raises:
        NotComparable: two cards of one model agree in all fields and differ in results: then the fields are not enough.
    """
    witnesses: dict[str, tuple[int, int]] = {}
    for (i, one), (j, two) in itertools.combinations(enumerate(cards), 2):
        if one.identity.fingerprint != two.identity.fingerprint or one.identity.adapters != two.identity.adapters:
            continue
        differing = [reason.field for reason in comparable(one, two, fields)]
        same = [r.model_dump() for r in one.results] == [r.model_dump() for r in two.results]
        if not differing and not same:
            raise NotComparable(
                f"Cards {i} and {j} of {one.identity.name!r} agree in all of {len(fields)} fields and differ in their results.",
                "Something that matters is not on the card: chance, or a field that is missing.",
            )
        if len(differing) == 1 and not same:
            witnesses.setdefault(differing[0], (i, j))
    return {field: witnesses[field] for field in fields if field in witnesses}


def _value(card: EvaluationCard, field: str) -> Any:
    value: Any = card
    for name in field.split("."):
        value = getattr(value, name)
    return sorted(value) if field == "data.item_ids" else value
