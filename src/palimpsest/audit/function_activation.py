"""How much of a model's features its function tokens activate: the measurement over layers, with its controls.

What is counted stands in `function_tokens`, where the paper is named too. For each layer an autoencoder is trained on the states of the
texts (or given), the graph between tokens and features is built, and read by frequency. Controls: tokens drawn by lot, as many occurrences
of content tokens, and the same architecture with random weights, autoencoder and all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import torch

from palimpsest.audit.function_losses import largest_cell, transition_loss
from palimpsest.audit.function_rarefaction import frequency_control, rarefaction
from palimpsest.audit.function_tokens import (
    Occurrences,
    TokenSplit,
    coverage,
    degree_slope,
    listed_tokens,
    occurrences,
    overlap,
    random_coverage,
    require_rows,
    split_tokens,
    states_of,
)
from palimpsest.audit.sae import SAEConfig, SparseAutoencoder, train_sae
from palimpsest.errors import InputError
from palimpsest.files import sha256_json
from palimpsest.measurement import Curve, Measurement, Series, environment, plain
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer

COUNTED = 20  # occurrences of a token that may be drawn, or whose contexts are compared


def text_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int, most: int | None = None) -> list[np.ndarray]:
    """Texts as rows of ids of `length` at most, each of one text; what is left at a text's end is a row where it has 2 ids or more.

    Args:
        tokenizer: of the model.
        texts: documents.
        length: 2 or more.
        most: ids in all; the rest of the texts is left out.

    Raises:
        InputError: a length below 2, or texts that give no row.
    """
    if length < 2:
        raise InputError(f"length is {length}.", "Give 2 or more.")
    rows: list[np.ndarray] = []
    left = most if most is not None else 1 << 62
    for text in texts:
        if left < 2:
            break
        ids = np.array(tokenizer.encode(text), dtype=np.int64)
        for begin in range(0, len(ids), length):
            row = ids[begin : begin + min(length, left)]
            if len(row) >= 2:
                rows.append(row)
                left -= len(row)
    if not rows:
        raise InputError(f"{len(texts)} texts give no row of 2 tokens.", "Give longer texts.")
    return rows


def untrained_twin(model: HFModel, seed: int = 0) -> HFModel:
    """A model of the same architecture with the random weights that its class begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model.model)(copy.deepcopy(model.model.config))
    bos = "always" if model.prepends_bos else "never"
    return HFModel(fresh.to(model.device), model.tokenizer, name=f"{model.name}, untrained", bos=bos)


def measure_function_tokens(
    model: LanguageModel,
    rows: Sequence[np.ndarray],
    layers: Sequence[int] | None = None,
    *,
    mass: float = 0.4,
    sae: SAEConfig | None = None,
    autoencoders: Mapping[int, SparseAutoencoder] | None = None,
    threshold: float = 0.0,
    control: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Ranks tokens by frequency and measures what they activate, and where the loss is.

    Args:
        model: with its weights.
        rows: ids of texts, as `text_rows` makes them.
        layers: whose states; by default a shallow, a middle and a deep one.
        mass: share of all occurrences that function tokens make up.
        sae: how autoencoders are trained.
        autoencoders: layer -> a trained one, in its place.
        threshold: above which a feature is active.
        control: also measure an untrained twin.
        seed: of autoencoders, draws and the twin.
        progress: called with (layers done, layers in all), the twin's included.

    Returns:
        One row a model, layer and token that occurs: token, text, rank, count, function, degree, coverage (C at its rank), overlap. The
        summary has the split, `layers` with the figures of each model and layer (coverage_random_10 is None where fewer than 10 content
        tokens come 20 times, control_by_list where the list has next to nothing or all of the text), and `losses` with the table of
        `transition_loss`.

    Raises:
        CapabilityError: a door without weights.
        InputError: no rows, or no such layer.

    Example:
        >>> rows = text_rows(model.tokenizer, texts, 128)                                          # doctest: +SKIP
        >>> measure_function_tokens(model, rows).summary["layers"][0]["coverage_10"]               # doctest: +SKIP
        0.61
    """
    model.require("weights", "Hidden states")
    if not isinstance(model, HFModel):
        raise model.lacks("weights", "A module to read states from")
    require_rows(rows)
    last = int(model.model.config.get_text_config().num_hidden_layers)
    layers = sorted(set(layers if layers is not None else (max(1, last // 4), max(1, last // 2), max(1, last * 4 // 5))))
    models = [model, untrained_twin(model, seed)] if control else [model]
    counts = np.bincount(np.concatenate([np.asarray(row)[1:] for row in rows]), minlength=model.vocab_size)
    split, listed = split_tokens(counts, mass), listed_tokens(counts, model.tokenizer)
    tables, found, curves, rarefied = [], [], [], []
    done = 0
    for which, door in zip(("trained", "untrained"), models, strict=False):
        for layer in layers:
            states, _, _ = states_of(door, rows, layer)
            given = (autoencoders or {}).get(layer) if which == "trained" else None
            coder = given or train_sae(states, sae, seed)
            seen = occurrences(door, coder, rows, layer, threshold=threshold, states=states)
            reading, table = _layer(door, coder, seen, split, listed, states, seed)
            found.append({"model": which, "layer": layer, **reading})
            tables.append(table.select(pl.lit(which).alias("model"), pl.lit(layer).alias("layer"), pl.all()))
            curves.append(Series(f"{which}, layer {layer}", _points(table), style="line" if which == "trained" else "dashed"))
            if which == "trained":
                for kind, chosen in (("function", split.function), ("content", ~split.function)):
                    points: list[dict[str, float | int | None]] = [
                        {"x": m, "y": value / reading["features"]} for m, value in rarefaction(seen, chosen)
                    ]
                    rarefied.append(Series(f"{kind}, layer {layer}", points, style="line" if kind == "function" else "dashed"))
            done += 1
            if progress:
                progress(done, len(models) * len(layers))
    losses = transition_loss(model, rows, split.function)
    summary = {
        "tokens": int(counts.sum()),
        "function_tokens": int(split.function.sum()),
        "function_share": split.share,
        "agreement_with_list": float(counts[split.function & listed.function].sum() / counts[split.function].sum()),
        "most_frequent": [model.tokenizer.decode([token]) for token in split.ranked[:10].tolist()],
        "layers": found,
        "losses": losses.to_dicts(),
        "losses_by_list": transition_loss(model, rows, listed.function).to_dicts(),
        **largest_cell(losses),
    }
    provenance = {
        "model": model.describe(),
        "rows": len(rows),
        "texts": sha256_json([np.asarray(row).tolist() for row in rows]),
        "mass": mass,
        "threshold": threshold,
        "sae": asdict(sae or SAEConfig()) if not autoencoders else "given",
        "seed": seed,
        "environment": environment(),
    }
    curve = Curve(
        "function-tokens", "A few frequent tokens meet most features", "tokens, the most frequent first", "features met", curves,
        x_scale="log", y_domain=(0.0, 1.0), y_format="percent", caption="Dashed: the same architecture with random weights.",
    )  # fmt: skip
    equal = Curve(
        "function-tokens-rarefied", "Features at equal numbers of occurrences", "occurrences", "features met", rarefied,
        x_scale="log", y_domain=(0.0, 1.0), y_format="percent", caption="Expected in so many occurrences drawn of all of a kind.",
    )  # fmt: skip
    return Measurement("function_tokens", pl.concat(tables), plain(summary), plain(provenance), {c.id: c for c in (curve, equal)})


def _layer(
    model: HFModel,
    sae: SparseAutoencoder,
    seen: Occurrences,
    split: TokenSplit,
    listed: TokenSplit,
    states: np.ndarray,
    seed: int,
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Figures and the table of one layer of one model."""
    graph = seen.graph()
    met, alike = coverage(graph, split.ranked), overlap(graph, split.counts, COUNTED)
    pool = np.flatnonzero((split.counts >= COUNTED) & ~split.function)
    control = frequency_control(seen, split.function, seed=seed)
    shared = {kind: alike[(split.function == (kind == "function")) & ~np.isnan(alike)] for kind in ("function", "content")}
    figures = {
        "features": len(np.unique(seen.features)),
        "dictionary": sae.features,
        "explained_variance": sae.explained_variance(states),
        "slope": degree_slope(graph, split.ranked),
        **{f"coverage_{k}": float(met[min(k, len(met)) - 1]) for k in (1, 10, 100)},
        "coverage_function": float(met[int(split.function.sum()) - 1]),
        "coverage_random_10": random_coverage(graph, pool, 10, seed=seed) if len(pool) >= 10 else None,
        "control": control,
        "control_by_list": frequency_control(seen, listed.function, seed=seed) if 0.01 < listed.share < 0.99 else None,
        "supported": control["low"] > 1,
        **{f"overlap_{kind}": float(values.mean()) if len(values) else None for kind, values in shared.items()},
    }
    ranked = split.ranked
    table = pl.DataFrame(
        {
            "token": ranked,
            "text": [model.tokenizer.decode([token]) for token in ranked.tolist()],
            "rank": np.arange(1, len(ranked) + 1),
            "count": split.counts[ranked],
            "function": split.function[ranked],
            "degree": np.diff(graph.indptr)[ranked].astype(np.int64),
            "coverage": met,
            "overlap": pl.Series(alike[ranked]).fill_nan(None),
        }
    )
    return figures, table


def _points(table: pl.DataFrame) -> list[dict[str, float | int | None]]:
    """C(k) at about 40 ranks, evenly on a log scale."""
    ranks = np.unique(np.geomspace(1, len(table), 40).round().astype(int))
    return [{"x": int(k), "y": float(table["coverage"][int(k) - 1])} for k in ranks]
