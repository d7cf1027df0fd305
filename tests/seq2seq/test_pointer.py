"""The copying model: its probabilities against the formula word by word, the gate, temporary ids, and that it learns to copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import sigmoid, softmax

from palimpsest.errors import InputError
from palimpsest.seq2seq.pairs import BOS, EOS, PAD, UNK, PairBatch, PairBatches, Vocabulary
from palimpsest.seq2seq.pointer import CopySeq2Seq, pair_loss
from palimpsest.training.batch import IGNORE
from palimpsest.training.loop import TrainConfig, Trainer

VOCAB = Vocabulary(["a", "b", "c", "d"])
SOURCES = [["a", "x", "b", "x"], ["c"], ["y", "z", "a"]]
TARGETS = [["b", "x", "d"], ["c", "q"], ["z", "a", "a", "y"]]


def model(copy: str = "soft", seed: int = 0, scale: float = 5.0) -> CopySeq2Seq:
    """Random and far from uniform."""
    made = CopySeq2Seq(VOCAB, d=6, copy=copy, seed=seed).eval().double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= scale
    return made


def by_hand(made: CopySeq2Seq, source: list[str], target: list[str]) -> np.ndarray:
    """p(y) at every place of one pair, (target time, V + unknown), from the formula with plain loops."""
    ids, extended, unknown = VOCAB.encode_source(source)
    embed = made.embed.weight
    h, last = made.encoder(embed[ids][None])
    h = h[0]
    s, c = (torch.cat([part[0, 0], part[1, 0]]) for part in last)
    read = torch.zeros_like(s)
    rows = []
    for word in [BOS, *VOCAB.encode_target(target)]:
        s, c = (part[0] for part in made.decoder(torch.cat([embed[word], read])[None], (s[None], c[None])))
        energy = [made.attend.weight[0] @ torch.tanh(made.attend_source(h_i) + made.attend_state.weight @ s) for h_i in h]
        a = softmax(torch.stack(energy), 0)
        context = sum(a_i * h_i for a_i, h_i in zip(a, h, strict=True))
        both = torch.cat([s, context])
        read = torch.tanh(made.readout.weight @ both)
        logits = made.generate(read)
        logits[[PAD, BOS]] = -torch.inf
        p_z = sigmoid(made.gate(both))[0] if made.gate is not None else 0.0
        p = torch.cat([(1 - p_z) * softmax(logits, 0), torch.zeros(len(unknown), dtype=s.dtype)])
        for i, word_id in enumerate(extended):
            p[word_id] = p[word_id] + p_z * a[i]
        rows.append(p.detach().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("copy", ["soft", "force", "none"])
def test_the_distribution_is_the_formula_in_any_batch(copy):
    made = model(copy)
    batch = PairBatch.of(VOCAB, SOURCES, TARGETS, copying=copy != "none")
    found = made.distribution(batch).exp().detach().numpy()
    for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        expected = by_hand(made, source, target)
        np.testing.assert_allclose(found[i, : len(target) + 1, : expected.shape[1]], expected, atol=1e-12)
        assert found[i, : len(target) + 1, expected.shape[1] :].max(initial=0) == 0  # temporary ids of other rows
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)


@pytest.mark.parametrize("copy", ["soft", "none"])
def test_logprobs_and_losses_are_those_of_the_distribution(copy):
    made = model(copy)
    batch = PairBatch.of(VOCAB, SOURCES, TARGETS, copying=copy != "none")
    labels = batch.labels.masked_fill(batch.labels == IGNORE, EOS)
    expected = made.distribution(batch).gather(-1, labels[..., None])[..., 0].masked_fill(batch.labels == IGNORE, 0)
    torch.testing.assert_close(made.logprobs(batch), expected)
    torch.testing.assert_close(made(batch), -expected)
    torch.testing.assert_close(pair_loss(made, batch), -expected.sum())


def test_a_forced_loss_is_the_copy_term_alone_where_the_target_is_in_the_source():
    made = model("force")
    assert made.gate is not None
    batch = PairBatch.of(VOCAB, SOURCES, TARGETS)
    losses = made(batch).detach().numpy()
    closed = model("force")
    assert closed.gate is not None
    with torch.no_grad():
        closed.gate.weight.zero_(), closed.gate.bias.fill_(-1e4)  # nothing is copied: p is the softmax alone
    written = closed.distribution(batch).exp().detach().numpy()
    whole = made.distribution(batch).exp().detach().numpy()
    source, state = made._encode(batch)
    gates = sigmoid(made.gate(made._run(batch.target_input, state, source)[2]))[..., 0].detach().numpy()
    for i, (origin, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        for t, word in enumerate([*target, "</s>"]):
            label = int(batch.labels[i, t])
            generated = (1 - gates[i, t]) * written[i, t, label]
            expected = whole[i, t, label] - generated if word in origin else generated
            assert losses[i, t] == pytest.approx(-np.log(expected), rel=1e-9)


def test_without_copying_it_is_the_plain_model():
    made, plain = model("soft", seed=3), model("none", seed=3)
    assert made.gate is not None
    for name, parameter in plain.named_parameters():  # the same seed gives the same parameters
        torch.testing.assert_close(parameter, dict(made.named_parameters())[name], rtol=0, atol=0)
    with torch.no_grad():
        made.gate.weight.zero_(), made.gate.bias.fill_(-1e4)
    batch = PairBatch.of(VOCAB, SOURCES, TARGETS, copying=False)
    torch.testing.assert_close(made.logprobs(batch), plain.logprobs(batch))
    assert made.write(SOURCES, max_len=8) == plain.write(SOURCES, max_len=8)


def test_copying_alone_gives_the_surface_form_of_unknown_words():
    made = model("soft")
    assert made.gate is not None
    with torch.no_grad():
        made.gate.weight.zero_(), made.gate.bias.fill_(1e4)
    batch = PairBatch.of(VOCAB, SOURCES)
    found = made.distribution(batch).exp()[:, 0]
    for i, source in enumerate(SOURCES):
        _, extended, _ = VOCAB.encode_source(source)
        assert {int(j) for j in found[i].nonzero()} == set(extended)
    [written] = made.write([["y", "z", "y"]], beam=1, max_len=4)
    assert len(written) == 4  # there is no end to copy
    assert set(written) <= {"y", "z"}


@pytest.mark.parametrize("copy", ["soft", "force", "none"])
def test_gradients_are_those_of_differences(copy):
    made = model(copy, scale=3.0)
    batch = PairBatch.of(VOCAB, SOURCES, TARGETS, copying=copy != "none")
    pair_loss(made, batch).backward()
    rng = np.random.default_rng(0)
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        place = tuple(int(rng.integers(n)) for n in parameter.shape)
        if name == "embed.weight":
            place = (UNK, place[1])  # the row of padding is fixed
        with torch.no_grad():
            old = parameter[place].item()
            values = []
            for step in (1e-6, -1e-6):
                parameter[place] = old + step
                values.append(float(pair_loss(made, batch)))
            parameter[place] = old
        assert float(parameter.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-6), name


def test_writing_one_by_one_or_together_is_the_same_and_leaves_the_mode():
    made = model("soft", seed=2).train()
    together = made.write(SOURCES * 2, beam=3, max_len=6, batch_size=4)
    assert made.training
    assert together == [made.write([source], beam=3, max_len=6)[0] for source in SOURCES * 2]


def test_it_learns_to_copy_words_it_has_never_seen():
    rng = np.random.default_rng(0)
    letters = [chr(c) for c in range(ord("e"), ord("z"))]

    def pairs(n: int, alphabet: list[str]):
        picked = [[alphabet[i] for i in rng.choice(len(alphabet), 2, replace=False)] for _ in range(n)]
        return [["a", x, "b", y] for x, y in picked], [[y, "c", x] for x, y in picked]

    sources, targets = pairs(96, letters)
    unseen, wanted = pairs(20, ["A", "B", "C", "D"])
    vocab = Vocabulary(["a", "b", "c", *letters[:10]])  # half of the letters have no word of their own
    made = CopySeq2Seq(vocab, d=16, dropout=0.0)
    config = TrainConfig(steps=160, lr=2e-2, weight_decay=0.0, grad_clip=2.0, cpu=True)
    Trainer(made, config, loss=pair_loss).fit(PairBatches(vocab, sources, targets, 16))
    written = made.write(unseen, max_len=6)
    assert sum(text == target for text, target in zip(written, wanted, strict=True)) >= 18
    assert not any(set(text) & {"A", "B", "C", "D"} for text in CopySeq2Seq(vocab, d=16, copy="none").write(unseen, max_len=6))


def test_bad_input_is_refused():
    for call, message in [
        (lambda: CopySeq2Seq(VOCAB, d=5), "d is 5"),
        (lambda: CopySeq2Seq(VOCAB, d=4, copy="hard"), "'hard'"),
        (lambda: CopySeq2Seq(VOCAB, d=4, dropout=1.0), "dropout 1.0"),
        (lambda: model("none")(PairBatch.of(VOCAB, SOURCES, TARGETS)), "only the source has"),
        (lambda: model().write([["a"], []]), "one is empty"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    assert model().write([]) == []
