"""Building an index: documents → tokens → shards → suffix arrays, each finished piece noted, the whole renamed at the end.

A build that was killed reads the documents again, keeps every batch whose digest is still the same and continues after the last
one; nothing is tokenized or sorted twice. From the first batch that differs on, everything is done anew. What was staged is held
against its checksums first. The bytes of the result do not depend on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus import manifest as layout
from palimpsest.corpus.documents import Document, as_documents
from palimpsest.corpus.search import branches
from palimpsest.corpus.suffix_array import choose_builder, suffix_array
from palimpsest.corpus.tokens import DTYPES, dtype_name, encode_documents, separator, staging_dtype
from palimpsest.corpus.workspace import Journal, partial_folder, put_in_place, refuse_foreign, remove_workspace, workspace
from palimpsest.errors import CorpusError, IndexCorruptError, IndexVersionError, InputError
from palimpsest.files import atomic_path, require_space, sha256_json, storage_errors
from palimpsest.tokenizer import Tokenizer

Docs = str | os.PathLike[str] | Iterable[Document | str | Sequence[int]]
Progress = Callable[[str, int, int | None], None]

_log = logging.getLogger(__name__)
_BATCH_DOCUMENTS = 2048
_BATCH_SIZE = 1 << 20  # characters or ids
_STRIP = 1 << 22  # ids or bytes that are copied at once
_STAGED = ("tokens.staged", "lengths.staged", "meta.staged")
_NOTHING: dict[str, Any] = {"documents": 0, "sizes": [0, 0, 0], "top": -1, "checks": [0, 0, 0]}


def build_index(
    docs: Docs, tokenizer: Tokenizer | None, out: Path, *, token_dtype: str, shards: int, builder: str, progress: Progress, resume: bool
) -> None:
    """Builds the index at `out`; parameters and errors as in `CorpusIndex.build`."""
    if shards < 1:
        raise InputError(f"An index of {shards} shards cannot be built.", "Give at least 1.")
    choose_builder(builder, 0, 0)
    staged = staging_dtype(token_dtype, tokenizer)
    config = {"version": layout.VERSION, "tokenizer": tokenizer.fingerprint if tokenizer else None, "token_dtype": token_dtype}
    plan = {"stage": "plan", "shards": shards, "builder": builder}
    request = {**config, "shards": shards, "builder": builder}
    with storage_errors(out):
        refuse_foreign(out)
        unfinished = partial_folder(out).exists()
    if resume and not unfinished and _is_built(docs, out, request):
        return
    with storage_errors(out), workspace(out, config, resume) as (work, journal):
        if resume and unfinished and not journal.entries and _is_built(docs, out, request):
            remove_workspace(work)
            return
        folder = work / "index"
        folder.mkdir(exist_ok=True)
        state = _stage(as_documents(docs), tokenizer, DTYPES[staged], work, journal, progress)
        known = journal.entry("plan")
        if known != plan:
            if known:
                _log.warning("Sorting %s anew: it was begun with other shards or another builder.", work)
                journal.truncate(journal.entries.index(known))
            journal.append(plan)
        finished = {file for entry in journal.entries for file in entry.get("files", ())}
        for path in folder.iterdir():
            if path.name not in finished:
                path.unlink()
        name = dtype_name(max(state["top"], 0)) if staged == "u32" and token_dtype == "auto" and tokenizer is None else staged
        if any(journal.entry("shard", shard) is None for shard in range(shards)):
            _split(work, folder, journal, DTYPES[staged], DTYPES[name], shards)
        for shard in range(shards):
            if journal.entry("sort", shard) is None:
                _sort(folder, journal, shard, DTYPES[name], state["top"], builder)
            progress("sort", shard + 1, shards)
        if tokenizer:
            tokenizer.save(folder / "tokenizer.json")
        _describe(folder, journal, tokenizer, name, state, request)
        put_in_place(work, journal, out)
    layout.note_whole(out, layout.read_manifest(out))


def _is_built(docs: Docs, out: Path, request: dict[str, Any]) -> bool:
    """Whether `out` is a whole index of these very documents; an iterator, which can be read only once, is never compared."""
    if not layout.is_index(out) or (not isinstance(docs, str | os.PathLike) and iter(docs) is docs):
        return False
    try:
        manifest = layout.read_manifest(out)
        if manifest["request"] != request:
            return False
        layout.verify_if_changed(out, manifest)
    except (IndexCorruptError, IndexVersionError) as error:
        _log.warning("Building %s again. %s", out, error.problem)
        return False
    return manifest["source"] == _source(digest for _, _, digest in _batches(as_documents(docs)))


def _source(digests: Iterable[str]) -> str:
    """One digest of all that was read, from those of the batches."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _batches(documents: Iterator[Document]) -> Iterator[tuple[list[Document], list[bytes], str]]:
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


def _stage(
    documents: Iterator[Document], tokenizer: Tokenizer | None, dtype: np.dtype, work: Path, journal: Journal, progress: Progress
) -> dict[str, Any]:
    """Tokenizes all documents into the staging files, continuing after the batches that are there; returns the last state."""
    done = _keep_whole(work, journal)
    state = _NOTHING
    replayed = 0
    anew = False
    for batch, lines, digest in _batches(documents):
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
        for name, piece in zip(_STAGED, pieces, strict=True):
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
    for name, size in zip(_STAGED, state["sizes"], strict=True):  # a kill may have left more than the journal knows of
        with open(work / name, "ab") as stream:
            stream.truncate(size)
    if state["top"] < 0:
        journal.truncate(0)  # nothing to continue
        what = f"Its {state['documents']} documents are all empty." if state["documents"] else "There are no documents."
        raise CorpusError(f"The corpus is empty. {what}", "Give at least one document with one token.")
    return state


def _keep_whole(work: Path, journal: Journal) -> list[dict[str, Any]]:
    """The batches of the journal whose staged bytes are really there; the journal forgets the others."""
    batches = journal.batches()
    whole = len(batches)
    for part, name in enumerate(_STAGED):
        check = size = 0
        path = work / name
        with open(path, "rb") if path.exists() else open(os.devnull, "rb") as stream:
            for index, batch in enumerate(batches[:whole]):
                while size < batch["sizes"][part] and (piece := stream.read(min(_STRIP, batch["sizes"][part] - size))):
                    check, size = zlib.crc32(piece, check), size + len(piece)
                if size < batch["sizes"][part] or check != batch["checks"][part]:
                    whole = index
                    break
    if whole < len(batches):
        journal.truncate(whole)
    return batches[:whole]


def _cut(work: Path, journal: Journal, kept: int, known: int, sizes: list[int]) -> None:
    """Drops everything after the first `kept` batches."""
    if kept < known:
        _log.warning("The corpus is not the one that %s was begun with: keeping %d of %d batches.", work, kept, known)
    journal.truncate(kept)
    for name, size in zip(_STAGED, sizes, strict=True):
        with open(work / name, "ab") as stream:
            stream.truncate(size)


def _split(work: Path, folder: Path, journal: Journal, staged: np.dtype, dtype: np.dtype, shards: int) -> None:
    """Cuts the staged documents into shards of nearly equal length and writes everything of them but the suffix arrays."""
    lengths = np.fromfile(work / _STAGED[1], "<i8")
    if shards > lengths.size:
        raise InputError(f"{lengths.size} documents cannot fill {shards} shards.", f"Ask for at most {lengths.size}.")
    ends = np.cumsum(lengths + 1)
    borders = np.searchsorted(ends, ends[-1] * np.arange(1, shards) / shards, side="left") + 1
    borders = np.concatenate([[0], borders, [lengths.size]])
    for shard in range(1, shards):  # every shard has a document
        borders[shard] = min(max(borders[shard], borders[shard - 1] + 1), lengths.size - (shards - shard))
    tokens = np.memmap(work / _STAGED[0], staged, "r")
    meta = np.memmap(work / _STAGED[2], np.uint8, "r")
    breaks = [np.flatnonzero(meta[start : start + _STRIP] == ord("\n")) + start + 1 for start in range(0, meta.size, _STRIP)]
    lines = np.concatenate([[0], *breaks])
    for shard, (first, last) in enumerate(pairwise(borders.tolist())):
        if journal.entry("shard", shard) is not None:
            continue
        start, end = (int(ends[first - 1]) if first else 0), int(ends[last - 1])
        strips = (np.minimum(tokens[at : min(at + _STRIP, end)], separator(dtype)).astype(dtype) for at in range(start, end, _STRIP))
        _write(folder / f"tokens.{shard}", strips)
        _write(folder / f"docs.{shard}", [np.concatenate([[1], ends[first:last] - start + 1]).astype("<i8")])
        _write(folder / f"meta.{shard}", [meta[lines[first] : lines[last]]])
        _write(folder / f"metaoff.{shard}", [(lines[first : last + 1] - lines[first]).astype("<i8")])
        journal.append(
            {
                "stage": "shard",
                "shard": shard,
                "length": end - start,
                "documents": int(last - first),
                "files": {
                    f"{part}.{shard}": layout.describe_file(folder / f"{part}.{shard}") for part in ("tokens", "docs", "meta", "metaoff")
                },
            }
        )


def _sort(folder: Path, journal: Journal, shard: int, dtype: np.dtype, top: int, builder: str) -> None:
    """Writes the suffix array of a shard and its buckets."""
    tokens = np.fromfile(folder / f"tokens.{shard}", dtype)
    builder = choose_builder(builder, tokens.size, top)
    require_space(folder, 4 * tokens.size)
    sa = suffix_array(tokens, top, builder)
    tokens.flags.writeable = sa.flags.writeable = False  # as the mapped files are: one compiled form of `branches` serves both
    firsts, starts = branches(tokens, sa, 0, sa.size, 0)
    _write(folder / f"sa.{shard}", [sa.astype("<u4", copy=False)])
    _write(folder / f"buckets.{shard}", [np.concatenate([firsts, starts]).astype("<i8")])
    names = (f"sa.{shard}", f"buckets.{shard}")
    files = {name: layout.describe_file(folder / name) for name in names}
    journal.append({"stage": "sort", "shard": shard, "builder": builder, "alphabet": firsts.size, "files": files})


def _write(path: Path, pieces: Iterable[np.ndarray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).data)


def _describe(
    folder: Path, journal: Journal, tokenizer: Tokenizer | None, name: str, state: dict[str, Any], request: dict[str, Any]
) -> None:
    """Writes the manifest."""
    content = hashlib.sha256()  # of the tokens as u32 with 2³² − 1 before every document, whatever the type and the shards
    files: dict[str, Any] = {}
    rows = []
    for shard in range(request["shards"]):
        tokens = np.memmap(folder / f"tokens.{shard}", DTYPES[name], "r")
        for start in range(0, tokens.size, _STRIP):
            strip = tokens[start : start + _STRIP].astype("<u4")
            strip[strip == separator(DTYPES[name])] = separator(DTYPES["u32"])
            content.update(strip.data)
        cut, order = journal.entry("shard", shard) or {}, journal.entry("sort", shard) or {}
        files |= cut["files"] | order["files"]
        rows.append({key: cut[key] for key in ("length", "documents")} | {key: order[key] for key in ("builder", "alphabet")})
    card = None
    if tokenizer:
        files["tokenizer.json"] = layout.describe_file(folder / "tokenizer.json")
        card = {key: getattr(tokenizer, key) for key in ("fingerprint", "bos_id", "eos_id", "pad_id", "adds_bos")}
    layout.write_manifest(
        folder,
        {
            "fingerprint": sha256_json({"content": content.hexdigest(), "tokenizer": card["fingerprint"] if card else None}),
            "content": content.hexdigest(),
            "source": _source(batch["digest"] for batch in journal.batches()),
            "request": request,
            "token_dtype": name,
            "n_tokens": sum(row["length"] - row["documents"] for row in rows),
            "n_documents": state["documents"],
            "max_id": state["top"],
            "tokenizer": card,
            "shards": rows,
            "files": files,
        },
    )
