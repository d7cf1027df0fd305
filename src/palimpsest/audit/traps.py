"""Copyright traps, made: sequences of given length and surprise that nobody else writes (Meeus et al., ICML 2024, arXiv 2402.09363).

An owner plants such a sequence many times in a document before publishing it (`traps_injection`) and later asks a model whether it
knows the sequence better than its unpublished siblings (`traps_detection`). A trap is sampled from a reference model that is shown
nothing but the token that begins a text, over a grid of temperatures, and kept if

* it has exactly L tokens and comes back unchanged when its text is encoded again;
* its perplexity exp(-mean log p(x_t | x_<t), t = 2..L) under the reference model falls into a wanted bucket [low, high), whose cells
  of width `cell` all get equally many traps (to one: by lot where they cannot);
* the Jaccard similarity of its set of tokens with that of every trap kept before is at most 0.2.

Where it departs from the authors' scripts: a trap's tokens are those that its text has *inside a document*, after a word and a space
(see `planted_ids`), so that they are the ones the target was trained on; the first token is not scored, in making as in detecting (the
scripts score it in making only); similarity is checked across lengths too; buckets that cannot be filled are an error, not an endless
loop. A door that prepends BOS by itself samples after two of them.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.audit.membership_scores import mean_logprob
from palimpsest.errors import CorpusError, InputError
from palimpsest.files import write_json
from palimpsest.models.base import LanguageModel
from palimpsest.tokenizer import Tokenizer

TEMPERATURES = tuple(float(t) for t in np.arange(0.5, 4.01, 0.5))
BUCKETS = tuple((float(low), float(low + 10)) for low in range(1, 101, 10))
MAX_JACCARD = 0.2
_MAX_CELLS = 10_000
_WORD = "a"  # what stands before a trap where it does not matter


@dataclass(frozen=True)
class Trap:
    """One sequence.

    Attributes:
        id: unique in its set.
        text: the sequence; it neither begins nor ends with white space.
        length: tokens under the tokenizer of the model that made it.
        bucket: [low, high) of perplexity that it was made for.
        perplexity: under the model that made it.
    """

    id: str
    text: str
    length: int
    bucket: tuple[float, float]
    perplexity: float

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trap:
        """The inverse of `dataclasses.asdict`, also after a journey through JSON."""
        low, high = data["bucket"]
        return cls(str(data["id"]), str(data["text"]), int(data["length"]), (float(low), float(high)), float(data["perplexity"]))


@dataclass(frozen=True)
class TrapSet:
    """Traps, and what made them.

    Attributes:
        traps: as many of every length and bucket.
        provenance: model, settings, seed, and how many samples were drawn and refused for which reason.
    """

    traps: list[Trap]
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set as JSON, atomically."""
        write_json(path, {"traps": [asdict(trap) for trap in self.traps], "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrapSet:
        """Reads what `save` wrote.

        Raises:
            CorpusError: no such file, or one that is not a set of traps.
        """
        value = read_json(Path(path), "palimpsest traps make")
        try:
            return cls([Trap.from_dict(row) for row in value["traps"]], value["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusError(f"{path} is not a set of traps: {error!r}.", "Give what `palimpsest traps make` wrote.") from error


def read_json(path: Path, writer: str) -> Any:
    """The JSON in a file that the command `writer` wrote.

    Raises:
        CorpusError: no such file, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}.", f"Give a file that `{writer}` wrote.") from error
    except ValueError as error:
        raise CorpusError(f"{path} is not JSON: {error}.", f"Give a file that `{writer}` wrote.") from error


def planted_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of texts as they stand in a document: after a word and a space.

    Args:
        tokenizer: of the model that is asked.
        texts: without white space at their ends. A text that the tokenizer joins to the word before it, or drops, gets no ids.
    """
    word = tokenizer.encode(_WORD)
    rows = tokenizer.encode_batch([f"{_WORD} {text}" for text in texts])
    return [np.array(row[len(word) :] if row[: len(word)] == word else [], dtype=np.int64) for row in rows]


def as_planted(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The same of one text.

    Raises:
        InputError: the text has no tokens of its own.
    """
    (ids,) = planted_ids(tokenizer, [text])
    if len(ids) == 0:
        raise InputError(
            f"After a word, the tokenizer gives {text!r} no tokens of its own.", "Give a model whose tokenizer splits at spaces."
        )
    return ids


class TrapFactory:
    """Makes traps from a reference model.

    Args:
        model: needs "text" and "logprobs", and a BOS or EOS id to begin a text with.
        temperatures: the grid, walked through in every round.
        cell: width of the cells of a bucket that get equally many traps; 1 is the paper's.
        max_jaccard: greatest similarity of two traps' sets of tokens.
        batch: samples a temperature and round.
        max_rounds: rounds without an end in sight are given up after so many.

    Raises:
        CapabilityError: the door cannot write or score.
        InputError: no token to begin with, or a setting out of range.

    Example:
        >>> traps = TrapFactory(load_model("smollm2-135m")).make(40, (25, 50, 100))      # doctest: +SKIP
        >>> traps.save("traps.json")                                                    # doctest: +SKIP
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        temperatures: Sequence[float] = TEMPERATURES,
        cell: float = 1.0,
        max_jaccard: float = MAX_JACCARD,
        batch: int = 128,
        max_rounds: int = 100,
    ) -> None:
        model.require("text", "Making traps")
        model.require("logprobs", "Making traps")
        tokenizer = model.tokenizer
        start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if start is None:
            raise InputError(f"The tokenizer of {model.name} has neither BOS nor EOS.", "Give a model that has a token to begin with.")
        if not temperatures or min(temperatures) <= 0 or not cell > 0 or not 0 <= max_jaccard < 1 or batch < 1 or max_rounds < 1:
            raise InputError(
                f"temperatures {list(temperatures)}, cell {cell}, max_jaccard {max_jaccard}, batch {batch}, max_rounds {max_rounds}.",
                "Give temperatures and a cell above 0, a similarity in [0, 1), and at least 1 sample and round.",
            )
        self.model = model
        self.temperatures, self.cell, self.max_jaccard = tuple(map(float, temperatures)), float(cell), float(max_jaccard)
        self.batch, self.max_rounds = batch, max_rounds
        self._start = start
        self._special = {i for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) if i is not None}

    def make(
        self, n: int, length: int | Sequence[int] = (25, 50, 100), buckets: Sequence[tuple[float, float]] = BUCKETS, seed: int = 0
    ) -> TrapSet:
        """Makes `n` traps of every length and bucket.

        Args:
            n: traps a length and bucket.
            length: tokens, one number or several.
            buckets: [low, high) of perplexity, disjoint.
            seed: equal seeds make equal traps.

        Returns:
            The traps, by length and bucket.

        Raises:
            InputError: n below 1, a length below 2, buckets that are empty or overlap, or that are not full after `max_rounds`.
        """
        lengths = sorted({length} if isinstance(length, int | np.integer) else set(length))
        ranges = sorted((float(low), float(high)) for low, high in buckets)
        disjoint = all(a[1] <= b[0] for a, b in pairwise(ranges))
        if n < 1 or not lengths or lengths[0] < 2 or not ranges or not disjoint or any(not 1 <= low < high for low, high in ranges):
            raise InputError(
                f"n {n}, lengths {lengths}, buckets {ranges}.", "Give n >= 1, lengths >= 2, and disjoint buckets 1 <= low < high."
            )
        if any((high - low) / self.cell > _MAX_CELLS for low, high in ranges):
            raise InputError(f"The buckets {ranges} have too many cells of width {self.cell:g}.", f"Widen the cells: {_MAX_CELLS} at most.")
        rng = np.random.default_rng((seed, 7))
        like = _Similar()
        counts: dict[str, int] = defaultdict(int)
        traps: list[Trap] = []
        for tokens in lengths:
            quotas = [_quotas(low, high, self.cell, n, rng) for low, high in ranges]
            kept: list[list[Trap]] = [[] for _ in ranges]
            for turn in range(self.max_rounds * len(self.temperatures)):
                temperature = self.temperatures[turn % len(self.temperatures)]
                for text, ids, perplexity in self._draw(tokens, temperature, int(rng.integers(1 << 31)), counts):
                    bucket = next((b for b, (low, high) in enumerate(ranges) if low <= perplexity < high), None)
                    if bucket is None:
                        counts["perplexity outside the buckets"] += 1
                        continue
                    cell = min(int((perplexity - ranges[bucket][0]) // self.cell), len(quotas[bucket]) - 1)
                    if quotas[bucket][cell] == 0:
                        counts["cell full"] += 1
                    elif like.exceeds(ids, self.max_jaccard):
                        counts["too similar"] += 1
                    else:
                        like.add(ids)
                        quotas[bucket][cell] -= 1
                        name = f"trap-{tokens}-{ranges[bucket][0]:g}-{len(kept[bucket]):04d}"
                        kept[bucket].append(Trap(name, text, tokens, ranges[bucket], perplexity))
                if not any(quota.any() for quota in quotas):
                    break
            missing = {f"[{low:g}, {high:g})": int(quota.sum()) for (low, high), quota in zip(ranges, quotas, strict=True) if quota.any()}
            if missing:
                raise InputError(
                    f"After {self.max_rounds} rounds of {self.batch} samples a temperature, traps of {tokens} tokens are missing in the "
                    f"buckets {missing}; refused so far: {dict(counts)}.",
                    "Ask for fewer traps, other buckets, wider cells, more temperatures or more rounds.",
                )
            traps += [trap for bucket_traps in kept for trap in bucket_traps]
        settings = {"n": n, "lengths": lengths, "buckets": ranges, "temperatures": self.temperatures, "cell": self.cell}
        settings |= {"max_jaccard": self.max_jaccard, "batch": self.batch}
        return TrapSet(traps, {"model": self.model.describe(), "settings": settings, "seed": seed, "samples": dict(counts)})

    def _draw(self, tokens: int, temperature: float, seed: int, counts: dict[str, int]) -> list[tuple[str, np.ndarray, float]]:
        """(text, ids, perplexity) of the samples of one temperature that have exactly `tokens` tokens in a document."""
        prompt = np.array([self._start])
        rows = self.model.generate([prompt], tokens, temperature=temperature, n=self.batch, seed=seed, stop_at_eos=False)[0]
        counts["drawn"] += len(rows)
        texts = [self.model.tokenizer.decode(row.tolist()).strip() for row in rows]
        found: list[tuple[str, np.ndarray]] = []
        for row, text, ids in zip(rows, texts, planted_ids(self.model.tokenizer, texts), strict=True):
            # the first token may lose or gain the space before it; everything after it must be what was sampled
            same = bool(text) and len(ids) == tokens and np.array_equal(ids[1:], row[1:])
            if same and self._special.isdisjoint(ids.tolist()) and "\ufffd" not in text:
                found.append((text, ids))
            else:
                counts["other tokens when encoded again"] += 1
        if not found:
            return []
        perplexity = np.exp(-mean_logprob(self.model.score([ids for _, ids in found]).logprobs))
        return [(text, ids, float(value)) for (text, ids), value in zip(found, perplexity, strict=True)]


def _quotas(low: float, high: float, cell: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """How many of `n` traps each cell of a bucket gets, int64 (cells,); by lot which ones get one more."""
    cells = max(1, int(np.ceil((high - low) / cell - 1e-9)))
    quotas = np.full(cells, n // cells)
    quotas[rng.permutation(cells)[: n % cells]] += 1
    return quotas


class _Similar:
    """Sets of tokens, and for each token the sets that hold it: one look-up compares a set with all."""

    def __init__(self) -> None:
        self._holders: dict[int, list[int]] = defaultdict(list)
        self._sizes: list[int] = []

    def exceeds(self, ids: np.ndarray, limit: float) -> bool:
        """Whether the Jaccard similarity with any set is above `limit`."""
        tokens = set(ids.tolist())
        holders = [number for token in tokens for number in self._holders.get(token, ())]
        if not holders:
            return False
        shared = np.bincount(holders, minlength=len(self._sizes))
        return bool((shared / (np.array(self._sizes) + len(tokens) - shared) > limit).any())

    def add(self, ids: np.ndarray) -> None:
        """Adds a set."""
        tokens = set(ids.tolist())
        for token in tokens:
            self._holders[token].append(len(self._sizes))
        self._sizes.append(len(tokens))
