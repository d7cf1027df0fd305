"""Documents and where they come from: text files, folders, JSON lines (plain, gzip, Zstandard), Parquet.

A reader yields `Document`s one by one and never holds a whole corpus. What cannot be read is refused with the file and the place:
the byte that is not UTF-8, the line without text, the archive that ends too early.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest.corpus.lines import lines
from palimpsest.corpus.manifest import is_index
from palimpsest.errors import CorpusError, InputError

_SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_CHUNK = 1 << 20
_LONG = 1 << 24  # bytes of a text file from which on it is read in strips
_FIRST_ROWS, _MOST_ROWS = 64, 8192  # rows of a Parquet file that are held at once: the first, and at most
_ROWS_SIZE = 1 << 24  # bytes of text that they are to have, as far as those before them tell


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        id: its name: the path in its folder, "path:line" or the record's own "id".
        text: its text, or None when only token ids are known.
        ids: its token ids, int (length,), or None when it has still to be tokenized. Where both are given, the ids count.
        metadata: whatever else is known of it, in JSON types.

    Raises:
        InputError: neither text nor ids, or ids that are not one row of integers.
    """

    id: str
    text: str | None = None
    ids: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.text is None and self.ids is None:
            raise InputError(f"The document {self.id!r} has neither text nor ids.", "Give one of them.")
        if not isinstance(self.text, str | None):
            raise InputError(f"The text of the document {self.id!r} is a {type(self.text).__name__}.", "Give a string.")
        if self.ids is not None:
            object.__setattr__(self, "ids", _as_ids(self.ids, self.id))

    @cached_property
    def characters(self) -> int:
        """How many characters its text has."""
        return len(self.text or "")

    def text_strips(self, size: int) -> Iterator[str]:
        """Its text, about `size` characters at a time."""
        text = self.text or ""
        yield from (text[start : start + size] for start in range(0, len(text), size))


class LongFile(Document):
    """A text file that is not held in memory: it is read anew whenever it is asked for its text, best in strips.

    Args:
        name: the document's name.
        path: the file.
    """

    def __init__(self, name: str, path: Path) -> None:
        for field_name, value in (("id", name), ("ids", None), ("metadata", {}), ("path", path)):
            object.__setattr__(self, field_name, value)

    @property
    def text(self) -> str:  # type: ignore[override]
        return "".join(self.text_strips(_CHUNK))

    @cached_property
    def characters(self) -> int:
        return sum(map(len, self.text_strips(_CHUNK)))

    def text_strips(self, size: int) -> Iterator[str]:
        path: Path = self.__dict__["path"]
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = 0
        try:
            with open(path, "rb") as stream:
                while True:
                    block = stream.read(size)
                    held = len(decoder.getstate()[0])  # the first bytes of a character that was cut
                    try:
                        text = decoder.decode(block, final=not block)
                    except UnicodeDecodeError as error:
                        raise _not_utf8(error, path, offset - held) from error
                    yield text.removeprefix("\ufeff") if offset == 0 else text
                    if not block:
                        return
                    offset += len(block)
        except PermissionError as error:
            raise CorpusError(f"{path} may not be read: {error.strerror}.", "Change its permissions.") from error


def read_documents(path: str | os.PathLike[str]) -> Iterator[Document]:
    """The documents of a file or a folder, in a fixed order.

    A text file (.txt, .md) is one document. A .jsonl file (also .gz, .zst) has one object a line with "text" and, if it likes, "id";
    a .parquet file has a column "text" and perhaps "id"; all their other fields become metadata. A folder is read recursively in
    the order of its paths; files of other kinds and hidden files are left out. Texts are taken as they stand, line breaks included.

    Args:
        path: file or folder.

    Yields:
        `Document`s with text.

    Raises:
        CorpusError: nothing to read there, bytes that are not UTF-8, a truncated archive, a record without text.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "genesis.txt").write_text("In the beginning")
        >>> [(d.id, d.text) for d in read_documents(folder)]
        [('genesis.txt', 'In the beginning')]
    """
    path = Path(path)
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise CorpusError(f"{path} is no kind of corpus that can be read.", f"Give a folder or a file named {', '.join(_SUFFIXES)}.")
        yield from _read_file(path, path.name)
        return
    if not path.is_dir():
        raise CorpusError(f"There is no corpus at {path}.", "Give the path of a file or a folder.")
    if is_index(path):
        raise CorpusError(f"{path} is an index, not a corpus.", "Open it with CorpusIndex.open, or give the folder of the texts.")
    found = False
    for name in sorted(_files(path)):
        found = True
        yield from _read_file(path / name, name)
    if not found:
        raise CorpusError(f"The folder {path} holds no corpus file.", f"Put files named {', '.join(_SUFFIXES)} there.")


Docs = str | os.PathLike[str] | Iterable[Document | str | Sequence[int] | np.ndarray]


def as_documents(docs: Docs) -> Iterator[Document]:
    """`docs` as `Document`s: a path is read, a text or a row of ids becomes a document named by its number."""
    if isinstance(docs, str | os.PathLike):
        yield from read_documents(docs)
        return
    if not isinstance(docs, Iterable):
        raise InputError(f"A {type(docs).__name__} is not a corpus.", "Give a path, or an iterable of Document, text or rows of ids.")
    for number, doc in enumerate(docs):
        if isinstance(doc, Document):
            yield doc
        elif isinstance(doc, str):
            yield Document(str(number), text=doc)
        else:
            yield Document(str(number), ids=doc)  # type: ignore[arg-type]


def _as_ids(given: Any, name: str) -> np.ndarray:
    try:
        ids = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The document {name!r} is a {type(given).__name__}: {error}.", "Give text, a Document or a row of ids."
        ) from error
    if ids.size == 0 and ids.ndim == 1:
        return ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(
            f"The ids of the document {name!r} are of shape {ids.shape} and type {ids.dtype}.",
            "Give text, a Document or one row of integer ids.",
        )
    return ids


def _files(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(_SUFFIXES) and not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _read_file(path: Path, name: str) -> Iterator[Document]:
    try:
        if name.endswith((".txt", ".md")):
            long = path.stat().st_size > _LONG
            yield LongFile(name, path) if long else Document(name, _decode(path.read_bytes(), path, 0))
        elif name.endswith(".parquet"):
            yield from _read_parquet(path, name)
        else:
            yield from _read_records(path, name)
    except PermissionError as error:
        raise CorpusError(f"{path} may not be read: {error.strerror}.", "Change its permissions.") from error


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, path, offset) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _not_utf8(error: UnicodeDecodeError, path: Path, offset: int) -> CorpusError:
    return CorpusError(
        f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start} ({error.reason}).",
        "Convert the file to UTF-8, for example with iconv.",
    )


def _read_records(path: Path, name: str) -> Iterator[Document]:
    offset = number = 0
    for line in lines(path):
        number, size = number + 1, len(line)
        record = _parse_record(_decode(line, path, offset), path, number)
        del line  # it may be long, and is not kept while the document is in work
        offset += size
        if record is not None:
            yield _from_record(record, f"{name}:{number}")
        del record


def _parse_record(text: str, path: Path, number: int) -> dict[str, Any] | None:
    """The object of a line of a JSON lines file; None for an empty line."""
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{path}, line {number} is not JSON: {error}.", "Write one JSON object a line; a broken last line means a truncated file."
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        what = f"has the fields {sorted(record)}" if isinstance(record, dict) else f"is a {type(record).__name__}"
        if isinstance(record, dict) and "text" in record:
            what = f'has a "text" that is a {type(record["text"]).__name__}'
        raise CorpusError(f"{path}, line {number} {what}.", 'Every line must be an object with a string "text".')
    return record


def _from_record(record: dict[str, Any], name: str) -> Document:
    text = record.pop("text")
    own = record.pop("id", None)
    return Document(name if own is None else str(own), text, metadata=record)


def _read_parquet(path: Path, name: str) -> Iterator[Document]:
    try:
        frame = pl.scan_parquet(path)
        columns = frame.collect_schema()
        if columns.get("text") != pl.String:
            kind = f"of type {columns['text']}" if "text" in columns else f"missing; there are {', '.join(columns) or 'no columns'}"
            raise CorpusError(f'{path}: the column "text" is {kind}.', 'Name the column with the documents "text"; it must hold strings.')
        row, step = 0, _FIRST_ROWS
        while True:
            rows = frame.slice(row, step).collect()
            size = int(rows["text"].str.len_bytes().sum())
            for record in rows.iter_rows(named=True):
                row += 1
                if record["text"] is None:
                    raise CorpusError(f'{path}, row {row} has no "text".', "Fill or drop the rows without text.")
                yield _from_record(record, f"{name}:{row}")
            if rows.height < step:
                return
            step = max(1, min(_MOST_ROWS, 2 * step, step * _ROWS_SIZE // max(size, 1)))
    except pl.exceptions.PolarsError as error:
        raise CorpusError(f"{path} is not a whole Parquet file: {error}.", "Write it again: it may be truncated.") from error
