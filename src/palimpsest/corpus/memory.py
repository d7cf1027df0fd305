"""The memory of a build: what it may take, how each shard is sorted within that, and what it took.

The bound is on what the build adds to the resident memory of the process; the interpreter and the compiled code come on top of it,
200 MB or so. Tokenizing, splitting and checking work in strips and stay below `RESERVED`; the sorting has the rest.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from palimpsest.corpus.external import block_memory, count_blocks, least_memory
from palimpsest.corpus.suffix_array import choose_builder, sorting_memory
from palimpsest.errors import InputError

RESERVED = 128 << 20  # bytes: for what the tokenizer and the batches leave behind, and for strips
LEAST = 256 << 20
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


@dataclass(frozen=True)
class SortPlan:
    """How a shard is sorted.

    Attributes:
        builder: "two-stage", "divsufsort" or "sais" in memory, "external" in blocks.
        blocks: how many blocks; 0 in memory.
        memory: bytes that it takes at most.
        lean: whether a block is sorted by the builder that takes the least memory.
    """

    builder: str
    blocks: int
    memory: int
    lean: bool = False


def parse_memory(memory: int | str | None) -> int | None:
    """A bound on the memory in bytes, from a number or a text like "2GB" or "512 MiB"; None stays None.

    Raises:
        InputError: it is no such text, or less than any build can do with.

    Example:
        >>> parse_memory("2GB"), parse_memory("1.5 GiB")
        (2000000000, 1610612736)
    """
    if memory is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", str(memory).strip().lower())
    if match is None or match[2] not in _UNITS or isinstance(memory, bool) or math.isinf(float(match[1]) * _UNITS[match[2]]):
        raise InputError(f"{memory!r} is no amount of memory.", 'Give bytes, or a number with a unit like "2GB" or "512MiB".')
    size = int(float(match[1]) * _UNITS[match[2]])
    if size < LEAST:
        raise _too_little(size, LEAST)
    return size


def plan_sort(builder: str, length: int, top: int, itemsize: int, bound: int | None, begun: int = 0) -> SortPlan:
    """How a shard is sorted within a bound: in memory when that fits, else in as few blocks as fit.

    Args:
        builder: one of `suffix_array.BUILDERS`.
        length, top, itemsize: tokens of the shard, the greatest of them, and their bytes.
        bound: bytes for the whole build; None for half of what is free, which is then no reason to refuse.
        begun: blocks of which some have been sorted already; they are kept when one of them fits.

    Raises:
        InputError: an unknown builder, a shard that is too long, or a bound that is too small.
    """
    room = (free_memory() // 2 if bound is None else bound) - RESERVED
    if begun and builder in ("auto", "external"):
        need = block_memory(-(-length // begun), top)
        if bound is None or need <= room:
            return _in_blocks(length, top, begun, room)
    for lean in (False, True):
        chosen = choose_builder(builder, length, top, lean)
        if chosen != "external":
            need = sorting_memory(chosen, length, top, itemsize)
            if need <= room or (builder != "auto" and bound is None):
                return SortPlan(chosen, 0, need)
    if builder not in ("auto", "external"):
        raise _too_little(int(bound or 0), need + RESERVED, f' with the builder "{builder}", or builder "external"')
    least = least_memory(length, top)
    if bound is not None and room < least:
        raise _too_little(bound, least + RESERVED)
    blocks = count_blocks(length, top, max(room, least))
    if blocks == 1 and chosen != "external":
        return SortPlan(chosen, 0, need)
    return _in_blocks(length, top, blocks, room)


def _in_blocks(length: int, top: int, blocks: int, room: int) -> SortPlan:
    """So many blocks, each sorted by the quick builder where that fits: fewer blocks save more than quicker ones."""
    size = -(-length // blocks)
    lean = block_memory(size, top, lean=False) > room
    return SortPlan("external", blocks, block_memory(size, top, lean), lean)


def free_memory() -> int:
    """Bytes of memory that are free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_memory() -> tuple[int, int] | None:
    """Bytes that this process has in memory, and the most that it ever had; None where the system does not say.

    Linux counts pages for each processor and adds these counts up now and then, so that the two are off by some pages each: the most may
    be less than what an earlier call said that the process had.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    now, peak = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    return (int(now[1]) << 10, int(peak[1]) << 10) if now and peak else None


def _too_little(bound: int, needed: int, how: str = "") -> InputError:
    return InputError(f"A build within {bound / 1e6:,.0f} MB is not possible.", f"Give at least {needed / 1e6:,.0f} MB{how}.")
