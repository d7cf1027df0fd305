"""The survey's terms as an executable catalogue (020): definitions, drivers, detectors, mitigations and risks, each with its code.

Xiong, Zhao, Pappu and Song, *The Landscape of Memorization in LLMs: Mechanisms, Measurement, and Mitigation* (2025, arXiv 2507.05578).
Every entry resolves to code of this library ("module:object") or is out of scope with a reason; a test walks them. Detectors and
mitigations are those that audits dispatch (`registry.DETECTORS`, `mitigations.MITIGATIONS`), seen as terms. The spec has this file in
`audit`, which may not import the probes of `evaluation`; it stands here, where all of them can be named.

    >>> from palimpsest.evaluation.suite.landscape import CATALOGUE
    >>> CATALOGUE["definition/probabilistic"].code
    'palimpsest.audit.probabilistic:measure_probabilistic'
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from palimpsest.evaluation.suite.mitigations import MITIGATIONS
from palimpsest.evaluation.suite.registry import DETECTORS

KINDS = ("definition", "driver", "detector", "mitigation", "risk")


@dataclass(frozen=True)
class Entry:
    """A term of the survey.

    Attributes:
        kind: of `KINDS`.
        name: of the term; the catalogue's key is "kind/name".
        meaning: what it is, in a sentence.
        needs: access that it takes.
        cost: of one passage, in words.
        code: "module:object" that implements it; empty when it is out of scope.
        out_of_scope: why the library does not have it.
    """

    kind: str
    name: str
    meaning: str
    needs: tuple[str, ...] = ()
    cost: str = ""
    code: str = ""
    out_of_scope: str = ""

    def resolve(self) -> Any:
        """The object that implements it; None when it is out of scope."""
        if not self.code:
            return None
        module, _, name = self.code.partition(":")
        return getattr(import_module(module), name)


_LOGITS, _TEXT, _CORPUS, _RUN = "log-probabilities", "generation", "corpus", "training run"
_TERMS = (
    Entry(
        "definition",
        "discoverable",
        "Greedy decoding from the true prefix writes the suffix (011).",
        (_TEXT, _CORPUS),
        "one forward",
        "palimpsest.audit.extraction:measure_extraction",
    ),
    Entry(
        "definition",
        "probabilistic",
        "One of n samples is the suffix with probability p (029).",
        (_LOGITS,),
        "one forward",
        "palimpsest.audit.probabilistic:measure_probabilistic",
    ),
    Entry(
        "definition",
        "approximate",
        "The output is the passage but for a few words (001).",
        (_TEXT,),
        "one generation",
        "palimpsest.audit.approximate:measure_approximate",
    ),
    Entry(
        "definition",
        "k-eidetic",
        "It comes out and stands in at most k documents of the corpus.",
        (_TEXT, _CORPUS),
        "one generation, one count",
        "palimpsest.audit.low_perplexity:measure_low_perplexity",
    ),
    Entry(
        "definition",
        "extractable",
        "It comes out of some prompt that is not its own prefix.",
        (_TEXT, _CORPUS),
        "generations, traced",
        "palimpsest.audit.divergence:measure_divergence",
    ),
    Entry(
        "definition",
        "counterfactual",
        "What models trained with the text do better on it than models trained without.",
        (_RUN,),
        "two trainings",
        "palimpsest.evaluation.memory_test:run_probe",
    ),
    Entry(
        "definition",
        "semantic",
        "The output means the same as an item of the training data (041).",
        (_TEXT, _CORPUS),
        "one sample, embedded",
        "palimpsest.audit.alignment:measure_alignment",
    ),
    Entry(
        "definition",
        "tabular",
        "Rows or cells of a table come out to the letter (084).",
        (_TEXT,),
        "prompts a row",
        "palimpsest.audit.tabular:TabularAudit",
    ),
    Entry(
        "definition",
        "exposure",
        "log2 |R| − log2 rank of a canary among references (Secret Sharer).",
        (_LOGITS,),
        "one forward",
        "palimpsest.evaluation.layers.parametric:exposure",
    ),
    Entry("driver", "size", "Larger models remember more.", (_LOGITS,), "one forward a size", "palimpsest.audit.laws:size_law"),
    Entry(
        "driver",
        "duplication",
        "Repeated texts are remembered.",
        (_CORPUS,),
        "one pass over the index",
        "palimpsest.corpus.duplicates:repeated_passages",
    ),
    Entry(
        "driver",
        "context",
        "Longer prompts draw out more.",
        (_LOGITS,),
        "one forward a context",
        "palimpsest.audit.extraction:measure_extraction",
    ),
    Entry(
        "driver",
        "vocabulary",
        "Larger subword vocabularies make models remember more (066).",
        (_RUN,),
        "one training a vocabulary",
        "palimpsest.audit.vocabulary:VocabularySweep",
    ),
    Entry(
        "driver",
        "sampling",
        "Temperature and cuts decide what can come out.",
        (_LOGITS,),
        "one forward",
        "palimpsest.audit.probabilistic:suffix_logprob",
    ),
    Entry(
        "driver",
        "order",
        "What is read late is remembered better; order shapes what is left.",
        (_RUN,),
        "one training",
        "palimpsest.audit.order_effects:OrderEstimator",
    ),
    Entry(
        "driver",
        "capacity",
        "An attention layer holds as many examples as its heads have rank for.",
        ("weights",),
        "linear algebra",
        "palimpsest.audit.capacity:construct_memorizer",
    ),
    Entry(
        "driver",
        "fine-tuning",
        "How a model is adapted decides what it keeps.",
        (_RUN,),
        "one training",
        out_of_scope="Measured by continual training, which is another part of the library's plan.",
    ),
    Entry("risk", "privacy", "Personal data comes out.", (_TEXT,), "a search by patterns", "palimpsest.audit.annotators:find_pii"),
    Entry(
        "risk",
        "copyright",
        "Works come out in long runs.",
        (_TEXT,),
        "generations, aligned",
        "palimpsest.audit.copyright:measure_copyright",
    ),
    Entry(
        "risk",
        "contamination",
        "Test items were in the training data.",
        (_CORPUS,),
        "a search",
        "palimpsest.evaluation.contamination:audit_contamination",
    ),
    Entry(
        "risk", "legal", "Whether a leak infringes a right.", out_of_scope="A question of law; the report gives the facts that it turns on."
    ),
)


def _catalogue() -> dict[str, Entry]:
    entries = list(_TERMS)
    for detector in DETECTORS:
        code = f"{detector.tasks.__module__}:{detector.tasks.__name__}" if detector.tasks and "<" not in detector.tasks.__name__ else ""
        needs = tuple(map(str, detector.needs))
        outside = "" if code else (detector.reason or "")
        entries.append(Entry("detector", detector.name, detector.title, needs, detector.per_sample, code, outside))
    for mitigation in MITIGATIONS:
        entries.append(
            Entry("mitigation", mitigation.name, mitigation.title, (), mitigation.price, mitigation.code, mitigation.out_of_scope)
        )
    return {f"{entry.kind}/{entry.name}": entry for entry in entries}


CATALOGUE: dict[str, Entry] = _catalogue()
