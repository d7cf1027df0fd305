"""Results into a page: `render` makes one self-contained HTML file of an audit, with its figures beside it."""

from palimpsest.report.page import render
from palimpsest.report.schema import FORMAT, check

__all__ = ["FORMAT", "check", "render"]
