"""Token storage: the type of the ids, the separator, and batches of documents as one flat array.

Ids are u8, u16 or u32. The greatest value of the type is reserved: it stands before every document, so that no match can cross
from one document into the next.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from palimpsest.corpus.documents import Document
from palimpsest.corpus.long_texts import may_be_cut, text_pieces
from palimpsest.errors import CorpusError, InputError
from palimpsest.tokenizer import Tokenizer

DTYPES: dict[str, np.dtype[Any]] = {"u8": np.dtype("<u1"), "u16": np.dtype("<u2"), "u32": np.dtype("<u4")}
_STRIP = 1 << 22  # tokens that are hashed or checked at once
_PIECE = 1 << 16  # characters: a longer text is cut where it may be
_WHOLE = 250  # bytes that a tokenizer takes for every character of a piece
_ENCODED = 1 << 20  # characters that are tokenized at once: side by side, and in a hundred megabytes


def separator(dtype: np.dtype) -> int:
    """The reserved id of a token type: its greatest value."""
    return int(np.iinfo(dtype).max)


def dtype_name(top: int) -> str:
    """The narrowest type that holds the ids 0..top and its separator."""
    for name, dtype in DTYPES.items():
        if top < separator(dtype):
            return name
    raise InputError(f"The token id {top} is too great.", f"Ids may be at most {separator(DTYPES['u32']) - 1}.")


def staging_dtype(token_dtype: str, tokenizer: Tokenizer | None) -> str:
    """The type in which tokens are first written: the final one where it is known beforehand, else u32.

    Raises:
        InputError: an unknown type, or one that is too narrow for the tokenizer.
    """
    if token_dtype not in ("auto", *DTYPES):
        raise InputError(f"The token type {token_dtype!r} is unknown.", f"Choose one of auto, {', '.join(DTYPES)}.")
    if tokenizer is None:
        return "u32" if token_dtype == "auto" else token_dtype
    top = max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=0)
    if token_dtype == "auto":
        return dtype_name(top)
    if top >= separator(DTYPES[token_dtype]):
        raise InputError(f"The tokenizer's ids run up to {top}, more than {token_dtype} holds.", f"Use {dtype_name(top)} or auto.")
    return token_dtype


def encode_documents(
    batch: Sequence[Document], tokenizer: Tokenizer | None, dtype: np.dtype, memory: int | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """A batch of documents as stored: a separator and the ids, document after document.

    Args:
        batch: documents with text (then a tokenizer is needed) or ids.
        tokenizer: turns text into ids; documents that have ids keep them.
        dtype: type of the result.
        memory: bytes that may be used, for what has to be tokenized in one piece; None for all that this machine has.

    Returns:
        the flat array of `dtype`, the documents' lengths int64 (documents,), and the greatest id (-1 when all are empty).

    Raises:
        InputError: text without a tokenizer, an id that `dtype` cannot hold beside the separator, or a piece too long for the memory.
        CorpusError: text that the tokenizer refuses.
    """
    rows: list[list[np.ndarray]] = [[] if doc.ids is None else [doc.ids] for doc in batch]
    places = [number for number, doc in enumerate(batch) if doc.ids is None]
    for place, ids in _encode([batch[number] for number in places], tokenizer, memory):
        rows[places[place]].append(ids)
    lengths = np.fromiter((sum(map(len, row)) for row in rows), np.int64, len(rows))
    parts = [part for row in rows for part in row]
    kinds = {part.dtype for part in parts if part.size}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.int64)
    ids = np.concatenate([np.empty(0, kind), *parts], dtype=np.int64 if kind.itemsize == 8 else kind, casting="unsafe")
    limit = separator(dtype)
    if ids.size and (ids.min() < 0 or ids.max() >= limit):
        wrong = int(np.flatnonzero((ids < 0) | (ids >= limit))[0])
        raise _wrong_id(batch[int(np.searchsorted(np.cumsum(lengths), wrong, side="right"))], ids[wrong], limit)
    top = int(ids.max()) if ids.size else -1
    del ids
    before = np.full(1, limit, dtype)
    pieces = [piece for row in rows for piece in (before, *row)]
    flat = np.concatenate(pieces, dtype=dtype, casting="unsafe") if pieces else np.empty(0, dtype)
    return flat, lengths, top


def encode_long_document(
    doc: Document, tokenizer: Tokenizer | None, dtype: np.dtype, memory: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    """The same for one document whose ids are too many to be held at once: pieces of what is stored, each with its greatest id."""
    limit = separator(dtype)
    yield np.full(1, limit, dtype), -1
    if doc.ids is None:
        pieces = (ids for _, ids in _encode([doc], tokenizer, memory))
    else:
        pieces = (doc.ids[start : start + _STRIP] for start in range(0, len(doc.ids), _STRIP))
    for ids in pieces:
        if ids.size and (ids.min() < 0 or ids.max() >= limit):
            raise _wrong_id(doc, ids[(ids < 0) | (ids >= limit)][0], limit)
        yield ids.astype(dtype), int(ids.max()) if ids.size else -1


class WideIdError(InputError):
    """An id that the type of the tokens cannot hold."""


def _wrong_id(doc: Document, value: int, limit: int) -> InputError:
    problem = f"The document {doc.id!r} has the id {value}; here ids run from 0 to {limit - 1}."
    return WideIdError(problem, "Give a wider token_dtype.") if value >= limit else InputError(problem, "Ids are never negative.")


def _encode(docs: Sequence[Document], tokenizer: Tokenizer | None, memory: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """The ids u32 of documents with text, some characters at a time: the number of the document, and the next of its ids."""
    if not docs:
        return
    if tokenizer is None:
        raise InputError(f"The document {docs[0].id!r} is text, and there is no tokenizer.", "Give one, or give token ids.")
    group: list[tuple[int, str]] = []
    size = 0
    for number, doc in enumerate(docs):
        for piece in _pieces(doc, tokenizer, memory):
            group.append((number, piece))
            size += len(piece)
            if size >= _ENCODED:
                yield from _encode_group(group, docs, tokenizer)
                group, size = [], 0
    if group:
        yield from _encode_group(group, docs, tokenizer)


def _pieces(doc: Document, tokenizer: Tokenizer, memory: int | None) -> Iterator[str]:
    """The text of a document in pieces that may be tokenized on their own."""
    if doc.characters <= _PIECE:
        yield doc.text or ""
    elif not may_be_cut(tokenizer):
        _require_room(doc, doc.characters, "by this tokenizer", memory)
        yield doc.text or ""
    else:
        for piece in text_pieces(doc.text_strips(_STRIP), _PIECE):
            _require_room(doc, len(piece), "for they have no space after a letter", memory)
            yield piece


def _require_room(doc: Document, characters: int, why: str, memory: int | None) -> None:
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if memory is None else memory
    if _WHOLE * characters > room:
        raise InputError(
            f"{characters:,} characters of the document {doc.id!r} have to be tokenized at once, {why}: too many for {room / 1e6:,.0f} MB.",
            f"Make several documents of it, or give at least {_WHOLE * characters / 1e6:,.0f} MB.",
        )


def _encode_group(group: list[tuple[int, str]], docs: Sequence[Document], tokenizer: Tokenizer) -> Iterator[tuple[int, np.ndarray]]:
    try:
        encoded = tokenizer.encode_batch([text for _, text in group])
    except Exception as error:
        first, last = docs[group[0][0]].id, docs[group[-1][0]].id
        raise CorpusError(f"The tokenizer refuses a document between {first!r} and {last!r}: {error}.", "Leave it out.") from error
    for (number, _), ids in zip(group, encoded, strict=True):
        yield number, np.array(ids, np.uint32)


def update_content(digest: hashlib._Hash, tokens: np.ndarray) -> None:
    """Adds tokens, as stored, to a digest of the content: as u32 with 2³² − 1 before every document, whatever the type and the shards."""
    for start in range(0, tokens.size, _STRIP):
        strip = tokens[start : start + _STRIP].astype("<u4")
        strip[strip == separator(tokens.dtype)] = separator(DTYPES["u32"])
        digest.update(strip.data)


def as_query(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """`ids` as int64 (m,), m >= 1; raises `InputError` when they are not that."""
    query = np.asarray(ids)
    if query.ndim != 1 or query.size == 0:
        raise InputError(f"A query of shape {query.shape} is not a row of ids.", "Give at least one id, in one row.")
    return np.ascontiguousarray(integers(query), np.int64)


def as_contexts(rows: np.ndarray) -> np.ndarray:
    """`rows` as int64 (rows, m), m >= 0; raises `InputError` when they are not that."""
    table = np.asarray(rows)
    if table.ndim != 2:
        raise InputError(f"The contexts have shape {table.shape}.", "Give an array (rows, m).")
    return np.ascontiguousarray(integers(table), np.int64)


def integers(ids: np.ndarray) -> np.ndarray:
    """`ids`, or an `InputError` when they are not integers."""
    if ids.dtype.kind not in "iu":
        raise InputError(f"The ids are of type {ids.dtype}.", "Give integers.")
    return ids


def require_ids(ids: np.ndarray, limit: int) -> None:
    """Raises `InputError` unless all `ids` lie in 0 … limit − 1, `limit` being the separator."""
    if ids.size and (ids.min() < 0 or ids.max() >= limit):
        raise foreign_id(ids[(ids < 0) | (ids >= limit)][0], limit)


def foreign_id(value: int, limit: int) -> InputError:
    """What to raise for an id that no document can contain."""
    what = f"{value} is the separator between documents" if value == limit else f"{value} is no token of this index"
    return InputError(f"{what}: its ids run from 0 to {limit - 1}.", "Encode the text with the index's own tokenizer.")
