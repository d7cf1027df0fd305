"""Named steps whose results stay on the disk: how a long job is killed and goes on.

A step is a function that returns a `Measurement`. Its result is written to `<folder>/<name>.json` in one piece, stamped with
a hash of everything that it depends on; when the job runs again, a step whose stamp still fits is read instead of run. A
killed job loses at most the step that it was in, and its result is the same as an undisturbed one's, because every step is
deterministic for its key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.errors import CapabilityError, InputError
from palimpsest.files import sha256_json
from palimpsest.measurement import Measurement, plain

StepProgress = Callable[[int, int], None]
JobProgress = Callable[[str, float, float], None]


@dataclass
class Step:
    """One piece of work.

    Attributes:
        name: file name of the result, without suffix.
        label: what the progress bar says.
        units: how much work it is (any unit that all steps of the job share).
        key: everything that the result depends on, as JSON types.
        run: does the work; is given a function to be called with (done, in all).
        optional: whether the job goes on without it when door or data turn out not to allow it.
    """

    name: str
    label: str
    units: float
    key: dict[str, Any]
    run: Callable[[StepProgress], Measurement]
    optional: bool = False

    @property
    def stamp(self) -> str:
        """SHA-256 of the key."""
        return sha256_json(plain(self.key))


@dataclass
class Job:
    """Runs steps in order and keeps their results in `folder`.

    Attributes:
        folder: where results are kept; created when the first one is written.
        progress: called with (label, units done, units in all).
        results: finished measurements by step name.
        seconds: wall time of the steps, also of those that an earlier run finished.
        resumed: names of the steps that were read instead of run.
        failed: why an optional step could not be run, by its name.
    """

    folder: Path
    progress: JobProgress | None = None
    results: dict[str, Measurement] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, steps: list[Step]) -> None:
        """Runs the steps that have no fitting result yet.

        Raises:
            StorageError: the folder cannot be written.
        """
        total = sum(step.units for step in steps)
        done = 0.0
        for step in steps:
            self._tell(step.label, done, total)
            before = done
            result = self._read(step)
            if result is None:
                began = time.perf_counter()

                def within(count: int, of: int, before: float = before, step: Step = step) -> None:
                    self._tell(step.label, before + step.units * count / max(of, 1), total)

                try:
                    result = step.run(within)
                except (InputError, CapabilityError) as error:
                    if not step.optional:
                        raise
                    self.failed[step.name] = error.problem
                    done += step.units
                    continue
                result.provenance["step"] = {"stamp": step.stamp, "seconds": round(time.perf_counter() - began, 3)}
                result.save(self.folder / f"{step.name}.json")
            else:
                self.resumed.append(step.name)
            self.results[step.name] = result
            self.seconds[step.name] = float(result.provenance["step"]["seconds"])
            done += step.units
        self._tell("done", total, total)

    def has(self, step: Step) -> bool:
        """Whether a fitting result is there, so that the step will be read instead of run."""
        return self._read(step) is not None

    def _read(self, step: Step) -> Measurement | None:
        path = self.folder / f"{step.name}.json"
        if not path.is_file():
            return None
        try:
            result = Measurement.from_json(path.read_text(encoding="utf-8"))
            return result if result.provenance.get("step", {}).get("stamp") == step.stamp else None
        except (ValueError, UnicodeDecodeError, json.JSONDecodeError):
            return None  # not a result of ours, or damaged since: the step is run again and the file replaced

    def _tell(self, label: str, done: float, total: float) -> None:
        if self.progress:
            self.progress(label, done, total)
