"""Questions whose answer changed, prompts that declare an earlier end of knowledge, and how an answer is read.

After Gao et al., EMNLP 2025, arXiv 2510.02340 (see `rewind`). An item has the year from which on nothing may be known, the answer of today
(`now`) and the one that was right before that year (`then`); where both are the same it tests retention. Its form says what an answer looks
like: yes or no; a letter of four options; a definition; or a value, a name or number, which is ours.

Prompts are YAML: name -> `system` (with {year}, {year_minus_1}), `forms` (what to write), and optionally `frame`, the whole text with
{system} and {user}. `PLAIN` is what base models read, `CHATML` what many chat models were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from palimpsest.errors import InputError
from palimpsest.evaluation.answers import RefusalRules, mention, refused
from palimpsest.evaluation.temporal import TimedValue

SUBSETS = ("factual", "semantic", "counterfactual")
LETTERS = "ABCD"
PLAIN = "{system}\n\n{user}\nAnswer:"
CHATML = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
FRAMES = {"plain": PLAIN, "chatml": CHATML}
DEFAULT_PROMPTS = Path(__file__).parent / "rewind_prompts.yaml"
DEFAULT_ITEMS = Path(__file__).parent / "rewind_items.jsonl"


@dataclass(frozen=True)
class RewindItem:
    """A question at a cut-off.

    Attributes:
        id: distinct.
        subset: "factual", "semantic" or "counterfactual".
        question: of a semantic item, the word or phrase.
        year: the first year that must not be known.
        now, then: the answers of today and of before the year.
        options: of a letter item, four, `now` and `then` among them.
        history: the values of the fact, where they are known; then an answer is also placed in time.

    Raises:
        InputError: no year, an unknown subset, an empty text, a semantic item with options, or options that are not four different ones.
    """

    id: str
    subset: str
    question: str
    year: int
    now: str
    then: str
    options: tuple[str, ...] = ()
    history: tuple[TimedValue, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.year, bool) or not isinstance(self.year, int) or not 1000 <= self.year <= 3000:
            raise InputError(f"The item {self.id!r} has the year {self.year!r}.", "Give the first year that must not be known, like 2018.")
        if self.subset not in SUBSETS or not all(text.strip() for text in (self.id, self.question, self.now, self.then)):
            raise InputError(
                f"The item {self.id!r} is of subset {self.subset!r}, or lacks a text.", f"Choose of {', '.join(SUBSETS)}; give all texts."
            )
        wrong = len(set(self.options)) != 4 or not {self.now, self.then} <= set(self.options) or self.subset == "semantic"
        if self.options and wrong:
            raise InputError(f"The item {self.id!r} has the options {self.options}.", "Give four different ones, with both answers.")

    @property
    def form(self) -> str:
        """What an answer looks like."""
        if self.subset == "semantic":
            return "definition"
        if self.options:
            return "letter"
        return "yes_no" if {self.now, self.then} <= {"Yes", "No"} else "value"

    @property
    def retention(self) -> bool:
        """Whether the answer did not change, so that a prompt should leave it alone."""
        return self.now == self.then


def read_rewind_items(path: str | Path = DEFAULT_ITEMS) -> list[RewindItem]:
    """Items from JSON lines with the fields id, subset, question, year, now, then and options; by default forty of our own and four more
    that did not change.

    Raises:
        InputError: a file that is not UTF-8, a line that is no item, no items, or ids that repeat.
    """
    items = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # a text may hold other line separators
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}.", "Give JSON lines in UTF-8.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            items.append(RewindItem(**{**fields, "options": tuple(fields.get("options", ()))}))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"Line {number} of {path} is no item: {error}.", "Write id, subset, question, year, now and then.") from error
    require_items(items)
    return items


def require_items(items: Sequence[RewindItem]) -> None:
    """Raises `InputError` where there are no items or ids repeat."""
    if not items or len({item.id for item in items}) < len(items):
        raise InputError(
            f"There are {len(items)} items, {len({item.id for item in items})} different ids.", "Give items with distinct ids."
        )


@dataclass(frozen=True)
class RewindPrompt:
    """A prompt that declares the end of knowledge.

    Attributes:
        name: "P1".
        system: with {year} and {year_minus_1}.
        forms: form -> what to write, with the same.
        frame: the whole text, with {system} and {user}.
    """

    name: str
    system: str
    forms: dict[str, str]
    frame: str = PLAIN

    def fill(self, item: RewindItem, shown: Sequence[str] = (), year: int | None = None) -> str:
        """The text for an item.

        Args:
            item: which.
            shown: the options in the order in which they are lettered.
            year: instead of the item's, for a placebo.

        Raises:
            InputError: the prompt does not know the item's form.
        """
        if item.form not in self.forms:
            raise InputError(f"The prompt {self.name!r} has no form {item.form!r}.", f"Add it to its forms: {', '.join(self.forms)}.")
        first = item.year if year is None else year
        years = {"year": first, "year_minus_1": first - 1}
        system = " ".join(part for part in (self.system, self.forms[item.form]) if part).format(**years)
        return self.frame.format(system=system, user=asked(item, shown), **years)

    def without(self) -> RewindPrompt:
        """The same frame and form of answer, with no end of knowledge declared.

        Raises:
            InputError: the frame itself names a year.
        """
        if "{year" in self.frame:
            raise InputError(f"The frame of {self.name!r} names a year.", "Say with without= how to ask when no year is declared.")
        return RewindPrompt("none", "", {form: _UNDATED[form] for form in self.forms}, self.frame)


_UNDATED = {
    "yes_no": "Write Yes or No and nothing else.",
    "letter": "Write the letter of the most reasonable option, A, B, C or D, and nothing else.",
    "definition": "Write one short definition of at most 100 words and nothing else.",
    "value": "Write the answer alone, without a sentence around it.",
}


def asked(item: RewindItem, shown: Sequence[str]) -> str:
    """The question as it stands in a prompt."""
    if item.form == "definition":
        return f"What does the word or phrase “{item.question}” mean?"
    if item.form == "letter":
        return "\n".join([item.question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, shown, strict=True))])
    return item.question


def read_prompts(path: str | Path = DEFAULT_PROMPTS, frame: str = "plain") -> dict[str, RewindPrompt]:
    """Prompts by name from a YAML file.

    Args:
        path: the file.
        frame: of prompts that have none of their own: a name of `FRAMES` or a text with {system} and {user}.

    Raises:
        InputError: no YAML of this kind, no such form, neither {year} nor {year_minus_1}, or a frame without {user}.

    Example:
        >>> sorted(read_prompts()), "2018" in read_prompts()["P1"].fill(RewindItem("a", "factual", "Is it?", 2018, "Yes", "No"))
        (['P1', 'P2'], True)
    """
    whole = FRAMES.get(frame, frame)
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        prompts = {
            name: RewindPrompt(name, str(entry["system"]).strip(), dict(entry["forms"]), entry.get("frame", whole))
            for name, entry in found.items()
        }
        for prompt in prompts.values():
            for text in (prompt.system, prompt.frame, *prompt.forms.values()):
                text.format(system="", user="", year=2000, year_minus_1=1999)
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} holds no prompts: {error}.", "Write name: {system: …, forms: {yes_no: …}}.") from error
    for prompt in prompts.values():
        dated = any("{year" in text for text in (prompt.system, prompt.frame, *prompt.forms.values()))
        if not prompt.forms or not set(prompt.forms) <= set(_UNDATED) or "{user}" not in prompt.frame or not dated:
            raise InputError(
                f"The prompt {prompt.name!r} has the forms {list(prompt.forms)}, or lacks {{user}} or {{year}}.",
                f"Choose forms of {', '.join(_UNDATED)}; put {{user}} into the frame and {{year}} or {{year_minus_1}} into the text.",
            )
    return prompts


def lettered(items: Sequence[RewindItem], seed: int) -> dict[str, tuple[str, ...]]:
    """Options of letter items in the order shown: shuffled, `then` equally often under every letter."""
    chosen = [item for item in items if item.form == "letter"]
    rng = np.random.default_rng((seed, 99))
    places = rng.permutation(np.arange(len(chosen)) % len(LETTERS)).tolist()
    shown = {}
    for item, place in zip(chosen, places, strict=True):
        others = [option for option in item.options if option != item.then]
        order = [others[i] for i in rng.permutation(3).tolist()]
        shown[item.id] = (*order[:place], item.then, *order[place:])
    return shown


def read_answer(item: RewindItem, answer: str, shown: Sequence[str] = (), refusals: RefusalRules | None = None) -> str:
    """What an answer of a form other than a definition is: "then", "now", "other" or "na" (nothing that can be read, or a refusal).

    Yes or no: the first word, or the only one of the two that stands in the answer. Letter: the first thing in the answer, with nothing or
    a mark behind it, or the only one of the four that stands alone in it. Value: which of the two the answer names first. Where both are
    the same, it is "then".

    Example:
        >>> item = RewindItem("a", "factual", "Who is it?", 2018, "Trump", "Obama")
        >>> [read_answer(item, text) for text in ("Obama.", "Trump", "Bush", "I do not know.")]
        ['then', 'now', 'other', 'na']
    """
    if item.form == "value":
        if refused(answer, refusals, [item.now, item.then]):
            return "na"
        places = {which: mention(answer, [gold], "contains") for which, gold in (("then", item.then), ("now", item.now))}
        found = [(place, which) for which, place in places.items() if place is not None]
        return min(found, key=lambda entry: entry[0])[1] if found else "other"
    if item.form == "yes_no":
        given = _only(answer, r"\W*(yes|no)\b", r"\b(yes|no)\b")
        chosen = None if given is None else given.capitalize()
    else:
        given = _only(answer, r"\W*([A-D])\s*(?:[.):,;\]*\n]|$)", r"(?<![\w'])([A-D])(?![\w'])")
        chosen = None if given is None else shown[LETTERS.index(given)]
    if chosen is None:
        return "na"
    return "then" if chosen == item.then else "now" if chosen == item.now else "other"


def _only(answer: str, start: str, anywhere: str) -> str | None:
    """What stands at the beginning of an answer, or else the only thing of its kind in it; words without regard to case."""
    flags = re.IGNORECASE if "yes" in start else 0
    first = re.match(start, answer, flags)
    if first:
        return first[1]
    found = {match.lower() if flags else match for match in re.findall(anywhere, answer, flags)}
    return found.pop() if len(found) == 1 else None
