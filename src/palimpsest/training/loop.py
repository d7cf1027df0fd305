"""The one training loop of the library.

accelerate drives devices, mixed precision and data-parallel ranks; this file decides what a step is. The loss of an optimizer
step is the sum of all token losses divided by the number of target tokens of *all* its micro-batches on *all* ranks, counted
before the first backward pass: the mean of the micro-batches' means weighs tokens unequally as soon as batches differ. Training is
a pure function of (model, data, config): a run that was killed and resumed is equal to the bit on a CPU with the same number of threads.

Everything else that a method needs hangs on hooks (`Callback`); what they change must follow from the step alone, or be kept by them.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from palimpsest.errors import InputError, MissingDependencyError, NonFiniteError
from palimpsest.files import sha256_json, storage_errors, write_text
from palimpsest.training import checkpoint
from palimpsest.training.batch import IGNORE, BatchSource, PackedBatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The size of a micro-batch is the data's affair.

    Attributes:
        steps: optimizer steps.
        grad_accum: micro-batches per step and rank.
        lr: the peak learning rate.
        schedule: "cosine" (to `lr_floor` · lr), "wsd" (constant, then linear to `lr_floor` · lr over the last `decay` share of
            the steps) or "constant"; each after `warmup` steps of linear rise.
        warmup: steps.
        lr_floor: what is left of the learning rate at the end, as a share.
        decay: share of the steps in which "wsd" falls.
        betas, weight_decay: of AdamW; norms and biases (parameters of one dimension) are not decayed.
        grad_clip: greatest norm of the gradient; None for no limit.
        seed: of python, numpy and torch, set when training begins.
        precision: "fp32" or "bf16" (autocast; parameters stay fp32).
        checkpoint_every: steps between checkpoints; None writes only the last. Needs the trainer's `out`.
        keep: checkpoints kept.
        cpu: stay on the CPU even where there is an accelerator.

    Raises:
        InputError: a value out of range.
    """

    steps: int
    grad_accum: int = 1
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    lr_floor: float = 0.1
    decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    grad_clip: float | None = 1.0
    seed: int = 0
    precision: str = "fp32"
    checkpoint_every: int | None = None
    keep: int = 2
    cpu: bool = False

    def __post_init__(self) -> None:
        wrong = {
            "steps": self.steps < 1,
            "grad_accum": self.grad_accum < 1,
            "lr": not 0 < self.lr < math.inf,
            "schedule": self.schedule not in ("cosine", "wsd", "constant"),
            "warmup": not 0 <= self.warmup <= self.steps,
            "lr_floor": not 0 <= self.lr_floor <= 1,
            "decay": not 0 < self.decay <= 1,
            "weight_decay": not self.weight_decay >= 0,
            "grad_clip": self.grad_clip is not None and not self.grad_clip > 0,
            "precision": self.precision not in ("fp32", "bf16"),
            "checkpoint_every": self.checkpoint_every is not None and self.checkpoint_every < 1,
            "keep": self.keep < 1,
        }
        for name, bad in wrong.items():
            if bad:
                raise InputError(f"{name} is {getattr(self, name)!r}.", "See the ranges in TrainConfig's docstring.")

    @property
    def hash(self) -> str:
        """What two runs must share for one to resume the other's checkpoints (how often they are written does not count)."""
        return sha256_json({k: v for k, v in asdict(self).items() if k not in ("checkpoint_every", "keep")})


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step `step` = 0, 1, …

    Example:
        >>> config = TrainConfig(steps=10, lr=1.0, warmup=2)
        >>> [round(learning_rate(s, config), 2) for s in (0, 1, 2, 9)]
        [0.5, 1.0, 1.0, 0.13]
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        share = 0.5 * (1 + math.cos(math.pi * done))
    else:
        falling = max(1, round(config.decay * config.steps))
        share = min(1.0, (config.steps - step) / falling)
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * share)


class Callback:
    """Hooks of the training loop; override what you need. `trainer` gives `.model`, `.optimizer`, `.step`, `.config`, `.task`."""

    def on_task_start(self, trainer: Trainer) -> None:
        """Before the first step of a `fit` (after a checkpoint was loaded, if there was one)."""

    def before_step(self, trainer: Trainer) -> None:
        """Before the micro-batches of a step."""

    def before_batch(self, trainer: Trainer, batch: Any) -> None:
        """Before the forward pass of a micro-batch."""

    def after_batch(self, trainer: Trainer, batch: Any, loss_sum: torch.Tensor) -> None:
        """After the backward pass of a micro-batch; `loss_sum` is the detached sum of its token losses."""

    def after_backward(self, trainer: Trainer) -> None:
        """When the step's gradient is complete, before it is clipped."""

    def after_step(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """After the optimizer's step."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint was written (rank 0's path)."""

    def on_task_end(self, trainer: Trainer) -> None:
        """After the last step of a `fit`."""


def causal_lm_loss(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Sum of the token losses of a batch, in fp32: a scalar that has a gradient.

    The model is called as transformers' causal language models are, and answers with `.logits` (batch, time, vocabulary).
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    mask = batch.attention_mask()
    if mask is not None:
        inputs["attention_mask"] = mask
    logits = model(**inputs).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")


def adamw(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with decay on matrices alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("The model has no parameter that requires a gradient.", "Unfreeze what is to be trained.")
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas)


@dataclass
class Trainer:
    """Trains a model on batches.

    Args:
        model: what `loss` can call, such as a causal language model; trained in place.
        config: how.
        callbacks: hooks, called in this order.
        out: a folder for checkpoints and `metrics.jsonl`, one subfolder a task; a `fit` whose folder holds a checkpoint of the
            same configuration and data goes on from it. None writes nothing.
        loss: sum of the token losses of a batch of the kind that the data give; by default those of a causal language model.
        optimizer_factory: makes the optimizer of a task; its learning rate is set before every step.
        progress: called with (steps done, steps in all) after every step.

    Example:
        >>> import numpy as np
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from palimpsest.training.batch import RowBatches
        >>> shape = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
        >>> data = RowBatches(np.random.default_rng(0).integers(0, 16, (8, 12)), batch_size=4)
        >>> metrics = Trainer(LlamaForCausalLM(shape), TrainConfig(steps=3, cpu=True)).fit(data)
        >>> [m["step"] for m in metrics], metrics[0]["target_tokens"]
        ([1, 2, 3], 44)
    """

    model: torch.nn.Module
    config: TrainConfig
    callbacks: Sequence[Callback] = ()
    out: Path | None = None
    loss: Callable[[torch.nn.Module, Any], torch.Tensor] = causal_lm_loss
    optimizer_factory: Callable[[torch.nn.Module, TrainConfig], torch.optim.Optimizer] = adamw
    progress: Callable[[int, int], None] | None = None
    step: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    task: str = field(default="", init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def fit(self, data: BatchSource, task: str = "train") -> list[dict[str, Any]]:
        """Takes `config.steps` steps on `data`: micro-batches k = 0, 1, … go round-robin to the ranks.

        Args:
            data: `data[k]` is micro-batch k; `data.fingerprint` says which data it is.
            task: a name; with `out`, the subfolder.

        Returns:
            One dict a step: step, loss (nat per target token), lr, grad_norm, tokens, target_tokens, tokens_seen,
            tokens_per_second, peak_memory_bytes. Steps taken before a resume are read back from `metrics.jsonl`.

        Raises:
            NonFiniteError: the loss or the gradient became NaN or infinite; the message names the step.
            InputError: `out` holds checkpoints of another configuration, other data or another model.
            StorageError: `out` cannot be written.
        """
        accelerator = _accelerator(self.config)
        from accelerate.utils import set_seed

        set_seed(self.config.seed)
        self.task, self.step, self.tokens = task, 0, 0
        raw, raw_optimizer = self.model, self.optimizer_factory(self.model, self.config)
        raw.train()
        folder = None if self.out is None else Path(self.out) / task
        history = self._resume(folder, raw, raw_optimizer, data.fingerprint, accelerator.process_index)
        # accelerate prepares a shallow wrapper: parameters stay the caller's objects (moved to the device in place)
        model, self.optimizer = accelerator.prepare(raw, raw_optimizer)
        try:
            self._each("on_task_start")
            with _metrics_file(folder if accelerator.is_main_process else None, history) as write:
                while self.step < self.config.steps:
                    history.append(self._step(model, data, accelerator))
                    write(history[-1])
                    self._each("after_step", history[-1])
                    if self.progress is not None:
                        self.progress(self.step, self.config.steps)
                    every = self.config.checkpoint_every
                    if folder is not None and (self.step == self.config.steps or (every and self.step % every == 0)):
                        self._save(folder, raw, raw_optimizer, data.fingerprint, accelerator)
            self._each("on_task_end")
        finally:
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # takes autocast's forward off the caller's model
        return history

    def _step(self, model: torch.nn.Module, data: BatchSource, accelerator: Any) -> dict[str, Any]:
        """One optimizer step over `grad_accum` micro-batches a rank."""
        began = time.perf_counter()
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._each("before_step")
        first, world = self.step * self.config.grad_accum, accelerator.num_processes
        batches = [data[(first + i) * world + accelerator.process_index].to(accelerator.device) for i in range(self.config.grad_accum)]
        counts = torch.tensor([sum(b.n_target_tokens for b in batches), sum(b.n_tokens for b in batches)], device=accelerator.device)
        targets, tokens = (int(n) for n in accelerator.reduce(counts, "sum"))
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for i, batch in enumerate(batches):
            self._each("before_batch", batch)
            with accelerator.no_sync(model) if i + 1 < len(batches) else nullcontext():
                loss = self.loss(model, batch)
                # data-parallel wrappers average gradients over ranks; times `world` makes that a sum
                accelerator.backward(loss * (world / targets))
            total += loss.detach().double()
            self._each("after_batch", batch, loss.detach())
        mean = float(accelerator.reduce(total, "sum")) / targets
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"The loss is {mean} at step {self.step + 1}.", "Lower the learning rate, or look at the data of this step."
            )
        self._each("after_backward")
        norm = accelerator.clip_grad_norm_(model.parameters(), self.config.grad_clip or math.inf)
        if not torch.isfinite(norm):
            raise NonFiniteError(f"The gradient's norm is {norm} at step {self.step + 1}.", "Lower the learning rate.")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += tokens
        return {
            "step": self.step,
            "loss": mean,
            "lr": rate,
            "grad_norm": float(norm),
            "tokens": tokens,
            "target_tokens": targets,
            "tokens_seen": self.tokens,
            "tokens_per_second": round(tokens / (time.perf_counter() - began), 1),
            "peak_memory_bytes": _peak_memory(accelerator.device),
        }

    def _resume(
        self, folder: Path | None, model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: str, rank: int
    ) -> list[dict[str, Any]]:
        """Loads the newest whole checkpoint, if any, and returns the metrics up to its step."""
        found = checkpoint.latest(folder) if folder is not None else None
        if folder is None or found is None:
            return []
        path, state = found
        for name, mine in (("config", self.config.hash), ("data", data)):
            if state[name] != mine:
                raise InputError(
                    f"{folder} holds checkpoints of another run: its {name} hash is {state[name][:12]}, this run's is {mine[:12]}.",
                    "Choose another folder, or delete this one to start anew.",
                )
        checkpoint.load(path, state, model, optimizer, rank=rank)
        self.step, self.tokens = state["step"], state["tokens"]
        log.info("Resuming from %s.", path)
        metrics = folder / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
        return [json.loads(line) for line in lines[: self.step]]

    def _save(self, folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: str, accelerator: Any) -> None:
        state = {"tokens": self.tokens, "config": self.config.hash, "data": data, "task": self.task}
        path = checkpoint.save(
            folder,
            self.step,
            model,
            optimizer,
            state,
            keep=self.config.keep,
            rank=accelerator.process_index,
            barrier=accelerator.wait_for_everyone,
        )
        self._each("on_checkpoint", path)

    def _each(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)


def _accelerator(config: TrainConfig) -> Any:
    """accelerate's driver for this process, alone or as one rank of a `torchrun` / `accelerate launch`."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
    except ImportError as error:
        raise MissingDependencyError("Training needs accelerate.", "Install it with: pip install 'palimpsest-lm[train]'.") from error
    # accelerate keeps device and precision for the life of the process; two runs may differ in both
    AcceleratorState._reset_state()
    if not torch.distributed.is_initialized():
        PartialState._reset_state()
    return Accelerator(cpu=config.cpu, mixed_precision="bf16" if config.precision == "bf16" else "no")


def _peak_memory(device: torch.device) -> int:
    """The most bytes ever held: by the allocator on an accelerator, by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _metrics_file(folder: Path | None, history: list[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that appends a step to `folder/metrics.jsonl`, which first is cut back to `history`."""
    if folder is None:
        yield lambda metrics: None
        return
    path = folder / "metrics.jsonl"
    with storage_errors(path):
        write_text(path, "".join(json.dumps(m) + "\n" for m in history))
        with open(path, "a", encoding="utf-8", buffering=1) as stream:
            yield lambda metrics: print(json.dumps(metrics), file=stream)
