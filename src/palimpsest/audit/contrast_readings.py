"""Clozes, and what one forward pass over prompt and answer says of each: is it memorized, how confident is the model, what does it hold.

An item's row is the ids of "prompt answer"; its answer begins at the first token that reaches beyond the prompt. With logits x at the
position before answer token y and p = softmax(x):

* `hits`: every answer token is the argmax. By induction this says that greedy decoding after the prompt writes the answer's tokens, so
  that nothing has to be generated. The item is *memorized* if moreover the argmax after the answer does not go on with the word
  ("Paris|ian").
* log p(y) of every answer token; at the answer's first token also max p, the entropy −Σ p log p and the margin log p₁ − log p₂ of the two
  likeliest ids.
* hidden states (layers 0 = embedding to L, the last normed as the head reads it) at the last prompt token ("prompt") and averaged over
  the answer's tokens ("answer"): mean, variance and L2 norm over the hidden dimensions of every layer, and the vectors of the layers
  asked for.

States are reduced batch by batch; what is kept is (items, layers, 3) figures and (items, layers asked for, hidden) vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.models import HFModel, LanguageModel
from palimpsest.models.base import Progress
from palimpsest.models.batching import batches_by_length, check_rows, pad
from palimpsest.tokenizer import Tokenizer

PLACES = ("prompt", "answer")
MOMENTS = ("mean", "variance", "norm")


@dataclass(frozen=True)
class Cloze:
    """A text with its end left out.

    Attributes:
        prompt: what is given; blanks at its end are dropped.
        answer: how it goes on, without the blank between.
        category: what it is compared within, e.g. "idiom".
        concept: what several clozes share that ask for the same thing in other words; None for a cloze that stands alone.
        pos: part of speech of the answer, where it is known.

    Raises:
        InputError: no prompt or no answer.

    Example:
        >>> Cloze("The capital of France is", "Paris", "capital", concept="France")
        Cloze(prompt='The capital of France is', answer='Paris', category='capital', concept='France', pos=None)
    """

    prompt: str
    answer: str
    category: str = "all"
    concept: str | None = None
    pos: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.prompt.rstrip())
        object.__setattr__(self, "answer", self.answer.strip())
        if not self.prompt or not self.answer:
            raise InputError(f"The cloze {self.prompt!r} – {self.answer!r} lacks a side.", "Give a prompt and an answer.")

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return f"{self.prompt} {self.answer}"


@dataclass(frozen=True)
class Readings:
    """What the model says of N clozes; see the module's docstring.

    Attributes:
        prompt_tokens, answer_tokens: int (N,).
        memorized: bool (N,).
        logprobs: N arrays, float32, one entry an answer token.
        first_hit: bool (N,): the answer's first token is the argmax.
        max_logprob, entropy, margin: float64 (N,), at the answer's first token, in nats.
        moments: float32 (N, 2 places, L + 1 layers, 3 moments).
        layers: the layers of `vectors`.
        vectors: float32 (N, 2 places, len(layers), hidden).
    """

    prompt_tokens: np.ndarray
    answer_tokens: np.ndarray
    memorized: np.ndarray
    logprobs: list[np.ndarray]
    first_hit: np.ndarray
    max_logprob: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray
    moments: np.ndarray
    layers: tuple[int, ...]
    vectors: np.ndarray

    def take(self, numbers: np.ndarray) -> Readings:
        """The readings of some of the clozes, in the order given."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("logprobs", "layers")}
        parts = {name: values[numbers] for name, values in own.items()}
        return Readings(**parts, logprobs=[self.logprobs[int(number)] for number in numbers], layers=self.layers)


def read_clozes(
    model: LanguageModel, items: Sequence[Cloze], layers: Sequence[int] | None = None, progress: Progress | None = None
) -> Readings:
    """Reads every cloze in one forward pass.

    Args:
        model: needs "weights".
        items: clozes.
        layers: whose vectors are kept; by default the embedding, the quarters and the last.
        progress: called with (clozes done, clozes in all).

    Raises:
        InputError: no items, a layer that the model does not have, or a cloze whose prompt or answer has no token of its own.
        CapabilityError: the door has no weights.
        ContextOverflowError: a cloze that is longer than the context.
        NonFiniteError: the model returned NaN.

    Example:
        >>> read_clozes(model, [Cloze("The capital of France is", "Paris")]).memorized    # doctest: +SKIP
    """
    model.require("weights", "The contrast of hidden states")
    if not isinstance(model, HFModel):
        raise model.lacks("weights", "The contrast of hidden states")
    if not items:
        raise InputError("There are no clozes.", "Give at least one.")
    last = int(model.model.config.get_text_config().num_hidden_layers)
    kept = tuple(sorted({round(last * quarter / 4) for quarter in range(5)} if layers is None else set(layers)))
    wrong = [layer for layer in kept if not 0 <= layer <= last]
    if wrong or not kept:
        raise InputError(f"The layers {wrong} were asked for, but {model.name} has 0 to {last}.", "0 is the embedding; give at least one.")
    encoded = [encode_cloze(model.tokenizer, item) for item in items]
    rows = check_rows([ids for ids, _ in encoded], model.vocab_size, model.context_length, int(model.prepends_bos), "Cloze")
    cuts = np.array([cut for _, cut in encoded])
    n = len(items)
    out = Readings(
        prompt_tokens=cuts,
        answer_tokens=np.array([len(row) for row in rows]) - cuts,
        memorized=np.zeros(n, dtype=bool),
        logprobs=[np.empty(0, dtype=np.float32)] * n,
        first_hit=np.zeros(n, dtype=bool),
        max_logprob=np.empty(n),
        entropy=np.empty(n),
        margin=np.empty(n),
        moments=np.empty((n, len(PLACES), last + 1, len(MOMENTS)), dtype=np.float32),
        layers=kept,
        vectors=np.empty((n, len(PLACES), len(kept), int(model.model.config.get_text_config().hidden_size)), dtype=np.float32),
    )
    done = 0
    for batch in batches_by_length([len(row) for row in rows], model.batch_tokens):
        _read_batch(model, rows, cuts, batch, out)
        done += len(batch)
        if progress:
            progress(done, n)
    return out


@torch.inference_mode()
def _read_batch(model: HFModel, rows: list[np.ndarray], cuts: np.ndarray, batch: list[int], out: Readings) -> None:
    offset = int(model.prepends_bos)
    fed = [np.concatenate([[model.tokenizer.bos_id], rows[i]]) if offset else rows[i] for i in batch]
    ids, mask, _ = pad(fed, "right", model.device)  # to the right: what comes later changes nothing before it
    answer = model.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    for place, number in enumerate(batch):
        row, cut = rows[number], int(cuts[number])
        x = answer.logits[place, offset + cut - 1 : offset + len(row)].float()  # of every answer token, and of what comes after
        if not bool(torch.isfinite(x.amax(dim=-1)).all()):
            raise NonFiniteError(
                f"{model.name} returned logits that are not finite for cloze {number}.",
                "Check the weights for NaN, or load the model in float32.",
            )
        log_p = x.log_softmax(dim=-1)
        targets = torch.from_numpy(row[cut:]).to(x.device)
        best = x.argmax(dim=-1)
        hits = best[:-1] == targets
        top = log_p[0].topk(2).values.double()
        out.logprobs[number] = log_p[:-1].gather(-1, targets[:, None])[:, 0].cpu().numpy()
        out.first_hit[number] = bool(hits[0])
        out.memorized[number] = bool(hits.all()) and not goes_on(model.tokenizer, int(row[-1]), int(best[-1]))
        out.max_logprob[number] = float(top[0])
        out.entropy[number] = float(-(log_p[0].exp() * log_p[0].clamp(min=-150.0)).sum())  # the clamp keeps 0 · −inf away
        out.margin[number] = float(top[0] - top[1])
        for layer, states in enumerate(answer.hidden_states):
            own = states[place, offset : offset + len(row)].float()
            pair = torch.stack([own[cut - 1], own[cut:].mean(dim=0)])  # (places, hidden)
            figures = torch.stack([pair.mean(dim=1), pair.var(dim=1, unbiased=False), pair.norm(dim=1)], dim=1)
            out.moments[number, :, layer] = figures.cpu().numpy()
            if layer in out.layers:
                out.vectors[number, :, out.layers.index(layer)] = pair.cpu().numpy()


def encode_cloze(tokenizer: Tokenizer, item: Cloze) -> tuple[np.ndarray, int]:
    """The ids of prompt and answer, and how many of them are the prompt's.

    Both are encoded as one text, because a model that learned "▁Paris" has to be asked for that.

    Raises:
        InputError: no token that ends within the prompt, or none that reaches beyond it.
    """
    encoding = tokenizer.backend.encode(item.text, add_special_tokens=False)
    cut = sum(end <= len(item.prompt) for _, end in encoding.offsets)
    if not 0 < cut < len(encoding.ids):
        raise InputError(
            f"The cloze {item.text!r} has {cut} tokens of prompt and {len(encoding.ids)} in all.",
            "Give a prompt and an answer that the tokenizer keeps apart.",
        )
    return np.array(encoding.ids, dtype=np.int64), cut


def goes_on(tokenizer: Tokenizer, token: int, following: int) -> bool:
    """Whether `following` continues the word that `token` ends: its text begins with a letter or a digit."""
    added = tokenizer.pieces([token, following])[1]
    return added[:1].isalnum()


def read_items(path: Path) -> list[Cloze]:
    """Clozes from JSON lines with the fields of `Cloze`; other fields are ignored.

    Raises:
        InputError: no such file, no item, or a line that is none.

    Example:
        >>> read_items(Path("items.jsonl"))       # doctest: +SKIP
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Give a file of JSON lines, in UTF-8.") from error
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            given = {field.name: value[field.name] for field in fields(Cloze) if value.get(field.name) is not None}
            if not all(isinstance(text, str) for text in given.values()):
                raise TypeError("a field that is no text")
            items.append(Cloze(**given))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"Line {number} of {path} is no cloze: {error}.", 'Write lines like {"prompt": "kick the", "answer": "bucket"}.'
            ) from error
    if not items:
        raise InputError(f"{path} holds no cloze.", 'Write lines like {"prompt": "kick the", "answer": "bucket"}.')
    return items
