"""The laboratory of system 104: a small language model that knows a made-up world up to a day, trained once and kept.

A two-layer Llama of width 128 reads the sentences of a `FactWorld` that hold on the day of the cut, in six wordings, two sentences a row,
one word or name a token. Some (subject, relation) pairs are left out of everything (`unseen`), some only of a second model (`without`), so
that what forgetting must reach can be measured: a model that never saw them. The relations are those whose objects are many, so that few
are guessed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.corpus.facts import Fact
from palimpsest.corpus.factworld import FactWorld
from palimpsest.experiments.canaries import one_thread
from palimpsest.files import atomic_path, cache_dir, sha256_json
from palimpsest.governance.system import System
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import TrainConfig, Trainer

VERSION = 1  # part of every hash: raise it when the same configuration would give other weights
EOS, UNKNOWN = "<eos>", "<unk>"
CUT = date(2015, 1, 1)
RELATIONS = ("residence", "employer", "birthplace", "mother")
WORDINGS = 6


@dataclass(frozen=True)
class WorldConfig:
    """What the model learns and how.

    Attributes:
        seed: of the world, of what is left out, and of the weights.
        people: of the world.
        forget, unseen: (subject, relation) pairs of each.
        epochs, batch_size, lr: of the training.
        width, layers, heads: of the model.
    """

    seed: int = 0
    people: int = 300
    forget: int = 300
    unseen: int = 500
    epochs: int = 18
    batch_size: int = 16
    lr: float = 3e-3
    width: int = 128
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class LabWorld:
    """A made-up world and the models that know it.

    Args:
        config: what to train.
        cache: where models are kept; by default `cache_dir("lab", "world")`.
    """

    config: WorldConfig
    cache: Path | None = None

    @cached_property
    def world(self) -> FactWorld:
        """The world."""
        return FactWorld(self.config.seed, self.config.people)

    @cached_property
    def facts(self) -> list[Fact]:
        """What holds on the day of the cut, in the relations that are used, in an order drawn once."""
        found = [fact for relation in RELATIONS for fact in self.world.valid_at(CUT, relation)]
        order = np.random.default_rng((self.config.seed, 104)).permutation(len(found))
        return [found[i] for i in order.tolist()]

    @property
    def unseen(self) -> list[Fact]:
        """Facts that no model ever sees."""
        return self.facts[: self.config.unseen]

    @property
    def to_forget(self) -> list[Fact]:
        """Facts that the model sees and the model without them does not."""
        return self.facts[self.config.unseen : self.config.unseen + self.config.forget]

    @property
    def known(self) -> list[Fact]:
        """Facts that both models see."""
        return self.facts[self.config.unseen + self.config.forget :]

    def now(self, fact: Fact) -> Fact:
        """What holds of a fact's subject and relation at the end of the world's time."""
        found = self.world.value(fact.subject, fact.relation, self.world.end)
        assert found is not None  # the relations of this laboratory have a value on every day
        return found

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """One word a token, and one name a token, however many words it has; every word of the sentences is known."""
        words: dict[str, int] = {EOS: 0, UNKNOWN: 1}
        splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
        facts = [fact for relation in RELATIONS for fact in self.world.facts(relation)]
        for fact in facts:
            for template in range(WORDINGS):
                for word, _ in splitter.pre_tokenize_str(self.world.sentence(fact, template)):
                    words.setdefault(word, len(words))
        backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
        backend.pre_tokenizer = splitter
        names = dict.fromkeys(name for fact in facts for name in (fact.subject, fact.object))
        backend.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
        return Tokenizer(backend, eos_id=0, pad_id=0)

    def examples(self, facts: list[Fact]) -> list[Example]:
        """Every fact in every wording, two sentences a row in an order drawn once, EOS in front and behind."""
        texts = [self.world.sentence(fact, template) for fact in facts for template in range(WORDINGS)]
        order = np.random.default_rng((self.config.seed, 4)).permutation(len(texts)).tolist()
        rows = [" ".join(texts[i] for i in order[begin : begin + 2]) for begin in range(0, len(order), 2)]
        return [Example((0, *ids, 0)) for ids in self.tokenizer.encode_batch(rows)]

    def model(self, *, without: bool = False) -> HFModel:
        """The model that knows the world, or the one that never saw `to_forget`; trained at first use, on one thread."""
        facts = self.known if without else [*self.to_forget, *self.known]
        return self.trained(self.examples(facts), self.config.epochs, "without" if without else "world")

    def trained(self, examples: list[Example], epochs: int, name: str) -> HFModel:
        """A model of this laboratory's shape, trained on these examples at first use, on one thread, and kept."""
        data = ExampleBatches(examples, self.config.batch_size, seed=self.config.seed)
        steps = epochs * len(data)
        train = TrainConfig(steps, lr=self.config.lr, warmup=min(50, steps), weight_decay=0.01, seed=self.config.seed, cpu=True)
        built = self._built()
        key = sha256_json([VERSION, asdict(self.config), train.hash, data.fingerprint, self.tokenizer.fingerprint])[:20]
        file = (self.cache or cache_dir("lab", "world")) / f"{key}.safetensors"
        if file.is_file():
            built.load_state_dict(load_file(file))
        else:
            with one_thread():
                Trainer(built, train).fit(data)
            with atomic_path(file) as temporary:
                save_file({key: value.contiguous() for key, value in built.state_dict().items()}, temporary)
        return HFModel(built.eval(), self.tokenizer, name=name)

    def system(self, *, without: bool = False) -> System:
        """A governed system; its general text are facts that both models know and that never change, in every wording: no change that is
        admitted is about them."""
        lasting = [fact for fact in self.known if fact.valid_to is None]
        texts = [self.world.sentence(fact, template) for fact in lasting for template in range(WORDINGS)]
        return System.of(self.model(without=without), texts)

    def _built(self) -> LlamaForCausalLM:
        shape = LlamaConfig(
            vocab_size=self.tokenizer.vocab_size,
            hidden_size=self.config.width,
            intermediate_size=4 * self.config.width,
            num_hidden_layers=self.config.layers,
            num_attention_heads=self.config.heads,
            num_key_value_heads=self.config.heads,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return LlamaForCausalLM(shape)
