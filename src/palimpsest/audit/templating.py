"""Text that follows a rule: does it repeat, does it count, and how short a code do its characters have?

The templating detector and the code length of Prashanth et al., *Recite, Reconstruct, Recollect* (ICLR 2025, arXiv 2406.17746;
EleutherAI/semantic-memorization). Such text need not have been remembered to be written: its beginning says how it goes on.

* **repeating**: the characters have a period of at most half their number, c[i] = c[i - q] for all i >= q.
* **incrementing**: cut into words and whole numbers (hexadecimal literals are numbers), there is a period q such that in every residue
  class modulo q the words are equal and the numbers form an arithmetic progression, of which one, of three numbers at least, moves.
  The first and the last unit may have been cut when the text was, and do not count where there are more than four units.

Departures from the published code, each of which only ever looks wrong there: three units count when their second difference *is* 0
(the code asks whether it is less than 1e-5, so that any slowing sequence passes); the moving class itself needs three numbers, and
what another period has found is forgotten; a hexadecimal literal is recognised beside punctuation too, and one that was cut to "0x" is a
single unit. Letters do not count: the code's rule, and so "a1 b2 c3" follows none.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Sequence

_UNIT = re.compile(r"(?<![0-9A-Za-z])0[xX][0-9A-Fa-f]*(?![0-9A-Za-z])|[0-9]+|[^\s0-9]+")
_DIGITS = 4000  # Python refuses to read longer numbers; no rule is seen in one


def period(text: str) -> int | None:
    """The shortest period of `text` that fits in it twice, None where there is none.

    Example:
        >>> period("ababab"), period("abcab"), period("abc")
        (2, None, None)
    """
    return next((q for q in range(1, len(text) // 2 + 1) if text.startswith(text[q:])), None)


def units(text: str) -> list[str | int]:
    """`text` as words and whole numbers; white space separates and is dropped.

    Example:
        >>> units("item 0x0a, 7b")
        ['item', 10, ',', 7, 'b']
    """
    return [_unit(word) for word in _UNIT.findall(text)]


def _unit(word: str) -> str | int:
    if not (word[0].isascii() and word[0].isdigit()) or len(word) > _DIGITS:
        return word
    if word[1:2] in ("x", "X"):
        return int(word, 16) if len(word) > 2 else word
    return int(word)


def step(text: str) -> int | None:
    """What the numbers of an incrementing text grow by (the first class that moves), None where the text is none.

    Example:
        >>> step("1 2 3 4"), step("0x01 0x02 0x03"), step("a 10 b 8 a 6 b 4 a 2 b"), step("a1 b2 c3"), step("1 2 4 8 16 32")
        (1, 1, -4, None, None)
    """
    cut = units(text)
    if len(cut) > 4:
        cut = cut[1:-1]
    if len(cut) < 3:
        return None
    # three units are one class of three; of four, only the period 1 leaves a class of three
    for q in range(1, max(1, len(cut) // 2) + 1):
        steps = [_class_step(cut[start::q]) for start in range(q)]
        if None not in steps:
            moving = [found for start, found in enumerate(steps) if found and len(cut[start::q]) >= 3]
            if moving:
                return moving[0]
    return None


def _class_step(members: Sequence[str | int]) -> int | None:
    """What a residue class grows by: 0 for equal words and for a number alone, None where it follows no rule."""
    first = members[0]
    if isinstance(first, str):
        return 0 if all(member == first for member in members) else None
    if len(members) == 1:
        return 0
    if not isinstance(members[1], int):
        return None
    difference = members[1] - first
    expected = (first + place * difference for place in range(len(members)))
    return difference if all(isinstance(a, int) and a == b for a, b in zip(members, expected, strict=True)) else None


def shannon_code_length(text: str) -> float:
    """Mean bits a character of Shannon's code, sum_c p_c * ceil(-log2 p_c); what the paper calls its Huffman coding length.

    Example:
        >>> shannon_code_length("aab"), shannon_code_length("aaaa")
        (1.3333333333333333, 0.0)
    """
    total = len(text)
    # an exact ceiling: -log2 of a rounded quotient may exceed a whole number by an ulp
    return sum(count * _ceil_log2(total, count) for count in Counter(text).values()) / total if text else 0.0


def _ceil_log2(total: int, count: int) -> int:
    """The least b with count * 2^b >= total."""
    bits = max(0, math.ceil(math.log2(total / count)) - 1)
    while count << bits < total:
        bits += 1
    return bits


def huffman_code_length(text: str) -> float:
    """Mean bits a character of Huffman's code, the shortest prefix code of the text's own characters; 0 for a single one.

    Never above `shannon_code_length`, never below the entropy.

    Example:
        >>> huffman_code_length("aab"), huffman_code_length("aaaa")
        (1.0, 0.0)
    """
    heap = list(Counter(text).values())
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:  # every merge lengthens the code of all below it by one bit
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits / len(text) if text else 0.0
