"""Results into a page: `render` makes one self-contained HTML file of an audit, `render_trace` of a traced text."""

from palimpsest.report.page import render
from palimpsest.report.schema import FORMAT, check
from palimpsest.report.trace_page import render_trace

__all__ = ["FORMAT", "check", "render", "render_trace"]
