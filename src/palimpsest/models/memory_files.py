"""A memory-based model on the disk: a folder of plain arrays that are mapped, not read, and a manifest that knows them by their hashes.

    manifest.json       format, version, settings, weights, and of every file its size, SHA-256, type and shape; and its own checksum
    tokens.<hash>       and so on: one little-endian array a file, see `WindowIndex`
    ids.<hash>          u32 (kinds,), the token id of every code
    sources.<hash>      the names of the documents, a JSON list
    tokenizer.<hash>    the tokenizer.json, where there is one

A file's name carries the beginning of its hash, so a model can be saved over another: the new files are written beside the old ones,
the manifest is replaced in one step, and only then what it does not name is removed. A save that is killed leaves the old model.
Everything that was learnt in pieces is sorted into one index first.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from palimpsest.corpus import manifest as layout
from palimpsest.corpus.tokens import separator
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError, ModelNotFoundError
from palimpsest.files import require_space, sha256_json, storage_errors, write_bytes, write_json
from palimpsest.models._window_index import ARRAYS, WindowIndex, join
from palimpsest.tokenizer import Tokenizer

if TYPE_CHECKING:
    from palimpsest.models.memory_based import MemoryBasedLM

FORMAT, VERSION = "palimpsest-memory", 1
_AGAIN = "Copy the model again from where it came, or train it again."


def is_memory(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds a memory-based model of any version, whole or damaged."""
    try:
        return FORMAT in (Path(folder) / layout.MANIFEST).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def refuse_foreign(folder: Path) -> None:
    """Raises `InputError` when `folder` is neither free nor a memory-based model, which alone may be replaced."""
    with storage_errors(folder):
        if folder.exists() and not is_memory(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is there already and holds no memory-based model.", "Choose another folder.")


def fingerprint(model: MemoryBasedLM) -> str:
    """SHA-256 (hex) of the settings, the vocabulary's size, the tokenizer and the documents in the order of learning."""
    content = hashlib.sha256()
    tokens, ids = join(model.memory.parts), model.memory.ids
    for start in range(0, tokens.size, 1 << 22):
        strip = tokens[start : start + (1 << 22)]
        wide = np.full(strip.size, separator(np.dtype("<u4")), "<u4")
        inside = strip != np.iinfo(strip.dtype).max
        wide[inside] = ids[strip[inside]]
        content.update(wide.data)
    tokenizer = model.tokenizer.fingerprint if model.tokenizer else None
    return sha256_json({"settings": model.settings, "vocab_size": model.vocab_size, "tokenizer": tokenizer, "content": content.hexdigest()})


def save_memory(model: MemoryBasedLM, path: str | os.PathLike[str]) -> None:
    """Writes a model to the folder `path`, replacing a model that is there.

    Raises:
        InputError: the model has learnt nothing, or `path` is something else than a model.
        StorageError: no space or no permission.
    """
    folder = Path(path)
    refuse_foreign(folder)
    model.memory.settle(whole=True)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    arrays = {**model.memory.parts[0].arrays(), "ids": model.memory.ids}
    require_space(folder, sum(array.nbytes for array in arrays.values()))
    files: dict[str, Any] = {}
    names: dict[str, str] = {}

    def write(name: str, data: bytes | memoryview, **facts: Any) -> None:
        digest = hashlib.sha256(data).hexdigest()
        names[name] = f"{name}.{digest[:12]}"
        files[names[name]] = {"bytes": len(data), "sha256": digest, **facts}
        write_bytes(folder / names[name], data)  # type: ignore[arg-type]

    for name, array in arrays.items():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        write(name, little.view(np.uint8).data, dtype=little.dtype.str, shape=list(little.shape))
    write("sources", json.dumps(model.memory.sources, ensure_ascii=False).encode("utf-8"))
    card = None
    if model.tokenizer:
        card = {key: getattr(model.tokenizer, key) for key in ("fingerprint", "bos_id", "eos_id", "pad_id", "adds_bos")}
        write("tokenizer", model.tokenizer.backend.to_str().encode("utf-8"))
    body = {
        "format": FORMAT,
        "version": VERSION,
        "settings": model.settings,
        "vocab_size": model.vocab_size,
        "weights": model.memory.weights.tolist(),
        "tokens": len(model.memory),
        "documents": len(model.memory.sources),
        "tokenizer": card,
        "fingerprint": fingerprint(model),
        "names": names,
        "files": files,
    }
    manifest = {**body, "checksum": sha256_json(body)}
    write_json(folder / layout.MANIFEST, manifest)
    for rest in folder.iterdir():
        if rest.name.split(".")[0] in (*ARRAYS, "ids", "sources", "tokenizer") and rest.name not in files:
            rest.unlink(missing_ok=True)
    layout.note_whole(folder, manifest)


def load_memory(
    path: str | os.PathLike[str], mode: Literal["mmap", "ram"] = "mmap", verify: bool | Literal["auto"] = "auto"
) -> MemoryBasedLM:
    """Opens what `save_memory` wrote.

    Args:
        path: the folder.
        mode: "mmap" maps the arrays, "ram" reads them.
        verify: "auto" hashes the files unless they were found whole before and have not been touched since, True always, False never;
            their sizes and the manifest are checked in any case.

    Raises:
        ModelNotFoundError: there is no memory-based model.
        IndexVersionError: it was written in another format version.
        IndexCorruptError: a file is missing, cut short or altered.
    """
    from palimpsest.models.memory_based import MemoryBasedLM

    folder = Path(path)
    if mode not in ("mmap", "ram"):
        raise InputError(f"The mode {mode!r} is unknown.", "Choose mmap or ram.")
    manifest = _read_manifest(folder)
    try:
        if verify is True:
            layout.verify_files(folder, manifest)
        elif verify == "auto":
            layout.verify_if_changed(folder, manifest)
    except IndexCorruptError as error:
        raise IndexCorruptError(error.problem, _AGAIN) from error
    names = manifest["names"]

    def array(name: str) -> np.ndarray:
        facts = manifest["files"][names[name]]
        shape = tuple(facts["shape"])
        if mode == "ram" or 0 in shape:  # nothing can be mapped of an empty file
            return np.fromfile(folder / names[name], facts["dtype"]).reshape(shape)
        return np.asarray(np.memmap(folder / names[name], facts["dtype"], "r", shape=shape))

    model = MemoryBasedLM(**manifest["settings"])
    memory = model.memory
    memory._weights = np.array(manifest["weights"], np.float64)
    memory.parts = [WindowIndex.of_arrays(memory.features, *(array(name) for name in ARRAYS))]
    memory.ids = np.array(array("ids"))
    memory.frequency = memory.parts[0].frequency
    memory.sources = json.loads((folder / names["sources"]).read_bytes())
    model.vocab_size = manifest["vocab_size"]
    if card := manifest["tokenizer"]:
        special = {key: card[key] for key in ("bos_id", "eos_id", "pad_id", "adds_bos")}
        model.tokenizer = Tokenizer.from_file(folder / names["tokenizer"], **special)
    return model


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / layout.MANIFEST
    if not path.is_file():
        raise ModelNotFoundError(f"There is no memory-based model at {folder}.", "Train one with `palimpsest mblm train`.")
    try:
        manifest = json.loads(path.read_bytes())
        checksum, named, version = manifest.pop("checksum"), manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexCorruptError(f"{path} is damaged: it is not a manifest.", _AGAIN) from error
    if named != FORMAT:
        raise ModelNotFoundError(f"{folder} holds a {named}, not a memory-based model.", "Train one with `palimpsest mblm train`.")
    if version != VERSION:
        raise IndexVersionError(f"The model {folder} has format version {version}; this release reads {VERSION}.", "Train it again.")
    if sha256_json(manifest) != checksum:
        raise IndexCorruptError(f"{path} is damaged: its checksum does not match.", _AGAIN)
    for name, facts in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError as error:
            raise IndexCorruptError(f"The file {folder / name} of the model is missing.", _AGAIN) from error
        if size != facts["bytes"]:
            raise IndexCorruptError(f"{folder / name} is damaged: it has {size} bytes instead of {facts['bytes']}.", _AGAIN)
    return {**manifest, "checksum": checksum}
