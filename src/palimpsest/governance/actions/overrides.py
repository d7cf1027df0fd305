"""Actions that leave the weights alone: rows of the store, and a guard on what may be written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

from palimpsest.errors import EditFailedError, InputError
from palimpsest.governance.actions.base import Action, Cost, Handle
from palimpsest.governance.items import FactChange
from palimpsest.governance.system import System, subject_tokens
from palimpsest.taxonomy import AccessPath, Controllability, Location, Persistence, Quadruple, Revert, WritePath

_CONTROL = Controllability(inspectable=True, deletable=True, versioned=True, attributable=True, scope_limited=True, revert=Revert.EXACT)
_STORE = Quadruple(Location.STORE_TEXT, Persistence.PERMANENT, WritePath.STORE_UPSERT, AccessPath.RETRIEVAL, _CONTROL)


class StoreUpsert(Action):
    """Writes facts into the store, which then answers their cues before the model does.

    Args:
        facts: what to write; one without a target ends what the store says of it.
        source: where it comes from.

    Raises:
        InputError: no facts.

    Example:
        >>> handle = StoreUpsert([change]).apply(system)          # doctest: +SKIP
    """

    name = "store"
    memory: ClassVar[Quadruple] = _STORE

    def __init__(self, facts: Sequence[FactChange], source: str = "") -> None:
        self.facts, self.source = _some(facts), source

    def _apply(self, system: System, handle: Handle) -> None:
        handle.details["rows"] = list(system.store.rows)
        handle.details["report"] = {"transaction": system.store.upsert(self.facts, self.source)}
        for fact in self.facts:
            day = fact.valid_from or (fact.valid_to and fact.valid_to - timedelta(days=1))
            row = system.store.lookup(fact.prompt, day)
            if fact.target is not None and (row is None or row.value != fact.target):
                raise EditFailedError(
                    f"The store answers {fact.prompt!r} with {row and row.value!r}, not with {fact.target!r}.",
                    "Name the subject as a word of its own in the cue, and word the cue as no other relation of this subject is asked.",
                )

    def _revert(self, system: System, handle: Handle) -> None:
        system.store.rows = list(handle.details.get("rows", system.store.rows))


class StoreDelete(Action):
    """Removes facts from the store for good, closed rows included.

    Args:
        facts: with the old values that must go.
    """

    name = "store_delete"
    memory: ClassVar[Quadruple] = _STORE

    def __init__(self, facts: Sequence[FactChange]) -> None:
        self.facts = _some(facts)

    def _apply(self, system: System, handle: Handle) -> None:
        handle.details["rows"] = list(system.store.rows)
        handle.details["report"] = {"rows_removed": len(system.store.purge(self.facts))}

    def _revert(self, system: System, handle: Handle) -> None:
        system.store.rows = list(handle.details.get("rows", system.store.rows))


class GuardRule(Action):
    """Makes it impossible to write the old values of facts after a cue that names the subject (MemFree, 001, on the facts alone).

    What is guarded are the ids of each cue from its subject on, followed by any token with which the value can begin: not only its first
    one, since a blocked " Ro" is otherwise written as " R", "o". The weights still know: this is "suppressed", never "forgotten".

    Args:
        facts: with old values.
    """

    name = "guard"
    memory: ClassVar[Quadruple] = Quadruple(Location.STORE_TEXT, Persistence.PERMANENT, WritePath.EDIT, AccessPath.FORWARD, _CONTROL)

    def __init__(self, facts: Sequence[FactChange]) -> None:
        self.facts = _some(facts)
        if any(fact.old is None for fact in self.facts):
            raise InputError("A guard needs the values that must not be written.", "Give every fact its old value.")

    def _apply(self, system: System, handle: Handle) -> None:
        handle.details["guarded"] = system.guarded
        rows = list(system.guarded)
        pieces = [system.model.tokenizer.decode([token]) for token in range(system.model.tokenizer.vocab_size)]
        for fact in self.facts:
            assert fact.old is not None
            for cue in (fact.prompt, *fact.cues):
                ids, _ = system.pair(cue, fact.old)
                first, _ = subject_tokens(system.model.tokenizer, cue, fact.subject)
                rows += [(*ids[first:], token) for token in beginnings(pieces, fact.old)]
        system.guarded = tuple(dict.fromkeys(rows))
        handle.details["report"] = {"guarded": len(system.guarded) - len(handle.details["guarded"])}

    def _revert(self, system: System, handle: Handle) -> None:
        system.guarded = handle.details.get("guarded", system.guarded)


def beginnings(pieces: Sequence[str], value: str) -> list[int]:
    """Ids of the tokens with which a value, after a space, can begin; `pieces` is the text of every token.

    Example:
        >>> beginnings([" R", "Ro", " Rome,", " Romeo", "o", " ", "x"], "Rome")
        [0, 1, 2, 3, 5]
    """
    return [i for i, piece in enumerate(pieces) if piece and (value.startswith(piece.lstrip()) or piece.lstrip().startswith(value))]


class Joint(Action):
    """Several actions as one: all are applied or none; taken back last to first.

    Args:
        actions: at least one.
    """

    name = "joint"
    memory: ClassVar[Quadruple] = _STORE

    def __init__(self, actions: Sequence[Action]) -> None:
        if not actions:
            raise InputError("A joint action has no parts.", "Give at least one action.")
        self.actions = tuple(actions)

    def _apply(self, system: System, handle: Handle) -> None:
        done: list[tuple[Action, Handle]] = handle.details.setdefault("done", [])
        for action in self.actions:
            done.append((action, action.apply(system)))
        handle.details["report"] = {action.name: part.details.get("report", {}) for action, part in done}

    def estimate_cost(self, system: System) -> Cost:
        """The sum of all parts."""
        costs = [action.estimate_cost(system) for action in self.actions]
        return Cost(sum(c.tokens for c in costs), sum(c.backward for c in costs), max(c.parameters for c in costs))

    def _revert(self, system: System, handle: Handle) -> None:
        for action, part in reversed(handle.details.get("done", [])):
            action.revert(system, part)
        handle.details["done"] = []


def _some(facts: Sequence[FactChange]) -> tuple[FactChange, ...]:
    if not facts:
        raise InputError("The action has no facts.", "Give at least one.")
    return tuple(facts)
