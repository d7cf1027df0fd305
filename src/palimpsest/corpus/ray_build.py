"""Building an index on a Ray cluster: batches of documents are tokenized, and shards sorted, as tasks; the journal stays the truth.

The process that builds reads the documents, keeps the journal and puts every file in its place, as it does without a cluster; it may
be killed and continued like any build, on a cluster or not, and the bytes are the same. Tasks read from the workspace and write
nothing but finished files into a folder of this run, `<out>.partial/sorted.<run>`; only the building process moves a file from there
into the index, and only when it notes it in the journal. So a task that Ray does twice, because the machine of the first attempt was
only out of reach and goes on writing, harms nothing: both write the same bytes, each to a temporary name that becomes the file at
once, and what comes too late finds its folder gone.

All machines must see the workspace under the same path: a shared file system, as for infini-gram. A machine that does not is named
in the error.
"""

from __future__ import annotations

import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.cluster import RETRIES, as_finished, connect, in_order, machines
from palimpsest.corpus.build import sort_shard
from palimpsest.corpus.documents import Document
from palimpsest.corpus.staging import Batch, Encoded, is_long
from palimpsest.corpus.suffix_array import sorting_memory
from palimpsest.corpus.tokens import encode_documents
from palimpsest.corpus.workspace import Journal
from palimpsest.errors import InputError, StorageError
from palimpsest.tokenizer import Tokenizer

_RUN = "sorted."  # what the folder of a run is called, before its number
_AHEAD = 2  # batches under way for every core: one in work, one that waits


def encode_on_cluster(
    batches: Iterator[Batch], known: list[str], tokenizer: Tokenizer, dtype: np.dtype, work: Path
) -> Iterator[tuple[Batch, Encoded | None]]:
    """Every batch with its tokens, in order, tokenized as Ray tasks; without them where it is known, or too long for a task.

    Args:
        batches: what `staging.batches` yields.
        known: digests of the batches that were staged before; as far as `batches` begin with them, nothing is tokenized.
        tokenizer: laid down in `work`, where every worker reads it once.
        dtype: as of `encode_documents`.
        work: the workspace of the build.

    Raises:
        InputError, CorpusError: as `encode_documents`.
        ClusterError: there is no cluster, or it lost a batch for good.
        StorageError: a machine does not see `work`.
    """
    ray = connect()
    path = work.absolute() / "tokenizer.json"
    tokenizer.save(path)
    task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(_encode)

    left = list(reversed(known))

    def submit(batch: Batch) -> Any:
        if left and left.pop() == batch[2]:
            return None
        left.clear()
        if is_long(batch[0]):
            return None
        bare = [Document(document.id, document.text, document.ids) for document in batch[0]]  # the metadata stays here
        return task.remote(bare, str(path), tokenizer.fingerprint, dtype)

    cores = sum(int(machine["CPU"]) for machine in machines(ray))
    yield from in_order(ray, submit, batches, _AHEAD * cores)


def _encode(batch: list[Document], path: str, fingerprint: str, dtype: np.dtype) -> Encoded:
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # a task has one core
    return encode_documents(batch, _tokenizer(path, fingerprint), dtype)


@lru_cache(maxsize=1)
def _tokenizer(path: str, fingerprint: str) -> Tokenizer:
    """The tokenizer of the build, read once in every worker."""
    if not Path(path).is_file():
        raise _unseen(Path(path))
    tokenizer = Tokenizer.from_file(path)
    tokenizer.require_same(fingerprint, f"the build in {Path(path).parent}")
    return tokenizer


def sort_on_cluster(folder: Path, journal: Journal, waiting: list[int], dtype: np.dtype, top: int, builders: list[str]) -> Iterator[int]:
    """Sorts the shards `waiting` as Ray tasks; yields each when it is in its place and in the journal.

    Args:
        folder: the index in the making, `<out>.partial/index`.
        journal: of the build; it knows the shards' lengths.
        waiting: numbers of the shards that are still to be sorted.
        dtype, top: type of the tokens, and the greatest id.
        builders: of every shard of the index, see `choose_builder`.

    Raises:
        InputError: a shard needs more memory than any machine has.
        ClusterError: there is no cluster, or it lost a shard for good.
        StorageError: no space, or a machine that does not see the workspace.
    """
    ray = connect()
    folder = folder.absolute()
    for left in folder.parent.glob(_RUN + "*"):
        shutil.rmtree(left, ignore_errors=True)
    made = folder.with_name(_RUN + uuid.uuid4().hex[:12])
    made.mkdir()
    try:
        if "external" in builders:
            raise InputError('The builder "external" sorts on one machine, in blocks.', 'Use more shards, and builder "auto".')
        lengths = {shard: journal.require("shard", shard)["length"] for shard in waiting}
        needs = {shard: sorting_memory(builders[shard], lengths[shard], top, dtype.itemsize) for shard in waiting}
        _require_memory(needs, max(machine.get("memory", 0.0) for machine in machines(ray)))
        task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(_sort_elsewhere)
        references = [
            task.options(memory=needs[shard]).remote(folder, made, shard, lengths[shard], dtype, top, builders[shard]) for shard in waiting
        ]
        for entry in as_finished(ray, references):
            for name in entry["files"]:
                if not (made / name).is_file():
                    raise _unseen(made / name)
                os.replace(made / name, folder / name)
            journal.append(entry)
            yield entry["shard"]
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sort_elsewhere(folder: Path, made: Path, shard: int, length: int, dtype: np.dtype, top: int, builder: str) -> dict[str, Any]:
    """The task: `sort_shard` where the machine sees what it needs."""
    tokens = folder / f"tokens.{shard}"
    if not made.is_dir():
        raise _unseen(made)
    if not tokens.is_file() or tokens.stat().st_size != length * dtype.itemsize:
        raise _unseen(tokens)
    return sort_shard(folder, made, shard, dtype, top, builder)


def _require_memory(needs: dict[int, int], most: float) -> None:
    """Refuses what Ray would let wait for ever."""
    for shard, need in needs.items():
        if need > most:
            raise InputError(
                f"Sorting shard {shard} takes {need / 1e6:,.0f} MB; the largest machine of the cluster offers {most / 1e6:,.0f} MB.",
                f"Build with at least {-(-need // max(int(most), 1))} times as many shards.",
            )


def _unseen(path: Path) -> StorageError:
    return StorageError(
        f"{platform.node()} does not see {path} as it was written.",
        "All machines of the cluster need the folder of the index under the same path: put it on a shared file system.",
    )
