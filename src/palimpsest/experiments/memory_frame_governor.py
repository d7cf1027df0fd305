"""The governor's half of the claim of system 104 (memory-frame): items 2 to 5 of its "works when", on the laboratory's world.

2. *Admission and rollback*: five facts that changed after the cut are written into the store, and five into the weights (ROME): both are
   admitted. Plain fine-tuning on the same facts at thirty times its learning rate is rejected for locality or drawdown. Rows with false
   values pass admission, which cannot know the truth, reach a quarter of the sessions, are caught there by their harm, and are rolled back;
   the true rows go on to all. After a rollback every hash is what it was.
3. *Ledger*: a flipped byte is found at the entry that it stands in.
4. *A/A*: without any difference, families of comparisons corrected by Holm, and streams looked at after every sample, raise no more alarms
   than they promise; a z-test looked at after every sample does.
5. *Forgetting*: the model trained without the facts is certified, the model behind a guard is suppressed.

Each function returns the checks with their thresholds and the rows behind them. Item 1, the three
settings, is in `memory_frame_settings`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.corpus.facts import Fact
from palimpsest.errors import LedgerBrokenError
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check
from palimpsest.experiments.memory_frame_world import WORDINGS, LabWorld
from palimpsest.governance.actions.base import Action
from palimpsest.governance.actions.edit_target import EditSettings
from palimpsest.governance.actions.factory import make_action
from palimpsest.governance.actions.overrides import GuardRule
from palimpsest.governance.actions.rome import RomeEdit
from palimpsest.governance.actions.training import FullUpdate
from palimpsest.governance.forgetting import measure_forgetting
from palimpsest.governance.items import ChangeRequest, FactChange, Kind
from palimpsest.governance.ledger import Ledger
from palimpsest.governance.loop import Governor
from palimpsest.governance.monitor import Observation
from palimpsest.governance.policy import Policy
from palimpsest.governance.record import State
from palimpsest.measurement import Curve
from palimpsest.stats import holm, mcnemar, mixture_e_process
from palimpsest.training.loop import TrainConfig

FACTS = 5  # changed by each action
FINE_TUNING_LR, TIMES = 1e-4, 30
# chosen on seed 100: in two layers the answer is read at the end of the cue, not at the subject
LAYER, EDIT = 1, EditSettings(lookup="cue", prefixes=((5, 5),), steps=50, clamp=8.0, rounds=3)
POLICY = Policy(min_sample=50, stages=(0.05, 0.25, 1.0))
ASKED_OF_CHANGED = 0.2  # share of the sessions that ask for a fact of the change


@dataclass
class Part:
    """What one item of the claim brought.

    Attributes:
        checks: figures and thresholds.
        rows: the table behind them.
        curves: figures.
    """

    checks: list[Check] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


def governor(lab: LabWorld, seed: int, neighbours: int = 60) -> Part:
    """Item 2.

    Args:
        lab: the world and its model.
        seed: of the sessions' questions.
        neighbours: facts that must stay, for each changed fact.
    """
    part = Part()
    changed = {fact.subject: fact for fact in lab.known if lab.now(fact) != fact}
    groups = [list(changed.values())[k * FACTS : (k + 1) * FACTS] for k in range(2)]
    groups.append([fact for fact in _lasting(lab) if fact.subject not in changed][:FACTS])
    edited = [fact.subject for group in groups for fact in group]
    stored, written = ([_update(lab, fact, lab.now(fact).object, edited, neighbours) for fact in group] for group in groups[:2])
    false = [_update(lab, fact, lab.world.distractors(fact, 1)[0], edited, neighbours) for fact in groups[2]]
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        system = lab.system()
        govern = Governor.init(Path(folder) / "governed", system, POLICY, actor="experiment", actions=_actions)
        before = system.state
        figures = {}
        for name, action, facts, kind in (
            ("store", "store", stored, Kind.UPDATE),
            ("rome", "rome", written, Kind.UPDATE),
            ("full, 1 x learning rate", "full", written, Kind.ADD),
            (f"full, {TIMES} x learning rate", "fast", written, Kind.UPDATE),
        ):
            item = govern.propose(ChangeRequest(kind, tuple(facts), source=name, owner="experiment"))
            result = govern.admit(item, action)
            figures[name] = result.summary
            part.rows += [{"action": name, **clause} for clause in result.summary["clauses"].values()]
            if "error" in result.summary:
                part.rows.append({"action": name, "name": "error", "held": result.summary["error"]})
            if name == "store":
                good = item
        part.checks += [
            Check("store rows of 5 changed facts are admitted", float(figures["store"]["admitted"]), "==", 1.0, unit="1 = yes"),
            Check("ROME edit of 5 changed facts is admitted", float(figures["rome"]["admitted"]), "==", 1.0, unit="1 = yes"),
            Check(
                f"fine-tuning at {TIMES} times the learning rate is rejected for locality or drawdown",
                float(bool({"locality", "drawdown"} & set(figures[f"full, {TIMES} x learning rate"]["failed"]))),
                "==",
                1.0,
                unit="1 = yes",
            ),
        ]
        looks = _roll_out(govern, lab, good, groups[0], seed) if figures["store"]["admitted"] else []
        part.rows += [{"action": "true rows", **look} for look in looks]
        full = float(govern.position(good).state is State.FULL)
        part.checks.append(Check("true store rows reach every session", full, "==", 1.0, unit="1 = yes"))
        bad, between = govern.propose(ChangeRequest(Kind.UPDATE, tuple(false), source="false rows")), system.state
        admitted = govern.admit(bad, "store").summary["admitted"]
        looks = _roll_out(govern, lab, bad, groups[2], seed, served_from=0.25) if admitted else []
        part.rows += [{"action": "false rows", **look} for look in looks]
        caught = govern.position(bad).state is State.ROLLED_BACK and looks[-1]["share"] == 0.25
        same = float(system.state == between)
        part.checks += [
            Check("false store rows that are served from 25 % on are rolled back there", float(caught), "==", 1.0, unit="1 = yes"),
            Check("hashes after that rollback are those before", same, "==", 1.0, unit="1 = yes"),
        ]
        for item in (bad, good):
            if govern.position(item).state is State.FULL:
                govern.rollback(item)
        part.checks.append(Check("hashes after all rollbacks are the first ones", float(system.state == before), "==", 1.0, unit="1 = yes"))
        part.checks.append(ledger(govern.folder / "ledger.jsonl", seed))
    return part


def ledger(path: Path, seed: int, flips: int = 200) -> Check:
    """Item 3: the share of single flipped bytes that are found at the entry that they stand in, on a copy of a real log."""
    whole = path.read_bytes()
    ends = np.flatnonzero(np.frombuffer(whole, dtype=np.uint8) == 10)
    rng = np.random.default_rng((seed, 3))
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ledger.jsonl"
        for position in rng.integers(len(whole), size=flips).tolist():
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(rng.integers(8))
            copy.write_bytes(damaged)
            try:
                Ledger(copy).verify()
            except LedgerBrokenError as error:
                found += error.seq == int((ends < position).sum())
    return Check("flipped bytes of the log found at their entry", found / flips, "==", 1.0, unit="share")


def null_comparisons(seed: int, runs: int = 400, alpha: float = 0.05) -> Part:
    """Item 4: alarms where nothing differs.

    Args:
        seed: of the simulation.
        runs: families and streams.
        alpha: what is promised.
    """
    rng = np.random.default_rng((seed, 4))
    families = 0
    for _ in range(runs):  # ten comparisons of two equal systems on the same 200 items
        p = [mcnemar(rng.random(200) < 0.7, rng.random(200) < 0.7).p_value for _ in range(10)]
        families += bool((holm(np.array(p)) <= alpha).any())
    x = rng.integers(-1, 2, size=(runs, 1000)).astype(float)  # differences of right answers of equal systems
    e = mixture_e_process(x, variance=1.0, mixture=0.01)  # values in [−1, 1] are sub-Gaussian with variance 1
    n = np.arange(1, x.shape[1] + 1)
    mean, square = np.cumsum(x, axis=1) / n, np.cumsum(x * x, axis=1) / n
    z = np.abs(mean) / np.sqrt(np.maximum(square - mean**2, 1e-12) / n)
    watched = float((e >= 1 / alpha).any(axis=1).mean())
    peeked = float((z[:, 19:] >= 1.96).any(axis=1).mean())  # from the twentieth sample on, when a z-test is first allowed
    family = families / runs
    error = float(np.sqrt(alpha * (1 - alpha) / runs))
    return Part(
        [
            Check("A/A: family-wise error with Holm", family, "<=", alpha + 2 * error, unit="share"),
            Check("A/A: false alarms of the mSPRT, looked at after every sample", watched, "<=", alpha, baseline=peeked, unit="share"),
            Check("A/A: false alarms of a z-test, looked at after every sample", peeked, ">", 3 * alpha, unit="share"),
        ],
        [{"runs": runs, "samples": x.shape[1], "holm": family, "msprt": watched, "peeked z": peeked}],
    )


def forgetting(lab: LabWorld, seed: int) -> Part:
    """Item 5.

    Args:
        lab: the world, its model, and the model without `to_forget`.
        seed: of the bootstraps.
    """
    gone, never = ([_forget(lab, fact) for fact in facts] for facts in (lab.to_forget, lab.unseen))
    part = Part()
    with one_thread():
        before = lab.system()
        guarded = before.shadow()
        GuardRule(gone).apply(guarded)
        grades = {}
        for name, system in (("as it was", before), ("trained without", lab.system(without=True)), ("guarded", guarded)):
            result = measure_forgetting(system, gone, never, POLICY, before=before, seed=seed)
            grades[name] = result.summary["grade"]
            part.rows += [{"system": name, "clause": clause, **values} for clause, values in result.summary["clauses"].items()]
    wanted = {"as it was": "failed", "trained without": "certified", "guarded": "suppressed"}
    part.checks = [
        Check(f"forgetting: {name} is {grade}", float(grades[name] == grade), "==", 1.0, unit="1 = yes") for name, grade in wanted.items()
    ]
    return part


def _update(lab: LabWorld, fact: Fact, target: str, edited: Sequence[str], neighbours: int) -> FactChange:
    """A new value, made with the first wording and judged by the others, beside neighbours that the model saw."""
    seen = [*lab.known, *lab.to_forget]
    same_subject = [f for f in seen if f.subject == fact.subject and f != fact]
    same_relation = [f for f in seen if f.relation == fact.relation and f.subject not in edited]
    near = tuple((lab.world.cue(f), f.object) for f in [*same_subject, *same_relation][:neighbours])
    since, others = lab.now(fact).valid_from, range(1, WORDINGS)
    change = FactChange.from_world(lab.world, fact, target, cues=others, paraphrases=others, neighbours=0, since=since)
    return replace(change, neighbours=near)


def _forget(lab: LabWorld, fact: Fact) -> FactChange:
    return FactChange(fact.subject, fact.relation, lab.world.cue(fact), None, fact.object, (lab.world.cue(fact, 1),))


def _actions(name: str, request: ChangeRequest) -> Action:
    """The actions of this experiment: edits and training see the first wording alone, so that the others can judge them."""
    bare = replace(request, facts=tuple(replace(fact, cues=()) for fact in request.facts))
    if name == "rome":
        return RomeEdit(bare.facts, LAYER, EDIT)
    if name in ("full", "fast"):
        lr = FINE_TUNING_LR * (TIMES if name == "fast" else 1)
        return FullUpdate(bare, TrainConfig(30, lr=lr, schedule="constant", weight_decay=0.0, cpu=True), batch_size=FACTS)
    return make_action(name, request)


def _roll_out(
    govern: Governor, lab: LabWorld, item: str, truth: Sequence[Fact], seed: int, *, served_from: float = 0.0
) -> list[dict[str, Any]]:
    """Rolls an item out until it is full or was taken back: sessions ask one question each, of the changed facts or of others.

    Args:
        truth: the facts that the item is about.
        seed: of the questions.
        served_from: the share from which on the item's answers are served; before, sessions are answered as if it were not there.

    Returns:
        One row a stage: what it was looked at for, and the breach that ended it.
    """
    day, rng = lab.world.end, np.random.default_rng((seed, 2))
    asked = [*truth, *_lasting(lab)[-100:]]
    prompts, values = [lab.world.cue(fact) for fact in asked], [lab.now(fact).object for fact in asked]
    place = govern.position(item)
    assert place.version is not None
    canary = govern.system.shadow()
    govern.versions.restore(place.version, canary)
    before, after = (system.says(prompts, values, day) for system in (govern.system, canary))
    stale = canary.says(prompts, [fact.object for fact in asked], day) & ~after
    looks: list[dict[str, Any]] = []
    while (place := govern.rollout(item)).state is State.CANARY:
        sessions = (session for k in range(20_000) if place.shown_to(session := f"{item}-{place.share}-{k}"))
        rows = []
        for session in itertools.islice(sessions, 200):
            of_change = rng.random() < ASKED_OF_CHANGED
            which = int(rng.integers(len(truth)) if of_change else rng.integers(len(truth), len(asked)))
            served = after if place.share >= served_from else before
            rows.append(Observation(session, bool(served[which]), bool(before[which]), outdated=bool(stale[which] & (served is after))))
        for begin in range(0, len(rows), 20):  # one looks after every twenty sessions
            breach = govern.monitor(item, rows[begin : begin + 20]).summary["breach"]
            if breach is not None:
                return [*looks, {"share": place.share, "observations": begin + 20, "breach": breach["rate"]}]
        looks.append({"share": place.share, "observations": len(rows), "breach": None})
    return looks


def _lasting(lab: LabWorld) -> list[Fact]:
    """Known facts that still hold at the end."""
    return [fact for fact in lab.known if lab.now(fact) == fact]
