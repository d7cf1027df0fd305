"""The memory-based language model beside TiMBL and OLIFANT: the same instances, the same questions.

    python benchmarks/memory_based.py [--sizes 50000,200000] [--features 4] [--questions N] [--text FILE ...] [--json memory.json]

Peers: TiMBL through its Python binding (`pip install python3-timbl`) and as a program (Debian's package `timbl`), OLIFANT (`pip install
--no-deps olifant`), which reads TiMBL's answers as a transformers model. One that is not installed is left out, by name. Every run is a
process of its own; times are processor seconds, so that other work on the machine counts as little as may be; memory is what learning
takes at its peak. Labels and votes are compared in the same run.

Text: the shipped novels by default, cut into words and signs, every paragraph a document, or the lines of given files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from palimpsest.experiments import energy, timbl_peer
from palimpsest.experiments.memory_based_lm import first, instances, rows_of, timed, votes_agree, words
from palimpsest.files import write_json
from palimpsest.measurement import environment
from palimpsest.models.memory_based import MemoryBasedLM

ITEMS = {"igtree": 5000, "tribl2": 2000, "ib1": 300}  # questions; TiMBL's ib1 takes milliseconds for each
SINGLE = 200  # questions that are asked one by one
_TOKEN = re.compile(r"\w+|[^\w\s]")


def read_text(paths: list[Path], seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Documents of word ids to learn and to ask about: the novels, or nine and one of ten lines of files, in an order drawn by lot."""
    if not paths:
        return words(seed)[:2]
    numbers: dict[str, int] = {}
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    tokens = (_TOKEN.findall(lines[i]) for i in np.random.default_rng(seed).permutation(len(lines)).tolist())
    docs = [np.array([numbers.setdefault(word, len(numbers)) for word in line], np.int64) for line in tokens if line]
    return docs[len(docs) // 10 :], docs[: len(docs) // 10]


def ours(folder: Path, algorithm: str, n: int) -> dict[str, Any]:
    """This file in a process of its own: see `_ours`."""
    subprocess.run([sys.executable, __file__, "--worker", "ours", str(folder), algorithm, str(n)], check=True)
    return json.loads((folder / "ours.json").read_text())


def _ours(folder: Path, algorithm: Any, n: int) -> None:
    """Learns, answers all at once and one by one, scores and saves; writes `ours.json`."""
    with np.load(folder / "data.npz") as data:
        docs = np.split(data["tokens"], data["ends"][:-1])
        contexts, truth = data["contexts"], data["truth"]
    queries = rows_of(contexts)
    warm = MemoryBasedLM(n, algorithm).fit([doc for doc in docs[:20] if doc.size])
    warm.predict(queries[:50])
    warm.logprobs(truth[:50])
    start = timbl_peer.start_of_peak()
    model, learning = timed(lambda: MemoryBasedLM(n, algorithm).fit(docs))
    peak = timbl_peer.memory_peak() - start
    predicted, seconds = timed(lambda: model.predict(queries))
    _, single = timed(lambda: [model.predict([query]) for query in queries[:SINGLE]])
    logprobs, scoring = timed(lambda: model.logprobs(truth))
    model.save(folder / "model")
    theirs = json.loads((folder / f"{algorithm}.json").read_text())["distributions"] if (folder / f"{algorithm}.json").exists() else []
    on_path, equal = votes_agree(model, queries, theirs) if theirs else (None, None)
    value = {
        "labels": predicted.tolist(),
        "learning": learning,
        "each": seconds / len(queries),
        "single": single / min(SINGLE, len(queries)),
        "scoring": scoring / len(truth),
        "nll": -float(logprobs.mean()),
        "bytes": sum(path.stat().st_size for path in (folder / "model").iterdir()),
        "peak": peak,
        "on_path": on_path,
        "equal": equal,
    }
    (folder / "ours.json").write_text(json.dumps(value))


def olifant(folder: Path) -> dict[str, Any]:
    """OLIFANT's transformers model over the igtree that TiMBL has learnt: see `_olifant`."""
    subprocess.run([sys.executable, __file__, "--worker", "olifant", str(folder), "igtree", "0"], check=True, capture_output=True)
    return json.loads((folder / "olifant.json").read_text())


def _olifant(folder: Path) -> None:
    """Asks for the logits after every context, and what they say of the token that came; writes `olifant.json`."""
    import timbl  # type: ignore[import-not-found]
    import torch
    from olifant.mblm_model import TimblHuggingFaceModel, log_probs_from_logits  # type: ignore[import-not-found]
    from transformers import PretrainedConfig

    with np.load(folder / "data.npz") as data:
        contexts, truth, vocab = data["contexts"][:1000], data["truth"][:1000], int(data["vocab"])

    class Tokenizer:
        vocab_size = vocab + 1

        def convert_ids_to_tokens(self, ids: Any) -> list[str]:
            return ["_" if int(i) == vocab else str(int(i)) for i in ids]

        def convert_tokens_to_ids(self, token: str) -> int:
            return vocab if token == "_" else int(token)

    classifier = timbl.TimblClassifier(str(folder / "x"), "-a1 +D", overwrite=False)
    classifier.train()
    model = TimblHuggingFaceModel(PretrainedConfig(), classifier, Tokenizer())
    rows = torch.tensor(np.where(contexts == -2, vocab, contexts))
    began = time.process_time()
    logits = [model(row[None]).logits for row in rows]
    each = (time.process_time() - began) / len(rows)
    logprobs = np.array([float(log_probs_from_logits(one, torch.tensor([label]))) for one, label in zip(logits, truth, strict=True)])
    shares = np.array([float(one[0, label]) for one, label in zip(logits, truth, strict=True)])
    scored = np.isfinite(logprobs)
    value = {
        "each": each,
        "labels": [int(one.argmax()) for one in logits],
        "skipped": float(1 - scored.mean()),
        "logprob": float(logprobs[scored].mean()),
        "log of its own shares": float(np.log(shares[scored]).mean()),
    }
    (folder / "olifant.json").write_text(json.dumps(value))


def compare(
    learnt: list[np.ndarray], held_out: list[np.ndarray], size: int, n: int, algorithm: str, questions: int | None = None
) -> list[dict[str, Any]]:
    """One row for each side; `questions` are at most so many, for both."""
    docs = first(learnt, size)
    contexts, truth = (array[: min(ITEMS[algorithm], questions or ITEMS[algorithm])] for array in instances(held_out, n))
    same = {"n": n, "tokens": size, "algorithm": algorithm, "questions": len(truth)}
    rows = []

    def row(who: str, found: dict[str, Any], **more: Any) -> None:
        labels = np.array([int(label) for label in found["labels"]])
        figures = {"accuracy": float(np.mean(labels == truth[: len(labels)])), "equal labels": float(np.mean(labels == own[: len(labels)]))}
        figures |= {"learning": found.get("learning"), "answers": 1 / found["each"], "single": found.get("single") and 1 / found["single"]}
        figures |= {
            "bytes": found.get("bytes") and found["bytes"] / size,
            "peak": found.get("peak"),
            "joules": found["each"] * energy.WATTS,
        }
        rows.append({**same, "who": who, **figures, **more})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timbl_peer.write_instances(folder / "x.train", *instances(docs, n))
        timbl_peer.write_instances(folder / "x.test", contexts, truth)
        vocab = 1 + max(int(doc.max()) for doc in (*docs, truth, contexts.ravel()))
        ends = np.cumsum([len(doc) for doc in docs])
        np.savez(folder / "data.npz", tokens=np.concatenate(docs), ends=ends, contexts=contexts, truth=truth, vocab=vocab)
        peer = timbl_peer.run_binding(folder, algorithm) if timbl_peer.has_binding() else None
        mine = ours(folder, algorithm, n)
        own = np.array(mine["labels"])
        row("palimpsest", mine, **{"equal votes": mine["equal"], "votes on the path": mine["on_path"], "scored": 1 / mine["scoring"]})
        if peer:
            peer["single"] = peer["each"]
            row("TiMBL, binding", peer)
        program = timbl_peer.run_program(folder, algorithm)
        if program:
            row(f"TiMBL {program['version']}, program", program)
        if algorithm == "igtree" and peer and importlib.util.find_spec("olifant"):
            found = olifant(folder)
            extra = {"skipped tokens": found["skipped"], "log-prob": found["logprob"], "log of its shares": found["log of its own shares"]}
            row("OLIFANT", found, **extra)
    return rows


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Prints the rows of one comparison."""
    begin = rows[0]
    title = f"{begin['algorithm']}, n = {begin['n']}, {begin['tokens']:,} tokens, {begin['questions']:,} questions"
    table = Table(title=title, header_style="bold")
    for heading in ("", "accuracy", "labels as ours", "learning", "answers/s", "one by one/s", "bytes/token", "memory", "mJ/answer"):
        table.add_column(heading, justify="left" if not heading else "right")

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    for entry in rows:
        table.add_row(
            entry["who"],
            shown(entry["accuracy"] * 100, ".2f") + " %",
            shown(entry["equal labels"] * 100, ".2f") + " %",
            shown(entry["learning"], ".3f") + " s",
            shown(entry["answers"], ",.0f"),
            shown(entry["single"], ",.0f"),
            shown(entry["bytes"], ".1f"),
            shown(entry["peak"] and entry["peak"] / 1e6, ".0f") + " MB",
            shown(entry["joules"] * 1000, ".3g"),
        )
    console.print(table)
    for entry in rows:
        if entry.get("votes on the path") is not None:
            console.print(
                f"Answers with TiMBL's very votes: {entry['equal votes']:.1%}; with those of a node on the path in the tree, which TiMBL "
                f"prunes: {entry['votes on the path']:.1%}. Exact log-probabilities: {entry['scored']:,.0f} tokens/s."
            )
        if "skipped tokens" in entry:
            console.print(
                f"OLIFANT gives no log-probability for {entry['skipped tokens']:.1%} of the tokens; for the others a mean of "
                f"{entry['log-prob']:.2f}, while the logarithm of the shares that it has from TiMBL is {entry['log of its shares']:.2f}."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="50000,200000")
    parser.add_argument("--features", default="4")
    parser.add_argument("--algorithms", default="igtree,tribl2,ib1")
    parser.add_argument("--questions", type=int, help="at most so many for each algorithm, where the peer takes long for one")
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        who, folder, algorithm, n = arguments.worker
        _ours(Path(folder), algorithm, int(n)) if who == "ours" else _olifant(Path(folder))
        return
    console = Console(width=max(120, Console().width))
    for module, package in (("timbl", "python3-timbl"), ("olifant", "olifant")):
        if importlib.util.find_spec(module) is None:
            console.print(f"{package} is not installed and left out: pip install --no-deps {package}")
    learnt, held_out = read_text(arguments.text)
    rows: list[dict[str, Any]] = []
    for n in map(int, arguments.features.split(",")):
        for size in map(int, arguments.sizes.split(",")):
            for algorithm in arguments.algorithms.split(","):
                found = compare(learnt, held_out, size, n, algorithm, arguments.questions)
                show(console, found)
                rows += found
    console.print(f"Energy: processor seconds × {energy.WATTS:g} W. Load {os.getloadavg()[0]:.1f}.")
    if arguments.json:
        versions = {name: metadata.version(name) for name in ("python3-timbl", "olifant") if importlib.util.find_spec(name.split("-")[-1])}
        write_json(
            arguments.json,
            {"benchmark": "memory-based", "peers": versions, "rows": rows, "load": os.getloadavg()[0], "environment": environment()},
        )


if __name__ == "__main__":
    main()
