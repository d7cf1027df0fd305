"""How exposed is a passage: its rank in likelihood among passages that were never trained on (the Secret Sharer's exposure).

Carlini, Liu, Erlingsson, Kos and Song, USENIX Security 2019, arXiv 1802.08232: exposure = log2 |R| − log2 rank, R the references and the
passage itself. There the references are other fillings of one form; here they are other passages of the same kind, so that easy text ranks
high too: the median exposure of unseen text is 1 by construction, whatever the model, and what is above it is read as memory.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl

from palimpsest.audit.laws import copy_levels
from palimpsest.evaluation import blocks
from palimpsest.evaluation.layers.parametric import exposure
from palimpsest.evaluation.plan import AuditPlan, fingerprint_samples, membership_split
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task
from palimpsest.measurement import Curve, Measurement, environment
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval, bootstrap_interval

LEAST = 20  # references, for a scale of at least four bits


def tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """One forward of every passage and reference."""
    others = [sample for sample in membership_split(plan)[1] if len(sample.ids) <= model.room]
    if len(others) < LEAST:
        return f"There are {len(others)} passages that were not trained on; a scale of ranks takes {LEAST}. Give more text with --held-out."
    read = plan.tokens + sum(len(sample.ids) for sample in others)
    return [Task("exposure", "exposure", partial(_measure, plan, model), read, key={"held_out": fingerprint_samples(others)})]


def _measure(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    members, others = membership_split(plan)
    members, others = ([sample for sample in side if len(sample.ids) <= model.room] for side in (members, others))
    both = [*members, *others]
    scored = (
        plan.cached(model).score([sample.ids for sample in both], start=[sample.prefix_len for sample in both], progress=progress).logprobs
    )
    means = np.array([row.mean(dtype=np.float64) for row in scored])
    references = means[len(members) :].tolist()
    table = pl.DataFrame(
        {
            "id": [str(sample.meta.get("id", i)) for i, sample in enumerate(members)],
            "copies": pl.Series([sample.meta.get("copies") for sample in members], dtype=pl.Int64),
            "logprob": means[: len(members)],
            "exposure": [exposure(value, references) for value in means[: len(members)].tolist()],
        }
    )
    own = [exposure(value, references[:i] + references[i + 1 :]) for i, value in enumerate(references)]
    summary = {
        "references": len(references),
        "most": float(np.log2(len(references) + 1)),
        "mean": bootstrap_interval(table["exposure"].to_numpy(), seed=plan.settings.seed)._asdict(),
        "control": float(np.mean(own)),
    }
    return Measurement("exposure", table, summary, {"model": model.describe(), "environment": environment()})


def show(record: AuditRecord) -> Shown:
    """Mean exposure by copies, and the most exposed passages."""
    result = record.result("exposure", record.largest)
    summary, table = result.summary, result.table
    made: list[blocks.Block] = []
    known = table.filter(pl.col("copies").is_not_null())
    if known["copies"].n_unique() > 1:
        values = known["exposure"].to_numpy()
        levels = copy_levels(known["copies"].to_numpy())
        points = []
        for level in np.unique(levels):
            inside = levels == level
            interval = bootstrap_interval(values[inside], seed=record.plan.settings.seed) if inside.sum() > 1 else None
            points.append({"x": float(known["copies"].to_numpy()[inside].mean()), "y": float(values[inside].mean()), "n": int(inside.sum()),
                           "low": interval.low if interval else None, "high": interval.high if interval else None})  # fmt: skip
        caption = f"Bits, at most {summary['most']:.1f} with {summary['references']} references; 95 % bootstrap intervals over passages."
        made.append(blocks.curve(Curve("exposure-copies", "Repeated texts rise in rank", "copies in the training data", "exposure (bits)",
                                       [blocks.line(record.largest.name, points)], "log", caption=caption)))  # fmt: skip
    top = table.sort("exposure", "logprob", descending=True).head(record.plan.settings.leaks)
    rows = [{key: row[key] for key in ("id", "copies", "exposure", "logprob")} for row in top.iter_rows(named=True)]
    columns = [("id", "Passage", "text"), ("copies", "Copies", "int"), ("exposure", "Exposure (bits)", "float"),
               ("logprob", "Log-prob. per token", "float")]  # fmt: skip
    made.append(blocks.table("exposure-top", "The most exposed passages", columns, rows))
    mean = summary["mean"]
    answer = (
        f"Ranked by likelihood among {summary['references']} passages that were not trained on, a passage has a mean exposure of "
        f"{mean['estimate']:.1f} bits ({mean['low']:.1f} to {mean['high']:.1f}) of {summary['most']:.1f}; those passages among themselves "
        f"have {summary['control']:.1f}."
    )
    value = Interval(mean["estimate"], mean["low"], mean["high"])
    return Shown(answer, made, Headline(value, "float", "bits of exposure", summary["control"], "of unseen passages"))


EXPOSURE = Detector(
    "exposure", "Exposure of a passage", "membership", "standard", (20,), (Need.LOGPROBS, Need.NONMEMBERS), "one forward", tasks, show,
    needs_for="The rank of a passage",
)  # fmt: skip
