"""Building an index within a bound on the memory, beside the same build in memory: seconds, and the peak of a process of its own.

    python benchmarks/build_memory.py [--tokens 20000000] [--memory 256MiB 512MiB] [--json build_memory.json]

The corpus is that of `corpus.py`: the sources and documents of this Python, cut into words; where they are too few they are taken again,
so that half of the corpus is one long repeat. Each build runs in a process of its own that has built something small before, so that
all code is compiled and loaded; then the peak is reset (Linux: /proc/self/clear_refs) and what the build adds to the resident memory
is measured. The indexes are compared file by file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from corpus import corpus
from palimpsest.corpus.memory import parse_memory
from palimpsest.files import write_json
from palimpsest.measurement import environment

_BUILD = """
import json, sys, time
import numpy as np
from palimpsest.corpus import CorpusIndex, memory

tokens, lengths, out, bound = sys.argv[1:]
bound = None if bound == "none" else int(bound)

def documents():
    start = 0
    for length in np.load(lengths).tolist():
        yield np.fromfile(tokens, "<u2", length, offset=2 * start)
        start += length

count = memory.count_blocks
memory.count_blocks = lambda *shard: 3
for number, builder in enumerate(("two-stage", "divsufsort", "external")):
    CorpusIndex.build([[1, 2, 3] * 100, [65534]], None, f"{out}.warm{number}", builder=builder, token_dtype="u16")
memory.count_blocks = count
open("/proc/self/clear_refs", "w").write("5")
before = memory.resident_memory()[0]
begin = time.perf_counter()
index = CorpusIndex.build(documents(), None, out, memory=bound, builder="auto" if bound else "divsufsort", token_dtype="u16")
seconds = time.perf_counter() - begin
card = index.manifest["shards"][0]
print(json.dumps({"seconds": seconds, "peak": memory.resident_memory()[1] - before, "builder": card["builder"], "blocks": card["blocks"]}))
"""


def measure(tokens: Path, lengths: Path, out: Path, bound: int | None) -> dict[str, Any]:
    """Seconds, peak in bytes, builder and blocks of one build."""
    arguments = [str(tokens), str(lengths), str(out), "none" if bound is None else str(bound)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run([sys.executable, "-c", _BUILD, *arguments], check=True, capture_output=True, text=True, env=paths)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--memory", nargs="+", default=["256MiB", "512MiB"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    docs = corpus(arguments.tokens)
    found = sum(map(len, docs))
    docs = (docs * -(-arguments.tokens // found))[: len(docs) * arguments.tokens // found]
    total = sum(map(len, docs))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "tokens", "wb") as stream:
            for doc in docs:
                stream.write(doc.tobytes())
        np.save(folder / "lengths.npy", [len(doc) for doc in docs])
        for bound in [None, *map(parse_memory, arguments.memory)]:
            out = folder / f"index.{bound}"
            row = {"bound": bound, **measure(folder / "tokens", folder / "lengths.npy", out, bound)}
            row |= {"tokens per second": total / row["seconds"]}
            if bound is not None:
                row |= {"times the seconds": row["seconds"] / rows[0]["seconds"], "of the peak": row["peak"] / rows[0]["peak"]}
                row["within the bound"] = row["peak"] <= bound
                names = [path.name for path in out.iterdir() if path.name != "manifest.json"]
                row["same files"] = all((out / file).read_bytes() == (folder / "index.None" / file).read_bytes() for file in names)
            rows.append(row)
    table = Table(title=f"{total:,} tokens, {len(docs):,} documents; {found:,} tokens are distinct text; load {os.getloadavg()[0]:.1f}")
    for column in ("bound", "builder", "seconds", "times", "tokens per second", "peak", "of it", "within", "same files"):
        table.add_column(column, justify="right")
    for row in rows:
        bounded = row["bound"] is not None
        table.add_row(
            f"{row['bound'] / 1e6:,.0f} MB" if bounded else "none",
            f"{row['builder']}, {row['blocks']} blocks" if row["blocks"] else row["builder"],
            f"{row['seconds']:.1f}",
            f"{row['times the seconds']:.2f}" if bounded else "–",
            f"{row['tokens per second'] / 1e6:.2f} M",
            f"{row['peak'] / 1e6:,.0f} MB",
            f"{row['of the peak']:.2f}" if bounded else "–",
            str(row["within the bound"]) if bounded else "–",
            str(row["same files"]) if bounded else "–",
        )
    Console(width=max(120, Console().width)).print(table)
    if arguments.json:
        write_json(
            arguments.json,
            {
                "benchmark": "build_memory",
                "tokens": total,
                "distinct": found,
                "documents": len(docs),
                "rows": rows,
                "load": os.getloadavg()[0],
                "environment": environment(),
            },
        )


if __name__ == "__main__":
    main()
