"""`Measurement`: what every measurement of the library returns.

One row a sample in `table`, the figures that matter in `summary`, everything needed to repeat it in `provenance`, and the
curves that one would draw of it in `curves`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.files import write_text

if TYPE_CHECKING:
    import altair


@dataclass(frozen=True)
class Series:
    """One line or point set of a `Curve`.

    Attributes:
        name: what the legend says.
        points: rows of `{"x": float, "y": float, "low": float | None, "high": float | None, "n": int | None}`.
        style: "line" joins the points, "points" does not, "dashed" is for references and fits.
    """

    name: str
    points: list[dict[str, float | int | None]]
    style: str = "line"


@dataclass(frozen=True)
class Curve:
    """A figure as data: series over labelled axes, drawn by `palimpsest.plot.chart` and by the report alike.

    Attributes:
        id: file name of the figure, unique in a report.
        title: what the figure shows, as one would say it.
        x_label, y_label: axis titles with units.
        x_scale, y_scale: "linear", "log" or "symlog" (for counts that include 0).
        y_domain: fixed ends of the y axis, or None.
        x_format, y_format: "percent" or "number".
        caption: what to see in it and how it was made.
    """

    id: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    x_scale: str = "linear"
    y_scale: str = "linear"
    y_domain: tuple[float, float] | None = None
    y_format: str = "number"
    caption: str = ""
    x_format: str = "number"

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain JSON types."""
        return {
            "id": self.id,
            "title": self.title,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "x_scale": self.x_scale,
            "y_scale": self.y_scale,
            "y_domain": list(self.y_domain) if self.y_domain else None,
            "x_format": self.x_format,
            "y_format": self.y_format,
            "caption": self.caption,
            "series": [{"name": s.name, "style": s.style, "points": plain(s.points)} for s in self.series],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Curve:
        """The inverse of `to_dict`."""
        fields = dict(data)
        fields["series"] = [Series(s["name"], s["points"], s["style"]) for s in data["series"]]
        fields["y_domain"] = tuple(data["y_domain"]) if data.get("y_domain") else None
        return cls(**fields)


@dataclass
class Measurement:
    """A table of results, one row a sample.

    Attributes:
        name: which measurement, e.g. "extraction".
        table: one row a sample (and condition).
        summary: the figures that matter, as plain JSON types.
        provenance: model and corpus fingerprints, seed, decoding, versions: what it takes to repeat the measurement.
        curves: what one would draw, by name.

    Example:
        >>> import polars as pl
        >>> m = Measurement("demo", pl.DataFrame({"hit": [True, False]}), {"rate": 0.5}, {"seed": 0})
        >>> Measurement.from_json(m.to_json()).summary["rate"]
        0.5
    """

    name: str
    table: pl.DataFrame
    summary: dict[str, Any]
    provenance: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole measurement as one JSON text; `from_json` reads it back."""
        value = {
            "name": self.name,
            "summary": plain(self.summary),
            "provenance": plain(self.provenance),
            "curves": {name: curve.to_dict() for name, curve in self.curves.items()},
            "schema": {name: str(dtype) for name, dtype in self.table.schema.items()},
            "table": plain(self.table.to_dict(as_series=False)),
        }
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Reads what `to_json` wrote.

        Raises:
            InputError: the text is not a measurement.
        """
        try:
            value = json.loads(text)
            table = pl.DataFrame(value["table"], strict=False, infer_schema_length=None)
            curves = {name: Curve.from_dict(curve) for name, curve in value["curves"].items()}
            return cls(value["name"], table, value["summary"], value["provenance"], curves)
        except (KeyError, TypeError, ValueError, AttributeError, pl.exceptions.PolarsError) as error:
            raise InputError(f"This text is not a measurement: {error}.", "Give what Measurement.to_json() wrote.") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json()` to `path`, atomically."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurement:
        """Reads what `save` wrote."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def plot(self, curve: str | None = None) -> altair.LayerChart:
        """An Altair chart of one of `curves` (the first by default); in a notebook it shows itself.

        Raises:
            InputError: this measurement has no such curve.
        """
        from palimpsest.plot import chart

        if not self.curves:
            raise InputError(f"The measurement {self.name!r} has no curve to plot.", "Look at .table and .summary instead.")
        name = curve or next(iter(self.curves))
        if name not in self.curves:
            raise InputError(f"{self.name!r} has no curve {name!r}.", f"Choose one of {', '.join(self.curves)}.")
        return chart(self.curves[name])


def plain(value: Any) -> Any:
    """`value` in JSON types: numpy and polars scalars unwrapped, NaN and ±infinity as None, tuples and arrays as lists."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    raise InputError(f"{type(value).__name__} has no place in JSON.", "Give numbers, text, lists and dicts.")


@cache
def environment() -> dict[str, Any]:
    """Versions, processor and thread count: what a result depends on besides its seed."""
    import torch

    packages = {}
    for name in ("palimpsest-lm", "torch", "transformers", "tokenizers", "numpy", "numba", "scipy", "polars", "pydivsufsort"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "byteorder": sys.byteorder,
        "packages": packages,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
