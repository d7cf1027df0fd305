"""The laboratory's data: what a suite trains on and what is planted into it, all from one configuration.

The novels become one stream of paragraphs, each closed by EOS, cut into rows and put in an order drawn once: the standard twin
sees these rows, the perturbed twin the same rows with texts planted into some (see `planting`). Held-out chapters give the
validation rows and the planted passages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.experiments.planted_texts import EOS_ID, PlantedText, base_text, draw, train_tokenizer
from palimpsest.experiments.planting import Ledger, PlantSpec, plant
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.loop import TrainConfig

SIZES = {"s": (48, 2, 2), "m": (128, 2, 4), "l": (192, 3, 6)}  # width, layers, heads: 0.1, 0.5 and 1.5 million parameters
TWINS = ("standard", "perturbed")
VALIDATION_ROWS = 256


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
    seq_len: int = 96
    batch_size: int = 4
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

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CanaryConfig:
        """The inverse of `dataclasses.asdict`, also after a journey through JSON."""
        return cls(**{k: _tuples(v) for k, v in data.items()})

    @property
    def steps(self) -> int:
        """Optimizer steps: one epoch, the last batch may be smaller."""
        return -(-self.n_sequences // self.batch_size)

    def training(self, size: str) -> TrainConfig:
        """How a model of `size` is trained."""
        lr = dict(self.lr_by_size).get(size, self.lr)
        warmup = min(self.warmup, self.steps)
        return TrainConfig(self.steps, lr=lr, warmup=warmup, weight_decay=self.weight_decay, seed=self.seed, cpu=True)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


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
        drawn = draw(domain, tokenizer, sum(per_level), config.text_len, config.suffix_start, config.seed)
        rows = tokenizer.encode_batch([t.text for t in drawn])
        specs.append(PlantSpec(domain, rows, copies, per_level, config.window, seed=config.seed * 1000 + k))
        texts += drawn
    return specs, texts


def stream(config: CanaryConfig) -> Stream:
    """Builds the data of a suite: the same for every size, and for the standard twin the same whatever is planted.

    Raises:
        InputError: the novels have fewer sequences than asked for, or what is to be planted does not fit.
    """
    plain = CanaryConfig()
    return _stream(replace(config, **{name: getattr(plain, name) for name in _NOT_DATA}))


_NOT_DATA = ("sizes", "twins", "lr", "lr_by_size", "warmup", "weight_decay")


@lru_cache(maxsize=4)
def _stream(config: CanaryConfig) -> Stream:
    tokenizer = train_tokenizer(config.vocab_size)
    specs, texts = planted_specs(config, tokenizer)
    base = base_rows(config, tokenizer)
    perturbed, planted = plant(base, specs, batch_size=config.batch_size, eos_id=EOS_ID, seed=config.seed)
    ledger = planted.texts.with_columns(
        text=pl.Series([t.text for t in texts]),
        suffix_start=pl.Series([config.suffix_start if t.secret is None else len(tokenizer.encode(t.text[: t.secret])) for t in texts]),
        details=pl.Series([json.dumps(t.details, ensure_ascii=False) for t in texts]),
    )
    return Stream(tokenizer, {"standard": base, "perturbed": perturbed}, validation_rows(config, tokenizer, ledger), planted, ledger)


def base_rows(config: CanaryConfig, tokenizer: Tokenizer) -> np.ndarray:
    """The standard twin's training rows, (n_sequences, seq_len) uint16 in training order.

    Raises:
        InputError: the novels have fewer.
    """
    available = _rows(tokenizer, "train", config.seq_len)
    if len(available) < config.n_sequences:
        raise InputError(
            f"{config.n_sequences} sequences of {config.seq_len} tokens were asked for, the novels have {len(available)}.",
            "Ask for fewer or shorter ones.",
        )
    # one order for all: a longer run begins with the sequences of a shorter one of the same seed
    order = np.random.default_rng((config.seed, 20)).permutation(len(available))
    return available[order[: config.n_sequences]]


def validation_rows(config: CanaryConfig, tokenizer: Tokenizer, ledger: pl.DataFrame) -> np.ndarray:
    """Rows of the held-out chapters, (at most 256, seq_len) uint16; none shares 16 tokens in a row with a planted text."""
    rows = _rows(tokenizer, "held_out", config.seq_len)
    planted = {gram for ids in ledger["ids"].to_list() for gram in _grams(ids)}
    clean = (row for row in rows[:: max(1, len(rows) // (2 * VALIDATION_ROWS))] if planted.isdisjoint(_grams(row.tolist())))
    return np.stack(list(islice(clean, VALIDATION_ROWS)))


def _grams(ids: list[int], n: int = 16) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(max(1, len(ids) - n + 1))]


_TOKENS: dict[tuple[str, str], np.ndarray] = {}  # (tokenizer's fingerprint, part of the novels) -> ids: two seconds to compute


def _rows(tokenizer: Tokenizer, part: str, seq_len: int) -> np.ndarray:
    """The "train" or "held_out" paragraphs as one stream, EOS after each, in rows (n, seq_len) uint16; the rest is dropped."""
    key = (tokenizer.fingerprint, part)
    if key not in _TOKENS:
        encoded = tokenizer.encode_batch(getattr(base_text(), part))
        _TOKENS[key] = np.concatenate([np.array([*ids, EOS_ID], dtype=np.uint16) for ids in encoded])
    ids = _TOKENS[key]
    n = len(ids) // seq_len
    return ids[: n * seq_len].reshape(n, seq_len)
