"""The uncentred second moment of keys, C = E[k kᵀ] (m × m): which directions a down-projection's inputs use on ordinary text.

ROME and MEMIT divide by it, so that an edit disturbs ordinary keys least. It is summed in double precision over all tokens of the general
text, for all layers in one pass, and kept on disk under the hash of the model, of the text and of the layer. A ridge of `RIDGE` times the
mean of the diagonal makes it invertible where the text has fewer tokens than there are units; the papers use 100,000 texts and none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from palimpsest.errors import InputError
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.governance.actions.decoder import DownProjection, captured_keys, feed, logits_of
from palimpsest.governance.system import System
from palimpsest.models.batching import batches_by_length

RIDGE = 1e-2


def key_moments(system: System, places: Sequence[DownProjection], cache: Path | None = None) -> dict[int, torch.Tensor]:
    """C + ridge of every place, from the system's general text.

    Args:
        places: down-projections.
        cache: where moments are kept; by default `cache_dir("key-moments")`.

    Returns:
        Layer -> float64 (m, m).

    Raises:
        InputError: the system has no general text.
        StorageError: the cache cannot be written.
    """
    if not len(system.general):
        raise InputError("The system has no general text.", "Give some, 10,000 tokens or more: an edit must know which keys are ordinary.")
    system.touched()
    text = hashlib.sha256(b"\n".join(np.ascontiguousarray(row, dtype=np.int64).tobytes() for row in system.general)).hexdigest()
    folder = cache or cache_dir("key-moments")
    files = {
        place.layer: folder / f"{sha256_json([system.model.fingerprint, text, place.name, system.model.prepends_bos])[:32]}.safetensors"
        for place in places
    }
    found: dict[int, torch.Tensor] = {}
    for layer, file in files.items():
        try:
            found[layer] = load_file(file)["moment"]
        except (OSError, KeyError, SafetensorError):
            continue
    missing = [place for place in places if place.layer not in found]
    if missing:
        for layer, moment in _summed(system, missing).items():
            found[layer] = moment
            with atomic_path(files[layer]) as temporary:
                save_file({"moment": moment}, temporary)
    return {layer: _with_ridge(moment) for layer, moment in found.items()}


def _summed(system: System, places: Sequence[DownProjection]) -> dict[int, torch.Tensor]:
    sums = {place.layer: torch.zeros(place.weight.shape[1], place.weight.shape[1], dtype=torch.float64) for place in places}
    tokens, rows = 0, system.general
    with torch.no_grad(), captured_keys(places) as keys:
        for batch in batches_by_length([len(row) for row in rows], system.model.batch_tokens):
            fed = feed(system.model, [rows[i] for i in batch])
            logits_of(system.model, fed)
            real = fed.inputs["attention_mask"].bool()
            tokens += int(real.sum())
            for layer, total in sums.items():
                chosen = keys[layer][real].double().cpu()  # (tokens, m)
                total += chosen.T @ chosen
    return {layer: total / tokens for layer, total in sums.items()}


def _with_ridge(moment: torch.Tensor) -> torch.Tensor:
    return moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
