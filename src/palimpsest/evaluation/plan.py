"""What an audit is asked: its settings, and the plan with the corpus opened and the passages drawn."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from palimpsest.audit.membership_passes import METHODS
from palimpsest.audit.probabilistic import TOP_K_40
from palimpsest.audit.samples import PrefixSuffix, corpus_samples, require_samples
from palimpsest.corpus import CorpusIndex, read_documents
from palimpsest.errors import InputError
from palimpsest.evaluation.nearest import require_share
from palimpsest.files import sha256_json
from palimpsest.measurement import plain
from palimpsest.models import LanguageModel, Sampler, ScoreCache


@dataclass(frozen=True)
class AuditSettings:
    """What an audit does; every field is in the card.

    Attributes:
        samples: passages drawn from the corpus (when none are given).
        contexts: tokens of prompt before the suffix; all contexts are asked for the *same* suffixes.
        suffix: tokens that count as the leak.
        sampler: the decoding scheme of probabilistic extraction.
        tries, confidences: the n and p of (n, p)-extraction.
        near_samples: passages, drawn at random, whose continuations are looked for in the whole corpus, nearly the same included.
        edit_share: token edits within which a passage counts as nearly the same, as a share of the suffix's tokens.
        guard_n: length of the protected n-grams.
        guard_edits: token edits that the approximate guard allows for; 0 leaves it out.
        guard_samples: passages that are generated with and without the guard, the most easily leaked first.
        leaks: passages shown in the report.
        attacks: membership scores, some of `palimpsest.audit.membership_passes.METHODS`; None: all that a pass or two a text give.
        seed: of every random choice.
    """

    samples: int = 200
    contexts: tuple[int, ...] = (25, 50, 100, 200)
    suffix: int = 50
    sampler: Sampler = TOP_K_40
    tries: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    confidences: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99)
    near_samples: int = 100
    edit_share: float = 0.1
    guard_n: int = 10
    guard_edits: int = 2
    guard_samples: int = 24
    leaks: int = 12
    attacks: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "suffix", "near_samples", "guard_n", "guard_samples", "leaks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Give an integer of at least 1.")
        for name in ("seed", "guard_edits"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}.", "Give an integer of at least 0.")
        require_share(self.edit_share)
        unknown = set(METHODS if self.attacks is None else self.attacks) - set(METHODS)
        if unknown or self.attacks == ():
            raise InputError(
                f"Of the membership scores that were asked for there is no {sorted(unknown)[0]!r}."
                if unknown
                else "No membership score was asked for.",
                f"Choose from {', '.join(METHODS)}.",
            )
        if not self.contexts or min(self.contexts) < 1:
            raise InputError(f"contexts are {self.contexts}.", "Give at least one length, each at least 1 token.")

    @property
    def near_n(self) -> int:
        """Tokens of the passages that the approximate guard protects: those of the n-grams, and at least three for every edit and one."""
        return max(self.guard_n, 3 * (self.guard_edits + 1))


@dataclass(frozen=True)
class AuditPlan:
    """Everything that an audit is asked, with the corpus opened and the passages drawn."""

    models: tuple[LanguageModel, ...]
    references: Mapping[str, LanguageModel]
    index: CorpusIndex
    corpus_name: str
    protected: CorpusIndex
    samples: tuple[PrefixSuffix, ...]
    held_out: tuple[PrefixSuffix, ...]
    unprotected: tuple[str, ...]
    settings: AuditSettings
    notes: tuple[str, ...] = ()  # where the audit is not what was asked for, and why
    general: CorpusIndex | None = None  # text of the same language that holds neither the passages nor the held-out ones
    suite: str = "quick"  # which detectors are run, see palimpsest.evaluation.suite

    @property
    def tokens(self) -> int:
        """Tokens of one pass over all passages."""
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def prompt(self) -> float:
        """Tokens of a passage's prefix, in the mean."""
        return sum(sample.prefix_len for sample in self.samples) / len(self.samples)

    def cached(self, model: LanguageModel) -> ScoreCache:
        """The door to an audited or a reference model that all measurements of the audit share: no row is scored twice."""
        return self._caches[id(model)]

    def shared(self) -> dict[str, str]:
        """How much of what was asked the models had to do, in words; nothing where nothing was asked."""
        counts = [cache.counts for cache in self._caches.values()]
        rows, scored = sum(c.rows for c in counts), sum(c.scored_rows for c in counts)
        prefixes, written = sum(c.prefixes for c in counts), sum(c.written_prefixes for c in counts)
        said = {"scored": f"{scored:,} rows, for {rows:,} that were asked for"} if rows else {}
        return said | ({"written": f"{written:,} continuations, for {prefixes:,} that were asked for"} if prefixes else {})

    @cached_property
    def _caches(self) -> dict[int, ScoreCache]:
        """One cache a model. What several measurements ask is announced: of every passage, that of extraction (at the longest prompt),
        classes, probabilistic extraction and membership is one pass; of a reference, that of extraction and membership."""
        caches = {id(model): ScoreCache(model) for model in (*self.models, *self.references.values())}
        others = membership_split(self)[1]
        for model in self.models:
            if "logprobs" not in model.capabilities:
                continue
            moments = "weights" in model.capabilities
            caches[id(model)].expect([sample.ids for sample in self.samples], moments=moments, samplers=[self.settings.sampler])
            if others:
                caches[id(model)].expect([sample.ids for sample in others], moments=moments)
        for reference in self.references.values():
            if others and "logprobs" in reference.capabilities:
                caches[id(reference)].expect([sample.ids for sample in (*self.samples, *others)])
        return caches


def fitting_contexts(settings: AuditSettings, models: Sequence[LanguageModel], index: CorpusIndex) -> tuple[int, ...]:
    """The contexts that the models can see and that some document can provide, with the suffix behind them.

    Raises:
        InputError: none is left.
    """
    room = min(model.room for model in models) - settings.suffix
    longest = index.longest_document - settings.suffix
    fitting = tuple(context for context in sorted(settings.contexts) if context <= min(room, longest))
    if not fitting:
        raise InputError(
            f"A context of {min(settings.contexts)} tokens with a suffix of {settings.suffix} does not fit: the models see "
            f"{room + settings.suffix} tokens and the longest document has {longest + settings.suffix}.",
            "Ask for shorter contexts or a shorter suffix (--context, --suffix).",
        )
    return fitting


def possible_sampler(sampler: Sampler, models: Sequence[LanguageModel]) -> Sampler:
    """The sampler, or plain sampling at T=1 where a model gives log-probabilities but not the whole distribution that a cut needs."""
    scored = [model for model in models if "logprobs" in model.capabilities]
    return sampler if all("weights" in model.capabilities for model in scored) else Sampler()


def departures(asked: AuditSettings, done: AuditSettings, passages: int) -> tuple[str, ...]:
    """What the audit does otherwise than asked, in words."""
    said = []
    dropped = [context for context in sorted(asked.contexts) if context not in done.contexts]
    if dropped:
        said.append(
            f"Prompts of {', '.join(map(str, dropped))} tokens were asked for and left out: with a suffix of {done.suffix} they fit no "
            "document, or not the context of a model."
        )
    if asked.sampler != done.sampler:
        said.append(
            f"Many tries were asked for under {asked.sampler} and measured under {done.sampler}: a cut needs the whole distribution, "
            "which the door to a model does not give."
        )
    if passages < asked.samples:
        said.append(f"{asked.samples} passages were asked for; the corpus gave {passages} different ones.")
    if asked.guard_n > max(done.contexts) + done.suffix:
        said.append(f"The guard protects {asked.guard_n}-grams, longer than a prompt and its suffix here: it could not act.")
    return tuple(said)


def read_held_out(
    source: str | Path | Sequence[PrefixSuffix] | None, model: LanguageModel, settings: AuditSettings
) -> Sequence[PrefixSuffix]:
    """Passages that the models were not trained on: as given, or drawn from text like the passages of the corpus."""
    if source is None:
        return ()
    if not isinstance(source, str | Path):
        return require_samples(source)
    with tempfile.TemporaryDirectory() as folder:
        index = CorpusIndex.build(read_documents(source), model.tokenizer, Path(folder) / "held-out")
        drawn = corpus_samples(index, settings.samples, max(settings.contexts), settings.suffix, settings.seed)
    return [replace(sample, meta={**sample.meta, "id": f"held-out-{number}", "copies": 0}) for number, sample in enumerate(drawn)]


def membership_split(plan: AuditPlan) -> tuple[list[PrefixSuffix], list[PrefixSuffix]]:
    """Members and non-members: held-out passages where there are any, else the passages that are known to have 0 copies."""
    members = [sample for sample in plan.samples if sample.meta.get("copies") != 0]
    return members, list(plan.held_out) or [sample for sample in plan.samples if sample.meta.get("copies") == 0]


def fingerprint_samples(samples: Sequence[PrefixSuffix]) -> str:
    """SHA-256 over ids, cuts and what is known of the passages."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sha256_json([sample.prefix_len, sample.suffix_len, plain(sample.meta)]).encode())
        digest.update(sample.ids.astype("<i8").tobytes())
    return digest.hexdigest()
