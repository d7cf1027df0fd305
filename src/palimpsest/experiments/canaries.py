"""The planted-corpus laboratory: tiny Llamas trained on text of which we know every copy.

Wei et al. 2025 (Hubble), arXiv 2510.19811, at a size that one processor trains in a minute. A *suite* is a set of models trained on
the same stream in the same order: the standard twin on the novels alone, the perturbed twin on the same novels with texts planted
into some of the sequences (see `planting`). What a perturbed model does with a text and its twin does not is what it remembers.

Models are cached on disk under the hash of everything that decides their weights, so each is trained once. Training runs on one
thread of the processor: on one machine it is equal to the bit every time; another processor or torch may round differently.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import IndexCorruptError, InputError
from palimpsest.experiments.planted_texts import PlantedText, base_text, draw, train_tokenizer
from palimpsest.experiments.planting import Ledger, PlantSpec, plant
from palimpsest.files import cache_dir, sha256_file, sha256_json, storage_errors, write_json
from palimpsest.measurement import environment
from palimpsest.models import HFModel
from palimpsest.models.hf import quiet
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.batch import RowBatches
from palimpsest.training.loop import TrainConfig, Trainer

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

SIZES = {"s": (48, 2, 2), "m": (128, 2, 4), "l": (192, 3, 6)}  # width, layers, heads: 0.1, 0.5 and 1.5 million parameters
TWINS = ("standard", "perturbed")
FORMAT = 1  # part of every hash: raise it when the meaning of a configuration changes
Progress = Callable[[str, int, int], None]  # (model, steps done, steps in all)


@dataclass(frozen=True)
class CanaryConfig:
    """What to train and what to plant. The defaults are the suite that the claim checks share.

    Attributes:
        sizes, twins: which models: "s", "m", "l"; "standard", "perturbed".
        n_sequences: training sequences in the run (one epoch); the steps are n_sequences / batch_size.
        seq_len, batch_size, vocab_size: tokens a sequence, sequences a step, ids of the tokenizer.
        domains: what is planted, see `planted_texts.DOMAINS`.
        levels: (copies, texts of each domain with so many copies).
        text_len: tokens of a planted passage (invented texts have their own length).
        suffix_start: where in a planted text the suffix of `Suite.samples` begins, unless the text has a secret.
        window: share of the run in which texts are planted.
        lr: peak learning rate, for every size.
        lr_by_size: (size, lr) pairs that differ from it.
        warmup, weight_decay: of the training.
        seed: of everything: order of the data, texts, their copies and places, initial weights.
    """

    sizes: tuple[str, ...] = ("s", "m", "l")
    twins: tuple[str, ...] = TWINS
    n_sequences: int = 9000
    seq_len: int = 64
    batch_size: int = 8
    vocab_size: int = 1024
    domains: tuple[str, ...] = ("passage",)
    levels: tuple[tuple[int, int], ...] = tuple((c, 24) for c in (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64))
    text_len: int = 64
    suffix_start: int = 40
    window: tuple[float, float] = (0.0, 1.0)
    lr: float = 1.2e-3
    lr_by_size: tuple[tuple[str, float], ...] = ()
    warmup: int = 100
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known, given in (("sizes", tuple(SIZES), self.sizes), ("twins", TWINS, self.twins)):
            if not given or not set(given) <= set(known):
                raise InputError(f"{name} is {given}.", f"Choose from {', '.join(known)}.")
        if self.n_sequences < self.batch_size or self.batch_size < 1 or self.seq_len < 2:
            raise InputError(
                f"n_sequences {self.n_sequences}, batch_size {self.batch_size}, seq_len {self.seq_len} make no step.",
                "Give at least one batch of sequences of at least 2 tokens.",
            )

    @property
    def steps(self) -> int:
        """Optimizer steps: one epoch, the last batch may be smaller."""
        return -(-self.n_sequences // self.batch_size)

    def training(self, size: str) -> TrainConfig:
        """How a model of `size` is trained."""
        lr = dict(self.lr_by_size).get(size, self.lr)
        warmup = min(self.warmup, self.steps)
        return TrainConfig(self.steps, lr=lr, warmup=warmup, weight_decay=self.weight_decay, seed=self.seed, cpu=True)


@dataclass(frozen=True)
class Stream:
    """The data of a suite.

    Attributes:
        tokenizer: trained on the novels.
        rows: twin -> (n_sequences, seq_len) uint16 ids in training order.
        validation: (rows, seq_len) uint16 ids from held-out chapters.
        planted: what was planted and where.
        ledger: one row a planted text: id, domain, copies, window_start, window_end, ids, text, suffix_start, details (JSON).
    """

    tokenizer: Tokenizer
    rows: dict[str, np.ndarray]
    validation: np.ndarray
    planted: Ledger
    ledger: pl.DataFrame


def planted_specs(config: CanaryConfig, tokenizer: Tokenizer) -> tuple[list[PlantSpec], list[PlantedText]]:
    """What `config` plants: one `PlantSpec` a domain, and the texts of all of them in order."""
    copies, per_level = zip(*config.levels, strict=True)
    specs, texts = [], []
    for k, domain in enumerate(config.domains):
        drawn = draw(domain, tokenizer, sum(per_level), config.text_len, config.seed)
        rows = tokenizer.encode_batch([t.text for t in drawn])
        specs.append(PlantSpec(domain, rows, copies, per_level, config.window, seed=config.seed * 1000 + k))
        texts += drawn
    return specs, texts


@lru_cache(maxsize=4)
def stream(config: CanaryConfig) -> Stream:
    """Builds the data of a suite: the same for every size, and for the standard twin the same whatever is planted.

    Raises:
        InputError: the novels have fewer sequences than asked for, or what is to be planted does not fit.
    """
    tokenizer = train_tokenizer(config.vocab_size)
    specs, texts = planted_specs(config, tokenizer)
    available = _rows(tokenizer, base_text().train, config.seq_len)
    if len(available) < config.n_sequences:
        raise InputError(
            f"{config.n_sequences} sequences of {config.seq_len} tokens were asked for, the novels have {len(available)}.",
            "Ask for fewer or shorter ones.",
        )
    # one order for all: a longer run begins with the sequences of a shorter one of the same seed
    base = available[np.random.default_rng((config.seed, 20)).permutation(len(available))[: config.n_sequences]]
    eos = tokenizer.eos_id
    assert eos is not None
    perturbed, planted = plant(base, specs, batch_size=config.batch_size, eos_id=eos, seed=config.seed)
    held_out = _rows(tokenizer, base_text().held_out, config.seq_len)
    ledger = planted.texts.with_columns(
        text=pl.Series([t.text for t in texts]),
        suffix_start=pl.Series([config.suffix_start if t.secret is None else len(tokenizer.encode(t.text[: t.secret])) for t in texts]),
        details=pl.Series([json.dumps(t.details, ensure_ascii=False) for t in texts]),
    )
    # every tenth row of the held-out chapters; planted passages are paragraph openings and would mostly lie in other rows,
    # but a few overlap them: rows that share 16 tokens with a planted text are left out
    grams = {tuple(ids[i : i + 16]) for ids in ledger["ids"].to_list() for i in range(max(1, len(ids) - 15))}
    clean = [r for r in held_out[::10] if not any(tuple(r[i : i + 16].tolist()) in grams for i in range(config.seq_len - 15))]
    return Stream(tokenizer, {"standard": base, "perturbed": perturbed}, np.stack(clean[:256]), planted, ledger)


def _rows(tokenizer: Tokenizer, paragraphs: Sequence[str], seq_len: int) -> np.ndarray:
    """Paragraphs as one stream, EOS after each, cut into rows (n, seq_len) uint16; the last, shorter row is dropped."""
    ids: list[int] = []
    for row in tokenizer.encode_batch(paragraphs):
        ids += [*row, 0]
    n = len(ids) // seq_len
    return np.array(ids[: n * seq_len], dtype=np.uint16).reshape(n, seq_len)


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
        eos_token_id=0,
        pad_token_id=0,
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


@dataclass(frozen=True)
class Suite:
    """Trained twins and all that is known about their data.

    Attributes:
        config: what was trained.
        folders: model name ("standard-m") -> folder with config.json, model.safetensors, tokenizer.json, card.json.
    """

    config: CanaryConfig
    folders: dict[str, Path] = field(repr=False)

    @cached_property
    def stream(self) -> Stream:
        """Training rows, validation rows and the ledger of insertions."""
        return stream(replace(self.config, sizes=tuple(SIZES), twins=TWINS))

    @cached_property
    def models(self) -> dict[str, HFModel]:
        """Name -> model, on the processor, in evaluation mode."""
        return {name: open_model(folder, name, self.tokenizer) for name, folder in self.folders.items()}

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        """Name -> what is known of the training: configuration, data hash, versions, losses."""
        return {name: json.loads((folder / "card.json").read_text(encoding="utf-8")) for name, folder in self.folders.items()}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all models and of the index."""
        return self.stream.tokenizer

    @property
    def ledger(self) -> pl.DataFrame:
        """One row a planted text: id, domain, copies, window_start, window_end, ids, text, suffix_start, details."""
        return self.stream.ledger

    @property
    def validation(self) -> np.ndarray:
        """(rows, seq_len) ids of held-out chapters."""
        return self.stream.validation

    @cached_property
    def index(self) -> CorpusIndex:
        """An index of the stream that the perturbed twins saw, one document a training sequence; built once, kept in the cache."""
        from palimpsest.corpus import CorpusIndex

        rows = self.stream.rows["perturbed"]
        key = sha256_json({"format": FORMAT, "rows": RowBatches(rows, self.config.batch_size).fingerprint})[:16]
        folder = cache_dir("lab", "index", key)
        return CorpusIndex.build((row.astype(np.int64) for row in rows), self.tokenizer, folder)

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
        short = frame.filter((pl.col("suffix_start") < prefix_len) | (pl.col("ids").list.len() < pl.col("suffix_start") + suffix_len))
        if not short.is_empty():
            row = short.row(0, named=True)
            raise InputError(
                f"{row['id']} has {row['suffix_start']} tokens before and {len(row['ids']) - row['suffix_start']} from its suffix on; "
                f"{prefix_len} and {suffix_len} were asked for.",
                "Ask for fewer.",
            )
        return [
            PrefixSuffix(
                np.array(row["ids"][row["suffix_start"] - prefix_len : row["suffix_start"] + suffix_len]),
                prefix_len,
                suffix_len,
                {"id": row["id"], "domain": row["domain"], "copies": row["copies"]},
            )
            for row in frame.iter_rows(named=True)
        ]


def train_suite(config: CanaryConfig, *, cache: Path | None = None, progress: Progress | None = None) -> Suite:
    """Trains the models of a suite, or takes them from the cache.

    Args:
        config: what to train.
        cache: where models are kept; by default `cache_dir("lab")`.
        progress: called with (model, steps done, steps in all).

    Raises:
        InputError: what is asked for does not fit the text.
        StorageError: the cache cannot be written.

    Example:
        >>> suite = train_suite(CanaryConfig(sizes=("m",)))           # doctest: +SKIP
        >>> suite.models["perturbed-m"].score(suite.validation[:4])   # doctest: +SKIP
    """
    data = stream(replace(config, sizes=tuple(SIZES), twins=TWINS))
    cache = cache or cache_dir("lab")
    folders = {}
    for size in config.sizes:
        for twin in config.twins:
            name = f"{twin}-{size}"
            batches = RowBatches(data.rows[twin], config.batch_size)
            key = sha256_json({"format": FORMAT, "size": SIZES[size], "train": config.training(size).hash, "data": batches.fingerprint})
            folder = cache / key[:20]
            if not (folder / "card.json").is_file():
                _train(name, config, data, batches, folder, progress)
            folders[name] = folder
    return Suite(config, folders)


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
            data.tokenizer.save(temporary / "tokenizer.json")
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


def open_model(folder: Path, name: str, tokenizer: Tokenizer) -> HFModel:
    """A trained model from its folder, after its files were checked against the card.

    Raises:
        IndexCorruptError: a file is missing or has changed.
        TokenizerMismatchError: the model was trained with another tokenizer.
    """
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    for file, digest in card["sha256"].items():
        if not (folder / file).is_file() or sha256_file(folder / file) != digest:
            raise IndexCorruptError(f"{folder / file} does not match the card of {name}.", "Delete the folder to train the model again.")
    tokenizer.require_same(card["tokenizer"], f"the model {name}")
    with quiet():
        model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return HFModel(model, tokenizer, name=name)
