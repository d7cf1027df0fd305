"""Claim check of system 005 (rote): facts learnt by rote under a key are answered under prompts that other facts taught.

Wu et al., arXiv 2507.21914, in the laboratory: a two-layer Llama of width 128 reads 300 people of a made-up world in five relations, each
fact in four wordings drawn of ten. Then 100 people whom it has never met get a birthplace through "s [X] o", until it writes all of them;
and 50 of these are studied with one wording, the loss on the object alone. Asked are the other 50, by a choice among 100 cities, with the
wording that was studied and with five that were not (the model knows all ten, each of some of the first 300 people).

Checks, as the specification has them: with the studied wording ≥ 0.6, with five others ≥ 0.4; after phase 1 alone ≤ 0.1 on the wordings;
after phase 2 alone ≤ chance + 0.05; after phase 2 with the objects exchanged ≤ 0.15; the more epochs of rote (5, 20, 60), the more of the
held-out facts: Spearman > 0. Forgetting of what was known before, a prompt of another relation in phase 2 (misuse), and cosines of the
directions that key and prompts move a subject in are reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from palimpsest.audit.cued_recall import copy_of
from palimpsest.audit.rote import RoteThenGeneralize, directions, measure
from palimpsest.audit.rote_facts import RoteFact
from palimpsest.corpus.facts import Fact
from palimpsest.corpus.factworld import FactWorld
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.study_lab import Shape, new_model, studied, word_tokenizer
from palimpsest.measurement import Curve, Series
from palimpsest.models.hf import HFModel
from palimpsest.stats import spearman
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import TrainConfig

STATEMENT = (
    "Facts learnt by rote under a meaningless key become answerable under meaningful and unseen prompts after a short second phase on only "
    "some of them."
)
KEY = "[X]"
RELATIONS = ("birthplace", "residence", "employer", "occupation", "mother")
TRAINED, UNSEEN, MISUSE = 0, (1, 2, 3, 4, 5), "employer"  # wordings that begin with the subject


@dataclass(frozen=True)
class Config:
    """Of the laboratory.

    Attributes:
        people: of the world.
        known, new, generalized: people who are read about, who are met later, and of these who stand in phase 2.
        distractors: of every fact.
        wordings: of the ten, in how many a fact is read; drawn for each fact.
        epochs, batch_size, lr, weight_decay: of the reading.
        drawn: whether the embeddings of new names are drawn like those of known ones, or left as untrained ones are.
        rote_lr, rote_batch, rote: of phases 1 and 2, and the epochs of phase 1 that are compared.
        phase_2: epochs.
        shape: of the model.
    """

    people: int = 420
    known: int = 300
    new: int = 100
    generalized: int = 50
    distractors: int = 99
    wordings: int = 4
    epochs: int = 22
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.1
    drawn: bool = True
    rote_lr: float = 2e-3
    rote_batch: int = 10
    rote: tuple[int, ...] = (5, 20, 60)
    phase_2: int = 8
    shape: Shape = field(default_factory=lambda: Shape(128))


CPU = Config()
SMOKE = Config(40, 20, 10, 5, 3, 10, 1, 8, rote=(1, 2), phase_2=1, shape=Shape(16, 1, 2))


class Laboratory:
    """The world, the model that has read of it, and the new facts.

    Args:
        config: sizes.
        seed: of everything.
    """

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed = config, seed
        self.world = FactWorld(seed, config.people, changing=0.0)
        names = self.world.entities["person"]
        order = np.random.default_rng((seed, 5)).permutation(len(names)).tolist()
        self.known, self.new = ([names[i] for i in order[a:b]] for a, b in ((0, config.known), (config.known, config.known + config.new)))
        wordings = [self.prompt(relation, wording).replace("{s}", " ") for relation in RELATIONS for wording in range(10)]
        kinds = {self.world.relations[relation].object_kind for relation in RELATIONS}
        things = [name for kind in sorted(kinds) for name in self.world.entities[kind]]
        self.tokenizer = word_tokenizer([*wordings, KEY], [*names, *things])

    def _fact(self, name: str, relation: str) -> Fact:
        found = self.world.value(name, relation)
        assert found is not None  # the relations of this laboratory have a value on every day
        return found

    def prompt(self, relation: str, wording: int) -> str:
        """A wording up to its object, with {s} for the subject."""
        return self.world.relations[relation].templates[wording].removesuffix(" {o}.")

    def rote_facts(self, people: list[str], relation: str = "birthplace") -> list[RoteFact]:
        """Facts with their distractors."""
        facts = [self._fact(name, relation) for name in people]
        return [RoteFact(f.subject, f.object, tuple(self.world.distractors(f, self.config.distractors))) for f in facts]

    @cached_property
    def base(self) -> HFModel:
        """The model that is about to meet the new people.

        A word that a model has never read has an embedding far shorter than any that it has. What real models are told of is spelt with
        tokens that they know; here the vectors of the new names are drawn from a normal distribution with mean and covariance of the
        known ones.
        """
        model = copy_of(self.read)
        if not self.config.drawn:
            return model
        rows = model.model.get_input_embeddings().weight.detach()  # (ids, width)
        known, new = ([self.tokenizer.encode(name)[0] for name in names] for names in (self.known, self.new))
        rng = np.random.default_rng((self.seed, 8))
        vectors = rows[known].double().numpy()
        drawn = rng.multivariate_normal(vectors.mean(axis=0), np.cov(vectors, rowvar=False), size=len(new))
        rows[new] = torch.from_numpy(drawn).to(rows.dtype)
        return model

    @cached_property
    def read(self) -> HFModel:
        """The model that has read of the known people, two sentences a row."""
        config = self.config
        new = new_model(self.tokenizer, config.shape, self.seed)
        facts = [self._fact(name, relation) for relation in RELATIONS for name in self.known]
        rng = np.random.default_rng((self.seed, 10))
        drawn = [(fact, wording) for fact in facts for wording in rng.permutation(10)[: config.wordings].tolist()]
        texts = [f"{self.prompt(fact.relation, wording)} {fact.object}".replace("{s}", fact.subject) for fact, wording in drawn]
        rows = new.tokenizer.encode_batch(texts)
        order = np.random.default_rng((self.seed, 6)).permutation(len(rows)).tolist()
        found = [Example((0, *rows[a], 0, *rows[b], 0)) for a, b in zip(order[::2], order[1::2], strict=True)]
        steps = config.epochs * -(-len(found) // config.batch_size)
        train = TrainConfig(steps, lr=config.lr, warmup=min(50, steps), weight_decay=config.weight_decay, seed=self.seed, cpu=True)
        return studied(new, ExampleBatches(found, config.batch_size, seed=self.seed), train, "read")

    def learner(self) -> RoteThenGeneralize:
        """A copy of the model that has read, about to learn by rote."""
        config = self.config
        return RoteThenGeneralize(self.base, KEY, lr=config.rote_lr, batch_size=config.rote_batch, seed=self.seed)


def run(scale: str, seed: int, config: Config | None = None) -> Claim:
    """Reads, learns by rote, generalises, and asks, in all conditions.

    Args:
        scale: "smoke": a model so small that it learns nothing; nothing is held against anything; "cpu".
        seed: of the world, the draws, the weights and the order of training.
        config: another laboratory than the scale's.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    lab = Laboratory(config or (CPU if full else SMOKE), seed)
    with one_thread():
        rows, moves = conditions(lab)
    checks = judged(rows)
    if not full:
        checks = [replace(check, threshold=None) for check in checks]
    return Claim("rote", STATEMENT, checks, [*rows, *moves], seed, scale, notes=list(NOTES), curves=[_curve(rows)])


def conditions(lab: Laboratory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row a condition and kind of prompt; and the cosines."""
    config = lab.config
    facts = lab.rote_facts(lab.new)
    taught, asked = facts[: config.generalized], facts[config.generalized :]
    trained, unseen = [lab.prompt("birthplace", TRAINED)], [lab.prompt("birthplace", wording) for wording in UNSEEN]
    kinds = {"trained": trained, "unseen": unseen, "key": [f"{{s}} {KEY}"], "misuse": [lab.prompt(MISUSE, TRAINED)]}
    before = lab.rote_facts(lab.known[: config.new])
    rows: list[dict[str, Any]] = []

    def ask(condition: str, learner: RoteThenGeneralize, epochs: int, recalled: float | None) -> None:
        summary = learner.measure(asked, kinds).summary
        known = measure(learner.model, before, {"known": trained}).summary["kinds"]["known"]
        for kind, figures in summary["kinds"].items():
            share = {name: figures[name]["estimate"] for name in ("chosen", "control", "written", "probability")}
            row = {"condition": condition, "epochs": epochs, "kind": kind, **share, "low": figures["chosen"]["low"]}
            rows.append(row | {"high": figures["chosen"]["high"], "recalled": recalled, "known": known["chosen"]["estimate"]}
                        | {"chance": summary["chance"]})  # fmt: skip

    ask("nothing", lab.learner(), 0, None)
    alone = lab.learner()
    alone.generalize(taught, trained, config.phase_2)
    ask("phase 2 alone", alone, 0, None)
    for epochs in config.rote:
        learner = lab.learner()
        recalled = learner.memorize(facts, epochs)
        if epochs == config.rote[-1]:
            ask("phase 1 alone", learner, epochs, recalled)
            memorized = learner.model
        learner.generalize(taught, trained, config.phase_2)
        ask("rote, then generalise", learner, epochs, recalled)
    moves = [{"condition": "cosine"} | row for row in _directions(lab, learner.model, kinds)]
    exchanged = [replace(fact, object=other.object, distractors=()) for fact, other in zip(taught, [*taught[1:], taught[0]], strict=True)]
    for condition, some, prompts in (("objects exchanged", exchanged, trained), ("misuse", taught, kinds["misuse"])):
        learner = lab.learner()
        learner.model.model.load_state_dict(memorized.model.state_dict())
        learner.generalize(some, prompts, config.phase_2)
        ask(condition, learner, config.rote[-1], None)
    return rows, moves


def _directions(lab: Laboratory, model: HFModel, kinds: dict[str, list[str]]) -> list[dict[str, Any]]:
    names = {prompt: kind for kind in ("trained", "unseen", "misuse") for prompt in kinds[kind]}
    return [{"kind": names[row["prompt"]], **row} for row in directions(model, lab.new, KEY, list(names)).iter_rows(named=True)]


def judged(rows: list[dict[str, Any]]) -> list[Check]:
    """The checks."""

    def of(condition: str, kind: str, epochs: int | None = None) -> dict[str, Any]:
        found = [row for row in rows if row["condition"] == condition and row["kind"] == kind and epochs in (None, row["epochs"])]
        return found[-1]  # the most epochs stand last

    main = "rote, then generalise"
    chance = rows[0]["chance"]
    by_epochs = [row for row in rows if row["condition"] == main and row["kind"] == "trained"]
    values = [row["chosen"] for row in by_epochs]
    trend = spearman([row["epochs"] for row in by_epochs], values) if len(set(values)) > 1 else None
    checks = [
        Check("facts written under the key after phase 1", of("phase 1 alone", "key")["recalled"], ">=", 1.0, unit="share"),
        Check("held-out facts, studied wording", of(main, "trained")["chosen"], ">=", 0.6, of(main, "trained")["control"], "share"),
        Check("held-out facts, five other wordings", of(main, "unseen")["chosen"], ">=", 0.4, of(main, "unseen")["control"], "share"),
    ]
    for kind, name in (("trained", "studied wording"), ("unseen", "other wordings")):
        checks += [
            Check(f"phase 1 alone, {name}", of("phase 1 alone", kind)["chosen"], "<=", 0.1, unit="share"),
            Check(f"phase 2 alone, {name}", of("phase 2 alone", kind)["chosen"], "<=", chance + 0.05, unit="share"),
            Check(f"objects exchanged, {name}", of("objects exchanged", kind)["chosen"], "<=", 0.15, unit="share"),
        ]
    checks.append(Check("Spearman of rote epochs and held-out facts", trend, ">", 0))
    checks += [
        Check("known facts after both phases", of(main, "trained")["known"], baseline=of("nothing", "trained")["known"], unit="share"),
        Check("misuse: facts under another relation's wording", of("misuse", "misuse")["chosen"], unit="share"),
        Check("held-out facts written, studied wording", of(main, "trained")["written"], unit="share"),
        Check("held-out facts under the key after both phases", of(main, "key")["chosen"], unit="share"),
    ]
    return checks


NOTES = (
    "A name is one token. The studied wording and the others are known of the first 300 people: what is new is the subjects.",
    "Tried on seed 100, at a rate of 1e-3 and with 5 epochs of phase 2. Each fact read in all ten wordings: held-out facts 0.06 to 0.44 "
    "with the studied wording, 0.01 to 0.20 with others. Each read in four of them, with more decay: 0.96 and 0.58, but then phase 1 alone "
    "gives 0.26 and 0.25, and exchanged objects 0.18 and 0.26, more than is allowed. Then the laboratory of "
    "today, on seed 100, 60 epochs of phase 1 (held-out facts with the studied wording and with others): 0.16 and 0.05 at a rate of 5e-4, "
    "0.54 and 0.13 at 1e-3, 0.52 and 0.05 at 1.5e-3, 0.92 and 0.27 at 2e-3 with 5 epochs of phase 2, 0.96 and 0.30 with 8, 0.80 and 0.32 "
    "at 3e-3, 0.68 and 0.19 at 4e-3; phase 1 alone at most 0.06; of the known facts 0.02 to 0.32 are left.",
    "Phase 1 asks for all tokens of 's [X] o', phase 2 for the object alone; the learning rate falls linearly in both.",
)


def _curve(rows: list[dict[str, Any]]) -> Curve:
    def line(kind: str) -> list[dict[str, Any]]:
        some = [row for row in rows if row["condition"] == "rote, then generalise" and row["kind"] == kind]
        return [{"x": row["epochs"], "y": row["chosen"], "low": row["low"], "high": row["high"], "n": None} for row in some]

    names = {"trained": "the studied wording", "unseen": "five other wordings", "key": "the key"}
    return Curve(
        "rote-epochs", "More rote, more of what was never studied with a meaningful prompt", "epochs of rote",
        "right among the candidates", [Series(name, line(kind)) for kind, name in names.items()], y_domain=(0.0, 1.0), y_format="percent",
        caption="Facts that phase 2 did not see; intervals of 95 % over facts.",
    )  # fmt: skip
