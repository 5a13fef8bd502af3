"""Checks that all references in a catalog lead to something that exists."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cytolake.catalog.commits import delete_rows, open_table
from cytolake.catalog.corrections.editions import edition_application
from cytolake.catalog.corrections.plate_rows import name_of
from cytolake.catalog.corrections.purge import LOG, files_of_log, purge
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.plate_commits import plate_application
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import EDITIONS, INGESTED_TABLES, PLATE_TABLES
from cytolake.screens.plate import WELLS_ONLY
from cytolake.storage.files import file_system, is_uri

REFERENCES = (
    ("sites", "well_id", "wells", "well_id"),
    ("crops", "site_id", "sites", "site_id"),
    ("crops", "well_id", "wells", "well_id"),
    ("qc_metrics", "site_id", "sites", "site_id"),
    ("embeddings", "representation_id", "representations", "representation_id"),
    ("profiles", "representation_id", "representations", "representation_id"),
    ("scores", "representation_id", "representations", "representation_id"),
    ("consistency_tests", "curation_id", "curation_runs", "curation_id"),
)
"""Column of a table, and the table and column in which each of its values must occur."""

WHICH_REFER = {"scores": " AND benchmark <> 'qc_encoders' AND NOT starts_with(benchmark, 'artefact_detector')"}
"""Which rows of a table refer to another: scores of artefact detectors are of features of sites, no representation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One error, or one leftover of a killed run."""

    what: str
    next_step: str
    is_repaired: bool = False


def check_catalog(catalog: Catalog, *, is_repair: bool = False, older_than_h: float = 24.0) -> list[Finding]:
    """Look for rows, files and plates that refer to what does not exist.

    Args:
        catalog: Not pinned.
        is_repair: Delete rows that killed runs left behind, and finish purges that were killed. Nothing visible is
            deleted, and older versions keep what they have.
        older_than_h: Leave rows whose file is younger, hours: a run that goes on now writes rows that no plate shows
            yet.

    Returns:
        Findings; none where all is well.

    Raises:
        CatalogError: A pinned catalog, or a table that cannot be read or written.
    """
    if catalog.pinned is not None:
        raise CatalogError("check: found a catalog pinned to old versions, expected an open one. Use `open(root)`.")
    if lost := _lost_plates(catalog):
        return [lost]
    found = [*_unfinished_purges(catalog, is_repair), *_left_over(catalog, is_repair, older_than_h)]
    found += _lost_tables(catalog)
    return [*found, *_wrong_counts(catalog), *_double_names(catalog), *_broken(catalog), *_missing_files(catalog)]


def _lost_plates(catalog: Catalog) -> Finding | None:
    """The table `plates` is missing, or younger than rows of plates that it lacks: no killed run left these."""
    known = {*catalog.visibility().plates.column("plate_id").to_pylist()}
    plates = open_table(f"{catalog.place}/tables/plates")
    made = None if plates is None else plates.metadata().created_time
    older = []
    for name in PLATE_TABLES:
        table = open_table(f"{catalog.place}/tables/{name}")
        files = [] if table is None else pa.table(table.get_add_actions(flatten=True)).to_pylist()
        before = (file for file in files if file["num_records"] and (made is None or file["modification_time"] < made))
        if any(not known.issuperset((file.get("min.plate_id"), file.get("max.plate_id"))) for file in before):
            older.append(name)
    if not older:
        return None
    state = "is not there" if made is None else "was made after the rows"
    return Finding(
        what=f"table plates {state} of {', '.join(older)}: it was deleted, and what it said of them is lost",
        next_step=f"Put {catalog.place}/tables/plates back from a backup, and ingest nothing into this root before. "
        "Nothing else was looked at, and nothing was repaired.",
    )


def _lost_tables(catalog: Catalog) -> list[Finding]:
    """Missing tables that every ingest or curation writes."""
    has_images = any(row["reader"] != WELLS_ONLY for row in catalog.table("plates").to_pylist())
    names = [*INGESTED_TABLES, "quarantine"] if has_images else []
    names += ["curations"] if catalog.table("curation_runs", columns=["curation_id"]).num_rows else []
    return [
        Finding(
            what=f"table {name} is not there, and rows of other tables are of the runs that wrote it",
            next_step=f"Put {catalog.place}/tables/{name} back from a backup; or read the plates again into another "
            "catalog root.",
        )
        for name in names
        if open_table(f"{catalog.place}/tables/{name}") is None
    ]


def _unfinished_purges(catalog: Catalog, is_repair: bool) -> list[Finding]:
    found = []
    for row in catalog.visibility().plates.to_pylist():
        if row["state"] == "purging":
            if is_repair:
                purge(catalog, row["plate_id"], row["why"])
            step = f"Finish it: cytolake plates purge {name_of(row)} --yes --why TEXT, or check --repair."
            what = f"plate {name_of(row)}: a purge did not come to its end"
            found.append(Finding(what=what, next_step=step, is_repaired=is_repair))
    return found


def _left_over(catalog: Catalog, is_repair: bool, older_than_h: float) -> list[Finding]:
    """Rows of plates that `plates` lacks, and of editions that no version of it ever named."""
    plates = catalog.visibility().plates
    known = set(plates.column("plate_id").to_pylist())
    found = []
    for name in PLATE_TABLES:
        path = f"{catalog.place}/tables/{name}"
        table = open_table(path)
        if table is None:
            continue
        groups = {"plate_id": known}
        if name in EDITIONS:
            groups["edition"] = {None, *_editions_ever(catalog, EDITIONS[name])}
        for column, named in groups.items():
            if column not in {field.name for field in table.schema().fields}:
                continue
            values = table.to_pyarrow_dataset().to_table(columns=[column]).column(0).unique().to_pylist()
            lost = sorted(value for value in values if value not in named)
            lost = [value for value in lost if _age_h(table, column, value) >= older_than_h]
            if not lost:
                continue
            wrote = plate_application if column == "plate_id" else edition_application
            n = delete_rows(path, column, lost, forget=[wrote(each) for each in lost]) if is_repair else 0
            what = f"table {name}: rows of {len(lost)} {column}s that no plate shows, from runs that were killed"
            step = f"{n} rows deleted." if is_repair else "Run the ingest or the correction again, or check --repair."
            found.append(Finding(what=what, next_step=step, is_repaired=is_repair))
    return found


def _editions_ever(catalog: Catalog, column: str) -> set[str]:
    """Editions that any version of `plates` names, by the files of its log."""
    path = f"{catalog.place}/tables/plates"
    system = file_system(path)
    base = system._strip_protocol(path)
    found: set[str] = set()
    for name in files_of_log(system, f"{base}/{LOG}")[0]:
        if not system.exists(f"{base}/{name}"):
            continue
        with system.open(f"{base}/{name}", "rb") as opened:
            file = pq.ParquetFile(opened)
            if column in file.schema_arrow.names:
                found.update(file.read(columns=[column])[column].to_pylist())
    return found - {None}


def _age_h(table: Any, column: str, value: str) -> float:
    """Hours since the newest file that may hold a value was written."""
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    low, high = f"min.{column}", f"max.{column}"
    times = [
        action["modification_time"]
        for action in actions
        if action.get(low) is None or action[low] <= value <= action[high]
    ]
    return (time.time() - max(times, default=0) / 1000) / 3600  # Delta writes milliseconds


def _wrong_counts(catalog: Catalog) -> list[Finding]:
    """Visible plates whose numbers of rows differ from those in `plates`."""
    found = []
    counts = {
        name: {row["plate_id"]: row["n"] for row in _counts(catalog, name)} for name in ("wells", "sites", "crops")
    }
    for row in catalog.table("plates").to_pylist():
        for name, of_plate in counts.items():
            n, expected = of_plate.get(row["plate_id"], 0), row[f"n_{name}"]
            if expected is not None and n != expected:
                found.append(
                    Finding(
                        what=f"plate {name_of(row)}: {n} rows of {name}, expected {expected}",
                        next_step="Rows were lost or changed by another program: cytolake plates replace reads the "
                        "plate again.",
                    )
                )
    return found


def _counts(catalog: Catalog, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog.sql(f"SELECT plate_id, count(*) AS n FROM {name} GROUP BY 1").to_pylist()
    return rows


def _double_names(catalog: Catalog) -> list[Finding]:
    rows = catalog.sql("SELECT screen, plate, count(*) AS n FROM plates GROUP BY 1, 2 HAVING n > 1").to_pylist()
    return [
        Finding(
            what=f"plate {name_of(row)}: {row['n']} visible plates of this name, expected one",
            next_step="Rename or retract all but one: cytolake plates rename, by plate_id.",
        )
        for row in rows
    ]


def _broken(catalog: Catalog) -> list[Finding]:
    found = []
    for table, column, other, key in REFERENCES:
        n = catalog.sql(
            f"SELECT count(*) AS n FROM {table} t WHERE {column} <> ''{WHICH_REFER.get(table, '')} "
            f"AND NOT EXISTS (SELECT 1 FROM {other} o WHERE o.{key} = t.{column})"
        ).to_pylist()[0]["n"]
        if n:
            what = f"table {table}: {n} rows whose {column} is not in {other}"
            found.append(Finding(what=what, next_step=f"Find them by SQL; run the job again that writes {other}."))
    return found


def _missing_files(catalog: Catalog) -> list[Finding]:
    """Missing sources and images, and packs whose curation is missing."""
    found = []
    for row in catalog.table("plates").to_pylist():
        if row["reader"] == WELLS_ONLY or is_uri(row["source"]):
            continue
        if not Path(row["source"]).exists():
            what = f"plate {name_of(row)}: its source {row['source']} is gone"
            step = "Put it back, or read it from where it is: cytolake plates replace. Crops cannot be read until then."
            found.append(Finding(what=what, next_step=step))
            continue
        sites = catalog.rows_of_plate("sites", row).to_table(columns=["image_paths"]).column(0).to_pylist()
        paths = [path for paths in sites for path in paths if not is_uri(path)]
        lost = [path for path in paths if not Path(path).exists()]
        if lost:
            what = f"plate {name_of(row)}: {len(lost)} of {len(paths)} image files are gone, the first {lost[0]}"
            found.append(Finding(what=what, next_step="Put them back, or: cytolake plates replace."))
    try:
        packs = sorted((catalog.root / "packs").glob("[!.]*/pack.json"))
    except CatalogError:
        return found
    known = set(catalog.table("curation_runs", columns=["curation_id"]).column(0).to_pylist())
    known |= set(catalog.sql("SELECT DISTINCT curation_id FROM curations").column(0).to_pylist())
    for file in packs:
        try:
            described = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            found.append(
                Finding(what=f"{file}: no JSON", next_step="Delete the pack's folder; curate builds it again.")
            )
            continue
        if described.get("curation_id") not in known:
            what = f"pack {described.get('pack_id')}: its curation {described.get('curation_id')} is not in the catalog"
            found.append(Finding(what=what, next_step="Delete the pack's folder, or copy it to its own catalog."))
    return found
