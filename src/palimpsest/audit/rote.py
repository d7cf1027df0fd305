"""Rote learning, then generalising: facts memorised under a meaningless key become answers to questions that they were never studied with.

Wu, Das, Amani, Ghosh, Khan, Gummadi and Zafar, ICLR 2026, arXiv 2507.21914. Facts (s, o) of one relation that the model does not know:

1. *rote*: next-token loss on all of "s [X] o", the key [X] being new or meaningless, until the model writes o after "s [X]";
2. *generalising*: on some of these facts, a few epochs on "prompt(s) o", the loss on o alone, with one or more meaningful prompts.

Asked are the facts that phase 2 did not see, with the prompts that it used and with others: the object's probability, the choice among the
object and its distractors by mean log-probability per token, and whether the object is written greedily. The control (ours) asks the same
choice after the prompt of another subject: what the relation and the answer's form alone give away. The same phase 2 with a prompt of
another relation repurposes the facts: that is the misuse.

`directions` looks for a common representation: at every layer the mean over subjects of h(s [X]) − h(s) and of h(prompt(s)) − h(s), at the
last token, and the cosine between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.contrast_readings import Cloze, encode_cloze
from palimpsest.audit.cued_recall import Studied, copy_of, cue_example, leading, recalls, study
from palimpsest.audit.rote_facts import SUBJECT, PartlyAsked, PartlyAskedBatches, RoteFact, checked, checked_prompts, filled
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models import LanguageModel
from palimpsest.models.hf import HFModel
from palimpsest.models.shared_prefix import score_continuations
from palimpsest.stats import Interval, clustered_interval, rate_interval
from palimpsest.training.examples import Example
from palimpsest.training.loop import TrainConfig

LOSSES = ("o", "s-o", "all")


class RoteThenGeneralize:
    """Teaches facts by rote, then how to use them, to a copy of a model.

    Args:
        model: what begins; stays as it is.
        key: what stands between subject and object in phase 1, one for each relation.
        lr: peak learning rate of both phases; it falls linearly to 0 after `warmup` steps, as in the paper's repository.
        batch_size: examples a step.
        warmup: steps.
        seed: of the order.

    Attributes:
        model: the copy.
        memorized, generalized: the facts of phase 1 and phase 2 so far.

    Raises:
        InputError: a key without a word.

    Example:
        >>> learner = RoteThenGeneralize(model, lr=1e-4)                              # doctest: +SKIP
        >>> learner.memorize(facts, epochs=50)                                        # doctest: +SKIP
        >>> learner.generalize(facts[:50], ["{s} was born in"], epochs=1)             # doctest: +SKIP
        >>> learner.measure(facts[50:], {"trained": ["{s} was born in"]}).summary     # doctest: +SKIP
    """

    def __init__(self, model: HFModel, key: str = "[X]", *, lr: float = 1e-5, batch_size: int = 8, warmup: int = 10, seed: int = 0) -> None:
        if not key.strip():
            raise InputError(f"The key is {key!r}.", "Give a word that means nothing.")
        self.model, self.key = copy_of(model), key.strip()
        self.lr, self.batch_size, self.warmup, self.seed = lr, batch_size, warmup, seed
        self.memorized: list[RoteFact] = []
        self.generalized: list[RoteFact] = []

    def memorize(self, facts: Sequence[RoteFact], epochs: int = 50) -> float:
        """Phase 1. Returns the share of facts whose object is written after "s [X]".

        Raises:
            InputError: no facts, or a subject with two objects.
        """
        known = checked(facts)
        prompt = f"{SUBJECT} {self.key}"
        self._train([cue_example(self.model, filled(prompt, fact), fact.object, on_prompt=True) for fact in known], epochs)
        self.memorized += known
        return float(recalls(self.model, [filled(prompt, fact) for fact in known], [fact.object for fact in known]).mean())

    def generalize(self, facts: Sequence[RoteFact], prompts: Sequence[str], epochs: int = 1, loss: str = "o") -> Studied:
        """Phase 2.

        Args:
            facts: some of those that were memorised, or others.
            prompts: each with {s}; an example for every fact and prompt.
            epochs: over these examples.
            loss: on the object ("o"), on subject and object ("s-o"), or on "all" tokens.

        Raises:
            InputError: no facts or prompts, a subject with two objects, a prompt without {s}, or another loss.
        """
        if loss not in LOSSES:
            raise InputError(f"The loss {loss!r} is unknown.", f"Choose one of {', '.join(LOSSES)}.")
        found = [self._example(prompt, fact, loss) for fact in checked(facts) for prompt in checked_prompts(prompts)]
        studied = self._train(found, epochs)
        self.generalized += facts
        return studied

    def measure(self, facts: Sequence[RoteFact], prompts: Mapping[str, Sequence[str]]) -> Measurement:
        """`measure` of the copy, which refuses facts that phase 2 has seen.

        Raises:
            InputError: a fact whose subject phase 2 has seen.
        """
        seen = {fact.subject for fact in self.generalized} & {fact.subject for fact in facts}
        if seen:
            raise InputError(f"Phase 2 has seen {len(seen)} of the facts, {sorted(seen)[0]!r} among them.", "Measure on others.")
        return measure(self.model, facts, prompts)

    def _example(self, prompt: str, fact: RoteFact, loss: str) -> Example:
        text = filled(prompt, fact)
        example = cue_example(self.model, text, fact.object, on_prompt=loss != "o")
        if loss != "s-o":
            return example
        begin, bos = prompt.index(SUBJECT), len(leading(self.model))
        end = begin + len(fact.subject)
        tokens = self.model.tokenizer.backend.encode(f"{text} {fact.object}", add_special_tokens=False).offsets
        neither = [place + bos for place, (first, last) in enumerate(tokens) if last <= len(text) and (last <= begin or first >= end)]
        return PartlyAsked(example.ids, 1, tuple(position for position in neither if position > 0))

    def _train(self, found: list[Example], epochs: int) -> Studied:
        if epochs < 1:
            raise InputError(f"epochs is {epochs}.", "Give 1 or more.")
        pad = self.model.tokenizer.pad_id
        data = PartlyAskedBatches(found, self.batch_size, 0 if pad is None else pad, self.seed)
        steps = epochs * len(data)
        falling = {"schedule": "wsd", "decay": 1.0, "lr_floor": 0.0}
        config = TrainConfig(steps, lr=self.lr, warmup=min(self.warmup, steps), weight_decay=0.0, seed=self.seed, **falling)  # type: ignore[arg-type]
        return study(self.model, data, config)


def measure(model: LanguageModel, facts: Sequence[RoteFact], prompts: Mapping[str, Sequence[str]]) -> Measurement:
    """What a model answers about facts, by kind of prompt.

    Args:
        model: any door with log-probs.
        facts: at least two; each with distractors.
        prompts: kind -> prompts with {s}; "trained" and "unseen", say, or other languages.

    Returns:
        One row a fact and prompt: logprob (of the object, nat), chosen, written, control (the choice after the next subject's prompt),
        and the rank of the object among the candidates. Summary by kind, intervals over facts, and chance.

    Raises:
        InputError: fewer than two facts, a subject with two objects, a prompt without {s}, an object among its own distractors.
        CapabilityError: the door has no log-probs.
    """
    known = checked(facts)
    if len(known) < 2 or not all(fact.distractors for fact in known):
        raise InputError(f"There are {len(known)} facts, some of them perhaps without distractors.", "Give two at least, with distractors.")
    if not prompts:
        raise InputError("There are no prompts.", "Give at least one kind of them.")
    next_one = [*range(1, len(known)), 0]
    rows: list[dict[str, Any]] = []
    for kind, some in prompts.items():
        for prompt in checked_prompts(some):
            texts = [filled(prompt, fact) for fact in known]
            own = _candidate_scores(model, texts, known)
            other = _candidate_scores(model, [texts[n] for n in next_one], known)
            written = recalls(model, texts, [fact.object for fact in known])
            for fact, (total, means), (_, controls), hit in zip(known, own, other, written, strict=True):
                better = int((means[1:] > means[0]).sum())
                rows.append({
                    "kind": kind, "prompt": prompt, "subject": fact.subject, "object": fact.object, "logprob": float(total[0]),
                    "chosen": _chosen(means), "written": bool(hit), "control": _chosen(controls), "rank": better + 1,
                })  # fmt: skip
    table = pl.DataFrame(rows)
    chance = float(np.mean([1 / (1 + len(fact.distractors)) for fact in known]))
    by_kind = {str(kind): _summary(part) for (kind,), part in table.group_by("kind", maintain_order=True)}
    provenance = {"model": model.fingerprint, "tokenizer": model.tokenizer.fingerprint, "environment": environment()}
    return Measurement("rote", table, {"chance": chance, "facts": len(known), "kinds": by_kind}, provenance)


def directions(model: HFModel, subjects: Sequence[str], key: str, prompts: Sequence[str]) -> pl.DataFrame:
    """How alike the key and meaningful prompts move the state of a subject: one row a prompt and layer, with the cosine of mean moves.

    Args:
        model: with weights.
        subjects: the mean is over them.
        key: of phase 1.
        prompts: that begin with the subject, "{s} …".

    Raises:
        InputError: no subjects, or a prompt that does not begin with {s} and go on.
    """
    bad = [prompt for prompt in checked_prompts(prompts) if not prompt.startswith(f"{SUBJECT} ")]
    if bad or not subjects:
        raise InputError(f"{len(subjects)} subjects, and prompts that do not begin with {SUBJECT!r}: {bad}.", "Begin with the subject.")
    layers = list(range(1, int(model.model.config.get_text_config().num_hidden_layers) + 1))

    def last(template: str) -> np.ndarray:
        rows = [model.tokenizer.encode(template.replace(SUBJECT, subject)) for subject in subjects]
        return np.array([[state[layer][-1] for layer in layers] for state in model.hidden_states(rows, layers)])

    alone = last(SUBJECT)
    keyed = (last(f"{SUBJECT} {key}") - alone).mean(axis=0)
    found = []
    for prompt in prompts:
        moved = (last(prompt) - alone).mean(axis=0)
        cosines = (keyed * moved).sum(axis=1) / (np.linalg.norm(keyed, axis=1) * np.linalg.norm(moved, axis=1))
        found += [{"prompt": prompt, "layer": layer, "cosine": float(value)} for layer, value in zip(layers, cosines, strict=True)]
    return pl.DataFrame(found)


def _candidate_scores(model: LanguageModel, texts: Sequence[str], facts: Sequence[RoteFact]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every fact the log-probabilities of its object and distractors after a text: summed, and per token."""
    heads, tails = [], []
    for text, fact in zip(texts, facts, strict=True):
        encoded = [encode_cloze(model.tokenizer, Cloze(text, name)) for name in (fact.object, *fact.distractors)]
        ids, cut = encoded[0]
        heads.append(ids[:cut])
        tails.append([row[first:] for row, first in encoded])
    sums = score_continuations(model, heads, tails)
    return [(total, total / np.array([len(row) for row in rows])) for total, rows in zip(sums, tails, strict=True)]


def _chosen(means: np.ndarray) -> float:
    """Credit for the choice: 1 when the object is the likeliest alone, a share among ties; never the order of candidates."""
    best = means == means.max()
    return float(best[0] / best.sum())


def _summary(table: pl.DataFrame) -> dict[str, Any]:
    subjects = table["subject"].to_numpy()
    shares: dict[str, Interval] = {name: clustered_interval(table[name].to_numpy(), subjects) for name in ("chosen", "control")}
    shares["written"] = rate_interval(table["written"].to_numpy(), subjects)
    shares["probability"] = clustered_interval(np.exp(table["logprob"].to_numpy()), subjects)
    shares["beyond_control"] = clustered_interval((table["chosen"] - table["control"]).to_numpy(), subjects)
    return {name: interval._asdict() for name, interval in shares.items()} | {"n": table.height}
