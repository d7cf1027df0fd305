"""The corpus engine beside infini-gram: the same tokens, the same queries, the same run.

    python benchmarks/corpus.py [--tokens 2000000] [--queries 2000] [--json corpus.json]

The corpus is real text that every installation has: the Python sources and documents of the standard library and of the installed
packages, cut into words, numbers, spaces and signs. infini-gram is the package of that name (`pip install palimpsest-lm[dev]`); it
gets the tokens in its own layout, so that both sides start from token ids. Answers are compared before they are timed.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.suffix_array import suffix_array
from palimpsest.files import write_json
from palimpsest.measurement import environment

_TOKEN = re.compile(r"\w+|[^\w\s]|\n+|[ \t]+")
_KINDS = 65_000  # of words; the rest share one id
_END = 65_534  # what infini-gram calls the end of a text; stands nowhere in the corpus


def installed_texts() -> Iterator[str]:
    """Sources and documents of this Python, in a fixed order."""
    paths = sysconfig.get_paths()
    for root in (paths["stdlib"], paths["purelib"]):
        for path in sorted(Path(root).rglob("*")):
            if (
                path.suffix in (".py", ".md", ".rst", ".txt")
                and path.is_file()
                and (root != paths["stdlib"] or "site-packages" not in path.parts)
            ):
                try:
                    yield path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue


def corpus(tokens: int) -> list[np.ndarray]:
    """Documents of word ids u16, `tokens` in all (or as many as there are)."""
    words: dict[str, int] = {}
    docs: list[np.ndarray] = []
    left = tokens
    for text in installed_texts():
        ids = np.fromiter((words.setdefault(w, min(len(words), _KINDS)) for w in _TOKEN.findall(text)), np.uint16)[:left]
        if ids.size:
            docs.append(ids)
        left -= ids.size
        if left == 0:
            break
    return docs


def clock(ask: Callable[[Any], object], queries: Sequence[Any]) -> np.ndarray:
    """Seconds of every call."""
    ask(queries[0])
    seconds = np.empty(len(queries))
    for i, query in enumerate(queries):
        begin = time.perf_counter()
        ask(query)
        seconds[i] = time.perf_counter() - begin
    return seconds


def build_ours(docs: list[np.ndarray], folder: Path) -> tuple[CorpusIndex, dict[str, float]]:
    CorpusIndex.build(docs[:1], None, folder / "warm", token_dtype="u16")
    suffix_array(docs[0], int(docs[0].max()), "sais")
    total = sum(map(len, docs))
    begin = time.perf_counter()
    index = CorpusIndex.build(docs, None, folder / "ours", token_dtype="u16")
    whole = time.perf_counter() - begin
    tokens = np.fromfile(folder / "ours" / "tokens.0", "<u2")
    figures = {"build": whole, "tokens per second": total / whole}
    for builder in ("divsufsort", "sais"):
        begin = time.perf_counter()
        suffix_array(tokens, index.manifest["max_id"], builder)
        figures[f"{builder} tokens per second"] = tokens.size / (time.perf_counter() - begin)
    begin = time.perf_counter()
    CorpusIndex.open(index.path)
    figures["open"] = time.perf_counter() - begin
    data = sum(entry["bytes"] for name, entry in index.manifest["files"].items() if name.startswith(("tokens", "sa")))
    figures["bytes per token"] = data / tokens.size
    return index, figures


def build_theirs(docs: list[np.ndarray], folder: Path) -> tuple[Any, dict[str, float]]:
    from infini_gram.engine import InfiniGramEngine

    target = folder / "theirs"
    target.mkdir()
    (folder / "texts").mkdir()
    np.concatenate([np.concatenate([[65_535], doc]) for doc in docs]).astype("<u2").tofile(target / "tokenized.0")
    np.cumsum([0] + [2 * (doc.size + 1) for doc in docs[:-1]]).astype("<u8").tofile(target / "offset.0")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    options = {"data_dir": folder / "texts", "save_dir": target, "token_dtype": "u16", "cpus": os.cpu_count(), "mem": 8, "ulimit": limit}
    command = [
        sys.executable,
        "-m",
        "infini_gram.indexing",
        *(str(part) for name, value in options.items() for part in (f"--{name}", value)),
    ]
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - begin
    total = sum(map(len, docs))
    size = sum((target / name).stat().st_size for name in ("tokenized.0", "table.0"))
    figures = {"build": whole, "tokens per second": total / whole, "bytes per token": size / (total + len(docs))}
    settings: dict[str, Any] = {"index_dir": str(target), "eos_token_id": _END, "vocab_size": 65_535, "token_dtype": "u16"}
    begin = time.perf_counter()
    InfiniGramEngine(**settings)
    figures["open"] = time.perf_counter() - begin
    engine = InfiniGramEngine(**settings, precompute_unigram_logprobs=True)  # which its trace needs
    return engine, figures


def compare(index: CorpusIndex, engine: Any, text: np.ndarray, queries: int) -> tuple[dict[str, float], dict[str, float]]:
    """Times of both for the same queries, after their answers were found equal."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, text.size - 500, queries)
    grams = [text[s : s + 5].astype(np.int64) for s in starts]
    grams = [gram for gram in grams if gram.max() < _END]
    lists = [gram.tolist() for gram in grams]
    passages = []
    for start in starts[:100]:
        passage = text[start : start + 500].astype(np.int64)
        passage[rng.random(500) < 0.03] = rng.integers(0, 1000)  # breaks, as in generated text
        passages.append(passage[passage < _END])
    long = [passage.tolist() for passage in passages]

    for query in lists[:500]:
        assert index.count(query) == engine.count(query)["count"], query
    for query in lists[:200]:
        ids, counts = index.next_tokens(query[:4])
        theirs = {token: entry["cont_cnt"] for token, entry in engine.ntd(query[:4], max_support=10**9)["result_by_token_id"].items()}
        theirs.pop(_END, None)
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == theirs, query

    batch = np.lib.stride_tricks.sliding_window_view(text[text < _END], 5)[rng.integers(0, text.size // 2, 50_000)].astype(np.int64)
    batched = np.median(clock(index.count_batch, [batch] * 5)) / len(batch)
    contexts = np.stack([text[s : s + 9] for s in starts[: len(starts) // 8 * 8]]).astype(np.int64).reshape(-1, 8, 9)
    ours = {
        **spread("count of a 5-gram", clock(index.count, lists)),
        "count of a 5-gram, batch of 50,000, each": float(batched),
        **spread("next tokens of a 4-gram", clock(lambda q: index.next_tokens(q[:4]), lists)),
        "guard: next tokens of a 9-gram, batch of 8, a row": float(np.median(clock(index.next_tokens_batch, list(contexts)))) / 8,
        **spread("matching statistics of 500 tokens", clock(index.matching_statistics, passages)),
        **spread("trace of 500 tokens", clock(lambda p: index.trace(p, min_len=8, max_docs=5), passages)),
    }
    theirs_times = {
        **spread("count of a 5-gram", clock(lambda q: engine.count(q), lists)),
        **spread("next tokens of a 4-gram", clock(lambda q: engine.ntd(q[:4], max_support=10**9), lists)),
        **spread(
            "trace of 500 tokens", clock(lambda p: engine.attribute(p, delim_ids=[], min_len=8, max_cnt=10**9, enforce_bow=False), long)
        ),
    }
    return ours, theirs_times


def spread(name: str, seconds: np.ndarray) -> dict[str, float]:
    return {f"{name}, median": float(np.median(seconds)), f"{name}, p99": float(np.quantile(seconds, 0.99))}


def readable(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if "per second" in name:
        return f"{value / 1e6:.2f} M/s"
    if "bytes" in name:
        return f"{value:.2f}"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value / 1e-6:.2f} µs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        version = metadata.version("infini-gram")
    except metadata.PackageNotFoundError:
        parser.exit(2, "infini-gram, the peer of this comparison, is not installed: pip install 'palimpsest-lm[dev]'\n")
    docs = corpus(arguments.tokens)
    text = np.concatenate(docs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index, ours = build_ours(docs, folder)
        engine, theirs = build_theirs(docs, folder)
        our_times, their_times = compare(index, engine, text, arguments.queries)
        ours, theirs = ours | our_times, theirs | their_times
    rows: list[dict[str, Any]] = []
    for figure, value in ours.items():
        peer = theirs.get(figure)
        ratio = None if peer is None else (value / peer if "per second" in figure else peer / value)
        rows.append({"what": figure, "palimpsest": value, "infini-gram": peer, "times better": ratio})
    table = Table(title=f"{text.size:,} tokens, {len(docs):,} documents; infini-gram {version}; load {os.getloadavg()[0]:.1f}")
    for column in ("", "palimpsest", f"infini-gram {version}", "times better"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        ratio = row["times better"]
        table.add_row(
            row["what"],
            readable(row["what"], row["palimpsest"]),
            readable(row["what"], row["infini-gram"]),
            f"{ratio:.1f}" if ratio else "–",
        )
    Console().print(table)
    if arguments.json:
        write_json(
            arguments.json,
            {
                "benchmark": "corpus",
                "tokens": int(text.size),
                "documents": len(docs),
                "corpus": index.fingerprint,
                "peer": {"name": "infini-gram", "version": version},
                "load": os.getloadavg()[0],
                "rows": rows,
                "environment": environment(),
            },
        )


if __name__ == "__main__":
    main()
