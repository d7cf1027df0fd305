"""This library beside NVIDIA's kvpress 0.5.5: the same token ids, the same bytes, each in its own process; joined on the sample.

kvpress (Devoto et al., 2025) reads the whole context, then compresses it once; here methods read in chunks and never hold more than their
budget and a chunk. Compared are five methods that both have: StreamingLLM, H2O (kvpress: observed attention), TOVA, SnapKV and ThinK.
Budgets are equal in **bytes**: a cache here also keeps the position of every entry (and H2O a score), so it is given fewer entries, as
many as measurably take no more bytes than kvpress holds until the answer is written: it keeps question and answer on top of its budget.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from palimpsest.context.attach import ContextMethod
from palimpsest.context.options import build_method
from palimpsest.context.prefill import prefill
from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.evaluation.context_bench import ask
from palimpsest.evaluation.context_prompts import KeySample
from palimpsest.evaluation.context_reading import attached, throughput, with_bos
from palimpsest.models.hf import HFModel
from palimpsest.stats import mcnemar

SCRIPT = Path(__file__).with_name("kvpress_run.py")
METHODS = ("streaming-llm", "h2o", "tova", "snapkv", "think")
THINK_RATIO = 0.4


@dataclass(frozen=True)
class PeerRow:
    """One method, here and there, on the same samples.

    Attributes:
        method: its name; keep: entries of the context that kvpress keeps, or ThinK's share of channels; budget: entries kept here.
        n: questions.
        ours, theirs: share answered exactly; p_value: McNemar's.
        our_bytes, their_bytes: of the cache after the context was read, the mean.
        our_answering, their_answering: the most from then until the answer is written, of the first sample and the mean.
        our_peak, their_peak: the most that it held while reading.
        our_decode, their_decode: tokens a second of greedy decoding, medians.
    """

    method: str
    keep: float
    budget: int | None
    n: int
    ours: float
    theirs: float
    p_value: float
    our_bytes: float
    their_bytes: float
    our_answering: int
    their_answering: float
    our_peak: int
    their_peak: int
    our_decode: float
    their_decode: float


def run_kvpress(
    python: Path | str,
    model: Path | str,
    samples: Sequence[KeySample],
    methods: Sequence[tuple[str, float]],
    *,
    threads: int = 1,
    new_tokens: int = 16,
    timeout: float | None = None,
) -> pl.DataFrame:
    """What kvpress answers, one row a method, sample and question; see `kvpress_run` for the columns.

    Args:
        python: the interpreter of an environment that has kvpress.
        model: the model's folder.
        samples: contexts and questions in ids of the model's tokenizer.
        methods: (name, entries that are kept, or ThinK's share).
        threads, new_tokens: of the measurement of speed.
        timeout: seconds.

    Raises:
        MissingDependencyError: the interpreter cannot be started, or has no kvpress.
        InputError: the run failed; its last words are in the message.
    """
    job = {
        "model": str(model),
        "threads": threads,
        "new_tokens": new_tokens,
        "methods": [{"name": name, "keep": keep} for name, keep in methods],
        "samples": [
            {
                "id": sample.id,
                "context": sample.context.tolist(),
                "questions": [{"ids": one.ids.tolist(), "answer": one.answer.tolist()} for one in sample.questions],
            }
            for sample in samples
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "job.json", Path(folder) / "out.json"
        source.write_text(json.dumps(job), encoding="utf-8")
        try:
            run = subprocess.run([str(python), str(SCRIPT), str(source), str(target)], capture_output=True, text=True, timeout=timeout)
        except OSError as error:
            raise MissingDependencyError(f"{python} cannot be started: {error.strerror}.", _HOW) from error
        except subprocess.TimeoutExpired as error:
            raise InputError(f"kvpress took more than {timeout:g} s.", "Ask for fewer or shorter samples.") from error
        if run.returncode or not target.is_file():
            last = (run.stderr.strip().splitlines() or [f"it ended with {run.returncode}"])[-1]
            if "No module named" in last:
                raise MissingDependencyError(f"{python}: {last}.", _HOW)
            raise InputError(f"kvpress failed: {last}", "Run the script by itself to see all of its output.")
        found = json.loads(target.read_text(encoding="utf-8"))
    return pl.DataFrame(found["rows"], infer_schema_length=None).with_columns(
        **{f"version_{name}": pl.lit(version) for name, version in found["versions"].items()}
    )


_HOW = 'Make one: python -m venv peer && peer/bin/pip install torch==2.13.0 kvpress==0.5.5 "transformers<5.3".'


def answering_bytes(model: HFModel, method: ContextMethod | None, sample: KeySample) -> int:
    """The most that a cache holds from when a context has been read until the first question about it is answered."""
    question = sample.questions[0]
    with attached(model, method) as session:
        read = prefill(session, with_bos(model, model.tokenizer, sample.context), len(sample.context) + 1)
        held, cache = [read.nbytes], read.cache
        for ids in (question.ids, *question.answer[:, None]):
            step = prefill(session, torch.from_numpy(np.asarray(ids, np.int64))[None].to(read.logits.device), len(ids), cache=cache)  # type: ignore[union-attr]
            held.append(step.nbytes)
    return max(held)


def equal_budget(model: HFModel, name: str, sample: KeySample, keep: int) -> int:
    """The most entries a head with which a cache measurably takes no more bytes, until a question is answered, than kvpress's.

    Args:
        model: here.
        name: a method that has a budget.
        sample: a context with its question.
        keep: entries of the context that kvpress keeps; it stores keys and values alone, and those of question and answer on top.

    Raises:
        InputError: not even one entry fits, or the method needs more of them.
    """
    question, length = sample.questions[0], len(sample.context)
    entry = answering_bytes(model, None, sample) / (length + len(question.ids) + len(question.answer) + int(model.prepends_bos))
    limit = int(entry * (keep + len(question.ids) + len(question.answer)))
    fits, exceeds, budget = 0, length + 1, keep
    while exceeds - fits > 1:
        held = answering_bytes(model, build_method(name, {"budget": str(budget)}), sample)
        fits, exceeds = (budget, exceeds) if held <= limit else (fits, budget)
        budget = min(exceeds - 1, max(fits + 1, budget * limit // held))
    if not fits:
        raise InputError(f"{limit:,} bytes are too few for {name}.", "Let kvpress keep more.")
    return fits


def compare(
    model: HFModel,
    python: Path | str,
    folder: Path | str,
    samples: Sequence[KeySample],
    *,
    keep: int,
    methods: Sequence[str] = METHODS,
    chunk: int | None = None,
    threads: int = 1,
    new_tokens: int = 16,
    report: Callable[[str], None] | None = None,
) -> tuple[list[PeerRow], pl.DataFrame]:
    """Asks both the same, method by method.

    Args:
        model: here; `folder`: the same model for the peer.
        python: the peer's interpreter.
        samples: with one question each.
        keep: entries of the context that kvpress keeps; here as many as take the same bytes.
        methods: names of `METHODS`.
        chunk: tokens that are read here in one forward pass; None reads all at once, as kvpress does.
        threads: of both.
        new_tokens: decoded for the speed.
        report: called with the name of what is being run.

    Returns:
        One `PeerRow` a method, and the joined table: id, method, exact and logprob of both, bytes of both.
    """
    rows, tables = [], []
    for name in methods:
        if report:
            report(name)
        amount = THINK_RATIO if name == "think" else float(keep)
        theirs = run_kvpress(python, folder, samples, [(name, amount)], threads=threads, new_tokens=new_tokens)
        budget = None if name == "think" else equal_budget(model, name, samples[0], keep)
        options = {"ratio": str(THINK_RATIO)} if budget is None else {"budget": str(budget)}
        method = build_method(name, options)
        ours = ask(model, model.tokenizer, method, samples, chunk=chunk or max(len(sample.context) for sample in samples)).table
        speed = throughput(model, model.tokenizer, method, samples[0].context, new_tokens=new_tokens, threads=threads, repeats=3)
        joined = ours.select("id", "question", "exact", "logprob", "bytes", "peak_bytes").join(
            theirs.rename({name: f"their_{name}" for name in ("exact", "logprob", "bytes", "peak_bytes", "answering_bytes")}),
            on=["id", "question"],
        )
        if joined.height != ours.height:
            raise InputError(f"{name}: {ours.height} answers here, {theirs.height} there, {joined.height} in both.", "Run it again.")
        tables.append(joined.with_columns(method=pl.lit(name)))
        rows.append(
            PeerRow(
                name,
                amount,
                budget,
                joined.height,
                float(joined["exact"].mean()),  # type: ignore[arg-type]
                float(joined["their_exact"].mean()),  # type: ignore[arg-type]
                mcnemar(joined["exact"].to_numpy(), joined["their_exact"].to_numpy()).p_value,
                float(joined["bytes"].mean()),  # type: ignore[arg-type]
                float(joined["their_bytes"].mean()),  # type: ignore[arg-type]
                answering_bytes(model, method, samples[0]),
                float(joined["their_answering_bytes"].mean()),  # type: ignore[arg-type]
                int(joined["peak_bytes"].max()),  # type: ignore[arg-type]
                int(joined["their_peak_bytes"].max()),  # type: ignore[arg-type]
                float(speed.summary["decode_tokens_per_second"]),
                float(joined["decode_tokens_per_second"].median()),  # type: ignore[arg-type]
            )
        )
    return rows, pl.concat(tables)
