"""Language models that were trained on 256 tokens: what the claim checks about longer contexts run on.

A model that already reads 8,192 tokens does not fail just past them (SmolLM2's loss stays flat to 10,000), so that "this keeps a short
model alive" cannot be shown on it. These are Llamas of 2.1 million parameters (width 128, four layers, four heads, rotary positions of
base θ) that are trained on 256 tokens by `training/loop.py` and kept as safetensors in the laboratory's cache. Systems 013, 040, 070 and
091 share them:

* `ShortLMConfig()` reads text alone, 1,500 steps of 16 rows × 256 tokens, 4.6 times over it: for losses. 12 minutes of one core with
  bfloat16 units.
* `WITH_KEYS` is to find pass keys, too: only a model that finds them in 256 tokens can show that a method finds them in 8,192. It has
  1,200 steps of rows of 128 tokens, seven of eight with one or two keys, and then 1,500 steps of 256 tokens, half of the rows with one to
  four. Of rows with keys only the answers are targets: they would be one target in forty otherwise. 20 minutes.

The two stages, weights that begin with a standard deviation of .06 and half the learning rate are departures, tried on seeds 100 and 101.
With Llama's .02, the second stage alone and every token a target the model finds no key after 1,500 steps. A first stage of rows with keys
alone teaches it to find them, but no text, and learning text then costs it the keys.

The text is WikiText-2 (its validation part; the training part is not in the data) and the King James Bible from the folder that
$PALIMPSEST_DATA names; without them it is the seven novels that the package ships, another model under another hash, and
`short_texts().source` says which. Held out are WikiText-2's test part and the Bible's last chapters, or the novels' own held-out chapters.

Questions for pass keys stand at a row's end, worded as `evaluation.context_prompts` asks them. Digits are tokens of their own.

    >>> model = trained(ShortLMConfig(seed=0))            # doctest: +SKIP
    >>> model.context_length, model.parameters            # doctest: +SKIP
    (256, 2098304)
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from dataclasses import asdict, dataclass, replace
from functools import cache as memoized
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.errors import InputError
from palimpsest.evaluation.context_prompts import NAMES, KeyPrompt, draw_keys
from palimpsest.evaluation.haystack import Haystack, Recipe
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.planted_texts import EOS, EOS_ID, base_text
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.models.base import Progress
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.batch import IGNORE, PackedBatch
from palimpsest.training.loop import TrainConfig, Trainer

VERSION = 2  # part of every hash: raise it when the same configuration would give other weights
TESTED_CHAPTERS = 95  # of the Bible, at its end
MOST_KEYS = 4  # in a row with pass keys
KEY_TOKENS = 64  # of a row for each key, its question, and text around both
FIRST_SHARE = 0.875  # of the first stage's rows that hold pass keys
_ARTICLE = re.compile(r"(?m)^(?= = [^=\n]+ = $)")


@dataclass(frozen=True)
class ShortLMConfig:
    """What is trained.

    Attributes:
        seed: of weights, rows and keys.
        theta: base of the rotary frequencies, θ^(−2i/d).
        length: tokens of a row, L0: the longest context ever seen in training.
        first_steps: of a first stage with rows of L0/2 tokens, most of them with pass keys.
        steps, rows: of the training behind it.
        passkey_share: share of the rows that hold pass keys, rounded to rows.
        answers_only: of the rows with pass keys, only the digits of the answers are targets.
        lr, warmup: of both stages.
        init: standard deviation of the weights before training.
        vocab_size: ids of the byte-level BPE.
        width, layers, heads, inner: of the model; `inner` is the width of the feed-forward part.
        precision: "bf16" (autocast) or "fp32", which takes twice the time, and less of it where a processor has no bfloat16 units.
    """

    seed: int = 0
    theta: float = 10_000.0
    length: int = 256
    first_steps: int = 0
    steps: int = 1500
    rows: int = 16
    passkey_share: float = 0.0
    answers_only: bool = False
    lr: float = 2e-3
    warmup: int = 100
    init: float = 0.02
    vocab_size: int = 4096
    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 512
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if not self.theta > 1:
            raise InputError(f"theta is {self.theta}.", "Give a base above 1, such as 10000.")
        if not 0 <= self.passkey_share <= 1:
            raise InputError(f"passkey_share is {self.passkey_share}.", "Give a share from 0 to 1.")
        if self.length < 2 or self.rows < 1:
            raise InputError(f"{self.rows} rows of {self.length} tokens make no step.", "Give at least one row of two tokens.")
        if self.first_steps < 0 or not self.init > 0:
            wrong = f"first_steps is {self.first_steps}, init {self.init}."
            raise InputError(wrong, "Give no negative number of steps, and a deviation above 0.")

    @property
    def stages(self) -> list[tuple[ShortLMConfig, TrainConfig]]:
        """What the rows of each stage are, and how they are trained on."""

        def training(steps: int) -> TrainConfig:
            return TrainConfig(steps, lr=self.lr, warmup=min(self.warmup, steps), seed=self.seed, precision=self.precision, cpu=True)

        whole = (self, training(self.steps))
        if not self.first_steps:
            return [whole]
        return [(replace(self, length=self.length // 2, passkey_share=FIRST_SHARE), training(self.first_steps)), whole]


WITH_KEYS = ShortLMConfig(first_steps=1200, passkey_share=0.5, answers_only=True, lr=1e-3, init=0.06)
SMOKE = ShortLMConfig(
    length=64, steps=3, rows=4, warmup=1, vocab_size=320, width=32, layers=2, heads=2, inner=64, precision="fp32"
)  # trains in a second; it knows nothing


@dataclass(frozen=True)
class ShortTexts:
    """What is read.

    Attributes:
        source: which texts these are.
        train: documents to train on.
        held_out: documents that no model is trained on, by source.
    """

    source: str
    train: tuple[str, ...]
    held_out: tuple[tuple[str, ...], ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the documents to train on."""
        return hashlib.sha256("\0".join(self.train).encode()).hexdigest()


@memoized
def _texts(folder: str) -> ShortTexts:
    root = Path(folder)
    files = [root / "wikitext-2" / "valid.txt", root / "wikitext-2" / "test.txt", root / "kjv-bible" / "kjv.tsv"]
    if not folder or not all(file.is_file() for file in files):
        base = base_text()
        return ShortTexts("the laboratory's novels", tuple(base.train), (tuple(base.held_out),))
    valid, test = (tuple(part for part in _ARTICLE.split(file.read_text(encoding="utf-8")) if part.strip()) for file in files[:2])
    chapters: dict[tuple[str, str], list[str]] = {}
    with open(files[2], encoding="utf-8", newline="") as stream:
        for book, chapter, _, verse in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            chapters.setdefault((book, chapter), []).append(verse)
    bible = tuple("\n".join(verses) for verses in chapters.values())
    train = (*valid, *bible[:-TESTED_CHAPTERS])
    order = np.random.default_rng(13).permutation(len(train)).tolist()  # or the first rows would all be of one source
    return ShortTexts("WikiText-2 and the King James Bible", tuple(train[i] for i in order), (test, bible[-TESTED_CHAPTERS:]))


def short_texts() -> ShortTexts:
    """WikiText-2 and the Bible where $PALIMPSEST_DATA has them, otherwise the shipped novels."""
    return _texts(os.environ.get("PALIMPSEST_DATA") or "")


def tokenizer(config: ShortLMConfig, cache: Path | None = None) -> Tokenizer:
    """A byte-level BPE of `config.vocab_size` ids, trained on the training documents and kept; every digit is an id; id 0 ends a document.

    Raises:
        InputError: fewer than 257 ids.
    """
    if config.vocab_size < 257:
        raise InputError(f"vocab_size is {config.vocab_size}.", "A byte-level tokenizer needs at least 257 ids.")
    texts = short_texts()
    key = sha256_json([VERSION, config.vocab_size, texts.fingerprint])[:20]
    file = (cache or cache_dir("lab", "short-context")) / f"tokenizer-{key}.json"
    if not file.is_file():
        backend = tokenizers.Tokenizer(models.BPE())
        pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(pieces)
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=config.vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(texts.train, trainer)
        Tokenizer(backend).save(file)
    return Tokenizer.from_file(file, eos_id=EOS_ID, pad_id=EOS_ID)


def stream(tokenizer: Tokenizer, documents: tuple[str, ...]) -> np.ndarray:
    """The documents as one stream of ids, int64, EOS after each."""
    return np.concatenate([np.array([*ids, EOS_ID], np.int64) for ids in tokenizer.encode_batch(documents)])


def held_out_rows(tokenizer: Tokenizer, n: int, length: int) -> np.ndarray:
    """`n` rows of running text that no model was trained on, int64 (n, length): of the sources in turn, disjoint, spread over each.

    Raises:
        InputError: a source has fewer rows of that length.
    """
    sources = [stream(tokenizer, part) for part in short_texts().held_out]
    cut: list[list[np.ndarray]] = []
    for number, ids in enumerate(sources):
        wanted = len(range(number, n, len(sources)))
        if wanted * length > len(ids):
            raise InputError(f"{wanted} rows of {length} tokens were asked for, the text has {len(ids)}.", "Ask for fewer or shorter ones.")
        starts = np.linspace(0, len(ids) - length, wanted).astype(int)
        cut.append([ids[start : start + length] for start in starts.tolist()])
    return np.stack([cut[i % len(sources)][i // len(sources)] for i in range(n)])


def within_length(rows: np.ndarray, start: int, length: int) -> np.ndarray:
    """The tokens from `start` on as the model meets them within its own length: at length/2, with length/2 tokens in front.

    The loss far in a text, over the loss near its beginning, is of other tokens, and the difference between tokens hides that between
    positions. This is what to hold the loss at `start`, …, `start` + length/2 − 1 against.

    Args:
        rows: running text, (n, tokens).
        start: a position of the rows, from length/2 to tokens − length/2.
        length: tokens that the model was trained on.

    Returns:
        (n, length), a view.

    Raises:
        InputError: a position with less than length/2 tokens on a side.

    Example:
        >>> within_length(np.arange(40)[None], 24, 8).tolist()
        [[20, 21, 22, 23, 24, 25, 26, 27]]
    """
    half = length // 2
    if not half <= start <= rows.shape[1] - half:
        raise InputError(f"start is {start}, in rows of {rows.shape[1]} tokens.", f"Give a position with {half} tokens on each side.")
    return rows[:, start - half : start + half]


def held_out_haystack(tokenizer: Tokenizer) -> Haystack:
    """Filler that no model was trained on, for contexts of any length."""
    return Haystack(tokenizer, [text for part in short_texts().held_out for text in part], cycle=True)


class ShortBatches:
    """Batch k of the training, drawn from k alone: rows of running text, then rows with pass keys. See `training.batch.BatchSource`.

    Args:
        config: what is trained; `length` and `rows` may differ from those a model began with.
        tokenizer: its tokenizer.
    """

    def __init__(self, config: ShortLMConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer, self.texts = config, tokenizer, short_texts()
        self.n_keys = round(config.passkey_share * config.rows)

    @cached_property
    def ids(self) -> np.ndarray:
        """All documents as one stream, int64."""
        ids = stream(self.tokenizer, self.texts.train)
        if len(ids) < self.config.length:
            raise InputError(f"The text has {len(ids)} tokens, a row {self.config.length}.", "Ask for shorter rows.")
        return ids

    @cached_property
    def haystack(self) -> Haystack:
        """Filler for the rows with keys."""
        return Haystack(self.tokenizer, self.texts.train, cycle=True)

    @cached_property
    def digits(self) -> np.ndarray:
        """The ids of 0 to 9, int64; no wording of a question has others."""
        return np.array([self.tokenizer.encode(str(digit))[0] for digit in range(10)], np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the batches."""
        found = {"version": VERSION, "texts": self.texts.fingerprint, "tokenizer": self.tokenizer.fingerprint}
        if self.n_keys:
            found |= {"wording": asdict(KeyPrompt()), "names": NAMES}
        return sha256_json({**found, **asdict(self.config)})

    def __getitem__(self, k: int) -> PackedBatch:
        c, rng = self.config, np.random.default_rng((self.config.seed, 13, k))
        starts = rng.integers(0, len(self.ids) - c.length + 1, c.rows - self.n_keys)
        rows = [self.ids[start : start + c.length] for start in starts]
        keyed = [self.key_row(rng) for _ in range(self.n_keys)]
        batch = PackedBatch.from_rows(np.stack(rows + [ids for ids, _ in keyed]))
        if c.answers_only and keyed:
            targets = batch.labels.numpy()[-len(keyed) :]
            begins = np.array([begin for _, begin in keyed])[:, None]
            targets[(np.arange(c.length) + 1 < begins) | ~np.isin(targets, self.digits)] = IGNORE
        return batch

    def key_row(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A row of text with one to four pass keys (one for each 64 tokens of it), each asked for at its end.

        Returns:
            Its ids, int64 (length,), and where the questions begin.
        """
        most = min(MOST_KEYS, max(1, self.config.length // KEY_TOKENS))
        prompt, keys = KeyPrompt(), int(rng.integers(1, most + 1))
        names = [NAMES[i] for i in rng.permutation(len(NAMES))[:keys]]
        numbers = draw_keys(rng, keys)
        needle, question, lead = (prompt.needle, prompt.question, prompt.lead)
        if keys > 1:
            needle, question, lead = (prompt.named_needle, prompt.named_question, prompt.named_lead)
        asked = question + prompt.tail + lead + "{key}" + prompt.after
        named = [{"name": name, "key": key} for name, key in zip(names, numbers, strict=True)]
        needles = tuple(needle.format(**one) for one in named)
        after = "".join(asked.format(**named[i]) for i in rng.permutation(keys))
        depths = tuple(np.sort(rng.random(keys)).tolist())
        recipe = Recipe(needles, depths, self.config.length, after=after, seed=int(rng.integers(1 << 31)))
        return self.haystack.make(recipe).ids, self.config.length - len(self.tokenizer.encode(after))


def trained(config: ShortLMConfig | None = None, cache: Path | None = None, progress: Progress | None = None) -> HFModel:
    """The model, trained at first use on one thread, and kept.

    Args:
        config: what to train.
        cache: where models are kept; by default `cache_dir("lab", "short-context")`.
        progress: called with (steps done, steps in all).

    Returns:
        Its door; `context_length` is `config.length`.

    Raises:
        InputError: a configuration out of range.
        StorageError: the cache cannot be written.
    """
    config = config or ShortLMConfig()
    own = tokenizer(config, cache)
    model = build(config)
    stages = [(ShortBatches(rows, own), training) for rows, training in config.stages]
    key = sha256_json([[training.hash, data.fingerprint] for data, training in stages])[:20]
    file = (cache or cache_dir("lab", "short-context")) / f"{key}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
    else:
        done, total = 0, sum(training.steps for _, training in stages)
        with one_thread():
            for data, training in stages:
                Trainer(model, training, progress=_behind(done, total, progress)).fit(data)
                done += training.steps
        with atomic_path(file) as temporary:
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    return HFModel(model.eval(), own, name="short-context LM")


def _behind(done: int, total: int, progress: Progress | None) -> Progress | None:
    """Progress of a stage as that of the whole training."""
    return progress and (lambda now, _: progress(done + now, total))


def build(config: ShortLMConfig) -> LlamaForCausalLM:
    """The model before training: a Llama with untied embeddings, its weights drawn from the seed."""
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.inner,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.length,
        rope_parameters={"rope_type": "default", "rope_theta": config.theta},
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
        tie_word_embeddings=False,
        initializer_range=config.init,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(shape)
