"""Where an index is built: a folder beside the target, locked by one builder, with a journal of what is finished.

`<out>.partial/journal` starts with the configuration and then has one JSON object for every finished piece of work. Lines are
only ever added at the end; a last line that was cut by a kill is dropped. `<out>.partial/index/` becomes `<out>` by a rename.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palimpsest.corpus.manifest import is_index
from palimpsest.errors import StorageError
from palimpsest.files import write_text

_log = logging.getLogger(__name__)
_FORMAT = "palimpsest-build"
_JOURNAL = "journal"
_PREVIOUS = "previous"


class Journal:
    """The finished pieces of a build, in order, on the disk."""

    def __init__(self, path: Path, header: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        self.path, self.header, self.entries = path, header, entries
        self._turn = threading.Lock()

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> Journal:
        """A journal without entries, for a build with this configuration."""
        journal = cls(path, {"format": _FORMAT, "config": config}, [])
        journal.truncate(0)
        return journal

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """The journal at `path` up to its last whole line; None when it is not one of ours."""
        lines: list[dict[str, Any]] = []
        try:
            with open(path, "rb") as stream:
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    lines.append(json.loads(line))
        except FileNotFoundError:
            return None
        except ValueError:
            pass  # a line that the disk lost: what stands before it counts
        if not lines or lines[0].get("format") != _FORMAT:
            return None
        journal = cls(path, lines[0], lines[1:])
        journal.truncate(len(journal.entries))
        return journal

    def append(self, entry: dict[str, Any]) -> None:
        """Notes a finished piece; may be called from several threads."""
        with self._turn, open(self.path, "ab") as stream:
            stream.write(json.dumps(entry).encode() + b"\n")
            self.entries.append(entry)

    def truncate(self, count: int) -> None:
        """Forgets all entries but the first `count`."""
        del self.entries[count:]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in [self.header, *self.entries]))

    def entry(self, stage: str, shard: int | None = None) -> dict[str, Any] | None:
        """The entry of a stage (of a shard), or None when that is not done."""
        for entry in self.entries:
            if entry["stage"] == stage and entry.get("shard") == shard:
                return entry
        return None

    def require(self, stage: str, shard: int) -> dict[str, Any]:
        """The entry of a stage of a shard that is done."""
        entry = self.entry(stage, shard)
        assert entry is not None, f"{stage} {shard} is not done"
        return entry

    def batches(self) -> list[dict[str, Any]]:
        """The entries of the finished batches of documents."""
        return [entry for entry in self.entries if entry["stage"] == "batch"]


@contextlib.contextmanager
def workspace(out: Path, config: dict[str, Any], resume: bool) -> Iterator[tuple[Path, Journal]]:
    """The folder `<out>.partial` and its journal, for this process alone.

    What an earlier build with the same configuration left there is kept; anything else that is ours is discarded with a notice.

    Raises:
        StorageError: another process is building there, or the folder holds something else.
    """
    work = partial_folder(out)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        journal = Journal.read(work / _JOURNAL)
        if journal is None and any(not name.name.endswith(".tmp") for name in work.iterdir()):
            raise StorageError(f"{work} holds something that is not an unfinished index.", "Move it away or choose another target.")
        if journal is not None and journal.entry("swap") and not (work / "index").exists():
            _clear(work)  # the index was in place already; only the tidying was cut short
            journal = None
        if journal is not None and not resume:
            _log.warning("Discarding the unfinished index %s: a fresh build was asked for.", work)
            journal = None
        elif journal is not None and journal.header["config"] != config:
            _log.warning("Discarding the unfinished index %s: it was begun with another tokenizer, token type or release.", work)
            journal = None
        if journal is None:
            _clear(work)
            journal = Journal.create(work / _JOURNAL, config)
        elif journal.entries:
            _log.info("Continuing the unfinished index %s.", work)
        try:
            yield work, journal
        finally:
            if work.exists() and not journal.entries:  # nothing finished that is worth keeping
                remove_workspace(work)


def partial_folder(out: Path) -> Path:
    """Where the index `out` is built."""
    return out.with_name(out.name + ".partial")


def refuse_foreign(out: Path) -> None:
    """Raises `StorageError` when something that is not an index stands at `out`."""
    if out.is_symlink() and not is_index(out):  # a folder cannot be renamed onto a link, wherever it leads
        raise StorageError(f"{out} is a link that leads to no index.", "Choose another target, or what the link should lead to.")
    if out.exists() and not is_index(out) and not (out.is_dir() and not any(out.iterdir())):
        what = "a folder with other files" if out.is_dir() else "a file"
        raise StorageError(f"{out} is {what}, not an index, and will not be overwritten.", "Choose another target or move it away.")


def put_in_place(work: Path, journal: Journal, out: Path) -> None:
    """Renames the finished index to `out`, in place of an older one, and removes the workspace.

    That this has begun is on the disk before: a build that did not know it would write into staged tokens that are the index's own.
    """
    journal.append({"stage": "swap"})
    with open(journal.path, "rb+") as stream:
        os.fsync(stream.fileno())
    if is_index(out):
        os.rename(out, work / _PREVIOUS)
    os.rename(work / "index", out)
    _sync_folder(out.parent)
    remove_workspace(work)


def is_being_exchanged(out: Path) -> bool:
    """Whether an older index has been taken away from `out` and the new one is about to come."""
    return (partial_folder(out) / _PREVIOUS).exists()


def remove_workspace(work: Path) -> None:
    """Removes a workspace, the journal last, so that a kill in between leaves something recognisable."""
    _clear(work)
    with contextlib.suppress(FileNotFoundError):
        work.rmdir()


def _clear(work: Path) -> None:
    for path in sorted(work.iterdir(), key=lambda path: path.name == _JOURNAL):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a folder to this process; raises `StorageError` when another one has it."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"Another process is building in {folder}.", "Wait until it has finished.") from error
        yield
    finally:
        os.close(handle)
