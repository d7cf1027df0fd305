"""Claim check of tabular memory: tables that were read are told from tables that were not, also where nothing comes out to the letter.

Bordt et al., COLM 2024, arXiv 2404.06209, in the laboratory of `tabular_lab`: eight tables in the training data, two at each number of
copies 1, 2, 4 and 8, and forty tables of the same files that are not. The peer is the row completion test of `tabmemcheck`.
Checks, as the specification has them:

* our compatible mode asks the same rows as the peer and counts the same matches, on every table of the first sixteen;
* the AUC of seen against unseen tables by decoy rank (mean rank) is above the peer's (number of matches), by at least 0.15 at 1 and 2
  copies, and 1 at 8;
* over the unseen tables at most 10 % are found by decoy rank at 5 %, and their p-values are uniform (Kolmogorov–Smirnov, p > 0.01);
* decoy rank takes no longer than the peer, in processor seconds over the same sixteen tables;
* SmolLM2-135M continues the file of iris at least as far to the letter as a table that was made up today.

The peer's AUC counts ties as one half, so that a test that finds nothing has 0.5.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from palimpsest.audit.tabular import compat_row_completion
from palimpsest.audit.tabular_completion import measure_header
from palimpsest.audit.tabular_decoys import Decoys
from palimpsest.audit.tabular_likelihood import measure_decoy_rank
from palimpsest.audit.tabular_prompts import RowQueries
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.experiments import tabular_peer
from palimpsest.experiments.claim import Check, Claim
from palimpsest.experiments.tabular_lab import EXPOSURES, LabConfig, LabTable, lab_tables, source_tables, train
from palimpsest.measurement import Curve, Series
from palimpsest.models import LanguageModel, load_model
from palimpsest.models.registry import is_fetched
from palimpsest.stats import auc, wilson_interval

STATEMENT = "Language models give back popular tables verbatim, and their few-shot accuracy is higher on tables that they saw in training."
CPU = LabConfig()
SMOKE = LabConfig(rows=36, columns=4, text=1_000, epochs=1, size="s", vocab_size=512, seq_len=128, batch_size=8, unseen=8)
QUERIES, DECOYS, LEVEL = 25, 24, 0.05
MODEL = "smollm2-135m"


def run(scale: str, seed: int) -> Claim:
    """Trains the model (or takes it from the cache) and puts both tests to its tables.

    Args:
        scale: "smoke": a model of seconds on the tables that scikit-learn has, without the peer; only the compatible mode is held against
            anything; "cpu".
        seed: of rows, copies, weights and queries.

    Raises:
        InputError: the scale "gpu", or PALIMPSEST_DATA does not say where the tables are (at "cpu").
        MissingDependencyError: tabmemcheck is not installed (at "cpu").
    """
    if scale not in ("smoke", "cpu"):
        raise InputError(f"The experiment has no scale {scale!r}.", "Run it at 'smoke' or 'cpu'.")
    full = scale == "cpu"
    if full and not tabular_peer.has_tabmemcheck():
        raise MissingDependencyError("The claim is about tabmemcheck, which is not installed.", "pip install tabmemcheck")
    config = replace(CPU if full else SMOKE, seed=seed)
    sources = source_tables(shipped=not full)
    tables = lab_tables(config, sources)
    model = train(config, tables, sources)
    queries, decoys = (QUERIES, DECOYS) if full else (5, 9)
    both = 2 * 2 * len(EXPOSURES)  # seen tables and their twins: the peer is asked for these alone
    rows = [_row(model, entry, queries, decoys, seed, peer=full and i < both) for i, entry in enumerate(tables)]
    checks = [*_compatible(rows[:both], full), *_ranked(rows, both, full)]
    notes = [
        f"{config.epochs} epoch(s) of the tables and {config.text} tokens of novels, {model.parameters:,} parameters; a table has "
        f"at most {config.rows} rows and {config.columns} columns, and of small files half of theirs; "
        f"{len(tables) - 2 * len(EXPOSURES)} unseen tables.",
        "Chosen on seed 100: the specification's tables of 150 rows with all columns, read in one epoch by a model of 1.7 million "
        "parameters, left no trace even at 8 copies (mean rank 26.7 of 50 on iris, no row to the letter); smaller tables, read over "
        "several epochs, do. Copies are those of one epoch. The peer finds no row on any of them, so that its AUC is 0.5 by ties; the "
        "specification expected it to be 1 at 8 copies, as ours is asked to be.",
        "Tried before, and failed on seed 1 (seed 0 passed; seed 2 was not finished): 17.5 % of the unseen tables were found, all of them "
        "of the adult file, and AUC was 0.57 at 1 and 2 copies and 0.975 at 8. On seed 112 these were seen to be the tables whose decoys "
        "swapped EducationNum and kept Education: 75 rows were too few for the forest to see that one names the other, and the model had "
        "learnt it from the adult tables that it had read. What one column alone tells now counts as well, so that both are kept.",
        "Also on seed 100: 49 decoys a row took 1.5 times the peer's processor time, 24 take less than all of it and rank as well; scoring "
        "rows only up to the last swapped cell was cheaper still and lost power (mean rank 9.4 instead of 4.8 of 50 on iris at 8 copies).",
    ]
    if full and is_fetched(MODEL):
        checks += _real(load_model(MODEL), sources[0], seed)
    else:
        notes.append(f"The arm of {MODEL} was left out: it needs the scale cpu, and the model in the cache.")
    if not full:
        checks = [check if check.unit == "tables" else replace(check, threshold=None) for check in checks]
    return Claim("tabular-memory", STATEMENT, checks, rows, seed, scale, notes, [_curve(rows)])


def _row(model: LanguageModel, entry: LabTable, n: int, decoys: int, seed: int, *, peer: bool) -> dict[str, Any]:
    """Both tests on one table."""
    table = entry.table
    busy = time.process_time()
    queries = RowQueries.draw(table, n, seed=seed)
    ranked = measure_decoy_rank(model, queries, Decoys(table, queries.shown, seed), decoys).summary
    row: dict[str, Any] = {
        "source": entry.source,
        "copies": entry.exposures,
        "rows": len(table),
        "mean_rank": ranked["mean_rank"],
        "place": ranked["mean_rank"] / (ranked["decoys"] + 1),
        "p_value": ranked["p_value"],
        "model_p": ranked["model_p"],
        "control_p": ranked["control_p"],
        "first": ranked["first"],
        "seconds": time.process_time() - busy,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{table.name}.csv"
        path.write_text(table.text, encoding="utf-8")
        if peer:
            theirs = tabular_peer.row_completion(model, path, n, seed)
            row |= {"peer_matches": theirs["matches"], "peer_seconds": theirs["processor_seconds"], "peer_calls": theirs["calls"]}
        if peer or decoys < DECOYS:
            truths, answers, matches = compat_row_completion(model, path, n=n, rng=np.random.default_rng(seed))
            row["matches"] = matches
            if peer:
                row |= {"same_rows": truths == theirs["truths"], "same_answers": answers == theirs["answers"]}
    return row


def _compatible(rows: list[dict[str, Any]], full: bool) -> list[Check]:
    if not full:
        return [Check("tables whose rows were asked for in the compatible mode", sum("matches" in row for row in rows), "==", len(rows),
                      unit="tables")]  # fmt: skip
    return [
        Check("compatible mode: tables with the peer's queries", sum(row["same_rows"] for row in rows), "==", len(rows), unit="tables"),
        Check("compatible mode: tables with the peer's count of matches", sum(row["matches"] == row["peer_matches"] for row in rows), "==",
              len(rows), unit="tables"),
        Check("compatible mode: tables with the peer's answers to the letter", sum(row["same_answers"] for row in rows)),
    ]  # fmt: skip


def _ranked(rows: list[dict[str, Any]], both: int, full: bool) -> list[Check]:
    unseen = [row for row in rows if row["copies"] == 0]
    twins = [row for row in rows[:both] if row["copies"] == 0]
    uniform = float(stats.kstest([row["model_p"] for row in unseen], "uniform").pvalue)
    found = sum(row["p_value"] <= LEVEL for row in unseen)
    checks = [
        Check("decoy rank: share of unseen tables found at 5 %", found / len(unseen), "<=", 0.10, unit="share"),
        Check("decoy rank: p of the uniformity of unseen tables' p-values", uniform, ">", 0.01),
        Check("the same, upper end of its 95 % interval", wilson_interval(found, len(unseen)).high, unit="share"),
    ]  # fmt: skip
    groups = (("1 and 2 copies", (1, 2)), ("8 copies", (8,)), ("all copies", EXPOSURES))
    for name, levels in groups:
        seen = [row for row in rows if row["copies"] in levels]
        ours = auc([-row["place"] for row in seen], [-row["place"] for row in unseen])
        peer = auc([row["peer_matches"] for row in seen], [row["peer_matches"] for row in twins]) if full else None
        what = f"decoy rank: AUC of seen against unseen tables, {name}"
        if name == "8 copies":
            checks.append(Check(what, ours, "==", 1.0, peer))
        else:
            ahead = 0.15 if name == "1 and 2 copies" else 0.0
            checks.append(Check(what, ours, ">=" if ahead else ">", None if peer is None else peer + ahead, peer))
    if full:
        seconds, peers = (sum(row[key] for row in rows[:both]) for key in ("seconds", "peer_seconds"))
        checks.append(Check("processor seconds of decoy rank over the peer's, sixteen tables", seconds / peers, "<=", 1.0, unit="ratio"))
    return checks


def _real(model: LanguageModel, iris: Table, seed: int) -> list[Check]:
    """The header test on iris and on a table that nobody has read."""
    rng = np.random.default_rng((seed, 842))
    cells = [
        [f"{rng.uniform(10, 99):.1f}", f"{rng.uniform(1, 9):.2f}", f"{rng.integers(100, 999)}", "abcd"[rng.integers(4)]] for _ in range(60)
    ]
    made = Table.of("made-up", ["torque", "slip", "batch", "grade"], cells)
    agreed = [measure_header(model, table, seed=seed).summary["agreed"] for table in (iris, made)]
    return [
        Check(
            f"{MODEL}: characters of the file of {iris.name} that follow to the letter", agreed[0], ">=", agreed[1], agreed[1], "characters"
        )
    ]


def _curve(rows: list[dict[str, Any]]) -> Curve:
    points = []
    for copies in (0, *EXPOSURES):
        places = [row["place"] for row in rows if row["copies"] == copies]
        points.append({"x": copies, "y": float(np.mean(places)), "low": min(places), "high": max(places), "n": len(places)})
    return Curve(
        "tabular-copies",
        "How likely true rows are among their decoys, by copies of the table",
        "copies in the training data",
        "mean place of the true row",
        [Series("tables", points)],
        x_scale="symlog",
        y_domain=(0.0, 1.0),
        y_format="percent",
        caption="50 % is chance; bands are the least and the greatest of the tables.",
    )
