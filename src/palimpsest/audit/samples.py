"""Prefix and suffix: the unit of every extraction measurement, and how to draw them.

A `PrefixSuffix` is a passage of the training data cut in two: the prefix is shown to the model, the suffix is what it would
have to write. Contexts of different length are compared on the *same* suffix: only how far left the prompt starts changes.

Four ways to get them: uniformly from the positions of an indexed corpus, from strata of equal duplication (both as in Carlini
et al., ICLR 2023, arXiv 2202.07646), from the beginnings of the documents in their order (Biderman et al., NeurIPS 2023, arXiv
2304.11158), and from the arrays of the training-data extraction benchmark. All are seeded where chance
enters, and no two samples of one draw have the same suffix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

_CHUNK = 8192  # passages that are read and counted at once


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


def corpus_samples(index: CorpusIndex, n: int, prefix_len: int, suffix_len: int, seed: int = 0) -> list[PrefixSuffix]:
    """Draws passages uniformly from all positions of a corpus where one fits inside a document.

    A passage that stands in the corpus k times is k times as likely to be drawn, as a random place of the training data is.

    Args:
        index: the corpus.
        n: how many. At most 8 n + 1000 places are looked at, so a corpus that repeats itself may yield fewer.
        prefix_len, suffix_len: tokens.
        seed: of the draw.

    Returns:
        Samples in random order; meta: "id", "document", "position" (token offset in it), "copies" (occurrences of the whole
        passage) and "suffix_copies".

    Raises:
        InputError: lengths below 1, or no document as long as prefix and suffix together.

    Example:
        >>> corpus_samples(index, n=200, prefix_len=50, suffix_len=50, seed=0)   # doctest: +SKIP
    """
    if n < 1 or prefix_len < 1 or suffix_len < 1:
        raise InputError(f"n {n}, prefix_len {prefix_len} and suffix_len {suffix_len} draw nothing.", "Each must be at least 1.")
    chosen: dict[bytes, tuple[int, int, np.ndarray]] = {}
    for document, offset, ids in _passages(index, prefix_len + suffix_len, 8 * n + 1000, seed):
        if len(chosen) == n:
            break
        chosen.setdefault(ids[prefix_len:].tobytes(), (document, offset, ids))
    whole = index.count_batch([ids for _, _, ids in chosen.values()])
    suffixes = index.count_batch([ids[prefix_len:] for _, _, ids in chosen.values()])
    return [
        PrefixSuffix(ids, prefix_len, suffix_len, _meta(index, document, offset, copies=int(k), suffix_copies=int(m)))
        for (document, offset, ids), k, m in zip(chosen.values(), whole, suffixes, strict=True)
    ]


def stratified_samples(
    index: CorpusIndex, lengths: Sequence[int], per_bucket: int = 1000, seed: int = 0, *, suffix_len: int = 50, candidates: int = 100_000
) -> list[PrefixSuffix]:
    """Draws up to `per_bucket` distinct passages for every length and every level of duplication.

    Level b holds the passages whose whole length occurs c times in the corpus, 2^(b/4) <= c < 2^((b+1)/4). Passages are looked
    for at random places, which finds a passage of c copies c times as easily; when the corpus has at most `candidates` places,
    all of them are looked at and every level is filled as far as it can be.

    Args:
        index: the corpus.
        lengths: lengths of prefix and suffix together, each greater than `suffix_len`.
        per_bucket: the most passages per length and level.
        seed: of the draw.
        suffix_len: tokens.
        candidates: the most places that are looked at, per length.

    Returns:
        Samples ordered by length, then level; meta as for `corpus_samples`, and "length" and "bucket" (b).

    Raises:
        InputError: a length that leaves no prefix, no bucket size, or no document that is long enough.
    """
    if per_bucket < 1 or candidates < 1 or suffix_len < 1 or not lengths or min(lengths) <= suffix_len:
        raise InputError(
            f"Lengths {list(lengths)} with a suffix of {suffix_len}, {per_bucket} a bucket and {candidates} candidates draw nothing.",
            "Every length must exceed the suffix, and the numbers must be at least 1.",
        )
    samples: list[PrefixSuffix] = []
    for length in lengths:
        buckets: dict[int, list[tuple[int, int, int, np.ndarray]]] = {}
        seen: set[bytes] = set()
        passages = _passages(index, length, candidates, seed)
        while chunk := list(islice(passages, _CHUNK)):
            counts = index.count_batch([ids for _, _, ids in chunk])
            for (document, offset, ids), count in zip(chunk, counts.tolist(), strict=True):
                bucket = buckets.setdefault(int(np.floor(4 * np.log2(count))), [])
                suffix = ids[length - suffix_len :].tobytes()
                if len(bucket) < per_bucket and suffix not in seen:
                    seen.add(suffix)
                    bucket.append((document, offset, count, ids))
        for level in sorted(buckets):
            suffixes = index.count_batch([ids[length - suffix_len :] for *_, ids in buckets[level]])
            for (document, offset, count, ids), m in zip(buckets[level], suffixes.tolist(), strict=True):
                meta = _meta(index, document, offset, copies=count, suffix_copies=m, length=length, bucket=level)
                samples.append(PrefixSuffix(ids, length - suffix_len, suffix_len, meta))
    return samples


def head_samples(index: CorpusIndex, prefix_len: int, suffix_len: int, n: int | None = None, seed: int = 0) -> list[PrefixSuffix]:
    """The beginning of every document, or of `n` of them: with one document a training sequence, what a forecast is made about.

    A document that is too short is left out, never padded; of documents whose suffixes are equal the first is kept.

    Args:
        index: the corpus, its documents in the order of training.
        prefix_len, suffix_len: tokens.
        n: how many; None: all.
        seed: of the draw.

    Returns:
        Samples in the order of the documents; meta: "id", "document", "position" (0), "index" (the document's number), "copies",
        and "read_at" (tokens of the corpus up to the suffix's last: a model that has read as many in this order has read it).

    Raises:
        InputError: lengths or n below 1, or no document that is long enough.
    """
    if prefix_len < 1 or suffix_len < 1 or (n is not None and n < 1):
        raise InputError(f"n {n}, prefix_len {prefix_len} and suffix_len {suffix_len} draw nothing.", "Each must be at least 1.")
    length = prefix_len + suffix_len
    chosen: dict[bytes, tuple[int, int, np.ndarray]] = {}
    before = longest = 0
    for number in range(index.n_documents):
        ids = index.document_ids(number)
        longest = max(longest, len(ids))
        if len(ids) >= length:
            head = ids[:length].astype(np.int64)
            chosen.setdefault(head[prefix_len:].tobytes(), (number, before + length, head))
        before += len(ids)
    if not chosen:
        raise InputError(f"No document holds {length} tokens; the longest of {index.n_documents} has {longest}.", "Ask for fewer.")
    heads = list(chosen.values())
    if n is not None and n < len(heads):
        heads = [heads[i] for i in np.sort(np.random.default_rng(seed).permutation(len(heads))[:n]).tolist()]
    copies = index.count_batch([ids for _, _, ids in heads])
    return [
        PrefixSuffix(ids, prefix_len, suffix_len, _meta(index, number, 0, copies=int(k), index=number, read_at=read_at))
        for (number, read_at, ids), k in zip(heads, copies, strict=True)
    ]


def benchmark_samples(folder: str | Path, split: str = "val") -> list[PrefixSuffix]:
    """Reads the arrays of the training-data extraction benchmark (google-research/lm-extraction-benchmark).

    The prefix is `<split>_preprefix.npy` (100 tokens, where there is one) followed by `<split>_prefix.npy` (50), the suffix
    `<split>_suffix.npy` (50): ids of the GPT-2 vocabulary. Rows whose suffix was seen before are left out.

    Raises:
        InputError: a missing or unreadable array, or arrays whose rows do not belong together.
    """
    folder = Path(folder)
    parts = {part: folder / f"{split}_{part}.npy" for part in ("preprefix", "prefix", "suffix")}
    arrays: dict[str, np.ndarray] = {}
    for part, path in parts.items():
        if part == "preprefix" and not path.is_file():
            continue
        try:
            arrays[part] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{path} cannot be read: {error}.", f"Give a folder with {split}_prefix.npy and {split}_suffix.npy."
            ) from error
    shapes = {part: array.shape for part, array in arrays.items()}
    whole = all(array.ndim == 2 and np.issubdtype(array.dtype, np.integer) for array in arrays.values())
    if not whole or len({shape[0] for shape in shapes.values()}) != 1 or 0 in next(iter(shapes.values())):
        raise InputError(
            f"The arrays in {folder} have shapes {shapes}.", "Give integer arrays with one row a sample and equally many rows."
        )
    prefix = np.concatenate([array for part, array in arrays.items() if part != "suffix"], axis=1)
    suffix = arrays["suffix"]
    _, first = np.unique(suffix, axis=0, return_index=True)
    return [
        PrefixSuffix(
            np.concatenate([prefix[row], suffix[row]]), prefix.shape[1], suffix.shape[1], {"id": f"{split}:{row}", "row": int(row)}
        )
        for row in np.sort(first)
    ]


def _passages(index: CorpusIndex, length: int, limit: int, seed: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(document, offset, ids) of at most `limit` different places in random order, uniform over the places that fit."""
    lengths = np.fromiter((len(index.document_ids(i)) for i in range(index.n_documents)), dtype=np.int64, count=index.n_documents)
    ends = np.cumsum(np.maximum(lengths - length + 1, 0))
    total = int(ends[-1]) if len(ends) else 0
    if total == 0:
        longest = int(lengths.max(initial=0))
        raise InputError(
            f"No document holds {length} tokens; the longest of {index.n_documents} has {longest}.", "Ask for shorter prefixes or suffixes."
        )
    places = np.random.default_rng(seed).choice(total, size=min(limit, total), replace=False)
    documents = np.searchsorted(ends, places, side="right")
    offsets = places - np.concatenate([[0], ends[:-1]])[documents]
    for begin in range(0, len(places), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        rows = np.empty((len(places[part]), length), dtype=np.int64)
        for document in np.unique(documents[part]).tolist():  # a document is read once a chunk, however many places it has
            members = np.flatnonzero(documents[part] == document)
            rows[members] = np.lib.stride_tricks.sliding_window_view(index.document_ids(document), length)[offsets[part][members]]
        yield from zip(documents[part].tolist(), offsets[part].tolist(), rows, strict=True)


def _meta(corpus: CorpusIndex, document: int, offset: int, **more: int) -> dict[str, Any]:
    name = str(corpus.document(document)[0])
    return {"id": f"{name}:{offset}", "document": name, "position": offset, **more}
