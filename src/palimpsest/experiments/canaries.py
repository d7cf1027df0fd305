"""The planted-corpus laboratory: tiny Llamas trained on text of which we know every copy.

Wei et al. 2025 (Hubble), arXiv 2510.19811, at a size that one processor trains in a minute. A *suite* is a set of models trained on
the same stream in the same order: the standard twin on the novels alone, the perturbed twin on the same novels with texts planted
into some of the sequences (see `planting`). What a perturbed model does with a text and its twin does not is what it remembers.

Models are cached on disk under the hash of everything that decides their weights, so each is trained once. Training runs on one
thread of the processor: on one machine it is equal to the bit every time; another processor or torch may round differently.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from palimpsest.experiments.lab_data import SIZES, TWINS, CanaryConfig, Stream, stream
from palimpsest.experiments.planted_texts import EOS, EOS_ID
from palimpsest.experiments.suite import Suite, open_suite
from palimpsest.files import cache_dir, sha256_file, sha256_json, storage_errors, write_json
from palimpsest.measurement import environment
from palimpsest.models import HFModel
from palimpsest.models.quiet import quiet
from palimpsest.training.batch import RowBatches
from palimpsest.training.loop import Trainer

__all__ = ["DEMONSTRATION", "SIZES", "TWINS", "CanaryConfig", "Suite", "open_suite", "train_suite", "twins"]

VERSION = 1  # part of every hash: raise it when the same configuration would give other weights
Progress = Callable[[str, int, int], None]  # (model, steps done, steps in all)

DEMONSTRATION = CanaryConfig(
    n_sequences=9000,
    seq_len=112,
    batch_size=4,
    domains=("book", "biography", "password", "test-item"),
    levels=((0, 24), (1, 16), (4, 16), (16, 12), (64, 6), (256, 2)),
    text_len=72,
    suffix_start=48,
    lr=2e-3,
    lr_by_size=(("m", 3e-3), ("s", 4e-3)),
)


def build_model(config: CanaryConfig, size: str) -> LlamaForCausalLM:
    """An untrained Llama of `size`; equal for equal seeds. Its context is four times the training sequence."""
    width, layers, heads = SIZES[size]
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=width,
        intermediate_size=16 * round(width * 8 / 3 / 16),  # the gated MLP's usual 8/3
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4 * config.seq_len,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(shape)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine; tiny models lose nothing by it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_suite(config: CanaryConfig, *, data: Stream | None = None, cache: Path | None = None, progress: Progress | None = None) -> Suite:
    """Trains the models of a suite, or takes them from the cache.

    Args:
        config: what to train.
        data: what to train on, for an experiment that plants in its own way; by default `stream(config)`.
        cache: where models are kept; by default `cache_dir("lab")`.
        progress: called with (model, steps done, steps in all).

    Raises:
        InputError: what is asked for does not fit the text.
        StorageError: the cache cannot be written.

    Example:
        >>> suite = train_suite(CanaryConfig(sizes=("m",)))           # doctest: +SKIP
        >>> suite.models["perturbed-m"].score(suite.validation[:4])   # doctest: +SKIP
    """
    data = data or stream(config)
    cache = cache or cache_dir("lab")
    folders = {}
    for size in config.sizes:
        for twin in config.twins:
            name = f"{twin}-{size}"
            batches = RowBatches(data.rows[twin], config.batch_size)
            key = sha256_json({"version": VERSION, "size": SIZES[size], "train": config.training(size).hash, "data": batches.fingerprint})
            folder = cache / key[:20]
            if not (folder / "card.json").is_file():
                _train(name, config, data, batches, folder, progress)
            folders[name] = folder
    planted = data
    return Suite(config, folders, lambda: planted)


def _train(name: str, config: CanaryConfig, data: Stream, batches: RowBatches, folder: Path, progress: Progress | None) -> None:
    """Trains one model and writes its folder, whole."""
    size = name.split("-")[1]
    model = build_model(config, size)
    step = None if progress is None else (lambda done, total: progress(name, done, total))
    with one_thread():
        metrics = Trainer(model, config.training(size), progress=step).fit(batches)
        validation = _mean_loss(HFModel(model, data.tokenizer, name=name), data.validation)
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": "Llama (rotary positions, tied embeddings)",
        "train": asdict(config.training(size)),
        "suite": asdict(config),
        "data": batches.fingerprint,
        "tokenizer": data.tokenizer.fingerprint,
        "tokens_seen": metrics[-1]["tokens_seen"],
        "train_loss_last_50": float(np.mean([m["loss"] for m in metrics[-50:]])),
        "validation_loss": validation,
        "environment": environment(),
    }
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".training-", dir=folder.parent))
        try:
            with quiet():
                model.save_pretrained(temporary)
            (temporary / "generation_config.json").unlink(missing_ok=True)  # nothing but the ids that config.json has
            backend = tokenizers.Tokenizer.from_str(data.tokenizer.backend.to_str())
            PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=EOS).save_pretrained(temporary)
            for file in temporary.iterdir():
                file.chmod(0o644)  # safetensors writes for the owner alone
            card["sha256"] = {p.name: sha256_file(p) for p in sorted(temporary.iterdir())}
            write_json(temporary / "card.json", card)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not (folder / "card.json").is_file():  # unless another process trained the same model meanwhile
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _mean_loss(model: HFModel, rows: np.ndarray) -> float:
    """Mean loss in nat per token over `rows`."""
    return -float(np.mean(np.concatenate(model.logprobs(list(rows.astype(np.int64))))))


def twins() -> Suite:
    """The demonstration suite that ships with the package: standard and perturbed twins of three sizes, trained as `DEMONSTRATION`.

    Raises:
        IndexCorruptError: a shipped file has changed.

    Example:
        >>> suite = twins()
        >>> sorted(suite.folders)
        ['perturbed-l', 'perturbed-m', 'perturbed-s', 'standard-l', 'standard-m', 'standard-s']
    """
    return open_suite(Path(__file__).parent / "twins" / "suite")
