"""A run as something to look at: one self-contained HTML page, tables for a terminal, and several runs compared.

The page needs no network and no script: pictures are inside it and charts are SVG in the page's own colours, so it reads as well in a
dark theme and on paper. Numbers come from `report.json`; what is not a number (queries, Gram matrices) from `ReportPictures`.
"""

from perdure.report.page import write_comparison, write_html, write_run_html
from perdure.report.pictures import Example, ReportPictures
from perdure.report.tables import comparison_table, summary_table

__all__ = ["Example", "ReportPictures", "comparison_table", "summary_table", "write_comparison", "write_html", "write_run_html"]
