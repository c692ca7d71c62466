"""Reports of a validation: the table, JSON, JUnit XML, Markdown, and a page to look at and listen to. Knows no backend."""

from .junit import render_junit
from .markdown import render_markdown
from .model import Check, Report
from .page import render_html
from .table import render_table

__all__ = ["Check", "Report", "render_html", "render_junit", "render_markdown", "render_table"]
