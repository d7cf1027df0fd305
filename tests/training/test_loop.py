"""The training loop: what a step is, that it can be killed, split over ranks and micro-batches, and watched."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.training.batch import PackedBatch, RowBatches
from palimpsest.training.loop import Callback, TrainConfig, Trainer, learning_rate

VOCAB = 23


class Tiny(torch.nn.Module):
    """The smallest thing that answers like a causal language model; its dropout draws from torch's generator."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(VOCAB, 16)
        self.mix = torch.nn.GRU(16, 16, batch_first=True)
        self.drop = torch.nn.Dropout(dropout)
        self.norm = torch.nn.LayerNorm(16)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> SimpleNamespace:
        hidden = self.norm(self.drop(self.mix(self.embed(input_ids))[0]))
        return SimpleNamespace(logits=hidden @ self.embed.weight.T)  # tied, as the laboratory's models are


def rows(n: int = 24, time: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (n, time))


class Listed:
    """Batches from a list."""

    fingerprint = "listed"

    def __init__(self, batches: list[PackedBatch]) -> None:
        self.batches = batches

    def __getitem__(self, k: int) -> PackedBatch:
        return self.batches[k % len(self.batches)]


CONFIG = TrainConfig(steps=6, lr=1e-2, warmup=2, cpu=True)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unequal(n: int) -> list[PackedBatch]:
    """Micro-batches of two rows with very different numbers of targets."""
    ids = rows(2 * n)
    segments = np.ones_like(ids)
    for i in range(0, 2 * n, 4):
        segments[i : i + 2, 3:] = 0
    return [PackedBatch.from_rows(ids[2 * i : 2 * i + 2], segments[2 * i : 2 * i + 2]) for i in range(n)]


def joined(batches: list[PackedBatch]) -> PackedBatch:
    parts = [[getattr(b, name) for b in batches] for name in ("input_ids", "labels", "position_ids", "segment_ids")]
    return PackedBatch(*(torch.cat(p) for p in parts))


def test_training_lowers_the_loss_and_is_the_same_every_time() -> None:
    config = replace(CONFIG, steps=60)
    runs = []
    for _ in range(2):
        model = Tiny(dropout=0.1)
        history = Trainer(model, config).fit(RowBatches(rows(8), 4))
        runs.append((weights(model), [m["loss"] for m in history]))
    assert runs[0][1][-1] < 0.7 * runs[0][1][0]
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))


def test_another_seed_draws_other_dropout() -> None:
    losses = [Trainer(Tiny(dropout=0.5), replace(CONFIG, seed=s)).fit(RowBatches(rows(), 4))[0]["loss"] for s in (0, 1)]
    assert losses[0] != losses[1]


def test_the_loss_is_the_mean_over_target_tokens() -> None:
    batches = unequal(2)
    model = Tiny()
    with torch.no_grad():
        sums = [
            torch.nn.functional.cross_entropy(model(b.input_ids, b.position_ids).logits.flatten(0, 1), b.labels.flatten(), reduction="sum")
            for b in batches
        ]
    counts = [b.n_target_tokens for b in batches]
    assert counts[1] > 3 * counts[0]
    step = Trainer(model, replace(CONFIG, steps=2, grad_accum=2, warmup=0)).fit(Listed(batches))[0]
    assert step["loss"] == pytest.approx(float(sum(sums)) / sum(counts), rel=1e-6)
    assert step["target_tokens"] == sum(counts)
    assert step["loss"] != pytest.approx(sum(float(s) / c for s, c in zip(sums, counts, strict=True)) / 2, rel=1e-3)


def test_accumulated_micro_batches_of_unequal_size_equal_one_big_batch() -> None:
    small, big = Tiny(), Tiny()
    batches = unequal(12)
    Trainer(small, replace(CONFIG, grad_accum=3)).fit(Listed(batches))
    Trainer(big, replace(CONFIG, grad_accum=1)).fit(Listed([joined(batches[i : i + 3]) for i in range(0, 12, 3)]))
    for a, b in zip(weights(small), weights(big), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


LOAD = """
import os, signal, sys
from dataclasses import replace
from importlib import util
from pathlib import Path

spec = util.spec_from_file_location("loop_tests", {here!r})
tests = util.module_from_spec(spec)
spec.loader.exec_module(tests)
torch = tests.torch
torch.set_num_threads(1)
"""

RANK = """
rank, out = int(sys.argv[1]), Path(sys.argv[2])
os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}}
os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}}  # accelerate wants them named; the group below meets in a file
torch.distributed.init_process_group("gloo", init_method=f"file://{{out}}/rendezvous", rank=rank, world_size=2)
model = tests.Tiny()
config = replace(tests.CONFIG, steps=20, grad_accum=3, checkpoint_every=10)
history = tests.Trainer(model, config, out=out).fit(tests.Listed(tests.unequal(12)))
if rank == 0:
    torch.save({{"weights": tests.weights(model), "losses": [m["loss"] for m in history]}}, out / "rank0.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def script(tmp_path: Path, text: str) -> Path:
    """A program of its own that can use what this file defines."""
    path = tmp_path / "script.py"
    path.write_text((LOAD + text).format(here=__file__))
    return path


def test_two_ranks_equal_one_even_with_unequal_targets(tmp_path: Path) -> None:
    program = script(tmp_path, RANK)
    ranks = [subprocess.Popen([sys.executable, program, str(r), tmp_path], stderr=subprocess.PIPE, text=True) for r in range(2)]
    errors = [p.communicate(timeout=120)[1] for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], errors
    two = torch.load(tmp_path / "rank0.pt", weights_only=True)
    one = Tiny()
    history = Trainer(one, replace(CONFIG, steps=20, grad_accum=6)).fit(Listed(unequal(12)))
    for a, b in zip(two["weights"], weights(one), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert two["losses"] == pytest.approx([m["loss"] for m in history], abs=1e-6)
    written = {p.name for p in (tmp_path / "train" / "step-00000020").iterdir()}
    assert {"rng-0.safetensors", "rng-1.safetensors", "model.safetensors", "optimizer.safetensors"} <= written


KILLED = """
class Killer(tests.Callback):
    def before_batch(self, trainer, batch):
        if trainer.step == 20:
            os.kill(os.getpid(), signal.SIGKILL)

config = replace(tests.CONFIG, steps=40, grad_accum=2, checkpoint_every=17)
model = tests.Tiny(dropout=0.2)
tests.Trainer(model, config, [Killer()], out=Path(sys.argv[1])).fit(tests.RowBatches(tests.rows(), 4, shuffle_seed=3))
"""


def test_a_killed_run_resumes_to_the_bit(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, script(tmp_path, KILLED), tmp_path / "run"], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "run/train/step-00000017").is_dir()
    assert len((tmp_path / "run/train/metrics.jsonl").read_text().splitlines()) == 20  # three steps beyond the checkpoint

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = replace(CONFIG, steps=40, grad_accum=2, checkpoint_every=17)
        data = RowBatches(rows(), 4, shuffle_seed=3)
        whole, resumed = Tiny(dropout=0.2), Tiny(dropout=0.2, seed=99)
        undisturbed = Trainer(whole, config).fit(data)
        started = []

        class Start(Callback):
            def on_task_start(self, trainer: Trainer) -> None:
                started.append(trainer.step)

        history = Trainer(resumed, config, [Start()], out=tmp_path / "run").fit(data)
    finally:
        torch.set_num_threads(threads)
    assert started == [17]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert [m["loss"] for m in history] == [m["loss"] for m in undisturbed]
    lines = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["loss"], m["tokens_seen"]) for m in lines] == [(m["step"], m["loss"], m["tokens_seen"]) for m in undisturbed]


def test_a_finished_task_is_loaded_and_not_trained_again(tmp_path: Path) -> None:
    data = RowBatches(rows(), 4)
    first, second = Tiny(), Tiny(seed=5)
    Trainer(first, CONFIG, out=tmp_path).fit(data, task="a")
    history = Trainer(second, CONFIG, out=tmp_path).fit(data, task="a")
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert [m["step"] for m in history] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("config", "data", "what"),
    [(replace(CONFIG, lr=2e-2), RowBatches(rows(), 4), "config"), (CONFIG, RowBatches(rows(seed=1), 4), "data")],
)
def test_checkpoints_of_another_run_are_refused(tmp_path: Path, config: TrainConfig, data: RowBatches, what: str) -> None:
    Trainer(Tiny(), CONFIG, out=tmp_path).fit(RowBatches(rows(), 4))
    with pytest.raises(InputError, match=f"{what} hash"):
        Trainer(Tiny(), config, out=tmp_path).fit(data)


def test_hooks_are_called_in_order() -> None:
    calls: list[str] = []

    class Log(Callback):
        pass

    for hook in [name for name in vars(Callback) if name.startswith(("on_", "before_", "after_"))]:

        def note(self: Log, trainer: Trainer, *rest: object, hook: str = hook) -> None:
            calls.append(f"{hook} {trainer.step}")

        setattr(Log, hook, note)
    Trainer(Tiny(), replace(CONFIG, steps=2, grad_accum=2), [Log()]).fit(RowBatches(rows(), 4))
    step = ["before_step", "before_batch", "after_batch", "before_batch", "after_batch", "after_backward"]
    expected = ["on_task_start 0", *(f"{h} 0" for h in step), "after_step 1", *(f"{h} 1" for h in step), "after_step 2", "on_task_end 2"]
    assert calls == expected


def test_a_hook_sees_the_whole_gradient_and_may_change_it(tmp_path: Path) -> None:
    class Freeze(Callback):
        def after_backward(self, trainer: Trainer) -> None:
            assert float(trainer.model.embed.weight.grad.norm()) > 0
            trainer.model.embed.weight.grad.zero_()

        def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
            paths.append(path)

    paths: list[Path] = []
    model = Tiny()
    before = weights(model)
    Trainer(model, replace(CONFIG, weight_decay=0.0, checkpoint_every=4, keep=1), [Freeze()], out=tmp_path).fit(RowBatches(rows(), 4))
    assert torch.equal(before[0], model.embed.weight)
    assert not torch.equal(before[1], model.mix.weight_ih_l0)
    assert [p.name for p in paths] == ["step-00000004", "step-00000006"]
    assert [p.name for p in (tmp_path / "train").glob("step-*")] == ["step-00000006"]


def test_a_loss_that_is_not_finite_stops_training_at_its_step() -> None:
    class Poison(Callback):
        def before_step(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                with torch.no_grad():
                    trainer.model.embed.weight[:] = math.nan

    with pytest.raises(NonFiniteError, match="nan at step 4"):
        Trainer(Tiny(), CONFIG, [Poison()]).fit(RowBatches(rows(), 4))


def test_a_gradient_that_is_not_finite_stops_training_at_its_step() -> None:
    class Poison(Callback):
        def after_backward(self, trainer: Trainer) -> None:
            trainer.model.embed.weight.grad[0, 0] = math.inf

    with pytest.raises(NonFiniteError, match=r"gradient.*step 1"):
        Trainer(Tiny(), CONFIG, [Poison()]).fit(RowBatches(rows(), 4))


def test_the_gradient_is_clipped_and_its_norm_is_reported_before_clipping() -> None:
    norms = []

    class Look(Callback):
        def after_step(self, trainer: Trainer, metrics: dict) -> None:
            norms.append(metrics["grad_norm"])

    plain, clipped = Tiny(), Tiny()
    sgd = lambda model, config: torch.optim.SGD(model.parameters(), lr=config.lr)  # noqa: E731
    start = weights(plain)
    config = replace(CONFIG, steps=1, lr=1.0, warmup=0, schedule="constant")
    Trainer(clipped, replace(config, grad_clip=1e-3), [Look()], optimizer_factory=sgd).fit(RowBatches(rows(), 4))
    moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(start, weights(clipped), strict=True)))
    assert moved == pytest.approx(1e-3, rel=1e-2)
    Trainer(plain, replace(config, grad_clip=None), [Look()], optimizer_factory=sgd).fit(RowBatches(rows(), 4))
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 1e-2


def test_norms_and_biases_are_not_decayed() -> None:
    class Still(Callback):
        def after_backward(self, trainer: Trainer) -> None:
            for p in trainer.model.parameters():
                p.grad.zero_()

    model = Tiny()
    before = dict(zip([n for n, _ in model.named_parameters()], weights(model), strict=True))
    Trainer(model, replace(CONFIG, weight_decay=0.5), [Still()]).fit(RowBatches(rows(), 4))
    for name, p in model.named_parameters():
        assert torch.equal(before[name], p) == (p.dim() < 2), name


def test_bf16_trains_and_leaves_the_model_in_fp32_as_it_was() -> None:
    model = Tiny()
    forward = model.forward
    losses = [m["loss"] for m in Trainer(model, replace(CONFIG, steps=40, precision="bf16")).fit(RowBatches(rows(8), 4))]
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] != Trainer(Tiny(), replace(CONFIG, steps=1, warmup=0)).fit(RowBatches(rows(8), 4))[0]["loss"]
    assert model.forward == forward
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_learning_rates_of_the_three_schedules() -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup=10, lr_floor=0.1, decay=0.2)
    for schedule in ("cosine", "wsd", "constant"):
        rates = [learning_rate(s, replace(config, schedule=schedule)) for s in range(100)]
        assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
        assert all(a >= b for a, b in pairwise(rates[10:]))
    cosine = [learning_rate(s, config) for s in range(100)]
    assert cosine[55] == pytest.approx(0.55)
    assert cosine[99] == pytest.approx(0.1, abs=1e-3)
    wsd = [learning_rate(s, replace(config, schedule="wsd")) for s in range(100)]
    assert wsd[79] == 1.0
    assert wsd[90] == pytest.approx(0.55)
    assert learning_rate(99, replace(config, schedule="constant")) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"grad_accum": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"schedule": "linear"},
        {"warmup": 7},
        {"lr_floor": 1.5},
        {"decay": 0.0},
        {"weight_decay": -1.0},
        {"grad_clip": 0.0},
        {"precision": "fp16"},
        {"checkpoint_every": 0},
        {"keep": 0},
    ],
)
def test_a_configuration_out_of_range_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(InputError, match="requires a gradient"):
        Trainer(Tiny().requires_grad_(False), CONFIG).fit(RowBatches(rows(), 4))
