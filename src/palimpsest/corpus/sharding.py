"""The middle of a build: the staged documents are cut into shards of nearly equal length, all in strips, nothing mapped or held whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus.staging import STAGED
from palimpsest.corpus.tokens import separator
from palimpsest.corpus.workspace import Journal
from palimpsest.errors import InputError
from palimpsest.files import atomic_path

_STRIP = 1 << 22  # ids or bytes that are handled at once
_SMALL = 1 << 18  # bytes that are hashed sooner than a thread is asked to


def split_shards(work: Path, folder: Path, journal: Journal, staged: np.dtype, dtype: np.dtype, shards: int) -> None:
    """Cuts the staged documents into shards of nearly equal length and writes everything of them but the suffix arrays.

    The journal then has the size and SHA-256 of every file, but of staged tokens that have only been given a name the size alone.
    """
    start = lines = 0  # tokens and bytes of metadata in the shards before
    for shard, (first, last) in enumerate(pairwise(_shard_borders(work, staged, shards))):
        if (known := journal.entry("shard", shard)) is not None:
            start, lines = start + known["length"], lines + known["files"][f"meta.{shard}"]["bytes"]
            continue
        docs, offsets, meta = (folder / f"{part}.{shard}" for part in ("docs", "metaoff", "meta"))
        files = {docs.name: write_pieces(docs, _document_starts(work / STAGED[1], first, last))}
        length = _last(docs) - 1
        tokens = folder / f"tokens.{shard}"
        if shards > 1 or dtype != staged or not _linked(work / STAGED[0], tokens):
            strips = read_strips(work / STAGED[0], staged, start, length)
            if dtype != staged:
                strips = (np.minimum(strip, separator(dtype)).astype(dtype) for strip in strips)
            files[tokens.name] = write_pieces(tokens, strips)
        else:
            files[tokens.name] = {"bytes": tokens.stat().st_size}  # hashed with the content, while it is sorted
        files[offsets.name] = write_pieces(offsets, _line_starts(work / STAGED[2], lines, last - first))
        size = _last(offsets)
        files[meta.name] = write_pieces(meta, read_strips(work / STAGED[2], np.dtype(np.uint8), lines, size))
        start, lines = start + length, lines + size
        journal.append({"stage": "shard", "shard": shard, "length": length, "documents": last - first, "files": files})


def _linked(staged: Path, tokens: Path) -> bool:
    """Gives the staged tokens the name of the shard's without copying them; False where the file system does not do that.

    Nothing writes into the staged file before the journal has forgotten the shard, whose file is then removed.
    """
    with open(staged, "rb+") as stream:
        os.fsync(stream.fileno())
    try:
        os.link(staged, tokens)
    except OSError:
        return False
    return True


def _shard_borders(work: Path, staged: np.dtype, shards: int) -> list[int]:
    """The first document of every shard, and the number of all."""
    documents = (work / STAGED[1]).stat().st_size // 8
    if shards > documents:
        raise InputError(f"{documents} documents cannot fill {shards} shards.", f"Ask for at most {documents}.")
    targets = (work / STAGED[0]).stat().st_size // staged.itemsize * np.arange(1, shards) / shards
    borders = np.ones(shards + 1, np.int64)
    end = 0
    for lengths in read_strips(work / STAGED[1], np.dtype("<i8"), 0, documents):
        ends = end + np.cumsum(lengths + 1)
        borders[1:-1] += np.searchsorted(ends, targets, side="left")
        end = int(ends[-1])
    borders[0], borders[-1] = 0, documents
    for shard in range(1, shards):  # every shard has a document
        borders[shard] = min(max(borders[shard], borders[shard - 1] + 1), documents - (shards - shard))
    return borders.tolist()


def _document_starts(lengths: Path, first: int, last: int) -> Iterator[np.ndarray]:
    """Where documents begin in their shard, each after its separator, and where the next one would."""
    start = 1
    yield np.array([start], "<i8")
    for strip in read_strips(lengths, np.dtype("<i8"), first, last - first):
        starts = start + np.cumsum(strip + 1)
        yield starts.astype("<i8")
        start = int(starts[-1])


def _line_starts(meta: Path, begin: int, count: int) -> Iterator[np.ndarray]:
    """Where `count` lines from the byte `begin` on begin, counted from there, and where the next one would."""
    yield np.zeros(1, "<i8")
    done = 0
    for strip in read_strips(meta, np.dtype(np.uint8), begin, meta.stat().st_size - begin):
        breaks = np.flatnonzero(strip == ord("\n"))[:count]
        yield (breaks + done + 1).astype("<i8")
        count, done = count - breaks.size, done + strip.size
        if count == 0:
            return


def _last(path: Path) -> int:
    """The last int64 of a file."""
    return int(np.fromfile(path, "<i8", 1, offset=path.stat().st_size - 8)[0])


def read_strips(path: Path, dtype: np.dtype, start: int, count: int, strip: int | None = None) -> Iterator[np.ndarray]:
    """The entries start, …, start + count - 1 of a file, so many at once that the memory does not notice; never mapped."""
    strip = strip or _STRIP
    for at in range(start, start + count, strip):
        yield np.fromfile(path, dtype, min(strip, start + count - at), offset=at * dtype.itemsize)


def write_pieces(path: Path, pieces: Iterable[np.ndarray]) -> dict[str, Any]:
    """Writes arrays one after the other into a file, whole or not at all; its size and SHA-256, as the manifest has them."""
    digest, size = hashlib.sha256(), 0
    with ThreadPoolExecutor(1) as beside, atomic_path(path) as temporary, open(temporary, "wb") as stream:
        for piece in pieces:
            data = np.ascontiguousarray(piece).data
            if data.nbytes < _SMALL:
                digest.update(data)
                stream.write(data)
            else:
                hashed = beside.submit(digest.update, data)
                stream.write(data)
                hashed.result()
            size += data.nbytes
    return {"bytes": size, "sha256": digest.hexdigest()}
