"""infini-gram's index folder, read and written: `tokenized.i`, `table.i`, `offset.i`, and where they are `metadata.i`, `metaoff.i`.

The layout is that of Liu et al., *Infini-gram*, COLM 2024, arXiv 2401.17377, package version 2.6 (index version 4), shard by shard:

    tokenized.i   u8|u16|u32 little-endian, the greatest value of the type before every document: our `tokens.i` to the byte
    offset.i      u64: byte at which each document's separator stands in tokenized.i
    table.i       one pointer for every token of tokenized.i: its byte offset, little-endian in w = ceil(log2(bytes) / 8) bytes
    metadata.i    a line of JSON {"path", "linenum", "metadata"} a document;  metaoff.i  u64: where each line begins

Its table is sorted by the *bytes* of the tokens as they lie in memory, low byte first; ours by the ids. So the table is sorted anew,
as the suffix array of the tokens with their bytes reversed, and an import sorts anew as well. One byte a token makes both orders one.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus.documents import Document
from palimpsest.corpus.shard import Shard
from palimpsest.corpus.suffix_array import choose_builder, suffix_array
from palimpsest.corpus.tokens import DTYPES, separator
from palimpsest.errors import CorpusError, IndexCorruptError, InputError, StorageError
from palimpsest.files import require_space, storage_errors

_STRIP = 1 << 22  # pointers that are written at once
_SHARD_FILE = re.compile(r"(tokenized|offset|table)\.(0|[1-9]\d{0,8})")


def export_folder(shards: list[Shard], dtype: np.dtype, out: Path) -> None:
    """Writes the shards of an index as infini-gram's folder; called as `CorpusIndex.export_infini_gram`.

    Raises:
        StorageError: `out` is there already, or cannot be written.
    """
    if out.exists():
        raise StorageError(f"{out} is there already.", "Choose another folder, or remove this one.")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        size = sum(shard.arrays[0].size for shard in shards)
        require_space(out.parent, size * (dtype.itemsize + _pointer_width(size * dtype.itemsize)))
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for number, shard in enumerate(shard for shard in shards if shard.docs.size):  # one may have lost all documents
                _export_shard(temporary, number, shard, dtype)
            temporary.chmod(0o755)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _export_shard(folder: Path, number: int, shard: Shard, dtype: np.dtype) -> None:
    tokens, starts = shard.arrays[0], shard.docs - 1  # infini-gram's documents begin with their separator
    whole = shard.stretches() == [(0, tokens.size)]
    if not whole:  # deleted documents are not written
        tokens = np.concatenate([tokens[start:end] for start, end in shard.stretches()])
        starts = np.cumsum(shard.after - shard.docs) - (shard.after - shard.docs)
    tokens.tofile(folder / f"tokenized.{number}")
    (starts * dtype.itemsize).astype("<u8").tofile(folder / f"offset.{number}")
    table = shard.arrays[1] if dtype.itemsize == 1 and whole else _byte_order(tokens)
    width = _pointer_width(tokens.nbytes)
    with open(folder / f"table.{number}", "wb") as stream:
        for start in range(0, table.size, _STRIP):
            pointers = table[start : start + _STRIP].astype("<u8") * dtype.itemsize
            stream.write(np.ascontiguousarray(pointers.view(np.uint8).reshape(-1, 8)[:, :width]).data)
    begin = 0
    begins = []
    with open(folder / f"metadata.{number}", "wb") as stream:
        for local in range(shard.docs.size):
            name, metadata = shard.document(local)
            record = json.dumps({"path": name, "linenum": 0, "metadata": metadata}, ensure_ascii=False)
            line = record.encode(errors="backslashreplace") + b"\n"  # a name's bytes that are not UTF-8 become JSON's own escapes
            begins.append(begin)
            begin += stream.write(line)
    np.array(begins, "<u8").tofile(folder / f"metaoff.{number}")


def _byte_order(tokens: np.ndarray) -> np.ndarray:
    """The suffix array of `tokens` in the order of their little-endian bytes."""
    turned = tokens.byteswap()
    greatest = separator(tokens.dtype)
    top = int(turned[turned != greatest].max(initial=0))
    return suffix_array(turned, top, choose_builder("auto", turned.size, top))


def _pointer_width(size: int) -> int:
    """Bytes of a pointer into `size` bytes."""
    return math.ceil(math.log2(max(size, 2)) / 8)


class InfiniGramFolder:
    """The documents of an infini-gram folder, to be read any number of times: what `CorpusIndex.build` takes.

    Args:
        folder: holds tokenized.0, tokenized.1, … and offset.i; table.i tells the type when `token_dtype` is None.
        token_dtype: "u8", "u16", "u32".

    Raises:
        CorpusError: no such folder.
        IndexCorruptError: a file is missing, cut short, or does not fit the others.
        InputError: an unknown type, or one that cannot be told.

    Example:
        >>> docs = InfiniGramFolder("pile.index")                              # doctest: +SKIP
        >>> CorpusIndex.build(docs, tokenizer, "pile", token_dtype=docs.token_dtype)   # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, token_dtype: str | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / "tokenized.0").is_file():
            raise CorpusError(f"{self.folder} is no infini-gram index: it has no tokenized.0.", "Give the folder that holds tokenized.0.")
        self.shards = self._count_shards()
        if token_dtype is not None and token_dtype not in DTYPES:
            raise InputError(f"The token type {token_dtype!r} is unknown.", f"Choose one of {', '.join(DTYPES)}.")
        self.token_dtype = token_dtype or self._tell_dtype()

    def _count_shards(self) -> int:
        """How many shards the files are of: a shard that any of them has is one that must be whole."""
        names = (_SHARD_FILE.fullmatch(path.name) for path in self.folder.iterdir())
        numbers = {int(name[2]) for name in names if name}
        for number in range(max(numbers) + 1):
            if not (self.folder / f"tokenized.{number}").is_file():
                raise IndexCorruptError(
                    f"{self.folder} has files of shard {max(numbers)}, but no tokenized.{number}.", "Fetch the index again."
                )
        return max(numbers) + 1

    def _tell_dtype(self) -> str:
        """The type whose number of tokens and pointers fit table.0."""
        table = self.folder / "table.0"
        size = (self.folder / "tokenized.0").stat().st_size
        if not table.is_file():
            raise InputError(f"{self.folder} has no table.0 that would tell the type of its tokens.", "Give it: token_dtype.")
        for name, dtype in DTYPES.items():
            if size % dtype.itemsize == 0 and table.stat().st_size == size // dtype.itemsize * _pointer_width(size):
                return name
        raise IndexCorruptError(
            f"{table} has not one pointer for every token of tokenized.0.", "Fetch the index again, or name token_dtype."
        )

    def __iter__(self) -> Iterator[Document]:
        dtype = DTYPES[self.token_dtype]
        for number in range(self.shards):
            tokens, starts = self._shard(number, dtype)
            lines = self._metadata(number, starts.size)
            ends = np.append(starts[1:], tokens.size)
            for local, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                known = next(lines)
                path, line = known.get("path"), known.get("linenum") or 0
                if path is None:  # it has no name: it is called by its place
                    path, line = f"tokenized.{number}", local
                name = f"{path}:{line}" if line or known.get("path") is None else str(path)
                yield Document(name, ids=tokens[start + 1 : end].astype(np.int64), metadata=dict(known.get("metadata") or {}))
            if next(lines, None) is not None:
                raise IndexCorruptError(f"metadata.{number} has more than {starts.size} lines, one a document.", "Fetch the index again.")

    def _shard(self, number: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and the places of their separators, checked against each other."""
        paths = [self.folder / f"{part}.{number}" for part in ("tokenized", "offset")]
        for path, width in zip(paths, (dtype.itemsize, 8), strict=True):
            if not path.is_file() or path.stat().st_size % width or not path.stat().st_size:
                raise IndexCorruptError(f"{path} is missing, empty or cut short.", "Fetch the index again.")
        size, table = paths[0].stat().st_size, self.folder / f"table.{number}"
        if table.is_file() and table.stat().st_size != size // dtype.itemsize * _pointer_width(size):
            raise IndexCorruptError(f"{table} has not one pointer for every token of tokenized.{number}.", "Fetch the index again.")
        tokens = np.memmap(paths[0], dtype, "r").view(np.ndarray)
        offsets = np.fromfile(paths[1], "<u8").astype(np.int64)
        starts = offsets // dtype.itemsize
        fits = starts[0] == 0 and starts[-1] < tokens.size and (np.diff(starts) > 0).all() and not (offsets % dtype.itemsize).any()
        if not fits or not np.array_equal(starts, np.flatnonzero(tokens == separator(dtype))):
            raise IndexCorruptError(f"{paths[1]} does not say where the documents of tokenized.{number} begin.", "Fetch the index again.")
        return tokens, starts

    def _metadata(self, number: int, documents: int) -> Iterator[dict[str, Any]]:
        """What is known of each document of a shard; an empty dict for all where there is no metadata."""
        path = self.folder / f"metadata.{number}"
        if not path.is_file():
            for _ in range(documents):
                yield {}
            return
        count = 0
        with open(path, "rb") as stream:
            for count, line in enumerate(stream, 1):
                try:
                    value = json.loads(line.decode())
                except ValueError as error:
                    raise IndexCorruptError(f"{path}, line {count}, is not JSON: {error}.", "Fetch the index again.") from error
                if not isinstance(value, dict) or not isinstance(value.get("metadata") or {}, dict):
                    raise IndexCorruptError(f"{path}, line {count}, is no record of a document.", "Fetch the index again.")
                yield value
        if count != documents:
            raise IndexCorruptError(f"{path} has {count} lines for {documents} documents.", "Fetch the index again.")
