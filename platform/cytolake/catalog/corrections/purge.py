"""Deletes the rows of a plate for good: also the files that held them, in older versions too."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cytolake.catalog.commits import delete_rows, open_table
from cytolake.catalog.corrections.plate_rows import Row, acquisition_of, change, name_of, plates_named
from cytolake.catalog.declared import table_contract, table_names
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ingest.commit import STAGING
from cytolake.catalog.ingest.staging import remove_folder
from cytolake.catalog.plate_commits import plate_application
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import PLATE_TABLES, VISIBLE
from cytolake.storage.files import file_system

LOG = "_delta_log"
_KEPT = ("plate_id", "screen", "plate", "acquisition", "id_names", "pixels_hash")
"""Columns that a purged plate's row keeps: an ingest must recognise the plate, also under a former name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgeReport:
    """What a purge removed."""

    plates: tuple[str, ...]
    """Ids of the acquisitions."""
    n_rows: dict[str, int]
    """Rows deleted, by table, without those of killed runs."""
    n_files: int
    """Files deleted from the disk or bucket."""
    packs: tuple[str, ...]
    """Ids of packs that hold crops of the plate. They are not touched."""
    representations: tuple[str, ...]
    """Ids of representations of such packs: their models may have been trained on the crops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgePreview:
    """What a purge would remove, and what it would leave."""

    plates: tuple[str, ...]
    """Names and acquisitions, such as `screen/P1, acquisition 2`."""
    n_rows: dict[str, int]
    """Rows that would be deleted, by table; tables without any are left out."""
    packs: tuple[str, ...]
    """Ids of packs that hold crops of the plate, which would stay."""
    vectors: tuple[str, ...]
    """Representations that would lose the plate's vectors: id, kind, block and pooling."""


def preview_purge(catalog: Catalog, name: str, acquisition: int | None = None) -> PurgePreview:
    """Count what `purge` would delete, and change nothing.

    Raises:
        CatalogError: No such plate or acquisition.
    """
    rows = _rows_to_purge(catalog, name, acquisition)
    plate_ids = sorted(row["plate_id"] for row in rows)
    n_rows, with_vectors = {}, set()
    for table in table_names():
        stored = open_table(f"{catalog.place}/tables/{table}")
        if table == "plates" or stored is None or "plate_id" not in table_contract(table).schema.names:
            continue
        of_plate = pc.field("plate_id").isin(plate_ids)
        n_rows[table] = stored.to_pyarrow_dataset().count_rows(filter=of_plate)
        if table in ("embeddings", "profiles") and n_rows[table]:
            found = stored.to_pyarrow_dataset().to_table(columns=["representation_id"], filter=of_plate)
            with_vectors |= set(found["representation_id"].unique().to_pylist())
    known = catalog.table("representations").sort_by([("kind", "ascending"), ("block", "ascending")]).to_pylist()
    return PurgePreview(
        plates=tuple(f"{name_of(row)}, acquisition {acquisition_of(row)}" for row in rows),
        n_rows={table: n for table, n in n_rows.items() if n},
        packs=packs_of(catalog, tuple(plate_ids)),
        vectors=tuple(
            f"{row['representation_id']} {row['kind']}, block {row['block']} {row['pooling']}"
            for row in known
            if row["representation_id"] in with_vectors
        ),
    )


def _rows_to_purge(catalog: Catalog, name: str, acquisition: int | None) -> list[Row]:
    rows = plates_named(catalog, name, (VISIBLE, "retracted", "replaced", "purging"))
    rows = [row for row in rows if acquisition in (None, acquisition_of(row))]
    if not rows:
        raise CatalogError(f"plate {name}: no acquisition {acquisition}. `cytolake plates` lists them.")
    return rows


def purge(catalog: Catalog, name: str, why: str, acquisition: int | None = None) -> PurgeReport:
    """Delete all acquisitions of a plate, or one: rows of every table, and files that held them.

    First the plate is hidden, in one commit; then rows go from each table; then every file of an older version that
    held rows of it is removed, so that these versions lose the plate. A table of which others had rows in the same
    files, such as curations, cannot be read at these versions any more. A purge that was killed goes on when it is
    called again. Image files, packs, exports and models are not touched.

    Args:
        catalog: Not pinned. No query that began before should run on: its files go.
        name: `screen/plate`, a plate, or a plate_id.
        why: The reason, which stays in `plates` with the name.
        acquisition: Only this one, 1 is the first.

    Raises:
        CatalogError: No reason, no such plate, or another process corrected it meanwhile.
    """
    if not why.strip():
        raise CatalogError(f"plate {name}: found no reason, expected one. Give it with --why.")
    rows = _rows_to_purge(catalog, name, acquisition)
    to_hide = [row for row in rows if row["state"] != "purging"]
    now = datetime.datetime.now(datetime.UTC)
    if to_hide:
        hidden = [row | {"state": "purging", "why": why.strip(), "changed_at": now} for row in to_hide]
        change(catalog, to_hide, hidden)
        rows = [row for row in rows if row["state"] == "purging"] + hidden
    plate_ids = tuple(row["plate_id"] for row in rows)
    packs = packs_of(catalog, plate_ids)
    known = catalog.table("representations", columns=["representation_id", "pack_id"]).to_pylist()
    n_rows = {}
    n_files = 0
    for table in table_names():
        if table != "plates" and "plate_id" in table_contract(table).schema.names:
            wrote = [plate_application(each) for each in plate_ids] if table in PLATE_TABLES else []
            n_rows[table] = delete_rows(f"{catalog.place}/tables/{table}", "plate_id", plate_ids, forget=wrote)
            n_files += _remove_files(f"{catalog.place}/tables/{table}", frozenset(plate_ids))
    for plate_id in plate_ids:
        _remove_staged(catalog, plate_id)
    change(catalog, rows, [_tombstone(row) for row in rows])
    return PurgeReport(
        plates=plate_ids,
        n_rows={table: n for table, n in n_rows.items() if n},
        n_files=n_files,
        packs=packs,
        representations=tuple(sorted(row["representation_id"] for row in known if row["pack_id"] in packs)),
    )


def packs_of(catalog: Catalog, plate_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Ids of the packs below the catalog's root that hold crops of some plates.

    A damaged pack may hold crops of any plate: it is named, by its folder.
    """
    try:
        folder = catalog.root / "packs"
    except CatalogError:
        return ()
    found = []
    for file in sorted(folder.glob("[!.]*/pack.json")):
        try:
            described = json.loads(file.read_text(encoding="utf-8"))
            plates = described.get("source_dtypes")
            if plates is None:  # of before pack.json listed them
                index = pq.read_table(file.parent / "index.parquet", columns=["plate_id"])
                plates = index["plate_id"].unique().to_pylist()
            holds_some = not set(plates).isdisjoint(plate_ids)
            pack_id = str(described["pack_id"])
        except (OSError, ValueError, AttributeError, KeyError, TypeError):  # Arrow's errors are ValueErrors or OSErrors
            holds_some, pack_id = True, file.parent.name
        if holds_some:
            found.append(pack_id)
    return tuple(found)


def _tombstone(row: Row) -> Row:
    bare = dict.fromkeys(table_contract("plates").schema.names) | {name: row[name] for name in _KEPT}
    return bare | {"state": "purged", "why": row["why"], "changed_at": datetime.datetime.now(datetime.UTC)}


def _remove_staged(catalog: Catalog, plate_id: str) -> None:
    system = file_system(catalog.place)
    for folder in system.glob(f"{system._strip_protocol(catalog.place)}/{STAGING}/{plate_id}-*"):
        remove_folder(folder if "://" not in catalog.place else f"s3://{folder}")


def _remove_files(path: str, plate_ids: frozenset[str]) -> int:
    """Remove the files of a table that the newest version does not name and that hold rows of these plates."""
    system = file_system(path)
    base = system._strip_protocol(path)
    if not system.exists(f"{base}/{LOG}"):
        return 0
    removed = 0
    added, current = files_of_log(system, f"{base}/{LOG}")
    for name, ends in added.items():
        file = f"{base}/{name}"
        if name in current or not _may_hold(ends, plate_ids) or not system.exists(file):
            continue
        with system.open(file, "rb") as opened:
            held = pq.read_table(opened, columns=["plate_id"])["plate_id"]
        if pc.any(pc.is_in(held, value_set=pa.array(sorted(plate_ids), pa.string()))).as_py():
            system.rm_file(file)
            removed += 1
    return removed


def files_of_log(system: Any, log: str) -> tuple[dict[str, tuple[Any, Any]], set[str]]:
    """Every file that a log ever added, with its least and greatest plate id, and the files of the newest version."""
    added: dict[str, tuple[Any, Any]] = {}
    current: set[str] = set()
    for path in sorted(each for each in system.ls(log, detail=False) if each.endswith(".json")):
        for line in system.cat_file(path).splitlines():
            action: dict[str, Any] = json.loads(line)
            if "add" in action:
                name = unquote(action["add"]["path"])
                stats = json.loads(action["add"].get("stats") or "{}")
                ends = (stats.get("minValues", {}).get("plate_id"), stats.get("maxValues", {}).get("plate_id"))
                added[name] = ends
                current.add(name)
            elif "remove" in action:
                current.discard(unquote(action["remove"]["path"]))
    return added, current


def _may_hold(ends: tuple[Any, Any], plate_ids: frozenset[str]) -> bool:
    first, last = ends
    return first is None or last is None or any(first <= each <= last for each in plate_ids)
