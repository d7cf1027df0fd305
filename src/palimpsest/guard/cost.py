"""What a guard costs on text that it is not meant to stop: how often it would have forbidden the very next word, and the perplexity.

For every position t of a text x that has n - 1 tokens before it, let B_t be the banned tokens after x_<t and m_t = p(B_t | x_<t)
their probability. The guarded model has p'(v | x_<t) = p(v | x_<t) / (1 - m_t) for v outside B_t and 0 inside. A realised token
inside B_t has an infinite loss, so that no perplexity of the whole text exists. Reported apart are therefore

* the **blocked share**: positions whose realised token is banned;
* the perplexity of the **other** positions, with the guard (never higher: it gains what the banned tokens lose) and without;
* the mean of m_t: the probability that an unguarded sample would have been stopped at a position.

On text whose n-grams are not in the corpus an exact source bans no realised token; what remains are phrases that text and corpus
share and, with a Bloom filter, its false positives. Positions nearer to the start than n - 1 tokens (less the edits that an
approximate guard allows for) are never guarded; they count in all figures, with B_t empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from palimpsest.errors import CapabilityError, InputError, NonFiniteError
from palimpsest.guard.ngrams import NgramSource, Protected, as_source, banned_tokens
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.hf import HFModel
from palimpsest.stats import wilson_interval

PIECE = 1024  # tokens of a text that are read at once: their whole distributions are held in memory


def measure_guard_cost(
    model: LanguageModel,
    source: Protected,
    texts: Sequence[str | Sequence[int] | np.ndarray],
    n: int | None = None,
    *,
    approximate: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Measures what a MemFree guard does to text that it is not meant to stop.

    Args:
        model: needs "weights": the whole distribution is read at every position.
        source: what is protected; see `MemFreeProcessor`.
        texts: the unprotected texts, as text or as rows of ids; each of at least 2 tokens. Long ones are read in pieces of
            `PIECE` tokens, or what the model can see; the guard's context does not end at a piece's border.
        n, approximate: see `MemFreeProcessor`.
        progress: called with (texts done, texts in all).

    Returns:
        One row per text: tokens (scored), blocked, banned_mass (sum), nll (nat, all tokens), nll_open and nll_guarded (nat, tokens
        not blocked, without and with the guard). Summary: the blocked share with its 95 % Wilson interval and the perplexities.

    Raises:
        CapabilityError: the door has no weights.
        InputError: no text, one of fewer than 2 tokens, or an n that is not the source's.
        TokenizerMismatchError: source and model use different tokenizers.
        NonFiniteError: the model returned NaN.

    Example:
        >>> m = measure_guard_cost(model, index, ["Once upon a time"])    # doctest: +SKIP
        >>> m.summary["blocked_share"]["estimate"]                       # doctest: +SKIP
        0.0
    """
    model.require("weights", "The price of a guard")
    if not isinstance(model, HFModel):
        raise CapabilityError(
            f"The price of a guard cannot be measured through the door {model.door!r}.", "Load the model from its weights."
        )
    grams = as_source(source, n, approximate)
    if grams.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(grams.tokenizer_fingerprint, "the protected n-grams")
    if isinstance(texts, str) or len(texts) == 0:
        raise InputError("There is no list of texts.", "Give at least one: [text].")
    rows = [np.asarray(model.tokenizer.encode(text) if isinstance(text, str) else text) for text in texts]
    records = []
    for number, row in enumerate(rows):
        if row.ndim != 1 or len(row) < 2 or not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"Text {number} has shape {row.shape} and type {row.dtype}.", "Give texts of at least 2 tokens.")
        if int(row.min()) < 0 or int(row.max()) >= model.vocab_size:
            raise InputError(f"Text {number} holds ids outside 0 to {model.vocab_size - 1}.", "Encode it with the model's tokenizer.")
        records.append({"text": number, **_price(model, grams, row.astype(np.int64))})
        if progress:
            progress(number + 1, len(rows))
    table = pl.DataFrame(records)
    provenance = {
        "model": model.describe(),
        "n": grams.n,
        "approximate": approximate,
        "source": type(source).__name__,
        "environment": environment(),
    }
    return Measurement("guard-cost", table, _summary(table), provenance)


def _price(model: HFModel, grams: NgramSource, row: np.ndarray) -> dict[str, float]:
    """The sums of one text."""
    room = min(model.room, PIECE)
    if room < 2:
        raise InputError(f"{model.name} sees {model.context_length} tokens.", "It needs at least 2 beside BOS.")
    totals = dict.fromkeys(("tokens", "blocked", "banned_mass", "nll", "nll_open", "nll_guarded"), 0.0)
    for begin in range(0, len(row) - 1, room - 1):  # the pieces share one token: the last of one is the context of the next's first
        logprobs = _distributions(model, row[begin : begin + room])
        positions = begin + 1 + np.arange(len(logprobs))  # of the realised tokens, in the whole text
        realised = logprobs[np.arange(len(logprobs)), row[positions]].astype(np.float64)
        blocked, mass = _banned(grams, row, positions, logprobs)
        kept = realised[~blocked]
        left = np.maximum(1.0 - mass[~blocked], np.exp(kept))  # what is left holds the realised token, whatever rounding says
        totals["tokens"] += len(positions)
        totals["blocked"] += int(blocked.sum())
        totals["banned_mass"] += float(mass.sum())
        totals["nll"] -= float(realised.sum())
        totals["nll_open"] -= float(kept.sum())
        totals["nll_guarded"] -= float((kept - np.log(left)).sum())
    return {**totals, "tokens": int(totals["tokens"]), "blocked": int(totals["blocked"])}


@torch.inference_mode()
def _distributions(model: HFModel, piece: np.ndarray) -> np.ndarray:
    """Natural log-probabilities of every id for each token of `piece` but the first: float32 (T - 1, vocabulary)."""
    bos = [model.tokenizer.bos_id] if model.prepends_bos else []
    fed = torch.tensor([[*bos, *piece[:-1].tolist()]], device=model.device)
    logits = model.model(input_ids=fed, use_cache=False).logits[0, len(bos) :].float()
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise NonFiniteError(
            f"{model.name} returned logits that are not finite.", "Check the weights for NaN, or load the model in float32."
        )
    return logits.log_softmax(dim=-1).cpu().numpy()


def _banned(grams: NgramSource, row: np.ndarray, positions: np.ndarray, logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every position whether its realised token is banned, and the probability of all that is banned there."""
    blocked = np.zeros(len(positions), dtype=bool)
    mass = np.zeros(len(positions))
    columns = positions[:, None] - np.arange(grams.n - 1, 0, -1)  # of the context; before the text stands padding
    owners, ids = banned_tokens(grams, row[np.maximum(columns, 0)], positions, logprobs.shape[1])
    np.add.at(mass, owners, np.exp(logprobs[owners, ids].astype(np.float64)))
    blocked[owners[ids == row[positions[owners]]]] = True
    return blocked, np.minimum(mass, 1.0)


def _summary(table: pl.DataFrame) -> dict[str, object]:
    sums = {name: float(table[name].sum()) for name in table.columns if name != "text"}
    tokens, blocked = int(sums["tokens"]), int(sums["blocked"])
    kept = tokens - blocked
    return {
        "texts": len(table),
        "tokens": tokens,
        "blocked": blocked,
        "blocked_share": wilson_interval(blocked, tokens)._asdict(),
        "banned_mass": sums["banned_mass"] / tokens,
        "perplexity": math.exp(sums["nll"] / tokens),
        "perplexity_open": math.exp(sums["nll_open"] / kept) if kept else None,
        "perplexity_guarded": math.exp(sums["nll_guarded"] / kept) if kept else None,
    }
