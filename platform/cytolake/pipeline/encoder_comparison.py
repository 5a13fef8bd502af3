"""One run of `cytolake qc compare-encoders`: compare, add to `scores`, write the page and the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyarrow.csv import write_csv
from pyarrow.parquet import write_table
from rich.table import Table

from cytolake.catalog import Catalog
from cytolake.pipeline.overrides import apply_overrides
from cytolake.qc.detector.compared_encoders import compared_encoders
from cytolake.qc.detector.encoder_comparison import (
    EncoderComparisonConfig,
    add_comparison_scores,
    compare_encoders,
    comparison_table,
)
from cytolake.reports.qc_encoders_page import (
    PAGE_FILE,
    comparison_text,
    headline,
    labels_text,
    notes,
    training_effects,
    write_encoder_page,
)

TITLE = "Encoders for artefact detection"
_WRITERS = {".csv": write_csv, ".parquet": write_table}


@dataclass(frozen=True, slots=True)
class WrittenComparison:
    """What a run found, and where it is."""

    headline: str
    notes: list[str]
    text: Table
    page: Path
    n_scores: int


def run_comparison(
    catalog: Catalog,
    encoders: Sequence[str],
    options: Sequence[str],
    page: Path | None,
    table: Path | None,
    progress: Callable[[str, int, int], None] | None = None,
) -> WrittenComparison:
    """Compare encoders on the labelled sites of a catalog.

    Args:
        encoders: As `compared_encoders` reads them.
        options: `field=value` of `EncoderComparisonConfig`.
        page: Where the page goes; None: `report/qc_encoders.html` of the root.
        table: File of every score, `.csv` or `.parquet`; None writes none.
        progress: Called with the parts done.

    Raises:
        ValueError: A table of another kind of file, or options, labels or encoders that cannot be used.
    """
    if table is not None and table.suffix not in _WRITERS:
        raise ValueError(f"{table}: found the ending {table.suffix!r}, expected {' or '.join(_WRITERS)}.")
    config = apply_overrides(EncoderComparisonConfig(), options)
    found = compare_encoders(catalog, compared_encoders(catalog, encoders, config.features), config, progress)
    n_scores = add_comparison_scores(catalog, found)
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[table.suffix](comparison_table(found), table)
    written = write_encoder_page(page or catalog.root / "report" / PAGE_FILE, TITLE, found)
    said = [*training_effects(found), labels_text(found), *notes(found)]
    return WrittenComparison(headline(found), said, comparison_text(found), written, n_scores)
