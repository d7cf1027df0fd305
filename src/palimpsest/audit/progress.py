"""One progress report for a measurement that passes over its samples several times."""

from __future__ import annotations

from collections.abc import Callable

from palimpsest.models.base import Progress


def stages(progress: Progress | None, total: int) -> Callable[[int], Progress | None]:
    """Splits one report of `total` rows into stages: call the result with the rows of each stage, in order, for its own report.

    Example:
        >>> heard = []
        >>> stage = stages(lambda done, total: heard.append((done, total)), 5)
        >>> first, second = stage(2), stage(3)
        >>> second(3, 3); heard
        [(5, 5)]
    """
    begun = 0

    def stage(rows: int) -> Progress | None:
        nonlocal begun
        before = begun
        begun += rows
        if progress is None:
            return None
        tell = progress
        return lambda done, _: tell(min(before + done, total), total)

    return stage
