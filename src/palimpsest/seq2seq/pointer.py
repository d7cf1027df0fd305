"""Attention sequence-to-sequence model with a copy mechanism (106).

Aharoni & Goldberg, ACL 2018, arXiv 1805.01035; repository roeeaharoni/sprp-acl2018, whose models are OpenNMT-py's with `-copy_attn`. A
bidirectional LSTM of one layer reads the source, h_i (d,) of word i; an LSTM of one layer, which starts from its last states, writes:

    s_t = LSTM(s_{t−1}, [E y_{t−1}; o_{t−1}])              o_{t−1} the last readout ("input feeding"), E shared with the encoder
    a_t = softmax_i vᵀ tanh(W h_i + U s_t)                 (source time,)
    c_t = Σ_i a_{t,i} h_i,    o_t = tanh(R [s_t; c_t])     (d,)
    p_z = σ(w·[s_t; c_t] + b)                              whether to copy
    p(y) = p_z Σ_{i: x_i = y} a_{t,i} + (1 − p_z) softmax_V(G o_t)(y)

over the vocabulary and the words that only the source has, which have temporary ids (`pairs`); these can only be copied. `copy="none"` is
the plain model, p_z = 0. `copy="force"`: a target that stands in the source must be copied, so its loss is −log of the first term alone;
at decoding it is the same as `copy="soft"`.

Departures: OpenNMT-py reads p_z from o_t and gives the copying an attention of its own; the specification has [s_t; c_t] and a_t. What is
not said there is OpenNMT-py's: input feeding, dropout of 0.3 on embeddings and readouts, parameters uniform in ±0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from palimpsest.errors import InputError
from palimpsest.seq2seq.beam import Hypothesis, beam_search
from palimpsest.seq2seq.pairs import BOS, EOS, PAD, UNK, PairBatch, Text, Vocabulary
from palimpsest.training.batch import IGNORE

COPY = ("none", "soft", "force")
_NEVER = -1e30  # a log-probability of nothing that stays finite, so that gradients through it are 0 and not NaN


@dataclass(frozen=True)
class Source:
    """What the decoder looks at.

    Attributes:
        states: (batch, source time, d): h.
        keys: (batch, source time, d): W h.
        absent: (batch, source time) bool: padding.
        extended: (batch, source time) int64: ids of the words, temporary ones too.
    """

    states: torch.Tensor
    keys: torch.Tensor
    absent: torch.Tensor
    extended: torch.Tensor

    def repeat(self, times: int) -> Source:
        """Every row so many times."""
        return Source(*(part.repeat_interleave(times, 0) for part in (self.states, self.keys, self.absent, self.extended)))


class CopySeq2Seq(nn.Module):
    """Encoder, decoder, attention and copy gate.

    Args:
        vocab: of both sides.
        d: width of embeddings and states; even.
        copy: "none", "soft" or "force".
        dropout: share of what is dropped, from embeddings and readouts.
        seed: of the parameters.

    Raises:
        InputError: a width, kind of copying or share out of range.

    Example:
        >>> from palimpsest.training.loop import TrainConfig, Trainer
        >>> from palimpsest.seq2seq.pairs import PairBatches
        >>> sources, targets = [["a", "b"], ["b", "a"]] * 8, [["b", "a"], ["a", "b"]] * 8
        >>> model = CopySeq2Seq(Vocabulary.of(sources), d=16, dropout=0.0)
        >>> config = TrainConfig(steps=60, lr=2e-2, weight_decay=0.0, grad_clip=2.0, cpu=True)
        >>> _ = Trainer(model, config, loss=pair_loss).fit(PairBatches(model.vocab, sources, targets, batch_size=8))
        >>> model.write([["a", "b"]], beam=2, max_len=5)
        [['b', 'a']]
    """

    def __init__(self, vocab: Vocabulary, d: int = 512, *, copy: str = "soft", dropout: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        if d < 2 or d % 2 or copy not in COPY or not 0 <= dropout < 1:
            raise InputError(
                f"d is {d}, copy {copy!r}, dropout {dropout}.",
                f"Give an even width, one of {', '.join(COPY)}, and a share from 0 to below 1.",
            )
        self.vocab, self.copy = vocab, copy
        self.embed = nn.Embedding(len(vocab), d, padding_idx=PAD)
        self.encoder = nn.LSTM(d, d // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.LSTMCell(2 * d, d)
        self.attend_source = nn.Linear(d, d)
        self.attend_state = nn.Linear(d, d, bias=False)
        self.attend = nn.Linear(d, 1, bias=False)
        self.readout = nn.Linear(2 * d, d, bias=False)
        self.generate = nn.Linear(d, len(vocab))
        self.gate = nn.Linear(2 * d, 1) if copy != "none" else None
        self.drop = nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if not name.startswith("gate."):  # drawn last, so that the plain model starts as the other does
                    parameter.uniform_(-0.1, 0.1, generator=generator)
            if self.gate is not None:
                for parameter in self.gate.parameters():
                    parameter.uniform_(-0.1, 0.1, generator=generator)
            self.embed.weight[PAD] = 0.0

    def forward(self, batch: PairBatch) -> torch.Tensor:
        """Losses (batch, target time) in nat, 0 where there is no label; with "force" they are no log-probabilities."""
        return -self._target_terms(batch, forced=self.copy == "force")

    def logprobs(self, batch: PairBatch) -> torch.Tensor:
        """log p of every label given those before it: (batch, target time), 0 where there is none."""
        return self._target_terms(batch, forced=False)

    def distribution(self, batch: PairBatch) -> torch.Tensor:
        """log p of every word at every place: (batch, target time, V + n_unknown); -1e30 or less for what cannot come."""
        source, state = self._encode(batch)
        read, attention, gates = self._run(batch.target_input, state, source)
        return self._mixture(read, attention, gates, source.extended, batch.n_unknown)

    @torch.no_grad()
    def write(
        self, sources: Sequence[Text], *, beam: int = 5, max_len: int = 100, power: float = 1.0, batch_size: int = 64
    ) -> list[list[str]]:
        """Decodes by beam search.

        Args:
            sources: texts of a word or more.
            beam, max_len, power: see `beam_search`.
            batch_size: sources at a time.

        Returns:
            One text each; what could only be said with a word that is neither in the vocabulary nor copied is "<unk>".

        Raises:
            InputError: an empty source, or settings out of range.
        """
        training = self.training
        self.eval()
        texts = []
        try:
            for start in range(0, len(sources), batch_size):
                some = sources[start : start + batch_size]
                found = self._search(PairBatch.of(self.vocab, some), beam, max_len, power)
                unknown = [self.vocab.encode_source(text)[2] for text in some]
                texts += [self.vocab.decode(one.ids, words) for one, words in zip(found, unknown, strict=True)]
        finally:
            self.train(training)
        return texts

    # --- parts ------------------------------------------------------------------------------------------------------------------

    def _encode(self, batch: PairBatch) -> tuple[Source, tuple[torch.Tensor, ...]]:
        """The source, and the decoder's first state (h, c, readout)."""
        packed = pack_padded_sequence(self.drop(self.embed(batch.source)), batch.lengths, batch_first=True, enforce_sorted=False)
        states, last = self.encoder(packed)
        h, c = (part.transpose(0, 1).flatten(1) for part in last)  # (batch, d): forward beside backward
        states = pad_packed_sequence(states, batch_first=True)[0]
        return Source(states, self.attend_source(states), batch.source == PAD, batch.extended), (h, c, torch.zeros_like(h))

    def _step(
        self, embedded: torch.Tensor, state: tuple[torch.Tensor, ...], source: Source
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """One word (batch, d): the readout (batch, d), log a_t (batch, source time), [s_t; c_t] (batch, 2d), and the next state."""
        h, c = self.decoder(torch.cat([embedded, state[2]], -1), (state[0], state[1]))
        energy = self.attend(torch.tanh(source.keys + self.attend_state(h)[:, None])).squeeze(-1)
        attention = energy.masked_fill(source.absent, _NEVER).log_softmax(-1)
        context = (attention.exp()[:, None] @ source.states).squeeze(1)
        both = torch.cat([h, context], -1)
        read = self.drop(torch.tanh(self.readout(both)))
        return read, attention, both, (h, c, read)

    def _run(
        self, inputs: torch.Tensor, state: tuple[torch.Tensor, ...], source: Source
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All words of `inputs` (batch, time) one after the other: readouts, log a and [s; c], each (batch, time, …)."""
        steps = []
        for embedded in self.drop(self.embed(inputs)).unbind(1):
            *step, state = self._step(embedded, state, source)
            steps.append(step)
        read, attention, both = (torch.stack(part, 1) for part in zip(*steps, strict=True))
        return read, attention, both

    def _generated(self, read: torch.Tensor) -> torch.Tensor:
        """log softmax_V; padding and begin are never written."""
        never = torch.zeros(len(self.vocab), dtype=torch.bool, device=read.device)
        never[[PAD, BOS]] = True
        return self.generate(read).masked_fill(never, _NEVER).log_softmax(-1)

    def _target_terms(self, batch: PairBatch, forced: bool) -> torch.Tensor:
        source, state = self._encode(batch)
        read, attention, both = self._run(batch.target_input, state, source)
        labels = batch.labels.masked_fill(batch.labels == IGNORE, EOS)
        temporary = labels >= len(self.vocab)
        if self.gate is None and temporary.any():
            raise InputError("The plain model is asked for words that only the source has.", "Make batches with copying=False.")
        written = self._generated(read).gather(-1, labels.masked_fill(temporary, EOS)[..., None]).squeeze(-1).masked_fill(temporary, _NEVER)
        if self.gate is not None:
            here = labels[:, :, None] == source.extended[:, None, :]  # (batch, target time, source time)
            copied = attention.masked_fill(~here, _NEVER).logsumexp(-1)
            gate = self.gate(both).squeeze(-1)
            copied, written = copied + F.logsigmoid(gate), written + F.logsigmoid(-gate)
            mixed = torch.logaddexp(copied, written)
            written = torch.where(here.any(-1), copied, mixed) if forced else mixed
        return written.masked_fill(batch.labels == IGNORE, 0.0)

    def _mixture(
        self, read: torch.Tensor, attention: torch.Tensor, both: torch.Tensor, extended: torch.Tensor, n_unknown: int
    ) -> torch.Tensor:
        """log p over vocabulary and temporary ids: (batch, time, V + n_unknown)."""
        written = F.pad(self._generated(read), (0, n_unknown), value=-torch.inf)
        if self.gate is None:
            return written
        gate = self.gate(both)
        places = extended[:, None].expand(-1, attention.shape[1], -1)
        # padding has an attention of exactly 0, so it may be added to whichever id it has
        copied = torch.zeros_like(written).scatter_add_(-1, places, attention.exp())
        return torch.logaddexp(copied.log() + F.logsigmoid(gate), written + F.logsigmoid(-gate))

    def _search(self, batch: PairBatch, beam: int, max_len: int, power: float) -> list[Hypothesis]:
        device = self.embed.weight.device
        batch = batch.to(device)
        source, first = self._encode(batch)
        source = source.repeat(beam)

        def step(last: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            last = last.to(device)
            known = last.masked_fill(last >= len(self.vocab), UNK)
            read, attention, both, state = self._step(self.embed(known), state, source)
            found = self._mixture(read[:, None], attention[:, None], both[:, None], source.extended, batch.n_unknown)
            return found.squeeze(1), state

        state = tuple(part.repeat_interleave(beam, 0) for part in first)
        return beam_search(step, state, len(batch.source), bos=BOS, eos=EOS, beam=beam, max_len=max_len, power=power)


def pair_loss(model: nn.Module, batch: PairBatch) -> torch.Tensor:
    """The sum of the losses of a batch, as the training loop asks for it."""
    return model(batch).sum()
