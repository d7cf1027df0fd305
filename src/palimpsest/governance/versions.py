"""Versions of a governed system on disk, each tensor under the hash of its content: what makes a rollback exact.

    versions/
      blobs/<SHA-256>.safetensors    one tensor; shared by all versions that have it, so an edited layer costs one tensor
      blobs/<SHA-256>.json           rows of a store, or what is guarded
      <id>.json                      a version: name of every tensor -> hash, and the hashes of store and guard

The id is the hash of what the version holds. To restore, everything is read and checked *before* anything is changed: a version
that lacks a tensor leaves the running system as it was.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from palimpsest.errors import InputError, WeightsMissingError
from palimpsest.files import atomic_path, canonical_json, sha256_json, write_json, write_text
from palimpsest.governance.actions.store import FactStore
from palimpsest.governance.system import System


class Versions:
    """Saved versions of one system.

    Args:
        folder: where they lie.

    Example:
        >>> versions = Versions(Path("governed/versions"))     # doctest: +SKIP
        >>> first = versions.save(system)                      # doctest: +SKIP
        >>> versions.restore(first, system)                    # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, system: System) -> str:
        """Writes what of a system is not there yet, and returns the version's id.

        Raises:
            StorageError: it cannot be written.
        """
        tensors = {}
        for name, tensor in system.model.model.state_dict().items():
            value = tensor.detach().cpu().contiguous()
            tensors[name] = digest = tensor_hash(value)
            blob = self.folder / "blobs" / f"{digest}.safetensors"
            if not blob.is_file():
                with atomic_path(blob) as temporary:
                    save_file({"tensor": value.clone()}, temporary)
        store, guard = self._write(system.store.to_list()), self._write([list(row) for row in system.guarded])
        content = {"tensors": tensors, "store": store, "guard": guard}
        version = sha256_json(content)
        path = self.folder / f"{version}.json"
        if not path.is_file():
            write_json(path, content)
        return version

    def identify(self, system: System) -> str:
        """The id that a system would be saved under; nothing is written."""
        tensors = {name: tensor_hash(tensor.detach().cpu().contiguous()) for name, tensor in system.model.model.state_dict().items()}
        store, guard = sha256_json(system.store.to_list()), sha256_json([list(row) for row in system.guarded])
        return sha256_json({"tensors": tensors, "store": store, "guard": guard})

    def restore(self, version: str, system: System) -> None:
        """Puts a version into a running system, bit by bit; on an error the system is as it was.

        Raises:
            WeightsMissingError: the version, one of its tensors, its store or its guard is gone or damaged.
            InputError: the version is of another architecture.
        """
        content = self._manifest(version)
        now = system.model.model.state_dict()
        if set(content["tensors"]) != set(now):
            different = sorted(set(content["tensors"]) ^ set(now))
            raise InputError(
                f"Version {version[:12]} is of another model: {different[0]!r} is not in both.", "Open the model that it was saved of."
            )
        loaded = {name: self._tensor(name, digest, version) for name, digest in content["tensors"].items()}
        wrong = [name for name, value in loaded.items() if value.shape != now[name].shape or value.dtype != now[name].dtype]
        if wrong:
            raise InputError(
                f"Version {version[:12]} is of another model: {wrong[0]!r} has another shape or type.",
                "Open the model that it was saved of.",
            )
        store, guard = self._read(content["store"], "store", version), self._read(content["guard"], "guard", version)
        with torch.no_grad():
            for name, value in loaded.items():
                now[name].copy_(value)
        system.store.rows = FactStore.from_list(store).rows
        system.guarded = tuple(tuple(row) for row in guard)
        system.touched()

    def changed(self, first: str, second: str) -> list[str]:
        """Names of the tensors in which two versions differ.

        Raises:
            WeightsMissingError: one of them is gone.
        """
        a, b = self._manifest(first)["tensors"], self._manifest(second)["tensors"]
        return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))

    def _manifest(self, version: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / f"{version}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or sha256_json(content) != version:
            raise WeightsMissingError(
                f"There is no whole version {version[:12]} in {self.folder}.",
                "Take the folder of versions from a backup; nothing was changed.",
            )
        return content

    def _tensor(self, name: str, digest: str, version: str) -> torch.Tensor:
        blob = self.folder / "blobs" / f"{digest}.safetensors"
        try:
            value = load_file(blob)["tensor"]
        except (OSError, KeyError, SafetensorError) as error:
            raise self._gone(blob, f"the weights {name!r}", version) from error
        if tensor_hash(value) != digest:
            raise self._gone(blob, f"the weights {name!r}", version)
        return value

    def _read(self, digest: str, what: str, version: str) -> Any:
        blob = self.folder / "blobs" / f"{digest}.json"
        try:
            value = json.loads(blob.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._gone(blob, f"the {what}", version) from error
        if sha256_json(value) != digest:
            raise self._gone(blob, f"the {what}", version)
        return value

    def _write(self, value: Any) -> str:
        digest = sha256_json(value)
        blob = self.folder / "blobs" / f"{digest}.json"
        if not blob.is_file():
            write_text(blob, canonical_json(value))
        return digest

    def _gone(self, blob: Path, what: str, version: str) -> WeightsMissingError:
        return WeightsMissingError(
            f"Version {version[:12]} cannot be restored: {what} ({blob.name[:12]}…) {'are damaged' if blob.is_file() else 'are missing'}.",
            f"Put the file back into {blob.parent} from a backup; the running system was not changed.",
        )


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 over type, shape and bytes of a tensor in memory of the processor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
