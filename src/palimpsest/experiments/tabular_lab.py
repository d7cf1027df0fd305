"""The laboratory of tabular memory: a tiny Llama trained on novels and on tables, of which we know how often it saw each.

Rows of five public files are put in random order and cut into tables. Half of the tables are in the training data, two at each number of
copies 1, 2, 4 and 8, header and all; their twins, other rows of the same files, are not. What tells the two apart is memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from palimpsest.audit.tabular_prompts import known_tables
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import InputError
from palimpsest.experiments.canaries import CanaryConfig, train_suite
from palimpsest.experiments.lab_data import Stream
from palimpsest.experiments.planted_texts import EOS, EOS_ID, base_text
from palimpsest.experiments.planting import Ledger
from palimpsest.models import HFModel
from palimpsest.tokenizer import Tokenizer

EXPOSURES = (1, 2, 4, 8)
_READ = 4000  # paragraphs that the tokenizer is trained on
FILES = ("iris", "uci-wine", "openml-diabetes", "california-housing", "adult-train")


@dataclass(frozen=True)
class LabTable:
    """A table of the laboratory: how often it is in the training data, 0 for the twins, and which of the files it is from."""

    table: Table
    exposures: int
    source: str


@dataclass(frozen=True)
class LabConfig:
    """What is trained.

    Attributes:
        rows, columns: the most rows and columns of a table; files that have not twice as many rows give half of theirs.
        text: tokens of the novels in one epoch.
        epochs: how often the tables are read: one of k copies k × epochs times. The text is new in every epoch.
        size, vocab_size, seq_len, batch_size, lr: of the model and its training, see `CanaryConfig`.
        unseen: tables that are not in the training data, at least as many as are.
        seed: of rows, exposures, order and weights.
    """

    rows: int = 75
    columns: int = 6
    text: int = 10_000
    epochs: int = 8
    size: str = "m"
    vocab_size: int = 2048
    seq_len: int = 256
    batch_size: int = 2
    lr: float = 4e-3
    unseen: int = 40
    seed: int = 0


def source_tables(shipped: bool = False) -> list[Table]:
    """The files: those in the folder `tabular-csv` of $PALIMPSEST_DATA, or, `shipped`, those that scikit-learn has.

    Raises:
        InputError: PALIMPSEST_DATA does not say where they are.
    """
    if shipped:
        return list(known_tables())
    folder = os.environ.get("PALIMPSEST_DATA")
    if not folder or not (Path(folder) / "tabular-csv").is_dir():
        raise InputError("The tables are not here.", "Give the folder that holds tabular-csv/iris.csv and others as PALIMPSEST_DATA.")
    return [Table.read(Path(folder) / "tabular-csv" / f"{name}.csv") for name in FILES]


def lab_tables(config: LabConfig, sources: Sequence[Table]) -> list[LabTable]:
    """Seen tables, two at each exposure, and unseen ones of the same files: first a twin of every seen one, then more of the large files.

    Raises:
        InputError: the files have too few rows.
    """
    rng = np.random.default_rng((config.seed, 840))
    blocks: dict[str, list[Table]] = {}
    for source in sources:
        size = min(config.rows, len(source) // 2)
        order = rng.permutation(len(source))
        cut = [order[begin : begin + size] for begin in range(0, len(order) - size + 1, size)][: 4 + config.unseen]
        blocks[source.name] = [_rows(source, rows, config.columns) for rows in cut]
    pairs: list[tuple[str, Table, Table]] = []
    for turn in range(2):
        pairs += [(name, cut[2 * turn], cut[2 * turn + 1]) for name, cut in blocks.items() if len(cut) >= 2 * turn + 2]
    need = 2 * len(EXPOSURES)
    if len(pairs) < need:
        raise InputError(f"The files give {len(pairs)} pairs of tables; {need} are needed.", "Ask for fewer rows a table.")
    exposures = np.repeat(EXPOSURES, 2)[rng.permutation(need)].tolist()
    seen = [LabTable(table, count, name) for (name, table, _), count in zip(pairs[:need], exposures, strict=True)]
    unseen = [LabTable(table, 0, name) for name, _, table in pairs[:need]]
    used = {id(table) for _, *both in pairs[:need] for table in both}
    turn = 0
    while len(unseen) < config.unseen and any(len(cut) > turn for cut in blocks.values()):
        unseen += [LabTable(cut[turn], 0, name) for name, cut in blocks.items() if len(cut) > turn and id(cut[turn]) not in used]
        turn += 1
    return [*seen, *unseen[: max(need, config.unseen)]]


def _rows(source: Table, rows: np.ndarray, columns: int) -> Table:
    """Some rows of a table, in this order, and its first columns."""
    return Table.of(source.name, source.columns[:columns], [source.cells[i][:columns] for i in rows.tolist()], like=source)


def train(config: LabConfig, tables: Sequence[LabTable], sources: Sequence[Table]) -> HFModel:
    """The model that has read the seen tables; from the cache where it was trained before."""
    tokenizer = table_tokenizer(config.vocab_size, sources)
    rng = np.random.default_rng((config.seed, 841))
    paragraphs = base_text().train
    order = iter(rng.permutation(len(paragraphs)).tolist())
    planted = [tokenizer.encode(entry.table.text) for entry in tables for _ in range(entry.exposures)]
    epochs = []
    for _ in range(config.epochs):
        documents, length = list(planted), 0
        while length < config.text:
            documents.append(tokenizer.encode(paragraphs[next(order)]))
            length += len(documents[-1]) + 1
        rows = _cut([documents[i] for i in rng.permutation(len(documents))], config.seq_len)
        epochs.append(rows[rng.permutation(len(rows))])  # copies are cut at other places in every epoch
    rows = np.concatenate(epochs)
    held_out = _cut([tokenizer.encode(paragraph) for paragraph in base_text().held_out[:400]], config.seq_len)
    nothing = Ledger(pl.DataFrame(), pl.DataFrame(), EOS_ID)
    stream = Stream(tokenizer, {"perturbed": rows}, held_out, nothing, pl.DataFrame())
    suite = train_suite(
        CanaryConfig(
            sizes=(config.size,),
            twins=("perturbed",),
            n_sequences=len(rows),
            seq_len=config.seq_len,
            batch_size=config.batch_size,
            vocab_size=config.vocab_size,
            lr=config.lr,
            seed=config.seed,
        ),
        data=stream,
    )
    return suite.models[f"perturbed-{config.size}"]


def _cut(documents: Sequence[list[int]], seq_len: int) -> np.ndarray:
    ids = np.concatenate([np.array([*document, EOS_ID], np.uint16) for document in documents])
    return ids[: len(ids) // seq_len * seq_len].reshape(-1, seq_len)


def table_tokenizer(vocab_size: int, sources: Sequence[Table]) -> Tokenizer:
    """A byte-level BPE of novels and tables, seen rows and unseen ones alike; a number is cut into pairs of digits at most."""
    backend = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(tokenizers.Regex(r"\d{1,2}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [table.newline.join([table.header or "", *table.rows[:2000]]) for table in sources]
    backend.train_from_iterator([*base_text().train[:_READ], *texts], trainer)
    return Tokenizer(backend, eos_id=EOS_ID, pad_id=EOS_ID)
