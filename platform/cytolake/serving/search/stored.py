"""Stores the search index of a representation on disk: built once from the tables, then shared by all processes.

In a folder search_index/REPRESENTATION-EMBEDDINGS-PLATES of the catalog root, with the Delta versions that determine
which embeddings exist:

    vectors.npy       (N, D) float32, unit vectors, memory-mapped
    crop_ids.arrow    N crop ids in the same order
    header.json       source tables, sizes of both files, and a checksum of the header itself
    crops-HASH.arrow  columns of crops, wells and QC at the table versions of HASH
    cells.faiss       cells of the approximate search, built later and only for many rows

A folder gets its name when it is complete. Two processes that build the same folder at once both succeed: one of the
two results stays. A damaged folder is built again, and where the disk takes no file the index is held in memory.

Shapes: N crops, D width of the vector.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog, CatalogError
from cytolake.catalog.representations import VectorReader
from cytolake.qc.newest import add_quality
from cytolake.serving.crops_with_wells import add_wells
from cytolake.serving.search.approximate import FILE_NAME, MIN_ROWS, Cells, build_in_background
from cytolake.serving.search.index import CropIndex
from cytolake.serving.search.sites import sites_of
from cytolake.serving.unit_vectors import unit_vectors
from cytolake.storage.atomic_write import atomic_file

logger = logging.getLogger(__name__)

TABLES = ("embeddings", "crops", "wells", "plates", "qc_verdicts")
"""Tables that an index is read from; `plates` determines which rows of the others are visible."""

FOLDER = "search_index"
FORMAT = 1
"""Version of the files' format; files of another format are built again."""
KEPT = 2
"""Folders of one representation, and crops files of one folder, that are kept: a replica may still use the last one."""
ABANDONED_S = 6 * 3600
"""Age at which an unfinished folder is abandoned, seconds; building one takes minutes at most."""


class DamagedIndexError(Exception):
    """Files of an index that do not match their header."""


def read_index(catalog: Catalog, representation_id: str, dim: int) -> CropIndex:
    """Read one representation's embeddings with the columns of their crops and wells.

    Files on disk for the current versions of the tables are used; otherwise they are built.

    Args:
        catalog: Where the tables are; read at their current versions.
        representation_id: The representation. One without embeddings has an index without rows.

    Raises:
        ValueError: An embedding of another width, or embeddings of crops that are not in the table crops.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", representation_id):
        raise ValueError(f"representation_id {representation_id!r}: expected letters, digits, _, . and - only")
    everything = catalog.versions()
    versions = {table: everything[table] for table in TABLES if table in everything}
    pinned = catalog.at(versions)
    # A table that was deleted and created again starts at version 0; its id differs from that of the first one.
    source = {table: [catalog.table_id(table), version] for table, version in versions.items()}
    tables = _Tables(pinned, representation_id, dim, source)
    try:
        store = catalog.root / FOLDER
        store.mkdir(exist_ok=True)
        folder = _folder_of_vectors(tables, store)
        vectors_ND, crops = _vectors(folder, tables), _crops(folder, tables)
        _remove_old(store, folder, representation_id)
    except (OSError, CatalogError) as error:
        logger.warning("%s: the search index is held in memory: %s", representation_id, error)
        return tables.index(*tables.in_memory())
    except _NothingEmbeddedError:
        return tables.index(*tables.in_memory())
    cells = None
    if len(vectors_ND) >= MIN_ROWS:
        cells = Cells(folder / FILE_NAME, len(vectors_ND), dim)
        if not cells.is_ready():
            build_in_background(vectors_ND, folder / FILE_NAME)
    return tables.index(vectors_ND, crops, cells)


class _NothingEmbeddedError(Exception):
    pass


class _Tables:
    """Reads the tables at pinned versions."""

    def __init__(self, pinned: Catalog, representation_id: str, dim: int, source: Mapping[str, list[Any]]) -> None:
        self.pinned, self.representation_id, self.dim, self.source = pinned, representation_id, dim, dict(source)

    def index(self, vectors_ND: NDArray[np.float32], crops: pa.Table, cells: Cells | None = None) -> CropIndex:
        return CropIndex(
            representation_id=self.representation_id,
            versions={table: version for table, (_, version) in self.source.items()},
            unit_vectors=vectors_ND,
            crops=crops,
            sites=sites_of(crops),
            cells=cells,
        )

    def in_memory(self) -> tuple[NDArray[np.float32], pa.Table]:
        parts = list(self.parts())
        vectors_ND = np.concatenate([np.zeros((0, self.dim), np.float32), *(units for _, units in parts)])
        crop_ids = pa.concat_arrays([pa.array([], pa.string()), *(ids for ids, _ in parts)])
        return vectors_ND, self.crops(crop_ids)

    def n_rows(self) -> int:
        return VectorReader(self.pinned).count(self.representation_id)

    def parts(self) -> Iterator[tuple[pa.Array, NDArray[np.float32]]]:
        """Crop ids and (n, D) unit vectors in parts, so that a million embeddings are not in memory twice."""
        for batch in VectorReader(self.pinned).batches(self.representation_id, ["crop_id"]):
            units = unit_vectors(batch["embedding"], self.dim, self.representation_id)
            yield batch["crop_id"].cast(pa.string()), units

    def crops(self, crop_ids: pa.Array) -> pa.Table:
        """Columns of crops, wells and QC, in the order of the ids."""
        crops_table = self.pinned.table("crops")
        rows = pc.index_in(crop_ids, crops_table["crop_id"].combine_chunks())
        if rows.null_count:
            missing = crop_ids.filter(pc.is_null(rows))
            raise ValueError(
                f"{len(missing)} embeddings of representation {self.representation_id} belong to crops that are not in "
                f"the table crops, first {missing[0]}. The catalog root mixes two catalogs; ingest and embed again."
            )
        crops = add_wells(self.pinned, crops_table.take(rows))
        return add_quality(self.pinned, crops).combine_chunks()


def _folder_of_vectors(tables: _Tables, store: Path) -> Path:
    """The folder of the tables' versions, built where it is missing or damaged."""
    of_vectors = {table: tables.source.get(table, ["", -1]) for table in ("embeddings", "plates")}
    folder = store / "-".join([tables.representation_id, *(str(version) for _, version in of_vectors.values())])
    expected = {
        "format": FORMAT,
        "representation_id": tables.representation_id,
        "dim": tables.dim,
        "source": of_vectors,
    }
    try:
        _check_header(folder, expected)
        return folder
    except FileNotFoundError:
        pass
    except DamagedIndexError as error:
        logger.warning("%s is built again: %s", folder, error)
    unfinished = store / f".building-{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        _write_vectors(tables, unfinished, expected)
        _publish(unfinished, folder, expected)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _publish(unfinished: Path, folder: Path, expected: Mapping[str, Any]) -> None:
    """Give a complete folder its name, unless another process was faster; replaces a damaged folder."""
    for _ in range(3):
        try:
            unfinished.rename(folder)
            return
        except OSError:  # the name is taken; rename does not replace a folder with files
            try:
                _check_header(folder, expected)
                return
            except (FileNotFoundError, DamagedIndexError):
                with suppress(OSError):
                    folder.rename(damaged := unfinished.with_name(f".damaged-{uuid.uuid4().hex}"))
                    shutil.rmtree(damaged, ignore_errors=True)
    raise OSError(f"{folder} can neither be read nor replaced")


def _write_vectors(tables: _Tables, folder: Path, expected: Mapping[str, Any]) -> None:
    n_rows = tables.n_rows()
    if n_rows == 0:
        raise _NothingEmbeddedError
    written = 0
    # Plain writes, not a memory map: on a full disk they raise, while a memory map would end the process.
    with (
        (folder / "vectors.npy").open("wb") as file,
        pa.ipc.new_file(folder / "crop_ids.arrow", pa.schema([("crop_id", pa.string())])) as ids_file,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, tables.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for crop_ids, units in tables.parts():
            file.write(np.ascontiguousarray(units, "<f4").data)
            ids_file.write_batch(pa.record_batch({"crop_id": crop_ids}))
            written += len(units)
    if written != n_rows:
        raise OSError(f"{written} embeddings were read, {n_rows} counted")
    sizes = {name: (folder / name).stat().st_size for name in ("vectors.npy", "crop_ids.arrow")}
    content = {**expected, "n_rows": n_rows, "sizes": sizes}
    text = json.dumps({**content, "checksum": _checksum(content)}, indent=1)
    (folder / "header.json").write_text(text, encoding="utf-8")


def _check_header(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a folder.

    Raises:
        FileNotFoundError: There is no such folder.
        DamagedIndexError: The header is cut, changed or of other tables, or a file has another size than declared.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        header: dict[str, Any] = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        checksum = header.pop("checksum")
        sizes = {name: (folder / name).stat().st_size for name in header["sizes"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedIndexError(f"no readable header.json, or a missing file ({error})") from error
    if checksum != _checksum(header) or sizes != header["sizes"]:
        raise DamagedIndexError("its files or its header were changed or cut")
    differing = [name for name, value in expected.items() if header.get(name) != value]
    if differing:
        raise DamagedIndexError(f"its {', '.join(differing)} differs from that of the tables")
    return header


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _vectors(folder: Path, tables: _Tables) -> NDArray[np.float32]:
    vectors_ND: NDArray[np.float32] = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    if vectors_ND.dtype != np.float32 or vectors_ND.ndim != 2 or vectors_ND.shape[1] != tables.dim:
        raise OSError(f"{folder}: vectors of shape {vectors_ND.shape}, {vectors_ND.dtype}; remove the folder")
    return vectors_ND


def _crops(folder: Path, tables: _Tables) -> pa.Table:
    """The columns of the crops, from disk where they are stored for these versions."""
    source = json.dumps([FORMAT, tables.source], sort_keys=True)
    path = folder / f"crops-{hashlib.sha256(source.encode()).hexdigest()[:12]}.arrow"
    crop_ids = _mapped(folder / "crop_ids.arrow")["crop_id"].combine_chunks()
    try:
        crops = _mapped(path)
        if crops.num_rows == len(crop_ids) and (crops.schema.metadata or {}).get(b"source") == source.encode():
            path.touch()  # marks it as recently used
            return crops.replace_schema_metadata(None)
        logger.warning("%s is built again: its rows or versions are not those of its name", path)
    except FileNotFoundError:
        pass
    except (OSError, pa.ArrowInvalid) as error:
        logger.warning("%s is built again: %s", path, error)
    crops = tables.crops(crop_ids)
    with atomic_file(path) as part, pa.ipc.new_file(part, crops.schema.with_metadata({"source": source})) as file:
        file.write_table(crops.replace_schema_metadata({"source": source}), max_chunksize=max(1, crops.num_rows))
    for old in sorted(folder.glob("crops-*.arrow"), key=_age)[KEPT:]:
        old.unlink(missing_ok=True)
    return _mapped(path).replace_schema_metadata(None)


def _mapped(path: Path) -> pa.Table:
    """A memory-mapped table. An Arrow file has an end mark, so a cut one is refused."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _remove_old(store: Path, current: Path, representation_id: str) -> None:
    """Remove all but the newest folders of the representation. Files that a process has open stay readable to it."""
    alike = re.compile(re.escape(representation_id) + r"-\d+-\d+")
    others = [folder for folder in store.iterdir() if alike.fullmatch(folder.name) and folder != current]
    for folder in sorted(others, key=_age)[KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (*store.glob(".building-*"), *store.glob(".damaged-*")):
        if _age(folder) > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since the last change; infinite for a removed path."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")
