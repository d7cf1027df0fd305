"""Building an index: documents → tokens → shards → suffix arrays, each finished piece noted, the whole renamed at the end.

A build that was killed reads the documents again, keeps every batch whose digest is still the same and continues after the last
one; nothing is tokenized or sorted twice. From the first batch that differs on, everything is done anew. What was staged, cut and
sorted is held against its checksums first. The bytes of the result do not depend on interruptions.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from palimpsest.cluster import require_engine
from palimpsest.corpus import manifest as layout
from palimpsest.corpus.documents import Docs, as_documents
from palimpsest.corpus.external import BlockSort, block_space
from palimpsest.corpus.memory import RESERVED, SortPlan, free_memory, parse_memory, plan_sort
from palimpsest.corpus.search import branches
from palimpsest.corpus.sharding import read_strips, split_shards, write_pieces
from palimpsest.corpus.staging import STAGED, Progress, batches, source_digest, stage
from palimpsest.corpus.suffix_array import choose_builder, suffix_array
from palimpsest.corpus.tokens import DTYPES, dtype_name, separator, staging_dtype, update_content
from palimpsest.corpus.workspace import Journal, partial_folder, put_in_place, refuse_foreign, remove_workspace, workspace
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError, StorageError
from palimpsest.files import require_space, sha256_file, storage_errors
from palimpsest.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_HASHED = 1 << 19  # tokens that are hashed at once, while shards are sorted


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
    engine: str = "local",
) -> None:
    """Builds the index at `out`; parameters and errors as in `CorpusIndex.build`."""
    require_engine(engine)
    bound = parse_memory(memory)
    if shards < 1:
        raise InputError(f"An index of {shards} shards cannot be built.", "Give at least 1.")
    choose_builder(builder, 0, 0)
    if engine == "ray" and builder == "external":
        raise InputError('The builder "external" sorts on one machine, in blocks.', 'Use more shards, and builder "auto".')
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
        _forget_damaged(work, journal)
        state = stage(as_documents(docs), tokenizer, DTYPES[staged], work, journal, progress, bound, engine)
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
            split_shards(work, folder, journal, DTYPES[staged], DTYPES[name], shards)
        waiting = [shard for shard in range(shards) if journal.entry("sort", shard) is None]
        if engine == "ray":
            from palimpsest.corpus.ray_build import sort_on_cluster

            choices = [choose_builder(builder, journal.require("shard", shard)["length"], state["top"]) for shard in range(shards)]
            sorting = sort_on_cluster(folder, journal, waiting, DTYPES[name], state["top"], choices)
        else:
            plans = [_plan(journal, shard, builder, state["top"], DTYPES[name], bound) for shard in range(shards)]
            sorting = _sort_here(folder, journal, waiting, DTYPES[name], state["top"], plans, bound, progress)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as beside:
            content = beside.submit(_content, folder, journal, DTYPES[name], shards, stop)
            try:
                for done, _ in enumerate(sorting, start=1 + shards - len(waiting)):
                    progress("sort", done, shards)
            except BaseException:
                stop.set()
                raise
        if tokenizer:
            tokenizer.save(folder / "tokenizer.json")
        _describe(folder, journal, name, state, card, request, bound, *content.result())
        built = layout.load_manifest(folder)
        put_in_place(work, journal, out)
    with contextlib.suppress(OSError):  # another process may change the index already: then the next opening hashes it
        layout.note_whole(out, built, wait=True)


def _forget_damaged(work: Path, journal: Journal) -> None:
    """Lets the journal forget what was finished from the first file on that is not on the disk as it was written.

    A shard's tokens that are only a name of the staged ones have no digest yet: they are that still, and `stage` looks at these.
    """
    for number, entry in enumerate(journal.entries):
        for name, known in entry.get("files", {}).items():
            path, staged = work / "index" / name, work / STAGED[0]
            whole = path.is_file() and path.stat().st_size == known["bytes"]
            if whole and (sha256_file(path) == known["sha256"] if "sha256" in known else staged.exists() and path.samefile(staged)):
                continue
            _log.warning("%s is not what was written: it is made again, and what came after it.", path)
            journal.truncate(number)
            return


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


def _plan(journal: Journal, shard: int, builder: str, top: int, dtype: np.dtype, bound: int | None) -> SortPlan:
    """How a shard is sorted; when it was begun in blocks, in as many again where that is possible."""
    begun = [entry["blocks"] for entry in journal.entries if entry["stage"] == "block" and entry["shard"] == shard]
    return plan_sort(builder, journal.require("shard", shard)["length"], top, dtype.itemsize, bound, begun[-1] if begun else 0)


def _at_once(plans: list[SortPlan], bound: int | None) -> int:
    """How many shards may be sorted at once: as many as there are cores, while the bound, or half of the free memory, holds them."""
    room = free_memory() // 2 if bound is None else bound - RESERVED
    return max(1, min(os.cpu_count() or 1, len(plans), room // max(plan.memory for plan in plans)))


def _sort_here(
    folder: Path,
    journal: Journal,
    waiting: list[int],
    dtype: np.dtype,
    top: int,
    plans: list[SortPlan],
    bound: int | None,
    progress: Progress,
) -> Iterator[int]:
    """Sorts the shards `waiting` in threads of this process; yields each when it is in its place and in the journal."""
    at_once = _at_once(plans, bound)
    threads = max(1, (os.cpu_count() or 1) // at_once)

    def sort(shard: int) -> int:
        if plans[shard].blocks:
            journal.append(_sort_in_blocks(folder, journal, shard, dtype, top, plans[shard], threads, progress))
        else:
            journal.append(sort_shard(folder, folder, shard, dtype, top, plans[shard].builder, threads))
        return shard

    with ThreadPoolExecutor(at_once) as pool:
        for task in as_completed([pool.submit(sort, shard) for shard in waiting]):
            yield task.result()


def sort_shard(folder: Path, target: Path, shard: int, dtype: np.dtype, top: int, builder: str, threads: int = 1) -> dict[str, Any]:
    """Writes the suffix array and the buckets of a shard of `folder` into `target`; returns what the journal is to say of them."""
    tokens = np.fromfile(folder / f"tokens.{shard}", dtype)
    require_space(target, 4 * tokens.size)
    if not target.is_dir():  # of a run on a cluster that was over before this attempt: nothing may appear in its place
        raise StorageError(f"The folder {target} is gone.", "The build has gone on without this attempt: nothing is lost.")
    finished: SimpleQueue[np.ndarray | BaseException | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as beside:
        written = beside.submit(write_pieces, target / f"sa.{shard}", _handed_over(finished))
        try:
            sa = suffix_array(tokens, top, builder, threads, lambda piece: finished.put(piece.astype("<u4", copy=False)))
        except BaseException as error:
            finished.put(error)  # nothing is left of what has been written
            raise
        finished.put(None)
        tokens.flags.writeable = sa.flags.writeable = False  # as the mapped files are: one compiled form of `branches` serves both
        firsts, starts = branches(tokens, sa, 0, sa.size, 0)
        buckets = write_pieces(target / f"buckets.{shard}", [firsts.astype("<i8"), starts.astype("<i8")])
    return _sorted(shard, builder, 0, firsts.size, written.result(), buckets)


def _handed_over(pieces: SimpleQueue[np.ndarray | BaseException | None]) -> Iterator[np.ndarray]:
    """What another thread puts into the queue, until that is None; an exception is raised here as well."""
    while (piece := pieces.get()) is not None:
        if isinstance(piece, BaseException):
            raise piece
        yield piece


def _sort_in_blocks(
    folder: Path, journal: Journal, shard: int, dtype: np.dtype, top: int, plan: SortPlan, threads: int, progress: Progress
) -> dict[str, Any]:
    """The same for a shard larger than the memory."""
    length, blocks = journal.require("shard", shard)["length"], plan.blocks
    require_space(folder, 4 * length + block_space(length))
    kept = folder.with_name(f"blocks.{shard}")
    sort = BlockSort(folder / f"tokens.{shard}", dtype, length, top, blocks, kept, journal, shard, plan.lean, threads)
    sort.sort_blocks(lambda done, total: progress(f"sort shard {shard}, block", done, total))
    sa = write_pieces(folder / f"sa.{shard}", sort.merged())
    values, counts = _token_counts(read_strips(folder / f"tokens.{shard}", dtype, 0, length), dtype)
    borders = np.concatenate([[0], np.cumsum(counts)])
    buckets = write_pieces(folder / f"buckets.{shard}", [values.astype("<i8"), borders.astype("<i8")])
    sort.remove()
    return _sorted(shard, "external", blocks, values.size, sa, buckets)


def _sorted(shard: int, builder: str, blocks: int, alphabet: int, sa: dict[str, Any], buckets: dict[str, Any]) -> dict[str, Any]:
    """What the journal says of a sorted shard; `sa` and `buckets` describe its files."""
    files = {f"sa.{shard}": sa, f"buckets.{shard}": buckets}
    return {"stage": "sort", "shard": shard, "builder": builder, "blocks": blocks, "alphabet": alphabet, "files": files}


def _token_counts(strips: Iterator[np.ndarray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The distinct tokens, ascending, the separator among them, and how often each occurs."""
    if dtype.itemsize < 4:
        table = np.zeros(separator(dtype) + 1, np.int64)
        for strip in strips:
            table += np.bincount(strip, minlength=table.size)
        values = np.flatnonzero(table)
        return values, table[values]
    values, counts = np.empty(0, dtype), np.empty(0, np.int64)
    for strip in strips:
        more, again = np.unique(strip, return_counts=True)
        merged = np.union1d(values, more)
        total = np.zeros(merged.size, np.int64)
        total[np.searchsorted(merged, values)] = counts
        total[np.searchsorted(merged, more)] += again
        values, counts = merged, total
    return values, counts


def _content(folder: Path, journal: Journal, dtype: np.dtype, shards: int, stop: threading.Event) -> tuple[str, dict[str, str]]:
    """The digest of the content of all shards, and the SHA-256 of files with tokens that have none yet; only begun when told to stop."""
    content = hashlib.sha256()
    hashes: dict[str, str] = {}
    for shard in range(shards):
        cut, name = journal.require("shard", shard), f"tokens.{shard}"
        digest = None if "sha256" in cut["files"][name] else hashlib.sha256()
        for strip in read_strips(folder / name, dtype, 0, cut["length"], _HASHED):
            if stop.is_set():
                break
            update_content(content, strip)
            if digest:
                digest.update(strip.data)
        if digest:
            hashes[name] = digest.hexdigest()
    return content.hexdigest(), hashes


def _describe(
    folder: Path,
    journal: Journal,
    name: str,
    state: dict[str, Any],
    card: dict[str, Any] | None,
    request: dict[str, Any],
    bound: int | None,
    content: str,
    hashes: dict[str, str],
) -> None:
    """Writes the manifest."""
    files: dict[str, Any] = {}
    rows = []
    for shard in range(request["shards"]):
        cut, order = journal.require("shard", shard), journal.require("sort", shard)
        files |= cut["files"] | order["files"]
        rows.append(
            {key: cut[key] for key in ("length", "documents")} | {key: order.get(key, 0) for key in ("builder", "blocks", "alphabet")}
        )
    files |= {name: {**files[name], "sha256": digest} for name, digest in hashes.items()}
    if card:
        files["tokenizer.json"] = layout.describe_file(folder / "tokenizer.json")
    layout.write_manifest(
        folder,
        {
            "fingerprint": layout.fingerprint(content, card),
            "content": content,
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
