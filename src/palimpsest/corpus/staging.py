"""The first half of a build: documents in batches, tokenized and appended to three files beside the journal.

A batch depends on nothing but the documents. Its journal entry holds a digest of what was read, the sizes of the staged files after
it and their running checksums; so a later build knows what it may keep, and whether the disk still has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus.documents import Document
from palimpsest.corpus.tokens import encode_documents, encode_long_document
from palimpsest.corpus.workspace import Journal
from palimpsest.errors import CorpusError, InputError
from palimpsest.tokenizer import Tokenizer

Progress = Callable[[str, int, int | None], None]
Batch = tuple[list[Document], list[bytes], str]  # documents, their metadata as JSON lines, a digest of all
Digest = Callable[[], str]  # gives that digest when it is there, or raises what is wrong with a document
Encoded = tuple[np.ndarray, np.ndarray, int]  # what `encode_documents` gives

STAGED = ("tokens.staged", "lengths.staged", "meta.staged")
_log = logging.getLogger(__name__)
_BATCH_DOCUMENTS = 2048
_BATCH_SIZE = 1 << 22  # characters or ids: some seconds of tokenizing, and several books, which are tokenized side by side
_STRIP = 1 << 22  # bytes, characters or ids that are checked at once
_NOTHING: dict[str, Any] = {"documents": 0, "sizes": [0, 0, 0], "top": -1, "checks": [0, 0, 0]}


def source_digest(digests: Iterable[str]) -> str:
    """One digest of all that was read, from those of the batches."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def batches(documents: Iterator[Document]) -> Iterator[Batch]:
    """Documents in batches that depend on nothing but the documents, with their metadata as JSON lines and a digest of all."""
    for batch in _groups(documents):
        lines = _lines(batch)
        yield batch, lines, _digest(batch, lines)
        del batch, lines


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for doc in documents:
        weight = _weight(doc)
        if batch and (len(batch) == _BATCH_DOCUMENTS or size + weight > _BATCH_SIZE):
            yield batch
            batch, size = [], 0
        batch.append(doc)
        size += weight
        if size > _BATCH_SIZE:  # no other fits in: a long document is not kept until the next has been read
            yield batch
            batch, size = [], 0
        del doc
    if batch:
        yield batch


def _lines(batch: list[Document]) -> list[bytes]:
    """Names and metadata of documents, a JSON object a line."""
    lines = []
    for doc in batch:
        try:
            lines.append(json.dumps({"id": str(doc.id), "metadata": doc.metadata}, default=str).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The metadata of the document {doc.id!r} has no place in JSON: {error}.", "Give strings and numbers."
            ) from error
    return lines


def _digest(batch: list[Document], lines: list[bytes]) -> str:
    digest = hashlib.sha256()
    for doc, line in zip(batch, lines, strict=True):
        if (ids := doc.ids) is None:
            kind, size, pieces = b"text", _size(doc), _text(doc)
        else:
            stored = _narrowest(ids)
            strips = (ids[start : start + _STRIP] for start in range(0, len(ids), _STRIP))
            kind, size, pieces = b"ids of %d bytes," % stored.itemsize, len(ids), (np.ascontiguousarray(s, stored).data for s in strips)
        digest.update(b"%d %s %d\n" % (len(line), kind, size))
        digest.update(line)
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def _size(doc: Document) -> int:
    """Bytes of a document's text in UTF-8."""
    size = 0
    try:
        for piece in _text(doc):
            size += len(piece)
    except UnicodeEncodeError as error:
        place = (doc.text or "").find(error.object[error.start])
        raise CorpusError(
            f"The text of the document {doc.id!r} is not Unicode: {error.reason} at character {place}.", "Remove the unpaired surrogate."
        ) from error
    return size


def _text(doc: Document) -> Iterator[bytes | memoryview]:
    """A document's text in UTF-8, in strips."""
    return (strip.encode() for strip in doc.text_strips(_STRIP))


def _narrowest(ids: np.ndarray) -> np.dtype:
    """The narrowest of u16, u32 and i64 that holds all ids, whatever type they come in: what is narrow is hashed sooner."""
    if ids.size == 0 or (ids.dtype.kind == "u" and ids.itemsize <= 2):
        return np.dtype("<u2")
    top = ids.max() if ids.min() >= 0 else 1 << 32
    return np.dtype("<u2" if top < 1 << 16 else "<u4" if top < 1 << 32 else "<i8")


def stage(
    documents: Iterator[Document],
    tokenizer: Tokenizer | None,
    dtype: np.dtype,
    work: Path,
    journal: Journal,
    progress: Progress,
    bound: int | None,
    engine: str = "local",
) -> dict[str, Any]:
    """Tokenizes all documents into the staging files, continuing after the batches that are there; returns the last state."""
    done = _keep_whole(work, journal)
    state = _NOTHING
    replayed = 0
    reading = _ahead(documents, [batch["digest"] for batch in done], tokenizer, dtype, work, engine)
    anew = False
    for batch, lines, digest, tokens in reading:
        if not anew and replayed < len(done) and done[replayed]["digest"] == digest():
            state = done[replayed]
            replayed += 1
            progress("documents", state["documents"], None)
            continue
        if not anew:
            _cut(work, journal, replayed, len(done), state["sizes"])
            anew = True
        state = _append(work, state, digest, lines, iter((tokens,)) if tokens else _encoded(batch, tokenizer, dtype, bound))
        journal.append(state)
        progress("documents", state["documents"], None)
        del batch, lines, tokens  # not kept while the next one is read
    if replayed < len(done) and not anew:
        _cut(work, journal, replayed, len(done), state["sizes"])
    for name, size in zip(STAGED, state["sizes"], strict=True):  # a kill may have left more than the journal knows of
        with open(work / name, "ab") as stream:
            stream.truncate(size)
    if state["top"] < 0:
        journal.truncate(0)  # nothing to continue
        what = f"Its {state['documents']} documents are all empty." if state["documents"] else "There are no documents."
        raise CorpusError(f"The corpus is empty. {what}", "Give at least one document with one token.")
    return state


def _ahead(
    documents: Iterator[Document], known: list[str], tokenizer: Tokenizer | None, dtype: np.dtype, work: Path, engine: str
) -> Iterator[tuple[list[Document], list[bytes], Digest, Encoded | None]]:
    """Every batch, with its tokens where a cluster was given it to tokenize; ids are only copied, and no task is worth that.

    Here the digest is computed beside what is done with the batch.
    """
    if engine == "ray" and tokenizer is not None:
        from palimpsest.corpus.ray_build import encode_on_cluster

        for (batch, lines, digest), tokens in encode_on_cluster(batches(documents), known, tokenizer, dtype, work):
            yield batch, lines, partial(str, digest), tokens
            del batch, lines, tokens
        return
    with ThreadPoolExecutor(1) as beside:
        for batch in _groups(documents):
            lines = _lines(batch)
            yield batch, lines, beside.submit(_digest, batch, lines).result, None
            del batch, lines


def is_long(batch: list[Document]) -> bool:
    """Whether a batch is one document whose tokens are not to be held at once."""
    return len(batch) == 1 and _weight(batch[0]) > _BATCH_SIZE


def _encoded(batch: list[Document], tokenizer: Tokenizer | None, dtype: np.dtype, bound: int | None) -> Iterator[Encoded]:
    """What `encode_documents` gives for a batch; for a long document in pieces, of which the last one has its length."""
    if not is_long(batch):
        yield encode_documents(batch, tokenizer, dtype, bound)
        return
    length = -1  # the separator
    for flat, top in encode_long_document(batch[0], tokenizer, dtype, bound):
        length += flat.size
        yield flat, np.empty(0, np.int64), top
    yield np.empty(0, dtype), np.array([length]), -1


def _append(work: Path, state: dict[str, Any], digest: Digest, lines: list[bytes], encoded: Iterator[Encoded]) -> dict[str, Any]:
    """Writes a batch after what has been staged; the state after it."""
    sizes, checks, top = [*state["sizes"]], [*state["checks"]], state["top"]
    with contextlib.ExitStack() as stack:
        stack.callback(digest)  # what is wrong with a document itself is told before what came of it
        streams = [stack.enter_context(open(work / name, "ab")) for name in STAGED]

        def put(part: int, piece: memoryview | bytes) -> None:
            streams[part].write(piece)
            sizes[part], checks[part] = sizes[part] + memoryview(piece).nbytes, zlib.crc32(piece, checks[part])

        for flat, lengths, greatest in encoded:
            put(0, flat.data)
            put(1, lengths.astype("<i8").data)
            top = max(top, greatest)
        put(2, b"".join(lines))
    return {
        "stage": "batch",
        "digest": digest(),
        "documents": state["documents"] + len(lines),
        "sizes": sizes,
        "top": top,
        "checks": checks,
    }


def _weight(doc: Document) -> int:
    """Characters or ids of a document."""
    return doc.characters if doc.ids is None else len(doc.ids)


def _keep_whole(work: Path, journal: Journal) -> list[dict[str, Any]]:
    """The batches of the journal whose staged bytes are really there; the journal forgets the others."""
    known = journal.batches()
    whole = len(known)
    for part, name in enumerate(STAGED):
        check = size = 0
        path = work / name
        with open(path, "rb") if path.exists() else open(os.devnull, "rb") as stream:
            for index, batch in enumerate(known[:whole]):
                while size < batch["sizes"][part] and (piece := stream.read(min(_STRIP, batch["sizes"][part] - size))):
                    check, size = zlib.crc32(piece, check), size + len(piece)
                if size < batch["sizes"][part] or check != batch["checks"][part]:
                    whole = index
                    break
    if whole < len(known):
        journal.truncate(whole)
    return known[:whole]


def _cut(work: Path, journal: Journal, kept: int, known: int, sizes: list[int]) -> None:
    """Drops everything after the first `kept` batches."""
    if kept < known:
        _log.warning("The corpus is not the one that %s was begun with: keeping %d of %d batches.", work, kept, known)
    journal.truncate(kept)
    for name, size in zip(STAGED, sizes, strict=True):
        with open(work / name, "ab") as stream:
            stream.truncate(size)
