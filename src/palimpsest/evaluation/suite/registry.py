"""The registry: every detector of memorization that an audit can dispatch, and the families under which the report shows them.

To add one, write its file beside this one (see `palimpsest.evaluation.suite.detector`) and put its entry into `DETECTORS`, behind those of
its family. Nothing else names it: steps, costs, sections, and the table of what was not measured follow from the entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.errors import InputError
from palimpsest.evaluation.suite.beams import BEAM_SEARCH
from palimpsest.evaluation.suite.contextual import NEEDLE, ORDER
from palimpsest.evaluation.suite.core import CLASSES, EXTRACTION, GUARD, LEAKS, MEMBERSHIP, PROBABILISTIC
from palimpsest.evaluation.suite.detector import SUITES, Detector
from palimpsest.evaluation.suite.drivers import DUPLICATION, FORECAST
from palimpsest.evaluation.suite.elsewhere import ELSEWHERE
from palimpsest.evaluation.suite.exposure import EXPOSURE
from palimpsest.evaluation.suite.inside import FUNCTION_TOKENS, MEMORY_TOKENS
from palimpsest.evaluation.suite.knowledge import CONTRAST
from palimpsest.evaluation.suite.near import NEAR_VERBATIM
from palimpsest.evaluation.suite.prompting import DIVERGENCE, SOFT_PROMPT
from palimpsest.evaluation.suite.rewinding import REWIND
from palimpsest.evaluation.suite.writing import COPYRIGHT, DISCOURSE, LOW_PERPLEXITY, REQUESTS


@dataclass(frozen=True)
class Family:
    """A section of the report.

    Attributes:
        name: its id.
        title, question: its heading, and what it answers.
        group: the kind of detection in the survey, under which the contents list it.
    """

    name: str
    title: str
    question: str
    group: str


FAMILIES = (
    Family("extraction", "Word for word", "Shown the beginning of a passage, does the model write the rest?", "Extraction by prefix"),
    Family(
        "classes", "Why it is remembered", "Does what comes out stand in many places, follow a rule, or neither?", "Extraction by prefix"
    ),
    Family("probabilistic", "With many tries", "How often must one ask until a passage comes out?", "Extraction by prefix"),
    Family("leaks", "What leaks, and from where", "What does the model write, and which documents is it from?", "Extraction by prefix"),
    Family("prompting", "Prompts that attack", "What comes out when the prompt is an attack?", "Adversarial prompting"),
    Family("writing", "What it writes by itself", "How much of its own writing is somebody else's?", "Generation"),
    Family(
        "membership",
        "Was it in the training data?",
        "Can one tell from the model's scores which texts it was trained on?",
        "Membership inference",
    ),
    Family(
        "knowledge",
        "What is common knowledge",
        "What does it complete that everybody knows, and what sets that apart?",
        "Knowledge and context",
    ),
    Family("context", "Memory of the context", "What does it keep of the text in its prompt?", "Knowledge and context"),
    Family("drivers", "What drives it", "What in corpus and model makes texts be remembered?", "Drivers"),
    Family("guard", "With a guard", "What would a guard have stopped, what still leaks past it, and what does it cost?", "Mitigation"),
)

DETECTORS: tuple[Detector, ...] = (
    # extraction by prefix
    EXTRACTION,
    BEAM_SEARCH,
    CLASSES,
    PROBABILISTIC,
    NEAR_VERBATIM,
    # membership inference
    MEMBERSHIP,
    EXPOSURE,
    # what is written, and from where
    LEAKS,
    GUARD,
    # adversarial prompting
    DIVERGENCE,
    REQUESTS,
    SOFT_PROMPT,
    # what it writes by itself
    LOW_PERPLEXITY,
    DISCOURSE,
    COPYRIGHT,
    # knowledge and context
    CONTRAST,
    FUNCTION_TOKENS,
    REWIND,
    NEEDLE,
    ORDER,
    MEMORY_TOKENS,
    # drivers
    DUPLICATION,
    FORECAST,
    # what no audit of a corpus can run
    *ELSEWHERE,
)


def require_suite(name: str) -> str:
    """The name of a suite, or an error.

    Raises:
        InputError: there is none of this name.
    """
    if name not in SUITES:
        raise InputError(f"There is no suite {name!r}.", f"Choose one of {', '.join(SUITES)}.")
    return name
