"""What a person reads of a run: report.html for a browser or paper, and a few lines for the terminal."""

from streamcl.report.overview import summary_of
from streamcl.report.page import write_report
from streamcl.report.terminal import text_summary

__all__ = ["summary_of", "text_summary", "write_report"]
