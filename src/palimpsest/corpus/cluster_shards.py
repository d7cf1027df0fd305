"""The shards of an index open on a Ray cluster: one actor for every group of neighbouring shards.

`ClusterShards` asks its actors what `Shards` asks the arrays themselves, the functions of `shard_answers`, so an index answers alike
on either. An actor that dies, or whose machine does, is started again and asked again. It opens its shards when it is first asked, and
again after a restart; before it answers it compares the manifest with that of the index that was opened, and its own files with the
manifest, as an opening in one process does. A file that is missing or damaged, or an index that was built anew in between, is an error
that names it, and never an answer from fewer shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from palimpsest.cluster import RETRIES, cluster_errors, connect, machines
from palimpsest.corpus import manifest as layout
from palimpsest.corpus.shard import Shard, Shards, open_shards
from palimpsest.corpus.tokens import DTYPES
from palimpsest.errors import IndexCorruptError, InputError

_T = TypeVar("_T")
_LARGE = 100_000  # bytes of arguments that are laid down once for all actors


class ClusterShards:
    """The shards of an index, open in actors; asked like `Shards`.

    Args:
        path: the index folder, the same on every machine of the cluster.
        manifest: of the index as it was opened.
        mode: "mmap" or "ram", on the machines of the actors.
        actors: groups of shards; by default as many as the cluster has cores, and never more than shards.
        verify: whether an actor hashes its files unless its machine found them whole before; their sizes are always compared.

    Raises:
        InputError: fewer than 1 actor.
        ClusterError: there is no cluster.
        IndexCorruptError: a machine does not see the index, or not as it was opened.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], mode: str, actors: int | None = None, *, verify: bool = True) -> None:
        if actors is not None and actors < 1:
            raise InputError(f"{actors} actors hold no shards.", "Give at least 1.")
        ray = connect()
        count = len(manifest["shards"])
        wanted = actors or sum(int(machine["CPU"]) for machine in machines(ray))
        borders = np.linspace(0, count, min(wanted, count) + 1).astype(int).tolist()
        self._groups = [range(first, last) for first, last in pairwise(borders)]
        # An actor waits for the disk most of the time: it takes no core away from the tasks and models of the same cluster.
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": RETRIES, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(**options)(ShardGroup)
        self._actors = [actor.remote(path.absolute(), manifest, mode, group, verify) for group in self._groups]
        self.each(_is_open)

    def __len__(self) -> int:
        return self._groups[-1].stop

    def each(self, function: Callable[..., _T], *arguments: Any, own: Sequence[Any] | None = None) -> list[_T]:
        """As `Shards.each`."""
        shared = _laid_down(arguments)
        parts = [None if own is None else list(own[group.start : group.stop]) for group in self._groups]
        asked = [actor.each.remote(function, shared, part) for actor, part in zip(self._actors, parts, strict=True)]
        return [answer for part in _answers(asked) for answer in part]

    def merged(self, merge: Callable[[_T, _T], _T], function: Callable[..., _T], *arguments: Any) -> _T:
        """As `Shards.merged`; every actor merges what its own shards say."""
        shared = _laid_down(arguments)
        return reduce(merge, _answers([actor.merged.remote(merge, function, shared) for actor in self._actors]))

    def at(self, number: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """As `Shards.at`."""
        place = next(i for i, group in enumerate(self._groups) if number in group)
        return _answers([self._actors[place].at.remote(number - self._groups[place].start, function, arguments)])[0]


class ShardGroup:
    """The actor: some shards of an index in a process of their own."""

    def __init__(self, path: Path, manifest: dict[str, Any], mode: str, group: range, verify: bool) -> None:
        self._path, self._manifest, self._mode, self._group, self._verify = path, manifest, mode, group, verify
        self._shards: Shards | None = None

    def each(self, function: Callable[..., Any], arguments: tuple[Any, ...], own: list[Any] | None) -> list[Any]:
        """As `Shards.each`."""
        return self._open().each(function, *_writable(arguments), own=own)

    def merged(self, merge: Callable[[Any, Any], Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """As `Shards.merged`."""
        return self._open().merged(merge, function, *_writable(arguments))

    def at(self, number: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """As `Shards.at`; the number counts from the first shard of the group."""
        return self._open().at(number, function, *_writable(arguments))

    def _open(self) -> Shards:
        """The shards, opened and compared when that was not done yet: what is wrong is then an answer, and not the death of the actor."""
        if self._shards is None:
            self._require_unchanged()
            wanted = {str(number) for number in self._group}
            files = {name: entry for name, entry in self._manifest["files"].items() if name.split(".")[1] in wanted}
            layout.require_files(self._path, files)
            if self._verify:
                layout.verify_if_changed(self._path, self._manifest, set(files))
            shards = open_shards(self._path, self._manifest["shards"], DTYPES[self._manifest["token_dtype"]], self._mode, self._group)
            self._require_unchanged()  # once more: it may have been replaced in between
            self._shards = shards
        return self._shards

    def _require_unchanged(self) -> None:
        if layout.load_manifest(self._path)["checksum"] != self._manifest["checksum"]:
            raise IndexCorruptError(f"The index {self._path} was changed since it was opened.", "Open it again.")


def _is_open(shard: Shard) -> bool:
    return shard.arrays[0].size > 0


def _laid_down(arguments: tuple[Any, ...]) -> Any:
    """The arguments, or where the cluster holds them when they are too large to be sent to every actor on its own."""
    if sum(value.nbytes for value in arguments if isinstance(value, np.ndarray)) < _LARGE:
        return arguments
    return connect().put(arguments)


def _answers(asked: list[Any]) -> list[Any]:
    ray = connect()
    with cluster_errors(ray):
        return ray.get(asked)


def _writable(arguments: tuple[Any, ...]) -> list[Any]:
    """Ray gives arrays that cannot be written; copied, they fit the compiled functions that serve this process's own."""
    return [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]
