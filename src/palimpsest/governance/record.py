"""Where every governed item is, as the log has it: the states, what may follow what, and the folder that holds the evidence.

An item goes

    PROPOSED → ADMITTED | REJECTED;  ADMITTED → CANARY → … → CANARY → FULL;  CANARY | FULL → ROLLED_BACK;  FULL → SUPERSEDED;
    PROPOSED | ADMITTED | FULL → EXPIRED

and nowhere else; only where its successor is rolled back does a superseded item become FULL again, since it then is in force again. The log
is the only record: states are read back from it, so a killed process loses nothing. Where one step moves two items, one entry has both
moves (`also`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from palimpsest.errors import IllegalTransition, InputError, LedgerBrokenError, ModelNotFoundError
from palimpsest.files import sha256_json, write_text
from palimpsest.governance.items import ChangeRequest, MemoryItem, is_text
from palimpsest.governance.ledger import Ledger
from palimpsest.governance.monitor import Observation
from palimpsest.governance.policy import Policy
from palimpsest.governance.versions import Versions
from palimpsest.measurement import Measurement


class State(StrEnum):
    """Where an item is."""

    PROPOSED = "proposed"
    ADMITTED = "admitted"
    REJECTED = "rejected"
    CANARY = "canary"
    FULL = "full"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"


LEGAL: dict[State | None, tuple[State, ...]] = {
    None: (State.PROPOSED,),
    State.PROPOSED: (State.ADMITTED, State.REJECTED, State.EXPIRED),
    State.ADMITTED: (State.CANARY, State.FULL, State.EXPIRED),
    State.CANARY: (State.CANARY, State.FULL, State.ROLLED_BACK),
    State.FULL: (State.ROLLED_BACK, State.SUPERSEDED, State.EXPIRED),
    State.SUPERSEDED: (State.FULL,),
}


@dataclass(frozen=True)
class Position:
    """Where an item is, as the log has it.

    Attributes:
        state: its state.
        share: of the sessions that see it.
        version, parent: ids of the version with the change and of the one that it was made on; None before admission.
        seq: of the entry that brought it here.
    """

    state: State
    share: float = 0.0
    version: str | None = None
    parent: str | None = None
    seq: int = 0

    def shown_to(self, session: str) -> bool:
        """Whether a session sees the item here."""
        return self.state is State.FULL or (self.state is State.CANARY and session_place(session) < self.share)


class Record:
    """The folder of a governed memory, and what its log says.

    Args:
        folder: made by `Governor.init`.
        actor: who acts; stands in every entry.

    Raises:
        ModelNotFoundError: the folder holds no governed memory.
        LedgerBrokenError: its log is broken, or its policy is not the one that the log names.
    """

    def __init__(self, folder: str | Path, actor: str = "") -> None:
        self.folder, self.actor = Path(folder), actor
        if not is_text(actor):
            raise InputError(f"The actor is {actor!r}.", "Give text that UTF-8 has.")
        if not (self.folder / "policy.json").is_file():
            raise ModelNotFoundError(f"{folder} holds no governed memory.", "Make one with Governor.init or `palimpsest govern init`.")
        self.ledger, self.versions = Ledger(self.folder / "ledger.jsonl"), Versions(self.folder / "versions")
        if not self.ledger.verify():
            raise LedgerBrokenError(f"The log of {folder} is missing or empty.", "Take the folder from a backup.", seq=0)
        self.policy = self._thresholds()
        self._held = 0

    def positions(self) -> dict[str, Position]:
        """Every item and where it is, in the order in which they were proposed."""
        found: dict[str, Position] = {}
        for entry in self.ledger.entries():
            if entry["event"] == "transition":
                for move in (entry, entry.get("also")):
                    if move:
                        place = Position(State(move["to"]), move["share"], move["after"], move["before"], entry["seq"])
                        found[move["item"]] = place
        return found

    def position(self, item: str) -> Position:
        """Where an item is.

        Raises:
            InputError: there is no such item.
        """
        positions = self.positions()
        if item not in positions:
            raise InputError(f"There is no item {item!r}.", f"There are: {', '.join(positions) or 'none'}.")
        return positions[item]

    def item(self, name: str) -> MemoryItem:
        """An item with its request, read by the hash that the log has.

        Raises:
            InputError: there is no such item.
            LedgerBrokenError: the request is not the one that was proposed.
        """
        self.position(name)
        entry = next(e for e in self.ledger.entries() if e["event"] == "transition" and e["item"] == name)
        try:
            request = ChangeRequest.from_dict(json.loads((self.folder / "requests" / f"{entry['request']}.json").read_text("utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise self._foreign(entry, name) from error
        if request.hash != entry["request"]:
            raise self._foreign(entry, name)
        return MemoryItem(name, request, entry["version"])

    def live(self) -> str:
        """Id of the version that every session sees but those of a canary."""
        return next(str(entry["live"]) for entry in reversed(self.ledger.entries()) if entry.get("live"))

    def in_force(self) -> list[MemoryItem]:
        """Items that are rolled out to anyone, oldest first."""
        out = [(p.seq, name) for name, p in self.positions().items() if p.state in (State.CANARY, State.FULL)]
        return [self.item(name) for _, name in sorted(out)]

    def sees(self, item: str, session: str) -> bool:
        """Whether a session sees an item's change: by the hash of its id, so always the same, and the shares of later stages hold those of
        earlier ones. The last `holdout` of the hashes see no change before it is full."""
        return self.position(item).shown_to(session)

    def version_for(self, session: str) -> str:
        """The version that answers a session."""
        for place in self.positions().values():
            if place.state is State.CANARY and place.version and place.shown_to(session):
                return place.version
        return self.live()

    def observations(self, item: str, share: float | None = None) -> list[Observation]:
        """What was observed of an item, at one stage or at all."""
        found = []
        for number, line in enumerate(self._observed(item), 1):
            try:
                row = json.loads(line)
                if share is None or row["share"] == share:
                    found.append(Observation.from_dict(row["observation"]))
            except (InputError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise self._damaged(item, f"line {number} is none") from error
        return found

    def certificate(self, item: str) -> dict[str, Any]:
        """What was done with an item, provable: version, evidence, reversibility and the Merkle path of its last entry.

        Raises:
            InputError: there is no such item.
        """
        place, memory = self.position(item), self.item(item)
        proof = self.ledger.certificate(place.seq)
        entries = [e for e in self.ledger.entries() if e.get("item") == item]
        can_revert = place.state in (State.CANARY, State.FULL) and place.parent is not None
        return {
            "item": item,
            "version": memory.version,
            "state": str(place.state),
            "evidence": [e["evidence"] for e in entries if e.get("evidence")],
            "reversibility": "exact" if can_revert else "none",
            "proof": asdict(proof),
        }

    @contextlib.contextmanager
    def _alone_in_folder(self) -> Iterator[None]:
        """Keeps other processes from changing anything meanwhile: what is read inside still holds when the log is written."""
        if self._held:
            yield
            return
        with locked(self.folder):
            self._held, self.policy = 1, self._thresholds()
            try:
                yield
            finally:
                self._held = 0

    def _thresholds(self) -> Policy:
        """The policy that the log names last. `policy.json` is a copy of it, or of the one before where a process was killed in between.

        Raises:
            LedgerBrokenError: `policy.json` was changed past the log.
        """
        entry = next(e for e in reversed(self.ledger.entries()) if e["event"] in ("init", "policy"))
        shown = _hash_of(self.folder / "policy.json")
        if shown not in (entry["policy"], entry.get("before")):
            raise LedgerBrokenError(
                f"{self.folder / 'policy.json'} is not the policy that entry {entry['seq']} of the log names: it was changed past the log.",
                "Put the old file back; other thresholds are put in force with `Governor.change_policy`.",
                seq=entry["seq"],
            )
        kept = self.folder / "policies" / f"{entry['policy']}.json"
        if shown != entry["policy"] and _hash_of(kept) != entry["policy"]:
            raise LedgerBrokenError(
                f"The policy that entry {entry['seq']} of the log names is missing.", "Take the folder from a backup.", seq=entry["seq"]
            )
        return Policy.load(self.folder / "policy.json" if shown == entry["policy"] else kept)

    def _monitored(self, item: str) -> list[dict[str, Any]]:
        return [entry for entry in self.ledger.entries() if entry["event"] == "monitored" and entry["item"] == item]

    def _observed(self, item: str) -> list[str]:
        """The lines of an item's observations that the log knows: a process killed before it noted them has not observed them."""
        path, noted = self.folder / "observations" / f"{item}.jsonl", self._monitored(item)
        if not noted:
            return []
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(item, "they cannot be read") from error
        count = noted[-1]["details"].get("lines", len(lines))
        if len(lines) < count:
            raise self._damaged(item, f"the log knows {count}, there are {len(lines)}")
        return lines[:count]

    def _damaged(self, item: str, what: str) -> LedgerBrokenError:
        seq = self._monitored(item)[-1]["seq"]
        return LedgerBrokenError(f"The observations of {item} are damaged: {what}.", "Take the folder from a backup.", seq=seq)

    def _require(self, item: str, to: State) -> None:
        state = self.position(item).state
        if to not in LEGAL.get(state, ()):
            allowed = ", ".join(LEGAL.get(state, ())) or "nothing: it has ended"
            raise IllegalTransition(f"{item} is {state} and cannot become {to}.", f"From {state} follows {allowed}.")

    def _move(
        self,
        item: str,
        state: State | None,
        to: State,
        rule: str,
        share: float = 0.0,
        before: str | None = None,
        after: str | None = None,
        *,
        live: str | None = None,
        evidence: str | None = None,
        model: str | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        if to not in LEGAL.get(state, ()):
            raise IllegalTransition(f"{item} is {state} and cannot become {to}.", "Ask what follows its state.")
        entry = {"event": "transition", "actor": self.actor, "item": item, "from": state, "to": to, "rule": rule, "share": share}
        entry |= {
            "before": before,
            "after": after,
            "live": live,
            "evidence": evidence,
            "model": model,
            "policy": self.policy.hash,
            **(extra or {}),
        }
        self.ledger.append(entry)

    def _note(self, item: str, what: str, details: dict[str, Any], evidence: str | None = None) -> None:
        self.ledger.append(
            {"event": what, "actor": self.actor, "item": item, "details": details, "evidence": evidence, "policy": self.policy.hash}
        )

    def _keep(self, evidence: Measurement) -> str:
        """Writes a measurement under the hash of its text, and returns the hash."""
        text = evidence.to_json()
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_text(self.folder / "evidence" / f"{digest}.json", text)
        return digest

    def _foreign(self, entry: dict[str, Any], item: str) -> LedgerBrokenError:
        return LedgerBrokenError(
            f"The request of {item} is not the one that entry {entry['seq']} of the log names.",
            "Take the folder from a backup.",
            seq=entry["seq"],
        )


Method = TypeVar("Method", bound=Callable[..., Any])


def alone(method: Method) -> Method:
    """Makes a method of a `Record` hold the folder's lock while it runs."""

    @functools.wraps(method)
    def run(self: Record, *arguments: Any, **options: Any) -> Any:
        with self._alone_in_folder():
            return method(self, *arguments, **options)

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits for a folder's lock and holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _hash_of(path: Path) -> str | None:
    """Hash of a JSON file's content; None where there is none."""
    try:
        return sha256_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def session_place(session: str) -> float:
    """Where a session stands in [0, 1), by the hash of its id.

    Example:
        >>> session_place("a") == session_place("a") != session_place("b")
        True
    """
    return int.from_bytes(hashlib.sha256(session.encode()).digest()[:8], "big") / 2**64
