"""Writing on in chunks: the tokens of the model's own decoding, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.layers import PositionedLayer
from palimpsest.context.prefill import prefill
from palimpsest.context.session import Session
from palimpsest.context.writing import read_for, write_on
from palimpsest.errors import InputError, NonFiniteError
from palimpsest.models import HFModel
from palimpsest.models.base import Sampler


@dataclass(frozen=True)
class Newest(ContextMethod):
    """Keeps the newest `budget` entries of every layer."""

    budget: int

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return PositionedLayer(self)

    def observe(self, info: LayerInfo, q: Any, k: Any, v: Any, position_ids: Any, layer: Any) -> None:
        if layer.length > self.budget:
            layer.keep(torch.arange(layer.length - self.budget, layer.length).expand(*layer.positions.shape[:2], self.budget))


class _Reader(Session):
    """Reads the document forgetting all but the question's last token, to be recognised by what it writes."""

    def read(self, document: torch.Tensor, question: torch.Tensor) -> None:
        self.asked = (document.tolist(), question.tolist())
        prefill(self, question[:, :-1], 64, logits="none")


@dataclass(frozen=True)
class QuestionOnly(Newest):
    """A method that is told document and question apart, and drops the document."""

    session = _Reader


@pytest.fixture
def prompt() -> list[int]:
    return np.random.default_rng(0).integers(2, 320, 40).tolist()


@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(1.0), Sampler(0.8, 20, 0.9)])
@pytest.mark.parametrize("chunk", [7, 64])
def test_the_tokens_are_those_of_the_models_own_decoding(tiny_model: HFModel, prompt: list[int], sampler: Sampler, chunk: int) -> None:
    [[expected]] = tiny_model.generate([prompt], 20, temperature=sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p, seed=3)
    came: list[int] = []
    written = write_on(tiny_model, prompt, 20, sampler=sampler, seed=3, stop_ids=tiny_model.stop_ids, chunk=chunk, on_token=came.append)
    assert written.ids.tolist() == expected.tolist() == came
    with Newest(1000)(tiny_model) as session:
        kept = write_on(session, prompt[30:], 20, document=prompt[:30], sampler=sampler, seed=3, stop_ids=tiny_model.stop_ids, chunk=chunk)
    assert kept.ids.tolist() == expected.tolist()


def test_an_end_stops_and_is_not_written(tiny_model: HFModel, prompt: list[int]) -> None:
    free = write_on(tiny_model, prompt, 6)
    stopped = write_on(tiny_model, prompt, 6, stop_ids=[int(free.ids[2])])
    cut = free.ids.tolist().index(free.ids[2])
    assert stopped.ids.tolist() == free.ids[:cut].tolist()
    assert stopped.ended
    assert not free.ended


def test_bytes_and_counts(tiny_model: HFModel, prompt: list[int]) -> None:
    entry = 2 * 2 * 2 * 16 * 4
    full = write_on(tiny_model, prompt, 5, chunk=10)
    assert (full.prefill_bytes, full.bytes, full.decoded, full.prompt_tokens) == (40 * entry, 44 * entry, 4, 40)
    with Newest(8)(tiny_model) as session:
        few = write_on(session, prompt, 5, chunk=10)
    assert few.bytes < full.bytes / 2
    assert few.peak_bytes >= few.prefill_bytes
    value = few.to_dict()
    assert value["new_tokens"] == 5
    assert value["decode_tokens_per_second"] == pytest.approx(4 / few.decode_seconds)
    assert write_on(tiny_model, prompt, 1).to_dict()["decode_tokens_per_second"] is None


def test_a_method_that_selects_for_a_question_gets_it_apart(tiny_model: HFModel, prompt: list[int]) -> None:
    with QuestionOnly(1000)(tiny_model) as session:
        written = write_on(session, prompt[30:], 8, document=prompt[:30])
        assert session.asked == ([prompt[:30]], [prompt[30:]])
    assert written.ids.tolist() == write_on(tiny_model, prompt[30:], 8).ids.tolist()
    assert written.prompt_tokens == 40
    with QuestionOnly(1000)(tiny_model) as session:
        read = read_for(session, torch.tensor([prompt[:30]]), torch.tensor([prompt[30:]]), 8)
        assert torch.allclose(read.logits, tiny_model.model(torch.tensor([prompt[30:]])).logits[:, -1], atol=1e-4)


def test_bad_input_is_refused(tiny_model: HFModel, prompt: list[int]) -> None:
    for question, tokens in (([], 3), (prompt, 0)):
        with pytest.raises(InputError, match="to go on from"):
            write_on(tiny_model, question, tokens)
    weight = tiny_model.model.lm_head.weight.data
    kept = weight.clone()
    try:
        weight[:] = float("nan")
        with pytest.raises(NonFiniteError, match="new token 0"):
            write_on(tiny_model, prompt, 2)
    finally:
        weight.copy_(kept)
