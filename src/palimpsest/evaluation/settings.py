"""The three-setting protocol: what does a model know by itself, with a frozen store, and with a live one? (system 104, section B)

The *same items* on the same time line are asked in three settings:

* **param**: no evidence; the slot holds neutral filler;
* **offline**: evidence from a frozen snapshot, whose content hash is stored and checked again at the end;
* **online**: evidence from a live retriever with a clock, that may know everything published by the day of the question.

The prompt has the same template and, to the token, the same length in all three; decoding, budgets and the order of items are the same.
Gains are Acc_offline − Acc_param (what a store adds) and Acc_online − Acc_offline (what freshness adds). An answer that is right *online*
is not thereby parametric knowledge: which source it came from only the comparison of settings can tell
(`palimpsest.evaluation.propositions`).

Leaks are looked for before anything is asked (`contamination`). A retriever that returns a document of after the day of the question, or
evidence in *param*, is an error, not a score.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError, LeakError, SettingViolation
from palimpsest.evaluation.answers import RefusalRules, is_right, refused, token_f1
from palimpsest.evaluation.contamination import LeakReport, audit_contamination
from palimpsest.evaluation.items import Item, items_hash, require_items
from palimpsest.evaluation.prompting import Budget, Prompt, PromptMaker, Template
from palimpsest.evaluation.retrieval import Doc, Passage, Retriever, Snapshot
from palimpsest.evaluation.setting_summary import curves, summarise
from palimpsest.evaluation.temporal import Freshness, days_since_change, freshness
from palimpsest.files import sha256_json
from palimpsest.measurement import Measurement, environment
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress


class Setting(StrEnum):
    """Where an answer may come from."""

    PARAM = "param"
    OFFLINE = "offline"
    ONLINE = "online"


@dataclass
class ThreeSettingRun:
    """One run of the protocol.

    Attributes:
        model: needs "text"; with "logprobs" the answers' own scores are measured too.
        items: the questions.
        snapshot: the frozen store of *offline*.
        live: the retriever of *online*; None leaves the setting out, with a reason in the card.
        training: what the model was trained on, where that is known, for the leak audit.
        template, budget: of all settings.
        seeds: of sampling; greedy decoding asks once, whatever they are.
        on_leak: "raise", "exclude" or "flag".
        refusals: what counts as a refusal.

    Example:
        >>> run = ThreeSettingRun(model, items, Snapshot(old_docs), Snapshot(all_docs))   # doctest: +SKIP
        >>> run.run().summary["gains"]                                                   # doctest: +SKIP
    """

    model: LanguageModel
    items: Sequence[Item]
    snapshot: Snapshot
    live: Retriever | None = None
    training: Sequence[Doc] = ()
    template: Template = field(default_factory=Template)
    budget: Budget = field(default_factory=Budget)
    seeds: Sequence[int] = (0, 1, 2)
    on_leak: str = "raise"
    refusals: RefusalRules = field(default_factory=RefusalRules)

    def run(self, progress: Progress | None = None) -> Measurement:
        """Asks every item in every setting.

        Args:
            progress: called with (settings done, settings in all).

        Returns:
            One row an item, setting and seed: id, source, slice, setting, seed, answer, right (of an unanswerable item: refused; of one
            with a history: fresh), f1, refused, freshness and lag (days since the last change; None without a history), shown and dropped
            (lists of document ids), hit (None without declared evidence, and in *param*), gold_logprob (that of the best gold after the
            prompt), answer_logprob (mean a token of the own answer; both None without log-probs or anything to score), prompt_tokens,
            evidence_tokens, answer_tokens. The summary has accuracies, gains, transitions, reading, the five rates, refusals and AURC, all
            with intervals. Times are in the provenance, so that equal runs have equal tables.

        Raises:
            LeakError: leaks with the policy to raise, or a retriever that returns what was published after the day of the question.
            SettingViolation: evidence in *param*, or a snapshot that changed during the run.
            InputError, CapabilityError, ContextOverflowError: no items, no seeds, or what the model says.
        """
        self.model.require("text", "Answering questions")
        items = sorted(require_items(self.items), key=lambda item: item.id)
        if not self.seeds:
            raise InputError("There are no seeds.", "Give at least one.")
        self._require_frozen()
        live_docs = self.live.docs if isinstance(self.live, Snapshot) else ()
        everything = {doc.id: doc for doc in (*self.snapshot.docs, *live_docs)}
        leaks = audit_contamination(items, everything.values(), self.training, policy=self.on_leak)
        items = [item for item in items if item.id not in leaks.excluded]
        if not items:
            raise LeakError("Every item leaks.", "Look at the report: audit_contamination(..., policy='flag').")
        settings = [Setting.PARAM, Setting.OFFLINE, *([Setting.ONLINE] if self.live is not None else [])]
        maker = PromptMaker(self.model.tokenizer, self.template, self.budget, self.model.room)
        rows: list[dict[str, Any]] = []
        timing: dict[str, dict[str, float]] = {}
        for number, setting in enumerate(settings):
            began = time.perf_counter()
            prompts = [build_prompt(maker, setting, item, self._evidence(setting, item)) for item in items]
            found = time.perf_counter()
            rows += self._ask(setting, items, prompts)
            ended = time.perf_counter()
            timing[setting.value] = {"retrieval_s": (found - began) / len(items), "answer_s": (ended - found) / len(items)}
            if progress:
                progress(number + 1, len(settings))
        self._require_frozen()
        table = pl.DataFrame(rows, infer_schema_length=None).with_columns(
            pl.col("freshness").cast(pl.String),
            pl.col("hit").cast(pl.Boolean),
            pl.col("lag").cast(pl.Int64),
            pl.col("gold_logprob", "answer_logprob").cast(pl.Float64),
            pl.col("shown", "dropped").cast(pl.List(pl.String)),
        )
        return Measurement("three-settings", table, summarise(table, leaks.counts), self._provenance(items, leaks, timing), curves(table))

    def _require_frozen(self) -> None:
        if not self.snapshot.unchanged:
            raise SettingViolation("The snapshot is not what it was when it was frozen.", "Freeze the documents of the offline setting.")

    def _evidence(self, setting: Setting, item: Item) -> list[Passage]:
        if setting is Setting.PARAM:
            return []
        retriever = self.snapshot if setting is Setting.OFFLINE or self.live is None else self.live
        return retriever.search(item.question, self.budget.k, item.asked_at)

    def _ask(self, setting: Setting, items: Sequence[Item], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        sampler = self.template.sampler
        golds = self._logprobs(prompts, [item.golds for item in items])
        rows = []
        for seed in self._seeds():
            written = self.model.generate(
                [prompt.ids for prompt in prompts],
                self.budget.answer_tokens,
                temperature=sampler.temperature,
                top_k=sampler.top_k,
                top_p=sampler.top_p,
                seed=seed,
            )
            answers = [self.template.cut(self.model.tokenizer.decode(continuations[0])) for continuations in written]
            own = self._logprobs(prompts, [[answer] if answer else [] for answer in answers], mean=True)
            for item, prompt, answer, gold, sure, continuations in zip(items, prompts, answers, golds, own, written, strict=True):
                declined = refused(answer, self.refusals, [form for value in item.history for form in value.golds] or item.golds)
                timed = None
                if item.history:
                    timed = freshness(answer, item.history, item.asked_at, rule=self.template.rule, refusals=self.refusals)
                if not item.golds:
                    right = declined
                elif timed is not None:
                    right = timed is Freshness.FRESH
                else:
                    right = not declined and is_right(answer, item.golds, self.template.rule)
                shown = set(prompt.shown)
                rows.append(
                    {
                        "id": item.id,
                        "source": item.source,
                        "slice": item.slice,
                        "setting": setting.value,
                        "seed": seed,
                        "answer": answer,
                        "right": right,
                        "f1": token_f1(answer, item.golds) if item.golds else float(declined),
                        "refused": declined,
                        "freshness": timed.value if timed is not None else None,
                        "lag": days_since_change(item.history, item.asked_at) if item.history else None,
                        "shown": list(prompt.shown),
                        "dropped": list(prompt.dropped),
                        "hit": bool(shown & item.evidence_ids) if item.evidence_ids and setting is not Setting.PARAM else None,
                        "gold_logprob": gold,
                        "answer_logprob": sure,
                        "prompt_tokens": len(prompt.ids),
                        "evidence_tokens": prompt.evidence_tokens,
                        "answer_tokens": len(continuations[0]),
                    }
                )
        return rows

    def _seeds(self) -> list[int]:
        """The seeds that are used: greedy decoding has no chance in it."""
        return [0] if self.template.sampler.greedy else list(self.seeds)

    def _logprobs(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], *, mean: bool = False) -> list[float | None]:
        """The log-probability of the likeliest answer to each prompt, of all its tokens or their mean.

        None without answers, and from a door that has no log-probabilities.
        """
        best: list[float | None] = [None] * len(prompts)
        pairs = [(number, form) for number, forms in enumerate(answers) for form in forms]
        if "logprobs" not in self.model.capabilities or not pairs:
            return best
        encoded = [np.array(self.model.tokenizer.encode(self.template.answer_prefix + form), np.int64) for _, form in pairs]
        sequences = [np.concatenate([prompts[number].ids, ids]) for (number, _), ids in zip(pairs, encoded, strict=True)]
        scores = self.model.score(sequences, start=[len(prompts[number].ids) for number, _ in pairs])
        for (number, _), row in zip(pairs, scores.logprobs, strict=True):
            total, known = float(row.mean(dtype=np.float64) if mean else row.sum(dtype=np.float64)), best[number]
            best[number] = total if known is None else max(known, total)
        return best

    def _provenance(self, items: Sequence[Item], leaks: LeakReport, timing: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model.describe(),
            "data": {
                "hash": items_hash(self.items),
                "size": len(self.items),
                "asked": [min(item.asked_at for item in items).isoformat(), max(item.asked_at for item in items).isoformat()],
            },
            "item_ids": [item.id for item in items],
            "snapshot": self.snapshot.hash,
            "live": self.live.hash if isinstance(self.live, Snapshot) else type(self.live).__name__ if self.live is not None else None,
            "template": {**asdict(self.template), "sampler": str(self.template.sampler), "hash": self.template.hash},
            "budget": asdict(self.budget),
            "seeds": self._seeds(),
            "refusals": sha256_json(asdict(self.refusals)),
            "leaks": leaks.to_dict(),
            "timing": timing,
            "environment": environment(),
        }


def build_prompt(maker: PromptMaker, setting: Setting, item: Item, passages: Sequence[Passage]) -> Prompt:
    """The prompt of an item in a setting, if the setting allows the evidence.

    Raises:
        SettingViolation: evidence in *param*.
        LeakError: a passage published after the day of the question.
    """
    if setting is Setting.PARAM and passages:
        raise SettingViolation(
            f"Item {item.id!r} has {len(passages)} passages in the setting without evidence.", "Leave the slot to the filler."
        )
    for passage in passages:
        if passage.doc.published_at > item.asked_at:
            raise LeakError(
                f"{passage.doc.id!r} of {passage.doc.published_at} was retrieved for {item.id!r}, asked on {item.asked_at}.",
                "Give a retriever that keeps to `as_of`.",
            )
    return maker.make(item.question, passages)
