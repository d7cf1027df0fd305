"""A suite of trained twins: the models, what was planted, the index of what they saw; and its folder on disk.

A folder of a suite holds one folder a model (`standard-s/`, …: config.json, model.safetensors, the tokenizer, card.json with the
SHA-256 of each), the planted texts and their places (`texts.parquet`, `insertions.parquet`) and `suite.json`: configuration, format
and the hash of every file. The novels are not in it: the stream is built again from the shipped text by replaying the
ledger, and must have the hash that the models' cards record.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import LlamaForCausalLM

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import IndexCorruptError, IndexVersionError, InputError, ModelNotFoundError
from palimpsest.experiments.lab_data import CanaryConfig, Stream, base_rows, validation_rows
from palimpsest.experiments.planted_texts import EOS_ID
from palimpsest.experiments.planting import Ledger
from palimpsest.files import atomic_path, cache_dir, sha256_file, storage_errors, write_json
from palimpsest.models import HFModel
from palimpsest.models.quiet import quiet
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.batch import RowBatches

FORMAT = "palimpsest-suite/1"


@dataclass(frozen=True)
class Suite:
    """Trained twins and all that is known about their data.

    Attributes:
        config: what was trained.
        folders: model name ("standard-m") -> folder with config.json, model.safetensors, the tokenizer and card.json.
        load_stream: gives the data; called once, when it is first needed.
    """

    config: CanaryConfig
    folders: dict[str, Path] = field(repr=False)
    load_stream: Callable[[], Stream] = field(repr=False)

    @cached_property
    def stream(self) -> Stream:
        """Training rows of both twins, validation rows, what was planted and where."""
        return self.load_stream()

    @cached_property
    def models(self) -> dict[str, HFModel]:
        """Name -> model, on the processor, in evaluation mode; their files are checked against their cards."""
        return {name: open_model(folder, name, self.tokenizer) for name, folder in self.folders.items()}

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        """Name -> what is known of the training: configuration, data hash, versions, losses."""
        return {name: read_card(folder) for name, folder in self.folders.items()}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all models and of the index."""
        return self.stream.tokenizer

    @property
    def ledger(self) -> pl.DataFrame:
        """One row a planted text: id, domain, copies, window_start, window_end, ids, text, suffix_start, details (JSON)."""
        return self.stream.ledger

    @property
    def validation(self) -> np.ndarray:
        """(rows, seq_len) ids of held-out chapters."""
        return self.stream.validation

    @cached_property
    def index(self) -> CorpusIndex:
        """An index of the stream that the perturbed twins saw, one document a training sequence; built once, kept in the cache."""
        rows = self.stream.rows["perturbed"]
        documents = (
            Document(f"sequence-{i:05d}", ids=row.astype(np.int64), metadata={"step": i // self.config.batch_size})
            for i, row in enumerate(rows)
        )
        key = RowBatches(rows, self.config.batch_size).fingerprint[:20]
        return CorpusIndex.build(documents, self.tokenizer, cache_dir("lab", "index", key))

    def samples(self, prefix_len: int, suffix_len: int, domains: Sequence[str] | None = None) -> list[PrefixSuffix]:
        """Planted texts cut in two at their `suffix_start`.

        Args:
            prefix_len, suffix_len: tokens before and from `suffix_start`.
            domains: some of the planted domains; None: all.

        Returns:
            One sample a text, with meta "id", "domain" and "copies".

        Raises:
            InputError: a text that has fewer tokens on one side, or an unknown domain.
        """
        frame = self.ledger if domains is None else self.ledger.filter(pl.col("domain").is_in(list(domains)))
        if frame.is_empty():
            raise InputError(f"No text of {domains} was planted.", f"Choose from {', '.join(self.config.domains)}.")
        samples = []
        for row in frame.iter_rows(named=True):
            start, length = row["suffix_start"], len(row["ids"])
            if not 1 <= prefix_len <= start or not 1 <= suffix_len <= length - start:
                raise InputError(
                    f"{row['id']} has {start} tokens before its suffix and {length - start} from there on; "
                    f"{prefix_len} and {suffix_len} were asked for.",
                    "Ask for at least 1 and at most so many.",
                )
            meta = {"id": row["id"], "domain": row["domain"], "copies": row["copies"]}
            samples.append(PrefixSuffix(np.array(row["ids"][start - prefix_len : start + suffix_len]), prefix_len, suffix_len, meta))
        return samples


def read_card(folder: Path) -> dict[str, Any]:
    """A model's card.

    Raises:
        ModelNotFoundError: the folder has none.
    """
    try:
        return json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{folder} holds no card.json.", "Give a folder that `palimpsest lab train` wrote.") from error
    except ValueError as error:
        raise IndexCorruptError(f"{folder / 'card.json'} is not JSON: {error}.", "Train the suite again.") from error


def open_model(folder: Path, name: str, tokenizer: Tokenizer) -> HFModel:
    """A trained model from its folder, after its files were checked against the card.

    Raises:
        IndexCorruptError: a file is missing or has changed.
        TokenizerMismatchError: the model was trained with another tokenizer.
    """
    card = read_card(folder)
    _check_files(folder, card["sha256"], f"the card of {name}")
    tokenizer.require_same(Tokenizer.from_file(folder / "tokenizer.json").fingerprint, f"the model {name}")
    with quiet():
        model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return HFModel(model, tokenizer, name=name)


def _check_files(folder: Path, digests: dict[str, str], whose: str) -> None:
    for file, digest in digests.items():
        if not (folder / file).is_file() or sha256_file(folder / file) != digest:
            raise IndexCorruptError(f"{folder / file} does not match {whose}.", "Train the suite again, or install the package again.")


def save_suite(suite: Suite, out: Path) -> None:
    """Writes a suite as a folder that `open_suite` and any reader of safetensors can open; whole or not at all.

    Raises:
        InputError: `out` is there already.
        StorageError: it cannot be written.
    """
    if out.exists():
        raise InputError(f"{out} is there already.", "Choose another folder, or delete this one.")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for name, folder in suite.folders.items():
                shutil.copytree(folder, temporary / name)
            with atomic_path(temporary / "texts.parquet") as file:
                suite.ledger.write_parquet(file)
            with atomic_path(temporary / "insertions.parquet") as file:
                suite.stream.planted.insertions.write_parquet(file)
            digests = {p.relative_to(temporary).as_posix(): sha256_file(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
            write_json(temporary / "suite.json", {"format": FORMAT, "config": asdict(suite.config), "sha256": digests})
            temporary.chmod(0o755)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def open_suite(folder: Path) -> Suite:
    """Opens what `save_suite` wrote. Every file is checked against its recorded hash, the replayed stream against the models' cards.

    Raises:
        ModelNotFoundError: the folder is not a suite.
        IndexVersionError: it is one of another format.
        IndexCorruptError: a file is missing or has changed.
    """
    try:
        record = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFoundError(f"{folder} holds no suite.json.", "Give a folder that `palimpsest lab train` wrote.") from error
    except ValueError as error:
        raise IndexCorruptError(f"{folder / 'suite.json'} is not JSON: {error}.", "Train the suite again.") from error
    if record.get("format") != FORMAT:
        raise IndexVersionError(f"{folder} has the format {record.get('format')!r}, not {FORMAT!r}.", "Train the suite again.")
    _check_files(folder, record["sha256"], "the suite's record")
    config = CanaryConfig.from_dict(record["config"])
    folders = {f"{twin}-{size}": folder / f"{twin}-{size}" for size in config.sizes for twin in config.twins}
    return Suite(config, folders, lambda: _replayed(folder, config, {name: read_card(f)["data"] for name, f in folders.items()}))


def _replayed(folder: Path, config: CanaryConfig, recorded: dict[str, str]) -> Stream:
    """The stream of a saved suite: base rows from the shipped novels, the planted ones by replaying the ledger."""
    texts = pl.read_parquet(folder / "texts.parquet")
    planted = Ledger(texts, pl.read_parquet(folder / "insertions.parquet"), EOS_ID)
    tokenizer = Tokenizer.from_file(folder / next(iter(recorded)) / "tokenizer.json", eos_id=EOS_ID, pad_id=EOS_ID)
    base = base_rows(config, tokenizer)
    rows = {"standard": base, "perturbed": planted.replay(base)}
    for name, digest in recorded.items():
        if RowBatches(rows[name.split("-")[0]], config.batch_size).fingerprint != digest:
            raise IndexCorruptError(f"The replayed data of {name} is not what its card records.", "Install the version that trained it.")
    return Stream(tokenizer, rows, validation_rows(config, tokenizer, texts), planted, texts)
