"""How long a text can one input vector hold? Reversible embeddings by length, beside random tokens and two controls.

Sastre and Rosá (2025, arXiv 2506.15001): texts of growing length are written into memory tokens of a frozen model
(`palimpsest.latent.memory_tokens`) and read back; a text counts when greedy decoding gives it back to the letter and ends. Beside the texts

* **random**: as many ids of the vocabulary, drawn uniformly. A language model knows much of a text before it reads it, of these it
  knows nothing: the distance between the two is what the model's knowledge of language adds to what the vector carries;
* **untrained**: the vector that training starts from; **swapped**: the vector of the next text. Neither should give the text.

What a vector has to carry is the text's code length under the model with the untrained vector, Σ_{i=1}^{L+1} −log2 p(t_i | e_0, t_<i) bits;
of random tokens it is about L · log2 V. The accuracy of the teacher-forced pass is reported, and never counted as reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.progress import stages
from palimpsest.errors import InputError
from palimpsest.latent import MemoryTokens
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress
from palimpsest.stats import wilson_interval

TEXT, RANDOM = "text", "random"


def measure_reversible(
    model: LanguageModel,
    texts: Sequence[str],
    lengths: Sequence[int] = (8, 16, 32),
    *,
    before: str | Sequence[int] = "",
    random: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **training: Any,
) -> Measurement:
    """Writes the beginnings of texts into memory tokens and reads them back.

    Args:
        model: needs "weights".
        texts: each of at least as many tokens as the greatest length.
        lengths: tokens of the beginnings.
        before: what stands in front of the vectors, see `MemoryTokens`.
        random: sequences of random tokens of each length; by default as many as texts, 0 for none.
        seed: of the random tokens, and of the training.
        progress: called with (sequences done, sequences in all).
        training: n_tokens, optimizer, lr, max_steps, init: see `MemoryTokens.encode`.

    Returns:
        One row a sequence: kind, length, sample, exact, accuracy (teacher-forced), prefix (tokens written before the first wrong one),
        steps, loss_start, loss_end (nat a token), bits, norm (of the vectors, over the mean norm of the embeddings), untrained, swapped
        (whether those vectors give the text; null where there is no other text), text, output. The summary holds for every kind and
        length the exact rate with its 95 % Wilson interval and the means, and as `reach` the greatest length of which at least half the
        texts come back; null without one.

    Raises:
        InputError: no text or length, a length below 1, a text that is too short, or a setting that `MemoryTokens.encode` refuses.
        CapabilityError, ContextOverflowError, NonFiniteError: as for `MemoryTokens`.

    Example:
        >>> measure_reversible(model, texts, (8, 16), max_steps=250).summary["reach"]   # doctest: +SKIP
        16
    """
    tokens = MemoryTokens(model, before)
    encoded = _encoded(model, texts, lengths)
    drawn = len(encoded) if random is None else random
    if drawn < 0:
        raise InputError(f"random is {random}.", "Give the number of random sequences of each length, 0 for none.")
    lengths = sorted({int(length) for length in lengths})
    stage = stages(progress, len(lengths) * (len(encoded) + drawn))
    unit = tokens.embedding_norm()
    rows: list[dict[str, Any]] = []
    for length in lengths:
        kinds: dict[str, list[Any]] = {TEXT: [row[:length] for row in encoded]}
        if drawn:
            kinds[RANDOM] = random_rows(model, drawn, length, seed)
        for kind, ids in kinds.items():
            rows += _measured(tokens, kind, ids, unit, seed, stage(len(ids)), training)
    table = pl.DataFrame(rows, schema=_SCHEMA)
    levels = [_level(table, kind, length) for length in lengths for kind in (TEXT, *([RANDOM] if drawn else []))]
    held = [level["length"] for level in levels if level["kind"] == TEXT and level["exact"]["estimate"] >= 0.5]
    summary = {"levels": levels, "reach": max(held, default=None)}
    provenance = {
        "model": model.describe(),
        "seed": seed,
        "before": tokens.before.tolist(),
        "training": training,
        "lengths": lengths,
        "environment": environment(),
    }
    return Measurement("reversible", table, summary, provenance, {"reversible": _curve(levels)})


def random_rows(model: LanguageModel, n: int, length: int, seed: int) -> list[np.ndarray]:
    """Rows of `length` ids drawn uniformly from the vocabulary without its special tokens; equal for equal seeds."""
    special = [i for i, token in model.tokenizer.backend.get_added_tokens_decoder().items() if token.special]
    ordinary = np.setdiff1d(np.arange(model.tokenizer.vocab_size), [*special, model.tokenizer.eos_id])
    rng = np.random.default_rng((seed, length, 3))
    return [ordinary[rng.integers(len(ordinary), size=length)] for _ in range(n)]


def _encoded(model: LanguageModel, texts: Sequence[str], lengths: Sequence[int]) -> list[list[int]]:
    if isinstance(texts, str) or not len(texts) or not len(lengths) or min(lengths) < 1:
        raise InputError(
            f"{len(texts)} texts and the lengths {list(lengths)} were given.", "Give a list of texts, and lengths of 1 or more."
        )
    encoded = [model.tokenizer.encode(text) for text in texts]
    for number, row in enumerate(encoded):
        if len(row) < max(lengths):
            raise InputError(
                f"Text {number} has {len(row)} tokens, the greatest length is {max(lengths)}.", "Give longer texts, or shorter lengths."
            )
    return encoded


def _measured(
    tokens: MemoryTokens, kind: str, ids: Sequence[Any], unit: float, seed: int, progress: Progress | None, training: dict[str, Any]
) -> list[dict[str, Any]]:
    bank = tokens.encode(ids, seed=seed, progress=progress, **training)
    rows = [np.asarray(row) for row in ids]
    room = len(rows[0]) + 1
    start = tokens.initial(bank.settings["n_tokens"], bank.settings["init"], seed)
    written = tokens.decode_batch(bank.vectors, room)
    untrained = tokens.decode(start.cpu().numpy(), room)
    decode = tokens.model.tokenizer.decode
    found = []
    for i, (row, memory, output) in enumerate(zip(rows, bank.memories, written, strict=True)):
        right = output[: len(row)] == row[: len(output)]
        found.append(
            {
                "kind": kind,
                "length": len(row),
                "sample": i,
                "exact": memory.exact,
                "accuracy": memory.accuracy,
                "prefix": int(np.cumprod(right).sum()),
                "steps": memory.steps,
                "loss_start": memory.losses[0],
                "loss_end": memory.losses[-1],
                "bits": memory.losses[0] * (len(row) + 1) / math.log(2),
                "norm": float(np.linalg.norm(bank[i], axis=-1).mean()) / unit,
                "untrained": np.array_equal(untrained, row),
                "swapped": np.array_equal(written[(i + 1) % len(rows)], row) if len(rows) > 1 else None,
                "text": decode(row),
                "output": decode(output),
            }
        )
    return found


_SCHEMA = {
    "kind": pl.String,
    "length": pl.Int64,
    "sample": pl.Int64,
    "exact": pl.Boolean,
    "accuracy": pl.Float64,
    "prefix": pl.Int64,
    "steps": pl.Int64,
    "loss_start": pl.Float64,
    "loss_end": pl.Float64,
    "bits": pl.Float64,
    "norm": pl.Float64,
    "untrained": pl.Boolean,
    "swapped": pl.Boolean,
    "text": pl.String,
    "output": pl.String,
}


def _level(table: pl.DataFrame, kind: str, length: int) -> dict[str, Any]:
    """The figures of one kind and length."""
    rows = table.filter((pl.col("kind") == kind) & (pl.col("length") == length))
    means = ("accuracy", "prefix", "steps", "loss_start", "loss_end", "bits", "norm")
    return {
        "kind": kind,
        "length": length,
        "n": rows.height,
        "exact": wilson_interval(int(rows["exact"].sum()), rows.height)._asdict(),
        **{name: float(rows[name].cast(pl.Float64).to_numpy().mean()) for name in means},
        "untrained": int(rows["untrained"].sum()),
        "swapped": int(rows["swapped"].sum()),
    }


def _curve(levels: list[dict[str, Any]]) -> Curve:
    names = {TEXT: "texts", RANDOM: "random tokens"}
    series = []
    for kind in dict.fromkeys(level["kind"] for level in levels):
        points: list[dict[str, float | int | None]] = [
            {"x": level["length"], "y": rate["estimate"], "low": rate["low"], "high": rate["high"], "n": level["n"]}
            for level, rate in ((level, level["exact"]) for level in levels if level["kind"] == kind)
        ]
        series.append(Series(names[kind], points))
    return Curve(
        "reversible", "How long a text can an input vector hold?", "tokens", "given back to the letter", series, x_scale="log",
        y_domain=(0, 1), y_format="percent", caption="Greedy decoding from the trained vector alone; bars are 95 % Wilson intervals.",
    )  # fmt: skip
