"""The lines of a JSON lines file, plain or packed with gzip or Zstandard; an archive that ends too early is refused."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from palimpsest.errors import CorpusError

_CHUNK = 1 << 20


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a JSON lines file, unpacked, each with its line break."""
    if path.name.endswith(".gz"):
        yield from _split(_gunzip(path))
    elif path.name.endswith(".zst"):
        yield from _split(_unzstd(path))
    else:
        with open(path, "rb") as stream:
            yield from stream


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # of a line that has not ended yet
    for block in blocks:
        *whole, rest = block.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line, b"\n"])
            parts = []
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _gunzip(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as stream:
            while block := stream.read(_CHUNK):
                yield block
    except EOFError as error:
        raise CorpusError(f"{path} is truncated: the gzip stream has no end.", "Fetch or write the file again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{path} is damaged or not gzip: {error}.", "Fetch or write the file again.") from error


def _unzstd(path: Path) -> Iterator[bytes]:
    try:
        frame = None  # the frame that is being read; a file may hold several
        with open(path, "rb") as stream:
            while block := stream.read(_CHUNK):
                while block:
                    if frame is None:
                        frame = zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(block)
                    block = frame.unused_data if frame.eof else b""
                    if frame.eof:
                        frame = None
        if frame is not None:
            raise CorpusError(f"{path} is truncated: the Zstandard frame has no end.", "Fetch or write the file again.")
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} is damaged or not Zstandard: {error}.", "Fetch or write the file again.") from error
