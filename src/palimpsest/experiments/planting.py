"""Planting: randomised insertion of texts into a training stream, with a ledger that replays it.

Wei et al. 2025 (Hubble), arXiv 2510.19811; the insertion follows its description of TokenSmith. Every text gets its number of
copies by lot. The copies of all texts go into distinct training sequences, drawn uniformly inside the allowed window of the run;
in each such sequence a slot is drawn among its document boundaries, the whole text (and EOS) is inserted there, and the
sequence is cut back to its length by a random window that never cuts the text. So the number of sequences and of tokens a batch
does not change, and a sequence without a planted text is the same in both twins. No step sees two copies of one text.

Shapes: sequences (n, time) of ids; step of sequence i = i // batch_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from palimpsest.errors import InputError

COPIES = (0, 1, 4, 16, 64, 256)


@dataclass(frozen=True)
class PlantSpec:
    """Texts of one domain and how often each may be planted.

    Attributes:
        domain: a name; with the position in `texts` it names the text.
        texts: rows of ids, without EOS.
        copies: the levels; every text gets one at random. 0 makes controls that are never seen.
        per_level: texts per level, adding up to all texts; None: as equal as possible.
        window: share of the run in which copies may stand, 0 <= begin < end <= 1.
        seed: of the assignment and of the insertion.

    Raises:
        InputError: no texts, an empty text, a negative level, sizes that do not add up, or a window that is none.
    """

    domain: str
    texts: Sequence[Sequence[int]]
    copies: tuple[int, ...] = COPIES
    per_level: tuple[int, ...] | None = None
    window: tuple[float, float] = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.texts or any(len(text) == 0 for text in self.texts):
            raise InputError(f"The domain {self.domain!r} has no text, or an empty one.", "Give texts of at least one token.")
        if not self.copies or min(self.copies) < 0:
            raise InputError(f"copies are {self.copies}.", "Give levels of at least 0.")
        if self.per_level is not None and (len(self.per_level) != len(self.copies) or sum(self.per_level) != len(self.texts)):
            raise InputError(
                f"per_level {self.per_level} does not share {len(self.texts)} texts out over the levels {self.copies}.",
                "Give one number a level, adding up to the number of texts.",
            )
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise InputError(f"The window is {self.window}.", "Give (begin, end) with 0 <= begin < end <= 1.")


def assign(spec: PlantSpec) -> np.ndarray:
    """Copies of every text of `spec`, int64 (texts,): the levels in their numbers, in random order."""
    sizes = spec.per_level or [len(part) for part in np.array_split(np.arange(len(spec.texts)), len(spec.copies))]
    levels = np.repeat(np.asarray(spec.copies, dtype=np.int64), sizes)
    return np.random.default_rng((spec.seed, 10)).permutation(levels)


@dataclass(frozen=True)
class Ledger:
    """What was planted, and where.

    Attributes:
        texts: one row a text: id, domain, copies, window_start, window_end, ids (list of int).
        insertions: one row a copy: id, file ("train"), idx (sequence), step, slot (token of the original sequence before which the
            text was put), offset (first token of the planted text in the new sequence).
        eos_id: put after every planted text.
        mode: "seq_shuffle" or "seq_start".
    """

    texts: pl.DataFrame
    insertions: pl.DataFrame
    eos_id: int
    mode: str = "seq_shuffle"

    def replay(self, sequences: np.ndarray) -> np.ndarray:
        """Plants again: from the unplanted sequences exactly what `plant` returned."""
        planted = sequences.copy()
        ids = dict(zip(self.texts["id"], self.texts["ids"].to_list(), strict=True))
        for row in self.insertions.iter_rows(named=True):
            unit = np.array([*ids[row["id"]], self.eos_id], dtype=sequences.dtype)
            planted[row["idx"]] = _inserted(sequences[row["idx"]], unit, row["slot"], row["offset"], self.mode)
        return planted


def _inserted(sequence: np.ndarray, unit: np.ndarray, slot: int, offset: int, mode: str) -> np.ndarray:
    """`sequence` with `unit` (text and EOS) at `slot`, cut so that the text begins at `offset`."""
    time = len(sequence)
    if mode == "seq_start":
        head = unit[:time]
        return np.concatenate([head, sequence[len(head) :]])
    longer = np.concatenate([sequence[:slot], unit, sequence[slot:]])
    return longer[slot - offset : slot - offset + time]


def plant(
    sequences: np.ndarray, specs: Sequence[PlantSpec], *, batch_size: int, eos_id: int, seed: int = 0, mode: str = "seq_shuffle"
) -> tuple[np.ndarray, Ledger]:
    """Plants the texts of all `specs` into a copy of `sequences`.

    Args:
        sequences: (n, time) ids in training order.
        specs: which texts, how often, when.
        batch_size: sequences a step.
        eos_id: ends a document; the slots of a sequence are the positions after an EOS, or its start if it has none.
        seed: of the places.
        mode: "seq_shuffle" as described above; "seq_start" overwrites the start of the sequence instead.

    Returns:
        The planted sequences, same shape and type, and the ledger.

    Raises:
        InputError: a text longer than a sequence, or that stands in `sequences` already, two equal texts or domains, more copies
            than sequences in the window, or more copies of one text than steps.

    Example:
        >>> base = np.arange(1, 41).reshape(10, 4)
        >>> planted, ledger = plant(base, [PlantSpec("demo", [[90, 91]], copies=(3,))], batch_size=2, eos_id=0)
        >>> int((planted == 90).sum()), planted.shape, np.array_equal(ledger.replay(base), planted)
        (3, (10, 4), True)
    """
    if mode not in ("seq_shuffle", "seq_start"):
        raise InputError(f"The mode {mode!r} is unknown.", "Choose 'seq_shuffle' or 'seq_start'.")
    texts = _table(specs)
    _check_texts(sequences, texts)
    rng = np.random.default_rng((seed, 11))
    places = _places(texts, len(sequences), batch_size, rng)
    time = sequences.shape[1]
    rows = []
    for row, indices in zip(texts.iter_rows(named=True), places, strict=True):
        length = len(row["ids"])
        for idx in indices:
            slot = offset = 0
            if mode == "seq_shuffle":
                boundaries = np.flatnonzero(sequences[idx] == eos_id) + 1
                slot = int(rng.choice(boundaries)) if len(boundaries) else 0
                # begin >= slot + length - time keeps the text's end, begin <= slot its start; the new sequence has time + unit tokens
                begin = int(rng.integers(max(0, slot + length - time), min(slot, length + 1) + 1))
                offset = slot - begin
            rows.append((row["id"], "train", int(idx), int(idx) // batch_size, slot, offset))
    schema = {"id": pl.String, "file": pl.String, "idx": pl.Int64, "step": pl.Int64, "slot": pl.Int64, "offset": pl.Int64}
    insertions = pl.DataFrame(rows, schema=schema, orient="row").sort("idx")
    ledger = Ledger(texts, insertions, eos_id, mode)
    return ledger.replay(sequences), ledger


def _table(specs: Sequence[PlantSpec]) -> pl.DataFrame:
    frames = []
    for spec in specs:
        rows = {
            "id": [f"{spec.domain}-{i:04d}" for i in range(len(spec.texts))],
            "domain": [spec.domain] * len(spec.texts),
            "copies": assign(spec),
            "window_start": [float(spec.window[0])] * len(spec.texts),
            "window_end": [float(spec.window[1])] * len(spec.texts),
            "ids": [[int(t) for t in text] for text in spec.texts],
        }
        frames.append(pl.DataFrame(rows, schema_overrides={"ids": pl.List(pl.Int64)}))
    if not frames:
        raise InputError("There is nothing to plant.", "Give at least one PlantSpec.")
    texts = pl.concat(frames)
    if texts["id"].n_unique() < len(texts):
        raise InputError("Two specs have the same domain.", "Give every PlantSpec a name of its own.")
    return texts


def _check_texts(sequences: np.ndarray, texts: pl.DataFrame) -> None:
    """Refuses texts that do not fit, that are equal, or that the stream holds already."""
    time = sequences.shape[1]
    stream = np.ascontiguousarray(sequences, dtype=np.uint32).tobytes()
    seen: dict[bytes, str] = {}
    for name, ids in texts.select("id", "ids").iter_rows():
        if len(ids) > time:
            raise InputError(f"{name} has {len(ids)} tokens, a training sequence {time}.", "Plant shorter texts or train on longer rows.")
        needle = np.asarray(ids, dtype=np.uint32).tobytes()
        if needle in seen:
            raise InputError(f"{name} is the same text as {seen[needle]}.", "Give every text once; its copies are the ledger's affair.")
        seen[needle] = name
        at = stream.find(needle)
        while at >= 0 and at % 4:  # a match between two ids is none
            at = stream.find(needle, at + 1)
        if at >= 0:
            raise InputError(f"{name} stands in the training text already, in sequence {at // 4 // time}.", "Leave it out.")


def _places(texts: pl.DataFrame, n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Distinct sequences for all copies: uniform inside each text's window, no two copies of a text in one step."""
    free = np.ones(n, dtype=bool)
    places: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(texts)
    windows = texts.select((pl.col("window_start") * n).ceil(), (pl.col("window_end") * n).floor()).to_numpy().astype(np.int64)
    copies = texts["copies"].to_numpy()
    for begin, end in sorted(map(tuple, np.unique(windows, axis=0)), key=lambda w: w[1] - w[0]):  # narrow windows have no choice
        asked = int(copies[(windows == (begin, end)).all(axis=1)].sum())
        if asked > free[begin:end].sum():
            raise InputError(
                f"{asked} copies were to be planted into sequences {begin} to {end}, of which {int(free[begin:end].sum())} are free.",
                "Plant fewer copies, open the window, or train on more sequences.",
            )
        # the most frequent texts first: they are the hardest to keep apart once few sequences are free
        for i in sorted(np.flatnonzero((windows == (begin, end)).all(axis=1)), key=lambda i: -copies[i]):
            candidates = begin + rng.permutation(end - begin)
            candidates = candidates[free[candidates]]
            _, first = np.unique(candidates // batch_size, return_index=True)
            candidates = candidates[np.sort(first)]  # one sequence a step, still in random order
            if len(candidates) < copies[i]:
                raise InputError(
                    f"{texts['id'][int(i)]} is to be planted {copies[i]} times, but only {len(candidates)} steps have room for a copy.",
                    "Plant fewer copies, open the window, or train for more steps.",
                )
            places[i] = np.sort(candidates[: copies[i]])
            free[places[i]] = False
    return places
