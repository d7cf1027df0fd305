"""Memory tokens: one optimised input vector from which a frozen model writes a fixed text back, to the letter.

Sastre and Rosá, *Memory Tokens: Large Language Models Can Generate Reversible Sentence Embeddings* (2025, arXiv 2506.15001;
nsuruguay05/memory_token). In front of a text t_1 … t_L stand n free vectors e (n = 1 in the paper), and nothing else. With all weights
frozen, e alone is trained on the mean cross-entropy of the L + 1 positions behind it,

    e* = argmin_e  −1/(L+1) · Σ_{i=1}^{L+1} log p(t_i | e, t_<i),     t_{L+1} = EOS,     e: (n, hidden),

until the argmax is right at all of them, or the steps are used up. A text is *held* when greedy decoding from e* alone, up to EOS, gives
it back: greedy decoding goes through the very prefixes of the teacher-forced pass, so that the two agree but for the last bits of a sum.
That these bits may not decide, the right token has to be ahead of every other by `MARGIN` before training stops.

Departures: the published code adds a token to the vocabulary and trains its row of the embedding, whose output logit it then has to ban
and which tied weights would train along; here the vectors are fed as they are (`inputs_embeds`), so the vocabulary does not grow. Many
texts are trained at once, each with its own loss, optimizer state and stop, so that none can tell that others are there. Adam is
offered beside the paper's SGD (rate 5, no momentum); vectors are float32 whatever the model's type; the paper's models are in 4 bits.
Something may stand in front of the vectors (the published code has a template for that, empty by default). It can decide: SmolLM2-135M
takes its first position for an attention sink and hardly reads what stands there: of six texts of 8 tokens a vector alone in front gave
none within 250 steps, often for want of one token, and behind <|endoftext|> the argmax was right for all six after 52 to 165.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.latent.memory_bank import Memory, MemoryBank
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.batching import batches_by_length, check_rows, pad
from palimpsest.models.hf import HFModel

RATES = {"adam": 0.05, "sgd": 5.0}
INITS = ("mean", "token")
MARGIN = 0.05  # nat: logits of one position that are computed in another batch, or with a cache, differ by less


class MemoryTokens:
    """Writes texts into input vectors of a frozen model, and reads them back.

    Args:
        model: an `HFModel` whose tokenizer has an EOS id.
        before: what stands in front of the vectors, text or ids; nothing in the paper. Many models use the very first position as a sink
            for attention, whatever stands there, and hardly read it.

    Raises:
        CapabilityError: a door without weights.
        InputError: no EOS id, or ids outside the vocabulary.

    Example:
        >>> tokens = MemoryTokens(load_model("smollm2-135m"))                       # doctest: +SKIP
        >>> bank = tokens.encode(["In the beginning was the word."])                # doctest: +SKIP
        >>> tokens.model.tokenizer.decode(tokens.decode(bank[0], 16))               # doctest: +SKIP
        'In the beginning was the word.'
    """

    def __init__(self, model: LanguageModel, before: str | Sequence[int] = "") -> None:
        if not isinstance(model, HFModel):
            raise model.lacks("weights", "Training an input vector")
        if model.tokenizer.eos_id is None:
            raise InputError(f"The tokenizer of {model.name} has no EOS id.", "Give a Tokenizer with eos_id: the text must end somewhere.")
        self.model = model
        self.eos = model.tokenizer.eos_id
        ids = model.tokenizer.encode(before) if isinstance(before, str) else list(before)
        self.before = check_rows([ids], model.vocab_size, model.context_length, 0, "before")[0] if len(ids) else np.empty(0, np.int64)

    def encode(
        self,
        texts: Sequence[str | Sequence[int] | np.ndarray],
        *,
        n_tokens: int = 1,
        optimizer: str = "adam",
        lr: float | None = None,
        max_steps: int = 3000,
        init: str = "mean",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> MemoryBank:
        """Trains the vectors of every text.

        Args:
            texts: texts, or rows of token ids; no special token is added.
            n_tokens: vectors a text, n.
            optimizer: "adam" or "sgd" (without momentum, as in the paper).
            lr: its rate; by default 0.05 or 5.0.
            max_steps: the most steps; 0 gives back what training starts from.
            init: every text starts from the same vectors: "mean" of the embedding, or the embeddings of n tokens ("token").
            seed: of the tokens drawn.
            progress: called with (texts done, texts in all).

        Raises:
            InputError: no text, an empty one, one with EOS inside, an id outside the vocabulary, or a setting out of range.
            ContextOverflowError: a text that does not fit into the context beside its vectors.
            NonFiniteError: the loss is not finite, by too high a rate or broken weights.
        """
        lr = self._check_settings(n_tokens, optimizer, lr, max_steps, init)
        rows = self._rows(texts, n_tokens)
        start = self.initial(n_tokens, init, seed)
        vectors = np.empty((len(rows), *start.shape), np.float32)
        trained: dict[int, tuple[list[float], float]] = {}
        with self._frozen():
            for batch in batches_by_length([len(row) + n_tokens + len(self.before) for row in rows], self.model.batch_tokens):
                found, histories = self._train([rows[i] for i in batch], start, optimizer, lr, max_steps)
                vectors[batch] = found.cpu().numpy()
                trained |= dict(zip(batch, histories, strict=True))
                if progress:
                    progress(len(trained), len(rows))
        written = self.decode_batch(vectors, max(len(row) for row in rows) + 1)
        memories = [
            Memory(len(row), _digest(row), len(trained[i][0]) - 1, trained[i][0], trained[i][1], np.array_equal(written[i], row))
            for i, row in enumerate(rows)
        ]
        settings = {
            "before": self.before.tolist(),
            "n_tokens": n_tokens,
            "optimizer": optimizer,
            "lr": lr,
            "max_steps": max_steps,
            "init": init,
            "seed": seed,
        }
        return MemoryBank(vectors, memories, self.model.fingerprint, self.model.tokenizer.fingerprint, settings)

    def decode(self, vectors: np.ndarray, max_new_tokens: int) -> np.ndarray:
        """What the model writes greedily after the vectors (n_tokens, hidden) alone: ids, int64, without the EOS that ends them.

        Raises:
            InputError: vectors of another shape or not finite, or max_new_tokens < 1.
            ContextOverflowError: they and the tokens do not fit into the context.
        """
        return self.decode_batch(np.asarray(vectors)[None], max_new_tokens)[0]

    def decode_batch(self, vectors: np.ndarray, max_new_tokens: int) -> list[np.ndarray]:
        """`decode` of many, (texts, n_tokens, hidden); ties go to the lowest id."""
        vectors = np.asarray(vectors)
        hidden = self._embedding().weight.shape[1]
        if vectors.ndim != 3 or vectors.shape[2] != hidden or 0 in vectors.shape or not np.isfinite(vectors).all() or max_new_tokens < 1:
            raise InputError(
                f"Vectors of shape {vectors.shape} were given, and {max_new_tokens} tokens are to be written.",
                f"Give finite vectors of shape (n_tokens, {hidden}) as MemoryBank holds them, and 1 token or more.",
            )
        # the last token written need not be fed, and an EOS never is
        width = len(self.before) + vectors.shape[1]
        check_rows([np.zeros(width, np.int64)], 1, self.model.context_length, max_new_tokens - 1, "The memory")
        rows = max(1, self.model.batch_tokens // (width + max_new_tokens))
        parts = [self._greedy(vectors[first : first + rows], max_new_tokens) for first in range(0, len(vectors), rows)]
        return [row for part in parts for row in part]

    @torch.no_grad()
    def _greedy(self, vectors: np.ndarray, max_new_tokens: int) -> list[np.ndarray]:
        fed: dict[str, Any] = {"inputs_embeds": self._behind(torch.from_numpy(vectors).to(self.model.device))}
        written = np.full((len(vectors), max_new_tokens), self.eos, np.int64)
        for t in range(max_new_tokens):
            out = self.model.model(**fed, use_cache=True, return_dict=True)
            last = out.logits[:, -1].argmax(-1)
            written[:, t] = last.cpu().numpy()
            if (written[:, : t + 1] == self.eos).any(1).all():
                break
            fed = {"input_ids": last[:, None], "past_key_values": out.past_key_values}
        return [row[: np.argmax(row == self.eos)] if self.eos in row else row for row in written]

    @torch.no_grad()
    def initial(self, n_tokens: int = 1, init: str = "mean", seed: int = 0) -> torch.Tensor:
        """The vectors that every text starts from, (n_tokens, hidden) float32."""
        size = self._embedding().weight.shape[0]
        ids = torch.arange(size) if init == "mean" else torch.from_numpy(np.random.default_rng((seed, 2)).permutation(size)[:n_tokens])
        embedded = self._embedding()(ids.to(self.model.device)).float()
        return embedded.mean(0).expand(n_tokens, -1).contiguous() if init == "mean" else embedded

    @torch.no_grad()
    def embedding_norm(self) -> float:
        """Mean Euclidean norm of the embeddings of the vocabulary: what the norm of a memory is compared with."""
        ids = torch.arange(self._embedding().weight.shape[0], device=self.model.device)
        return float(self._embedding()(ids).float().norm(dim=-1).mean())

    def _train(
        self, rows: list[np.ndarray], start: torch.Tensor, optimizer: str, lr: float, max_steps: int
    ) -> tuple[torch.Tensor, list[tuple[list[float], float]]]:
        """The vectors of one batch, and for each text its losses and its accuracy at the end."""
        # one parameter a text: an optimizer passes over those without a gradient, so that a text that has stopped stays as it is
        vectors = [torch.nn.Parameter(start.clone()) for _ in rows]
        kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
        optimizing: torch.optim.Optimizer = kind(vectors, lr=lr)
        losses: list[list[float]] = [[] for _ in rows]
        accuracy = [0.0] * len(rows)
        active = list(range(len(rows)))
        for step in range(max_steps + 1):
            means, leads = self._losses([rows[i] for i in active], [vectors[i] for i in active])
            if not bool(torch.isfinite(means).all()):
                raise NonFiniteError(
                    f"The loss of a memory token is not finite at step {step} (rate {lr:g}).", "Give a lower lr, or check the weights."
                )
            going = []
            for place, i in enumerate(active):
                losses[i].append(float(means[place].detach()))
                accuracy[i] = float((leads[place] >= 0).float().mean())
                if step < max_steps and float(leads[place].min()) < MARGIN:
                    going.append(place)
            if not going:
                break
            optimizing.zero_grad(set_to_none=True)
            means[going].sum().backward()
            left = [active[place] for place in going]
            for i in set(active) - set(left):
                vectors[i].grad = None  # zeros, not nothing, come through the stack, and Adam would move the text by its momentum
            optimizing.step()
            active = left
        return torch.stack([vector.detach() for vector in vectors]), list(zip(losses, accuracy, strict=True))

    def _losses(self, rows: list[np.ndarray], vectors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Mean cross-entropy of each row, (rows,), and how far the right token leads at each of its L + 1 positions (-1: not)."""
        n = len(self.before) + len(vectors[0])
        ids, mask, _ = pad(rows, "right", self.model.device)
        embedded = torch.cat([self._behind(torch.stack(list(vectors))), self._embedding()(ids)], dim=1)
        mask = torch.cat([mask.new_ones(len(rows), n), mask], dim=1)
        logits = self.model.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False, return_dict=True).logits
        means, leads = [], []
        for row, line in zip(rows, logits[:, n - 1 :].float(), strict=True):  # right padding: what lies behind a row is not seen by it
            targets = torch.from_numpy(np.append(row, self.eos)).to(line.device)
            means.append(F.cross_entropy(line[: len(targets)], targets))
            best = line[: len(targets)].detach().topk(2)
            ahead = best.values[:, 0] - best.values[:, 1]
            leads.append(torch.where(line[: len(targets)].detach().argmax(-1) == targets, ahead, -1.0))
        return torch.stack(means), leads

    def _behind(self, vectors: torch.Tensor) -> torch.Tensor:
        """What the model is fed first: the embeddings of `before`, and the vectors, (texts, before + n_tokens, hidden)."""
        embedding = self._embedding()
        vectors = vectors.to(embedding.weight.dtype)
        front = embedding(torch.from_numpy(self.before).to(vectors.device))
        return torch.cat([front.expand(len(vectors), -1, -1), vectors], dim=1) if len(self.before) else vectors

    def _embedding(self) -> Any:
        return self.model.model.get_input_embeddings()

    def _rows(self, texts: Sequence[Any], n_tokens: int) -> list[np.ndarray]:
        """The texts as rows of ids that can be held."""
        if isinstance(texts, str) or len(texts) == 0:
            raise InputError(f"texts is {texts!r}.", "Give a list of one text or more.")
        rows: list[Any] = [self.model.tokenizer.encode(text) if isinstance(text, str) else text for text in texts]
        checked = check_rows(rows, self.model.vocab_size, self.model.context_length, n_tokens + len(self.before), "Text")
        for number, row in enumerate(checked):
            if self.eos in row:
                raise InputError(
                    f"Text {number} holds the id {self.eos} (EOS), which ends decoding.", "Take it out, or split the text there."
                )
        return checked

    @staticmethod
    def _check_settings(n_tokens: int, optimizer: str, lr: float | None, max_steps: int, init: str) -> float:
        """The rate; raises `InputError` for a setting out of range."""
        if n_tokens < 1 or max_steps < 0 or (lr is not None and not 0 < lr < float("inf")):
            raise InputError(f"n_tokens is {n_tokens}, max_steps {max_steps}, lr {lr}.", "Give at least 1, at least 0, and a rate above 0.")
        if optimizer not in RATES or init not in INITS:
            raise InputError(f"optimizer is {optimizer!r}, init {init!r}.", f"Choose from {', '.join(RATES)} and from {', '.join(INITS)}.")
        return RATES[optimizer] if lr is None else float(lr)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """No parameter asks for a gradient inside; afterwards each asks as it did before."""
        asked = [(parameter, parameter.requires_grad) for parameter in self.model.model.parameters()]
        try:
            for parameter, _ in asked:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, before in asked:
                parameter.requires_grad_(before)


def _digest(row: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(row, "<i8").tobytes()).hexdigest()
