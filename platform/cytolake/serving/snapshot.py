"""A snapshot of the catalog for the explorer: crops in a fixed order, with columns of their wells and QC of sites.

The explorer refers to crops by row: a row number takes 4 bytes, an id 32. Rows are those of `Snapshot.crops`, sorted by
crop id, so they stay the same until crops, wells or plates are written.

Shapes: N crops of the catalog, M crops of one representation, D width of the vector.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.representations import VectorReader
from cytolake.qc.newest import add_quality, failed_verdicts, newest_qc, rule_counts
from cytolake.qc.verdicts import profile_of
from cytolake.serving.crops_with_wells import add_wells
from cytolake.serving.problems import ServingError
from cytolake.serving.unit_vectors import unit_vectors
from cytolake.serving.where import compile_where

ROW_TABLES = ("crops", "plates", "wells")
"""Tables that the row numbers depend on."""
TABLES = (*ROW_TABLES, "embeddings", "qc_verdicts", "representations", "sites")
"""Tables that a snapshot reads; a new version of one of them makes a new snapshot."""

MAX_FAILED = 2000
"""Most failed verdicts that a snapshot lists; `Snapshot.rules` counts all."""

Rows = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The tables of one moment; immutable."""

    versions: Mapping[str, int]
    """Delta versions of `TABLES`."""
    key: str
    """Identifies the row numbers: two snapshots with one key have the same crop in each row."""
    catalog: Catalog
    """Pinned at `versions`."""
    crops: pa.Table
    """N rows sorted by crop_id, with the columns of `CropIndex.crops`."""
    failed: pa.Table
    """The first `MAX_FAILED` of `failed_verdicts`."""
    rules: tuple[dict[str, Any], ...]
    """QC rules and their counts: level, rule, says, n_judged, n_failed."""
    qc_ids: Mapping[str, str]
    """Result of `newest_qc`."""
    representations: tuple[dict[str, Any], ...]
    """Representations with embeddings, as GET /v1/explore/representations lists them, without `is_champion`."""

    def rows_where(self, where: str) -> Rows:
        """Rows that pass a SQL condition over the columns of `crops`, increasing; "" lets all pass.

        Raises:
            ServingError: 422, see `compile_where`.
        """
        if not where.strip():
            return np.arange(self.crops.num_rows, dtype=np.uint32)
        passing = compile_where(where, self.crops.schema)
        numbered = self.crops.append_column("__row", pa.array(np.arange(self.crops.num_rows, dtype=np.uint32)))
        # A dataset reads only the columns of the condition; Table.filter would copy all.
        found = ds.dataset(numbered).to_table(columns=["__row"], filter=passing)
        return np.sort(found["__row"].to_numpy())

    def rows_of(self, crop_ids: Any) -> NDArray[np.int64]:
        """Row of each crop id, -1 where the catalog has no such crop."""
        found = pc.index_in(crop_ids, value_set=self.crops["crop_id"].combine_chunks())
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def crops_at(self, rows: NDArray[np.integer[Any]]) -> pa.Table:
        """These rows of `crops`, in their order.

        Raises:
            ServingError: 422, a row beyond the table.
        """
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self.crops.num_rows):
            raise ServingError(
                status=422, detail=f"row {int(rows.max())}: the catalog has {self.crops.num_rows:,} crops, rows from 0."
            )
        return self.crops.take(pa.array(rows.astype(np.int64)))

    def representation(self, representation_id: str) -> dict[str, Any]:
        """One of `representations`.

        Raises:
            ServingError: 404.
        """
        for known in self.representations:
            if known["representation_id"] == representation_id:
                return known
        raise ServingError(
            status=404,
            detail=f"representation {representation_id[:64]!r} has no embeddings in this catalog. "
            "GET /v1/explore/representations lists those that have.",
        )

    def column_bytes(self, name: str) -> bytes:
        """One column of `crops`, encoded for the page.

        Returns:
            Little-endian: uint32 length of the header, a multiple of 4; the header, JSON padded with blanks; N values.
            With a header `{"kind": "category", "n": N, "dtype": "uint8", "categories": [...]}` each value is an index
            into `categories`, as uint8, uint16 or uint32; categories are sorted, and "" is a missing value. With
            `{"kind": "number", "n": N, "dtype": "float32"}` values are float32, and NaN is a missing value.

        Raises:
            ServingError: 404, no such column.
        """
        if name not in self.crops.schema.names or is_hidden(self.crops.schema.field(name)):
            names = [field.name for field in self.crops.schema if not is_hidden(field)]
            raise ServingError(status=404, detail=f"there is no column {name[:64]!r}. There are: {', '.join(names)}.")
        column = self.crops[name].combine_chunks()
        if is_number(column.type):
            values: NDArray[Any] = np.asarray(column.cast(pa.float32()).fill_null(float("nan")).to_numpy())
            return _headed({"kind": "number", "n": len(values), "dtype": "float32"}, values)
        encoded = column.cast(pa.string()).fill_null("").dictionary_encode()
        categories = np.asarray(encoded.dictionary.to_pylist(), dtype=object)
        order = np.argsort(categories.astype(str), kind="stable")
        code = "uint8" if len(order) <= 2**8 else "uint16" if len(order) <= 2**16 else "uint32"
        place = np.empty(len(order), dtype=code)
        place[order] = np.arange(len(order))
        header = {"kind": "category", "n": len(column), "dtype": code, "categories": categories[order].tolist()}
        return _headed(header, place[encoded.indices.to_numpy()])


def is_number(kind: Any) -> bool:
    """Whether a column is sent as numbers; other columns are sent as categories."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_hidden(field: Any) -> bool:
    """Whether a column cannot colour the map: one value for each crop, or annotations of the plate map as JSON."""
    return field.name in {"crop_id", "annotations"} or pa.types.is_nested(field.type)


def versions_of(catalog: Catalog) -> dict[str, int]:
    """Delta versions of `TABLES`."""
    now = catalog.versions()
    return {name: now[name] for name in TABLES if name in now}


def read_snapshot(catalog: Catalog, versions: Mapping[str, int]) -> Snapshot:
    """Read the crops with their wells and QC, and which representations have embeddings.

    Args:
        versions: Result of `versions_of`.
    """
    pinned = catalog.at(versions)
    crops = add_wells(pinned, pinned.table("crops").sort_by("crop_id").combine_chunks())
    crops = add_quality(pinned, crops).combine_chunks()
    named = json.dumps({name: [catalog.table_id(name), versions.get(name)] for name in ROW_TABLES}, sort_keys=True)
    return Snapshot(
        versions=dict(versions),
        key=hashlib.sha256(f"{catalog.place} {named}".encode()).hexdigest()[:16],
        catalog=pinned,
        crops=crops,
        failed=failed_verdicts(pinned, MAX_FAILED),
        rules=_rules(pinned),
        qc_ids=newest_qc(pinned),
        representations=_representations(pinned),
    )


def read_vectors(snapshot: Snapshot, representation_id: str) -> tuple[Rows, NDArray[np.float32]]:
    """One representation's vectors at length 1, as the search compares them; a vector of zeros stays zero.

    Returns:
        (M,) rows, increasing, and (M, D) float32. Embeddings of crops that are not in the table crops are left out.

    Raises:
        ServingError: 404, an unknown representation; 503, vectors of several widths, or none of a known crop.
    """
    dim = snapshot.representation(representation_id)["dim"]
    stored = VectorReader(snapshot.catalog).columns(representation_id, ["crop_id", "embedding"])
    rows = snapshot.rows_of(stored["crop_id"].combine_chunks())
    if not (rows >= 0).any():
        raise ServingError(
            status=503,
            detail=f"representation {representation_id}: none of its {len(rows):,} vectors belongs to a crop of the "
            "table crops; expected at least one. Embed again (`cytolake embed`).",
        )
    try:
        vectors_MD = unit_vectors(stored["embedding"].combine_chunks(), dim, representation_id)
    except ValueError as error:
        raise ServingError(status=503, detail=str(error)) from error
    order = np.argsort(rows, kind="stable")
    order = order[np.searchsorted(rows[order], 0) :]
    return rows[order].astype(np.uint32), vectors_MD[order]


def _rules(catalog: Catalog) -> tuple[dict[str, Any], ...]:
    """`Snapshot.rules`, with the description of each rule that is still in catalog/qc.yaml."""
    counts = rule_counts(catalog).to_pylist()
    profiles = [profile_of(qc_id) for qc_id in sorted({qc_id for row in counts for qc_id in row["qc_ids"]})]
    says = {rule.name: rule.says for profile in profiles if profile is not None for rule in profile.rules}
    return tuple(
        {
            "level": row["level"],
            "rule": row["rule"],
            "says": says.get(row["rule"], ""),
            "n_judged": row["n_judged"],
            "n_failed": row["n_failed"],
        }
        for row in counts
    )


def _representations(catalog: Catalog) -> tuple[dict[str, Any], ...]:
    # Reads the names of folders only, no vectors.
    counted = catalog.sql("SELECT representation_id, count(*) AS n FROM embeddings GROUP BY ALL").to_pylist()
    described = {row["representation_id"]: row for row in catalog.table("representations").to_pylist()}
    reader = VectorReader(catalog)
    found = []
    for row in counted:
        about = described.get(row["representation_id"], {})
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", row["representation_id"]):
            continue  # no job of cytolake writes such an id, and a file name could not hold it
        found.append(
            {
                "representation_id": row["representation_id"],
                "kind": about.get("kind") or "",
                "block": about.get("block", -1),
                "pooling": about.get("pooling") or "",
                "alignment": about.get("alignment_variant") or "",
                "model": about.get("architecture") or "",
                "model_id": about.get("model_id") or "",
                "dim": about["dim"] if about else reader.dim(row["representation_id"]),
                "n": row["n"],
            }
        )
    order = {"trained": 0, "aligned": 1, "external": 2, "untrained": 3, "pixel_statistics": 4, "cell_count": 5}
    return tuple(
        sorted(
            found,
            key=lambda each: (
                order.get(each["kind"], 5), each["model"], each["model_id"], each["pooling"], each["block"],
                each["alignment"], each["representation_id"],
            ),
        )
    )  # fmt: skip


def _headed(header: Mapping[str, Any], values: NDArray[Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # so that a browser can use the values without a copy
    return struct.pack("<I", len(text)) + text + values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
