"""What a computation costs in energy: read from the processor's own counter where the system lets us, else estimated.

The counter (Intel's and AMD's RAPL, through Linux's powercap) counts the whole package, other programs included. The estimate is the
processor time of this process times a fixed power a core; it compares computations on one machine and is no measurement of joules.
"""

from __future__ import annotations

import time
from pathlib import Path

WATTS = 10.0  # of one busy core, for the estimate
_COUNTER = Path("/sys/class/powercap/intel-rapl:0")


def source() -> str:
    """Where `joules` has its numbers from."""
    return "the processor's counter" if _counter() is not None else f"processor seconds × {WATTS:g} W"


def joules() -> float:
    """Energy since some moment in the past; differences count.

    Example:
        >>> before = joules()
        >>> _ = sum(range(1000))
        >>> joules() >= before
        True
    """
    counted = _counter()
    return time.process_time() * WATTS if counted is None else counted / 1e6


def _counter() -> int | None:
    """Microjoules, None where the counter cannot be read."""
    try:
        return int((_COUNTER / "energy_uj").read_text())
    except (OSError, ValueError):
        return None
