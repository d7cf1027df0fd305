"""Claim check of the hierarchical variable model: fewer and longer units than chunking alone, a smaller dictionary than Lempel-Ziv,
and a variable that serves what it hardly ever saw.

Wu et al., ICLR 2025, in three parts:

1. *Generated sequences*: five of 2,000 symbols from inventories of depth 10. HVM parses into fewer units than HCM; complexity and
   storage are least for HVM, then HCM, then LZ78; each in four of five.
2. *Text*, the protocol of the paper's code: characters, ten slices of 1,000, at most 25 rounds, log2(100) bits joined a round, variables
   of 2 to 4 members from dependent pairs. What is held against a threshold is the mean over the slices; upstream reports the best.
3. *Transfer*: motifs A-x-C with four fillers x and, three times in 300, a fifth; between them noise of 40 symbols. How probable is A, the
   fifth filler, C? Chunking takes up to three pairs of the motif before anything is abstracted, so that a variable of four members
   may not be left: HVM is run with `min_members=2` (chosen on seed 100).

Complexity and storage leave out the bits that bind variables, and the dictionary's own. Both are in the `total` that is reported beside
them, and there variables cost more than they bring. Nor is complexity alone, or the parse, shorter than LZ78's on text.

Parts 1 and 2 compare pairs by their sign, and the difference between HVM and HCM is small next to its spread: see the notes.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.planted_texts import base_text
from palimpsest.measurement import Curve, Series
from palimpsest.models.chunk_variable import HCM, HVM, TEXT_LIMIT_BITS
from palimpsest.models.code_length import CodeLengths
from palimpsest.models.hierarchical_sequence import hierarchical_sequence
from palimpsest.models.lempel_ziv import LZ78, LZW

STATEMENT = (
    "Chunks and variables describe a sequence in fewer units than chunks alone, with a far smaller dictionary than Lempel-Ziv, "
    "and a variable makes what was rarely seen in its place more probable."
)
SEQUENCES, LENGTH = 5, 2000
SLICES, SLICE = 10, 1000
TEXT: dict[str, Any] = {"max_iter": 25, "limit_bits": TEXT_LIMIT_BITS}
MOTIFS, RARE, NOISE = 300, 3, 40
ENOUGH = 4  # of five sequences


def run(scale: str, seed: int) -> Claim:
    """Fits all models and holds them against each other.

    Tiny Shakespeare and the King James Bible are read from the folders `tinyshakespeare` and `kjv-bible` of $PALIMPSEST_DATA; without
    them, part 2 reads the novels of the laboratory.

    Args:
        scale: "smoke": two short sequences and slices, only losslessness is held against anything; "cpu".
        seed: of sequences, slices and motifs.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    rows: list[dict[str, Any]] = []
    lost = 0
    curves: list[Curve] = []
    for number in range(SEQUENCES if full else 2):
        made = hierarchical_sequence(10, 10, LENGTH if full else 300, 0.5, seed=SEQUENCES * seed + number)
        hvm, hcm = HVM().fit(made.symbols), HCM().fit(made.symbols)
        lost += sum(model.decode(model.encode(made.symbols)) != made.symbols.tolist() for model in (hvm, hcm))
        rows += _rows("generated", number, hvm, hcm, made.symbols.tolist())
        curves = curves or [_learning(hvm, hcm, made.symbols.size)]
    texts = _texts()
    for name, text in texts.items():
        begin = int(np.random.default_rng((seed, len(text))).integers(len(text) - SLICES * SLICE))
        for number in range(SLICES if full else 2):
            part = text[begin + number * SLICE : begin + (number + 1) * SLICE]
            hvm, hcm = HVM(dependent_only=True, **TEXT).fit(part), HCM(**TEXT).fit(part)
            lost += sum(model.decode(model.encode(part)) != part for model in (hvm, hcm))
            rows += _rows(name, number, hvm, hcm, part)
    checks = [*_generated(rows), *(check for name in texts for check in _text(rows, name)), *_transfer(seed)]
    if not full:
        checks = [Check(check.what, check.ours, check.relation, None, check.baseline, check.unit) for check in checks]
    checks.insert(0, Check("sequences that do not come back from their code", lost, "==", 0, unit="sequences"))
    return Claim("hvm", STATEMENT, checks, rows, seed, scale, _notes(rows, list(texts)), curves)


def _texts() -> dict[str, str]:
    """The texts of part 2, by name."""
    folder = os.environ.get("PALIMPSEST_DATA")
    if not folder:
        return {"novels": "\n".join(base_text().train)}
    plays = (Path(folder) / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    verses = (Path(folder) / "kjv-bible" / "kjv.tsv").read_text(encoding="utf-8").splitlines()
    return {"Shakespeare": plays, "King James Bible": " ".join(verse.split("\t")[3] for verse in verses)}


def _rows(source: str, number: int, hvm: HVM, hcm: HCM, sequence: Any) -> list[dict[str, Any]]:
    found = {
        "HVM": hvm.code_lengths(),
        "HCM": hcm.code_lengths(),
        "LZ78": LZ78().code_lengths(sequence),
        "LZW": LZW().code_lengths(sequence),
    }
    variables = {"HVM": len(hvm.dictionary.variables)}
    return [
        {
            "source": source,
            "sequence": number,
            "model": model,
            **lengths.to_dict(),
            "kept": _kept(lengths),
            "variables": variables.get(model, 0),
        }
        for model, lengths in found.items()
    ]


def _kept(lengths: CodeLengths) -> float:
    """Complexity and storage: what the paper counts."""
    return lengths.complexity + lengths.storage


def _column(rows: list[dict[str, Any]], source: str, model: str, figure: str) -> np.ndarray:
    return np.array([row[figure] for row in rows if row["source"] == source and row["model"] == model], np.float64)


def _generated(rows: list[dict[str, Any]]) -> list[Check]:
    def column(model: str, figure: str) -> np.ndarray:
        return _column(rows, "generated", model, figure)

    def check(what: str, holds: np.ndarray) -> Check:
        return Check(f"generated: sequences of five for which {what}", int(holds.sum()), ">=", ENOUGH, unit="sequences")

    return [
        check("HVM parses into fewer units than HCM", column("HVM", "parse_length") < column("HCM", "parse_length")),
        check("HVM has less complexity and storage than HCM", column("HVM", "kept") < column("HCM", "kept")),
        check("HCM has less complexity and storage than LZ78", column("HCM", "kept") < column("LZ78", "kept")),
        *(
            Check(f"generated: whole description, bindings and dictionary included, {model}", ours, baseline=lz, unit="bits, vs LZ78")
            for model in ("HVM", "HCM")
            for ours, lz in [(column(model, "total").mean(), column("LZ78", "total").mean())]
        ),
    ]


def _text(rows: list[dict[str, Any]], source: str) -> list[Check]:
    def mean(model: str, figure: str) -> float:
        return float(_column(rows, source, model, figure).mean())

    hvm, hcm = mean("HVM", "parse_length"), mean("HCM", "parse_length")
    checks = [Check(f"{source}: units of a parse, HVM less HCM", hvm - hcm, "<=", 0, unit="units, mean of slices")]
    for model in ("HVM", "HCM"):
        for figure, what, most in (("entries", "entries of the dictionary", 0.5), ("kept", "complexity and storage", 0.85)):
            ratio = mean(model, figure) / mean("LZ78", figure)
            checks.append(Check(f"{source}: {what}, {model} over LZ78", ratio, "<=", most, unit="ratio of means"))
        whole = mean(model, "total")
        what = f"{source}: whole description, bindings and dictionary included, {model}"
        checks.append(Check(what, whole, baseline=mean("LZ78", "total"), unit="bits, vs LZ78"))
    return checks


def _transfer(seed: int) -> list[Check]:
    rng = np.random.default_rng((seed, 3))
    rare = set(rng.choice(MOTIFS, RARE, replace=False).tolist())
    train: list[str] = []
    for number in range(MOTIFS):
        filler = "x5" if number in rare else f"x{rng.integers(1, 5)}"
        train += ["A", filler, "C", *(f"n{rng.integers(NOISE)}" for _ in range(rng.integers(1, 4)))]
    hvm, hcm = HVM(min_members=2).fit(train), HCM().fit(train)

    def gain(filler: str) -> float:
        motif = ["A", filler, "C"]
        return (hvm.logprob(motif) - hcm.logprob(motif)) / math.log(2) / len(motif)

    return [
        Check("transfer: log-likelihood of A-x5-C, HVM less HCM", gain("x5"), ">=", 0.1, unit="bits a symbol"),
        Check("transfer: units into which HVM parses A-x5-C", len(hvm.parse(["A", "x5", "C"])), unit="units"),
        Check("transfer: the same gain for a symbol of the noise in the filler's place", gain("n0"), unit="bits a symbol"),
    ]


def _learning(hvm: HVM, hcm: HCM, length: int) -> Curve:
    def series(model: HVM, name: str) -> Series:
        steps = [length, *(step["parse_length"] for step in model.history)]
        return Series(name, [{"x": float(number), "y": value / length} for number, value in enumerate(steps)])

    return Curve(
        "hvm-learning",
        "How the parse gets shorter while chunks and variables are learnt",
        "step of learning",
        "units a symbol",
        [series(hvm, "chunks and variables"), series(hcm, "chunks alone")],
        caption="One generated sequence; with variables, every second step abstracts.",
    )


def _notes(rows: list[dict[str, Any]], texts: list[str]) -> list[str]:
    def means(source: str, model: str) -> str:
        units, entries, bits = (_column(rows, source, model, figure).mean() for figure in ("parse_length", "entries", "complexity"))
        return f"{model} {units:.0f} units, {entries:.0f} entries, {bits:,.0f} bits of complexity"

    totals = [{row["model"]: row["total"] for row in rows[i : i + 4]} for i in range(0, len(rows), 4)]
    shorter = sum(total["HVM"] < total["HCM"] for total in totals)
    return [
        *(f"{source}: {'; '.join(means(source, model) for model in ('HVM', 'HCM', 'LZ78'))}." for source in ("generated", *texts)),
        f"Bindings and dictionary included, {shorter} of {len(rows) // 4} sequences are shorter with variables than without.",
        "How often HVM is ahead of HCM on other seeds: in complexity and storage on 83 of 100 generated sequences (1000 to 1099), by 14 % "
        "on average; in units of a parse, over ten slices, on 25 of 30 stretches of Shakespeare and 21 of 30 of the King James Bible "
        "(200 to 229), by 5 and 10 units on average.",
        "Tried on seed 100: with the setting for generated sequences (variables of 4 to 49 members, from all pairs) HVM has 0.92 to 0.94 "
        "entries for one of LZ78's on text, so text is learnt with the setting of the paper's code for it. On the laboratory's novels HVM "
        "parses into 1.3 units fewer than HCM on seed 100 and 1.4 more on seed 101.",
    ]
