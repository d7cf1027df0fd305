"""The errors that a user of Palimpsest meets.

Every one of them derives from `PalimpsestError`, says which value was wrong, what was expected, and what to do about it.
The command line prints the message without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PalimpsestError(Exception):
    """Base of all errors that the library raises on purpose.

    Args:
        problem: what is wrong, naming the value and what was expected.
        remedy: what the reader can do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip() if remedy else problem)


class InputError(PalimpsestError, ValueError):
    """A value of the wrong shape, type or range."""


class SymbolTypeError(PalimpsestError, TypeError):
    """A sequence holds something that cannot be a symbol."""


class SplitImpossible(InputError):
    """Examples cannot be split as asked for without sharing a key between parts.

    Args:
        problem, remedy: as of every error.
        keys: the keys that join the most examples of the largest group, the most common first.
    """

    def __init__(self, problem: str, remedy: str = "", keys: Sequence[Any] = ()) -> None:
        self.keys = list(keys)
        super().__init__(problem, remedy)


class CapabilityError(PalimpsestError):
    """A door to a model was asked for something that it cannot give (weights, log-probs, text)."""


class ContextOverflowError(InputError):
    """A sequence is longer than the model's context."""


class NonFiniteError(PalimpsestError):
    """A model returned NaN or infinite logits."""


class ModelNotFoundError(PalimpsestError, FileNotFoundError):
    """A model name that is neither known, nor a folder, nor reachable."""


class EndpointError(PalimpsestError, ConnectionError):
    """An endpoint is down, refuses, or answers what the protocol does not allow."""


class QueueFullError(PalimpsestError):
    """As many requests wait at a server as may wait."""


class EngineStoppedError(PalimpsestError):
    """A server that is shutting down, or that never began, was given a request."""


class CorpusError(PalimpsestError, ValueError):
    """A corpus that cannot be read: empty, undecodable, truncated."""


class IndexCorruptError(PalimpsestError):
    """An index whose files do not match its manifest."""


class IndexVersionError(PalimpsestError):
    """An index written in another format version."""


class TokenizerMismatchError(InputError):
    """Two things that must share a tokenizer do not."""


class LeakError(InputError):
    """What is to be answered stands where it must not: in later documents, in the snapshot, in the training data."""


class SettingViolation(InputError):
    """A run broke the rules of its setting: evidence where there may be none, or a snapshot that changed."""


class NotComparable(InputError):
    """Two evaluation cards of different data, budgets, decoding or settings."""


class StorageError(PalimpsestError, OSError):
    """No space, no permission, or a path that is not what it should be."""


class MissingDependencyError(PalimpsestError, ImportError):
    """An optional package is not installed."""


class ClusterError(PalimpsestError, RuntimeError):
    """A Ray cluster that cannot be reached, or that lost a piece of work for good."""


class IllegalTransition(PalimpsestError):
    """A governed item was asked to go from one state to another that does not follow it."""


class LedgerBrokenError(PalimpsestError):
    """A log whose chain of hashes is broken.

    Args:
        problem, remedy: as of every error.
        seq: the first entry that is not what was written.
    """

    def __init__(self, problem: str, remedy: str = "", seq: int = 0) -> None:
        self.seq = seq
        super().__init__(problem, remedy)


class EditFailedError(PalimpsestError):
    """An edit was made, did not have its effect, and was taken back."""


class WeightsMissingError(PalimpsestError):
    """A version whose weights are gone or damaged was asked for."""


class UnsupportedModelError(CapabilityError):
    """A model whose attention or cache a context method cannot be put into."""


class AlreadyAttachedError(PalimpsestError, RuntimeError):
    """A context method was put on a model that has one."""


class CannotRollbackError(PalimpsestError, RuntimeError):
    """Tokens were to be taken back from a cache that has since given up others, or counted what they attended to."""
