"""API keys: who may ask. Keys are kept as SHA-256 hashes, compared in constant time, and never written to a log.

A key is a long random string, so a plain hash is enough: there is no dictionary to try. Whoever asks is known in logs and limits by
the number of the key, or by the address when the server has no keys.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from palimpsest.errors import InputError, StorageError

SHORTEST = 16  # characters of a key; shorter ones can be guessed


class KeyRing:
    """The keys that open the server.

    Args:
        keys: the keys in the clear; none of them is kept. No keys let everybody in.

    Raises:
        InputError: a key that is too short, holds white space or characters that a header cannot carry, or stands there twice.

    Example:
        >>> ring = KeyRing(["correct-horse-battery-staple"])
        >>> ring.number("correct-horse-battery-staple"), ring.number("guess")
        (1, None)
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes: list[bytes] = []
        for number, key in enumerate(keys, 1):
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(
                    f"Key number {number} is shorter than {SHORTEST} characters, or holds white space or other than ASCII characters.",
                    "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'.",
                )
            digest = _hash(key)
            if digest in self._hashes:
                raise InputError(f"Key number {number} stands there twice.", "Give every key once.")
            self._hashes.append(digest)

    def __len__(self) -> int:
        return len(self._hashes)

    def number(self, key: str) -> int | None:
        """The number of a key, from 1, or None when it is none of them; takes the same time for all."""
        digest, found = _hash(key), None
        for number, known in enumerate(self._hashes, 1):
            if hmac.compare_digest(digest, known):
                found = number
        return found


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one a line; empty lines and lines that begin with # do not count.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is not UTF-8, or holds no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StorageError(f"The file of keys {path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The file of keys {path} is not UTF-8.", "Write one key a line.") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise InputError(f"The file of keys {path} holds no key.", "Write one key a line, or leave --api-key-file out.")
    return keys


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token of an `Authorization: Bearer …` header, or None."""
    for name, value in headers:
        if name.lower() == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else None
    return None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
