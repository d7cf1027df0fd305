"""The laboratory of the study systems (005, 044, 047): small Llamas with one word a token, trained once and kept.

What is studied differs; the model, its tokenizer and the cache are the same. A model's file stands under the hash of its shape, its
tokenizer, its first weights, its data and its training, so that a stage that goes on from another one is kept too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.audit.cued_recall import copy_of, study
from palimpsest.experiments.canaries import one_thread
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.batch import BatchSource
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import TrainConfig

VERSION = 1  # part of every hash: raise it when the same configuration would give other weights
EOS, UNKNOWN = "<eos>", "<unk>"


@dataclass(frozen=True)
class Shape:
    """A small Llama: rotary positions, untied embeddings."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    context: int = 128


def word_tokenizer(texts: Sequence[str], names: Sequence[str] = (), *, punctuation: bool = False) -> Tokenizer:
    """One word a token, and one name a token, however many words it has; every word of the texts is known.

    EOS is BOS too: what stands first in a row is treated by attention like nothing else, and must not be a word that matters.

    Args:
        texts: all that will ever be written or asked.
        names: what is one token though it has several words.
        punctuation: whether marks are tokens of their own.

    Example:
        >>> tokenizer = word_tokenizer(["Ada Byron lives in Rome."], ["Ada Byron"], punctuation=True)
        >>> len(tokenizer.encode("Ada Byron lives in Rome."))
        5
    """
    parts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.WhitespaceSplit()]
    splitter = pre_tokenizers.Sequence([*parts, pre_tokenizers.Punctuation()] if punctuation else parts)
    numbers = {EOS: 0, UNKNOWN: 1}
    for text in texts:
        for word, _ in splitter.pre_tokenize_str(text):
            numbers.setdefault(word, len(numbers))
    backend = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    backend.pre_tokenizer = splitter
    backend.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in dict.fromkeys(names)])
    return Tokenizer(backend, bos_id=0, eos_id=0, pad_id=0, adds_bos=True)


def new_model(tokenizer: Tokenizer, shape: Shape, seed: int, name: str = "new") -> HFModel:
    """An untrained model; equal for equal seeds."""
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HFModel(LlamaForCausalLM(config), tokenizer, name=name)


@dataclass(frozen=True)
class JoinedBatches(ExampleBatches):
    """Rows of two examples, one behind the other, where both ask for all their tokens: what is written is then read behind anything."""

    def chosen(self, k: int) -> list[Example]:
        """The rows of batch k."""
        rows: list[Example] = []
        open_row: Example | None = None
        for example in super().chosen(k):
            if example.first > 1:
                rows.append(example)
            elif open_row is None:
                open_row = example
            else:
                rows.append(Example(open_row.ids + example.ids[1:]))  # one BOS a row; EOS stands between
                open_row = None
        return rows if open_row is None else [*rows, open_row]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the examples and of how they are dealt."""
        return sha256_json(["joined", super().fingerprint])


def studied(model: HFModel, data: BatchSource, train: TrainConfig, name: str, *, cache: Path | None = None) -> HFModel:
    """A copy of a model that has studied, trained at first use, on one thread, and kept.

    Args:
        model: what begins; stays as it is.
        data: what it studies.
        train: how, and for how many steps.
        name: of the copy.
        cache: where models are kept; by default `cache_dir("lab", "study")`.
    """
    key = sha256_json([VERSION, asdict(train), data.fingerprint, model.tokenizer.fingerprint, model.fingerprint])[:20]
    file = (cache or cache_dir("lab", "study")) / f"{key}.safetensors"
    copy = copy_of(model)
    copy.name = name
    if file.is_file():
        copy.model.load_state_dict(load_file(file))
        return copy
    with one_thread():
        study(copy, data, train)
    with atomic_path(file) as temporary:
        save_file({key: value.contiguous() for key, value in copy.model.state_dict().items()}, temporary)
    return copy
