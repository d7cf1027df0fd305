"""Changes to an index that rebuild nothing: documents are deleted, a shard is appended; and the compaction that tidies up.

**Deletion.** Order among the suffixes of a corpus does not change when some of them are taken out. So the suffixes of a deleted document
leave the suffix array and its buckets (one pass over the array of the shard, nothing sorted), and the document leaves the list of those
that are there; its tokens stay where they are until compaction, where no query comes upon them. Every query is then as exact and as fast as
on an index that never had the document, and documents are numbered as there.

**Append.** The new documents become a shard of their own beside the others.

Both write files under new names and then, in one rename, the manifest. Whoever has the index open keeps the files of then, and what the
manifest before this one names stays on the disk until the next change. A change that was killed leaves the old index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.corpus import manifest as layout
from palimpsest.corpus.build import build_index
from palimpsest.corpus.documents import Docs, Document, as_documents
from palimpsest.corpus.search import branches
from palimpsest.corpus.shard import CHANGED, PARTS, Shard, file_name, open_shards
from palimpsest.corpus.sharding import write_pieces
from palimpsest.corpus.staging import Progress, batches, source_digest
from palimpsest.corpus.tokens import DTYPES, WideIdError, update_content
from palimpsest.corpus.workspace import locked
from palimpsest.errors import InputError, StorageError
from palimpsest.files import require_space, storage_errors, write_json

if TYPE_CHECKING:
    from palimpsest.corpus.index import CorpusIndex

_STRIP = 1 << 22  # suffixes that are filtered at once
_NOTE = "appended.json"  # beside the shard that is appended: the entry "appended" of the manifest that has it
_PART_FILE = re.compile(rf"({'|'.join((*PARTS, *CHANGED))})\.\d+(\.\d+)?")


def delete_documents(index: CorpusIndex, shards: list[Shard], documents: Sequence[int | str]) -> None:
    """Takes documents out of an index on the disk; called as `CorpusIndex.delete`.

    Args:
        index, shards: the index as it was opened, and its parts.
        documents: numbers, or names (all documents of that name).

    Raises:
        InputError: a number or name that the index does not have, no documents, or all that have tokens.
        StorageError: the index was changed since it was opened, is being changed, or cannot be written.
    """
    numbers = _numbers(index, documents)
    with _changing(index) as manifest:
        generation = manifest.get("generation", 0) + 1
        cards = []
        for number, (shard, card) in enumerate(zip(shards, manifest["shards"], strict=True)):
            first = shard.first_document
            mine = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + shard.docs.size)] - first
            if mine.size:
                for part in CHANGED:
                    manifest["files"].pop(file_name(part, number, card), None)
                card = _without(index.path, number, shard, card, mine, generation)
                for part in CHANGED:
                    name = file_name(part, number, card)
                    manifest["files"][name] = layout.describe_file(index.path / name)
            cards.append(card)
        _publish(index, {**manifest, "generation": generation, "shards": cards})


def append_documents(index: CorpusIndex, docs: Docs, memory: int | str | None, progress: Progress) -> None:
    """Adds documents to an index on the disk, as a shard of their own; called as `CorpusIndex.append`.

    The shard is built in `<index>.append`; when that was interrupted, the same call continues it. A call that was interrupted after the
    index had its new manifest left `<index>.append`, with a note of what was appended, which the manifest has as well: made again with
    the same documents, it only removes that folder. An iterator, which can be read only once, is not compared.

    Args:
        index: the index as it was opened.
        docs, memory, progress: as in `CorpusIndex.build`; text is encoded by the index's own tokenizer.

    Raises:
        CorpusError, InputError: as in `CorpusIndex.build`; the ids must fit the index's token type.
        StorageError: the index was changed since it was opened, is being changed, or cannot be written.
    """
    part = index.path.with_name(index.path.name + ".append")
    with _changing(index) as manifest:
        if (source := _appended(part, manifest)) is not None:
            same = (isinstance(docs, str | os.PathLike) or iter(docs) is not docs) and source == _source(docs)
            _remove_part(part)
            if same:
                return
        dtype = manifest["token_dtype"]
        try:
            build_index(
                docs,
                index.tokenizer,
                part,
                token_dtype=dtype,
                shards=1,
                builder="auto",
                memory=memory,
                progress=progress,
                resume=True,
            )
        except WideIdError as error:
            raise InputError(
                error.problem, "Build the index of all documents anew: the type of its tokens is too narrow for them."
            ) from error
        built = layout.read_manifest(part)
        number = len(manifest["shards"])
        manifest["appended"] = {"shard": number, "source": built["source"]}
        write_json(part / _NOTE, manifest["appended"])
        for name in PARTS:
            os.rename(part / f"{name}.0", index.path / f"{name}.{number}")
            manifest["files"][f"{name}.{number}"] = built["files"][f"{name}.0"]
        manifest["shards"] = [*manifest["shards"], *built["shards"]]
        manifest["max_id"] = max(manifest["max_id"], built["max_id"])
        _publish(index, manifest)
        _remove_part(part)


def _appended(part: Path, manifest: dict[str, Any]) -> str | None:
    """The digest of the documents of an append that reached the manifest and was interrupted then; None where there is none."""
    try:
        note = json.loads((part / _NOTE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return note["source"] if note == manifest.get("appended") else None


def _source(docs: Docs) -> str:
    """The digest of documents, as the manifest of their index has it."""
    return source_digest(digest for _, _, digest in batches(as_documents(docs)))


def _remove_part(part: Path) -> None:
    """Removes the folder of an append, its note last: an interruption in between is recognised as well."""
    for path in part.iterdir():
        if path.name != _NOTE:
            path.unlink()
    shutil.rmtree(part)


def compact_index(index: CorpusIndex, parts: list[Shard], out: Path, shards: int, memory: int | str | None, progress: Progress) -> None:
    """Builds an index anew from what is left of it; called as `CorpusIndex.compact`.

    Args:
        index, parts: the index as it was opened, and its parts.
        out: where; its own folder is replaced when the new one is whole.
        shards, memory, progress: as in `CorpusIndex.build`.

    Raises:
        InputError: too little memory.
        StorageError: at its own folder, the index was changed since it was opened, or is being changed; no space or permission.
    """
    dtype = index.manifest["token_dtype"]
    with _changing(index) if out.absolute() == index.path else contextlib.nullcontext():
        build_index(
            _left(parts),
            index.tokenizer,
            out,
            token_dtype=dtype,
            shards=shards,
            builder="auto",
            memory=memory,
            progress=progress,
            resume=True,
        )


def _left(parts: list[Shard]) -> Iterator[Document]:
    """The documents of an index, as ids that are read from its files when they are needed: one may be larger than the memory."""
    for shard in parts:
        for local, (start, after) in enumerate(zip(shard.docs.tolist(), shard.after.tolist(), strict=True)):
            name, metadata = shard.document(local)
            yield Document(name, ids=shard.arrays[0][start : after - 1], metadata=metadata)


def _numbers(index: CorpusIndex, documents: Sequence[int | str]) -> np.ndarray:
    """The numbers int64, ascending, of the documents to delete, checked."""
    if isinstance(documents, str) or len(documents) == 0:
        raise InputError(f"{documents!r} is no list of documents.", "Give at least one number or name, in a list.")
    names = {entry for entry in documents if isinstance(entry, str)}
    try:
        chosen = {operator.index(entry) for entry in documents if not isinstance(entry, str)}
    except TypeError as error:
        raise InputError(f"Among {documents!r} is something else than numbers and names.", "Give whole numbers or strings.") from error
    outside = [number for number in chosen if not 0 <= number < index.n_documents]
    if outside:
        raise InputError(f"There is no document {outside[0]}.", f"The index has the documents 0 to {index.n_documents - 1}.")
    if names:
        found = {number: name for number in range(index.n_documents) if (name := index.document(number)[0]) in names}
        missing = names.difference(found.values())
        if missing:
            raise InputError(f"No document is named {min(missing)!r}.", "Give names as `documents` and `document` show them.")
        chosen.update(found)
    if sum(index.document_ids(number).size for number in chosen) == index.n_tokens:
        raise InputError("Nothing would be left of the index.", "Remove its folder instead.")
    return np.array(sorted(chosen), np.int64)


@contextlib.contextmanager
def _changing(index: CorpusIndex) -> Iterator[dict[str, Any]]:
    """The index's manifest to be changed, by this process alone, provided that it is still the one that was opened."""
    with storage_errors(index.path), locked(index.path):
        manifest = layout.read_manifest(index.path)
        if manifest["checksum"] != index.manifest["checksum"]:
            raise StorageError(f"The index {index.path} has been changed since it was opened.", "Open it again.")
        yield {**manifest, "files": dict(manifest["files"])}


def _without(folder: Path, number: int, shard: Shard, card: dict[str, Any], gone: np.ndarray, generation: int) -> dict[str, Any]:
    """Writes what a shard is without the documents `gone`; its new card."""
    tokens, sa = shard.arrays[:2]
    card = {**card, "generation": generation, "documents": int(shard.docs.size - gone.size)}
    dead = np.zeros(tokens.size, np.bool_)
    for start, after in zip(shard.docs[gone].tolist(), shard.after[gone].tolist(), strict=True):
        dead[start - 1 : after - 1] = True  # with the separator before it
    require_space(folder, 4 * sa.size)
    strips = (sa[at : at + _STRIP] for at in range(0, sa.size, _STRIP))
    write_pieces(folder / file_name("sa", number, card), (strip[~dead[strip]] for strip in strips))
    kept = np.fromfile(folder / file_name("sa", number, card), "<u4")
    kept.flags.writeable = False  # as the mapped files are: one compiled form of `branches` serves both
    firsts, starts = branches(tokens, kept, 0, kept.size, 0)
    write_pieces(folder / file_name("buckets", number, card), [np.concatenate([firsts, starts]).astype("<i8")])
    write_pieces(folder / file_name("live", number, card), [np.delete(shard.live, gone).astype("<i8")])
    return {**card, "alphabet": int(firsts.size)}


def _publish(index: CorpusIndex, manifest: dict[str, Any]) -> None:
    """Writes the manifest of the changed index, and removes the files that neither it nor the one before names."""
    folder, dtype, card = index.path, DTYPES[manifest["token_dtype"]], manifest["tokenizer"]
    content = hashlib.sha256()
    n_tokens = n_documents = 0
    for shard in open_shards(folder, manifest["shards"], dtype, "mmap"):
        for start, end in shard.stretches():
            update_content(content, shard.arrays[0][start:end])
            n_tokens += end - start
        n_tokens -= shard.docs.size  # the separators
        n_documents += shard.docs.size
    changed = {
        "fingerprint": layout.fingerprint(content.hexdigest(), card),
        "content": content.hexdigest(),
        "source": None,  # no build gave this: `build` is to make its own
        "n_tokens": n_tokens,
        "n_documents": n_documents,
    }
    body = {key: value for key, value in manifest.items() if key not in ("format", "version", "checksum")}
    layout.write_manifest(folder, body | changed)
    needed = manifest["files"].keys() | index.manifest["files"].keys()
    for path in folder.iterdir():
        if _PART_FILE.fullmatch(path.name) and path.name not in needed:
            path.unlink()
    found = layout.noted(folder)
    if found.get("checksum") != index.manifest["checksum"]:
        found = {}
    kept = {name: found.get(name) for name in manifest["files"].keys() & index.manifest["files"].keys()}  # which nobody has hashed here
    layout.note_whole(folder, layout.read_manifest(folder), since=kept)
