"""What a few-shot memory is tested against (system 047): foils, and the study material that is not text; see `retention`.

Orhan, 2023, arXiv 2303.17557, has six conditions: seen text against other text, against a paraphrase, against the same text with one word
exchanged for a synonym; seen word lists against other lists, and against text; seen gibberish against the text that it was made from.
Paraphrases and synonyms have to be given (`read_condition` reads the paper's files); the rest is made here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from palimpsest.errors import InputError
from palimpsest.tokenizer import Tokenizer

CONDITIONS = {
    1: "text against other text",
    2: "text against its paraphrase",
    3: "text against itself with a synonym",
    4: "random words against others",
    5: "random words against text",
    6: "gibberish against its text",
}
LIST_WORDS = 25


def unrelated(seen: Sequence[str], pool: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """For every seen text another one from the pool, as near to it in tokens as there is; each is used once.

    A comparison of mean losses must not be one of lengths. Longest texts choose first, for they have the least choice.

    Raises:
        InputError: the pool holds a seen text, or fewer texts than were seen.
    """
    if set(seen) & set(pool) or len(pool) < len(seen):
        raise InputError(
            f"The pool has {len(pool)} texts, {len(set(seen) & set(pool))} of them seen.", "Give more texts, none of them seen."
        )
    lengths = np.array([len(ids) for ids in tokenizer.encode_batch(list(pool))], dtype=np.float64)
    wanted = [len(ids) for ids in tokenizer.encode_batch(list(seen))]
    found = [""] * len(seen)
    for place in sorted(range(len(seen)), key=lambda n: -wanted[n]):
        best = int(np.abs(lengths - wanted[place]).argmin())
        found[place], lengths[best] = pool[best], np.inf
    return found


def random_words(texts: Sequence[str], n: int, words: int = LIST_WORDS, seed: int = 0) -> list[str]:
    """Lists of different words drawn from the words of some texts: lower case, letters only, more than two of them.

    Raises:
        InputError: the texts have fewer such words than a list.

    Example:
        >>> sorted(random_words(["A cat sat on a mat."], 1, words=3)[0].split())
        ['cat', 'mat', 'sat']
    """
    pool = sorted({word for text in texts for word in re.findall(r"[a-z]{3,}", text.lower())})
    if len(pool) < words:
        raise InputError(f"The texts have {len(pool)} words of more than two letters.", f"A list takes {words}: give more text.")
    rng = np.random.default_rng((seed, 25))
    return [" ".join(rng.choice(pool, size=words, replace=False)) for _ in range(n)]


def gibberish(text: str, seed: int = 0) -> str:
    """The letters of every word in another order, and the words too.

    Example:
        >>> sorted(gibberish("over the moon").replace(" ", "")) == sorted("overthemoon")
        True
    """
    rng = np.random.default_rng((seed, 6))
    mixed = ["".join(rng.permutation(list(word))) for word in text.split()]
    return " ".join(mixed[n] for n in rng.permutation(len(mixed)))


def synonym(text: str, synonyms: Mapping[str, str], seed: int = 0) -> str | None:
    """The text with one word exchanged; None when no word of it has a synonym.

    Example:
        >>> synonym("The end of the road.", {"road": "street"})
        'The end of the street.'
    """
    places = [match for match in re.finditer(r"\w+", text) if match[0] in synonyms]
    if not places:
        return None
    chosen = places[int(np.random.default_rng((seed, 3)).integers(len(places)))]
    return text[: chosen.start()] + synonyms[chosen[0]] + text[chosen.end() :]


def read_condition(folder: Path, condition: int, part: int = 0) -> tuple[list[str], list[str]]:
    """Seen texts and foils of one of the paper's conditions, from the files of its repository.

    Args:
        folder: `data/llm-experiment-data` of eminorhan/llm-memory.
        condition: 1 to 6.
        part: 0 to 3.

    Raises:
        InputError: no such condition or file, a line without a sentence, or two files of different length.
    """
    if condition not in CONDITIONS:
        raise InputError(f"The condition is {condition}.", "Choose 1 to 6.")
    sides: list[list[str]] = []
    for side in ("seen", "unseen"):
        path = folder / f"expt{condition}" / f"{side}_data_{part}.json"
        try:
            sides.append([json.loads(line)["sent"] for line in path.read_text(encoding="utf-8").split("\n") if line.strip()])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {error}.", "Give JSON lines with the field 'sent'.") from error
    if len(sides[0]) != len(sides[1]):
        raise InputError(f"{folder}, condition {condition}: {len(sides[0])} seen and {len(sides[1])} other texts.", "They go in pairs.")
    return sides[0], sides[1]
