"""The catalog as people and jobs see it: tables to read, query and append to, and the pixels behind crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from cytolake.catalog.commits import commit_rows, create_table, open_table
from cytolake.catalog.declared import table_contract, table_names
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.query import parse_query, run_query

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PLATE_TABLES = ("wells", "sites", "crops", "qc_metrics")
"""Tables that an ingest writes before `plates`: rows of a plate show only once `plates` has it."""


def open(root: str | Path, *, create: bool = False) -> Catalog:
    """Open a catalog.

    Args:
        root: Its folder; the tables lie in `<root>/tables`.
        create: Make the folder and every table that is missing. Several processes may do so at once.

    Raises:
        CatalogError: There is no catalog and `create` is False, or a table there contradicts its contract.
    """
    folder = Path(root).expanduser().resolve()
    if create:
        for name in table_names():
            create_table(folder / "tables" / name, table_contract(name))
    elif not (folder / "tables").is_dir():
        raise CatalogError(
            f"{folder}: no catalog there (found no folder `tables`). Give the root of a catalog, or make one: "
            "jobs/ingest.py, or cytolake.catalog.open(root, create=True)."
        )
    return Catalog(folder)


class Catalog:
    """The tables of one catalog. Holds no state: every call reads what is on disk, or the pinned versions of it."""

    def __init__(self, root: Path, pinned: Mapping[str, int] | None = None) -> None:
        self.root = root
        self.pinned = dict(pinned) if pinned is not None else None

    def __repr__(self) -> str:
        return f"Catalog({str(self.root)!r}{'' if self.pinned is None else f', pinned={self.pinned}'})"

    def versions(self) -> dict[str, int]:
        """Delta version of every table that exists.

        `plates` is looked up first: a plate it has is whole in all the others.
        """
        if self.pinned is not None:
            return dict(self.pinned)
        found = {name: open_table(self._path(name)) for name in ("plates", *table_names())}
        return {name: table.version() for name, table in sorted(found.items()) if table is not None}

    def at(self, versions: Mapping[str, int]) -> Catalog:
        """The same catalog as it was at these versions, for reading. Tables that are not named are empty."""
        for name in versions:
            table_contract(name)
        return Catalog(self.root, versions)

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, where: str | None = None, version: int | None = None
    ) -> pa.Table:
        """Read one table, or part of it.

        Args:
            name: As in catalog/tables/.
            columns: Only these, in this order.
            where: SQL condition on its columns; may hold subqueries of other tables.
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
            found = run_query(query, self._datasets(query.tables, {name: version}))
        return pa.Table.from_arrays([found.column(i).cast(field.type) for i, field in enumerate(wanted)], schema=wanted)

    def to_pandas(
        self, name: str, *, columns: Sequence[str] | None = None, where: str | None = None, version: int | None = None
    ) -> pd.DataFrame:
        """`table(...)` as a pandas frame."""
        frame: pd.DataFrame = self.table(name, columns=columns, where=where, version=version).to_pandas()
        return frame

    def sql(self, query: str, **views: Any) -> pa.Table:
        """Run one SELECT over the catalog's tables with DuckDB.

        Args:
            query: May name every table of the catalog and every view. It can read nothing else and write nothing.
            views: More tables by name: Arrow tables, pandas frames, Arrow datasets. They hide a table of that name.

        Raises:
            CatalogError: Not one SELECT, a function that is not allowed, or DuckDB's reason.
        """
        parsed = parse_query(query)
        return run_query(parsed, {**self._datasets(parsed.tables - views.keys(), {}), **views})

    def append(self, name: str, rows: pa.Table, *, transaction: str) -> bool:
        """Append rows in one atomic commit.

        Args:
            name: As in catalog/tables/.
            rows: Exactly the contract's columns; see `TableContract.conform` for the types it takes.
            transaction: Names what is written. The same one again, from any process, changes nothing.

        Returns:
            False where `transaction` had been committed before.

        Raises:
            UnknownTableError: No such table.
            CatalogError: Rows that break the contract (nothing is written), a catalog pinned by `at`, or writers that
                kept this one out for about 20 seconds.
        """
        return self._commit(name, rows, application=transaction)

    def write_plate(self, name: str, rows: pa.Table, *, plate_id: str, content: int) -> bool:
        """Commit one plate's rows of one table, in place of rows that an ingest of other content left behind.

        Rows of a plate show only once `plates` has it: append its row there last.

        Args:
            name: As in catalog/tables/, not `plates`.
            rows: All rows of the plate, perhaps none.
            plate_id: Their plate.
            content: Stands for the plate's files and the settings of the ingest, 1 to 2**63 - 1.

        Returns:
            False where the same content was committed before.

        Raises:
            CatalogError: The plate shows already, with other content: what people see is not replaced.
        """
        is_visible = plate_id in self._visible_plates().to_pylist()  # asked first: then every table has its content
        if is_visible and self.plate_content(name, plate_id) != content:
            raise CatalogError(
                f"table {name}, plate {plate_id}: the catalog has this plate with other content. "
                "Ingest the plate under another name, or into another catalog root."
            )
        return self._commit(
            name, rows, application=_plate_application(plate_id), content=content, replace=("plate_id", plate_id)
        )

    def plate_content(self, name: str, plate_id: str) -> int | None:
        """What `write_plate` last committed of this plate to this table; None where nothing."""
        table = open_table(self._path(name))
        return None if table is None else table.transaction_version(_plate_application(plate_id))

    def to_anndata(self, representation_id: str | Sequence[str], *, level: Literal["crop", "well"] = "crop") -> AnnData:
        """Embeddings with everything known about their crops or wells, for scanpy; see `annotated.to_anndata`.

        Args:
            representation_id: One, or several; `champion` is the promoted one of the MLflow file in the catalog's root.
            level: One row for each crop, or for each well.
        """
        from cytolake.catalog import annotated

        if representation_id == "champion":
            from cytolake.tracking import TrackingConfig, resolve_alias  # mlflow: not to open a table

            representation_id = resolve_alias(TrackingConfig().at(self.root)).representation_id
        return annotated.to_anndata(self, representation_id, level=level)

    def crop_pixels(self, crop_ids: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Raw pixels of crops from their source: (C, size, size) each, in the source's dtype, in the order asked for.

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

    def _commit(self, name: str, rows: pa.Table, **how: Any) -> bool:
        contract = table_contract(name)
        if self.pinned is not None:
            raise CatalogError(f"table {name}: this catalog is pinned to old versions. Write to `open(root)`.")
        path = self._path(name)
        if open_table(path) is None:
            create_table(path, contract)  # a table that this version of cytolake added
        return commit_rows(path, contract, rows, **how)

    def _path(self, name: str) -> Path:
        return self.root / "tables" / name

    def _datasets(self, names: frozenset[str], versions: Mapping[str, int | None]) -> dict[str, ds.Dataset]:
        """The tables among these names. `plates` is read first, for the reason given in `versions`."""
        ours = [name for name in table_names() if name in names]
        visible = self._visible_plates() if set(ours) & set(PLATE_TABLES) else None
        found = {}
        for name in ours:
            dataset = self._whole_dataset(name, versions.get(name))
            found[name] = dataset.filter(pc.field("plate_id").isin(visible)) if name in PLATE_TABLES else dataset
        return found

    def _visible_plates(self) -> pa.Array:
        return self._whole_dataset("plates").to_table(columns=["plate_id"]).column("plate_id").combine_chunks()

    def _whole_dataset(self, name: str, version: int | None = None) -> ds.Dataset:
        contract = table_contract(name)
        if version is None and self.pinned is not None:
            table = open_table(self._path(name), self.pinned[name]) if name in self.pinned else None
        else:
            table = open_table(self._path(name), version)
        if table is None:
            return ds.dataset(contract.empty())
        return table.to_pyarrow_dataset().replace_schema(contract.schema)  # columns added later read as null


def _plate_application(plate_id: str) -> str:
    return f"plate/{plate_id}"
