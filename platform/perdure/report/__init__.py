"""A run as something to look at: one self-contained HTML page, tables for a terminal, and several runs compared.

The page needs no network and no script: pictures are inside it and charts are SVG in the page's own colours, so it reads as well in a
dark theme and on paper. Numbers come from `report.json`; what is not a number (queries, Gram matrices) from `ReportPictures`.
"""

from perdure.report.comparison import Row
from perdure.report.comparison_page import write_comparison
from perdure.report.page import write_html, write_run_html
from perdure.report.pictures import Change, Example, FeatureMap, Inversion, ReportPictures
from perdure.report.tables import comparison_table, cost_table, relative_table, summary_table

__all__ = [
    "Change",
    "Example",
    "FeatureMap",
    "Inversion",
    "ReportPictures",
    "Row",
    "comparison_table",
    "cost_table",
    "relative_table",
    "summary_table",
    "write_comparison",
    "write_html",
    "write_run_html",
]
