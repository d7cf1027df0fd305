"""BLEU of one candidate against several references.

Papineni et al., ACL 2002. For a candidate y and references r_1 … r_k, all token sequences,

    BLEU = exp(min(0, 1 − |r*| / |y|)) · exp(¼ Σ_{n=1..4} log p_n)

p_n = the candidate's n-grams, each counted at most as often as the one reference has it that has it most, over all of its n-grams;
r* = the reference whose length is closest to the candidate's, the shorter one of two. `smoothing=None` is Moses' multi-bleu.perl: a p_n of
0, or a candidate of fewer than four tokens, gives 0. `smoothing="exp"` is sacrebleu's default for sentences: the k-th p_n that is 0 becomes
1 / (2^k · n-grams), and orders longer than the candidate are left out; no common token at all still gives 0.

`audit.similarity` has another one, for pairs of passages: one reference, a constant smoothing, 1 for equal sequences of any length.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from palimpsest.errors import InputError

ORDER = 4


def sentence_bleu(candidate: Sequence[str], references: Sequence[Sequence[str]], smoothing: str | None = "exp") -> float:
    """BLEU-4 of a sentence, in [0, 1].

    Args:
        candidate: tokens; none gives 0.
        references: one or more, each of a token or more.
        smoothing: "exp" or None, see above.

    Raises:
        InputError: no reference, an empty one, a text that is not cut into tokens, or another smoothing.

    Example:
        >>> round(sentence_bleu("a b c d e".split(), ["a b c d f".split(), "a b".split()]), 4)
        0.6687
    """
    if smoothing not in ("exp", None):
        raise InputError(f"The smoothing {smoothing!r} is unknown.", "Choose 'exp' or None.")
    if not references or not all(references):
        raise InputError(f"There are {len(references)} references, or one is empty.", "Give one at least, each of a token or more.")
    if any(isinstance(text, str) for text in (candidate, *references)):
        raise InputError("A text is not cut into tokens.", "Give sequences of tokens: text.split().")
    total = 0.0
    zeros = orders = matched = 0
    for n in range(1, ORDER + 1):
        possible = len(candidate) - n + 1
        if possible < 1:
            break
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngrams(reference, n)
        matches = (ngrams(candidate, n) & most).total()
        matched += matches
        orders += 1
        if matches == 0:
            zeros += 1
        total += math.log((matches or 2.0**-zeros) / possible)
    if matched == 0 or (smoothing is None and (zeros or orders < ORDER)):
        return 0.0
    closest = min((len(reference) for reference in references), key=lambda length: (abs(length - len(candidate)), length))
    return math.exp(min(0.0, 1 - closest / len(candidate)) + total / orders)


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often every n-gram occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
