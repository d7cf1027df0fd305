"""How many examples one multi-head attention layer can memorize: a constructive lower bound, and the rank that bounds it.

Mahdavi, Liao and Thrampoulidis, ICLR 2024, arXiv 2306.02010. T examples: a context E^(t) (n, d), a query e^(t) (d,) and a label y^(t)
(d_out,). With W_h = K_h Q_hᵀ of rank <= d_h, head h attends with θ_h^(t) = softmax(E^(t) W_h e^(t)), and the layer answers

    y^(t) = Σ_h θ_h^(t)ᵀ E^(t) V_h,

linear in the features Z (T, H·d), whose row is all θ_h^(t)ᵀ E^(t) beside each other: V fits any labels exactly if and only if rank Z = T.

*Lower bound.* If any n queries are linearly independent (Kruskal rank >= n), each context has rank n, and n < d, then with r = min(n, d_h)
there are heads for which rank Z = T = H(r−1)+1. `construct_memorizer` builds them one by one; each serves a group of r−1 new examples.
Its W is λ x aᵀ + F: a is orthogonal to the group's queries and to no earlier one, so that λ saturates the softmax of every earlier example
on one context vector and leaves the group alone; F, of rank r−1, gives the group any attention at all. Each of the group attends (nine
tenths) to the context vector that lies farthest from what is spanned already, which raises the rank by one. The choice of vectors is ours.

*Upper bound.* Where all examples share one context, Σ_j θ_hj = 1 leaves rank Z <= H(n−1)+1 whatever the weights. This bounds what frozen
heads fit, and labels of rank T (d_out >= T); it does not bound one real label an example when heads are learnt: with n = 2, a single head
fits d of them by solving w·e^(t) = logit y^(t). Random heads exceed the guarantee for d_h < n, as softmax is not linear; not used.

What training reaches is measured in `capacity_training`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from palimpsest.errors import InputError

TOLERANCE = 1e-10  # of a singular value, as a share of the largest: below it counts as zero (float64)
MASS = 0.9  # of a constructed head's attention on the vector it picks
SATURATED = 40.0  # logits between the picked vector and the next: e^-40 is below the resolution of float64
DRAWS = 64  # random directions tried for x and a; the best conditioned is taken


class AssumptionError(InputError):
    """Examples that the theorem does not speak about; `rows` holds their numbers."""

    def __init__(self, problem: str, remedy: str = "", rows: Sequence[int] = ()) -> None:
        self.rows = tuple(int(row) for row in rows)
        super().__init__(problem, remedy)


@dataclass(frozen=True)
class AttentionMemory:
    """Weights of one attention layer.

    Attributes:
        keys, queries: K_h and Q_h, (H, d, d_h).
        values: V_h, (H, d, d_out): the value and output matrices multiplied.
    """

    keys: np.ndarray
    queries: np.ndarray
    values: np.ndarray

    @property
    def heads(self) -> np.ndarray:
        """W_h = K_h Q_hᵀ, (H, d, d)."""
        return self.keys @ self.queries.transpose(0, 2, 1)

    def __call__(self, e: np.ndarray, E: np.ndarray) -> np.ndarray:
        """The layer's answers, (T, d_out)."""
        return features(e, E, self.heads) @ self.values.reshape(-1, self.values.shape[2])


@dataclass(frozen=True)
class Assumptions:
    """What `check_assumptions` found.

    Attributes:
        dependent_queries: numbers of n queries that are linearly dependent, None if none were found.
        dependent_contexts: numbers of the examples whose context vectors are linearly dependent.
        few_dimensions: whether n >= d.
        subsets, exhaustive: sets of n queries that were looked at, and whether these were all.
    """

    dependent_queries: tuple[int, ...] | None
    dependent_contexts: tuple[int, ...]
    few_dimensions: bool
    subsets: int
    exhaustive: bool

    @property
    def holds(self) -> bool:
        """Whether no violation was found."""
        return self.dependent_queries is None and not self.dependent_contexts and not self.few_dimensions


def random_heads(heads: int, d: int, head_dim: int, rng: np.random.Generator) -> np.ndarray:
    """W_h = K_h Q_hᵀ with normal K and Q, (heads, d, d), of rank `head_dim`; logits of standard normal vectors have variance 1."""
    scale = (d * d * head_dim) ** -0.25
    keys, queries = (rng.normal(0, scale, (heads, d, head_dim)) for _ in range(2))
    return keys @ queries.transpose(0, 2, 1)


def attention(e: np.ndarray, E: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Attention weights θ, (T, H, n), of queries `e` (T, d), contexts `E` (T, n, d) or one (n, d) for all, and heads `W` (H, d, d).

    Raises:
        InputError: shapes that do not fit, or values that are not finite.
    """
    e, E, W = (np.asarray(x, dtype=np.float64) for x in (e, E, W))
    _require_shapes(e, E)
    if W.ndim != 3 or not len(W) or W.shape[1:] != (e.shape[1],) * 2 or not np.isfinite(W).all():
        raise InputError(f"Heads of shape {W.shape} for queries of {e.shape[1]} dimensions.", "Give finite numbers of shape (H, d, d).")
    logits = np.einsum("thd,...nd->thn" if E.ndim == 2 else "thd,tnd->thn", np.einsum("hde,te->thd", W, e), E)
    weights: np.ndarray = np.exp(logits - logits.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True)


def features(e: np.ndarray, E: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The features Z, (T, H·d): what each head reads, beside each other. Arguments and errors as of `attention`."""
    theta = attention(e, E, W)
    return np.einsum("thn,nd->thd" if np.ndim(E) == 2 else "thn,tnd->thd", theta, np.asarray(E, dtype=np.float64)).reshape(len(theta), -1)


def feature_rank(e: np.ndarray, E: np.ndarray, W: np.ndarray) -> int:
    """Rank of the features Z: so many examples are fitted whatever their labels, by these heads and the right values.

    Args, raises: as of `attention`. Decided in float64: singular values below 1e-10 of the largest count as zero.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> e, E = rng.normal(size=(40, 16)), rng.normal(size=(4, 16))
        >>> feature_rank(e, E, random_heads(3, 16, 2, rng))  # one context for all: 3 (4 - 1) + 1
        10
    """
    return int(_ranks(features(e, E, W)[None])[0])


def construct_memorizer(
    e: np.ndarray, E: np.ndarray, y: np.ndarray, heads: int, head_dim: int | None = None, seed: int = 0
) -> AttentionMemory:
    """Weights that reproduce every label: the theorem's, for up to heads · (min(n, head_dim) − 1) + 1 examples.

    Args:
        e: queries, (T, d).
        E: contexts, (T, n, d), or one for all, (n, d); n < d.
        y: labels, (T, d_out) or (T,).
        heads: H. Heads that T examples do not need are left at zero.
        head_dim: d_h, the greatest rank of a head's W; d by default.
        seed: of the directions that saturate earlier examples.

    Raises:
        AssumptionError: equal queries, dependent queries where independent ones are needed, or a context of dependent vectors; `rows`
            holds the examples.
        InputError: n >= d, more examples than the bound, or shapes that do not fit.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> e, E, y = rng.normal(size=(7, 8)), rng.normal(size=(4, 8)), rng.normal(size=7)
        >>> layer = construct_memorizer(e, E, y, heads=2)
        >>> bool(abs(layer(e, E)[:, 0] - y).max() < 1e-6)
        True
    """
    e, E, y = (np.asarray(x, dtype=np.float64) for x in (e, E, y))
    _require_shapes(e, E)
    (T, d), n = e.shape, E.shape[-2]
    head_dim = d if head_dim is None else head_dim
    labels = y.reshape(len(y), -1) if y.ndim in (1, 2) else y
    if labels.ndim != 2 or len(labels) != T or not np.isfinite(labels).all():
        raise InputError(f"Labels of shape {y.shape} for {T} examples.", "Give one finite number, or one row, an example.")
    if n >= d:
        raise InputError(f"Contexts of {n} vectors in {d} dimensions.", "The theorem needs fewer vectors than dimensions: n < d.")
    if heads < 1 or head_dim < 1:
        raise InputError(f"heads {heads}, head_dim {head_dim}.", "Give at least 1 of each.")
    r = min(n, head_dim)
    if heads * (r - 1) + 1 < T:
        raise InputError(
            f"{T} examples exceed the bound {heads} * ({r} - 1) + 1 = {heads * (r - 1) + 1}.", "Give more heads or a larger head_dim."
        )
    _require_distinct(e, labels)
    contexts = np.broadcast_to(E, (T, n, d))
    if dependent := _dependent_contexts(contexts):
        raise AssumptionError(f"The context vectors of example {dependent[0]} are linearly dependent.", "Leave it out.", dependent)
    rng = np.random.default_rng(seed)
    keys, queries = np.zeros((2, heads, d, head_dim))
    for h in range(heads):
        old, stop = (h * (r - 1) + 1, min((h + 1) * (r - 1) + 1, T)) if h else (0, min(r, T))
        if old >= stop:
            break
        W = _head(e, contexts, (keys @ queries.transpose(0, 2, 1))[:h], old, stop, rng)
        u, s, vt = np.linalg.svd(W)
        keys[h, :, :r], queries[h, :, :r] = u[:, :r] * np.sqrt(s[:r]), vt[:r].T * np.sqrt(s[:r])
    values, *_ = np.linalg.lstsq(features(e, contexts, keys @ queries.transpose(0, 2, 1)), labels, rcond=None)
    return AttentionMemory(keys, queries, values.reshape(heads, d, -1))


def _head(e: np.ndarray, contexts: np.ndarray, before: np.ndarray, old: int, stop: int, rng: np.random.Generator) -> np.ndarray:
    """W (d, d) of the head that adds examples old … stop−1 to the `old` earlier ones, which the heads `before` hold."""
    d, group = e.shape[1], range(old, stop)
    if _ranks(e[None, old:stop])[0] < len(group):
        raise AssumptionError(f"The queries of examples {old} to {stop - 1} are linearly dependent.", "Leave some out.", group)
    sharp, dual = np.zeros((d, d)), np.linalg.pinv(e[old:stop])  # (d, group): Fe = w is solved by F = Σ w dualᵀ
    carried = np.zeros((len(group), d))  # what the earlier heads make of the group already, read in the new head's features
    if old:
        sharp = _saturating(e, contexts, old, stop, rng)
        picked = np.einsum("tn,tnd->td", attention(e[:old], contexts[:old], 1e6 * sharp[None])[:, 0], contexts[:old])
        Z = features(e[:stop], contexts[:stop], before)
        carried = np.linalg.lstsq(Z[:old].T, Z[old:].T, rcond=None)[0].T @ picked
    spanned = np.zeros((d, 0))
    wanted = np.empty((d, len(group)))
    for i, t in enumerate(group):
        away = contexts[t] - carried[i]
        away = away - (away @ spanned) @ spanned.T  # (n, d): each context vector's part outside the span
        best = int(np.linalg.norm(away, axis=1).argmax())
        theta = np.full(len(away), (1 - MASS) / max(1, len(away) - 1))
        theta[best] = MASS
        spanned, _ = np.linalg.qr(np.column_stack([spanned, theta @ away]))
        wanted[:, i] = np.linalg.lstsq(contexts[t], np.log(theta), rcond=None)[0]
    free = wanted @ dual.T
    if not old:
        return free
    loose = np.einsum("tnd,td->tn", contexts[:old], e[:old] @ free.T)  # logits of the earlier examples that λ must drown
    return free + (SATURATED + np.ptp(loose, axis=1).max()) * sharp


def _saturating(e: np.ndarray, contexts: np.ndarray, old: int, stop: int, rng: np.random.Generator) -> np.ndarray:
    """x aᵀ that is 0 for the group's queries, and parts the first and second logit of every earlier example by at least 1."""
    d = e.shape[1]
    *_, vt = np.linalg.svd(e[old:stop])
    others = vt[stop - old :]  # basis of what is orthogonal to the group
    seen = e[:old] @ others.T
    lost = np.linalg.norm(seen, axis=1) <= TOLERANCE * np.linalg.norm(e[:old], axis=1)
    if lost.any():
        rows = (int(lost.argmax()), *range(old, stop))
        raise AssumptionError(f"The query of example {rows[0]} depends on those of {old} to {stop - 1}.", "Leave it out.", rows)
    a = rng.normal(size=(DRAWS, len(others)))
    size = np.abs(seen @ a.T)  # (old, draws)
    a = a[size.min(axis=0).argmax()]
    x = rng.normal(size=(DRAWS, d))
    logits = np.sort(np.einsum("tnd,kd->ktn", contexts[:old], x) * np.sign(seen @ a)[:, None], axis=2)
    gaps = np.abs(seen @ a) * (logits[:, :, -1] - logits[:, :, -2])
    best = gaps.min(axis=1).argmax()
    return np.outer(x[best], a @ others) / gaps[best].min()


def check_assumptions(e: np.ndarray, E: np.ndarray, max_subsets: int = 2000, seed: int = 0) -> Assumptions:
    """Whether queries and contexts, such as a layer's hidden states, are what the theorem asks for.

    Args:
        e, E: queries (T, d) and contexts (T, n, d) or (n, d).
        max_subsets: sets of n queries looked at: all of them if there are no more, else so many at random (one that is found dependent
            refutes the assumption, none found does not prove it).
        seed: of the sets drawn.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or max_subsets < 1.
    """
    e, E = np.asarray(e, dtype=np.float64), np.asarray(E, dtype=np.float64)
    _require_shapes(e, E)
    if max_subsets < 1:
        raise InputError(f"max_subsets is {max_subsets}.", "Give at least 1.")
    T, n = len(e), E.shape[-2]
    size, rng = min(n, T), np.random.default_rng(seed)
    exhaustive = math.comb(T, size) <= max_subsets
    drawn = combinations(range(T), size) if exhaustive else (sorted(rng.choice(T, size, replace=False)) for _ in range(max_subsets))
    sets = np.array(list(drawn))
    found = np.flatnonzero(_ranks(e[sets]) < size)
    dependent = _dependent_contexts(E[None] if E.ndim == 2 else E)
    return Assumptions(
        tuple(int(t) for t in sets[found[0]]) if len(found) else None,
        tuple(range(T)) if E.ndim == 2 and dependent else dependent,
        n >= e.shape[1],
        len(sets),
        exhaustive,
    )


def _ranks(matrices: np.ndarray) -> np.ndarray:
    singular = np.linalg.svd(matrices, compute_uv=False)
    largest = singular.max(axis=1, keepdims=True)
    return ((singular > TOLERANCE * largest) & (largest > 0)).sum(axis=1)


def _dependent_contexts(contexts: np.ndarray) -> tuple[int, ...]:
    return tuple(int(t) for t in np.flatnonzero(_ranks(contexts) < contexts.shape[1]))


def _require_shapes(e: np.ndarray, E: np.ndarray) -> None:
    """Queries (T, d), contexts (T, n, d) or (n, d), finite."""
    fits = e.ndim == 2 and E.ndim in (2, 3) and e.size and E.size and E.shape[-1] == e.shape[1] and (E.ndim == 2 or len(E) == len(e))
    if not fits or not (np.isfinite(e).all() and np.isfinite(E).all()):
        raise InputError(
            f"Queries of shape {e.shape} and contexts of shape {E.shape}.", "Give finite numbers, (T, d) and (T, n, d), or (n, d) for all."
        )


def _require_distinct(e: np.ndarray, labels: np.ndarray) -> None:
    """No query twice."""
    _, inverse, counts = np.unique(e, axis=0, return_inverse=True, return_counts=True)
    if counts.max() > 1:
        rows = np.flatnonzero(inverse.reshape(-1) == counts.argmax())
        with_what = "different labels" if np.ptp(labels[rows], axis=0).any() else "equal labels"
        raise AssumptionError(f"Examples {rows.tolist()} have one query with {with_what}.", "Keep one of them.", rows.tolist())
