"""`CorpusIndex`: every passage of a corpus, found in microseconds.

A suffix array over token ids in the tradition of infini-gram (Liu, Min, Zettlemoyer, Choi & Hajishirzi, *Infini-gram: Scaling
Unbounded n-gram Language Models to a Trillion Tokens*, COLM 2024, arXiv 2401.17377), with a table of first tokens, comparisons that
skip what both ends share, batches in parallel, and an index folder that knows when it is damaged. The files are mapped, not read:
an open index takes the memory of the pages that are touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from palimpsest.cluster import require_engine
from palimpsest.corpus import manifest as layout
from palimpsest.corpus import shard_answers
from palimpsest.corpus.build import build_index
from palimpsest.corpus.changes import append_documents, compact_index, delete_documents
from palimpsest.corpus.cluster_shards import ClusterShards
from palimpsest.corpus.documents import Docs
from palimpsest.corpus.duplicates import Duplicates, repeated_passages
from palimpsest.corpus.infgram import NextTokenQueries
from palimpsest.corpus.infini_layout import export_folder
from palimpsest.corpus.near import NearMatches, near_matches
from palimpsest.corpus.near_duplicates import NearDuplicates, near_duplicate_documents
from palimpsest.corpus.near_rows import near_positions
from palimpsest.corpus.occurrences import Positions, SaRange, hits, locate
from palimpsest.corpus.search import ANYWHERE
from palimpsest.corpus.shard import Hit, Shards, open_shards
from palimpsest.corpus.staging import Progress
from palimpsest.corpus.tokens import DTYPES, as_contexts, as_query, integers, require_ids, separator
from palimpsest.corpus.trace import Span, covered, trace_spans
from palimpsest.corpus.workspace import is_being_exchanged
from palimpsest.errors import IndexCorruptError, InputError, PalimpsestError, StorageError
from palimpsest.tokenizer import Tokenizer

_ATTEMPTS, _PAUSE = 200, 0.01  # to open an index while it changes; seconds between them
_MISSED = 5  # times that a file may be missing although the index looks unchanged


class CorpusIndex(NextTokenQueries):
    """A corpus that can be asked where, how often and in which company any sequence of tokens stands in it.

    Build it with `CorpusIndex.build`, open it with `CorpusIndex.open`. Queries are sequences of token ids (list or integer array).
    No match crosses from one document into the next.

    Attributes:
        path: the index folder.
        manifest: what `manifest.json` says.
        n_tokens: tokens in all documents, separators not counted.
        n_documents: documents, empty ones counted.
        fingerprint: SHA-256 (hex) of the tokens, the borders of the documents and the tokenizer; the same for any number of shards.
        tokenizer_fingerprint: which tokenizer made the ids, or None.

    Example:
        >>> import pathlib, tempfile
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "index"
        >>> index = CorpusIndex.build([[1, 2, 3, 1, 2], [2, 3, 4]], None, target)
        >>> index.count([1, 2]), index.count([2, 3]), index.count([2, 2])
        (2, 2, 0)
        >>> index.next_tokens([2, 3])
        (array([1, 4]), array([1, 1]))
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], mode: Literal["mmap", "ram"], shards: Shards | ClusterShards | None = None
    ) -> None:
        dtype = DTYPES[manifest["token_dtype"]]
        self.path = path.absolute()
        self.manifest = manifest
        self.n_tokens: int = manifest["n_tokens"]
        self.n_documents: int = manifest["n_documents"]
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer_fingerprint: str | None = manifest["tokenizer"]["fingerprint"] if manifest["tokenizer"] else None
        self._mode = mode
        self._separator = separator(dtype)
        self._shards = open_shards(path, manifest["shards"], dtype, mode) if shards is None else shards
        self._first_document = np.cumsum([0] + [card["documents"] for card in manifest["shards"]])[:-1]

    @classmethod
    def build(
        cls,
        docs: Docs,
        tokenizer: Tokenizer | None,
        out: str | os.PathLike[str],
        *,
        token_dtype: str = "auto",
        shards: int = 1,
        builder: str = "auto",
        memory: int | str | None = None,
        progress: Progress | None = None,
        resume: bool = True,
        engine: str = "local",
    ) -> CorpusIndex:
        """Builds the index of a corpus and opens it.

        The work is done in `<out>.partial`; a build that was interrupted continues there when it is called again with the same
        corpus, and gives the same bytes. When `out` is already the index of this corpus, it is only opened; an index of another
        corpus is replaced once the new one is whole; anything else at `out` is never touched.

        Args:
            docs: a path (see `read_documents`), or an iterable of `Document`, text, or rows of token ids.
            tokenizer: turns text into ids and is kept in the index; None when all documents are ids.
            out: the index folder.
            token_dtype: "u8", "u16", "u32", or "auto" for the narrowest that holds the ids and a separator.
            shards: number of parts of nearly equal length; each is sorted on its own.
            builder: "two-stage", "divsufsort" or "sais" (see `suffix_array`), "external" (in blocks, see `external`), or "auto": in
                memory if that fits `memory`, else external. The files are the same.
            memory: what the build may add to the resident memory of this process: bytes, or a text like "2GB"; None for half of what
                is free. A text that is given as one string has to fit beside it (see `docs/corpus-index.md`).
            progress: called as `progress(stage, done, total)` with "documents" (total None), "sort" (shards), and, for a
                shard s in blocks, "sort shard s, block".
            resume: False discards what an interrupted build left and builds again what is already there.
            engine: "local", or "ray" to tokenize text and sort shards as tasks of a Ray cluster whose machines all see `out`; the
                bytes are the same. Each task has a shard in memory, and asks Ray for it; `memory` is then for this process alone.

        Raises:
            CorpusError: no documents, no tokens, or documents that cannot be read.
            InputError: ids outside the type, text without a tokenizer, more shards than documents, or too little memory.
            StorageError: no space, no permission, or `out` is something else than an index.
            MissingDependencyError, ClusterError: engine "ray" without ray, without a cluster, or with one that lost work for good.
        """
        out = Path(out)
        build_index(
            docs,
            tokenizer,
            out,
            token_dtype=token_dtype,
            shards=shards,
            builder=builder,
            memory=memory,
            progress=progress or _quiet,
            resume=resume,
            engine=engine,
        )
        return cls.open(out)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: Literal["mmap", "ram"] = "mmap",
        verify: bool | Literal["auto"] = "auto",
        *,
        engine: str = "local",
        actors: int | None = None,
    ) -> CorpusIndex:
        """Opens an index.

        It may be opened while another process changes it: what is opened is the index before or after that change.

        Args:
            path: the index folder.
            mode: "mmap" maps the files; "ram" reads them whole.
            verify: "auto" hashes the files unless they were found whole before and have not been touched since, True hashes them
                in any case, False checks only the manifest and the sizes (always checked).
            engine: "local", or "ray" to open the shards in actors of a Ray cluster whose machines all see `path` (see
                `ClusterShards`). All queries then answer as they do locally, except `near`; what goes over all tokens or changes the
                index (duplicates, export, delete, append, compact) is for the local engine.
            actors: of engine "ray": so many groups of shards; by default one for every core of the cluster.

        Raises:
            CorpusError: there is no index.
            IndexVersionError: it was written in another format version.
            IndexCorruptError: a file is missing or damaged.
            MissingDependencyError, ClusterError: engine "ray" without ray or without a cluster.
        """
        require_engine(engine)
        if mode not in ("mmap", "ram"):
            raise InputError(f"The mode {mode!r} is unknown.", "Choose mmap or ram.")
        path = Path(path)
        missed = 0
        for attempt in range(_ATTEMPTS):
            before = layout.folder_state(path)
            try:
                manifest = layout.read_manifest(path)
                if verify is True:
                    layout.verify_files(path, manifest)
                elif verify == "auto":
                    layout.verify_if_changed(path, manifest)
                shards = ClusterShards(path, manifest, mode, actors, verify=verify is not False) if engine == "ray" else None
                index = cls(path, manifest, mode, shards)
            except (PalimpsestError, OSError, ValueError) as error:
                lost = isinstance(error, FileNotFoundError)
                missed += lost
                exchanged = before is None and is_being_exchanged(path)
                settled = layout.folder_state(path) == before and not exchanged and (not lost or missed > _MISSED)
                if attempt == _ATTEMPTS - 1 or settled:
                    if isinstance(error, FileNotFoundError):
                        raise IndexCorruptError(
                            f"The file {error.filename} of the index is missing.", "Fetch the index again or build it again."
                        ) from error
                    raise
                time.sleep(_PAUSE)
                continue
            if layout.folder_state(path) == before:  # otherwise its files may be of two indexes
                return index
        raise StorageError(f"The index {path} is being changed all the time.", "Open it again when the changes have come to an end.")

    def export_infini_gram(self, out: str | os.PathLike[str]) -> None:
        """Writes the corpus as a folder that the package infini-gram opens; `InfiniGramFolder` reads such folders.

        Raises:
            StorageError: `out` is there already, or cannot be written.
        """
        export_folder(self._here("export"), DTYPES[self.manifest["token_dtype"]], Path(out))

    def verify(self) -> None:
        """Hashes all files again; raises `IndexCorruptError` naming the one that is damaged."""
        layout.verify_files(self.path, layout.read_manifest(self.path))

    def delete(self, documents: Sequence[int | str]) -> CorpusIndex:
        """The index without some documents, given by number or name, on the disk as well; see `changes.delete_documents`.

        The answers, the numbers of the documents and the fingerprint are then those of an index built without them. This object, and
        any other that was opened before, goes on with the documents.

        Example:
            >>> import pathlib, tempfile
            >>> index = CorpusIndex.build([[1, 2], [1, 2, 3], [2, 2]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> left = index.delete([0])
            >>> index.count([1, 2]), left.count([1, 2]), left.n_documents, left.documents([2, 2])[0].index
            (2, 1, 2, 1)
        """
        delete_documents(self, self._here("delete"), documents)
        return type(self).open(self.path, self._mode)

    def append(self, docs: Docs, *, memory: int | str | None = None, progress: Progress | None = None) -> CorpusIndex:
        """The index with more documents after its own, in a new shard, on the disk as well; see `changes.append_documents`.

        `memory` and `progress` are those of `build`.

        Example:
            >>> import pathlib, tempfile
            >>> index = CorpusIndex.build([[1, 2]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> index.append([[2, 1, 2]]).count([1, 2])
            2
        """
        self._here("append")
        append_documents(self, docs, memory, progress or _quiet)
        return type(self).open(self.path, self._mode)

    def compact(
        self, out: str | os.PathLike[str], *, shards: int = 1, memory: int | str | None = None, progress: Progress | None = None
    ) -> CorpusIndex:
        """The same index built anew at `out`, which may be its own folder: without what deleted documents left, in `shards` parts.

        `memory` and `progress` are those of `build`.
        """
        compact_index(self, self._here("compact"), Path(out), shards, memory, progress or _quiet)
        return type(self).open(out, self._mode)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that made the ids, or None."""
        card = self.manifest["tokenizer"]
        if card is None:
            return None
        special = {key: card[key] for key in ("bos_id", "eos_id", "pad_id", "adds_bos")}
        return Tokenizer.from_file(self.path / "tokenizer.json", **special)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the same files, or asks the same actors; nothing is copied.
        return CorpusIndex, (self.path, self.manifest, self._mode, None if isinstance(self._shards, Shards) else self._shards)

    def __repr__(self) -> str:
        return f"CorpusIndex({str(self.path)!r}, n_tokens={self.n_tokens:,}, n_documents={self.n_documents:,}, shards={len(self._shards)})"

    def count(self, ids: Sequence[int] | np.ndarray) -> int:
        """How often `ids` (m >= 1) occurs.

        Raises:
            InputError: no ids, or one that no document can contain (negative, or the separator and above).
        """
        return sum(hi - lo for lo, hi in self._find(as_query(ids)))

    def count_batch(self, queries: Sequence[Sequence[int] | np.ndarray] | np.ndarray) -> np.ndarray:
        """How often each query occurs, in parallel.

        Args:
            queries: rows of ids, each with at least one; an integer array (queries, m) is the fastest form.

        Returns:
            int64 (queries,).
        """
        if isinstance(queries, np.ndarray) and queries.ndim == 2:
            flat = np.ascontiguousarray(integers(queries).reshape(-1), np.int64)
            offsets = np.arange(queries.shape[0] + 1, dtype=np.int64) * queries.shape[1]
        else:
            rows = [as_query(query) for query in queries]
            offsets = np.zeros(len(rows) + 1, np.int64)
            np.cumsum([row.size for row in rows], out=offsets[1:])
            flat = np.concatenate(rows) if rows else np.empty(0, np.int64)
        if offsets.size == 1:
            return np.empty(0, np.int64)
        if flat.size == 0:
            raise InputError("A query has no ids.", "Give at least one.")
        require_ids(flat, self._separator)
        # Queries that begin alike search the same stretch of the suffix array: one after the other, they find it in the cache.
        second = np.minimum(offsets[:-1] + 1, flat.size - 1)
        order = np.argsort(flat[offsets[:-1]] << 32 | flat[second])
        return self._shards.merged(np.add, shard_answers.counts, flat, offsets, order)

    def find(self, ids: Sequence[int] | np.ndarray) -> list[SaRange]:
        """The occurrences of `ids` (m >= 1) as ranges of the suffix arrays, one for every shard, empty ones included."""
        return [SaRange(number, lo, hi) for number, (lo, hi) in enumerate(self._find(as_query(ids)))]

    def locate(
        self, ids_or_ranges: Sequence[int] | np.ndarray | list[SaRange], limit: int | None = None, seed: int | None = 0
    ) -> Positions:
        """Where a passage stands.

        Args:
            ids_or_ranges: token ids, or what `find` returned.
            limit: at most so many positions: beyond it, a uniform sample without replacement.
            seed: of that sample.

        Returns:
            `Positions`, ascending.
        """
        given = list(ids_or_ranges)
        ranges = given if given and isinstance(given[0], SaRange) else self.find(ids_or_ranges)  # type: ignore[arg-type]
        return locate(self._shards, ranges, limit, seed)

    def documents(self, ids: Sequence[int] | np.ndarray, limit: int = 10, context: int = 50) -> list[Hit]:
        """Documents in which `ids` occurs: one hit for each, its first, in the order of the corpus.

        Args:
            ids: token ids (m >= 1).
            limit: at most so many documents.
            context: tokens to give before and after, as far as the document goes.
        """
        query = as_query(ids)
        return hits(self._shards, self.find(query), query, limit, context)

    def document_ids(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The token ids int64 of document `index`, or those from `start` to `stop` of them."""
        number, local = self._locate_document(index)
        return self._shards.at(number, shard_answers.document_ids, local, start, stop)

    def document(self, index: int) -> tuple[str, dict[str, Any]]:
        """Name and metadata of document `index`."""
        number, local = self._locate_document(index)
        return self._shards.at(number, shard_answers.document, local)

    def longest_match(self, ids: Sequence[int] | np.ndarray, start: int = 0) -> tuple[int, list[SaRange]]:
        """The longest passage of the corpus that `ids` has from `start` on.

        Returns:
            its length (0 when the first token never occurs) and where it stands, as `find` says.
        """
        query = as_query(ids)
        if not 0 <= start < query.size:
            raise InputError(f"The start {start} lies outside {query.size} ids.", "Give a position within them.")
        require_ids(query, self._separator)
        length = max(self._shards.each(shard_answers.longest_match, query, start))
        empty = [SaRange(number, 0, 0) for number in range(len(self._shards))]
        return length, self.find(query[start : start + length]) if length else empty

    def matching_statistics(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """For every position of `ids` the length of the longest passage of the corpus that starts there.

        Returns:
            int32 (T,); entry i + 1 is at least entry i less 1.
        """
        query = as_query(ids)
        require_ids(query, self._separator)
        return self._shards.merged(np.maximum, shard_answers.matches, query, ANYWHERE)

    def trace(
        self,
        ids: Sequence[int] | np.ndarray,
        min_len: int = 8,
        max_docs: int = 5,
        max_spans: int | None = None,
        *,
        context: int = 50,
        borders: np.ndarray | None = None,
    ) -> list[Span]:
        """The passages of `ids` that stand in the corpus, and where; see `trace.trace_spans`.

        `trace.rank_documents` ranks their documents; `traced_text.trace_text` does all of it for a text.
        """
        return trace_spans(self, self._shards, as_query(ids), min_len, max_docs, max_spans, context, borders)

    def near(
        self, ids: Sequence[int] | np.ndarray, max_edits: int, *, limit: int = 10, context: int = 50, max_seeds: int = 1_000_000
    ) -> NearMatches:
        """The passages of the corpus that at most `max_edits` token edits turn into `ids`; see `near.near_matches`.

        Example:
            >>> import pathlib, tempfile
            >>> index = CorpusIndex.build([[7, 1, 2, 3, 4, 7], [1, 2, 4]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> [(match.distance, match.hit.index, match.hit.match.tolist()) for match in index.near([1, 2, 3, 4], 1).matches]
            [(0, 0, [1, 2, 3, 4]), (1, 1, [1, 2, 4])]
        """
        return near_matches(self, self._here("near"), self._separator, as_query(ids), max_edits, limit, context, max_seeds)

    def next_tokens_near(self, contexts: np.ndarray, max_edits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which tokens follow the passages that at most `max_edits` token edits turn into each of many contexts.

        A token that stands at position e of a document follows such a passage when some window that ends right before e is within
        `max_edits` edits of the context. With 0 edits these are the tokens of `next_tokens_batch`, with their counts. No occurrence is
        left out.

        Args:
            contexts: int (rows, m), m > max_edits. An id that no document can contain is like no token of the corpus.
            max_edits: at least 0.

        Returns:
            offsets int64 (rows + 1,), ids int64 and counts int64: ids[offsets[i] : offsets[i + 1]] follow contexts[i], ascending, each
            at so many places.

        Raises:
            InputError: contexts of another shape, or of `max_edits` tokens or fewer, which every passage is near to.

        Example:
            >>> import pathlib, tempfile
            >>> index = CorpusIndex.build([[1, 2, 3, 4, 7], [1, 2, 4, 8]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> index.next_tokens_near(np.array([[1, 2, 9, 4]]), 1)[1]
            array([7, 8])
        """
        rows, _, following = near_positions(self._here("next_tokens_near"), self._separator, as_contexts(contexts), max_edits)
        owners, ids = rows[following >= 0], following[following >= 0]
        keys, counts = np.unique(owners << 32 | ids, return_counts=True)
        return np.searchsorted(keys, np.arange(len(contexts) + 1) << 32), keys & 0xFFFFFFFF, counts

    def nearest_distance(self, queries: np.ndarray, max_edits: int) -> np.ndarray:
        """How many token edits turn the nearest passage of the corpus into each of many queries.

        Args:
            queries: int (rows, m), m > max_edits. An id that no document can contain is like no token of the corpus.
            max_edits: at least 0.

        Returns:
            int64 (rows,); `max_edits` + 1 stands for every greater distance.

        Raises:
            InputError: queries of another shape, or of `max_edits` tokens or fewer, which every passage is near to.

        Example:
            >>> import pathlib, tempfile
            >>> index = CorpusIndex.build([[1, 2, 3, 4, 5]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> index.nearest_distance(np.array([[1, 2, 3], [1, 3, 4], [5, 4, 3]]), 1)
            array([0, 1, 2])
        """
        rows, distances, _ = near_positions(self._here("nearest_distance"), self._separator, as_contexts(queries), max_edits)
        least = np.full(len(queries), max_edits + 1)
        np.minimum.at(least, rows, distances)
        return least

    def coverage(self, ids: Sequence[int] | np.ndarray, n: int) -> float:
        """The share of the tokens of `ids` that lie inside some n-gram of the corpus."""
        query = as_query(ids)
        if n < 1:
            raise InputError(f"There are no {n}-grams.", "Give n of at least 1.")
        return float(covered(self.matching_statistics(query), n).mean())

    def duplicates(self, min_len: int = 50) -> Duplicates:
        """The passages of at least `min_len` tokens that repeat an earlier one, as token ranges to drop; see `duplicates`.

        Example:
            >>> import pathlib, tempfile
            >>> docs = [[1, 2, 3, 4, 9], [7, 1, 2, 3, 4], [2, 3]]
            >>> index = CorpusIndex.build(docs, None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> found = index.duplicates(min_len=3)
            >>> found.ranges.tolist(), found.dropped
            ([[1, 1, 5]], 4)
        """
        return repeated_passages(self._here("duplicates"), self._separator, min_len, self.n_tokens)

    def near_duplicates(self, threshold: float = 0.8, *, shingle: int = 5, permutations: int = 128, seed: int = 0) -> NearDuplicates:
        """The documents whose sets of 5-grams have at least this Jaccard similarity, in clusters; see `near_duplicates`.

        Example:
            >>> import pathlib, tempfile
            >>> text = list(range(40))
            >>> docs = [text, [7, 7, 7, 7, 7, 7], [*text, 99]]
            >>> index = CorpusIndex.build(docs, None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> found = index.near_duplicates()
            >>> found.clusters, found.similarity.round(3).tolist()
            ([array([0, 2])], [0.973])
        """
        return near_duplicate_documents(self._here("near_duplicates"), threshold, shingle, permutations, seed)

    @cached_property
    def longest_document(self) -> int:
        """Tokens of the longest document."""
        return max(self._shards.each(shard_answers.longest_document))

    def _here(self, what: str) -> Shards:
        """The shards of an index that is open in this process, which `what` needs."""
        if not isinstance(self._shards, Shards):
            raise InputError(
                f"{what} is not for an index that is open on a cluster.", f"Open it here: CorpusIndex.open({str(self.path)!r})."
            )
        return self._shards

    def _locate_document(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.n_documents:
            raise InputError(f"There is no document {index}.", f"The index has the documents 0 to {self.n_documents - 1}.")
        number = int(np.searchsorted(self._first_document, index, side="right")) - 1
        return number, index - int(self._first_document[number])


def _quiet(stage: str, done: int, total: int | None) -> None:
    """The progress of a build that nobody watches."""
