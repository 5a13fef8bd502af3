"""One answer to which verdicts are the newest."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

from cytolake.catalog import Catalog, CatalogError
from cytolake.qc.newest import newest_qc, newest_qc_id


def judged(catalog: Catalog, *rows: tuple[str, str, int]) -> None:
    """Verdicts of a plate by rules, on a day."""
    for plate, qc_id, day in rows:
        row = {
            "qc_id": qc_id, "plate_id": plate, "site_id": f"{plate} 1", "well_id": "", "channel": "DNA",
            "channel_index": 0, "rule": "defocus", "is_pass": True,
            "judged_at": datetime.datetime(2026, 1, day, tzinfo=datetime.UTC),
        }  # fmt: skip
        add_rows(catalog, "qc_verdicts", row)


def test_each_plate_counts_by_the_rules_that_judged_it_last(tmp_path: Path):
    catalog = empty_catalog(tmp_path)
    with pytest.raises(CatalogError, match="no verdicts"):
        newest_qc_id(catalog)
    judged(catalog, ("P1", "old", 1), ("P2", "old", 1), ("P3", "old", 1), ("P1", "new", 2), ("P2", "new", 2))
    assert newest_qc(catalog) == {"P1": "new", "P2": "new", "P3": "old"}
    assert newest_qc_id(catalog) == "new"


def test_one_plate_that_was_judged_alone_does_not_stand_for_a_screen(tmp_path: Path):
    catalog = empty_catalog(tmp_path)
    judged(catalog, *((f"P{i}", "screen", 1) for i in range(4)), ("P0", "tried out", 2))
    assert newest_qc_id(catalog) == "screen"
