"""The scheduler over a real model: the model's own texts, whatever the schedule, and a batch whose rows come and go."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from palimpsest.errors import ContextOverflowError, InputError, NonFiniteError
from palimpsest.models import HFModel
from palimpsest.serving.length_scheduler import Request, RequestTooLarge, S3Scheduler, oracle, worst_case
from palimpsest.serving.length_serving import RaggedBatch, serve
from palimpsest.serving.simulator import simulate
from palimpsest.serving.step_cost import Measured, cache_bytes_per_token

LONGEST = 24


def asked(n: int, seed: int = 0) -> tuple[list[Request], list[list[int]]]:
    """Requests of 1 to 9 prompt tokens, answers of 1 to 24."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, 320, rng.integers(1, 10)).tolist() for _ in range(n)]
    return [Request(i, len(p), LONGEST, int(rng.integers(1, LONGEST + 1))) for i, p in enumerate(prompts)], prompts


@pytest.mark.parametrize("guess", ["worst", "oracle", "short"])
def test_texts_do_not_depend_on_the_schedule(tiny_model, guess):
    requests, prompts = asked(12)
    predictor = {"worst": worst_case, "oracle": oracle, "short": lambda rs: [3 for _ in rs]}[guess]
    size = cache_bytes_per_token(tiny_model)
    texts, measured = serve(tiny_model, requests, prompts, S3Scheduler(80 * size, size, predictor))
    alone = [rows[0] for rows in tiny_model.generate(prompts, LONGEST, stop_at_eos=False)]
    for request, text, whole in zip(requests, texts, alone, strict=True):
        assert text.tolist() == whole[: request.output_tokens].tolist()
    assert measured.summary["peak_cached"] <= measured.summary["capacity"] == 80
    assert (measured.summary["preemptions"] > 0) == (guess == "short")
    # the same schedule as in simulated time
    simulated = simulate(requests, S3Scheduler(80 * size, size, predictor), Measured(1.0, 0.0, 0.0, size))
    shared = ("iterations", "mean_batch", "preemptions", "recomputed_tokens", "tokens")
    assert {name: measured.summary[name] for name in shared} == {name: simulated.summary[name] for name in shared}
    assert measured.table["preemptions"].to_list() == simulated.table["preemptions"].to_list()


def test_without_lengths_the_model_ends_its_texts(tiny_model):
    model = HFModel(deepcopy(tiny_model.model), tiny_model.tokenizer)
    _, prompts = asked(12)
    first = [rows[0] for rows in model.generate(prompts, LONGEST, stop_at_eos=False)]
    ids, counts = np.unique(np.concatenate(first), return_counts=True)
    model.model.generation_config.eos_token_id = int(ids[counts.argmax()])  # a token that it writes often
    expected = [rows[0].tolist() for rows in model.generate(prompts, LONGEST)]
    assert len({len(text) for text in expected}) > 2
    requests = [Request(i, len(prompt), LONGEST) for i, prompt in enumerate(prompts)]
    size = cache_bytes_per_token(model)
    for predictor in (worst_case, lambda rs: [2 for _ in rs]):
        texts, _ = serve(model, requests, prompts, S3Scheduler(70 * size, size, predictor))
        assert [text.tolist() for text in texts] == expected


def test_rows_come_and_go(tiny_model):
    """Logits are those of each row alone, while others join longer or shorter ones, and leave."""
    rows = {"a": [5, 6, 7], "b": [9], "c": [11, 12, 13, 14, 15, 16, 17], "d": [20, 21]}
    batch, order = RaggedBatch(tiny_model), []

    def check(names, logits):
        with torch.inference_mode():
            for name, found in zip(names, logits, strict=True):
                plain = tiny_model.model(torch.tensor([rows[name]])).logits[0, -1]
                torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)

    def feed():
        for name in order:
            rows[name].append(len(rows[name]) + 30)
        check(order, batch.step([rows[name][-1] for name in order]))

    def join(*names):
        check(names, batch.join([np.array(rows[name]) for name in names]))
        order.extend(names)

    def leave(*names):
        batch.leave([order.index(name) for name in names])
        order[:] = [name for name in order if name not in names]

    join("a", "b")
    feed()
    join("c")
    feed()
    leave("a", "c")
    feed()
    join("d", "a")
    leave("b")
    feed()
    leave("d", "a")
    assert batch.rows == 0
    join("c")
    feed()


def test_what_cannot_be_done_is_said(tiny_model):
    requests, prompts = asked(3)
    size = cache_bytes_per_token(tiny_model)
    with pytest.raises(RequestTooLarge):
        serve(tiny_model, requests, prompts, S3Scheduler(20 * size, size, worst_case))
    with pytest.raises(InputError, match="do not have the tokens"):
        serve(tiny_model, requests, prompts[::-1], S3Scheduler(80 * size, size, worst_case))
    with pytest.raises(InputError, match="arrives later"):
        serve(tiny_model, [Request(0, 1, 5, arrival=1.0)], [[3]], S3Scheduler(80 * size, size, worst_case))
    with pytest.raises(ContextOverflowError):
        serve(tiny_model, [Request(0, 100, 60)], [[3] * 100], S3Scheduler(800 * size, size, worst_case))
    broken = HFModel(deepcopy(tiny_model.model), tiny_model.tokenizer)
    with torch.no_grad():
        broken.model.lm_head.weight[:] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        serve(broken, requests, prompts, S3Scheduler(80 * size, size, worst_case))
