"""Study and cued recall: what is trained, what is left alone, and that what was learnt is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.audit.cued_recall import copy_of, cue_example, leading, recalls, study, text_example, trainable, write
from palimpsest.errors import CapabilityError, ContextOverflowError, InputError
from palimpsest.models import HFModel
from palimpsest.training.examples import ExampleBatches, packed
from palimpsest.training.loop import TrainConfig

CUES, ANSWERS = ["The river", "A fox"], ["sings at dawn.", "jumps over it"]
LEARNING = TrainConfig(60, lr=1e-2, schedule="constant", weight_decay=0.0, cpu=True)


@pytest.fixture(scope="module")
def learnt(tiny_model):
    model = copy_of(tiny_model)
    data = ExampleBatches([cue_example(model, cue, answer) for cue, answer in zip(CUES, ANSWERS, strict=True)], 2, pad_id=1)
    return model, study(model, data, LEARNING)


def test_what_is_studied_is_written_and_the_original_knows_nothing(tiny_model, learnt):
    before = tiny_model.fingerprint
    model, left = learnt
    assert left.losses[-1] < 0.05 < left.losses[0]
    assert len(left.losses) == 60
    assert write(model, CUES, ANSWERS) == ANSWERS
    assert recalls(model, CUES, ANSWERS).tolist() == [True, True]
    assert not recalls(tiny_model, CUES, ANSWERS).any()
    assert tiny_model.fingerprint == before != model.fingerprint
    assert not model.model.training


def test_an_answer_that_does_not_stop_is_seen_not_to(learnt):
    model, _ = learnt
    shorter = [answer[:-4] for answer in ANSWERS]
    assert recalls(model, CUES, ["sings at", "jumps over"]).all()
    assert [text.startswith(part.strip()) for text, part in zip(write(model, CUES, shorter), shorter, strict=True)] == [True, True]
    assert write(model, CUES, shorter, slack=40) == ANSWERS


def test_the_loss_is_on_the_answer_alone(tiny_model):
    """The gradient of a cue's example equals that of a loss masked by hand."""
    model = copy_of(tiny_model)
    example = cue_example(model, CUES[0], ANSWERS[0])
    cue = len(model.tokenizer.encode(CUES[0]))
    assert example.first == cue
    assert example.ids[-1] == model.tokenizer.eos_id
    assert cue_example(model, CUES[0], ANSWERS[0], on_prompt=True).first == 1
    assert example.ids[:-1] == tuple(model.tokenizer.encode(f"{CUES[0]} {ANSWERS[0]}"))
    seen = []

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    optimizer = Keep(model.model.parameters(), lr=0.1)
    study(model, ExampleBatches([example], 1, pad_id=1), TrainConfig(1, grad_clip=None, cpu=True), optimizer=optimizer)
    ids = torch.tensor([example.ids])
    logits = model.model(ids).logits[0].log_softmax(-1)
    by_hand = -sum(logits[t - 1, example.ids[t]] for t in range(cue, len(example.ids))) / (len(example.ids) - cue)
    for mine, true in zip(seen[0], torch.autograd.grad(by_hand, list(model.model.parameters())), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-6)


def test_bos_stands_where_the_model_wants_it(tiny_model):
    always = HFModel(tiny_model.model, tiny_model.tokenizer, bos="always")
    assert leading(always) == (0,)
    assert leading(tiny_model) == ()
    plain, with_bos = (cue_example(model, "A fox", "jumps", end=False) for model in (tiny_model, always))
    assert with_bos.ids == (0, *plain.ids)
    assert with_bos.first == plain.first + 1
    assert text_example(always, "A fox").ids == (0, *tiny_model.tokenizer.encode("A fox"), 1)
    assert packed([with_bos], 1).labels[0, : with_bos.first - 1].eq(-100).all()


def test_a_study_goes_on_with_its_optimizer(tiny_model):
    """Two studies in one go equal one of twice the length, when the optimizer's state is handed on; and differ when it is not."""
    ends = []
    for steps, keep in ((6, True), (3, True), (3, False)):
        model = copy_of(tiny_model)
        data = ExampleBatches([text_example(model, CUES[0])], 1, pad_id=1)
        config = TrainConfig(steps, lr=1e-3, schedule="constant", cpu=True)
        left = study(model, data, config)
        if steps == 3:
            study(model, data, config, optimizer=left.optimizer if keep else None)
        ends.append(np.concatenate([p.detach().numpy().ravel() for p in model.model.parameters()]))
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-7)
    assert np.abs(ends[0] - ends[2]).max() > 1e-5


def test_what_cannot_be_studied_is_refused(tiny_model, other_model, narrow_door, learnt):
    with pytest.raises(CapabilityError, match="weights"):
        trainable(narrow_door(tiny_model, {"text"}), "Studying")
    with pytest.raises(InputError, match="'narrow'"):
        trainable(narrow_door(tiny_model, {"weights"}), "Studying")
    assert trainable(tiny_model, "Studying") is tiny_model
    data = ExampleBatches([text_example(other_model, "A fox")], 1)
    with pytest.raises(InputError, match="other parameters"):
        study(copy_of(other_model), data, LEARNING, optimizer=learnt[1].optimizer)
    with pytest.raises(InputError, match="no token"):
        text_example(tiny_model, "")
    with pytest.raises(InputError, match="2 cues, 1 answers"):
        write(tiny_model, CUES, ANSWERS[:1])


def test_an_example_beyond_the_window_is_not_trained_on(tiny_model):
    model = copy_of(tiny_model)
    before = model.fingerprint
    data = ExampleBatches([text_example(model, "ab"), text_example(model, "the river " * 60)], 1, pad_id=1)
    with pytest.raises(ContextOverflowError, match="sees at most 128"):
        study(model, data, LEARNING)
    vars(model).pop("fingerprint", None)
    assert model.fingerprint == before


def test_what_is_written_to_one_cue_does_not_depend_on_the_others(tiny_model):
    alone = write(tiny_model, CUES[:1], ["sings"])
    assert write(tiny_model, CUES, ["sings", "jumps over it and over the lazy dog, and over the five wizards"])[:1] == alone
