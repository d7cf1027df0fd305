"""The first half of a build: documents in batches, tokenized and appended to three files beside the journal.

A batch depends on nothing but the documents. Its journal entry holds a digest of what was read, the sizes of the staged files after
it and their running checksums; so a later build knows what it may keep, and whether the disk still has it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus.documents import Document
from palimpsest.corpus.tokens import encode_documents
from palimpsest.corpus.workspace import Journal
from palimpsest.errors import CorpusError, InputError
from palimpsest.tokenizer import Tokenizer

Progress = Callable[[str, int, int | None], None]

STAGED = ("tokens.staged", "lengths.staged", "meta.staged")
_log = logging.getLogger(__name__)
_BATCH_DOCUMENTS = 2048
_BATCH_SIZE = 1 << 22  # characters or ids: some seconds of tokenizing, and several books, which are tokenized side by side
_STRIP = 1 << 22  # bytes that are checked at once
_NOTHING: dict[str, Any] = {"documents": 0, "sizes": [0, 0, 0], "top": -1, "checks": [0, 0, 0]}


def source_digest(digests: Iterable[str]) -> str:
    """One digest of all that was read, from those of the batches."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def batches(documents: Iterator[Document]) -> Iterator[tuple[list[Document], list[bytes], str]]:
    """Documents in batches that depend on nothing but the documents, with their metadata as JSON lines and a digest of all."""
    batch: list[Document] = []
    size = 0
    for doc in documents:
        weight = len(doc.text or "") if doc.ids is None else len(doc.ids)
        if batch and (len(batch) == _BATCH_DOCUMENTS or size + weight > _BATCH_SIZE):
            yield _digest(batch)
            batch, size = [], 0
        batch.append(doc)
        size += weight
    if batch:
        yield _digest(batch)


def _digest(batch: list[Document]) -> tuple[list[Document], list[bytes], str]:
    digest = hashlib.sha256()
    lines = []
    for doc in batch:
        try:
            line = json.dumps({"id": str(doc.id), "metadata": doc.metadata}, default=str).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The metadata of the document {doc.id!r} has no place in JSON: {error}.", "Give strings and numbers."
            ) from error
        if doc.ids is None:
            try:
                kind, content = b"text", (doc.text or "").encode()
            except UnicodeEncodeError as error:
                raise CorpusError(
                    f"The text of the document {doc.id!r} is not Unicode: {error.reason} at character {error.start}.",
                    "Remove the unpaired surrogate.",
                ) from error
        else:
            kind, content = b"ids", np.asarray(doc.ids).astype("<i8").tobytes()
        digest.update(b"%d %s %d\n" % (len(line), kind, len(content)))
        digest.update(line)
        digest.update(content)
        lines.append(line)
    return batch, lines, digest.hexdigest()


def stage(
    documents: Iterator[Document], tokenizer: Tokenizer | None, dtype: np.dtype, work: Path, journal: Journal, progress: Progress
) -> dict[str, Any]:
    """Tokenizes all documents into the staging files, continuing after the batches that are there; returns the last state."""
    done = _keep_whole(work, journal)
    state = _NOTHING
    replayed = 0
    anew = False
    for batch, lines, digest in batches(documents):
        if not anew and replayed < len(done) and done[replayed]["digest"] == digest:
            state = done[replayed]
            replayed += 1
            progress("documents", state["documents"], None)
            continue
        if not anew:
            _cut(work, journal, replayed, len(done), state["sizes"])
            anew = True
        flat, lengths, top = encode_documents(batch, tokenizer, dtype)
        pieces = [flat.tobytes(), lengths.astype("<i8").tobytes(), b"".join(lines)]
        for name, piece in zip(STAGED, pieces, strict=True):
            with open(work / name, "ab") as stream:
                stream.write(piece)
        state = {
            "stage": "batch",
            "digest": digest,
            "documents": state["documents"] + len(batch),
            "sizes": [size + len(piece) for size, piece in zip(state["sizes"], pieces, strict=True)],
            "top": max(state["top"], top),
            "checks": [zlib.crc32(piece, check) for check, piece in zip(state["checks"], pieces, strict=True)],
        }
        journal.append(state)
        progress("documents", state["documents"], None)
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
