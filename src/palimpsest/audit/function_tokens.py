"""Which tokens activate the features of a model? Function tokens, content tokens and the bipartite graph between tokens and features.

Zhang, Lin and Li, *Memory Retrieval and Consolidation in Large Language Models through Function Tokens* (2025, arXiv 2510.08203; no code
was released). Tokens are ranked by their frequency; *function* tokens are the most frequent ones up to a share of all occurrences (0.4),
the others are *content*. Features are those of a sparse autoencoder of a layer's hidden states (`sae`). The graph G counts at how many
occurrences of a token v a feature f was active; v and f are joined where it is not 0. From it

* C(k) = |features joined to one of the k most frequent tokens| / |features joined to any|;
* the slope of log degree in log rank;
* how alike the features of two occurrences of one token are, Σ_f n_vf (n_vf − 1) / (n_v (n_v − 1) k̄): retrieval means that a function
  token's features change with its context.

Frequent tokens have more occurrences to be active at, whatever they are: `function_rarefaction` compares equal numbers of them. The first
position of a row is left out: its norm is of another size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from palimpsest.audit.sae import SparseAutoencoder
from palimpsest.errors import InputError
from palimpsest.models.hf import HFModel
from palimpsest.tokenizer import Tokenizer

_WORDS = (
    "a an the this that these those and or but nor so yet for as if than because while though of in on at by to from with without into",
    "onto upon over under between among through during before after above below against about is are was were be been being am do does",
    "did have has had will would shall should can could may might must not no i you he she it we they me him her us them my your his its",
    "our their who whom whose which what when where why how there here",
)
ENGLISH = frozenset(word for line in _WORDS for word in line.split())


@dataclass(frozen=True)
class TokenSplit:
    """Function tokens and content tokens.

    Attributes:
        ranked: ids that occur, the most frequent first (the lowest id among equals).
        counts: (V,) occurrences.
        function: (V,) bool; ids that do not occur are content.
    """

    ranked: np.ndarray
    counts: np.ndarray
    function: np.ndarray

    @property
    def share(self) -> float:
        """Share of the occurrences that are of function tokens."""
        return float(self.counts[self.function].sum() / self.counts.sum())


def split_tokens(counts: np.ndarray, mass: float = 0.4) -> TokenSplit:
    """Function tokens are the most frequent ones: as few as make up at least a share `mass` of all occurrences.

    Raises:
        InputError: no occurrences, or a share outside (0, 1).

    Example:
        >>> split_tokens(np.array([1, 6, 0, 3]), mass=0.7).function.tolist()
        [False, True, False, True]
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.sum() <= 0 or (counts < 0).any() or not 0 < mass < 1:
        raise InputError(f"{counts.sum()} occurrences, mass {mass}.", "Give occurrences, and a share between 0 and 1.")
    order = np.argsort(-counts, kind="stable")
    ranked = order[counts[order] > 0]
    needed = int(np.searchsorted(np.cumsum(counts[ranked]), mass * counts.sum() - 1e-9) + 1)
    function = np.zeros(len(counts), dtype=bool)
    function[ranked[:needed]] = True
    return TokenSplit(ranked, counts, function)


def listed_tokens(counts: np.ndarray, tokenizer: Tokenizer) -> TokenSplit:
    """The split by a fixed list instead: English function words, and whatever has no letter or digit (punctuation, spaces).

    Raises:
        InputError: no occurrences.
    """
    by_count = split_tokens(counts, 0.5)
    function = np.zeros(len(by_count.counts), dtype=bool)
    for token in by_count.ranked.tolist():
        text = tokenizer.decode([token]).strip().lower()
        function[token] = text in ENGLISH or not re.search(r"\w", text)
    return TokenSplit(by_count.ranked, by_count.counts, function)


@dataclass(frozen=True)
class Occurrences:
    """Positions of rows of text, without the first of each row, and the features that are active there.

    Attributes:
        tokens: (n,) id at each position.
        rows: (n,) number of the row.
        positions, features: (m,) each: which feature is active at which position.
        vocabulary, width: V and F.
    """

    tokens: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    features: np.ndarray
    vocabulary: int
    width: int

    def graph(self) -> sparse.csr_matrix:
        """G, (V, F): at how many occurrences of a token a feature is active."""
        ones = np.ones(len(self.positions), dtype=np.int64)
        return sparse.coo_matrix((ones, (self.tokens[self.positions], self.features)), shape=(self.vocabulary, self.width)).tocsr()

    def by_row(self, chosen: np.ndarray) -> tuple[np.ndarray, sparse.csr_matrix]:
        """Of the positions in `chosen` (n,) bool: how many a row has, (rows,), and its features' counts, (rows, F)."""
        count = int(self.rows.max()) + 1
        kept = chosen[self.positions]
        ones = np.ones(int(kept.sum()))
        table = sparse.coo_matrix((ones, (self.rows[self.positions[kept]], self.features[kept])), shape=(count, self.width))
        return np.bincount(self.rows[chosen], minlength=count), table.tocsr()


def require_rows(rows: Sequence[np.ndarray]) -> None:
    """Raises `InputError` where there are no rows, or one has fewer than 2 ids."""
    if not rows or min(map(len, rows)) < 2:
        raise InputError(f"There are {len(rows)} rows, or one has fewer than 2 tokens.", "Give rows of 2 tokens or more.")


def states_of(model: HFModel, rows: Sequence[np.ndarray], layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states (n, d) after a layer at every position but the first of each row; ids (n,) and rows' numbers (n,) there.

    Raises:
        InputError: a row of fewer than 2 ids, or no such layer.
    """
    require_rows(rows)
    states = model.hidden_states(rows, [layer])
    tokens = np.concatenate([np.asarray(row)[1:] for row in rows])
    return np.concatenate([found[layer][1:] for found in states]), tokens, np.repeat(np.arange(len(rows)), [len(row) - 1 for row in rows])


def occurrences(
    model: HFModel,
    sae: SparseAutoencoder,
    rows: Sequence[np.ndarray],
    layer: int,
    *,
    threshold: float = 0.0,
    states: np.ndarray | None = None,
) -> Occurrences:
    """Which features are active where.

    Args:
        model: with its weights.
        sae: of this layer's states.
        rows: ids of texts; the first position of each is left out.
        layer: 0 is the embedding.
        threshold: a feature is active above it.
        states: of these rows, where `states_of` was called before.
    """
    if states is None:
        states, tokens, numbers = states_of(model, rows, layer)
    else:
        tokens = np.concatenate([np.asarray(row)[1:] for row in rows])
        numbers = np.repeat(np.arange(len(rows)), [len(row) - 1 for row in rows])
    positions, features = sae.active(states, threshold)
    return Occurrences(tokens, numbers, positions, features, model.vocab_size, sae.features)


def bipartite(
    model: HFModel, sae: SparseAutoencoder, rows: Sequence[np.ndarray], layer: int, *, threshold: float = 0.0
) -> sparse.csr_matrix:
    """The graph G between tokens and features, (V, F) counts; graphs of parts of a corpus add up to that of the whole."""
    return occurrences(model, sae, rows, layer, threshold=threshold).graph()


def coverage(graph: sparse.csr_matrix, order: np.ndarray) -> np.ndarray:
    """C(k) for k = 1 … len(order): the share of all active features that the first k tokens of an order are joined to.

    Raises:
        InputError: a graph without an edge.

    Example:
        >>> coverage(sparse.csr_matrix(np.array([[1, 0, 0, 0], [2, 1, 0, 0], [0, 0, 3, 0]])), np.array([1, 0, 2])).round(2).tolist()
        [0.67, 0.67, 1.0]
    """
    graph = graph.tocsr()
    graph.eliminate_zeros()
    active = len(np.unique(graph.indices))
    if not active:
        raise InputError("No feature is active anywhere.", "Lower the threshold, or train the autoencoder longer.")
    first = np.full(graph.shape[1], len(order), dtype=np.int64)  # at which place of the order a feature is first met
    places = np.repeat(np.arange(len(order)), np.diff(graph.indptr)[order])
    met = np.concatenate([graph.indices[graph.indptr[v] : graph.indptr[v + 1]] for v in order]) if len(order) else np.zeros(0, np.int64)
    np.minimum.at(first, met, places)
    return np.cumsum(np.bincount(first, minlength=len(order) + 1)[: len(order)]) / active


def random_coverage(graph: sparse.csr_matrix, pool: np.ndarray, k: int, draws: int = 200, seed: int = 0) -> float:
    """Mean coverage of k tokens drawn from a pool.

    Raises:
        InputError: a pool of fewer than k.
    """
    if len(pool) < k or k < 1:
        raise InputError(f"{k} tokens of {len(pool)} are asked for.", "Give a larger pool, or more text.")
    rng = np.random.default_rng(seed)
    return float(np.mean([coverage(graph, rng.choice(pool, size=k, replace=False))[-1] for _ in range(draws)]))


def overlap(graph: sparse.csr_matrix, counts: np.ndarray, at_least: int = 20) -> np.ndarray:
    """How alike the features of two occurrences of a token are, (V,): features shared, as a share of those that one has; NaN where rare.

    Example:
        >>> overlap(sparse.csr_matrix(np.array([[2, 1, 1]])), np.array([2]), at_least=2).tolist()
        [0.5]
    """
    n = np.asarray(counts, dtype=np.float64)
    shared = np.asarray(graph.multiply(graph).sum(1)).ravel() - np.asarray(graph.sum(1)).ravel()
    of_one = np.asarray(graph.sum(1)).ravel() / np.maximum(n, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n >= max(2, at_least), shared / (n * (n - 1) * of_one), np.nan)


def degree_slope(graph: sparse.csr_matrix, ranked: np.ndarray) -> float:
    """Slope of log degree in log rank by frequency, least squares over the tokens that are joined to a feature.

    Raises:
        InputError: fewer than 2 of these.
    """
    degree = np.diff(graph.tocsr().indptr)[ranked]
    kept = degree > 0
    if kept.sum() < 2:
        raise InputError(f"{int(kept.sum())} tokens have features.", "Give more text.")
    rank = np.arange(1, len(ranked) + 1)[kept]
    return float(np.polyfit(np.log(rank), np.log(degree[kept]), 1)[0])
