"""Blocked Bloom filter of all n-grams of a corpus: the set that the guard consults at every generated token.

Bloom, CACM 1970; blocked as in Putze, Sanders and Singler, JEA 2009: a key touches one block of 512 bits (one cache line), in
which it sets k bits. A membership test has no false negatives; false positives only make the guard block too much.

**Two stages.** Every n-gram also enters its *group*, the context with the last id divided by 512, as a key of its own with only
six bits. A test reads the group first; of the groups that hold nothing one in 64 passes. So all ids that may end an n-gram are
found in some ten microseconds for a vocabulary of 50,000 (40 when a model's forward pass has emptied the caches), instead of one
look-up an id, and almost all n-grams that are not in the corpus are blocked 64 times less often than the asked rate. The asked rate
itself holds for those that share context and group with one that is. Four bits a group take a fifth less space and three times
the time, because every group that passes for nothing costs 512 cache lines.

The hash is in `bloom_hash`, the size in `bloom_size`.

File: magic, header length, SHA-256 of the header, JSON header, zeros up to a page, the bits (little-endian, memory-mapped).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.corpus import bloom_hash
from palimpsest.corpus.bloom_size import BLOCK_BITS, blocks_and_probes
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError, TokenizerMismatchError
from palimpsest.files import atomic_path, require_space

if TYPE_CHECKING:
    from palimpsest.corpus.index import CorpusIndex

MAGIC = b"PLMBLOOM"
VERSION = 1  # of the format and of the hash
PAGE = 4096


class BloomFilter:
    """A set of n-grams of token ids that may answer "yes" wrongly, at most at `fp_rate`, and never "no" wrongly.

    Args:
        n: tokens of an n-gram, at least 1.
        capacity: the greatest number of distinct n-grams that it will hold.
        fp_rate: the asked rate of false positives, see above; in (0, 0.5].
        tokenizer_fingerprint: of the tokenizer that made the ids, None when it is not known.

    Attributes:
        bits: uint64 (blocks, 8).
        probes: k, bits of an n-gram.
        count: distinct n-grams held (a lower bound, short by at most the share `fp_rate`).

    Raises:
        InputError: a value out of range.

    Example:
        >>> bloom = BloomFilter.from_documents([[1, 2, 3, 4], [5, 6, 7]], n=3)
        >>> bloom.contains([[1, 2, 3], [3, 4, 5]]).tolist()
        [True, False]
        >>> bloom.contains_next([[1, 2]], [[3, 4]]).tolist()
        [[True, False]]
    """

    def __init__(self, n: int, capacity: int, fp_rate: float = 0.01, *, tokenizer_fingerprint: str | None = None) -> None:
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise InputError(f"n is {n!r}.", "An n-gram has an integer number of tokens, at least 1.")
        if capacity < 1:
            raise InputError(f"The capacity is {capacity}.", "Give the number of n-grams that the filter will hold, at least 1.")
        if not 0 < fp_rate <= 0.5:
            raise InputError(f"The false-positive rate is {fp_rate}.", "Give a number in (0, 0.5], for example 0.01.")
        self.n, self.capacity, self.fp_rate = int(n), int(capacity), float(fp_rate)
        self.tokenizer_fingerprint = tokenizer_fingerprint
        blocks, self.probes = blocks_and_probes(self.capacity, self.fp_rate)
        self.bits = np.zeros((blocks, BLOCK_BITS // 64), dtype=np.uint64)
        self.count = 0

    @classmethod
    def from_documents(
        cls,
        docs: Iterable[Sequence[int] | np.ndarray],
        n: int,
        fp_rate: float = 0.01,
        *,
        tokenizer_fingerprint: str | None = None,
    ) -> BloomFilter:
        """The filter of every n-gram of `docs`, sized for the case that all of them differ.

        Raises:
            InputError: no document has n tokens, or one is not a row of ids.
        """
        rows = [_row(doc) for doc in docs]
        positions = sum(max(0, len(row) - n + 1) for row in rows)
        if not positions:
            raise InputError(f"None of the {len(rows)} documents has {n} tokens.", "Choose a smaller n or give longer documents.")
        bloom = cls(n, positions, fp_rate, tokenizer_fingerprint=tokenizer_fingerprint)
        bloom.add_documents(rows)
        return bloom

    @classmethod
    def from_index(
        cls, index: CorpusIndex, n: int, fp_rate: float = 0.01, *, progress: Callable[[int, int], None] | None = None
    ) -> BloomFilter:
        """The filter of every n-gram of an index's documents, which are streamed one by one.

        Args:
            progress: called with (documents done, documents in all).

        Raises:
            InputError: as `from_documents`.
        """
        bloom = cls(n, max(index.n_tokens, 1), fp_rate, tokenizer_fingerprint=index.tokenizer_fingerprint)
        for number in range(index.n_documents):
            bloom.add_documents([index.document_ids(number)])
            if progress:
                progress(number + 1, index.n_documents)
        if not bloom.count:
            raise InputError(f"None of the {index.n_documents} documents has {n} tokens.", "Choose a smaller n.")
        return bloom

    def add_documents(self, docs: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Adds every n-gram of every document; no n-gram crosses from one document into the next.

        Raises:
            InputError: a document is not a row of ids, the filter is read-only, or it holds more than `capacity` n-grams.
        """
        if not self.bits.flags.writeable:
            raise InputError("This Bloom filter is memory-mapped and cannot grow.", 'Load it with mode="ram".')
        for doc in docs:
            self.count += bloom_hash.add(self.bits, _row(doc), self.n, self.probes)
            if self.count > self.capacity:
                raise InputError(
                    f"The Bloom filter was sized for {self.capacity} n-grams and now holds {self.count}.",
                    "Build it with a larger capacity: past it, it would block too much.",
                )

    def contains(self, ngrams: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Which of `ngrams` (M, n) are in the set: bool (M,).

        Raises:
            InputError: not a table of n columns of non-negative integers.
        """
        table = _table(ngrams, self.n)
        return bloom_hash.contains_next(self.bits, table[:, :-1], np.ascontiguousarray(table[:, -1:]), self.probes)[:, 0]

    def contains_next(self, contexts: Sequence[Sequence[int]] | np.ndarray, candidates: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Which candidates for the next token would end an n-gram of the set: bool (B, K).

        Args:
            contexts: the last n - 1 ids of each row, (B, n - 1).
            candidates: ids, (B, K).

        Raises:
            InputError: tables that do not fit each other or hold anything but non-negative integers.
        """
        before = _table(contexts, self.n - 1)
        after = _table(candidates, None)
        if len(before) != len(after):
            raise InputError(f"{len(before)} contexts meet {len(after)} rows of candidates.", "Give one row of candidates a context.")
        return bloom_hash.contains_next(self.bits, before, after, self.probes)

    def next_tokens_batch(self, contexts: Sequence[Sequence[int]] | np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Every id below `vocab_size` that would end an n-gram of the set, for each context.

        Returns:
            offsets int64 (B + 1,) and ids int64: those of row b are ids[offsets[b]:offsets[b + 1]], ascending.

        Raises:
            InputError: contexts is not (B, n - 1).
        """
        return bloom_hash.next_tokens(self.bits, _table(contexts, self.n - 1), vocab_size, self.probes)

    def merge(self, other: BloomFilter) -> None:
        """Adds everything that `other` holds, for example a filter of another part of the corpus built with the same capacity.

        Raises:
            InputError: filters of different n, size or tokenizer, or together more than the capacity.
        """
        same = (self.n, self.probes, self.bits.shape) == (other.n, other.probes, other.bits.shape)
        if not same:
            raise InputError(
                f"A filter of n={self.n} with {len(self.bits)} blocks cannot take one of n={other.n} with {len(other.bits)}.",
                "Build both with the same n, capacity and false-positive rate.",
            )
        if self.tokenizer_fingerprint != other.tokenizer_fingerprint:
            raise TokenizerMismatchError("The two Bloom filters belong to different tokenizers.", "Build both with one tokenizer.")
        if self.count + other.count > self.capacity:
            raise InputError(
                f"{self.count} and {other.count} n-grams are more than the capacity {self.capacity}.",
                "Build every part with the capacity of the whole corpus.",
            )
        if not self.bits.flags.writeable:
            raise InputError("This Bloom filter is memory-mapped and cannot grow.", 'Load it with mode="ram".')
        self.bits |= other.bits
        self.count += other.count

    def expected_fp_rate(self) -> float:
        """The rate of false positives that the bits now set imply for an n-gram whose group is in the set (exact)."""
        filled = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64) / BLOCK_BITS
        return float(np.mean(filled**self.probes))

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return int(self.bits.nbytes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the filter to one file, atomically.

        Raises:
            StorageError: no space or no permission.
        """
        bits = np.ascontiguousarray(self.bits, dtype="<u8")
        header: dict[str, Any] = {
            "version": VERSION,
            "n": self.n,
            "capacity": self.capacity,
            "fp_rate": self.fp_rate,
            "probes": self.probes,
            "group_probes": bloom_hash.GROUP_PROBES,
            "blocks": len(self.bits),
            "count": self.count,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "sha256": _digest(bits),
        }
        text = json.dumps(header, sort_keys=True).encode()
        head = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
        require_space(Path(path).parent, bits.nbytes + 2 * PAGE)
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            stream.write(head + bytes(-len(head) % PAGE))
            bits.tofile(stream)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mode: str = "mmap", verify: bool = True) -> BloomFilter:
        """Reads what `save` wrote.

        Args:
            mode: "mmap" leaves the bits on the disk and is read-only; "ram" reads them.
            verify: compare the hash of the bits (reads the whole file once).

        Raises:
            InputError: no such file, or an unknown mode.
            IndexVersionError: written in another format version.
            IndexCorruptError: not such a file, cut short, or changed.
        """
        path = Path(path)
        if mode not in ("mmap", "ram"):
            raise InputError(f"The mode {mode!r} is unknown.", 'Give "mmap" or "ram".')
        if not path.is_file():
            raise InputError(f"There is no Bloom filter {path}.", "Build one with: palimpsest guard build CORPUS --out FILE.")
        header, start = _read_header(path)
        shape = (header["blocks"], BLOCK_BITS // 64)
        if path.stat().st_size != start + shape[0] * BLOCK_BITS // 8:
            raise IndexCorruptError(f"{path} does not have the size that its header says.", "Build the filter again.")
        bits = np.asarray(np.memmap(path, dtype="<u8", mode="r", offset=start, shape=shape))
        if verify and _digest(bits) != header["sha256"]:
            raise IndexCorruptError(f"The bits of {path} do not match their hash.", "Build the filter again.")
        bloom = cls.__new__(cls)
        bloom.n, bloom.capacity, bloom.fp_rate = header["n"], header["capacity"], header["fp_rate"]
        bloom.probes, bloom.count = header["probes"], header["count"]
        bloom.tokenizer_fingerprint = header["tokenizer_fingerprint"]
        bloom.bits = bits if mode == "mmap" else np.array(bits, dtype=np.uint64)
        return bloom


def _digest(bits: np.ndarray) -> str:
    """SHA-256 (hex) of the bits, without a copy of them."""
    return hashlib.sha256(bits.data).hexdigest()


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a filter's file and the offset of its bits."""
    with open(path, "rb") as stream:
        fixed = stream.read(48)
        if len(fixed) < 48 or not fixed.startswith(MAGIC):
            raise IndexCorruptError(f"{path} is not a Bloom filter, or was cut short.", "Build the filter again.")
        length = int.from_bytes(fixed[8:16], "little")
        text = stream.read(min(length, 1 << 20))
    if len(text) != length or hashlib.sha256(text).digest() != fixed[16:48]:
        raise IndexCorruptError(f"The header of {path} is damaged.", "Build the filter again.")
    header = json.loads(text)
    if header["version"] != VERSION or header["group_probes"] != bloom_hash.GROUP_PROBES:
        raise IndexVersionError(
            f"{path} has format version {header['version']}, this program reads {VERSION}.", "Build the filter again with this version."
        )
    return header, -(-(48 + length) // PAGE) * PAGE


def _row(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """One document as int64 ids, checked."""
    row = np.asarray(ids)
    if row.ndim == 1 and row.size == 0:
        return np.zeros(0, dtype=np.int64)
    if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
        raise InputError(f"A document has shape {row.shape} and type {row.dtype}.", "Give a row of token ids for each.")
    if int(row.min()) < 0 or int(row.max()) > np.iinfo(np.int32).max:
        raise InputError(f"A document holds the ids {row.min()} to {row.max()}.", "Token ids lie between 0 and 2^31 - 1.")
    return np.ascontiguousarray(row, dtype=np.int64)


def _table(ids: Sequence[Sequence[int]] | np.ndarray, columns: int | None) -> np.ndarray:
    """A table of ids as int64, checked; `columns` None allows any width."""
    table = np.asarray(ids)
    if table.size == 0 and table.ndim <= 2:  # lists without ids have no type, and perhaps no second dimension
        table = np.zeros((len(table), columns or 0), dtype=np.int64) if table.ndim < 2 else table.astype(np.int64)
    if table.ndim != 2 or not np.issubdtype(table.dtype, np.integer) or (columns is not None and table.shape[1] != columns):
        wanted = "any number of" if columns is None else str(columns)
        raise InputError(f"A table of ids has shape {table.shape} and type {table.dtype}.", f"Give rows of {wanted} integers.")
    if table.size and int(table.min()) < 0:
        raise InputError(f"A table of ids holds {table.min()}.", "Token ids are not negative.")
    return table.astype(np.int64, copy=False)
