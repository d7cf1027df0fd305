"""What is governed: a model, the store that answers before it, and the guard that stands behind it.

The three parts are changed by actions, copied for a shadow trial, saved and restored as one version. An answer comes from the store when
a row has the prompt in its scope; otherwise the model writes greedily, and no protected n-gram can be written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

import numpy as np

from palimpsest.errors import InputError
from palimpsest.files import sha256_json
from palimpsest.governance.actions.store import FactStore
from palimpsest.guard import MemFreeProcessor, NgramSet
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer


class Answer(NamedTuple):
    """What a system says: the text, and whether it came from the "store" or the "model"."""

    text: str
    source: str


@dataclass
class System:
    """A governed model with its store and guard.

    Attributes:
        model: a model with weights.
        store: facts that answer before the model does.
        guarded: rows of token ids that must not be written, whole.
        general: rows of ids of text that has nothing to do with any change: what drawdown is measured on, and keys' second moments.

    Raises:
        CapabilityError: the door has no weights.
    """

    model: HFModel
    store: FactStore = field(default_factory=FactStore)
    guarded: tuple[tuple[int, ...], ...] = ()
    general: Sequence[np.ndarray] = ()

    def __post_init__(self) -> None:
        self.model.require("weights", "Governing a model")
        if not isinstance(self.model, HFModel):
            raise InputError(f"{self.model.name} is behind the door {self.model.door!r}.", "Govern a model that transformers loads.")

    @classmethod
    def of(cls, model: HFModel, general: Sequence[str] = ()) -> System:
        """A system without store and guard; `general` are texts."""
        room = model.room
        rows = [np.array(ids[:room]) for ids in model.tokenizer.encode_batch(list(general))]
        return cls(model, general=tuple(row for row in rows if len(row) >= 2))

    def shadow(self) -> System:
        """A copy that can be changed without touching this one."""
        door = copy.copy(self.model)
        vars(door).pop("fingerprint", None)
        door.model = copy.deepcopy(self.model.model)
        return System(door, FactStore(self.store.rows), self.guarded, self.general)

    def touched(self) -> None:
        """Forgets the model's fingerprint: its weights were changed."""
        vars(self.model).pop("fingerprint", None)

    @property
    def state(self) -> dict[str, str]:
        """Hashes of the three parts, computed anew."""
        self.touched()
        return {"model": self.model.fingerprint, "store": self.store.hash, "guard": sha256_json(self.guarded)}

    # --- asking -----------------------------------------------------------------------------------------------------------------

    def pair(self, prompt: str, value: str) -> tuple[list[int], list[int]]:
        """Ids of a cue and of the value that follows it after a space; the join is made here and nowhere else.

        Raises:
            InputError: one of them has no token.
        """
        cue, target = self.model.tokenizer.encode(prompt), self.model.tokenizer.encode(f" {value}")
        if not cue or not target:
            raise InputError(f"{prompt!r} followed by {value!r} has no tokens on one side.", "Give some words.")
        return cue, target

    def logprobs(self, prompts: Sequence[str], values: Sequence[str]) -> np.ndarray:
        """What the model, without store and guard, thinks of values after cues: mean log-probability per token, float64 (n,)."""
        pairs = [self.pair(prompt, value) for prompt, value in zip(prompts, values, strict=True)]
        scores = self.model.score([cue + target for cue, target in pairs], start=[len(cue) for cue, _ in pairs])
        return np.array([row.mean(dtype=np.float64) for row in scores.logprobs])

    def recalls(self, prompts: Sequence[str], values: Sequence[str]) -> np.ndarray:
        """Whether the model, without store and guard, would write the value greedily after the cue: bool (n,), one pass."""
        pairs = [self.pair(prompt, value) for prompt, value in zip(prompts, values, strict=True)]
        scores = self.model.score([cue + target for cue, target in pairs], start=[len(cue) for cue, _ in pairs])
        return np.array([bool(row.all()) for row in scores.greedy_hits])

    def answers(self, prompts: Sequence[str], tokens: int, day: date | None = None) -> list[Answer]:
        """What the system says after cues: the store's value, or at most `tokens` tokens that the model writes under guard."""
        found = [self.store.lookup(prompt, day) for prompt in prompts]
        open_places = [i for i, row in enumerate(found) if row is None]
        written: dict[int, str] = {}
        if open_places:
            rows = [self.model.tokenizer.encode(prompts[i]) for i in open_places]
            texts = self.model.generate(rows, tokens, processors=self.guards())
            written = {i: self.model.tokenizer.decode(text[0]) for i, text in zip(open_places, texts, strict=True)}
        return [Answer(written[i], "model") if row is None else Answer(f" {row.value}", "store") for i, row in enumerate(found)]

    def says(self, prompts: Sequence[str], values: Sequence[str], day: date | None = None) -> np.ndarray:
        """Whether the system's answer to each cue begins with the value: bool (n,)."""
        if not prompts:
            return np.zeros(0, dtype=bool)
        tokens = max(len(self.pair(prompt, value)[1]) for prompt, value in zip(prompts, values, strict=True))
        answers = self.answers(prompts, tokens, day)
        return np.array([_begins(answer.text, value) for answer, value in zip(answers, values, strict=True)])

    def prefers(self, prompts: Sequence[str], values: Sequence[str], others: Sequence[str], day: date | None = None) -> np.ndarray:
        """Whether `values` rather than `others` follow the cues: bool (n,). The store decides where it answers, else the log-probs do."""
        if not prompts:
            return np.zeros(0, dtype=bool)
        better = self.logprobs(prompts, values) > self.logprobs(prompts, others)
        for i, prompt in enumerate(prompts):
            row = self.store.lookup(prompt, day)
            if row is not None:
                better[i] = row.value == values[i]
        return better

    def guards(self) -> list[Any]:
        """The processors that keep the guarded rows from being written; none when nothing is guarded."""
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for row in self.guarded:
            by_length.setdefault(len(row), []).append(row)
        return [MemFreeProcessor.for_model(self.model, NgramSet(np.array(rows))) for rows in by_length.values()]

    def nats(self) -> tuple[np.ndarray, np.ndarray]:
        """Summed loss and number of targets of every general text: float64 (n,) each.

        Raises:
            InputError: there are fewer than 2 general texts.
        """
        if len(self.general) < 2:
            raise InputError(
                f"The system has {len(self.general)} general texts.",
                "Give at least 2, so that what a change does to the rest can be measured.",
            )
        rows = self.model.logprobs(list(self.general))
        return np.array([-row.sum(dtype=np.float64) for row in rows]), np.array([float(len(row)) for row in rows])


def subject_tokens(tokenizer: Tokenizer, prompt: str, subject: str) -> tuple[int, int]:
    """Where the tokens of a subject stand in the ids of a prompt, [first, end): those that hold a character of its last occurrence.

    Raises:
        InputError: the prompt does not name the subject.
    """
    begin = prompt.rfind(subject)
    if begin < 0 or not subject:
        raise InputError(f"The cue {prompt!r} does not name the subject {subject!r}.", "Write the subject into the cue.")
    offsets = tokenizer.backend.encode(prompt, add_special_tokens=False).offsets
    inside = [i for i, (start, end) in enumerate(offsets) if start < begin + len(subject) and end > begin]
    return inside[0], inside[-1] + 1


def _begins(text: str, value: str) -> bool:
    """Whether `text`, without the space in front, begins with the whole of `value`, and no word goes on after it."""
    text = text.lstrip()
    return text.startswith(value) and not text[len(value) :][:1].isalnum()
