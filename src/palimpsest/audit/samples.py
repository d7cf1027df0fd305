"""Prefix and suffix: the unit of every extraction measurement.

A `PrefixSuffix` is a passage of the training data cut in two: the prefix is shown to the model, the suffix is what it would
have to write. Contexts of different length are compared on the *same* suffix: only how far left the prompt starts changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palimpsest.errors import InputError


@dataclass(frozen=True)
class PrefixSuffix:
    """One passage.

    Attributes:
        ids: token ids of prefix and suffix, int64 (prefix_len + suffix_len,).
        prefix_len: tokens shown, at least 1.
        suffix_len: tokens to be written, at least 1.
        meta: what is known of the passage: "id", "copies" (how often it stands in the training data), "domain",
            "document", "position", …

    Raises:
        InputError: lengths that do not fit `ids`, or ids that are not integers.
    """

    ids: np.ndarray
    prefix_len: int
    suffix_len: int
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"ids have shape {ids.shape} and type {ids.dtype}.", "Give one row of integers.")
        if self.prefix_len < 1 or self.suffix_len < 1 or self.prefix_len + self.suffix_len != len(ids):
            raise InputError(
                f"prefix_len {self.prefix_len} + suffix_len {self.suffix_len} does not cut {len(ids)} ids in two.",
                "Both must be at least 1 and add up to the number of ids.",
            )
        object.__setattr__(self, "ids", ids.astype(np.int64, copy=False))

    @property
    def prefix(self) -> np.ndarray:
        """The tokens that are shown."""
        return self.ids[: self.prefix_len]

    @property
    def suffix(self) -> np.ndarray:
        """The tokens that the model would have to write."""
        return self.ids[self.prefix_len :]

    def with_context(self, context: int) -> PrefixSuffix:
        """The same suffix with only the last `context` tokens of the prefix.

        Raises:
            InputError: the prefix is shorter than `context`.
        """
        if not 1 <= context <= self.prefix_len:
            raise InputError(f"A context of {context} tokens was asked of a prefix of {self.prefix_len}.", "Ask for at most the prefix.")
        return PrefixSuffix(self.ids[self.prefix_len - context :], context, self.suffix_len, self.meta)


def require_samples(samples: Sequence[PrefixSuffix]) -> Sequence[PrefixSuffix]:
    """Returns `samples`, or raises `InputError` when there are none or one is not a `PrefixSuffix`."""
    if len(samples) == 0:
        raise InputError("There are no samples to measure.", "Draw at least one: see palimpsest.audit.samples.")
    for position, sample in enumerate(samples):
        if not isinstance(sample, PrefixSuffix):
            raise InputError(f"Sample {position} is a {type(sample).__name__}, not a PrefixSuffix.", "Build it with PrefixSuffix(ids, …).")
    return samples
