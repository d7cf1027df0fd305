"""Actions that train: a low-rank adapter, and going on from the present weights; both are configurations of `training/loop.py`.

*LoRA* (Hu et al., ICLR 2022, arXiv 2106.09685, through peft): W + (α/r) B A with B = 0 at first, the base frozen. After training the
product is folded into W, so that one version is one set of weights; the handle keeps the base, and taking the action back is exact.
*Full* is what the survey calls DAPT and TAPT (Gururangan et al., ACL 2020): the same loss on more text, every weight free.

The text of a fact is its cue and value, in every wording that may be used (`prompt` and `cues`, never the paraphrases it is judged by), one
row each, padded; the loss is on the value alone, or on all tokens of the texts of a request. To train on the general text beside it
(`replay` rows for every row of the request) is the simplest guard against forgetting it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.governance.actions.base import Action, Cost, Handle, keep_weights
from palimpsest.governance.actions.decoder import down_projections
from palimpsest.governance.items import ChangeRequest
from palimpsest.governance.system import System
from palimpsest.models.hf import HFModel
from palimpsest.taxonomy import AccessPath, Controllability, Location, Persistence, Quadruple, Revert, WritePath
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import TrainConfig, Trainer

TUNED = Quadruple(
    Location.WEIGHTS,
    Persistence.PERMANENT,
    WritePath.FINETUNE,
    AccessPath.FORWARD,
    Controllability(versioned=True, revert=Revert.EXACT),
)


def value_examples(system: System, request: ChangeRequest, *, old: bool = False) -> list[Example]:
    """The facts of a request in every wording that may be used, and its texts.

    Facts are asked for the value alone (with `old`, the old one), texts for everything.

    Raises:
        InputError: a fact without that value.
    """
    model, bos = system.model, leading(system)
    found = []
    for fact in request.facts:
        value = fact.old if old else fact.target
        if value is None:
            raise InputError(f"{' / '.join(fact.key)} has no {'old' if old else 'new'} value.", "Give one, or choose another action.")
        for cue in (fact.prompt, *fact.cues):
            ids, target = system.pair(cue, value)
            found.append(Example((*bos, *ids, *target), len(bos) + len(ids)))
    for ids in model.tokenizer.encode_batch(list(request.texts)):
        found.append(Example((*bos, *ids[: model.room])))
    return found


def general_examples(system: System) -> list[Example]:
    """The general texts as examples, asked for all.

    Raises:
        InputError: there are none.
    """
    if not len(system.general):
        raise InputError("The system has no general text.", "Give some: it is what must be kept.")
    bos = leading(system)
    return [Example((*bos, *map(int, row))) for row in system.general]


def leading(system: System) -> list[int]:
    """What stands before every text: BOS, or nothing."""
    bos = system.model.tokenizer.bos_id
    return [bos] if system.model.prepends_bos and bos is not None else []


def pad_id_of(model: HFModel) -> int:
    """What rows are filled with: it is never seen, so any id will do."""
    return model.tokenizer.pad_id if model.tokenizer.pad_id is not None else 0


class FullUpdate(Action):
    """Goes on training every weight (DAPT, TAPT, plain fine-tuning).

    Args:
        request: facts with targets, or texts.
        config: how; by default 30 epochs at 1e-4.
        batch_size: examples a step.
        replay: general texts for every example of the request, mixed in.

    Raises:
        InputError: a fact without a new value.

    Example:
        >>> handle = FullUpdate(request).apply(system)        # doctest: +SKIP
    """

    name = "full"
    memory: ClassVar[Quadruple] = TUNED

    def __init__(self, request: ChangeRequest, config: TrainConfig | None = None, batch_size: int = 8, replay: float = 0.0) -> None:
        if replay < 0:
            raise InputError(f"replay is {replay}.", "Give 0 or more general texts for every example.")
        self.request, self.config, self.batch_size, self.replay = request, config, batch_size, replay

    def _data(self, system: System) -> ExampleBatches:
        examples = value_examples(system, self.request)
        extra = round(self.replay * len(examples))
        if extra:
            kept = general_examples(system)
            order = np.random.default_rng(0).permutation(len(kept))
            examples += [kept[order[i % len(kept)]] for i in range(extra)]
        return ExampleBatches(examples, self.batch_size, pad_id_of(system.model))

    def _config(self, batches: ExampleBatches) -> TrainConfig:
        return self.config or TrainConfig(30 * len(batches), lr=1e-4, warmup=len(batches), weight_decay=0.0)

    def _apply(self, system: System, handle: Handle) -> None:
        data = self._data(system)
        keep_weights(system, handle)
        with training(system.model):
            metrics = Trainer(system.model.model, self._config(data)).fit(data)
        handle.details["report"] = {"steps": len(metrics), "loss": [metrics[0]["loss"], metrics[-1]["loss"]]}

    def estimate_cost(self, system: System) -> Cost:
        """All steps, forwards and backwards."""
        data = self._data(system)
        steps = self._config(data).steps
        tokens = sum(data[k].n_tokens for k in range(min(steps, len(data))))
        total = round(tokens * steps / min(steps, len(data)))
        return Cost(total, total, sum(p.numel() for p in system.model.model.parameters()))


class LoraUpdate(FullUpdate):
    """Trains a low-rank adapter and folds it in.

    Args:
        request, config, batch_size, replay: as for `FullUpdate`; by default 30 epochs at 1e-3.
        rank, alpha: r and α.
        targets: names of the linear maps that get an adapter, as peft takes them; by default the down-projections of all MLPs.

    Raises:
        InputError: a rank below 1.
        MissingDependencyError: peft is not installed.
    """

    name = "lora"

    def __init__(
        self,
        request: ChangeRequest,
        config: TrainConfig | None = None,
        batch_size: int = 8,
        replay: float = 0.0,
        *,
        rank: int = 8,
        alpha: int = 16,
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(request, config, batch_size, replay)
        if rank < 1 or not alpha > 0:
            raise InputError(f"rank is {rank}, alpha {alpha}.", "Give a rank of at least 1 and a positive alpha.")
        self.rank, self.alpha, self.targets = rank, alpha, targets

    def _config(self, batches: ExampleBatches) -> TrainConfig:
        return self.config or TrainConfig(30 * len(batches), lr=1e-3, warmup=len(batches), weight_decay=0.0)

    def _apply(self, system: System, handle: Handle) -> None:
        try:
            import peft
        except ImportError as error:
            raise MissingDependencyError("A LoRA update needs peft.", "Install it with: pip install 'palimpsest-lm[train]'.") from error
        data = self._data(system)
        places = down_projections(system.model)
        targets = list(self.targets or [place.name.removesuffix(".weight") for place in places])
        keep_weights(system, handle)
        settings = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets,
            fan_in_fan_out=isinstance(places[0].module, Conv1D),
            task_type="CAUSAL_LM",
        )
        flags = {name: parameter.requires_grad for name, parameter in system.model.model.named_parameters()}
        torch.manual_seed(self._config(data).seed)
        try:
            adapted: Any = peft.get_peft_model(system.model.model, settings)
        except ValueError as error:
            raise InputError(f"peft cannot adapt {targets[:3]}: {error}.", "Name linear maps of this model.") from error
        trained = False
        try:
            with training(system.model):
                metrics = Trainer(adapted, self._config(data)).fit(data)
            trained = True
        finally:
            system.model.model = (adapted.merge_and_unload() if trained else adapted.unload()).eval()
            for name, parameter in system.model.model.named_parameters():
                parameter.requires_grad_(flags[name])
        handle.details["report"] = {"steps": len(metrics), "loss": [metrics[0]["loss"], metrics[-1]["loss"]], "rank": self.rank}


@contextmanager
def training(model: HFModel) -> Iterator[None]:
    """Evaluation mode comes back after training, whatever happens."""
    try:
        yield
    finally:
        model.model.eval()
