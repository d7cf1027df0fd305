"""The trained part of the claim of system 008 (book-sort): a model that reads order, and recites sequences whose order it cannot tell.

Three layers of width 128 over sequences of random words. Two kinds of rows are mixed:

* *tasks*: a fresh sequence, two segments of it labelled A and B, and which comes first. Asked for are the words of the segments but the
  first of each, which teaches to find them in the sequence, and the label. The sequences grow from two segments' length to the whole over
  the first `ramp` steps. On sequences of 16 words nothing was learnt in 3,200 steps without that, and the task in 900 steps of a growth by
  a word every 250 steps (seed 100); on 10 words in 1,900 steps (seed 101), and on 12 words that grew twice as fast not in 1,600;
* *texts*: one of `recited` sequences that are the same throughout, asked for word by word, until the model recites them.

It is then measured by `measure_order` itself: on fresh sequences in the context, and on the recited ones from memory, which no row ever
asked for. Every word stands at most once in a sequence, so that a segment stands once. Positions are learned, as in GPT-2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from palimpsest.evaluation.order_recall import OrderPrompt, measure_order
from palimpsest.evaluation.order_trials import OrderTrial
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.batch import IGNORE, PackedBatch
from palimpsest.training.loop import TrainConfig, Trainer

VERSION = 1  # part of every hash: raise it when the same configuration would give other weights
FRAME = ("<eos>", "A", "B", "?")  # the ids 0 to 3; the words follow
END, A, B, ASK = range(len(FRAME))
PROMPT = OrderPrompt(head="<eos>", excerpt=" {excerpt}", segments=" A {a} B {b}", answer=" ?")
CUE = 4  # words from which a recited sequence is continued


@dataclass(frozen=True)
class SortLabConfig:
    """What is trained and asked.

    Attributes:
        seed: of sequences, batches and weights.
        words: of the vocabulary.
        length, segment: words of a sequence (L_E) and of a segment (L_S).
        recited: sequences that are learnt by heart.
        steps, tasks, texts: of the training, and rows of each kind a step.
        ramp: steps over which the sequences of tasks grow.
        lr: peak learning rate.
        width, layers, heads: of the model.
        trials: that are asked of fresh sequences; of the recited ones as many, dealt evenly.
    """

    seed: int = 0
    words: int = 40
    length: int = 10
    segment: int = 2
    recited: int = 40
    steps: int = 3200
    ramp: int = 1500
    tasks: int = 60
    texts: int = 4
    lr: float = 1e-3
    width: int = 128
    layers: int = 3
    heads: int = 4
    trials: int = 400


@dataclass(frozen=True)
class SortBatches:
    """Batch k of the mixture, drawn from k alone; see `palimpsest.training.batch.BatchSource`."""

    config: SortLabConfig

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the batches."""
        return sha256_json({"version": VERSION, **asdict(self.config)})

    def length(self, k: int) -> int:
        """Words of the sequences of batch k."""
        c = self.config
        return c.length if k >= c.ramp else 2 * c.segment + (c.length - 2 * c.segment) * k // c.ramp

    def __getitem__(self, k: int) -> PackedBatch:
        c, rng = self.config, np.random.default_rng((self.config.seed, 8, k))
        length = self.length(k)
        rows = task_rows(*draw(replace(c, length=length), rng, c.tasks), c.segment)
        ids = np.zeros((c.tasks + c.texts, max(rows.shape[1], 1 + c.length)), np.int64)
        wanted = np.zeros(ids.shape, bool)
        ids[: c.tasks, : rows.shape[1]] = rows
        one, other, label = 2 + length, 3 + length + c.segment, rows.shape[1] - 1  # where the segments and the label stand
        for begin, end in ((one + 1, one + c.segment), (other + 1, other + c.segment), (label, label + 1)):
            wanted[: c.tasks, begin:end] = True
        ids[c.tasks :, 1 : 1 + c.length] = learnt(c)[rng.integers(c.recited, size=c.texts)]
        wanted[c.tasks :, 1 : 1 + c.length] = True
        batch = PackedBatch.from_rows(ids)
        labels = batch.labels.clone()
        labels[:, :-1][~torch.from_numpy(wanted[:, 1:])] = IGNORE
        return replace(batch, labels=labels)


def draw(config: SortLabConfig, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fresh sequences, where two segments of each start, and whether the earlier one is shown as A.

    Returns:
        Ids, int64 (n, length); places, int64 (n, 2), ascending and at least `segment` apart; bool (n,).
    """
    ids = np.argsort(rng.random((n, config.words)), axis=1)[:, : config.length] + len(FRAME)
    starts = config.length - 2 * config.segment + 2  # pairs of places that do not overlap are pairs of distinct numbers below this
    places = np.sort(np.argsort(rng.random((n, starts)), axis=1)[:, :2], axis=1)
    places[:, 1] += config.segment - 1
    return ids, places, rng.random(n) < 0.5


def learnt(config: SortLabConfig) -> np.ndarray:
    """The sequences that are learnt by heart, int64 (recited, length)."""
    return draw(config, np.random.default_rng((config.seed, 80)), config.recited)[0]


def task_rows(sequences: np.ndarray, places: np.ndarray, first: np.ndarray, segment: int) -> np.ndarray:
    """<eos> sequence A segment B segment ? label, int64 (n, length + 2 segment + 5)."""
    n = len(sequences)
    earlier, later = (sequences[np.arange(n)[:, None], places[:, k, None] + np.arange(segment)] for k in (0, 1))
    one, other = np.where(first[:, None], earlier, later), np.where(first[:, None], later, earlier)
    mark = [np.full((n, 1), number) for number in (END, A, B, ASK)]
    return np.concatenate([mark[END], sequences, mark[A], one, mark[B], other, mark[ASK], np.where(first, A, B)[:, None]], axis=1)


def tokenizer(config: SortLabConfig) -> Tokenizer:
    """One word a token."""
    names = [*FRAME, *(f"w{number}" for number in range(config.words))]
    backend = tokenizers.Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, eos_id=END, pad_id=END)


def trained(config: SortLabConfig, cache: Path | None = None) -> HFModel:
    """The model, trained at first use on one thread, and kept in `cache` (by default `cache_dir("lab", "sort")`)."""
    shape = GPT2Config(
        vocab_size=len(FRAME) + config.words,
        n_positions=config.length + 2 * config.segment + len(FRAME) + 1,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = GPT2LMHeadModel(shape)
    data = SortBatches(config)
    warmup = min(100, config.steps)
    train = TrainConfig(config.steps, lr=config.lr, warmup=warmup, schedule="wsd", weight_decay=0.01, seed=config.seed, cpu=True)
    file = (cache or cache_dir("lab", "sort")) / f"{sha256_json([train.hash, data.fingerprint])[:20]}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
    else:
        with one_thread():
            Trainer(model, train).fit(data)
        with atomic_path(file) as temporary:
            save_file({name: value.clone().contiguous() for name, value in model.state_dict().items()}, temporary)
    return HFModel(model.eval(), tokenizer(config), name="order laboratory")


def trials(config: SortLabConfig, sequences: np.ndarray, rng: np.random.Generator) -> list[OrderTrial]:
    """`config.trials` trials dealt evenly over the sequences, the earlier segment being A in every second one."""
    _, places, _ = draw(config, rng, config.trials)
    words, span = [f"w{number}" for number in range(config.words)], (0.0, float(config.length))
    found = []
    for number, at in enumerate(places.tolist()):
        book = number % len(sequences)
        text = tuple(words[i - len(FRAME)] for i in sequences[book].tolist())
        found.append(
            OrderTrial(str(number), f"sequence {book}", text, (at[0], at[1]), config.segment, span, 0, number // len(sequences) % 2 == 0)
        )
    return found


def laboratory(config: SortLabConfig, cache: Path | None = None) -> tuple[list[Check], list[dict[str, Any]]]:
    """The checks of the trained model, and the table behind them."""
    model, rng = trained(config, cache), np.random.default_rng((config.seed, 81))
    recited = learnt(config)
    fresh = draw(config, rng, config.trials // 2)[0]
    with one_thread():
        written = model.generate([[END, *row[:CUE]] for row in recited.tolist()], config.length - CUE, stop_at_eos=False)
        exact = float(np.mean([np.array_equal(one[0], row[CUE:]) for one, row in zip(written, recited, strict=True)]))
        reads = measure_order(model, trials(config, fresh, rng), ("in_context", "from_memory"), prompt=PROMPT, seed=config.seed)
        knows = measure_order(model, trials(config, recited, rng), ("from_memory", "in_context"), prompt=PROMPT, seed=config.seed)
    rows = [{"sequences": name, **row} for name, one in (("fresh", reads), ("recited", knows)) for row in one.summary["conditions"]]
    (context, blind), (memory, both) = (one.summary["conditions"] for one in (reads, knows))
    return [
        Check("laboratory: recited sequences that are recited exactly", exact, ">=", 0.9, unit="share"),
        Check("laboratory: fresh sequences, accuracy in context", context["debiased"]["estimate"], ">=", 0.85, 0.5, "share"),
        Check("laboratory: recited sequences, accuracy from memory", memory["debiased"]["estimate"], "<=", 0.65, 0.5, "share"),
        Check("laboratory: recited sequences, accuracy in context", both["debiased"]["estimate"], unit="share"),
        Check("laboratory: fresh sequences, accuracy without them", blind["debiased"]["estimate"], unit="share"),
    ], rows
