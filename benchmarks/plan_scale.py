"""What an index of a trillion tokens takes: machines, hours, bytes and money, from rates that are measured here.

    python benchmarks/plan_scale.py [--megabytes 16,64] [--measured plan_scale.json] [--write] [--tokens 1e12] [--cores 128] …

Measured, at every size, in a process of its own: what each stage of a build takes for a token, the bytes of the index, the memory at
the peak, and the time of a query. The text is what every installation has (see `corpus.py`), the tokenizer a byte-level BPE of 32,000
ids that is trained on a part of it. Times are processor seconds, so that other work on the machine counts as little as may be; what a
disk adds to them is an assumption, and so are prices: all of them are parameters, printed with the plan. There is no peer to ask in
the same run: beside the plan stands what infini-gram's authors published.

`--measured FILE` plans anew from the figures of an earlier run; `--write` puts the plan into docs/scale.md and the figures into
benchmarks/plan_scale.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from corpus import installed_texts
from palimpsest.corpus import CorpusIndex, build, staging
from palimpsest.corpus.suffix_array import choose_builder
from palimpsest.errors import InputError
from palimpsest.files import write_json
from palimpsest.measurement import environment
from palimpsest.tokenizer import Tokenizer

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "scale.md"
MARKS = ("<!-- the plan: written by benchmarks/plan_scale.py --write -->", "<!-- end of the plan -->")
VOCABULARY = 32_000
SORTED_BY = "divsufsort"  # of the builders in memory the one that takes the least: what counts where all cores of a machine sort
TRAINED_ON = 4_000_000  # characters
STAGES = ((build, "stage"), (staging, "encode_documents"), (build, "split_shards"), (build, "sort_shard"), (build, "_content"))
ASSUMED: dict[str, tuple[float, str]] = {
    "tokens": (1e12, "tokens of the corpus"),
    "shard": (1e9, "tokens of a shard"),
    "cores": (128, "cores of a machine"),
    "memory": (1024, "gigabytes of memory of a machine"),
    "price": (6.0, "dollars for an hour of a machine; a guess, take your provider's"),
    "disk": (1000, "megabytes a second between a machine and the shared file system"),
    "efficiency": (0.5, "speed of a core when all cores of its machine sort, over that of one alone: they share the memory"),
    "page": (100, "microseconds to read a page that is not in memory"),
}
MACHINES = (1, 4, 16)


def write_texts(path: Path, characters: int) -> None:
    """Documents as JSON lines, about so many characters in all."""
    with open(path, "w", encoding="utf-8") as stream:
        for number, text in enumerate(installed_texts()):
            stream.write(json.dumps({"id": str(number), "text": text[:characters]}) + "\n")
            characters -= len(text)
            if characters <= 0:
                return


def train_tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    left = itertools.accumulate(map(len, installed_texts()))
    sample = (text for text, read in zip(installed_texts(), left, strict=True) if read <= TRAINED_ON)
    backend.train_from_iterator(itertools.islice(sample, 5000), trainer)
    return Tokenizer(backend)


def timed_stages(seconds: dict[str, float]) -> None:
    """From here on every stage of a build adds its processor seconds to `seconds`, and the one beside the sorting those of its thread."""

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        clock = time.thread_time if name == "content" else time.process_time

        def run(*arguments: Any, **options: Any) -> Any:
            begin = clock()
            try:
                return function(*arguments, **options)
            finally:
                seconds[name] = seconds.get(name, 0.0) + clock() - begin

        return run

    for module, name in STAGES:
        setattr(module, name, timed(getattr(module, name), name.strip("_")))


def measure(texts: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    """The build of one index, as one shard: seconds of every stage, bytes, the memory at the peak, query times."""
    chosen = Tokenizer.from_file(tokenizer)
    CorpusIndex.build(["a text to compile for"], chosen, out.with_name("warm"), builder=SORTED_BY)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, float] = {}
    timed_stages(seconds)
    index = CorpusIndex.build(texts, chosen, out, builder=SORTED_BY)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    text = np.concatenate([index.document_ids(i) for i in range(min(200, index.n_documents))])
    rng = np.random.default_rng(0)
    starts = rng.integers(0, text.size - 50, 2000).tolist()
    return {
        "tokens": index.n_tokens,
        "text bytes": texts.stat().st_size,
        "index bytes": sum(entry["bytes"] for entry in index.manifest["files"].values()),
        "peak bytes": peak * 1024,
        "read": seconds["stage"] - seconds["encode_documents"],
        "tokenize": seconds["encode_documents"],
        "split": seconds["split_shards"],
        "sort": seconds["sort_shard"] - seconds["content"],
        "describe": seconds["content"],
        "count of a 5-gram": quantile(index.count, [text[s : s + 5] for s in starts]),
        "infinity-gram probability": quantile(lambda ids: index.infgram_prob(ids[:-1], int(ids[-1])), [text[s : s + 50] for s in starts]),
    }


def quantile(ask: Callable[[Any], object], queries: list[Any], share: float = 0.5) -> float:
    """Seconds within which so many of the queries are answered."""

    def once(query: Any) -> float:
        begin = time.perf_counter()
        ask(query)
        return time.perf_counter() - begin

    once(queries[0])
    return float(np.quantile([once(query) for query in queries], share))


def measure_actors(folder: Path) -> dict[str, float]:
    """Seconds of a count by the number of actors that are asked, on this machine: the quickest tenth, for it has other work."""
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)  # not a cluster that happens to run here
    rng = np.random.default_rng(0)
    CorpusIndex.build([rng.integers(0, 1000, 200) for _ in range(500)], None, folder, shards=8)
    found = {}
    for actors in (1, 2, 4, 8):
        index = CorpusIndex.open(folder, engine="ray", actors=actors)
        found[str(actors)] = quantile(index.count, [rng.integers(0, 1000, 2) for _ in range(500)], 0.1)
    ray.shutdown()
    return found


def measure_all(megabytes: list[float]) -> dict[str, Any]:
    """Every size in a process of its own, one thread each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizer().save(folder / "tokenizer.json")
        sizes = []
        alone = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for size in megabytes:
            write_texts(folder / "texts.jsonl", int(size * 1e6))
            command = [
                sys.executable,
                __file__,
                "--one",
                str(folder / "texts.jsonl"),
                str(folder / "tokenizer.json"),
                str(folder / "index"),
            ]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
            sizes.append(json.loads(answer.stdout.splitlines()[-1]))
        actors = measure_actors(folder / "small") if find_spec("ray") else {}
    return {"sizes": sizes, "actors": actors, "load": os.getloadavg()[0], "environment": environment()}


def growth(small: dict[str, float], large: dict[str, float], tokens: float) -> float:
    """Seconds of sorting for a token in shards of `tokens`: as measured at the larger size, and rising with log n from there, by the
    slope between the two sizes or that of n log n, whichever is steeper."""
    slow, fast = large["sort"] / large["tokens"], small["sort"] / small["tokens"]
    steps = math.log2(large["tokens"] / small["tokens"])
    slope = max((slow - fast) / steps if steps else 0.0, slow / math.log2(large["tokens"]))
    return slow + slope * max(0.0, math.log2(tokens / large["tokens"]))


def plan(measured: dict[str, Any], assumed: dict[str, float], machines: int) -> dict[str, float]:
    """What a corpus takes on so many machines."""
    small, large = measured["sizes"][0], measured["sizes"][-1]
    total, cores, gigabyte = assumed["tokens"], assumed["cores"], 1e9
    bytes_per_token = {key: large[key] / large["tokens"] for key in ("text bytes", "index bytes")}
    width = 2  # bytes of an id: the vocabulary has fewer than 65,535
    memory = (large["peak bytes"] - small["peak bytes"]) / (large["tokens"] - small["tokens"])
    shards = math.ceil(total / assumed["shard"])
    length = total / shards
    if choose_builder("auto", int(length), VOCABULARY, lean=True) != SORTED_BY:
        raise InputError(f"The rates are those of {SORTED_BY}, which does not sort {length:,.0f} tokens.", "Give a smaller --shard.")
    at_once = int(min(cores, 0.9 * assumed["memory"] * gigabyte / (memory * length)))
    if at_once < 1:
        raise InputError(f"Sorting a shard takes {memory * length / gigabyte:,.1f} GB.", "Give a smaller --shard or more --memory.")
    rounds = math.ceil(shards / (at_once * machines))

    def hours(stage: str, moved: float, workers: float = 1.0) -> float:
        """Of a stage that moves so many bytes a token: its own work on `workers` cores, and what the disks of these machines add."""
        disks = machines if workers > 1 else 1
        return total * (large[stage] / large["tokens"] / workers + moved / (disks * assumed["disk"] * 1e6)) / 3600

    working = cores * machines * assumed["efficiency"]
    read = hours("read", bytes_per_token["text bytes"] + width)
    tokenize = hours("tokenize", 0.0, working)
    split = hours("split", 2 * width)  # read and written
    describe = hours("describe", width)
    alone = length * growth(small, large, length) / assumed["efficiency"]
    sort = (rounds * alone + total * (width + 4) / (machines * assumed["disk"] * 1e6)) / 3600
    whole = max(read, tokenize) + split + max(sort, describe)
    row = {
        "machines": machines,
        "shards": shards,
        "gigabytes to sort one": memory * length / gigabyte,
        "sorted at once on a machine": at_once,
        "hours to sort one": alone / 3600,
        "hours: read, one process": read,
        "hours: tokenize, all": tokenize,
        "hours: split, one process": split,
        "hours: sort, all": sort,
        "hours: describe, one process, beside that": describe,
        "hours in all": whole,
        "machine hours": whole * machines,
        "dollars": whole * machines * assumed["price"],
        "terabytes of index": total * bytes_per_token["index bytes"] / 1e12,
        "terabytes beside it while building": total * width / 1e12,
    }
    return row | query_plan(measured, assumed, shards, length, cores * machines)


def query_plan(measured: dict[str, Any], assumed: dict[str, float], shards: int, length: float, cores: float) -> dict[str, float]:
    """How many actors answer a count soonest, and when: each is asked in turn, and searches its shards one after the other."""
    if not measured["actors"]:
        return {}
    times = {int(actors): seconds for actors, seconds in measured["actors"].items()}
    asking = (times[max(times)] - times[1]) / (max(times) - 1)
    steps = 2 * math.log2(length)  # comparisons of both ends of the range; each touches the suffix array and the tokens
    large = measured["sizes"][-1]
    warm = large["count of a 5-gram"] * math.log2(length) / math.log2(large["tokens"])
    cold = 2 * steps * assumed["page"] * 1e-6

    def answer(actors: int, each: float) -> float:
        return times[1] + asking * actors + math.ceil(shards / actors) * each

    actors = min(range(1, int(min(shards, cores)) + 1), key=lambda count: answer(count, cold))
    return {"actors": actors, "milliseconds a count, in memory": 1e3 * answer(actors, warm), "from the disk": 1e3 * answer(actors, cold)}


def readable(name: str, value: float) -> str:
    return f"{value:,.0f}" if name in ("shards", "sorted at once on a machine", "actors", "dollars") else f"{value:,.1f}"


def markdown(measured: dict[str, Any], assumed: dict[str, float], rows: list[dict[str, float]]) -> str:
    """The plan as it stands in docs/scale.md."""
    lines = ["| measured | " + " | ".join(f"{size['tokens'] / 1e6:.1f} M tokens" for size in measured["sizes"]) + " |"]
    lines.append("| --- |" + " ---: |" * len(measured["sizes"]))
    for stage in ("read", "tokenize", "split", "sort", "describe"):
        rates = " | ".join(f"{size['tokens'] / size[stage] / 1e6:.2f} M" for size in measured["sizes"])
        lines.append(f"| {stage}: tokens a second of one core | {rates} |")
    for what, key in (
        ("bytes of text", "text bytes"),
        ("bytes of the index", "index bytes"),
        ("bytes of memory at the peak", "peak bytes"),
    ):
        lines.append(f"| {what}, a token | " + " | ".join(f"{size[key] / size['tokens']:.2f}" for size in measured["sizes"]) + " |")
    for query in ("count of a 5-gram", "infinity-gram probability"):
        lines.append(
            f"| {query}, median, one shard in memory | " + " | ".join(f"{1e6 * s[query]:.1f} µs" for s in measured["sizes"]) + " |"
        )
    if measured["actors"]:
        spent = ", ".join(f"{actors}: {1e3 * seconds:.2f} ms" for actors, seconds in measured["actors"].items())
        lines.append(f"\nA count through Ray actors on the same machine, by their number (one in ten is quicker): {spent}.")
    where = measured["environment"]
    lines.append(f"\n{where['processor']}, {where['cores']} cores, load {measured['load']:.1f} at the time.\n")
    lines += ["| assumed | |", "| --- | ---: |", *(f"| {text} | {assumed[name]:,g} |" for name, (_, text) in ASSUMED.items())]
    lines += ["", "| the plan | " + " | ".join(f"{row['machines']:.0f} machine{'s' * (row['machines'] > 1)}" for row in rows) + " |"]
    lines.append("| --- |" + " ---: |" * len(rows))
    for name in list(rows[0])[1:]:
        lines.append(f"| {name} | " + " | ".join(readable(name, row[name]) for row in rows) + " |")
    return "\n".join(lines)


def numbers(text: str) -> list[float]:
    return sorted(float(part) for part in re.split(r"[, ]+", text) if part)


def arguments() -> Iterator[argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=numbers, default=[16.0, 64.0], help="sizes of text to measure at, two or more")
    parser.add_argument("--measured", type=Path, help="figures of an earlier run, to plan from")
    parser.add_argument("--write", action="store_true", help=f"put the plan into {PAGE.name} and the figures beside this file")
    parser.add_argument("--one", nargs=3, type=Path, help=argparse.SUPPRESS)  # what a process of its own measures
    for name, (value, text) in ASSUMED.items():
        parser.add_argument(f"--{name}", type=float, default=value, help=text)
    yield parser.parse_args()


def main() -> None:
    [given] = arguments()
    if given.one:
        print(json.dumps(measure(*given.one)))
        return
    measured = json.loads(given.measured.read_text()) if given.measured else measure_all(given.megabytes)
    assumed = {name: getattr(given, name) for name in ASSUMED}
    rows = [plan(measured, assumed, machines) for machines in MACHINES]
    page = markdown(measured, assumed, rows)
    print(page)
    if given.write:
        write_json(HERE / "plan_scale.json", measured | {"assumed": assumed, "plan": rows})
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{page}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
