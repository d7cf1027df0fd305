"""TiMBL beside the memory-based model: the same instances, one process for each run, so that its time and memory are its own.

Times are processor seconds: on a machine that others use, they say what the work takes and not who else was working.

TiMBL (Daelemans & Van den Bosch; `pip install python3-timbl`, or Debian's program `timbl`) is what OLIFANT stands on. Both get the
instances of a `MemoryBasedLM` as lines of tab-separated numbers, the nearest feature first, `_` before a document.

This file is also the program of that process: `python timbl_peer.py FOLDER ALGORITHM` learns FOLDER/x.train, classifies FOLDER/x.test
one by one through the Python binding, and writes what it found and how long it took to FOLDER/ALGORITHM.json.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CODES = {"ib1": 0, "igtree": 1, "tribl2": 4}


def write_instances(path: Path, contexts: Any, classes: Any) -> None:
    """Writes contexts int (N, n), the nearest feature first and −2 before a document, and classes int (N,) for TiMBL."""
    lines = [
        "\t".join(["_" if value == -2 else str(value) for value in row] + [str(label)])
        for row, label in zip(contexts.tolist(), classes.tolist(), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def has_binding() -> bool:
    """Whether python3-timbl is installed."""
    return importlib.util.find_spec("timbl") is not None


def run_binding(folder: Path, algorithm: str) -> dict[str, Any]:
    """Learns x.train and classifies x.test with TiMBL's Python binding, in a process of its own.

    Returns:
        labels and distributions (dicts of class -> share) a test line, seconds of learning and of each classification, the model's
        bytes on the disk, and the bytes of memory that learning took at its peak.
    """
    subprocess.run([sys.executable, __file__, str(folder), algorithm], check=True, capture_output=True)
    return json.loads((folder / f"{algorithm}.json").read_text())


def run_program(folder: Path, algorithm: str) -> dict[str, Any] | None:
    """The same with the program `timbl`, which reads the test file itself: labels, seconds of learning and of each classification.

    The program tells how long it tested; that share of its processor seconds is taken. None where the program is not installed.
    """
    if shutil.which("timbl") is None:
        return None
    out = folder / f"{algorithm}.out"
    command = ["timbl", f"-a{CODES[algorithm]}", "+D", "-F", "Tabbed", "-f", "x.train", "-t", "x.test", "-o", out.name]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, errors="replace")
    after, whole = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    text = told.stdout + told.stderr
    testing = seconds * float(re.findall(r"Seconds taken: ([\d.]+)", text)[-1]) / whole
    version = re.search(r"TiMBL ([\d.]+)", text)
    labels = [line.split("\t")[-1] for line in out.read_text().splitlines()]
    return {
        "labels": labels,
        "learning": seconds - testing,
        "each": testing / len(labels),
        "version": version.group(1) if version else "unknown",
    }


def start_of_peak() -> int:
    """Bytes of memory that this process holds; from now on `memory_peak` is of what comes (on Linux; elsewhere of all that was)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return memory_peak()


def memory_peak() -> int:
    """The most bytes of memory that this process has held."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024 * (int(found.group(1)) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _main(folder: Path, algorithm: str) -> None:
    import timbl  # type: ignore[import-not-found]

    classifier = timbl.TimblClassifier(str(folder / "x"), f"-a{CODES[algorithm]} +D", overwrite=False)
    before, began = start_of_peak(), time.process_time()
    classifier.train()
    learning, peak = time.process_time() - began, memory_peak() - before
    rows = [line.split("\t")[:-1] for line in (folder / "x.test").read_text(encoding="ascii").splitlines()]
    began = time.process_time()
    answers = [classifier.classify(tuple(row)) for row in rows]
    each = (time.process_time() - began) / len(rows)
    classifier.save()
    value = {
        "labels": [label for label, _, _ in answers],
        "distributions": [{name: share / sum(votes.values()) for name, share in votes.items()} for _, votes, _ in answers],
        "learning": learning,
        "each": each,
        "bytes": sum((folder / f"x{ending}").stat().st_size for ending in (".ibase", ".wgt")),
        "peak": peak,
    }
    (folder / f"{algorithm}.json").write_text(json.dumps(value))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
