"""Is an answer right? Declared rules on normalised words, and no judge.

An answer and its accepted forms (golds) are compared as words: compatible characters made one, case folded, punctuation and English
articles gone (Rajpurkar et al., SQuAD, EMNLP 2016, arXiv 1606.05250; NFKC instead of ASCII). Three rules, of which a measurement
declares one:

* ``exact``: the answer is a gold and nothing else;
* ``start``: the answer begins with a gold: for models that write on after they have answered;
* ``contains``: a gold stands somewhere in the answer. It also takes "not Paris" and "Paris or Rome" for right: say so where it is used.

`refused` tells a refusal from an answer by a declared list of patterns; an empty answer is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError

RULES = ("exact", "start", "contains")
_ARTICLES = frozenset(("a", "an", "the"))


def normalise(text: str) -> tuple[str, ...]:
    """The words of a text without English articles, unless it consists of nothing else.

    Example:
        >>> normalise("The  Hague.")
        ('hague',)
    """
    every = tuple(words(text))
    return tuple(word for word in every if word not in _ARTICLES) or every


def mention(answer: str, golds: Sequence[str], rule: str) -> tuple[int, int] | None:
    """Where an answer gives one of the golds by a rule: (first word, minus the number of words), the least of all; None if nowhere.

    The earliest mention counts, and among those that begin together the longest.

    Raises:
        InputError: an unknown rule, no golds, or a gold without a word.

    Example:
        >>> mention("It was Rome, not Paris.", ["Paris"], "contains"), mention("It was Rome.", ["Rome"], "start")
        ((4, -1), None)
    """
    if rule not in RULES:
        raise InputError(f"The rule {rule!r} is unknown.", f"Choose one of {', '.join(RULES)}.")
    targets = [normalise(gold) for gold in golds]
    if not targets or not all(targets):
        raise InputError(f"The golds {list(golds)} give nothing to compare.", "Give at least one, each with a letter or a digit.")
    given = normalise(answer)
    found = []
    for target in targets:
        if rule == "exact":
            places = [0] if given == target else []
        else:
            last = len(given) - len(target) + 1 if rule == "contains" else min(1, len(given) - len(target) + 1)
            places = [place for place in range(last) if given[place : place + len(target)] == target][:1]
        found += [(place, -len(target)) for place in places]
    return min(found, default=None)


def is_right(answer: str, golds: Sequence[str], rule: str) -> bool:
    """Whether an answer gives one of the golds.

    Raises:
        InputError: as for `mention`.

    Example:
        >>> is_right("The Hague.", ["Hague", "Den Haag"], "exact")
        True
    """
    return mention(answer, golds, rule) is not None


def token_f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 of the answer's words with those of a gold, as in SQuAD; 0 when no word is shared.

    Raises:
        InputError: no golds.

    Example:
        >>> round(token_f1("Marie Curie of Warsaw", ["Marie Sklodowska Curie"]), 3)
        0.571
    """
    if not golds:
        raise InputError("There are no golds.", "Give at least one.")
    given = Counter(normalise(answer))
    scores = []
    for gold in golds:
        target = Counter(normalise(gold))
        shared = (given & target).total()
        scores.append(2 * shared / (given.total() + target.total()) if shared else 0.0)
    return max(scores)


@dataclass(frozen=True)
class RefusalRules:
    """What counts as a refusal: an empty answer, one that consists of an option, or one in which a pattern is found.

    Attributes:
        options: whole answers, compared as words.
        patterns: regular expressions, searched without regard to case in the answer with plain apostrophes.

    Raises:
        InputError: a pattern that is no regular expression.
    """

    options: tuple[str, ...] = ("unknown", "none", "n/a", "no answer", "not known", "unanswerable", "not mentioned")
    patterns: tuple[str, ...] = (
        r"^\W*(i|we) (do not|don't|cannot|can't|could not|couldn't) (know|say|tell|answer|recall|remember|find)\b",
        r"^\W*(i'm|i am|we are|we're) (sorry|not sure|not able|unsure|unable|not aware)\b",
        r"^\W*(sorry|apologies)\b",
        r"\b(there is|there's|i have|we have) (no|not enough|insufficient) (information|record|mention|data)\b",
        r"\b(cannot|can't|can not) be (determined|known|answered)\b",
        r"^\W*(it|that|this) (is|was) (not|never) (known|mentioned|stated|specified|said)\b",
        r"^\W*not (mentioned|stated|specified|known|given)\b",
    )

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"{pattern!r} is no regular expression: {error}.", "Escape its special characters.") from error


def refused(answer: str, rules: RefusalRules | None = None, golds: Sequence[str] = ()) -> bool:
    """Whether an answer is a refusal.

    Args:
        answer: what was answered.
        rules: what counts as one; by default `RefusalRules()`.
        golds: answers that may be given: whoever answers one of them to the word, even "Unknown", does not refuse.

    Example:
        >>> refused("I don't know."), refused("Unknown."), refused("Rome"), refused(" ")
        (True, True, False, True)
    """
    rules = rules or RefusalRules()
    given = normalise(answer)
    if golds and is_right(answer, golds, "exact"):
        return False
    if not given or given in {normalise(option) for option in rules.options}:
        return True
    plain = answer.replace("\u2019", "'")
    return any(re.search(pattern, plain, re.IGNORECASE) for pattern in rules.patterns)
