"""Where every governed item is, as the log has it: the states, what may follow what, and the folder that holds the evidence.

An item goes

    PROPOSED → ADMITTED | REJECTED;  ADMITTED → CANARY → … → CANARY → FULL;  CANARY | FULL → ROLLED_BACK;  FULL → SUPERSEDED;
    PROPOSED | ADMITTED | FULL → EXPIRED

and nowhere else; only where its successor is rolled back does a superseded item become FULL again, since it then is in force again. The log
is the only record: states are read back from it, so a killed process loses nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from palimpsest.errors import IllegalTransition, InputError, LedgerBrokenError, ModelNotFoundError
from palimpsest.files import write_text
from palimpsest.governance.items import ChangeRequest, MemoryItem
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
        LedgerBrokenError: its log is broken.
    """

    def __init__(self, folder: str | Path, actor: str = "") -> None:
        self.folder, self.actor = Path(folder), actor
        if not (self.folder / "policy.json").is_file():
            raise ModelNotFoundError(f"{folder} holds no governed memory.", "Make one with Governor.init or `palimpsest govern init`.")
        self.ledger, self.versions = Ledger(self.folder / "ledger.jsonl"), Versions(self.folder / "versions")
        self.policy = Policy.load(self.folder / "policy.json")
        self.ledger.verify()

    def positions(self) -> dict[str, Position]:
        """Every item and where it is, in the order in which they were proposed."""
        found: dict[str, Position] = {}
        for entry in self.ledger.entries():
            if entry["event"] == "transition":
                found[entry["item"]] = Position(State(entry["to"]), entry["share"], entry["after"], entry["before"], entry["seq"])
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
        except (OSError, ValueError) as error:
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
        path = self.folder / "observations" / f"{item}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        return [Observation.from_dict(row["observation"]) for row in rows if share is None or row["share"] == share]

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


def session_place(session: str) -> float:
    """Where a session stands in [0, 1), by the hash of its id.

    Example:
        >>> session_place("a") == session_place("a") != session_place("b")
        True
    """
    return int.from_bytes(hashlib.sha256(session.encode()).digest()[:8], "big") / 2**64
