"""The prefixes that a server's requests share, each read and stored once, and batches of requests that continue them (system 116).

    prefixes = SharedPrefixCache(model)
    system = prefixes.add(system_ids)
    user = prefixes.add(user_ids, behind=system)
    with prefixes.relay([system, user, user]):            # three requests; or one prefix for a batch of any size
        model.generate(context_ids, …)                    # contexts only: what stands behind the prefix

Zhu, Wang, Zhang, Lau, ACL 2024, arXiv 2402.14808, keep one prompt this way; attention is that of `serving.relay`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from palimpsest.context.attach import attach, unwrap
from palimpsest.errors import InputError
from palimpsest.serving.relay import RelayAttention, RelaySession, SharedPrefix


class SharedPrefixCache:
    """The prefixes of a model, each stored once, and the batches that continue them.

    Args:
        model: a transformers causal language model, or a door with one.

    Raises:
        UnsupportedModelError: a model with windows, ALiBi, or no place to attach to.

    Example:
        >>> prefixes = SharedPrefixCache(model)                               # doctest: +SKIP
        >>> system = prefixes.add(system_ids)                                 # doctest: +SKIP
        >>> with prefixes.relay([system]):                                    # doctest: +SKIP
        ...     model.generate(questions, attention_mask=mask)
    """

    def __init__(self, model: Any) -> None:
        self.model = unwrap(model)
        self._prefixes: dict[tuple[SharedPrefix | None, tuple[int, ...]], SharedPrefix] = {}
        self._session: RelaySession | None = None
        with self.relay([]):  # finds out at once whether the model can be used
            pass

    def __len__(self) -> int:
        return len(self._prefixes)

    def __iter__(self) -> Iterator[SharedPrefix]:
        return iter(self._prefixes.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all prefixes."""
        return sum(prefix.nbytes for prefix in self)

    def add(self, ids: Sequence[int], behind: SharedPrefix | None = None) -> SharedPrefix:
        """Reads a text into a prefix, or gives the one that holds it already. May be called inside of `relay`.

        Args:
            ids: token ids, at least one, with the BOS that the model expects.
            behind: the prefix that the text continues.

        Raises:
            InputError, ContextOverflowError: as `RelaySession.read`, or a prefix that is not (or no longer) of this cache.
        """
        self._require(behind)
        key = (behind, tuple(map(int, ids)))
        if key not in self._prefixes:
            if self._session is not None:
                self._prefixes[key] = self._session.read(key[1], behind)
            else:
                with self.relay([]) as session:
                    self._prefixes[key] = session.read(key[1], behind)
        return self._prefixes[key]

    def longest(self, ids: Sequence[int]) -> SharedPrefix | None:
        """The longest prefix with which `ids` begin and behind which at least one of them is left; feed `ids[prefix.end:]`."""
        found: SharedPrefix | None = None
        for prefix in self:
            whole = [token for part in prefix.chain for token in part.ids]
            if len(whole) < len(ids) and list(ids[: len(whole)]) == whole and (found is None or prefix.end > found.end):
                found = prefix
        return found

    def drop(self, prefix: SharedPrefix) -> None:
        """Forgets a prefix and all that continue it.

        Raises:
            InputError: it is not in this cache.
        """
        self._require(prefix)
        self._prefixes = {key: kept for key, kept in self._prefixes.items() if prefix not in kept.chain}

    @contextmanager
    def relay(self, rows: Sequence[SharedPrefix | None]) -> Iterator[RelaySession]:
        """The model, for a `with` block, reads only contexts, whose rows continue these prefixes; see `RelaySession.rows`.

        Raises:
            AlreadyAttachedError: the model has a context method on it.
        """
        with attach(self.model, RelayAttention()) as session:
            assert isinstance(session, RelaySession)
            session.follow(rows)
            self._session = session
            try:
                yield session
            finally:
                self._session = None

    def _require(self, prefix: SharedPrefix | None) -> None:
        if prefix is not None and prefix not in self._prefixes.values():
            raise InputError("The prefix is not in this cache.", "Add it; it may have been dropped with one that it continued.")
