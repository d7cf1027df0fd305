"""A small corpus of which we know why each of its texts could be memorized: because it is repeated, because it follows a rule, or neither.

The ground truth for Prashanth et al. (arXiv 2406.17746), three families of texts of equal length in tokens, each cut into a prompt and
a continuation of half of it:

* **recite**: openings of paragraphs that stand in the corpus 8 or 16 times. Two thirds of them come in pairs with one prompt and two
  continuations, as a licence or a psalm has variants: however often both are read, a model can go on with one of them only. Without
  them every text of this family would be memorized, and there would be nothing to predict.
* **reconstruct**: counters, also in hexadecimal and with two numbers a round, and phrases that repeat; once each.
* **recollect**: openings of other paragraphs; once each.

Everything is drawn from the shipped novels and a seed. What a text is called here does not depend on the detector that is tested.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex, Document
from palimpsest.errors import InputError
from palimpsest.experiments.planted_texts import EOS_ID, base_text
from palimpsest.files import cache_dir, sha256_json
from palimpsest.tokenizer import Tokenizer

FAMILIES = {"recite": "recitation", "reconstruct": "reconstruction", "recollect": "recollection"}
_CHUNK = 1024  # paragraphs encoded at once
PAIRED = 2 / 3  # of the recited texts share their prompt with another


@dataclass(frozen=True)
class FamilySizes:
    """How many texts of each family, and how long they are.

    Attributes:
        recite: texts at each of the two levels of copies (60 in all).
        copies: the two levels.
        reconstruct, recollect: texts.
        prefix_len, suffix_len: tokens of prompt and continuation.
    """

    recite: int = 30
    copies: tuple[int, int] = (8, 16)
    reconstruct: int = 300
    recollect: int = 600
    prefix_len: int = 16
    suffix_len: int = 16


@dataclass(frozen=True)
class Families:
    """The texts and the corpus.

    Attributes:
        samples: every text once, meta "id", "domain" (its family), "copies" (as planted) and "paired".
        tokenizer: of the ids.
    """

    samples: list[PrefixSuffix]
    tokenizer: Tokenizer

    def rows(self) -> np.ndarray:
        """One epoch of the corpus, (rows, tokens + 1) uint16: every text as often as it has copies, EOS after each."""
        ids = [np.append(sample.ids, EOS_ID) for sample in self.samples for _ in range(sample.meta["copies"])]
        return np.stack(ids).astype(np.uint16)

    def index(self) -> CorpusIndex:
        """An index of one epoch, one document a copy; built once, kept in the cache."""
        rows = self.rows()[:, :-1]
        key = sha256_json({"rows": rows.tolist(), "tokenizer": self.tokenizer.fingerprint})[:20]
        documents = (Document(f"row-{i:05d}", ids=row.astype(np.int64)) for i, row in enumerate(rows))
        return CorpusIndex.build(documents, self.tokenizer, cache_dir("lab", "index", key))


def draw_families(tokenizer: Tokenizer, sizes: FamilySizes, seed: int) -> Families:
    """Draws the texts of all families.

    Args:
        tokenizer: the laboratory's.
        sizes: how many.
        seed: of the draw.

    Raises:
        InputError: the novels have fewer paragraphs than are asked for.
    """
    length = sizes.prefix_len + sizes.suffix_len
    rng = np.random.default_rng((seed, 30))
    recited = 2 * sizes.recite
    pairs = round(recited * PAIRED / 2)
    prose = iter(_openings(tokenizer, recited + sizes.recollect, length, rng))
    samples: list[PrefixSuffix] = []

    def add(family: str, ids: np.ndarray, copies: int, paired: bool = False) -> None:
        meta = {"id": f"{family}-{len(samples):04d}", "domain": family, "copies": copies, "paired": paired}
        samples.append(PrefixSuffix(ids, sizes.prefix_len, sizes.suffix_len, meta))

    levels = rng.permutation(np.repeat(sizes.copies, sizes.recite)).tolist()
    for place, copies in enumerate(levels):
        ids = next(prose)
        second = place < 2 * pairs and place % 2 == 1
        if second:  # the prompt of the one before, and a continuation of its own
            ids = np.concatenate([samples[-1].prefix, ids[sizes.prefix_len :]])
        add("recite", ids, copies, paired=place < 2 * pairs)
    for ids in _templated(tokenizer, sizes.reconstruct, length, seed):
        add("reconstruct", ids, 1)
    for _ in range(sizes.recollect):
        add("recollect", next(prose), 1)
    return Families(samples, tokenizer)


def _openings(tokenizer: Tokenizer, n: int, length: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`n` openings of paragraphs of the novels in random order, no two with the same first or second half."""
    paragraphs = base_text().train
    order = rng.permutation(len(paragraphs))
    found: list[np.ndarray] = []
    seen: set[bytes] = set()
    for begin in range(0, len(order), _CHUNK):
        for ids in tokenizer.encode_batch([paragraphs[i] for i in order[begin : begin + _CHUNK]]):
            row = np.array(ids[:length], dtype=np.int64)
            halves = {b"first" + row[: length // 2].tobytes(), b"second" + row[length // 2 :].tobytes()}
            if len(row) == length and seen.isdisjoint(halves):
                seen |= halves
                found.append(row)
        if len(found) >= n:
            return found[:n]
    raise InputError(f"{n} paragraphs of {length} tokens were asked for, the novels have {len(found)}.", "Ask for fewer.")


_WORDS = ("row", "page", "book", "room", "day", "man", "door", "line", "house", "part")
_PHRASES = ("the sea and", "to and fro", "so he said", "day by day", "over and out", "never again", "all the way", "up and down")


def _templated(tokenizer: Tokenizer, n: int, length: int, seed: int) -> list[np.ndarray]:
    """`n` texts that follow a rule, cut to `length` tokens, no two with the same second half."""
    rng = random.Random(f"templated {seed}")
    found: dict[bytes, np.ndarray] = {}
    while len(found) < n:
        ids = tokenizer.encode(rng.choice((_counter, _counter, _hexadecimal, _two_numbers, _phrase))(rng, length))
        row = np.array(ids[:length], dtype=np.int64)
        found.setdefault(row[length // 2 :].tobytes(), row)
    return list(found.values())


def _counter(rng: random.Random, rounds: int) -> str:
    word, first, by = rng.choice(_WORDS), rng.randrange(1, 60), rng.choice((-1, 1, 1, 1, 2, 3, 5))
    first += rounds if by < 0 else 0
    end = rng.choice((", ", "; ", " "))
    return "".join(f"{word} {first + k * by}{end}" for k in range(rounds))


def _hexadecimal(rng: random.Random, rounds: int) -> str:
    first = rng.randrange(16, 200)
    return " ".join(f"0x{first + k:x}" for k in range(rounds))


def _two_numbers(rng: random.Random, rounds: int) -> str:
    first, second = rng.randrange(1, 9), rng.randrange(1, 40)
    return " ".join(f"{first}:{second + k}" for k in range(rounds))


def _phrase(rng: random.Random, rounds: int) -> str:
    words = rng.choice(_PHRASES).split() if rng.random() < 0.5 else rng.sample(_WORDS, rng.choice((1, 2, 3)))
    return f"{' '.join(words)}{rng.choice((' ', ', '))}" * rounds
