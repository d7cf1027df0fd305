"""The text and the bytes of single tokens, as OpenAI's log-probs show them.

A token is often no text of its own: half of a character, or a word whose space only shows behind another word. So a token is decoded
behind an ordinary one, and where that gives no whole character its bytes are read off its name in the vocabulary, which byte-level
vocabularies write with one printable character a byte (Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019)
and SentencePiece's byte fallback as <0xE2>.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from palimpsest.tokenizer import Tokenizer

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_names() -> dict[str, int]:
    """The printable character that stands for every byte in a byte-level vocabulary: the byte's own, or one from 256 on."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_names()


@dataclass
class TokenTexts:
    """Texts and bytes of the tokens of a tokenizer; both are remembered.

    Args:
        tokenizer: the tokenizer.

    Example:
        >>> TokenTexts(tokenizer).raw(tokenizer.encode(" the")[0])     # doctest: +SKIP
        b' the'
    """

    tokenizer: Tokenizer
    _known: dict[int, tuple[str, bytes | None]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._anchor = self.tokenizer.encode("a")[-1:]
        self._before = self.tokenizer.decode(self._anchor)

    def text(self, token: int) -> str:
        """The text that a token adds, or its bytes spelled out (`bytes:\\xe2\\x80`) where they are no whole characters."""
        return self._look_up(token)[0]

    def raw(self, token: int) -> bytes | None:
        """The bytes that a token adds; None where the tokenizer does not tell."""
        return self._look_up(token)[1]

    def _look_up(self, token: int) -> tuple[str, bytes | None]:
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> tuple[str, bytes | None]:
        text = self.tokenizer.decode([*self._anchor, token])[len(self._before) :]
        if "\ufffd" not in text:
            return text, text.encode()
        name = self.tokenizer.backend.id_to_token(token) or ""
        found = _FALLBACK.fullmatch(name)
        if found:
            raw = bytes([int(found[1], 16)])
        elif name and all(character in BYTES for character in name):
            raw = bytes(BYTES[character] for character in name)
        else:
            return text, None
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw
