"""Figures: a `Curve` as an Altair chart, an SVG or a PNG, drawn without a browser and without a network."""

from palimpsest.plot.chart import chart, label, png, rasterise, svg
from palimpsest.plot.palette import CSS, DARK, LIGHT

__all__ = ["CSS", "DARK", "LIGHT", "chart", "label", "png", "rasterise", "svg"]
