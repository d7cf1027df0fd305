"""Membership scores as pure functions of log-probabilities; one convention: higher = more likely a member of the training data.

With lp_t = log p(x_t | x_<t) for t = 1..T (the first token has no context and is not scored):

* loss         mean lp                                                        (Yeom et al., CSF 2018, arXiv 1709.01604)
* zlib         mean lp / bytes of zlib(text); zlib-total takes the sum, which removes the length bias
               (Carlini et al., USENIX Security 2021, arXiv 2012.07805)
* min-k        mean of the ceil(k T) smallest lp                              (Shi et al., ICLR 2024, arXiv 2310.16789)
* min-k++      the same of z_t = (lp_t - mu_t) / sigma_t, mu and sigma^2 the mean and variance of log p under the model's own
               softmax; z_t = 0 where sigma_t = 0                             (Zhang et al., ICLR 2025, arXiv 2404.02936)
* recall       mean lp(x | non-member prefix) / mean lp(x)                    (Xie et al., EMNLP 2024, arXiv 2406.15968)
* dc-pdd       mean over the first occurrence of each token of min(p_t log(1 / f_t), 0.01), f the token's Laplace-smoothed
               frequency in a reference corpus                                (Zhang et al., EMNLP 2024, arXiv 2409.14781)

Rows are ragged: lists with one array of T numbers a text.

**Beside mimir** (iamgroot42/mimir; Duan et al., COLM 2024), whose scores are lower for members: on the same log-probs loss, zlib,
reference, neighbour, recall and dc-pdd are its scores with the other sign (`tests/audit/test_membership_formulas.py`). Where it is wrong,
or we chose otherwise:

* min-k and min-k++ keep int(k T) tokens there: none of a text of 4 at k = 0.2, whose score is NaN and which is then left out of the ROC
  curve in silence. Here ceil(k T), at least one. With as many tokens kept the scores are equal.
* min-k++ divides by a sigma of 0 where the model is sure or knows nothing: NaN or infinity there, 0 here. Without given log-probs it asks
  an attribute that the class has not.
* reference hands the target's log-probs to the reference model when they are at hand, whose answer then is the target's own: always 0.
* recall's conditional mean counts the text's first token, the plain mean does not; here both are over the same tokens. A text that does
  not fit the window with its prefix is there continued in a window without the prefix, and of too many shots as many are kept from the
  end as were counted from the beginning; here the prefix is cut to what fits. In an earlier version the loop over windows never ran for
  a text that fits one: the score was 0.
* dc-pdd counts in how many documents a token stands (`counts[ids] += 1` adds one for repeated ids); here every occurrence counts. Its
  texts are begun with EOS, so that the first token has a score; here it has none, and the first *scored* occurrence counts.
* gradnorm is the mean of the weight matrices' maximum norms, with the sign the wrong way about for the ROC curve that it goes into; here it
  is the norm of the gradient, and a flatter loss is likelier a member.
* neighbour: the mean over the neighbours is left to the caller there, and no masked span reaches the last word.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from palimpsest.errors import InputError

_CERTAIN = 1e-12  # a mean loss below it counts as this: no division by zero for texts the model is sure of


def mean_logprob(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """Mean log-probability of every row, float64 (rows,): the negative of the loss.

    Raises:
        InputError: a row without a scored token.

    Example:
        >>> mean_logprob([np.array([-1.0, -3.0])]).tolist()
        [-2.0]
    """
    lengths = np.array([len(row) for row in logprobs])
    if len(lengths) == 0 or lengths.min() == 0:
        raise InputError(f"{int((lengths == 0).sum())} of {len(lengths)} rows hold no scored token.", "Give texts of at least 2 tokens.")
    return np.array([row.mean(dtype=np.float64) for row in logprobs])


def zlib_bytes(texts: Sequence[str]) -> np.ndarray:
    """Length in bytes of each text after zlib, int64 (texts,)."""
    return np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts], dtype=np.int64)


def min_k(values: Sequence[np.ndarray], k: float = 0.2) -> np.ndarray:
    """Mean of the ceil(k T) smallest values of every row; k = 1 is the plain mean.

    Args:
        values: log-probs, or the z of `min_k_plus_plus`.
        k: share of the tokens, in (0, 1].

    Raises:
        InputError: k outside (0, 1], or an empty row.

    Example:
        >>> min_k([np.array([-1.0, -5.0, -2.0])], k=0.5).tolist()
        [-3.5]
    """
    if not 0 < k <= 1:
        raise InputError(f"k is {k}.", "Give a share of the tokens in (0, 1].")
    mean_logprob(values)  # refuses empty rows
    kept = [max(1, int(np.ceil(k * len(row) - 1e-9))) for row in values]  # 0.2 * 35 is 7.000000000000001
    return np.array([np.partition(row, n - 1)[:n].mean(dtype=np.float64) for row, n in zip(values, kept, strict=True)])


def standardised(logprobs: Sequence[np.ndarray], mean: Sequence[np.ndarray], var: Sequence[np.ndarray]) -> list[np.ndarray]:
    """z of every token: its log-prob against what the model's own distribution lets one expect; 0 where that has no spread.

    Example:
        >>> standardised([np.array([-1.0, -2.0])], [np.array([-2.0, -2.0])], [np.array([4.0, 0.0])])[0].tolist()
        [0.5, 0.0]
    """
    return [
        np.divide(lp.astype(np.float64) - mu, np.sqrt(v, dtype=np.float64), out=np.zeros(len(lp)), where=v > 0)
        for lp, mu, v in zip(logprobs, mean, var, strict=True)
    ]


def recall_ratio(conditional: Sequence[np.ndarray], plain: Sequence[np.ndarray]) -> np.ndarray:
    """mean lp(x | non-members) / mean lp(x): a member is hurt more by text that the model has not seen."""
    return np.minimum(mean_logprob(conditional), -_CERTAIN) / np.minimum(mean_logprob(plain), -_CERTAIN)


def dc_pdd(ids: Sequence[np.ndarray], logprobs: Sequence[np.ndarray], log_frequency: np.ndarray, cap: float = 0.01) -> np.ndarray:
    """Divergence of the model's probabilities from the token frequencies of a corpus, first occurrences only.

    Args:
        ids: the scored ids of every row, as many as it has log-probs.
        logprobs: their log-probs.
        log_frequency: log f of every id, (vocabulary,).
        cap: the most that one token may add.
    """
    mean_logprob(logprobs)
    firsts = [np.unique(row, return_index=True)[1] for row in ids]
    return np.array(
        [
            np.minimum(np.exp(lp[first].astype(np.float64)) * -log_frequency[row[first]], cap).mean()
            for row, lp, first in zip(ids, logprobs, firsts, strict=True)
        ]
    )
