"""The mitigations of the survey as entries: at which stage they act, what they need, whether this project has them, and the command.

Stages after arXiv 2507.05578: the training data, the training, the trained model, and decoding. An entry that names code resolves to it (a
test walks them all); one that is out of scope says why. What a mitigation did in this audit stands beside it where it was tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block, percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord, largest
from palimpsest.models import LanguageModel

STAGES = ("data", "training", "model", "decoding")


@dataclass(frozen=True)
class Mitigation:
    """One entry.

    Attributes:
        name: unique.
        title: what it does, in a few words.
        stage: of `STAGES`.
        code: "module:object", empty when it is out of scope.
        command: what applies it, empty where it is used from Python alone.
        systems: numbers of the systems that it comes from.
        price: what it costs or loses, in words.
        barred: why it cannot be applied to this model; None when it can.
        out_of_scope: why the library has it not.
        effect: what it did in this audit, or what the audit says of it; None where nothing.
    """

    name: str
    title: str
    stage: str
    code: str
    command: str = ""
    systems: tuple[int, ...] = ()
    price: str = ""
    barred: Callable[[AuditPlan, LanguageModel], str | None] = lambda plan, model: None
    out_of_scope: str = ""
    effect: Callable[[AuditRecord], str | None] = lambda record: None

    def state(self, plan: AuditPlan) -> tuple[str, str]:
        """ "available", "not here" or "not in the library", and why."""
        if self.out_of_scope:
            return "not in the library", self.out_of_scope
        said = self.barred(plan, largest(plan.models))
        return ("available", "") if said is None else ("not here", said)


def _weights(what: str) -> Callable[[AuditPlan, LanguageModel], str | None]:
    def barred(plan: AuditPlan, model: LanguageModel) -> str | None:
        return None if "weights" in model.capabilities else str(model.lacks("weights", what))

    return barred


def _training(plan: AuditPlan, model: LanguageModel) -> str | None:
    return "It acts in the training run: for the next model, not for this one."


def _repeated(record: AuditRecord) -> str | None:
    result = record.of("duplication", record.largest)
    if result is None:
        return None
    return f"{percent(result.summary['share'])} of the corpus repeats passages of {result.summary['length']} tokens."


def _guarded(state: str) -> Callable[[AuditRecord], str | None]:
    def effect(record: AuditRecord) -> str | None:
        rates = record.guard
        if rates is None or state not in rates:
            return None
        before, after = rates["open"], rates[state]
        return (
            f"Word for word {percent(before['verbatim'].estimate)} → {percent(after['verbatim'].estimate)}; nearly, in some style, "
            f"{percent(before['styled'].estimate)} → {percent(after['styled'].estimate)} of the passages tried."
        )

    return effect


_GOVERN = "palimpsest govern init, propose, admit"
_ACTIONS = "palimpsest.governance.actions"

MITIGATIONS = (
    Mitigation(
        "exact-dedup",
        "Remove repeated passages",
        "data",
        "palimpsest.corpus.duplicates:repeated_passages",
        "palimpsest index duplicates INDEX",
        (67,),
        "what is kept once can still be remembered",
        effect=_repeated,
    ),
    Mitigation(
        "near-dedup",
        "Remove near-duplicate documents",
        "data",
        "palimpsest.corpus.near_duplicates:near_duplicate_documents",
        "palimpsest index duplicates INDEX --near",
        (67,),
        "variants of one text are lost",
    ),
    Mitigation(
        "split",
        "Splits without leaks",
        "data",
        "palimpsest.corpus.splits:leak_free_split",
        "palimpsest split",
        (106,),
        "smaller parts where much is alike",
    ),
    Mitigation(
        "removal",
        "Remove documents",
        "data",
        "palimpsest.corpus.index:CorpusIndex",
        "palimpsest index delete, compact",
        (),
        "a trained model keeps what it read",
    ),
    Mitigation(
        "pii-scrub",
        "Scrub personal data",
        "data",
        "",
        out_of_scope="Only found, not replaced: palimpsest.audit.annotators.find_pii; dedicated tools (presidio, scrubadub) do it better.",
    ),
    Mitigation(
        "dp-sgd",
        "Train with differential privacy",
        "training",
        "palimpsest.training.private:PrivateLoss",
        "",
        (20,),
        "a worse model, and more so for rare texts",
        barred=_training,
    ),
    Mitigation(
        "goldfish",
        "Leave tokens out of the loss",
        "training",
        "",
        out_of_scope="Goldfish loss (arXiv 2406.10209) is a mask on labels; PackedBatch.labels takes one.",
    ),
    Mitigation(
        "unlearn",
        "Unlearn texts",
        "model",
        f"{_ACTIONS}.unlearn:Unlearn",
        f"{_GOVERN} (kind forget)",
        (20, 104),
        "utility falls with what is forgotten; what is near is forgotten too",
        barred=_weights("Unlearning"),
    ),
    Mitigation(
        "edit",
        "Edit facts in the weights",
        "model",
        f"{_ACTIONS}.rome:RomeEdit",
        f"{_GOVERN} (kind update)",
        (104,),
        "one fact at a time; neighbours can move",
        barred=_weights("Editing weights"),
    ),
    Mitigation(
        "adapter",
        "Train on other text",
        "model",
        f"{_ACTIONS}.training:LoraUpdate",
        f"{_GOVERN} (action lora)",
        (104,),
        "hides more than it removes",
        barred=_weights("Training an adapter"),
    ),
    Mitigation(
        "memfree",
        "MemFree: no protected n-gram is finished",
        "decoding",
        "palimpsest.guard:MemFreeProcessor",
        "palimpsest guard build, generate",
        (1,),
        "other spellings and casings pass",
        barred=_weights("A guard inside decoding"),
        effect=_guarded("guarded"),
    ),
    Mitigation(
        "memfree-near",
        "MemFree with edits allowed for",
        "decoding",
        "palimpsest.guard.approximate:NearPassages",
        "palimpsest guard generate --approximate",
        (1,),
        "more is forbidden that was harmless",
        barred=_weights("A guard inside decoding"),
        effect=_guarded("approximate"),
    ),
    Mitigation(
        "filter",
        "Check what was written before it is sent",
        "decoding",
        "palimpsest.guard.check:protected_ngrams",
        "palimpsest guard check",
        (1,),
        "a refused answer instead of another one",
    ),
    Mitigation(
        "store",
        "Answer from a store instead",
        "decoding",
        f"{_ACTIONS}.overrides:StoreUpsert",
        f"{_GOVERN} (action store)",
        (104,),
        "only for what the store knows",
    ),
    Mitigation(
        "steering",
        "Steer activations away",
        "decoding",
        "",
        out_of_scope="No method of the catalogue's 119 does it; "
        "palimpsest.governance.actions.unlearn has RMU, which trains the same change in.",
    ),
)


def mitigation_section(record: AuditRecord) -> dict[str, Any]:
    """The section that says of every mitigation whether it is available here, by which command, and what it did."""
    usable, others = [], []
    for entry in MITIGATIONS:
        state, why = entry.state(record.plan)
        row = {"title": entry.title, "stage": entry.stage}
        if state == "available":
            usable.append(row | {"command": entry.command, "effect": entry.effect(record) or "", "price": entry.price})
        else:
            others.append(row | {"state": state, "why": why})
    usable.sort(key=lambda row: not row["effect"])  # what was tried here stands first
    columns = [("title", "Mitigation", "text"), ("stage", "Acts on", "text"), ("command", "Command", "text")]
    columns += [("effect", "What it did here", "text")] if any(row["effect"] for row in usable) else []
    columns += [("price", "Its price", "text")]
    caption = "Every mitigation trades leakage against something: judge it against a model that never saw the texts."
    made: list[Block] = [blocks.table("mitigations", "What can be done, and by what", columns, usable, caption)]
    columns = [("title", "Mitigation", "text"), ("stage", "Acts on", "text"), ("state", "State", "text"), ("why", "Why", "text")]
    made.append(blocks.table("mitigations-barred", "What cannot be done here", columns, others))
    question = "Which mitigations are there, and which can be used here?"
    answer = f"{len(usable)} of {len(MITIGATIONS)} mitigations can be applied to this model or its corpus as they are here."
    return blocks.section("mitigations", "What can be done about it", question, answer, made)
