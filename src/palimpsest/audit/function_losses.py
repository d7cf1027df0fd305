"""Where the loss is: from function or content tokens to function or content tokens, and how it falls in training.

Zhang, Lin and Li, 2025, arXiv 2510.08203 (see `function_tokens`). Each next-token loss belongs to a cell, by the kind of the token that is
read and of the one that is to be predicted. The cells' sums add up to the loss of the text. A word that is several tokens has *pieces*
which follow from its beginning (a token that begins with a letter or digit right after one that ends with one); they are content tokens
whose prediction says little about content, so that every cell also has its loss without them.

Consolidation: the table at checkpoints of one run. `steps_to` says when a cell's loss has made a share (0.8) of its whole fall, linear
between checkpoints; where a layer is named, an autoencoder, trained anew with the same seed, also counts the features alive at each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.function_tokens import TokenSplit, states_of
from palimpsest.audit.sae import SAEConfig, train_sae
from palimpsest.errors import InputError
from palimpsest.models.base import LanguageModel
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer

CELLS = ("f→f", "f→c", "c→f", "c→c")


def token_losses(model: LanguageModel, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss in nat, current id and next id of every position that predicts, each (n,), in the order of the rows.

    Raises:
        CapabilityError: the door has no log-probs.
    """
    losses = np.concatenate([-values.astype(np.float64) for values in model.logprobs(rows)])
    current = np.concatenate([np.asarray(row)[:-1] for row in rows])
    following = np.concatenate([np.asarray(row)[1:] for row in rows])
    return losses, current, following


def continues(tokenizer: Tokenizer, vocabulary: int, current: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Whether the next token goes on with the word that the current one is part of, (n,) bool."""
    texts = [tokenizer.decode([token]) for token in range(min(vocabulary, tokenizer.vocab_size))]
    texts += [""] * (vocabulary - len(texts))
    begins = np.array([text[:1].isalnum() for text in texts])
    ends = np.array([text[-1:].isalnum() for text in texts])
    return ends[current] & begins[following]


def transition_loss(model: LanguageModel, rows: Sequence[np.ndarray], function: np.ndarray) -> pl.DataFrame:
    """The 2 × 2 table of losses.

    Args:
        model: any with log-probs.
        rows: ids of texts, 2 or more each.
        function: (V,) bool, which ids are function tokens.

    Returns:
        One row a cell, in the order of `CELLS`: cell, n, share (of the positions), loss (mean, nat; None where n is 0), loss_share (of the
        loss of the whole text) and piece_share (of the targets, those that go on with a word), whole_loss (mean without these).

    Raises:
        InputError: a kind for fewer ids than come up, or rows that are too short.

    Example:
        >>> transition_loss(model, rows, split.function).filter(pl.col("cell") == "f→c")["loss_share"].item()     # doctest: +SKIP
        0.44
    """
    if not rows or min(map(len, rows)) < 2 or max(int(np.max(row)) for row in rows) >= len(function):
        raise InputError(f"There are {len(rows)} rows for {len(function)} kinds.", "Give rows of 2 ids or more, and a kind for every id.")
    losses, current, following = token_losses(model, rows)
    piece = continues(model.tokenizer, len(function), current, following)
    cell = 2 * (~function[current]) + (~function[following])
    n, total = np.bincount(cell, minlength=4), np.bincount(cell, losses, minlength=4)
    pieces = np.bincount(cell, piece, minlength=4)
    wholes = np.bincount(cell[~piece], losses[~piece], minlength=4)
    return pl.DataFrame(
        {
            "cell": CELLS,
            "n": n,
            "share": n / n.sum(),
            "loss": [float(total[i] / n[i]) if n[i] else None for i in range(4)],
            "loss_share": total / total.sum(),
            "piece_share": [float(pieces[i] / n[i]) if n[i] else None for i in range(4)],
            "whole_loss": [float(wholes[i] / (n[i] - pieces[i])) if n[i] > pieces[i] else None for i in range(4)],
        }
    )


def growth(
    checkpoints: Mapping[int, HFModel],
    rows: Sequence[np.ndarray],
    split: TokenSplit,
    *,
    layer: int | None = None,
    sae: SAEConfig | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """The table of losses at every checkpoint, and with `layer` the features that are alive.

    Args:
        checkpoints: step -> model, 2 or more.
        rows: ids of texts.
        split: kinds, the same at all checkpoints.
        layer: whose states an autoencoder is trained on at every checkpoint; None: none is.
        sae: its configuration.
        seed: of the autoencoders, the same for all.

    Returns:
        The rows of `transition_loss` with step, and features (active at one position or more; None without `layer`).

    Raises:
        InputError: fewer than 2 checkpoints.
    """
    if len(checkpoints) < 2:
        raise InputError(f"{len(checkpoints)} checkpoints show no growth.", "Give 2 or more.")
    tables = []
    for step, model in sorted(checkpoints.items()):
        features: int | None = None
        if layer is not None:
            states, _, _ = states_of(model, rows, layer)
            _, found = train_sae(states, sae, seed).active(states)
            features = len(np.unique(found))
        extra = [pl.lit(step).alias("step"), pl.lit(features, dtype=pl.Int64).alias("features")]
        tables.append(transition_loss(model, rows, split.function).with_columns(extra))
    return pl.concat(tables)


def steps_to(steps: Sequence[int], losses: Sequence[float], share: float = 0.8) -> float | None:
    """When a loss has made a share of its fall from the first to the last checkpoint; None where it does not fall.

    Example:
        >>> steps_to([0, 10, 20], [4.0, 2.0, 2.0], share=0.5)
        5.0
    """
    values, times = np.asarray(losses, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    goal = values[0] - share * (values[0] - values[-1])
    if not values[-1] < values[0]:
        return None
    at = int(np.argmax(values <= goal))  # the first checkpoint at or below; not 0, where the fall begins
    before, after = values[at - 1], values[at]
    return float(times[at - 1] + (times[at] - times[at - 1]) * (before - goal) / (before - after))


def largest_cell(table: pl.DataFrame) -> dict[str, Any]:
    """The cell of the highest mean loss, and whether f→c takes more of the loss than of the positions."""
    found = table.drop_nulls("loss").sort("loss", descending=True)
    crossing = table.row(CELLS.index("f→c"), named=True)
    return {"highest": found["cell"][0], "excess": crossing["loss_share"] - crossing["share"]}
