"""Building an index: documents → tokens → shards → suffix arrays, each finished piece noted, the whole renamed at the end.

A build that was killed reads the documents again, keeps every batch whose digest is still the same and continues after the last
one; nothing is tokenized or sorted twice. From the first batch that differs on, everything is done anew. What was staged is held
against its checksums first. The bytes of the result do not depend on interruptions.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus import manifest as layout
from palimpsest.corpus.documents import Docs, as_documents
from palimpsest.corpus.external import BlockSort, block_space
from palimpsest.corpus.memory import RESERVED, SortPlan, free_memory, parse_memory, plan_sort
from palimpsest.corpus.search import branches
from palimpsest.corpus.staging import STAGED, Progress, batches, source_digest, stage
from palimpsest.corpus.suffix_array import choose_builder, suffix_array
from palimpsest.corpus.tokens import DTYPES, dtype_name, separator, staging_dtype, update_content
from palimpsest.corpus.workspace import Journal, partial_folder, put_in_place, refuse_foreign, remove_workspace, workspace
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError
from palimpsest.files import atomic_path, require_space, storage_errors
from palimpsest.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_STRIP = 1 << 22  # ids or bytes that are handled at once


def build_index(
    docs: Docs,
    tokenizer: Tokenizer | None,
    out: Path,
    *,
    token_dtype: str,
    shards: int,
    builder: str,
    memory: int | str | None = None,
    progress: Progress,
    resume: bool,
) -> None:
    """Builds the index at `out`; parameters and errors as in `CorpusIndex.build`."""
    bound = parse_memory(memory)
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
        state = stage(as_documents(docs), tokenizer, DTYPES[staged], work, journal, progress, bound)
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
        lengths = [journal.require("shard", shard)["length"] for shard in range(shards)]
        plans = [plan_sort(builder, length, state["top"], DTYPES[name].itemsize, bound) for length in lengths]
        with ThreadPoolExecutor(_at_once(plans, bound)) as pool:
            tasks = [pool.submit(_sort, work, journal, shard, DTYPES[name], state["top"], plans[shard], progress) for shard in waiting]
            for done, task in enumerate(as_completed(tasks), start=1 + shards - len(waiting)):
                task.result()
                progress("sort", done, shards)
        if tokenizer:
            tokenizer.save(folder / "tokenizer.json")
        _describe(folder, journal, name, state, card, request, bound)
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
    start = lines = 0  # tokens and bytes of metadata in the shards before
    for shard, (first, last) in enumerate(pairwise(_shard_borders(work, staged, shards))):
        if (known := journal.entry("shard", shard)) is not None:
            start, lines = start + known["length"], lines + known["files"][f"meta.{shard}"]["bytes"]
            continue
        docs, offsets, meta = (folder / f"{part}.{shard}" for part in ("docs", "metaoff", "meta"))
        write_pieces(docs, _document_starts(work / STAGED[1], first, last))
        length = _last(docs) - 1
        strips = _strips(work / STAGED[0], staged, start, length)
        write_pieces(folder / f"tokens.{shard}", (np.minimum(strip, separator(dtype)).astype(dtype) for strip in strips))
        write_pieces(offsets, _line_starts(work / STAGED[2], lines, last - first))
        size = _last(offsets)
        write_pieces(meta, _strips(work / STAGED[2], np.dtype(np.uint8), lines, size))
        start, lines = start + length, lines + size
        journal.append(
            {
                "stage": "shard",
                "shard": shard,
                "length": length,
                "documents": last - first,
                "files": {
                    f"{part}.{shard}": layout.describe_file(folder / f"{part}.{shard}") for part in ("tokens", "docs", "meta", "metaoff")
                },
            }
        )


def _shard_borders(work: Path, staged: np.dtype, shards: int) -> list[int]:
    """The first document of every shard, and the number of all."""
    documents = (work / STAGED[1]).stat().st_size // 8
    if shards > documents:
        raise InputError(f"{documents} documents cannot fill {shards} shards.", f"Ask for at most {documents}.")
    targets = (work / STAGED[0]).stat().st_size // staged.itemsize * np.arange(1, shards) / shards
    borders = np.ones(shards + 1, np.int64)
    end = 0
    for lengths in _strips(work / STAGED[1], np.dtype("<i8"), 0, documents):
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
    for strip in _strips(lengths, np.dtype("<i8"), first, last - first):
        starts = start + np.cumsum(strip + 1)
        yield starts.astype("<i8")
        start = int(starts[-1])


def _line_starts(meta: Path, begin: int, count: int) -> Iterator[np.ndarray]:
    """Where `count` lines from the byte `begin` on begin, counted from there, and where the next one would."""
    yield np.zeros(1, "<i8")
    done = 0
    for strip in _strips(meta, np.dtype(np.uint8), begin, meta.stat().st_size - begin):
        breaks = np.flatnonzero(strip == ord("\n"))[:count]
        yield (breaks + done + 1).astype("<i8")
        count, done = count - breaks.size, done + strip.size
        if count == 0:
            return


def _strips(path: Path, dtype: np.dtype, start: int, count: int) -> Iterator[np.ndarray]:
    """The entries start, …, start + count - 1 of a file, so many at once that the memory does not notice; never mapped."""
    for at in range(start, start + count, _STRIP):
        yield np.fromfile(path, dtype, min(_STRIP, start + count - at), offset=at * dtype.itemsize)


def _last(path: Path) -> int:
    """The last int64 of a file."""
    return int(np.fromfile(path, "<i8", 1, offset=path.stat().st_size - 8)[0])


def _at_once(plans: list[SortPlan], bound: int | None) -> int:
    """How many shards may be sorted at once: as many as there are cores, while the bound, or half of the free memory, holds them."""
    room = free_memory() // 2 if bound is None else bound - RESERVED
    return max(1, min(os.cpu_count() or 1, len(plans), room // max(plan.memory for plan in plans)))


def _sort(work: Path, journal: Journal, shard: int, dtype: np.dtype, top: int, plan: SortPlan, progress: Progress) -> None:
    """Writes the suffix array of a shard and its buckets."""
    folder = work / "index"
    order, buckets = folder / f"sa.{shard}", folder / f"buckets.{shard}"
    if plan.blocks:
        alphabet = _sort_in_blocks(work, journal, shard, dtype, top, plan.blocks, progress)
    else:
        tokens = np.fromfile(folder / f"tokens.{shard}", dtype)
        require_space(folder, 4 * tokens.size)
        sa = suffix_array(tokens, top, plan.builder)
        tokens.flags.writeable = sa.flags.writeable = False  # as the mapped files are: one compiled form of `branches` serves both
        firsts, starts = branches(tokens, sa, 0, sa.size, 0)
        write_pieces(order, [sa.astype("<u4", copy=False)])
        write_pieces(buckets, [firsts.astype("<i8"), starts.astype("<i8")])
        alphabet = firsts.size
    files = {path.name: layout.describe_file(path) for path in (order, buckets)}
    entry = {"stage": "sort", "shard": shard, "builder": plan.builder, "blocks": plan.blocks, "alphabet": alphabet, "files": files}
    journal.append(entry)


def _sort_in_blocks(work: Path, journal: Journal, shard: int, dtype: np.dtype, top: int, blocks: int, progress: Progress) -> int:
    """Does that for a shard larger than the memory; returns how many distinct tokens it has."""
    folder = work / "index"
    length = journal.require("shard", shard)["length"]
    require_space(folder, 4 * length + block_space(length))
    sort = BlockSort(folder / f"tokens.{shard}", dtype, length, top, blocks, work / f"blocks.{shard}", journal, shard)
    sort.sort_blocks(lambda done, total: progress(f"sort shard {shard}, block", done, total))
    write_pieces(folder / f"sa.{shard}", sort.merged())
    values, counts = np.empty(0, dtype), np.empty(0, np.int64)
    for strip in _strips(folder / f"tokens.{shard}", dtype, 0, length):
        values, counts = _add_counts(values, counts, *np.unique(strip, return_counts=True))
    write_pieces(folder / f"buckets.{shard}", [values.astype("<i8"), np.concatenate([[0], np.cumsum(counts)]).astype("<i8")])
    sort.remove()
    return values.size


def _add_counts(values: np.ndarray, counts: np.ndarray, more: np.ndarray, again: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of two tables of distinct values, ascending, and their counts."""
    merged = np.union1d(values, more)
    total = np.zeros(merged.size, np.int64)
    total[np.searchsorted(merged, values)] = counts
    total[np.searchsorted(merged, more)] += again
    return merged, total


def write_pieces(path: Path, pieces: Iterable[np.ndarray]) -> None:
    """Writes arrays one after the other into a file, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).data)


def _describe(
    folder: Path,
    journal: Journal,
    name: str,
    state: dict[str, Any],
    card: dict[str, Any] | None,
    request: dict[str, Any],
    bound: int | None,
) -> None:
    """Writes the manifest."""
    content = hashlib.sha256()
    files: dict[str, Any] = {}
    rows = []
    for shard in range(request["shards"]):
        cut, order = journal.require("shard", shard), journal.require("sort", shard)
        for strip in _strips(folder / f"tokens.{shard}", DTYPES[name], 0, cut["length"]):
            update_content(content, strip)
        files |= cut["files"] | order["files"]
        rows.append(
            {key: cut[key] for key in ("length", "documents")} | {key: order.get(key, 0) for key in ("builder", "blocks", "alphabet")}
        )
    if card:
        files["tokenizer.json"] = layout.describe_file(folder / "tokenizer.json")
    layout.write_manifest(
        folder,
        {
            "fingerprint": layout.fingerprint(content.hexdigest(), card),
            "content": content.hexdigest(),
            "source": source_digest(batch["digest"] for batch in journal.batches()),
            "request": request,
            "memory": bound,
            "token_dtype": name,
            "n_tokens": sum(row["length"] - row["documents"] for row in rows),
            "n_documents": state["documents"],
            "max_id": state["top"],
            "tokenizer": card,
            "shards": rows,
            "files": files,
        },
    )
