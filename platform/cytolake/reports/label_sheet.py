"""The page on which people label sites: one HTML file that works without server and network.

The page stores the labels in the browser and saves the filled-in `labels.csv`, which `cytolake qc read` reads.
"""

from __future__ import annotations

from pathlib import Path

from cytolake.qc.labels import LABELS, SHEET_COLUMNS, LabelSheet
from cytolake.reports.page import write_page

PAGE_NAME = "labels.html"
_KEYS = "1234567890qwertyuiop"  # keyboard key of each label, in order


def write_label_page(sheet: LabelSheet) -> Path:
    """Write `labels.html` next to the sheet's CSV file and return its path."""
    return write_page(
        sheet.table.with_name(PAGE_NAME),
        "label_sheet.html.j2",
        cards=sheet.cards,
        has_centres=any(len(image["shown"]) > 1 for card in sheet.cards for image in card["images"]),
        labels=list(zip(LABELS, _KEYS, strict=False)),
        sheet_id=sheet.sheet_id,
        columns=SHEET_COLUMNS,
    )
