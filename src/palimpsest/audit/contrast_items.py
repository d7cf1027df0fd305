"""The clozes that come with the library: idioms that fix their last word, and facts asked for in two templates each.

`clozes.tsv` has one row an idiom (`idiom`, phrase) or fact (`capital`, `element` or `work`, subject, answer): 366 English idioms and
proverbs, 150 countries with their capitals, 90 chemical elements with their symbols, 60 works with their authors. The two clozes of a
fact share a concept; an idiom stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from palimpsest.audit.contrast_readings import Cloze

IDIOM = "idiom"
TEMPLATES = {
    "capital": ("The capital of {} is", "Q: What is the capital city of {}?\nA:"),
    "element": ("The chemical symbol for {} is", "Q: Which symbol does {} have in the periodic table?\nA:"),
    "work": ("{} was written by", "Q: Who is the author of {}?\nA:"),
}


def builtin_rows() -> dict[str, list[tuple[str, ...]]]:
    """The rows of `clozes.tsv` by kind: (phrase,) or (subject, answer).

    Example:
        >>> builtin_rows()["element"][0]
        ('hydrogen', 'H')
    """
    rows: dict[str, list[tuple[str, ...]]] = {}
    text = resources.files("palimpsest.audit").joinpath("clozes.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        kind, *fields = line.split("\t")
        rows.setdefault(kind, []).append(tuple(fields))
    return rows


def idiom_clozes(phrases: Sequence[str]) -> list[Cloze]:
    """Phrases without their last word.

    Raises:
        InputError: a phrase of one word.

    Example:
        >>> idiom_clozes(["break the ice"])[0].answer
        'ice'
    """
    return [Cloze(" ".join(phrase.split()[:-1]), phrase.split()[-1], IDIOM) for phrase in phrases]


def fact_clozes(kind: str, rows: Sequence[tuple[str, ...]]) -> list[Cloze]:
    """Two clozes a fact, of one concept.

    Example:
        >>> [cloze.prompt for cloze in fact_clozes("work", [("Hamlet", "William Shakespeare")])]
        ['Hamlet was written by', 'Q: Who is the author of Hamlet?\\nA:']
    """
    return [Cloze(form.format(subject), answer, kind, f"{kind}/{subject}") for subject, answer in rows for form in TEMPLATES[kind]]


def builtin_clozes() -> list[Cloze]:
    """All of them: 366 idioms and 600 clozes of 300 facts.

    Example:
        >>> len(builtin_clozes())
        966
    """
    rows = builtin_rows()
    facts = [cloze for kind in TEMPLATES for cloze in fact_clozes(kind, rows[kind])]
    return idiom_clozes([phrase for (phrase,) in rows[IDIOM]]) + facts
