r"""Where a long text may be cut before it is tokenized, so that the tokens of the pieces are those of the whole.

A tokenizer takes a hundred times the memory of a text and more, so a book is cut into pieces. The cut is made between an ASCII letter
and a space. That this changes nothing is proved for tokenizers of these parts, and others get the text whole:

- *Added tokens* are searched for first. None of them holds a space behind something else, so none lies across a cut.
- *Normalizers*: Unicode's forms (a space is a starter that composes with nothing before it), lower case and accents character by
  character, and BERT's. None of them changes the letter into something else than a letter, or the space.
- *Pre-tokenizers*: one that splits at every such place: at whitespace, before a space, or with the regular expressions of GPT-2 and its
  successors. In these a letter can only be followed by letters, marks or an apostrophe within a match, so a match of the whole text
  ends at the cut; they look nowhere behind, so matching goes on there as at the begin of a text; and they look ahead only from spaces.
  Others may stand before it when they change no character and split by the kind of single characters.
- *Models* see one word at a time. Only dropout draws lots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from palimpsest.tokenizer import Tokenizer

_PLACE = re.compile("[A-Za-z] ")
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"}
_AT_WHITESPACE = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_BY_CHARACTER = {"Digits", "Punctuation"}
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_EXPRESSIONS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",  # GPT-4, Llama 3
    rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}|{_REST}",  # Qwen 2
    rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # GPT-4o
}


@lru_cache(maxsize=4)
def may_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a text are known to be those of its `text_pieces`, one after the other.

    Example:
        >>> may_be_cut(Tokenizer.from_file("gpt2/tokenizer.json"))        # doctest: +SKIP
        True
    """
    content = json.loads(tokenizer.backend.to_str())
    return (
        all(map(_lies_across_no_cut, content["added_tokens"]))
        and all(part["type"] in _NORMALIZERS for part in _parts(content["normalizer"], "normalizers"))
        and _splits(_parts(content["pre_tokenizer"], "pretokenizers"))
        and not content["model"].get("dropout")
    )


def text_pieces(strips: Iterable[str], size: int) -> Iterator[str]:
    """A text, given in strips, in pieces of at most `size` characters, or as few more as the next place to cut is away.

    Example:
        >>> list(text_pieces(["one two 3 ", "and four"], 9))
        ['one two', ' 3 and', ' four']
    """
    rest = ""
    for strip in strips:
        rest += strip
        start = 0
        while (cut := _place(rest, start, size)) > 0:
            yield rest[start:cut]
            start = cut
        rest = rest[start:]
    yield rest


def _place(text: str, start: int, size: int) -> int:
    """Where the piece that begins at `start` ends: 0 when it may be the last one, or has no end in this text."""
    if len(text) - start <= size:
        return 0
    cut = text.rfind(" ", start + 1, start + size + 1)
    while cut > 0 and text[cut - 1] not in _LETTERS:
        cut = text.rfind(" ", start + 1, cut)
    if cut > 0:
        return cut
    place = _PLACE.search(text, start + size)
    return place.start() + 1 if place else 0


def _parts(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer that may be a sequence of sequences."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[name] for step in _parts(inner, name)]
    return [part]


def _lies_across_no_cut(token: dict[str, Any]) -> bool:
    text = token["content"]
    if re.search(r"\S\s", text) or (token["single_word"] and text[:1].isspace()):
        return False
    return not (token["rstrip"] and text[-1:] in _LETTERS)


def _splits(steps: list[dict[str, Any]]) -> bool:
    """Whether the pre-tokenizers split at every place between a letter and a space, whatever stands around it."""
    for number, step in enumerate(steps):
        kind = step["type"]
        if (
            kind in _AT_WHITESPACE
            or (kind == "Metaspace" and step["split"])
            or (kind == "ByteLevel" and step["use_regex"])
            or (kind == "Split" and _splits_before_spaces(step))
        ):
            return not any(later["type"] == "Metaspace" for later in steps[number + 1 :])  # it may ask where in the text it is
        if kind not in _BY_CHARACTER:
            return False
    return False


def _splits_before_spaces(step: dict[str, Any]) -> bool:
    if step["invert"]:
        return False
    if step["pattern"] == {"String": " "}:
        return step["behavior"] in ("Isolated", "Removed", "MergedWithNext")
    return step["pattern"].get("Regex") in _EXPRESSIONS and step["behavior"] == "Isolated"
