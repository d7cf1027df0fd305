"""Near-duplicate documents: MinHash candidates, verified, joined into clusters.

Broder, *On the resemblance and containment of documents*, SEQUENCES 1997; Indyk & Motwani, *Approximate nearest neighbors*, STOC 1998,
for the banding. NearDup of Lee et al., *Deduplicating Training Data Makes Language Models Better*, ACL 2022, arXiv 2107.06499, is this
with 5-grams and 0.8.

1. Every document becomes the set of its n-token shingles, the set a signature of k minima (see `minhash`).
2. The signature is cut into b bands of r entries. Two documents that agree in all of a band are a candidate: with probability
   1 - (1 - J^r)^b at similarity J. r is the greatest whose b = ⌊k / r⌋ bands find a pair *at the threshold* with probability 0.99.
3. A candidate counts when the true Jaccard similarity of the two sets, counted over tokens, not hashes, reaches the threshold.
4. Union-find joins what counts. A candidate within one cluster would change nothing, and is not verified.

So no cluster holds a link below the threshold; a pair above it is missed with the probability that `recall` leaves. Similarity is not
transitive: two members of a cluster may be less alike than the threshold, but a chain of links leads from one to the other.

A document of fewer than n tokens is one shingle, itself: it is a duplicate only of its equals. Empty documents have no shingle; their
similarity is not defined, and they are in no cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from palimpsest.corpus.minhash import band_keys, jaccard, sign_rows
from palimpsest.corpus.search import in_threads
from palimpsest.corpus.shard import Shard
from palimpsest.errors import InputError

_FOUND = 0.99  # probability with which a pair at the threshold is to become a candidate


@dataclass(frozen=True)
class NearDuplicates:
    """The clusters of documents that are nearly the same.

    Attributes:
        clusters: int64 arrays of two and more documents, each ascending; in the order of their first documents.
        links: int64 (l, 2): the pairs of documents that hold the clusters together, one fewer than a cluster has members.
        similarity: float64 (l,): their Jaccard similarities, all at least `threshold`.
        threshold: the least similarity that counts.
        bands, rows: how the signatures were cut.
        candidates: pairs that were verified, more than `links` by those that failed.
        n_documents: documents of the corpus.
    """

    clusters: list[np.ndarray]
    links: np.ndarray
    similarity: np.ndarray
    threshold: float
    bands: int
    rows: int
    candidates: int
    n_documents: int

    @property
    def recall(self) -> float:
        """The probability that a pair of just the threshold's similarity was looked at; more similar pairs have a greater one."""
        return found_with(self.threshold, self.bands, self.rows)

    @cached_property
    def drop(self) -> np.ndarray:
        """The documents int64, ascending, to drop so that every cluster keeps its first."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(cluster[1:] for cluster in self.clusters)]))

    @property
    def share(self) -> float:
        """The share of the documents that is to be dropped."""
        return self.drop.size / self.n_documents


def found_with(similarity: float, bands: int, rows: int) -> float:
    """The probability 1 - (1 - J^rows)^bands that a pair of similarity J agrees in all rows of some band."""
    return 1.0 - (1.0 - similarity**rows) ** bands


def banding(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands and rows for a threshold: as many rows as a pair at the threshold bears, one where none bear it.

    Example:
        >>> banding(0.8, 128)
        (21, 6)
    """
    fit = [r for r in range(1, permutations + 1) if found_with(threshold, permutations // r, r) >= _FOUND]
    rows = max(fit, default=1)
    return permutations // rows, rows


def near_duplicate_documents(shards: list[Shard], threshold: float, shingle: int, permutations: int, seed: int) -> NearDuplicates:
    """The near-duplicate documents of a corpus; called as `CorpusIndex.near_duplicates`.

    Args:
        shards: the parts of the corpus.
        threshold: least Jaccard similarity, 0 < threshold <= 1.
        shingle: n >= 1.
        permutations: entries of a signature, at least 1.
        seed: of the permutations, >= 0.

    Returns:
        `NearDuplicates`; the same for any number of shards and threads.

    Raises:
        InputError: a value out of range.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"A Jaccard similarity of {threshold} is no threshold.", "Give more than 0 and at most 1; 0.8 is usual.")
    if min(shingle, permutations) < 1 or seed < 0:
        raise InputError(
            f"shingle is {shingle}, permutations {permutations}, seed {seed}.", "Give a seed of at least 0, the others of at least 1."
        )
    signatures, filled = _signatures(shards, shingle, permutations, seed)
    bands, rows = banding(threshold, permutations)
    search = _Search(shards, signatures, threshold, shingle, rows)
    for band in range(bands):
        search.join(band, filled)
    groups: dict[int, list[int]] = {}
    for document in filled.tolist():
        groups.setdefault(search.root(document), []).append(document)
    clusters = [np.array(members, np.int64) for members in groups.values() if len(members) > 1]
    links = np.array(search.links, np.int64).reshape(-1, 2)
    return NearDuplicates(
        clusters, links, np.array(search.similarity), threshold, bands, rows, search.candidates, n_documents=len(signatures)
    )


def _signatures(shards: list[Shard], shingle: int, permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The signatures u32 (documents, permutations) of all documents, and the documents int64 that are not empty."""
    a, b = np.random.default_rng(seed).integers(0, 1 << 64, (2, permutations), np.uint64)
    lengths = np.concatenate([shard.after - shard.docs - 1 for shard in shards])
    signatures = np.zeros((lengths.size, permutations), np.uint32)
    for shard in shards:
        count = shard.docs.size
        out = signatures[shard.first_document : shard.first_document + count]
        in_threads(sign_rows, (shard.arrays[0], shard.docs, shard.after, shingle, a | np.uint64(1), b, out), count)  # type: ignore[arg-type]
    return signatures, np.flatnonzero(lengths)


class _Search:
    """Candidates, verified and joined: a union-find whose roots are the first documents of the clusters."""

    def __init__(self, shards: list[Shard], signatures: np.ndarray, threshold: float, shingle: int, rows: int) -> None:
        self.signatures, self.threshold, self.shingle, self.rows = signatures, threshold, shingle, rows
        self.links: list[tuple[int, int]] = []
        self.similarity: list[float] = []
        self.candidates = 0
        self._shards = shards
        self._first_document = np.array([shard.first_document for shard in shards])
        self._parent = list(range(len(signatures)))

    def root(self, document: int) -> int:
        """The first document of the cluster of `document`."""
        while self._parent[document] != document:
            self._parent[document] = self._parent[self._parent[document]]
            document = self._parent[document]
        return document

    def join(self, band: int, filled: np.ndarray) -> None:
        """Looks at all documents that agree in a band."""
        keys = band_keys(self.signatures, band * self.rows, (band + 1) * self.rows)[filled]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        borders = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [keys.size]])
        for run in np.flatnonzero(np.diff(borders) > 1).tolist():
            self._join_run(filled[order[borders[run] : borders[run + 1]]].tolist(), band)

    def _join_run(self, documents: list[int], band: int) -> None:
        """Verifies every pair of a run that is not in one cluster already; `seen` holds the run's clusters by their roots."""
        seen: dict[int, list[int]] = {}
        for document in documents:
            mine = self.root(document)
            members = [document]
            for other in list(seen):
                if other == mine or self._any_like(document, seen[other], band):
                    members = seen.pop(other) + members
                    first, last = sorted((self.root(document), other))
                    self._parent[last] = first
            seen[self.root(document)] = members

    def _any_like(self, document: int, others: list[int], band: int) -> bool:
        """Whether `document` is like one of `others`, pairs that an earlier band has shown already left out."""
        for other in others:
            width = band * self.rows
            same = self.signatures[document, :width] == self.signatures[other, :width]
            if same.reshape(band, self.rows).all(axis=1).any():
                continue
            self.candidates += 1
            similarity = jaccard(self._tokens(document), self._tokens(other), self.shingle)
            if similarity >= self.threshold:
                self.links.append((min(document, other), max(document, other)))
                self.similarity.append(similarity)
                return True
        return False

    def _tokens(self, document: int) -> np.ndarray:
        number = int(np.searchsorted(self._first_document, document, side="right")) - 1
        shard = self._shards[number]
        local = document - shard.first_document
        return shard.arrays[0][shard.docs[local] : shard.after[local] - 1]
