"""Checkpoints: everything that the next step depends on, written whole or not at all, without pickle.

A checkpoint is a folder `step-00000017/` with `model.safetensors`, `optimizer.safetensors`, one `rng-<rank>.safetensors` a rank,
`state.json` (step, tokens, hashes of the configuration and of the data, the optimizer's groups) and `manifest.json` with the
SHA-256 of each of these files. It is written under a temporary name and renamed, so a killed run leaves no half of one; and since
disks lie, `latest` verifies the manifest and passes over what does not match, with an error line.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from palimpsest.errors import IndexCorruptError, InputError
from palimpsest.files import sha256_file, storage_errors, write_json

log = logging.getLogger(__name__)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"step-{step:08d}"


def rng_state() -> dict[str, torch.Tensor]:
    """The states of python's, numpy's and torch's generators as tensors."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy_keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"cuda_{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """The inverse of `rng_state`."""
    version, *words = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_rest"].tolist()
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy_gauss"][0])))
    torch.set_rng_state(state["torch"].cpu())
    cuda = sorted((k for k in state if k.startswith("cuda_")), key=lambda k: int(k[5:]))
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state[k].cpu() for k in cuda])


def save(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep: int,
    rank: int = 0,
    barrier: Callable[[], None] = lambda: None,
) -> Path:
    """Writes a checkpoint and removes all but the newest `keep`.

    Every rank calls it: each writes its own generators, rank 0 the rest.

    Args:
        folder: where checkpoints lie.
        state: what else is needed, as plain JSON types.
        barrier: waits for all ranks.

    Raises:
        StorageError: no space or no permission.
    """
    target = path_of(folder, step)
    temporary = target.with_suffix(".tmp")
    with storage_errors(target):
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        save_file(rng_state(), temporary / f"rng-{rank}.safetensors")
        barrier()
        if rank == 0:
            packed = optimizer.state_dict()
            tensors = {f"{i}.{k}": v.contiguous() for i, s in packed["state"].items() for k, v in s.items() if torch.is_tensor(v)}
            numbers = {f"{i}.{k}": v for i, s in packed["state"].items() for k, v in s.items() if not torch.is_tensor(v)}
            save_model(model, str(temporary / "model.safetensors"))
            save_file(tensors, temporary / "optimizer.safetensors")
            write_json(temporary / "state.json", {**state, "step": step, "groups": packed["param_groups"], "numbers": numbers})
            files = sorted(p for p in temporary.iterdir())
            for file in files:
                with open(file, "rb+") as stream:
                    os.fsync(stream.fileno())
            write_json(temporary / "manifest.json", {p.name: sha256_file(p) for p in files})
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            for old in sorted(p for p in folder.glob("step-*") if p.suffix != ".tmp")[:-keep]:
                shutil.rmtree(old)
        barrier()
    return target


def verify(path: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint whose files all match its manifest.

    Raises:
        IndexCorruptError: a file is missing or has changed.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        wrong = [name for name, digest in manifest.items() if sha256_file(path / name) != digest]
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IndexCorruptError(f"The checkpoint {path} cannot be read: {error}.", "Delete the folder.") from error
    if wrong:
        raise IndexCorruptError(f"The checkpoint {path} is damaged: {', '.join(wrong)} changed after writing.", "Delete the folder.")
    return state


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint in `folder` and its state, or None. A damaged one is passed over with an error line."""
    for path in sorted((p for p in folder.glob("step-*") if p.suffix != ".tmp"), reverse=True):
        try:
            return path, verify(path)
        except IndexCorruptError as error:
            log.error("%s The one before it is used.", error.problem)
    return None


def load(path: Path, state: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, rank: int = 0) -> None:
    """Puts a verified checkpoint into `model`, `optimizer` and the generators of this process.

    Raises:
        InputError: it was written by another number of ranks, or for a model of another shape.
    """
    rng = path / f"rng-{rank}.safetensors"
    if not rng.is_file():
        raise InputError(f"The checkpoint {path} has no generators for rank {rank}.", "Resume with as many ranks as wrote it.")
    try:
        load_model(model, str(path / "model.safetensors"), strict=True)
    except RuntimeError as error:
        raise InputError(f"The checkpoint {path} does not fit this model: {error}.", "Build the model that was trained.") from error
    entries: dict[int, dict[str, Any]] = {}
    for name, value in {**load_file(path / "optimizer.safetensors"), **state["numbers"]}.items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": state["groups"]})
    set_rng_state(load_file(rng))
