"""Colours of a figure: eight hues for things that differ in kind, a ramp for things that differ in amount; light, dark, or as CSS.

The hues stay apart for normal, protan, deutan and tritan eyes (simulated after Machado et al. 2009, "A physiologically-based model
for simulation of color vision deficiency", compared in OKLab) and have at least 3:1 against their background; words have 4.5:1.
The ramp goes from little to much in even steps of OKLab (Ottosson 2020), away from the background.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_HUES_ON_LIGHT = ("#2f7bdc", "#da6a12", "#0d5a45", "#6a249b", "#86690c", "#d1527f", "#26324a", "#7a8794")
_HUES_ON_DARK = ("#4f8ff0", "#ee8433", "#86efc4", "#d6abf8", "#e3bd35", "#e2688f", "#dbe2ea", "#7d8896")
LIGHT: Mapping[str, str] = {f"series-{i}": hue for i, hue in enumerate(_HUES_ON_LIGHT, 1)} | {
    "ramp-1": "#c27c12",
    "ramp-2": "#b8336a",
    "ramp-3": "#2b1464",
    "plot-ink": "#2b2a28",
    "plot-muted": "#63605a",
    "plot-grid": "#e4e1da",
    "plot-surface": "#ffffff",
}
DARK: Mapping[str, str] = {f"series-{i}": hue for i, hue in enumerate(_HUES_ON_DARK, 1)} | {
    "ramp-1": "#7568d8",
    "ramp-2": "#e8608a",
    "ramp-3": "#ffdd8a",
    "plot-ink": "#e9e6e0",
    "plot-muted": "#a8a49b",
    "plot-grid": "#35383d",
    "plot-surface": "#1c1e22",
}
CSS: Mapping[str, str] = {name: f"var(--{name})" for name in LIGHT}

_TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]]
)
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]]
)


def ramp(colours: Mapping[str, str], amount: float) -> str:
    """The colour of an amount.

    Args:
        colours: a mapping with "ramp-1" to "ramp-3", real colours ("#rrggbb") or CSS variables.
        amount: from 0, the least, to 1, the most.

    Example:
        >>> ramp(LIGHT, 0.0), ramp(LIGHT, 0.25), ramp(CSS, 0.25)
        ('#c27c12', '#be5c4f', 'color-mix(in oklab, var(--ramp-2) 50%, var(--ramp-1))')
    """
    upper = amount > 0.5
    low, high = ("ramp-2", "ramp-3") if upper else ("ramp-1", "ramp-2")
    share = 2 * amount - upper
    if share in (0, 1):
        return colours[high if share else low]
    if colours[low].startswith("var("):
        return f"color-mix(in oklab, {colours[high]} {100 * share:.4g}%, {colours[low]})"
    mixed = (1 - share) * _oklab(colours[low]) + share * _oklab(colours[high])
    linear = np.clip(np.linalg.inv(_TO_CONES) @ (np.linalg.inv(_TO_LAB) @ mixed) ** 3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(part * 255):02x}" for part in encoded)


def _oklab(colour: str) -> np.ndarray:
    encoded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return _TO_LAB @ np.cbrt(_TO_CONES @ linear)
