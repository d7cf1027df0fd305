"""Study and cued recall: train a model on a study set, then give it cues and see what it writes.

The engine of systems 005 (rote), 044 (random access) and 047 (recognition, recall and retention), which differ in what is studied, in which
order, and in what is asked. Studying is a configuration of `training/loop.py` on a copy or on the model itself; a cue and its answer are
encoded as one text (`encode_cloze`), so that what is asked is what was trained. Where the model has them, BOS stands before every row and
EOS behind every text that is to end, so that greedy recall can be compared as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from palimpsest.audit.contrast_readings import Cloze, encode_cloze
from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.models import LanguageModel
from palimpsest.models.hf import HFModel
from palimpsest.training.batch import BatchSource
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import Callback, TrainConfig, Trainer, adamw


@dataclass
class Studied:
    """What a study leaves besides the changed weights.

    Attributes:
        losses: nat per target token, one a step.
        optimizer: with its state, for a study that goes on with it.
    """

    losses: list[float]
    optimizer: torch.optim.Optimizer


def trainable(model: LanguageModel, need: str) -> HFModel:
    """The model itself, when it has weights that this library can train.

    Raises:
        CapabilityError: it has none.
        InputError: it has, but transformers did not load them.
    """
    model.require("weights", need)
    if not isinstance(model, HFModel):
        raise InputError(f"{model.name} is behind the door {model.door!r}.", "Give a model that transformers loads.")
    return model


def copy_of(model: HFModel) -> HFModel:
    """A copy whose weights can be changed without touching the model's."""
    door = copy.copy(model)
    vars(door).pop("fingerprint", None)
    door.model = copy.deepcopy(model.model)
    return door


def study(
    model: HFModel,
    data: BatchSource,
    config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    optimizer: torch.optim.Optimizer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Studied:
    """Trains a model in place; afterwards it is in evaluation mode again, also when training breaks off.

    Args:
        model: what studies.
        data: batches, such as `ExampleBatches`.
        config: how, and for how many steps.
        callbacks: hooks of the training loop.
        optimizer: one of an earlier study of this model, to go on with its state; by default a new AdamW.
        progress: called with (steps done, steps in all).

    Raises:
        InputError: an optimizer that belongs to other parameters.
        ContextOverflowError: an example does not fit the model's window; nothing is cut off.
        NonFiniteError: training diverged.

    Example:
        >>> data = ExampleBatches([text_example(model, "the river sings at dawn")], 1)    # doctest: +SKIP
        >>> study(model, data, TrainConfig(steps=30, lr=1e-3)).losses[-1]                 # doctest: +SKIP
    """
    own = {id(parameter) for parameter in model.model.parameters()}
    if optimizer is not None and any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise InputError("The optimizer belongs to other parameters.", "Give the one that an earlier study of this model returned.")
    if isinstance(data, ExampleBatches):
        require_room(model, data)
    used = optimizer or adamw(model.model, config)
    try:
        metrics = Trainer(model.model, config, callbacks, optimizer_factory=lambda *_: used, progress=progress).fit(data)
    finally:
        model.model.eval()
        vars(model).pop("fingerprint", None)
    return Studied([step["loss"] for step in metrics], used)


def require_room(model: HFModel, data: ExampleBatches) -> None:
    """Raises `ContextOverflowError` where an example is longer than what the model sees: it would be trained at positions it never has."""
    longest = max(len(example.ids) for example in data.examples)
    if model.context_length is not None and longest > model.context_length:
        raise ContextOverflowError(
            f"An example has {longest} tokens, but the model sees at most {model.context_length}.",
            "Give shorter texts, or a model with a longer context.",
        )


def leading(model: HFModel) -> tuple[int, ...]:
    """What stands before every row that is trained on: BOS, or nothing."""
    bos = model.tokenizer.bos_id
    return (bos,) if model.prepends_bos and bos is not None else ()


def text_example(model: HFModel, text: str, *, end: bool = True) -> Example:
    """A text to be learnt token by token; with `end`, EOS behind it.

    Raises:
        InputError: a text without a token.
    """
    ids = model.tokenizer.encode(text)
    if not ids:
        raise InputError(f"The text {text!r} has no token.", "Give some words.")
    return Example((*leading(model), *ids, *_ending(model, end)))


def cue_example(model: HFModel, prompt: str, answer: str, *, on_prompt: bool = False, end: bool = True) -> Example:
    """A cue with its answer; the loss is on the answer (and EOS) alone, or with `on_prompt` on the cue's tokens too.

    Raises:
        InputError: as for `Cloze` and `encode_cloze`.
    """
    ids, cut = encode_cloze(model.tokenizer, Cloze(prompt, answer))
    bos = leading(model)
    return Example((*bos, *ids.tolist(), *_ending(model, end)), 1 if on_prompt else len(bos) + cut)


def write(model: LanguageModel, prompts: Sequence[str], longest: Sequence[str], *, slack: int = 8) -> list[str]:
    """What a model writes greedily after cues: up to EOS, or a little more than the longest answer to each takes.

    Args:
        model: any door that writes text.
        prompts: the cues.
        longest: for every cue the longest answer that is hoped for.
        slack: tokens beyond it, so that an answer that does not stop is seen not to.

    Raises:
        InputError: lists of different length, or a cue that `encode_cloze` refuses.
        ContextOverflowError: a cue and its answer do not fit the model's window; nothing is cut off.
    """
    if len(prompts) != len(longest):
        raise InputError(f"{len(prompts)} cues, {len(longest)} answers.", "Give one answer for every cue.")
    encoded = [encode_cloze(model.tokenizer, Cloze(prompt, answer)) for prompt, answer in zip(prompts, longest, strict=True)]
    room = max((len(ids) - cut for ids, cut in encoded), default=0) + slack
    written = model.generate([ids[:cut] for ids, cut in encoded], room)
    own = [len(ids) - cut + slack for ids, cut in encoded]  # what is written to one cue does not depend on how long others' answers are
    return [model.tokenizer.decode(texts[0][:most]).strip() for texts, most in zip(written, own, strict=True)]


def recalls(model: LanguageModel, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Whether greedy decoding would write each answer after its cue, whatever follows: bool (n,), in one teacher-forced pass."""
    encoded = [encode_cloze(model.tokenizer, Cloze(prompt, answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    scores = model.score([ids for ids, _ in encoded], start=[cut for _, cut in encoded])
    return np.array([bool(hits.all()) for hits in scores.greedy_hits])


def _ending(model: HFModel, end: bool) -> tuple[int, ...]:
    eos = model.tokenizer.eos_id
    return (eos,) if end and eos is not None else ()
