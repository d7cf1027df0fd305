"""Claim check of the memory-based language model: it answers as TiMBL does, far faster, learns log-linearly, and knows its sources.

Van den Bosch et al. 2025, arXiv 2510.22317. Five parts:

1. *Agreement*: the labels of TiMBL for IGTree, TRIBL2 and IB1 at 50,000 instances of n = 4, and the ratio of processor times, each side
   with what it has: TiMBL's Python binding answers one by one, its program a whole file, ours a whole array. TiMBL is no dependency
   (`pip install python3-timbl`; Debian has the program `timbl`): without the binding there is no verdict.
2. *Log-linear learning*: accuracy on a fixed held-out part after 12,500, 25,000, … 400,000 tokens.
3. *Memorisation*: accuracy on text that was learnt, with n = 2, 4, 8.
4. *Explanation*: every training position given as a reason really has the features that it is said to share.
5. *Cost*: tokens a second and energy beside SmolLM2-135M on the same tokens (only reported; the model is used where it was fetched).

Text: the shipped novels, cut into words and signs, each paragraph a document; the seed shuffles which are learnt and which are asked
about. The spec takes WikiText-2, which not every installation has (and of which the training part was not to be had), and gives 41.95 %
as the accuracy on it; that is for words cut by a regular expression that makes `<unk>` three tokens, two of which follow from the one
before. Energy: see `energy`.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.errors import InputError, MissingDependencyError
from palimpsest.experiments import energy, timbl_peer
from palimpsest.experiments.canaries import one_thread
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.planted_texts import base_text
from palimpsest.measurement import Curve, Series
from palimpsest.models.load import load_model
from palimpsest.models.memory_based import MemoryBasedLM
from palimpsest.models.registry import is_fetched
from palimpsest.stats import fit_log_law

STATEMENT = (
    "Next-token prediction by nearest neighbours over all stored contexts improves log-linearly with data, runs on CPUs alone and can say "
    "for every token which training positions it came from."
)
N = 4
# Test items, the share of equal labels that is asked, and how many times faster than TiMBL's binding.
# The third figure is how many times faster than TiMBL's binding. All three algorithms were first asked for 100; on seed 100 TRIBL2 gave 73
# to 79, and it and IB1 were set to the specification's 50 before seeds 0, 1 and 2 ran (which gave 111 and more). Ids were also numbered
# in the order of the text on seed 100, so that TiMBL's last tie-break, the class met first, is ours: IGTree agreed in 99.85 % before.
AGREEMENT = {"igtree": (2000, 0.999, 100), "tribl2": (1000, 0.985, 50), "ib1": (150, 0.94, 50)}
INSTANCES = 50_000
LEVELS = tuple(12_500 << step for step in range(6))
ASKED = 20_000  # tokens on which accuracy is measured
SMOKE_LEVELS, SMOKE_PARAGRAPHS = (500, 1000, 2000), 300
TRANSFORMER, TRANSFORMER_TOKENS = "smollm2-135m", 2000
_TOKEN = re.compile(r"\w+|[^\w\s]")


def run(scale: str, seed: int) -> Claim:
    """Checks the claim.

    Args:
        scale: "smoke": a few thousand tokens, only the explanations are held against anything; "cpu".
        seed: of what is learnt and what is asked.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
        MissingDependencyError: python3-timbl is not installed (at "cpu").
    """
    whole = decides(scale)
    if whole and not timbl_peer.has_binding():
        raise MissingDependencyError("The claim is about agreement with TiMBL, which is not installed.", "pip install python3-timbl")
    levels = LEVELS if whole else SMOKE_LEVELS
    learnt, held_out, kinds = words(seed, None if whole else SMOKE_PARAGRAPHS)
    test = first(held_out, ASKED if whole else 500)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    checks = explanations(learnt, levels[-1], seed)
    if whole:
        checks += agreement(learnt, test, rows, notes)
    law, curve = learning(learnt, test, levels, kinds, rows, whole)
    checks += law + memorisation(learnt, levels[-1], rows, whole)
    if whole:
        checks += disk(first(learnt, levels[-1]), kinds)
        checks += cost(seed, rows, notes)
    return Claim("memory-based-lm", STATEMENT, checks, rows, seed, scale, notes, curve)


def words(seed: int, paragraphs: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """The paragraphs of the novels as word ids, in an order drawn from the seed: those to learn, those to ask about, and how many ids.

    With `paragraphs`, only so many of each.
    Ids are given in the order in which words are met, so that TiMBL's last tie-break, the class met first, is the lower id here.
    """
    numbers: dict[str, int] = {}
    rng = np.random.default_rng(seed)

    def read(texts: list[str]) -> list[np.ndarray]:
        drawn = (_TOKEN.findall(texts[i]) for i in rng.permutation(len(texts))[:paragraphs].tolist())
        return [np.array([numbers.setdefault(word, len(numbers)) for word in text], np.int64) for text in drawn if text]

    learnt, held_out = read(base_text().train), read(base_text().held_out)
    return learnt, held_out, len(numbers)


def first(docs: list[np.ndarray], tokens: int) -> list[np.ndarray]:
    """The first documents, `tokens` tokens in all; the last one is cut."""
    ends = np.cumsum([len(doc) for doc in docs])
    if ends[-1] < tokens:
        raise InputError(f"The text has {ends[-1]:,} tokens, {tokens:,} were asked for.", "Ask for fewer.")
    last = int(np.searchsorted(ends, tokens))
    return [*docs[:last], docs[last][: len(docs[last]) - int(ends[last]) + tokens]]


def instances(docs: list[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts int64 (N, n), the nearest token first and −2 before a document, and classes int64 (N,)."""
    contexts = [np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(n, -2), doc[:-1]]), n)[:, ::-1] for doc in docs]
    return np.concatenate(contexts), np.concatenate(docs)


def rows_of(contexts: np.ndarray) -> list[np.ndarray]:
    """The same contexts as rows of ids, oldest first, without padding."""
    return [row[row >= 0][::-1] for row in contexts]


def timed(task: Callable[[], Any], rounds: int = 3) -> tuple[Any, float]:
    """What `task` returns, and the median of its processor seconds."""
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        value = task()
        seconds.append(time.process_time() - began)
    return value, float(np.median(seconds))


def agreement(learnt: list[np.ndarray], test: list[np.ndarray], rows: list[dict[str, Any]], notes: list[str]) -> list[Check]:
    """Labels, accuracies, votes and times of TiMBL and ours."""
    docs = first(learnt, INSTANCES)
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timbl_peer.write_instances(folder / "x.train", *instances(docs, N))
        for algorithm, (items, asked, faster) in AGREEMENT.items():
            contexts, truth = (array[:items] for array in instances(test, N))
            timbl_peer.write_instances(folder / "x.test", contexts, truth)
            peer, program = timbl_peer.run_binding(folder, algorithm), timbl_peer.run_program(folder, algorithm)
            model, learning = timed(partial(learn, algorithm, docs))
            queries = rows_of(contexts)
            model.predict(queries[:2])
            predicted, seconds = timed(partial(model.predict, queries))
            theirs = np.array([int(label) for label in peer["labels"]])
            same = float(np.mean(predicted == theirs))
            ours, others = float(np.mean(predicted == truth)), float(np.mean(theirs == truth))
            on_path, equal = votes_agree(model, queries, peer["distributions"])
            each = seconds / items
            rows.append(
                {
                    "part": "agreement",
                    "algorithm": algorithm,
                    "items": items,
                    "labels equal": same,
                    "accuracy": ours,
                    "accuracy of TiMBL": others,
                    "votes equal": equal,
                    "votes of a node on the path": on_path,
                    "learning seconds": learning,
                    "learning seconds of TiMBL": peer["learning"],
                    "answers a processor second": 1 / each,
                    "answers a processor second of TiMBL": 1 / peer["each"],
                    "answers a processor second of the program": 1 / program["each"] if program else None,
                    "labels equal to the program's": float(np.mean(predicted.astype(str) == program["labels"])) if program else None,
                    "version of the program": program["version"] if program else None,
                }
            )
            checks += [
                Check(f"{algorithm}: labels equal to TiMBL's", same, ">=", asked, unit="share"),
                Check(f"{algorithm}: distance of the accuracies", abs(ours - others), "<=", 0.01, unit="share"),
                Check(f"{algorithm}: times faster learnt than by TiMBL", peer["learning"] / learning, ">=", 10, unit="ratio"),
                Check(f"{algorithm}: times faster answered than by TiMBL's binding", peer["each"] / each, ">=", faster, unit="ratio"),
                Check(f"{algorithm}: answers with TiMBL's very votes", equal, unit="share"),
            ]
            if algorithm == "igtree":
                checks.append(Check("igtree: answers whose votes in TiMBL are those of a node on our path", on_path, unit="share"))
                if program:
                    ratio = program["each"] / each
                    checks.append(Check("igtree: times faster answered than by TiMBL's program", ratio, ">=", 5, unit="ratio"))
                else:
                    notes.append("The program timbl is not installed: compared with the binding alone.")
    return checks


def learn(algorithm: Any, docs: list[np.ndarray]) -> MemoryBasedLM:
    """A model of n = 4 that has learnt the documents."""
    return MemoryBasedLM(N, algorithm).fit(docs)


def votes_agree(model: MemoryBasedLM, queries: list[np.ndarray], theirs: list[dict[str, float]]) -> tuple[float, float]:
    """The share of answers whose votes are in TiMBL those of a node on our path (its trees are pruned), and those of our answer."""
    offsets, ids, votes = model.distribution(queries)
    codes = model.memory.encode(queries)
    nodes, sizes = model.memory.descend(codes)
    levels = [model.memory.votes(nodes, np.where(sizes[:, level] > 0, level, -1)) for level in range(model.n + 1)]
    on_path = equal = 0
    for q, other in enumerate(theirs):
        wanted = {int(name): share for name, share in other.items()}
        own = slice(offsets[q], offsets[q + 1])
        equal += same_votes(wanted, ids[own], votes[own])
        on_path += any(same_votes(wanted, model.memory.ids[c[o[q] : o[q + 1]]], v[o[q] : o[q + 1]]) for o, c, v in levels)
    return on_path / len(theirs), equal / len(theirs)


def same_votes(wanted: dict[int, float], ids: np.ndarray, votes: np.ndarray) -> bool:
    """Whether the votes, as shares, are the wanted ones."""
    if len(ids) != len(wanted) or not set(ids.tolist()) <= set(wanted):
        return False
    return bool(np.allclose(votes / votes.sum(), [wanted[token] for token in ids.tolist()], atol=1e-6))


def learning(
    learnt: list[np.ndarray], test: list[np.ndarray], levels: tuple[int, ...], kinds: int, rows: list[dict[str, Any]], whole: bool
) -> tuple[list[Check], list[Curve]]:
    """Accuracy and perplexity on the same held-out tokens after more and more text."""
    contexts, truth = instances(test, N)
    queries = rows_of(contexts)
    hits, points = [], []
    for tokens in levels:
        model = MemoryBasedLM(N).fit(first(learnt, tokens), vocab_size=kinds)
        hits.append((model.predict(queries) == truth).astype(float))
        nll = -float(np.concatenate([model.logprobs(doc) for doc in test]).mean())
        rows.append({"part": "learning", "tokens": tokens, "accuracy": hits[-1].mean(), "perplexity": float(np.exp(nll))})
        points.append({"x": tokens, "y": float(hits[-1].mean()), "low": None, "high": None, "n": len(truth)})
    law = fit_log_law(levels, hits, paired=True)
    checks = [
        Check("learning: R² of the accuracy over the logarithm of the tokens", law.r2, ">=", 0.95 if whole else None),
        Check("learning: slope of the accuracy", law.slope, ">", 0 if whole else None, unit="share per factor of ten"),
        Check("learning: lower end of the slope", law.low, unit="share per factor of ten"),
    ]
    fit = [{"x": tokens, "y": float(law(tokens)), "low": None, "high": None, "n": None} for tokens in levels]
    curve = Curve(
        "memory-learning",
        "More text, better foretold",
        "tokens learnt",
        "accuracy on held-out text",
        [Series("igtree, n = 4", points, "points"), Series("log-linear fit", fit, "dashed")],  # type: ignore[arg-type]
        x_scale="log",
        y_format="percent",
        caption=f"The share of {len(truth):,} held-out tokens that win the vote; R² = {law.r2:.3f}.",
    )
    return checks, [curve]


def memorisation(learnt: list[np.ndarray], tokens: int, rows: list[dict[str, Any]], whole: bool) -> list[Check]:
    """Accuracy on the text that was learnt, as contexts grow longer."""
    docs = first(learnt, tokens)
    asked = ASKED if whole else 500
    found = []
    for n in (2, 4, 8):
        contexts, truth = (array[:asked] for array in instances(docs, n))
        found.append(float(np.mean(MemoryBasedLM(n).fit(docs).predict(rows_of(contexts)) == truth)))
        rows.append({"part": "memorisation", "n": n, "accuracy": found[-1]})
    return [
        Check("memorisation: accuracy on learnt text, n = 8", found[2], ">=", 0.9 if whole else None, unit="share"),
        Check("memorisation: gain from n = 2 to 4", found[1] - found[0], ">", 0 if whole else None, unit="share"),
        Check("memorisation: gain from n = 4 to 8", found[2] - found[1], ">", 0 if whole else None, unit="share"),
    ]


def explanations(learnt: list[np.ndarray], tokens: int, seed: int) -> list[Check]:
    """The share of the training positions named as reasons that have, in the text itself, what they are said to have."""
    docs = first(learnt, tokens)
    rng = np.random.default_rng(seed)
    contexts, _ = instances(docs, N)
    drawn = rows_of(contexts[rng.integers(len(contexts), size=150)])
    drawn = [np.where(rng.random(row.size) < 0.2, rng.permutation(row), row) for row in drawn]
    right = named = 0
    for algorithm in AGREEMENT:
        model = learn(algorithm, docs)
        for context in drawn:
            padded = [None] * N + context.tolist()
            for near in model.explain(context):
                doc = [None] * N + docs[near.document].tolist()
                at = near.offset + N
                shared = tuple(j for j in range(1, N + 1) if doc[at - j] == padded[-j])
                right += (doc[at], tuple(doc[at - N : at]), shared) == (near.token, near.window, near.matched)
                named += 1
    return [Check("explanation: training positions that hold what they are named for", right / named, "==", 1.0, unit="share")]


def disk(docs: list[np.ndarray], kinds: int) -> list[Check]:
    """Bytes of the saved model a training token."""
    with tempfile.TemporaryDirectory() as name:
        model = MemoryBasedLM(N).fit(docs, vocab_size=kinds)
        model.save(Path(name) / "model")
        size = sum(path.stat().st_size for path in (Path(name) / "model").iterdir())
    return [Check("disk: bytes a training token, votes and sources included", size / len(model.memory), "<=", 12, unit="bytes")]


def cost(seed: int, rows: list[dict[str, Any]], notes: list[str]) -> list[Check]:
    """Accuracy, tokens a second and energy a token beside a transformer, on the transformer's own tokens."""
    if not is_fetched(TRANSFORMER):
        notes.append(f"{TRANSFORMER} is not fetched (`palimpsest models fetch {TRANSFORMER}`): no comparison of cost.")
        return []
    transformer = load_model(TRANSFORMER)
    order = np.random.default_rng(seed).permutation(len(base_text().held_out))
    encoded = (np.array(transformer.tokenizer.encode(base_text().held_out[i])[:512]) for i in order.tolist())
    test: list[np.ndarray] = []
    while sum(map(len, test)) < TRANSFORMER_TOKENS:
        row = next(encoded)
        test += [row] if row.size > 1 else []
    memory = MemoryBasedLM(N).fit(base_text().train, transformer.tokenizer)
    memory.logprobs(test[0])
    asked = {
        TRANSFORMER: lambda row: (scores := transformer.score([row])) and (scores.logprobs[0], scores.greedy_hits[0]),
        "memory": lambda row: (memory.logprobs(row)[1:], memory.predict([row[:t] for t in range(1, len(row))]) == row[1:]),
    }
    tokens = sum(len(row) - 1 for row in test)
    each = {}
    with one_thread():
        for name, task in asked.items():
            joules, began = energy.joules(), time.process_time()
            found = [task(row) for row in test]
            seconds, spent = time.process_time() - began, energy.joules() - joules
            logprobs, hits = (np.concatenate(column) for column in zip(*found, strict=True))
            each[name] = spent / tokens
            rows.append(
                {"part": "cost", "model": name, "tokens": tokens, "accuracy": float(hits.mean())}
                | {
                    "perplexity": float(np.exp(-logprobs.mean())),
                    "tokens a processor second": tokens / seconds,
                    "joules a token": each[name],
                }
            )
    notes.append(f"Energy: {energy.source()}.")
    return [Check("cost: energy a token of the transformer over ours", each[TRANSFORMER] / each["memory"], unit="ratio")]
