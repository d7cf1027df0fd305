"""The loop: admission → rollout → monitoring → rollback → change audit, as a state machine over a log (system 104, DMM-Gov).

Zhang et al. 2025, arXiv 2509.18868; the stages are the paper's, the forms ours. A request is proposed, tried by an action on a shadow copy,
and admitted only if it meets the policy's thresholds. What was tried is saved as a version, and this version, not the action run again,
is what is rolled out: to a growing share of sessions, then to all. A breach, or a command, brings back the version before, to the bit, by
its weights on disk; so every action is exactly reversible here, and no test of behaviour has to stand in for equality.

One change is rolled out at a time, and rollbacks go last in, first out: a version holds everything that was changed before it. The states
and the files are those of `palimpsest.governance.record`:

    folder/  policy.json  policies/<hash>.json  ledger.jsonl  settings.json
             requests/<hash>.json  evidence/<hash>.json  observations/<item>.jsonl  versions/
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import EditFailedError, InputError, PalimpsestError
from palimpsest.files import storage_errors, write_json, write_text
from palimpsest.governance.actions.base import Action
from palimpsest.governance.actions.factory import make_action
from palimpsest.governance.actions.overrides import Joint
from palimpsest.governance.admission import measure_change
from palimpsest.governance.items import ChangeRequest, Conflict, ConflictRule, is_text
from palimpsest.governance.ledger import Ledger
from palimpsest.governance.mediation import mediation, untouched
from palimpsest.governance.monitor import Observation, stability_index, watch
from palimpsest.governance.policy import Policy
from palimpsest.governance.record import Position, Record, State, alone, locked
from palimpsest.governance.router import route
from palimpsest.governance.system import System
from palimpsest.governance.versions import Versions
from palimpsest.measurement import Measurement

EDITS = frozenset({"rome", "memit"})


class Governor(Record):
    """Governs the memory of one system, in a folder.

    Args:
        folder: made by `Governor.init`.
        system: the running system; it must be at the version that the log says is in force.
        actor: who acts; stands in every entry.
        actions: makes an action from its name and a request; by default `palimpsest.governance.actions.factory.make_action`.

    Raises:
        ModelNotFoundError: the folder holds no governed memory.
        LedgerBrokenError: its log is broken.

    Example:
        >>> governor = Governor.init("governed", system)                 # doctest: +SKIP
        >>> item = governor.propose(request)                             # doctest: +SKIP
        >>> governor.admit(item).summary["admitted"]                     # doctest: +SKIP
    """

    def __init__(
        self, folder: str | Path, system: System, *, actor: str = "", actions: Callable[[str, ChangeRequest], Action] = make_action
    ) -> None:
        super().__init__(folder, actor)
        self.system, self._make = system, actions

    @classmethod
    def init(
        cls,
        folder: str | Path,
        system: System,
        policy: Policy | None = None,
        *,
        actor: str = "",
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> Governor:
        """Begins to govern a system: saves it as the first version and opens the log.

        Args:
            folder: must not hold a governed memory yet.
            policy: the thresholds; defaults by default.
            settings: kept as `settings.json`; what the command line needs to open the folder again.

        Raises:
            InputError: the folder is taken.
            StorageError: it cannot be written.
        """
        folder, chosen = Path(folder), policy or Policy()
        if not is_text(actor):
            raise InputError(f"The actor is {actor!r}.", "Give text that UTF-8 has.")
        entry = {"event": "init", "actor": actor, "model": system.state["model"], "policy": chosen.hash}
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(folder / "ledger.jsonl")
        with locked(folder):
            if ledger.path.exists() and ledger.path.stat().st_size:
                raise InputError(f"{folder} already holds a governed memory.", "Choose another folder.")
            entry["live"] = Versions(folder / "versions").save(system)
            write_json(folder / "policies" / f"{chosen.hash}.json", chosen.to_dict())
            write_json(folder / "policy.json", chosen.to_dict())
            if settings is not None:
                write_json(folder / "settings.json", settings)
            ledger.append(entry)
        return cls(folder, system, actor=actor, **options)

    @alone
    def change_policy(self, policy: Policy) -> None:
        """Puts other thresholds in force, for all that is decided from now on.

        Raises:
            StorageError: they cannot be written.
        """
        before = next(e["policy"] for e in reversed(self.ledger.entries()) if e["event"] in ("init", "policy"))
        write_json(self.folder / "policies" / f"{policy.hash}.json", policy.to_dict())
        self.ledger.append({"event": "policy", "actor": self.actor, "before": before, "policy": policy.hash})
        write_json(self.folder / "policy.json", policy.to_dict())
        self.policy = policy

    @alone
    def propose(self, request: ChangeRequest) -> str:
        """Enters a request into the log; returns the item's name.

        Raises:
            InputError: it is the same as one that is under way, or supersedes an item that there is not.
        """
        positions = self.positions()
        for name, place in positions.items():
            if place.state in (State.PROPOSED, State.ADMITTED, State.CANARY, State.FULL) and self.item(name).request == request:
                raise InputError(f"The same request is {place.state} as {name!r}.", "Wait for it, or change the request.")
        version = 1 if request.supersedes is None else self.item(request.supersedes).version + 1
        write_json(self.folder / "requests" / f"{request.hash}.json", request.to_dict())
        name = f"{request.kind}-{len(positions) + 1}"
        self._move(name, None, State.PROPOSED, "proposed", extra={"request": request.hash, "version": version, "owner": request.owner})
        return name

    @alone
    def admit(
        self, item: str, action: str | None = None, *, secrets: Sequence[tuple[str, str]] = (), day: date | None = None
    ) -> Measurement:
        """Tries an item on a shadow copy of what is in force, and admits or rejects it.

        Args:
            action: which action carries it out; by default the first of its route (all of them where the route is joint).
            secrets, day: see `measure_change`.

        Returns:
            The measurement; `summary["admitted"]` is the decision. An edit that does not take is rejected, with `summary["error"]`.

        Raises:
            IllegalTransition: the item is not proposed.
            InputError: another change is being rolled out, an unknown action, or a conflict that a person must settle.
        """
        self._require(item, State.ADMITTED)
        self._alone(item)
        request, live = self.item(item).request, self._running()
        chosen = route(request, self.policy)
        names = (action,) if action else chosen.actions if chosen.joint else chosen.actions[:1]
        rule = f"{'named' if action else chosen.rule}: {' + '.join(names)}"
        conflicts = self._conflicts(item, request)
        parts = [self._make(name, request) for name in names]
        made = parts[0] if len(parts) == 1 else Joint(parts)
        shadow = self.system.shadow()
        cost, began = asdict(made.estimate_cost(shadow)), time.perf_counter()
        try:
            handle = made.apply(shadow)
        except EditFailedError as error:
            empty = pl.DataFrame(schema={"kind": pl.String})
            result = Measurement("admission", empty, {"admitted": False, "failed": ["edit"], "clauses": {}, "error": str(error)}, {})
            self._move(item, State.PROPOSED, State.REJECTED, f"{rule}; {error.problem}", before=live, evidence=self._keep(result))
            return result
        edited = list(handle.weights)
        has_margin = set(names) <= EDITS and any(fact.old is not None for fact in request.facts)
        result = measure_change(
            self.system,
            shadow,
            request,
            self.policy,
            conflicts=conflicts,
            secrets=secrets,
            mediated=mediation(self.system, shadow, edited, request.facts) if has_margin else None,
            strays=len(untouched(self.system, shadow, edited)) if set(names) <= EDITS else None,
            day=day,
        )
        report, seconds = handle.details.get("report", {}), time.perf_counter() - began
        result.summary |= {"action": list(names), "reversibility": made.reversibility, "cost": cost, "report": report, "seconds": seconds}
        if not result.summary["admitted"]:
            failed = ", ".join(result.summary["failed"])
            self._move(item, State.PROPOSED, State.REJECTED, f"{rule}; not met: {failed}", before=live, evidence=self._keep(result))
            return result
        version, model = self.versions.save(shadow), shadow.state["model"]
        self._move(item, State.PROPOSED, State.ADMITTED, rule, before=live, after=version, evidence=self._keep(result), model=model)
        return result

    @alone
    def rollout(self, item: str) -> Position:
        """Takes an item to its next stage; at the last one the running system becomes the version with the change.

        What was observed at this stage is tested once more, and on a breach the item is rolled back instead.

        Raises:
            IllegalTransition: it is not admitted, or is full already.
            InputError: what it was admitted on is no longer in force, another change is under way, or this stage has too few observations.
            WeightsMissingError: the version is gone; the running system stays as it is.
        """
        place = self.position(item)
        self._require(item, State.CANARY if place.state is State.ADMITTED else State.FULL)
        self._alone(item)
        live = self._running()
        if live != place.parent:
            raise InputError(
                f"{item} was admitted on version {str(place.parent)[:12]}, but {live[:12]} is in force.", "Propose and admit it anew."
            )
        if place.state is State.CANARY:
            rows = self.observations(item, place.share)
            breach = watch(rows, self.policy).summary["breach"] if rows else None
            if breach is not None:  # found before, and the process was killed on its way to take the change back
                return self.rollback(item, f"breach of {breach['rate']}")
            seen, needed = len({row.session for row in rows}), self.policy.min_sample
            if seen < needed:
                raise InputError(
                    f"{item} was observed in {seen} sessions at {place.share:.0%}; the policy asks for {needed} before the next stage.",
                    "Let it run, and give what was observed to `monitor`.",
                )
        share = next(stage for stage in self.policy.stages if stage > place.share)
        assert place.version is not None
        if share < 1:
            self._move(item, place.state, State.CANARY, f"stage {share:g}", share, live, place.version)
            return self.position(item)
        self._restore(item, place.version, "rollout")
        model, also = self.system.state["model"], self._also(item, State.FULL, State.SUPERSEDED)
        self._move(item, place.state, State.FULL, "stage 1", 1.0, live, place.version, live=place.version, model=model, extra=also)
        return self.position(item)

    @alone
    def monitor(
        self,
        item: str,
        observations: Sequence[Observation],
        *,
        questions: tuple[np.ndarray, np.ndarray] | None = None,
        batch: str | None = None,
    ) -> Measurement:
        """Adds what was observed of an item, tests all that was observed of it at this stage, and rolls it back on a breach.

        Sessions that do not see the change are refused: they say nothing of it.

        Args:
            questions: embeddings (n, d) of questions before the change and (m, d) of those now; adds `summary["drift"]`, their stability
                index and whether it is above the policy's. Other questions than before are no fault of the change: nothing is taken back.
            batch: a name of these observations, such as the hash of their file; one that the log has at this stage is not counted again.

        Raises:
            IllegalTransition: nobody sees the item.
            InputError: no observations, or one of a session that does not see it.
        """
        place = self.position(item)
        self._require(item, State.ROLLED_BACK)
        strangers = [o.session for o in observations if not place.shown_to(o.session)]
        if strangers:
            raise InputError(f"The session {strangers[0]!r} does not see {item} at {place.share:.0%}.", "Ask `sees` first.")
        if batch is not None and any(e["details"].get("batch") == [batch, place.share] for e in self._monitored(item)):
            observations = ()
        before = self._observed(item)
        lines = [*before, *(json.dumps({"share": place.share, "observation": asdict(o)}) for o in observations)]
        result = watch([*self.observations(item, place.share), *observations], self.policy)
        if questions is not None:
            index = stability_index(*questions)
            result.summary["drift"] = {"index": index, "drifted": index > self.policy.drift}
        write_text(self.folder / "observations" / f"{item}.jsonl", "".join(f"{line}\n" for line in lines))
        noted = {name: result.summary.get(name) for name in ("n", "breach", "drift")}
        noted |= {"lines": len(lines), "batch": None if batch is None else [batch, place.share]}
        self._note(item, "monitored", {"share": place.share, **noted}, self._keep(result))
        if result.summary["breach"] is not None:
            self.rollback(item, f"breach of {result.summary['breach']['rate']}")
        return result

    @alone
    def rollback(self, item: str, reason: str = "by command") -> Position:
        """Takes a change back: the running system becomes, to the bit, the version before it. A canary was shown beside what is in force,
        which stays as it is.

        Raises:
            IllegalTransition: nobody sees the item.
            InputError: another change was built on it, or is being tried on it.
            WeightsMissingError: the version before is gone; the attempt is logged, item and running system stay as they are.
        """
        began = time.perf_counter()
        place = self.position(item)
        self._require(item, State.ROLLED_BACK)
        if place.state is State.FULL:
            self._alone(item)
        if place.state is State.FULL and self.live() != place.version:
            later = [name for name, p in self.positions().items() if p.state in (State.FULL, State.EXPIRED) and p.seq > place.seq]
            raise InputError(f"{', '.join(later) or 'A later change'} was built on {item}.", "Take back the later changes first.")
        assert place.parent is not None
        live = place.parent if place.state is State.FULL else self.live()  # a canary never was in force: nothing is restored
        if place.state is State.FULL and self.versions.identify(self.system) != live:
            self._restore(item, live, "rollback")
        extra = {"seconds_to_restore": round(time.perf_counter() - began, 4)}
        model = None
        if place.state is State.FULL:
            model = self.system.state["model"]
            extra |= self._also(item, State.SUPERSEDED, State.FULL)
        self._move(item, place.state, State.ROLLED_BACK, reason, 0.0, place.parent, place.version, live=live, model=model, extra=extra)
        return self.position(item)

    @alone
    def expire(self, item: str, reason: str = "expired") -> Position:
        """Ends an item: one that was not rolled out is dropped; the knowledge of one that is full is declared out of date, but stays.

        Raises:
            IllegalTransition: it is neither proposed, admitted nor full.
        """
        place = self.position(item)
        self._require(item, State.EXPIRED)
        self._move(item, place.state, State.EXPIRED, reason, 0.0, place.parent, place.version)
        return self.position(item)

    def _conflicts(self, item: str, request: ChangeRequest) -> list[Conflict]:
        """What contradicts the request; where a person must settle it, the request is held."""
        conflicts = ConflictRule(dict(self.policy.trust)).conflicts(request, self.in_force())
        held = [conflict for conflict in conflicts if not conflict.resolved]
        if len({conflict.key for conflict in held}) > self.policy.conflicts * len(request.facts):
            first = held[0]
            self._note(item, "held", {"conflicts": [asdict(conflict) for conflict in held]})
            raise InputError(
                f"{item} says {first.new!r} of {' / '.join(first.key)}, {first.item} says {first.old!r}, and its source is trusted more.",
                f"Decide: propose it again with supersedes = {first.item!r}, or leave it.",
            )
        return conflicts

    def _running(self) -> str:
        """The version in force, after the running system was compared with it.

        Raises:
            InputError: the running system is another.
        """
        live, running = self.live(), self.versions.identify(self.system)
        if running != live:
            raise InputError(
                f"The running system is version {running[:12]}, the log says that {live[:12]} is in force: it was changed past the log.",
                "Restore it with governor.versions.restore(governor.live(), system).",
            )
        return live

    def _also(self, item: str, state: State, to: State) -> dict[str, Any]:
        """The move of the item that `item` supersedes, to stand in the same entry: a killed process leaves both moves or neither."""
        name = self.item(item).request.supersedes
        if name is None or (old := self.position(name)).state is not state:
            return {}
        share = float(to is State.FULL)
        return {"also": {"item": name, "from": state, "to": to, "share": share, "before": old.parent, "after": old.version}}

    def _restore(self, item: str, version: str, what: str) -> None:
        try:
            self.versions.restore(version, self.system)
        except PalimpsestError as error:
            self._note(item, f"{what} failed", {"version": version, "error": error.problem})
            raise
        if self.versions.identify(self.system) != version:
            raise EditFailedError(f"The running system is not version {version[:12]} after it was restored.", "Stop what else changes it.")

    def _alone(self, item: str) -> None:
        others = [name for name, place in self.positions().items() if name != item and place.state is State.CANARY]
        if others:
            raise InputError(f"{others[0]} is being rolled out.", "Take it to the end, or back, before another change is tried.")
