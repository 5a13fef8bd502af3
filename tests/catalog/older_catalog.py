"""Catalogs as earlier versions wrote them."""

from __future__ import annotations

import shutil
from pathlib import Path

from deltalake import DeltaTable, write_deltalake

from cytolake.catalog import table_contract

LATER = {
    "plates": tuple(sorted(table_contract("plates").optional)),
    "wells": ("edition",),
    "crops": ("edition",),
    "sites": ("planes", "illumination_paths", "checksum", "edition"),
    "qc_verdicts": ("level", "well_id"),
    "representations": ("parent_id", "alignment_id", "alignment_variant"),
}
"""Columns that the first release did not have."""
LATER_TABLES = ("tags", "qc_labels", "curation_runs", "consistency_tests")


def as_first_release(root: Path) -> None:
    """Rewrite a catalog as if its tables had been made before the columns and tables of LATER."""
    for name in LATER_TABLES:
        shutil.rmtree(root / "tables" / name, ignore_errors=True)
    for name, columns in LATER.items():
        table = DeltaTable(str(root / "tables" / name))
        rows = table.to_pyarrow_table().drop_columns(list(columns))
        contract = table_contract(name)
        shutil.rmtree(root / "tables" / name)
        DeltaTable.create(str(root / "tables" / name), rows.schema, name=name, partition_by=list(contract.partition_by))
        write_deltalake(str(root / "tables" / name), rows, mode="append")
