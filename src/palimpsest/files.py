"""Files that are either whole or absent: atomic writes, hashes, canonical JSON and the cache folder.

Everything that Palimpsest writes goes to a temporary name beside its target, is flushed to the disk and renamed; a killed run
leaves the old file or none, never half of one. `StorageError` names the path and the remedy when the disk is full or closed to us.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palimpsest.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another folder, then run the same command again: finished work is kept.",
    errno.EDQUOT: "The disk quota is used up: free some space or choose another folder, then run the same command again.",
    errno.EACCES: "Choose a folder that you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder that you may write to, or change its permissions.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.EEXIST: "A file stands where a folder is needed: choose another path.",
    errno.ENOTDIR: "A file stands where a folder is needed: choose another path.",
    errno.EISDIR: "A folder stands where a file is needed: choose another path.",
}


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a `StorageError` with a remedy.

    Example:
        >>> with storage_errors("results.json"):
        ...     pass
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename and os.fspath(path).startswith(os.fspath(error.filename)):
            raise StorageError(f"{os.fspath(error.filename)} cannot be made.", "Choose a folder elsewhere.") from error
        if error.errno in _REMEDIES:
            raise StorageError(f"Cannot write {os.fspath(path)!s}: {error.strerror}.", _REMEDIES[error.errno]) from error
        raise


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of `target`; renames it onto `target` when the block ends well.

    The block writes a *file* to the yielded path. If the block raises, the temporary file is removed and `target` is untouched.

    Raises:
        StorageError: no space, no permission, or a folder where a file is needed.
    """
    target = Path(target)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data`, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: str | os.PathLike[str], value: Any, *, indent: int | None = 1) -> None:
    """Writes `value` as JSON, atomically. NaN and infinity are refused: JSON has no word for them."""
    write_text(target, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def canonical_json(value: Any) -> str:
    """One string for equal values: sorted keys, no spaces. The base of every configuration hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_json(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def sha256_file(path: str | os.PathLike[str], chunk: int = 1 << 22) -> str:
    """SHA-256 (hex) of a file, read in chunks of `chunk` bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(chunk):
            digest.update(block)
    return digest.hexdigest()


def cache_dir(*parts: str) -> Path:
    """The user's cache folder, `$PALIMPSEST_CACHE` or `$XDG_CACHE_HOME/palimpsest` or `~/.cache/palimpsest`; `parts` are appended.

    The folder is not created.
    """
    base = os.environ.get("PALIMPSEST_CACHE")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "palimpsest"
    return root.joinpath(*parts)


def require_space(folder: str | os.PathLike[str], needed: int) -> None:
    """Raises `StorageError` when the disk that holds `folder` has fewer than `needed` bytes free."""
    probe = Path(folder).absolute()
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < needed:
        raise StorageError(
            f"{folder} needs {needed / 1e6:,.0f} MB, but its disk has {free / 1e6:,.0f} MB free.",
            "Free some space or choose another folder.",
        )
