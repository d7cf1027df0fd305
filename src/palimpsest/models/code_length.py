"""How long a sequence is in somebody's code: the measures by which chunking models and Lempel-Ziv are compared.

A sequence that is parsed into K units, of which unit u occurs c(u) times, costs

    complexity   −Σ_k log2 p(u_k)       with p(u) = c(u) / K, to say which units follow each other
    resolution   −Σ_b log2 p(m_b | v_b)  to say which member each variable stands for; 0 without variables
    storage      −Σ_u log2 p(u)         over the distinct units that occur: what the paper counts for keeping them

Complexity and storage are the paper's (Wu et al., ICLR 2025). They leave out what a reader needs to decode: the resolution of
variables, and the entries themselves. `total` [ours] holds everything: complexity, resolution and the dictionary written out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln


@dataclass(frozen=True)
class CodeLengths:
    """What a sequence costs in one code.

    Attributes:
        symbols: length of the sequence.
        parse_length: units or phrases that it is parsed into.
        entries: entries of the dictionary.
        complexity, resolution, storage: see above, in bits.
        total: a whole, decodable description of the sequence in bits; known to both sides are the alphabet and the length.
    """

    symbols: int
    parse_length: int
    entries: int
    complexity: float
    resolution: float
    storage: float
    total: float

    @property
    def coding_efficiency(self) -> float:
        """Entries a symbol: the paper's measure, lower is better; 0 for the empty sequence."""
        return self.entries / self.symbols if self.symbols else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON types."""
        return {**asdict(self), "coding_efficiency": self.coding_efficiency}


def sequence_complexity(counts: np.ndarray) -> float:
    """−Σ_k log2 p(u_k) in bits, of a parse whose units occur `counts` (units,) times; units that do not occur are left out.

    Example:
        >>> import numpy as np
        >>> sequence_complexity(np.array([2, 2, 0]))
        4.0
    """
    used = counts[counts > 0]
    return float(-(used * np.log2(used / used.sum())).sum()) + 0.0  # no −0.0


def storage_cost(counts: np.ndarray) -> float:
    """−Σ_u log2 p(u) in bits, over the units that occur.

    Example:
        >>> import numpy as np
        >>> storage_cost(np.array([2, 2, 0]))
        2.0
    """
    used = counts[counts > 0]
    return float(-np.log2(used / used.sum()).sum()) + 0.0


def count_table_bits(total: float, kinds: int) -> float:
    """Bits to say how `total` occurrences are shared out among `kinds` units: log2 of the number of ways, C(total + kinds − 1, kinds − 1).

    Example:
        >>> round(count_table_bits(2, 2), 6)  # (2, 0), (1, 1), (0, 2)
        1.584963
    """
    if kinds < 2:
        return 0.0
    return float((gammaln(total + kinds) - gammaln(kinds) - gammaln(total + 1)) / np.log(2))
