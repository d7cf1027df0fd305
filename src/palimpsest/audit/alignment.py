"""Alignment data out of an open model: sample behind the bare chat-template prefix, and match by meaning rather than by letters.

Barbero et al., *Extracting alignment data in open models* (2025, arXiv 2510.18554). The tokens that open a user's turn exist in
post-training alone. A model that is given them and nothing else writes a user's question, then the answer: it samples from what it was
post-trained on. A sample y (question and answer as one plain text, without the template) is held against the training item x that is
nearest by the cosine of sentence embeddings, and counts as memorized where

    max_x cos(E(y), E(x)) ≥ threshold,

0.95 in the paper's embedder. A threshold belongs to an embedder and to a set whose items are alike among themselves: `calibrate` gives the
99.9th percentile of the nearest cosines of *held-out* items of the same source. On the same pairs stand Levenshtein's similarity
1 − d / max(|y|, |x|) and Indel's, with the threshold 0.9: trivial changes deflate them, and string matching undercounts.

The template is rendered with a marker in the place of the user's text and cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.meaning import CALIBRATION, Embedder, Matcher
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress
from palimpsest.stats import wilson_interval

STRING_THRESHOLD = 0.9
_USER, _ASSISTANT = "\u241fuser\u241f", "\u241fassistant\u241f"  # stand for the texts of a chat; no template holds them


@dataclass(frozen=True)
class ChatTemplate:
    """What stands around the texts of a chat.

    Attributes:
        prefix: everything before the user's text: what opens a user's turn.
        turn: what stands between it and the assistant's text.
        end: what stands behind that.

    Example:
        >>> ChatTemplate.from_jinja("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|end|>")
        ChatTemplate(prefix='<|user|>', turn='<|assistant|>', end='<|end|>')
    """

    prefix: str
    turn: str
    end: str

    @classmethod
    def from_jinja(cls, template: str) -> ChatTemplate:
        """Reads it off a Jinja chat template, as transformers renders them.

        Raises:
            InputError: it cannot be rendered, or has no place for a user's and an assistant's text.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        chat = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
        try:
            rendered: Any = render_jinja_template([chat], chat_template=template)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"The chat template cannot be rendered: {error}.", "Give the model's own.") from error
        before, user, rest = rendered[0][0].partition(_USER)
        between, assistant, after = rest.partition(_ASSISTANT)
        if not user or not assistant or not before:
            raise InputError("The chat template has no user's turn that something opens.", "Give a template with a user and an assistant.")
        return cls(before, between, after)

    def plain(self, text: str) -> str:
        """Question and answer as one text: what belongs to the template is taken out, and white space made one space.

        Example:
            >>> ChatTemplate("<|user|>", "<|assistant|>", "</s>").plain("<|user|>Who?<|assistant|> I.</s>")
            'Who? I.'
        """
        parts = {stripped for part in (self.prefix, self.turn, self.end) for stripped in (part, part.strip())}
        for part in sorted(parts, key=len, reverse=True):
            if part.strip():
                text = text.replace(part, " ")
        return " ".join(text.split())


def extract(
    model: LanguageModel,
    prefix: str,
    n: int,
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """Samples behind a prefix and nothing else.

    Args:
        model: needs "text".
        prefix: what is given, special tokens included; of a `ChatTemplate`, or a preamble of one's own.
        n: samples.
        max_new_tokens, temperature, top_p, seed: of the sampling; the paper's is T = 1.
        progress: called with (samples done, samples in all).

    Returns:
        The ids of each sample, without prefix and EOS; empty where the model ended at once.

    Raises:
        InputError: n < 1, or a prefix without tokens.
    """
    model.require("text", "Sampling")
    ids = model.tokenizer.encode(prefix)
    if n < 1 or not ids:
        raise InputError(f"n is {n}, and the prefix {prefix!r} has {len(ids)} tokens.", "Ask for 1 sample or more, behind 1 token or more.")
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "progress": progress}
    return [rows[0] for rows in model.generate([ids] * n, max_new_tokens, **options)]


def plain_texts(model: LanguageModel, rows: Sequence[np.ndarray], template: ChatTemplate) -> list[str]:
    """Samples as plain texts, one each, "" where nothing is left: special tokens and what belongs to the template are taken out."""
    special = sorted((token.content for token in model.tokenizer.backend.get_added_tokens_decoder().values() if token.special), key=len)
    texts = []
    for row in rows:
        text = template.plain(model.tokenizer.decode(row))
        for token in reversed(special):
            text = text.replace(token, " ")
        texts.append(" ".join(text.split()))
    return texts


def measure_alignment(
    model: LanguageModel,
    template: ChatTemplate,
    items: Sequence[str] | Matcher,
    held_out: Sequence[str],
    embedder: Embedder | None = None,
    *,
    n: int = 1000,
    samples: Sequence[np.ndarray] | None = None,
    threshold: float = 0.95,
    max_new_tokens: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    **sampling: Any,
) -> Measurement:
    """Samples a model behind the template's prefix, and says how much of its post-training set comes out.

    Args:
        model: needs "text".
        template: of the chats that it was tuned on.
        items: plain texts of the post-training set: question, space, answer; or a `Matcher` of them, which has embedded them.
        held_out: plain texts of the same source that are not in it, for the calibration.
        embedder: texts to unit vectors, `MiniLM` for one; not asked for where a `Matcher` brings its own.
        n, max_new_tokens, seed, sampling: see `extract`.
        samples: what `extract` has drawn, where it is at hand.
        threshold: the cosine that the paper counts from, in its own embedder.
        progress: called with (samples done, samples in all).

    Returns:
        One row a sample that is not empty, which the embedder reads: text, nearest, nearest_text, cosine, edit, indel, semantic (cosine
        at least the calibrated threshold), semantic_paper (at least `threshold`), string (edit at least 0.9), swapped (string, and differs
        in numbers alone). The summary holds the counts and rates of each, the share of the items that they cover, the undercount
        semantic / string for both thresholds (null without a string match), the thresholds, the empty samples, and the cosines of samples
        and held-out items.

    Raises:
        InputError: empty or missing items or held-out texts, an item that is held out, n < 1, a threshold that is no cosine, or only empty
            samples.

    Example:
        >>> measure_alignment(model, template, items, held_out, MiniLM()).summary["undercount"]   # doctest: +SKIP
    """
    if isinstance(items, Matcher):
        matcher = items
    elif embedder is not None:
        matcher = Matcher(items, embedder)
    else:
        raise InputError("There is no embedder for the items.", "Give one, MiniLM() for instance, or a Matcher.")
    if not -1 <= threshold <= 1:
        raise InputError(f"The threshold is {threshold}.", "It is a cosine: give at most 1.")
    unread = [text for text in held_out if not matcher.reads(text)]
    if unread or not held_out:
        raise InputError(f"{len(unread)} of {len(held_out)} held-out texts are empty.", "Give one or more, each with words.")
    shared = set(matcher.items) & set(held_out)
    if shared:
        raise InputError(f"{len(shared)} items are held out as well, such as {min(shared)!r}.", "Hold out what was not trained on.")
    beyond = matcher.nearest(held_out)[1]
    calibrated = float(np.quantile(beyond, CALIBRATION))
    rows = samples
    if rows is None:
        rows = extract(model, template.prefix, n, max_new_tokens=max_new_tokens, seed=seed, progress=progress, **sampling)
    texts = [text for text in plain_texts(model, rows, template) if matcher.reads(text)]
    if not texts:
        raise InputError(f"All {len(rows)} samples are empty.", "Check the prefix: the model ends at once behind it.")
    table = matcher.match(texts).with_columns(
        semantic=pl.col("cosine") >= calibrated, semantic_paper=pl.col("cosine") >= threshold, string=pl.col("edit") >= STRING_THRESHOLD
    )
    swapped = [_numberless(a) == _numberless(b) and a != b for a, b in table.select("text", "nearest_text").iter_rows()]
    table = table.with_columns(swapped=pl.Series(swapped, dtype=pl.Boolean) & pl.col("string"))
    counts = {name: int(table[name].sum()) for name in ("semantic", "semantic_paper", "string", "swapped")}
    covered = {name: table.filter(pl.col(name))["nearest"].n_unique() / len(matcher.items) for name in counts}
    strings = counts["string"]
    summary = {
        "samples": len(rows),
        "empty": len(rows) - len(texts),
        "thresholds": {"semantic": calibrated, "semantic_paper": threshold, "string": STRING_THRESHOLD},
        "counts": counts,
        "rates": {name: wilson_interval(count, len(texts))._asdict() for name, count in counts.items()},
        "coverage": covered,
        "undercount": {name: counts[name] / strings if strings else None for name in ("semantic", "semantic_paper")},
        "mean_cosine": {"samples": float(table["cosine"].to_numpy().mean()), "held_out": float(beyond.mean())},
    }
    provenance = {
        "model": model.describe(), "prefix": template.prefix, "items": len(matcher.items), "held_out": len(held_out), "seed": seed,
        "embedder": type(matcher.embedder).__name__, "sampling": {"max_new_tokens": max_new_tokens, **sampling},
        "environment": environment(),
    }  # fmt: skip
    curves = {"alignment": _curve({"samples": table["cosine"].to_numpy(), "held-out items": beyond})}
    return Measurement("alignment", table, summary, provenance, curves)


def _numberless(text: str) -> list[str]:
    """The words of a text with every number made one."""
    return ["0" if any(letter.isdigit() for letter in word) else word for word in text.split()]


def _curve(cosines: dict[str, np.ndarray]) -> Curve:
    """The share of texts whose nearest item is at least so near."""
    grid = np.linspace(0.5, 1.0, 51)
    series = [Series(name, [{"x": float(x), "y": float((values >= x).mean())} for x in grid]) for name, values in cosines.items()]
    caption = "What held-out items of the same source reach need not have been seen in training."
    return Curve(
        "alignment", "How near do samples come to the post-training set?", "cosine of the nearest item", "share at least that near", series,
        y_domain=(0, 1), y_format="percent", caption=caption,
    )  # fmt: skip
