"""The log of everything that was done to a governed memory: append-only, each entry chained to the one before it by hash.

One line of canonical JSON an entry, written through to the disk before the caller goes on:

    hash_k = SHA-256(canonical JSON of entry k without its hash),   entry k holds seq = k and prev_hash = hash_{k−1}

so that a byte changed anywhere is found at its own `seq`. Who can write the file can also write it anew from some entry on, or cut off
its end; against that helps only a head that is kept elsewhere (`verify(head=…)`), such as the one in an evaluation card.

A `certificate` proves that an entry is in the log to one who holds only the root of a Merkle tree over all entries
(leaves SHA-256(0 ‖ hash), nodes SHA-256(1 ‖ left ‖ right), a tree of n leaves split at the greatest power of two below n; RFC 6962 §2.1).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palimpsest.errors import InputError, LedgerBrokenError
from palimpsest.files import canonical_json, sha256_json, storage_errors
from palimpsest.measurement import plain

START = "0" * 64  # prev_hash of the first entry
_OWN = ("seq", "prev_hash", "time", "hash")


class Ledger:
    """An append-only, hash-chained log in a JSONL file.

    Args:
        path: the file; it need not exist.

    Example:
        >>> import tempfile
        >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "ledger.jsonl")
        >>> ledger.append({"actor": "me", "event": "began"})["seq"]
        0
        >>> ledger.verify()
        1
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._read: tuple[tuple[int, int], list[dict[str, Any]]] | None = None

    def append(self, entry: dict[str, Any], *, time: datetime | None = None) -> dict[str, Any]:
        """Adds an entry and returns it with `seq`, `prev_hash`, `time` and `hash`; on return it is on the disk.

        The whole chain is read and checked first, under a lock, so that two writers cannot fork it and nothing is built on a broken log.

        Args:
            entry: plain JSON types.
            time: with a zone; now by default.

        Raises:
            InputError: the entry uses a name of the log's own, cannot be written as JSON, or `time` has no zone.
            LedgerBrokenError: the log is broken; it is left as it is.
            StorageError: the file cannot be written.
        """
        taken = [name for name in _OWN if name in entry]
        if taken:
            raise InputError(f"The entry sets {', '.join(taken)} itself.", "These are the log's own; choose other names.")
        when = time or datetime.now(UTC)
        if when.tzinfo is None:
            raise InputError(f"The time {when} has no zone.", "Give a datetime with tzinfo, such as datetime.now(UTC).")
        try:
            sha256_json(plain(entry))
        except ValueError as error:
            raise InputError(f"The entry cannot be written: {error}.", "Give finite numbers, and text that UTF-8 has.") from error
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.seek(0)
                entries = _checked(stream.read(), self.path)
                full = {**plain(entry), "seq": len(entries), "prev_hash": entries[-1]["hash"] if entries else START}
                full["time"] = when.astimezone(UTC).isoformat()
                full["hash"] = sha256_json(full)
                stream.write(canonical_json(full).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        return full

    def entries(self) -> list[dict[str, Any]]:
        """All entries, first to last; read and checked again whenever the file's size or time of change is another.

        Raises:
            LedgerBrokenError: the chain is broken; the error names the first bad `seq`.
        """
        if not self.path.is_file():
            return []
        stamp = (self.path.stat().st_size, self.path.stat().st_mtime_ns)
        if self._read is None or self._read[0] != stamp:
            self._read = (stamp, _checked(self.path.read_bytes(), self.path))
        return list(self._read[1])

    def verify(self, head: str | None = None) -> int:
        """Reads the file, checks every hash and returns how many entries there are.

        Args:
            head: a hash that the log is known to have had as its last at some time; finds what was cut off or written anew since.

        Raises:
            LedgerBrokenError: with `.seq`, the first entry that is not what was written.
        """
        self._read = None
        entries = self.entries()
        if head is not None and head not in [START, *(entry["hash"] for entry in entries)]:
            raise LedgerBrokenError(
                f"{self.path} no longer holds the entry {head[:12]} that it once ended with: its end was cut off or written anew.",
                "Take the log from a backup that holds this entry.",
                seq=len(entries),
            )
        return len(entries)

    @property
    def head(self) -> str:
        """Hash of the last entry; 64 zeros while there is none."""
        entries = self.entries()
        return entries[-1]["hash"] if entries else START

    def certificate(self, seq: int) -> Certificate:
        """The proof that entry `seq` is in the log as it now stands.

        Raises:
            InputError: there is no such entry.
            LedgerBrokenError: the chain is broken.
        """
        entries = self.entries()
        if not 0 <= seq < len(entries):
            raise InputError(f"There is no entry {seq}.", f"The log has {len(entries)}, numbered from 0.")
        leaves = [_leaf(entry["hash"]) for entry in entries]
        return Certificate(entries[seq], len(entries), tuple(part.hex() for part in _path(seq, leaves)), _root(leaves).hex())


@dataclass(frozen=True)
class Certificate:
    """That an entry is in a log of `size` entries with the Merkle root `root`.

    Attributes:
        entry: the entry.
        size: entries of the log.
        path: hashes (hex) of the sibling subtrees, from the leaf up.
        root: of the tree (hex).
    """

    entry: dict[str, Any]
    size: int
    path: tuple[str, ...]
    root: str

    def holds(self) -> bool:
        """Whether the entry hashes to its own hash, and this through `path` to `root`."""
        body = {name: value for name, value in self.entry.items() if name != "hash"}
        if sha256_json(body) != self.entry.get("hash"):
            return False
        node, rest = _leaf(self.entry["hash"]), [bytes.fromhex(part) for part in self.path]
        sides = _sides(int(self.entry["seq"]), self.size)
        if len(sides) != len(rest):
            return False
        for on_left, sibling in zip(sides, rest, strict=True):
            node = _node(sibling, node) if on_left else _node(node, sibling)
        return node.hex() == self.root


def _checked(data: bytes, path: Path) -> list[dict[str, Any]]:
    """The entries of a log's bytes, after every one has been checked."""
    lines = data.split(b"\n")
    torn = lines.pop()
    previous, entries = START, []
    for seq, line in enumerate(lines):
        try:
            entry = json.loads(line)
            body = {name: value for name, value in entry.items() if name != "hash"}
            right = canonical_json(entry).encode() == line and entry["seq"] == seq and entry["prev_hash"] == previous
            right = right and sha256_json(body) == entry["hash"]
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            right = False
        if not right:
            raise LedgerBrokenError(
                f"{path} is broken at seq {seq} (line {seq + 1}): the entry is not what was written, or does not follow the one before it.",
                "Take the log from a backup, and ask who could write to it.",
                seq=seq,
            )
        previous = entry["hash"]
        entries.append(entry)
    if torn:
        raise LedgerBrokenError(
            f"{path} is broken at seq {len(entries)}: its last line was not written to the end.",
            "If the machine went down while writing, remove this one line: nothing was done on the strength of it.",
            seq=len(entries),
        )
    return entries


def _leaf(digest: str) -> bytes:
    return hashlib.sha256(b"\x00" + bytes.fromhex(digest)).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(n: int) -> int:
    """The greatest power of two below n."""
    return 1 << (n - 1).bit_length() - 1


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return _node(_root(leaves[:k]), _root(leaves[k:]))


def _path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if m < k:
        return [*_path(m, leaves[:k]), _root(leaves[k:])]
    return [*_path(m - k, leaves[k:]), _root(leaves[:k])]


def _sides(m: int, n: int) -> list[bool]:
    """From the leaf up, whether the sibling stands on the left."""
    if n == 1:
        return []
    k = _split(n)
    return [*_sides(m, k), False] if m < k else [*_sides(m - k, n - k), True]
