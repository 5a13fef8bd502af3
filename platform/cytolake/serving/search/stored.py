"""The index of a representation on the disk: made once from the tables, then shared by every process of the machine.

A folder search_index/REPRESENTATION-EMBEDDINGS-PLATES of the catalog root, named after the Delta versions that decide
which embeddings there are:

    vectors.npy       (N, D) float32, unit vectors, read as a file in memory
    crop_ids.arrow    N crop ids in the same order
    header.json       what it was made from, the sizes of both files, and a checksum of the header itself
    crops-HASH.arrow  columns of crops, wells and quality control at the versions that HASH stands for
    cells.faiss       cells of the approximate search, made later and only for many rows

A folder appears under its name when it is whole. Two processes that make the same one at once both succeed: one of the
two results stays. What is damaged is made again, and where the disk takes no file the index is held in memory.

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
from cytolake.qc.newest import add_quality
from cytolake.serving.crops_with_wells import add_wells
from cytolake.serving.search.approximate import FILE_NAME, MIN_ROWS, Cells, build_in_background
from cytolake.serving.search.index import CropIndex
from cytolake.serving.search.sites import sites_of
from cytolake.serving.unit_vectors import unit_vectors

logger = logging.getLogger(__name__)

TABLES = ("embeddings", "crops", "wells", "plates", "qc_verdicts")
"""What an index is read from; `plates` decides which rows of the others show."""

FOLDER = "search_index"
FORMAT = 1
"""Raised when the files change their meaning; those of another format are made again."""
KEPT = 2
"""Folders of one representation, and crops files of one folder, that stay: a replica may still be on the last one."""
ABANDONED_S = 6 * 3600
"""Age at which an unfinished folder is nobody's any more; making one takes minutes at most."""


class DamagedIndexError(Exception):
    """Files of an index that are not what their header says."""


def read_index(catalog: Catalog, representation_id: str, dim: int) -> CropIndex:
    """Read one representation's embeddings and join what the catalog knows of their crops and wells.

    What is on the disk for the versions that the tables have now is taken as it is; else it is made.

    Args:
        catalog: Where the tables are; read at the versions it has now.
        representation_id: Whose embeddings. None written yet gives an index without rows.
        dim: Width that every embedding must have.

    Raises:
        ValueError: An embedding of another width, or embeddings of crops that the crops table does not hold.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", representation_id):
        raise ValueError(f"representation_id {representation_id!r}: expected letters, digits, _, . and - only")
    everything = catalog.versions()
    versions = {table: everything[table] for table in TABLES if table in everything}
    pinned = catalog.at(versions)
    # A table that was deleted and made again counts its versions from 0: its id tells it from the first one.
    source = {table: [catalog.table_id(table), version] for table, version in versions.items()}
    maker = _Maker(pinned, representation_id, dim, source)
    try:
        store = catalog.root / FOLDER
        store.mkdir(exist_ok=True)
        folder = _folder_of_vectors(maker, store)
        vectors_ND, crops = _vectors(folder, maker), _crops(folder, maker)
        _remove_old(store, folder, representation_id)
    except (OSError, CatalogError) as error:
        logger.warning("%s: the search index is held in memory: %s", representation_id, error)
        return maker.index(*maker.in_memory())
    except _NothingEmbeddedError:
        return maker.index(*maker.in_memory())
    cells = None
    if len(vectors_ND) >= MIN_ROWS:
        cells = Cells(folder / FILE_NAME, len(vectors_ND), dim)
        if not cells.is_ready():
            build_in_background(vectors_ND, folder / FILE_NAME)
    return maker.index(vectors_ND, crops, cells)


class _NothingEmbeddedError(Exception):
    pass


class _Maker:
    """Reads the tables."""

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
        return int(self.pinned.dataset("embeddings").count_rows(filter=self._is_ours))

    def parts(self) -> Iterator[tuple[pa.Array, NDArray[np.float32]]]:
        """Crop ids and (n, D) unit vectors, part by part: a million embeddings are never in memory twice."""
        batches = self.pinned.dataset("embeddings").to_batches(
            columns=["crop_id", "embedding"], filter=self._is_ours, batch_size=16_384
        )
        for batch in batches:
            if batch.num_rows:
                yield (
                    batch["crop_id"].cast(pa.string()),
                    unit_vectors(batch["embedding"], self.dim, self.representation_id),
                )

    def crops(self, crop_ids: pa.Array) -> pa.Table:
        """Columns of crops, wells and quality control, in the order of the ids."""
        crops_table = self.pinned.table("crops")
        rows = pc.index_in(crop_ids, crops_table["crop_id"].combine_chunks())
        if rows.null_count:
            missing = crop_ids.filter(pc.is_null(rows))
            raise ValueError(
                f"{len(missing)} embeddings of representation {self.representation_id} belong to crops that the crops "
                f"table does not hold, first {missing[0]}. The catalog root mixes two catalogs; ingest and embed again."
            )
        crops = add_wells(self.pinned, crops_table.take(rows))
        return add_quality(self.pinned, crops).combine_chunks()

    @property
    def _is_ours(self) -> pc.Expression:
        return pc.field("representation_id") == self.representation_id


def _folder_of_vectors(maker: _Maker, store: Path) -> Path:
    """The folder of the maker's versions, made where it is not there or damaged."""
    of_vectors = {table: maker.source.get(table, ["", -1]) for table in ("embeddings", "plates")}
    folder = store / "-".join([maker.representation_id, *(str(version) for _, version in of_vectors.values())])
    expected = {
        "format": FORMAT,
        "representation_id": maker.representation_id,
        "dim": maker.dim,
        "source": of_vectors,
    }
    try:
        _check_header(folder, expected)
        return folder
    except FileNotFoundError:
        pass
    except DamagedIndexError as error:
        logger.warning("%s is made again: %s", folder, error)
    unfinished = store / f".building-{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        _write_vectors(maker, unfinished, expected)
        _publish(unfinished, folder, expected)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _publish(unfinished: Path, folder: Path, expected: Mapping[str, Any]) -> None:
    """Give a whole folder its name, unless another process was faster; a damaged one goes."""
    for _ in range(3):
        try:
            unfinished.rename(folder)
            return
        except OSError:  # the name is taken: a folder that holds files is never replaced
            try:
                _check_header(folder, expected)
                return
            except (FileNotFoundError, DamagedIndexError):
                with suppress(OSError):
                    folder.rename(damaged := unfinished.with_name(f".damaged-{uuid.uuid4().hex}"))
                    shutil.rmtree(damaged, ignore_errors=True)
    raise OSError(f"{folder}: it can neither be read nor replaced")


def _write_vectors(maker: _Maker, folder: Path, expected: Mapping[str, Any]) -> None:
    n_rows = maker.n_rows()
    if n_rows == 0:
        raise _NothingEmbeddedError
    written = 0
    # Plain writes, not a file in memory: on a full disk they raise, where that would end the process.
    with (
        (folder / "vectors.npy").open("wb") as file,
        pa.ipc.new_file(folder / "crop_ids.arrow", pa.schema([("crop_id", pa.string())])) as ids_file,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, maker.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for crop_ids, units in maker.parts():
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
        DamagedIndexError: The header is cut, changed or of other tables, or a file has another size than it says.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        header: dict[str, Any] = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        checksum = header.pop("checksum")
        sizes = {name: (folder / name).stat().st_size for name in header["sizes"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedIndexError(f"no readable header.json, or a file less ({error})") from error
    if checksum != _checksum(header) or sizes != header["sizes"]:
        raise DamagedIndexError("its files or its header were changed or cut")
    differing = [name for name, value in expected.items() if header.get(name) != value]
    if differing:
        raise DamagedIndexError(f"another {', '.join(differing)} than that of the tables")
    return header


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _vectors(folder: Path, maker: _Maker) -> NDArray[np.float32]:
    vectors_ND: NDArray[np.float32] = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    if vectors_ND.dtype != np.float32 or vectors_ND.ndim != 2 or vectors_ND.shape[1] != maker.dim:
        raise OSError(f"{folder}: vectors of shape {vectors_ND.shape}, {vectors_ND.dtype}; remove the folder")
    return vectors_ND


def _crops(folder: Path, maker: _Maker) -> pa.Table:
    """The columns of the crops, from the disk where they are there for these versions."""
    source = json.dumps([FORMAT, maker.source], sort_keys=True)
    path = folder / f"crops-{hashlib.sha256(source.encode()).hexdigest()[:12]}.arrow"
    crop_ids = _mapped(folder / "crop_ids.arrow")["crop_id"].combine_chunks()
    try:
        crops = _mapped(path)
        if crops.num_rows == len(crop_ids) and (crops.schema.metadata or {}).get(b"source") == source.encode():
            path.touch()  # the newest are kept
            return crops.replace_schema_metadata(None)
        logger.warning("%s is made again: other rows or versions than its name says", path)
    except FileNotFoundError:
        pass
    except (OSError, pa.ArrowInvalid) as error:
        logger.warning("%s is made again: %s", path, error)
    crops = maker.crops(crop_ids)
    unfinished = folder / f".building-{uuid.uuid4().hex}"
    try:
        with pa.ipc.new_file(unfinished, crops.schema.with_metadata({"source": source})) as file:
            file.write_table(crops.replace_schema_metadata({"source": source}), max_chunksize=max(1, crops.num_rows))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    for old in sorted(folder.glob("crops-*.arrow"), key=_age)[KEPT:]:
        old.unlink(missing_ok=True)
    return _mapped(path).replace_schema_metadata(None)


def _mapped(path: Path) -> pa.Table:
    """A table whose columns stay in the file. An Arrow file ends with a mark, so a cut one is refused."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _remove_old(store: Path, current: Path, representation_id: str) -> None:
    """Leave the newest folders of the representation. One that another process reads stays readable to it."""
    alike = re.compile(re.escape(representation_id) + r"-\d+-\d+")
    others = [folder for folder in store.iterdir() if alike.fullmatch(folder.name) and folder != current]
    for folder in sorted(others, key=_age)[KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (*store.glob(".building-*"), *store.glob(".damaged-*")):
        if _age(folder) > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since the last change; what is gone is oldest."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")
