"""Reports: what was planned, swept, sized, compared or measured, as one HTML file or as Markdown."""

from plansim.report.content import Content, content_of
from plansim.report.html import html
from plansim.report.markdown import markdown
from plansim.report.read import Results, read_results

__all__ = ["Content", "Results", "content_of", "html", "markdown", "read_results"]
