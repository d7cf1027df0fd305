"""The index on the disk: which files it has, what the manifest says of them, and how damage is noticed.

One folder; for every shard s the files

    tokens.s    u8|u16|u32 (length,)   a separator before every document
    sa.s        u32 (length,)          the suffix array
    buckets.s   int64 (2 k + 1,)       k distinct tokens, then the k + 1 borders of their suffixes: also the unigram counts
    docs.s      int64 (documents + 1,) start of every document in tokens.s, and length + 1
    meta.s      one JSON object a line: {"id", "metadata"}
    metaoff.s   int64 (documents + 1,) start of every line in meta.s

and, once change g of the index has deleted documents, sa.s.g and buckets.s.g without them in place of sa.s and buckets.s, and

    live.s.g    int64 (left,)          which documents of docs.s and metaoff.s are left

beside `tokenizer.json`, where there is a tokenizer, and `manifest.json` with the sizes and SHA-256 of all of them and one of itself.

Opening checks the manifest, the format version and the size of every file always. The content is hashed when this user opens the
index for the first time and whenever a file's size, inode or time stamps have changed since it was last found whole; what was found
is noted in the cache folder. So a flipped byte is reported at the next opening, and an unchanged index opens in milliseconds.
Only a disk that alters a file without touching its time stamps escapes this; `verify=True` hashes everything again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from palimpsest.errors import CorpusError, IndexCorruptError, IndexVersionError, StorageError
from palimpsest.files import cache_dir, sha256_file, sha256_json, write_json

FORMAT = "palimpsest-index"
VERSION = 1
MANIFEST = "manifest.json"
_CLOCK_TICK = 20_000_000  # nanoseconds
_SOON = 20_000_000  # bytes that are hashed in about that time
_REBUILD = "Fetch the index again or build it again; the damaged folder is then replaced."


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest has them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes `manifest.json` with its own checksum."""
    body = {"format": FORMAT, "version": VERSION, **content}
    write_json(folder / MANIFEST, {**body, "checksum": sha256_json(body)})


def fingerprint(content: str, tokenizer: dict[str, Any] | None) -> str:
    """SHA-256 (hex) of an index: of its content's digest (see `tokens.update_content`) and its tokenizer's fingerprint."""
    return sha256_json({"content": content, "tokenizer": tokenizer["fingerprint"] if tokenizer else None})


def is_index(folder: Path) -> bool:
    """Whether `folder` holds an index of any version, whole or damaged."""
    if (folder / "tokens.0").is_file() and (folder / "sa.0").is_file():
        return True
    try:
        return FORMAT in (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index whose files are all there.

    Raises:
        CorpusError: there is no index.
        IndexVersionError: another format version.
        IndexCorruptError: the manifest is damaged, or a file is missing or of another size.
    """
    manifest = load_manifest(folder)
    require_files(folder, manifest["files"])
    return manifest


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index, its files not looked at; raises as `read_manifest`."""
    path = folder / MANIFEST
    if not path.is_file():
        if is_index(folder):
            raise IndexCorruptError(f"The file {path} of the index is missing.", _REBUILD)
        raise CorpusError(f"There is no index at {folder}.", "Build one with CorpusIndex.build or `palimpsest index`.")
    try:
        manifest = json.loads(path.read_bytes())
        checksum = manifest.pop("checksum")
        named = manifest["format"]
        version = manifest["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexCorruptError(f"{path} is damaged: it is not a manifest.", _REBUILD) from error
    except PermissionError as error:
        raise StorageError(f"{path} may not be read: {error.strerror}.", "Change its permissions.") from error
    whole = sha256_json(manifest) == checksum
    if named == FORMAT and isinstance(version, int) and version != VERSION:
        raise IndexVersionError(
            f"The index {folder} has format version {version}; this release reads version {VERSION}.", "Build the index again."
        )
    if not whole or named != FORMAT:
        raise IndexCorruptError(f"{path} is damaged: its checksum does not match.", _REBUILD)
    return {**manifest, "checksum": checksum}


def require_files(folder: Path, files: dict[str, Any]) -> None:
    """Raises `IndexCorruptError` unless every one of `files`, as the manifest has them, is there with its size."""
    for name, entry in files.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError as error:
            raise IndexCorruptError(f"The file {folder / name} of the index is missing.", _REBUILD) from error
        if size != entry["bytes"]:
            raise IndexCorruptError(f"{folder / name} is damaged: it has {size} bytes instead of {entry['bytes']}.", _REBUILD)


def folder_state(folder: Path) -> tuple[int, int, bytes] | None:
    """What tells whether an index has changed since: which folder it is, and its manifest; None where there is none.

    A compaction may give the bytes that were there before, in another folder.
    """
    try:
        status = folder.stat()
        return status.st_ino, status.st_ctime_ns, (folder / MANIFEST).read_bytes()
    except OSError:
        return None


def verify_files(folder: Path, manifest: dict[str, Any], only: set[str] | None = None) -> None:
    """Hashes every file of the index, in parallel, and notes that it is whole; or hashes `only` some, which notes nothing.

    Raises:
        IndexCorruptError: naming the first file whose content is not what was built.
    """
    names = sorted(manifest["files"] if only is None else only)
    before = _stamp(folder, manifest, only)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        hashes = list(pool.map(lambda name: sha256_file(folder / name), names))
    for name, found in zip(names, hashes, strict=True):
        if found != manifest["files"][name]["sha256"]:
            raise IndexCorruptError(f"{folder / name} is damaged: its content is not what was built.", _REBUILD)
    if only is None:
        note_whole(folder, manifest, since=before)


def verify_if_changed(folder: Path, manifest: dict[str, Any], only: set[str] | None = None) -> None:
    """`verify_files`, unless the index was found whole before and none of these files has been touched since."""
    known = noted(folder)
    if any(known.get(name) != entry for name, entry in _stamp(folder, manifest, only).items()):
        verify_files(folder, manifest, only)


def noted(folder: Path) -> dict[str, Any]:
    """What the cache folder has of an index that was found whole: the manifest's checksum, and the state of every file by its name."""
    try:
        known = json.loads(_note(folder).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def note_whole(folder: Path, manifest: dict[str, Any], wait: bool = False, since: dict[str, Any] | None = None) -> None:
    """Notes in the cache folder that the index is whole as it stands now.

    Not where a file has just been changed, for another change in the same tick of the file system's clock would not show; with `wait`
    it waits for the next tick, unless the next opening hashes the files as soon. Nor where a file of `since` is in another state than
    that, in which it was whole.
    """
    stamp = _stamp(folder, manifest)
    if since is not None and any(stamp[name] != entry for name, entry in since.items()):
        return
    newest = max(entry[2] for name, entry in stamp.items() if name != "checksum")
    left = newest + _CLOCK_TICK - time.time_ns()
    if left > 0:
        if not wait or left > _CLOCK_TICK or sum(entry["bytes"] for entry in manifest["files"].values()) < _SOON:
            return
        time.sleep(left / 1e9)
        if _stamp(folder, manifest) != stamp:
            return
    try:
        write_json(_note(folder), stamp, indent=None)
    except OSError:
        return  # without a cache folder the next opening hashes once more: slower, never less safe


def _note(folder: Path) -> Path:
    return cache_dir("indexes", hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32] + ".json")


def _stamp(folder: Path, manifest: dict[str, Any], only: set[str] | None = None) -> dict[str, Any]:
    stamp: dict[str, Any] = {"checksum": manifest["checksum"]}
    for name in sorted(manifest["files"] if only is None else only):
        status = (folder / name).stat()
        stamp[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return stamp
