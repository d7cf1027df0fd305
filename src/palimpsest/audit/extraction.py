"""Discoverable extraction and its log-linear laws (Carlini, Ippolito, Jagielski, Lee, Tramèr and Zhang, ICLR 2023, arXiv 2202.07646).

A suffix s is extractable from a model with k tokens of context when greedy decoding after the k tokens that stand before s in the
training data writes s. Greedy decoding writes s if and only if, with the truth fed in, every token of s is the argmax given all
before it: until its first error a greedy run has seen the truth and nothing else. So one teacher-forced pass over prefix and
suffix decides it, without generating. Ties go to the lowest id on both paths. A door that offers only text is asked to generate.

Contexts of different length are compared on the same suffixes. The rates, fits and curves are in `palimpsest.audit.laws`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from palimpsest.audit.laws import extraction_curves, extraction_summary, with_gain
from palimpsest.audit.progress import stages
from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel, Progress

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

_SCHEMA = {
    "sample": pl.Int64,
    "id": pl.String,
    "domain": pl.String,
    "copies": pl.Int64,
    "context": pl.Int64,
    "suffix_len": pl.Int64,
    "extracted": pl.Boolean,
    "matched": pl.Int64,
    "any_match": pl.Boolean,
    "logprob": pl.Float64,
    "reference_extracted": pl.Boolean,
    "reference_logprob": pl.Float64,
}


def measure_extraction(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    context: int | Sequence[int] = (50, 100, 200, 500),
    suffix: int | None = None,
    decode: str = "greedy",
    *,
    num_beams: int = 100,
    reference: LanguageModel | None = None,
    index: CorpusIndex | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measures which suffixes a model writes word for word when it is shown what stands before them.

    Args:
        model: needs "logprobs"; with "text" alone the greedy text is generated and compared, and there are no log-probs.
        samples: passages; meta "id", "domain" and "copies" are used where present.
        context: tokens shown. A sample is skipped, and counted in the summary, at contexts longer than its prefix or, with the
            suffix, longer than what the model can see.
        suffix: judge only the first so many tokens of every suffix; all of them by default.
        decode: "greedy", or "beam" for beam search with `num_beams` (needs "text").
        reference: a model that never saw the texts; same tokenizer. Adds its rates, and the gain over it.
        index: the training corpus; `any_match` then also holds when what the model writes instead stands anywhere in it.
        progress: called with (rows done, rows in all).

    Returns:
        One row per sample and context: extracted, matched (tokens right before the first error), logprob (mean per suffix token),
        gain, … ; the summary holds rates with Wilson intervals by context, copies, both, and domain, what was skipped, and the
        laws with R² and 95 % intervals (or the reason why there is no fit).

    Raises:
        InputError: no sample, an impossible context or suffix, or nothing that could be measured.
        CapabilityError: the door can neither score nor write.
        TokenizerMismatchError: reference or index use another tokenizer.

    Example:
        >>> m = measure_extraction(model, samples, context=(10, 50))      # doctest: +SKIP
        >>> m.summary["laws"]["copies"]["gain"]["slope"]                 # doctest: +SKIP
    """
    require_samples(samples)
    contexts = sorted({context} if isinstance(context, int | np.integer) else set(context))
    if not contexts or contexts[0] < 1 or decode not in ("greedy", "beam") or num_beams < 1:
        raise InputError(
            f"context {contexts}, decode {decode!r}, num_beams {num_beams}.", "Contexts and beams >= 1, decode greedy or beam."
        )
    if suffix is not None and not 1 <= suffix <= min(sample.suffix_len for sample in samples):
        shortest = min(sample.suffix_len for sample in samples)
        raise InputError(f"A suffix of {suffix} tokens was asked for; the shortest has {shortest}.", "Ask for at most the shortest.")
    if reference is not None:
        reference.require("logprobs", "A reference in measure_extraction")
        model.tokenizer.require_same(reference.tokenizer.fingerprint, f"the reference {reference.name}")
    if index is not None and index.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(index.tokenizer_fingerprint, "the index")
    scored, generated = "logprobs" in model.capabilities, decode == "beam" or "logprobs" not in model.capabilities
    if generated:
        model.require("text", "Extraction without log-probs, or by beam search,")

    cases, skipped = _cases(samples, contexts, suffix, model, reference, generated)
    rows = [samples[i].ids[samples[i].prefix_len - c : samples[i].prefix_len + k] for i, c, k in cases]
    starts = [c for _, c, _ in cases]
    # A door that can score is only asked to write for beam search, and for what it puts in the place of a missed suffix.
    passes = scored + generated + (reference is not None) + (index is not None and not generated)
    stage = stages(progress, len(rows) * passes)
    columns: dict[str, Any] = {
        "sample": [i for i, _, _ in cases],
        "id": [str(samples[i].meta.get("id", i)) for i, _, _ in cases],
        "domain": [samples[i].meta.get("domain") for i, _, _ in cases],
        "copies": [samples[i].meta.get("copies") for i, _, _ in cases],
        "context": starts,
        "suffix_len": [k for _, _, k in cases],
    }
    outputs: list[np.ndarray] = []
    if scored:
        scores = model.score(rows, start=starts, progress=stage(len(rows)))
        columns["logprob"] = [float(lp.mean(dtype=np.float64)) for lp in scores.logprobs]
        columns["matched"] = [leading(hits) for hits in scores.greedy_hits]
    if generated:
        outputs = _continuations(model, rows, starts, num_beams if decode == "beam" else 1, stage(len(rows)))
        columns["matched"] = [matched_tokens(model, out, row[c:]) for out, row, c in zip(outputs, rows, starts, strict=True)]
    columns["extracted"] = [m == k for m, k in zip(columns["matched"], columns["suffix_len"], strict=True)]
    if reference is not None:
        scores = reference.score(rows, start=starts, progress=stage(len(rows)))
        columns["reference_logprob"] = [float(lp.mean(dtype=np.float64)) for lp in scores.logprobs]
        columns["reference_extracted"] = [bool(hits.all()) for hits in scores.greedy_hits]
    if index is not None:
        missed = [j for j, hit in enumerate(columns["extracted"]) if not hit]
        if not generated:
            written = _continuations(model, [rows[j] for j in missed], [starts[j] for j in missed], 1, stage(len(rows)))
        else:
            written = [outputs[j] for j in missed]
        lengths = [columns["suffix_len"][j] for j in missed]
        elsewhere = dict(zip(missed, _stand_in(index, written, lengths), strict=True))
        columns["any_match"] = [elsewhere.get(j, True) for j in range(len(rows))]
    if progress:
        progress(len(rows) * passes, len(rows) * passes)
    table = with_gain(pl.DataFrame(columns, schema={name: kind for name, kind in _SCHEMA.items() if name in columns}))
    provenance = {
        "model": model.describe(),
        "reference": reference.describe() if reference is not None else None,
        "corpus": index.fingerprint if index is not None else None,
        "decoding": {"scheme": decode, "num_beams": num_beams if decode == "beam" else 1, "path": "generate" if generated else "score"},
        "context": contexts,
        "suffix": suffix,
        "samples": len(samples),
        "seed": None,
        "environment": environment(),
    }
    summary = extraction_summary(table) | {"samples": len(samples), "skipped": skipped}
    return Measurement("extraction", table, summary, provenance, extraction_curves(summary))


def leading(hits: np.ndarray) -> int:
    """How many entries are true before the first false one."""
    return len(hits) if hits.all() else int(np.argmin(hits))


def matched_tokens(model: LanguageModel, written: np.ndarray, suffix: np.ndarray) -> int:
    """How many tokens of the suffix were written before the first error; all where the text is the same in other tokens."""
    common = min(len(written), len(suffix))
    right = leading(written[:common] == suffix[:common])
    if right < len(suffix) and "weights" not in model.capabilities:
        text = model.tokenizer.decode(suffix.tolist())
        # U+FFFD stands for any broken character: two of them are no match
        if "\ufffd" not in text and model.tokenizer.decode(written.tolist()).startswith(text):
            return len(suffix)
    return right


def _cases(
    samples: Sequence[PrefixSuffix],
    contexts: Sequence[int],
    suffix: int | None,
    model: LanguageModel,
    reference: LanguageModel | None,
    generated: bool,
) -> tuple[list[tuple[int, int, int]], list[dict[str, Any]]]:
    """(sample, context, suffix length) of everything that can be measured, and what cannot, counted by reason."""
    room = min(door.room for door in (model, reference) if door is not None)
    stops = generated and "weights" not in model.capabilities and model.tokenizer.eos_id is not None
    lengths = [(i, sample.prefix_len, suffix or sample.suffix_len) for i, sample in enumerate(samples)]
    cases, skipped = [], []
    for context in contexts:
        reasons: Counter[str] = Counter()
        for i, prefix_len, k in lengths:
            if context > prefix_len:
                reasons["prefix too short"] += 1
            elif context + k > room:
                reasons["longer than the model can see"] += 1
            elif stops and (samples[i].suffix[:k] == model.tokenizer.eos_id).any():
                reasons["the suffix holds EOS, where this door stops"] += 1
            else:
                cases.append((i, context, k))
        skipped += [{"context": context, "reason": reason, "samples": count} for reason, count in reasons.items()]
    if not cases:
        raise InputError(
            f"None of {len(samples)} samples can be measured at the contexts {list(contexts)}: {skipped}.",
            "Ask for shorter contexts, or draw samples with longer prefixes.",
        )
    return cases, skipped


def _continuations(
    model: LanguageModel, rows: Sequence[np.ndarray], starts: Sequence[int], num_beams: int, progress: Progress | None
) -> list[np.ndarray]:
    """What the model writes after each prefix, as many tokens as the suffix has; EOS is a token like any other where it can be."""
    out: list[np.ndarray] = [np.zeros(0, np.int64)] * len(rows)
    wanted = np.array([len(row) - start for row, start in zip(rows, starts, strict=True)], dtype=np.int64)
    stage = stages(progress, len(rows))
    stop = "weights" not in model.capabilities
    for length in np.unique(wanted).tolist():
        chosen = np.flatnonzero(wanted == length).tolist()
        prefixes = [rows[j][: starts[j]] for j in chosen]
        found = model.generate(prefixes, length, num_beams=num_beams, stop_at_eos=stop, progress=stage(len(chosen)))
        for j, continuations in zip(chosen, found, strict=True):
            out[j] = continuations[0]
    return out


def _stand_in(index: CorpusIndex, written: Sequence[np.ndarray], lengths: Sequence[int]) -> list[bool]:
    """Whether each row, as long as it should be, occurs in the corpus; one with an id that the corpus has not is not looked up."""
    known, _ = index.next_tokens([])
    pairs = zip(written, lengths, strict=True)
    possible = [j for j, (row, length) in enumerate(pairs) if len(row) == length and np.isin(row, known).all()]
    found = np.zeros(len(written), dtype=bool)
    found[possible] = index.count_batch([written[j] for j in possible]) > 0
    return found.tolist()
