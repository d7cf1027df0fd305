"""A planted corpus for the guard: passages that a model can return to after a forced error, and passages in two casings.

Three sets of held-out passages of `PREFIX` + `SUFFIX` tokens:

* **noisy**: many copies each, every copy with its own random tokens in the place of a share of the true ones. Real corpora repeat
  a text with misprints, quotations and variants; a tiny model that has only seen exact copies loses the thread at the first token
  that a guard forces on it, one that has seen variants does not;
* **cased**: many exact copies, and a quarter as many in capitals;
* **control**: never planted.

Models and novels are the laboratory's (`canaries`, system 067).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.experiments.canaries import train_suite
from palimpsest.experiments.lab_data import CanaryConfig, Stream, base_rows, validation_rows
from palimpsest.experiments.planted_texts import EOS_ID, PlantedText, passages, train_tokenizer
from palimpsest.experiments.planting import PlantSpec, plant
from palimpsest.experiments.suite import Suite
from palimpsest.tokenizer import Tokenizer

PREFIX, SUFFIX = 32, 24
DRAWN = 150  # passages to choose from
CAPITALS = 4  # one copy in capitals for so many in the passage's own casing


@dataclass(frozen=True)
class GuardConfig:
    """What is planted for the guard.

    Attributes:
        lab: rows, model and training.
        noisy, cased: (passages, copies of each) of the two planted sets; cased ones are planted in capitals a quarter as often again.
        controls: passages that are never planted.
        noise: share of the tokens of a noisy copy that are drawn from the novels' tokens instead.
    """

    lab: CanaryConfig
    noisy: tuple[int, int]
    cased: tuple[int, int]
    controls: int
    noise: float


def build_suite(config: GuardConfig) -> Suite:
    """Plants, and trains the perturbed model or takes it from the cache.

    Returns:
        A suite whose ledger has one row a passage, in its own casing: id, domain ("noisy", "cased", "control"), copies, ids, text,
        suffix_start.

    Raises:
        InputError: too few passages whose capitals fit a row.
    """
    lab = config.lab
    tokenizer = train_tokenizer(lab.vocab_size)
    base = base_rows(lab, tokenizer)
    sets = _choose(config, tokenizer)
    rng = np.random.default_rng((lab.seed, 30))
    copies = {"noisy": config.noisy[1], "cased": config.cased[1], "control": 0}
    capitals = [PlantedText(text.text.upper()) for text in sets["cased"]]
    specs = [
        *_noisy_specs(_encode(tokenizer, sets["noisy"]), copies["noisy"], config.noise, base, rng),
        PlantSpec("cased", _encode(tokenizer, sets["cased"]), (copies["cased"],)),
        PlantSpec("capitals", _encode(tokenizer, capitals), (copies["cased"] // CAPITALS,)),
    ]
    rows, planted = plant(base, specs, batch_size=lab.batch_size, eos_id=EOS_ID, seed=lab.seed)
    ledger = pl.DataFrame(
        [
            {
                "id": f"{domain}-{number:04d}",
                "domain": domain,
                "copies": copies[domain],
                "ids": tokenizer.encode(text.text),
                "text": text.text,
                "suffix_start": PREFIX,
            }
            for domain, texts in sets.items()
            for number, text in enumerate(texts)
        ]
    )
    data = Stream(tokenizer, {"standard": base, "perturbed": rows}, validation_rows(lab, tokenizer, ledger), planted, ledger)
    return train_suite(lab, data=data)


def _choose(config: GuardConfig, tokenizer: Tokenizer) -> dict[str, list[PlantedText]]:
    """The passages of the three sets, in the order in which they were drawn: those whose capitals, with EOS, fit a row, and whose
    text has the ids that it was cut from."""
    sizes = {"noisy": config.noisy[0], "cased": config.cased[0], "control": config.controls}
    drawn = passages(tokenizer, DRAWN, PREFIX + SUFFIX, config.lab.seed)
    lengths = [(len(own), len(tokenizer.encode(text.text.upper()))) for own, text in zip(_encode(tokenizer, drawn), drawn, strict=True)]
    fitting = [t for t, (own, upper) in zip(drawn, lengths, strict=True) if own == PREFIX + SUFFIX and upper < config.lab.seq_len]
    if len(fitting) < sum(sizes.values()):
        raise InputError(
            f"{sum(sizes.values())} passages were asked for, {len(fitting)} fit rows of {config.lab.seq_len} tokens in capitals.",
            "Ask for fewer, or for longer rows.",
        )
    ends = np.cumsum(list(sizes.values()))
    return {domain: fitting[end - size : end] for (domain, size), end in zip(sizes.items(), ends, strict=True)}


def _noisy_specs(rows: list[list[int]], copies: int, noise: float, base: np.ndarray, rng: np.random.Generator) -> list[PlantSpec]:
    """Every noisy copy as a text of its own, equal ones as one text with several copies."""
    tokens = base[base != EOS_ID]
    variants: Counter[tuple[int, ...]] = Counter()
    for ids in rows:
        table = np.tile(np.array(ids), (copies, 1))
        wrong = rng.random(table.shape) < noise
        table[wrong] = rng.choice(tokens, int(wrong.sum()))
        variants.update(map(tuple, table.tolist()))
    by_count: dict[int, list[tuple[int, ...]]] = {}
    for variant, count in variants.items():
        by_count.setdefault(count, []).append(variant)
    return [PlantSpec(f"noisy-{count}", texts, (count,)) for count, texts in sorted(by_count.items())]


def _encode(tokenizer: Tokenizer, texts: list[PlantedText]) -> list[list[int]]:
    return tokenizer.encode_batch([text.text for text in texts])
