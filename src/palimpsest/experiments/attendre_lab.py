"""The laboratory of Attendre (016): a language model that recalls values of keys, and encoders that tag words with what is said later.

**Recall.** Each of `keys` keys is announced once with its value, as one word for the pair, in the first half of a text; the rest is
filler and words that ask for the value of a key that has been announced. In training, texts have `train_length` words and announce 4 keys
or more, log-uniformly up to all, which are asked for alike; in the test texts, `test_length` long, only a quarter of the keys is, Zipf 1.2
among them, so that a memory need not hold the others. A causal model of two layers with rotary positions of a large base learns it; how it
then does with a small cache is what is asked.

**Tagging.** Every key stands once as a word to be tagged, and once, `nearest` to `farthest` words later, with the value that is its tag.
An encoder that has read no further than its chunk cannot know it. All words but these are filler.

Models are trained by the one training loop at first use, and kept as safetensors in the laboratory's cache.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.context.attendre import AttendreEncoder
from palimpsest.experiments.canaries import one_thread
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.training.batch import IGNORE, PackedBatch
from palimpsest.training.loop import TrainConfig, Trainer

VERSION = 1  # part of every hash: raise it when the same configuration would give other weights


@dataclass(frozen=True)
class RecallConfig:
    """What the recalling model is trained on, and how.

    Attributes:
        seed: of texts and weights.
        keys, values, fillers: of the vocabulary.
        train_length, test_length: words of a text.
        asked: share of the later words that ask.
        width, layers, heads, rope_base: of the model.
        steps, rows, lr: of the training.
    """

    seed: int = 0
    keys: int = 64
    values: int = 16
    fillers: int = 32
    train_length: int = 160
    test_length: int = 512
    asked: float = 0.5
    width: int = 128
    layers: int = 2
    heads: int = 4
    rope_base: float = 1e6
    steps: int = 600
    rows: int = 16
    lr: float = 2e-3

    @property
    def vocabulary(self) -> int:
        """Fillers, one word that asks for each key, the pairs, the values."""
        return self.fillers + self.keys + self.keys * self.values + self.values


@dataclass(frozen=True)
class TaggingConfig:
    """What the tagging encoders are trained on, and how.

    Attributes:
        seed: of texts and weights.
        keys, values, fillers: of the vocabulary.
        length: words of a text.
        nearest, farthest: how much later a tag is said.
        delays: of the layers.
        chunk, capacity, policy: of the encoder.
        width, heads: of the encoder.
        steps, rows, lr: of the training.
    """

    seed: int = 0
    keys: int = 16
    values: int = 8
    fillers: int = 16
    length: int = 64
    nearest: int = 9
    farthest: int = 24
    delays: tuple[int, ...] = (24, 0)
    chunk: int = 8
    capacity: int = 48
    policy: str = "fifo"
    width: int = 64
    heads: int = 4
    steps: int = 240
    rows: int = 16
    lr: float = 2e-3

    @property
    def vocabulary(self) -> int:
        """Fillers, the keys, the pairs."""
        return self.fillers + self.keys + self.keys * self.values


def recall_texts(c: RecallConfig, rng: np.random.Generator, n: int, test: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts, int64 (n, length); the value that is asked for at each word or -1; and how long ago it was announced.

    In test texts a quarter of the keys is asked for, Zipf 1.2; in others all are, alike.
    """
    length = c.test_length if test else c.train_length
    told = np.argsort(rng.random((n, length // 2)), axis=1)[:, : c.keys]
    if not test:  # few keys at times: among 64 alone the task was not begun to be learnt before step 320 (seed 100)
        many = np.exp(rng.uniform(np.log(4), np.log(c.keys + 1), size=(n, 1))).astype(int)
        told = np.where(np.argsort(rng.random(told.shape), axis=1) < many, told, length)
    values = rng.integers(c.values, size=(n, c.keys))
    weights = np.zeros((n, c.keys))
    hot = c.keys // 4 if test else c.keys
    ranks = np.argsort(rng.random((n, c.keys)), axis=1)  # which keys are asked for, the most wanted first
    np.put_along_axis(weights, ranks[:, :hot], (np.arange(1, hot + 1) ** (-1.2 if test else 0.0))[None], axis=1)
    places = np.arange(length)
    known = told[:, None, :] < places[None, :, None]  # (n, length, keys)
    with np.errstate(divide="ignore"):
        drawn = (np.log(weights)[:, None] + rng.gumbel(size=known.shape) + np.where(known, 0.0, -np.inf)).argmax(-1)
    asks = (rng.random((n, length)) < c.asked) & (known & (weights > 0)[:, None]).any(-1)
    ids = rng.integers(c.fillers, size=(n, length))
    ids = np.where(asks, c.fillers + drawn, ids)
    row = np.arange(n)[:, None]
    at, key = np.nonzero(told < length)
    ids[at, told[at, key]] = c.fillers + c.keys + key * c.values + values[at, key]
    asks[at, told[at, key]] = False
    wanted = np.where(asks, values[row, drawn], -1)
    return ids, wanted, np.where(asks, places[None] - told[row, drawn], -1)


def tagging_texts(c: TaggingConfig, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts, int64 (n, length), and the tag of each word or -1."""
    ids = rng.integers(c.fillers, size=(n, c.length))
    wanted = np.full((n, c.length), -1)
    for row in range(n):
        free = np.ones(c.length, bool)
        for key in rng.permutation(c.keys):
            starts = np.flatnonzero(free[: c.length - c.nearest])
            rng.shuffle(starts)
            for start in starts:
                later = np.flatnonzero(free[start + c.nearest : start + c.farthest + 1])
                if len(later):
                    place, value = start + c.nearest + int(rng.choice(later)), int(rng.integers(c.values))
                    ids[row, start], wanted[row, start] = c.fillers + key, value
                    ids[row, place] = c.fillers + c.keys + key * c.values + value
                    free[[start, place]] = False
                    break
    return ids, wanted


@dataclass(frozen=True)
class LabBatches:
    """Batch k of either kind, drawn from k alone; see `palimpsest.training.batch.BatchSource`."""

    config: RecallConfig | TaggingConfig

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the batches."""
        return sha256_json({"version": VERSION, "kind": type(self.config).__name__, **asdict(self.config)})

    def __getitem__(self, k: int) -> PackedBatch:
        c, rng = self.config, np.random.default_rng((self.config.seed, 16, k))
        if isinstance(c, RecallConfig):
            ids, wanted, _ = recall_texts(c, rng, c.rows, test=False)
            first = c.vocabulary - c.values
        else:
            ids, wanted = tagging_texts(c, rng, c.rows)
            first = 0
        labels = torch.from_numpy(np.where(wanted >= 0, wanted + first, IGNORE))
        return replace(PackedBatch.from_rows(ids), labels=labels)


class Tagger(nn.Module):
    """An encoder between an embedding and a tag for every word."""

    def __init__(self, c: TaggingConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(c.vocabulary, c.width)
        self.encoder = AttendreEncoder(
            c.width, len(c.delays), c.heads, chunk=c.chunk, kv_capacity=c.capacity, q_delay=c.delays, policy=c.policy
        )
        self.head = nn.Linear(c.width, c.values)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, time, values)."""
        logits: Tensor = self.head(self.encoder(self.embed(ids)))
        return logits


def tag_loss(model: nn.Module, batch: PackedBatch) -> Tensor:
    """The sum of the losses of all words that have a tag."""
    return F.cross_entropy(model(batch.input_ids).flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")


def recall_model(c: RecallConfig, cache: Path | None = None) -> LlamaForCausalLM:
    """The recalling model, trained at first use and kept in `cache` (by default `cache_dir("lab", "attendre")`)."""
    shape = LlamaConfig(
        vocab_size=c.vocabulary,
        hidden_size=c.width,
        intermediate_size=2 * c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        max_position_embeddings=2 * c.test_length,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.seed)
        model = LlamaForCausalLM(shape)
    train = TrainConfig(c.steps, lr=c.lr, warmup=min(50, c.steps), schedule="wsd", weight_decay=0.01, seed=c.seed, cpu=True)
    return _trained(model, train, c, cache).eval()  # type: ignore[return-value]


def tagger(c: TaggingConfig, cache: Path | None = None) -> Tagger:
    """A tagging encoder, trained at first use and kept in `cache`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.seed)
        model = Tagger(c)
    train = TrainConfig(c.steps, lr=c.lr, warmup=min(50, c.steps), schedule="wsd", weight_decay=0.01, seed=c.seed, cpu=True)
    return _trained(model, train, c, cache).eval()  # type: ignore[return-value]


def _trained(model: nn.Module, train: TrainConfig, c: RecallConfig | TaggingConfig, cache: Path | None) -> nn.Module:
    data = LabBatches(c)
    file = (cache or cache_dir("lab", "attendre")) / f"{sha256_json([train.hash, data.fingerprint])[:20]}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model
    with one_thread():
        if isinstance(c, TaggingConfig):
            Trainer(model, train, loss=tag_loss).fit(data)
        else:
            Trainer(model, train).fit(data)
    with atomic_path(file) as temporary:
        save_file({name: value.clone().contiguous() for name, value in model.state_dict().items()}, temporary)
    return model
