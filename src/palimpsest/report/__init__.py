"""Results into pages, self-contained HTML: `render` of an audit, `render_trace` of a traced text, `render_bench` of a benchmark."""

from palimpsest.report.bench_page import render_bench
from palimpsest.report.page import render
from palimpsest.report.schema import FORMAT, check
from palimpsest.report.trace_page import render_trace

__all__ = ["FORMAT", "check", "render", "render_bench", "render_trace"]
