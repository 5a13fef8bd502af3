"""The catalog that people and jobs use: read, query and append to its tables, and read the pixels of crops.

It is one file because it is one class, whose methods read and write the same tables.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow.fs import LocalFileSystem

from cytolake.catalog.commits import Rows, commit_rows, create_table, open_table, open_to_write
from cytolake.catalog.declared import table_contract, table_names
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.opened import keep
from cytolake.catalog.plate_commits import PlateCommits
from cytolake.catalog.query import Parameters, parse_query, run_query
from cytolake.catalog.visibility import (
    DERIVED_TABLES,
    PLATE_TABLES,
    VISIBLE,
    Visibility,
    read_visibility,
    shown_files,
    shown_part,
)
from cytolake.storage.atomic_write import write_text
from cytolake.storage.files import is_uri

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset as ds
    from anndata import AnnData

    from cytolake.catalog.representations import Level

PLACE_FILE = "catalog.json"
"""File in a catalog's folder that says where its tables are, if not in the folder itself."""


def open(root: str | Path, *, tables: str = "", create: bool = False) -> Catalog:
    """Open a catalog.

    Args:
        root: Its folder, with the tables in `<root>/tables`, packs and runs next to them; or `s3://bucket/prefix`,
            where only tables can be: such a catalog can be queried and ingested into, packs need a folder.
        tables: With `create`: put the tables of this folder there instead, such as `s3://bucket/prefix`. The folder
            remembers it.
        create: Make the folder and every table that is missing. Several processes may do so at once.

    Raises:
        CatalogError: There is no catalog and `create` is False, the root is empty or can be no folder, the folder's
            tables are somewhere else than `tables`, or a table there contradicts its contract.
    """
    if not str(root).strip():
        raise CatalogError("root: found an empty name, expected the folder of a catalog; `.` is the working directory.")
    if create and not is_uri(root):
        make_root(Path(root))
    folder = None if is_uri(root) else Path(root).expanduser().resolve()
    base = str(root).rstrip("/") if folder is None else _place_of_tables(folder, tables.rstrip("/"), create)
    if create:
        for name in table_names():
            create_table(f"{base}/tables/{name}", table_contract(name))
    elif not (open_table(f"{base}/tables/plates") if is_uri(base) else Path(base, "tables").is_dir()):
        raise CatalogError(
            f"{base}: no catalog there (found no folder `tables`). Give the root of a catalog (--root, "
            "CYTOLAKE_ROOT), or make one: `cytolake ingest`; `cytolake import --wells` for a screen without images; or "
            "cytolake.catalog.open(root, create=True)."
        )
    return Catalog(folder, base)


def make_root(root: Path) -> None:
    """Make the folder of a catalog, where it is not there yet.

    Raises:
        CatalogError: It can be no folder.
    """
    folder = root.expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = "a file" if folder.is_file() else error.strerror or str(error)
        raise CatalogError(
            f"root {folder}: found {found}, expected a folder, or a place where one can be made. Give another root "
            "(--set root=FOLDER, --root, CYTOLAKE_ROOT), or correct the permissions."
        ) from error


def _place_of_tables(folder: Path, wanted: str, create: bool) -> str:
    """Folder or URI that holds the `tables/` of a catalog."""
    note = folder / PLACE_FILE
    place = json.loads(note.read_text(encoding="utf-8"))["tables"] if note.is_file() else ""
    if wanted and wanted != place:
        if place or (folder / "tables").is_dir():
            raise CatalogError(
                f"{folder}: its tables are in {place or folder / 'tables'}, expected {wanted}. Leave `tables` out, or "
                "use another root."
            )
        if create:
            write_text(note, json.dumps({"tables": wanted}) + "\n")
        place = wanted
    return place or str(folder)


class Catalog(PlateCommits):
    """The tables of one catalog. Holds no state: every call reads what is stored, or the pinned versions of it."""

    def __init__(self, folder: Path | None, place: str, pinned: Mapping[str, int] | None = None) -> None:
        self._folder = folder
        self.place = place
        """Folder or URI that holds `tables/`."""
        self.pinned = dict(pinned) if pinned is not None else None

    def __repr__(self) -> str:
        return f"Catalog({self.place!r}{'' if self.pinned is None else f', pinned={self.pinned}'})"

    @property
    def root(self) -> Path:
        """Folder of the catalog, where packs, runs and reports go.

        Raises:
            CatalogError: The catalog was opened by the URI of its tables, without a folder.
        """
        if self._folder is None:
            raise CatalogError(
                f"{self.place}: a catalog without a folder; packs, runs and reports need one on a disk that all nodes "
                f"see. Open it as cytolake.catalog.open(folder, tables={self.place!r}, create=True)."
            )
        return self._folder

    def versions(self) -> dict[str, int]:
        """Delta version of every table that exists.

        `plates` is looked up first: a plate it has is whole in all the others.
        """
        if self.pinned is not None:
            return dict(self.pinned)
        found = {name: open_table(self._path(name)) for name in ("plates", *table_names())}
        return {name: table.version() for name, table in sorted(found.items()) if table is not None}

    def state(self) -> dict[str, tuple[str, int]]:
        """Id and Delta version of every table that exists: states with different rows differ.

        A table gets its id, at random, when it is made: versions alone are the same in catalogs of other screens, and
        in one that was deleted and made again.
        """
        return {name: (self.table_id(name), version) for name, version in self.versions().items()}

    def table_id(self, name: str) -> str:
        """Delta's id of a table, empty where there is none."""
        found = open_table(self._path(name))
        return "" if found is None else str(found.metadata().id)

    def at(self, versions: Mapping[str, int] | str) -> Catalog:
        """The same catalog at older versions, for reading.

        Args:
            versions: Delta version of each table, as `versions` gives them; a table that is not named is empty. Or the
                name of a tag.

        Raises:
            UnknownTableError: No such table.
            CatalogError: No such tag.
        """
        if isinstance(versions, str):
            versions = self._tagged(versions)
        for name in versions:
            table_contract(name)
        return Catalog(self._folder, self.place, versions)

    def snapshot(self) -> Catalog:
        """This catalog at its present versions, so that all that is read from it fits together."""
        return self.at(self.versions()) if self.pinned is None else self

    def tag(self, name: str, note: str = "") -> dict[str, int]:
        """Name the present versions of the tables, for `at`. A tag is never moved: a second use of the name is refused.

        Returns:
            The versions that the tag names.

        Raises:
            CatalogError: An empty name, or a tag of other versions.
        """
        if not name.strip():
            raise CatalogError("tag: found an empty name, expected one such as paper-2026. Give it a name.")
        versions = {table: version for table, version in self.versions().items() if table != "tags"}
        row = {
            "tag": name,
            "table_versions": json.dumps(versions, sort_keys=True),
            "note": note,
            "tagged_at": datetime.datetime.now(datetime.UTC),
        }
        rows = table_contract("tags").rows([row])
        if not self.append("tags", rows, transaction=content_id("tag", name)) and self._tagged(name) != versions:
            raise CatalogError(
                f"tag {name}: it names other versions of the tables. A tag is never moved: take another name, or "
                f"read the catalog as it was with at({name!r})."
            )
        return versions

    def _tagged(self, name: str) -> dict[str, int]:
        there = {row["tag"]: row["table_versions"] for row in self.table("tags").to_pylist()}
        if name not in there:
            raise CatalogError(f"tag {name}: no such tag. There are: {', '.join(sorted(there)) or 'none'}.")
        versions: dict[str, int] = json.loads(there[name])
        return versions

    def table(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        parameters: Parameters | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Read one table, or part of it.

        Args:
            name: As in catalog/tables/.
            columns: Only these, in this order.
            where: SQL condition on its columns, such as `plate = $plate`; may hold subqueries of other tables.
            parameters: Values of `$name`, or of each `?` in order, in `where`: `{"plate": "P1"}`.
            version: Delta version of this table. For a table of plates' parts, which plates show is as of today, or as
                of `at(...)`, which pins every table.

        Returns:
            The contract's columns and types; no rows where nothing was written.

        Raises:
            UnknownTableError: No such table.
            CatalogError: No such column or version, or a condition that DuckDB refuses.
        """
        contract = table_contract(name)
        names = list(columns) if columns is not None else contract.schema.names
        unknown = [column for column in names if column not in contract.schema.names]
        if unknown:
            raise CatalogError(
                f"table {name}: no column {', '.join(unknown)}. There are: {', '.join(contract.schema.names)}."
            )
        wanted = pa.schema([contract.schema.field(column) for column in names])
        if where is None:
            found = self._datasets(frozenset({name}), {name: version})[name].to_table(columns=names)
        else:
            selected = ", ".join(f'"{column}"' for column in names)
            query = parse_query(f'SELECT {selected} FROM "{name}" WHERE (\n{where}\n)')
            found = run_query(query, self._datasets(query.tables, {name: version}), parameters)
        return pa.Table.from_arrays([found.column(i).cast(field.type) for i, field in enumerate(wanted)], schema=wanted)

    def find_crops(
        self,
        *,
        plates: Sequence[str] = (),
        wells: Sequence[str] = (),
        perturbations: Sequence[str] = (),
        qc_id: str = "",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Crops of some plates, wells or perturbations whose sites pass QC. Reads little more than it returns.

        Every condition left empty counts as met. What is not said here can be said in SQL.

        Args:
            plates: Names, as in plates.plate.
            wells: Positions such as `B03`.
            perturbations: As in wells.perturbation.
            qc_id: Verdicts of a QC profile, such as `cytolake.qc.verdicts.qc_profile("default").qc_id`: crops of sites
                that fail one of its rules in any channel are left out, also by a rule that fails most controls of a
                plate. A site that was not judged passes.
            columns: Of the table crops; all by default.

        Raises:
            CatalogError: No such column.
        """
        from cytolake.catalog.find_crops import find_crops

        return find_crops(self, plates, wells, perturbations, qc_id, columns)

    def to_pandas(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        parameters: Parameters | None = None,
        version: int | None = None,
    ) -> pd.DataFrame:
        """`table(...)` as a pandas frame."""
        table = self.table(name, columns=columns, where=where, parameters=parameters, version=version)
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def sql(self, query: str, *, parameters: Parameters | None = None, **views: Any) -> pa.Table:
        """Run one SELECT over the catalog's tables with DuckDB.

        Args:
            query: May name every table of the catalog and every view. It can read nothing else and write nothing.
            parameters: Values of `$name`, or of each `?` in order, in the query. Put values here, not into the text.
            views: More tables by name: Arrow tables, pandas frames, Arrow datasets. They hide a table of that name.

        Raises:
            CatalogError: Not one SELECT, a function that is not allowed, or DuckDB's reason.
        """
        parsed = parse_query(query)
        return run_query(parsed, {**self._datasets(parsed.tables - views.keys(), {}), **views}, parameters)

    def append(self, name: str, rows: Rows, *, transaction: str) -> bool:
        """Append rows in one atomic commit.

        Args:
            name: As in catalog/tables/.
            rows: The contract's columns; see `TableContract.conform` for the types it takes. Or a function that gives
                them in parts.
            transaction: Names what is written. The same one again, from any process, changes nothing.

        Returns:
            False where `transaction` had been committed before.

        Raises:
            UnknownTableError: No such table.
            CatalogError: Rows that break the contract (nothing is written), a catalog pinned by `at`, or writers that
                kept this one out for about 20 seconds.
        """
        return self._commit(name, rows, marks={transaction: 1})

    def rows_of_plate(self, name: str, row: Mapping[str, Any]) -> ds.Dataset:
        """Rows of one acquisition in a table, visible or not, of the edition that its row of `plates` names.

        Args:
            name: A table of plates' parts, such as wells.
            row: Of `plates`, of any state.
        """
        import pyarrow.dataset as ds

        table = open_table(self._path(name))
        contract = table_contract(name)
        if table is None:
            return ds.dataset(contract.empty())
        alone = table_contract("plates").rows([{**row, "state": VISIBLE}])
        return shown_part(name, table, contract, Visibility(alone))

    def committed(self, name: str, transactions: Iterable[str]) -> set[str]:
        """The transactions that `append` has committed to a table by now, also where this catalog is pinned."""
        table = open_table(self._path(table_contract(name).name))
        return {each for each in transactions if table is not None and table.transaction_version(each) is not None}

    def to_anndata(self, representation_id: str | Sequence[str], *, level: Level = "crop") -> AnnData:
        """Embeddings with everything known about their crops or wells, for scanpy; see `annotated.to_anndata`.

        Args:
            representation_id: One, or several: ids, names of external ones, or `champion`, the promoted one of the
                MLflow registry in the catalog's root.
            level: One row for each crop, or for each well.
        """
        from cytolake.catalog import annotated

        return annotated.to_anndata(self, representation_id, level=level)

    def crop_pixels(self, crop_ids: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Raw pixels of crops from their source: (C, size, size) each, of the source's type, in the order of the ids.

        Raises:
            CatalogError: A crop id that the catalog does not have.
            ScreenError: The source is gone or damaged.
        """
        from cytolake.catalog import crop_pixels  # the image libraries: not to open a table

        return crop_pixels.read_crops(self, crop_ids)

    def channels_of(self, crop_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """Stain names of each crop's channels, in pixel order.

        Raises:
            CatalogError: A crop id that the catalog does not have.
        """
        from cytolake.catalog import crop_pixels

        return crop_pixels.channels_of(self, crop_ids)

    def _commit(self, name: str, rows: Rows, **how: Any) -> bool:
        contract = table_contract(name)
        if self.pinned is not None:
            raise CatalogError(f"table {name}: this catalog is pinned to old versions. Write to `open(root)`.")
        table = open_to_write(self._path(name), contract)
        is_committed = commit_rows(table, contract, rows, **how)
        keep(self._path(name), table)
        return is_committed

    def _path(self, name: str) -> str:
        return f"{self.place}/tables/{name}"

    def dataset(self, name: str) -> ds.Dataset:
        """One table as an Arrow dataset, for reading by columns and filters: see `pyarrow.dataset`."""
        return self._datasets(frozenset({table_contract(name).name}), {})[name]

    def visible_files(self, name: str) -> tuple[ds.Dataset, pc.Expression | None]:
        """Files of one table, not `plates`, and the condition of its visible rows where files hold others too."""
        import pyarrow.dataset as ds

        contract = table_contract(name)
        is_filtered = name in PLATE_TABLES or name in DERIVED_TABLES
        visibility = self._visibility(None) if is_filtered else None  # before the table: see `versions`
        table = self._opened(name, None)
        if table is None:
            return ds.FileSystemDataset([], contract.schema, ds.ParquetFileFormat(), LocalFileSystem()), None
        return shown_files(name, table, contract, visibility)

    def visibility(self) -> Visibility:
        """The table `plates` with rows of every state, and which rows of other tables it makes visible."""
        return self._visibility(None)

    def _visibility(self, version: int | None) -> Visibility:
        if version is None and self.pinned is not None:
            if "plates" not in self.pinned:
                return Visibility(table_contract("plates").empty())
            version = self.pinned["plates"]
        return read_visibility(self._path("plates"), version)

    def _datasets(self, names: frozenset[str], versions: Mapping[str, int | None]) -> dict[str, ds.Dataset]:
        """The tables among these names. `plates` is read first, for the reason given in `versions`."""
        ours = [name for name in table_names() if name in names]
        is_of_plates = not {"plates", *PLATE_TABLES, *DERIVED_TABLES}.isdisjoint(ours)
        visibility = self._visibility(None) if is_of_plates else None
        return {name: self._dataset(name, versions.get(name), visibility) for name in ours}

    def _dataset(self, name: str, version: int | None, visibility: Visibility | None) -> ds.Dataset:
        """The visible part of one table."""
        import pyarrow.dataset as ds  # brings pandas: not to open a catalog

        if name == "plates":
            assert visibility is not None
            return ds.dataset((visibility if version is None else self._visibility(version)).visible)
        contract = table_contract(name)
        table = self._opened(name, version)
        if table is None:
            return ds.dataset(contract.empty())
        is_filtered = name in PLATE_TABLES or name in DERIVED_TABLES
        return shown_part(name, table, contract, visibility if is_filtered else None)

    def _opened(self, name: str, version: int | None) -> DeltaTable | None:
        if version is None and self.pinned is not None:
            return open_table(self._path(name), self.pinned[name]) if name in self.pinned else None
        return open_table(self._path(name), version)
