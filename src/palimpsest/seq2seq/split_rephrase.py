"""Split and rephrase: one complex sentence in, several simple ones out, of the same meaning (106).

Aharoni & Goldberg, ACL 2018, arXiv 1805.01035, on the task of Narayan et al. (EMNLP 2017). An example has its complex sentence, every
known way to rewrite it, and the triples that it says; the triples are the keys of a split that does not leak (`corpus.splits`).

`compose` makes examples from a `FactWorld`: two or three facts of one subject, joined in one of four forms; each fact becomes one simple
sentence, in the words of the complex one or in others. `read_wiki_split` reads WikiSplit (Botha et al., EMNLP 2018), which has one
rewriting in two sentences and no triples.

`measure_rewriting` scores outputs as the paper's repository does: BLEU of each whole output against all rewritings of its complex
sentence (Moses' multi-bleu.perl, unsmoothed), averaged; simple sentences a complex one; tokens a simple sentence, all tokens by all
sentences. Sentences stand apart by `SEPARATOR`, which no score sees: it is taken out of outputs and rewritings alike. (The paper has spaCy
count sentences, from full stops.) Where the words of entities are known, also how many entities an output has that its source has not.
A model that does nothing scores well in BLEU: always look at `source_copy` beside it.

Example:
    >>> from palimpsest.corpus import FactWorld, leak_free_split
    >>> examples = compose(FactWorld(seed=0, people=20), 100, seed=0)
    >>> split = leak_free_split(examples, lambda example: example.triples, lambda example: {r for _, r, _ in example.triples})
    >>> nothing_done = measure_rewriting(split["test"], source_copy(split["test"]))
    >>> nothing_done.summary["sentences"]
    1.0
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl

from palimpsest.bleu import sentence_bleu
from palimpsest.corpus.facts import Fact
from palimpsest.corpus.factworld import FactWorld
from palimpsest.errors import CorpusError, InputError
from palimpsest.measurement import Measurement
from palimpsest.stats import bootstrap_interval

SEPARATOR = "<::::>"
RELATIONS = (
    "birthplace", "residence", "occupation", "mother", "educated_at", "native_language", "instrument", "award",
    "headquarters", "chief_executive", "founder", "product", "author", "genre", "setting",
)  # fmt: skip
WORDINGS = 6  # those that begin with the subject, and so can be joined
FORMS = ("{s} {a} and {b}.", "{s}, {who} {a}, {b}.")
LONG_FORMS = ("{s} {a}, {b} and {c}.", "{s}, {who} {a}, {b} and {c}.")
_TOKEN = re.compile(r"\w+|[^\w\s]")

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A complex sentence.

    Attributes:
        sentence: its tokens.
        rewritings: ways to say the same in simple sentences, each as tokens with `SEPARATOR` between sentences; the first one is in
            the complex sentence's own words.
        triples: what is said, where it is known.
    """

    sentence: Tokens
    rewritings: tuple[Tokens, ...]
    triples: frozenset[tuple[str, str, str]] = frozenset()

    @property
    def simple(self) -> list[str]:
        """The simple sentences of all rewritings, each once."""
        return list(dict.fromkeys(" ".join(sentence) for text in self.rewritings for sentence in simple_sentences(text)))


def compose(
    world: FactWorld, n: int, *, relations: Sequence[str] = RELATIONS, rewritings: int = 3, seed: int = 0, tries: int = 100
) -> list[Example]:
    """Makes different complex sentences of two or three facts, as of the end of the world's time.

    Args:
        world: where the facts are from.
        n: how many.
        relations: which facts are said.
        rewritings: ways to rewrite each: the first in the words of the complex sentence, in the others every fact is worded anew.
        seed: of what is said and how.
        tries: draws for each, before it is said that there are no more.

    Raises:
        InputError: counts below 1, an unknown relation, or more examples than the world can give.
    """
    if n < 1 or not 1 <= rewritings <= WORDINGS:
        raise InputError(f"{n} examples of {rewritings} rewritings are asked for.", f"Ask for 1 or more of 1 to {WORDINGS}.")
    facts = sorted((fact for name in relations for fact in world.valid_at(world.end, name)), key=lambda fact: fact.subject)
    known = [list(group) for _, group in groupby(facts, key=lambda fact: fact.subject)]
    known = [group for group in known if len(group) > 1]
    rng = np.random.default_rng(seed)
    made: dict[Tokens, Example] = {}
    for _ in range(tries * n):
        if len(made) == n or not known:
            break
        group = known[int(rng.integers(len(known)))]
        amount = min(int(rng.integers(2, 4)), len(group))
        said = [group[i] for i in rng.permutation(len(group))[:amount].tolist()]
        wordings = rng.integers(WORDINGS, size=amount).tolist()
        sentence = tokens(_joined(world, said, wordings, rng))
        if sentence in made:
            continue
        ways = {_apart(world, said, wordings): None}
        while len(ways) < rewritings:
            ways[_apart(world, said, rng.integers(WORDINGS, size=amount).tolist())] = None
        made[sentence] = Example(sentence, tuple(ways), frozenset(fact.triple for fact in said))
    if len(made) < n:
        raise InputError(f"Only {len(made)} of {n} complex sentences were found.", "Ask for fewer, or make a larger world.")
    return list(made.values())


def read_wiki_split(path: Path, limit: int | None = None) -> list[Example]:
    """Examples of a file of WikiSplit: complex sentence, tab, simple sentences with `SEPARATOR` between them, all cut into tokens.

    Raises:
        CorpusError: the file cannot be read, is empty, or has a line of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:limit]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read: {error}.", "Give a file of WikiSplit, such as tune.tsv.") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        sentence, tab, simple = line.partition("\t")
        if not tab or not sentence.split() or not all(part.split() for part in simple.split(SEPARATOR)):
            raise CorpusError(
                f"{path}, line {number} is {line[:60]!r}.", f"Write: complex sentence, tab, simple ones with {SEPARATOR} between."
            )
        examples.append(Example(tuple(sentence.split()), (tuple(simple.split()),)))
    if not examples:
        raise CorpusError(f"{path} is empty.", "Give a file with an example a line.")
    return examples


def pairs(examples: Sequence[Example]) -> tuple[list[Tokens], list[Tokens]]:
    """Sources and targets to train on: every complex sentence with each of its rewritings."""
    return [one.sentence for one in examples for _ in one.rewritings], [text for one in examples for text in one.rewritings]


def source_copy(examples: Sequence[Example]) -> list[Tokens]:
    """The outputs of the baseline that gives back its source."""
    return [one.sentence for one in examples]


def measure_rewriting(
    examples: Sequence[Example], outputs: Sequence[Sequence[str]], entity_words: frozenset[str] | None = None
) -> Measurement:
    """Scores what was written for each complex sentence.

    Args:
        examples: with their rewritings.
        outputs: tokens, with `SEPARATOR` between sentences; may be empty.
        entity_words: words of names (see `entity_words_of`); None: entities are not looked for.

    Returns:
        A `Measurement`. Table: index, bleu (0 to 100), sentences, tokens, entities, hallucinated (null where not looked for).
        Summary: "bleu", "low", "high" (of a bootstrap over complex sentences; None where there is one), "sentences" a complex one,
        "tokens" a sentence (None where there is none), "entities", "hallucinated" and "hallucination" (the share of the entities in
        outputs that their sources have not; None where there are none).

    Raises:
        InputError: no example, or not one output each.
    """
    if not examples or len(examples) != len(outputs):
        raise InputError(f"There are {len(examples)} examples and {len(outputs)} outputs.", "Give one output for every example.")
    rows = []
    for index, (one, output) in enumerate(zip(examples, outputs, strict=True)):
        written = [word for word in output if word != SEPARATOR]
        names = None if entity_words is None else mentions(written, entity_words)
        source = f" {' '.join(one.sentence)} "
        rows.append(
            {
                "index": index,
                "bleu": 100 * sentence_bleu(written, [[w for w in text if w != SEPARATOR] for text in one.rewritings], smoothing=None),
                "sentences": len(simple_sentences(output)),
                "tokens": len(written),
                "entities": None if names is None else len(names),
                "hallucinated": None if names is None else sum(f" {' '.join(name)} " not in source for name in names),
            }
        )
    whole = ("index", "sentences", "tokens", "entities", "hallucinated")
    table = pl.DataFrame(rows, schema={name: pl.Int64 if name in whole else pl.Float64 for name in rows[0]})
    interval = bootstrap_interval(table["bleu"].to_numpy()) if len(rows) > 1 else None
    sentences, entities = int(table["sentences"].sum()), int(table["entities"].sum())
    summary = {
        "bleu": float(table["bleu"].to_numpy().mean()),
        "low": interval and interval.low,
        "high": interval and interval.high,
        "sentences": sentences / len(examples),
        "tokens": int(table["tokens"].sum()) / sentences if sentences else None,
        "entities": None if entity_words is None else entities,
        "hallucinated": None if entity_words is None else int(table["hallucinated"].sum()),
        "hallucination": int(table["hallucinated"].sum()) / entities if entities else None,
    }
    return Measurement("split-rephrase", table, summary, {"examples": len(examples), "bleu": "unsmoothed, all rewritings"})


def tokens(text: str) -> Tokens:
    """Words and signs.

    Example:
        >>> tokens("The Hall, which stands.")
        ('The', 'Hall', ',', 'which', 'stands', '.')
    """
    return tuple(_TOKEN.findall(text))


def simple_sentences(output: Sequence[str]) -> list[Tokens]:
    """The sentences of an output; nothing between two separators is none.

    Example:
        >>> simple_sentences(["a", ".", "<::::>", "b", "."])
        [('a', '.'), ('b', '.')]
    """
    return [tuple(run) for separates, run in groupby(output, key=lambda word: word == SEPARATOR) if not separates]


def entity_words_of(world: FactWorld) -> frozenset[str]:
    """The words of a world's names, without those of its wordings."""
    names = {word for of_kind in world.entities.values() for name in of_kind for word in tokens(name)}
    said = {word for relation in world.relations.values() for template in relation.templates for word in tokens(template)}
    return frozenset(names - said)


def mentions(text: Sequence[str], entity_words: frozenset[str]) -> list[Tokens]:
    """The longest runs of words of names: a name, or what a model takes for one."""
    return [tuple(run) for named, run in groupby(text, key=entity_words.__contains__) if named]


def _joined(world: FactWorld, said: Sequence[Fact], wordings: Sequence[int], rng: np.random.Generator) -> str:
    subject = said[0].subject
    phrases = [world.sentence(fact, i).removeprefix(f"{subject} ").removesuffix(".") for fact, i in zip(said, wordings, strict=True)]
    forms = FORMS if len(said) == 2 else LONG_FORMS
    who = "who" if world.kind_of(subject) == "person" else "which"
    return forms[int(rng.integers(len(forms)))].format(s=subject, who=who, **dict(zip("abc", phrases, strict=False)))


def _apart(world: FactWorld, said: Sequence[Fact], wordings: Sequence[int]) -> Tokens:
    sentences = [tokens(world.sentence(fact, i)) for fact, i in zip(said, wordings, strict=True)]
    return tuple(word for sentence in sentences for word in (SEPARATOR, *sentence))[1:]
