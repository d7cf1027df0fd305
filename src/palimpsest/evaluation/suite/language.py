"""What language a corpus is in, as far as it matters: is it English, in which the questions of some detectors are asked?

English running text takes a quarter and more of its words from the few dozen function words below; other languages that share the letters
hardly any. Words that other languages have too ("in", "die", "was") are left out.
"""

from __future__ import annotations

import re

import numpy as np

from palimpsest.evaluation.plan import AuditPlan

_WORDS = "the of and to that it with for as his is this from have by not are be at but which you they had her were she their him said"
FUNCTION_WORDS = frozenset(_WORDS.split())
LEAST = 0.10  # of the words; lists, tables and code with English words in them lie above it, German and French below 0.02
_WORD = re.compile(r"[^\W\d_]+")
_LOOKED_AT = 40  # passages


def english_share(text: str) -> float:
    """Share of the words of a text that are English function words; 0 for a text without words.

    Example:
        >>> english_share("It is the end of the story."), english_share("Das ist das Ende der Geschichte.")
        (0.7142857142857143, 0.0)
    """
    words = _WORD.findall(text.lower())
    return sum(word in FUNCTION_WORDS for word in words) / len(words) if words else 0.0


def foreign(plan: AuditPlan) -> str | None:
    """Why questions in English cannot be asked of this corpus; None where they can."""
    tokenizer = plan.models[0].tokenizer
    chosen = np.linspace(0, len(plan.samples) - 1, min(_LOOKED_AT, len(plan.samples))).astype(int)
    share = english_share("\n".join(tokenizer.decode(plan.samples[i].ids) for i in chosen))
    if share >= LEAST:
        return None
    return (
        f"It asks in English, and the corpus is not: {100 * share:.1f} % of its words are English function words, where English text has "
        f"{100 * LEAST:.0f} % and more."
    )
