"""Building an index: documents → tokens → shards → suffix arrays, each finished piece noted, the whole renamed at the end.

A build that was killed reads the documents again, keeps every batch whose digest is still the same and continues after the last
one; nothing is tokenized or sorted twice. From the first batch that differs on, everything is done anew. What was staged is held
against its checksums first. The bytes of the result do not depend on interruptions.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus import manifest as layout
from palimpsest.corpus.documents import Docs, as_documents
from palimpsest.corpus.search import branches
from palimpsest.corpus.staging import STAGED, Progress, batches, source_digest, stage
from palimpsest.corpus.suffix_array import choose_builder, sorting_memory, suffix_array
from palimpsest.corpus.tokens import DTYPES, dtype_name, separator, staging_dtype, update_content
from palimpsest.corpus.workspace import Journal, partial_folder, put_in_place, refuse_foreign, remove_workspace, workspace
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError
from palimpsest.files import atomic_path, require_space, storage_errors
from palimpsest.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_STRIP = 1 << 22  # ids or bytes that are handled at once


def build_index(
    docs: Docs, tokenizer: Tokenizer | None, out: Path, *, token_dtype: str, shards: int, builder: str, progress: Progress, resume: bool
) -> None:
    """Builds the index at `out`; parameters and errors as in `CorpusIndex.build`."""
    if shards < 1:
        raise InputError(f"An index of {shards} shards cannot be built.", "Give at least 1.")
    choose_builder(builder, 0, 0)
    staged = staging_dtype(token_dtype, tokenizer)
    card = _card(tokenizer)
    config = {"version": layout.VERSION, "tokenizer": card, "token_dtype": token_dtype}
    plan = {"stage": "plan", "shards": shards, "builder": builder}
    request = {"token_dtype": token_dtype, "shards": shards, "builder": builder}
    with storage_errors(out):
        refuse_foreign(out)
        unfinished = partial_folder(out).exists()
    if resume and not unfinished and _is_built(docs, out, card, request):
        return
    with storage_errors(out), workspace(out, config, resume) as (work, journal):
        if resume and unfinished and not journal.entries and _is_built(docs, out, card, request):
            remove_workspace(work)
            return
        folder = work / "index"
        folder.mkdir(exist_ok=True)
        state = stage(as_documents(docs), tokenizer, DTYPES[staged], work, journal, progress)
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
        waiting = [shard for shard in range(shards) if journal.entry("sort", shard) is None]
        choices = [choose_builder(builder, journal.require("shard", shard)["length"], state["top"]) for shard in range(shards)]
        with ThreadPoolExecutor(_at_once(journal, choices, state["top"])) as pool:
            tasks = [pool.submit(_sort, folder, journal, shard, DTYPES[name], state["top"], choices[shard]) for shard in waiting]
            for done, task in enumerate(as_completed(tasks), start=1 + shards - len(waiting)):
                task.result()
                progress("sort", done, shards)
        if tokenizer:
            tokenizer.save(folder / "tokenizer.json")
        _describe(folder, journal, name, state, card, request)
        put_in_place(work, journal, out)
    layout.note_whole(out, layout.read_manifest(out))


def _card(tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    """What the manifest says of the tokenizer."""
    return {key: getattr(tokenizer, key) for key in ("fingerprint", "bos_id", "eos_id", "pad_id", "adds_bos")} if tokenizer else None


def _is_built(docs: Docs, out: Path, card: dict[str, Any] | None, request: dict[str, Any]) -> bool:
    """Whether `out` is a whole index of these very documents; an iterator, which can be read only once, is never compared."""
    if not layout.is_index(out) or (not isinstance(docs, str | os.PathLike) and iter(docs) is docs):
        return False
    try:
        manifest = layout.read_manifest(out)
        if (manifest["tokenizer"], manifest["request"]) != (card, request):
            return False
        layout.verify_if_changed(out, manifest)
    except (IndexCorruptError, IndexVersionError) as error:
        _log.warning("Building %s again. %s", out, error.problem)
        return False
    return manifest["source"] == source_digest(digest for _, _, digest in batches(as_documents(docs)))


def _split(work: Path, folder: Path, journal: Journal, staged: np.dtype, dtype: np.dtype, shards: int) -> None:
    """Cuts the staged documents into shards of nearly equal length and writes everything of them but the suffix arrays."""
    lengths = np.fromfile(work / STAGED[1], "<i8")
    if shards > lengths.size:
        raise InputError(f"{lengths.size} documents cannot fill {shards} shards.", f"Ask for at most {lengths.size}.")
    ends = np.cumsum(lengths + 1)
    borders = np.searchsorted(ends, ends[-1] * np.arange(1, shards) / shards, side="left") + 1
    borders = np.concatenate([[0], borders, [lengths.size]])
    for shard in range(1, shards):  # every shard has a document
        borders[shard] = min(max(borders[shard], borders[shard - 1] + 1), lengths.size - (shards - shard))
    tokens = np.memmap(work / STAGED[0], staged, "r")
    meta = np.memmap(work / STAGED[2], np.uint8, "r")
    breaks = [np.flatnonzero(meta[start : start + _STRIP] == ord("\n")) + start + 1 for start in range(0, meta.size, _STRIP)]
    lines = np.concatenate([[0], *breaks])
    for shard, (first, last) in enumerate(pairwise(borders.tolist())):
        if journal.entry("shard", shard) is not None:
            continue
        start, end = (int(ends[first - 1]) if first else 0), int(ends[last - 1])
        strips = (np.minimum(tokens[at : min(at + _STRIP, end)], separator(dtype)).astype(dtype) for at in range(start, end, _STRIP))
        write_pieces(folder / f"tokens.{shard}", strips)
        write_pieces(folder / f"docs.{shard}", [np.concatenate([[1], ends[first:last] - start + 1]).astype("<i8")])
        write_pieces(folder / f"meta.{shard}", [meta[lines[first] : lines[last]]])
        write_pieces(folder / f"metaoff.{shard}", [(lines[first : last + 1] - lines[first]).astype("<i8")])
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


def _at_once(journal: Journal, builders: list[str], top: int) -> int:
    """How many shards may be sorted at once: as many as there are cores, while half of the free memory holds them."""
    needs = [sorting_memory(builder, journal.require("shard", shard)["length"], top) for shard, builder in enumerate(builders)]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, len(needs), free // 2 // max(needs)))


def _sort(folder: Path, journal: Journal, shard: int, dtype: np.dtype, top: int, builder: str) -> None:
    """Writes the suffix array of a shard and its buckets."""
    tokens = np.fromfile(folder / f"tokens.{shard}", dtype)
    require_space(folder, 4 * tokens.size)
    sa = suffix_array(tokens, top, builder)
    tokens.flags.writeable = sa.flags.writeable = False  # as the mapped files are: one compiled form of `branches` serves both
    firsts, starts = branches(tokens, sa, 0, sa.size, 0)
    write_pieces(folder / f"sa.{shard}", [sa.astype("<u4", copy=False)])
    write_pieces(folder / f"buckets.{shard}", [np.concatenate([firsts, starts]).astype("<i8")])
    names = (f"sa.{shard}", f"buckets.{shard}")
    files = {name: layout.describe_file(folder / name) for name in names}
    journal.append({"stage": "sort", "shard": shard, "builder": builder, "alphabet": firsts.size, "files": files})


def write_pieces(path: Path, pieces: Iterable[np.ndarray]) -> None:
    """Writes arrays one after the other into a file, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).data)


def _describe(
    folder: Path, journal: Journal, name: str, state: dict[str, Any], card: dict[str, Any] | None, request: dict[str, Any]
) -> None:
    """Writes the manifest."""
    content = hashlib.sha256()
    files: dict[str, Any] = {}
    rows = []
    for shard in range(request["shards"]):
        tokens = np.memmap(folder / f"tokens.{shard}", DTYPES[name], "r")
        update_content(content, tokens)
        cut, order = journal.require("shard", shard), journal.require("sort", shard)
        files |= cut["files"] | order["files"]
        rows.append({key: cut[key] for key in ("length", "documents")} | {key: order[key] for key in ("builder", "alphabet")})
    if card:
        files["tokenizer.json"] = layout.describe_file(folder / "tokenizer.json")
    layout.write_manifest(
        folder,
        {
            "fingerprint": layout.fingerprint(content.hexdigest(), card),
            "content": content.hexdigest(),
            "source": source_digest(batch["digest"] for batch in journal.batches()),
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
